"""The generated digits: files, boxes, class frequencies, and builds that meet or break."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("sklearn")

from focal_det.data import digits  # noqa: E402
from tests.conftest import get_forkserver  # noqa: E402

NUM_IMAGES = 40
SPARSE = [name for name in digits.DIGITS_SPLITS if name.startswith("sparse")]
DENSE = [name for name in digits.DIGITS_SPLITS if name not in SPARSE]
LEFTOVERS = ".*"  # names of temporary folders


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder with a short build of every split of small canvases."""
    folder = tmp_path_factory.mktemp("digits")
    for split in DENSE:
        digits._build(split, folder, NUM_IMAGES)
    return folder


@pytest.fixture(params=DENSE)
def coco(request, root):
    return json.loads((root / request.param / "annotations.json").read_text())


def read_files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def get_iou(*boxes):
    """By counting pixels."""
    a, b = (np.zeros((128, 128), bool) for _ in boxes)
    for mask, (x, y, w, h) in zip((a, b), boxes):
        mask[y : y + h, x : x + w] = True
    return (a & b).sum() / (a | b).sum()


# Files


@pytest.mark.parametrize("split", DENSE)
def test_same_seed_gives_same_bytes(split, root, tmp_path):
    digits._build(split, tmp_path, NUM_IMAGES)
    assert read_files(tmp_path / split) == read_files(root / split)


def test_short_build_is_prefix_of_long_build(root, tmp_path):
    _, image_dir = digits._build("train", tmp_path, 5)
    for path in image_dir.iterdir():
        assert path.read_bytes() == (root / "train" / "images" / path.name).read_bytes()


def test_global_random_state_is_neither_used_nor_changed(root, tmp_path):
    np.random.seed(7)
    cv2.setRNGSeed(7)
    state = np.random.get_state()[1].copy()
    digits._build("val", tmp_path, NUM_IMAGES)
    assert (np.random.get_state()[1] == state).all()
    assert read_files(tmp_path / "val") == read_files(root / "val")


def test_splits_differ(root):
    pictures = [read_files(root / split / "images") for split in DENSE]
    assert all(len({files[name] for files in pictures}) == len(pictures) for name in pictures[0])


def test_coco_ids_and_categories(coco):
    assert [image["id"] for image in coco["images"]] == list(range(1, NUM_IMAGES + 1))
    assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    assert {a["image_id"] for a in coco["annotations"]} <= {image["id"] for image in coco["images"]}
    assert [c["id"] for c in coco["categories"]] == list(range(1, 11))
    assert [c["name"] for c in coco["categories"]] == digits.DIGITS_CLASSES
    assert coco["info"].keys() >= {"version", "seed", "description"}


@pytest.mark.parametrize("split", DENSE)
def test_images_are_where_json_says(split, root):
    coco = json.loads((root / split / "annotations.json").read_text())
    names = [image["file_name"] for image in coco["images"]]
    assert sorted(names) == sorted(os.listdir(root / split / "images"))
    for image in coco["images"]:
        picture = cv2.imread(
            str(root / split / "images" / image["file_name"]), cv2.IMREAD_UNCHANGED
        )
        assert picture.shape == (image["height"], image["width"], 3) == (128, 128, 3)


# Scans


def test_no_scan_is_in_train_and_val():
    used = {
        split: {scan.tobytes() for of_class in digits._load_scans(split) for scan in of_class}
        for split in digits.DIGITS_SPLITS
    }
    for name, split in digits.DIGITS_SPLITS.items():
        assert used[name] == used["val" if split.is_val else "train"]
    assert not used["train"] & used["val"]
    assert len(used["train"] | used["val"]) == 1797


def test_every_class_is_split_80_to_20():
    for train, val in zip(digits._load_scans("train"), digits._load_scans("val")):
        assert len(train) / (len(train) + len(val)) == pytest.approx(0.8, abs=0.005)


def test_scrambled_scan_keeps_no_quarter_in_place():
    """The quarters are turned: a scan of one constant per row becomes one per column."""
    rows = np.repeat(np.arange(8, dtype=np.float32)[:, None], 8, axis=1)
    scrambled = digits._scramble(np.random.default_rng(0), [rows[None]])
    assert scrambled.shape == (8, 8)
    assert (scrambled[:4] == scrambled[:1]).all() and (scrambled[4:] == scrambled[4:5]).all()
    assert not (scrambled == rows).all()


# Boxes


def test_boxes_are_inside_with_positive_area(coco):
    for annotation in coco["annotations"]:
        x, y, w, h = annotation["bbox"]
        assert min(x, y) >= 0 and max(x + w, y + h) <= 128
        assert annotation["area"] == w * h > 0
        assert annotation["iscrowd"] == 0


def test_long_side_is_24_to_52(coco):
    assert all(24 <= max(a["bbox"][2:]) <= 52 for a in coco["annotations"])


@pytest.mark.parametrize("long_side", [12, 24, 25, 51])
@pytest.mark.parametrize("angle", [-10.0, -3.3, 0.0, 10.0])
def test_rounding_changes_the_long_side_by_one_pixel(long_side, angle):
    for scan in np.concatenate(digits._load_scans("val")):
        alpha = digits._render_alpha(scan, long_side=long_side, angle=angle)
        assert abs(max(alpha.shape) - 2 * digits._MARGIN - long_side) <= 1


def test_boxes_hardly_overlap(coco):
    boxes_per_image = {}
    for annotation in coco["annotations"]:
        boxes_per_image.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    for boxes in boxes_per_image.values():
        assert all(get_iou(a, b) <= 0.1 for i, a in enumerate(boxes) for b in boxes[:i])


def test_rendered_ink_touches_all_four_sides_of_its_box():
    for of_class in digits._load_scans("train"):
        alpha = digits._render_alpha(of_class[0], long_side=30, angle=5.0)
        ink, m = alpha >= 0.5, digits._MARGIN
        inner = ink[m:-m, m:-m]
        assert inner.sum() == ink.sum()
        assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()


def test_boxes_are_tight_on_the_ink_of_the_picture(monkeypatch):
    """Of digits on plain grey, the box is where half the ink's strength is reached."""
    monkeypatch.setattr(
        digits, "_draw_background", lambda *args: np.full((128, 128, 3), 128, np.uint8)
    )
    find_place = digits._find_place
    # Scrambled scans come after the digit, and find no place.
    monkeypatch.setattr(
        digits,
        "_find_place",
        lambda rng, alpha, taken, side: None if taken else find_place(rng, alpha, taken, side),
    )
    split = replace(digits.DIGITS_SPLITS["train"], max_digits=1, empty_fraction=0.0)
    scans, probs = digits._load_scans("train"), digits._get_class_probs("train")
    for seed in range(30):
        rng = np.random.default_rng(seed)
        image, boxes, labels = digits._draw_canvas(rng, scans, probs, split)
        assert len(boxes) == len(labels) == 1
        difference = np.abs(cv2.medianBlur(image, 3).astype(float) - 128.0).max(axis=2)
        x, y, w, h = digits._get_tight_box(difference / np.quantile(difference, 0.99))
        found, said = np.array([x, y, x + w, y + h]), np.array(boxes[0])
        said[2:] += said[:2]
        assert np.abs(found - said).max() <= 2


# Sparse splits


@pytest.fixture(scope="module", params=SPARSE)
def sparse(request, tmp_path_factory):
    """A sparse split, and the folder of a short build of it."""
    folder = tmp_path_factory.mktemp("sparse")
    digits._build(request.param, folder, 3)
    return digits.DIGITS_SPLITS[request.param], folder / request.param


def test_large_canvases_have_the_size_that_json_says(sparse):
    split, folder = sparse
    coco = json.loads((folder / "annotations.json").read_text())
    low, high = split.long_side
    for image in coco["images"]:
        picture = cv2.imread(str(folder / "images" / image["file_name"]), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (image["height"], image["width"], 3) == (split.side, split.side, 3)
    for annotation in coco["annotations"]:
        x, y, w, h = annotation["bbox"]
        assert min(x, y) >= 0 and max(x + w, y + h) <= split.side
        assert low - 1 <= max(w, h) <= high + 1


def test_json_of_one_class_has_the_same_boxes(sparse):
    _, folder = sparse
    ten = json.loads((folder / "annotations.json").read_text())
    one = json.loads((folder / "one_class.json").read_text())
    assert one["categories"] == [{"id": 1, "name": "digit"}]
    assert one["annotations"] == [{**x, "category_id": 1} for x in ten["annotations"]]
    assert one["images"] == ten["images"]


def test_clutter_grows_with_the_area(monkeypatch):
    """Counted by calls: a canvas of 512 px has 16 times the shapes and scrambled scans."""
    numbers = {"_draw_shape": [], "_scramble": []}
    for name, calls in numbers.items():
        original = getattr(digits, name)
        monkeypatch.setattr(digits, name, count_calls(original, calls))
    scans = digits._load_scans("train")
    means = []
    for split in ("train", "sparse_512_train"):
        probs = digits._get_class_probs(split)
        for seed in range(30):
            rng = np.random.default_rng(seed)
            digits._draw_canvas(rng, scans, probs, digits.DIGITS_SPLITS[split])
        means.append([len(calls) / 30 for calls in numbers.values()])
        for calls in numbers.values():
            calls.clear()
    (shapes, scrambled), (more_shapes, more_scrambled) = means
    assert more_shapes / shapes == pytest.approx(16, rel=0.25)
    assert more_scrambled / scrambled == pytest.approx(16, rel=0.4)


def count_calls(function, calls):
    def counting(*args):
        calls.append(1)
        return function(*args)

    return counting


# Class frequencies and numbers of objects


def count_labels(split):
    """Number of each class that the full split asks for, and number of digits per canvas."""
    probs = digits._get_class_probs(split)
    labels_per_image = []
    settings = digits.DIGITS_SPLITS[split]
    for image_id in range(1, settings.num_images + 1):
        rng = np.random.default_rng(digits._get_seed(split, image_id))
        labels_per_image.append(digits._sample_labels(rng, probs, settings))
    counts = np.bincount(np.concatenate(labels_per_image).astype(int), minlength=10)
    return counts, [len(x) for x in labels_per_image]


def test_longtail_probabilities_fall_exponentially_100_to_1():
    probs = digits._get_class_probs("longtail_train")
    assert probs.sum() == pytest.approx(1.0)
    assert probs[0] / probs[-1] == pytest.approx(100.0)
    np.testing.assert_allclose(probs[1:] / probs[:-1], 100 ** (-1 / 9))


def test_longtail_counts_follow_the_probabilities():
    counts, _ = count_labels("longtail_train")
    expected = digits._get_class_probs("longtail_train") * counts.sum()
    assert (np.diff(counts) < 0).all()
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    assert 70 < counts[0] / counts[-1] < 140


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_splits_are_balanced(split):
    counts, _ = count_labels(split)
    assert (np.abs(counts - counts.mean()) < 4 * np.sqrt(counts.mean())).all()


@pytest.mark.parametrize("split", digits.DIGITS_SPLITS)
def test_number_of_digits_and_share_of_empty_canvases(split):
    most, empty = (3, 0.1) if split in SPARSE else (6, 0.03)
    if "single" in split:
        most = 1
    _, numbers = count_labels(split)
    assert set(numbers) == set(range(most + 1))
    assert numbers.count(0) / len(numbers) == pytest.approx(empty, abs=empty / 2)


def test_images_without_objects_are_listed(root):
    coco = json.loads((root / "train" / "annotations.json").read_text())
    _, numbers = count_labels("train")
    empty = {i + 1 for i, number in enumerate(numbers[:NUM_IMAGES]) if number == 0}
    assert empty
    with_objects = {a["image_id"] for a in coco["annotations"]}
    assert {image["id"] for image in coco["images"]} - with_objects == empty


def test_nearly_all_digits_find_a_place(coco, root):
    _, numbers = count_labels(coco["info"]["description"].split()[-1])
    assert 0.95 * sum(numbers[:NUM_IMAGES]) <= len(coco["annotations"]) <= sum(numbers[:NUM_IMAGES])


# Building


def test_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FOCAL_DET_CACHE", str(tmp_path))
    assert digits.get_digits_root() == tmp_path / f"digits_v{digits.DIGITS_VERSION}"
    monkeypatch.delenv("FOCAL_DET_CACHE")
    default = Path.home() / ".cache" / "focal_det"
    assert digits.get_digits_root() == default / f"digits_v{digits.DIGITS_VERSION}"


def test_build_digits_uses_root_and_number_of_the_split(monkeypatch, tmp_path):
    monkeypatch.setenv("FOCAL_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(digits.DIGITS_SPLITS, "val", digits.DigitsSplit(3, is_val=True))
    for given, root in (
        (None, digits.get_digits_root()),
        (str(tmp_path / "mine"), tmp_path / "mine"),
    ):
        assert digits.build_digits("val", given) == (
            root / "val" / "annotations.json",
            root / "val" / "images",
        )
        assert len(os.listdir(root / "val" / "images")) == 3


def test_unknown_split_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"train, val, longtail_train, .*; got 'test'"):
        digits.build_digits("test", tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_scikit_learn_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits._build("val", tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_second_call_reuses_the_files(tmp_path, monkeypatch):
    paths = digits._build("val", tmp_path, 3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(digits, "_write_split", lambda *args: pytest.fail("built again"))
    assert digits._build("val", tmp_path, 3) == paths
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_build_leaves_nothing(error, monkeypatch, tmp_path):
    draw, calls = digits._draw_canvas, []

    def draw_two(*args):
        calls.append(1)
        if len(calls) == 3:
            raise error("stop")
        return draw(*args)

    monkeypatch.setattr(digits, "_draw_canvas", draw_two)
    with pytest.raises(error):
        digits._build("val", tmp_path, 5)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    digits._build("val", tmp_path, 5)
    assert len(os.listdir(tmp_path / "val" / "images")) == 5


def test_lost_json_of_one_class_is_made_again(tmp_path):
    """Folders of earlier versions have none."""
    digits._build("val", tmp_path, 3)
    file = tmp_path / "val" / "one_class.json"
    content = file.read_text()
    file.unlink()
    digits._build("val", tmp_path, 3)
    assert file.read_text() == content


@pytest.mark.parametrize("lost", ["annotations.json", "images/000002.png"])
def test_folder_with_lost_files_is_reported(lost, tmp_path):
    digits._build("sparse_256_val", tmp_path, 3)
    (tmp_path / "sparse_256_val" / lost).unlink()
    with pytest.raises(FileExistsError, match="delete the folder"):
        digits._build("sparse_256_val", tmp_path, 3)


def test_slower_build_keeps_the_result_of_the_faster(monkeypatch, tmp_path):
    """Another process finishes while this one is drawing."""
    write, marks = digits._write_split, []

    def write_while_another_finishes(*args):
        write(*args)
        monkeypatch.setattr(digits, "_write_split", write)
        json_file, _ = digits._build("val", tmp_path, 3)
        marks.append(json_file.stat().st_ino)

    monkeypatch.setattr(digits, "_write_split", write_while_another_finishes)
    json_file, _ = digits._build("val", tmp_path, 3)
    assert [json_file.stat().st_ino] == marks
    assert not list(tmp_path.glob(LEFTOVERS))


def build_after_barrier(root, barrier, queue):
    barrier.wait()
    queue.put(digits._build("val", Path(root), NUM_IMAGES))


def test_racing_processes_both_succeed(root, tmp_path):
    context = get_forkserver()
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=build_after_barrier, args=(str(tmp_path), barrier, queue))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    paths = (tmp_path / "val" / "annotations.json", tmp_path / "val" / "images")
    assert results == [paths, paths]
    assert read_files(tmp_path / "val") == read_files(root / "val")
    assert not list(tmp_path.glob(LEFTOVERS))
