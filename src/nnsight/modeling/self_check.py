"""`model.check_names()`: whether the standard names of a model are what they say, in numbers.

It runs the model on a few tokens and holds every name to what must be true of it: patterns sum to
one and mix `v` to `z`, `z` through the output projection is `attn.out`, the branches add up to the
stream, a change of one head of `q` or `k` changes that head alone, and assigning each value to
itself changes nothing.

It is not run when a model is opened or a name first used: it costs five forwards and the weights,
where wrapping a model costs microseconds. `LanguageModel(..., check_names=True)` runs it as soon as
the weights are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight import nested
from nnsight.modeling import errors
from nnsight.modeling.family import BETWEEN, ODD, PARALLEL, POST, PRE, chosen
from nnsight.modeling.kernel import KERNEL, told_of
from nnsight.modeling.standard import Stack, stacks_of

_TOKENS = 5
_ATTENTION = ("q", "k", "v", "q_rot", "k_rot", "pattern", "z", "out")
_Tensor = torch.Tensor


@dataclass(frozen=True)
class Finding:
    """What was found of one standard name."""

    name: str  # "attn.z", in whichever layer
    shape: tuple[int, ...] = ()  # of its value on two prompts of five tokens
    checks: tuple[str, ...] = ()  # what was held true
    deviation: float = 0.0  # the largest of any check, relative to the value
    layers: int = 0  # how many have it
    absent: str = ""  # why others do not


@dataclass(frozen=True)
class NamesReport:
    """What `check_names` found. It prints as a table; `findings` has the rows."""

    title: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        rows = [("name", "shape", "layers", "off by", "checked")]
        for found in filter(_is_there, self.findings):
            shape = str(list(found.shape))
            off = f"{found.deviation:.0e}" if found.checks else "-"
            rows.append((found.name, shape, str(found.layers), off, "; ".join(found.checks)))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        absent = ", ".join(found.name for found in self.findings if not found.layers)
        lines += [f"not in this model: {absent}"] if absent else []
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    __repr__ = __str__


def _is_there(finding: Finding) -> bool:
    return finding.layers > 0


@dataclass
class _Kept:
    """Of one layer: its values, and why it lacks others."""

    values: dict[str, _Tensor] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, read: Callable[[], _Tensor]) -> None:
        try:
            self.values[name] = read().detach().clone()
        except errors.NoSuchName as missing:
            self.absent[name] = str(missing)


class _Check:
    """One check of one model: what was found so far."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.done: dict[str, dict[str, float]] = {}
        half = next(model._module.parameters()).dtype != torch.float32
        self.tolerance = 3e-2 if half else 1e-3

    def hold(self, name: str, what: str, found: _Tensor, expected: _Tensor) -> None:
        """Hold `name` to be what it should be, to rounding."""
        off = (found.float() - expected.float()).abs().max() / (1 + expected.float().abs().max())
        short = name.partition("]")[2].lstrip(".") or name
        known = self.done.setdefault(short, {})
        known[what] = max(known.get(what, 0.0), off.item())
        if not off <= self.tolerance:  # a nan is no match either
            raise errors.names_wrong(name, what, off.item(), type(self.model._module).__name__)


def check_names(model: Any) -> NamesReport:
    """Hold each standard name of `model` to what must be true of it.

    Raises:
        NamesError: one is not; it is named.
    """
    stacks = stacks_of(model)
    if not stacks:
        raise errors.no_layers(model._path)
    root, check = model._module, _Check(model)
    training, told = root.training, told_of(model)
    root.eval()
    told.add(KERNEL)  # the check is no use of a pattern
    try:
        with torch.no_grad():
            kept, base = _values(model, stacks)
            for stack, layers in zip(stacks, kept, strict=True):
                _check_stack(check, stack, layers)
                for which in ("q", "k"):
                    _check_heads(check, stack, layers, which)
            _check_writes(check, stacks, base)
    finally:
        root.train(training)
        told.discard(KERNEL)
    return NamesReport(_title(model, stacks), tuple(_findings(check, kept)))


def _title(model: Any, stacks: Sequence[Stack]) -> str:
    listed = ", ".join(f"{stack.name}[...]" for stack in stacks)
    guess = "" if stacks[0].known else "; not in the table of families, so told from its modules"
    return f"standard names of {type(model._module).__name__}: {listed}{guess}"


def _given(model: Any, stacks: Sequence[Stack]) -> dict[str, _Tensor]:
    words = model._module.get_input_embeddings().num_embeddings
    ids = torch.arange(2 * _TOKENS).view(2, _TOKENS) * 7 % max(words - 3, 1) + 2
    both = {"decoder_input_ids": ids.flip(1)} if len(stacks) > 1 else {}
    return {"input_ids": ids, **both}


def _layers(model: Any, stack: Stack) -> Any:
    return model.layers if stack.name == f"{model._path}.layers" else _half(model, stack).layers


def _half(model: Any, stack: Stack) -> Any:
    return getattr(model, stack.name.split(".")[-2])


def _values(model: Any, stacks: Sequence[Stack]) -> tuple[list[list[_Kept]], _Tensor]:
    """The values of every name in every layer, and what the model returns."""

    def read(tracer: Any, model: Any) -> Any:
        kept = [[_of_layer(layer, stack) for layer in _layers(model, stack)] for stack in stacks]
        return kept, next(nested.leaves(tracer.result)).clone()

    return model.run(fn=read, **_given(model, stacks))


def _of_layer(layer: Any, stack: Stack) -> _Kept:
    kept = _Kept()
    kept.take("resid_pre", lambda: layer.resid_pre)
    for part in ("attn", "cross_attn") if stack.family.cross else ("attn",):
        for name in _ATTENTION:
            kept.take(
                f"{part}.{name}", lambda part=part, name=name: getattr(getattr(layer, part), name)
            )
    kept.take("resid_mid", lambda: layer.resid_mid)
    if stack.family.order != PARALLEL:
        kept.take("router.probs", lambda: layer.router.probs)
    for name in ("act", "out"):
        kept.take(f"mlp.{name}", lambda name=name: getattr(layer.mlp, name))
    kept.take("resid_post", lambda: layer.resid_post)
    return kept


# --- what must be true ----------------------------------------------------------------------------


def _check_stack(check: _Check, stack: Stack, layers: list[_Kept]) -> None:
    for index, kept in enumerate(layers):
        name = f"{stack.name}[{index}]"
        if index:
            before = layers[index - 1].values["resid_post"]
            check.hold(
                f"{name}.resid_pre", "what the layer before gives", kept.values["resid_pre"], before
            )
        layer = _layers(check.model, stack)[index]
        for part in ("attn", "cross_attn"):
            if f"{part}.out" in kept.values or f"{part}.z" in kept.values:
                values = {
                    key.partition(".")[2]: v
                    for key, v in kept.values.items()
                    if key.startswith(part)
                }
                _check_attention(check, f"{name}.{part}", getattr(layer, part), values, stack)
        if (probs := kept.values.get("router.probs")) is not None:
            check.hold(
                f"{name}.router.probs", "sum to one", probs.sum(-1), torch.ones(probs.shape[:-1])
            )
        _check_mlp(check, name, layer, kept.values, stack)
        _check_stream(check, name, layer._module, kept.values, stack)


def _check_attention(
    check: _Check, name: str, attention: Any, values: dict[str, _Tensor], stack: Stack
) -> None:
    if (
        missing := [part for part in ("q", "k", "v", "z", "out") if part not in values]
    ) and stack.known:
        raise errors.names_missing(f"{name}.{missing[0]}", type(attention._module).__name__)
    if "z" in values:
        path = chosen(attention._module, stack.family.out)
        project = attention._module.get_submodule(path)
        found = project(values["z"].flatten(-2))
        check.hold(f"{name}.z", "gives `out` through the projection", found, values["out"])
    pattern, v = values.get("pattern"), values.get("v")
    if pattern is not None:
        sums = pattern.float().sum(-1)
        sinks = hasattr(attention._module, "sinks")  # which take a share of their own
        check.hold(
            f"{name}.pattern",
            "sums to one",
            sums.clamp(max=1) if sinks else sums,
            sums if sinks else torch.ones_like(sums),
        )
        if v is not None:
            each = v.transpose(1, 2).repeat_interleave(pattern.shape[1] // v.shape[2], 1)
            mixed = (pattern.to(each.dtype) @ each).transpose(1, 2)
            check.hold(f"{name}.v", "mixed by `pattern` is `z`", mixed, values["z"])


def _check_mlp(
    check: _Check, name: str, layer: Any, values: dict[str, _Tensor], stack: Stack
) -> None:
    if "mlp.act" not in values:
        return
    mlp = layer.mlp
    module = layer._module if not stack.family.mlp else mlp._module
    project = module.get_submodule(chosen(module, stack.family.down))
    check.hold(
        f"{name}.mlp.act",
        "gives `out` through the projection",
        project(values["mlp.act"]),
        values["mlp.out"],
    )


def _check_stream(
    check: _Check, name: str, layer: torch.nn.Module, values: dict[str, _Tensor], stack: Stack
) -> None:
    """That the branches add up, as the family says they do."""
    family = stack.family
    pre, mid, post = values["resid_pre"], values.get("resid_mid"), values["resid_post"]
    attn, cross, mlp = (values.get(f"{part}.out") for part in ("attn", "cross_attn", "mlp"))
    if family.order == ODD or not stack.known or attn is None or mlp is None:
        return

    def through(path: str, value: _Tensor, wanted: str) -> _Tensor:
        return layer.get_submodule(path)(value) if path and family.order == wanted else value

    if family.order == PARALLEL:
        check.hold(f"{name}.resid_post", "pre + attn.out + mlp.out", pre + attn + mlp, post)
        return
    if mid is None:
        return
    total = through(family.attn_norm, pre + through(family.attn_norm, attn, BETWEEN), POST)
    if cross is not None:
        total = through(family.cross_norm, total + cross, POST)
    text = {PRE: "{} + {}.out", POST: "norm({} + {}.out)", BETWEEN: "{} + norm({}.out)"}[
        family.order
    ]
    check.hold(f"{name}.resid_mid", text.format("pre", "attn"), total, mid)
    total = through(family.mlp_norm, mid + through(family.mlp_norm, mlp, BETWEEN), POST)
    check.hold(f"{name}.resid_post", text.format("mid", "mlp"), total, post)


def _check_heads(check: _Check, stack: Stack, layers: list[_Kept], which: str) -> None:
    """That what is changed in the first head of `q` or `k` reaches the `z` of that head alone."""
    name = f"attn.{which}"
    index = next(
        (i for i, kept in enumerate(layers) if name in kept.values and "attn.z" in kept.values),
        None,
    )
    if index is None:
        return

    def change(tracer: Any, model: Any) -> Any:
        attention = _layers(model, stack)[index].attn
        getattr(attention, which)[:, :, 0] = 0
        return attention.z.clone()

    after = check.model.run(fn=change, **_given(check.model, stacks_of(check.model)))
    before = layers[index].values["attn.z"]
    moved = (after - before).abs().amax((0, 1, 3)) > 1e-6 * (1 + before.abs().max())
    wanted = torch.zeros_like(moved)
    wanted[: before.shape[2] // layers[index].values[name].shape[2]] = True
    attention = _layers(check.model, stack)[index].attn._module
    norm = getattr(attention, f"{which}_norm", None)
    if norm is not None and norm.weight.numel() > stack.width:  # over all heads: each moves all
        moved &= wanted
    check.hold(f"{stack.name}[{index}].{name}", "a head of it is that head's", moved, wanted)


def _check_writes(check: _Check, stacks: Sequence[Stack], base: _Tensor) -> None:
    """That each value assigned to itself leaves the model as it is."""

    def write(tracer: Any, model: Any) -> Any:
        for stack in stacks:
            for layer in _layers(model, stack):
                _assign_all(layer, stack)
        return next(nested.leaves(tracer.result)).clone()

    after = check.model.run(fn=write, **_given(check.model, stacks))
    check.hold(
        f"{stacks[-1].name}[-1].resid_post", "all values assigned to themselves", after, base
    )


def _assign_all(layer: Any, stack: Stack) -> None:
    parts = ("attn", "cross_attn") if stack.family.cross else ("attn",)
    places = [("", "resid_pre"), *((part, name) for part in parts for name in _ATTENTION)]
    places += [("", "resid_mid")]
    places += [] if stack.family.order == PARALLEL else [("router", "probs")]
    for part, name in [*places, ("mlp", "act"), ("mlp", "out"), ("", "resid_post")]:
        try:
            owner = getattr(layer, part) if part else layer
            setattr(owner, name, getattr(owner, name).clone())
        except errors.NoSuchName:
            continue


def _findings(check: _Check, kept: list[list[_Kept]]) -> Iterator[Finding]:
    order: dict[str, list[_Kept]] = {}
    for layers in kept:
        for layer in layers:
            for name in (*layer.values, *layer.absent):
                order.setdefault(name, []).append(layer)
    for name, layers in order.items():
        having = [layer for layer in layers if name in layer.values]
        done = check.done.get(name, {})
        absent = next((layer.absent[name] for layer in layers if name in layer.absent), "")
        shape = tuple(having[0].values[name].shape) if having else ()
        off = max(done.values(), default=0.0)
        yield Finding(name, shape, tuple(done), off, len(having), absent)
