"""Check of the classes of data sets against each other and against the model."""

from collections.abc import Sequence

from focal_det.messages import describe_unknown, shorten

from .findings import Findings
from .plan import Plan
from .rules import OTHER_CLASSES, OTHER_NUMBER_OF_CLASSES
from .stages import Stage, register_check

_MAX_NAMED = 3  # classes of each data set


@register_check(Stage.DATA)
def check_classes(plan: Plan, findings: Findings) -> None:
    """Compare the classes of the data sets, and if they agree, their number with the model's."""
    known = {x.name: x.classes for x in plan.datasets if x.classes}
    if not known:
        return
    first, *others = known
    classes = known[first]
    different = [name for name in others if known[name] != classes]
    for name in different:
        findings.add(OTHER_CLASSES, _describe_difference(first, classes, name, known[name]))
    key = plan.settings.num_classes_key
    num_classes = plan.settings.num_classes
    # While the data sets disagree, a number that is right for one may be wrong for another.
    if not different and key and len(classes) != num_classes:
        found = f"{len(classes)} classes ({shorten(classes)})"
        place = f"{', '.join(known)}: {found}, {key} is {num_classes}"
        findings.add(OTHER_NUMBER_OF_CLASSES, place, key=key, num_classes=len(classes))


def _describe_difference(
    first: str, classes: Sequence[str], name: str, others: Sequence[str]
) -> str:
    """The first class that differs, and names that only one set has, each with the nearest."""
    index = min(len(classes), len(others))
    for i, (one, other) in enumerate(zip(classes, others)):
        if one != other:
            index = i
            break
    parts = [
        f"class {index} is {_get_class(classes, index)} in {first}, "
        f"{_get_class(others, index)} in {name}"
    ]
    for owner, own, foreign in ((first, classes, others), (name, others, classes)):
        unknown = [x for x in foreign if x not in own][:_MAX_NAMED]
        parts += [describe_unknown(f"class of {owner}", x, own) for x in unknown]
    return ". ".join(x.rstrip(".") for x in parts)


def _get_class(classes: Sequence[str], index: int) -> str:
    return repr(classes[index]) if index < len(classes) else "missing"
