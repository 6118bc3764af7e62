"""Images and videos of a command line, apart from the changes of a config."""

from pathlib import Path

import pytest
from detectron2.config.defaults import _C

from focal_det.inference.inputs import find_inputs, split_config_options


@pytest.mark.parametrize(
    ("words", "num_inputs"),
    [
        (["a.png"], 1),
        (["a.png", "MODEL.DEVICE", "cpu"], 1),
        (["a.png", "b", "OUTPUT_DIR", "out", "SEED", "1"], 2),
        (["A.PNG", "IMG_01.JPG", "MODLE.DEVICE", "cpu"], 2),
        (["model.device", "cpu"], 2),
        (["README", "VERSION", "2"], 1),
        (["MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.gamma", "1.0"], 0),
    ],
)
def test_keys_of_a_config_end_the_inputs(words, num_inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_config_options(words) == (words[:num_inputs], words[num_inputs:])


def test_new_top_level_key_ends_the_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A key of Detectron2's main that 0.6 does not have.
    monkeypatch.setitem(_C, "FLOAT32_PRECISION", "")
    words = ["a.png", "FLOAT32_PRECISION", "high"]
    assert split_config_options(words) == (words[:1], words[1:])


def test_existing_path_is_not_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["MODEL.DEVICE", "MODEL.DEVICE", "cpu"]
    assert split_config_options(words) == ([], words)
    (tmp_path / "OUTPUT_DIR").mkdir()
    assert split_config_options(["OUTPUT_DIR", *words]) == (["OUTPUT_DIR"], words)


def make_files(root, *names):
    files = [root / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def test_files_of_a_folder_keep_their_names(tmp_path, monkeypatch):
    first, second, video, _ = make_files(
        tmp_path, "in/a.png", "in/deep/b.JPG", "v.avi", "in/list.txt"
    )
    inputs = find_inputs([tmp_path / "in", video], tmp_path / "out")
    folder = tmp_path / "out" / "in"
    assert inputs.images == {first: folder / "a.png", second: folder / "deep" / "b.JPG"}
    assert inputs.videos == {video: tmp_path / "out" / "v.mp4"}
    monkeypatch.chdir(tmp_path / "in")
    inputs = find_inputs([Path()], tmp_path / "out")
    assert inputs.images[Path("a.png")] == folder / "a.png"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere.png"], r"nowhere\.png does not exist"),
        (["list.txt"], r"list\.txt is not an image \(\.bmp"),
        (["empty"], r"empty has no image \(\.bmp"),
        (["a.png", "other/a.png"], r"a\.png and .*a\.png would both be drawn to .*out"),
        (["v.avi", "other/v.mov"], r"would both be drawn to .*v\.mp4"),
        (["out/a.png"], r"out.a\.png would be overwritten; choose another --output"),
        # The picture of photos/a.png goes to the first input.
        (["out", "photos"], r"out.photos.a\.png would be overwritten; choose another --output"),
    ],
)
def test_wrong_input_is_named(names, message, tmp_path):
    make_files(tmp_path, "list.txt", "a.png", "other/a.png", "v.avi", "other/v.mov", "out/a.png")
    make_files(tmp_path, "photos/a.png", "out/photos/a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_inputs([tmp_path / x for x in names], tmp_path / "out")
