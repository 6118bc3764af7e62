"""What the recorded results of several projects must have."""

import re


def assert_three_seeds(results, configs):
    """Every row has three seeds, of its present length and from one commit.

    Args:
        results: content of a json of `focal-det sweep`.
        configs: of each row, by its name.
    """
    rows = {row["row"]: row["runs"] for row in results["rows"]}
    assert rows.keys() == configs.keys()
    runs = [run for of_row in rows.values() for run in of_row]
    assert all([x["seed"] for x in of_row] == [1, 2, 3] for of_row in rows.values())
    (commit,) = {run["commit"] for run in runs}
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    for name, of_row in rows.items():
        assert {x["iterations"] for x in of_row} == {configs[name].SOLVER.MAX_ITER}
