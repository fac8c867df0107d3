"""A pickle as a graph of what it says, without doing any of it.

NDIF's messages are pickles. Here one is only read: no name in it is looked up and nothing is
called. What it would make of names and calls stands in the graph as `Name`, `Made` and `Pid`;
whoever reads the graph decides what these become.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nnsight.remote.errors import PayloadError, damaged

LARGEST_DEPTH = 400
"""How deep things may stand in each other; the graph is read by functions that call themselves."""


@dataclass(frozen=True)
class Name:
    """Something that another process would import."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


@dataclass(frozen=True)
class Pid:
    """Something that is not in the message, by the name that both sides know it by."""

    id: str


@dataclass(eq=False)
class Made:
    """What a call would give, with what would be done to it then."""

    maker: Any  # a name, or something made
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    new: bool = False  # by `maker.__new__(maker, *args)`
    state: Any = None
    has_state: bool = False
    items: list[Any] = field(default_factory=list[Any])
    pairs: list[tuple[Any, Any]] = field(default_factory=list[tuple[Any, Any]])
    later: list[Made] = field(default_factory=list["Made"])  # calls with it as first argument

    def is_of(self, *names: str) -> bool:
        """Whether its maker has one of these names."""
        return isinstance(self.maker, Name) and str(self.maker) in names


_MARK = object()


class _Machine:
    """Reads the steps of a pickle; each is a method."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, arg, _ in pickletools.genops(content):
            name = opcode.name
            if name in _CONSTANTS:
                self.stack.append(arg)
            elif name == "STOP":
                return self.pop()
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"do_{name}", None)
                if step is None:
                    raise damaged(f"it has a step `{name}`, which no message of NDIF 0.8 has")
                step(arg)
        raise damaged("it ends too early")

    def pop(self) -> Any:
        found = self.stack.pop()
        if found is _MARK:
            raise damaged("its parts do not fit together")
        return found

    def top(self, kind: Any) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise damaged("its parts do not fit together")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """What stands above the last mark."""
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise damaged("its parts do not fit together")
        found = self.stack[start + 1 :]
        del self.stack[start:]
        return found

    # --- plain values -----------------------------------------------------------------------------

    def do_NONE(self, arg: Any) -> None:
        self.stack.append(None)

    def do_NEWTRUE(self, arg: Any) -> None:
        self.stack.append(True)

    def do_NEWFALSE(self, arg: Any) -> None:
        self.stack.append(False)

    def do_MARK(self, arg: Any) -> None:
        self.stack.append(_MARK)

    def do_POP(self, arg: Any) -> None:
        found = self.stack.pop()
        # the outcome of a call is not wanted: it was made for what it does to its first argument
        if isinstance(found, Made) and found.args and isinstance(found.args[0], Made):
            found.args[0].later.append(found)

    def do_POP_MARK(self, arg: Any) -> None:
        self.marked()

    def do_DUP(self, arg: Any) -> None:
        self.stack.append(self.stack[-1])

    # --- containers -------------------------------------------------------------------------------

    def do_EMPTY_TUPLE(self, arg: Any) -> None:
        self.stack.append(())

    def do_TUPLE(self, arg: Any) -> None:
        self.stack.append(tuple(self.marked()))

    def do_TUPLE1(self, arg: Any) -> None:
        self._tuple(1)

    def do_TUPLE2(self, arg: Any) -> None:
        self._tuple(2)

    def do_TUPLE3(self, arg: Any) -> None:
        self._tuple(3)

    def _tuple(self, size: int) -> None:
        parts = [self.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(parts)))

    def do_EMPTY_LIST(self, arg: Any) -> None:
        self.stack.append([])

    def do_LIST(self, arg: Any) -> None:
        self.stack.append(self.marked())

    def do_APPEND(self, arg: Any) -> None:
        self._append([self.pop()])

    def do_APPENDS(self, arg: Any) -> None:
        self._append(self.marked())

    def _append(self, items: list[Any]) -> None:
        target = self.top((list, Made))
        (target if isinstance(target, list) else target.items).extend(items)

    def do_EMPTY_DICT(self, arg: Any) -> None:
        self.stack.append({})

    def do_DICT(self, arg: Any) -> None:
        self.stack.append(dict(_pairs(self.marked())))

    def do_SETITEM(self, arg: Any) -> None:
        value = self.pop()
        self._set([(self.pop(), value)])

    def do_SETITEMS(self, arg: Any) -> None:
        self._set(_pairs(self.marked()))

    def _set(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self.top((dict, Made))
        if isinstance(target, dict):
            target.update(pairs)
        else:
            target.pairs.extend(pairs)

    def do_EMPTY_SET(self, arg: Any) -> None:
        self.stack.append(set())

    def do_ADDITEMS(self, arg: Any) -> None:
        items, target = self.marked(), self.top((set, Made))
        if isinstance(target, set):
            target.update(items)
        else:
            target.items.extend(items)

    def do_FROZENSET(self, arg: Any) -> None:
        self.stack.append(frozenset(self.marked()))

    # --- names and calls --------------------------------------------------------------------------

    def do_GLOBAL(self, arg: str) -> None:
        self.stack.append(Name(*arg.split(" ", 1)))

    def do_STACK_GLOBAL(self, arg: Any) -> None:
        qualname, module = self.pop(), self.pop()
        if not isinstance(qualname, str) or not isinstance(module, str):
            raise damaged("a name in it is none")
        self.stack.append(Name(module, qualname))

    def do_BINPERSID(self, arg: Any) -> None:
        name = self.pop()
        if not isinstance(name, str):
            raise damaged("a name in it is none")
        self.stack.append(Pid(name))

    def do_REDUCE(self, arg: Any) -> None:
        args = self.pop()
        self._make(self.pop(), args)

    def do_NEWOBJ(self, arg: Any) -> None:
        args = self.pop()
        self._make(self.pop(), args, new=True)

    def do_NEWOBJ_EX(self, arg: Any) -> None:
        kwargs, args = self.pop(), self.pop()
        self._make(self.pop(), args, kwargs, new=True)

    def _make(self, maker: Any, args: Any, kwargs: Any = None, new: bool = False) -> None:
        if not isinstance(maker, (Name, Made)) or not isinstance(args, tuple):
            raise damaged("it calls what is no function")
        self.stack.append(Made(maker, args, dict(kwargs or {}), new))

    def do_BUILD(self, arg: Any) -> None:
        state, target = self.pop(), self.top(Made)
        target.state, target.has_state = state, True

    # --- what was there already -------------------------------------------------------------------

    def do_MEMOIZE(self, arg: Any) -> None:
        self.memo[len(self.memo)] = self.top(object)

    def do_BINPUT(self, arg: int) -> None:
        self.memo[arg] = self.top(object)

    def do_BINGET(self, arg: int) -> None:
        self.stack.append(self.memo[arg])

    do_LONG_BINPUT, do_LONG_BINGET = do_BINPUT, do_BINGET


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    if len(flat) % 2:
        raise damaged("its parts do not fit together")
    return list(zip(flat[::2], flat[1::2], strict=True))


_CONSTANTS = frozenset(
    "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT SHORT_BINUNICODE BINUNICODE "
    "BINUNICODE8 UNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)


def graph_of(content: bytes) -> Any:
    """What a pickle says.

    Raises:
        PayloadError: it is damaged.
    """
    try:
        found = _Machine().run(content)
        _measure(found)
        return found
    except PayloadError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise damaged(f"{type(error).__name__}: {error}"[:300]) from None


def _measure(graph: Any) -> None:
    """See that a graph is not too deep to be read."""
    seen: set[int] = set()
    level = [graph]
    depth = 0
    while level:
        depth += 1
        if depth > LARGEST_DEPTH * 10:
            raise damaged("its parts stand too deep in each other")
        found: list[Any] = []
        for node in level:
            for part in parts_of(node):
                if isinstance(part, _COMPOUND) and id(part) not in seen:
                    seen.add(id(part))
                    found.append(part)
        level = found


_COMPOUND = (list, tuple, dict, set, frozenset, Made)


def parts_of(node: Any) -> Iterator[Any]:
    """What stands directly in a part of a graph."""
    if isinstance(node, dict):
        yield from node.keys()
        yield from node.values()
    elif isinstance(node, (list, tuple, set, frozenset)):
        yield from node
    elif isinstance(node, Made):
        yield node.maker
        yield node.args
        yield node.kwargs
        yield node.state
        yield node.items
        yield from node.pairs
        yield from node.later
