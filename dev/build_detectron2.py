#!/usr/bin/env python3
"""Install a pure-Python Detectron2 from PyPI where no Detectron2 is installed.

Detectron2 is not on PyPI under its own name. Two source distributions have its Python files, model
zoo configs and tools, byte for byte, but not its C++ sources: pb1-detectron2 has those of release
0.6, and detectron2-cdo those of 0.5. This script makes a wheel of one of them that runs with
current torch, numpy, Pillow and setuptools. Training, inference and evaluation of RetinaNet need
nothing more. Operations that Detectron2 compiles (rotated boxes, deformable convolution on GPUs)
raise an error that says so when they are used.

A Detectron2 that is already installed is left alone. Needs only the standard library and pip.
"""

import argparse
import hashlib
import html
import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional


class BuildError(Exception):
    """A reason to stop; its message is all that the person running the script sees."""


class Substitution(NamedTuple):
    """In `file`, `old` becomes `new`; `old` must occur there exactly `count` times."""

    file: str
    old: str
    new: str
    count: int


class Release(NamedTuple):
    """A release of Detectron2, the source distribution with its Python files, and the changes."""

    version: str
    project: str
    sdist_name: str
    sdist_sha256: str
    substitutions: tuple[Substitution, ...]

    @property
    def wheel_version(self) -> str:
        return f"{self.version}+pure.1"


# Texts that are too long for a line of the table below.
_NO_C = "from detectron2.no_compiled_ops import _C"
_COMPILED = ("from detectron2 import _C", _NO_C, 1)
_SCHEDULER = "torch.optim.lr_scheduler."
_TRY_API = "try:\n    from .api import *\nexcept ImportError:  # needs caffe2 and onnx\n    pass\n"
_FAST_COCO_EVAL = "from detectron2.evaluation.fast_eval_api import COCOeval_opt"
_COCO_EVAL = "from pycocotools.cocoeval import COCOeval as COCOeval_opt"
_PURE = '"none: a pure-Python build without compiled operations"'
_ZOO_FOLDER = '"detectron2.model_zoo", os.path.join('
_ZOO_FOLDER_BY_FILE = "os.path.dirname(__file__), os.path.join("
_MESHGRID = "meshgrid(shifts_y, shifts_x)"
_MESHGRID_IJ = 'meshgrid(shifts_y, shifts_x, indexing="ij")'
_WHICH_EVAL = '"unofficial" if self._use_fast_impl else "official"'
# The two releases have these texts in common.
_SUBSTITUTIONS = tuple(
    Substitution(f"detectron2/{file}", old, new, count)
    for file, old, new, count in [
        # numpy 1.24 removed its aliases of Python's own types.
        ("data/build.py", "dtype=np.int", "dtype=int", 2),
        ("data/datasets/pascal_voc.py", "dtype=np.str", "dtype=str", 1),
        ("evaluation/pascal_voc_evaluation.py", "astype(np.bool)", "astype(bool)", 2),
        ("evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", 2),
        ("evaluation/sem_seg_evaluation.py", "dtype=np.float", "dtype=float", 2),
        ("evaluation/sem_seg_evaluation.py", "astype(np.float)", "astype(float)", 3),
        ("utils/video_visualizer.py", "np.bool", "bool", 1),
        ("utils/visualizer.py", "np.bool", "bool", 3),
        # Pillow 10 removed this other name of BILINEAR.
        ("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR", 1),
        # setuptools 82 removed pkg_resources; environments of Python 3.12 have no setuptools.
        ("model_zoo/model_zoo.py", "import pkg_resources\n", "", 1),
        ("model_zoo/model_zoo.py", "pkg_resources.resource_filename(", "os.path.join(", 1),
        ("model_zoo/model_zoo.py", _ZOO_FOLDER, _ZOO_FOLDER_BY_FILE, 1),
        # torch is about to require the argument that says how meshgrid orders its result.
        ("modeling/anchor_generator.py", _MESHGRID, _MESHGRID_IJ, 1),
        # torch 2 made LRScheduler the base: the state of its own schedulers would not be saved.
        ("engine/hooks.py", _SCHEDULER + "_LRScheduler", _SCHEDULER + "LRScheduler", 2),
        # torch 2 has no caffe2: what does not need it can be imported, as in newer Detectron2.
        ("export/__init__.py", "from .api import *\n", _TRY_API, 1),
        # Operations that Detectron2 compiles: importing them works, using them raises.
        ("layers/deform_conv.py", *_COMPILED),
        ("layers/roi_align_rotated.py", *_COMPILED),
        ("layers/rotated_boxes.py", *_COMPILED),
        ("layers/nms.py", "import torch\n", f"import torch\n{_NO_C}\n", 1),
        ("layers/nms.py", "torch.ops.detectron2.nms_rotated(", "_C.nms_rotated(", 1),
        # The fast COCO evaluation is compiled: pycocotools' own is used, and the log says so.
        ("evaluation/coco_evaluation.py", _FAST_COCO_EVAL, _COCO_EVAL, 1),
        ("evaluation/coco_evaluation.py", _WHICH_EVAL, '"official"', 1),
        ("utils/collect_env.py", 'f"not built correctly: {e}"', _PURE, 1),
    ]
)
_MASKS = "detectron2/structures/masks.py"
_RETINANET = "detectron2/modeling/meta_arch/retinanet.py"
RELEASES = {
    "0.6": Release(
        version="0.6",
        project="pb1-detectron2",
        sdist_name="pb1-detectron2-0.6.tar.gz",
        sdist_sha256="5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29",
        substitutions=(
            *_SUBSTITUTIONS,
            Substitution(_MASKS, "np.bool", "bool", 3),
            # The head builds a norm only to see its type; torch refuses a GroupNorm of one channel.
            Substitution(_RETINANET, "get_norm(norm, 1)", "get_norm(norm, 32)", 1),
        ),
    ),
    "0.5": Release(
        version="0.5",
        project="detectron2-cdo",
        sdist_name="detectron2_cdo-0.5.tar.gz",
        sdist_sha256="53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18",
        substitutions=(*_SUBSTITUTIONS, Substitution(_MASKS, "np.bool", "bool", 2)),
    ),
}
DEFAULT_VERSION = "0.6"

PLACEHOLDER = '''\
"""Stands in for detectron2._C, the compiled operations, which this build does not have."""


class _NoCompiledOps:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            f"{name} is a compiled operation of Detectron2, and this Detectron2 (WHEEL_VERSION) "
            "is a pure-Python build that has none. Install the full Detectron2 instead: from "
            "https://github.com/facebookresearch/detectron2 or with "
            "'conda install -c conda-forge detectron2'."
        )


_C = _NoCompiledOps()
'''

PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "WHEEL_VERSION"
description = "Detectron2 as a pure-Python build, without its compiled operations"
readme = "README.md"
authors = [{name = "FAIR"}]
license = "Apache-2.0"
license-files = ["LICENSE", "CHANGES"]
requires-python = ">=3.9"
dependencies = [
    "cloudpickle", "fvcore>=0.1.5", "hydra-core>=1.1", "iopath>=0.1.7", "matplotlib", "numpy",
    "omegaconf>=2.1", "Pillow>=7.1", "pycocotools>=2.0.2", "PyYAML>=5.1", "tabulate", "tensorboard",
    "termcolor>=1.1", "tqdm>4.29.0", "yacs>=0.1.6",
]

[project.urls]
Homepage = "https://github.com/facebookresearch/detectron2"

[tool.setuptools.packages.find]
include = ["detectron2*", "tools*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""


def say(message: str) -> None:
    """Print one line for the person watching, at once."""
    print(message, flush=True)


def find_installed() -> Optional[str]:
    """Version and folder of the Detectron2 that this interpreter would import, None without one."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    # Read, not imported: the import of a broken Detectron2, which --force may replace, would fail.
    source = Path(spec.origin).read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.*)"', source, re.MULTILINE)
    version = found.group(1) if found else "(version unknown)"
    return f"{version} in {Path(spec.origin).parent}"


def find_package_index(sdist_name: str) -> str:
    """The address of the package index that pip uses here, by its settings and environment."""
    # `pip config` does not know the default; this help shows the address in use.
    command = [sys.executable, "-m", "pip", "download", "--help"]
    # A wide terminal keeps pip from breaking the address over two lines.
    wide = {**os.environ, "COLUMNS": "500"}
    shown = subprocess.run(command, capture_output=True, text=True, env=wide)
    found = re.search(r"--index-url <url>[^<]*?\(default:?\s+([^\s)]+)\)", shown.stdout)
    if found is None:
        raise BuildError(
            f"Cannot find pip's package index in what {' '.join(command)!r} prints (exit status "
            f"{shown.returncode}). Download {sdist_name} yourself and name it with --sdist. "
            f"{shown.stderr.strip()}"
        )
    return found.group(1)


def read_url(url: str, sdist_name: str) -> tuple[bytes, str]:
    """The content at `url`, and its address after redirections."""
    request = urllib.request.Request(url, headers={"Accept": "text/html, */*;q=0.1"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read(), response.geturl()
    # Every error of urllib.request is an OSError.
    except (OSError, http.client.HTTPException) as error:
        raise BuildError(
            f"Cannot read {url} ({error}). Check the network and pip's settings, or download "
            f"{sdist_name} elsewhere and name it with --sdist."
        ) from error


def find_sdist_url(page: str, page_url: str, sdist_name: str) -> str:
    """The address of the source distribution, by its project's `page` on the package index."""
    for link in re.findall(r"""href\s*=\s*["']([^"']+)["']""", page):
        url = urllib.parse.urljoin(page_url, urllib.parse.urldefrag(html.unescape(link)).url)
        if urllib.parse.urlparse(url).path.endswith("/" + sdist_name):
            return url
    raise BuildError(f"{page_url} lists no {sdist_name}. Name a copy of it with --sdist.")


def download_sdist(release: Release, folder: Path) -> Path:
    """Download the source distribution from pip's package index into `folder`."""
    name = release.sdist_name
    page_address = f"{find_package_index(name).rstrip('/')}/{release.project}/"
    page, page_url = read_url(page_address, name)
    url = find_sdist_url(page.decode(), page_url, name)
    say(f"Downloading {url}")
    sdist = folder / name
    sdist.write_bytes(read_url(url, name)[0])
    return sdist


def verify_sha256(file: Path, expected: str) -> None:
    """Stop unless the sha256 of `file` is `expected`."""
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    if actual != expected:
        raise BuildError(
            f"{file} is not the expected file: its sha256 is {actual}, not {expected}."
        )
    say(f"Verified sha256 {actual}")


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack the verified `sdist` into `folder`; returns its only entry, the root of the source."""
    with tarfile.open(sdist) as archive:
        # Python has it since 3.10.12 and 3.11.4.
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)
    (root,) = folder.iterdir()
    return root


def apply_substitutions(root: Path, substitutions: Sequence[Substitution]) -> None:
    """Edit the files under `root`; stop where a text is not there as often as the table says."""
    for file, old, new, count in substitutions:
        text = (root / file).read_text(encoding="utf-8")
        found = text.count(old)
        if found != count:
            raise BuildError(f"{file}: expected {old!r} {count} times, found it {found} times.")
        (root / file).write_text(text.replace(old, new), encoding="utf-8")
    files = {substitution.file for substitution in substitutions}
    # The licence asks for a notice in every changed file; at the end, it keeps the line numbers.
    notice = "\n# Changed from Detectron2's release: see CHANGES beside the licence.\n"
    for file in files:
        with open(root / file, "a", encoding="utf-8") as changed:
            changed.write(notice)
    say(f"Applied {len(substitutions)} substitutions in {len(files)} files")


def describe_changes(release: Release) -> str:
    """Text of the CHANGES file: what this build changes in a release of Detectron2."""
    text = f"""\
Detectron2 {release.wheel_version} is Detectron2 {release.version} \
(https://github.com/facebookresearch/detectron2,
Copyright (c) Facebook, Inc. and its affiliates, Apache License 2.0) without its compiled
operations, with detectron2/no_compiled_ops.py added and these texts replaced:

"""
    for file, old, new, count in release.substitutions:
        text += f"{file} ({count}x): {old!r} -> {new!r}\n"
    return text


def arrange_source(root: Path, release: Release) -> None:
    """Add this build's own files and move Detectron2's projects to where its wheel has them."""
    for unwanted in ("setup.py", "setup.cfg"):
        (root / unwanted).unlink()
    placeholder = PLACEHOLDER.replace("WHEEL_VERSION", release.wheel_version)
    (root / "detectron2/no_compiled_ops.py").write_text(placeholder, encoding="utf-8")
    pyproject = PYPROJECT.replace("WHEEL_VERSION", release.wheel_version)
    (root / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    (root / "CHANGES").write_text(describe_changes(release), encoding="utf-8")
    for package in ("PointRend/point_rend", "DeepLab/deeplab", "Panoptic-DeepLab/panoptic_deeplab"):
        shutil.move(str(root / "projects" / package), str(root / "detectron2/projects"))


def run_pip(*arguments: str) -> None:
    """Run this interpreter's pip, quietly, and stop if it fails."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet"]
    if subprocess.run(command).returncode != 0:
        raise BuildError(f"This command failed, its own message is above: {' '.join(command)}")


def build_wheel(release: Release, sdist: Optional[Path], work_dir: Path, wheel_dir: Path) -> Path:
    """Make the wheel in `wheel_dir` out of `sdist`, downloaded if None; returns its path."""
    sdist = sdist or download_sdist(release, work_dir)
    verify_sha256(sdist, release.sdist_sha256)
    source_dir = work_dir / "source"
    source_dir.mkdir()
    root = unpack(sdist, source_dir)
    apply_substitutions(root, release.substitutions)
    arrange_source(root, release)
    run_pip("wheel", "--no-deps", "--wheel-dir", str(wheel_dir), str(root))
    wheel = wheel_dir / f"detectron2-{release.wheel_version}-py3-none-any.whl"
    say(f"Built {wheel.name}")
    return wheel


def install_wheel(wheel: Path, replace: bool) -> None:
    """Install `wheel` and its requirements; `replace` overwrites another Detectron2."""
    if replace:
        # Without the dependencies, which pip would reinstall, too.
        run_pip("install", "--force-reinstall", "--no-deps", str(wheel))
    run_pip("install", str(wheel))
    say(f"Installed {wheel.name} for {sys.executable}")


def parse_arguments(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    version_help = "release of Detectron2 to build (default: %(default)s)"
    add("--version", choices=sorted(RELEASES), default=DEFAULT_VERSION, help=version_help)
    add("--force", action="store_true", help="replace a Detectron2 that is installed already")
    sdist_help = "use this copy of the source distribution, download nothing"
    add("--sdist", type=Path, metavar="FILE", help=sdist_help)
    wheel_help = "only make the wheel, in DIR; install nothing"
    add("--wheel-dir", type=Path, metavar="DIR", help=wheel_help)
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the script; returns its exit status."""
    options = parse_arguments(arguments)
    release = RELEASES[options.version]
    installed = find_installed()
    if installed and not (options.force or options.wheel_dir):
        say(f"Detectron2 {installed} is installed: nothing to do (--force replaces it)")
        return 0
    try:
        with tempfile.TemporaryDirectory() as work_dir:
            wheel_dir = options.wheel_dir or Path(work_dir, "wheel")
            wheel = build_wheel(release, options.sdist, Path(work_dir), wheel_dir)
            if not options.wheel_dir:
                install_wheel(wheel, replace=options.force)
    except (BuildError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
