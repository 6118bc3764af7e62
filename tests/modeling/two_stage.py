"""Small two-stage detectors, Detectron2's and ours."""

from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tests.conftest import SMALL_MODEL

FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
OURS = {
    "StandardROIHeads": "FocalROIHeads",
    "Res5ROIHeads": "FocalRes5ROIHeads",
    "CascadeROIHeads": "FocalCascadeROIHeads",
}
RPN = "MODEL.FOCAL_DET.RPN"
BOX = "MODEL.FOCAL_DET.ROI_BOX_HEAD"
# Every anchor and proposal, divided by the positives.
WITHOUT_SAMPLING = {
    f"{RPN}.SAMPLING": "none",
    f"{RPN}.NORMALIZER.NAME": "GlobalPosCount",
    f"{RPN}.PRIOR_PROB": 0.01,
    f"{BOX}.SAMPLING": "none",
    f"{BOX}.NORMALIZER.NAME": "GlobalPosCount",
    f"{BOX}.PRIOR_PROB": 0.01,
}
_SMALL = {
    **SMALL_MODEL,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_HEADS.NUM_CLASSES": 5,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 100,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    "MODEL.MASK_ON": False,
}


def make_two_stage_cfg(config_file, overrides=(), *, is_ours=True):
    """The config of a small five-class detector from one of Detectron2's zoo.

    Args:
        overrides: a dict of keys.
    """
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(config_file))
    values = dict(_SMALL)
    if is_ours:
        values["MODEL.PROPOSAL_GENERATOR.NAME"] = "FocalRPN"
        values["MODEL.ROI_HEADS.NAME"] = OURS[cfg.MODEL.ROI_HEADS.NAME]
    values.update(overrides)
    cfg.merge_from_list([x for pair in values.items() for x in pair])
    return cfg


def build_two_stage(config_file, overrides=(), *, is_ours=True):
    return build_model(make_two_stage_cfg(config_file, overrides, is_ours=is_ours)).train()


def compute_losses(model, batch):
    with EventStorage():
        return model(batch)
