"""`max_new_tokens` of each invoke: rows of one generation that end after as many tokens as asked.

A generation goes on until its longest row has ended. A row with fewer tokens to go ends by a
criterion of its own and stays in the batch on padding, as a row does that chose its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnsight.modeling import generation_errors

_NAME = "max_new_tokens"


class RowLimits:
    """A criterion as transformers knows them, for one generation: it counts its calls."""

    eos_token_id = None  # that there is one has rows that ended filled with padding

    def __init__(self, limits: Sequence[int]) -> None:
        self._limits = torch.tensor(limits)
        self._tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows have all their tokens: bool `(rows,)`; a prompt may have several rows."""
        self._tokens += 1
        limits = self._limits.to(input_ids.device)
        each = input_ids.shape[0] // len(limits)
        return self._tokens >= limits.repeat_interleave(each)


def settle(params: Sequence[dict[str, Any]], rows: Sequence[int], beams: int) -> None:
    """Have invokes that ask for different numbers of tokens agree: the most, and a criterion.

    Args:
        params: the settings of each invoke; changed where they differ.
        rows: how many prompts each invoke has.
        beams: how many beams each prompt has.

    Raises:
        ValueError: some do not say how many; or beams, which go on after a text has ended.
    """
    asked = [own.get(_NAME) for own in params]
    numbers = [number for number in asked if number is not None]
    if len(set(numbers)) < 2:
        return
    if len(numbers) < len(asked):
        raise generation_errors.some_limits(numbers)
    if beams > 1:
        raise generation_errors.limits_of_beams(numbers)
    each = [n for n, count in zip(numbers, rows, strict=True) for _ in range(count)]
    limits = RowLimits(each)
    for own in params:
        own[_NAME] = max(numbers)
    listed = [own["stopping_criteria"] for own in params if own.get("stopping_criteria")]
    criteria = [*(listed[0] if listed else ()), limits]
    for own in params:
        if not listed or own.get("stopping_criteria") in (None, listed[0]):
            own["stopping_criteria"] = criteria
