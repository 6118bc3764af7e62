"""Another loss in a Lazy config: quality focal loss, and positives counted over all processes."""

from focal_det.losses import QualityFocalLoss
from focal_det.losses.normalizers import GlobalPosCount

from .focal_retinanet_R_50_FPN_1x import L, dataloader, lr_multiplier, model, optimizer, train

model.cls_loss = L(QualityFocalLoss)(beta=2.0)
model.normalizer = L(GlobalPosCount)()
