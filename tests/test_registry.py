"""Components by name: what is unknown is named, with the nearest match."""

import pytest

from focal_det.messages import describe_unknown
from focal_det.registry import CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY, get_constructor_args


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


def test_nothing_near_and_nothing_known():
    assert describe_unknown("thing", "x", []) == "Unknown thing 'x'. Known: none."


def test_of_many_known_names_the_nearest_are_shown():
    text = describe_unknown("thing", "red_ball", [f"blue_{i}" for i in range(40)] + ["red_balls"])
    assert "Did you mean 'red_balls'? Known: red_balls, " in text and text.endswith(" and 33 more.")


def test_a_name_in_another_case_gets_its_nearest():
    assert "Did you mean 'RBC'?" in describe_unknown("class", "rbc", ["Platelets", "RBC", "WBC"])
    assert "Did you mean 'relu'?" in describe_unknown("layer", "Relu", ["RELUU", "relu"])
