"""What a model is shown beside its words: tensors made of images and films, which have no rows."""

from __future__ import annotations

_SENSES = ("pixel", "image", "video", "aspect_ratio", "cross_att")


def is_sight(name: str) -> bool:
    """Whether an input of this name is made of images."""
    return any(sense in name for sense in _SENSES)
