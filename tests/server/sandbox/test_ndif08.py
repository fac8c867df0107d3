"""Requests as NDIF 0.8's client sends them, of keys that are not trusted: a guest reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnsight import LanguageModel
from nnsight.remote.ndif08.format import FORMAT, Ndif08
from nnsight.server.sandbox.process import Bounds, Nursery
from tests.conftest import make_gpt2_folder
from tests.ndif import cases
from tests.ndif.client import difference
from tests.remote.ndif08.test_read import GOLDEN, plain, read
from tests.server.sandbox.conftest import MAKE


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Nursery]]:
    """The model that the requests were recorded for, and the parent of its guests."""
    folder = make_gpt2_folder(tmp_path_factory.mktemp("small") / "gpt2", layers=2, width=16)
    nursery = Nursery(MAKE, str(folder), {}, Bounds(seconds=20.0))
    nursery.open()
    yield LanguageModel(folder, dispatch=True), nursery
    nursery.close()


class Recorded:
    """Runs recorded requests in guests, one after the other, in place of the blocks it is given."""

    def __init__(self, name: str, model: Any, nursery: Nursery) -> None:
        self.requests = [GOLDEN / f"{name}.zst", GOLDEN / f"{name}-1.zst"]
        self.model, self.nursery, self.printed = model, nursery, list[str]()

    def __call__(self, tracer: Any) -> None:
        content = self.requests.pop(0).read_bytes()
        format = f"{FORMAT}+zstd"
        outcome = self.nursery.perform(content, self.model, self.printed.append, format)
        assert outcome.failure is None, outcome.failure.as_text()
        assert outcome.result is not None
        tracer.received = read(outcome.result)


@pytest.fixture
def read_nowhere_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the model's process no request is read; a guest has its own copy of all this."""

    def refuse(*given: Any) -> Any:
        raise AssertionError("a request was read beside the weights")

    monkeypatch.setattr(Ndif08, "arrived", refuse)
    monkeypatch.setattr(Ndif08, "result", refuse)


@pytest.mark.usefixtures("read_nowhere_here")
@pytest.mark.parametrize("name", cases.CASES)
def test_a_recorded_request_gives_what_its_block_gives(name: str, apart: Any, capsys: Any) -> None:
    model, nursery = apart
    case = cases.CASES[name]
    here = case(model, {})
    printed = capsys.readouterr().out
    recorded = Recorded(name, model, nursery)
    there = case(model, {"backend": recorded})
    most = 1e-4 if name == "gradient" else 0.0  # of numbers near 20; sums in another order
    assert difference(here, there) <= most
    assert "".join(recorded.printed) == printed


@pytest.mark.usefixtures("read_nowhere_here")
def test_a_request_that_would_run_code_is_refused_in_the_guest(apart: Any) -> None:
    model, nursery = apart
    evil = b"\x80\x04cos\nsystem\n(S'touch /tmp/reached'\ntR."
    for content in (evil, plain("trace")[:-40], b"", b"\x80\x04" + bytes(200)):
        outcome = nursery.perform(content, model, print, FORMAT)
        assert outcome.failure is not None and outcome.failure.type == "PayloadError"
    assert not Path("/tmp/reached").exists()
