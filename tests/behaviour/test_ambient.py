"""Torch modes around and inside a block: it sees the caller's, and the model never sees its own."""

from __future__ import annotations

import contextvars

import pytest
import torch
from tests.behaviour.small import Network
from tests.conftest import hooks_on
from torch.overrides import TorchFunctionMode

from nnsight import NNsight


class Watching(torch.nn.Module):
    """Notes in which torch state each of its two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.seen: list[tuple] = []

    def note(self) -> None:
        self.seen.append(state())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.note()
        x = self.one(x)
        self.note()
        x = self.two(x)
        self.note()
        return x


def state() -> tuple:
    """The torch state of this thread, as code can see it."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        torch.empty(0).device.type,
    )


class Counting(TorchFunctionMode):
    """Counts the torch functions that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", MODES)
def test_a_block_sees_the_mode_of_its_caller(name: str):
    network = Network()
    model, x = NNsight(network), torch.rand(2, 4)
    with MODES[name]():
        expected = state()
        with model.trace(x):
            at_start = [state()]
            model.first.output.sum()
            at_start.append(state())
            at_start.save()
    assert at_start == [expected, expected]
    assert hooks_on(network) == []


@pytest.mark.parametrize("name", MODES)
def test_a_mode_around_an_invoke_is_that_block_s(name: str):
    model, x = NNsight(Network()), torch.rand(2, 4)
    with MODES[name]():
        expected = state()
    with model.trace() as tracer:
        with MODES[name]():
            with tracer.invoke(x):
                inside = [state()]
                model.first.output.sum()
                inside.save()
        with tracer.invoke(x):
            outside = [state()]
            model.first.output.sum()
            outside.save()
    assert inside == [expected]
    assert outside == [state()]


@pytest.mark.parametrize("name", MODES)
def test_the_model_never_sees_a_mode_of_the_block(name: str):
    network = Watching()
    model, x, normal = NNsight(network), torch.rand(2, 4), state()
    with model.trace(x):
        with MODES[name]():  # parked inside it, twice
            first = model.one.output
            second = model.two.output
            inside = [state()].save()
        after = [state()].save()
        kept = [first, second].save()
    assert network.seen == [normal] * 3
    assert inside != [normal] and after == [normal]
    assert len(kept) == 2 and kept[0].requires_grad


@pytest.mark.parametrize("name", MODES)
def test_the_block_never_sees_a_mode_of_the_model(name: str):
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, x):
            with MODES[name]():
                return self.inner(x)

    model, normal = NNsight(Own()), state()
    with model.trace(torch.ones(1, 2)):
        model.inner.output.sum()
        seen = [state()].save()
    assert seen == [normal]


def test_nothing_is_left_for_the_next_block_on_the_thread():
    model, x, normal = NNsight(Network()), torch.rand(2, 4), state()
    with pytest.raises(RuntimeError, match="leaves it all behind"):
        with model.trace(x):
            torch.set_grad_enabled(False)
            torch.set_autocast_enabled("cpu", True)
            torch.set_default_device("meta")
            raise RuntimeError("leaves it all behind")
    assert state() == normal
    for _ in range(3):
        with model.trace(x):
            seen = [state()].save()
            model.first.output.sum()
        assert seen == [normal]


def test_function_modes_reach_the_block():
    model, x = NNsight(Network()), torch.rand(2, 4)
    with Counting() as mode:
        with model.trace(x):
            hidden = model.first.output
            before = mode.calls
            torch.add(hidden, 1)
            counted = [mode.calls - before].save()
    assert counted == [1]


def test_context_variables_reach_the_block_and_stay_in_it():
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    model, x = NNsight(Network()), torch.rand(2, 4)
    name.set("caller")
    with model.trace(x):
        seen = [name.get()].save()
        name.set("block")
        model.first.output.sum()
    assert seen == ["caller"] and name.get() == "caller"


def test_gradients_flow_through_values_that_a_block_changed():
    network = Network()
    model, x = NNsight(network), torch.rand(2, 4)
    scale = torch.tensor(2.0, requires_grad=True)
    with model.trace(x):
        model.first.output = model.first.output * scale
        out = model.output.sum().save()
    out.backward()
    by_hand = torch.tensor(2.0, requires_grad=True)
    network.last(network.second((network.first(x) * by_hand).relu()).relu()).sum().backward()
    assert torch.allclose(scale.grad, by_hand.grad)


def test_hooks_of_the_model_s_own_are_inside_of_ours():
    network = Network()
    order = []
    network.first.register_forward_pre_hook(
        lambda m, args: order.append("before") or (args[0] + 1,)
    )
    network.first.register_forward_hook(lambda m, args, out: order.append("after") or out * 10)
    model, x = NNsight(network), torch.rand(2, 4)
    with model.trace(x):
        given = model.first.input.save()
        out = model.first.output.save()
    assert order == ["before", "after"]
    assert torch.equal(given, x + 1)
    weight, bias = network.first.weight, network.first.bias
    assert torch.allclose(out, torch.nn.functional.linear(x + 1, weight, bias) * 10)
    assert len(network.first._forward_hooks) == len(network.first._forward_pre_hooks) == 1
