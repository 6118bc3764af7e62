"""Importing is cheap, and what needs no Detectron2 works without it."""

import detectron2
import torch

import focal_det
from focal_det.tools.__main__ import main
from tests.conftest import run_blocks, run_python

BLOCK = "import sys\nfor name in {names}: sys.modules[name] = None\n"
# A part of each package that needs Detectron2.
NEED_DETECTRON2 = [
    "config",
    "modeling.retinanet",
    "data.catalog",
    "imbalance.class_weights",
    "checkpoint.checkpointer",
    "engine.trainer",
    "inference.predictor",
    "check.run",
    "model_zoo",
]


def run_blocked(code: str, *names: str, check: bool = True):
    return run_python(
        "-c", BLOCK.format(names=names) + code, env={"DETECTRON2_ENV_MODULE": None}, check=check
    )


def test_focal_det_imports_without_torch():
    run_blocked("import focal_det; assert focal_det.__version__", "torch", "detectron2", "fvcore")


def test_losses_need_torch_and_fvcores_registry_only():
    code = "import focal_det.losses, focal_det.losses.normalizers, torch\n"
    code += "print(focal_det.losses.sigmoid_focal_loss(torch.zeros(1), torch.ones(1)).item())"
    _, output = run_blocked(
        code, "detectron2", "torchvision", "cv2", "pycocotools", "matplotlib", "sklearn"
    )
    assert abs(float(output) - 0.1733) < 1e-3


def test_parts_for_detectron2_say_how_to_get_it():
    code = (
        "import importlib, traceback\n"
        f"for part in {NEED_DETECTRON2}:\n"
        "    try:\n"
        "        importlib.import_module('focal_det.' + part)\n"
        "    except ImportError:\n"
        "        print('PART', part, traceback.format_exc())\n"
    )
    _, output = run_blocked(code, "detectron2")
    errors = output.split("PART ")[1:]
    assert [x.split()[0] for x in errors] == NEED_DETECTRON2
    for error in errors:
        for way in ("facebookresearch/detectron2.git", "conda-forge", "dev/build_detectron2.py"):
            assert way in error
        assert "During handling" not in error


def test_programs_without_detectron2_say_how_to_get_it():
    names = ("check", "train", "report", "demo", "weights", "sweep", "loss-cdf", "bench")
    code = (
        "from focal_det.tools.__main__ import main\n"
        f"for name in {names}: assert main([name, '--help']) == 2"
    )
    _, output = run_blocked(code, "detectron2")
    for name in names:
        assert f"focal-det {name}: This part of focal_det needs Detectron2" in output
    assert output.count("conda-forge") == len(names)


def test_training_imports_no_figures_and_detectron2_is_left_alone():
    figures = (
        "import sys, focal_det.env, focal_det.engine.trainer\n"
        "focal_det.env.ensure_environment()\n"
        "print([x for x in sys.modules if x.startswith('focal_det.report')])"
    )
    code = "from detectron2.config import get_cfg\nfrom detectron2.data import DatasetCatalog\n"
    code += "import focal_det.modeling.retinanet\n"
    code += (
        "assert 'FOCAL_DET' not in get_cfg().MODEL and 'digits_val' not in DatasetCatalog.list()"
    )
    of_figures, of_detectron2 = run_blocks(figures, code, env={"DETECTRON2_ENV_MODULE": None})
    assert of_figures[0] == 0 and of_figures[1].splitlines()[-1] == "[]", of_figures[1]
    assert of_detectron2[0] == 0, of_detectron2[1]


def test_names_of_the_package_are_found_lazily():
    code = "import focal_det, sys\nassert 'torch' not in sys.modules\n"
    code += "for name in dir(focal_det): getattr(focal_det, name)\n"
    code += "try: focal_det.FocalRetinaNets\nexcept AttributeError as e: print(e)"
    _, output = run_python("-c", code, env={"DETECTRON2_ENV_MODULE": None})
    assert "no attribute 'FocalRetinaNets'" in output


def test_the_environment_module_can_be_imported_first():
    code = "from focal_det import FocalRetinaNetHead, add_focal_det_config\n"
    code += "from detectron2.config import get_cfg\n"
    package, submodule, config = run_blocks(
        code + "assert get_cfg().MODEL.FOCAL_DET",
        "import focal_det.modeling.retinanet_head",
        "import focal_det.config",
    )
    assert package[0] == 0, package[1]
    assert submodule[0] == 0, submodule[1]
    assert config[0] == 1 and "import detectron2 before focal_det.config" in config[1]


def test_version_lists_what_is_installed():
    code = "from focal_det.tools.__main__ import main; assert main(['--version']) == 0"
    _, output = run_blocked(code, "detectron2")
    assert output.splitlines() == [
        f"focal_det {focal_det.__version__}",
        "detectron2 is not installed",
        f"torch {torch.__version__}",
    ]


def test_version_of_detectron2_is_listed(capsys):
    assert main(["--version"]) == 0
    assert f"\ndetectron2 {detectron2.__version__}\n" in capsys.readouterr().out
