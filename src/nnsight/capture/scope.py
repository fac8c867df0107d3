"""The names that one run of a block sees, and how they go back into the frame.

A block is a closure over cells of ours. A name that it binds gets a cell of its own, filled with
the value the name had where the block was written; so a loop variable keeps its value until the
block runs. A name that it only reads shares the frame's cell where one can be reached, and is a
copy of the value otherwise.
"""

from __future__ import annotations

import builtins
import ctypes
import dis
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from inspect import CO_OPTIMIZED
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from nnsight.capture.block import Block
from nnsight.capture.rewrite import AHEAD, AWAIT, HELPER, SAVE, TRACER, provided

_UNBOUND = object()


running: ContextVar[Scope | None] = ContextVar("nnsight_running_block", default=None)
"""The block that this thread is running, if any: its cells are shared with blocks inside it."""

_awaiting: ContextVar[Callable[[str], Any] | None] = ContextVar("nnsight_awaiting", default=None)
"""How that block reads the names that it shares with its siblings."""


def _stores(code: CodeType, name: str) -> bool:
    """Whether a nested function assigns the outer name (declares it `nonlocal`)."""
    return any(
        i.opname in ("STORE_DEREF", "DELETE_DEREF") and i.argval == name
        for i in dis.get_instructions(code)
    )


def _closures(frame: FrameType, values: Mapping[str, Any]) -> dict[str, tuple[CellType, CodeType]]:
    """Cells of the frame's variables, found in the functions that close over them."""
    found: dict[str, tuple[CellType, CodeType]] = {}
    if not frame.f_code.co_cellvars and not frame.f_code.co_freevars:
        return found
    nested = {id(c) for c in frame.f_code.co_consts if isinstance(c, CodeType)}
    for value in list(values.values()):
        if isinstance(value, FunctionType) and id(value.__code__) in nested and value.__closure__:
            for name, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
                found[name] = (cell, value.__code__)
    return found


def _outside(frame: FrameType, name: str) -> Any:
    """What a class body or a module, which has no `name` of its own, sees under that name."""
    if name in frame.f_code.co_freevars:  # of the function around the class, which is running
        around = frame.f_back
        while around is not None:
            if around.f_code.co_flags & CO_OPTIMIZED and name in around.f_locals:
                return around.f_locals[name]
            around = around.f_back
    return frame.f_globals.get(name, getattr(builtins, name, _UNBOUND))


def save_method(save: Callable[[Any], Any], value: Any) -> Any:
    """`value.save()`, as a block has it: the object's own where there is one to be called so."""
    own = getattr(value.__class__, "save", None) or getattr(value, "__dict__", {}).get("save")
    ours = str(getattr(own, "__module__", "")).startswith("nnsight.")  # mounted on tensors
    if own is None or ours or not _can_be_called(value.save):
        return save(value)
    return value.save()


def _can_be_called(method: Callable[..., Any]) -> bool:
    """Whether `method()` lacks no argument."""
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


class Scope:
    """The variables of one run of a block, taken when its `with` was entered.

    Holds the frame until `release`, to write names back into it.
    """

    def __init__(self, block: Block, frame: FrameType, deferred: bool = False) -> None:
        self.block = block
        self.deferred = deferred  # runs after its `with` was left: keep the values of now
        self.globals = frame.f_globals
        self.frame: FrameType | None = frame
        self.cells = self._cells(block, frame)

    @classmethod
    def of(cls, block: Block, globals: dict[str, Any], cells: dict[str, CellType]) -> Scope:
        """A scope of variables that are at hand already, without a frame."""
        scope = cls.__new__(cls)
        scope.block, scope.deferred, scope.globals = block, True, globals
        scope.frame, scope.cells = None, cells
        return scope

    def _cells(self, block: Block, frame: FrameType) -> dict[str, CellType]:
        names = [n for n in block.code.co_freevars if not n.startswith(HELPER)]
        if not names:
            return {}
        outer = running.get()
        inside = outer is not None and outer.block.code is frame.f_code and not self.deferred
        enclosing = (
            outer.enclosing(set(names) - block.bound) if outer is not None and inside else {}
        )
        values = frame.f_locals
        closures = _closures(frame, values)
        fallback = None if frame.f_code.co_flags & CO_OPTIMIZED else frame
        return {name: self._cell(name, values, enclosing, closures, fallback) for name in names}

    def enclosing(self, names: Iterable[str]) -> dict[str, CellType]:
        """The cells that a block inside this one takes over, with what siblings bind in them."""
        found = {name: self.cells[name] for name in names if name in self.cells}
        await_name = _awaiting.get()
        if await_name is None:
            return found
        for name in self.block.shared.intersection(found):
            with suppress(NameError):  # raised where the name is read, if it is
                found[name] = CellType(await_name(name))
        return found

    def _cell(
        self,
        name: str,
        values: Mapping[str, Any],
        enclosing: Mapping[str, CellType],
        closures: Mapping[str, tuple[CellType, CodeType]],
        fallback: FrameType | None,
    ) -> CellType:
        binds = name in self.block.bound
        if not binds and name in enclosing:
            return enclosing[name]
        if name in closures:
            cell, code = closures[name]
            if (not binds and not self.deferred) or _stores(code, name):
                return cell
        value = values.get(name, _UNBOUND)
        if value is _UNBOUND and fallback is not None:
            value = _outside(fallback, name)
        return CellType() if value is _UNBOUND else CellType(value)

    def function(
        self,
        tracer: Any,
        save: Callable[[Any], Any],
        await_name: Callable[[str], Any] | None = None,
        inside: bool = False,
    ) -> Callable[[], None]:
        """The block as a function without arguments, over this scope's cells.

        Args:
            inside: it is run in the middle of other code of a block.
        """
        helpers = {**provided, SAVE: partial(save_method, save), AWAIT: await_name, TRACER: tracer}
        if AHEAD in self.block.code.co_freevars:
            helpers[AHEAD] = provided[AHEAD](self, inside)
        closure = tuple(
            CellType(helpers[n]) if n in helpers else self.cells[n]
            for n in self.block.code.co_freevars
        )
        body = FunctionType(self.block.code, self.globals, self.block.outer.name, None, closure)

        def run() -> None:
            token, before = running.set(self), _awaiting.set(await_name)
            try:
                body()
            finally:
                running.reset(token)
                _awaiting.reset(before)

        return run

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a name now, or `default` while it is unbound."""
        try:
            return self.cells[name].cell_contents
        except (KeyError, ValueError):
            return default

    def bound(self) -> dict[str, Any]:
        """What the names that the block binds hold now."""
        found = {name: self.get(name, _UNBOUND) for name in self.block.bound if name in self.cells}
        return {name: value for name, value in found.items() if value is not _UNBOUND}

    def refresh(self, names: Iterable[str]) -> None:
        """Take the values of `names` from the frame once more."""
        assert self.frame is not None
        values = self.frame.f_locals
        for name in names:
            if name in self.cells and name in values:
                self.cells[name].cell_contents = values[name]

    def push(self, values: Mapping[str, Any]) -> None:
        """Write names into the frame that the block stands in."""
        if self.frame is not None and values:
            write(self.frame, values)

    def release(self) -> None:
        """Let go of the frame; the values stay."""
        frame, self.frame = self.frame, None
        if frame is not None and _keeps_a_snapshot(frame):
            names = frame.f_locals
            if sys.getrefcount(names) <= 3:  # nobody holds a `locals()` of it
                names.clear()  # or `del x` in the frame would free nothing


def _keeps_a_snapshot(frame: FrameType) -> bool:
    """Whether `f_locals` is a copy that stays with the frame: in functions, before 3.13."""
    return sys.version_info < (3, 13) and bool(frame.f_code.co_flags & CO_OPTIMIZED)


def write(frame: FrameType, values: Mapping[str, Any]) -> None:
    """Bind names in a frame that is still running: locals, cells, class bodies and modules."""
    target = frame.f_locals
    for name, value in values.items():
        target[name] = value
    if _keeps_a_snapshot(frame):  # hand it back to the interpreter's own slots
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
