"""What all tests share: the environment of a user, a small model, a batch, processes.

Each test starts from seed 0 and with the log handlers that the session started with.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

os.environ["DETECTRON2_ENV_MODULE"] = "focal_det.env"
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Before focal_det, so that a file whose first import is of focal_det can be run alone.
import detectron2
import pytest
import torch
from torch import multiprocessing

ROOT = Path(__file__).parent.parent


def load_dev(name: str) -> Any:
    """A script of dev/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "dev" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # The dataclass decorator looks its module up here.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--faults-table",
        metavar="FILE.json",
        help="print the table of faults (tests/faults), and write it as json",
    )


def pytest_collection_modifyitems(items) -> None:
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


def pytest_terminal_summary(terminalreporter, config) -> None:
    """The rows whose tests passed, in the order of their numbers."""
    file = config.getoption("--faults-table")
    if not file:
        return
    from focal_det.experiments.records import make_origin

    rows: dict = {}
    soak: dict = {}
    for report in terminalreporter.stats.get("passed", ()):
        for name, value in report.user_properties:
            if name == "soak":
                soak = value
            if name == "fault":
                known = rows.setdefault(value["row"], {**value, "seen_with_detectron2": []})
                known["seen_with_detectron2"] += (
                    [value["seen_with_detectron2"]] if value["seen_with_detectron2"] else []
                )
    rows = dict(sorted(rows.items()))
    for row in rows.values():
        terminalreporter.write_line(
            f"| {row['row']} | {row['fault']} | {row['detectron2']} | {row['focal_det']} |"
        )
    origin = make_origin("pytest tests/faults --faults-table")
    # Of the installed package; the one under test may come from PYTHONPATH, as main does.
    del origin["versions"]["detectron2"]
    content = {**origin, "detectron2": detectron2.__version__, "rows": list(rows.values())}
    if soak:
        content["soak"] = soak
    Path(file).write_text(json.dumps(content, indent=1) + "\n")


def pytest_report_header() -> str:
    folder = Path(detectron2.__file__).parent
    return f"detectron2 {detectron2.__version__} at {folder}, torch {torch.__version__}"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loggers():
    """Takes away what a training in the tests' own process adds to Detectron2's loggers."""
    from detectron2.utils import logger as detectron2_logger

    detectron2_logger._LOG_COUNTER.clear()  # of log_first_n, whichever tests ran before
    known = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(x.handlers[:], x.level, x.propagate) for x in known]
    yield
    for logger, (handlers, level, propagate) in zip(known, before):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


# Of a small detector of any architecture.
SMALL_MODEL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_STD": [58.0, 58.0, 58.0],
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "SEED": 1,
}


@pytest.fixture
def make_cfg():
    """A function from KEY, VALUE, ... to the config of a small five-class FocalRetinaNet."""
    from detectron2.config import get_cfg

    from focal_det.model_zoo import get_config_file

    def make(*overrides):
        cfg = get_cfg()
        cfg.merge_from_file(get_config_file("Base-FocalRetinaNet.yaml"))
        small = {
            **SMALL_MODEL,
            "MODEL.RETINANET.NUM_CLASSES": 5,
            "MODEL.RETINANET.NUM_CONVS": 1,
        }
        cfg.merge_from_list([x for pair in small.items() for x in pair])
        cfg.merge_from_list(list(overrides))
        return cfg

    return make


@pytest.fixture
def batch():
    """Three 128 px images: objects on three pyramid levels, one object, none."""
    return make_batch(
        [[16, 16, 52, 52], [30, 40, 110, 120], [0, 0, 128, 128]], [[70, 60, 100, 90]], []
    )


@pytest.fixture
def clean_catalog(monkeypatch):
    """Takes the data sets of a test out of the catalogs again."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    monkeypatch.delenv("FOCAL_DET_DATASETS", raising=False)
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.pop(name)
        MetadataCatalog.get(name)  # makes it, if the data set had none
        MetadataCatalog.pop(name)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A function from the number of processes to the weights of an uninterrupted run of KEYS."""
    from tests.engine.runs import KEYS, TWO, read_weights, run_to_end
    from tests.faults.copies import DigitsCopy

    known = {}

    def get(num_processes):
        if num_processes not in known:
            digits = DigitsCopy(tmp_path_factory.mktemp(f"reference{num_processes}"))
            run_to_end(digits.write_config(**KEYS), *(TWO if num_processes == 2 else []))
            known[num_processes] = read_weights(digits.folder / "out")
        return known[num_processes]

    return get


@pytest.fixture
def processes():
    """A list of processes that are ended after the test, with all below them."""
    from tests.engine.runs import get_descendants, kill_all

    known = []
    yield known
    for process in known:
        kill_all([process.pid, *get_descendants(process.pid)])


@pytest.fixture
def digits(tmp_path, clean_catalog):
    """A copy of the digits that a test may damage, and configs that train on it."""
    from tests.faults.copies import DigitsCopy

    return DigitsCopy(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    can_mount = sys.platform == "linux" and shutil.which("mount")
    if not can_mount or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def make_batch(*boxes_per_image, size: int = 128, num_classes: int = 5) -> list:
    """Inputs of a model in training: a random image for each list of XYXY boxes.

    Args:
        boxes_per_image: boxes in pixels; their classes are 0, 1, ... up to `num_classes`.
        size: height and width of the images.

    Returns:
        dicts with `image` (3, size, size) float32 in [0, 256) and `instances`.
    """
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(0)
    batch = []
    for boxes in boxes_per_image:
        image = torch.randint(0, 256, (3, size, size), generator=generator).float()
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.arange(len(boxes)) % num_classes
        for box, label in zip(boxes, instances.gt_classes.tolist()):
            x0, y0, x1, y1 = (int(v) if abs(v) < size else 0 for v in box)
            image[:, y0:y1, x0:x1] = 40.0 * label
        batch.append({"image": image, "instances": instances, "height": size, "width": size})
    return batch


def make_step(model, num_classes: int) -> None:
    """Train a detector for one step; its losses must be finite and have Detectron2's names."""
    from detectron2.utils.events import EventStorage

    batch = make_batch([[16, 16, 80, 80], [30, 40, 66, 76]], num_classes=num_classes)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.0001)
    with EventStorage():
        losses = model(batch)
    names = {x.removeprefix("loss_").split("_stage")[0] for x in losses}
    assert names in ({"cls", "box_reg"}, {"cls", "box_reg", "rpn_cls", "rpn_loc"})
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    optimizer.step()


def assert_same_detections(
    got: Any, want: Any, *, score_tol: float = 1e-5, box_tol: float = 1e-2
) -> None:
    """The detections of an image are the same, in any order.

    The order of nearly equal scores depends on how floats were added: on the processor and on the
    number of threads. So each detection of `want`, by falling score, takes the nearest box among
    the detections of `got` that fit, and none may be left over on either side.

    Args:
        got, want: Instances with `pred_boxes`, `scores` and `pred_classes`.
        score_tol: largest difference of two scores that fit.
        box_tol: largest difference of two coordinates that fit, in pixels.
    """
    left = list(range(len(got)))
    without_partner = []
    for i in want.scores.argsort(descending=True).tolist():
        distances = (got.pred_boxes.tensor[left] - want.pred_boxes.tensor[i]).abs().amax(dim=1)
        fits = (got.scores[left] - want.scores[i]).abs() <= score_tol
        fits &= got.pred_classes[left] == want.pred_classes[i]
        fits &= distances <= box_tol
        if fits.any():
            del left[int(distances.masked_fill(~fits, float("inf")).argmin())]
        else:
            without_partner.append(i)
    assert not left and not without_partner, (
        f"{len(want)} detections wanted, {len(got)} got; without a partner: wanted "
        f"{_describe(want, without_partner)}, got {_describe(got, left)}"
    )


def _describe(detections: Any, indices: list[int]) -> list[str]:
    return [
        f"class {int(detections.pred_classes[i])} {float(detections.scores[i]):.7f} "
        f"{detections.pred_boxes.tensor[i].tolist()}"
        for i in indices[:5]
    ]


def get_forkserver():
    """A context whose processes are forked from a server that has imported torch and Detectron2.

    Importing them takes each new interpreter five seconds. The server has done nothing else that a
    fork could break.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.conftest", "detectron2.modeling", "focal_det.tools.check", "focal_det.tools.train"]
    )
    return context


def run_ranks(function: Callable[..., None], *args: Any, num_processes: int) -> None:
    """Call `function(rank, *args)` in processes of their own, and wait for them.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a process has failed.
    """
    get_forkserver()
    multiprocessing.start_processes(function, args, nprocs=num_processes, start_method="forkserver")


def run_forked(
    function: Callable[..., Any],
    *args: Any,
    env: Optional[dict] = None,
    check: bool = True,
    cwd=None,
    timeout: int = 600,
) -> tuple[Optional[int], str]:
    """Exit with `function(*args)` in a process of its own, as `run_python` does with a module.

    The process has the variables of `env`, but not what they change while Detectron2 is imported.

    Args:
        function: of a module, such as the `main` of a program; returns the exit code.

    Returns:
        the exit code, and stdout and stderr in the order in which they were written.
    """
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", **(env or {})}
    environ = {k: v for k, v in environ.items() if v is not None}
    with tempfile.NamedTemporaryFile() as file:
        call = (function, args, environ, str(cwd or os.getcwd()), file.name)
        process = get_forkserver().Process(target=_exit_with, args=call)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        output = Path(file.name).read_text()
    assert not check or process.exitcode == 0, (
        f"{function.__module__} {args} exited with {process.exitcode}:\n{output[-5000:]}"
    )
    return process.exitcode, output


def _exit_with(function, args, environ, cwd, output_file) -> None:
    """Become, as far as a function can tell, the process of a command."""
    descriptor = os.open(output_file, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    if "FOCAL_DET_DATASETS" in environ:
        from focal_det.data.catalog import register_datasets_file

        register_datasets_file(environ["FOCAL_DET_DATASETS"])
    sys.exit(function(*args))


def run_program(*words: Any, **kwargs: Any) -> tuple[Optional[int], str]:
    """`focal-det` with some words in a process of its own; `kwargs` are those of `run_forked`."""
    from focal_det.tools.__main__ import main

    return run_forked(main, [*map(str, words)], **kwargs)


# Each block of code in a fork of its own. Importing torch takes most of the time of a block.
_RUN_BLOCKS = """
import json, os, sys, traceback
import torch

for number, code in enumerate(json.loads(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        with open(f"{sys.argv[2]}/{number}", "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            status = 0
            try:
                exec(code, {"__name__": "__main__"})
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        open(f"{sys.argv[2]}/{number}.failed", "w")
"""


def run_blocks(*codes: str, env: Optional[dict] = None, cwd=None) -> list[tuple[int, str]]:
    """Run blocks of code, each in a process that has imported nothing but torch.

    Returns:
        for each block, 0 or 1, and its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_python("-c", _RUN_BLOCKS, json.dumps(codes), folder, env=env, cwd=cwd)
        outcomes = []
        for number in range(len(codes)):
            has_failed = Path(folder, f"{number}.failed").is_file()
            outcomes.append((int(has_failed), Path(folder, str(number)).read_text()))
    return outcomes


def run_python(
    *args: str, env: Optional[dict] = None, check: bool = True, cwd=None, timeout: int = 600
):
    """Run the tests' interpreter in a process of its own.

    Args:
        env: changes of the environment; None takes a variable away.
        check: whether an exit code other than 0 fails the test and shows the output.

    Returns:
        the exit code, and stdout followed by stderr.
    """
    environ = {**os.environ, "PYTHONWARNINGS": "ignore", **(env or {})}
    environ = {k: v for k, v in environ.items() if v is not None}
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(
        command, env=environ, cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, (
        f"{command} exited with {done.returncode}:\n{output[-5000:]}"
    )
    return done.returncode, output
