"""The detectors of `focal-det bench`, ours and Detectron2's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import get_cfg
from detectron2.modeling import build_model

from focal_det.model_zoo import get_config_file
from focal_det.modeling.parts import ARCHITECTURE, PROPOSAL_GENERATOR, ROI_HEADS

OURS = "focal_det"
STOCK = "Detectron2"


@dataclass(frozen=True)
class Detector:
    """A detector that is compared with Detectron2's own.

    Attributes:
        title: in the names of the cases.
        config: name of our shipped config.
        stock_parts: values that select Detectron2's own parts, by full key.
    """

    title: str
    config: str
    stock_parts: Mapping[str, str]


RETINANET = Detector(
    "R50-FPN", "COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml", {ARCHITECTURE: "RetinaNet"}
)
# With the defaults, which are Detectron2's own losses and samples.
FASTER_RCNN = Detector(
    "Faster R-CNN R50-FPN",
    "Base-FocalRCNN-FPN.yaml",
    {PROPOSAL_GENERATOR: "RPN", ROI_HEADS: "StandardROIHeads"},
)


def build_models(detector: Detector, device: str) -> dict[str, Any]:
    """Ours and Detectron2's, with the same weights and 80 classes."""
    models = {}
    for name, parts in ((OURS, {}), (STOCK, detector.stock_parts)):
        cfg = get_cfg()
        cfg.merge_from_file(get_config_file(detector.config))
        cfg.merge_from_list([x for pair in parts.items() for x in pair])
        cfg.MODEL.DEVICE = device
        models[name] = build_model(cfg)
    # Not strict: ours has buffers of loss and normalizer that Detectron2's lacks.
    models[STOCK].load_state_dict(models[OURS].state_dict(), strict=False)
    return models
