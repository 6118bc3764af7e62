"""What the checks found: which rules are broken, how often, and the first few places."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

from focal_det.messages import UnknownNameError, describe_unknown, to_line

from .rules import RULES, SEVERITIES, Rule

# A fault may be in every image; the first few places show what it is.
_MAX_PLACES = 3


@dataclass
class Finding:
    """One rule that something breaks.

    Attributes:
        rule: the rule.
        severity: that of the rule, or another that the check gave it.
        advice: that of the rule, with its values filled in.
        count: how often.
        places: the first few, with file, ids and values.
    """

    rule: Rule
    severity: str
    advice: str
    count: int = 0
    places: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Id and title of the rule, and how often it is broken."""
        title = f"{self.rule.id} {self.rule.title}"
        if self.count > 1:
            title += f" ({self.count})"
        return title

    @property
    def shown(self) -> list[str]:
        """The places, and how many more there are."""
        # Thousands of places would hide the other findings.
        more = self.count - len(self.places)
        if not more:
            return self.places
        return [*self.places, f"and {more} more"]

    def __str__(self) -> str:
        # A place may be a sentence, which has its full stop already.
        places = "; ".join(self.shown).rstrip(".")
        return f"{self.title}: {places}. {self.advice}".rstrip()

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.rule.id,
            "severity": self.severity,
            "title": self.rule.title,
            "advice": self.advice,
            "count": self.count,
            "places": self.places,
        }


class Findings:
    """Findings by rule and severity, in the order in which they came."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], Finding] = {}
        self._ignored: set[str] = set()
        # Ids of errors that were found but ignored; later checks may fail because of them.
        self.ignored_errors: set[str] = set()

    def ignore(self, rule_ids: Iterable[str]) -> None:
        """Leave out findings by these rules from now on.

        Raises:
            ValueError: an unknown id; names the nearest.
        """
        for rule_id in rule_ids:
            if rule_id not in RULES:
                raise UnknownNameError(describe_unknown("check id", rule_id, RULES))
            self._ignored.add(rule_id)

    def add(self, rule: Rule, place: str, *, severity: Optional[str] = None, **fields: Any) -> None:
        """Count one place that breaks a rule.

        Place and fields may hold text from files: they are made safe to print.

        Args:
            severity: replaces that of the rule.
            fields: values for the advice.
        """
        severity = severity or rule.severity
        if rule.id in self._ignored:
            if severity == "error":
                self.ignored_errors.add(rule.id)
            return
        # The same fault may be an error in one data set and a warning in another.
        finding = self._findings.get((severity, rule.id))
        if finding is None:
            finding = Finding(rule, severity, to_line(rule.advice.format(**fields)))
            self._findings[severity, rule.id] = finding
        finding.count += 1
        if len(finding.places) < _MAX_PLACES:
            finding.places.append(to_line(place))

    def get(self, severity: str) -> list[Finding]:
        """The findings of a severity."""
        return [x for x in self._findings.values() if x.severity == severity]

    def __iter__(self) -> Iterator[Finding]:
        return iter([x for severity in SEVERITIES for x in self.get(severity)])

    @property
    def exit_code(self) -> int:
        """0 without errors and warnings, 1 with warnings, 2 with errors."""
        # Warnings have their own code, so that a script can go on if there is nothing worse.
        if self.get("error"):
            return 2
        return int(bool(self.get("warning")))
