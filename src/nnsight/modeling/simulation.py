"""The process behind `remote="local"`: opens a model, runs one block beside it, and ends."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import msgspec

from nnsight.remote import pipe, wire
from nnsight.remote.code_reading import CodeReader, may_be_called, objects
from nnsight.remote.deadline import Deadline
from nnsight.remote.perform import Outcome, failure_of, perform
from nnsight.remote.reading import Reader
from nnsight.remote.tensors import MemoryReader


def main(descriptor: int) -> None:
    """Read a block from standard input, run it, write what came of it to `descriptor`."""

    def say(text: str) -> None:
        pipe.send(descriptor, pipe.LOG, text.encode())

    try:
        arrived = [content for _, content in pipe.receive(sys.stdin.fileno(), Deadline())]
        opening, body = arrived
        outcome = perform(body, _opened(opening), say)
    except Exception as error:  # before there was a block to run
        outcome = Outcome(None, failure_of(error, "server"))
    told = msgspec.json.encode(outcome.failure)
    pipe.send(descriptor, pipe.END, len(told).to_bytes(8, "little"), told, outcome.result or b"")
    sys.stdout.flush()
    os._exit(0)  # whatever threads the block left behind


def _opened(content: bytearray) -> Any:
    """The model that the sender has, with its weights."""
    message = wire.unpack(content)
    root, nodes = message.document
    reader = Reader(nodes, MemoryReader(message.buffers), objects, may_be_called)
    reader.special = CodeReader(lambda filename, lineno, text: None).makers()
    opening = reader.read(root)
    module, name = opening["class"]
    kind = getattr(importlib.import_module(module), name)
    model = kind.from_model_key(opening["key"], **opening["options"])
    model.dispatch()
    return model
