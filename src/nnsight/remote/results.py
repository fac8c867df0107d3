"""What a block saved, as data: from where it ran to where it was written."""

from __future__ import annotations

import copyreg
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import msgspec
import numpy
import torch
from torch._subclasses import FakeTensor

from nnsight.capture.tracer import Tracer
from nnsight.remote import data_only, wire
from nnsight.remote.changes import Left, Origin, warning
from nnsight.remote.environment import is_local
from nnsight.remote.errors import PayloadError, damaged
from nnsight.remote.messages import Warned
from nnsight.remote.model import Remotable
from nnsight.remote.parts import ModelWriter
from nnsight.remote.payload import VERSION, Arrived
from nnsight.remote.reading import Reader
from nnsight.remote.tensors import MemoryReader, put_beside, what_is_beside
from nnsight.remote.values import Node, Writer
from nnsight.traces.report import Report
from nnsight.traces.trace import Trace


@dataclass
class _ResultWriter:
    """Writes what a block saved, so that nothing but data is needed to read it."""

    parts: ModelWriter
    sent: dict[int, int]  # object to number
    only: set[int] | None = None  # the objects of which to say what became of them; None: of all
    bare: set[int] = field(default_factory=set[int])  # those of which it was not said

    def __call__(self, value: Any, writer: Writer) -> Node | None:
        index = self.sent.get(id(value))
        if index is not None:
            if self.only is not None and id(value) not in self.only:
                self.bare.add(id(value))
                return ["sent", index]
            plain = id(type(value)) in self.sent or data_only.allowed(type(value))
            return ["sent", index, *_state(value, writer, plain)]
        if hasattr(type(value), "_place_of"):
            return self.parts(value, writer)
        kind = type(value)
        if isinstance(value, FakeTensor):  # what a scan gives: a shape, without numbers
            about = {"dtype": value.dtype, "device": "meta"}
            return writer.memory.tensor(torch.empty_strided(value.shape, value.stride(), **about))
        if isinstance(value, type):
            if data_only.allowed(value) or value is object:
                return ["name", value.__module__, value.__qualname__]
            raise writer.refused(value, "classes of this side mean nothing on yours")
        if value is copyreg.__newobj__:  # type: ignore[attr-defined]
            return ["name", "copyreg", "__newobj__"]
        if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType)):
            raise writer.refused(value, "it is code, and only values come back")
        plain = kind.__module__ in ("builtins", "torch", "numpy")
        if not plain and not isinstance(value, torch.Tensor) and id(kind) not in self.sent:
            if not data_only.allowed(kind) and not kind.__module__.startswith("numpy"):
                raise writer.refused(
                    value,
                    "objects of this class do not come back",
                    "Save the tensors and numbers in it.",
                )
        return None


def _state(value: Any, writer: Writer, plain: bool) -> list[Any]:
    """What became of a thing that was sent along and can be changed.

    Args:
        value: the thing.
        writer: of the result.
        plain: whether its class was sent too, or only holds data: it is no part of the model.
    """
    kind = type(value)
    if kind in (list, set, deque):
        return [kind.__name__, writer.values(value)]
    if isinstance(value, dict):
        return ["dict", writer.pairs(value.items())]
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        held = writer.reserve("", writer.memory.tensor(value))
        return ["tensor", [held], writer.named(what_is_beside(value))]
    if kind is numpy.ndarray and not getattr(value.dtype, "hasobject"):  # noqa: B009
        return ["array", [writer.reserve("", writer.of_numpy(value))]]
    if plain and _has_attributes(value):
        return ["attributes", writer.pairs(vars(value).items())]
    return []


def _has_attributes(value: Any) -> bool:
    """Whether a value is an object with attributes, and neither code nor a part of a model."""
    code = isinstance(value, (type, ModuleType, FunctionType)) or hasattr(type(value), "_place_of")
    return not code and type(getattr(value, "__dict__", None)) is dict


def write_result(
    names: Mapping[str, Any],
    arrived: Arrived,
    model: Remotable,
    warned: Sequence[Warned] = (),
    compress: bool = True,
) -> list[Any]:
    """What a block saved, as data: the pieces of a message.

    Raises:
        NotSendableError: a name holds what cannot come back; the error says which.
    """
    sent = {id(value): index for index, value in arrived.sent.items() if not _is_small(value)}
    special = _ResultWriter(ModelWriter(model), sent)
    writer = Writer(special)
    values = writer.named(names)
    changed = [writer.value(value) for value in _within(arrived.saves) if id(value) in sent]
    writer.fill()
    filled = list(_filled(arrived, sent))
    special.only = set(map(id, filled))
    changed += map(writer.value, filled)
    root = {"version": VERSION, "names": values, "changed": changed, "warned": list(warned)}
    if isinstance(arrived.tracer, Trace) and arrived.tracer.journal is not None:
        root["report"] = writer.value(arrived.tracer.report())
    document = writer.finished()
    root["left"] = _left(arrived, {id(value) for value in writer.written.values()} - special.bare)
    return wire.pack([root, document.nodes], document.buffers, compress)


def _left(arrived: Arrived, back: set[int]) -> list[Left]:
    """What the block changed of what was sent, and what does not come `back`."""
    if arrived.watch is None:
        return []
    return [left for left, value in arrived.watch.changed() if id(value) not in back]


def _within(values: Iterable[Any]) -> Iterator[Any]:
    """Values, and what the containers among them hold: `save([a, b])` saves both."""
    pending, seen = deque(values), set[int]()
    while pending:
        value = pending.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if type(value) is dict:
            pending += value.values()
        elif type(value) in (list, tuple, set, frozenset, deque):
            pending += value


def _filled(arrived: Arrived, sent: Mapping[int, int]) -> Iterator[Any]:
    """Things that were sent and hold now what was saved: `self.out = x.save()`."""
    new = {id(v) for v in arrived.saves if id(v) not in sent and not _is_small(v)}
    for value in arrived.sent.values() if new else ():
        held = _held(value)
        if type(value) is not tuple and id(type(value)) in sent and _has_attributes(value):
            held = vars(value).values()
        fresh = [each for each in held if id(each) not in sent]
        if any(id(each) in new for each in _within(fresh)):
            yield value


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if type(value) in (list, set, deque) else ()


def _is_small(value: Any) -> bool:
    return isinstance(value, (str, bytes, int, float, complex, tuple, frozenset, type(None)))


@dataclass(frozen=True)
class Result:
    """What a block saved, on the side that it was written on."""

    names: dict[str, Any]
    warned: list[Warned]
    report: Report | None = None

    def give(self, tracer: Tracer) -> None:
        """Hand a tracer what its block did elsewhere."""
        tracer.received = self.names
        if isinstance(tracer, Trace):
            tracer.reported = self.report


def read_result(
    content: Any, sent: Mapping[int, Any], model: Any = None, origin: Origin | None = None
) -> Result:
    """What a block saved.

    Args:
        content: the message.
        sent: what travelled with the block, by number; empty for another process than the sender.
        model: the model of this side.
        origin: of the block, to warn of what changed there and not here.

    Raises:
        PayloadError: the message is damaged, or holds what is no data.
    """
    message = wire.unpack(content)
    root, nodes = _parts_of(message.document)
    own = {id(v) for v in sent.values() if isinstance(v, type) and not _is_installed(v)}

    def may_be_called(function: Any, given: list[Any]) -> bool:
        return data_only.may_be_called(function, given, own)

    reader = Reader(nodes, MemoryReader(message.buffers), data_only.objects, may_be_called)
    reader.special = {
        "sent": lambda rest, reader: _sent(rest, reader, sent),
        "envoy": lambda rest, reader: model._at(rest[1]),
    }
    try:
        names = {name: reader.read(value) for name, value in root["names"].items()}
        for value in root["changed"]:  # what was sent, and saved there without a name of its own
            reader.read(value)
        report = reader.read(root.get("report"))
        report = report if isinstance(report, Report) else None
        warned = msgspec.convert(root["warned"], list[Warned])
        if origin is not None:
            left = msgspec.convert(root.get("left", []), list[tuple[int, str]])
            warned += warning([list(each) for each in left if each[0] in sent or each[1]], origin)
        return Result(names, warned, report)
    except PayloadError:
        raise
    except Exception as error:  # of a class that was made from what it cannot be made from
        raise damaged(f"it does not fit together ({type(error).__name__})") from error


def _parts_of(document: Any) -> tuple[dict[str, Any], list[Node]]:
    """The root and the nodes of a document."""
    if isinstance(document, list) and len(document) == 2:
        root, nodes = document
        if isinstance(root, dict) and isinstance(nodes, list):
            kinds = {"names": dict, "changed": list, "warned": list}
            if all(isinstance(root.get(name), kind) for name, kind in kinds.items()):
                return root, nodes
    raise damaged("it holds no values")


def _is_installed(cls: type) -> bool:
    """Whether a class travelled as a name, and not as the user's own."""
    module = sys.modules.get(cls.__module__)
    return module is not None and not is_local(module)


def _sent(rest: Node, reader: Reader, sent: Mapping[int, Any]) -> Any:
    index, *state = rest
    if type(index) is not int or index not in sent:
        raise damaged("it refers to what was not sent")
    found = sent[index]
    if state:
        kind, *content = state
        own = any(type(found) is each for each in sent.values()) or data_only.allowed(type(found))
        known = own or kind != "attributes"
        if not known or not isinstance(found, _CHANGED.get(kind, ())):
            raise damaged("it changes what was sent as something else")
        reader.later(lambda: _change(found, kind, content, reader))
    return found


_CHANGED: dict[str, Any] = {
    **{kind.__name__: kind for kind in (list, set, deque, dict)},
    "tensor": torch.Tensor,
    "array": numpy.ndarray,
    "attributes": object,
}


def _change(found: Any, kind: str, content: list[Any], reader: Reader) -> None:
    """Make of a thing that was sent what became of it there."""
    if kind == "list":
        found[:] = [reader.value(value) for value in content[0]]
    elif kind == "deque":
        now = [reader.value(value) for value in content[0]]
        found.clear()
        found.extend(now)
    elif kind == "attributes":
        now = {str(key): reader.value(value) for key, value in content[0]}
        if not _has_attributes(found):
            raise damaged("it changes what holds no attributes")
        vars(found).clear()
        vars(found).update(now)
    elif kind == "array":
        now = reader.value(content[0])
        if now.shape == found.shape and now.dtype == found.dtype and found.flags.writeable:
            found[...] = now
    elif kind == "set":
        now = {reader.whole(value) for value in content[0]}
        found.clear()
        found.update(now)
    elif kind == "dict":
        now = {reader.whole(key): reader.value(value) for key, value in content[0]}
        found.clear()
        for key, value in now.items():  # outputs of transformers know no `update`
            found[key] = value
    elif kind == "tensor":
        with torch.no_grad():
            now = reader.value(content[0])
            if now.shape == found.shape and not torch.equal(now.to(found), found):
                found.copy_(now)
            for name, value in content[1].items():
                put_beside(found, name, reader.whole(value))
