"""The gradient of one block's rows, where several blocks share a batch.

A block's rows are a view that was cut from the value of the whole batch, so the loss is computed
from the whole value and never from the view: to PyTorch the view is not upstream of anything. Here
it is remembered what each view was cut from, and when the gradient of the whole value is there, its
rows go to the view: `h.retain_grad(); loss.backward(); h.grad` and `h.register_hook(f)` then do
what they do to a value that no other block shares.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from nnsight import nested
from nnsight.interleave import errors
from nnsight.interleave.request import here
from nnsight.interleave.rows import Rows, with_parts

_graph_task: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore


def hook_on(tensor: Any, hook: Callable[[Any], Any]) -> Any:
    """Call `hook` with the gradient of `tensor`; the handle that takes it off again."""
    _ = tensor.grad_fn  # of a view whose base was changed in place it is old, and torch crashes
    return tensor.register_hook(hook)  # torch gives it no types


class Piece(NamedTuple):
    """What a block's rows were cut from."""

    whole: torch.Tensor
    start: int
    size: int
    dim: int = 0

    def rows(self, gradient: torch.Tensor) -> torch.Tensor:
        """The rows of a gradient of the whole value, or of a batch of such gradients."""
        return gradient.narrow(gradient.ndim - self.whole.ndim + self.dim, self.start, self.size)

    def put(self, rows: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """A tensor like the whole value, or its gradient, with other rows there."""
        return with_parts(gradient, [Rows(self.start, self.size)], rows, self.dim)


_pieces: dict[int, tuple[weakref.ref[torch.Tensor], Piece]] = {}  # by view, as long as it lives


def piece_of(tensor: torch.Tensor) -> Piece | None:
    """What `tensor` was cut from, if it is one block's rows of a value with gradients."""
    entry = _pieces.get(id(tensor))
    if entry is None or not entry[1].whole.requires_grad:
        return None
    return entry[1]


class Pieces:
    """The rows that blocks were given at one visit of a run."""

    def __init__(self) -> None:
        self._given: list[tuple[torch.Tensor, Piece]] = []
        self._workers: dict[int, Any] = {}  # whose each is, by view

    def add(self, worker: Any, own: torch.Tensor, piece: Piece) -> None:
        """The block of `worker` is given `own`."""
        key = id(own)
        forget = weakref.ref(own, lambda _: _pieces.pop(key, None))
        _pieces[key] = forget, piece
        self._given.append((own, piece))
        self._workers[key] = worker

    def with_leaves(self, value: Any) -> Any:
        """`value`, made from the rows themselves where `h.requires_grad_()` started a gradient."""
        for own, piece in self._given:
            if own.requires_grad and own.is_leaf:
                joined = piece.put(own, piece.whole)
                value = nested.map_leaves(_exchange(piece.whole, joined), value)
                self._given = [
                    (other, was._replace(whole=joined) if was.whole is piece.whole else was)
                    for other, was in self._given
                    if other is not own
                ]
                return self.with_leaves(value)
        return value

    def bridge(self) -> None:
        """From now on the gradients of the whole values reach the rows that were cut from them."""
        by_whole: dict[int, tuple[torch.Tensor, list[_Waiting]]] = {}
        for own, piece in self._given:
            if own.requires_grad and not isinstance(piece.whole, torch.nn.Parameter):
                _, waiting = by_whole.setdefault(id(piece.whole), (piece.whole, []))
                waiting.append(_Waiting(own, piece, self._workers[id(own)]))
        for whole, waiting in by_whole.values():
            _pass_on(whole, waiting)


def _exchange(old: torch.Tensor, new: torch.Tensor) -> nested.Transform:
    return lambda tensor: new if tensor is old else tensor


class _Waiting:
    """One block's rows, waiting for the gradient of the whole value. Holds no tensor alive."""

    def __init__(self, own: torch.Tensor, piece: Piece, worker: Any) -> None:
        self._own, self._worker = weakref.ref(own), weakref.ref(worker)
        self._start, self._size, self._dim = piece.start, piece.size, piece.dim
        self._version = own._version
        self._part: tuple[int, torch.Tensor] | None = None
        self._mark: int = hook_on(own, self._take_note).id

    def _take_note(self, gradient: torch.Tensor | None) -> None:
        """The loss uses the view itself too: PyTorch gives it that part of its gradient."""
        if gradient is not None:
            self._part = _graph_task(), gradient

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """The gradient of the whole value is there. Returns it, with what the view's hooks did."""
        own, part, self._part = self._own(), self._part, None
        hooks: dict[int, Any] = {} if own is None else own._backward_hooks or {}
        if own is None or not (own.retains_grad or len(hooks) > 1):
            return whole
        if own._version != self._version:
            raise errors.changed_rows()
        piece = Piece(whole, self._start, self._size, self._dim)
        rows = piece.rows(whole)
        if here.worker not in (None, self._worker()) and not rows.any():
            return whole  # the loss of another block, which this one has no part in
        known = part[1] if part is not None and part[0] == _graph_task() else None
        for hook in [hook for number, hook in hooks.items() if number != self._mark]:
            if known is not None:
                raise errors.hooked_rows()
            new = hook(rows)
            if new is not None:
                whole, rows = piece.put(new, whole), new
        if own.retains_grad:
            own.grad = _accumulated(own.grad, rows, known)
        return whole


def _accumulated(
    before: torch.Tensor | None, rows: torch.Tensor, known: torch.Tensor | None
) -> torch.Tensor:
    """`.grad` after a backward that brought `rows`, of which PyTorch has added `known` itself."""
    if before is None or (known is not None and torch.equal(before, known)):
        return rows.clone()
    return before + (rows if known is None else rows - known)


def _pass_on(whole: torch.Tensor, waiting: list[_Waiting]) -> None:
    def hook(gradient: torch.Tensor | None) -> torch.Tensor | None:
        result = gradient
        for view in waiting:
            if result is not None:
                result = view.take(result)
        return None if result is gradient else result

    hook_on(whole, hook)
