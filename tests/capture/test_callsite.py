"""A call knows whether a `with` enters what it returns, and a reading whether `[0]` follows."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import pytest

import nnsight
from nnsight.capture.callsite import is_entered, is_followed_by_zero


class Manager:
    def __init__(self, entered: bool) -> None:
        self.entered = entered

    def __enter__(self) -> bool:
        return self.entered

    def __exit__(self, *exception: object) -> None:
        pass


SOURCE = """
def call(*args, **kwargs):
    return Manager(is_entered())


class Owner:
    method = staticmethod(call)

    def bound(self, *args, **kwargs):
        return call()
"""
names: dict[str, Any] = {"Manager": Manager, "is_entered": is_entered}
# as if they were this library's: it is the user's call that counts
exec(compile(SOURCE, os.path.join(os.path.dirname(nnsight.__file__), "a call.py"), "exec"), names)
call, Owner = names["call"], names["Owner"]


def hands_on() -> Manager:
    return call()


def test_under_with():
    owner, many = Owner(), (1, 2)
    with call() as entered:
        assert entered
    with owner.method(1, key=2) as entered, owner.bound(*many, key=2) as again:
        assert entered and again
    with call(*many, key=3) as entered:
        assert entered
    with contextlib.nullcontext(), call() as entered, call() as again:
        assert entered and again
    with call(1) if many else call(2) as entered:
        assert entered
    with call(1) if not many else call(2) as entered:
        assert entered
    with hands_on() as entered:
        assert entered
    with (lambda: hands_on())() as entered:
        assert entered
    with (kept := call()) as entered:
        assert kept is not None
    with call():
        pass


@pytest.mark.parametrize("form", range(7))
def test_anywhere_else(form: int):
    forms: list[Any] = [
        lambda: [call()][0],
        lambda: (call(), 1)[0],
        lambda: max([call()], key=id),
        lambda: next(call() for _ in range(1)),
        lambda: max(map(call, [1]), key=id),
        lambda: call() or call(),
        hands_on,
    ]
    manager = forms[form]()
    assert not manager.entered
    with contextlib.ExitStack() as stack:
        assert not stack.enter_context(call())
        found = call()
    assert not found.entered
    assert not eval("call()").entered
    with contextlib.nullcontext(call()) as inner:
        assert not inner.entered


def test_at_the_end_of_a_long_function():
    """Jumps and offsets beyond one byte."""
    body = "\n".join(f"    x{n} = [{n}, {n} if x else None]" for n in range(400))
    source = (
        f"def long(x, call):\n{body}\n"
        "    with call(x0, x399) if x else call() as entered:\n        pass\n"
        "    plain = call()\n    return entered, plain.entered\n"
    )
    names: dict[str, Any] = {}
    exec(source, names)
    assert names["long"](True, call) == (True, False)
    assert names["long"](False, call) == (True, False)


class _Here:
    """Tells of each reading of `output` whether `[0]` follows."""

    def __init__(self, found):
        self.found = found

    @property
    def output(self):
        self.found.append(is_followed_by_zero(sys._getframe(1)))
        return _Anything()


class _Anything:
    def __getitem__(self, index):
        return self

    def __setitem__(self, index, value):
        pass

    def __add__(self, other):
        return self


def test_a_zero_in_brackets_is_told_from_other_uses():
    found: list[bool] = []
    here = _Here(found)
    here.output[0]
    here.output[0][:] = 1
    here.output[0][0] += 1
    here.output[0] = 1
    here.output[0] += 1
    [here.output[0] for _ in "a"]
    assert found == [True] * 6
    found.clear()
    index = 0
    here.output[1], here.output[0:1], here.output[0, 1], here.output[0, ...], here.output[index]
    here.output + 0, (here.output, 0), here.output == 0, here.output[False], here.output[-1]
    assert found == [False] * 10
