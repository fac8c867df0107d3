"""A captured block with its inputs as data, and what it saved as data: both ways.

What leaves: the block's own source, the values that its names have and no others, and the model by
its key. What comes back: the saved values by name, and what became of saved lists, dicts and
tensors that were sent along.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from nnsight.capture import portable
from nnsight.capture.entrance import call_at
from nnsight.capture.portable import Taken
from nnsight.capture.saving import Saves
from nnsight.capture.scope import Scope
from nnsight.capture.tracer import Tracer
from nnsight.config import CONFIG
from nnsight.remote import wire
from nnsight.remote.changes import Origin, Watch
from nnsight.remote.code_reading import CodeReader, may_be_called, objects
from nnsight.remote.code_values import CodeWriter
from nnsight.remote.context import RETURNED
from nnsight.remote.errors import NotSendableError, damaged, not_a_trace
from nnsight.remote.model import Remotable
from nnsight.remote.own_modules import own_modules
from nnsight.remote.parts import ModelReader, ModelWriter, block_node, block_text
from nnsight.remote.reading import Reader
from nnsight.remote.refuse import refuse_block
from nnsight.remote.shown import Show, shown_texts
from nnsight.remote.tensors import MemoryReader
from nnsight.remote.values import Node, Writer
from nnsight.traces.function import run_function
from nnsight.traces.model import Inputs
from nnsight.traces.scan import Scan
from nnsight.traces.session import Session
from nnsight.traces.trace import Trace

VERSION = 1
HERE = "<block>"
"""What the function is called that stands at the `with` of a block that came over the wire."""
_KINDS: dict[str, type[Tracer]] = {"trace": Trace, "scan": Scan, "session": Session}


# --- the block, on its way ------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A block as data."""

    key: str  # of the model
    pieces: list[Any]  # of the message, to be written one after the other
    sent: Mapping[int, Any]  # what travelled, by the number of its node
    imported: Mapping[str, str]  # packages that it needs there, and what needs each
    origin: Origin | None = None  # of its block

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return sum(memoryview(piece).nbytes for piece in self.pieces)


def write(
    tracer: Tracer,
    model: Remotable,
    is_local: Callable[[ModuleType], bool],
    compress: bool = True,
    function: Callable[[Any, Any], Any] | None = None,
) -> Request:
    """A captured block as data.

    Args:
        tracer: a trace, a scan or a session that was entered and left, and has not run.
        model: what it runs on.
        is_local: whether a module is the user's own, and travels by source.
        compress: whether to shrink what can be shrunk.
        function: what runs beside the model in place of a block.

    Raises:
        NotSendableError: something in it cannot leave this process; the error says what.
    """
    kind = next((name for name, cls in _KINDS.items() if type(tracer) is cls), None)
    if kind is None or (tracer.scope is None and function is None):
        raise not_a_trace(type(tracer).__name__)
    code, parts = CodeWriter(is_local), ModelWriter(model, tracer)
    parts.view(getattr(tracer, "model", model))
    writer = Writer(lambda value, writer: parts(value, writer) or code(value, writer))
    try:
        root = _root_of(tracer, model, kind, code, parts, writer, function)
    except NotSendableError as error:
        raise with_line(error, tracer.scope) from None
    document = writer.finished()
    pieces = wire.pack([root, document.nodes], document.buffers, compress)
    origin = None
    if (scope := tracer.scope) is not None:
        origin = Origin(scope.block.site.filename, scope.block.site.node.lineno, writer.place_of)
    return Request(root["model"], pieces, writer.written, code.imported, origin)


def _root_of(
    tracer: Tracer,
    model: Remotable,
    kind: str,
    code: CodeWriter,
    parts: ModelWriter,
    writer: Writer,
    function: Callable[[Any, Any], Any] | None,
) -> dict[str, Any]:
    """What a document begins with; all that it needs is written."""
    root: dict[str, Any] = {
        "version": VERSION,
        "kind": kind,
        "model": model.to_model_key(),
        "settings": writer.value(model._remote_settings(), "settings"),
        "function": writer.value(function),
        "block": None if tracer.scope is None else _block(tracer.scope, code, writer),
        "grad": torch.is_grad_enabled(),
        "app": {name: getattr(CONFIG.APP, name) for name in _SWITCHES},
    }
    if isinstance(tracer, Trace):
        root["at"] = parts(tracer.model, writer)
        root["args"] = writer.values(tracer.given.args)
        root["kwargs"] = writer.named(tracer.given.kwargs)
        root["fn"] = writer.value(tracer.fn, "fn")
        root["report"] = tracer.wants_report()
    root["edits"] = parts.edits(writer)
    root["modules"] = code.modules
    writer.fill()
    code.settle(writer)
    return root


def with_line(
    error: NotSendableError, scope: Scope | None, whole: bool = False
) -> NotSendableError:
    """The error with the line of the block that names what cannot be sent.

    Args:
        error: of a value, by its path, or of the whole block.
        scope: of the block.
        whole: whether it is of the whole block, where no line names it.
    """
    name = re.match(r"\w*", error.path)
    if scope is None or name is None:
        return error
    nodes = [node for statement in scope.block.body for node in ast.walk(statement)]
    lines = [n.lineno for n in nodes if isinstance(n, ast.Name) and n.id == name[0]]
    if whole and not lines:
        lines = [scope.block.site.node.lineno]
    if lines:
        error.args = (f"{scope.block.site.filename}, line {min(lines)}: {error}",)
    return error


def _block(scope: Scope, code: CodeWriter, writer: Writer) -> dict[str, Any]:
    """A captured block, with the values that its names have."""
    refuse_block(scope)
    taken, module = portable.taken_by(scope), scope.globals.get("__name__", "__main__")
    return {
        "text": block_node(portable.text_of(scope.block)),
        "cells": writer.named(taken.cells),
        "globals": code.namespace(module, scope.globals, taken.globals, writer),
    }


_SWITCHES = ("CROSS_INVOKER", "LEGACY", "PYMOUNT")


# --- the block, arrived ---------------------------------------------------------------------------


@dataclass
class Arrived:
    """A block that came over the wire, ready to run."""

    tracer: Tracer
    scope: Scope | None
    function: Callable[[Any, Any], Any] | None
    grad: bool
    sent: Mapping[int, Any]
    reporting: bool = False  # whether the sender wants to know what happens
    watch: Watch | None = None  # of what was sent
    saves: Saves = field(default_factory=Saves)

    def run(self) -> dict[str, Any]:
        """What the block saves, by name.

        Raises:
            BaseException: what it raises, with `saved` on it.
        """
        if isinstance(self.tracer, Trace):
            self.tracer.reporting = self.reporting
        with torch.set_grad_enabled(self.grad):
            if (scope := self.scope) is None:
                assert isinstance(self.tracer, Trace) and self.function is not None
                return {RETURNED: run_function(self.tracer, self.function)}
            names = _from_its_line(scope, lambda: self.tracer.run_apart(scope, self.saves))
        return {name: value for name, value in names.items() if not isinstance(value, Tracer)}


def _from_its_line(scope: Scope, run: Callable[[], Any]) -> Any:
    """Run a block as if its `with` stood here: what is said of all of it is said at that line."""
    site, module = scope.block.site, scope.globals.get("__name__", "__main__")
    return call_at(site.filename, HERE, (site.node.lineno, site.node.lineno, 0, 0), run, module)


def _root(message: wire.Message) -> dict[str, Any]:
    if not isinstance(message.document, list) or len(message.document) != 2:
        raise damaged("it holds no block")
    root, nodes = message.document
    whole = isinstance(root, dict) and isinstance(nodes, list) and _REQUIRED <= root.keys()
    if not whole or root["version"] != VERSION:
        raise damaged("it holds no block that this release knows")
    return root


_REQUIRED = set("version kind model settings function block grad app edits modules".split())


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
    message = wire.unpack(content, largest)
    root = _root(message)
    with contextlib.ExitStack() as undo:
        show = undo.enter_context(shown_texts())
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
    parts, code = ModelReader(model, show), CodeReader(show, root["modules"])
    device = getattr(model, "device", None)
    reader = Reader(nodes, MemoryReader(buffers), objects, may_be_called, {}, device)
    reader.special = {**parts.makers(), **code.makers()}
    for _, _, _, names in root["modules"].values():
        reader.read(names)
    parts.model = model._with_remote_settings(reader.read(root["settings"]))
    cls = _KINDS[root["kind"]]
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
    scope = None if root["block"] is None else _scope(root["block"], reader, show)
    function = reader.read(root["function"])
    parts.put_edits(root["edits"], reader)
    wanted = root.get("report") is True
    watch = Watch(nodes, reader.made)
    return Arrived(tracer, scope, function, root["grad"], reader.made, wanted, watch)


def _scope(node: dict[str, Any], reader: Reader, show: Show) -> Scope:
    """The variables of a block that came over the wire."""
    text = block_text(node["text"])
    show(text.filename, text.lineno, text.text)
    names = reader.read(node["globals"])
    cells = {name: reader.read(value) for name, value in node["cells"].items()}
    return portable.scope_of(portable.block_of(text), Taken(cells, names))


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
