"""Keep a `with` body from running where it stands.

After `__enter__` returns, the interpreter's next instruction in the caller's frame binds the
`as` target (or drops the value). An exception raised exactly there is already inside the `with`,
so the body is passed over and `__exit__` is called with it. Instructions, not lines, because a
one-line body or one that starts with `try:` has no line of its own to stop at.

Two mechanisms, one function: `skip_at`. Python 3.10 and 3.11 trace opcodes in one frame for the
moment that it takes. From 3.12 on `sys.settrace` would re-instrument every code object of the
process, so `sys.monitoring` watches the one code object instead; it is switched on once per code
object and left on, because switching costs a microsecond per line and a silenced instruction
costs nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any
from weakref import WeakValueDictionary

from nnsight.capture import errors, instructions
from nnsight.capture.errors import WithBlockNotFoundError
from nnsight.capture.frames import frame_at
from nnsight.capture.percode import PerCode


class SkipBody(BaseException):
    """Raised into a caller's frame to pass over a block; `Tracer.__exit__` swallows it."""

    def __init__(self) -> None:
        super().__init__(
            "the body of a trace is passed over here, to run beside the model. If this is reported "
            "as an error, a context manager around the trace did not hand its exit on: its "
            "`__exit__` must return what the trace's own `__exit__` returns"
        )


Undo = Callable[[], None]


# --- Python 3.10 and 3.11 -------------------------------------------------------------------------


def _ignore(*event: Any) -> None:
    """A trace function for everybody else: there must be one for a frame's own to be called."""


def _calls_within(frame: FrameType) -> list[FrameType]:
    """The frames that `frame` has called and that are running, from the outermost to our caller."""
    found: list[FrameType] = []
    current = frame_at(1)
    while current is not frame and current.f_back is not None:
        found.insert(0, current)
        current = current.f_back
    return found


def _is_written_in_c(tracer: Any) -> bool:
    """Whether `tracer` is coverage's own in C: it gets every event, whatever frames ask for."""
    return type(tracer).__module__.partition(".")[0] == "coverage"


def _skip_by_opcode_tracing(frame: FrameType, offset: int) -> Undo:
    """Trace the opcodes of `frame` until it reaches `offset`; whatever traced before comes back.

    A tracer counts calls and returns, so none of either may be kept from it alone. It has seen the
    calls that led here: it gets their returns. The exception that skips the body switches tracing
    off, so it has not seen the calls that lead to `undo`: it is told of them before they return.
    """
    displaced: Any = sys.gettrace()
    local = (frame.f_trace, frame.f_trace_opcodes, frame.f_trace_lines)
    if displaced is None or _is_written_in_c(displaced):
        for call in _calls_within(frame) if displaced is not None else ():
            call.f_trace = displaced
        sys.settrace(_ignore)

    def restore() -> None:
        frame.f_trace, frame.f_trace_opcodes, frame.f_trace_lines = local

    def undo() -> None:
        restore()
        frame_at(0).f_trace_lines = False  # its lines are not those of the calls told of
        if displaced is not None:
            for call in _calls_within(frame):
                call.f_trace = displaced(call, "call", None)
        sys.settrace(displaced)

    def watch(where: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and where.f_lasti == offset:
            raise SkipBody
        awaited = event == "exception" and argument[0] is StopIteration  # the end of an `await`
        if event in ("exception", "return") and not awaited:  # a wrapper failed: no body will come
            restore()
            sys.settrace(displaced)
            own = where.f_trace
            return None if own is None else own(where, event, argument)
        return where.f_trace  # this function; by its name it would hold itself, and the frame

    frame.f_trace, frame.f_trace_opcodes, frame.f_trace_lines = watch, True, False
    return undo


# --- Python 3.12 and newer ------------------------------------------------------------------------


@dataclass
class _Watched:
    """One code object whose instructions are watched."""

    bodies: frozenset[int] = frozenset()  # the offsets at which a `with` body may start
    on: bool = False


@dataclass
class _Armed:
    """A frame whose body is to be skipped. Held by who undoes it, and gone with it."""

    frame: FrameType
    offset: int
    trace: Any = None  # the frame's own trace function: a debugger does not stop at `SkipBody`


class _Monitor:
    """The one `sys.monitoring` tool of this process.

    Nothing is switched off where a body may start, so that two threads, or a site that is entered
    by somebody else's manager first, need no care. Lines are watched beside instructions: where
    another tool (coverage) switches off the event of a line, CPython 3.12 and 3.13 pass over the
    event of the instruction that the line begins with.
    """

    def __init__(self) -> None:
        self.api: Any = sys.monitoring  # pyright: ignore
        self.tool = -1
        self.codes: PerCode[_Watched] = PerCode(_Watched)
        self.armed: WeakValueDictionary[int, _Armed] = WeakValueDictionary()  # by id of the frame

    def _claim(self) -> None:
        """See that a tool id is ours."""
        if self.tool >= 0 and self.api.get_tool(self.tool) == "nnsight":
            return
        for tool in (4, 3, 2, 5, 1, 0):  # 0, 1, 2 and 5 have customary owners: last resort
            if self.api.get_tool(tool) is None:
                self.api.use_tool_id(tool, "nnsight")
                events = self.api.events
                self.api.register_callback(tool, events.INSTRUCTION, self._reached)
                self.api.register_callback(tool, events.LINE, self._reached)
                self.tool, self.codes = tool, PerCode(_Watched)
                return
        raise errors.no_tool()

    def _reached(self, code: CodeType, _: int) -> Any:
        frame = frame_at(1)
        offset, armed = frame.f_lasti, self.armed.get(id(frame))
        if armed is not None and armed.offset == offset:
            armed.trace, frame.f_trace = frame.f_trace, None
            raise SkipBody
        return None if offset in self.codes[code].bodies else self.api.DISABLE

    def _watch(self, code: CodeType) -> None:
        self._claim()
        watched = self.codes.get(code)
        if watched is None:
            watched = self.codes[code] = _Watched(_bodies(code))
        if not watched.on:
            events = self.api.events
            self.api.set_local_events(self.tool, code, events.INSTRUCTION | events.LINE)
            watched.on = True

    def skip_at(self, frame: FrameType, offset: int) -> Undo:
        self._watch(frame.f_code)
        armed = self.armed[id(frame)] = _Armed(frame, offset)

        def undo() -> None:
            if self.armed.get(id(armed.frame)) is armed:
                del self.armed[id(armed.frame)]
            if armed.trace is not None:
                armed.frame.f_trace = armed.trace

        return undo


def _bodies(code: CodeType) -> frozenset[int]:
    starts = [instructions.after(code, entry) for entry in instructions.entries(code)]
    found = set(starts)
    for start in starts:
        with suppress(WithBlockNotFoundError):
            found.add(instructions.past_target(code, start))
    return frozenset(found)


skip_at: Callable[[FrameType, int], Undo] = (
    _Monitor().skip_at if sys.version_info >= (3, 12) else _skip_by_opcode_tracing
)
"""Raise `SkipBody` in `frame` when it reaches the instruction at `offset`.

Returns:
    What puts every trace function back; call it as soon as the body has been skipped.
"""

# --- afterwards -----------------------------------------------------------------------------------

_Exception = ctypes.py_object
_set_handled = ctypes.PYFUNCTYPE(None, _Exception, _Exception, _Exception)(
    ("PyErr_SetExcInfo", ctypes.pythonapi)
)


def forget(skipped: SkipBody) -> None:
    """Let the code that runs from here on handle what was handled before `skipped` was raised.

    `__exit__` is called while the interpreter handles `skipped`. The block is not to see it: not
    in `sys.exc_info()`, not by a bare `raise`, not as the context of its own errors.
    """
    before = skipped.__context__
    handled = () if before is None else (type(before), before, before.__traceback__)
    for thing in handled:
        ctypes.pythonapi.Py_IncRef(_Exception(thing))  # taken over by the call below
    _set_handled(*(map(_Exception, handled) if handled else [_Exception()] * 3))
