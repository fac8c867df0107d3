"""One block as it runs: its start, its end, its errors, and one that will not end."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import warnings
import weakref

import pytest

from nnsight.interleave import errors, turns, worker
from nnsight.interleave.request import here, read
from nnsight.interleave.worker import Worker
from tests.interleave.scripted import Script
from tests.interleave.small import at_work


@pytest.fixture
def script() -> Script:
    return Script(a=1, b=2, c=3)


def test_a_block_runs_on_a_thread_of_its_own_and_knows_it(script):
    seen = []
    script.run(lambda: seen.append((threading.get_ident(), here.worker)))
    [(ident, own)] = seen
    assert ident != threading.get_ident()
    assert own is script.workers[0]


def test_its_life(script):
    life = []

    def block():
        own = script.workers[0]
        life.append((own.begun, own.alive, own.ended, own.tree is script))
        read(script.a)
        life.append((own.begun, own.alive, own.ended, own.tree is script))

    script.run(block)
    own = script.workers[0]
    assert life == [(True, True, False, True)] * 2
    assert (own.begun, own.alive, own.ended, own.tree) == (True, False, True, None)


@pytest.mark.parametrize(
    "kind", [ValueError, SystemExit, GeneratorExit, StopIteration, MemoryError]
)
@pytest.mark.parametrize("late", [False, True])
def test_what_a_block_raises_comes_out_of_the_run(script, kind, late):
    def block():
        if late:
            read(script.b)
        raise kind("from the block")

    with pytest.raises(kind, match="from the block") as caught:
        script.run(block)
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "block"
    assert "forward" not in names  # the model is not to blame
    assert at_work() == []


def test_a_turn_before_the_start_is_a_fault_of_ours():
    with pytest.raises(errors.InternalError, match="before it started"):
        Worker(lambda: None).resume()


def test_a_block_that_ends_lets_go_of_everything(script):
    class Thing:
        pass

    def block(thing):
        read(script.a)

    thing = Thing()
    alive = weakref.ref(thing)
    gc.disable()
    try:
        script.run(lambda thing=thing: block(thing))
        del thing
        assert alive() is None
    finally:
        gc.enable()


def test_a_question_after_the_end_is_refused_at_once(script):
    kept = []

    def block():
        own = here.worker
        kept.append(lambda: own.ask(request_for(script.a)))

    def request_for(location):
        from nnsight.interleave.request import READ, Request

        return Request(READ, location)

    script.run(block)
    with pytest.raises(errors.OutOfOrderError, match="the run is over"):
        kept[0]()


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_context_variables_are_those_of_the_caller_and_stay_in_the_block(script):
    seen = []

    def block():
        seen.append(variable.get())
        variable.set("by the block")
        read(script.a)
        seen.append(variable.get())

    token = variable.set("by the caller")
    try:
        script.run(block)
        assert seen == ["by the caller", "by the block"]
        assert variable.get() == "by the caller"
    finally:
        variable.reset(token)


def test_a_trace_function_sees_the_block_and_goes_with_it(script):
    lines, after = [], []

    def trace(frame, event, _):
        if frame.f_code.co_name == "block" and event == "line":
            lines.append(frame.f_lineno)
        return trace

    def block():
        read(script.a)
        read(script.b)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        script.run(block)
    finally:
        sys.settrace(before)
    Script(a=1).run(lambda: after.append(sys.gettrace()))
    assert len(lines) == 2
    if before is None:
        assert after == [None]


# --- a block that will not end --------------------------------------------------------------------


def swallow(script, location):
    def block():
        while True:
            try:
                read(location)
                break
            except BaseException:
                pass

    return block


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 50)


def test_one_that_catches_the_end_of_the_run_for_ever(script, impatient):
    never = Script(z=0).z
    never.owner.tree = script
    with pytest.raises(errors.MissedProviderError, match="caught every error that said so"):
        script.run(swallow(script, never))
    assert all(thread.abandoned for thread in at_work())


def test_one_that_asks_for_ever_for_what_was_passed(script, impatient):
    def block():
        read(script.b)
        swallow(script, script.a)()

    def first():
        read(script.a)

    with pytest.raises(errors.MissedProviderError, match="caught every error that said so"):
        script.run(first, block)
    assert all(thread.abandoned for thread in at_work())


def test_one_that_catches_the_error_of_another_for_ever(script, impatient):
    never = Script(z=0).z
    never.owner.tree = script

    def fails():
        read(script.a)
        raise KeyError("the first error")

    with pytest.raises(KeyError, match="the first error"):
        script.run(swallow(script, never), fails)
    assert all(thread.abandoned for thread in at_work())


def test_the_thread_of_an_abandoned_block_is_not_reused(script, impatient):
    never = Script(z=0).z
    never.owner.tree = script
    with pytest.raises(errors.MissedProviderError):
        script.run(swallow(script, never))
    abandoned = {thread for thread in turns._all if thread.abandoned}
    assert abandoned
    seen = []
    Script(a=1).run(lambda: seen.append(threading.get_ident()))
    assert seen[0] not in {thread.ident for thread in abandoned}
    assert not abandoned & set(turns._idle)


def test_patience_is_for_the_end_only(script, impatient):
    """A block may catch as many errors of its own as it likes."""
    done = []

    def block():
        for _ in range(500):
            with pytest.raises(ValueError, match="own"):
                raise ValueError("own")
        done.append(read(script.a))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        script.run(block)
    assert done == [1]
