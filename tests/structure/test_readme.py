"""The README: its tables come from records whose figures come from their metrics, and its commands and code work."""

import json
import pickle
import re
import shlex
import shutil
from urllib.parse import urlparse

import pytest
from detectron2 import model_zoo as detectron2_zoo
from detectron2.modeling import build_model

from focal_det.data.digits import build_digits, get_digits_root
from focal_det.experiments.records import get_figures
from tests.conftest import ROOT, run_python

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
DOCS = "".join((ROOT / "docs" / name).read_text() for name in ("losses.md", "speed.md"))
EXECUTED = (
    "weights",
    "curves",
    "sweep",
    "demo",
    "loss-cdf",
    "bench",
)  # programs whose commands are run below
OUR_COMMANDS = [
    shlex.split(line)
    for code in re.findall(r"```sh\n(.*?)```", README + DOCS, re.DOTALL)
    for line in code.replace("\\\n", " ").splitlines()
    if line.startswith(tuple(f"focal-det {x}" for x in EXECUTED)) and "--device cuda" not in line
]
OWN_DATA = README.split("## Fine-tune on your own data\n")[1].split("\n## ")[0]
OWN_DATA_COMMANDS = [
    shlex.split(line, comments=True)
    for code in re.findall(r"```sh\n(.*?)```", OWN_DATA, re.DOTALL)
    for line in code.replace("\\\n", " ").splitlines()
]
RECORDS = sorted(ROOT.glob("projects/*/records/*.json"))
KEYS = {
    "figures",
    "dataset",
    "command",
    "config_file",
    "commit",
    "date",
    "device",
    "threads",
    "versions",
    "minutes",
    "config",
    "metrics",
}


def test_it_is_short():
    assert len(README.splitlines()) <= 290


def test_its_tables_are_rendered_from_the_records():
    run_python("dev/render_readme.py", "--check", cwd=ROOT)


@pytest.mark.parametrize("file", RECORDS, ids=lambda x: x.stem)
def test_the_figures_of_a_record_come_from_its_metrics(file):
    record = json.loads(file.read_text())
    assert set(record) == KEYS and (ROOT / record["config_file"]).is_file()
    assert record["figures"] == get_figures(record["metrics"])
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"])


@pytest.mark.parametrize("project", ["Digits", "BloodCells"])
def test_the_project_has_a_record(project):
    assert [x for x in RECORDS if project in x.parts]


def test_its_links_and_paths_exist():
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("projects/*/README.md")):
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page}: {path}"
    for path in re.findall(r"`((?:configs|dev|focal_det|tests|projects)/[\w/.-]+)`", README):
        assert (ROOT / path).exists(), path


def test_its_python_code_runs():
    for language, code in BLOCKS:
        if language == "python":
            run_python("-c", code, env={"DETECTRON2_ENV_MODULE": None})


def test_its_commands_are_those_of_the_makefile_and_the_programs():
    commands = [
        x
        for language, code in BLOCKS
        if language == "sh"
        for x in code.replace("\\\n", " ").splitlines()
    ]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands:
        words = [x for x in shlex.split(command) if not re.match(r"[A-Z_]+=", x)]
        if words[0] == "make":
            assert words[1] in targets
        elif words in OUR_COMMANDS:
            assert words[1] in EXECUTED
        elif shlex.split(command, comments=True) in OWN_DATA_COMMANDS:
            continue  # all of them run below
        elif "--config-file" in words:
            check_overrides(words)
        else:
            assert command == "pip install ."
    assert len(commands) == 14


def commands_of(program):
    words = [x for x in OUR_COMMANDS if x[1] == program]
    assert words
    return pytest.mark.parametrize("words", words, ids=lambda x: " ".join(x[2:])[:40])


def run_command(words, *more):
    return run_python("-m", "focal_det.tools", *words[1:], *more, cwd=ROOT)[1]


def move_output(words, folder):
    """The words of a command with its files under `folder` in place of output/."""
    return [
        str(folder / x.removeprefix("output/")) if x.startswith("output/") else x for x in words
    ]


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """A folder elsewhere, as the README describes it: cells.yaml, two json files and two folders of images."""
    folder = tmp_path_factory.mktemp("own data")
    (file,) = re.findall(r"```yaml\n# cells.yaml\n(.*?)```", OWN_DATA, re.DOTALL)
    (folder / "cells.yaml").write_text(file)
    build_digits("val")
    content = json.loads((get_digits_root() / "val" / "annotations.json").read_text())
    names = ["zero", "one", "two"]
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    objects = [x for x in content["annotations"] if x["category_id"] <= 3]
    (folder / "annotations").mkdir()
    for split, images in (("train", content["images"][:30]), ("val", content["images"][30:40])):
        ids = {x["id"] for x in images}
        of_split = [x for x in objects if x["image_id"] in ids]
        split_content = {**content, "images": images, "annotations": of_split}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(split_content))
        (folder / split).mkdir()
        for image in images:
            shutil.copy(get_digits_root() / "val" / "images" / image["file_name"], folder / split)
    return folder


def run_own_data(program, folder, *more, config=None, **env):
    """Run the command of the README's own-data section for a program (and config) in a folder, without a network."""
    (words,) = [x for x in OWN_DATA_COMMANDS if x[2] == program and (config is None or config in x)]
    variable, value = words[0].split("=")
    proxy = "http://127.0.0.1:9"  # nobody listens
    env |= {variable: value, "PYTHONPATH": str(ROOT), "http_proxy": proxy, "https_proxy": proxy}
    env["DETECTRON2_ENV_MODULE"] = None
    command = ("-m", "focal_det.tools", *words[2:], *more)
    return run_python(*command, env=env, cwd=folder, check=False)


FEW_STEPS = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "0")
SMALL = ("SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64")


def test_its_own_data_is_checked_where_it_is(own_data):
    code, output = run_own_data("check", own_data)
    assert code == 0 and "no errors, no warnings" in output, output
    page = (own_data / "output" / "check" / "index.html").read_text()
    assert "zero" in page and "digits_val" not in output + page
    written = {x.name for x in (own_data / "output" / "check").iterdir()}
    assert written == {"index.html", "images.png", "anchors.png", "classes.png"}
    assert "cells_train" in (own_data / "output" / "anchors.yaml").read_text()


def test_its_own_data_is_trained_on_and_reported(own_data):
    config = "digits/focal_retinanet_tiny.yaml"
    code, output = run_own_data("train", own_data, *FEW_STEPS, *SMALL, config=config)
    assert code == 0 and "Evaluation results for cells_val" in output, output[-3000:]
    code, output = run_own_data("report", own_data)
    assert code == 0 and (own_data / "output" / "tiny" / "detections.png").is_file(), output[-3000:]


@pytest.mark.slow
def test_its_own_data_is_trained_on_from_a_coco_checkpoint(own_data, tmp_path):
    config = "COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml"
    stock = detectron2_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    stock.MODEL.DEVICE = "cpu"
    weights = {k: v.numpy() for k, v in build_model(stock).state_dict().items()}
    # Where Detectron2 puts what it has downloaded.
    url = detectron2_zoo.get_checkpoint_url("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    file = tmp_path / urlparse(url).path[1:]
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    few = (*FEW_STEPS, *SMALL, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0")
    cache = {"FVCORE_CACHE": str(tmp_path)}
    code, output = run_own_data("train", own_data, *few, config=config, **cache)
    assert code == 0 and "Evaluation results for cells_val" in output, output[-3000:]
    log = (own_data / "output" / "R_50" / "log.txt").read_text()
    assert "head.cls_score.weight" in log and "head.bbox_pred.weight" not in log


@commands_of("curves")
def test_its_curves_are_drawn(words, tmp_path):
    run_command(words[:-1], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@commands_of("weights")
@pytest.mark.slow
def test_its_weights_are_written(words, tmp_path):
    output = run_command(move_output(words, tmp_path))
    assert "weights.png" in output and "alpha_per_class" in (tmp_path / "weights.yaml").read_text()


@commands_of("demo")
@pytest.mark.slow
def test_its_pictures_are_drawn(words, tmp_path):
    build_digits("val")
    folder = get_digits_root() / "val" / "images"
    assert words[-1].endswith("/".join(folder.parts[-3:]))
    output = run_command([*words[:-1], str(folder)], "--output", tmp_path)
    assert "by class: " in output and len(list(tmp_path.rglob("*.png"))) == len(
        list(folder.iterdir())
    )


@commands_of("loss-cdf")
@pytest.mark.slow
def test_its_cumulative_loss_is_drawn(words, tmp_path):
    output = run_command(words, "--output", tmp_path / "cdf.png")
    assert "gamma 2: of " in output and (tmp_path / "cdf.png").stat().st_size > 10_000


@commands_of("sweep")
@pytest.mark.slow
def test_its_sweeps_come_to_their_tables(words, tmp_path):
    """As they are, but for the number of iterations."""
    output = run_command(
        words,
        "--output",
        tmp_path,
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.STEPS",
        "(1,)",
        "DATASETS.TRAIN",
        "('digits_val',)",
    )
    (results,) = tmp_path.glob("results_*.md")
    assert len(results.read_text().splitlines()) == 2 + 4 and "crashed" not in output
    assert output.count(": done, AP") + output.count(": no detections, AP") == 4


@commands_of("bench")
@pytest.mark.slow
def test_its_benchmarks_run(words):
    assert "focal_det" in run_command(words)


def check_overrides(words):
    """The config exists and takes the keys and values of the command."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    start = words.index("--config-file") + 1
    cfg.merge_from_file(str(ROOT / words[start]), allow_unsafe=False)
    options = words[start + 1 :]
    cfg.merge_from_list(options[2:] if options[:1] == ["--num-gpus"] else options)


def test_the_checkpoint_to_fine_tune_from_is_detectron2s():
    url = detectron2_zoo.get_checkpoint_url("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    assert url.split("/detectron2/")[1] in README


def test_the_program_lists_its_programs():
    _, output = run_python("-m", "focal_det.tools")
    assert "train" in output and "report" in output
    code, output = run_python("-m", "focal_det.tools", "trian", check=False)
    assert code == 2 and "Did you mean 'train'" in output
