"""Running blocks in a sandbox from a test: the whole way through bytes, without a server."""

from __future__ import annotations

from typing import Any

from nnsight.modeling.language import LanguageModel
from nnsight.remote import environment, payload, results, wire
from nnsight.remote.failure import error_of, raise_through
from nnsight.remote.warned import give_again
from nnsight.server.sandbox.process import Bounds, Nursery


class Sandbox:
    """A model, and sandboxes for the blocks that are given to it."""

    def __init__(self, model: Any, make: str, folder: Any, **bounds: Any) -> None:
        self.model = model
        self.said: list[str] = []
        self.nursery = Nursery(make, str(folder), {}, Bounds(**{"seconds": 15.0, **bounds}))
        self.nursery.open()

    def __call__(self, tracer: Any, function: Any = None) -> None:
        """As a `Backend`."""
        tracer.received = {}
        request = payload.write(tracer, self.model, environment.is_local, True, function)
        body = wire.join(request.pieces)
        outcome = self.nursery.perform(body, self.model, self.said.append)
        if outcome.result is not None:
            result = results.read_result(outcome.result, request.sent, self.model, request.origin)
            result.give(tracer)
            give_again(result.warned)
        if outcome.failure is not None:
            raise_through(error_of(outcome.failure), outcome.failure.frames)

    def close(self) -> None:
        self.nursery.close()


def language_model(folder: str, options: dict[str, Any]) -> Any:
    """The skeleton of a language model, for the parent of the guests."""
    model = LanguageModel(folder, **options)
    model.tokenizer  # noqa: B018 - read now: a guest sees no files
    return model
