"""The user's own snippets over the wire: each of their blocks there, held to the same block here.

The functions are those of `tests/behaviour/test_seeds.py`, as they stand. Every trace, scan and
session in them goes through the bytes of a request and runs beside another copy of its model; what
that saves is bound, so the assertions there are of it. Then the block runs here as well: values,
prints and errors are the same. A function that is added there is run here too.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import Module

from nnsight import LanguageModel, NNsight
from nnsight.capture import tracer as capture
from nnsight.capture.entrance import call_at
from nnsight.capture.tracer import Tracer, run_here
from nnsight.modeling import older_blocks, remoting
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.remote.context import is_serving
from nnsight.remote.errors import NotSendableError
from nnsight.traces.scan import Scan
from nnsight.traces.session import Session
from nnsight.traces.trace import Trace
from tests.behaviour.test_seeds import *  # noqa: F403 # the snippets, and their fixtures
from tests.remote.through import Outcome, ThroughBytes, outcome

REFUSED: dict[str, list[str]] = {}
"""What cannot go, by the name of its function: what the errors say. So far, all of them can."""

WITHOUT_BLOCKS = {
    "test_the_hierarchy_prints": "it prints a model",
    "test_the_underlying_model": "it prints a module",
    "test_source_shows_the_operations": "it prints the source of a module",
    "test_dispatching": "it loads a model, and runs nothing",
}
"""What has nothing to send, and why."""


class There:
    """A backend that runs a block there and here, and holds the one to the other.

    Args:
        model: of sessions, which name none.
        copies: of the modules of models, each with the one that it is a copy of.

    Attributes:
        sent: how many blocks have gone.
        refused: what the errors say of those that could not.
    """

    def __init__(self, model: Any, copies: list[tuple[Module, Module]]) -> None:
        self._model, self._copies = model, copies
        self._others: list[tuple[Any, Any]] = []  # models, and what their blocks run beside
        self._inside = False
        self.sent = 0
        self.refused: list[str] = []

    def __call__(self, tracer: Tracer) -> Any:
        alone = type(tracer) not in (Trace, Scan, Session)  # an edit is only taken down
        if alone or self._inside or is_serving():
            return run_here(tracer)
        self._inside = True
        try:
            return self._run(tracer)
        finally:
            self._inside = False

    def _run(self, tracer: Any) -> Any:
        model = tracer.model._at("") if isinstance(tracer, Trace) else self._model
        before = torch.get_rng_state()
        there = self._outcome(tracer, ThroughBytes(model, self._other(model)))
        received, tracer.received = tracer.received, None
        if isinstance(there.error, NotSendableError):
            self.refused.append(str(there.error))
            return run_here(tracer)
        self.sent += 1
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        here = self._outcome(tracer, _whole)
        assert not (found := there.differences(here)), "\n".join(found)
        assert torch.equal(after, torch.get_rng_state())
        tracer.received = received
        print(there.printed, end="")
        for text, category, lineno in there.warned:
            warnings.warn_explicit(text, category, tracer.scope.block.site.filename, lineno)
        if there.error is not None:
            raise there.error
        return None

    def _outcome(self, tracer: Any, backend: Callable[[Any], Any]) -> Outcome:
        site = tracer.scope.block.site
        found = outcome(lambda: backend(tracer), site.filename, site.node.lineno)
        saved = tracer.results(only_saved=True)
        found.value = {n: v for n, v in saved.items() if not isinstance(v, Tracer)}
        return found

    def _other(self, model: Any) -> Any:
        """The same model once more, as another process has it."""
        for here, other in self._others:
            if here._module is model._module:
                return other
        self._others.append((model, self._opened(model)))
        return self._others[-1][1]

    def _opened(self, model: Any) -> Any:
        if not getattr(model, "dispatched", True):
            opening = remoting.opening(model)
            other = type(model).from_model_key(opening["key"], **opening["options"])
            other.dispatch()
            return other
        module = self._copy_of(model._module)
        if isinstance(model, LanguageModel):
            return LanguageModel(module, tokenizer=model.tokenizer)
        return NNsight(module)

    def _copy_of(self, module: Module) -> Module:
        for known, copied in self._copies:
            if known is module:
                return copied
        copied = copy.deepcopy(module)
        for part in copied.modules():  # while the file that its classes are of can be read
            older_blocks.was_tuple(part)
        self._copies.append((module, copied))
        return copied


def _whole(tracer: Any) -> None:
    """Run a block here, and say what is said at its end."""
    run_here(tracer)
    site, name = tracer.scope.block.site, tracer.scope.globals["__name__"]
    at = (site.node.lineno, site.node.lineno, 0, 0)
    call_at(site.filename, "<block>", at, partial(tracer.hand_back, outermost=True), name)


@pytest.fixture(scope="module")
def copies() -> list[tuple[Module, Module]]:
    return []


@pytest.fixture(autouse=True)
def there(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    copies: list[tuple[Module, Module]],
) -> Iterator[None]:
    """All blocks of a function go; those that cannot are known."""
    model = request.getfixturevalue("model") if "model" in request.fixturenames else None
    backend = There(model, copies)
    monkeypatch.setattr(capture, "run_here", backend)
    for kind in (NNsight, HuggingFaceModel):
        monkeypatch.setattr(kind, "to_model_key", _named(kind.to_model_key))
    torch.manual_seed(0)
    yield
    name = request.node.function.__name__
    assert backend.refused == REFUSED.get(name, [])
    assert (backend.sent > 0) == (name not in {*REFUSED, *WITHOUT_BLOCKS})


def _named(key: Callable[[Any], str]) -> Callable[[Any], str]:
    """A key for what was made here as well, which has none."""

    def to_model_key(model: Any) -> str:
        try:
            return key(model)
        except ValueError:
            return "of a snippet"

    return to_model_key
