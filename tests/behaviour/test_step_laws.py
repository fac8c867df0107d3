"""Laws of steps: whatever is read or changed at whichever step, it is as with raw hooks."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import hooks_on
from torch import nn

from nnsight import NNsight, OutOfOrderError

CALLS = 4
POINTS = ["embed", "layers.0.up", "layers.0", "layers.1.up", "layers.1", "head"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(x).tanh()


class Model(nn.Module):
    """Called again and again by `roll`, each time with what the last call gave."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def roll(self, x: torch.Tensor, calls: int) -> torch.Tensor:
        for _ in range(calls):
            x = self(x).sin()
        return x


torch.manual_seed(5)
MODULE = Model().double().requires_grad_(False)
MODEL = NNsight(MODULE)
X = torch.randn(2, 4).double()
LAW = settings(max_examples=40, deadline=None)

calls = st.integers(1, CALLS)
plans = st.dictionaries(st.integers(0, CALLS), st.sets(st.sampled_from(POINTS)), max_size=4)


def raw(changes: dict[int, set[str]], count: int) -> tuple[dict[Any, torch.Tensor], torch.Tensor]:
    """What hooks see at every point of every call, with a change at some, and the result."""
    seen: dict[Any, torch.Tensor] = {}
    runs: defaultdict[str, int] = defaultdict(int)

    def hook(point: str) -> Any:
        def act(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
            step = runs[point]
            runs[point] += 1
            out = out * 2 if point in changes.get(step, ()) else out
            seen[point, step] = out
            return out

        return act

    handles = [MODULE.get_submodule(p).register_forward_hook(hook(p)) for p in POINTS]
    result = MODULE.roll(X, count)
    for handle in handles:
        handle.remove()
    return seen, result


def envoy(point: str) -> Any:
    return MODEL.get(point)


@LAW
@given(reads=plans, changes=plans, count=calls, fresh=st.booleans())
def test_a_loop_reads_and_changes_what_hooks_do(reads, changes, count, fresh):
    if fresh:
        MODEL.tree.surveys.clear()
    expected, result = raw(changes, count)
    with MODEL.trace(X, count, fn="roll") as tracer:
        found, entered = {}.save(), [].save()
        for step in tracer.iter[:]:
            entered.append(step)
            for point in POINTS:
                if point in changes.get(step, ()):
                    envoy(point).output = envoy(point).output * 2
                if point in reads.get(step, ()):
                    found[point, step] = envoy(point).output
        got = tracer.result.save()
    assert entered == list(range(count))
    assert torch.equal(got, result)
    wanted = {(p, s) for s, points in reads.items() for p in points if s < count}
    assert set(found) == wanted
    assert all(torch.equal(found[key], expected[key]) for key in wanted)
    assert hooks_on(MODULE) == []


@LAW
@given(
    chosen=st.sets(st.integers(0, CALLS - 1), min_size=1),
    point=st.sampled_from(POINTS),
    fresh=st.booleans(),
)
def test_a_step_may_be_met_first_at_any_time(chosen, point, fresh):
    if fresh:
        MODEL.tree.surveys.clear()
    expected, _ = raw({}, CALLS)
    with MODEL.trace(X, CALLS, fn="roll") as tracer:
        found = {}.save()
        for step in tracer.iter[sorted(chosen)]:
            found[step] = envoy(point).output
    assert found.keys() == chosen
    assert all(torch.equal(value, expected[point, step]) for step, value in found.items())


@LAW
@given(
    order=st.permutations(POINTS).map(lambda points: points[:3]),
    step=st.integers(0, CALLS - 1),
    fresh=st.booleans(),
)
def test_out_of_order_is_an_error_and_never_another_steps_value(order, step, fresh):
    if fresh:
        MODEL.tree.surveys.clear()
    expected, _ = raw({}, CALLS)
    found: list[torch.Tensor] = []
    in_order = sorted(order, key=POINTS.index) == order
    try:
        with MODEL.trace(X, CALLS, fn="roll") as tracer:
            for _ in tracer.iter[step]:
                for point in order:
                    found.append(envoy(point).output)
    except OutOfOrderError as error:
        assert not in_order and f"of step {step}" in str(error)
    else:
        assert in_order
    for point, value in zip(order, found, strict=False):
        assert torch.equal(value, expected[point, step])


@LAW
@given(plan=st.lists(plans, min_size=2, max_size=3), count=calls)
def test_each_invoke_of_a_batch_has_the_steps_of_its_own(plan, count):
    alone = [raw(changes, count) for changes in plan]
    results: list[torch.Tensor] = []
    with MODEL.trace(fn="roll") as tracer:
        for changes in plan:
            with tracer.invoke(X, count):
                for step in tracer.iter[:]:
                    for point in POINTS:
                        if point in changes.get(step, ()):
                            envoy(point).output = envoy(point).output * 2
                results.append(tracer.result)
    for got, (_, expected) in zip(results, alone, strict=True):
        assert torch.allclose(got, expected)
