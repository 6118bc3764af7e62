"""Small data sets on disk: circles and squares on grey, in COCO and VOC layout."""

import json
from pathlib import Path

import cv2
import numpy as np
import yaml

CLASSES = ["circle", "square"]
SIZE = 96
# Per image: (class, XYXY in 0-based pixels).
OBJECTS = [
    [(0, [8, 10, 44, 46]), (1, [50, 40, 90, 80])],
    [(1, [20, 20, 60, 60])],
    [],
    [(0, [30, 30, 80, 80])],
]


def write_images(folder: Path, suffix: str = ".png") -> list[Path]:
    """Draw OBJECTS; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, objects in enumerate(OBJECTS):
        image = np.full((SIZE, SIZE, 3), 90, np.uint8)
        for label, (x0, y0, x1, y1) in objects:
            if label == 0:
                cv2.circle(
                    image, ((x0 + x1) // 2, (y0 + y1) // 2), (x1 - x0) // 2, (40, 40, 230), -1
                )
            else:
                cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), (230, 200, 40), -1)
        files.append(folder / f"{index}{suffix}")
        cv2.imwrite(str(files[-1]), image)
    return files


def write_coco(root: Path) -> None:
    """`coco.json` and `images/`."""
    files = write_images(root / "images")
    images = [
        {"id": i + 1, "file_name": f.name, "width": SIZE, "height": SIZE}
        for i, f in enumerate(files)
    ]
    annotations = []
    for image_id, objects in enumerate(OBJECTS, start=1):
        for label, (x0, y0, x1, y1) in objects:
            box = [x0, y0, x1 - x0, y1 - y0]
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco.json").write_text(json.dumps(content))


def make_coco_block(root: Path, name: str) -> dict:
    """The block of a config for the data set of `write_coco`."""
    files = {"json": str(root / "coco.json"), "images": str(root / "images")}
    return {"name": name, "format": "coco", **files}


def write_two_stage_config(root: Path, *, test: list) -> Path:
    """A Faster R-CNN that trains on the data set of `write_coco`, "cells"."""
    from focal_det.model_zoo import get_config_file

    datasets = [make_coco_block(root, "cells")]
    content = {
        "_BASE_": get_config_file("digits/faster_rcnn_tiny.yaml"),
        "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 2}, "FOCAL_DET": {"DATASETS": datasets}},
        "DATASETS": {"TRAIN": ["cells"], "TEST": test},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    return root / "config.yaml"


def shrink_squares(root: Path) -> None:
    """Give the squares of `write_coco` boxes of 9 px, which no anchor reaches."""
    file = root / "coco.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        if annotation["category_id"] == 2:
            annotation.update(bbox=[*annotation["bbox"][:2], 9, 9], area=81)
    file.write_text(json.dumps(content))


def load_records(root: Path) -> list[dict]:
    """Detectron2's dataset dicts of `write_coco`."""
    from detectron2.data.datasets import load_coco_json

    write_coco(root)
    records = load_coco_json(str(root / "coco.json"), str(root / "images"))
    for annotation in (x for record in records for x in record["annotations"]):
        annotation["category_id"] -= 1  # ids of the json start at 1
    return records


def write_voc(root: Path, suffix: str = ".jpg") -> None:
    """`JPEGImages/`, `Annotations/` and the splits train and val, which are the same."""
    files = write_images(root / "JPEGImages", suffix)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for file, objects in zip(files, OBJECTS):
        write_annotation(
            root / "Annotations" / f"{file.stem}.xml", [(CLASSES[i], box) for i, box in objects]
        )
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(
            "\n".join(f.stem for f in files) + "\n"
        )


def write_annotation(file: Path, objects: list) -> None:
    """One VOC annotation; boxes are written 1-based with the last pixel included."""
    nodes = ""
    for name, (x0, y0, x1, y1) in objects:
        nodes += f"<object><name>{name}</name><pose>Unspecified</pose>"
        nodes += "<truncated>0</truncated><difficult>0</difficult>"
        nodes += f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        nodes += f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
    size = f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
    file.write_text(f"<annotation>{size}{nodes}</annotation>")
