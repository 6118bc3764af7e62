"""Checks for data sets without objects, in all of their images or in some."""

from .data_rules import (
    EMPTY_IMAGES_DROPPED,
    EMPTY_IMAGES_KEPT,
    EMPTY_IMAGES_TESTED,
    NOTHING_TO_EVALUATE_ON,
    NOTHING_TO_TRAIN_ON,
)
from .findings import Findings
from .plan import Use


def check_not_empty(num_usable: int, place: str, findings: Findings, use: Use) -> None:
    """Find data sets with nothing to train on, or nothing to compare detections with."""
    if num_usable == 0:
        rule = NOTHING_TO_TRAIN_ON if use.is_train else NOTHING_TO_EVALUATE_ON
        findings.add(rule, place)


def note_empty_images(
    num_empty: int, num_images: int, place: str, findings: Findings, use: Use
) -> None:
    """Note how many images have no objects, and what becomes of them."""
    if num_empty == 0:
        return
    rule = EMPTY_IMAGES_TESTED
    if use.is_train:
        rule = EMPTY_IMAGES_DROPPED if use.filter_empty else EMPTY_IMAGES_KEPT
    share = 100 * num_empty / num_images
    findings.add(rule, f"{place}: {num_empty} of {num_images} ({share:.0f} %)")
