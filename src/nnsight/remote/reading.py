"""Values from data: what `values.py` wrote, with its identity, aliases and cycles."""

from __future__ import annotations

import copyreg
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CellType, MappingProxyType
from typing import Any

import torch

from nnsight.remote.errors import PayloadError, damaged
from nnsight.remote.tensors import (
    MemoryReader,
    array_of,
    compressed_of,
    coo_of,
    dtype_of,
    put_beside,
    tensor_of,
)
from nnsight.remote.values import Node, Value

Objects = Callable[[str, str], Any]
Make = Callable[[Node, "Reader"], Any]
Fill = Callable[[], None]


_ATOMS = frozenset({type(None), bool, int, float, str})


def _no_objects(module: str, qualname: str) -> Any:
    raise damaged(f"it names `{module}.{qualname}`, and holds data only")


@dataclass
class Reader:
    """Turns nodes into values.

    Args:
        nodes: the table of a document.
        memory: its buffers.
        objects: gives the class or function of a name, or refuses it.
        callables: whether a call may be made to build an object.
        special: knows nodes of other words; those that `Writer.special` made.
        device: where tensors go that were on a GPU.
    """

    nodes: list[Node]
    memory: MemoryReader = field(default_factory=MemoryReader)
    objects: Objects = _no_objects
    callables: Callable[[Any, list[Any]], bool] = lambda function, given: False
    special: dict[str, Make] = field(default_factory=dict[str, Make])
    device: Any = None
    made: dict[int, Any] = field(default_factory=dict[int, Any])  # the object of each node
    _fills: dict[int, list[Fill]] = field(default_factory=dict[int, list[Fill]])
    _to_fill: deque[int] = field(default_factory=deque[int])
    _making: dict[int, list[Callable[[Any], None]]] = field(default_factory=dict)  # type: ignore[assignment]
    _settled: set[int] = field(default_factory=set[int])  # tuples that hold nothing unfilled
    _current: int = -1  # the node that is being made

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
            why = str(error).partition("\n")[0][:120]
            raise damaged(f"it does not fit together ({why})") from error

    def whole(self, value: Value) -> Any:
        """A value, with all that it holds."""
        before, self._to_fill = self._to_fill, deque[int]()
        current = self._current
        try:
            found = self.value(value)
            self._touch(value)
            while self._to_fill:
                self._current = self._to_fill.popleft()
                for fill in self._fills.pop(self._current, ()):
                    fill()
        finally:
            self._to_fill, self._current = before, current
        return found

    def value(self, value: Value) -> Any:
        """A value; a container in it may have to be filled yet."""
        if type(value) is not list:
            if type(value) not in _ATOMS:
                raise damaged("it has a value of no kind")
            return value
        (index,) = value
        if type(index) is not int or not 0 <= index < len(self.nodes):
            raise damaged("it refers to a part that it does not have")
        if index not in self.made:
            self._make(index)
        elif index in self._fills:  # whoever needs it whole does not wait for an earlier one
            self._to_fill.append(index)
        return self.made[index]

    def _touch(self, value: Value) -> None:
        """Have what an immutable container holds filled, though it was made before."""
        pending = [value]
        while pending:
            value = pending.pop()
            if type(value) is not list or value[0] in self._settled:
                continue
            word, *rest = self.nodes[value[0]]
            if word in ("tuple", "frozenset", "object"):
                self._settled.add(value[0])
                pending += rest[1] if word == "object" else rest
            if word in ("tuple", "frozenset"):
                continue
            if value[0] in self._fills:
                self._to_fill.append(value[0])

    def when_made(self, value: Value, give: Callable[[Any], None]) -> None:
        """Give `value`, at once or, if it is being made at this moment, when it is there."""
        if type(value) is list and value[0] in self._making:
            self._making[value[0]].append(give)
        else:
            give(self.value(value))

    def _make(self, index: int) -> Any:
        if index in self._making:
            raise damaged("a part of it is needed to make itself")
        word, *rest = self.nodes[index]
        make = self.special.get(word) or _MAKERS.get(word)
        if make is None:
            raise damaged(f"it has a part of an unknown kind, {str(word)[:40]!r}")
        before, self._current = self._current, index
        self._making[index] = []
        try:
            found = self.made[index] = make(rest, self)
        finally:
            self._current, waiting = before, self._making.pop(index)
        for give in waiting:
            give(found)
        return found

    def later(self, fill: Fill) -> None:
        """Call `fill` when what is being made is there: it may hold itself."""
        self._fills.setdefault(self._current, []).append(fill)
        self._to_fill.append(self._current)

    def when_filled(self, value: Value, fill: Fill) -> None:
        """Call `fill` when `value` holds what it holds, at this level."""
        waiting = self._fills.get(value[0]) if type(value) is list else None
        if waiting is None:
            fill()
        else:
            waiting.append(fill)


def _set_state(found: Any, state: Any) -> None:
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
    first: Any = reader.whole(args[0]) if args else None
    record = call is _NEW_OBJECT and _is_record(first)
    part = reader.value if record else reader.whole  # a record may be in a list that it holds
    given = [part(arg) for arg in args]
    if not reader.callables(call, given):
        raise damaged(f"it calls `{getattr(call, '__qualname__', '?')}`, and holds data only")
    found = tuple.__new__(first, given[1:]) if record else call(*given)

    def fill() -> None:
        for item in items:
            found.append(reader.value(item))
        for key, value in pairs:
            found[reader.whole(key)] = reader.value(value)
        if state is None:
            return
        if hasattr(type(found), "__setstate__"):
            found.__setstate__(reader.whole(state))
            return
        now = reader.value(state)
        if isinstance(now, tuple):  # beside its dict what its slots hold
            _set_state(found, reader.whole(state))
            return
        reader.when_filled(state, lambda: _set_state(found, now))

    reader.later(fill)
    return found


_NEW_OBJECT: Any = copyreg.__newobj__  # type: ignore[attr-defined]


def _is_record(cls: Any) -> bool:
    """Whether objects of a class are tuples with names, and reduced to their members."""
    return isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")


def _array(rest: Node, reader: Reader) -> Any:
    descr, scalar, *about = rest
    found = array_of(_numpy_dtype(reader.whole(descr)), about, reader.memory)
    return found[()] if scalar else found


def _array_of_objects(rest: Node, reader: Reader) -> Any:
    import numpy as np

    shape, *values = rest
    found = np.empty(len(values), dtype=object)

    def fill() -> None:
        for index, value in enumerate(values):
            found[index] = reader.value(value)

    reader.later(fill)
    return found.reshape(shape)


def _tensor_of_a_class(rest: Node, reader: Reader) -> Any:
    cls, plain, requires_grad = map(reader.whole, rest)
    if not reader.callables(cls, [plain]):
        raise damaged("it has a tensor of a class, and holds data only")
    return plain.as_subclass(cls).requires_grad_(requires_grad)


def _tensor_and_more(rest: Node, reader: Reader) -> Any:
    plain, beside = rest
    found = reader.whole(plain)

    def fill() -> None:
        for name, value in beside.items():
            put_beside(found, name, reader.whole(value))

    reader.later(fill)
    return found


def _numpy_dtype(descr: Any) -> Any:
    import numpy as np

    return np.lib.format.descr_to_dtype(descr)


def _named(rest: Node, reader: Reader) -> Any:
    module, qualname = rest
    return reader.objects(module, qualname)


_OF_TORCH = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, (torch.layout, torch.memory_format))
}


def _bytes(rest: Node, reader: Reader) -> bytes:
    (content,) = rest
    if not isinstance(content, bytes):  # of a number this would be as many zeros
        raise damaged("it has bytes that are none")
    return content


def _device(rest: Node, reader: Reader) -> torch.device:
    kind, index = rest
    try:
        return torch.device(kind) if index is None else torch.device(kind, index)
    except RuntimeError as error:
        raise damaged(f"it names a device that there is not, {str(kind)[:40]!r}") from error


_MAKERS: dict[str, Make] = {
    "list": _list,
    "dict": _dict,
    "set": _set,
    "cell": _read_cell,
    "object": _object,
    "int": lambda rest, reader: int(rest[0], 16),
    "text": lambda rest, reader: rest[0].decode("utf-8", "surrogatepass"),
    "complex": lambda rest, reader: complex(*rest),
    "bytes": _bytes,
    "bytearray": lambda rest, reader: bytearray(_bytes(rest, reader)),
    "tuple": lambda rest, reader: tuple(map(reader.value, rest)),
    "frozenset": lambda rest, reader: frozenset(map(reader.whole, rest)),
    "proxy": lambda rest, reader: MappingProxyType(reader.value(rest[0])),
    "slice": lambda rest, reader: slice(*map(reader.value, rest)),
    "range": lambda rest, reader: range(*map(reader.value, rest)),
    "ellipsis": lambda rest, reader: ...,
    "not implemented": lambda rest, reader: NotImplemented,
    "dtype": lambda rest, reader: dtype_of(rest[0]),
    "device": _device,
    "size": lambda rest, reader: torch.Size(rest),
    "of torch": lambda rest, reader: _OF_TORCH[rest[0]],
    "tensor": lambda rest, reader: tensor_of(rest, reader.memory, reader.device),
    "tensor of a class": _tensor_of_a_class,
    "tensor and more": _tensor_and_more,
    "compressed": lambda rest, reader: compressed_of(*map(reader.whole, rest)),
    "coo": lambda rest, reader: coo_of(*map(reader.whole, rest)),
    "array": _array,
    "array of objects": _array_of_objects,
    "dtype of numpy": lambda rest, reader: _numpy_dtype(reader.whole(rest[0])),
    "name": _named,
}
