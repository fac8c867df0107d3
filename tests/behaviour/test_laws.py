"""Laws that hold whatever is observed, patched or batched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import hooks_on
from torch import nn

from nnsight import NNsight

LAYERS = 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        hidden = self.up(x).tanh()
        return x + self.down(hidden), {"hidden": hidden}


class Deep(nn.Module):
    """Layers that return a tuple of a tensor and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(x)


torch.manual_seed(3)
MODULE = Deep().double()
MODEL = NNsight(MODULE)
LAW = settings(max_examples=30, deadline=None)

points = st.tuples(
    st.integers(0, LAYERS - 1), st.sampled_from(["input", "up", "hidden", "down", "output"])
)
plans = st.sets(points, max_size=8).map(
    lambda chosen: sorted(chosen, key=lambda p: (p[0], ORDER.index(p[1])))
)
ORDER = ["input", "up", "hidden", "down", "output"]
seeds = st.integers(0, 10_000)


def inputs(seed: int, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator, dtype=torch.double)


def read(point: tuple[int, str]) -> torch.Tensor:
    layer = MODEL.layers[point[0]]
    if point[1] == "input":
        return layer.input
    if point[1] in ("up", "down"):
        return getattr(layer, point[1]).output
    if point[1] == "hidden":
        return layer.down.input
    return layer.output[0]


def write(point: tuple[int, str], value: torch.Tensor) -> None:
    layer = MODEL.layers[point[0]]
    if point[1] == "input":
        layer.input = value
    elif point[1] in ("up", "down"):
        getattr(layer, point[1]).output = value
    elif point[1] == "hidden":
        layer.down.input = value
    else:
        layer.output = (value, layer.output[1])


def act(edit: tuple[str, Any]) -> list[torch.Tensor]:
    """What one block does: reads, writes or skips. Returns what it saw."""
    kind, what = edit
    seen = []
    if kind == "read":
        seen += [read(point).clone() for point in what]
    elif kind == "write":
        for point in what:
            write(point, read(point) * 2 + 1)
    elif kind == "in place":
        for point in what:
            read(point)[:] = 0.5
    elif kind == "skip":
        layer = MODEL.layers[what]
        x = layer.input
        layer.skip((x * 3, {"hidden": x.new_zeros(len(x), 7)}))
    return [*seen, MODEL.output.clone()]


edits = st.one_of(
    st.tuples(st.just("read"), plans),
    st.tuples(st.just("write"), plans),
    st.tuples(st.just("in place"), plans.map(lambda p: [q for q in p if q[1] != "input"])),
    st.tuples(st.just("skip"), st.integers(0, LAYERS - 1)),
)


@LAW
@given(plans, seeds, st.integers(1, 4))
def test_observing_changes_no_bit(plan, seed, rows):
    x = inputs(seed, rows)
    with MODEL.trace(x):
        for point in plan:
            read(point)
        out = MODEL.output.save()
    assert torch.equal(out, MODULE(x))
    assert hooks_on(MODULE) == []


@LAW
@given(plans, seeds, st.integers(1, 4))
def test_a_value_patched_with_itself_changes_no_bit(plan, seed, rows):
    x = inputs(seed, rows)
    with MODEL.trace(x):
        for point in plan:
            write(point, read(point))
        out = MODEL.output.save()
    assert torch.equal(out, MODULE(x))


@LAW
@given(plans, seeds, st.integers(2, 3))
def test_rows_patched_with_themselves_change_no_bit(plan, seed, invokes):
    xs = [inputs(seed + n, n + 1) for n in range(invokes)]
    with MODEL.trace() as tracer:
        for x in xs:
            with tracer.invoke(x):
                for point in plan:
                    write(point, read(point).clone())
        with tracer.invoke():
            out = MODEL.output.save()
    assert torch.equal(out, MODULE(torch.cat(xs)))


@LAW
@given(st.lists(st.tuples(edits, st.integers(1, 3)), min_size=2, max_size=4), seeds)
def test_a_batch_is_its_invokes_alone(blocks, seed):
    xs = [inputs(seed + n, rows) for n, (_, rows) in enumerate(blocks)]
    together: dict[int, list[torch.Tensor]] = {}
    with MODEL.trace() as tracer:
        for number, (x, (edit, _)) in enumerate(zip(xs, blocks, strict=True)):
            with tracer.invoke(x):
                together[number] = act(edit)
    for number, (x, (edit, _)) in enumerate(zip(xs, blocks, strict=True)):
        alone = []
        with MODEL.trace(x):
            alone += act(edit)
        pairs = list(zip(together[number], alone, strict=True))
        assert all(a.shape == b.shape and torch.allclose(a, b) for a, b in pairs)
    assert hooks_on(MODULE) == []


def hook_for(point: tuple[int, str], edit: Callable[[torch.Tensor], torch.Tensor]):
    """The same edit as a raw PyTorch hook."""
    layer = MODULE.layers[point[0]]
    if point[1] == "input":
        return layer.register_forward_pre_hook(lambda m, args: (edit(args[0]),))
    if point[1] == "hidden":
        return layer.down.register_forward_pre_hook(lambda m, args: (edit(args[0]),))
    if point[1] == "output":
        return layer.register_forward_hook(lambda m, args, out: (edit(out[0]), out[1]))
    return getattr(layer, point[1]).register_forward_hook(lambda m, args, out: edit(out))


@LAW
@given(plans, seeds, st.integers(1, 3), st.sampled_from([0.0, -1.0, 2.5]))
def test_a_trace_is_raw_hooks(plan, seed, rows, factor):
    x = inputs(seed, rows)

    def edit(value: torch.Tensor) -> torch.Tensor:
        return value * factor + 0.25

    hooks = [hook_for(point, edit) for point in plan]
    try:
        expected = MODULE(x)
    finally:
        for hook in hooks:
            hook.remove()
    with MODEL.trace(x):
        for point in plan:
            write(point, edit(read(point)))
        out = MODEL.output.save()
    assert torch.equal(out, expected)


@LAW
@given(plans, seeds)
def test_values_read_are_what_raw_hooks_see(plan, seed):
    x = inputs(seed, 2)
    seen: dict[tuple[int, str], torch.Tensor] = {}
    hooks = [
        hook_for(point, lambda value, point=point: seen.setdefault(point, value)) for point in plan
    ]
    try:
        MODULE(x)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    with MODEL.trace(x):
        for point in plan:
            found[point] = read(point)
    assert found.keys() == seen.keys()
    assert all(torch.equal(found[point], seen[point]) for point in plan)


@pytest.mark.parametrize("index", range(LAYERS))
def test_a_layer_skipped_with_its_own_value_changes_no_bit(index):
    x = inputs(index, 3)
    layer = MODEL.layers[index]
    with MODEL.trace(x):
        layer.skip(layer(layer.input))
        out = MODEL.output.save()
    assert torch.equal(out, MODULE(x))
