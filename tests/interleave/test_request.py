"""Asking for a value: where it is allowed, and what comes back."""

from __future__ import annotations

import threading

import pytest

from nnsight.interleave import errors, request
from nnsight.interleave.location import RESULT
from nnsight.interleave.request import here, read, skip, wait, write
from tests.interleave.scripted import Place, Script


@pytest.fixture
def script() -> Script:
    return Script(a=1, b=2)


@pytest.mark.parametrize(
    "ask",
    [
        lambda at: read(at),
        lambda at: write(at, 5),
        lambda at: skip(at.owner, 5),
        lambda at: wait(lambda: False, ValueError),
    ],
    ids=["read", "write", "skip", "wait"],
)
class TestWhereNothingRuns:
    def test_on_a_thread_without_a_block(self, ask, script):
        with pytest.raises(errors.OutsideTraceError, match="outside of interleaving"):
            ask(script.a)

    def test_between_invokes(self, ask, script, monkeypatch):
        monkeypatch.setattr(here, "outside_invokes", True)
        with pytest.raises(errors.OutsideTraceError, match="in none of its invokes"):
            ask(script.a)

    def test_on_a_thread_that_a_block_started(self, ask, script):
        caught: list[BaseException] = []

        def elsewhere():
            try:
                ask(script.b)
            except errors.OutsideTraceError as error:
                caught.append(error)

        def block():
            read(script.a)
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join(5)

        script.run(block)
        assert len(caught) == 1


def test_a_wait_that_is_over_asks_for_nothing():
    wait(lambda: True, ValueError)


def test_current_is_the_worker_of_this_thread(script):
    found = []
    script.run(lambda: found.append(request.current("x")))
    assert found == script.workers
    assert here.worker is None


def test_a_value_is_read_and_written(script):
    got = []

    def block():
        got.append(read(script.a))
        write(script.a, 10)
        got.append(read(script.a))
        write(script.b, 20)

    script.run(block)
    assert got == [1, 10]
    assert script.passed == {"a": 10, "b": 20}


def test_none_is_no_replacement(script):
    def block():
        with pytest.raises(ValueError, match=r"replace `model\.a\.output` with None"):
            write(script.a, None)
        write(script.a, 3)

    script.run(block)
    assert script.passed["a"] == 3


def test_another_tree_is_refused_where_it_is_asked(script):
    foreign = Place("model.a", Script(a=0))

    def block():
        for ask in (
            lambda: read(foreign.at()),
            lambda: write(foreign.at(), 1),
            lambda: skip(foreign, 1),
        ):
            with pytest.raises(errors.OutsideTraceError, match="belongs to another model"):
                ask()
        assert read(script.a) == 1

    script.run(block)
    assert foreign.watched == []


def test_the_result_is_a_location_too(script):
    got = []

    def block():
        got.append(read(script.result.at(RESULT)))
        write(script.result.at(RESULT), "replaced")

    assert script.run(block) == "replaced"
    assert got == ["returned"]
