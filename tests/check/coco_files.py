"""COCO contents with faults, and what the checks find in them."""

from focal_det.check.coco import check_coco
from focal_det.check.findings import Findings
from focal_det.check.plan import Use


def check(file, content, **use):
    findings = Findings()
    check_coco(content, file, findings, Use(**use))
    return findings


def get_rules(findings, *severities):
    """The rules of the findings, of some severities or of all."""
    return [x.rule for x in findings if not severities or x.severity in severities]


def make_boxes(coco, change=list):
    """Twelve changed boxes in three images of 96 x 60, two of them at the edges."""
    file, content = coco
    for image in content["images"]:
        image["height"] = 60
    boxes = [
        [1, 9, 20, 15],
        [60, 20, 36, 30],
        *([30 + 2 * i, 20 + i, 30 + 2 * i, 25] for i in range(10)),
    ]
    content["annotations"] = [
        {
            "id": i + 1,
            "image_id": i % 3 + 1,
            "category_id": i % 2 + 1,
            "bbox": change(x),
            "area": 9.0,
            "iscrowd": 0,
        }
        for i, x in enumerate(boxes)
    ]
    return file, content
