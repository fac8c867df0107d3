"""What of a model stands among the values of a block: it travels as a place, not as an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Parameter

from nnsight.capture import portable
from nnsight.capture.block import Outer
from nnsight.capture.keep import Kept
from nnsight.capture.portable import BlockText
from nnsight.remote.errors import damaged, other_model, place_in_source, without_numbers
from nnsight.remote.model import Remotable
from nnsight.remote.reading import Reader
from nnsight.remote.shown import Show
from nnsight.remote.values import Node, Value, Writer
from nnsight.traces import edit_file
from nnsight.traces.edit import BlockBody, Edit, FunctionBody
from nnsight.traces.edit_text import TextBody

_SOURCES = ("nnsight.envoy.operations",)


def block_node(text: BlockText) -> Node:
    outer = text.outer
    about = [outer.name, outer.qualname, outer.flags, sorted(outer.names), outer.first_argument]
    return [text.filename, text.lineno, text.text, text.item, text.wrapped, about, text.cls]


def block_text(node: Node) -> BlockText:
    filename, lineno, text, item, wrapped, (name, qualname, flags, names, first), cls = node
    outer = Outer(name, qualname, flags, frozenset(names), first)
    return BlockText(filename, lineno, text, item, wrapped, outer, cls)


@dataclass
class ModelWriter:
    """Writes the parts of one model as places in it.

    Args:
        model: the traced model.
        tracer: what stands for the trace itself.
    """

    model: Remotable
    tracer: Any = None
    views: list[Any] = field(default_factory=list[Any])  # roots that differ in their edits
    _parts: dict[int, str] | None = None
    _modules: dict[int, str] | None = None
    _tensors: dict[int, str] | None = None

    def __call__(self, value: Any, writer: Writer) -> Node | None:
        if value is self.tracer and value is not None:
            return ["tracer"]
        if hasattr(type(value), "_place_of"):
            return self._envoy(value, writer)
        if type(value).__module__ in _SOURCES:
            raise writer.refused(value, *place_in_source())
        if isinstance(value, torch.nn.Module):
            place = self._module_place(value)
            return None if place is None else ["submodule", place]
        if isinstance(value, torch.Tensor) and (value.is_meta or isinstance(value, Parameter)):
            place = self._tensor_place(value)
            if place is None and value.device.type == "meta" and self.tracer is not None:
                raise writer.refused(value, *without_numbers())
            return None if place is None else ["parameter", place]
        if isinstance(value, Edit):
            return self._edit(value, writer)
        name = self._part(value)
        return None if name is None else ["part", name]

    def _envoy(self, value: Any, writer: Writer) -> Node:
        place = self.model._place_of(value)
        if place is None:
            raise other_model(writer.place() or value.path, self.model.path)
        return ["envoy", self.view(value), place]

    def view(self, envoy: Any) -> int:
        """The number of the view that an envoy belongs to."""
        root = envoy._at("")
        for index, known in enumerate(self.views):
            if known is root:
                return index
        self.views.append(root)
        return len(self.views) - 1

    def _part(self, value: Any) -> str | None:
        if self._parts is None:
            self._parts = {id(v): n for n, v in self.model._remote_parts().items()}
        return self._parts.get(id(value))

    def _module_place(self, value: torch.nn.Module) -> str | None:
        if self._modules is None:
            self._modules = {id(m): n for n, m in self.model._whole().named_modules()}
        return self._modules.get(id(value))

    def _tensor_place(self, value: torch.Tensor) -> str | None:
        if self._tensors is None:
            whole = self.model._whole()
            found = [*whole.named_parameters(), *whole.named_buffers()]
            self._tensors = {id(t): n for n, t in found}
        return self._tensors.get(id(value))

    def _edit(self, edit: Edit, writer: Writer) -> Node:
        about = [edit.name, edit.path, edit.every_step]
        if isinstance(edit.body, BlockBody):
            kept, form = edit.body.kept, edit.body.form
            used = writer.named(kept.used())
            text, module = portable.text_of(kept.block), kept.module.get("__name__", "__main__")
            return ["edit", *about, form, block_node(text), used, module]
        if isinstance(edit.body, TextBody):
            text, tensors = edit_file.compose([edit], lambda value: None)
            return ["edit as text", text, writer.value(tensors)]
        return ["edit as function", *about, writer.value(vars(edit.body))]

    def edits(self, writer: Writer) -> list[list[Value]]:
        """The edits of each view that was met; writing them may meet others."""
        found: list[list[Value]] = []
        writer.fill()
        while len(found) < len(self.views):
            root = self.views[len(found)]
            found.append([writer.value(edit) for edit in root._edits()])
            writer.fill()
        return found


@dataclass
class ModelReader:
    """Reads the parts of a model, from places in it.

    Args:
        model: the model, seen as the sender sees it.
        show: told each text that is compiled.
    """

    model: Remotable
    show: Show
    tracer: Any = None
    views: list[Any] = field(default_factory=list[Any])

    def makers(self) -> Mapping[str, Callable[[Node, Reader], Any]]:
        return {
            "envoy": lambda rest, reader: self.view(rest[0])._at(rest[1]),
            "submodule": lambda rest, reader: self.model._whole().get_submodule(rest[0]),
            "parameter": lambda rest, reader: _tensor_at(self.model._whole(), rest[0]),
            "part": lambda rest, reader: _part(self.model, rest[0]),
            "tracer": lambda rest, reader: self.tracer,
            "edit": self._edit,
            "edit as text": self._text_edit,
            "edit as function": self._function_edit,
        }

    def view(self, index: int) -> Any:
        """The root of a view; the first is the model itself."""
        while len(self.views) <= index:
            self.views.append(self.model if not self.views else self.model._twin())
        return self.views[index]

    def _edit(self, rest: Node, reader: Reader) -> Edit:
        name, path, every_step, form, node, used, module = rest
        text = block_text(node)
        self.show(text.filename, text.lineno, text.text)
        values = {name: reader.whole(value) for name, value in used.items()}
        names = {"__name__": module, "__builtins__": __builtins__}
        kept = Kept(portable.block_of(text), values, names)
        return Edit(name, path, BlockBody(kept, form), every_step)

    def _text_edit(self, rest: Node, reader: Reader) -> Edit:
        return edit_file.run(rest[0], "<edit>", reader.whole(rest[1]))[0]

    def _function_edit(self, rest: Node, reader: Reader) -> Edit:
        name, path, every_step, fields = rest
        return Edit(name, path, FunctionBody(**reader.whole(fields)), every_step)

    def put_edits(self, edits: list[list[Value]], reader: Reader) -> None:
        """Put the edits of each view in force."""
        for index, values in enumerate(edits):
            store = self.view(index)._edits()
            store[:] = [reader.whole(value) for value in values]


def _part(model: Remotable, name: str) -> Any:
    if name not in ("config", "generation_config", "tokenizer", "processor"):
        raise damaged(f"it names a part of a model that none has, {name!r}")
    return getattr(model, name)


def _tensor_at(whole: torch.nn.Module, place: str) -> torch.Tensor:
    owner, _, name = place.rpartition(".")
    return getattr(whole.get_submodule(owner), name)
