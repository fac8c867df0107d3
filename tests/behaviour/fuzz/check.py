"""One seed: a random model, some random programs, each run through nnsight and by the oracle."""

from __future__ import annotations

import contextlib
import linecache
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import torch
from tests.behaviour.fuzz import models
from tests.behaviour.fuzz.after import Wrong, left_behind, traces_of_a_run
from tests.behaviour.fuzz.forms import Program
from tests.behaviour.fuzz.models import WIDTH, Boom, Leaf, Model, first, random_model
from tests.behaviour.fuzz.oracle import Block, Oracle
from tests.behaviour.fuzz.programs import random_program
from torch import nn

import nnsight
from nnsight import NNsight
from nnsight.interleave.errors import BatchError, Cancelled, MissedProviderError, OutsideTraceError


def family(error: BaseException) -> str:
    """An error as far as both sides must agree on it."""
    for kind in (MissedProviderError, BatchError, OutsideTraceError, Cancelled, NameError):
        if isinstance(error, kind):
            return kind.__name__
    return type(error).__name__


def note(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def helper(envoy: Any) -> torch.Tensor:
    """Reads a value outside the text of the block."""
    return first(envoy.output)


class Small(nn.Module):
    """Another model, for traces inside a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Leaf("tensor")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x)


torch.manual_seed(0)
OTHER = Small()
OTHER_ENVOY = NNsight(OTHER, "other")
EXTRA = torch.randn(3, WIDTH)
NAMES = {name: getattr(models, name) for name in ("Boom", "Data", "Pair", "first", "pack")}
NAMES |= {"torch": torch, "family": family, "note": note, "helper": helper, "save": nnsight.save}


@dataclass
class Outcome:
    """What came of a program."""

    error: BaseException | None = None
    log: list[Any] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)  # what the model gave, each time it ran
    grads: Any = None

    @property
    def end(self) -> str:
        return "ok" if self.error is None else family(self.error)

    def differences(self, right: Outcome) -> list[str]:
        """What is not as it is in `right`."""
        # gradients are summed in the order in which threads made their parts
        tolerances = {"end": 0.0, "log": 0.0, "saved": 0.0, "seen": 0.0, "grads": 1e-4}
        if any(isinstance(grads, str) for grads in (self.grads, right.grads)):
            # whether a tensor that a block replaced is still held, and so is changed in place with
            # its successor, hangs on who called: torch refuses the backward there, which is loud
            del tolerances["grads"]
        return [
            f"{what}: {getattr(self, what)}\n  instead of {getattr(right, what)}"
            for what, atol in tolerances.items()
            if not same(getattr(self, what), getattr(right, what), atol)
        ]


def same(one: Any, other: Any, atol: float = 0.0) -> bool:
    """Whether two values are equal: to the last bit, unless a tolerance is given."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        close = one.shape == other.shape and one.dtype == other.dtype
        return close and torch.allclose(one, other, atol, atol, equal_nan=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k], atol) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other, [atol] * len(one)))
    return one == other


@contextlib.contextmanager
def watched(model: Model, outcome: Outcome) -> Iterator[None]:
    """Note what the model gives, and what it was asked to do by whom."""
    keep = model.register_forward_hook(lambda m, args, out: outcome.seen.append(out))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        outcome.error = error
    finally:
        keep.remove()


def _gradients(model: Model, outcome: Outcome) -> None:
    if outcome.seen and torch.is_tensor(outcome.seen[-1]) and outcome.seen[-1].requires_grad:
        try:
            parameters = list(model.parameters())
            outcome.grads = torch.autograd.grad(
                outcome.seen[-1].sum(), parameters, allow_unused=True
            )
        except RuntimeError:  # a value that backward needs was changed in place
            outcome.grads = "RuntimeError"


def by_nnsight(program: Program, envoy: NNsight, inputs: list[Any], name: str) -> Outcome:
    text = program.source()
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace = dict(NAMES)
    exec(compile(text, name, "exec"), namespace)
    outcome = Outcome()
    with watched(envoy._module, outcome):
        xs, zeros = zip(*inputs, strict=True)
        given = [None if x is None else x.clone() for x in xs]
        saved = namespace["program"](envoy, OTHER_ENVOY, EXTRA, outcome.log, given, zeros)
        outcome.saved = saved
    if outcome.error is not None and program.method == "trace":
        outcome.saved = {k: v for k, v in outcome.error.saved.items() if k.startswith("saved")}
    del linecache.cache[name]
    return outcome


def by_oracle(program: Program, model: Model, inputs: list[Any]) -> Outcome:
    outcome = Outcome()
    oracle = Oracle(model, program.total, program.split, lambda: OTHER.one(EXTRA).sum())
    oracle.sizes = program.barriers
    oracle.sums = {name for block in program.blocks for name in block.updates}
    oracle.initial = {k: v for k, v in program.initial.items() if k not in oracle.sums}
    oracle.names = {(-1, k): v for k, v in program.initial.items() if k in oracle.sums}
    namespace = dict(NAMES)
    exec(compile(program.generators(), "<oracle>", "exec"), namespace)
    start = 0
    for block in program.blocks:
        rows = slice(start, start := start + block.rows) if block.rows else None
        running = Block(block.index, rows, block.binds | block.updates)
        running.generator = namespace[f"block_{block.index}"](
            oracle.get,
            oracle.set,
            oracle.name(running),
            oracle.barrier,
            outcome.log,
            inputs[block.index][1],
        )
        oracle.blocks.append(running)
    with watched(model, outcome):
        oracle.run(torch.cat([x for x, _ in inputs if x is not None]))
    for block in oracle.blocks if program.method == "trace" else ():
        outcome.saved.update(block.saved)
    return outcome


# --- after a program ------------------------------------------------------------------------------


def order_of(model: Model, x: torch.Tensor) -> list[tuple[str, str]]:
    """Every location of a model, in the order in which it first comes by."""
    found: dict[tuple[str, str], None] = {}
    handles = []
    for path, module in model.named_modules():
        note = partial(lambda path, kind, *_: found.setdefault((path, kind)), path)
        handles.append(module.register_forward_pre_hook(partial(note, "input")))
        handles.append(module.register_forward_hook(partial(note, "output")))
    with contextlib.suppress(Boom):
        model(x)
    for handle in handles:
        handle.remove()
    return list(found)


def _plain(model: Model, x: torch.Tensor) -> Any:
    try:
        return model(x)
    except Boom:
        return None


def _next_trace(envoy: NNsight, x: torch.Tensor) -> Any:
    """The next trace of a model after a program: what it gives, and what is read inside."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return envoy.run(x, lambda tracer, m: [m.body.input, m.last.input, m.last.output])
    except Boom:
        return None


def _expected_next(model: Model, x: torch.Tensor) -> Any:
    seen: list[Any] = []
    handles = [
        model.body.register_forward_pre_hook(
            lambda m, a, k: seen.append(a[0] if a else k["x"]), with_kwargs=True
        ),
        model.last.register_forward_pre_hook(lambda m, a: seen.append(a[0])),
        model.last.register_forward_hook(lambda m, a, out: seen.append(out)),
    ]
    result = _plain(model, x)
    for handle in handles:
        handle.remove()
    return None if result is None else seen


def check(seed: int) -> str:
    """Run one seed; returns how its programs ended.

    Raises:
        Wrong: with the program and what came of it.
    """
    rng = Random(seed)
    model = random_model(rng)
    envoy = NNsight(model)
    before = traces_of_a_run(model)
    x = torch.randn(2, WIDTH)
    ends = []
    with torch.set_grad_enabled(rng.random() < 0.5):
        plain, expected = _plain(model, x), _expected_next(model, x)
        order = order_of(model, x)
        for turn in range(rng.randint(1, 3)):
            program = random_program(rng, model, order)
            inputs = [
                (
                    torch.randn(block.rows, WIDTH) if block.rows else None,
                    torch.zeros(block.rows or program.total, WIDTH),
                )
                for block in program.blocks
            ]
            ours = by_nnsight(program, envoy, inputs, f"<fuzz {seed} {turn}>")
            problems = left_behind(model, before)
            theirs = by_oracle(program, model, inputs)
            for outcome in (ours, theirs):
                _gradients(model, outcome)
            problems += ours.differences(theirs)
            if not same(plain, _plain(model, x)) or not same(expected, _next_trace(envoy, x)):
                problems.append("the next run of the model is not right")
            if problems:
                listed = "\n".join(problems)
                raise Wrong(
                    f"seed {seed}, program {turn}\n{model}\n{program.source()}\n{listed}"
                ) from ours.error
            ends.append(ours.end)
    return " ".join(ends)
