"""Whether lines ask ahead or wait one by one, a block sees and leaves the same."""

from __future__ import annotations

import linecache
import warnings
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nnsight
from nnsight import NNsight
from nnsight.capture.rewrite import AHEAD, provided

LAYERS = 6
PARTS = ["", "", "[0]", ".clone()", ".detach()", ".sum()", "[:, 1]", ".mean().item()"]


class Net(nn.Module):
    """Changes values, buffers and a count as it runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        kinds = [
            *(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(3), nn.Linear(3, 3)),
            *(nn.Sigmoid(), nn.Linear(3, 3)),
        ]
        self.layers = nn.ModuleList(kinds)
        self.calls = [0]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            self.calls[0] += 1
        return x


class Writer:
    """Writes the lines of a block, values in the order in which the model computes them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.lines: list[str] = []
        self.names: list[str] = []
        self.at = 0  # the layer

    def value(self) -> str:
        self.at = min(self.at + self.random.choice([0, 0, 1, 1, 2]), LAYERS - 1)
        return f"m.layers[{self.at}].output" + self.random.choice(PARTS)

    def name(self) -> str:
        self.names.append(f"v{len(self.names)}")
        return self.names[-1]

    def line(self) -> str:
        pick = self.random.choice
        some = pick(self.names) if self.names else "0"
        kinds = [
            lambda: f"{self.name()} = nnsight.save({self.value()})",
            lambda: f"{self.name()} = {self.value()}",
            lambda: f"xs.append({self.value()})",
            lambda: f"table[{pick('ab')!r}] = {self.value()}",
            lambda: f"xs[-1:] = [{self.value()}]",
            lambda: f"{self.name()} = [{self.value()}, {self.value()}]",
            lambda: f"{self.name()} = [i for i in range(n % 3)]",
            lambda: f"{self.name()} = {some}",
            lambda: f"{self.name()} = f'{{{some}}}'",
            lambda: f"{self.name()} = xs + [1]",
            lambda: f"{self.name()} = dict(table)",
            lambda: f"{self.name()} = note({some})",
            lambda: "n = n + 1",
            lambda: f"{self.name()} = m._module.calls[0]",
            lambda: f"{self.name()} = m._module.layers[2].running_mean + 0",
            lambda: f"if n % 2:\n            xs.append({self.value()})",
            lambda: f"for i in range(2):\n            xs.append({self.value()})",
            lambda: f"m.layers[{self.at}].output.data.mul_(2)" if self.at else "pass",
        ]
        return pick(kinds)()

    def text(self) -> str:
        lines = [self.line() for _ in range(self.random.randint(1, 9))]
        body = "".join(f"        {line}\n" for line in lines)
        kept = ", ".join(f"{name!r}: {name}" for name in self.names)
        return (
            "def program(m, x, xs, table, note):\n"
            "    n, saved = 0, {}\n"
            f"    with m.trace(x):\n{body}        saved.update({{{kept}, 'n': n}})\n"
            "    return saved\n"
        )


def ends(text: str, ahead: bool) -> tuple[Any, ...]:
    """What a program leaves, or how it fails."""
    name = f"<law {ahead}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    held = None if ahead else provided.pop(AHEAD)
    xs, table, notes = [7], {"a": 8}, []  # type: ignore[var-annotated]

    def note(value: Any) -> int:
        notes.append(frozen(value))
        return len(notes)

    try:
        space: dict[str, Any] = {"nnsight": nnsight}
        exec(compile(text, name, "exec"), space)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = space["program"](NNsight(Net()), torch.ones(2, 3) * 0.5, xs, table, note)
        error = None
    except Exception as caught:
        saved, error = None, type(caught)
    finally:
        if held is not None:
            provided[AHEAD] = held
        del linecache.cache[name]
    return error, frozen(saved), frozen(xs), frozen(table), notes


def frozen(value: Any) -> Any:
    """A value as it is now, to be compared to the bit."""
    if isinstance(value, torch.Tensor):
        return value.tolist(), value.dtype, value.requires_grad
    if isinstance(value, dict):
        return {key: frozen(each) for key, each in value.items()}
    return [frozen(each) for each in value] if isinstance(value, list) else value


@given(st.integers(0, 10**6))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_block_sees_and_leaves_the_same(seed):
    text = Writer(seed).text()
    assert ends(text, True) == ends(text, False), f"{text}\n{ends(text, True)}\n{ends(text, False)}"


@pytest.mark.parametrize("end", ["", "\n        1 / 0"])
def test_programs_ask_ahead_and_wait(end):
    text = (
        "def program(m, x, xs, table, note):\n"
        "    with m.trace(x):\n"
        f"        xs.append(m.layers[3].output)\n        xs.append(m.layers[0].output){end}\n"
    )
    error, _, xs, _, _ = ends(text, True)
    assert len(xs) == 3 and error is (ZeroDivisionError if end else None)
    error, _, xs, _, _ = ends(text, False)  # out of order, one by one
    assert len(xs) == 2 and error is nnsight.OutOfOrderError
