"""What a check found: kinds with a severity and advice, how often, and the first few places."""

from dataclasses import dataclass, field
from typing import Any

from focal_det.messages import to_line

SEVERITIES = ("error", "warning", "note")
_MAX_PLACES = 3


@dataclass
class Finding:
    """One kind of finding.

    Attributes:
        severity: "error": training or evaluation stops or goes wrong; "warning": something is lost; "note": good to know.
        what: what there is, such as "boxes without area".
        advice: what to do.
        count: how often.
        places: the first few, with file, ids and values.
    """

    severity: str
    what: str
    advice: str
    count: int = 0
    places: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What there is, and how often."""
        return f"{self.what} ({self.count})" if self.count > 1 else self.what

    @property
    def shown(self) -> list[str]:
        """The places, and how many more there are."""
        more = self.count - len(self.places)
        return [*self.places, f"and {more} more"] if more else self.places

    def __str__(self) -> str:
        return f"{self.title}: {'; '.join(self.shown).rstrip('.')}. {self.advice}".rstrip()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self)}


class Findings:
    """Findings by kind, in the order in which they came."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, str], Finding] = {}

    def add(self, severity: str, what: str, advice: str, place: str) -> None:
        """Count one place of a kind, which severity and text name.

        Place and advice may hold names from files: what is kept of them is safe to print.
        """
        advice = to_line(advice)
        finding = self._by_kind.setdefault((severity, what), Finding(severity, what, advice))
        finding.count += 1
        if len(finding.places) < _MAX_PLACES:
            finding.places.append(to_line(place))

    def get(self, severity: str) -> list[Finding]:
        return [x for x in self._by_kind.values() if x.severity == severity]

    def __iter__(self):
        return iter([x for severity in SEVERITIES for x in self.get(severity)])

    @property
    def exit_code(self) -> int:
        """0 without errors and warnings, 1 with warnings, 2 with errors."""
        return 2 if self.get("error") else int(bool(self.get("warning")))
