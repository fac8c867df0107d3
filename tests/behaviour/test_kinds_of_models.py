"""Laws over models of many kinds: looking changes nothing, and a trace is hooks written by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import hooks_on
from tests.modeling.tiny import FAMILIES, VOCABULARY, model_of
from torch import nn

from nnsight import NNsight, nested


class Pictures(nn.Module):
    """Convolutions, with a branch and numbers that are kept between runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu_()
        return self.head(torch.cat([self.left(x), self.right(x)], dim=1))


class Sequences(nn.Module):
    """A recurrent layer, whose output is a tuple in a tuple, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x, (last, _) = self.lstm(x)
        mixed, weights = self.attention(x, x, x)
        return {"scores": self.head(mixed + last[-1][:, None]), "weights": weights}


@dataclass(frozen=True)
class Kind:
    """A model, a call of it, and its modules in the order in which they return."""

    model: NNsight
    call: Callable[[Any], Any]  # of the module or of a trace, with the same input
    paths: list[str]

    def envoy(self, path: str) -> Any:
        """The module at a path, one that is called `output` too."""
        module = self.model._module.get_submodule(path)
        return next(envoy for envoy in self.model.modules() if envoy._module is module)


def _returns(module: nn.Module, call: Callable[[Any], Any]) -> list[str]:
    """Paths of modules that return a tensor, alone or first in a tuple, once in a forward."""
    found: list[str] = []
    handles = [
        inner.register_forward_hook(
            lambda m, args, out, path=path: found.append(path) if _editable(out) else None
        )
        for path, inner in module.named_modules()
        if path
    ]
    call(module)
    for handle in handles:
        handle.remove()
    return [path for path in found if found.count(path) == 1]


def _editable(value: Any) -> bool:
    tensor = value[0] if type(value) is tuple and value else value
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point()


@functools.cache
def kind_of(name: str) -> Kind:
    torch.manual_seed(4)
    if name == "pictures":
        module, given = Pictures().eval(), {"x": torch.randn(2, 1, 6, 6)}
    elif name == "sequences":
        module, given = Sequences().eval(), {"x": torch.randn(2, 5, 4)}
    else:
        module, given = model_of(name), {"input_ids": torch.randint(2, VOCABULARY, (2, 5))}
    call = functools.partial(lambda given, callee: callee(**given), given)
    return Kind(NNsight(module), call, _returns(module, call))


KINDS = ["pictures", "sequences", *sorted(FAMILIES.keys() - {"t5"})]
LAW = settings(max_examples=20, deadline=None)
chosen = st.lists(st.integers(0, 10_000), max_size=6)


def places(kind: Kind, numbers: list[int]) -> list[str]:
    """Some modules, in the order in which they return."""
    picked = {number % len(kind.paths) for number in numbers}
    return [kind.paths[number] for number in sorted(picked)]


def edited(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return (change(value[0]), *value[1:]) if type(value) is tuple else change(value)


def same(one: Any, other: Any) -> bool:
    pairs = zip(nested.leaves(one), nested.leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", KINDS)
@LAW
@given(numbers=chosen)
def test_looking_at_any_modules_changes_no_bit(name, numbers):
    kind = kind_of(name)
    model = kind.model
    with torch.no_grad():
        expected = kind.call(model._module)
        with kind.call(model.trace):
            for path in places(kind, numbers):
                nested.map_leaves(torch.clone, kind.envoy(path).output)
            out = model.output.save()
    assert same(out, expected)
    assert hooks_on(model._module) == []


@pytest.mark.parametrize("name", KINDS)
@LAW
@given(numbers=chosen, copied=st.booleans())
def test_values_put_into_their_own_place_change_no_bit(name, numbers, copied):
    kind = kind_of(name)
    model = kind.model
    change = torch.clone if copied else lambda value: value
    with torch.no_grad():
        expected = kind.call(model._module)
        with kind.call(model.trace):
            for path in places(kind, numbers):
                envoy = kind.envoy(path)
                envoy.output = edited(envoy.output, change)
            out = model.output.save()
    assert same(out, expected)


@pytest.mark.parametrize("name", KINDS)
@LAW
@given(numbers=chosen, factor=st.sampled_from([0.0, -1.0, 1.5]))
def test_a_trace_is_the_same_hooks_by_hand(name, numbers, factor):
    kind = kind_of(name)
    model, seen, found = kind.model, {}, {}

    def change(value: torch.Tensor) -> torch.Tensor:
        return value * factor + 0.25

    def hook(module: nn.Module, args: Any, value: Any, path: str = "") -> Any:
        seen[path] = nested.map_leaves(torch.clone, value)
        return edited(value, change)

    with torch.no_grad():
        handles = [
            model._module.get_submodule(path).register_forward_hook(
                functools.partial(hook, path=path)
            )
            for path in places(kind, numbers)
        ]
        try:
            expected = kind.call(model._module)
        finally:
            for handle in handles:
                handle.remove()
        with kind.call(model.trace):
            for path in places(kind, numbers):
                envoy = kind.envoy(path)
                found[path] = nested.map_leaves(torch.clone, envoy.output)
                envoy.output = edited(envoy.output, change)
            out = model.output.save()
    assert same(out, expected)
    assert found.keys() == seen.keys() and all(same(found[path], seen[path]) for path in seen)
