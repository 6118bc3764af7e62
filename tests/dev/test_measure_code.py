"""dev/measure_code.py on small sources that have one of each kind."""

import pytest

from tests.conftest import ROOT, load_dev

script = load_dev("measure_code")


def make_sources(**texts):
    """Sources of focal_det by their names, with double underscores for slashes."""
    paths = {name: f"focal_det/{name.replace('__', '/', 1)}.py" for name in texts}
    return [script.Source(paths[name], text) for name, text in texts.items()]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("a, b = 1, 2", 1),
        ("[a, b] = [1, 2]", 1),
        ("c = a, b = 1, 2", 1),
        ("a, b = f()", 0),
        ("a, b = (x for x in y)", 0),
        ("a = 1, 2", 0),
        ("a = b = 1", 0),
        ("for a, b in ((1, 2),): pass", 0),
    ],
)
def test_tuple_assignments_have_values_written_out(line, count):
    assert script.count_nodes(make_sources(a=line)) == (count, 0)


def test_conditional_expressions_are_counted_one_by_one():
    text = "a = 1 if b else 2 if c else 3\nif a:\n    b = 1\nd = [x for x in y if x]\n"
    text += "'1 if 2 else 3'\n"
    assert script.count_nodes(make_sources(a=text)) == (0, 2)


def test_comments_are_for_readers_and_no_strings():
    text = (
        "#!/usr/bin/env python\n"
        '"""A docstring.\n\n# Not a comment.\n"""\n'
        "# Why.\n"
        "a = '# no comment'  # why\n"
        "b = 1  # noqa: E501\n"
        "c = 1  # type: ignore\n"
        "# fmt: off\n"
    )
    assert script.count_comments(make_sources(a=text)[0]) == 2


def test_wide_lines_are_counted_in_strings_too():
    text = f"a = 1\n'''\n{'x' * 101}\n{'x' * 100}\n'''\n"
    assert script.find_wide_lines(make_sources(a=text)) == ["focal_det/a.py:3"]


@pytest.mark.parametrize(("num_lines", "is_long"), [(40, False), (41, True)])
def test_functions_are_measured_with_their_docstrings(num_lines, is_long):
    body = '    """First.\n\n    Last.\n    """\n' + "    a = 1\n" * (num_lines - 5)
    text = f"@cache\ndef f():\n{body}\n\nclass A:\n    async def g(self):\n        pass\n"
    found = script.find_long_functions(make_sources(a=text))
    assert found == (["focal_det/a.py:2 f (41)"] if is_long else [])


def test_programs_are_the_public_files_of_tools():
    names = ("tools__check", "tools___shared", "tools____main__", "tools____init__", "check__run")
    sources = make_sources(**dict.fromkeys(names, "a = 1\n" * 81))
    programs = [x for x in sources if script.is_program(x)]
    assert script.find_long_files(programs, 80) == ["focal_det/tools/check.py (81)"]


def test_functions_of_the_checks_with_a_cfg_are_found():
    text = (
        "def f(a, cfg): pass\n"
        "def g(*, config: Optional[CfgNode] = None): pass\n"
        "def h(a: str, config_file): return cfg\n"
    )
    sources = make_sources(check__a=text, data__a=text)
    assert script.find_cfg_functions(sources) == [
        "focal_det/check/a.py:1 f",
        "focal_det/check/a.py:2 g",
    ]


@pytest.mark.parametrize(
    ("texts", "circles"),
    [
        ({"a__x": "from .y import f", "a__y": "from .z import g", "a__z": "import torch"}, []),
        (
            {"a__x": "from .y import f", "a__y": "def f():\n    from focal_det.a import x"},
            ["focal_det.a.x <-> focal_det.a.y"],
        ),
        (
            {
                "a__x": "import focal_det.b.y",
                "b__y": "from ..a.x import f",
                "c": "from .a import x",
            },
            ["focal_det.a.x <-> focal_det.b.y"],
        ),
        ({"a____init__": "from .x import f", "a__x": "from .y import f", "a__y": ""}, []),
        (
            {"a____init__": "from .x import f", "a__x": "from . import f"},
            ["focal_det.a <-> focal_det.a.x"],
        ),
    ],
)
def test_circles_are_found_through_any_import(texts, circles):
    assert script.find_circles(make_sources(**texts)) == circles


def test_a_measure_outside_its_limits_is_not_fine():
    assert script.Measure("lines", 7).is_fine
    assert (
        script.Measure("most", 3, most=3).is_fine
        and not script.Measure("most", 3.1, most=3).is_fine
    )
    assert script.Measure("least", 4, least=4).is_fine
    assert not script.Measure("least", 3.9, least=4).is_fine


def test_the_checkout_is_measured_and_recorded(tmp_path, capsys):
    file = tmp_path / "code.json"
    code = script.main([str(file)])
    output = capsys.readouterr().out
    measures = script.measure(script.read_sources(ROOT))
    assert code == int(not all(x.is_fine for x in measures))
    assert all(str(x) in output for x in measures)
    record = script.json.loads(file.read_text())
    assert record["figures"] == {x.name: round(x.value, 2) for x in measures}
    assert record["figures"]["lines"] > 5000 and len(record["commit"]) >= 40
