"""What a damaged or malicious message can do: nothing but be refused, in one sentence."""

from __future__ import annotations

import collections
import pathlib
import random
import time
import types
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import zstandard

from nnsight.capture.saving import Saves
from nnsight.remote import data_only, wire
from nnsight.remote.environment import is_local
from nnsight.remote.errors import PayloadError
from nnsight.remote.failure import error_of, raise_through
from nnsight.remote.messages import Failure, Line
from nnsight.remote.reading import Reader
from nnsight.remote.results import read_result, write_result
from nnsight.remote.tensors import MemoryReader
from tests.remote.passing import packed

SEEDS = 3000


class Own:
    """A class of the sender's: `made` counts its `__init__`."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1


def message() -> list[Any]:
    """The root and nodes of a result with one of everything, and its buffers."""
    numbers, ring = torch.randn(4, 6), [1, 2]
    ring.append(ring)
    names = {
        "views": [numbers, numbers[1:, ::2], numbers.T, torch.ones(2, dtype=torch.bfloat16)],
        "arrays": (np.arange(6).reshape(2, 3), np.float16(2.5), np.array(["a"], dtype=object)),
        "kinds": [collections.OrderedDict(a=1), collections.deque([1], 3), pathlib.Path("a")],
        "odd": {(1, "a"): {2.5, None}, 10**40: slice(1, None, 2), "b": b"xyz", "r": range(3)},
        "sparse": torch.eye(3).to_sparse(),
        "ring": ring,
        "error": ValueError("x"),
        "types": [torch.float16, torch.device("cpu"), torch.Size([1]), torch.channels_last, ...],
    }
    arrived: Any = types.SimpleNamespace(sent={}, saves=Saves(), tracer=None, watch=None)
    pieces = write_result(names, arrived, types.SimpleNamespace(), compress=False)  # type: ignore[arg-type]
    whole = wire.unpack(wire.join(pieces))
    return [whole.document, [bytes(b) for b in whole.buffers]]


def strange(dice: random.Random, nodes: int) -> Any:
    """A value that may stand anywhere."""
    return dice.choice(
        [
            [dice.randrange(nodes)],
            dice.randrange(-3, 70),
            dice.choice([2**31, 2**40, 2**62, 2**63, 2**64 - 1, -1, -(2**63)]),
            [],
            [[]],
            [-1],
            [2**63],
            ["x"],
            None,
            True,
            2.5,
            "x" * dice.randrange(3),
            b"\xff",
            {},
            {"a": [0]},
            dice.choice(["float32", "complex128", "tensor", "object", "list", "meta", "cuda"]),
        ]
    )


def mutated(value: Any, dice: random.Random, nodes: int, rate: float) -> Any:
    """A value with some of its parts replaced, dropped, doubled or swapped."""
    if dice.random() < rate:
        return strange(dice, nodes)
    if isinstance(value, dict):
        return {k: mutated(v, dice, nodes, rate) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    found = [mutated(v, dice, nodes, rate) for v in value]
    if found and dice.random() < rate:
        at = dice.randrange(len(found))
        found[at : at + dice.randrange(2)] = [found[at]] * dice.randrange(3)
    return found


def touch(value: Any, depth: int = 3) -> None:
    """Use what was read: a tensor that lies where nothing is would end the process."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.numel() < 10**6:
        value.detach().clone()
    elif isinstance(value, np.ndarray) and value.size < 10**6:
        value.copy()
    elif isinstance(value, (list, tuple)) and depth:
        for member in value:
            touch(member, depth - 1)
    elif isinstance(value, dict) and depth:
        touch(list(value.values()), depth - 1)


def tried(content: Any) -> bool:
    """Whether a message is read; if not it is refused as it should be."""
    try:
        found = read_result(bytearray(content), {}, None)
    except PayloadError as error:
        assert str(error).startswith("This message") and str(error).endswith(".")
        assert len(str(error)) < 400
        return False
    touch(found.names)
    return True


def test_messages_whose_parts_are_mixed_up_are_refused_or_read():
    (root, nodes), buffers = message()
    read = 0
    for seed in range(SEEDS):
        dice = random.Random(seed)
        rate = dice.choice([0.002, 0.01, 0.05])
        document = [
            mutated(root, dice, len(nodes), rate / 3),
            mutated(nodes, dice, len(nodes), rate),
        ]
        read += tried(wire.join(wire.pack(document, buffers, compress=False)))
    assert 0.02 * SEEDS < read < 0.8 * SEEDS  # some of both, or nothing is tested


@pytest.mark.parametrize("compress", [True, False])
def test_messages_with_flipped_and_lost_bytes_are_refused_or_read(compress: bool):
    (root, nodes), buffers = message()
    whole = wire.join(wire.pack([root, nodes], [*buffers, bytes(5000)], compress))
    assert tried(whole)
    refused = 0
    for seed in range(SEEDS):
        dice, content = random.Random(seed), bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            content[dice.randrange(min(len(content), 2500))] = dice.randrange(256)
        if seed % 3 == 0:
            del content[dice.randrange(len(content)) :]
        refused += not tried(content)
    assert refused > SEEDS / 3


def test_any_bytes_are_refused():
    for seed in range(SEEDS):
        dice = random.Random(seed)
        content = dice.randbytes(dice.randrange(200))
        assert not tried(content) and not tried(wire.MAGIC + content)


def bomb(raw: int, stored: bytes) -> bytes:
    """A message whose document is said to unfold to `raw` bytes."""
    head = msgspec.msgpack.encode([[len(stored), raw, True], []])
    start = wire.MAGIC + len(head).to_bytes(4, "little") + head
    return start + bytes(-len(start) % 64) + stored


def test_bombs_do_not_go_off():
    began = time.monotonic()
    zeros = zstandard.compress(bytes(64 << 20))
    nodes = {
        "it is too large": bomb(9 << 30, zeros),
        "lengths": bomb(1000, zeros),
        "lengths contradict": bomb(-1, zeros),
        "cannot be read": wire.join(wire.pack([{}, b"\x91" * 10**6])),
    }
    nested = b"\x91" * 10**6 + b"\x90"
    nodes["a part of it cannot be read"] = bomb(len(nested), zstandard.compress(nested))
    for content in nodes.values():
        assert not tried(content)
    for node in (
        ["bytes", 2**40],
        ["bytearray", 2**40],
        ["object", [1], [[2]], None, [], []],
        ["array", "<f4", False, [2**40], 0, [4], 0],
        ["tensor", "float32", [2**40], False, False, "cpu", 0, [1], 0],
        ["tensor", "float32", [2, 2], False, False, "cpu", 0, [2**61, 2**61], 0],
        ["tensor", "float32", [2, 2], False, False, "cpu", 0, [-1, 1], 8],
        ["tensor", "float32", [2], False, False, "cpu", 0, [1], 2],
    ):
        table = [node, ["name", "builtins", "bytes"], ["range", 0, 2**40, None]]
        reader = Reader(table, MemoryReader([memoryview(bytearray(16))]))
        reader.objects, reader.callables = data_only.objects, data_only.may_be_called
        with pytest.raises(PayloadError):
            reader.read([0])
    assert time.monotonic() - began < 10


CALLS = [
    ("builtins", "eval", ["1"]),
    ("builtins", "type", ["X", [], {}]),
    ("builtins", "list", []),
    ("os", "system", ["true"]),
    ("subprocess", "Popen", ["true"]),
    ("posixpath", "exists", ["/"]),
    ("torch", "load", ["x"]),
    ("torch.serialization", "load", ["x"]),
    ("importlib", "import_module", ["this"]),
    ("transformers.utils.hub", "cached_file", ["x", "y"]),
    ("transformers.commands.env", "EnvironmentCommand", []),
    ("nnsight.remote.client", "RemoteBackend", []),
    ("pathlib", "Path.home", []),
    ("collections", "namedtuple", ["X", "a"]),
    ("__main__", "anything", []),
]


@pytest.mark.parametrize(("module", "name", "given"), CALLS)
def test_a_server_has_nothing_called_or_imported_here(module: str, name: str, given: list[Any]):
    import sys

    before = set(sys.modules)
    for word in ("object", "name"):
        node = ["name", module, name]
        if word == "object":
            table = [["object", [1], given, None, [], []], node]
        else:
            table = [node]
        root = {"names": {"x": [0]}, "changed": [], "warned": []}
        found = None
        try:
            found = read_result(wire.join(wire.pack([root, table])), {}, None).names["x"]
        except PayloadError:
            pass
        assert found is None or (word == "name" and data_only.allowed(found))
    assert "this" not in sys.modules and not any(
        "commands.env" in m for m in set(sys.modules) - before
    )


def test_what_was_sent_is_not_called_either():
    import subprocess

    sent = {0: subprocess.Popen, 1: print, 2: Own, 3: [1], 4: subprocess}
    assert is_local(__import__("sys").modules[Own.__module__])

    def result(*table: Any) -> Any:
        root = {"names": {"x": [0]}, "changed": [], "warned": []}
        return read_result(wire.join(wire.pack([root, list(table)])), sent, None).names["x"]

    for index in (0, 1, 2):
        with pytest.raises(PayloadError, match="holds data only"):
            result(["object", [1], ["true"], None, [], []], ["sent", index])
    new = ["name", "copyreg", "__newobj__"]
    with pytest.raises(PayloadError, match="holds data only"):
        result(["object", [1], [[2]], None, [], []], new, ["sent", 0])
    made = result(["object", [1], [[2]], [3], [], []], new, ["sent", 2], ["dict", ["a", 1]])
    assert type(made) is Own and made.a == 1 and Own.made == 0
    with pytest.raises(PayloadError, match="as something else"):
        result(["sent", 4, "dict", [["a", 1]]])
    with pytest.raises(PayloadError, match="as something else"):
        result(["sent", 2, "list", []])
    for word in ("method", "function", "class", "module", "namespace", "cached"):
        with pytest.raises(PayloadError, match="unknown kind"):
            result([word, [1], "append"], ["list"])


def test_names_that_the_block_does_not_have_are_not_bound(gpt2: Any):
    def elsewhere(tracer: Any) -> None:
        tracer.received = {"kept": 1, "packed": 2, "gpt2": 3}

    before = packed, gpt2
    kept = None
    with gpt2.trace("Hello", backend=elsewhere):
        kept = 0
    assert kept == 1 and (packed, gpt2) == before


def test_an_error_from_a_server_cannot_fill_the_memory(linecache_restored: None):
    lines = [Line("nowhere.py", 10**15, "f", "x")] * 5 + [Line("nowhere.py", 3, "f", "x()")] * 5000
    for kind in ("SystemExit", "KeyboardInterrupt", "eval", "ValueError", "x.y", ""):
        error = error_of(Failure(kind, "text", "builtins"))
        with pytest.raises(Exception, match="text") as caught:
            raise_through(error, lines)
        assert isinstance(caught.value, ValueError) == (kind == "ValueError")
