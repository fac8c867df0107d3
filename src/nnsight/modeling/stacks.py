"""The stacks of layers that a model has, by its family or by a guess."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.nn import Module

from nnsight.modeling.architectures import families_of
from nnsight.modeling.family import Family, alone, chosen, guessed


@dataclass(frozen=True)
class Stack:
    """One stack of layers of a model."""

    family: Family
    base: str  # where the model is that the paths of the family start at
    name: str  # "model.layers", "model.decoder.layers": as users write it
    heads: int  # of each layer's attention; 0 if the config does not say
    width: int  # of a head
    groups: int  # of heads, each with a key and a value of its own
    known: bool = True  # the family is in the table

    def path(self, inside: str) -> str:
        """A path from the model, of one from the base."""
        return ".".join(part for part in (self.base, inside) if part)


def stacks_of(model: Any) -> Sequence[Stack]:
    """The stacks of a wrapped model, found when they are first asked for."""
    known = model.tree.memory.setdefault("<names>", {})
    if known.get("root") is not model._module:
        known.update(root=model._module, stacks=tuple(_found(model._module, model._path)))
    return known["stacks"]


def _found(root: Module, name: str) -> list[Stack]:
    for base, module in root.named_modules():
        config = getattr(module, "config", None)
        if base and getattr(config, "model_type", "") in _towers(root):
            continue
        there = [
            replace(family, layers=layers)
            for family in families_of(config)
            if (layers := chosen(module, family.layers)) is not None
        ]
        if there:
            both = len(there) > 1
            there = there if both else [alone(there[0])]
            return [_stack(f, base, module, f"{name}.{f.stack}" if both else name) for f in there]
    guess = guessed(root)
    if guess is None:
        return []
    base, family = guess
    return [replace(_stack(family, base, root.get_submodule(base), name), known=False)]


def _towers(root: Module) -> set[str]:
    """The kinds of models that a model of texts has for images and sound: not its own layers."""
    config = getattr(root, "config", None)
    parts = (getattr(config, f"{name}_config", None) for name in ("vision", "audio"))
    return {getattr(part, "model_type", "") for part in parts if part is not None}


def _stack(family: Family, base: str, module: Module, name: str) -> Stack:
    config = _nearest_config(module, family.layers)
    count = getattr(config, family.heads, None) or 0
    width = family.width or getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    if not width and count:
        width = config.hidden_size // count  # it has heads
    return Stack(family, base, f"{name}.layers", count, width or 0, _groups(config) or count)


def _nearest_config(module: Module, path: str) -> Any:
    """The config of the innermost module around the layers: two stacks may have one each."""
    found = getattr(module, "config", None)
    for part in path.split("."):
        module = module._modules[part]  # type: ignore[assignment] # not None
        found = getattr(module, "config", found)
    return found


def _groups(config: Any) -> int | None:
    """How many keys there are; None for one for each head."""
    new = getattr(config, "new_decoder_architecture", False)  # of Falcon: it has groups
    if getattr(config, "multi_query", False) and not new:
        return 1
    names = ("num_key_value_heads", "num_kv_heads")
    return next((count for name in names if (count := getattr(config, name, None))), None)
