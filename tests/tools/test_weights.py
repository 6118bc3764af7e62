"""`focal-det weights`: a config with the numbers of the data, and named errors."""

import json
import logging
import re

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

from focal_det.env import load_config
from focal_det.model_zoo import get_config_file
from focal_det.tools.weights import main
from tests.conftest import make_batch
from tests.data.make_data import CLASSES, SIZE, write_coco, write_voc

BASE = get_config_file("Base-FocalRetinaNet.yaml")


pytestmark = pytest.mark.usefixtures("clean_catalog")


def write_base(folder, *blocks, train=("cells",), num_classes=2, **retinanet):
    """A small config for `blocks`; return its file."""
    model = {
        "RETINANET": {"NUM_CLASSES": num_classes, **retinanet},
        "FOCAL_DET": {"DATASETS": list(blocks)},
    }
    content = {"_BASE_": get_config_file("digits/focal_retinanet_tiny.yaml"), "MODEL": model}
    file = folder / "configs" / "base.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({**content, "DATASETS": {"TRAIN": list(train), "TEST": []}}))
    return file


def coco_block(folder, **changes):
    return {
        "name": "cells",
        "format": "coco",
        "json": str(folder / "coco.json"),
        "images": str(folder / "images"),
        **changes,
    }


@pytest.fixture
def base(tmp_path):
    """The config of three circles, two squares and two boxes of a crowd of squares.

    They are in five images.
    """
    write_coco(tmp_path)
    content = json.loads((tmp_path / "coco.json").read_text())
    content["images"].append({"id": 5, "file_name": "4.png", "width": SIZE, "height": SIZE})
    boxes = [(5, 1, [10, 10, 30, 30], 0), (5, 2, [50, 50, 30, 30], 1), (3, 2, [50, 50, 30, 30], 1)]
    for image_id, category_id, box, crowd in boxes:
        ids = {
            "id": len(content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": category_id,
        }
        content["annotations"].append(
            {**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        )
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return write_base(tmp_path, coco_block(tmp_path))


def run(base, *args, out="out/weights.yaml"):
    """Run the program; return the config file it wrote."""
    file = base.parent.parent / out
    assert main(["--config-file", str(base), "--output", str(file), *args]) == 0
    return file


def load(file):
    cfg = get_cfg()
    cfg.merge_from_file(str(file), allow_unsafe=False)
    return cfg


def get_alphas(cfg):
    return list(cfg.MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.alpha_per_class)


def test_written_config_builds_a_model_that_trains(base):
    cfg = load(run(base))
    alphas, priors = get_alphas(cfg), list(cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS)
    # Square root, three circles and two squares: scale = 0.25 * 5 / (sqrt(3) + sqrt(2)).
    assert alphas == pytest.approx([0.2294, 0.2809], abs=5e-5)
    model = build_model(cfg).train()
    assert model.cls_loss.alpha_per_class.tolist() == pytest.approx(alphas)
    probability = model.head.cls_score.bias.detach().sigmoid().view(-1, 2)
    assert torch.allclose(probability, torch.tensor(priors).expand_as(probability), rtol=1e-4)
    with EventStorage():
        losses = model(make_batch([[16, 16, 52, 52], [60, 60, 100, 100]], num_classes=2))
    assert all(x.isfinite() for x in losses.values())


def test_nothing_else_of_the_base_changes(base, caplog):
    cfg, want = load(run(base)), load(base)
    want.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS = cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS
    want.MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.alpha_per_class = get_alphas(cfg)
    assert cfg == want
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]


def test_config_on_a_shipped_base_can_be_moved(tmp_path):
    words = ["--config-file", "digits/focal_retinanet_tiny.yaml", "--images", "4"]
    assert main([*words, "--output", str(tmp_path / "weights.yaml")]) == 0
    (tmp_path / "new").mkdir()
    file = (tmp_path / "weights.yaml").rename(tmp_path / "new" / "weights.yaml")
    assert load(file).MODEL.RETINANET.NUM_CLASSES == 10
    file.write_text("_BASE_: gone.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml, which a _BASE_ names"):
        load_config(file)


def test_base_is_found_from_any_folder(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--config-file", "configs/base.yaml", "--output", "a/b/weights.yaml"]) == 0
    assert (
        yaml.safe_load((tmp_path / "a/b/weights.yaml").read_text())["_BASE_"]
        == "../../configs/base.yaml"
    )
    monkeypatch.chdir("/")
    assert load(tmp_path / "a/b/weights.yaml").DATASETS.TRAIN == ("cells",)


def test_options_of_the_command_are_in_the_file(base):
    opts = [
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
        "0.5",
        "DATASETS.TEST",
        "('cells',)",
        "INPUT.MIN_SIZE_TRAIN",
        "(64,)",
    ]
    file = run(base, "--method", "inverse", *opts)
    cfg = load(file)
    assert (cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA, cfg.DATASETS.TEST, cfg.INPUT.MIN_SIZE_TRAIN) == (
        0.5,
        ("cells",),
        (64,),
    )
    # Inverse frequency: 3 alpha_0 = 2 alpha_1 = 0.5 * 5 / 2.
    assert get_alphas(cfg) == [0.4167, 0.625]
    assert "\"('cells',)\" INPUT.MIN_SIZE_TRAIN '(64,)'" in file.read_text()


def test_comment_says_how_the_file_was_made(base):
    file = run(base, "--method", "effective", "--beta", "0.9", "--max-alpha", "0.5")
    comment = "\n".join(x for x in file.read_text().splitlines() if x.startswith("#"))
    command = f"focal-det weights --config-file {base} --output {file}"
    assert f"{command} --method effective --beta 0.9 --max-alpha 0.5" in comment
    assert (
        "cells: 5 images, 5 objects, 2 classes, 1.5 times as many objects of class circle as of "
        "class square" in comment
    )
    assert (
        "effective, beta 0.9; mean over the objects 0.25 (FOCAL_LOSS_ALPHA), none above 0.5"
        in comment
    )
    rows = [line[1:].split() for line in comment.splitlines()[-2:]]
    assert [row[:5] for row in rows] == [
        ["0", "circle", "3", "60.00", "%"],
        ["1", "square", "2", "40.00", "%"],
    ]


def test_terminal_shows_classes_files_and_next_command(base, capsys, monkeypatch):
    datasets_file = base.parent / "my sets.yaml"
    datasets_file.write_text("DATASETS: []\n")
    monkeypatch.setenv("FOCAL_DET_DATASETS", str(datasets_file))
    file = run(base)
    output = capsys.readouterr().out
    assert all(name in output for name in CLASSES) and str(file.with_suffix(".png")) in output
    assert "\nloss: " in output
    command = f"focal-det train --config-file {file} OUTPUT_DIR ./output/digits_weights"
    assert output.splitlines()[-1].endswith(f"FOCAL_DET_DATASETS='{datasets_file}' {command}")
    assert cv2.imread(str(file.with_suffix(".png"))).shape[1] == 1320


def test_empty_images_count_as_in_the_data_loader(base, capsys):
    # Only image 3 is left out, which has a crowd alone; image 5 has a crowd and a circle.
    run(base)
    everything = capsys.readouterr().out
    filtered = load(run(base, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True"))
    assert "5 images, 5 objects" in everything and "4 images, 5 objects" in capsys.readouterr().out
    priors = [np.array(x.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS) for x in (load(run(base)), filtered)]
    assert priors[1] == pytest.approx(priors[0] * 5 / 4, rel=1e-3)


def test_pi_is_counted_at_the_middle_training_size(base, capsys):
    one = load(run(base, "INPUT.MIN_SIZE_TRAIN", "(96,)"))
    for sizes, sampling in (("(64, 96, 500)", "choice"), ("(64, 128)", "range")):
        other = load(
            run(base, "INPUT.MIN_SIZE_TRAIN", sizes, "INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling)
        )
        assert (
            other.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS == one.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS
        )
        assert "shorter side 96 px" in capsys.readouterr().out
    run(base, "INPUT.MIN_SIZE_TRAIN", "(0,)")
    assert "not resized" in capsys.readouterr().out


def test_pi_is_counted_with_the_labels_of_the_model(base):
    """With a threshold that few anchors reach, most positives are low-quality matches."""
    words = ["MODEL.RETINANET.IOU_THRESHOLDS", "[0.85, 0.9]", "MODEL.FOCAL_DET.LOW_QUALITY_MATCHES"]
    with_them, without = (
        load(run(base, *words, str(x), out=f"out/{x}.yaml")) for x in (True, False)
    )
    assert sum(with_them.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS) > sum(
        without.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS
    )


def test_class_without_positives_in_the_sample_is_named(tmp_path, caplog):
    def load_records():
        box = {"bbox": [10, 10, 50, 50], "bbox_mode": BoxMode.XYXY_ABS}
        sizes = {"height": 128, "width": 128}
        return [
            {
                "file_name": f"{i}.png",
                "image_id": i,
                **sizes,
                "annotations": [{**box, "category_id": i}],
            }
            for i in range(10)
        ]

    DatasetCatalog.register("ten", load_records)
    base = write_base(tmp_path, train=("ten",), num_classes=10)
    priors = load(run(base, "--images", "4")).MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS
    # 9 anchors in each cell of the five maps of a 128 px image: 16, 8, 4, 2 and 1 squared.
    num_anchors = 4 * 9 * (256 + 64 + 16 + 4 + 1)
    assert [i for i, pi in enumerate(priors) if pi == pytest.approx(1 / num_anchors, rel=1e-3)] == [
        1,
        2,
        4,
        5,
        7,
        8,
    ]
    message = (
        "Classes without a positive anchor in the images looked at (--images), "
        "with pi = 1 / 12276: 1, 2, 4, 5, 7, 8"
    )
    assert [x.message for x in caplog.records] == [message]
    for images in ("0", "10", "1000"):
        priors = load(run(base, "--images", images)).MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS
        assert len(set(priors)) == 1 and len(caplog.records) == 1


def test_class_without_objects_is_named(base, caplog):
    content = json.loads((base.parent.parent / "coco.json").read_text())
    content["categories"].append({"id": 3, "name": "star"})
    (base.parent.parent / "coco.json").write_text(json.dumps(content))
    alphas = get_alphas(load(run(base, "MODEL.RETINANET.NUM_CLASSES", "3")))
    assert "Classes without objects, weighted like one with a single object: star" in caplog.text
    assert alphas[0] < alphas[1] < alphas[2]


def test_no_rounded_alpha_exceeds_the_cap(base):
    assert (
        max(get_alphas(load(run(base, "--max-alpha", "0.26666", "--method", "inverse")))) <= 0.26666
    )


def test_voc_data_set_is_counted(tmp_path):
    write_voc(tmp_path)
    block = {
        "name": "cells",
        "format": "voc",
        "root": str(tmp_path),
        "split": "train",
        "classes": CLASSES,
    }
    # Two objects each: both have the scalar alpha.
    assert get_alphas(load(run(write_base(tmp_path, block)))) == [0.25, 0.25]


def test_objects_of_several_training_sets_are_added(base):
    write_voc(base.parent.parent / "voc")
    block = {
        "name": "more",
        "format": "voc",
        "root": str(base.parent.parent / "voc"),
        "split": "train",
        "classes": CLASSES,
    }
    folder = base.parent.parent
    text = run(write_base(folder, coco_block(folder), block, train=("cells", "more"))).read_text()
    assert (
        "cells + more: 9 images, 9 objects, 2 classes, 1.25 times as many objects of class circle"
        in text
    )


def test_table_of_many_classes_is_short_on_the_terminal(tmp_path, capsys):
    def load_records():
        box = {"bbox": [10, 10, 50, 50], "bbox_mode": BoxMode.XYXY_ABS}
        counts = [(i, 50 - i) for i in range(50)]
        annotations = [{**box, "category_id": i} for i, n in counts for _ in range(n)]
        return [
            {
                "file_name": "a.png",
                "image_id": 0,
                "height": 64,
                "width": 64,
                "annotations": annotations,
            }
        ]

    DatasetCatalog.register("fifty", load_records)
    MetadataCatalog.get("fifty").set(thing_classes=[f"kind_{i}" for i in range(50)])
    file = run(write_base(tmp_path, train=("fifty",), num_classes=50))
    output, comment = capsys.readouterr().out, file.read_text()
    assert output.count("kind_") == 40 + 2 and "... 10 more" in output and "kind_25 " not in output
    assert [comment.count(f" kind_{i} ") for i in range(1, 49)] == [1] * 48
    assert len(get_alphas(load(file))) == 50


def test_file_of_someone_else_is_left_alone(base, capsys):
    before = base.read_text()
    with pytest.raises(SystemExit):
        run(base, out="configs/base.yaml")
    assert (
        "exists and is not from this program" in capsys.readouterr().err
        and base.read_text() == before
    )
    first = run(base).read_text()
    assert run(base, "--method", "inverse").read_text() != first


def test_base_is_never_overwritten(base, tmp_path, capsys, monkeypatch):
    """In whichever way the config names it: alone, in a list, or from the home folder."""
    written = run(base)
    before = written.read_text()
    monkeypatch.setenv("HOME", str(written.parent))
    names = (f"[{written}]", f'["{written}", {base}]', f'"{written}"', f"~/{written.name}")
    for name in names:
        config = tmp_path / "upper.yaml"
        config.write_text(f"_BASE_: {name}\n")
        with pytest.raises(SystemExit):
            main(["--config-file", str(config), "--output", str(written)])
        assert "is --config-file or one of its bases" in capsys.readouterr().err
    assert written.read_text() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--config-file", "nowhere.yaml", "--output", "a.yaml"],
            "the config nowhere.yaml does not exist",
        ),
        (["--config-file", __file__, "--output", "a.yaml"], "the config must be a .yaml file"),
        (
            ["--config-file", "https://a.b/c.yaml", "--output", "a.yaml"],
            "--config-file must be a file for --output, got https://a.b/c.yaml",
        ),
        (["--config-file", BASE, "--output", "a.png"], "--output must be a .yaml file, got a.png"),
        (
            ["--config-file", BASE, "--output", "a.yaml", "--images", "-1"],
            "--images: must be >= 0, got -1",
        ),
    ],
)
def test_wrong_argument_is_named(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(args)
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["DATASETS.TRAIN", "('nowhere',)"],
            "data set nowhere is not registered; does FOCAL_DET_DATASETS name its file",
        ),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (
            ["DATASETS.TRAIN", "('no_annotations',)"],
            "no_annotations of DATASETS.TRAIN has no annotations to count",
        ),
        (
            ["DATASETS.TRAIN", "('crowds',)", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True"],
            r"\('crowds',\) has nothing but crowds",
        ),
        (
            ["DATASETS.TRAIN", "('crowds',)", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"],
            r"\('crowds',\) has nothing but crowds",
        ),
        (
            ["DATASETS.TRAIN", "('cells', 'no_names')"],
            r"the classes of no_names \['a', 'b'\] are not those of cells",
        ),
        (
            ["DATASETS.TRAIN", "('no_names',)", "MODEL.RETINANET.NUM_CLASSES", "7"],
            r"no_names has 2 classes \(a, b\), but .*NUM_CLASSES is 7",
        ),
        (
            ["MODEL.RETINANET.NUM_CLASSES", "3"],
            r"cells has 2 classes \(circle, square\), but MODEL\.RETINANET\.NUM_CLASSES is 3",
        ),
        (
            ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1."],
            r"FOCAL_LOSS_ALPHA\) must be in \(0, 0\.95\], got -1",
        ),
    ],
)
def test_data_that_cannot_be_counted_is_named(base, opts, message, capsys):
    crowd = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1}
    record = {"file_name": "a.png", "image_id": 0, "height": 64, "width": 64}
    DatasetCatalog.register("no_annotations", lambda: [record])
    DatasetCatalog.register("crowds", lambda: [{**record, "annotations": [crowd]}])
    DatasetCatalog.register(
        "no_names", lambda: [{**record, "annotations": [{**crowd, "iscrowd": 0}]}]
    )
    MetadataCatalog.get("no_names").set(thing_classes=["a", "b"])
    with pytest.raises(SystemExit) as error:
        run(base, *opts)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (base.parent.parent / "out").exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            "only FocalRetinaNet reads the numbers per class",
        ),
        (
            ["MODEL.FOCAL_DET.CLS_LOSS.NAME", "SomeLoss"],
            "written for FocalLoss, but MODEL.FOCAL_DET.CLS_LOSS.NAME is SomeLoss",
        ),
        (
            ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
            "the counts are those of the data set, without repeats",
        ),
    ],
)
def test_setting_that_ignores_the_numbers_is_named(base, opts, message, caplog):
    run(base, *opts)
    assert message in caplog.text


def test_config_and_its_bases_are_not_overwritten(tmp_path, capsys):
    base, config = tmp_path / "base.yaml", tmp_path / "config.yaml"
    base.write_text("# Class weights of old\nVERSION: 2\n")
    config.write_text('# Class weights of old\n_BASE_: "base.yaml"\n')
    for file in (config, base):
        before = file.read_text()
        with pytest.raises(SystemExit):
            main(["--config-file", str(config), "--output", str(file)])
        assert (
            "is --config-file or one of its bases" in capsys.readouterr().err
            and file.read_text() == before
        )
