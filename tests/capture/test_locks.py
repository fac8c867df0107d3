"""A lock that the code around a block holds is refused to the block: it would wait for ever."""

from __future__ import annotations

import threading

import pytest

from nnsight.capture.locks import refuse_held

LOCK = threading.RLock()


def inner():
    with LOCK:
        return 1


def outer():
    return inner() + 1


class Server:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition()

    def log(self) -> None:
        with self.lock:
            pass

    def wait(self) -> None:
        with self.changed:
            pass

    def take(self) -> None:
        self.lock.acquire()
        self.lock.release()


def by_its_name():
    with LOCK:
        pass


def by_a_call():
    if LOCK.acquire():
        LOCK.release()


def in_a_comprehension():
    return [inner() for _ in range(2)]


def in_a_function_of_its_own():
    def within():
        with LOCK:
            pass

    within()


@pytest.mark.parametrize(
    "body", [by_its_name, by_a_call, in_a_comprehension, in_a_function_of_its_own, outer]
)
def test_what_the_code_takes(body):
    refuse_held(body)
    with LOCK:
        with pytest.raises(RuntimeError, match=r"test_locks\.py, line \d+: .* the lock `LOCK`"):
            refuse_held(body)
    refuse_held(body)


@pytest.mark.parametrize("name", ["log", "wait", "take"])
def test_locks_of_an_object(name: str):
    self = Server()

    def block():
        self.log(), self.wait(), self.take()

    refuse_held(block)
    held = "changed" if name == "wait" else "lock"
    with getattr(self, held), pytest.raises(RuntimeError, match=rf"the lock `self\.{held}`"):
        refuse_held(block)


def test_the_line_is_that_of_the_lock():
    with LOCK, pytest.raises(RuntimeError, match=f"line {inner.__code__.co_firstlineno + 1}:"):
        refuse_held(outer)


def test_a_lock_of_another_thread_can_be_waited_for():
    taken, done = threading.Event(), threading.Event()

    def hold():
        with LOCK:
            taken.set()
            done.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(5)
    refuse_held(outer)
    done.set()
    thread.join()


def test_what_is_not_taken_is_not_looked_at():
    def names_it():
        return LOCK

    class Odd:
        @property
        def lock(self):
            raise AssertionError("nothing of the user's runs here")

    self = Odd()

    def by_a_property():
        with self.lock:
            pass

    with LOCK:
        refuse_held(names_it)
        refuse_held(by_a_property)
        refuse_held(len)
