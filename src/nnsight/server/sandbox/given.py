"""The model's side of the values: what the sandbox was given, and reading what it sends.

A tensor goes out once, under a number, and comes back as that number for as long as it is the same.
What either side changes in place is sent on with the next message, so both see what they would see
in one process. What comes back is read strictly: numbers, text, tensors, plain containers, and
what was given before. Nothing is looked up by a name, and nothing is called.
"""

from __future__ import annotations

import copyreg
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from nnsight import nested
from nnsight.remote.reading import Reader
from nnsight.remote.tensors import MemoryReader, dtype_of, tensor_of
from nnsight.remote.values import Node, Writer
from nnsight.server.sandbox.errors import Broken, weights_are_fixed
from nnsight.server.sandbox.mirrored import Mirrored, Show

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_PLAIN_TOO = (tuple, set, frozenset, slice, range, type(...), torch.layout, torch.memory_format)
_REFUSED = (
    *("name", "method", "object", "cell", "coo", "array", "dtype of numpy", "bytearray", "proxy"),
    *("tensor of a class", "array of objects", "tensor and more", "compressed"),
)
_DTYPES = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
        *(torch.complex128, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
)


class Fixed(NamedTuple):
    """A weight, which the sandbox may not change."""

    value: torch.Tensor
    place: str


@dataclass
class _Tensor:
    value: torch.Tensor
    version: int
    fixed: str = ""  # the place of a parameter: it may not be changed
    edge: int = 0  # by which number the sandbox knows where its gradient arrives; 0: it has none


@dataclass
class Given:
    """What one sandbox was given.

    Args:
        largest: bytes of a tensor that is taken from it.
        mirrored: the graph that it has together with the model.
    """

    largest: int
    mirrored: Mirrored
    tensors: dict[int, _Tensor] = field(default_factory=dict[int, _Tensor])
    held: dict[int, Any] = field(default_factory=dict[int, Any])  # containers and other objects
    kinds: list[type] = field(default_factory=list[type])  # of containers that went out
    _known: dict[int, int] = field(default_factory=dict[int, int])  # by the id of a tensor
    _objects: dict[int, int] = field(default_factory=dict[int, int])  # by the id of an object
    _members: dict[int, dict[Any, Any]] = field(default_factory=dict[int, dict[Any, Any]])
    _count: int = 0
    _reducing: int = 0  # in how many objects, which name their classes

    # --- out --------------------------------------------------------------------------------------

    def writer(self) -> Writer:
        return Writer(self._special, eager=True)

    def sync(self, writer: Writer) -> list[Any]:
        """What has changed in place, of the tensors that were given."""
        changed: list[Any] = []
        for handle, entry in self.tensors.items():
            if _version(entry.value) != entry.version:
                entry.version = _version(entry.value)
                node = writer.memory.tensor(entry.value)
                moved = not entry.edge or self.mirrored.moved(entry.edge)
                if moved and entry.value.requires_grad:
                    entry.edge = self._next()
                    self.mirrored.lend(entry.value, entry.edge)
                changed.append([handle, [writer.reserve("", node)], entry.edge if moved else 0])
        return changed

    def forget_containers(self) -> None:
        """The model has gone on: what becomes of containers is nothing to it any more."""
        for index in [i for i, value in self.held.items() if i in self._members]:
            self._objects.pop(id(self.held.pop(index)), None)
            del self._members[index]

    def tensor(self, value: torch.Tensor, writer: Writer, fixed: str = "") -> Node:
        """A tensor as a node: its number, with its content the first time."""
        handle = self._known.get(id(value))
        if handle is not None:
            return ["given", handle]
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise writer.refused(value, "it is no dense tensor")
        handle = self._next()
        self._known[id(value)] = handle
        entry = self.tensors[handle] = _Tensor(value, _version(value), fixed)
        if value.requires_grad:
            entry.edge = handle
            self.mirrored.lend(value, handle)
        node = writer.memory.tensor(value)
        node[:1] = ["new", handle, fixed, value.is_leaf]
        return node

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _special(self, value: Any, writer: Writer) -> Node | None:
        if isinstance(value, torch.Tensor):
            return self.tensor(value, writer)
        kind = type(value)
        if kind is Fixed:
            return self.tensor(value.value, writer, value.place)
        if kind in _PLAIN or kind in _PLAIN_TOO:
            return None
        if self._reducing and (isinstance(value, type) or callable(value)):
            return writer.name(value)
        index = self._objects.get(id(value))
        members = nested.parts(value)
        if index is not None and (members is None or _same(members, self._members.get(index))):
            return ["held", index]
        index = self._next()
        self.held[index] = value
        self._objects[id(value)] = index
        if members is None:
            return ["opaque", index, kind.__name__]
        self._members[index] = members
        if kind is list:
            return ["list of", index, *writer.values(value)]
        if kind is dict:
            return ["dict of", index, *writer.pairs(value.items())]
        self._reducing += 1
        try:
            node = writer.reduced(value)
        finally:
            self._reducing -= 1
        if node[0] != "object":
            raise writer.refused(value, "it is of a kind that a sandbox does not know")
        return ["object of", index, self._kind(kind), kind.__module__, kind.__qualname__, node[1:]]

    def _kind(self, kind: type) -> int:
        if kind not in self.kinds:
            self.kinds.append(kind)
        return self.kinds.index(kind)

    # --- in ---------------------------------------------------------------------------------------

    def reader(self, nodes: list[Node], buffers: Sequence[memoryview]) -> Reader:
        """Reads what the sandbox sends; raises `Broken` or `PayloadError`."""
        refused = dict.fromkeys(_REFUSED, _refuse)
        own = {
            "given": lambda rest, reader: self._entry(rest[0]).value,
            "held": lambda rest, reader: self.held[rest[0]],
            "made": self._made,
            "tensor": self._tensor,
            "joined": self._joined,
        }
        return Reader(nodes, MemoryReader(buffers), special={**refused, **own})

    def take(self, reader: Reader, told: Mapping[str, Any], show: Show) -> None:
        """Do what the sandbox did in place, and let go of what it let go of.

        Raises:
            SandboxError: it has changed a weight.
        """
        for handle in told.get("leaves", ()):
            entry = self._entry(handle)
            if entry.fixed:
                raise weights_are_fixed(entry.fixed)
            entry.value.requires_grad_()
            entry.edge = handle
            self.mirrored.lend(entry.value, handle)
        for handle, value, how, number, nodes in told.get("changed", ()):
            entry = self._entry(handle)
            if entry.fixed:
                raise weights_are_fixed(entry.fixed)
            self.mirrored.add(nodes, show)
            new = reader.whole(value)
            if not isinstance(new, torch.Tensor) or new.shape != entry.value.shape:
                raise Broken("a change of another shape")
            self._put(entry, new, how, number)
            entry.version = _version(entry.value)
        self.mirrored.add(told.get("made", ()), show)
        for index, pairs in told.get("containers", ()):
            self._change(index, {reader.whole(key): reader.whole(value) for key, value in pairs})
        for handle in told.get("dropped", ()):
            entry = self.tensors.pop(handle, None)
            if entry is not None:
                self._known.pop(id(entry.value), None)

    def _put(self, entry: _Tensor, new: torch.Tensor, how: Any, number: Any) -> None:
        """Give a tensor what the sandbox's has now, in the way in which it was done there."""
        if how == "data":  # through `.data`, or NumPy
            entry.value.data.copy_(new)
        elif how == "unseen":  # by autograd
            entry.value.detach().copy_(new)
        elif type(number) is not int or number >= 0:
            raise Broken("a change of no kind")
        else:
            with torch.enable_grad():
                entry.value.copy_(new)
            if entry.value.requires_grad:
                entry.edge = number
                self.mirrored.lend(entry.value, number)

    def _change(self, index: int, members: dict[Any, Any]) -> None:
        """Give a container the members that the sandbox has given its own."""
        value = self.held.get(index)
        if value is None or index not in self._members:
            return  # the model has gone on
        self._members[index] = members
        if isinstance(value, list):
            value[:] = list(members.values())
        elif isinstance(value, Mapping):
            table: Any = value
            for key in [key for key in table if key not in members]:
                del table[key]
            for key, member in members.items():
                table[key] = member
        else:
            for key in nested.parts(value) or ():
                if key in members:
                    object.__setattr__(value, key, members[key])

    def _entry(self, handle: Any) -> _Tensor:
        if handle not in self.tensors:
            raise Broken("a tensor that was not given")
        return self.tensors[handle]

    def _made(self, rest: Node, reader: Reader) -> Any:
        """A container of a kind that went out before, with members of the sandbox's."""
        index, pairs = rest
        kind: Any = self.kinds[index]
        members = {reader.whole(key): reader.whole(value) for key, value in pairs}
        if issubclass(kind, tuple):
            return kind(*members.values()) if hasattr(kind, "_fields") else kind(members.values())
        if issubclass(kind, Mapping):
            return kind(**members)
        if dataclasses.is_dataclass(kind):
            found: Any = copyreg.__newobj__(kind)  # type: ignore[attr-defined]
            for one in dataclasses.fields(kind):
                object.__setattr__(found, one.name, members[one.name])
            return found
        raise Broken("a container of a kind that is not made")

    def _tensor(self, rest: Node, reader: Reader) -> torch.Tensor:
        name, shape, _, _, kind, *lies = rest
        dtype = dtype_of(name)
        if dtype not in _DTYPES or kind == "meta":
            raise Broken("a tensor of a kind that is not taken")
        if math.prod(shape) * dtype.itemsize > self.largest:  # it may be spread by its strides
            raise Broken("a tensor that is too large")
        whole = "uint8" if dtype is torch.bool else name  # bytes that are neither
        found = tensor_of([whole, shape, False, False, "cpu", *lies], reader.memory, None)
        if dtype is torch.bool:
            found = found != 0
        return found if self.mirrored.device.type == "cpu" else found.to(self.mirrored.device)

    def _joined(self, rest: Node, reader: Reader) -> torch.Tensor:
        """A tensor that the sandbox has computed from what it was given, with its gradient."""
        edge, *about = rest
        return self.mirrored.joined(self._tensor(about, reader), edge)


def _refuse(rest: Node, reader: Reader) -> Any:
    raise Broken("a part of a kind that is not taken")


def _same(one: dict[Any, Any], other: dict[Any, Any] | None) -> bool:
    if other is None or one.keys() != other.keys():
        return False
    return all(value is other[key] for key, value in one.items())


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
