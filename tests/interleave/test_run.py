"""A whole run: what it calls, what it returns, and what it leaves."""

from __future__ import annotations

import pytest

from nnsight.interleave.location import RESULT
from nnsight.interleave.request import read, write
from tests.interleave.scripted import Script
from tests.interleave.small import at_work


def test_without_blocks_it_is_the_call():
    script = Script(a=1)
    assert script.run() == "returned"
    assert script.passed == {"a": 1}


def test_it_returns_what_the_blocks_made_of_the_result():
    script = Script(a=1)
    assert script.run(lambda: write(script.result.at(RESULT), "other")) == "other"


def test_blocks_start_before_the_call_and_end_before_it_returns():
    script, log = Script(a=1), []

    def block():
        log.append("block starts")
        read(script.a)
        log.append("block goes on")
        read(script.result.at(RESULT))
        log.append("block ends")

    def call():
        log.append("call")
        return script.forward()

    script.run(block, call=call, enter=lambda run: log.append("enter"))
    assert log == ["enter", "block starts", "call", "block goes on", "block ends"]
    assert at_work() == []


def test_blocks_that_ask_for_nothing_have_run_before_the_call():
    script, log = Script(a=1), []
    script.run(lambda: log.append("block"), call=lambda: log.append("call"))
    assert log == ["block", "call"]


def test_a_run_inside_a_block_of_another():
    outer, inner, got = Script(a=1, b=2), Script(a=10), []

    def block():
        got.append(read(outer.a))
        inner.run(lambda: write(inner.a, read(inner.a) + got[0]))
        got.append(inner.passed["a"])
        got.append(read(outer.b))

    outer.run(block)
    assert got == [1, 11, 2]


def test_an_error_of_a_run_inside_a_block_can_be_caught_there():
    outer, inner, got = Script(a=1, b=2), Script(a=10), []

    def fails():
        read(inner.a)
        raise KeyError("inner")

    def block():
        read(outer.a)
        with pytest.raises(KeyError, match="inner"):
            inner.run(fails)
        got.append(read(outer.b))

    outer.run(block)
    assert got == [2]


def test_a_model_that_makes_another_error_of_a_blocks_does_not_hide_it():
    """As transformers 4.57 does: it takes a `TypeError` for one of its own, and tries again."""
    script = Script(a=1)

    def call():
        try:
            return script.forward()
        except TypeError:
            raise TypeError("there are keywords missing") from None

    def block():
        read(script.a)
        raise TypeError("of the block")

    with pytest.raises(TypeError, match="of the block") as caught:
        script.run(block, call=call)
    assert caught.value.__context__ is None
    assert at_work() == []
