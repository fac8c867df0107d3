"""`Worker`: one run of one block, on a thread of its own, in turns with the model."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from nnsight.capture import locks, saving
from nnsight.capture.mentions import codes_of, mentions, named_in
from nnsight.capture.scope import Scope
from nnsight.capture.traceback import users_place
from nnsight.interleave import ambient, errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.location import Location
from nnsight.interleave.request import WAIT, Pin, Request, here
from nnsight.interleave.rows import Rows
from nnsight.interleave.turns import TurnThread, give_back, take_thread

# what leads to an operation, or is the value of one
_OPERATIONS = frozenset({"source", "pattern", "probs"})
PATIENCE = 10_000  # how often a block may catch the news that its run is over


class NeedsTurn(BaseException):
    """A block that is run on the thread of the model has to wait for something."""


class Run(Protocol):
    """What a worker sees of the run that it takes part in."""

    tree: Any
    batch: Batch
    threads: set[int]
    typical: bool
    returned: bool
    result: Location | None

    @property
    def lone(self) -> bool:
        """Whether there is one block only."""
        ...

    @property
    def told(self) -> bool:
        """Whether it is taken down who asks for what, and when."""
        ...

    def missed(self, worker: Any, request: Request) -> BaseException:
        """What it means that the run ended before the answer to `request` came."""
        ...

    def expect(self, worker: Any, request: Request) -> tuple[bool, Any]:
        """Take in what a worker is about to park for: whether the answer is at hand, and it."""
        ...

    def expect_ahead(self, due: Any) -> tuple[bool, Any]:
        """The same for what a worker asks ahead: it does not park."""
        ...


class Worker:
    """One run of one block.

    Args:
        body: the block, as a function without arguments.
        rows: its rows of the batch; None sees the whole batch.
        where: `file, line n` of the block, for messages.
        state: the torch state it starts with; None takes that of the run's caller.
        scope: its variables, if it only asks for values to keep.
        unmet: told, in place of an error, that the run has ended without what the block waits for.
        shows: the function whose code tells what the block asks for, where `body` hides it.
    """

    def __init__(
        self,
        body: Callable[[], Any],
        rows: Rows | None = None,
        where: str = "",
        state: ambient.Ambient | None = None,
        scope: Scope | None = None,
        unmet: Callable[[errors.MissedProviderError], None] | None = None,
        shows: Callable[..., Any] | None = None,
    ) -> None:
        self.unmet = unmet
        self.scope = scope
        self.rows = rows
        self.where = where
        self.state = state
        self.ahead: Any = None  # how it asks ahead, once it has
        self._free: bool | None = None  # nothing keeps it from asking ahead; None: not looked at
        self._codes = codes_of(shows or body)
        # it may ask for operations in modules
        self.sources = any(not _OPERATIONS.isdisjoint(named_in(code)) for code in self._codes)
        self.begun = False
        self.request: Request | None = None  # what it is parked for
        self.pin: Pin | None = None  # the step it is at, in a loop over steps
        self.error: BaseException | None = None  # what it ended with
        self.stopped = False  # it called `tracer.stop()`
        # what to do before it asks or ends; told whether it keeps what it has in hand meanwhile
        self.unfinished: list[Callable[[bool], None]] = []
        self.at_end: list[Callable[[], None]] = []  # what to do when the block has ended well
        self.waited = ""  # for which name of another block it last had to wait
        self.line = 0  # of the block, at which it last waited for something
        self.ended = False
        self.author = object()  # what it saves is saved by
        self._body: Callable[[], Any] | None = body
        self._run: Run | None = None
        self._thread: TurnThread | None = None
        self._answer: Any = None
        self._refusal: BaseException | None = None
        self._refusals = 0
        self._given_up: TurnThread | None = None  # nobody waits for it any more

    def names(self, name: str) -> bool:
        """Whether the code of the block names `name`."""
        return mentions(self._codes, name)

    @property
    def alive(self) -> bool:
        """Whether it has begun and not come to its end."""
        return self._thread is not None

    @property
    def run(self) -> Any:
        """The run that it takes part in; None when it does not run."""
        return self._run

    @property
    def tree(self) -> Any:
        """The model that it runs beside; None when it does not run."""
        return None if self._run is None else self._run.tree

    @property
    def shared(self) -> bool:
        """Whether other blocks have rows in the same forward."""
        return self._run is not None and self._run.batch.split

    @contextmanager
    def observed(self) -> Generator[Any]:
        """Module calls of this block are part of its run meanwhile: other blocks see them."""
        ident, run = threading.get_ident(), self._run
        assert run is not None
        already = ident in run.threads
        run.threads.add(ident)
        run.typical = False
        try:
            yield run
        finally:
            if not already:
                run.threads.discard(ident)

    # Driving it: called with the turn, from the model's side.

    def start(self, run: Run, state: ambient.Ambient) -> None:
        """Run the block until it parks for the first time or ends."""
        if self._body is not None:
            locks.refuse_held(self._body)
        self._run, self.begun = run, True
        tracers = sys.gettrace() or threading.gettrace(), threading.getprofile()
        context = self._context()

        def job() -> None:
            context.run(self._live, state, tracers)

        self._thread = take_thread()
        self._turn(lambda thread: thread.start(job))

    def _context(self) -> contextvars.Context:
        """The caller's context variables, for this block alone."""
        context = contextvars.copy_context()
        context.run(saving.author.set, self.author)
        return context

    def ask_here(self, run: Run) -> None:
        """Run the block on this thread; it may only ask.

        Raises:
            NeedsTurn: it does more.
        """
        body = self._body
        assert body is not None
        self._run = run
        try:
            self._context().run(body)
            self.begun = self.ended = True
            self._body = None
        except BaseException:
            if self.ahead is not None:
                self.ahead.forget()
            raise
        finally:
            self._run = self.ahead = None

    def resume(self, answer: Any = None) -> None:
        """Answer what it is parked for; it runs until it parks again or ends."""
        self.request, self._answer = None, answer
        self._turn(TurnThread.resume)

    def refuse(self, error: BaseException) -> None:
        """Raise `error` where it is parked; it runs until it parks again or ends."""
        self._refusals += 1
        if self._refusals > PATIENCE:  # it would catch this one too: never wake it again
            self.give_up()
            self.error = errors.swallowed(self.where)
            return
        self.request, self._refusal = None, error
        self._turn(TurnThread.resume)

    def give_up(self) -> None:
        """Wait for it no more: its thread rests for ever where it is."""
        thread = self._thread
        if thread is not None:
            thread.abandoned = True
        self._given_up, self.ended, self.request = thread, True, None
        self._thread = self._run = self._answer = None

    def _turn(self, drive: Callable[[TurnThread], None]) -> None:
        thread = self._thread
        if thread is None:
            raise errors.InternalError("a block was given a turn before it started")
        try:
            drive(thread)
        except BaseException as error:  # a Ctrl-C, or what the handler of another signal raised
            if thread.abandoned or thread.severed:
                self.give_up()
            interrupted = isinstance(self.error, KeyboardInterrupt)
            if not interrupted or not isinstance(error, KeyboardInterrupt):
                self.error = None
                raise
        finally:  # not raised again: the block's own KeyboardInterrupt names its line
            if thread.resting and self._thread is not None:
                self.ended = True
                self._thread = self._run = self._answer = self.request = None
                give_back(thread)

    # Running: on the worker's own thread.

    def _live(self, state: ambient.Ambient, tracers: tuple[Any, Any]) -> None:
        body, self._body = self._body, None
        assert body is not None
        here.worker, here.outside_invokes = self, False
        # a thread takes over how many of them torch computes with when that is asked for in it;
        # before, a product is split for all cores, and differs in its last digit
        torch.get_num_threads()
        try:
            _trace(*tracers)
            self._unshielded(state, body)
        except errors.Stop:
            self.stopped = True
        except errors.Cancelled:
            pass
        except BaseException as error:
            self.error = error
        finally:
            _trace(None, None)
            here.worker = self.ahead = None
            self.unfinished.clear()
            self.at_end.clear()
            self.ended = True

    def _unshielded(self, state: ambient.Ambient, body: Callable[[], Any]) -> None:
        """The part of a worker's life that a Ctrl-C may end."""
        thread = self._thread
        assert thread is not None
        try:
            thread.unshield()
            ambient.run_with(state, partial(self._whole, body))
        finally:
            thread.shielded = True

    def _whole(self, body: Callable[[], Any]) -> None:
        try:
            body()
        except Exception:  # what it has asked for before is saved with the error
            if self.ahead is not None:
                self.ahead.wait()
            raise
        self._finish()
        for look in self.at_end:
            look()

    def _finish(self, keeps: bool = False) -> list[Callable[[bool], None]]:
        """Do what was put off while the block had a value in hand, and return it."""
        done = list(self.unfinished)
        while self.unfinished:
            self.unfinished.pop(0)(keeps)
        return done

    @property
    def threadless(self) -> bool:
        """Whether it runs on the thread of the model, and may only ask."""
        return self._run is not None and self._thread is None

    def goes_on(self, named: bool) -> bool:
        """Whether it can go on without a value: its own name is bound to it, or what it holds."""
        run = self._run
        if run is None or self.unfinished or torch.is_inference_mode_enabled():
            return False
        if self._free is None:
            self._free = self.unmet is None and not run.told
        return self._free and (named or run.lone)  # others may hold the same list

    def ask_ahead(self, due: Any) -> tuple[bool, Any]:
        """Ask without parking; whether the answer is at hand, and it."""
        run, thread = self._run, self._thread
        assert run is not None
        if thread is None:  # on the thread of the model
            return run.expect_ahead(due)
        thread.shielded = True
        try:
            answer = run.expect_ahead(due)
        except BaseException:
            thread.shielded = False
            raise
        thread.unshield()
        return answer

    def missed(self, request: Request) -> BaseException:
        """What it means that the run ended before the answer to `request` came."""
        return (
            errors.ended(request.location) if self._run is None else self._run.missed(self, request)
        )

    def ask(self, request: Request) -> Any:
        """Park for `request` and return the answer. Called by the block, with the turn."""
        waits = request.action == WAIT  # for another block: meanwhile the model may stay
        done = self._finish(waits) if self.unfinished else []
        if self._given_up is not None:
            self._given_up.rest_for_ever()
        run, thread = self._run, self._thread
        if self.threadless:
            raise NeedsTurn
        if thread is None or run is None:
            raise errors.ended(request.location)
        thread.shielded = True
        try:
            answer = self._answer_to(request, run, thread)
        except BaseException:
            thread.shielded = False
            raise
        thread.unshield()
        if waits and done:
            self.unfinished = done
        return answer

    def _answer_to(self, request: Request, run: Run, thread: TurnThread) -> Any:
        try:
            answered, answer = run.expect(self, request)
        except Exception:
            self._count_refusal(thread)
            raise
        if answered:
            return answer
        self.request, self.line = request, users_place()[1]
        thread.park()
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal
        answer, self._answer = self._answer, None
        return answer

    def _count_refusal(self, thread: TurnThread) -> None:
        """End a block that catches every error and asks again, for ever."""
        self._refusals += 1
        if self._refusals > PATIENCE:
            self.error = errors.swallowed(self.where)
            self.give_up()
            thread.park()


def _trace(trace: Any, profile: Any) -> None:
    """Let debuggers and coverage see the block: `sys.settrace` is per thread."""
    if trace is not None or sys.gettrace() is not None:
        sys.settrace(trace)
    if profile is not None or sys.getprofile() is not None:
        sys.setprofile(profile)
