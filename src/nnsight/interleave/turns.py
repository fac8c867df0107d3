"""Strict turns between two threads of control, and the threads that blocks run on.

One baton goes each way: whoever resumes a thread waits until the thread gives the turn back, so
two never run at once. A blocking read of an eventfd (or a pipe) gives up the GIL before it sleeps,
which costs half of what a lock does; a lock serves where there is neither.

Threads are kept and reused, newest first, as in trio's thread cache. There is no queue, no
polling and no time-out.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

KEPT = 32  # idle threads; more than one run rarely needs


class _EventBaton:
    """A baton over one eventfd (Linux)."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0)

    def give(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def take(self) -> None:
        while True:
            try:
                os.eventfd_read(self._descriptor)
                return
            except InterruptedError:  # a signal; Python repeats other calls by itself (PEP 475)
                pass

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _LockBaton:
    """A baton over a raw lock: locked means that the baton is on its way."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def give(self) -> None:
        with suppress(RuntimeError):  # given twice
            self._lock.release()

    def take(self) -> None:
        self._lock.acquire()

    def close(self) -> None:
        pass


def new_baton() -> _EventBaton | _LockBaton:
    """The cheapest baton that this system offers now."""
    if hasattr(os, "eventfd"):
        try:
            return _EventBaton()
        except OSError:  # out of descriptors: slower, but it works
            pass
    return _LockBaton()


# --- the core on which a turn wakes (Linux) -------------------------------------------------------
#
# The kernel wakes a thread on an idle core if there is one, and an idle core takes 30 to 60 µs to
# wake. Only one side of a turn runs at a time, so each had better wake where the other just ran.
# A thread is kept to that core only while it waits: threads that it starts inherit its cores.

_core: Callable[[], int] | None = None  # tells the core that this thread runs on
if sys.platform == "linux":
    _core = getattr(ctypes.PyDLL(None), "sched_getcpu", None)


def _cores() -> set[int] | None:
    """The cores that this thread may use; None if there is nothing to choose."""
    if _core is None:
        return None
    cores = os.sched_getaffinity(0)
    return cores if len(cores) > 1 else None


def _meet_here(other: int) -> None:
    """Let this thread and the `other` wake on the core where this one runs now."""
    assert _core is not None
    core = {_core()}
    try:
        os.sched_setaffinity(other, core)
        os.sched_setaffinity(0, core)
    except OSError:  # the core has just been taken away from this process
        pass


class TurnThread:
    """A thread that runs one job at a time, in turns with whoever resumes it.

    The batons only wake; `_running` says whose turn it is, so that a baton given twice (a Ctrl-C
    can come between any two steps) wakes nobody wrongly.
    """

    def __init__(self) -> None:
        self._go, self._back = new_baton(), new_baton()
        self._job: Callable[[], None] | None = None
        self._running = False
        self._retired = False
        self._ending = threading.Lock()
        self._cores: set[int] | None = None  # where it runs; None if anywhere
        self._drives: TurnThread | None = None  # the thread that this one is waiting for
        self.resting = True  # it has no job
        self.abandoned = False
        self.severed = False  # its other side is in another process
        self.shielded = True  # it runs code of ours, which no Ctrl-C may end half-way
        self.interrupted = False  # one came meanwhile
        self._thread = threading.Thread(target=self._live, name="nnsight-block", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no more threads
            self.close()
            raise
        except BaseException:  # a Ctrl-C while it starts
            self.retire()
            raise
        _all.add(self)

    def _live(self) -> None:
        _mine.thread = self
        while True:
            self._await_turn()
            if self._retired:
                break
            job, self._job = self._job, None
            if job is not None:
                job()
            del job  # or the last job's values would live as long as the thread
            if self.severed:  # a child of a fork in the block, which has no other thread
                os._exit(0)
            if self.abandoned:
                break
            self.resting = True
            self._give_back_turn()
        _all.discard(self)
        with self._ending:
            self.close()

    def _await_turn(self) -> None:
        while not self._running:
            self._go.take()
        if self._cores is not None:
            try:
                os.sched_setaffinity(0, self._cores)
            except OSError:
                pass

    def _give_back_turn(self) -> None:
        self._running = False
        self._back.give()

    def close(self) -> None:
        """Let go of the batons, which are descriptors of the system."""
        self._go.close()
        self._back.close()

    @property
    def ident(self) -> int:
        """What `threading.get_ident()` says on this thread."""
        return self._thread.ident or 0

    # Called by whoever drives the thread.

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` until it gives the turn back or ends."""
        self._job, self.resting, self.interrupted = job, False, False
        self.resume()

    def resume(self) -> None:
        """Give the turn to the thread and wait until it comes back.

        A Ctrl-C meanwhile (or whatever else the handler of a signal raises) ends a runaway block,
        and is raised here once the turn is back. A second one gives the thread up.

        Raises:
            RuntimeError: the thread was left behind in the process that this one was forked from.
        """
        if self.severed:
            raise _forked()
        cores = self._cores = _cores()
        try:
            self._hand_over()
        finally:  # in no function of ours: a Ctrl-C could come as it is entered
            if cores is not None:
                try:
                    os.sched_setaffinity(0, cores)
                except OSError:
                    pass

    def _hand_over(self) -> None:
        """Give the turn and wait, whatever comes in between."""
        interruption: BaseException | None = None
        given = told = False
        me = _mine.thread
        if me is not None:
            me._drives = self
        self._running = True
        while self._running:
            try:
                if not given:
                    if self._cores is not None:
                        _meet_here(self._thread.native_id or 0)
                    self._go.give()
                    given = True
                if interruption is not None and not told:
                    self._interrupt()
                    told = True
                self._back.take()
            except BaseException as error:
                if interruption is not None:
                    self.abandoned = True
                    raise
                interruption = error
        if me is not None:
            me._drives = None
        if interruption is not None:
            try:
                raise interruption
            finally:
                del interruption

    def _interrupt(self) -> None:
        """Raise a KeyboardInterrupt in the block that is running on this thread, or beyond it."""
        thread = self
        while thread._drives is not None:
            thread = thread._drives
        if thread.shielded:
            thread.interrupted = True
        else:
            ident = ctypes.c_ulong(thread.ident)
            kind = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, kind)

    def retire(self) -> None:
        """Let the thread end; it has no job."""
        with self._ending:  # it closes its batons only when this one has been given
            self._retired = self._running = True
            self._go.give()

    # Called on the thread.

    def unshield(self) -> None:
        """From here on the thread runs the user's code."""
        self.shielded = False
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt

    def park(self) -> None:
        """Give the turn back and wait for the next one."""
        if self.severed:
            raise _forked()
        self._give_back_turn()
        self._await_turn()

    def rest_for_ever(self) -> None:
        """Never come back: nobody waits for this thread any more."""
        while True:
            self._go.take()


class _Mine(threading.local):
    thread: TurnThread | None = None  # the one that this thread is


_mine = _Mine()
_all: set[TurnThread] = set()
_idle: list[TurnThread] = []  # newest last


def take_thread() -> TurnThread:
    """A thread to run one block on: the one that rested last, or a new one."""
    try:
        return _idle.pop()
    except IndexError:
        return TurnThread()


def give_back(thread: TurnThread) -> None:
    """Keep a thread whose job has ended for the next block; let it end if there are enough."""
    if thread.abandoned:
        return
    if len(_idle) < KEPT:
        _idle.append(thread)
    else:
        thread.retire()


# --- forked processes -----------------------------------------------------------------------------


def _forked() -> RuntimeError:
    return RuntimeError(
        "this process was forked while a block ran beside a model: the other half of that run is "
        "in the parent process and cannot go on here. Fork outside the trace, or leave the child "
        "with `os._exit()`; it can open traces of its own."
    )


def _sever() -> None:
    """A forked child has none of its parent's threads, and must not touch their batons."""
    _idle.clear()
    for thread in _all:
        thread.severed = True
        thread.close()
    _all.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sever)
