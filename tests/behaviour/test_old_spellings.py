"""Every way in which earlier releases spelled something that there is, as their users wrote it."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from torch import nn

import nnsight
from nnsight import CONFIG, LanguageModel, NNsight

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer2(self.layer1(x))

    def encode(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """The first layer alone."""
        return self.layer1(x) * scale

    @contextlib.contextmanager
    def doubled(self):
        self.layer1.weight.data *= 2
        yield self
        self.layer1.weight.data /= 2


@pytest.fixture
def model() -> NNsight:
    return NNsight(Net().requires_grad_(False))


def test_a_method_of_the_model_is_called_or_traced(model):
    called = model.encode(X, scale=2.0)
    with model.encode(X, scale=2.0) as tracer:
        model.layer1.output = model.layer1.output + 1
        traced = tracer.result.save()
    assert torch.equal(called, model._module.encode(X, 2.0))
    torch.testing.assert_close(traced, called + 2)
    assert model.encode.__name__ == "encode" and model.encode.__doc__ == "The first layer alone."
    assert list(inspect.signature(model.encode).parameters) == ["x", "scale"]
    assert "encode" in repr(model.encode)


def test_a_method_with_invokes(model):
    with model.encode() as tracer:
        with tracer.invoke(X):
            one = model.layer1.output.save()
        with tracer.invoke(X * 2):
            two = model.layer1.output.save()
    torch.testing.assert_close(one, model.layer1(X))
    torch.testing.assert_close(two, model.layer1(X * 2))


def test_a_method_that_makes_a_context_manager_is_left_alone(model):
    before = model._module.layer1.weight.clone()
    with model.doubled() as inner:
        assert torch.equal(inner.layer1.weight, before * 2)
    assert inspect.ismethod(model.parameters) and inspect.ismethod(model.state_dict)


def test_the_module_has_its_old_names(model):
    assert model._model is model.local_model is model.meta_model is model._module


def test_the_tracer_reads_like_the_model(model):
    with model.trace(X) as tracer:
        hidden = tracer.layer1.output.save()
    assert torch.equal(hidden, model.layer1(X))


def test_the_tracer_takes_invokes_under_any_name(model):
    with model.trace() as runner:
        with runner.invoke(X) as invoker:
            args, kwargs = invoker.inputs
            given = nnsight.save((*args, kwargs))
            out = model.output.save()
    assert given[0] is X and given[1] == {} and torch.equal(out, model(X))


def test_waiting_for_a_module(model):
    order: list[str] = []
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.layer1.wait_for_output()
            order.append("after layer1")
        with tracer.invoke(X):
            model.layer1.wait_for_input()
            order.append("before layer1")
    assert order == ["before layer1", "after layer1"]


def test_the_value_of_a_module_whose_child_is_called_output():
    inner = nn.Sequential()
    inner.add_module("output", nn.Linear(4, 4))
    model = NNsight(inner)
    with model.trace(X):
        child = model.E_output.output.save()
        value = model.nns_output.save()
    assert torch.equal(child, value)


def test_steps_in_every_spelling(model):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    twice = NNsight(Twice().requires_grad_(False))
    first = twice.layer(X)
    expected = [first, twice.layer(first)]
    with twice.trace(X) as tracer:
        one = [].save()
        with tracer.iter[:2]:
            one.append(twice.layer.output)
    with twice.trace(X) as tracer:
        two = [].save()
        for _ in tracer.all():
            two.append(twice.layer.output)
    with twice.trace(X):
        three = [].save()
        three.append(twice.layer.output)
        three.append(twice.layer.next().output)
    for found in (one, two, three):
        torch.testing.assert_close(found, expected)


def test_a_cache_in_every_spelling(model):
    with model.trace(X) as tracer:
        cache = tracer.cache(modules=[model.layer1], include_inputs=True).save()
    first = model.layer1(X)
    assert torch.equal(cache["model.layer1"].output, first)
    assert torch.equal(cache["model.layer1"][0].output, first)
    assert torch.equal(cache.model.layer1.output, first)
    assert torch.equal(cache["model.layer1"].inputs[0][0], X)
    assert [*cache.keys()] == [path for path, _ in cache.items()] == ["model.layer1"]


def test_a_local_part_of_a_block(model):
    with model.trace(X) as tracer:
        hidden = model.layer1.output
        with tracer.local():
            total = hidden.sum().save()
    assert torch.equal(total, model.layer1(X).sum())


def test_names_of_invokes_can_be_kept_apart(model):
    def shares() -> list[float]:
        found: list[float] = []
        hidden = torch.full((1,), 7.0)
        with model.trace() as tracer:
            with tracer.invoke(X):
                hidden = model.layer1.output.sum()
            with tracer.invoke(X):
                found.append(float(hidden.sum()))
        return found

    together = shares()
    CONFIG.APP.CROSS_INVOKER = False
    try:
        apart = shares()
    finally:
        CONFIG.APP.CROSS_INVOKER = True
    assert together == pytest.approx([float(model.layer1(X).sum())]) and apart == [7.0]


def test_switches_without_effect_are_taken():
    CONFIG.APP.TRACE_CACHING = True
    CONFIG.APP.DISABLE_CPP_BACKTRACE = True


def test_an_edit_under_either_target(model):
    with model.edit() as edited:
        edited.layer1.output[:] = 0
    with model.edit() as (tracer, again):
        again.layer1.output[:] = 0
    for changed in (edited, again):
        with changed.trace(X):
            out = changed.output.save()
        torch.testing.assert_close(out, model._module.layer2.bias.expand(2, 2))
    assert tracer is not None


def test_keywords_of_the_oldest_releases_are_told_of(model):
    with pytest.warns(DeprecationWarning, match="no longer a keyword"):
        with model.trace(X, validate=False, scan=False):
            out = model.output.save()
    assert torch.equal(out, model(X))


def test_running_without_a_trace(model):
    assert torch.equal(model.trace(X, trace=False), model(X))


def test_a_session_of_the_package_and_of_the_model(model):
    for session in (nnsight.session(), model.session()):
        with session:
            with model.trace(X):
                hidden = model.layer1.output
            with model.trace(X):
                model.layer1.output = hidden * 2
                out = model.output.save()
        torch.testing.assert_close(out, model._module.layer2(model._module.layer1(X) * 2))


def test_either_order_of_arguments():
    renames = {"layer1": "first"}
    before = nnsight.Envoy(Net(), None, "net", renames)
    since = NNsight(Net(), "net", None, renames)
    for model in (before, since, NNsight(Net(), "net", rename=renames)):
        assert model.first.path == "net.layer1"
    assert NNsight(Net(), object()).path == "model"
    with pytest.raises(TypeError, match="two values for `rename`"):
        NNsight(Net(), "net", None, renames, rename=renames)
    with pytest.raises(TypeError, match="up to 5 arguments"):
        NNsight(Net(), "net", None, None, None, None, None)


def test_inputs_that_a_subclass_prepares():
    class Rows(NNsight):
        def _prepare_input(self, *rows, scale=1.0):
            return ((torch.tensor(rows) * scale,), {}), len(rows)

        def _batch(self, batched, x):
            (before,), _ = batched
            return ((torch.cat([before, x]),), {}), len(before) + len(x)

    class Plain(NNsight):
        def _prepare_input(self, *rows):
            return ((torch.tensor(rows),), {}), len(rows)

    for kind in (Rows, Plain):
        model = kind(Net())
        with model.trace([1.0, 2, 3, 4], [5.0, 6, 7, 8]):
            alone = model.layer1.input.save()
        with model.trace() as tracer:
            with tracer.invoke([1.0, 2, 3, 4]):
                first = model.layer1.input.save()
            with tracer.invoke([5.0, 6, 7, 8], [0.0, 0, 0, 0]):
                others = model.layer1.input.save()
                out = model.output.save()
        assert alone.shape == (2, 4) and torch.equal(first, alone[:1])
        assert others.tolist() == [[5, 6, 7, 8], [0, 0, 0, 0]]
        torch.testing.assert_close(out, model._module(others))
    with Rows(Net()).trace([1.0, 1, 1, 1], scale=2) as tracer:
        doubled = tracer.layer1.input.save()
    assert doubled.tolist() == [[2, 2, 2, 2]]


def test_words_that_plain_python_has():
    assert nnsight.ExceptionWrapper is Exception
    for name, instead in {
        "log": "print",
        "cond": "if",
        "list": "list",
        "stop": "tracer.stop",
    }.items():
        with pytest.raises(AttributeError, match=rf"plain Python, so write `{instead}"):
            getattr(nnsight, name)


def test_old_arguments_of_a_language_model(gpt2_folder):
    model = LanguageModel(
        model_key=gpt2_folder, automodel="AutoModelForCausalLM", meta_buffers=True,
        tokenizer_kwargs={"padding_side": "left"},
    )  # fmt: skip
    model.dispatch_model()
    ids = model.generate("Hello World", max_new_tokens=1)
    assert ids.shape[1] > 1
