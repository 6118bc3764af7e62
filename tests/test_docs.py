"""docs/losses.md: every registered component with every argument and its default, and nothing else."""

import re

import pytest

from focal_det.losses import CLS_LOSS_REGISTRY
from focal_det.normalizers import NORMALIZER_REGISTRY
from focal_det.registry import get_constructor_args
from tests.conftest import ROOT

DOCS = (ROOT / "docs" / "losses.md").read_text()
ROWS = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", DOCS, re.MULTILINE)}


def test_it_has_every_component_and_no_other():
    assert set(ROWS) == {
        name for registry in (CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY) for name, _ in registry
    }


@pytest.mark.parametrize("name", sorted(dict(CLS_LOSS_REGISTRY)))
def test_it_has_the_arguments_and_defaults_of_a_loss(name):
    greek = {"gamma": "\N{GREEK SMALL LETTER GAMMA}", "alpha": "\N{GREEK SMALL LETTER ALPHA}"}
    for argument, default in get_constructor_args(CLS_LOSS_REGISTRY.get(name)).items():
        if argument == "num_classes":
            continue
        if argument in greek:
            pattern = rf"{greek[argument]} \({default:g}"
        else:
            shown = list(default) if default == () else default
            pattern = rf"`{argument}`[^(`]*\({re.escape(str(shown))}"
        assert re.search(pattern, ROWS[name]), f"{argument} ({default})"
