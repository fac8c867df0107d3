# ruff: noqa: F841 -- blocks bind names that nobody reads
"""Scans: shapes and dtypes without numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from nnsight import LanguageModel, NNsight
from tests.behaviour.small import Network
from tests.conftest import hooks_on, states

X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def model() -> NNsight:
    return NNsight(Network())


def test_shapes_without_a_save(model):
    with model.scan(X):
        hidden = model.first.output
        shape, width, kind = hidden.shape, hidden.shape[-1], hidden.dtype
        shapes = {"first": shape, "last": [tuple(model.last.output.shape)]}
    assert shape == (2, 4) and width == 4 and kind is torch.float32
    assert shapes == {"first": (2, 4), "last": [(2, 2)]}
    assert "hidden" not in locals()


def test_saved_tensors_have_no_numbers(model):
    with model.scan(X) as tracer:
        out = model.output.save()
        result = tracer.result.save()
    assert isinstance(out, FakeTensor) and out.shape == result.shape == (2, 2)


def test_writes_skips_and_calls(model):
    direction = torch.ones(4)
    with model.scan(X):
        inputs = model.first.inputs
        count = len(inputs[0])
        model.first.output = torch.cat([model.first.output[:, :2], torch.zeros(2, 2)], dim=1)
        model.second.skip(model.second.input + direction)
        wide = model.last(model.second.output).shape
        weight = (model.last.weight @ model.second.output[0]).shape
    assert (count, wide, weight) == (1, (2, 2), (2,))


def test_a_wrong_shape_is_found(model, caplog):
    with pytest.raises(RuntimeError, match=r"must have same reduction dim|cannot be multiplied"):
        with model.scan(X):
            model.first.output = model.first.output @ torch.ones(4, 5)
    assert not caplog.records  # torch would log the whole stack besides


def test_invokes_and_edits(model):
    with model.edit() as edited:
        model.first.output = model.first.output * 2
    with edited.scan() as tracer:
        with tracer.invoke(X):
            two = edited.first.output.shape
        with tracer.invoke(X[:1]):
            one = edited.output.shape
        with tracer.invoke():
            both = (edited.output * torch.ones(2)).shape
    assert (two, one, both) == ((2, 4), (1, 2), (3, 2))


def test_a_part_of_a_model(model):
    with model.second.scan(X) as tracer:
        shape = tracer.result.shape
    assert shape == (2, 4)


# --- what needs numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [lambda t: t.sum().item(), lambda t: bool((t > 0).any()), torch.nonzero, lambda t: t[t > 0]],
)
def test_numbers_are_refused_at_the_line(model, ask):
    with pytest.raises(
        RuntimeError, match=r"needs the numbers in a tensor.*model\.trace"
    ) as caught:
        with model.scan(X):
            kept = model.first.output.shape
            ask(model.first.output)
    assert caught.value.saved == {"kept": (2, 4)}
    assert caught.traceback[1].path.name == "test_scan.py"


class Scaled(nn.Module):
    """A model that looks at a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("repeat", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(self.repeat.item())):
            x = self.layer(x)
        return x if x.shape[0] < 3 else x[: int(x.sum())]


def test_a_model_may_look_at_its_own_numbers():
    model = NNsight(Scaled())
    with model.scan(X):
        shape = model.output.shape
    assert shape == (2, 4)
    with pytest.raises(RuntimeError, match="if it is the model that asks, scan a part of it"):
        with model.scan(torch.ones(3, 4)):
            shape = model.output.shape


# --- nothing is left ----------------------------------------------------------------------------


class Keeper(nn.Module):
    """A model that keeps what it met, in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("table", torch.ones(1))
        self.length, self.seen, self.states, self.calls = 1, None, [], {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > self.length:
            self.length = x.shape[0]
            self.table = torch.ones(self.length)
        self.seen = self.drop(self.norm(self.layer(x)))
        self.states.append(self.seen)
        self.calls["last"] = self.seen
        self.added = self.seen
        self.register_buffer("late", self.seen.sum(), persistent=False)
        return self.seen * self.table[: x.shape[0], None]


def test_the_model_is_as_it_was():
    module = Keeper()
    model = NNsight(module)
    module.states.append("own")
    before, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    ids = {name: id(value) for name, value in module.named_parameters()}
    with model.scan(X):
        model.layer.input[:] = 0
        shape = model.output.shape
    assert shape == (2, 4) and torch.equal(X, torch.linspace(-1, 1, 8).reshape(2, 4))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {name: id(value) for name, value in module.named_parameters()} == ids
    assert (module.length, module.seen, module.states, module.calls) == (1, None, ["own"], {})
    assert not hasattr(module, "added") and "late" not in module._buffers
    assert hooks_on(module) == [] and torch._C._len_torch_dispatch_stack() == 0
    assert model.trace(X, trace=False).shape == (2, 4) and module.length == 2
    module.eval()
    with model.trace(X):
        out = model.output.save()
    assert type(out) is torch.Tensor and torch.equal(out, module(X))


def test_after_an_error_too(model):
    with pytest.raises(ZeroDivisionError):
        with model.scan(X):
            model.first.output / (1 // 0)
    assert hooks_on(model._module) == []
    with model.trace(X):
        out = model.output.save()
    assert torch.equal(out, model._module(X))


# --- weights that are not there -----------------------------------------------------------------


def test_a_skeleton():
    with torch.device("meta"):
        model = NNsight(Network())
    direction = torch.ones(4)
    with model.scan(X):
        hidden = model.first.output + direction
        device = hidden.device
        row = (model.first.weight[0] + direction).shape
        out = model.output.shape
    assert (device.type, row, out) == ("cpu", (4,), (2, 2))
    assert all(type(p) is nn.Parameter and p.is_meta for p in model._module.parameters())


class Table(nn.Module):
    """A layer beside a table that is no row's, and is as long as a batch may be."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shown = nn.Linear(4, 3), nn.Identity()
        self.register_buffer("table", torch.ones(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.shown(self.table).sum(0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_table_as_long_as_the_batch_is_not_split(device):
    """The model has to be run again to tell, with a copy of its buffers."""
    with torch.device(device):
        network = Table()
    table = network.table
    model = NNsight(network)
    with model.scan() as tracer:
        with tracer.invoke(X[:1]):
            one, whole = model.layer.output.shape, model.shown.output.shape
        with tracer.invoke(X):
            two = model.layer.output.shape
    assert (one, two, whole) == ((1, 3), (2, 3), (3, 3))
    assert network.table is table and type(table) is torch.Tensor and table.device.type == device


def test_a_language_model_before_its_weights(gpt2_folder):
    model = LanguageModel(gpt2_folder)
    with model.scan("Hello"):
        dim = states(model.transformer.h[0]).shape[-1]
        logits = model.output.logits.shape
    ids = model.tokenizer("Hello")["input_ids"]
    assert dim == 48 and logits == (1, len(ids), 400)
    with model.scan() as tracer:
        with tracer.invoke("Hello"):
            one = model.lm_head.output.shape
        with tracer.invoke(["The Eiffel Tower", "Rome"]):
            two = model.lm_head.output.shape
    assert (one[0], two[0]) == (1, 2) and one[1] == two[1]
    assert not model.dispatched and all(p.is_meta for p in model._module.parameters())
    with model.trace("Hello"):
        real = model.output.logits.save()
    assert real.shape == logits and torch.isfinite(real).all() and model.dispatched


def test_an_edited_view_shares_the_weights(gpt2_folder):
    model = LanguageModel(gpt2_folder)
    with model.edit() as edited:
        states(model.transformer.h[0])[:] = 0
    layer = edited.transformer.h[3]
    with edited.scan("Hello"):
        shape = states(edited.transformer.h[0]).shape
    assert shape[-1] == 48 and not edited.dispatched
    with edited.trace("Hello"):
        zeros = states(edited.transformer.h[0]).save()
    assert not zeros.any()
    assert edited.dispatched and model.dispatched and edited._module is model._module
    assert layer._module is model.transformer.h[3]._module
    with model.trace("Hello"):
        value = states(model.transformer.h[0]).save()
    assert value.any()


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "block"])
def test_a_backward_leaves_no_gradients(plain):
    module, outside = nn.Linear(4, 1), torch.ones(1, requires_grad=True)
    module.bias.grad = earlier = torch.full((1,), 3.0)
    with NNsight(module).scan(X) as tracer:
        loss = (tracer.output * outside).sum()
        if plain:
            loss.backward()
        else:
            with loss.backward():
                pass
    assert module.weight.grad is None and outside.grad is None
    assert module.bias.grad is earlier and earlier.item() == 3
    module(X).sum().backward()
    assert torch.equal(module.weight.grad, X.sum(0, keepdim=True))
    assert module.bias.grad.item() == 5


def test_gradients_cleared_in_a_scan_are_there_after_it():
    module = nn.Linear(4, 1)
    module.weight.grad = earlier = torch.ones(1, 4)
    with NNsight(module).scan(X) as tracer:
        module.zero_grad()
        tracer.output.sum().backward()
    assert module.weight.grad is earlier and module.bias.grad is None


def test_what_is_changed_in_place_gets_no_history():
    class Running(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            self.total.add_(out.sum())
            return out

    module, outside = Running(4, 1), torch.zeros(2, 1)
    module.register_buffer("total", torch.zeros(()))
    with NNsight(module).scan(X) as tracer:
        outside[:] = tracer.output
    for tensor in (module.total, outside):
        assert tensor.grad_fn is None and not tensor.requires_grad and not tensor.any()


def test_weights_that_are_not_there_get_no_gradients():
    with torch.device("meta"):
        module = nn.Linear(4, 1)
    with NNsight(module).scan(X) as tracer:
        loss = tracer.output.sum()
        with loss.backward():
            shape = module.weight.grad.shape
    assert shape == (1, 4) and module.weight.grad is None
