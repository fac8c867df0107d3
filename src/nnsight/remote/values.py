"""Any value as data: identity, aliases and cycles stay as they were. `reading.py` reads it back.

A document has a table of nodes, `[word, ...]` each. A value is `None`, a truth value, a number or a
text as it is, or `[n]`: the node `n`. An object that is met twice is one node. Tensors and arrays
lie in buffers after the document.

Nothing here is a pickle. Which objects can be read back is said by who reads: `Reader.objects`
knows the classes and functions that a document may name. A server takes any that it has, for the
block is code anyway; a client takes none but those that hold data (`data_only.py`).
"""

from __future__ import annotations

import copyreg
import io
import re
import socket
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CellType, MethodType, ModuleType
from typing import Any

import torch

from nnsight.remote.errors import NotSendableError, not_sendable
from nnsight.remote.tensors import COMPRESSED, MemoryWriter, name_of, not_dense, what_is_beside

Value = Any  # None, bool, int, float, str or [n]
Node = list[Any]
_SMALL = range(-(2**63), 2**64)


@dataclass(frozen=True)
class Document:
    """A value as data: the table, where it begins, and the buffers."""

    nodes: list[Node]
    root: Value
    buffers: Sequence[Any] = ()


Special = Callable[[Any, "Writer"], "Node | None"]


@dataclass
class Writer:
    """Turns values into nodes: those that `value` is given at once, and what they hold in `fill`.

    Args:
        special: knows what is written in another way than its kind is; asked before all else.
        eager: whether `value` writes what a value holds as well; nothing may be nested deep then.
    """

    special: Special = lambda value, writer: None
    eager: bool = False
    nodes: list[Node] = field(default_factory=list[Node])
    written: dict[int, Any] = field(default_factory=dict[int, Any])  # the object of each node
    memory: MemoryWriter = field(default_factory=MemoryWriter)
    _known: dict[int, int] = field(default_factory=dict[int, int])
    _to_fill: deque[int] = field(default_factory=deque[int])
    _at: dict[int, tuple[int, str]] = field(default_factory=dict[int, tuple[int, str]])
    _attached: list[memoryview] = field(default_factory=list[memoryview])
    _attributes: set[int] = field(default_factory=set[int])  # nodes of dicts of attributes
    _current: int = -1  # the node that is being filled

    def document(self, root: Any) -> Document:
        """The whole document with `root` at its beginning.

        Raises:
            NotSendableError: something in it cannot be written; the error says what, and where.
        """
        return self.finished(self.value(root))

    def attach(self, content: Any) -> None:
        """Bytes that go along as the next buffer after those of the tensors."""
        self._attached.append(memoryview(content))

    def finished(self, root: Value = None) -> Document:
        """The document of what was written; nothing can be written after it."""
        self.fill()
        return Document(self.nodes, root, [*self.memory.buffers(), *self._attached])

    def fill(self) -> None:
        """Write what the values hold that were written."""
        while self._to_fill:
            self._fill(self._to_fill.popleft())

    def _fill(self, index: int) -> None:
        before, self._current = self._current, index
        self.nodes[index] = self._node(self.written[index])
        self._current = before

    def value(self, value: Any, at: str = "") -> Value:
        """A value, as it stands in a node.

        Args:
            value: any object.
            at: what leads to it from the object around it: `[0]`, `.weight`.
        """
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int and value in _SMALL:
            return value
        if kind is str and (value.isascii() or _encodes(value)):
            return value
        index = self._known.get(id(value))
        if index is None:
            index = self.reserve(at, [])
            self._known[id(value)] = index
            self.written[index] = value  # held, or its id could be taken over
            if self.eager:
                self._fill(index)
            else:
                self._to_fill.append(index)
        return [index]

    def reserve(self, at: str, node: Node) -> int:
        """A new node, which stands `at` a place in the one that is being filled."""
        index = len(self.nodes)
        self.nodes.append(node)
        self._at[index] = self._current, at
        return index

    def values(self, values: Any) -> list[Value]:
        """The members of a sequence."""
        return [self.value(value, f"[{index}]") for index, value in enumerate(values)]

    def pairs(self, items: Any) -> list[list[Value]]:
        """Keys and values of a mapping."""
        step = ".{}" if self._current in self._attributes else "[{!r}]"
        return [[self.value(k), self.value(v, step.format(_short(k)))] for k, v in items]

    def named(self, mapping: Any) -> dict[str, Value]:
        """A mapping from names."""
        return {name: self.value(value, name) for name, value in mapping.items()}

    def _node(self, value: Any) -> Node:
        node = self.special(value, self)
        if node is not None:
            return node
        write = _PLAIN.get(type(value))
        if write is not None:
            return write(value, self)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value).__module__ == "numpy":
            return self.of_numpy(value)
        if isinstance(value, (MethodType, BuiltinFunctionType)):
            return self._method(value)
        return self.reduced(value)

    def _tensor(self, value: torch.Tensor) -> Node:
        if value.layout is torch.sparse_coo:
            value = value.detach().coalesce()
            return ["coo", *self.values((value.indices(), value.values(), list(value.shape)))]
        if value.layout in COMPRESSED:
            plain = value.detach()
            parts = [getattr(plain, name)() for name in COMPRESSED[value.layout]]
            return ["compressed", *self.values((*parts, plain.values(), plain.shape, value.layout))]
        if instead := not_dense(value):
            raise self.refused(value, "it is no dense tensor", f"Send `{instead}` of it.")
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            plain = value.detach().as_subclass(torch.Tensor)
            return ["tensor of a class", *self.values((type(value), plain, value.requires_grad))]
        node = self.memory.tensor(value)
        beside = what_is_beside(value)
        if not beside:
            return node
        inner = self.reserve("", node)
        return ["tensor and more", [inner], {n: self.value(v, f".{n}") for n, v in beside.items()}]

    def of_numpy(self, value: Any) -> Node:
        """An array, a number or a dtype of numpy."""
        import numpy as np

        if isinstance(value, np.dtype):
            return ["dtype of numpy", self.value(np.lib.format.dtype_to_descr(value))]
        if type(value) is np.ndarray and value.dtype.hasobject:
            if value.dtype != np.dtype(object):
                raise self.refused(value, "it has objects among its fields", "Send a list of them.")
            return ["array of objects", list(value.shape), *self.values(value.ravel().tolist())]
        if type(value) is np.ndarray or isinstance(value, np.generic):
            descr = self.value(np.lib.format.dtype_to_descr(value.dtype))
            scalar = isinstance(value, np.generic)
            return self.memory.array(np.asarray(value), ["array", descr, scalar])
        return self.reduced(value)

    def _method(self, value: Any) -> Node:
        owner = value.__self__
        if owner is None or isinstance(owner, ModuleType):
            return self.name(value)
        return ["method", self.value(owner), value.__name__]

    def name(self, value: Any) -> Node:
        """An object as the name that a module has for it.

        Raises:
            NotSendableError: none leads to it.
        """
        module, qualname = getattr(value, "__module__", None), value.__qualname__
        if (
            isinstance(value, type) and value in _TYPES
        ):  # `NoneType`, which says that it is in `builtins`
            return ["name", "types", _TYPES[value]]
        if module is None and isinstance(value, BuiltinFunctionType):
            module = getattr(value.__self__, "__name__", None)
        if getattr(sys.modules.get(module or ""), value.__name__, None) is value:
            return ["name", module, value.__name__]  # `torch.relu`, which names its class as well
        if module is None or "<locals>" in qualname:
            raise self.refused(value, "no name leads to it")
        return ["name", module, qualname]

    def reduced(self, value: Any) -> Node:
        """An object as the call that makes it again, and what it holds.

        Raises:
            NotSendableError: it is of a kind that nothing can make again.
        """
        kind = type(value)
        reducer = copyreg.dispatch_table.get(kind)
        if isinstance(value, _NEVER):  # or what it holds would be refused, or nobody could read it
            raise self.refused(value, *_why(value))
        try:
            made = value.__reduce_ex__(4) if reducer is None else reducer(value)
        except Exception:
            raise self.refused(value, *_why(value)) from None
        if isinstance(made, str):
            return ["name", getattr(value, "__module__", None) or kind.__module__, made]
        function, args, *more = made
        state, items, pairs, setter = [*more, None, None, None, None][:4]
        if setter is not None:
            raise self.refused(value, "it sets its state by a function of its own")
        if isinstance(value, BaseException) and kind.__reduce__ is BaseException.__reduce__:
            function, args = copyreg.__newobj__, (kind, *args)  # type: ignore[attr-defined]
        return [
            "object",
            self.value(function),
            self.values(args),
            self._state(state),
            [self.value(item, f"[{index}]") for index, item in enumerate(items or ())],
            self.pairs(pairs or ()),
        ]

    def _state(self, state: Any) -> Value:
        """What an object holds: attributes, for errors."""
        found = self.value(state)
        if type(state) is dict:
            self._attributes.add(found[0])
        return found

    def refused(self, value: Any, why: str, way_out: str = "") -> NotSendableError:
        """That `value` cannot be sent, where it was met, and why."""
        return not_sendable(_described(value), self.place(), why, way_out)

    def place(self) -> str:
        """What leads to the value at hand: `config["sae"].weight`."""
        return self.place_of(self._current)

    def place_of(self, index: int) -> str:
        """What leads to the value of a node."""
        steps: list[str] = []
        while index >= 0:
            index, step = self._at[index]
            steps.append(step)
        path = _OF_A_MODULE.sub(r".\1", "".join(reversed(steps)).removeprefix(": "))
        return path if len(path) <= 80 else f"{path[:40]}...{path[-37:]}"


_OF_A_MODULE = re.compile(r"\._(?:parameters|buffers|modules)\['(\w+)'\]")
"""How an `nn.Module` holds what its user writes as `.weight`."""


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair
        return False
    return True


def _described(value: Any) -> str:
    if isinstance(value, (type, types.FunctionType, ModuleType)):
        word = {type: "class", ModuleType: "module"}.get(type(value), "function")
        word = "class" if isinstance(value, type) else word
        return f"the {word} `{value.__name__}`"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} `{name}`"


def _short(key: Any) -> Any:
    """A key of a mapping as far as an error shows it."""
    return key if type(key) in (str, int, float, bool) else ...


def _why(value: Any) -> tuple[str, str]:
    """Why Python cannot make `value` again, and what to send in its place."""
    for kinds, why, way_out in _TIED:
        if isinstance(value, kinds):
            return why, way_out
    return "nothing says how to make it again", "Send the values in it that the block needs."


_TIED: Sequence[tuple[Any, str, str]] = (
    (
        (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType),
        "it is half run, here",
        "Send a list of what it gives.",
    ),
    (
        (torch.UntypedStorage, torch.TypedStorage),
        "it is memory, of which nothing says what lies in it",
        "Send a tensor that lies in it.",
    ),
    (io.IOBase, "it is open in this process", "Send what is in it, `.read()`."),
    (
        (type(threading.Lock()), type(threading.RLock()), threading.Thread, socket.socket),
        "it belongs to this process",
        "Make it in the block, or leave it out.",
    ),
)

_NEVER = (threading.Thread, torch.UntypedStorage, torch.TypedStorage)
_TYPES = {
    v: n for n, v in vars(types).items() if isinstance(v, type) and v.__module__ == "builtins"
}


def _cell(cell: CellType, writer: Writer) -> Node:
    try:
        return ["cell", writer.value(cell.cell_contents)]
    except ValueError:  # not bound yet
        return ["cell"]


_PLAIN: dict[type, Callable[[Any, Writer], Node]] = {
    int: lambda v, w: ["int", hex(v)],
    str: lambda v, w: ["text", v.encode("utf-8", "surrogatepass")],
    complex: lambda v, w: ["complex", v.real, v.imag],
    bytes: lambda v, w: ["bytes", v],
    bytearray: lambda v, w: ["bytearray", bytes(v)],
    list: lambda v, w: ["list", *w.values(v)],
    tuple: lambda v, w: ["tuple", *w.values(v)],
    set: lambda v, w: ["set", *w.values(v)],
    frozenset: lambda v, w: ["frozenset", *w.values(v)],
    dict: lambda v, w: ["dict", *w.pairs(v.items())],
    slice: lambda v, w: ["slice", *w.values((v.start, v.stop, v.step))],
    types.MappingProxyType: lambda v, w: ["proxy", w.value(dict(v))],
    range: lambda v, w: ["range", *w.values((v.start, v.stop, v.step))],
    type(...): lambda v, w: ["ellipsis"],
    type(NotImplemented): lambda v, w: ["not implemented"],
    CellType: _cell,
    torch.dtype: lambda v, w: ["dtype", name_of(v)],
    torch.device: lambda v, w: ["device", v.type, v.index],
    torch.Size: lambda v, w: ["size", *v],
    torch.layout: lambda v, w: ["of torch", str(v).removeprefix("torch.")],
    torch.memory_format: lambda v, w: ["of torch", str(v).removeprefix("torch.")],
}
