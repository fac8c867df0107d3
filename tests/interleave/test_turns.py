"""Batons, turns between two threads, and the reuse of threads."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest
import torch

from nnsight.interleave import turns
from nnsight.interleave.turns import TurnThread, give_back, take_thread
from tests.interleave.small import WIDTH, assert_clean, net

BATONS = [turns._LockBaton, *([turns._EventBaton] if hasattr(os, "eventfd") else [])]


@pytest.fixture
def fresh_threads(monkeypatch: pytest.MonkeyPatch):
    """No thread of an earlier test is reused."""
    monkeypatch.setattr(turns, "_idle", [])
    yield
    for thread in list(turns._idle):
        thread.retire()


def thread_of(job) -> TurnThread:
    thread = take_thread()
    thread.start(job)
    return thread


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors")


# --- batons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BATONS)
class TestBaton:
    def test_given_before_it_is_taken(self, kind):
        baton = kind()
        baton.give()
        baton.take()
        baton.close()

    def test_wakes_who_waits_for_it(self, kind):
        baton, woken = kind(), []
        thread = threading.Thread(target=lambda: woken.append(baton.take()), daemon=True)
        thread.start()
        time.sleep(0.02)
        assert not woken
        baton.give()
        thread.join(5)
        assert woken == [None]
        baton.close()

    def test_given_twice_is_taken_once(self, kind):
        baton, woken = kind(), []
        baton.give()
        baton.give()
        baton.take()
        thread = threading.Thread(target=lambda: woken.append(baton.take()), daemon=True)
        thread.start()
        time.sleep(0.02)
        assert not woken
        baton.give()
        thread.join(5)
        assert woken
        baton.close()

    def test_closed_twice(self, kind):
        baton = kind()
        baton.close()
        taken = os.open(os.devnull, os.O_RDONLY)  # may get the number that became free
        baton.close()
        os.fstat(taken)
        os.close(taken)

    def test_a_whole_trace_runs_on_it(self, kind, monkeypatch, fresh_threads):
        monkeypatch.setattr(turns, "new_baton", kind)
        model, x = net(), torch.ones(1, WIDTH)
        with model.trace() as tracer:
            with tracer.invoke(x):
                first = model.b.output.clone().save()
                model.b.output[:] = 0
            with tracer.invoke(x):
                second = model.output.save()
        assert torch.allclose(second, model._module(x), atol=1e-6)
        assert first.shape == (1, WIDTH)
        assert_clean(model)


def test_a_lock_serves_where_descriptors_are_used_up(monkeypatch):
    def none_left(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", none_left, raising=False)
    assert isinstance(turns.new_baton(), turns._LockBaton)


# --- turns ----------------------------------------------------------------------------------------


def test_turns_are_strict():
    log: list[str] = []

    def job():
        for step in range(3):
            log.append(f"block {step}")
            thread.park()
        log.append("block ends")

    thread = take_thread()
    thread.start(job)
    for step in range(3):
        log.append(f"model {step}")
        assert not thread.resting
        thread.resume()
    assert thread.resting
    give_back(thread)
    expected = [f"{who} {step}" for step in range(3) for who in ("block", "model")]
    assert log == [*expected, "block ends"]


def test_two_never_run_at_once():
    running, most = 0, 0

    def work():
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.0005)
        running -= 1

    def job():
        for _ in range(20):
            work()
            thread.park()

    thread = take_thread()
    thread.start(job)
    while not thread.resting:
        work()
        thread.resume()
    give_back(thread)
    assert most == 1


def test_the_thread_that_rested_last_is_taken_first(fresh_threads):
    one, two = thread_of(lambda: None), thread_of(lambda: None)
    give_back(one)
    give_back(two)
    assert take_thread() is two
    assert take_thread() is one
    for thread in (one, two):
        give_back(thread)


def test_traces_reuse_one_thread(fresh_threads):
    model, x = net(), torch.ones(1, WIDTH)
    used = set()
    for _ in range(5):
        with model.trace(x):
            used.add(threading.get_ident())
            _ = model.b.output
    assert len(used) == 1
    assert len(turns._idle) == 1


@needs_proc
def test_no_more_threads_are_kept_than_agreed(fresh_threads):
    model, x = net(), torch.ones(1, WIDTH)
    before, threads, many = descriptors(), threading.active_count(), turns.KEPT + 9
    done = []
    with model.trace() as tracer:
        for _ in range(many):
            with tracer.invoke(x):
                done.append(model.b.output.shape)
    assert done == [(1, WIDTH)] * many
    assert len(turns._idle) == turns.KEPT
    deadline = time.monotonic() + 5
    while threading.active_count() > threads + turns.KEPT and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads + turns.KEPT
    assert descriptors() <= before + 2 * turns.KEPT


@needs_proc
def test_a_retired_thread_ends_and_closes_what_it_had():
    before = descriptors()
    thread = TurnThread()
    thread.start(lambda: None)
    thread.retire()
    thread._thread.join(5)
    assert not thread._thread.is_alive()
    assert descriptors() <= before  # threads that earlier tests retired may end meanwhile
    assert getattr(thread._go, "_descriptor", -1) == getattr(thread._back, "_descriptor", -1) == -1
    assert thread not in turns._all


def test_a_thread_that_cannot_start_leaves_nothing(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    before = descriptors() if os.path.isdir("/proc/self/fd") else 0
    count = len(turns._all)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            TurnThread()
    gc.collect()
    assert len(turns._all) == count
    assert (descriptors() if os.path.isdir("/proc/self/fd") else 0) <= before


def test_a_resting_thread_holds_nothing_of_its_last_job():
    class Thing:
        pass

    thing = Thing()
    seen = weakref.ref(thing)
    thread = thread_of(lambda thing=thing: None)
    del thing
    assert seen() is None
    give_back(thread)


def test_a_trace_in_another_thread_than_the_main_one():
    model, x = net(), torch.ones(2, WIDTH)
    found = []

    def work():
        with model.trace(x):
            value = model.b.output.clone().save()
        found.append(value)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    module = model._module
    assert torch.equal(found[0], module.b(torch.tanh(module.a(x))))
