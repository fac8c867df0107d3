"""`Tracer`: a `with` whose body is captured on enter and handed to a `Backend` on exit.

The body never runs where it stands. On enter its source is found and compiled and the interpreter
is told to pass it over; on exit a `Backend` decides where it runs. Here, that is at once.

Errors leave through a frame that carries the user's own file and line, so that a traceback shows
the `with` statement and what is inside it, and nothing of this library.
"""

from __future__ import annotations

import ast
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import Token
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nnsight.capture import saving, traceback
from nnsight.capture.block import Block, compile_block, outer_of
from nnsight.capture.entrance import GLOBALS, entrance
from nnsight.capture.errors import NestedTraceError, never_entered, not_skipped
from nnsight.capture.frames import frame_at, span_of
from nnsight.capture.instructions import past_target
from nnsight.capture.names import names_of
from nnsight.capture.percode import PerCode
from nnsight.capture.saving import Saves
from nnsight.capture.scope import Scope
from nnsight.capture.skip import SkipBody, Undo, forget, skip_at
from nnsight.capture.source import Site, find_site, without_contextlib

T = TypeVar("T", bound="Tracer")


class Backend(Protocol):
    """Where a captured block runs: here, in a process of its own, or on a server."""

    def __call__(self, tracer: Any) -> Any: ...


def run_here(tracer: Tracer) -> Any:
    """The default backend: run the captured block in this process, now."""
    return tracer.execute()


class _Place:
    """What is known of one `with` statement: its compiled block, and the code of its entrance."""

    def __init__(self, site: Site, frame: FrameType, wrapped: bool) -> None:
        self.site = site
        self.block: Block = compile_block(site, outer_of(frame), wrapped)
        bound = wrapped and site.node.items[site.item].optional_vars is not None
        self.offset = past_target(frame.f_code, site.offset) if bound else site.offset
        at = site.node.items[site.item].context_expr
        span = (at.lineno, at.end_lineno or at.lineno, at.col_offset, at.end_col_offset or 0)
        self.entrance = entrance(site.filename, frame.f_code.co_name, span)


_compiling = threading.RLock()  # the statements of a site are rewritten in place
_places: PerCode[dict[tuple[int, bool], _Place]] = PerCode(dict)


@dataclass(frozen=True)
class _Found:
    """A trace being entered: by which frame, at which statement."""

    frame: FrameType
    place: _Place
    wrapped: bool  # a user's own manager stands between, and gives the `as` target its value


def _find(caller: FrameType) -> _Found:
    frame, site, wrapped = find_site(caller)
    known = _places[frame.f_code]
    key = (frame.f_lasti, wrapped)
    if key not in known:
        with _compiling:
            known.setdefault(key, _Place(site, frame, wrapped))
    return _Found(frame, known[key], wrapped)


def _find_again(tracer: Tracer | None, caller: FrameType) -> _Found:
    """The same, once for `__enter__` and `__exit__`: a `with` looks up both at one instruction."""
    entering = None if tracer is None else tracer.entering
    if entering is not None and entering[0] is caller and entering[1] == caller.f_lasti:
        return entering[2]
    found = _find(caller)
    if tracer is not None:
        tracer.entering = caller, caller.f_lasti, found
    return found


def _caller() -> FrameType:
    """The nearest frame that is not this library's."""
    frame = frame_at(2)
    while traceback.is_hidden(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    return frame


Outcome = tuple[Any, "BaseException | None"]  # the value of a step, or its error


def _as_it_is(outcome: Outcome) -> Outcome:
    return outcome


def _to_await(outcome: Outcome) -> Outcome:
    value, error = outcome
    return (value if isinstance(value, _Later) else _Awaitable(value)), error


class _Awaitable:
    """What an `async with` awaits: the value, without a wait."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Generator[None, None, Any]:
        value, self._value = self._value, None
        return value
        yield


class _Later:
    """What an `async with` awaits whose block runs elsewhere: its names are bound then."""

    def __init__(self, tracer: Tracer, skipped: bool) -> None:
        self._tracer, self._skipped = tracer, skipped

    def __await__(self) -> Generator[Any, None, bool]:
        tracer = self._tracer
        pending, tracer.pending = tracer.pending, None
        try:
            yield from pending.__await__()
            tracer.hand_back(outermost=True)
        except BaseException as error:
            raise traceback.clean(error)  # noqa: B904
        finally:
            tracer.release()
        return self._skipped


class _Entrance:
    """`__enter__` and `__exit__`, run from a frame at the line of the user's `with`.

    Args:
        step: what to do.
        give: makes of its outcome what the interpreter is given: an awaitable, for `async with`.
            (A variable for it in a frame that stays behind an error would keep that error alive.)
    """

    def __init__(
        self,
        step: Callable[..., Outcome],
        give: Callable[[Outcome], Outcome] = _as_it_is,
    ) -> None:
        self.step, self.give = step, give

    def __get__(self, tracer: Any, owner: type) -> Callable[..., Any]:
        caller, step, give = _caller(), self.step, self.give
        found: _Found | BaseException
        try:
            found = _find_again(tracer, caller)
            code = found.place.entrance
        except Exception as error:  # raised by the step, from the entrance
            found, caller = traceback.clean(error), without_contextlib(caller)
            outer = caller.f_code
            code = entrance(outer.co_filename, outer.co_name, span_of(caller))

        def bound(*arguments: Any) -> Outcome:
            if tracer is None:  # `type(manager).__enter__(manager)`, as ExitStack calls it
                return give(step(arguments[0], found, *arguments[1:]))
            return give(step(tracer, found, *arguments))

        return FunctionType(code, {**GLOBALS, "step": bound})


# --- the tracer ----------------------------------------------------------------------------------


class Tracer:
    """A captured `with` block and where it runs.

    Args:
        backend: called with the tracer when the block has been left; runs it.
    """

    deferred = False  # whether the block runs later than its `with` is left
    # until it is entered; of the class, as one whose `__init__` failed is dropped too
    _offered: tuple[str, str, int] | None = None

    def __init__(self, backend: Backend | None = None) -> None:
        self.backend: Backend = backend or run_here
        self.scope: Scope | None = None  # the block's variables, from enter to the end of the run
        self.inner: list[Scope] = []  # scopes of blocks that this one opened in its own frame
        self.entering: tuple[FrameType, int, _Found] | None = None  # until it is entered
        self.received: dict[str, Any] | None = None  # what a run elsewhere gave, by name
        self.awaited = False  # whether the `with` is an `async with`
        self.pending: Any = None  # what is awaited before its names are bound
        self._undo: Undo | None = None
        self._wrapped = False

    def offered(self: T, what: str) -> T:
        """Itself, for the user to enter; dropped without that, it says that nothing ran.

        Args:
            what: how the user made it, as `model.trace(...)`.
        """
        self._offered = (what, *traceback.users_place())
        return self

    def __del__(self) -> None:
        if self._offered is not None and not sys.is_finalizing():
            what, filename, line = self._offered
            warnings.warn_explicit(never_entered(what), UserWarning, filename, line)

    # What a subclass says.

    def execute(self) -> Any:
        """Run the captured block."""
        raise NotImplementedError

    # What a `with` calls.

    def _begin(self, found: _Found | BaseException) -> tuple[Any, BaseException | None]:
        self.entering = self._offered = None
        if self.scope is not None:
            return None, NestedTraceError("this trace is already open: call `model.trace` again")
        if isinstance(found, BaseException):
            return None, found
        block, self._wrapped = found.place.block, found.wrapped
        try:
            self.scope = Scope(block, found.frame, self.deferred)
            if not block.trivial:
                self._undo = skip_at(found.frame, found.place.offset)
        except BaseException as failure:
            self.release()
            return None, traceback.clean(failure)
        return self, None

    def _end(
        self,
        found: Any = None,
        kind: type[BaseException] | None = None,
        error: Any = None,
        trace: Any = None,
    ) -> tuple[Any, BaseException | None]:
        scope, undo, self._undo = self.scope, self._undo, None
        if undo is not None:
            undo()
        skipped = kind is not None and issubclass(kind, SkipBody)
        if scope is None or (kind is not None and not skipped):  # the body was never reached
            self.release()
            return False, None
        before = error.__context__ if skipped else None
        if skipped:
            forget(error)
            error.__traceback__ = None
        del found, error, trace
        try:
            if undo is not None and not skipped:
                raise not_skipped(scope.block.where)
            self._take_target()
            self._run()
        except BaseException as failure:
            _chain(failure, before)
            return None, traceback.clean(failure)
        finally:
            if self.pending is None:
                self.release()
        return (skipped if self.pending is None else _Later(self, skipped)), None

    def _end_awaited(self, *exception: Any) -> tuple[Any, BaseException | None]:
        self.awaited = True
        return self._end(*exception)

    if TYPE_CHECKING:  # as a user sees them

        def __enter__(self: T) -> T: ...
        def __exit__(self, *exception: object) -> None: ...
        async def __aenter__(self: T) -> T: ...
        async def __aexit__(self, *exception: object) -> None: ...

    else:
        __enter__ = _Entrance(_begin)
        __exit__ = _Entrance(_end)
        __aenter__ = _Entrance(_begin, _to_await)
        __aexit__ = _Entrance(_end_awaited, _to_await)

    def _take_target(self) -> None:
        """See that the names after `as` hold what they would hold in any `with`."""
        assert self.scope is not None and self.scope.frame is not None
        site = self.scope.block.site
        target = site.node.items[site.item].optional_vars
        if self._wrapped and target is not None:  # Python has bound them: the block sees the same
            self.scope.refresh(names_of([target]).mentioned)
        else:
            self.scope.push(self.targets(target))

    def targets(self, target: ast.expr | None) -> dict[str, Any]:
        """The names after `as` that hold something as soon as the `with` is left."""
        return {target.id: self} if isinstance(target, ast.Name) else {}

    def _run(self) -> None:
        """Run the block through the backend and hand its names back."""
        outermost = saving.saves.get() is None
        token: Token[Saves | None] | None = saving.saves.set(Saves()) if outermost else None
        try:
            self._run_and_hand_back(outermost)
        finally:
            if token is not None:
                saving.saves.reset(token)

    def _run_and_hand_back(self, outermost: bool) -> None:
        try:
            pending = self.backend(self)
        except BaseException as error:
            saved = self.results(only_saved=True)
            _attach(error, {n: v for n, v in saved.items() if not isinstance(v, Tracer)})
            raise
        if self.awaited and inspect.iscoroutine(pending):
            self.pending = pending
        else:
            self.hand_back(outermost)

    def run_apart(self, scope: Scope, saves: Saves) -> dict[str, Any]:
        """Run a block whose `with` stands in another process.

        Args:
            scope: its variables.
            saves: takes what it saves.

        Returns:
            What is to be bound there.

        Raises:
            BaseException: what the block raises, with `saved` on it.
        """
        self.scope = scope
        token = saving.saves.set(saves)
        try:
            self._run_and_hand_back(outermost=True)
            return self.results(only_saved=True)
        except BaseException as failure:
            raise traceback.clean(failure)  # noqa: B904
        finally:
            saving.saves.reset(token)
            self.release()

    def results(self, only_saved: bool) -> dict[str, Any]:
        """The names that return to the caller: in an inner block all, otherwise the saved ones."""
        if self.received is not None:  # what ran elsewhere binds no name but those of the block
            known = set[str]() if self.scope is None else self.scope.block.names.mentioned
            return {n: v for n, v in self.received.items() if n in known}
        saves, values = saving.saves.get(), dict[str, Any]()
        scopes = [scope for scope in (self.scope, *self.inner) if scope is not None]
        # the outer block's statements hold those of the inner ones, and their declarations
        written = {n for scope in scopes for n in scope.block.names.declared_nonlocal}
        for scope in scopes:
            keep = scope.bound() if not only_saved or saves is None else saves.of(scope)
            values.update(keep)
            declared = scope.block.target | written
            values.update({n: v for n, v in scope.bound().items() if n in declared})
        return values

    def hand_back(self, outermost: bool) -> None:
        """Bind the results in the caller's frame, and say what looks like a mistake."""
        assert self.scope is not None
        values, saves = self.results(only_saved=outermost), saving.saves.get()
        self.scope.push(values)
        if outermost and saves is not None and self.received is None:
            saves.warn_changed(values)
            names = [] if saves else saving.unsaved([self.scope, *self.inner])
            if names := [name for name in names if name not in values]:
                saving.warn_unsaved(names)

    def release(self) -> None:
        """Let go of the frame, the inputs and the blocks: nothing outlives the run."""
        for scope in filter(None, [self.scope, *self.inner]):
            scope.release()
        self.scope = None
        self.inner = []


def _attach(error: BaseException, values: dict[str, Any]) -> None:
    """Keep what was saved before an error where the caller can find it: `error.saved`."""
    with suppress(Exception):  # an error may refuse attributes
        error.saved = {**getattr(error, "saved", {}), **values}  # type: ignore[attr-defined]


def _chain(error: BaseException, before: BaseException | None) -> None:
    """Chain `error` to what was being handled where its block stands, as Python would."""
    link = before
    while link is not None and link is not error:  # never a ring
        link = link.__context__
    if link is None and error.__context__ is None:
        traceback.set_context(error, before)
