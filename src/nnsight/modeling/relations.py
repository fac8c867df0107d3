"""What must be true of the values of one layer, whichever family it is of."""

from __future__ import annotations

from typing import Any

import torch

from nnsight.modeling import errors
from nnsight.modeling.family import BETWEEN, GATED, ODD, PARALLEL, POST, PRE, Family, chosen
from nnsight.modeling.stacks import Stack

Values = dict[str, torch.Tensor]
_SUM = {PRE: "{} + {}.out", POST: "norm({} + {}.out)", BETWEEN: "{} + norm({}.out)"}


class Check:
    """One check of one model: what was held true so far, and how far it was off.

    Args:
        kind: the class of the model, for messages.
        tolerance: how far a value may be off, relative to the largest.
    """

    def __init__(self, kind: str, tolerance: float) -> None:
        self.kind, self.tolerance = kind, tolerance
        self.done: dict[str, dict[str, float]] = {}

    def hold(
        self, layer: str, name: str, what: str, found: torch.Tensor, expected: torch.Tensor
    ) -> None:
        """Hold the value `name` of a layer to be what it should be, to rounding.

        Raises:
            NamesError: it is not.
        """
        off = float("inf")
        if found.shape == expected.shape:
            wanted = expected.float()
            off = ((found.float() - wanted).abs().max() / (1 + wanted.abs().max())).item()
        known = self.done.setdefault(name, {})
        known[what] = max(known.get(what, 0.0), off)
        if not off <= self.tolerance:  # a nan is no match either
            raise errors.names_wrong(f"{layer}.{name}", what, off, self.kind)


def check_layer(check: Check, name: str, layer: Any, values: Values, stack: Stack) -> None:
    """Hold the values of one layer to each other.

    Raises:
        NamesError: they do not fit.
    """
    for part in ("attn", "cross_attn"):
        own = {k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{part}.")}
        if own:
            _attention(check, name, part, getattr(layer, part)._module, own, stack)
    _experts(check, name, layer._module, values, stack)
    _mlp(check, name, layer, values, stack)
    _stream(check, name, layer._module, values, stack)


def _attention(
    check: Check, name: str, part: str, module: torch.nn.Module, values: Values, stack: Stack
) -> None:
    told, family = stack.family.lacks, stack.family
    lacking = [
        e for e in ("q", "k", "v", "z", "out") if e not in values and f"attn.{e}" not in told
    ]
    if lacking and stack.known:
        raise errors.names_missing(f"{name}.{part}.{lacking[0]}", type(module).__name__)
    heads, width = stack.heads, stack.width
    sizes = {"q": (heads, width), "k": (stack.groups, width), "z": (heads, family.v_width or width)}
    for each, wanted in sizes.items():
        if each in values:
            found = torch.tensor(values[each].shape[2:])
            check.hold(name, f"{part}.{each}", "heads and width", found, torch.tensor(wanted))
    if "z" in values:
        project = module.get_submodule(chosen(module, stack.family.out) or "")
        found = project(values["z"].flatten(-2))
        check.hold(name, f"{part}.z", "gives `out` through the projection", found, values["out"])
    if "pattern" in values:
        gated = family.joined == GATED
        _pattern(check, name, part, values, hasattr(module, "sinks"), gated)


def _pattern(check: Check, name: str, part: str, values: Values, sinks: bool, gated: bool) -> None:
    pattern, v = values["pattern"], values.get("v")
    sums = pattern.float().sum(-1)
    wanted = sums.clamp(0, 1) if sinks else torch.ones_like(sums)  # sinks take a share of theirs
    check.hold(name, f"{part}.pattern", "sums to one", sums, wanted)
    if v is None or (v.shape[2:] != values["z"].shape[2:] and pattern.shape[1] % v.shape[2]):
        return
    each = v.transpose(1, 2).repeat_interleave(pattern.shape[1] // v.shape[2], 1)
    mixed = (pattern.to(each.dtype) @ each).transpose(1, 2)
    if gated:
        share = (values["z"] / mixed).clamp(0, 1)
        what = "mixed by `pattern`, `z` is a share of it"
        check.hold(name, f"{part}.v", what, mixed * share, values["z"])
    else:
        check.hold(name, f"{part}.v", "mixed by `pattern` is `z`", mixed, values["z"])


def _experts(check: Check, name: str, layer: torch.nn.Module, values: Values, stack: Stack) -> None:
    probs = values.get("router.probs")
    if probs is not None:
        sums = probs.float().sum(-1)
        check.hold(name, "router.probs", "sum to one", sums, torch.ones_like(sums))
    elif "router.probs" in stack.family.lacks:
        return
    elif stack.known and (path := chosen(layer, stack.family.router)) is not None:
        kind = type(layer.get_submodule(path)).__name__
        raise errors.names_missing(f"{name}.router.probs", kind)


def _mlp(check: Check, name: str, layer: Any, values: Values, stack: Stack) -> None:
    if "mlp.act" not in values:
        return
    path = chosen(layer._module, stack.family.mlp) or ""
    module = layer._module.get_submodule(path)  # the layer, where its parts are on itself
    project = module.get_submodule(chosen(module, stack.family.down))
    found = project(values["mlp.act"])
    check.hold(name, "mlp.act", "gives `out` through the projection", found, values["mlp.out"])


def _stream(check: Check, name: str, layer: torch.nn.Module, values: Values, stack: Stack) -> None:
    """That the branches add up, as the family says they do."""
    family, pre, post = stack.family, values["resid_pre"], values["resid_post"]
    attn, mlp = values.get("attn.out"), values.get("mlp.out")
    if family.order == ODD or not stack.known or attn is None or mlp is None:
        return
    if family.order == PARALLEL:
        check.hold(name, "resid_post", "pre + attn.out + mlp.out", pre + attn + mlp, post)
        return
    mid, cross = values["resid_mid"], values.get("cross_attn.out")
    total = _added(layer, family, family.attn_norm, pre, attn)
    if cross is not None:
        total = _added(layer, family, family.cross_norm, total, cross)
    scale = "" if family.scale == 1 else f"{family.scale:g} * "
    check.hold(name, "resid_mid", _SUM[family.order].format("pre", f"{scale}attn"), total, mid)
    total = _added(layer, family, family.mlp_norm, mid, mlp)
    check.hold(name, "resid_post", _SUM[family.order].format("mid", f"{scale}mlp"), total, post)


def _added(
    layer: torch.nn.Module, family: Family, norm: str, stream: torch.Tensor, branch: torch.Tensor
) -> torch.Tensor:
    """The stream after a branch, with the branch's norm and scale where the family has them."""
    branch = branch * family.scale
    normed = layer.get_submodule(norm) if norm else torch.nn.Identity()
    if family.order == POST:
        return normed(stream + branch)
    return stream + (normed(branch) if family.order == BETWEEN else branch)
