"""Interventions that are broken in one word each: not one goes on as if it had done its work."""

from __future__ import annotations

import re
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import hooks_on
from torch import nn

from nnsight import NNsight


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.fc(x))


class Net(nn.Module):
    """`roll` calls it again and again, as a generation does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def roll(self, x: torch.Tensor, times: int) -> torch.Tensor:
        for _ in range(times):
            x = x + self(x).sum()
        return x


WHOLE = """
with model.trace(x):
    model.layers[0].output[:] = 0
    out = model.output.save()
===
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[1]:
        model.layers[0].output[:] = 0
    out = tracer.result.save()
===
with model.trace() as tracer:
    with tracer.invoke(x):
        h = model.layers[0].output
    with tracer.invoke(x):
        model.layers[0].output = h
        out = model.output.save()
"""

# what is said of it, and the code: a lone line stands in a trace, before `out` is saved
LINES = {
    # a name
    "model.layer[0].output[:] = 0": "AttributeError: .*Did you mean `layers`",
    "model.layers[0].fcc.output[:] = 0": "AttributeError: .*Did you mean `fc`",
    "model.layers[3].output[:] = 0": "IndexError: .*has 3 modules",
    "model.layers[0].outputs[:] = 0": "AttributeError: .*Did you mean `output`",
    "model.layers[0].ouput = zeros": "AttributeError: .*Did you mean `output`",
    "model.layers[0].hidden = zeros": "AttributeError: .*no module or attribute 'hidden'",
    "model.get('layers.0.fcc').output[:] = 0": "AttributeError: .*fcc",
    "model.layers.output = zeros": "NeverCalledError: .*only holds modules",
    "model.layers[0].source.torch_tan_0.output[:] = 0": "AttributeError: .*torch_tanh_0",
    "model.layers[0].source.torch_tanh_1.output[:] = 0": "(AttributeError|NeverCalled).*tanh_1",
    "tracer.cache(modules=['layers.0.fcc'])": "ValueError: .*no module 'layers.0.fcc'",
    "tracer.cache(modules=['*.fcc'])": r"ValueError: .*\*\.fcc",
    "tracer.outptu = zeros": "UserWarning: .*Did you mean `.output`",
    "del model.layers[0].output": "AttributeError",
    # a place
    "model.layers[0].unused.output[:] = 0": "NeverCalledError: .*unused.output",
    "model.layers[0].unused.skip(zeros)": "NeverCalledError: .*unused.skip",
    "model.layers[0].unused.input = zeros": "NeverCalledError: .*unused.input",
    "other.layers[0].output[:] = 0": "(ValueError|OutsideTraceError): .*another model",
    "model.head.output; model.layers[0].output[:] = 0": "OutOfOrderError: .*layers.0.output",
    "model.layers[0].output; model.layers[0].input = zeros": "OutOfOrderError: .*layers.0.input",
    "model.layers[0].fc.output; model.layers[0].skip(zeros)": "OutOfOrderError: .*layers.0",
    "model.layers[0].output; model.layers[0].source.torch_tanh_0.output[:] = 0": "OutOfOrderError",
    "model.output; model.head.output[:] = 0": "OutOfOrderError: .*head.output",
    "h = model.layers[0].output.save(); model.layers[1].output; h[:] = 0": "UserWarning: .*place",
    # a value
    "model.layers[0].output = None": "ValueError: .*None",
    "model.layers[0].output = zeros.double()": "RuntimeError: .*dtype.*layers.0.output",
    "model.layers[0].output = zeros.to('meta')": "RuntimeError: .*meta",
    "model.layers[0].output = zeros.tolist()": "(BatchError|TypeError)",
    "model.layers[0].output = (zeros,)": "BatchError: .*tuple of 1",
    "model.layers[0].output = zeros[:1]": r"BatchError: .*\[1, 4\].*\[2, 4\]",
    "model.layers[0].output = zeros[:, :3]": "RuntimeError: .*layers.0.output",
    "model.layers[0].fc.output = zeros[:, :1]": r"BatchError: .*\[2, 1\].*\[2, 4\].*spread",
    "model.layers[0].fc.output = zeros.mean(-1, True)": r"BatchError: .*\[2, 1\].*\[2, 4\].*spread",
    "model.layers[0].fc.output = zeros[0]": r"BatchError: .*\[4\].*\[2, 4\]",
    "model.layers[0].fc.output = zeros.sum()": r"BatchError: .*\[2, 4\]",
    "model.layers[0].output[:, 4] = 0": "IndexError: .*index 4",
    "model.layers[0].output[:] = zeros[:, :3]": "RuntimeError: .*size",
    "model.head.input = zeros[:1]": "BatchError: .*head.input",
    "model.head.inputs = ((), {'inputt': zeros})": "TypeError: .*inputt",
    "model.layers[0].skip(zeros[:1])": r"BatchError: .*\[1, 4\].*given.*\[2, 4\]",
}
BLOCKS = {
    # a step
    """
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[2]:
        model.layers[0].output[:] = 0
    out = tracer.result.save()
""": r"UserWarning: `tracer\.iter\[2\]` ended before step 2.*has not run at all",
    """
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[2:]:
        model.layers[0].output[:] = 0
    out = tracer.result.save()
""": r"UserWarning: `tracer\.iter\[2:\]` ended before step 2.*has not run at all",
    """
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[:9]:
        model.layers[0].output[:] = 0
    out = tracer.result.save()
""": r"UserWarning: `tracer\.iter\[:9\]` .*fewer steps",
    """
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[-1]:
        model.layers[0].output[:] = 0
    out = tracer.result.save()
""": "ValueError: .*count from 0",
    """
with model.trace(x, 2, fn="roll") as tracer:
    model.layers[0].next(2).output[:] = 0
    out = tracer.result.save()
""": "MissedProviderError: .*step 2",
    """
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[:]:
        model.head.output
        model.layers[0].output[:] = 0
    out = tracer.result.save()
""": "OutOfOrderError: .*of step 0",
    """
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[:]:
        out = model.head.output.save()
    model.layers[0].output[:] = 0
""": "OutOfOrderError: .*layers.0.output",
    # after a stop
    """
with model.trace(x) as tracer:
    out = model.layers[0].output.save()
    tracer.stop()
    model.layers[1].output[:] = 0
""": r"UserWarning: line 5 comes after `stop\(\)`",
    """
with model.trace() as tracer:
    with tracer.invoke(x):
        out = model.layers[0].output.save()
        tracer.stop()
        model.layers[1].output[:] = 0
""": r"UserWarning: line 6 comes after `stop\(\)`",
    """
with model.trace() as tracer:
    with tracer.invoke(x):
        model.layers[0].output
        tracer.stop()
    with tracer.invoke(x):
        model.layers[1].output[:] = 0
        out = model.output.save()
""": r"UserWarning: tracer\.stop\(\) ended the run before the block at .*line 6",
    """
with model.trace(x, 2, fn="roll") as tracer:
    for step in tracer.iter[:]:
        out = model.layers[0].output.save()
        if step == 1:
            tracer.stop()
            model.layers[1].output[:] = 0
""": r"UserWarning: line 7 comes after `stop\(\)`",
    # an invoke
    """
with model.trace() as tracer:
    with tracer.invoke(x):
        h = model.layers[0].output
    with tracer.invoke(x[:1]):
        model.layers[0].output = h
        out = model.output.save()
""": r"BatchError: .*\[2, 4\].*\[1, 4\]",
    """
with model.trace() as tracer:
    with tracer.invoke(x):
        g = model.layers[0].output
    with tracer.invoke(x):
        model.layers[0].output = h
        out = model.output.save()
""": "NameError: .*'h'",
    """
with model.trace() as tracer:
    with tracer.invoke(x):
        h = model.head.output
    with tracer.invoke(x):
        model.head.output = model.head.output.double()
        out = model.output.save()
""": "BatchError: .*float64.*float32",
    """
with model.trace() as tracer:
    model.layers[0].output[:] = 0
    with tracer.invoke(x):
        out = model.output.save()
""": "OutsideTraceError: .*layers.0.output",
    # an edit, a gradient, a name
    """
with model.edit() as edited:
    model.layers[0].unused.output[:] = 0
with edited.trace(x):
    out = edited.output.save()
""": "UserWarning: the edit .* did not come to its end",
    """
with model.trace(x):
    h = model.layers[0].output.detach()
    with model.output.sum().backward():
        h.grad[:] = 0
""": "MissedProviderError|ValueError|RuntimeError|OutOfOrderError",
    """
with model.trace(x):
    h = model.layers[0].output
    with model.output.sum().backward():
        h.grad = torch.zeros(1, 4)
        out = model
""": r"(BatchError|ValueError|RuntimeError): .*\[1, 4\]",
    """
NNsight(model._module, rename={"layer": "blocks"})
""": "ValueError: .*'layer' of `rename` matches nothing",
    """
NNsight(model._module, envoys={"layers.9": type(model)})
""": r"ValueError: .*layers\.9",
}


def in_a_trace(line: str) -> str:
    return f"\nwith model.trace(x) as tracer:\n    {line}\n    out = model.output.save()\n"


BROKEN = {**{in_a_trace(line): said for line, said in LINES.items()}, **BLOCKS}


def said_of(code: str, folder: Path) -> list[str]:
    """Runs a snippet as a file of its own: the warnings and the error that came of it."""
    torch.manual_seed(0)
    file = folder / "snippet.py"
    file.write_text(code)
    module = types.ModuleType("snippet")
    model, other = NNsight(Net()), NNsight(Net())
    names: dict[str, Any] = {"NNsight": NNsight, "torch": torch, "model": model, "other": other}
    vars(module).update(names, x=torch.ones(2, 4), zeros=torch.zeros(2, 4))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            exec(compile(code, str(file), "exec", dont_inherit=True), vars(module))
            said = []
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", ()))
            said = [f"{type(error).__name__}: {error} {notes}"]
    assert hooks_on(model._module) == []
    return [f"{w.category.__name__}: {w.message}" for w in warned] + said


@pytest.mark.parametrize("code", WHOLE.split("===\n"))
def test_whole_ones_are_let_be(code: str, tmp_path: Path):
    assert said_of(code, tmp_path) == []


@pytest.mark.parametrize(("code", "told"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_one_is_told(code: str, told: str, tmp_path: Path):
    said = said_of(code, tmp_path)
    assert any(re.match(told, re.sub(r"\s+", " ", text)) for text in said), (code, said)


def test_there_are_enough_of_them():
    assert len(BROKEN) >= 60
