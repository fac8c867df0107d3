"""Any value as data, and back: identity, aliases and cycles stay as they were.

A document has a table of nodes, `[word, ...]` each. A value is `None`, a truth value, a number or a
text as it is, or `[n]`: the node `n`. An object that is met twice is one node. Tensors and arrays
lie in buffers after the document.

Nothing here is a pickle. Which objects can be read back is said by who reads: `Reader.objects`
knows the classes and functions that a document may name. A server takes any that it has, for the
block is code anyway; a client takes none but those that hold data (`data_only.py`).
"""

from __future__ import annotations

import copyreg
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CellType, MethodType, ModuleType
from typing import Any

import torch

from nnsight.remote.errors import NotSendableError, PayloadError, damaged
from nnsight.remote.tensors import TensorWriter, dtype_of, name_of, tensor_of

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
    """Turns values into nodes.

    Args:
        special: knows what is written in another way than its kind is; asked before all else.
    """

    special: Special = lambda value, writer: None
    nodes: list[Node] = field(default_factory=list[Node])
    trail: list[str] = field(default_factory=list[str])  # where the value at hand is, for errors
    tensors: TensorWriter = field(default_factory=TensorWriter)
    _known: dict[int, int] = field(default_factory=dict[int, int])
    written: dict[int, Any] = field(default_factory=dict[int, Any])  # the object of each node
    _arrays: list[memoryview] = field(default_factory=list[memoryview])

    def document(self, root: Any) -> Document:
        """The whole document with `root` at its beginning.

        Raises:
            NotSendableError: something in it cannot be written; the error says what, and where.
        """
        try:
            start = self.value(root)
        except RecursionError:
            raise self.refused(root, "it is nested too deep") from None
        return self.finished(start)

    def finished(self, root: Value = None) -> Document:
        """The document of what was written; nothing can be written after it."""
        buffers = self.tensors.buffers()
        for node in self.nodes:
            if node[0] == "array":
                node[-1] += len(buffers)
        return Document(self.nodes, root, [*buffers, *self._arrays])

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
            index = len(self.nodes)
            self.nodes.append([])
            self._known[id(value)] = index
            self.written[index] = value  # held, or its id could be taken over
            self.trail.append(at)
            self.nodes[index] = self._node(value)
            self.trail.pop()
        return [index]

    def values(self, values: Any) -> list[Value]:
        """The members of a sequence."""
        return [self.value(value, f"[{index}]") for index, value in enumerate(values)]

    def pairs(self, mapping: Any) -> list[list[Value]]:
        """Keys and values of a mapping."""
        return [[self.value(k), self.value(v, f"[{k!r}]"[:40])] for k, v in mapping.items()]

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
            return self._of_numpy(value)
        if isinstance(value, (MethodType, BuiltinFunctionType)):
            return self._method(value)
        return self.reduced(value)

    def _tensor(self, value: torch.Tensor) -> Node:
        if value.layout is torch.sparse_coo:
            value = value.coalesce()
            return ["coo", *self.values((value.indices(), value.values(), list(value.shape)))]
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise self.refused(value, "it is no dense tensor", "Send `.to_dense()` of it.")
        return self.tensors.node(value)

    def _of_numpy(self, value: Any) -> Node:
        import numpy as np

        if isinstance(value, np.dtype):
            return ["dtype of numpy", self.value(np.lib.format.dtype_to_descr(value))]
        if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            descr = self.value(np.lib.format.dtype_to_descr(value.dtype))
            order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
            content = np.asarray(value).tobytes(order)
            self._arrays.append(memoryview(content))
            scalar = isinstance(value, np.generic)
            return ["array", descr, list(value.shape), order, scalar, len(self._arrays) - 1]
        if isinstance(value, np.ndarray):
            raise self.refused(value, "it is an array of objects", "Send a list of them.")
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
        if module is None and isinstance(value, BuiltinFunctionType):
            module = getattr(value.__self__, "__name__", None)
        if module is None or "<locals>" in qualname:
            raise self.refused(value, "no name leads to it")
        return ["name", module, qualname]

    def reduced(self, value: Any) -> Node:
        """An object as the call that makes it again, and what it holds.

        Raises:
            NotSendableError: it is of a kind that nothing can make again.
        """
        reducer = copyreg.dispatch_table.get(type(value))
        try:
            made = value.__reduce_ex__(4) if reducer is None else reducer(value)
        except Exception as error:
            raise self.refused(value, str(error)) from None
        if isinstance(made, str):
            return ["name", type(value).__module__, made]
        function, args, *more = made
        state, items, pairs, setter = [*more, None, None, None, None][:4]
        if setter is not None:
            raise self.refused(value, "it sets its state by a function of its own")
        return [
            "object",
            self.value(function),
            self.values(args),
            self.value(state, ".__dict__"),
            [self.value(item) for item in items or ()],
            [[self.value(k), self.value(v)] for k, v in pairs or ()],
        ]

    def refused(self, value: Any, why: str, way_out: str = "") -> NotSendableError:
        """That `value` cannot be sent, where it was met, and why."""
        name, path = type(value).__name__, self.place()
        where = f"`{path}` is " if path else "there is "
        article = "an" if name[:1].lower() in "aeiou" else "a"
        text = f"{where}{article} `{name}`, which cannot be sent: {why}. {way_out}"
        return NotSendableError(text.strip())

    def place(self) -> str:
        """What leads to the value at hand: `config["sae"].weight`."""
        path = "".join(self.trail)
        return path if len(path) <= 80 else f"{path[:40]}...{path[-37:]}"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair
        return False
    return True


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
    dict: lambda v, w: ["dict", *w.pairs(v)],
    slice: lambda v, w: ["slice", *w.values((v.start, v.stop, v.step))],
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


# --- reading --------------------------------------------------------------------------------------

Objects = Callable[[str, str], Any]
Make = Callable[[Node, "Reader"], Any]


def _no_objects(module: str, qualname: str) -> Any:
    raise damaged(f"it names `{module}.{qualname}`, and holds data only")


@dataclass
class Reader:
    """Turns nodes into values.

    Args:
        nodes: the table of a document.
        buffers: its buffers.
        objects: gives the class or function of a name, or refuses it.
        callables: whether a call may be made to build an object.
        special: knows nodes of other words; those that `Writer.special` made.
        device: where tensors go that were on a GPU.
    """

    nodes: list[Node]
    buffers: Sequence[memoryview] = ()
    objects: Objects = _no_objects
    callables: Callable[[Any], bool] = lambda function: False
    special: dict[str, Make] = field(default_factory=dict[str, Make])
    device: Any = None
    made: dict[int, Any] = field(default_factory=dict[int, Any])  # the object of each node
    _to_fill: deque[Callable[[], None]] = field(default_factory=deque[Callable[[], None]])

    def read(self, root: Value) -> Any:
        """The value that a document begins with.

        Raises:
            PayloadError: the document is damaged, or names what may not be in it.
        """
        try:
            return self.whole(root)
        except PayloadError:
            raise
        except RecursionError:
            raise damaged("it is nested too deep") from None
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise damaged(f"it does not fit together ({error})") from error

    def whole(self, value: Value) -> Any:
        """A value, with all that it holds."""
        waiting, self._to_fill = self._to_fill, deque[Callable[[], None]]()
        try:
            found = self.value(value)
            while self._to_fill:
                self._to_fill.popleft()()
        finally:
            self._to_fill = waiting
        return found

    def value(self, value: Value) -> Any:
        """A value; a container in it may have to be filled yet."""
        if type(value) is not list:
            return value
        (index,) = value
        if index in self.made:
            return self.made[index]
        if type(index) is not int or not 0 <= index < len(self.nodes):
            raise damaged("it refers to a part that it does not have")
        word, *rest = self.nodes[index]
        make = self.special.get(word) or _MAKERS.get(word)
        if make is None:
            raise damaged(f"it has a part of an unknown kind, {word!r}")
        found = make(rest, self)
        return self.made.setdefault(index, found)

    def later(self, fill: Callable[[], None]) -> None:
        """Call `fill` when what is being made is there: it may hold itself."""
        self._to_fill.append(fill)


def _set_state(found: Any, state: Any) -> None:
    own = getattr(type(found), "__setstate__", None)
    if own is not None:
        own(found, state)
        return
    slots: Any = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        found.__dict__.update(state)
    for name, value in (slots or {}).items():
        object.__setattr__(found, name, value)


# What can hold itself is made empty, and filled when it is known.


def _list(rest: Node, reader: Reader) -> Any:
    found: list[Any] = []
    reader.later(lambda: found.extend(map(reader.value, rest)))
    return found


def _dict(rest: Node, reader: Reader) -> Any:
    found: dict[Any, Any] = {}

    def fill() -> None:
        for key, value in rest:
            found[reader.whole(key)] = reader.value(value)

    reader.later(fill)
    return found


def _set(rest: Node, reader: Reader) -> Any:
    found: set[Any] = set()
    reader.later(lambda: found.update(map(reader.whole, rest)))
    return found


def _read_cell(rest: Node, reader: Reader) -> Any:
    cell = CellType()

    def fill() -> None:
        cell.cell_contents = reader.value(rest[0])

    if rest:
        reader.later(fill)
    return cell


def _object(rest: Node, reader: Reader) -> Any:
    function, args, state, items, pairs = rest
    call = reader.value(function)
    given = [reader.whole(arg) for arg in args]
    new: Any = copyreg.__newobj__  # type: ignore[attr-defined]
    if not reader.callables(given[0] if call is new and given else call):
        raise damaged(f"it calls `{getattr(call, '__qualname__', call)}`, and holds data only")
    found = call(*given)

    def fill() -> None:
        for item in items:
            found.append(reader.whole(item))
        for key, value in pairs:
            found[reader.whole(key)] = reader.whole(value)
        if state is not None:
            _set_state(found, reader.whole(state))

    reader.later(fill)
    return found


def _array(rest: Node, reader: Reader) -> Any:
    import numpy as np

    descr, shape, order, scalar, index = rest
    dtype = _numpy_dtype(reader.whole(descr))
    found = np.frombuffer(reader.buffers[index], dtype=dtype).reshape(shape, order=order)
    if scalar:
        return found[()]
    return found if found.flags.writeable else found.copy(order)


def _numpy_dtype(descr: Any) -> Any:
    import numpy as np

    return np.lib.format.descr_to_dtype(descr)


def _coo(indices: Any, values: Any, shape: Any) -> Any:
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True).coalesce()


def _named(rest: Node, reader: Reader) -> Any:
    module, qualname = rest
    return reader.objects(module, qualname)


def _of_torch(rest: Node, reader: Reader) -> Any:
    found = getattr(torch, rest[0])
    if not isinstance(found, (torch.layout, torch.memory_format)):
        raise damaged(f"it names torch.{rest[0]}, and holds data only")
    return found


def _method(rest: Node, reader: Reader) -> Any:
    owner, name = rest
    if reader.objects is _no_objects:
        raise damaged("it names a method, and holds data only")
    return getattr(reader.whole(owner), name)


_MAKERS: dict[str, Make] = {
    "list": _list,
    "dict": _dict,
    "set": _set,
    "cell": _read_cell,
    "object": _object,
    "int": lambda rest, reader: int(rest[0], 16),
    "text": lambda rest, reader: rest[0].decode("utf-8", "surrogatepass"),
    "complex": lambda rest, reader: complex(*rest),
    "bytes": lambda rest, reader: bytes(rest[0]),
    "bytearray": lambda rest, reader: bytearray(rest[0]),
    "tuple": lambda rest, reader: tuple(map(reader.value, rest)),
    "frozenset": lambda rest, reader: frozenset(map(reader.whole, rest)),
    "slice": lambda rest, reader: slice(*map(reader.value, rest)),
    "range": lambda rest, reader: range(*map(reader.value, rest)),
    "ellipsis": lambda rest, reader: ...,
    "not implemented": lambda rest, reader: NotImplemented,
    "dtype": lambda rest, reader: dtype_of(rest[0]),
    "device": lambda rest, reader: torch.device(*(r for r in rest if r is not None)),
    "size": lambda rest, reader: torch.Size(rest),
    "of torch": _of_torch,
    "tensor": lambda rest, reader: tensor_of(rest, reader.buffers, reader.device),
    "coo": lambda rest, reader: _coo(*map(reader.whole, rest)),
    "array": _array,
    "dtype of numpy": lambda rest, reader: _numpy_dtype(reader.whole(rest[0])),
    "name": _named,
    "method": _method,
}
