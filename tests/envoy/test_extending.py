"""What a user adds to an Envoy: properties of their own, classes for modules, places, backends."""

# ruff: noqa: B018 -- a value is read by naming it
from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from tests.conftest import hooks_on
from torch import nn

import nnsight
from nnsight import Envoy, LanguageModel, NNsight, OutsideTraceError, WrapperModule, eproperty

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Attention(nn.Module):
    """Computes eight numbers, two for each of four heads, and offers the score of each."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.out(self.proj(x)), None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention() for _ in range(2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x)


class Heads(Envoy):
    """An attention whose output can be seen by head."""

    @eproperty(key="output", description="the output by head, [rows, 4, 2]")
    def heads(self, value):
        """A copy by head, which is put back."""
        return value[0].unflatten(-1, (4, 2)).clone()

    @heads.postprocess
    def heads(self, heads, value):
        return (heads.flatten(-2), *value[1:])

    @heads.transform
    def heads(self, heads, value):
        return (heads.flatten(-2), *value[1:])

    @eproperty(key="output")
    def hidden(self, value):
        return value[0]

    @eproperty(key="input")
    def raw(self):
        """The arguments as they are."""


@pytest.fixture
def module() -> Net:
    return Net().eval().requires_grad_(False)


@pytest.fixture
def model(module: Net) -> Iterator[NNsight]:
    yield NNsight(module, envoys={Attention: Heads})
    assert hooks_on(module) == []


def through(module: Net, first: torch.Tensor) -> torch.Tensor:
    """The output of the model, with `first` as that of its first block."""
    return module.head(module.blocks[1](first)[0])


# --- eproperty ------------------------------------------------------------------------------------


def test_a_view_is_read(model, module):
    with model.trace(X):
        heads = model.blocks[0].heads.save()
        raw = model.blocks[1].raw.save()
    output = module.blocks[0](X)[0]
    assert torch.equal(heads, output.unflatten(-1, (4, 2)))
    assert torch.equal(raw[0][0], output) and raw[1] == {}


def test_what_is_assigned_becomes_the_raw_value(model, module):
    with model.trace(X):
        model.blocks[0].heads = torch.ones(2, 4, 2)
        raw = model.blocks[0].output.save()
        out = model.output.save()
    assert torch.equal(raw[0], torch.ones(2, 8)) and raw[1] is None
    assert torch.equal(out, through(module, torch.ones(2, 8)))


def test_what_is_changed_in_a_copied_view_is_put_back(model, module):
    with model.trace(X):
        model.blocks[0].heads[:, 1] = 0
        out = model.output.save()
    expected = module.blocks[0](X)[0].clone()
    expected[:, 2:4] = 0
    assert torch.equal(out, through(module, expected))


def test_it_is_put_back_at_the_end_of_the_block_too(model, module):
    with model.trace(X) as tracer:
        out = tracer.cache()
        model.blocks[0].heads[:, 1] = 0
    expected = module.blocks[0](X)[0].clone()
    expected[:, 2:4] = 0
    assert torch.equal(out.model.output, through(module, expected))


def test_changes_in_two_views_of_one_value_add_up(model, module):
    with model.trace(X):
        model.blocks[0].heads[:, 0] = 1
        model.blocks[0].heads[:, 3] *= 2
        out = model.output.save()
    expected = module.blocks[0](X)[0].clone()
    expected[:, :2] = 1
    expected[:, 6:] *= 2
    assert torch.equal(out, through(module, expected))


def test_each_invoke_puts_back_its_own_rows(model, module):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.blocks[0].heads[:, 1] = 0
            one = model.output.save()
        with tracer.invoke(X):
            model.blocks[0].heads[:, 2] = 5
            two = model.output.save()
    first, second = (module.blocks[0](X)[0].clone() for _ in range(2))
    first[:, 2:4] = 0
    second[:, 4:6] = 5
    torch.testing.assert_close(one, through(module, first))
    torch.testing.assert_close(two, through(module, second))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("view", ["heads", "output"])
def test_a_change_after_a_barrier_counts_like_one_of_the_value(model, module, view, before):
    def seen():
        return model.blocks[0].heads if view == "heads" else model.blocks[0].output[0]

    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(X):
            value = seen()
            if before:
                value[:] = 5
            barrier()
            value[:, :] = 0
        with tracer.invoke(X):
            model.blocks[0].output
            barrier()
        with tracer.invoke():
            out = model.output.save()
    expected = module.blocks[0](X)[0]
    torch.testing.assert_close(out[:2], through(module, torch.zeros(2, 8)))
    torch.testing.assert_close(out[2:], through(module, expected))


def test_a_change_after_a_wait_for_a_name_counts(model, module):
    with model.trace() as tracer:
        with tracer.invoke(X):
            heads = model.blocks[0].heads
            heads[:] = factor  # noqa: F821 -- bound by the invoke after it
        with tracer.invoke(X):
            factor = model.blocks[0].output[0].sum() * 0 + 3  # noqa: F841
        with tracer.invoke():
            out = model.output.save()
    torch.testing.assert_close(out[:2], through(module, torch.full((2, 8), 3.0)))


def test_what_another_block_changed_during_a_wait_stays(model, module):
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke():
            model.blocks[0].heads
            barrier()
        with tracer.invoke(X):
            model.blocks[0].output = (torch.ones(2, 8), None)
            barrier()
            out = model.output.save()
    torch.testing.assert_close(out, through(module, torch.ones(2, 8)))


def test_each_step_puts_back_its_own(module):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, x):
            return self.attention(self.attention(x)[0])[0]

    network = Twice().requires_grad_(False)
    model = NNsight(network, envoys={"attention": Heads})
    with model.trace(X) as tracer:
        for step in tracer.iter[:2]:
            model.attention.heads[:, step] = step
        out = tracer.result.save()
    first = network.attention(X)[0].clone()
    first[:, :2] = 0
    second = network.attention(first)[0].clone()
    second[:, 2:4] = 1
    assert torch.equal(out, second)


def test_the_older_spelling_with_a_stub(module):
    class Old(Envoy):
        @eproperty("output", "by head", iterate=False)
        def heads(self): ...

        @heads.preprocess
        def heads(self, value):
            return value[0].unflatten(-1, (4, 2)).clone()

        @heads.transform
        def heads(value):
            return value.flatten(-2), None

        @eproperty
        def output_again(self): ...

    model = NNsight(module, envoys={"blocks.0": Old})
    with model.trace(X):
        model.blocks[0].heads[:, 1] = 0
        out = model.output.save()
    expected = module.blocks[0](X)[0].clone()
    expected[:, 2:4] = 0
    assert torch.equal(out, through(module, expected))


def test_a_view_that_cannot_be_assigned_says_so(model):
    with pytest.raises(AttributeError, match=r"`model.blocks.0.hidden`.*`@hidden.postprocess`"):
        with model.trace(X):
            model.blocks[0].hidden = torch.ones(2, 8)


def test_outside_a_run_it_says_so(model):
    with pytest.raises(OutsideTraceError, match=r"`model.blocks.0.output` outside"):
        model.blocks[0].heads


def test_printing_shows_what_is_described(model):
    assert repr(model).count(".heads: the output by head, [rows, 4, 2]") == 1  # two equal blocks
    assert ".heads: the output by head" in model._repr_html_()
    assert "heads" not in repr(NNsight(Net()))


# --- values that the model offers -----------------------------------------------------------------


class Scorer(nn.Module):
    """Computes a value that no module returns."""

    offer = None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.first(x).softmax(-1)
        if self.offer is not None:
            scores = self.offer(scores)
        return self.last(scores)


class Scored(NNsight):
    @eproperty(description="softmax of the first layer")
    def scores(self): ...

    def __init__(self, module: Scorer) -> None:
        super().__init__(module)
        module.offer = lambda value: type(self).scores.provide(self, value)


def test_a_provided_value_is_read_and_assigned():
    module = Scorer().requires_grad_(False)
    model = Scored(module)
    expected = module.first(X).softmax(-1)
    with model.trace(X):
        first = model.first.output.save()
        seen = model.scores.save()
        model.scores = torch.ones(2, 8)
        out = model.output.save()
    assert torch.equal(seen, expected) and first.shape == (2, 8)
    assert torch.equal(out, module.last(torch.ones(2, 8)))
    assert torch.equal(module(X), module.last(expected))  # outside a trace it goes on as it is


def test_a_provided_value_has_the_rows_of_each_invoke():
    module = Scorer().requires_grad_(False)
    model = Scored(module)
    with model.trace() as tracer:
        with tracer.invoke(X):
            one = model.scores.save()
        with tracer.invoke(X * 2):
            two = model.scores.save()
    torch.testing.assert_close(one, module.first(X).softmax(-1))
    torch.testing.assert_close(two, module.first(X * 2).softmax(-1))


def test_a_provided_value_that_went_by_is_an_error():
    model = Scored(Scorer())
    with pytest.raises(
        ValueError, match=r"`model.scores` was requested but the model already ran past it"
    ):
        with model.trace(X):
            model.last.output
            model.scores


# --- envoys= --------------------------------------------------------------------------------------


def kinds(model: Envoy) -> dict[str, type]:
    return {path: type(envoy) for path, envoy in model.named_modules()}


def test_one_class_for_every_module(module):
    model = NNsight(module, envoys=Heads)
    found = kinds(model)
    assert found.pop("model") is NNsight and set(found.values()) == {Heads}


@pytest.mark.parametrize(
    "key", [Attention, "blocks.0", "blocks.*", ".blocks.0", nn.Module, "transformer"]
)
def test_a_class_by_module_class_or_path(module, key):
    if key == "transformer":
        with pytest.raises(ValueError, match=r"'transformer' of `envoys` matches no module of Net"):
            NNsight(module, envoys={key: Heads})
        return
    model = NNsight(module, envoys={key: Heads})
    assert type(model.blocks[0]) is Heads
    assert type(model.blocks[1]) is (Envoy if key in ("blocks.0", ".blocks.0") else Heads)
    assert type(model.head) is (Heads if key is nn.Module else Envoy)


def test_the_longest_path_and_the_nearest_class_win(module):
    class Other(Envoy): ...

    class Third(Envoy): ...

    model = NNsight(module, envoys={nn.Module: Other, nn.Linear: Third, "blocks.1.proj": Heads})
    assert [type(e) for e in (model.blocks[1].proj, model.blocks[1].out, model.blocks)] == [
        Heads,
        Third,
        Other,
    ]


def test_a_subclass_says_it_for_its_models(module):
    class Mine(NNsight):
        envoys = {Attention: Heads, "nowhere.at.all": Heads}  # noqa: RUF012 -- as users write it

    assert type(Mine(module).blocks[0]) is Heads
    assert type(Mine(module, envoys={"head": Heads}).blocks[0]) is Envoy


def test_a_language_model_takes_them(gpt2_folder):
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    class Named(LanguageModel):
        envoys = {GPT2Attention: Heads}  # noqa: RUF012

    assert type(Named(gpt2_folder).transformer.h[3].attn) is Heads
    model = LanguageModel(gpt2_folder, envoys={"attn": Heads})
    assert type(model.transformer.h[3].attn) is Heads and type(model.transformer) is Envoy


def test_what_is_no_class_of_envoy_is_refused(module):
    with pytest.raises(TypeError, match=r"gives Attention .* no class of Envoy"):
        NNsight(module, envoys={Attention: Attention})
    with pytest.raises(TypeError, match="has the key 3"):
        NNsight(module, envoys={3: Heads})


def test_copies_pickles_edits_and_renamed_models_keep_them(model, module):
    with model.edit() as edited:
        edited.blocks[0].heads[:, 1] = 0
    assert type(edited.blocks[1]) is Heads
    with edited.trace(X):
        out = edited.output.save()
    expected = module.blocks[0](X)[0].clone()
    expected[:, 2:4] = 0
    assert torch.equal(out, through(module, expected))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin.blocks[0]) is Heads
    renamed = NNsight(module, rename={"blocks": "layers"}, envoys={"blocks.0": Heads})
    assert type(renamed.layers[0]) is Heads


# --- WrapperModule --------------------------------------------------------------------------------


def test_a_wrapper_module_makes_a_place(module):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.sum = nn.Linear(8, 8), WrapperModule()

        def forward(self, x):
            return self.sum(x + self.inner(x)) * 2

    network = Residual().requires_grad_(False)
    model = NNsight(network)
    with model.trace(X):
        total = model.sum.output.save()
        model.sum.output = total * 0
        out = model.output.save()
    assert torch.equal(total, X + network.inner(X)) and not out.any()
    assert WrapperModule()(1, 2) == (1, 2) and WrapperModule()(X) is X


def test_a_block_can_call_one_for_others(model):
    model.extra = WrapperModule()
    with model.trace() as tracer:
        with tracer.invoke(X):
            hidden = model.blocks[0].output[0].save()
            model.extra(hidden * 2, hook=True)
        with tracer.invoke():
            seen = model.extra.output.save()
    del model.extra
    assert torch.equal(seen, hidden * 2)


# --- backends -------------------------------------------------------------------------------------


def test_a_backend_runs_the_block_when_it_likes(model):
    ran: list[str] = []

    class Loud:
        def __call__(self, tracer):
            ran.append("before")
            result = tracer.execute()
            ran.append("after")
            return result

    with model.trace(X, backend=Loud()):
        ran.append("block")
        out = model.output.save()
    assert ran == ["before", "block", "after"] and out.shape == (2, 3)


def test_a_backend_that_does_not_run_it_keeps_it(model):
    kept = []
    with model.trace(X, backend=kept.append) as tracer:
        nnsight.save(1 / 0)
    assert kept == [tracer]
