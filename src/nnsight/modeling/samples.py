"""Small inputs for one forward of a model, whatever it reads: for the check of its names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Module

from nnsight.modeling.stacks import Stack

_ROWS, _TOKENS, _SEEN = 2, 5, 3  # `_SEEN` tokens of what a decoder looks at beside its own


def sample(model: Any, stacks: Sequence[Stack]) -> dict[str, torch.Tensor]:
    """Two rows of tokens, an image, sound: what the layers of all stacks run on."""
    root: Module = model._module
    config: Any = getattr(root, "config", None)
    main = getattr(root, "main_input_name", "input_ids")
    if main == "pixel_values":
        return {main: _images(config)}
    given = {main: _sound(config) if main == "input_features" else _ids(root)}
    if any(stack.family.stack == "vision_model" for stack in stacks):
        given["pixel_values"] = _images(config.vision_config)
    if "decoder_input_ids" in inspect.signature(root.forward).parameters:
        given["decoder_input_ids"] = _ids(root).flip(1)
    elif getattr(config, "add_cross_attention", False):
        given["encoder_hidden_states"] = _random(_ROWS, _SEEN, config.hidden_size)
    return given


def _ids(root: Any) -> torch.Tensor:
    try:
        words = root.get_input_embeddings().num_embeddings
    except NotImplementedError:  # transformers cannot tell which they are
        words = root.config.get_text_config().vocab_size
    ids = torch.arange(_ROWS * _TOKENS).view(_ROWS, _TOKENS)
    return ids * 7 % max(words - 3, 1) + 2


def _images(config: Any) -> torch.Tensor:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return _random(_ROWS, config.num_channels, height, width)


def _sound(config: Any) -> torch.Tensor:
    """As long as the model wants it: its convolutions halve the length."""
    return _random(_ROWS, config.num_mel_bins, 2 * config.max_source_positions)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
