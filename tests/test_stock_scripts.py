"""Detectron2's own scripts, unmodified: train, checkpoint, resume, evaluate COCO and VOC data.

Each process costs seconds of imports before it does anything, so a test starts no more of them
than it has modes to show.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

from focal_det.model_zoo import get_config_file
from tests.conftest import run_program, run_python
from tests.data.make_data import CLASSES, make_coco_block, write_coco, write_voc

SHA256 = {
    "train_net.py": {
        "0.5": "a3e47504ec6a4ae1f651c686f7b6a3faec1bec0829511951e325b9c6eab2dd87",
        "0.6": "b7733690163a935c0682cd682972a01c84e750c55ebc8d7336e02c68831072d6",
        "main": "1d52917d176f58bdf0c7da8f9d5ccdea6779a4af8014f888f86a0792a12d21a9",
    },
    "lazyconfig_train_net.py": {
        "0.5": "ea852f4ce6b7e7a5ac8873b7e3b13adb1305f27c236b636e561cd185786d0f1c",
        "0.6": "db1ffefcecea7ccaf84b7d7fae9ce58d9a1bce30cdd5277c891aa0bdd692be6d",
        "main": "120aea2ee6b55f628d23e42301472f95dcd0dfa461764f66b856f23bc3e4a09e",
    },
}
needs_tools = pytest.mark.skipif(
    importlib.util.find_spec("tools") is None,
    reason="this Detectron2 is installed without its tools/ scripts",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A COCO and a VOC data set, and the file that registers both."""
    root = tmp_path_factory.mktemp("data")
    write_coco(root / "coco")
    write_voc(root / "voc")
    voc = {"format": "voc", "root": "voc", "split": "train", "classes": CLASSES}
    blocks = [
        {
            "name": "shapes_train",
            "format": "coco",
            "json": "coco/coco.json",
            "images": "coco/images",
        },
        {"name": "shapes_voc", **voc},
        {"name": "shapes_voc_coco", "evaluator": "coco", **voc},
    ]
    (root / "sets.yaml").write_text(yaml.safe_dump({"DATASETS": blocks}))
    return root


def make_config(folder: Path, **overrides) -> Path:
    """A config of two classes on top of the shipped tiny one."""
    content = {
        "_BASE_": get_config_file("digits/focal_retinanet_tiny.yaml"),
        "MODEL": {"RETINANET": {"NUM_CLASSES": 2, "SCORE_THRESH_TEST": 0.0}},
        "DATASETS": {"TRAIN": ["shapes_train"], "TEST": ["shapes_train"]},
        "SOLVER": {
            "IMS_PER_BATCH": 2,
            "MAX_ITER": 4,
            "CHECKPOINT_PERIOD": 2,
            "BASE_LR": 0.001,
            "WARMUP_ITERS": 0,
        },
        "TEST": {"EVAL_PERIOD": 0},
        "OUTPUT_DIR": str(folder / "out"),
        **overrides,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


def iterations(out: Path) -> list[int]:
    return [json.loads(x)["iteration"] for x in (out / "metrics.json").read_text().splitlines()]


@needs_tools
@pytest.mark.parametrize("script", SHA256)
def test_the_script_is_upstreams(script):
    file = Path(importlib.util.find_spec("tools.train_net").origin).with_name(script)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in SHA256[script].values()


@needs_tools
def test_it_trains_checkpoints_resumes_and_evaluates(data, tmp_path):
    env = {"FOCAL_DET_DATASETS": str(data / "sets.yaml")}
    config, out = make_config(tmp_path), tmp_path / "out"
    command = ["-m", "tools.train_net", "--config-file", config]
    run_python(*command, "SOLVER.MAX_ITER", "2", env=env)
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    # The end of the run evaluates the data sets with each of the evaluators.
    tests = "('shapes_train','shapes_voc','shapes_voc_coco')"
    _, output = run_python(*command, "--resume", "DATASETS.TEST", tests, env=env)
    assert "Starting training from iteration 2" in output
    assert (out / "model_0000003.pth").is_file()
    assert iterations(out)[-1] in (3, 4)
    assert "Evaluation results for bbox" in output
    assert list(out.glob("events.out.tfevents.*"))
    for name in ("shapes_train", "shapes_voc", "shapes_voc_coco"):
        assert f"Evaluation results for {name} in csv format" in output
    assert "Evaluating shapes_voc using 2012 metric" in output
    final = torch.load(out / "model_final.pth", map_location="cpu", weights_only=False)
    assert final["model"]["normalizer.average"] != 100


@pytest.mark.slow
def test_focal_det_train_takes_the_same_flags(data, tmp_path):
    env = {"FOCAL_DET_DATASETS": str(data / "sets.yaml"), "DETECTRON2_ENV_MODULE": None}
    config, out = make_config(tmp_path), tmp_path / "out"
    command = ["train", "--config-file", config]
    run_python("-m", "focal_det.tools", *command, "SOLVER.MAX_ITER", "2", env=env)
    _, output = run_program(*command, "--resume", env=env)
    assert (
        "Starting training from iteration 2" in output and "Evaluation results for bbox" in output
    )
    assert "\x1b" not in (out / "log.txt").read_text()
    tests = "('shapes_voc','shapes_voc_coco')"
    _, output = run_program(
        *command,
        "--eval-only",
        "MODEL.WEIGHTS",
        out / "model_final.pth",
        "DATASETS.TEST",
        tests,
        env=env,
    )
    assert (
        "Evaluating shapes_voc using 2012 metric" in output
        and "Evaluation results for shapes_voc_coco" in output
    )


def test_focal_det_train_checks_first(tmp_path):
    """A damaged image stops a run before its first iteration, unless the check is not wanted."""
    write_coco(tmp_path)
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    datasets = [make_coco_block(tmp_path, "shapes")]
    model = {"RETINANET": {"NUM_CLASSES": 2}, "FOCAL_DET": {"DATASETS": datasets}}
    config = make_config(tmp_path, MODEL=model, DATASETS={"TRAIN": ["shapes"], "TEST": []})
    command = ["train", "--config-file", config]
    code, output = run_program(*command, check=False)
    assert code != 0 and "CHK222 image that cannot be decoded" in output and "3.png" in output
    assert "nothing was trained" in output and "Starting training" not in output
    _, output = run_program(*command, "--no-check", "SOLVER.MAX_ITER", "1", check=False)
    assert "Starting training from iteration 0" in output


@pytest.mark.slow
@needs_tools
def test_data_sets_in_the_config_itself(data, tmp_path):
    block = {
        "name": "shapes_here",
        "format": "voc",
        "root": str(data / "voc"),
        "split": "train",
        "classes": CLASSES,
    }
    config = make_config(
        tmp_path,
        MODEL={"RETINANET": {"NUM_CLASSES": 2}, "FOCAL_DET": {"DATASETS": [block]}},
        DATASETS={"TRAIN": ["shapes_here"], "TEST": ["shapes_here"]},
    )
    command = ["-m", "tools.train_net", "--config-file"]
    _, output = run_python(*command, config, "SOLVER.MAX_ITER", "1")
    assert "Evaluating shapes_here using 2012 metric" in output
    # The dumped config has plugin keys; it must start the same run again.
    out = tmp_path / "out"
    weights = ["MODEL.WEIGHTS", out / "model_final.pth"]
    _, output = run_python(*command, out / "config.yaml", "--eval-only", *weights)
    assert "Evaluating shapes_here using 2012 metric" in output
    assert "not found in the checkpoint" not in output


@pytest.mark.slow
@needs_tools
def test_the_lazy_twin_runs_under_the_stock_lazy_script(data, tmp_path):
    config = tmp_path / "lazy.py"
    config.write_text(
        f"""from detectron2.config import LazyConfig
stock = LazyConfig.load({get_config_file("COCO-Detection/focal_retinanet_R_50_FPN_1x.py")!r})
dataloader, lr_multiplier, model, optimizer, train = (
    stock.dataloader, stock.lr_multiplier, stock.model, stock.optimizer, stock.train)
model.num_classes = 2
dataloader.train.update(num_workers=0, total_batch_size=1)
dataloader.test.num_workers = 0
dataloader.train.dataset.names = dataloader.test.dataset.names = "shapes_train"
dataloader.train.mapper.augmentations = []
dataloader.test.mapper.augmentations = []
train.update(init_checkpoint="", device="cpu", max_iter=2, eval_period=2, log_period=1)
train.output_dir = {str(tmp_path / "out")!r}
dataloader.evaluator.output_dir = train.output_dir
optimizer.lr = 0.0001
"""
    )
    env = {"FOCAL_DET_DATASETS": str(data / "sets.yaml")}
    _, output = run_python("-m", "tools.lazyconfig_train_net", "--config-file", config, env=env)
    assert "FocalRetinaNet(" in output and "Evaluation results for bbox" in output
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_an_environment_module_of_the_user_runs_first(tmp_path):
    (tmp_path / "mine.py").write_text("def setup_environment():\n    print('mine ran')\n")
    code = "from detectron2.config import get_cfg; print(get_cfg().MODEL.FOCAL_DET.CLS_LOSS.NAME)"
    _, output = run_python("-c", code, env={"FOCAL_DET_ENV_MODULE": str(tmp_path / "mine.py")})
    assert output.index("mine ran") < output.index("FocalLoss")


WRONG_VALUES = [
    (
        ["MODEL.RETINANET.NUM_CLASSES", "3"],
        "has 2 classes (circle, square), but MODEL.RETINANET.NUM_CLASSES is 3. Set it to 2.",
    ),
    (["MODEL.RETINANET.PRIOR_PROB", "1.5"], "prior must be in (0, 1), got 1.5"),
    (
        ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "1.5"],
        "MODEL.FOCAL_DET.CLS_LOSS: alpha must be in [0, 1]",
    ),
]
# The script's main, once for each list of overrides; prints what stopped it.
MAIN_WITH_EACH = """
import json, sys
from tools import train_net
from detectron2.engine import default_argument_parser
config, wrong_values = sys.argv[1], json.loads(sys.argv[2])
for overrides in wrong_values:
    args = default_argument_parser().parse_args(["--config-file", config, *overrides])
    try:
        train_net.main(args)
    except Exception as error:
        print("stopped by", error)
"""


@needs_tools
def test_a_wrong_value_stops_before_anything_is_built(data, tmp_path):
    env = {"FOCAL_DET_DATASETS": str(data / "sets.yaml")}
    all_overrides = json.dumps([overrides for overrides, _ in WRONG_VALUES])
    _, output = run_python("-c", MAIN_WITH_EACH, make_config(tmp_path), all_overrides, env=env)
    errors = output.split("stopped by")[1:]
    assert len(errors) == len(WRONG_VALUES)
    for error, (_, message) in zip(errors, WRONG_VALUES):
        assert message in error
    assert "Starting training" not in output
