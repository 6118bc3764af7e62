"""Packaging of focal_det; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "focal_det/__init__.py").read_text(), re.MULTILINE
).group(1)

DIGITS = ["scikit-learn"]
SLURM = ["submitit"]
DEV = [
    *DIGITS,
    *SLURM,
    "hypothesis",
    "mypy",
    "pytest",
    "pytest-xdist",
    "ruff",
    "types-PyYAML",
]

setup(
    name="focal-det",
    version=VERSION,
    description=(
        "Dense object detectors under extreme class imbalance: "
        "RetinaNet and focal losses for Detectron2"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The configs stay at the top level of the repository and are installed as focal_det/configs.
    packages=[*find_packages(include=["focal_det", "focal_det.*"]), "focal_det.configs"],
    package_dir={"focal_det.configs": "configs"},
    package_data={
        "focal_det": ["py.typed"],
        "focal_det.configs": ["**/*.yaml", "**/*.py", "**/*.json"],
        "focal_det.imbalance": ["*.json"],
        "focal_det.model_zoo": ["*.json", "*.pth"],
    },
    # Detectron2 is not on the package index under its name: see "Install" in the README.
    install_requires=[
        "fvcore",
        "matplotlib",
        "numpy",
        "opencv-python",
        "pycocotools",
        "pyyaml",
        "safetensors>=0.4",
        "tensorboard",
        "torch>=2.4",
        "torchvision",
        "tqdm",
    ],
    extras_require={"digits": DIGITS, "slurm": SLURM, "dev": DEV},
    entry_points={"console_scripts": ["focal-det=focal_det.tools.__main__:main"]},
)
