"""A `with` over steps is a loop; every other `with` is left as it is."""

from __future__ import annotations

import ast

import pytest

from nnsight.capture.repeats import as_loop


def looped(text: str) -> str:
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.With)
    return ast.unparse(ast.fix_missing_locations(as_loop(node, "unnamed")))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("with t.iter[:] as n: f(n)", "for n in t.iter[:]:\n    f(n)"),
        ("with t.iter[1:3]: f()", "for unnamed in t.iter[1:3]:\n    f()"),
        ("with t.all() as n: f(n)", "for n in t.all():\n    f(n)"),
        ("with a.b[0].iter[[1, 2]] as n: f(n)", "for n in a.b[0].iter[[1, 2]]:\n    f(n)"),
        (
            "with g() as v, t.iter[:] as n, h(n): f(v)",
            "with g() as v:\n    for n in t.iter[:]:\n        with h(n):\n            f(v)",
        ),
        (
            "with t.iter[:2] as n, t.iter[2:] as k: f(n, k)",
            "for n in t.iter[:2]:\n    for k in t.iter[2:]:\n        f(n, k)",
        ),
    ],
)
def test_steps_become_loops(text: str, wanted: str):
    assert looped(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "with t.invoke(x):\n    f()",
        "with t.iter:\n    f()",
        "with iter[:]:\n    f()",
        "with t.all(1):\n    f()",
        "with all():\n    f()",
        "with t.iter[:].other:\n    f()",
    ],
)
def test_everything_else_stays(text: str):
    assert looped(text) == text


def test_lines_stay_where_they_are():
    (node,) = ast.parse("\n\nwith t.iter[:] as n:\n    f(n)").body
    assert isinstance(node, ast.With)
    loop = as_loop(node, "unnamed")
    assert isinstance(loop, ast.For)
    assert loop.lineno == 3 and loop.body[0].lineno == 4 and loop.iter.lineno == 3
