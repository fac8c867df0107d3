"""Looking at the values of many modules without asking for them: one hook for all, no turns.

What a block asks for goes through `handoff.py`, which tells the observers of the run afterwards;
the hook here stands back for it. So an observer sees each value once, as the model goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.nn import Module

from nnsight.envoy.handoff import Hook, as_tuple, keep_last, new_key
from nnsight.envoy.passage import module_of
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, Location

See = Callable[[Location, Any], None]
Targets = Mapping[Module, Location]


def observe(
    outputs: Targets,
    inputs: Targets,
    see: See,
    run: Interleaver,
    shows_tuple: Callable[[Module], bool],
) -> None:
    """From now on in `run`, show `see` the values of these modules whenever it comes by.

    Args:
        shows_tuple: whether blocks see the tensor that a module returns as a tuple of it.
    """

    def served(location: Location, value: Any) -> None:
        targets = {OUTPUT: outputs, INPUT: inputs}.get(location.kind)
        module = module_of(location) if targets else None
        if targets and module is not None and module in targets:
            see(targets[module], value)

    run.observers.append(served)
    if outputs:
        _hook_outputs(outputs, see, run, frozenset(filter(shows_tuple, outputs)))
    if inputs:
        _hook_inputs(inputs, see, run)


def _hook_outputs(targets: Targets, see: See, run: Interleaver, tupled: frozenset[Module]) -> None:
    offered, key = run.offered, new_key()

    def hook(module: Module, args: Any, result: Any) -> None:
        if run.holds() and (id(module), OUTPUT) not in offered:
            see(targets[module], as_tuple(result) if module in tupled else result)

    def undo() -> None:
        for module in targets:
            module._forward_hooks.pop(key, None)  # type: ignore[call-overload]

    run.at_close(undo)
    for module in targets:
        module._forward_hooks[key] = Hook(hook)  # type: ignore[index]
        if len(module._forward_hooks) > 1:
            keep_last(module._forward_hooks)


def _hook_inputs(targets: Targets, see: See, run: Interleaver) -> None:
    offered, key = run.offered, new_key()

    def hook(module: Module, args: Any, kwargs: Any = None) -> None:
        if run.holds() and (id(module), INPUT) not in offered:
            see(targets[module], (args, kwargs))

    def undo() -> None:
        for module in targets:
            module._forward_pre_hooks.pop(key, None)  # type: ignore[call-overload]
            module._forward_pre_hooks_with_kwargs.pop(key, None)  # type: ignore[call-overload]

    run.at_close(undo)
    for module in targets:
        module._forward_pre_hooks_with_kwargs[key] = True  # type: ignore[index]
        module._forward_pre_hooks[key] = Hook(hook)  # type: ignore[index]
