"""The Lazy twin of focal_retinanet_R_50_FPN_1x.yaml, for Detectron2's lazyconfig_train_net.py."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from focal_det.losses import FocalLoss
from focal_det.losses.normalizers import EMAPosCount
from focal_det.modeling.retinanet import FocalRetinaNet
from focal_det.modeling.retinanet_head import FocalRetinaNetHead

stock = get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
# The names that lazyconfig_train_net.py reads.
dataloader = stock.dataloader
lr_multiplier = stock.lr_multiplier
optimizer = stock.optimizer
train = stock.train

model = stock.model
model._target_ = FocalRetinaNet
# FocalRetinaNet takes the loss itself, not its numbers.
model.cls_loss = L(FocalLoss)(
    alpha=model.pop("focal_loss_alpha"), gamma=model.pop("focal_loss_gamma")
)
model.normalizer = L(EMAPosCount)()
model.head._target_ = FocalRetinaNetHead
# The head asks the loss for its number of outputs and its bias.
model.head.cls_loss = "${..cls_loss}"
