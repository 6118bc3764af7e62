"""The pages: their commands run, and their tables have the names and defaults of the code."""

import inspect
import json
import math
import pickle
import re
import shutil
from urllib.parse import urlparse

import pytest
import yaml
from detectron2 import model_zoo as detectron2_zoo
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from focal_det.data.catalog import register_datasets
from focal_det.data.digits import build_digits, get_digits_root
from focal_det.env import load_config
from focal_det.registry import (
    ASSIGNER_REGISTRY,
    CLS_LOSS_REGISTRY,
    NORMALIZER_REGISTRY,
    get_constructor_args,
)
from focal_det.tools.__main__ import main
from tests.conftest import ROOT, run_program, run_python

from .pages import CONTRIBUTING, PAGES, README, name_of, read_blocks, read_commands

DOCS = ROOT / "docs"
LOSSES = (DOCS / "losses.md").read_text()
ROWS = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", LOSSES, re.MULTILINE)}

# Commands that are not run as they are, and why.
NOT_RUN = {
    r"^pip install \.$": "test_packaging.py builds the wheel and uses it",
    r"^pip install --no-deps fdet": "`make env` installs it",
    r"/path/to/detectron2/tools": "test_stock_scripts.py runs Detectron2's own scripts",
    r"my_loss\.py": "test_file_with_an_own_loss_trains runs it",
    r"my_checks\.py": "tests/check/test_own_check.py runs it",
    r"detectron2://": "downloads; test_fine_tuning_starts_from_a_coco_checkpoint has its own file",
    r"^focal-det reproduce": "needs a stopped run, which tests/faults makes",
    r"^pytest tests/faults": "is a part of the tests",
    r"--device cuda": "needs a GPU",
    r"tools\.train_net --config-file configs/digits": "tests/test_stock_scripts.py has a short one",
    r"focal-det report output/digits": "needs the run of the command before it",
    r"projects/BloodCells/configs": "needs a download, and 13 minutes or a GPU",
    r"focal-det report output/blood_cells": "needs the run of the command before it",
    r"--rows projects/Losses": "takes hours; tests/projects has a short one",
    r"--rows projects/Imbalance": "takes hours; tests/projects makes a step of each answer",
    r"--rows projects/TwoStage": "takes an hour; tests/test_configs.py makes a step of each row",
    r"--table 1a 1b 1d 3 prior": "takes hours",
    r"--base coco --num-gpus 8$": "needs COCO and eight GPUs",
    r"^torchrun": "test_clusters_page.py runs it",
    r"--launcher slurm --slurm timeout_min": "test_clusters_page.py submits it",
}
FEW_STEPS = ("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "0")
SMALL = ("SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64")
SHORTER = {
    "train": (*FEW_STEPS, *SMALL),
    "sweep": (*FEW_STEPS, "DATASETS.TRAIN", "('digits_val',)"),
}
SLOW = ("weights", "demo", "loss-cdf", "sweep", "bench")
# Those of CONTRIBUTING.md need the files that it adds; test_strangers.py runs them.
BLOCKS = [
    (page, number, commands)
    for page in PAGES
    for number, commands in enumerate(read_commands(page))
    if page != CONTRIBUTING
]


def find_reason(command) -> str:
    """Why a command is not run; empty if it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, str(command))), "")


def run_module(*words, **kwargs):
    """`focal-det` in a new interpreter."""
    return run_python("-m", "focal_det.tools", *words, **kwargs)


def parametrize_blocks():
    """The commands that are run, block by block, and what runs them.

    Those that a person tries first run in new interpreters; importing torch and Detectron2 anew for
    all others shows nothing more.
    """
    params = []
    for page, number, commands in BLOCKS:
        left = [x for x in commands if not find_reason(x)]
        is_slow = any(x.program in SLOW for x in left)
        marks = [pytest.mark.slow] if is_slow else []
        if left:
            run = run_module if page == README else run_program
            params.append(pytest.param(left, run, id=f"{name_of(page)}-{number}", marks=marks))
    return pytest.mark.parametrize(("commands", "run"), params)


@pytest.fixture
def workplace(tmp_path):
    """A clone with the data of a user: cells.yaml, two JSON files, images and photos."""
    folder = tmp_path / "own data"
    folder.mkdir()
    for name in ("configs", "focal_det", "projects"):
        (folder / name).symlink_to(ROOT / name)
    (datasets,) = read_blocks(README, "yaml")
    (folder / "cells.yaml").write_text(datasets)
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
    (folder / "photos").symlink_to(folder / "val")
    return folder


def run_command(command, folder, *more, run=run_module, **env):
    """Run a command of a page in a folder, without a network; return its output."""
    nobody = "http://127.0.0.1:9"
    env = {**dict(command.env), "http_proxy": nobody, "https_proxy": nobody, **env}
    env |= {"PYTHONPATH": str(ROOT), "DETECTRON2_ENV_MODULE": None}
    cache = str(get_digits_root().parent)
    words = [x.replace("~/.cache/focal_det", cache) for x in command.words[1:]]
    return run(*words, *more, env=env, cwd=folder)[1]


def find_outputs(command) -> list[str]:
    """Files and folders that a command says it writes."""
    outputs = [command.get_value(x) for x in ("--output", "--write", "--fix", "OUTPUT_DIR")]
    if command.program == "report" and not command.get_value("--output"):
        outputs.append(f"{command.words[2]}/report.html")
    return [x for x in outputs if x]


def add_what_is_read(commands) -> list:
    """The commands, after the check of the README if they read the config that it writes."""
    written = [x.get_value("--write") for x in commands]
    if "better.yaml" in written or not any("better.yaml" in x.words for x in commands):
        return commands
    of_readme = [x for of_block in read_commands(README) for x in of_block]
    return [x for x in of_readme if x.get_value("--write") == "better.yaml"] + commands


@parametrize_blocks()
def test_commands_run(commands, run, workplace):
    for command in add_what_is_read(commands):
        assert command.words[0] == "focal-det", f"{command}: neither run here nor in NOT_RUN"
        shorter = () if "--configs-only" in command.words else SHORTER.get(command.program, ())
        output = run_command(command, workplace, *shorter, run=run)
        for path in find_outputs(command):
            assert (workplace / path).exists(), f"{command}: {path}\n{output}"
        assert "crashed" not in output, output


def test_reasons_not_to_run_a_command_are_needed():
    commands = [str(x) for _, _, of_block in BLOCKS for x in of_block]
    for pattern in NOT_RUN:
        assert [x for x in commands if re.search(pattern, x)], pattern


@pytest.mark.parametrize(
    "command",
    [
        x
        for _, _, of_block in BLOCKS
        for x in of_block
        if find_reason(x) and x.get_value("--config-file")
    ],
    ids=lambda x: str(x)[:60],
)
def test_commands_that_are_not_run_have_a_config_and_its_keys(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "my_loss.py" in str(command):
        pytest.skip("its keys are those of the file")
    words = list(command.words)
    options = words[words.index("--config-file") + 2 :]
    while options and options[0].startswith("--"):
        options = options[2:]
    load_config(command.get_value("--config-file"), options)


@pytest.mark.slow
def test_fine_tuning_starts_from_a_coco_checkpoint(workplace, tmp_path):
    stock = detectron2_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    stock.MODEL.DEVICE = "cpu"
    weights = {k: v.numpy() for k, v in build_model(stock).state_dict().items()}
    # Where Detectron2 keeps what it has downloaded.
    url = detectron2_zoo.get_checkpoint_url("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    file = tmp_path / urlparse(url).path[1:]
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))
    commands = [x for of_block in read_commands(DOCS / "train.md") for x in of_block]
    (command,) = [x for x in commands if "detectron2://" in str(x)]
    few = (*FEW_STEPS, *SMALL, "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0")
    output = run_command(command, workplace, *few, FVCORE_CACHE=str(tmp_path))
    assert "Evaluation results for cells_val" in output, output[-3000:]
    log = (workplace / "output" / "R_50" / "log.txt").read_text()
    assert "head.cls_score.weight" in log and "head.bbox_pred.weight" not in log


@pytest.mark.parametrize(("page", "program"), [("data.md", "check"), ("train.md", "train")])
def test_flags_in_the_table_are_those_of_the_program(page, program, capsys):
    text = (DOCS / page).read_text()
    flags = re.findall(r"^\| `(--[a-z-]+)", text, re.MULTILINE)
    with pytest.raises(SystemExit):
        main([program, "--help"])
    usage = capsys.readouterr().out
    assert flags
    for flag in flags:
        assert flag in usage


def test_blocks_of_data_sets_are_registered(workplace, monkeypatch, clean_catalog):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (workplace / "VOCdevkit" / "Cells" / folder).mkdir(parents=True)
    (workplace / "VOCdevkit" / "Cells" / "ImageSets" / "Main" / "test.txt").write_text("")
    monkeypatch.chdir(workplace)
    for block in read_blocks(DOCS / "data.md", "yaml"):
        datasets = yaml.safe_load(block)["DATASETS"]
        register_datasets(datasets, source="docs/data.md")
        assert {x["name"] for x in datasets} <= set(DatasetCatalog.list())


def test_index_has_every_page():
    index = (DOCS / "index.md").read_text()
    pages = {x.name for x in DOCS.glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\((\w+\.md)\)", index))


def test_table_has_registered_components_only():
    registered = {
        name for registry in (CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY) for name, _ in registry
    }
    assert set(ROWS) <= registered
    assert len(ROWS) >= 16


@pytest.mark.parametrize("name", sorted({*ROWS} & {*dict(CLS_LOSS_REGISTRY)}))
def test_table_has_the_arguments_and_defaults_of_a_loss(name):
    greek = {"gamma": "\N{GREEK SMALL LETTER GAMMA}", "alpha": "\N{GREEK SMALL LETTER ALPHA}"}
    for argument, default in get_constructor_args(CLS_LOSS_REGISTRY.get(name)).items():
        if argument == "num_classes":
            continue
        if argument in greek:
            pattern = rf"{greek[argument]} \({default:g}"
        else:
            shown = list(default) if default == () else default
            pattern = rf"`{argument}`[^(`]*\({re.escape(str(shown))}"
        assert re.search(pattern, ROWS[name]), f"{argument} ({default})"


def test_table_has_the_defaults_of_the_config():
    text = (DOCS / "config.md").read_text()
    cfg = load_config("Base-FocalRetinaNet.yaml")
    for key, default in re.findall(r"^\| `([A-Z_.]+)` \|[^|\n]*\| (.+) \|$", text, re.MULTILINE):
        full = key if key.startswith("MODEL.") else f"MODEL.FOCAL_DET.{key}"
        value = cfg
        for part in full.split("."):
            value = value[part]
        assert str(value) == default.strip("`"), key


def test_table_of_assigners_has_their_arguments_and_defaults():
    text = (DOCS / "config.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+Assigner)` \| (.+) \|$", text, re.MULTILINE))
    assert rows.keys() == dict(ASSIGNER_REGISTRY).keys()
    for name, assigner in ASSIGNER_REGISTRY:
        args = get_constructor_args(assigner).items()
        defaults = {k: v for k, v in args if v is not inspect.Parameter.empty}
        for argument, default in defaults.items():
            assert re.search(rf"`{argument}` \({default}[ )]", rows[name])


def test_file_with_an_own_loss_trains(tmp_path):
    """A step of the command in docs/code.md, in a folder with only the file shown there."""
    (code,) = read_blocks(DOCS / "code.md", "python")
    assert code.startswith("# my_loss.py\n")
    ((command,),) = read_commands(DOCS / "code.md")
    assert [name for name, _ in command.env] == ["FOCAL_DET_ENV_MODULE"]
    (tmp_path / "my_loss.py").write_text(code)
    few = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", "out")
    datasets = ("DATASETS.TRAIN", "('digits_val',)", "DATASETS.TEST", "()")
    run_command(command, tmp_path, *few, *datasets)
    loss = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["MODEL"]["FOCAL_DET"]
    assert loss["CLS_LOSS"]["NAME"] == "MyLoss"
    assert loss["CLS_LOSS"]["ARGS"]["MyLoss"] == {"threshold": 0.6}
    (metrics,) = map(json.loads, (tmp_path / "out" / "metrics.json").read_text().splitlines())
    assert math.isfinite(metrics["loss_cls"]) and metrics["loss_cls"] > 0
