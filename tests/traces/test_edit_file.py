"""Edits as files: what is written is Python, and means the same elsewhere."""

from __future__ import annotations

import ast
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch.nn import functional

from nnsight import LanguageModel, NNsight
from tests.behaviour.small import Network

X = torch.linspace(-1, 1, 8).reshape(2, 4)
SCALE = 3


@pytest.fixture
def model() -> NNsight:
    return NNsight(Network())


def value_of(model, x=X):
    with model.trace(x):
        value = model.first.output.save()
    return value


def through_a_file(model, edited, folder):
    """Another model of the same weights, with the edits as they come out of a file."""
    file = edited.export_edits("some edits", folder)
    assert file == folder / "some--edits" / "__default__.py"
    other = NNsight(Network())
    other._module.load_state_dict(model._module.state_dict())
    other.import_edits("some edits", folder)
    return other, file.read_text()


def test_the_file_reads_as_it_was_written(model, tmp_path):
    strength = 2.5
    with model.edit(name="double it") as edited:
        # a comment stays
        hidden = model.first.output
        model.first.output = hidden * strength  # and this one
    other, text = through_a_file(model, edited, tmp_path)
    assert "    # a comment stays" not in text  # it stands before the first statement
    assert "    model.first.output = hidden * strength  # and this one\n" in text
    assert "def double_it(tracer, model, tensors):  # " in text and "    strength = 2.5\n" in text
    assert not list(tmp_path.rglob("*.safetensors"))
    assert torch.equal(value_of(other), value_of(edited))
    assert [(e.name, e.path) for e in other.edits] == [("double it", "")]


def scaled(value):
    return shifted(value) * SCALE


def shifted(value):
    text = """two
lines"""
    return functional.relu(value) + len(text)


def test_everything_that_can_be_written(model, tmp_path):
    direction, values = torch.randn(4), {"a": [1, (2.0, None)], "t": torch.ones(4), 3: {4}}
    kind, size, ends = torch.float32, torch.Size([2, 4]), (math.inf, -math.inf)
    layer, layers, window, lone = model.first, [model.first, model.second], slice(1, None), (7,)
    square = math.sqrt

    with model.edit() as (tracer, edited):
        number = values["a"][1][0] + len(values[3]) + square(4) + lone[0] + SCALE
        assert ends[0] > 0 > ends[1] and layers[0] == layer and tracer.barrier
        new = scaled(layer.output.to(kind)) + direction * number + values["t"]
        assert new.shape == size and new[:, window].shape == (2, 3)
        note = """a string
of two lines"""
        layers[0].output = new + len(note)

    other, text = through_a_file(model, edited, tmp_path)
    assert "def scaled(value):" in text and "SCALE = 3" in text
    assert "from math import sqrt as square" in text
    assert torch.equal(value_of(other), value_of(edited))
    ast.parse(text)
    again, _ = through_a_file(model, other, tmp_path / "again")
    assert torch.equal(value_of(again), value_of(edited))


def test_lambdas_and_defaults(model, tmp_path):
    strength, weights = 2.0, torch.arange(4.0)
    double = lambda value: value * strength  # noqa: E731
    chosen = {
        "shift": lambda value, by=weights, *, times=1: value + by * times,
        "relu": functional.relu,
        "scaled": scaled,
    }

    def summed(value, over=SCALE):
        return value + sum([weights[i] for i in range(over)])

    with model.edit() as edited:
        value = double(chosen["shift"](model.first.output))
        model.first.output = chosen["scaled"](chosen["relu"](summed(value)))

    other, text = through_a_file(model, edited, tmp_path)
    assert "double = lambda value: value * strength" in text and "strength = 2.0" in text
    assert torch.equal(value_of(other), value_of(edited))
    rows = weights.expand(2, 4)
    by_function = model.edit(lambda tracer, model: setattr(model.first, "output", rows * SCALE))
    other, text = through_a_file(model, by_function, tmp_path)
    assert "function = lambda tracer, model: setattr(" in text and "SCALE = 3" in text
    assert torch.equal(value_of(other), rows * 3)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 keeps no columns")
def test_one_of_several_lambdas_on_a_line(model, tmp_path):
    double, triple = lambda value: value * 2, lambda value: value * 3
    with model.edit() as edited:
        model.first.output = double(model.first.output)
        model.first.output = triple(model.first.output)
    other, _ = through_a_file(model, edited, tmp_path)
    assert torch.equal(value_of(other), value_of(edited))


def test_arrays_of_numpy(model, tmp_path):
    array, number, whole = numpy.arange(4.0, dtype="float32"), numpy.float32(2.5), numpy.int64(3)
    with model.edit() as edited:
        shift = torch.from_numpy(numpy.sqrt(array))
        model.first.output = model.first.output * float(number) + shift * int(whole)
    other, text = through_a_file(model, edited, tmp_path)
    assert "import numpy as numpy" in text and "].numpy()[()]" in text
    assert torch.equal(value_of(other), value_of(edited))
    words = numpy.array(["a"])
    with model.edit() as edited:
        model.first.output = model.first.output * len(words)
    with pytest.raises(ValueError, match="it uses `words`, a ndarray"):
        edited.export_edits("x", tmp_path)


def test_edits_on_children_and_functions_and_managers(model, tmp_path):
    def halve(tracer, model):
        model.first.output = model.first.output / 2

    edited = model.edit(halve)
    with edited.first.edit(inplace=True) as layer, torch.no_grad():
        layer.output = layer.output + 1
    # fmt: off
    with edited.edit(inplace=True): edited.first.output[:, 0] = 0  # noqa: E701
    # fmt: on
    other, text = through_a_file(model, edited, tmp_path)
    assert "with torch.no_grad():" in text and [e.path for e in other.edits] == ["", "first", ""]
    assert torch.equal(value_of(other), value_of(edited))
    assert value_of(other)[:, 0].tolist() == [0, 0]


def test_another_process(model, tmp_path):
    direction = torch.arange(4.0)
    with model.edit(every_step=False) as edited:
        model.first.output = model.first.output * 0 + direction
    edited.export_edits("steer", tmp_path, "v2")
    code = (
        "import torch; from nnsight import NNsight; from tests.behaviour.small import Network\n"
        f"model = NNsight(Network()); model.import_edits('steer', {str(tmp_path)!r}, 'v2')\n"
        "with model.trace(torch.ones(1, 4)):\n    out = model.first.output.save()\n"
        "print(out.tolist(), model.edits[0].every_step)"
    )
    root = Path(__file__).parents[2]
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script)]
    path = f"{root}:{root / 'src'}"
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=55, env={"PYTHONPATH": path}, check=True
    )
    assert done.stdout.strip() == "[[0.0, 1.0, 2.0, 3.0]] False"


def test_an_edited_model_pickles(model):
    direction = torch.randn(4)
    with model.edit() as edited:
        model.first.output = model.first.output + direction
    twin = pickle.loads(pickle.dumps(edited))
    assert torch.equal(value_of(twin), value_of(edited)) and twin._module is not model._module
    twin.clear_edits()
    assert torch.equal(value_of(twin), value_of(model))
    with model.edit(name="again") as named:
        model.first.output[:] = 1
    assert pickle.loads(pickle.dumps(named.edits[0])).name == "again"


def test_the_source_of_an_edit(model):
    with model.edit(inplace=True):
        model.first.output[:] = 0
    assert model.edits[0].source == "model.first.output[:] = 0"
    assert "nonlocal" not in model.edit(lambda tracer, model: None).edits[-1].source


def test_what_cannot_be_written(model, tmp_path):
    opened = object()
    with model.edit(inplace=True):
        model.first.output[:] = hash(opened)
    with pytest.raises(ValueError, match=r"it uses `opened`, a object\. What can be written:"):
        model.export_edits("x", tmp_path)
    model.clear_edits()
    with pytest.raises(ValueError, match="has no edits to write"):
        model.export_edits("x", tmp_path)
    with pytest.raises(FileNotFoundError, match="there are no edits at"):
        model.import_edits("x", tmp_path)
    with model.edit(inplace=True):
        model.first.output[:] = 0
    with pytest.raises(ValueError, match="this model has no name of its own"):
        model.export_edits()
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "__default__.py").write_text("x = 1")
    with pytest.raises(ValueError, match="holds no `EDITS`"):
        model.import_edits("y", tmp_path)


@pytest.mark.parametrize("name", ["../../up", "..", "/up", "a/b"])
def test_a_name_leads_nowhere_else(model, tmp_path, name):
    with model.edit(inplace=True):
        model.first.output[:] = 0
    file = model.export_edits(name, tmp_path / "in", variant=name)
    assert file.parent.parent == tmp_path / "in" and file.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_names_that_a_written_edit_is_given(tmp_path):
    tensors, nn = torch.ones(4), NNsight(Network())
    model = 2
    with nn.edit() as edited:
        nn.first.output = nn.first.output * model + tensors
    other, text = through_a_file(nn, edited, tmp_path)
    assert "nn = model" in text
    assert torch.equal(value_of(other), value_of(edited))


def test_a_language_model_keeps_them_under_its_name(gpt2_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NNSIGHT_CACHE_DIR", str(tmp_path))
    model = LanguageModel(gpt2_folder)
    with model.edit(inplace=True):
        model.transformer.h[0].mlp.output[:] = 0
    file = model.export_edits()
    assert file.is_relative_to(tmp_path / "exports")
    again = LanguageModel(gpt2_folder, import_edits=True)
    with again.trace("Hello"):
        zeros = again.transformer.h[0].mlp.output.save()
    assert not zeros.any()


# --- steps --------------------------------------------------------------------------------------


def count_zeros(model, **settings):
    zeros = []
    with model.generate("Hello", max_new_tokens=4, do_sample=False, **settings) as tracer:
        for _ in tracer.iter[:]:
            zeros.append(not model.transformer.h[0].mlp.output.any())
    return zeros


def test_every_step_or_the_first(gpt2):
    def zero(tracer, model):
        model.transformer.h[0].mlp.output[:] = 0

    stop = {"eos_token_id": None, "pad_token_id": 0}
    every = gpt2.edit(zero, every_step=True)
    first = gpt2.edit(zero, every_step=False)
    unsaid = gpt2.edit(zero, name="unsaid")
    with gpt2.edit() as (tracer, by_itself):
        for _ in tracer.iter[1:3]:
            gpt2.transformer.h[0].mlp.output[:] = 0
    assert count_zeros(every, **stop) == [True] * 4
    assert count_zeros(first, **stop) == [True, False, False, False]
    with pytest.warns(UserWarning, match=r"'unsaid' .* in the first of 4 steps only"):
        assert count_zeros(unsaid, **stop) == [True, False, False, False]
    assert count_zeros(by_itself, **stop) == [False, True, True, False]
    with every.trace("Hello"):
        value = every.transformer.h[0].mlp.output.save()
    assert not value.any()
    with unsaid.trace("Hello"):
        value = unsaid.transformer.h[0].mlp.output.save()
    assert not value.any()


def test_every_step_of_a_plain_generate(gpt2):
    with gpt2.edit(every_step=True) as edited:
        gpt2.lm_head.output[:] = 0
        gpt2.lm_head.output[..., 7] = 1
    out = edited.generate("Hello", max_new_tokens=4, do_sample=False)
    assert out[0, -4:].tolist() == [7] * 4
    assert gpt2.generate("Hello", max_new_tokens=4, do_sample=False)[0, -4:].tolist() != [7] * 4
