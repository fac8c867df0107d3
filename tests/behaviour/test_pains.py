"""What users of such libraries have lost days to, as they would meet it: each must stay impossible.

`docs/promises.md` names the test of each; these are the ones that stand nowhere else.
"""

from __future__ import annotations

import gc
import importlib
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.behaviour.small import Network
from tests.conftest import hooks_on, make_gpt2_folder
from torch import nn

from nnsight import Envoy, LanguageModel, NNsight, OutOfOrderError, eproperty

X = torch.ones(2, 4)


@pytest.fixture
def model() -> NNsight:
    return NNsight(Network())


# --- numbers that are wrong and look right --------------------------------------------------------


def test_a_value_saved_before_a_change_in_place(model):
    """The name is of the value that was changed: the warning says so, and a clone keeps the old."""
    network = model._module
    with pytest.warns(
        UserWarning, match=r"`before` was changed in place after it was saved.*clone"
    ):
        with model.trace(X):
            before = model.first.output.save()
            model.first.output[:] = 0
    assert not before.any()
    with model.trace(X):
        before = model.first.output.clone().save()
        model.first.output[:] = 0
        after = model.first.output.save()
    assert torch.equal(before, network.first(X)) and not after.any()


def test_a_cache_is_as_it_was_after_later_traces(model):
    network = model._module
    with model.trace(X) as first:
        cache = first.cache()
    kept = {path: entry.output.clone() for path, entry in cache.items()}
    with model.trace(-X) as second:
        other = second.cache()
        model.first.output[:] = 0
        changed = model.output.save()
    with model.trace(X):
        model.second.output[:] = 7
        model.last.output[:] = 7
    assert all(torch.equal(cache[path].output, value) for path, value in kept.items())
    assert torch.equal(cache["first"].output, network.first(X)) and not other["first"].output.any()
    with model.trace(-X):
        model.first.output[:] = 0
        expected = model.output.save()
    del first, second, cache  # of which no later trace knows
    gc.collect()
    with model.trace(-X):
        model.first.output[:] = 0
        again = model.output.save()
    assert torch.equal(changed, expected) and torch.equal(again, expected)
    assert hooks_on(network) == []


FOUND: Any = None


def test_a_global_name_that_a_block_binds(model):
    global FOUND
    FOUND = "before"
    with model.trace(X):
        FOUND = model.first.output
    assert torch.equal(FOUND, model._module.first(X))


def test_a_module_that_is_edited_and_loaded_again(model, tmp_path, monkeypatch):
    """The block that runs is the one that the file holds now, whether its line has moved or not."""
    file = tmp_path / "experiment.py"
    text = (
        "def run(model, x):\n    with model.trace(x):\n        out = {} * 1.0\n        out.save()\n"
    )
    text += "    return out\n"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    network = model._module
    file.write_text(text.format("model.first.output"))
    experiment = importlib.import_module("experiment")
    assert torch.equal(experiment.run(model, X), network.first(X))
    file.write_text(text.format("model.first.input"))
    experiment = importlib.reload(experiment)
    assert torch.equal(experiment.run(model, X), X)
    file.write_text("\n\n" + text.format("model.first.output"))
    experiment = importlib.reload(experiment)
    assert torch.equal(experiment.run(model, X), network.first(X))
    del sys.modules["experiment"]


class Block(Envoy):
    @eproperty(key="output")
    def hidden(self, value):
        """The hidden state, whatever the block returns it in."""
        return value[0] if isinstance(value, tuple) else value

    @hidden.postprocess
    def hidden(self, hidden, value):
        return (hidden, *value[1:]) if isinstance(value, tuple) else hidden


class Tupled(nn.Linear):
    def forward(self, x):
        return super().forward(x[0] if isinstance(x, tuple) else x), None


def test_one_word_for_the_hidden_state_of_blocks_that_return_tuples_or_tensors():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), Tupled(4, 4), Tupled(4, 2))
    model = NNsight(network, envoys={nn.Linear: Block})
    with model.trace(X):
        states = [layer.hidden.clone() for layer in model].save()
    assert [state.shape for state in states] == [(2, 4), (2, 4), (2, 2)]
    with model.trace(X):
        for layer in (model[0], model[1]):
            layer.hidden = torch.zeros(2, 4)
        out = model.output.save()
    assert torch.equal(out[0], network[2](torch.zeros(2, 4))[0]) and out[1] is None


# --- ends -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = make_gpt2_folder(tmp_path_factory.mktemp("small"), layers=2)
    return LanguageModel(folder, dispatch=True)


def test_stop_in_a_generation_keeps_what_there_was(small):
    greedy = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [0]}
    calls: list[int] = []
    handle = small._module.lm_head.register_forward_hook(lambda *_: calls.append(0))
    with small.generate("Hello", **greedy) as tracer:
        logits, steps = [].save(), 0
        for step in tracer.iter[:]:
            logits.append(small.lm_head.output)
            steps = step
            if step == 2:
                steps.save()
                tracer.stop()
    after = "the statements after the block ran"
    handle.remove()
    assert len(logits) == 3 and steps == 2 and after and len(calls) == 3
    with small.generate("Hello", **greedy) as tracer:
        every = [small.lm_head.output for _ in tracer.iter[:]].save()
    assert len(every) == 6 and all(map(torch.equal, logits, every))


def test_stop_in_a_session_ends_its_trace_and_no_other(model):
    with model.session():
        with model.trace(X) as tracer:
            hidden = model.first.output
            tracer.stop()
        between = hidden.sum().save()
        with model.trace(X):
            model.first.output = hidden * 2
            out = model.output.save()
    with model.trace(X):
        model.first.output *= 2
        expected = model.output.save()
    assert torch.equal(out, expected) and between == model._module.first(X).sum()


# --- memory ---------------------------------------------------------------------------------------


def test_reading_a_layer_keeps_that_layer_and_nothing_more():
    """How many values are alive when the last layer runs: those of a bare forward, and the one."""
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    model, alive, counts = NNsight(network), [], []

    def note(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        alive.append(weakref.ref(out))
        if module is network[-1]:
            counts.append(sum(ref() is not None for ref in alive))
            alive.clear()

    for layer in network:
        layer.register_forward_hook(note)
    gc.disable()
    try:
        with torch.no_grad():
            network(X)
            with model.trace(X):
                third = model[3].output.save()
            with model.trace(X):
                seen = model[3].output.norm().save()
    finally:
        gc.enable()
    bare, kept, looked_at = counts
    assert kept == bare + 1 and looked_at <= bare + 1 and torch.equal(third.norm(), seen)


# --- names ----------------------------------------------------------------------------------------


class Words(nn.Module):
    """Children with the words of the interface, as BERT's and ESM's layers have `output`."""

    NAMES = ("output", "input", "save", "source", "next", "trace")

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.NAMES:
            x = self._modules[name](x)
        return x


def test_children_with_the_words_of_the_interface(tmp_path):
    network = Words()
    model = NNsight(nn.Sequential(network))
    values = {}
    handles = [
        child.register_forward_hook(lambda m, a, out, name=name: values.update({name: out}))
        for name, child in network.named_children()
    ]
    expected = network(X)
    for handle in handles:
        handle.remove()
    with model.trace(X) as tracer:
        cache = tracer.cache()
        found = {name: getattr(model[0], f"E_{name}").output for name in Words.NAMES}.save()
        whole = model[0].output.save()
    assert torch.equal(whole, expected)
    for name in Words.NAMES:
        assert torch.equal(found[name], values[name])
        assert torch.equal(cache[f"0.{name}"].output, values[name])
    cache.save(tmp_path / "cache.safetensors")
    read = type(cache).load(tmp_path / "cache.safetensors")
    assert all(torch.equal(read[f"0.{n}"].output, values[n]) for n in Words.NAMES)


def test_an_encoder_of_proteins(tmp_path):
    """ESM, whose layers have children called `output`: values, rows, edits and a cache."""
    import transformers

    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=1,
        mask_token_id=23,
    )
    network = transformers.EsmModel(config).eval()
    model, ids = NNsight(network), torch.randint(4, 20, (5, 7))
    with torch.no_grad():
        states = network(ids, output_hidden_states=True).hidden_states
        with model.trace(ids) as tracer:
            cache = tracer.cache(modules="*.layer.*")
            first = model.encoder.layer[0].output.save()
            dense = model.encoder.layer[1].E_output.E_dense.output.save()
        first = first[0] if isinstance(first, tuple) else first
        assert torch.equal(first, states[1]) and dense.shape == (5, 7, 16)
        assert torch.equal(cache["encoder.layer.1.output.dense"].output, dense)
        with model.trace() as tracer:
            with tracer.invoke(ids[:3]):
                model.encoder.layer[0].E_output.output[:] = 0
            with tracer.invoke(ids[3:]):
                other = model.encoder.layer[0].output.save()
    other = other[0] if isinstance(other, tuple) else other
    torch.testing.assert_close(other, states[1][3:], atol=1e-5, rtol=0)


# --- nothing is mounted ---------------------------------------------------------------------------


def test_names_are_plain_python_after_a_trace(model):
    assert not hasattr(object(), "save") and not hasattr(1, "save")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(X):
            first, *others = [model.first.output, model.second.output, model.last.output].save()
            pair = {"one": first.sum(), "two": [first]}.save()
            number = (first.shape[0] + 1).save()
            nothing = None.save()
    assert len(others) == 2 and pair["two"][0] is first and number == 3 and nothing is None


def test_an_order_that_is_impossible_names_both_lines():
    model, x = NNsight(nn.Sequential(nn.Linear(2, 2), nn.Tanh())), torch.ones(1, 2)
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace(x):
            late = model[1].output * 2
            early = model[0].output + late  # noqa: F841
    line = caught.traceback[-1].lineno + 1  # pytest counts from 0
    assert f"where line {line - 1} of this block" in str(caught.value)
    assert "`model.0.output`" in str(caught.value) and "`model.1.output`" in str(caught.value)
