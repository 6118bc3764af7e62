"""The report of a run: a page, pictures, a record, and errors for a folder that is not a run."""

import html
import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import yaml

from focal_det.env import load_config
from focal_det.experiments.records import get_figures, read_metrics
from focal_det.report.detections import make_detections_figure
from focal_det.report.run_page import make_figures, read_run
from focal_det.report.telemetry import make_telemetry_figure
from focal_det.report.training_curves import make_training_curves_figure
from focal_det.tools.report import main
from tests.data.make_data import write_coco


def copy_run(run, name):
    """Another run on the same data, without detections."""
    other = run.with_name(name)
    shutil.copytree(run, other)
    (other / "inference" / "coco_instances_results.json").write_text("[]")
    line = {"iteration": 39, "bbox/AP": 12.0, "bbox/AP50": 30.0}
    (other / "metrics.json").write_text(json.dumps(line))
    return other


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
    cfg.MODEL.META_ARCHITECTURE = "FocalRetinaNet"
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


def get_error(capsys, *words):
    """The one line for a person."""
    with pytest.raises(SystemExit) as error:
        main([str(x) for x in words])
    assert error.value.code == 2
    return capsys.readouterr().err


def read_cells(page):
    """Rows of all tables as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [
        [html.unescape(x) for x in re.findall(r"<t[dh]>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def test_page_holds_figures_and_pictures(run, capsys):
    main([str(run)])
    page = (run / "report.html").read_text(encoding="utf-8")
    rows = read_cells(page)
    assert ["data set", "report_set"] in rows
    assert ["architecture", "FocalRetinaNet"] in rows
    assert ["classification loss", "FocalLoss"] in rows
    assert ["AP", "41.5"] in rows
    assert ["AP-circle", "30.0"] in rows
    assert page.count('<img src="data:image/png;base64,') == 2
    assert "ground truth on the left" in page
    assert f"page: {run / 'report.html'}\n" in capsys.readouterr().out


def test_page_of_a_two_stage_run_has_both_stages(run):
    cfg = load_config(run / "config.yaml")
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "FocalRPN"
    cfg.MODEL.ROI_HEADS.NAME = "FocalROIHeads"
    (run / "config.yaml").write_text(cfg.dump())
    with open(run / "metrics.json", "a") as file:
        file.write('\n{"iteration": 59, "total_loss": 1.0, "focal_det/rpn/max_abs_logit": 2.0}\n')
    main([str(run)])
    page = (run / "report.html").read_text(encoding="utf-8")
    rows = dict(x for x in read_cells(page) if len(x) == 2)
    assert rows["architecture"].split() == ["GeneralizedRCNN", "FocalRPN", "FocalROIHeads"]
    assert rows["classification loss of the RPN"].startswith("FocalLoss(")
    assert rows["classification loss of the ROI head"] == (
        "SoftmaxFocalLoss(alpha=-1.0, gamma=0.0), sampling: random"
    )
    assert page.count('<img src="data:image/png;base64,') == 3
    assert (run / "telemetry.png").is_file()


def get_labels(axes):
    return [x.get_label() for x in axes.lines]


def test_curves_show_all_losses_in_order():
    names = ["loss_box_reg_stage1", "loss_cls_stage1", "loss_cls_stage0", "loss_box_reg_stage0"]
    names += ["loss_mask", "loss_rpn_loc", "loss_rpn_cls", "loss_cls_stage2", "total_loss"]
    (losses, _) = make_training_curves_figure([{"iteration": 0, **dict.fromkeys(names, 1.0)}]).axes
    assert get_labels(losses) == [
        "total",
        *(f"classification, stage {i}" for i in range(3)),
        *(f"box regression, stage {i}" for i in range(2)),
        "RPN classification",
        "RPN box regression",
        "loss_mask",
    ]
    assert len({(x.get_color(), x.get_linestyle()) for x in losses.lines}) == 9


def test_telemetry_has_a_line_for_each_stage():
    stages = {f"stage{i}/focal_det/roi_head": f"ROI head, stage {i}" for i in range(3)}
    stages = {"focal_det/rpn": "RPN", **stages}
    names = ("normalizer", "max_abs_logit", "share_of_positives", "num_pos/0")
    line = {f"{stage}/{name}": 1.0 for stage in stages for name in names}
    # A loss of an RPN that ranks its anchors has no shares.
    del line["focal_det/rpn/share_of_positives"]
    figure = make_telemetry_figure([{"iteration": i, **line} for i in (19, 39)])
    panels = {x.get_title(): x.lines for x in figure.axes}
    colors = {x.get_label(): x.get_color() for x in panels["largest |logit|"]}
    assert set(colors) == set(stages.values())
    shares = {x.get_label(): x.get_color() for x in panels["share of the positives in the loss"]}
    assert shares == {k: v for k, v in colors.items() if k != "RPN"}
    assert not panels["mean score of the positives"]
    assert [x.get_text() for x in figure.legends[0].texts] == list(stages.values())


def test_telemetry_of_a_retinanet_has_one_line():
    figure = make_telemetry_figure([{"iteration": 19, "focal_det/max_abs_logit": 2.0}])
    (axes,) = [x for x in figure.axes if x.lines]
    assert axes.get_title() == "largest |logit|"
    assert not figure.legends


def test_page_has_the_origin_if_the_command_is_known(run, tmp_path):
    command = "focal-det train --config-file <a>.yaml"
    main([str(run), "--command", command, "--output", str(tmp_path / "new" / "a.html")])
    page = (tmp_path / "new" / "a.html").read_text(encoding="utf-8")
    rows = dict(x for x in read_cells(page) if len(x) == 2)
    assert rows["command"] == command
    assert rows["config file"] == "<a>.yaml"
    assert rows["device"].startswith("CPU")
    assert re.search(r"^torch \d", rows["versions"], re.MULTILINE)
    assert rows["commit"]
    assert "<a>" not in page
    assert not (run / "report.html").exists()


def test_evaluations_after_training_are_drawn_at_its_end():
    metrics = [
        {"iteration": 39, "total_loss": 1.0},
        {"iteration": 40, "bbox/AP": 7.0},
        {"iteration": 41, "bbox/AP": 8.0},
    ]
    _, precision = make_training_curves_figure(metrics).axes
    (line,) = precision.lines
    assert line.get_xydata().tolist() == [[40, 8]]


def test_final_evaluation_is_no_iteration(run):
    with open(run / "metrics.json", "a") as file:
        file.write('\n{"iteration": 40, "bbox/AP": 7.0}\n')
    main([str(run)])
    cells = read_cells((run / "report.html").read_text(encoding="utf-8"))
    (iterations,) = [
        value for name, value in (x for x in cells if len(x) == 2) if name == "iterations"
    ]
    assert iterations.startswith("40 of ")


def test_class_names_are_escaped_on_the_page(run):
    with open(run / "metrics.json", "a") as file:
        file.write('\n{"iteration": 49, "bbox/AP-<b>x": NaN}\n')
    main([str(run)])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert ["AP-<b>x", "no such objects"] in read_cells(page)
    assert "<b>" not in page


def test_pictures_show_the_data(run, capsys):
    assert main([str(run), "--images", "4"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(run))
    grid, curves = (cv2.imread(str(run / f"{name}.png")) for name in ("detections", "curves"))
    # Four images in two rows of two pairs; the square of the first image is drawn on both sides.
    assert grid.shape[1] == 1690 and curves.shape[1] == 1100
    assert len(np.unique(grid.reshape(-1, 3), axis=0)) > 100


def test_score_threshold_decides_what_is_drawn(run):
    main([str(run), "--images", "4", "--score-thresh", "0.95"])
    without = cv2.imread(str(run / "detections.png"))
    main([str(run), "--images", "4", "--score-thresh", "0.05"])
    assert (cv2.imread(str(run / "detections.png")) != without).any()


def test_pictures_without_detections_show_the_best_score(run, capsys):
    assert main([str(run), "--score-thresh", "0.95"]) == 0
    assert "no detection with score >= 0.95; best score 0.9\n" in capsys.readouterr().out
    results = run / "inference" / "coco_instances_results.json"
    figure = make_detections_figure("report_set", results, score_thresh=0.4)
    assert [x.get_title() for x in figure.axes[1:8:2]] == [
        "detections, score >= 0.4",
        "no detection with score >= 0.4; best score 0.1",
        "no detections at any score",
        "no detections at any score",
    ]
    assert not figure.get_suptitle()
    results.write_text("[]")
    assert main([str(run)]) == 0 and "no detections at any score\n" in capsys.readouterr().out


def test_record_says_how_it_was_measured(run, tmp_path):
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


def test_lines_of_a_resumed_run_count_once(run):
    metrics = read_metrics(run / "metrics.json")
    assert [x["iteration"] for x in metrics] == [19, 39] and metrics[1]["total_loss"] == 0.9
    assert get_figures(metrics)["bbox/AP"] == 41.5


def test_line_that_is_cut_off_is_left_out(run):
    """As in a run that is being written, or that was killed and then resumed."""
    before = read_metrics(run / "metrics.json")
    with open(run / "metrics.json", "a") as file:
        file.write('\n{"iteration": 59, "total_l{"iteration": 59, "total_loss": 3.0}')
        file.write('\n{"iteration": 79, "tot')
    assert read_metrics(run / "metrics.json") == before


def test_lines_of_an_earlier_longer_run_are_left_out(run):
    with open(run / "metrics.json", "a") as file:
        file.write('\n{"iteration": 19, "total_loss": 5.0}')
        file.write('\n{"iteration": 29, "total_loss": 4.0, "bbox/AP": 7.0}\n')
    metrics = read_metrics(run / "metrics.json")
    assert [x["iteration"] for x in metrics] == [19, 29] and get_figures(metrics) == {
        "bbox/AP": 7.0
    }


def test_run_without_evaluation_has_curves():
    figure = make_training_curves_figure([{"iteration": 0, "total_loss": 1.0}])
    losses, precision = figure.axes
    assert losses.lines[0].get_xydata().tolist() == [[1, 1]]
    assert losses.get_legend() is not None
    assert not precision.lines
    assert precision.get_legend() is None


def test_missing_file_of_a_run_is_named(run, capsys):
    for name in ("inference/coco_instances_results.json", "metrics.json", "config.yaml"):
        (run / name).unlink()
        assert f"{run / name} does not exist" in get_error(capsys, run)


def test_results_that_are_cut_off_are_named(run, capsys):
    (run / "inference" / "coco_instances_results.json").write_text('[{"image_id": 1')
    assert "coco_instances_results.json is not JSON, or is cut off" in get_error(capsys, run)


def test_detections_of_another_data_set_are_named(run, capsys):
    results = run / "inference" / "coco_instances_results.json"
    results.write_text(
        json.dumps([{"image_id": 77, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9}])
    )
    assert "has image id 77, which is not in data set report_set" in get_error(capsys, run)


def test_unregistered_data_set_is_named(run, capsys):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("- report_set", "- nowhere_set"))
    assert "nowhere_set is not registered; does FOCAL_DET_DATASETS" in get_error(capsys, run)


def test_record_needs_the_command(run, capsys):
    error = get_error(capsys, run, "--record", "a.json", "--command", "make demo")
    assert "--command must be the whole command, with its --config-file" in error
    assert "--record needs --command" in get_error(capsys, run, "--record", "a.json")


def test_another_run_is_drawn_beside(run):
    other = copy_run(run, "other")
    assert main([str(run), "--beside", str(other)]) == 0
    assert "Beside another run" in (run / "report.html").read_text()
    picture = cv2.imread(str(run / "comparison.png"))
    assert picture.shape[1] > 1000
    runs = [read_run(x) for x in (run, other)]
    axes = make_figures(runs[0], other=runs[1])["comparison"].axes
    # Three columns: ground truth, this run, the other.
    titles = [x.get_title() for x in axes[:3]]
    assert titles[0].endswith(": ground truth")
    assert titles[1:] == ["run: AP 41.5", "other: AP 12.0: no detections at any score"]
    # A run beside itself, as two runs of the same name and AP.
    assert len(make_figures(runs[0], other=runs[0])["comparison"].axes) == len(axes)


def test_runs_on_different_data_are_not_compared(run):
    other = copy_run(run, "other")
    runs = [read_run(x) for x in (run, other)]
    with pytest.raises(ValueError, match=r"other was evaluated on elsewhere, .*run on report_set"):
        make_figures(runs[0], other=replace(runs[1], dataset="elsewhere"))
