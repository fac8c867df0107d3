"""What a block changes where it runs and does not save: a warning names it."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import nnsight
from tests.behaviour.fuzz.wire import Served
from tests.remote import helpers_of_law as helpers
from tests.remote.through import ThroughBytes

COUNT = 0


def counted(value: Any) -> Any:
    global COUNT
    COUNT += 1
    return value


class Own:
    def __init__(self) -> None:
        self.n = 0
        self.values = {"a": [1]}

    @functools.cached_property
    def width(self) -> int:
        return 2

    def tick(self) -> int:
        self.n += 1
        return self.width


@pytest.fixture
def model() -> Any:
    return Served(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.fixture
def at(model: Any) -> dict[str, Any]:
    return {"backend": ThroughBytes(model, Served(copy.deepcopy(model._module)))}


X = torch.ones(1, 2)


def a_list(model: Any, at: dict[str, Any]) -> None:
    found: list[Any] = []
    with model.trace(X, **at):
        found.append(1)
        model[0].output[:] = len(found)


def what_lies_in_a_dict(model: Any, at: dict[str, Any]) -> None:
    memo: dict[str, Any] = {"a": {}}
    with model.trace(X, **at):
        inner = memo["a"]
        inner["b"] = model[0].output


def a_tensor(model: Any, at: dict[str, Any]) -> None:
    total = torch.zeros(2)
    with model.trace(X, **at):
        total += model[0].output[0].detach()
        model[0].output[:] = total


def an_object(model: Any, at: dict[str, Any]) -> None:
    own = Own()
    with model.trace(X, **at):
        model[0].output[:] = own.tick()


def a_variable_of_a_module(model: Any, at: dict[str, Any]) -> None:
    with model.trace(X, **at):
        counted(model[0].output)


def a_module_of_ones_own(model: Any, at: dict[str, Any]) -> None:
    with model.trace(X, **at):
        helpers.scale(model[0].output)


def weights_of_ones_own(model: Any, at: dict[str, Any]) -> None:
    layer = torch.nn.Linear(2, 2)
    with model.trace(X, **at):
        with torch.no_grad():
            layer.weight.mul_(2)


CHANGED = [
    (a_list, "`found`"),
    (what_lies_in_a_dict, "`memo['a']`"),
    (a_tensor, "`total`"),
    (an_object, "`own`"),
    (a_variable_of_a_module, "`COUNT`"),
    (a_module_of_ones_own, "`helpers.STATE`"),
    (weights_of_ones_own, "`layer.weight`"),
]


@pytest.mark.parametrize(("block", "named"), CHANGED, ids=lambda v: getattr(v, "__name__", ""))
def test_what_changes_there_and_not_here_is_named(
    block: Callable[..., None], named: str, model: Any, at: dict[str, Any]
):
    with pytest.warns(UserWarning, match="this block changed it in the process") as warned:
        block(model, at)
    (one,) = warned
    assert str(one.message).startswith(f"{named}: ")
    assert one.filename == __file__


def test_what_comes_back_or_is_only_looked_at_is_not(model: Any, at: dict[str, Any]):
    found, own, held, read = [1], Own(), torch.zeros(2), {"a": [np.ones(2), torch.ones(2)]}
    given = torch.ones(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(given, **at):
            model.input[:] = 2  # the input of the trace is nobody's name
            found.append(len(read["a"]))
            held[0] = own.width + sum(read["a"][1])
            nnsight.save([found, {"held": held}])
    assert found == [1, 2]
    assert held.tolist() == [4, 0]
