"""`model.generator`: what a generation gives besides the values of its modules.

`model.generator.output` is what `generate` returns, the same value as `tracer.result`, and
`model.generator.streamer.output` is each token as it is chosen; the prompt comes first.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nnsight import nested
from nnsight.interleave import errors, request
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import OUTPUT, Location
from nnsight.traces.steps import worker_of
from nnsight.traces.trace import Trace

METHOD = "generate"


@dataclass(frozen=True)
class Streamer:
    """The tokens of a generation, as they are chosen. To be read, not assigned."""

    model: Any

    between_steps = True  # a token is handed out after one step and before the next

    @property
    def output(self) -> torch.Tensor:
        """At step 0 the prompt, int64 `(rows, tokens)`; at step n the token of each row, `(rows,)`.

        The token of step n is the one that step n - 1 chose and step n reads. It is on the CPU.
        """
        return request.read(Location(self, OUTPUT))

    @property
    def path(self) -> str:
        return f"{self.model.path}.generator.streamer"

    @property
    def tree(self) -> Any:
        return self.model.tree

    def watch(self, kind: str, run: Interleaver) -> None:
        """Let the run, which hands every token out by itself, know how many there were.

        Raises:
            NeverCalledError: nothing is generated, or by beams, which choose at the end.
        """
        _refuse_unless_generating(run, self.path)
        location = Location(self, kind)
        if location in run.between:
            run.visits.setdefault(location, run.between[location][0] + 1)
        else:
            raise errors.NeverCalledError(
                f"`{self.path}.output` is not there to be had: beam search chooses its tokens when "
                "it is over. Read `tracer.result`."
            )


@dataclass
class Generator:
    """What `model.generator` gives inside `with model.generate(...):`."""

    model: Any

    @property
    def output(self) -> Any:
        """What `generate` returns: token ids `(rows, prompt + new tokens)`. `tracer.result`."""
        return request.read(self._result())

    @output.setter
    def output(self, value: Any) -> None:
        request.write(self._result(), value)

    @property
    def streamer(self) -> Streamer:
        """Its `output` is each token as it is chosen, after the prompt."""
        return Streamer(self.model)

    def _result(self) -> Location:
        path = f"{self.model.path}.generator"
        run = worker_of(f"{path}.output").run
        if run is None or run.result is None:
            raise errors.ended(f"{path}.output")
        if run.tree is not self.model.tree:
            raise errors.other_tree(f"{path}.output", run.tree)
        _refuse_unless_generating(run, path)
        return run.result


def _refuse_unless_generating(run: Any, path: str) -> None:
    trace = run.result.owner if run.result is not None else None
    if not isinstance(trace, Trace) or trace.fn != METHOD:
        raise errors.NeverCalledError(
            f"`{path}.output` was not provided: this trace runs one forward and generates nothing. "
            "Open it by `with model.generate(prompt, max_new_tokens=...) as tracer:`, or read "
            "`tracer.result`, which every trace has."
        )


class _Feed:
    """A streamer as transformers knows them, which offers each token to a run."""

    def __init__(self, run: Interleaver, location: Location, other: Any) -> None:
        self._run, self._location, self._other = run, location, other

    def put(self, tokens: torch.Tensor) -> None:
        run, location = self._run, self._location
        number, _ = run.between[location]
        run.between[location] = number + 1, tokens
        if run.watches(location):
            run.offer(location, tokens)
        if self._other is not None:
            self._other.put(tokens)

    def end(self) -> None:
        if self._other is not None:
            self._other.end()


def prepare(model: Any, run: Interleaver, call: functools.partial[Any]) -> None:
    """Let the generation that `call` makes offer its tokens to `run`: changes its keywords.

    The user's own streamer goes on to get them too. Beam search takes no streamer.
    """
    method, kwargs = call.func, call.keywords
    if hasattr(getattr(model._module, "generation_config", None), "disable_compile"):
        kwargs.setdefault("disable_compile", True)  # a compiled model knows no hooks
    if "streamer" not in inspect.signature(method).parameters or _beams(model, kwargs) > 1:
        return
    location = Location(Streamer(model), OUTPUT)
    run.between[location] = -1, None
    kwargs["streamer"] = _Feed(run, location, kwargs.get("streamer"))


def _beams(model: Any, kwargs: Mapping[str, Any]) -> int:
    return _setting(model, kwargs, "num_beams") or 1


def _setting(model: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """A setting of a generation: of the call, of the config given to it, or of the model's own."""
    if kwargs.get(name) is not None:
        return kwargs[name]
    own = getattr(model._module, "generation_config", None)
    found = (getattr(config, name, None) for config in (kwargs.get("generation_config"), own))
    return next((value for value in found if value is not None), None)


# --- what a generation does to the batch ---------------------------------------------------------

_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time")
_PLAIN = (bool, int, float, str)


def two_steps(call: functools.partial[Any]) -> functools.partial[Any]:
    """A generation like that of `call`, of two tokens, that touches nothing of the user's.

    The first step reads the prompt and the second one token: later ones are like the second.
    """
    kept = {
        name: value
        for name, value in call.keywords.items()
        if name not in _LENGTHS
        and (isinstance(value, _PLAIN) or nested.first_tensor(value) is not None)
    }
    if (config := call.keywords.get("generation_config")) is not None:
        kept["generation_config"] = copy.deepcopy(config)
    return functools.partial(call.func, **{**kept, "max_new_tokens": 2, "min_new_tokens": 2})


def lengths(model: Any, kwargs: Mapping[str, Any]) -> range:
    """How long the rows are while they grow, as far as can be told: a value may be as long."""
    tokens = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
    if tokens is None:
        return range(0)
    start, new = tokens.shape[1], _setting(model, kwargs, "max_new_tokens")
    longest = _setting(model, kwargs, "max_length") or 0
    return range(start, max(longest, start + (new or 0)) + 2)
