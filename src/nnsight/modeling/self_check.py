"""`model.check_names()`: whether the standard names of a model are what they say, in numbers.

It runs the model on a few tokens and holds every name to what must be true of it: patterns sum to
one and mix `v` to `z`, `z` through the output projection is `attn.out`, the branches add up to the
stream, a change of one head of `q` or `k` moves that head's pattern and its alone, and assigning
each value to itself changes nothing.

It is not run when a model is opened or a name first used: it takes some forwards and the weights,
where wrapping a model takes microseconds, and inside a trace the model is busy. `check_names=True`
runs it as soon as the weights are there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight import nested
from nnsight.modeling import errors
from nnsight.modeling.family import PARALLEL
from nnsight.modeling.kernel import KERNEL, told_of
from nnsight.modeling.names_report import Finding, NamesReport
from nnsight.modeling.relations import Check, Values, check_layer
from nnsight.modeling.samples import sample
from nnsight.modeling.stacks import Stack, stacks_of


@dataclass
class _Kept:
    """Of one layer: its values, and why it lacks others."""

    layer: str
    values: Values = field(default_factory=dict[str, torch.Tensor])
    absent: dict[str, str] = field(default_factory=dict[str, str])

    def take(self, name: str, read: Callable[[], torch.Tensor]) -> None:
        try:
            self.values[name] = read().detach().clone()
        except errors.NoSuchName as missing:
            self.absent[name] = str(missing)
        except Exception as error:
            before = next(reversed(self.values), "")
            raise errors.names_unreadable(self.layer, name, before, error) from error


def check_names(model: Any) -> NamesReport:
    """Hold each standard name of `model` to what must be true of it.

    Raises:
        NamesError: one is not; it is named.
        NoSuchName: the model has no layers.
    """
    model._before_run()  # before anything is remembered of the model: weights change it
    stacks = stacks_of(model)
    if not stacks:
        raise errors.no_layers(model._path)
    root, told = model._module, told_of(model)
    training, told_already = root.training, KERNEL in told
    root.eval()
    told.add(KERNEL)  # nobody but this check uses the patterns here
    try:
        with torch.no_grad():
            findings = tuple(_found(model, stacks))
    finally:
        root.train(training)
        if not told_already:
            told.discard(KERNEL)
    listed = ", ".join(f"{stack.name}[...]" for stack in stacks)
    guess = "" if stacks[0].known else "; not in the table of families, so told from its modules"
    return NamesReport(f"standard names of {type(root).__name__}: {listed}{guess}", findings)


def _found(model: Any, stacks: Sequence[Stack]) -> Iterator[Finding]:
    half = next(model._module.parameters()).dtype != torch.float32
    check = Check(type(model._module).__name__, 3e-2 if half else 1e-3)
    kept, base = _values(model, stacks)
    for stack, layers in zip(stacks, kept, strict=True):
        for index, each in enumerate(layers):
            if index:
                before = layers[index - 1].values["resid_post"]
                found = each.values["resid_pre"]
                check.hold(each.layer, "resid_pre", "what the layer before gives", found, before)
            check_layer(check, each.layer, layers_of(model, stack)[index], each.values, stack)
        for which in ("q", "k"):
            _check_heads(check, model, stack, stacks, layers, which)
    _check_writes(check, model, stacks, base)
    return _findings(check, kept)


def layers_of(model: Any, stack: Stack) -> Any:
    """The layers of one stack of a model."""
    *_, half, _ = ("", *stack.name.split("."))
    return model.layers if stack.name == f"{model._path}.layers" else getattr(model, half).layers


def _values(model: Any, stacks: Sequence[Stack]) -> tuple[list[list[_Kept]], torch.Tensor]:
    """The values of every name in every layer, and what the model returns."""

    def read(tracer: Any, model: Any, stack: Stack) -> Any:
        layers = layers_of(model, stack)
        kept = [_of_layer(layer, stack, index) for index, layer in enumerate(layers)]
        return kept, next(nested.leaves(tracer.result)).clone()

    # each in a run of its own: which of two runs first is the model's business
    found = [
        model.run(fn=functools.partial(read, stack=stack), **sample(model, stacks))
        for stack in stacks
    ]
    return [kept for kept, _ in found], found[0][1]


def _places(layer: Any, stack: Stack) -> list[tuple[str, str]]:
    """Every name of a layer as what has it and what it is called, in the order of the forward."""
    parts = [part for part in ("attn", "cross_attn") if part == "attn" or hasattr(layer, part)]
    attention = [(part, name) for part in parts for name in _of_attention(layer, part)]
    routed = [] if stack.family.order == PARALLEL else [("router", "probs")]
    rest = [("mlp", "act"), ("mlp", "out"), ("", "resid_post")]
    return [("", "resid_pre"), *attention, ("", "resid_mid"), *routed, *rest]


def _of_attention(layer: Any, part: str) -> list[str]:
    projected = getattr(layer, part)._in_order() if hasattr(layer, part) else list("qkv")
    return [*projected, "q_rot", "k_rot", "pattern", "z", "out"]


def _of_layer(layer: Any, stack: Stack, index: int) -> _Kept:
    kept = _Kept(f"{stack.name}[{index}]")
    for part, name in _places(layer, stack):
        kept.take(
            f"{part}.{name}".lstrip("."),
            lambda part=part, name=name: getattr(getattr(layer, part) if part else layer, name),
        )
    return kept


def _check_heads(
    check: Check, model: Any, stack: Stack, stacks: Sequence[Stack], layers: list[_Kept], which: str
) -> None:
    """That what is changed in the first head of `q` or `k` moves what is that head's, and no more.

    Of a norm over all heads together (OLMo 2) each head moves all, so only the first is looked at.
    """
    name = f"attn.{which}"
    able = [i for i, kept in enumerate(layers) if {name, "attn.z"} <= kept.values.keys()]
    if not able:
        return
    index, before = able[0], layers[able[0]].values
    shown = "pattern" if "attn.pattern" in before else "z"

    def change(tracer: Any, model: Any) -> Any:
        attention = layers_of(model, stack)[index].attn
        getattr(attention, which)[:, :, 0] = 0
        return getattr(attention, shown).clone()

    after = model.run(fn=change, **sample(model, stacks))
    moved = _moved_heads(shown, before[f"attn.{shown}"], after)
    wanted = torch.zeros_like(moved)
    wanted[: stack.heads // before[name].shape[2]] = True
    norm = getattr(layers_of(model, stack)[index].attn._module, f"{which}_norm", None)
    if norm is not None and norm.weight.numel() > stack.width:
        moved &= wanted
    check.hold(layers[index].layer, name, "a head of it is that head's", moved, wanted)


def _moved_heads(name: str, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    others = (0, 2, 3) if name == "pattern" else (0, 1, 3)
    return (after - before).abs().amax(others) > 1e-6 * (1 + before.abs().max())


def _check_writes(check: Check, model: Any, stacks: Sequence[Stack], base: torch.Tensor) -> None:
    """That each value assigned to itself leaves the model as it is."""

    def write(tracer: Any, model: Any, stack: Stack) -> Any:
        for layer in layers_of(model, stack):
            _assign_all(layer, stack)
        return next(nested.leaves(tracer.result)).clone()

    for stack in stacks:
        after = model.run(fn=functools.partial(write, stack=stack), **sample(model, stacks))
        last = f"{stack.name}[-1]"
        check.hold(last, "resid_post", "all values assigned to themselves", after, base)


def _assign_all(layer: Any, stack: Stack) -> None:
    for part, name in _places(layer, stack):
        try:
            owner = getattr(layer, part) if part else layer
            setattr(owner, name, getattr(owner, name).clone())
        except errors.NoSuchName:
            continue


def _findings(check: Check, kept: list[list[_Kept]]) -> Iterator[Finding]:
    layers = [layer for stack in kept for layer in stack]
    for name in dict.fromkeys(name for each in layers for name in (*each.values, *each.absent)):
        having = [layer.values[name] for layer in layers if name in layer.values]
        absent = next((layer.absent[name] for layer in layers if name in layer.absent), "")
        done = check.done.get(name, {})
        shape = tuple(having[0].shape) if having else ()
        off = max(done.values(), default=0.0)
        yield Finding(name, shape, tuple(done), off, len(having), absent)
