"""Signals and Ctrl-C at any moment: the block ends, the run ends in order, nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import threading
import time

import pytest
import torch

from nnsight.interleave import turns
from tests.interleave.small import WIDTH, assert_clean, net, run_alone

BATONS = [turns._LockBaton, *([turns._EventBaton] if hasattr(os, "eventfd") else [])]


@pytest.fixture
def fresh_threads(monkeypatch: pytest.MonkeyPatch):
    """No thread of an earlier test is reused."""
    monkeypatch.setattr(turns, "_idle", [])
    yield
    for thread in list(turns._idle):
        thread.retire()


@contextlib.contextmanager
def alarms(handler, every: float):
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_a_signal_whose_handler_returns_changes_nothing():
    model, x = net(), torch.ones(2, WIDTH)
    hits = []
    with alarms(lambda *_: hits.append(1), 0.003):
        for _ in range(30):
            with model.trace(x):
                _ = model.a.output
                spin(0.005)
                value = model.output.save()
            assert torch.equal(value, model._module(x))
    assert len(hits) > 10
    assert_clean(model)


@pytest.mark.parametrize("kind", BATONS)
def test_what_a_handler_raises_ends_the_block_and_the_trace(kind, monkeypatch, fresh_threads):
    monkeypatch.setattr(turns, "new_baton", kind)
    model, x = net(), torch.ones(2, WIDTH)
    ended = []

    def late(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise TimeoutError("too long")

    with alarms(late, 0.05), pytest.raises(TimeoutError, match="too long"):
        with model.trace(x):
            try:
                _ = model.b.output
                spin(30)
            finally:
                ended.append(threading.get_ident())
    assert len(ended) == 1
    assert_clean(model)


@pytest.mark.parametrize("when", ["block", "model", "parked twice"])
def test_ctrl_c_in_this_process(when):
    model, x = net(), torch.ones(2, WIDTH)
    ended = []
    if when != "block":
        model._module.b.register_forward_hook(lambda *_: spin(1.5))
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with model.trace() as tracer:
            with tracer.invoke(x):
                try:
                    _ = model.a.output
                    if when == "block":
                        spin(30)
                    _ = model.c.output
                finally:
                    ended.append(0)
            with tracer.invoke(torch.ones(7, WIDTH)):  # nine rows: no size of the model's
                try:
                    _ = model.c.output
                finally:
                    ended.append(1)
    assert sorted(ended) == [0, 1]
    model._module.b._forward_hooks.clear()
    assert_clean(model)


def test_ctrl_c_names_the_line_of_the_block():
    model, x = net(), torch.ones(2, WIDTH)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        with model.trace(x):
            value = model.a.output
            while True:
                value = value * 1.0
    lines = [entry.lineno for entry in caught.traceback if entry.path.name == "test_interrupts.py"]
    assert lines[-1] + 1 >= test_ctrl_c_names_the_line_of_the_block.__code__.co_firstlineno + 6
    assert_clean(model)


PHASES = {
    "a block that loops": """
        press()
        try:
            with model.trace(x):
                _ = model.a.output
                while True:
                    pass
        except KeyboardInterrupt:
            print("interrupted")
    """,
    "a model that loops, without a signal": """
        def loop(*_):
            while True:
                pass

        model._module.b.register_forward_hook(loop)
        after(0.3, _thread.interrupt_main)
        try:
            with model.trace(x):
                _ = model.b.output
        except KeyboardInterrupt:
            print("interrupted")
        model._module.b._forward_hooks.clear()
    """,
    "a model that loops": """
        model._module.b.register_forward_hook(lambda *_: time.sleep(30))
        press()
        try:
            with model.trace(x):
                _ = model.b.output
        except KeyboardInterrupt:
            print("interrupted")
        model._module.b._forward_hooks.clear()
    """,
    "a block's clean-up": """
        press(); press(1.0)
        try:
            with model.trace(x):
                try:
                    _ = model.a.output
                    while True:
                        pass
                finally:
                    while True:
                        pass
        except KeyboardInterrupt:
            print("interrupted")
        time.sleep(0.2)
        print("left", len(at_work()))
        sys.stdout.flush()
        os._exit(0)
    """,
    "the clean-up of another block": """
        press(); press(1.0)
        try:
            with model.trace() as tracer:
                with tracer.invoke(x):
                    try:
                        _ = model.c.output
                    finally:
                        while True:
                            pass
                with tracer.invoke(x):
                    _ = model.a.output
                    while True:
                        pass
        except KeyboardInterrupt:
            print("interrupted")
    """,
    "a block that sleeps in C, twice": """
        press(); press(0.8)
        start = time.monotonic()
        try:
            with model.trace(x):
                _ = model.a.output
                time.sleep(6)
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - start < 4)
        with model.trace(x):
            value = model.output.save()
        assert torch.equal(value, model._module(x))
        sys.stdout.flush()
        os._exit(0)
    """,
    "a block that catches it": """
        press()
        caught = []
        try:
            with model.trace(x):
                try:
                    _ = model.a.output
                    while True:
                        pass
                except KeyboardInterrupt:
                    caught.append(1)
                _ = model.b.output
                caught.append(2)
        except KeyboardInterrupt:
            print("interrupted")
        assert caught == [1], caught
    """,
    "the block of a trace in a block": """
        other = net(1)
        press()
        try:
            with model.trace(x):
                _ = model.a.output
                with other.trace(x):
                    _ = other.a.output
                    while True:
                        pass
        except KeyboardInterrupt:
            print("interrupted")
        assert_clean(other)
    """,
    "a block that another one drives": """
        press()
        try:
            with model.trace() as tracer:
                with tracer.invoke(x):
                    _ = model.a.output
                    model.b(x, hook=True)
                with tracer.invoke(x):
                    _ = model.b.output
                    while True:
                        pass
        except KeyboardInterrupt:
            print("interrupted")
    """,
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c(phase):
    output = run_alone(textwrap.dedent(PHASES[phase]) + "\nassert_clean(model)\n")
    assert "interrupted" in output
    assert "False" not in output


@pytest.mark.slow
def test_ctrl_c_at_any_moment():
    output = run_alone(
        """
        import random
        rng = random.Random(3)
        interrupted = finished = 0
        expected = model._module(x)
        lock = threading.Lock()
        want = [None]

        def presser():
            while True:
                delay = want[0]
                if delay is None:
                    time.sleep(0.0001)
                    continue
                time.sleep(delay)
                with lock:
                    if want[0] is not None:
                        want[0] = None
                        os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=presser, daemon=True).start()
        turn = 0
        started = time.monotonic()
        while time.monotonic() - started < 4:
            turn += 1
            try:
                try:
                    want[0] = rng.random() * 0.004
                    while want[0] is not None:
                        with model.trace() as tracer:
                            with tracer.invoke(x):
                                _ = model.a.output
                                _ = model.b.input
                                model.b.output[:] *= 1
                            with tracer.invoke(x):
                                model.b.skip(model.a.output * 0)
                                _ = model.c.output
                    finished += 1
                finally:
                    with lock:
                        want[0] = None
            except KeyboardInterrupt:
                interrupted += 1
            try:
                time.sleep(0.001)  # one that came at the very end
            except KeyboardInterrupt:
                pass
            left = [t for t in at_work() if not t.abandoned]
            assert not left, (turn, left)
            with model.trace(x):
                value = model.output.save()
            assert torch.equal(value, expected), turn
        assert_clean(model)
        assert len(turns._all) < 60, len(turns._all)
        print("turns", turn, "interrupted", interrupted)
        assert interrupted > 50
        """,
    )
    assert "interrupted" in output
