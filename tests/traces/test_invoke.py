"""`tracer.invoke(...)`: several inputs in one forward, each with its own rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import nn

import nnsight
from nnsight import BatchError, NeverCalledError, NNsight
from tests.behaviour.small import Network
from tests.conftest import hooks_on

OLD = transformers.__version__.startswith("4.")

X = torch.linspace(-1, 1, 8).reshape(2, 4)
Y = torch.linspace(2, -1, 12).reshape(3, 4)


@dataclass
class Pair:
    left: torch.Tensor
    right: torch.Tensor
    name: str = "pair"


class Containers(nn.Module):
    """Layers that return a dict, a tuple, a dataclass, and a tensor without rows."""

    class Of(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind
            self.scale = nn.Parameter(torch.rand(7))

        def forward(self, x: torch.Tensor):
            if self.kind == "dict":
                return {"a": x, "b": x * 2}
            if self.kind == "tuple":
                return x, (x * 2, None), "text"
            if self.kind == "dataclass":
                return Pair(x, x * 2)
            return self.scale * 1  # as long for any batch

    def __init__(self) -> None:
        super().__init__()
        self.dict, self.tuple = self.Of("dict"), self.Of("tuple")
        self.dataclass, self.whole = self.Of("dataclass"), self.Of("whole")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dict(x)["b"]
        x = self.tuple(x)[1][0]
        return self.dataclass(x).right + self.whole(x).sum() * 0


@pytest.fixture
def model() -> Iterator[NNsight]:
    model = NNsight(Network())
    yield model
    assert hooks_on(model._module) == []


@pytest.fixture
def held() -> Iterator[NNsight]:
    model = NNsight(Containers())
    yield model
    assert hooks_on(model._module) == []


# --- rows --------------------------------------------------------------------------------------


def test_each_block_sees_its_own_rows(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            given_x = model.input.save()
            one = model.output.save()
        with tracer.invoke(Y):
            given_y = model.input.save()
            two = model.output.save()
    assert torch.equal(given_x, X) and torch.equal(given_y, Y)
    assert torch.allclose(one, model._module(X), atol=1e-6)
    assert torch.allclose(two, model._module(Y), atol=1e-6)


def test_an_invoke_without_input_sees_every_row(model):
    with model.trace() as tracer:
        with tracer.invoke():
            before = model.first.output.save()
        with tracer.invoke(X):
            one = model.first.output.save()
        with tracer.invoke(Y):
            two = model.first.output.save()
        with tracer.invoke():
            after = model.first.output.save()
    assert before.shape == (5, 4)
    assert torch.equal(before, torch.cat([one, two])) and torch.equal(after, before)


def test_an_invoke_without_input_writes_every_row(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            one = model.output.save()
        with tracer.invoke(Y):
            two = model.output.save()
        with tracer.invoke():
            model.last.output = torch.arange(10.0).reshape(5, 2)
    assert torch.equal(torch.cat([one, two]), torch.arange(10.0).reshape(5, 2))


def test_a_single_invoke_is_the_whole_batch(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            out = model.output.save()
    assert torch.equal(out, model._module(X))


def test_an_invoke_knows_what_it_was_given(model):
    with model.trace() as tracer:
        with tracer.invoke(X) as invoke:
            args, kwargs = invoke.inputs
            same = nnsight.save(args[0] is X and kwargs == {})
            model.output.save()
    assert same


def test_several_prompts_in_one_invoke(gpt2):
    one, two, three = "The cat sat", "The capital of France", "The dog ran"
    with gpt2.trace() as tracer:
        with tracer.invoke(one):
            alone = gpt2.lm_head.output[:, -1].save()
        with tracer.invoke([two, three]):
            both = gpt2.lm_head.output[:, -1].save()
        with tracer.invoke():
            every = gpt2.lm_head.output[:, -1].save()
    assert alone.shape[0] == 1 and both.shape[0] == 2
    assert torch.equal(every, torch.cat([alone, both]))
    for number, prompt in enumerate([one, two, three]):
        with gpt2.trace(prompt):
            solo = gpt2.lm_head.output[0, -1].save()
        assert torch.allclose(every[number], solo, atol=1e-4)


# --- order -------------------------------------------------------------------------------------


def test_blocks_are_served_in_the_order_in_which_they_were_written(model):
    served = []
    with model.trace() as tracer:
        for name in "abc":
            with tracer.invoke(X):
                model.first.output.save()
                served.append(name + "0")
                model.second.output.save()
                served.append(name + "1")
    assert served == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_a_later_block_sees_what_an_earlier_one_changed(model):
    with model.trace() as tracer:
        with tracer.invoke():
            before = model.first.output.clone().save()
        with tracer.invoke(X):
            model.first.output[:] = 1
        with tracer.invoke(Y):
            model.first.output = model.first.output * 0 + 2
        with tracer.invoke():
            after = model.first.output.save()
    assert not (before == after).any()
    assert (after[:2] == 1).all() and (after[2:] == 2).all()


def test_an_invoke_in_a_function(model):
    found = {}

    def ask(tracer, name, x):
        with tracer.invoke(x):
            found[name] = model.output

    with model.trace() as tracer:
        ask(tracer, "one", X)
        ask(tracer, "two", Y)
    assert torch.allclose(found["one"], model._module(X), atol=1e-6)
    assert torch.allclose(found["two"], model._module(Y), atol=1e-6)


def test_invokes_in_a_loop_keep_the_loop_variable(model):
    outs = []
    with model.trace() as tracer:
        for factor in range(4):
            with tracer.invoke(X):
                model.last.output = model.last.output * 0 + factor
                outs.append((factor, model.output))
    assert [factor for factor, _ in outs] == [0, 1, 2, 3]
    assert all((out == factor).all() for factor, out in outs)


def test_invokes_on_a_condition(model):
    for wanted in (True, False):
        with model.trace() as tracer:
            with tracer.invoke(X):
                one = model.output.save()
            if wanted:
                with tracer.invoke(Y):
                    model.output.save()
            with tracer.invoke():
                rows = nnsight.save(len(model.output))
        assert one.shape == (2, 2) and rows == (5 if wanted else 2)


# --- edits -------------------------------------------------------------------------------------


def test_a_change_in_place_reaches_its_own_rows_only(model):
    module = model._module
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.first.output[0, 1:] = 9
            one = model.second.output.save()
        with tracer.invoke(Y):
            two = model.second.output.save()
    hidden = module.first(X)
    hidden = hidden.detach().clone()
    hidden[0, 1:] = 9
    assert torch.allclose(one, module.second(hidden.relu()), atol=1e-6)
    assert torch.allclose(two, module.second(module.first(Y).relu()), atol=1e-6)


def test_rows_of_containers(held):
    with held.trace() as tracer:
        with tracer.invoke(X):
            one = held.dict.output["a"].save(), held.tuple.output[1][0].save()
            pair = held.dataclass.output
            right, name = pair.right.save(), nnsight.save(pair.name)
            nnsight.save(one)
        with tracer.invoke(Y):
            text = nnsight.save(held.tuple.output[2])
            nothing = nnsight.save([held.tuple.output[1][1]])
            left = held.dataclass.output.left.save()
    assert torch.equal(one[0], X) and torch.equal(one[1], X * 4)
    assert torch.equal(right, X * 8) and name == "pair"
    assert torch.equal(left, Y * 4) and text == "text" and nothing == [None]


@pytest.mark.parametrize("in_place", [True, False])
def test_members_of_containers_are_replaced_for_their_rows(held, in_place):
    with held.trace() as tracer:
        with tracer.invoke(X):
            if in_place:
                held.dict.output["b"] = held.dict.output["a"] * 10
                held.dataclass.output.right = held.dataclass.output.left
            else:
                held.dict.output = {"a": held.dict.output["a"], "b": held.dict.output["a"] * 10}
                left = held.dataclass.output.left
                held.dataclass.output = Pair(left, left)
            one = held.output.save()
        with tracer.invoke(Y):
            two = held.output.save()
    assert torch.allclose(one, X * 20) and torch.allclose(two, Y * 8)


def test_a_tuple_is_replaced_for_its_rows(held):
    with held.trace() as tracer:
        with tracer.invoke(X):
            first, (second, none), text = held.tuple.output
            held.tuple.output = (first, (second * 0 + 1, none), text)
            one = held.output.save()
        with tracer.invoke(Y):
            two = held.output.save()
    assert torch.allclose(one, torch.full_like(X, 2)) and torch.allclose(two, Y * 8)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_replacement_with_another_batch(model, rows):
    with pytest.raises(BatchError, match=r"`model\.first\.output` does not fit") as caught:
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.first.output = torch.zeros(rows, 4)
            with tracer.invoke(Y):
                model.output.save()
    assert f"[{rows}, 4]" in str(caught.value) and "[2, 4]" in str(caught.value)


def test_a_replacement_of_another_dtype_or_structure(model):
    with pytest.raises(BatchError, match=r"torch\.float64"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.first.output = torch.zeros(2, 4, dtype=torch.double)
            with tracer.invoke(Y):
                pass
    with pytest.raises(BatchError, match="tuple of 1"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.first.output = (torch.zeros(2, 4),)
            with tracer.invoke(Y):
                pass


# --- what is not batched -----------------------------------------------------------------------


def test_a_tensor_without_rows_is_whole_for_everyone(held):
    with held.trace() as tracer:
        with tracer.invoke(X):
            one = held.whole.output.save()
        with tracer.invoke(Y):
            two = held.whole.output.save()
    assert torch.equal(one, held._module.whole.scale) and torch.equal(two, one)


@pytest.mark.parametrize("sizes", [(2, 5), (1, 6), (3, 4)])
def test_a_length_that_is_the_number_of_rows_by_chance_is_not_split(held, sizes):
    below, above = sizes
    with held.trace() as tracer:
        with tracer.invoke(torch.ones(below, 4)):
            one = held.whole.output.save()
            mine = held.output.save()
        with tracer.invoke(torch.ones(above, 4)):
            two = held.whole.output.save()
    assert one.shape == two.shape == (7,)
    assert mine.shape == (below, 4)


class Sequence(nn.Module):
    """A table of positions, looked up by the length of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(16, 4)
        self.turn, self.last = nn.Identity(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [rows, sequence, 4]
        x = x + self.positions(torch.arange(x.shape[1]))
        x = self.turn(x.transpose(0, 1)).transpose(0, 1)
        return self.last(x)


def test_a_sequence_as_long_as_the_batch_is_not_split_and_rows_behind_it_are():
    model = NNsight(Sequence())
    one, two = torch.rand(2, 5, 4), torch.rand(3, 5, 4)
    with model.trace() as tracer:
        with tracer.invoke(one):
            table = model.positions.output.save()
            turned = model.turn.output.save()
            out_one = model.output.save()
        with tracer.invoke(two):
            turned_two = model.turn.output.save()
            out_two = model.output.save()
    assert torch.equal(table, model._module.positions.weight[:5])
    assert torch.equal(turned, (one + table).transpose(0, 1))  # the sequence first, then rows
    assert torch.equal(turned_two, (two + table).transpose(0, 1))
    assert torch.allclose(out_one, model._module(one), atol=1e-6)
    assert torch.allclose(out_two, model._module(two), atol=1e-6)


# --- skipping ----------------------------------------------------------------------------------


def test_one_invoke_skips_and_the_others_do_not(model):
    module = model._module
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.second.skip(model.second.input * 3)
            one = model.output.save()
        with tracer.invoke(Y):
            two = model.output.save()
    assert torch.allclose(one, module.last(module.first(X).relu() * 3), atol=1e-6)
    assert torch.allclose(two, module(Y), atol=1e-6)


def test_a_module_that_all_invokes_skip_does_not_run():
    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it ran")

    module = Network()
    module.second = Refuses()
    model = NNsight(module)
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.second.skip(torch.ones(2, 4))
        with tracer.invoke(Y):
            model.second.skip(torch.zeros(3, 4))
        with tracer.invoke():
            merged = model.second.output.save()
    assert (merged[:2] == 1).all() and (merged[2:] == 0).all()


@pytest.fixture
def nested():
    return NNsight(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())))


def test_the_inside_of_what_an_invoke_skips_is_never_called_for_it(nested):
    inner = nested[1]
    for others in ([], [Y]):  # alone, and beside rows that it runs for
        for use in (
            lambda: inner[0].output,
            lambda: setattr(inner[0], "output", torch.zeros(2, 4)),
            lambda: inner[0].skip(torch.zeros(2, 4)),
        ):
            with pytest.raises(NeverCalledError, match=r"`model\.1\.0\.(output|skip)`"):
                with nested.trace() as tracer:
                    with tracer.invoke(X):
                        inner.skip(inner.input)
                        use()
                    for other in others:
                        with tracer.invoke(other):
                            pass


def test_those_that_do_not_skip_see_what_runs_for_them(nested):
    inner = nested[1]
    with nested.trace() as tracer:
        with tracer.invoke(X):
            mine = tracer.cache()
            inner.skip(inner.input)
            after = inner.output.save()
        with tracer.invoke(Y):
            yours = tracer.cache()
            inner[0].output[:] = 1
        with tracer.invoke():
            whole = inner[0].output.save()
    assert "model.1.0" not in mine and "model.1.1" not in mine
    assert torch.equal(mine["model.1"].output, after)
    assert torch.equal(after, nested._module[0](X))
    assert (yours["model.1.0"].output == 1).all()
    assert whole.shape == (5, 4) and (whole[2:] == 1).all() and not (whole[:2] == 1).all()


def test_a_module_that_an_invoke_skips_once_is_met_when_it_runs(nested):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nested._module[1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.block(x))

    model = NNsight(Twice())
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.block.skip(X)
            for _ in tracer.iter[1:2]:
                second = model.block[0].output.save()
        with tracer.invoke(Y):
            pass
    assert torch.allclose(second, model._module.block[0](X))


def test_a_skip_with_another_batch(model):
    with pytest.raises(BatchError, match=r"model\.second"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.second.skip(torch.ones(5, 4))
            with tracer.invoke(Y):
                pass


# --- parameters --------------------------------------------------------------------------------


class Scaled(Network):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return super().forward(x) * scale


class Parameters(NNsight):
    """Keywords alone are parameters, and no input."""

    def _batch_size(self, *args, **kwargs):
        return super()._batch_size(*args, **kwargs) if args else 0


def test_an_invoke_of_parameters_alone_adds_no_rows():
    model = Parameters(Scaled())
    with model.trace() as tracer:
        with tracer.invoke(X):
            one = model.output.save()
        with tracer.invoke(scale=4.0):
            every = model.output.save()
    assert torch.equal(one, model._module(X, scale=4.0)) and torch.equal(every, one)


# --- inputs that cannot be one batch -----------------------------------------------------------


def test_inputs_that_do_not_fit_together(model):
    with pytest.raises(BatchError, match="Can't batch these invokes"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                pass
            with tracer.invoke(torch.rand(2, 3)):
                pass


class TestTokensOfAllRows:
    """A mixture of experts routes the tokens of all rows as one flat list."""

    @pytest.fixture
    def mixture(self):
        from transformers import MixtralConfig, MixtralForCausalLM

        torch.manual_seed(3)
        config = MixtralConfig(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=3,
        )
        return NNsight(MixtralForCausalLM(config).eval())

    def gate(self, mixture, index):
        """The router of a layer: transformers 4 calls the module around it otherwise."""
        layer = mixture.model.layers[index]
        return (layer.block_sparse_moe if OLD else layer.mlp).gate

    def test_each_invoke_has_its_own(self, mixture):
        one, two = torch.randint(0, 60, (1, 5)), torch.randint(0, 60, (2, 5))
        alone = []
        for tokens in (one, two):
            with mixture.trace(tokens):
                alone.append(self.gate(mixture, 1).input)
        seen = []
        with mixture.trace() as tracer:
            for tokens in (one, two):
                with tracer.invoke(tokens):
                    seen.append(self.gate(mixture, 1).input)
        for batched, solo in zip(seen, alone, strict=True):
            assert batched.shape == solo.shape
            torch.testing.assert_close(batched, solo, atol=1e-5, rtol=1e-5)

    def test_a_change_reaches_only_its_own(self, mixture):
        one, two = torch.randint(0, 60, (1, 5)), torch.randint(0, 60, (2, 5))
        with mixture.trace(two):
            expected = mixture.output.logits.save()
        with mixture.trace() as tracer:
            with tracer.invoke(one):
                gate = self.gate(mixture, 0)
                gate.input = gate.input * 0
                changed = mixture.output.logits.save()
            with tracer.invoke(two):
                untouched = mixture.output.logits.save()
        torch.testing.assert_close(untouched, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(changed, mixture._module(one).logits, atol=1e-3)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_rows_replaced_by_one_invoke_cut_off_no_edit_of_another(mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model, x, y, z = NNsight(net), *torch.randn(3, 2, 3)
    with mode():
        with model.trace() as tracer:
            with tracer.invoke(x):
                hidden = model[0].output
                # waits for the second block, which replaces its rows
                hidden[:] = other * 2  # noqa: F821 (a name of the next block)
                first = model.output.save()
            with tracer.invoke(y):
                other = model[0].output
                model[0].output = other * 0
                second = model.output.save()
            with tracer.invoke(z):
                model[0].output = model[0].output * 3
                third = model.output.save()
        assert torch.equal(first, net[1](net[0](y) * 2))
        assert torch.equal(second, net[1](torch.zeros(2, 3)))
        assert torch.allclose(third, net[1](net[0](z) * 3))


class Residual(nn.Module):
    """Keeps the very tensor that a module inside it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.same = nn.Linear(4, 4), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.same(hidden) + hidden


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("edit", ["fresh", "held"])
@pytest.mark.parametrize("replacers", [1, 2])
def test_an_edit_in_place_reaches_all_that_the_model_holds_whatever_others_replaced(
    mode, edit, replacers
):
    torch.manual_seed(0)
    model, x = NNsight(Residual()), torch.rand(2, 4)

    def change() -> None:
        if edit == "held":
            hidden = model.first.output
            assert model.same.output is not None
            hidden[:] = 1
        else:
            model.same.output[:] = 1

    with mode():
        with model.trace(x):
            change()
            alone = model.output.save()
        with model.trace(x):
            model.same.output = model.same.output * 2
            other = model.output.save()
        outputs = []
        with model.trace() as tracer:
            for _ in range(replacers):
                with tracer.invoke(x):
                    model.same.output = model.same.output * 2
                    outputs.append(model.output)
            with tracer.invoke(x):
                change()
                mine = model.output.save()
    assert torch.equal(alone, torch.full((2, 4), 2.0))
    assert torch.equal(mine, alone)
    for output in outputs:
        torch.testing.assert_close(output, other)
