"""dev/measure_steps.py: seconds and memory of the rows of a table."""

import json

import pytest

from tests.conftest import load_dev
from tests.data.make_data import write_coco
from tests.test_stock_scripts import make_config

script = load_dev("measure_steps")


@pytest.mark.usefixtures("clean_catalog")
def test_rows_of_the_table_are_measured(tmp_path):
    write_coco(tmp_path)
    block = {"name": "steps_train", "format": "coco", "json": str(tmp_path / "coco.json")}
    block["images"] = str(tmp_path / "images")
    make_config(tmp_path, DATASETS={"TRAIN": ["steps_train"], "TEST": ["steps_train"]})
    # Weights that have not been made: the steps of others take as long.
    keys = {"MODEL.FOCAL_DET.DATASETS": [block], "MODEL.WEIGHTS": "none.pth"}
    large = {"INPUT.MIN_SIZE_TRAIN": [256], **keys}
    rows = [("steps", "small", keys), ("steps", "large", large), ("other", "small", keys)]
    file = tmp_path / "rows.json"
    names = ("table", "row", "set")
    entries = [{"config": "config.yaml", **dict(zip(names, row))} for row in rows]
    file.write_text(json.dumps({"rows": entries}))
    script.ROUNDS = 2
    script.main(str(file), "steps")
    content = json.loads((tmp_path / "results" / "steps_steps.json").read_text())
    assert content["rounds"] == 2 and content["commit"]
    small, large = (content["rows"][x] for x in ("small", "large"))
    assert 0 < small["seconds"] < 60
    assert small["peak_bytes"] < large["peak_bytes"]
