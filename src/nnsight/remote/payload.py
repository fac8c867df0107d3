"""A captured block with its inputs as data, and what it saved as data: both ways.

What leaves: the block's own source, the values that its names have and no others, and the model by
its key. What comes back: the saved values by name, and what became of saved lists, dicts and
tensors that were sent along.
"""

from __future__ import annotations

import contextlib
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from nnsight.capture import portable
from nnsight.capture.portable import Taken
from nnsight.capture.saving import Saves
from nnsight.capture.tracer import Tracer
from nnsight.config import CONFIG
from nnsight.remote import data_only, wire
from nnsight.remote.code_values import CodeReader, CodeWriter, objects
from nnsight.remote.errors import damaged, not_a_trace
from nnsight.remote.messages import Warned
from nnsight.remote.model import Remotable
from nnsight.remote.own_modules import own_modules
from nnsight.remote.parts import ModelReader, ModelWriter, Show, block_node, block_text
from nnsight.remote.refuse import refuse_block
from nnsight.remote.tensors import tensor_of
from nnsight.remote.values import Node, Reader, Writer
from nnsight.traces.model import Inputs
from nnsight.traces.scan import Scan
from nnsight.traces.session import Session
from nnsight.traces.trace import Trace

VERSION = 1
_KINDS: dict[str, type[Tracer]] = {"trace": Trace, "scan": Scan, "session": Session}


# --- the block, on its way ------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A block as data."""

    key: str  # of the model
    pieces: list[Any]  # of the message, to be written one after the other
    sent: Mapping[int, Any]  # what travelled, by the number of its node
    imported: Mapping[str, str]  # packages that it needs there, and what needs each

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(memoryview(piece).nbytes for piece in self.pieces)


def write(
    tracer: Tracer,
    model: Remotable,
    is_local: Callable[[ModuleType], bool],
    compress: bool = True,
) -> Request:
    """A captured block as data.

    Args:
        tracer: a trace, a scan or a session that was entered and left, and has not run.
        model: what it runs on.
        is_local: whether a module is the user's own, and travels by source.
        compress: whether to shrink what can be shrunk.

    Raises:
        NotSendableError: something in it cannot leave this process; the error says what.
    """
    kind = next((name for name, cls in _KINDS.items() if type(tracer) is cls), None)
    if kind is None or tracer.scope is None:
        raise not_a_trace(type(tracer).__name__)
    scope = tracer.scope
    refuse_block(scope)
    code, parts = CodeWriter(is_local), ModelWriter(model, tracer)
    parts.view(getattr(tracer, "model", model))
    writer = Writer(lambda value, writer: parts(value, writer) or code(value, writer))
    taken = portable.taken_by(scope)
    root: dict[str, Any] = {
        "version": VERSION,
        "kind": kind,
        "model": model.to_model_key(),
        "settings": writer.value(model._remote_settings(), "settings"),
        "block": block_node(portable.text_of(scope.block)),
        "cells": writer.named(taken.cells),
        "globals": code.namespace(scope.globals["__name__"], scope.globals, taken.globals, writer),
        "grad": torch.is_grad_enabled(),
        "app": {name: getattr(CONFIG.APP, name) for name in _SWITCHES},
    }
    if isinstance(tracer, Trace):
        root["at"] = parts(tracer.model, writer)
        root["args"] = writer.values(tracer.given.args)
        root["kwargs"] = writer.named(tracer.given.kwargs)
        root["fn"] = writer.value(tracer.fn, "fn")
    root["edits"] = parts.edits(writer)
    root["modules"] = code.modules
    document = writer.finished()
    pieces = wire.pack([root, document.nodes], document.buffers, compress)
    return Request(root["model"], pieces, writer.written, code.imported)


_SWITCHES = ("CROSS_INVOKER", "LEGACY", "PYMOUNT")


# --- the block, arrived ---------------------------------------------------------------------------


@dataclass
class Arrived:
    """A block that came over the wire, ready to run."""

    tracer: Tracer
    scope: Any
    grad: bool
    sent: Mapping[int, Any]
    saves: Saves = field(default_factory=Saves)

    def run(self) -> dict[str, Any]:
        """What the block saves, by name.

        Raises:
            BaseException: what it raises, with `saved` on it.
        """
        with torch.set_grad_enabled(self.grad):
            names = self.tracer.run_apart(self.scope, self.saves)
        return {name: value for name, value in names.items() if not isinstance(value, Tracer)}


def key_of(content: Any) -> str:
    """The key of the model that a message is for.

    Raises:
        PayloadError: it is damaged.
    """
    return _root(wire.unpack(content))["model"]


def _root(message: wire.Message) -> dict[str, Any]:
    if not isinstance(message.document, list) or len(message.document) != 2:
        raise damaged("it holds no block")
    root, nodes = message.document
    whole = isinstance(root, dict) and isinstance(nodes, list) and _REQUIRED <= root.keys()
    if not whole or root["version"] != VERSION:
        raise damaged("it holds no block that this release knows")
    return root


_REQUIRED = {"version", "kind", "model", "settings", "block", "cells", "globals", "grad", "app"} | {
    "edits",
    "modules",
}


@contextlib.contextmanager
def arrived(content: Any, model: Remotable, largest: int | None = None) -> Iterator[Arrived]:
    """The block of a message; what it brought along is gone when the `with` ends.

    Args:
        content: the message.
        model: the one that it is for.
        largest: how many bytes it may unfold to.

    Raises:
        PayloadError: it is damaged, or needs what this side does not have.
    """
    message = wire.unpack(content) if largest is None else wire.unpack(content, largest)
    root = _root(message)
    with contextlib.ExitStack() as undo:
        show = undo.enter_context(_shown_texts())
        undo.enter_context(own_modules(root["modules"], show))
        undo.enter_context(_switches(root["app"]))
        yield _read(root, message.document[1], message.buffers, model, show)


def _read(
    root: dict[str, Any],
    nodes: list[Node],
    buffers: Sequence[memoryview],
    model: Remotable,
    show: Show,
) -> Arrived:
    parts, code = ModelReader(model, show), CodeReader(show)
    device = getattr(model, "device", None)
    reader = Reader(nodes, buffers, objects, callable, {}, device)
    reader.special = {**parts.makers(), **code.makers()}
    parts.model = model._with_remote_settings(reader.read(root["settings"]))
    cls = _KINDS[root["kind"]]
    text = block_text(root["block"])
    show(text.filename, text.lineno, text.text)
    if cls is Session:
        tracer: Tracer = Session()
    else:
        _, index, place = root["at"]
        at = parts.view(index)._at(place)
        args = tuple(reader.read(value) for value in root["args"])
        kwargs = {name: reader.read(value) for name, value in root["kwargs"].items()}
        assert issubclass(cls, Trace)
        tracer = cls(at, Inputs(args, kwargs), reader.read(root["fn"]))
    parts.tracer = tracer
    names = reader.read(root["globals"])
    cells = {name: reader.read(value) for name, value in root["cells"].items()}
    parts.put_edits(root["edits"], reader)
    scope = portable.scope_of(portable.block_of(text), Taken(cells, names))
    return Arrived(tracer, scope, root["grad"], reader.made)


@contextlib.contextmanager
def _switches(values: Mapping[str, bool]) -> Iterator[None]:
    """The switches of the sender, for as long as its block runs."""
    before = {name: getattr(CONFIG.APP, name) for name in _SWITCHES}
    try:
        for name in _SWITCHES:
            setattr(CONFIG.APP, name, bool(values[name]))
        yield
    finally:
        for name, value in before.items():
            setattr(CONFIG.APP, name, value)


@contextlib.contextmanager
def _shown_texts() -> Iterator[Show]:
    """Lets errors show the lines of texts that came over the wire; forgets them at the end."""
    before: dict[str, Any] = {}
    lines: dict[str, dict[int, str]] = {}

    def show(filename: str, lineno: int, text: str) -> None:
        before.setdefault(filename, linecache.cache.get(filename))
        known = lines.setdefault(filename, {})
        known.update(enumerate(text.splitlines(keepends=True), lineno))
        whole = [known.get(n, "\n") for n in range(1, max(known, default=0) + 1)]
        linecache.cache[filename] = (sum(map(len, whole)), None, whole, filename)

    try:
        yield show
    finally:
        for filename, entry in before.items():
            if entry is None:
                linecache.cache.pop(filename, None)
            else:
                linecache.cache[filename] = entry


# --- what comes back ------------------------------------------------------------------------------


@dataclass
class _ResultWriter:
    """Writes what a block saved, so that nothing but data is needed to read it."""

    parts: ModelWriter
    sent: dict[int, int]  # object to number

    def __call__(self, value: Any, writer: Writer) -> Node | None:
        index = self.sent.get(id(value))
        if index is not None:
            return ["sent", index, *_state(value, writer)]
        if hasattr(type(value), "_place_of"):
            return self.parts(value, writer)
        kind = type(value)
        if isinstance(value, type):
            if data_only.allowed(value) or value is object:
                return ["name", value.__module__, value.__qualname__]
            raise writer.refused(value, "classes of this side mean nothing on yours")
        if callable(value) and not isinstance(value, torch.nn.Module):
            if data_only.allowed(value):
                return ["name", value.__module__, value.__qualname__]
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


def _state(value: Any, writer: Writer) -> list[Any]:
    """What became of a thing that was sent along and can be changed."""
    kind = type(value)
    if kind is list or kind is set:
        return [kind.__name__, writer.values(value)]
    if kind is dict:
        return ["dict", writer.pairs(value)]
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return ["tensor", *writer.tensors.node(value)[1:]]
    return []


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
    values = {}
    for name, value in names.items():
        writer.trail[:] = [name]
        values[name] = writer.value(value)
    writer.trail.clear()
    changed = [writer.value(value) for value in arrived.saves if id(value) in sent]
    root = {"version": VERSION, "names": values, "changed": changed, "warned": list(warned)}
    document = writer.finished()
    return wire.pack([root, document.nodes], document.buffers, compress)


def _is_small(value: Any) -> bool:
    return isinstance(value, (str, bytes, int, float, complex, tuple, frozenset, type(None)))


@dataclass(frozen=True)
class Result:
    """What a block saved, on the side that it was written on."""

    names: dict[str, Any]
    warned: list[Warned]


def read_result(content: Any, sent: Mapping[int, Any], model: Any = None) -> Result:
    """What a block saved.

    Args:
        content: the message.
        sent: what travelled with the block, by number; empty for another process than the sender.
        model: the model of this side.

    Raises:
        PayloadError: the message is damaged, or holds what is no data.
    """
    message = wire.unpack(content)
    document = message.document
    if not isinstance(document, list) or len(document) != 2 or "names" not in document[0]:
        raise damaged("it holds no values")
    root, nodes = document
    own = {id(value) for value in sent.values() if isinstance(value, type)}

    def may_be_made(function: Any) -> bool:
        return data_only.allowed(function) or id(function) in own

    reader = Reader(nodes, message.buffers, data_only.objects, may_be_made)
    reader.special = {
        "sent": lambda rest, reader: _sent(rest, reader, sent),
        "envoy": lambda rest, reader: model._at(rest[1]),
    }
    names = {name: reader.read(value) for name, value in root["names"].items()}
    for value in root["changed"]:  # what was sent, and saved there without a name of its own
        reader.read(value)
    warned = [Warned(*entry) for entry in root["warned"]]
    return Result(names, warned)


def _sent(rest: Node, reader: Reader, sent: Mapping[int, Any]) -> Any:
    index, *state = rest
    if index not in sent:
        raise damaged("it refers to what was not sent")
    found = sent[index]
    if state:
        kind, *content = state
        reader.later(lambda: _change(found, kind, content, reader))
    return found


def _change(found: Any, kind: str, content: list[Any], reader: Reader) -> None:
    """Make of a thing that was sent what became of it there."""
    if kind == "list":
        found[:] = [reader.value(value) for value in content[0]]
    elif kind == "set":
        now = {reader.whole(value) for value in content[0]}
        found.clear()
        found.update(now)
    elif kind == "dict":
        now = {reader.whole(key): reader.value(value) for key, value in content[0]}
        found.clear()
        found.update(now)
    elif kind == "tensor":
        with torch.no_grad():
            now = tensor_of(content, reader.buffers, None)
            if now.shape == found.shape and not torch.equal(now.to(found), found):
                found.copy_(now)
