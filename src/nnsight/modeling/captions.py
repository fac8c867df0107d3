"""The inputs of all invokes of a pipeline, made into one call: prompts, and what goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnsight.modeling import errors
from nnsight.modeling.keywords import merged

_MAIN = ("prompt", "prompt_embeds", "class_labels", "image", "batch_size")
"""What a pipeline draws from; the first one there says how many rows there are."""

_EACH = ("prompt", "negative_prompt", "class_labels", "image", "mask_image", "latents", "control")
"""Beginnings of the names of inputs that belong to prompts; the others all prompts share."""


def count(kwargs: Mapping[str, Any]) -> int:
    """How many prompts these inputs hold; 0 for none."""
    name = next((name for name in _MAIN if kwargs.get(name) is not None), None)
    if name is None:
        return 0
    value = kwargs[name]
    return value if name == "batch_size" else _length(value)


def batch(inputs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The keywords of the one call that draws for all, and for each prompt its generator or None.

    Raises:
        ValueError: an input is given by some invokes and not by others, or differs where all
            share it.
    """
    rows = [count(kwargs) for kwargs in inputs]
    generators = [g for kwargs, n in zip(inputs, rows, strict=True) for g in _seeded(kwargs, n)]
    inputs = [{n: v for n, v in one.items() if n not in ("seed", "generator")} for one in inputs]
    if len(inputs) == 1:
        return dict(inputs[0]), generators
    own = [{n: v for n, v in one.items() if _is_own(n) and v is not None} for one in inputs]
    shared = merged([{n: v for n, v in one.items() if not _is_own(n)} for one in inputs])
    if shared.pop("batch_size", None) is not None or any("batch_size" in one for one in inputs):
        shared["batch_size"] = sum(rows)
    names = list(dict.fromkeys(name for one in own for name in one))
    return {**shared, **{name: _joined(name, own, rows) for name in names}}, generators


def _is_own(name: str) -> bool:
    return name.startswith(_EACH) or name == "batch_size" or name.endswith(("_embeds", "_mask"))


def _joined(name: str, inputs: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> Any:
    """What one input is for all prompts, in order."""
    lack = [i for i, one in enumerate(inputs) if name not in one]
    have = [i for i, one in enumerate(inputs) if name in one]
    parts = []
    for one, size in zip(inputs, rows, strict=True):
        value = one.get(name, _default(name, one))
        if value is None:
            raise errors.missing_beside(name, have, lack)
        parts.append(_spread(value, size))
    if all(isinstance(part, torch.Tensor) for part in parts):
        if len({part.shape[1:] for part in parts}) > 1:
            raise errors.unequal_shapes(name, "invoke", [part.shape for part in parts])
        return torch.cat(parts)
    return [value for part in parts for value in part]


def _default(name: str, given: Mapping[str, Any]) -> Any:
    """What a pipeline takes for an input that is left out, where that can be said."""
    if name.startswith("negative_prompt") and not name.endswith(("_embeds", "_mask")):
        return ""
    return given.get("prompt") if name in ("prompt_2", "prompt_3") else None


def _spread(value: Any, rows: int) -> Any:
    """`value` as one for each of so many prompts."""
    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == rows:
        return value
    if isinstance(value, (list, tuple)) and len(value) == rows:
        return list(value)
    return [value] * rows


def _length(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return len(value)
    if isinstance(value, torch.Tensor) and value.ndim:
        return value.shape[0]
    return 1


def _seeded(given: Mapping[str, Any], rows: int) -> list[Any]:
    """For each prompt of an invoke the generator that its noise comes from.

    One seed, or one generator, is for all of an invoke's images: they are drawn one after the
    other.
    """
    seed, generator = given.get("seed"), given.get("generator")
    if seed is not None and generator is not None:
        raise errors.given_twice("seed")
    if isinstance(seed, int):
        generator = torch.Generator().manual_seed(seed)
    elif seed is not None:
        generator = [torch.Generator().manual_seed(int(one)) for one in seed]
    if isinstance(generator, (list, tuple)):
        if len(generator) != rows:
            raise errors.seeds_for_prompts(len(generator), rows)
        return list(generator)
    return [generator] * rows


class OfPrompts(list[Any]):
    """A generator, or None, for each prompt: some have asked for a seed.

    How many images a prompt has is known when the call is made.
    """

    def for_images(self, each: int) -> list[torch.Generator]:
        """A generator for each image. Who asked for none draws from torch's own randomness."""
        drawn = [_fresh() if one is None else one for one in self]
        return [one for one in drawn for _ in range(each)]


def _fresh() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))
