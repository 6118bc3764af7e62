"""The Lazy twin of focal_faster_rcnn_R_50_FPN_1x.yaml, for Detectron2's lazyconfig_train_net.py."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from focal_det.losses import FocalLoss
from focal_det.losses.normalizers import EMAPosCount
from focal_det.modeling.fast_rcnn import FocalFastRCNNOutputLayers
from focal_det.modeling.roi_heads import FocalROIHeads
from focal_det.modeling.rpn import FocalRPN

# Detectron2 has no Lazy config of Faster R-CNN; that of Mask R-CNN is the same but for the masks.
stock = get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
# The names that lazyconfig_train_net.py reads.
dataloader = stock.dataloader
lr_multiplier = stock.lr_multiplier
optimizer = stock.optimizer
train = stock.train

dataloader.train.mapper.use_instance_mask = False

model = stock.model
for name in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(name)
rpn = model.proposal_generator
rpn._target_ = FocalRPN
heads = model.roi_heads
heads._target_ = FocalROIHeads
layers = heads.box_predictor
layers._target_ = FocalFastRCNNOutputLayers
for stage in (rpn, layers):
    stage.cls_loss = L(FocalLoss)(alpha=0.25, gamma=2.0)
    stage.normalizer = L(EMAPosCount)()
    stage.prior_prob = 0.01
    stage.sampling = "none"
heads.sampling = "none"
# Divided by the positives, box losses are several times as large as divided by a sample. These
# weights were found on digits (projects/TwoStage); they have not been tried on COCO.
rpn.loss_weight = {"loss_rpn_cls": 1.0, "loss_rpn_loc": 0.1}
layers.loss_weight = {"loss_box_reg": 0.25}
