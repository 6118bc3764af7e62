"""The report of a run: pictures that show the data, curves, a record, and what it says of a folder that is no run."""

import json

import cv2
import numpy as np
import pytest
import yaml

from focal_det.experiments.records import get_figures, read_metrics
from focal_det.report.detections import draw_detections
from focal_det.report.training_curves import draw_curves
from focal_det.tools.report import main
from tests.data.make_data import write_coco


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run on four images, one of which has detections."""
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog

    write_coco(tmp_path)
    folder = tmp_path / "run"
    (folder / "inference").mkdir(parents=True)
    cfg = get_cfg()
    images, annotations = str(tmp_path / "images"), str(tmp_path / "coco.json")
    cfg.MODEL.FOCAL_DET.DATASETS = [
        {"name": "report_set", "format": "coco", "json": annotations, "images": images}
    ]
    cfg.DATASETS.TEST = ("report_set",)
    cfg.MODEL.DEVICE = "cpu"
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [
        {"iteration": 19, "total_loss": 2.0, "loss_cls": 1.5, "loss_box_reg": 0.5},
        {"iteration": 39, "total_loss": 1.0},
    ]
    lines += [
        {
            "iteration": 39,
            "total_loss": 0.9,
            "bbox/AP": 41.5,
            "bbox/AP50": 60.0,
            "bbox/AP-circle": 30.0,
        }
    ]
    (folder / "metrics.json").write_text("\n".join(json.dumps(x) for x in lines))
    results = [{"image_id": 1, "category_id": 2, "bbox": [50, 40, 40, 40], "score": 0.9}]
    results += [{"image_id": 2, "category_id": 1, "bbox": [0, 0, 90, 90], "score": 0.1}]
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
    yield folder
    if "report_set" in DatasetCatalog.list():
        DatasetCatalog.pop("report_set")
        MetadataCatalog.pop("report_set")


def test_it_draws_and_says_where_everything_is(run, capsys):
    assert main([str(run), "--images", "4"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(run))
    grid, curves = (cv2.imread(str(run / f"{name}.png")) for name in ("detections", "curves"))
    # Four images in two rows of two pairs; the square of the first image is drawn on both sides.
    assert grid.shape[1] == 1690 and curves.shape[1] == 1100
    assert len(np.unique(grid.reshape(-1, 3), axis=0)) > 100


def test_a_score_threshold_decides_what_is_drawn(run):
    main([str(run), "--images", "4", "--score-thresh", "0.95"])
    without = cv2.imread(str(run / "detections.png"))
    main([str(run), "--images", "4", "--score-thresh", "0.05"])
    assert (cv2.imread(str(run / "detections.png")) != without).any()


def test_pictures_without_detections_show_the_best_score(run, capsys):
    assert main([str(run), "--score-thresh", "0.95"]) == 0
    assert "no detection with score >= 0.95; best score 0.9\n" in capsys.readouterr().out
    results = run / "inference" / "coco_instances_results.json"
    figure = draw_detections("report_set", results, run / "a.png", score_thresh=0.4)
    assert [x.get_title() for x in figure.axes[1:8:2]] == [
        "detections, score >= 0.4",
        "no detection with score >= 0.4; best score 0.1",
        "no detections at any score",
        "no detections at any score",
    ]
    assert not figure.get_suptitle()
    results.write_text("[]")
    assert main([str(run)]) == 0 and "no detections at any score\n" in capsys.readouterr().out


def test_the_record_says_how_it_was_measured(run, tmp_path):
    command = "python -m tools.train_net --config-file configs/a.yaml OUTPUT_DIR x"
    main([str(run), "--record", str(tmp_path / "new" / "a.json"), "--command", command])
    record = json.loads((tmp_path / "new" / "a.json").read_text())
    assert record["figures"] == {"bbox/AP": 41.5, "bbox/AP50": 60.0, "bbox/AP-circle": 30.0}
    assert (record["dataset"], record["config_file"], record["command"]) == (
        "report_set",
        "configs/a.yaml",
        command,
    )
    assert yaml.safe_load(record["config"])["DATASETS"]["TEST"] == ["report_set"]
    assert record["versions"]["torch"] and record["device"]


def test_lines_that_a_resumed_run_wrote_again_count_once(run):
    metrics = read_metrics(run / "metrics.json")
    assert [x["iteration"] for x in metrics] == [19, 39] and metrics[1]["total_loss"] == 0.9
    assert get_figures(metrics)["bbox/AP"] == 41.5


def test_a_line_that_is_cut_off_is_left_out(run):
    """Of a run that is being written, or that was killed and then resumed."""
    before = read_metrics(run / "metrics.json")
    with open(run / "metrics.json", "a") as file:
        file.write(
            '\n{"iteration": 59, "total_l{"iteration": 59, "total_loss": 3.0}\n{"iteration": 79, "tot'
        )
    assert read_metrics(run / "metrics.json") == before


def test_lines_of_an_earlier_longer_run_in_the_same_folder_are_left_out(run):
    with open(run / "metrics.json", "a") as file:
        file.write(
            '\n{"iteration": 19, "total_loss": 5.0}\n{"iteration": 29, "total_loss": 4.0, "bbox/AP": 7.0}\n'
        )
    metrics = read_metrics(run / "metrics.json")
    assert [x["iteration"] for x in metrics] == [19, 29] and get_figures(metrics) == {
        "bbox/AP": 7.0
    }


def test_curves_of_a_run_without_evaluation(run):
    draw_curves([{"iteration": 0, "total_loss": 1.0}], run / "bare.png")
    assert cv2.imread(str(run / "bare.png")) is not None


def test_a_folder_that_is_no_run_names_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "config.yaml does not exist" in capsys.readouterr().err


def test_detections_of_another_data_set_are_named(run):
    results = run / "inference" / "coco_instances_results.json"
    results.write_text(
        json.dumps([{"image_id": 77, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}])
    )
    with pytest.raises(ValueError, match="has image id 77, which data set report_set has not"):
        main([str(run)])


def test_a_data_set_that_is_not_registered_is_named(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("- report_set", "- nowhere_set"))
    with pytest.raises(ValueError, match=r"nowhere_set is not registered; does FOCAL_DET_DATASETS"):
        main([str(run)])


def test_a_record_needs_the_command(run, capsys):
    with pytest.raises(SystemExit):
        main([str(run), "--record", "a.json", "--command", "make demo"])
    assert "--config-file" in capsys.readouterr().err
