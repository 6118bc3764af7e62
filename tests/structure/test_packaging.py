"""The wheel: it finds its configs and does not require Detectron2 from the package index."""

import shutil
import zipfile

import pytest

from tests.conftest import ROOT, run_python


@pytest.mark.slow
def test_the_wheel_has_the_configs_and_finds_them(tmp_path):
    # What other tests write into the repository meanwhile may vanish under the copy.
    written = ("output", "build", ".hypothesis", "__pycache__", "*.egg-info")
    ignored = shutil.ignore_patterns(".venv", ".git", *written)
    shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)
    run_python("-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "source")
    (wheel,) = tmp_path.glob("focal_det-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")

    code = "from focal_det.model_zoo import get_config_file\n"
    code += "print(get_config_file('COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml'))\n"
    code += "from focal_det.model_zoo import get_checkpoint_url\n"
    code += "print(get_checkpoint_url('digits/focal_retinanet_tiny.yaml'))"
    _, output = run_python(
        "-c", code, env={"PYTHONPATH": str(tmp_path / "installed")}, cwd=tmp_path
    )
    assert str(tmp_path / "installed/focal_det/configs/COCO-Detection") in output
    assert str(tmp_path / "installed/focal_det/model_zoo") in output
    shipped = {
        str(x.relative_to(ROOT))
        for x in ROOT.glob("configs/**/*")
        if x.suffix in (".yaml", ".py", ".json")
    }
    assert shipped == {
        str(x.relative_to(tmp_path / "installed/focal_det"))
        for x in tmp_path.glob("installed/focal_det/configs/**/*.*")
    }
    (metadata,) = tmp_path.glob("installed/*.dist-info/METADATA")
    assert "Requires-Dist: detectron2" not in metadata.read_text()
    assert "Requires-Dist: torch" in metadata.read_text()
