"""What a model is shown beside its words: tensors made of images and films.

Of a model that has them stand in its text they need no rows: a prompt may have none, one or
several, and those of all prompts lie one after the other, as patches do that are as many as the
image is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from nnsight.modeling import errors
from nnsight.modeling.format import Format
from nnsight.modeling.padding import Fields

_SENSES = ("pixel", "image", "video", "aspect_ratio", "cross_att")


def is_sight(name: str) -> bool:
    """Whether an input of this name is made of images."""
    return any(sense in name for sense in _SENSES)


def apart(shown: Sequence[Mapping[str, Any]], rows: Sequence[int], format: Format) -> bool:
    """Whether the sights of several invokes are other than a row for each of their prompts.

    Args:
        shown: what each invoke has by name.
        rows: how many prompts each has.
    """
    counts = [
        {name: len(value) for name, value in own.items() if is_sight(name) and _has_length(value)}
        for own in shown
    ]
    if len(shown) < 2 or not any(counts) or not format.images_in_text:
        return False
    names = counts[0].keys()
    return any(
        own.keys() != names or any(count != size for count in own.values())
        for own, size in zip(counts, rows, strict=True)
    )


def _has_length(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, list, tuple)) or hasattr(value, "__array__")


def take(*inputs: dict[str, Any]) -> Fields:
    """What one invoke is shown, taken out of its inputs."""
    found: Fields = {}
    for given in inputs:
        for name in [name for name in given if is_sight(name) and _has_length(given[name])]:
            found[name] = torch.as_tensor(given.pop(name))
    return found


def end_to_end(shown: Iterable[Fields]) -> Fields:
    """What is made of images, one invoke's after the other's; an invoke may have none.

    Raises:
        ValueError: the images have unlike sizes, and the model wants one size.
    """
    shown = list(shown)
    together: Fields = {}
    for name in dict.fromkeys(name for fields in shown for name in fields):
        blocks = [fields[name] for fields in shown if name in fields]
        if len({block.shape[1:] for block in blocks}) > 1:
            raise errors.unequal_images(name, [block.shape for block in blocks])
        together[name] = torch.cat(blocks)
    return together
