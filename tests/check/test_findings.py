"""Findings and rules: ids, what is ignored, what is safe to print."""

import pytest

from focal_det.check import data_rules, rules
from focal_det.check.findings import Findings
from focal_det.messages import shorten


def test_finding_has_id_title_count_places_and_advice():
    findings = Findings()
    for name in "abcd":
        findings.add(data_rules.UNKNOWN_CATEGORY, f"{name}.json", known="1 (cat)")
    (found,) = findings
    assert str(found).startswith(
        "CHK307 annotation of an unknown category (4): a.json; b.json; c.json; and 1 more. "
        "Known categories are 1 (cat)."
    )
    assert found.to_json()["id"] == "CHK307" and found.to_json()["count"] == 4


def test_severity_of_a_use_replaces_that_of_the_rule():
    findings = Findings()
    findings.add(data_rules.NO_CROWD_OR_AREA, "a.json", severity="warning")
    assert findings.exit_code == 1
    findings.add(data_rules.NO_CROWD_OR_AREA, "b.json")
    assert findings.exit_code == 2
    assert [x.places for x in findings] == [["b.json"], ["a.json"]]


def test_ignored_rule_is_left_out_and_others_stay():
    findings = Findings()
    findings.ignore(["CHK311"])
    findings.add(data_rules.BOX_WITHOUT_AREA, "a.json")
    assert list(findings) == [] and findings.exit_code == 0
    findings.add(data_rules.BOX_OUTSIDE, "a.json")
    assert [x.rule.id for x in findings] == ["CHK312"]
    assert not findings.ignored_errors


def test_ignored_error_is_remembered():
    findings = Findings()
    findings.ignore(["CHK310"])
    findings.add(data_rules.BOX_NOT_FINITE, "a.json")
    assert findings.exit_code == 0 and findings.ignored_errors == {"CHK310"}


def test_ignoring_an_unknown_id_names_the_nearest():
    with pytest.raises(ValueError, match=r"check id 'chk312'\. Did you mean 'CHK312'"):
        Findings().ignore(["CHK311", "chk312"])


def test_rule_with_a_taken_id_is_refused():
    with pytest.raises(ValueError, match="CHK310 is taken by the rule 'box that is not four"):
        rules.add_rule("CHK310", "error", "another fault", "")


def test_rule_with_an_unknown_severity_is_refused():
    with pytest.raises(ValueError, match="one of error, warning, note, got 'fatal'"):
        rules.add_rule("CHK999", "fatal", "another fault", "")
    assert "CHK999" not in rules.RULES


def test_rules_are_grouped_by_topic_and_have_advice():
    assert all(x.id[:4] in rules.TOPICS for x in rules.RULES.values())
    assert all(x.advice.endswith(".") for x in rules.RULES.values())
    titles = [x.title for x in rules.RULES.values()]
    assert len({*titles}) == len(titles)


def test_finding_has_no_control_characters():
    findings = Findings()
    place = "a\x1b[31m\0b\x9b\u202e\ud800\nc é 猫"
    findings.add(data_rules.UNKNOWN_CATEGORY, place, known="\x1b[2Jcat")
    (found,) = findings
    assert found.places == [r"a\x1b[31m\x00b\x9b\u202e\ud800 c é 猫"]
    assert "\x1b" not in str(found) and "\\x1b[2Jcat" in found.advice


def test_long_places_and_names_are_shortened():
    findings = Findings()
    findings.add(data_rules.BOX_OUTSIDE, "start " + 20_000 * "x" + " end")
    (found,) = findings
    assert len(str(found)) < 3000 and " end" in str(found) and "start" in str(found)
    assert shorten(["a" * 20_000, "b"]).endswith("aaa, b") and len(shorten(["a" * 20_000])) < 100
