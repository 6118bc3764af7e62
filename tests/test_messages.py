"""Words of error messages: the nearest name, shortened lists, text that is safe to print."""

import pytest

from focal_det.messages import (
    UnknownNameError,
    describe_error,
    describe_unknown,
    shorten,
    to_command_line,
    to_line,
)


def test_nothing_near_and_nothing_known():
    assert describe_unknown("thing", "x", []) == "Unknown thing 'x'. Known: none."


def test_of_many_known_names_the_nearest_are_shown():
    text = describe_unknown("thing", "red_ball", [f"blue_{i}" for i in range(40)] + ["red_balls"])
    assert "Did you mean 'red_balls'? Known: red_balls, " in text and text.endswith(" and 33 more.")


def test_a_name_in_another_case_gets_its_nearest():
    assert "Did you mean 'RBC'?" in describe_unknown("class", "rbc", ["Platelets", "RBC", "WBC"])
    assert "Did you mean 'relu'?" in describe_unknown("layer", "Relu", ["RELUU", "relu"])


def test_advice_stands_before_the_nearest_name():
    text = describe_unknown("key", "ALPA", ["ALPHA"], advice="It was renamed.")
    assert text == "Unknown key 'ALPA'. It was renamed. Did you mean 'ALPHA'? Known: ALPHA."


def test_unknown_name_is_a_key_and_a_value_error():
    error = UnknownNameError("Unknown loss 'x'.")
    assert isinstance(error, KeyError)
    assert isinstance(error, ValueError)
    assert str(error) == "Unknown loss 'x'."


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ""), ([1], "1"), (["a", "b"], "a, b"), (list(range(10)), "0, 1, 2 and 7 more")],
)
def test_shortened_lists_count_what_they_leave_out(values, expected):
    assert shorten(values, most=3) == expected


def test_control_characters_are_escaped():
    assert to_line("red\x1b[31m\nball\x00") == "red\\x1b[31m ball\\x00"
    assert to_line("naïve\u3000名前") == "naïve\u3000名前"


def test_long_text_loses_its_middle():
    text = to_line("a" * 50 + "b" * 50, most=20)
    assert text == "a" * 10 + "..." + "b" * 7
    assert len(text) == 20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("no such file"), "no such file"),
        (ValueError("wrong"), "wrong"),
        (ValueError(), ""),
        (OSError(2, "missing"), "[Errno 2] missing"),
    ],
)
def test_errors_are_described_without_quotes(error, expected):
    assert describe_error(error) == expected


def test_command_has_the_variables_it_depends_on(monkeypatch):
    for name in ("FOCAL_DET_DATASETS", "FOCAL_DET_ENV_MODULE"):
        monkeypatch.delenv(name, raising=False)
    words = ["focal-det", "train", "OUTPUT_DIR", "my run"]
    assert to_command_line(words) == "focal-det train OUTPUT_DIR 'my run'"
    monkeypatch.setenv("FOCAL_DET_ENV_MODULE", "my_checks.py")
    assert to_command_line(words[:2]) == "FOCAL_DET_ENV_MODULE=my_checks.py focal-det train"
