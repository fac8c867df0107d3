"""How much memory a run takes at its peak: that of the bare forward, and what is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnsight import NNsight

LAYERS, ROWS, WIDTH = 12, 64, 128
ONE = ROWS * WIDTH * 4  # bytes of one hidden state


class Peak(TorchDispatchMode):
    """Adds up the memory of the tensors that are alive, whenever there are new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # else a view: of a weight, or of what is counted
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: one for key, one in self.alive.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that `run` has in new tensors at once."""
    run()
    with torch.no_grad(), Peak() as memory:
        run()
    return memory.most


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x

    def roll(self, x: torch.Tensor, calls: int) -> torch.Tensor:
        for _ in range(calls):
            x = self(x)
        return x


X = torch.randn(ROWS, WIDTH)


@pytest.fixture
def model() -> NNsight:
    return NNsight(Tower())


def test_a_layer_that_is_saved_takes_its_own_memory(model):
    def read() -> torch.Tensor:
        with model.trace(X):
            hidden = model.layers[3].output.save()
        return hidden

    bare = peak(lambda: model._module(X))
    assert 2 * ONE <= bare <= 3 * ONE  # it is measured
    assert peak(read) <= bare + ONE


def test_a_layer_that_is_looked_at_takes_none(model):
    def read() -> float:
        with model.trace(X):
            size = model.layers[3].output.max().item().save()
        return size

    assert peak(read) <= peak(lambda: model._module(X))


def test_a_value_that_is_replaced_or_skipped_takes_none_for_long(model):
    def change() -> torch.Tensor:
        with model.trace(X):
            model.layers[3].output = model.layers[3].output * 2
            model.layers[5].skip(model.layers[5].input)
            out = model.output.save()
        return out

    assert peak(change) <= peak(lambda: model._module(X)) + ONE


def test_a_cache_takes_the_memory_of_what_it_keeps(model):
    def keep() -> Any:
        with model.trace(X) as tracer:
            cache = tracer.cache(modules=[model.layers[1], model.layers[8]])
        return cache

    assert peak(keep) <= peak(lambda: model._module(X)) + 2 * ONE


def test_steps_take_the_memory_of_one(model):
    def read() -> list[float]:
        with model.trace(X, 6, fn="roll") as tracer:
            sizes = [].save()
            for _ in tracer.iter[:]:
                sizes.append(model.layers[3].output.max().item())
        return sizes

    assert peak(read) <= peak(lambda: model._module.roll(X, 6)) + ONE


def test_invokes_take_the_memory_of_their_batch(model):
    def read() -> torch.Tensor:
        with model.trace() as tracer:
            for _ in range(4):
                with tracer.invoke(X):
                    hidden = model.layers[3].output[:1].clone().save()
        return hidden

    batch = torch.cat([X] * 4)
    # the input is joined, and one value may wait for the last block to have its rows
    assert peak(read) <= peak(lambda: model._module(batch)) + 2 * batch.nbytes
