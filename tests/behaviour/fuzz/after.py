"""What must not be left of a program: on the model, or at work."""

from __future__ import annotations

from typing import Any

from torch import nn

from nnsight.envoy import handoff
from nnsight.interleave import turns

_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_backward_hooks")
_DICTS += ("_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")


class Wrong(AssertionError):
    """A seed at which something is not as it must be."""


def traces_of_a_run(model: nn.Module) -> list[Any]:
    """Everything that a run may put on a model."""
    return [
        (path, [list(getattr(module, name)) for name in _DICTS], "forward" in vars(module))
        for path, module in model.named_modules()
    ]


def left_behind(model: nn.Module, before: list[Any]) -> list[str]:
    """What is wrong after a program: `before` is what there was on the model."""
    problems = []
    if traces_of_a_run(model) != before or handoff._gates:
        problems.append("something was left on the model")
    if any(not thread.resting and not thread.abandoned for thread in turns._all):
        problems.append("a block's thread is still at work")
    return problems
