"""Components by name: every way in finds them, and an unknown name gets the nearest match."""

import sys

import pytest

from focal_det.registry import (
    ASSIGNER_REGISTRY,
    CLS_LOSS_REGISTRY,
    NORMALIZER_REGISTRY,
    ComponentRegistry,
    get_constructor_args,
)
from tests.conftest import run_python

LOSSES = [
    "AsymmetricLoss",
    "EqualizedFocalLoss",
    "EqualizedQualityFocalLoss",
    "FocalLoss",
    "FocalStarLoss",
    "GHMCLoss",
    "HingeLoss",
    "MatchabilityAwareLoss",
    "OHEMLoss",
    "PolyFocalLoss",
    "QualityFocalLoss",
    "RankSortLoss",
    "SamplingFreeLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
]
NORMALIZERS = [
    "Constant",
    "EMAPosCount",
    "GlobalEMAPosCount",
    "GlobalPosCount",
    "PerImagePosCount",
    "SampleCount",
    "SampleSize",
]


IMPORT = "from focal_det.{} import {} as registry; "


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (IMPORT.format("registry", "CLS_LOSS_REGISTRY") + "print(sorted(dict(registry)))", LOSSES),
        (IMPORT.format("losses", "CLS_LOSS_REGISTRY") + "print(sorted(dict(registry)))", LOSSES),
        (
            IMPORT.format("registry", "NORMALIZER_REGISTRY") + "print(sorted(dict(registry)))",
            NORMALIZERS,
        ),
        (
            IMPORT.format("registry", "CLS_LOSS_REGISTRY") + "print(['OHEMLoss' in registry])",
            [True],
        ),
    ],
)
def test_every_way_in_finds_the_components(code, expected):
    """In a fresh process without Detectron2, whichever look-up is the first."""
    _, output = run_python(
        "-c",
        f"import sys; sys.modules['detectron2'] = None; {code}",
        env={"DETECTRON2_ENV_MODULE": None},
    )
    assert output.strip().splitlines()[-1] == str(expected)


def test_assigners_are_found():
    assert [name for name, _ in ASSIGNER_REGISTRY] == [
        "ATSSAssigner",
        "TaskAlignedAssigner",
        "IoUAssigner",
    ]


def test_losses_have_no_other_lazy_names():
    import focal_det.losses

    with pytest.raises(AttributeError, match="no attribute 'CLS_LOSS_REGISTRI'"):
        _ = focal_det.losses.CLS_LOSS_REGISTRI


def test_failed_import_is_reported_at_each_look_up(tmp_path, monkeypatch):
    """A module that cannot be imported does not leave a half-filled registry."""
    package = tmp_path / "parts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base.py").write_text("class Base: pass\n")
    (package / "good.py").write_text("from parts.base import Base\nclass Good(Base): pass\n")
    (package / "later.py").write_text("raise OSError('a library is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = ComponentRegistry("PARTS", "part", base="parts.base:Base")
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="a library is missing"):
                registry.get("Good")
        (package / "later.py").write_text("")
        assert [name for name, _ in registry] == ["Base", "Good"]
    finally:
        for name in [x for x in sys.modules if x.split(".")[0] == "parts"]:
            del sys.modules[name]


def test_unknown_name_names_the_nearest():
    with pytest.raises(
        KeyError, match=r"Unknown classification loss 'FocaLoss'\. Did you mean 'FocalLoss'"
    ):
        CLS_LOSS_REGISTRY.get("FocaLoss")


def test_unknown_argument_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"Unknown argument of EMAPosCount 'momentun'\. Did you mean 'momentum'"
    ):
        NORMALIZER_REGISTRY.build("EMAPosCount", {"momentun": 0.5})


def test_only_arguments_of_the_constructor_are_passed_on():
    assert NORMALIZER_REGISTRY.build("GlobalPosCount", {}, alpha=0.25, gamma=2.0) is not None
    assert CLS_LOSS_REGISTRY.build("FocalLoss", {}, alpha=0.5, gamma=1.0, delta=3).alpha == 0.5


def test_constructor_arguments_in_order():
    assert get_constructor_args(CLS_LOSS_REGISTRY.get("FocalStarLoss")) == {
        "alpha": 0.25,
        "gamma": 2.0,
        "beta": 1.0,
    }


def test_name_of_a_component_of_ours_is_refused_at_each_look_up():
    """A component of the user's with such a name must not leave the registry half filled."""
    code = """
from torch import nn
from focal_det.registry import CLS_LOSS_REGISTRY
CLS_LOSS_REGISTRY.register(type("GHMCLoss", (nn.Module,), {}))
for name in ("FocalLoss", "VarifocalLoss"):
    try: CLS_LOSS_REGISTRY.get(name)
    except ValueError as error: print(error)
"""
    _, output = run_python("-c", code, env={"DETECTRON2_ENV_MODULE": None})
    message = "classification loss 'GHMCLoss' is one of focal_det's: choose another name"
    assert output.count(message) == 2


def test_second_name_of_a_class_registers_it_once(monkeypatch):
    module = sys.modules["focal_det.losses.hinge"]
    monkeypatch.setattr(module, "AlsoHingeLoss", module.HingeLoss, raising=False)
    registry = ComponentRegistry("AGAIN", "loss", base="focal_det.losses.base:ClsLoss")
    assert sorted(dict(registry)) == LOSSES
