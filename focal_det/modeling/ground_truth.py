"""The ground truth of a training batch: what is refused, and what is reported.

Shapes: M boxes in an image, K classes.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.utils.logger import log_first_n
from torch import Tensor

from focal_det.host import LOGGER_NAME, put_scalar

from .assigners import check_gt_classes


def check_training_batch(
    batched_inputs: Sequence[dict[str, Any]], num_classes: int, key: str
) -> list[str]:
    """Check the objects of a training batch while it is still on the CPU.

    Args:
        batched_inputs: outputs of Detectron2's DatasetMapper.
        num_classes: K.
        key: full key of K, for messages.

    Returns:
        Names of the images, for messages.

    Raises:
        ValueError: an image without "instances" or with a class id outside 0..K-1.
    """
    names = []
    for index, batch_item in enumerate(batched_inputs):
        # A project's own mapper may leave out both keys.
        name = batch_item.get("file_name", batch_item.get("image_id", f"{index} of the batch"))
        if "instances" not in batch_item:
            raise ValueError(
                f"Image {name} has no 'instances' to train on; does the data set have annotations?"
            )
        # Checked on the CPU: on the GPU, the comparison would wait for the device.
        check_gt_classes(batch_item["instances"].gt_classes, num_classes, str(name), key)
        names.append(str(name))
    return names


def copy_to_cpu(masks: Sequence[Tensor]) -> list[Tensor]:
    """Masks of images on the CPU, in one copy.

    From a GPU it is asynchronous: read them only after something else has waited for the device.

    Args:
        masks: per image (M,) bool.
    """
    joined = torch.cat(list(masks))
    on_cpu = joined.to("cpu", non_blocking=joined.is_cuda)
    return list(on_cpu.split([len(x) for x in masks]))


def report_boxes_without_anchor(
    image_names: Sequence[str], gt_boxes: Sequence[Tensor], without_anchor: Sequence[Tensor]
) -> None:
    """Warn about boxes that overlap no anchor, and put their number into the metrics.

    Only the first ten such images get a warning.

    Args:
        image_names: for the messages.
        gt_boxes: per image (M, 4).
        without_anchor: per image (M,) bool on the CPU, the boxes that overlap no anchor.
    """
    for name, boxes, mask in zip(image_names, gt_boxes, without_anchor):
        if not mask.any():
            continue
        boxes = boxes[mask.to(boxes.device)]
        shown = ", ".join(str([round(x, 1) for x in box]) for box in boxes[:3].tolist())
        log_first_n(
            logging.WARNING,
            f"Image {name}: {len(boxes)} ground-truth boxes overlap no anchor and are left out: "
            f"{shown} (XYXY in the resized image). They have no area, are not finite or lie off "
            "the canvas; correct the annotations.",
            n=10,
            name=LOGGER_NAME,
        )
    # Also when it is 0, so that the metrics show that the boxes have been counted.
    put_scalar("focal_det/num_gt_boxes_without_anchor", sum(int(x.sum()) for x in without_anchor))
