"""What the recorded results of several projects must have."""

import re


def assert_three_seeds(results, configs):
    """Every row has three seeds, of its present length and all from one commit.

    Args:
        results: content of a json of `focal-det sweep`.
        configs: of each row, by its name.
    """
    rows = {row["row"]: row["runs"] for row in results["rows"]}
    assert rows.keys() == configs.keys()
    for name, runs in rows.items():
        assert [x["seed"] for x in runs] == [1, 2, 3], name
        (commit,) = {x["commit"] for x in runs}
        assert re.fullmatch(r"[0-9a-f]{40}", commit), name
        assert {x["iterations"] for x in runs} == {configs[name].SOLVER.MAX_ITER}, name
