"""Requests as the published nnsight 0.8.1 sends them, recorded by `tests/ndif/golden.py`, run here.

A backend puts the recorded request in the place of the block that was captured, so each block is
run twice: as it is written, and as it was sent.
"""

from __future__ import annotations

import io
import pickletools
import random
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from nnsight import LanguageModel
from nnsight.remote.errors import PayloadError
from nnsight.remote.ndif08 import read as ndif08_read
from nnsight.remote.ndif08.format import Ndif08
from nnsight.remote.ndif08.pickle import graph_of
from nnsight.remote.perform import perform
from tests.conftest import make_gpt2_folder
from tests.ndif import cases
from tests.ndif.client import difference

GOLDEN = Path(__file__).parent / "golden" / "ndif08"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model that the requests were recorded for."""
    folder = make_gpt2_folder(tmp_path_factory.mktemp("small") / "gpt2", layers=2, width=16)
    return LanguageModel(folder, dispatch=True)


class Recorded:
    """Runs recorded requests, one after the other, in place of the blocks that it is given."""

    def __init__(self, name: str, model: Any) -> None:
        self.requests = [GOLDEN / f"{name}.zst", GOLDEN / f"{name}-1.zst"]
        self.model, self.printed = model, []

    def __call__(self, tracer: Any) -> None:
        content = self.requests.pop(0).read_bytes()
        outcome = perform(content, self.model, self.printed.append, Ndif08())
        assert outcome.failure is None, outcome.failure.as_text()
        assert outcome.result is not None
        tracer.received = read(outcome.result)


def read(content: Any) -> dict[str, Any]:
    """A result as the published client gets it: its classes are not here, but stand-ins."""
    with ndif_modules():
        return torch.load(io.BytesIO(zstandard.decompress(bytes(content))), weights_only=False)


class ndif_modules:
    """The module of that client's caches, with classes that only hold."""

    def __enter__(self) -> None:
        module = types.ModuleType("nnsight.intervention.cache")
        for name in ("CacheView", "Cache", "Entry"):
            made = type(name, (), {"__module__": module.__name__})
            setattr(module, name, made)
        module.CacheView.keys = lambda view: view._cache.entries  # type: ignore[attr-defined]
        module.CacheView.__getitem__ = (  # type: ignore[attr-defined]
            lambda view, path: view._cache.entries[path][0]
        )
        self.before = {n: sys.modules.get(n) for n in ("nnsight.intervention", module.__name__)}
        sys.modules.setdefault("nnsight.intervention", types.ModuleType("nnsight.intervention"))
        sys.modules[module.__name__] = module

    def __exit__(self, *exception: object) -> None:
        for name, module in self.before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.mark.parametrize("name", cases.CASES)
def test_a_recorded_request_gives_what_its_block_gives(name: str, model: Any, capsys: Any):
    case = cases.CASES[name]
    here = case(model, {})
    printed = capsys.readouterr().out
    recorded = Recorded(name, model)
    there = case(model, {"backend": recorded})
    most = 1e-4 if name == "gradient" else 0.0  # of numbers near 20; sums in another order
    assert difference(here, there) <= most
    assert "".join(recorded.printed) == printed


def test_every_request_is_of_a_case():
    names = {path.stem.removesuffix("-1") for path in GOLDEN.glob("*.zst")}
    assert names == set(cases.CASES)


def test_errors_name_the_line_of_the_one_who_wrote_it(model: Any):
    content = plain("trace").replace(b"lm_head.output", b"lm_head.outpux")
    outcome = perform(content, model, print, Ndif08(compressed=False))
    assert outcome.failure is not None and outcome.failure.type == "AttributeError"
    (line, *_) = outcome.failure.frames
    assert line.filename == "cases.py" and "lm_head.outpux" in line.text
    source = (Path(cases.__file__)).read_text().splitlines()
    assert "lm_head.output.save()" in source[line.lineno - 1]


def test_the_model_keeps_its_own_edits(model: Any):
    before = len(model.edits)
    perform((GOLDEN / "edited_inplace.zst").read_bytes(), model, print, Ndif08())
    assert len(model.edits) == before


# --- what is no request ---------------------------------------------------------------------------


def plain(name: str) -> bytes:
    return ndif08_read.unpacked((GOLDEN / f"{name}.zst").read_bytes())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"no pickle", "cannot be read"),
        (b"\x80\x04K\x01.", "holds no block"),
        (b"\x80\x04K\x01", "cannot be read"),
        (b"\x80\x04\x95", "cannot be read"),
        (b"\x80\x04]" + b"]" * 5000 + b"a" * 5000 + b".", "too deep"),
        (b"\x80\x04B\xff\xff\xff\x7fabc.", "cannot be read"),
    ],
)
def test_what_is_no_request_is_refused_with_a_sentence(content: bytes, said: str, model: Any):
    outcome = perform(content, model, print, Ndif08(compressed=False))
    assert outcome.failure is not None and outcome.failure.phase == "read"
    assert outcome.failure.type == "PayloadError" and said in outcome.failure.message


def test_what_is_not_packed_is_refused(model: Any):
    outcome = perform(b"plain", model, print, Ndif08())
    assert outcome.failure is not None and "unpack" in outcome.failure.message


def test_a_bomb_does_not_go_off():
    with pytest.raises(PayloadError, match="too large"):
        ndif08_read.unpacked(zstandard.compress(b"\0" * (8 << 20)), largest=1 << 20)


def test_reading_calls_nothing():
    words = "os", "system", "exit 3"
    content = b"\x80\x04" + b"".join(b"\x8c" + struct.pack("B", len(w)) + w.encode() for w in words)
    graph = graph_of(content[:-8] + b"\x93" + content[-8:] + b"\x85R.")
    assert str(graph.maker) == "os.system" and graph.args == ("exit 3",)


@pytest.mark.parametrize("name", ["nnsight.intervention.unknown.Thing", "cloudpickle.x._make"])
def test_classes_of_another_release_are_named(name: str, model: Any):
    module, _, kind = name.rpartition(".")
    content = _with_local(plain("loop_save"), f"c{module}\n{kind}\n".encode())
    outcome = perform(content, model, print, Ndif08(compressed=False))
    assert outcome.failure is not None and name in outcome.failure.message


def _with_local(content: bytes, value: bytes) -> bytes:
    """A request with one more value among those around its block."""
    at = [a for op, _, a in pickletools.genops(content) if op.name in ("SETITEM", "SETITEMS")][-1]
    named = b"(X\x01\x00\x00\x00x" + value + b"u"
    end = at + 1
    return content[:end] + named + content[end:]


def test_flipped_and_cut_requests_end_with_a_sentence(model: Any):
    rng = random.Random(5)
    sources = [plain(name) for name in ("trace", "classes", "invokes", "dataclass")]
    ends: dict[str, int] = {}
    for number in range(300):
        content = bytearray(rng.choice(sources))
        if number % 3 == 0:
            del content[rng.randrange(len(content)) :]
        for _ in range(rng.choice((1, 1, 2, 8))):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        outcome = perform(bytes(content), model, lambda text: None, Ndif08(compressed=False))
        kind = "ran" if outcome.failure is None else outcome.failure.phase
        ends[kind] = ends.get(kind, 0) + 1
    assert ends["read"] > 100, ends
    after = perform((GOLDEN / "trace.zst").read_bytes(), model, print, Ndif08())
    assert after.failure is None
