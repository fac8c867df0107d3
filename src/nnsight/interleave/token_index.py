"""`x.token[0]`, `x.t[0]`: indices that count tokens, as the first releases had them on every value.

An index is of the second dimension, and counts from the first token of the block's own prompts:
where they are padded on the left, to the length of other prompts of the batch, that is passed over.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.interleave import errors
from nnsight.interleave.request import here


class TokenIndex:
    """What `x.token` and `x.t` give; called, it is `torch.Tensor.t`.

    Args:
        name: how it was asked for.
        tensor: of shape (rows, tokens, ...).
    """

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self._tensor, self._name = tensor, name

    def __call__(self) -> torch.Tensor:
        return _transposed(self._tensor)

    def __getitem__(self, index: Any) -> torch.Tensor:
        self._check(index)
        return self._tensor[self._key(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check(index)
        self._tensor[self._key(index)] = value

    def _check(self, index: object) -> None:
        if self._tensor.ndim < 2 or not isinstance(index, (int, list, slice)):
            raise errors.no_token_index(self._name, index, list(self._tensor.shape))

    def _key(self, index: int | list[int] | slice[Any, Any, Any]) -> tuple[slice, Any]:
        first = _first_token(self._tensor.shape[1])

        def moved(index: Any) -> Any:
            return index + first if index is not None and index >= 0 else index

        if isinstance(index, slice):
            begin = first if index.start is None else moved(index.start)
            return slice(None), slice(begin, moved(index.stop), index.step)
        return slice(None), [*map(moved, index)] if isinstance(index, list) else moved(index)


_transposed = torch.Tensor.t  # as PyTorch has it: `x.t` may be ours later


def _first_token(length: int) -> int:
    """Where the tokens of this block's rows begin, in a value of so many positions."""
    worker: Any = here.worker
    run = worker.run if worker is not None else None
    if worker is None or run is None or run.padding is None or run.padding[0] != length:
        return 0  # of no model that knows, or of a later step of a generation
    padded: list[int] = run.padding[1]
    own = padded if worker.rows is None else padded[worker.rows.start : worker.rows.stop]
    return min(own, default=0)
