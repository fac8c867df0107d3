# ruff: noqa: B018 -- to read a gradient is a statement
"""Gradients of one invoke in a batch are those of its solo run, in every way to take them."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from tests.conftest import hooks_on, states
from torch import nn

from nnsight import NNsight, OutOfOrderError

ROWS = [1, 2, 1]  # of the three invokes


class Block(nn.Module):
    """A block that returns a tuple, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + self.fc(x).tanh()
        return h, x.detach()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x).view(-1, 2, 2).flatten(1)  # a view, as attention's are
        for block in self.blocks:
            h, _ = block(h)
        return self.head(h)


@pytest.fixture
def model() -> NNsight:
    return NNsight(Net())


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    return [torch.randn(rows, 4) for rows in ROWS]


def in_a_block(model, kept):
    h, (b, _) = model.embed.output, model.blocks[1].output
    with model.output.square().sum().backward():
        kept.append(b.grad)
        kept.append(h.grad)


def edited(model, kept):
    h, (b, _) = model.embed.output, model.blocks[1].output
    with model.output.square().sum().backward():
        b.grad[:, 0] = 0
        b.grad = b.grad * 2
        kept.append(b.grad)
        kept.append(h.grad)


def retained(model, kept):
    h, (b, _) = model.embed.output, model.blocks[1].output
    h.retain_grad(), b.retain_grad()
    model.output.square().sum().backward()
    kept.extend([h.grad.clone(), b.grad.clone()])


def retained_twice(model, kept):
    """`.grad` adds up over backwards, as in torch."""
    h = model.embed.output
    h.retain_grad()
    out = model.output
    out.square().sum().backward(retain_graph=True)
    (out * 3).sum().backward()
    kept.append(h.grad.clone())


def retained_in_the_loss(model, kept):
    """The loss uses the rows themselves too."""
    h = model.embed.output
    h.retain_grad()
    out = model.output
    (out.square().sum() + h.square().sum()).backward(retain_graph=True)
    kept.append(h.grad.clone())
    (out.sum() + h.pow(3).sum()).backward()
    kept.append(h.grad.clone())


def changed_and_retained(model, kept):
    h = model.embed.output
    h *= 2
    h.retain_grad()
    model.output.square().sum().backward()
    kept.append(h.grad.clone())


def replaced_and_retained(model, kept):
    h = model.embed.output
    new = model.embed.output = h * 2
    h.retain_grad(), new.retain_grad()
    model.output.square().sum().backward()
    kept.extend([h.grad.clone(), new.grad.clone()])


def hooked(model, kept):
    h = model.blocks[0].output[0]
    h.register_hook(lambda gradient: kept.append(gradient.clone()))
    h.register_hook(lambda gradient: gradient * 2)
    model.output.square().sum().backward(inputs=[model.embed.weight])
    kept.append(model.embed.weight.grad.clone())
    model.embed.weight.grad = None


def autograd_backward(model, kept):
    h = model.embed.output
    h.retain_grad()
    torch.autograd.backward(model.output.square().sum(), retain_graph=True)
    kept.append(h.grad.clone())


def a_slice(model, kept):
    h = model.embed.output[:, 1]
    with model.output.square().sum().backward():
        kept.append(h.grad)


def in_a_helper(model, kept):
    def keep(tensor):
        tensor.retain_grad()
        return tensor

    h = keep(model.embed.output)
    keep(model.output).square().sum().backward()
    kept.append(h.grad.clone())


WAYS = [
    *(in_a_block, edited, retained, retained_twice, retained_in_the_loss, changed_and_retained),
    *(replaced_and_retained, hooked, autograd_backward, a_slice, in_a_helper),
]


def solo(model: NNsight, x: torch.Tensor, way) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []
    with model.trace(x):
        way(model, kept)
    return kept


def batched(model: NNsight, inputs: list[torch.Tensor], way) -> list[list[torch.Tensor]]:
    kept: list[list[torch.Tensor]] = [[] for _ in inputs]
    with model.trace() as tracer:
        for own, x in zip(kept, inputs, strict=True):
            with tracer.invoke(x):
                way(model, own)
    return kept


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_batch_equals_solo(model, inputs, way):
    alone = [solo(model, x, way) for x in inputs]
    together = batched(model, inputs, way)
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other) > 0
        for a, b in zip(one, other, strict=True):
            assert a.abs().sum() > 0 and torch.allclose(a, b, atol=1e-6), (a, b)
    assert not hooks_on(model._module)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_stays_without_the_garbage_collector(model, inputs, way):
    refs = []

    def once():
        with model.trace() as tracer:
            for x in inputs:
                with tracer.invoke(x):
                    kept = []
                    h = model.embed.output
                    refs.append(weakref.ref(h))
                    way(model, kept)
                    refs.extend(map(weakref.ref, kept))
                    del kept, h

    gc.collect()
    gc.disable()
    try:
        once(), once()
        assert len(refs) > 6 and not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_the_gradient_of_a_frozen_model_starts_at_one_invokes_rows(model, inputs):
    model._module.requires_grad_(False)

    def way(model, kept):
        h = model.embed.output
        h.requires_grad_()
        b = model.blocks[1].output[0]
        with model.output.square().sum().backward():
            kept.extend([b.grad, h.grad])

    alone = [solo(model, x, way) for x in inputs]
    for one, other in zip(alone, batched(model, inputs, way), strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.abs().sum() > 0 and torch.allclose(a, b, atol=1e-6)


def test_a_gradient_that_starts_at_the_rows_of_one_invoke_leaves_the_others_alone(model, inputs):
    model._module.requires_grad_(False)
    with model.trace(inputs[1]):
        expected = model.output.save()
    with model.trace() as tracer:
        with tracer.invoke(inputs[0]):
            model.embed.output.requires_grad_()
        with tracer.invoke(inputs[1]):
            before = model.embed.output
            before *= 1
            out = model.output.save()
    assert torch.allclose(out, expected)


def test_rows_beside_rows_that_another_invoke_changes_in_place(model, inputs):
    """torch 2.13 ends the process when a hook is put on a view with an outdated history."""
    with model.trace(inputs[0]):
        h = model.embed.output
        with model.output.square().sum().backward():
            expected = h.grad.save()
    with model.trace() as tracer:
        with tracer.invoke(inputs[0]):
            h = model.embed.output.save()
            h.retain_grad()
            with model.output.square().sum().backward():
                gradient = h.grad.save()
        with tracer.invoke(inputs[1]):
            model.embed.output[:] = 0
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.allclose(h.grad, expected, atol=1e-6)


def test_after_the_trace(model, inputs):
    """A loss saved in an invoke, and the gradient taken outside."""
    with model.trace(inputs[1]):
        alone = model.embed.output.save()
        loss = model.output.square().sum().save()
    with loss.backward():
        expected = alone.grad.save()
    with model.trace() as tracer:
        with tracer.invoke(inputs[0]):
            model.output
        with tracer.invoke(inputs[1]):
            h = model.embed.output.save()
            h.retain_grad()
            loss = model.output.square().sum().save()
    with loss.backward(retain_graph=True):
        gradient = h.grad.save()
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.allclose(h.grad, expected, atol=1e-6)  # retained, on the same pass


def test_rows_changed_after_the_model_went_on_are_an_error_where_they_retain_grad(model, inputs):
    with pytest.raises(RuntimeError, match=r"changed in place.*with loss\.backward\(\)"):
        with model.trace() as tracer:
            with tracer.invoke(inputs[0]):
                h = model.blocks[2].fc.output  # a tanh follows, which does not look back at it
                h.retain_grad()
                model.head.input
                h[:] = 0
                model.output.square().sum().backward()
            with tracer.invoke(inputs[1]):
                model.output


def test_autograd_grad_in_a_block(model, inputs):
    alone, together = [], []
    for x in inputs:
        with model.trace(x):
            h, (b, _) = model.embed.output, model.blocks[1].output
            alone += torch.autograd.grad(model.output.square().sum(), [b, h])
    with model.trace() as tracer:
        for x in inputs:
            with tracer.invoke(x):
                h, (b, _) = model.embed.output, model.blocks[1].output
                together += torch.autograd.grad(model.output.square().sum(), [b, h])
    assert len(alone) == len(together) == 6
    # the blocks append in turns
    for a in alone:
        assert any(a.shape == b.shape and torch.allclose(a, b, atol=1e-6) for b in together)


def test_autograd_grad_in_a_helper_function_says_what_to_write(model, inputs):
    def helper(loss, h):
        return torch.autograd.grad(loss, h)

    with pytest.raises(RuntimeError, match="used in the graph") as caught:
        with model.trace() as tracer:
            for x in inputs:
                with tracer.invoke(x):
                    h = model.embed.output
                    helper(model.output.sum(), h)
    assert "with loss.backward()" in caught.value.__notes__[0]


def test_a_hook_on_rows_that_the_loss_uses_twice_is_an_error(model, inputs):
    with pytest.raises(RuntimeError, match=r"register_hook.*h\.grad = f"):
        with model.trace() as tracer:
            with tracer.invoke(inputs[0]):
                h = model.embed.output
                h.register_hook(lambda gradient: gradient * 2)
                (model.output.sum() + h.sum()).backward()
            with tracer.invoke(inputs[1]):
                model.output


def test_parameters_get_the_gradients_of_all_invokes(model, inputs):
    weight = model.embed.weight
    for x in inputs:
        model._module(x).square().sum().backward()
    expected = weight.grad.clone()
    model._module.zero_grad()
    with model.trace() as tracer:
        for x in inputs:
            with tracer.invoke(x):
                model.output.square().sum().backward()
    assert torch.allclose(weight.grad, expected, atol=1e-5)


def test_gpt2_in_one_batch(gpt2):
    """Prompts of different lengths, padded: every layer's gradient on the real tokens."""
    prompts = ["Hello world", "The quick brown fox jumps over"]
    layers = range(0, 12, 3)

    def gradients(trace):
        hs = [states(gpt2.transformer.h[i]) for i in layers]
        loss = gpt2.output.logits[0, -1].log_softmax(-1)[3]
        with loss.backward():
            for h in reversed(hs):
                trace.append(h.grad)

    alone, together = [[], []], [[], []]
    for prompt, kept in zip(prompts, alone, strict=True):
        with gpt2.trace(prompt):
            gradients(kept)
    with gpt2.trace() as tracer:
        for prompt, kept in zip(prompts, together, strict=True):
            with tracer.invoke(prompt):
                gradients(kept)
    gpt2._module.zero_grad()
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            real = b[:, -a.shape[1] :]
            assert a.abs().sum() > 0 and torch.allclose(a, real, atol=1e-5)


def test_errors_in_one_invoke(model, inputs):
    with pytest.raises(OutOfOrderError, match=r"`b\.grad`"), contextlib.ExitStack():
        with model.trace() as tracer:
            with tracer.invoke(inputs[0]):
                h, b = model.embed.output, model.blocks[1].output[0]
                with model.output.sum().backward():
                    h.grad
                    b.grad
            with tracer.invoke(inputs[1]):
                model.output
    assert not hooks_on(model._module)


def test_rows_of_a_view_that_are_changed_in_place_do_not_crash_torch():
    """PyTorch's `register_hook` crashed on a view whose base had been changed since."""

    class Folds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(0, 1) * 2).view(x.shape)

    model = NNsight(nn.Sequential(nn.Linear(4, 4), Folds(), nn.Linear(4, 2)))
    x = torch.ones(1, 3, 4)
    with model.trace() as tracer:
        with tracer.invoke(x):
            model[1].output[:, -1] = 0
            one = model.output.save()
        with tracer.invoke(x):
            two = model.output.save()
    assert torch.equal(one[:, :2], two[:, :2])
    assert torch.equal(one[0, -1], model[2].bias)


def test_a_backward_block_reads_what_other_invokes_bind(model, inputs):
    with model.trace() as tracer:
        with tracer.invoke(inputs[0]):
            scale = model.embed.output.sum()
            other = model.blocks[0].output[0]
        with tracer.invoke(inputs[2]):
            h = model.embed.output
            with model.output.square().sum().backward():
                product = (h.grad * other).save()
                gradient = h.grad.save()
            with h.sum().backward():
                scaled = (h.grad * scale).save()
    with model.trace(inputs[0]):
        embedded, (expected, _) = model.embed.output.save(), model.blocks[0].output.save()
    assert torch.allclose(product, gradient * expected, atol=1e-6)
    assert torch.allclose(scaled, embedded.sum().expand(1, 4), atol=1e-5)


def test_a_name_of_another_invoke_is_not_the_one_from_before_the_trace(model, inputs):
    scale = 100.0
    with model.trace() as tracer:
        with tracer.invoke(inputs[0]):
            scale = model.embed.output.sum().item()
        with tracer.invoke(inputs[1]):
            h = model.embed.output
            with model.output.sum().backward():
                seen = (h.grad * 0 + scale).save()
            expected = torch.tensor(scale).save()
    assert torch.allclose(seen, expected) and scale == 100.0


def test_a_sum_over_backward_blocks(model, inputs):
    norms = []
    for x in inputs:
        with model.trace(x):
            h = model.embed.output
            with model.output.square().sum().backward():
                norms.append(h.grad.norm().item())
    total = 0
    with model.trace() as tracer:
        for x in inputs:
            with tracer.invoke(x):
                h = model.embed.output
                with model.output.square().sum().backward():
                    total += h.grad.norm().item()
                total.save()
    assert total == pytest.approx(sum(norms), rel=1e-4)
