"""dev/build_detectron2.py on small files, and the Detectron2 it made where that is installed."""

import hashlib
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import detectron2
import pytest

from tests.conftest import load_dev

SCRIPT = Path(__file__).parents[2] / "dev" / "build_detectron2.py"
TRAIN_NET_SHA256 = {  # of tools/train_net.py in each release
    "0.6": "b7733690163a935c0682cd682972a01c84e750c55ebc8d7336e02c68831072d6",
    "0.5": "a3e47504ec6a4ae1f651c686f7b6a3faec1bec0829511951e325b9c6eab2dd87",
}
needs_our_build = pytest.mark.skipif(
    importlib.util.find_spec("detectron2.no_compiled_ops") is None,
    reason=f"Detectron2 {detectron2.__version__} here was not made by dev/build_detectron2.py",
)


build = load_dev("build_detectron2")
every_release = pytest.mark.parametrize("release", build.RELEASES.values(), ids=build.RELEASES)


def get_installed_release():
    return build.RELEASES[detectron2.__version__.partition("+")[0]]


def run_script(*arguments, **environment):
    """Run the script as a person does, with `environment` added to the process's own."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def write_tree(root, text):
    (root / "detectron2").mkdir()
    (root / "detectron2/a.py").write_text(text)
    return root


def read_all_times(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.py")}


# --- substitutions


@pytest.mark.parametrize(
    "text, found", [("x = 1\n", 0), ("np.int np.int\n", 2), ("np.int64 np.int\n", 2)]
)
def test_substitution_with_another_count_stops(tmp_path, text, found):
    root = write_tree(tmp_path, text)
    with pytest.raises(build.BuildError) as error:
        build.apply_substitutions(root, [build.Substitution("detectron2/a.py", "np.int", "int", 1)])
    message = f"detectron2/a.py: expected 'np.int' 1 times, found it {found} times."
    assert str(error.value) == message


def test_substitution_keeps_line_numbers_and_adds_notice(tmp_path):
    root = write_tree(tmp_path, "import numpy as np\ny = np.bool\n")
    (root / "detectron2/b.py").write_text("y = np.bool\n")
    build.apply_substitutions(root, [build.Substitution("detectron2/a.py", "np.bool", "bool", 1)])
    lines = (root / "detectron2/a.py").read_text().splitlines()
    assert lines[:2] == ["import numpy as np", "y = bool"]
    assert "Changed from Detectron2's release" in lines[-1]
    assert (root / "detectron2/b.py").read_text() == "y = np.bool\n"


@every_release
def test_every_substitution_is_outside_the_stock_tools(release):
    assert release.substitutions
    assert all(x.file.startswith("detectron2/") for x in release.substitutions)


@every_release
def test_every_substitution_is_listed_in_the_wheel(release):
    changes = build.describe_changes(release)
    assert f"Detectron2 {release.wheel_version} is Detectron2 {release.version} " in changes
    for file, old, new, count in release.substitutions:
        assert old != new and count > 0
        assert f"{file} ({count}x): {old!r} -> {new!r}" in changes


@every_release
def test_no_substitution_leaves_text_that_a_later_one_counts(release):
    for i, earlier in enumerate(release.substitutions):
        for later in release.substitutions[i + 1 :]:
            assert later.file != earlier.file or later.old not in earlier.new


# --- the source distribution


@pytest.fixture
def package_index(tmp_path):
    """Address of a package index in the layout of PEP 503 whose Detectron2 is not the real one."""
    (tmp_path / "files").mkdir()
    for release in build.RELEASES.values():
        page = tmp_path / "simple" / release.project / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(
            f'<a href="../../{release.project}-0.4.tar.gz">older</a> '
            f'<a data-requires-python="&gt;=3.6" href="../../files/{release.sdist_name}#sha256=0">'
            f"{release.version}</a>"
        )
        (tmp_path / "files" / release.sdist_name).write_bytes(b"something else")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


def test_wrong_sha256_stops_and_names_both(tmp_path):
    sdist = tmp_path / "pb1-detectron2-0.6.tar.gz"
    sdist.write_bytes(b"something else")
    done = run_script("--sdist", sdist, "--wheel-dir", tmp_path / "wheels")
    assert done.returncode == 1
    assert str(sdist) in done.stderr and build.RELEASES["0.6"].sdist_sha256 in done.stderr
    assert hashlib.sha256(b"something else").hexdigest() in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "wheels").exists()


@pytest.mark.parametrize("version", [None, "0.6", "0.5"])
def test_asked_release_is_downloaded_and_verified(tmp_path, package_index, version):
    options = [] if version is None else ["--version", version]
    wheel_dir = tmp_path / "wheels"
    done = run_script(*options, "--wheel-dir", wheel_dir, PIP_INDEX_URL=package_index, no_proxy="*")
    release = build.RELEASES[version or "0.6"]
    files = f"{package_index[: -len('simple')]}files"
    assert f"Downloading {files}/{release.sdist_name}" in done.stdout
    assert done.returncode == 1 and release.sdist_sha256 in done.stderr
    assert "Traceback" not in done.stderr


def test_no_network_is_one_line_with_a_way_out(tmp_path):
    index = "http://127.0.0.1:9/simple/"  # nobody listens there
    done = run_script("--wheel-dir", tmp_path, PIP_INDEX_URL=index, no_proxy="*")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: Cannot read {index}pb1-detectron2/ (")
    assert "--sdist" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("columns", ["20", "80", "400"])
def test_package_index_is_read_on_any_terminal_width(monkeypatch, columns):
    index = "https://index.invalid/a-rather-long/name-of-an/index-that-some/would-break/simple"
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setenv("COLUMNS", columns)
    assert build.find_package_index("some.tar.gz") == index


def test_pip_without_an_index_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setattr(
        sys, "executable", shutil.which("true")
    )  # a "Python" whose pip prints nothing
    with pytest.raises(
        build.BuildError, match=r"Cannot find pip's package index.*exit status 0.*--sdist"
    ):
        build.find_package_index("some.tar.gz")


@pytest.mark.parametrize(
    "link, url",
    [
        (
            "../../f/detectron2_cdo-0.5.tar.gz#sha256=1",
            "https://a.invalid/f/detectron2_cdo-0.5.tar.gz",
        ),
        (
            "/f/detectron2_cdo-0.5.tar.gz?a=1&amp;b=2",
            "https://a.invalid/f/detectron2_cdo-0.5.tar.gz?a=1&b=2",
        ),
        (
            "https://b.invalid/detectron2_cdo-0.5.tar.gz",
            "https://b.invalid/detectron2_cdo-0.5.tar.gz",
        ),
    ],
)
def test_links_of_the_index_are_resolved(link, url):
    page_url = "https://a.invalid/simple/detectron2-cdo/"
    page = f'<a href="{link}">x</a>'
    assert build.find_sdist_url(page, page_url, "detectron2_cdo-0.5.tar.gz") == url


def test_index_without_the_file_is_an_error_that_names_it():
    with pytest.raises(build.BuildError, match=r"lists no detectron2_cdo-0\.5\.tar\.gz.*--sdist"):
        link = '<a href="detectron2_cdo-0.5.tar.gz.asc">x</a>'
        build.find_sdist_url(link, "https://a.invalid/", "detectron2_cdo-0.5.tar.gz")


# --- what is installed


def test_installed_detectron2_is_named_and_left_alone():
    folder = Path(detectron2.__file__).parent
    before = read_all_times(folder)
    done = run_script(PIP_INDEX_URL="http://127.0.0.1:9/")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"Detectron2 {detectron2.__version__} in {folder} is installed: nothing to do "
        "(--force replaces it)\n"
    )
    assert read_all_times(folder) == before


def test_placeholder_raises_when_used_and_not_when_inspected():
    names = {}
    exec(build.PLACEHOLDER, names)
    assert not hasattr(names["_C"], "__wrapped__")
    with pytest.raises(
        RuntimeError,
        match=r"nms_rotated is a compiled operation.*facebookresearch/detectron2.*conda-forge",
    ):
        names["_C"].nms_rotated()


@needs_our_build
def test_compiled_operation_says_how_to_get_it():
    import torch
    from detectron2.layers import nms_rotated
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    boxes = torch.ones(2, 5)
    with pytest.raises(
        RuntimeError, match=r"box_iou_rotated is a compiled operation.*facebookresearch/detectron2"
    ):
        pairwise_iou_rotated(boxes, boxes)
    with pytest.raises(RuntimeError, match=r"nms_rotated is a compiled operation.*conda-forge"):
        nms_rotated(boxes, torch.ones(2), 0.5)
    assert importlib.util.find_spec("detectron2._C") is None


@needs_our_build
def test_stock_training_script_is_upstreams_byte_for_byte():
    script = Path(importlib.util.find_spec("tools.train_net").origin)
    expected = TRAIN_NET_SHA256[get_installed_release().version]
    assert hashlib.sha256(script.read_bytes()).hexdigest() == expected


@needs_our_build
def test_installed_files_are_those_the_table_makes():
    root = Path(detectron2.__file__).parents[1]
    for file, old, new, _ in get_installed_release().substitutions:
        text = (root / file).read_text(encoding="utf-8")
        assert new in text and (old in new or old not in text), (file, old)


@needs_our_build
def test_coco_evaluation_is_pycocotools_own():
    from detectron2.evaluation import coco_evaluation
    from pycocotools.cocoeval import COCOeval

    assert coco_evaluation.COCOeval_opt is COCOeval
