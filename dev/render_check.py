"""Render docs/check.md from the rules of the checks."""

import re
from pathlib import Path

from focal_det.check.rules import FIX_NOTE, FIX_OPTIONS, RULES, TOPICS, Rule
from focal_det.check.stages import load_checks

FILE = Path(__file__).parent.parent / "docs" / "check.md"
INTRODUCTION = """\
# What `focal-det check` finds

```sh
focal-det check --config-file digits/focal_retinanet_tiny.yaml --output output/check.html
```

It reads a config and finds what would stop training or spoil its result: data sets that are missing
or broken, settings that contradict each other, weights that do not fit, anchors that miss the
objects. Each finding names its place, and says what follows from it or what to do.
`focal-det train` runs the same checks before it starts, on fewer images.

[data.md](data.md#check) lists the options. For example, `--ignore CHK133 CHK225` hides findings
about empty training images kept as background (CHK133) and images of a single colour (CHK225).

`--dataset NAME --fix OUT.json` writes a corrected copy of a COCO JSON. It fills in a missing
iscrowd and a missing or invalid area, converts text to numbers (image ids, category ids, boxes),
clips boxes to the image, renumbers annotations whose id is missing, repeated or not a whole number
above 0, and removes repeated and unusable annotations. It writes nothing if it would
remove more than a fifth of the annotations (and more than five), or if the file has a systematic
fault (CHK320 to CHK323), such as boxes in another format.

Exit codes: 0 no errors or warnings, 1 warnings, 2 errors or an invalid command, 3 a bug in
focal_det, 130 interrupted. An error stops training or evaluation, or makes the result wrong. A
warning is about something that can make it worse, such as objects that are left out. A note is
information.

In the tables, a word in braces, such as `{file}`, stands for a value. An id never changes its
meaning.

To add a check, write a file with a rule and a function. Number your rules from CHK900 on:

```python
# my_checks.py
from focal_det.check import Stage, add_rule, register_check

SHORT_RUN = add_rule("CHK900", "warning", "short training run", "Raise SOLVER.MAX_ITER.")


@register_check(Stage.CONFIG)
def check_length(plan, findings):
    if plan.cfg.SOLVER.MAX_ITER < 100:
        findings.add(SHORT_RUN, f"SOLVER.MAX_ITER {plan.cfg.SOLVER.MAX_ITER}")


def setup_environment():
    \"\"\"Required by Detectron2; by then, importing this file has registered the check.\"\"\"
```

Point `FOCAL_DET_ENV_MODULE`, the environment variable for a module of your own, at the file:

```sh
FOCAL_DET_ENV_MODULE=my_checks.py focal-det check --config-file digits/focal_retinanet_tiny.yaml
```
"""


def render_check() -> str:
    """The whole page."""
    # Rules are registered when the file of their check is imported.
    load_checks()
    parts = [INTRODUCTION]
    for prefix, title in TOPICS.items():
        rules = [rule for rule_id, rule in sorted(RULES.items()) if rule_id.startswith(prefix)]
        lines = [f"## {prefix}xx: {title}", ""]
        if any(rule.is_fixable for rule in rules):
            lines += [FIX_NOTE.replace(FIX_OPTIONS, f"`{FIX_OPTIONS}`"), ""]
        lines += ["| id | severity | finding | advice |", "|---|---|---|---|"]
        lines += [render_rule(rule) for rule in rules]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def render_rule(rule: Rule) -> str:
    """One row of a table."""
    severity = rule.severity
    if rule.otherwise:
        severity += f"; {rule.otherwise}"
    # Without a backslash, `|` would end the cell, and `<` would start a tag.
    cells = [
        re.sub(r"([|<])", r"\\\1", cell) for cell in (rule.id, severity, rule.title, rule.advice)
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    FILE.write_text(render_check(), encoding="utf-8")
