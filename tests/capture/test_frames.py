"""Code that stands where we say."""

from __future__ import annotations

import sys

import pytest

from nnsight.capture.frames import linetable


def some(a, b=2, *, c):
    total = a
    for n in range(b):
        total += n * c
    try:
        return total
    finally:
        total = None


@pytest.mark.parametrize(
    "span", [(3, 3, 4, 20), (70, 75, 0, 300), (5000, 5200, 80, 2), (7, 7, 0, 0)]
)
@pytest.mark.parametrize("function", [some, lambda: None, pytest.fixture])
def test_all_of_a_code_stands_at_one_place(function, span):
    code = function.__code__
    moved = code.replace(co_firstlineno=span[0], co_linetable=linetable(len(code.co_code), span))
    lines = list(moved.co_lines())
    assert {line for *_, line in lines} == {span[0]}
    assert lines[-1][1] == len(code.co_code)
    if sys.version_info >= (3, 11):
        assert set(moved.co_positions()) == {span}
        assert len(list(moved.co_positions())) == len(list(code.co_positions()))


def test_moved_code_does_what_it_did():
    span = (5000, 5200, 80, 2)
    code = some.__code__
    moved = code.replace(co_firstlineno=span[0], co_linetable=linetable(len(code.co_code), span))
    function = type(some)(moved, {"range": range}, "some", (2,))
    assert function(1, 4, c=3) == some(1, 4, c=3)
