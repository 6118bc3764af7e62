"""dev/build_detectron2.py on little source trees of its own, and the Detectron2 it built where that is installed."""

import hashlib
import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "dev" / "build_detectron2.py"
UPSTREAM_TRAIN_NET_SHA256 = "a3e47504ec6a4ae1f651c686f7b6a3faec1bec0829511951e325b9c6eab2dd87"


def load_script():
    spec = importlib.util.spec_from_file_location("build_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


build = load_script()
