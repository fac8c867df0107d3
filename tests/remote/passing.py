"""A value on its way: through a message's bytes and back, as a server reads it or as a client."""

from __future__ import annotations

from typing import Any

from nnsight.remote import data_only, wire
from nnsight.remote.code_reading import CodeReader, may_be_called, objects
from nnsight.remote.code_values import CodeWriter
from nnsight.remote.environment import is_local
from nnsight.remote.own_modules import own_modules
from nnsight.remote.reading import Reader
from nnsight.remote.tensors import MemoryReader
from nnsight.remote.values import Writer


def packed(value: Any, compress: bool = True) -> bytearray:
    """The bytes of a value."""
    code = CodeWriter(is_local)
    writer = Writer(code)
    root = writer.value(value)
    writer.fill()
    code.settle(writer)
    document = writer.finished(root)
    return wire.join(
        wire.pack([document.root, document.nodes, code.modules], document.buffers, compress)
    )


def read(content: Any) -> Any:
    """The value of bytes, as a server reads it."""
    message = wire.unpack(content)
    root, nodes, modules = message.document

    def show(filename: str, lineno: int, text: str) -> None:
        pass

    with own_modules(modules, show):
        reader = Reader(nodes, MemoryReader(message.buffers), objects, may_be_called)
        reader.special = CodeReader(show, modules).makers()
        for _, _, _, names in modules.values():
            reader.read(names)
        return reader.read(root)


def read_data(content: Any) -> Any:
    """The value of bytes, as a client reads it: nothing but data."""
    message = wire.unpack(content)
    root, nodes, *_ = message.document
    memory = MemoryReader(message.buffers)
    return Reader(nodes, memory, data_only.objects, data_only.may_be_called).read(root)


def passed(value: Any) -> Any:
    """The value that a server reads."""
    return read(packed(value))
