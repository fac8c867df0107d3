"""Locks that the code around a block holds, and that the block takes.

A reentrant lock knows its holder by the thread. A block runs on a thread of its own while the one
that opened the trace waits for it, so a lock that this one holds would never be free. What a block
takes is read off its code, and off that of the functions which it calls by name.
"""

from __future__ import annotations

import dis
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any

from nnsight.capture import errors
from nnsight.capture.libraries import is_installed
from nnsight.capture.mentions import functions_of
from nnsight.capture.percode import PerCode
from nnsight.capture.rewrite import HELPER
from nnsight.capture.traceback import is_hidden

_OWNED = (type(threading.RLock()), threading.Condition)
_DEPTH = 4  # functions that functions call
_BETWEEN = {"CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL", "RESUME"}
_ENTERS = {"BEFORE_WITH", "SETUP_WITH", "COPY"}  # COPY: from 3.14 on
_ENTERING = frozenset(dis.opmap[name] for name in _ENTERS - {"COPY"} if name in dis.opmap) or {
    dis.opmap["COPY"]
}

Chain = tuple[str, ...]  # `self.pool.lock` as its names


@dataclass
class _Uses:
    """What a code takes and calls, as far as its instructions name it."""

    taken: dict[Chain, int] = field(default_factory=dict[Chain, int])  # with the line
    names: set[str] = field(default_factory=set[str])  # some of them globals that are functions
    methods: set[Chain] = field(default_factory=set[Chain])  # `self.method`
    known: bool = False
    library: bool = False


_kept: PerCode[_Uses] = PerCode(_Uses)


def _look(code: CodeType, uses: _Uses) -> None:
    own = code.co_filename
    uses.library = is_installed(own) or is_hidden(own)
    if not uses.library:
        _look_through(code, uses)
    uses.known = True


def _look_through(code: CodeType, uses: _Uses) -> None:
    uses.names.update(code.co_names)
    if _may_take(code):  # going through instructions takes long
        _go_through(code, uses)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            _look_through(inner, uses)


def _may_take(code: CodeType) -> bool:
    """Whether a code may take a lock, or call a method of its own object that does."""
    if "acquire" in code.co_names or "self" in (*code.co_varnames, *code.co_freevars):
        return True
    return not _ENTERING.isdisjoint(code.co_code[::2])


def _go_through(code: CodeType, uses: _Uses) -> None:
    chain: list[str] = []
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        name: str = instruction.opname
        value: Any = instruction.argval
        line = _line(instruction) or line
        if name in _BETWEEN:
            continue
        if name in ("LOAD_ATTR", "LOAD_METHOD") and chain and value != "acquire":
            chain.append(str(value))
            continue
        if chain and (name in _ENTERS or value == "acquire"):
            uses.taken.setdefault(tuple(chain), line)
        elif chain[:1] == ["self"] and len(chain) == 2:
            uses.methods.add(tuple(chain))
        chain = _begun_by(name, value)


def _line(instruction: dis.Instruction) -> int | None:
    """The line that begins with it, if one does; from 3.13 on, the line that it stands on."""
    begun: Any = instruction.starts_line
    return getattr(instruction, "line_number", None) if isinstance(begun, bool) else begun


def _begun_by(name: str, value: Any) -> list[str]:
    """The chain that a load of a variable begins."""
    if not name.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_FAST")):
        return []
    variable = str(value[-1] if name == "LOAD_FAST_LOAD_FAST" else value)  # two in one, from 3.13
    return [] if variable.startswith(HELPER) else [variable]


def refuse_held(body: Callable[..., Any]) -> None:
    """See that a block takes no lock that this thread holds.

    Raises:
        RuntimeError: it does, as far as its code tells.
    """
    for function in functions_of(body):
        _refuse_held(function, None, _DEPTH, set())


def _refuse_held(function: FunctionType, owner: Any, depth: int, seen: set[int]) -> None:
    code = function.__code__
    uses = _kept[code]
    if not uses.known:
        _look(code, uses)
    if uses.library or id(code) in seen:
        return
    seen.add(id(code))
    for chain, line in uses.taken.items():
        lock = _value_of(chain, function, owner)
        if isinstance(lock, _OWNED) and lock._is_owned():  # type: ignore[attr-defined]
            raise errors.held_lock(".".join(chain), code.co_filename, line)
    if not depth:
        return
    for name in uses.names:
        if type(called := function.__globals__.get(name)) is FunctionType:
            _refuse_held(called, None, depth - 1, seen)
    for called in functions_of(function)[1:] if function.__closure__ else ():
        _refuse_held(called, None, depth - 1, seen)
    for chain in uses.methods:
        if type(called := _value_of(chain, function, owner)) is FunctionType:
            _refuse_held(called, _value_of(chain[:1], function, owner), depth - 1, seen)


def _value_of(chain: Chain, function: FunctionType, owner: Any) -> Any:
    """What a chain of names means in a function; None where that cannot be told without running."""
    value = _variable(chain[0], function, owner)
    for name in chain[1:]:
        spaces = [getattr(value, "__dict__", {}), *map(vars, type(value).__mro__)]
        value = next((space[name] for space in spaces if name in space), None)
    return value


def _variable(name: str, function: FunctionType, owner: Any) -> Any:
    code = function.__code__
    if name in code.co_freevars:
        try:
            return (function.__closure__ or ())[code.co_freevars.index(name)].cell_contents
        except ValueError:  # not bound yet
            return None
    if owner is not None and code.co_argcount and name == code.co_varnames[0]:
        return owner
    return None if name in code.co_varnames else function.__globals__.get(name)
