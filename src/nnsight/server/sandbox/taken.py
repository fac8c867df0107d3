"""The sandbox's side of the values: what it was given by the model, and what it did to that."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch

from nnsight import nested
from nnsight.remote.code_reading import may_be_called
from nnsight.remote.reading import _MAKERS, Reader
from nnsight.remote.tensors import MemoryReader, tensor_of
from nnsight.remote.values import Node, Writer
from nnsight.server.sandbox.channel import Memory
from nnsight.server.sandbox.errors import (
    earlier_graph,
    no_numbers,
    only_data,
    opaque,
    weights_are_fixed,
)
from nnsight.server.sandbox.graph import Edge, Graph, edge_of

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_PLAIN_TOO = (list, dict, tuple, set, frozenset, slice, range, type(...))
_PLAIN_OF_TORCH = (torch.layout, torch.memory_format)


class Opaque:
    """An object of the model's process: it can be handed back."""

    def __init__(self, kind: str) -> None:
        self.__dict__["kind"] = kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise opaque(self.__dict__["kind"])

    def __repr__(self) -> str:
        return f"<a {self.__dict__['kind']} of the model's process>"


class _FromTheModel(torch.autograd.Function):
    """A tensor that the model computed: how, is known there."""

    @staticmethod
    def forward(ctx: Any, content: list[torch.Tensor], anchor: torch.Tensor) -> torch.Tensor:
        return content[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise earlier_graph()  # of this run it would be asked there


_ANCHOR = torch.empty(0, requires_grad=True)  # so that what comes of it requires gradients


@dataclass
class _Tensor:
    """One tensor that was given: as long as anything lies in its memory."""

    tensor: ref[torch.Tensor]
    held: torch.Tensor | None  # while the model stays where it is, or if it lies elsewhere
    memory: Callable[[], Memory | None]
    lies: tuple[Node, int, int]  # what describes it, and where its storage is in the memory
    version: int
    sum: int
    fixed: str  # the place of a weight: it may not be changed
    edge: Edge | None  # where its gradient arrives, as the model's side knows it


@dataclass
class Taken:
    """What this sandbox was given.

    Args:
        graph: what is computed from it.
    """

    graph: Graph
    tensors: dict[int, _Tensor] = field(default_factory=dict[int, _Tensor])
    _numbers: dict[int, int] = field(default_factory=dict[int, int])  # by the id of a tensor
    _objects: dict[int, tuple[int, Any]] = field(default_factory=dict[int, Any])  # by id
    _members: dict[int, dict[Any, Any]] = field(default_factory=dict[int, dict[Any, Any]])
    _kinds: dict[type, int] = field(default_factory=dict[type, int])
    _memory: Memory = field(default_factory=Memory)
    # what the model's side takes to be here, from a message to it until its answer has been read
    _kept: list[Any] = field(default_factory=list[Any])

    # --- in ---------------------------------------------------------------------------------------

    def reader(self, nodes: list[Node], buffers: Sequence[memoryview], memory: Memory) -> Reader:
        self._memory = memory
        own = {
            "given": lambda rest, reader: self._given(rest[0]),
            "new": self._new,
            "held": lambda rest, reader: self._held(rest[0]),
            "opaque": self._opaque,
            "list of": self._list,
            "dict of": self._dict,
            "object of": self._object,
        }
        return Reader(nodes, MemoryReader(buffers), _class, may_be_called, special=own)

    def sync(self, reader: Reader, changed: Any) -> None:
        """Do in place what the model did."""
        for handle, value, number in changed:
            entry = self.tensors.get(handle)
            tensor = None if entry is None else self._alive(handle, entry)
            if entry is None or tensor is None:
                continue
            new = reader.whole(value).detach()
            with torch.set_grad_enabled(bool(number)):
                tensor.copy_(_FromTheModel.apply([new], _ANCHOR) if number else new)
            if number:
                entry.edge = self.graph.lend(tensor, number)
            self._mark(entry, tensor)

    def moved(self) -> None:
        """The model has gone on: nothing that is done to containers matters to it now."""
        self._members.clear()
        self._objects = {k: v for k, v in self._objects.items() if isinstance(v[1], Opaque)}
        for entry in self.tensors.values():
            if entry.memory is not _nowhere:
                entry.held = None

    def answered(self) -> None:
        """The answer has been read."""
        self._kept = []

    def _new(self, rest: Node, reader: Reader) -> torch.Tensor:
        handle, fixed, leaf, name, shape, requires_grad, parameter, _, *lies = rest
        about = [name, shape, False, False, "cpu", *lies]
        tensor = content = tensor_of(about, reader.memory, None)
        storage = content.untyped_storage()
        start, size = storage.data_ptr() - _address(self._memory), storage.nbytes()
        inside = 0 <= start and start + size <= len(self._memory) and size > 0
        if parameter:
            tensor = torch.nn.Parameter(content, requires_grad)
        elif requires_grad and leaf:
            content.requires_grad_()
        elif requires_grad:
            with torch.enable_grad():
                tensor = _FromTheModel.apply([content], _ANCHOR)
        entry = _Tensor(
            ref(tensor),
            tensor,
            ref(self._memory) if inside else _nowhere,
            (about, start, size),
            0,
            0,
            fixed,
            self.graph.lend(tensor, handle) if requires_grad else None,
        )
        self._mark(entry, tensor)
        self.tensors[handle] = entry
        self._numbers[id(tensor)] = handle
        return tensor

    def _mark(self, entry: _Tensor, tensor: torch.Tensor) -> None:
        entry.version = _version(tensor)
        entry.sum = _sum(tensor)

    def _given(self, handle: int) -> torch.Tensor:
        entry = self.tensors[handle]
        tensor = self._alive(handle, entry)
        assert tensor is not None, "the model's side was told that it is gone"
        entry.held = tensor
        return tensor

    def _alive(self, handle: int, entry: _Tensor) -> torch.Tensor | None:
        """The tensor, or another one over the same memory where somebody still has that."""
        tensor = entry.held if entry.held is not None else entry.tensor()
        if tensor is not None:
            return tensor
        memory = entry.memory()
        if memory is None:
            return None
        about, start, size = entry.lies
        whole = [*about[:-3], 0, *about[-2:]]
        tensor = tensor_of(whole, MemoryReader([memoryview(memory)[start : start + size]]), None)
        entry.tensor = ref(tensor)
        self._numbers[id(tensor)] = handle
        return tensor

    def _remember(self, index: int, value: Any) -> Any:
        self._objects[id(value)] = index, value
        return value

    def _held(self, index: int) -> Any:
        return next(value for known, value in self._objects.values() if known == index)

    def _opaque(self, rest: Node, reader: Reader) -> Any:
        return self._remember(rest[0], Opaque(rest[1]))

    def _watched(self, index: int, value: Any, reader: Reader) -> Any:
        """A container, whose members are looked at again before the next message."""

        def look() -> None:
            self._members[index] = nested.parts(value) or {}

        reader.later(lambda: reader.later(look))
        return self._remember(index, value)

    def _list(self, rest: Node, reader: Reader) -> Any:
        index, *values = rest
        return self._watched(index, _MAKERS["list"](values, reader), reader)

    def _dict(self, rest: Node, reader: Reader) -> Any:
        index, *pairs = rest
        return self._watched(index, _MAKERS["dict"](pairs, reader), reader)

    def _object(self, rest: Node, reader: Reader) -> Any:
        index, kind, module, qualname, content = rest
        self._kinds[_class(module, qualname)] = kind
        return self._watched(index, _MAKERS["object"](content, reader), reader)

    # --- out --------------------------------------------------------------------------------------

    def writer(self) -> Writer:
        return Writer(self._special, eager=True)

    def changes(self, writer: Writer) -> dict[str, Any]:
        """What was done in place since the last message, to tensors and to containers, and the
        numbers of tensors that nothing is left of.

        Raises:
            SandboxError: a weight was changed.
        """
        changed: list[tuple[int, _Tensor, torch.Tensor]] = []
        leaves: list[int] = []
        dropped: list[int] = []
        self._kept = []
        for handle, entry in list(self.tensors.items()):
            tensor = entry.held if entry.held is not None else entry.tensor()
            if tensor is None:
                tensor = self._alive(handle, entry)
                if tensor is None:
                    dropped.append(handle)
                    del self.tensors[handle]
                    continue
                same = _sum(tensor) == entry.sum
            elif entry.held is None and not tensor.is_inference():
                same = tensor._version == entry.version
            else:  # what torch does not count: through `.data`, or NumPy
                same = _version(tensor) == entry.version and _sum(tensor) == entry.sum
            self._kept.append(tensor)
            if tensor.requires_grad and tensor.is_leaf and entry.edge is None:
                leaves.append(handle)  # `h.requires_grad_()`
                entry.edge = self.graph.lend(tensor, handle)
            if not same:
                if entry.fixed:
                    raise weights_are_fixed(entry.fixed)
                changed.append((handle, entry, tensor))
        for key in [k for k, handle in self._numbers.items() if handle not in self.tensors]:
            del self._numbers[key]
        changed.sort(key=lambda one: _age(one[2]))  # what comes of a changed one comes after it
        told = {"leaves": leaves, "changed": [self._changed(*one, writer) for one in changed]}
        containers = self._containers(writer)
        return {**told, "made": self.graph.told(), "containers": containers, "dropped": dropped}

    def _changed(
        self, handle: int, entry: _Tensor, tensor: torch.Tensor, writer: Writer
    ) -> list[Any]:
        """A tensor that was changed: its content, how, and where its gradient arrives now."""
        now = edge_of(tensor) if tensor.requires_grad else None
        node = writer.memory.tensor(tensor)
        how, number = ("data" if _version(tensor) == entry.version else "unseen"), 0
        if now != entry.edge and now is not None:
            node[:1] = ["joined", self.graph.reference(tensor)]
            how, number = "joined", self.graph.own_number()
            entry.edge = self.graph.lend(tensor, number)
        self._mark(entry, tensor)
        told = self.graph.told()
        return [handle, [writer.reserve("", node)], how, number, told]

    def _containers(self, writer: Writer) -> list[Any]:
        found: list[Any] = []
        for index, value in list(self._objects.values()):
            before, now = self._members.get(index), nested.parts(value)
            if before is None or now is None:
                continue
            if now.keys() != before.keys() or any(now[k] is not before[k] for k in now):
                self._members[index] = now
                found.append([index, writer.pairs(now.items())])
        return found

    def _special(self, value: Any, writer: Writer) -> Node | None:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, writer)
        known = self._objects.get(id(value))
        if known is not None and known[1] is value:
            return ["held", known[0]]
        kind = type(value)
        if kind in _PLAIN or kind in _PLAIN_TOO or kind in _PLAIN_OF_TORCH:
            return None
        index, members = self._kinds.get(kind), nested.parts(value)
        if index is None or members is None:
            raise only_data(f"a `{kind.__qualname__}`")
        return ["made", index, writer.pairs(members.items())]

    def _tensor(self, value: torch.Tensor, writer: Writer) -> Node:
        handle = self._numbers.get(id(value))
        entry = None if handle is None else self.tensors.get(handle)
        if entry is not None and (entry.held is value or entry.tensor() is value):
            return ["given", handle]
        if value.is_meta:
            raise no_numbers()
        if value.layout is not torch.strided or value.is_quantized or value.is_nested:
            raise only_data("a tensor that is not dense")
        node = writer.memory.tensor(value)
        if value.requires_grad:
            node[:1] = ["joined", self.graph.reference(value)]
        return node


def _nowhere() -> Memory:
    """The memory of what lies elsewhere: it is never known to be gone."""
    return _NOWHERE


_NOWHERE = Memory()


def _address(memory: Memory) -> int:
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr() if memory else 0


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _age(tensor: torch.Tensor) -> int:
    node: Any = tensor.grad_fn
    return 0 if node is None else node._sequence_nr()


def _sum(tensor: torch.Tensor) -> int:
    """A sum over the bytes of the storage that a tensor lies in."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return 0
    whole = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    return zlib.crc32(memoryview(whole.numpy()))  # type: ignore[arg-type]


def _class(module: str, qualname: str) -> Any:
    """What the model's process names: it is trusted here."""
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found
