"""`model.generator`: what a generation gives besides the values of its modules.

`model.generator.output` is what `generate` returns, the same value as `tracer.result`. At each step
`model.generator.running` tells which rows are still being written, and
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
from nnsight.modeling import generation_errors
from nnsight.modeling.options import transformers_version
from nnsight.traces.steps import worker_of
from nnsight.traces.trace import Trace

METHOD = "generate"


@dataclass(frozen=True)
class BetweenSteps:
    """The owner of a value that a generation has between two steps. To be read, not assigned."""

    model: Any

    between_steps = True  # told after one step and before the next: a row of it for each row
    name = "generator"

    @property
    def path(self) -> str:
        return f"{self.model.path}.{self.name}"

    @property
    def tree(self) -> Any:
        return self.model.tree

    def watch(self, kind: str, run: Interleaver) -> None:
        """Let the run, which hands out every such value by itself, know how many there were.

        Raises:
            NeverCalledError: nothing is generated, or by beams, which choose at the end.
        """
        location = Location(self, kind)
        _refuse_unless_generating(run, str(location))
        if location not in run.between:
            raise errors.NeverCalledError(
                f"`{location}` is not there to be had: beam search chooses its tokens when it is "
                "over. Read `tracer.result`."
            )
        self._settle(run, location)
        run.visits.setdefault(location, run.between[location][0] + 1)

    def _settle(self, run: Interleaver, location: Location) -> None:
        """Make the value what it is now: of one that is worked out only if somebody asks."""


@dataclass(frozen=True)
class Streamer(BetweenSteps):
    """The tokens of a generation, as they are chosen. To be read, not assigned."""

    name = "generator.streamer"
    after_the_last = True  # the last token has no step: there is one more than there are steps

    @property
    def output(self) -> torch.Tensor:
        """At step 0 the prompt, int64 `(rows, tokens)`; at step n the token of each row, `(rows,)`.

        The token of step n is the one that step n - 1 chose and step n reads. It is on the CPU.
        """
        return request.read(Location(self, OUTPUT))


@dataclass(frozen=True)
class Running(BetweenSteps):
    """Which rows are still being written."""

    def _settle(self, run: Interleaver, location: Location) -> None:
        run.between[location][1].settle()


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

    @property
    def running(self) -> torch.Tensor:
        """Which rows are still being written at this step: bool `(rows,)`, on the model's device.

        A row that has ended stays in the batch, on padding, until the last one ends. Step n is
        one of its own if the steps before have not ended it; its values at the others say nothing.
        Collected over a loop, `torch.stack(collected, dim=1)` is the mask `(rows, steps)`.
        """
        return request.read(_running(self.model))

    def _result(self) -> Location:
        path = f"{self.model.path}.generator"
        run = worker_of(f"{path}.output").run
        if run is None or run.result is None:
            raise errors.ended(f"{path}.output")
        if run.tree is not self.model.tree:
            raise errors.other_tree(f"{path}.output", run.tree)
        _refuse_unless_generating(run, f"{path}.output")
        return run.result


def _running(model: Any) -> Location:
    return Location(Running(model), "running")


def _refuse_unless_generating(run: Any, what: str) -> None:
    trace = run.result.owner if run.result is not None else None
    if not isinstance(trace, Trace) or trace.fn != METHOD:
        raise errors.NeverCalledError(
            f"`{what}` was not provided: this trace runs one forward and generates nothing. "
            "Open it by `with model.generate(prompt, max_new_tokens=...) as tracer:`, or read "
            "`tracer.result`, which every trace has."
        )


def _hand_out(run: Interleaver, location: Location, value: torch.Tensor) -> None:
    """The next value between steps: kept until the one after it, offered if it was asked for."""
    number, _ = run.between[location]
    run.between[location] = number + 1, value
    if run.watches(location):
        run.offer(location, value)


class _Feed:
    """A streamer as transformers knows them, which hands each token to a run."""

    def __init__(self, run: Interleaver, model: Any, other: Any, ends: _Ends | None) -> None:
        self._run, self._location = run, Location(Streamer(model), OUTPUT)
        self._other, self._ends = other, ends
        run.between[self._location] = -1, None

    def put(self, tokens: torch.Tensor) -> None:
        if self._ends is not None:
            self._ends.begin(tokens.shape[0])
        _hand_out(self._run, self._location, tokens)
        if self._other is not None:
            self._other.put(tokens)

    def end(self) -> None:
        if self._other is not None:
            self._other.end()


class _Ends:
    """A criterion as transformers knows them, which ends nothing: it notes what the others end.

    They are joined by `|`, one after the other, and this is the last of them. What they end is put
    together when somebody asks: until then a step costs next to nothing.
    """

    def __init__(self, run: Interleaver, model: Any, device: Any) -> None:
        self._run, self._location, self._device = run, _running(model), device
        self._rows = 0
        self._ended: list[torch.Tensor] = []  # at each step that is over
        run.between[self._location] = -1, self

    def begin(self, rows: int) -> None:
        """The prompt is there: every row runs."""
        if not self._rows:
            self._rows = rows
            self._tell()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> _Ends:
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`ended | self`, which is `ended`. (A plain `__ror__` costs PyTorch an error first.)"""
        ended, ends = args
        ends._ended.append(ended)
        ends._tell()
        return ended

    def _tell(self) -> None:
        if not self._run.watches(self._location):
            return
        self.settle()
        _, running = self._run.between[self._location]
        if running.any():  # another step begins
            self._run.offer(self._location, running)

    def settle(self) -> None:
        """Bring what the run keeps up to the step that it is at."""
        if self._rows:
            running = torch.ones(self._rows, dtype=torch.bool, device=self._device)
            for ended in self._ended:
                running = running & ~ended
            self._run.between[self._location] = len(self._ended), running


def prepare(model: Any, run: Interleaver, call: functools.partial[Any]) -> None:
    """Let the generation that `call` makes tell `run` its tokens, and which rows are running.

    Changes its keywords. The user's own streamer goes on to get the tokens too, and the user's own
    criteria go on to end rows. Beam search takes no streamer.

    Raises:
        ValueError: the steps of this way of generating cannot be told.
    """
    method, kwargs = call.func, call.keywords
    chunked = model._format.generation_setting("prefill_chunk_size", [kwargs]) is not None
    if chunked and transformers_version() < (5, 0):
        raise generation_errors.read_in_chunks()
    if hasattr(getattr(model._module, "generation_config", None), "disable_compile"):
        kwargs.setdefault("disable_compile", True)  # a compiled model knows no hooks
    taken = inspect.signature(method).parameters
    beams = model._format.generation_setting("num_beams", [kwargs]) or 1
    run.copies = max(model._format.generation_setting("num_return_sequences", [kwargs]) or 1, beams)
    if "streamer" not in taken or beams > 1:
        return
    ends = None
    if "stopping_criteria" in taken:
        first = nested.first_tensor((call.args, kwargs))
        ends = _Ends(run, model, None if first is None else first.device)
        kwargs["stopping_criteria"] = _with(ends, kwargs.get("stopping_criteria"))
    kwargs["streamer"] = _Feed(run, model, kwargs.get("streamer"), ends)


def _with(ends: _Ends, given: Any) -> Any:
    """The criteria that the user gave, in a list of the same kind, with one more at its end."""
    from transformers import StoppingCriteriaList

    kind = StoppingCriteriaList if given is None else type(given)
    return kind([*(given or ()), ends])


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
    start, new = tokens.shape[1], model._format.generation_setting("max_new_tokens", [kwargs])
    longest = model._format.generation_setting("max_length", [kwargs]) or 0
    return range(start, max(longest, start + (new or 0)) + 2)
