"""Gradients through regions under activation checkpointing, with what blocks changed in them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.conftest import hooks_on, states
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnsight import LanguageModel, NNsight


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(x)).square())


class Net(nn.Module):
    """Blocks that are checkpointed when `how` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(4, 2)
        self.how: str = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if self.how == "nested":
                x = checkpoint(self._nested, block, x, use_reentrant=False)
            elif self.how:
                x = checkpoint(block, x, use_reentrant=self.how == "reentrant")
            else:
                x = block(x)
        return self.head(x)

    def _nested(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=False)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 4, requires_grad=True)


def read(model):
    return model.blocks[0].act.output


def assigned(model):
    act = model.blocks[0].act
    h = act.output
    act.output = h * 2 + 1
    return h


def in_place(model):
    h = model.blocks[0].act.output
    h[:, :4] = 0
    return h


def the_input(model):
    down = model.blocks[0].down
    h = down.input
    down.input = h.tanh()
    return h


def skipped(model):
    act = model.blocks[0].act
    h = act.input
    act.skip(h.sin())
    return h


def twice(model):
    h = model.blocks[0].up.output
    model.blocks[0].up.output = h + 1
    model.blocks[0].act.output *= 3
    model.blocks[1].act.output = model.blocks[1].act.output.exp()
    return h


CHANGES = [read, assigned, in_place, the_input, skipped, twice]


def gradients(net: Net, x: torch.Tensor, change, when: str) -> list[torch.Tensor]:
    net.zero_grad()
    x.grad = None
    model = NNsight(net)
    kept = []
    with model.trace(x):
        h = change(model).save()
        loss = model.output.square().sum().save()
        if when == "block":
            with loss.backward():
                kept.append(h.grad)
        elif when == "inside":
            h.retain_grad()
            loss.backward()
    if when == "after":
        h.retain_grad()
        loss.backward()
    if when != "block":
        kept.append(h.grad)
    return [*kept, x.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("when", ["block", "inside", "after"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_in_force_in_the_recomputation(net, x, change, when):
    expected = gradients(net, x, change, when)
    net.how = "plain"
    found = gradients(net, x, change, when)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))
    assert not hooks_on(net)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_in_a_batch_of_invokes(net, x, change):
    def run():
        kept = []
        model = NNsight(net)
        with model.trace() as tracer:
            for rows in (x[:1].detach(), x[1:].detach()):
                with tracer.invoke(rows):
                    h = change(model)
                    with model.output.square().sum().backward():
                        kept.append(h.grad)
        grads = [p.grad for p in net.parameters()]
        net.zero_grad()
        return kept + grads

    expected = run()
    net.how = "plain"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, run(), strict=True))


def test_a_backward_in_the_traced_function_is_no_visit_of_the_run(net, x):
    """Between two calls of the model, its regions are computed once more."""
    net.how = "plain"
    model, seen = NNsight(net), []

    def step(x):
        net(x).sum().backward()
        return net(x * 2)

    with model.trace(x, fn=step) as tracer:
        for _ in tracer.iter[:2]:
            seen.append(model.blocks[0].act.output.detach().clone())
    first, second = (net.blocks[0].act(net.blocks[0].up(value)) for value in (x, x * 2))
    assert torch.allclose(seen[0], first) and torch.allclose(seen[1], second)


@pytest.mark.parametrize("how", ["reentrant", "nested"])
@pytest.mark.parametrize("change", CHANGES[1:], ids=lambda change: change.__name__)
def test_a_change_that_could_not_be_made_again_is_refused(net, x, how, change):
    net.how = how
    model = NNsight(net)
    with pytest.raises(NotImplementedError, match=r"`model\.blocks\.0\.\w+\.\w+`.*use_reentrant=F"):
        with model.trace(x):
            change(model)
            model.output.save()
    assert not hooks_on(net)


@pytest.mark.parametrize("how", ["reentrant", "nested"])
def test_reading_in_any_region(net, x, how):
    def run():
        model = NNsight(net)
        with model.trace(x):
            inner = model.blocks[0].act.output.save()
            with model.output.square().sum().backward():
                pass
        grads = [p.grad for p in net.parameters()]
        net.zero_grad()
        return [inner, *grads]

    expected = run()
    net.how = how
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, run(), strict=True))


def test_no_gradients_no_refusal(net, x):
    net.how = "reentrant"
    model = NNsight(net)
    with pytest.warns(UserWarning, match="None of the inputs"), torch.no_grad(), model.trace(x):
        model.blocks[0].act.output *= 2
        model.output.save()


def test_transformers(gpt2_folder):
    """Checkpointing as transformers does it, in training mode without dropout."""

    def run(model):
        with model.trace("The quick brown fox"):
            mlp = model.transformer.h[3].mlp
            mlp.output = mlp.output * 2
            h = states(model.transformer.h[4])
            states(model.transformer.h[5])[:, 0] = 0
            with model.output.logits.square().sum().backward():
                gradient = h.grad.save()
        return [gradient, model.transformer.wte.weight.grad.clone()]

    model = LanguageModel(gpt2_folder, dispatch=True)
    for module in model._module.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = run(model)
    model._module.zero_grad()
    network = model._module  # the later name came with transformers 5
    newer = getattr(network, "activation_checkpointing_enable", None)
    (newer or network.gradient_checkpointing_enable)({"use_reentrant": False})
    found = run(model)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * a.abs().max())


def test_nothing_stays_without_the_garbage_collector(net, x):
    net.how = "plain"
    model = NNsight(net)
    refs = []

    def once(change):
        with model.trace(x):
            h = change(model)
            refs.append(weakref.ref(h))
            loss = model.output.square().sum().save()
        refs.append(weakref.ref(loss))
        loss.backward()

    gc.collect()
    gc.disable()
    try:
        for change in CHANGES * 2:
            once(change)
        assert not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_an_operation_inside_a_forward(net, x):
    def change(model):
        squared = model.blocks[0].source.square_0
        h = squared.output
        squared.output = h * 2
        return h

    expected = gradients(net, x, change, "block")
    net.how = "plain"
    found = gradients(net, x, change, "after")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))
    assert not hooks_on(net)
