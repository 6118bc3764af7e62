"""The list of checks, and when each of them runs.

A check is a function of a `Plan` and `Findings`. To add one, write a file in this package, or one
that FOCAL_DET_ENV_MODULE names:

    from focal_det.check import Stage, add_rule, register_check

    SHORT_RUN = add_rule("CHK900", "warning", "short training run", "Raise SOLVER.MAX_ITER.")

    @register_check(Stage.CONFIG)
    def check_length(plan, findings):
        if plan.cfg.SOLVER.MAX_ITER < 100:
            findings.add(SHORT_RUN, f"SOLVER.MAX_ITER {plan.cfg.SOLVER.MAX_ITER}")
"""

import enum
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .findings import Findings
    from .plan import Plan

    Check = Callable[[Plan, Findings], None]


class Stage(enum.IntEnum):
    """When a check runs; checks of one stage must not need each other."""

    CONFIG = 1  # the config by itself
    ANNOTATIONS = 2  # each data set; leaves its images and classes in the plan
    DATA = 3  # image files, and the data sets together
    MODEL = 4  # model and evaluation; skipped after errors, or if only one data set is checked
    TRAINING_SET = 5  # measures of the training set; skipped in the same cases


CHECKS: list[tuple[Stage, "Check"]] = []


def register_check(stage: Stage) -> Callable[["Check"], "Check"]:
    """A decorator that adds a function to the checks of a stage."""

    def register(check: "Check") -> "Check":
        CHECKS.append((stage, check))
        return check

    return register


def load_checks() -> None:
    """Import all modules of this package, which registers their checks."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def get_checks(stage: Stage) -> list["Check"]:
    """The checks of a stage, by module, so that it does not matter which was imported first."""
    # Read at each run: a file of the user's may have added some since.
    checks = [check for other, check in CHECKS if other == stage]
    return sorted(checks, key=lambda check: check.__module__)
