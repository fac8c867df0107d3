"""A backward pass and a block taking turns over the gradients of tensors.

In a backward block `X.grad` is compiled to `gradient_of(X, "X").grad`. Reading it parks the block
until autograd has computed the gradient of `X`; assigning replaces the gradient for everything
before `X`. So a block asks for gradients in the order in which a backward pass computes them, the
reverse of the forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnsight.capture.rewrite import GRADIENT, provided
from nnsight.interleave import errors
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import GRAD, Location
from nnsight.interleave.request import READ, WRITE, Request, here
from nnsight.interleave.row_gradients import hook_on, piece_of
from nnsight.interleave.worker import Worker

Show = Callable[[Tensor], Tensor]


class Backward:
    """One backward pass, as what its block runs beside.

    Args:
        loss: what it starts from.
    """

    path = "the backward pass"

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss
        self._gradients: dict[int, Gradient] = {}  # each holds its tensor, so ids stay theirs

    @property
    def tree(self) -> Any:
        return self

    def watch(self, kind: str, run: Interleaver) -> None:
        """Nothing to do: the run offers its result by itself."""

    def enter(self, run: Interleaver) -> None:
        """Prepare for one run: nothing but to let go of the tensors at its end."""
        run.at_close(self._gradients.clear)

    def of(self, tensor: Tensor, name: str) -> Gradient:
        """The gradient of `tensor`, which the block calls `name`."""
        known = self._gradients.get(id(tensor))
        if known is None:
            known = self._gradients[id(tensor)] = Gradient(self, tensor, name)
        return known

    def reaches(self, tensor: Tensor) -> bool:
        """Whether the loss was computed from `tensor`."""
        wanted = _edge(tensor)
        pending, seen = [_edge(self.loss)], set[Any]()
        while pending:
            edge = pending.pop()
            if edge == wanted or (tensor.is_leaf and getattr(edge[0], "variable", None) is tensor):
                return True
            if edge[0] is not None and edge[0] not in seen:
                seen.add(edge[0])
                pending += edge[0].next_functions
        return False


def _edge(tensor: Tensor) -> tuple[Any, int]:
    """Where in the graph the gradient of `tensor` arrives."""
    return tensor.grad_fn, tensor.output_nr


class Gradient:
    """The gradient of one tensor in one backward pass: what `Location` calls an owner."""

    def __init__(self, backward: Backward, tensor: Tensor, name: str) -> None:
        self.backward, self.tensor, self.path = backward, tensor, name
        self.met = False  # the backward pass has computed it

    @property
    def tree(self) -> Any:
        return self.backward

    def watch(self, kind: str, run: Interleaver) -> None:
        """From now on in `run`, offer the gradient when autograd has computed it."""
        tensor, piece = self.tensor, piece_of(self.tensor)
        if piece is not None:
            self._hook(piece.whole, piece.rows, run)
        elif tensor.is_leaf:
            leaf: Any = tensor  # torch gives its hooks no types
            handle = leaf.register_post_accumulate_grad_hook(partial(self._leaf, run))
            run.at_close(handle.remove)
        else:
            self._hook(tensor, _itself, run)
            if (base := _base_of(tensor)) is not None:
                self._hook(base, partial(_elements, tensor, base), run)

    def _hook(self, source: Tensor, show: Show, run: Interleaver) -> None:
        """Offer the part of the gradient of `source` that `show` shows."""
        tensor = self.tensor
        base = source is not tensor and source is tensor._base and piece_of(tensor) is None

        def hook(gradient: Tensor | None) -> Tensor | None:
            if self.met or not run.holds():
                return None
            if base and self.backward.reaches(tensor):
                return None  # PyTorch knows the view's own gradient, and has passed it
            return self._offer(_copy(gradient, source), source, show, run)

        run.at_close(hook_on(source, hook).remove)

    def _offer(self, own: Tensor, source: Tensor, show: Show, run: Interleaver) -> Tensor | None:
        """Offer a part of a gradient; the whole to go on with if the block changed it."""
        part = show(own)
        self.met, version = True, part._version
        value = run.offer(Location(self, GRAD), part)
        if value is not part:  # what the block read before keeps its numbers
            own = _copy(own, source)
            show(own).copy_(value)
            return own
        return own if part._version != version else None

    def _leaf(self, run: Interleaver, leaf: Tensor) -> None:
        if not self.met and run.holds():
            self.met = True
            value = run.offer(Location(self, GRAD), leaf.grad)
            if value is not leaf.grad:
                leaf.grad = value


def _itself(gradient: Tensor) -> Tensor:
    return gradient


def _base_of(tensor: Tensor) -> Tensor | None:
    """The tensor that `tensor` shows some elements of, if it is such a view."""
    base = tensor._base
    if base is None or not base.requires_grad or base.dtype != tensor.dtype:
        return None
    return base if base.is_conj() == tensor.is_conj() else None


def _elements(tensor: Tensor, base: Tensor, gradient: Tensor) -> Tensor:
    """The elements that `tensor` shows of its base, in a gradient of the base."""
    offset = tensor.storage_offset() - base.storage_offset()
    return gradient.as_strided(tensor.size(), tensor.stride(), offset)


def _copy(gradient: Tensor | None, source: Tensor) -> Tensor:
    """A copy laid out like `source`: autograd may give one tensor to several places."""
    if gradient is None:
        return torch.zeros_like(source)
    if gradient.stride() == source.stride() or source._base is not None:
        return gradient.clone()
    own = torch.empty_strided(
        source.size(), source.stride(), dtype=gradient.dtype, device=gradient.device
    )
    return own.copy_(gradient)


# --- in the block ---------------------------------------------------------------------------------


class GradientWorker(Worker):
    """One run of the block of a backward pass."""

    def __init__(self, backward: Backward, body: Callable[[], Any], where: str) -> None:
        super().__init__(body, where=where)
        self.backward = backward
        self.around: Worker | None = here.worker  # whose block this one stands in

    @property
    def shared(self) -> bool:
        return self.around is not None and self.around.shared

    def ask(self, request: Request) -> Any:
        """Park for a gradient and return it."""
        location = request.location
        if location is not None and location.kind != GRAD:
            raise errors.only_gradients(location)
        return super().ask(request)


class _OfTensor:
    """What `X.grad` is an attribute of in a backward block."""

    def __init__(self, worker: GradientWorker, tensor: Tensor, name: str) -> None:
        self._worker, self._tensor, self._name = worker, tensor, name

    @property
    def grad(self) -> Any:
        try:
            return self._ask(READ)
        except _Accumulated:
            return self._tensor.grad

    @grad.setter
    def grad(self, value: Any) -> None:
        tensor = self._tensor
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            raise errors.wrong_gradient(f"{self._name}.grad", value, tensor)
        try:
            self._ask(WRITE, value)
        except _Accumulated:
            tensor.grad = value

    def _ask(self, action: str, value: Tensor | None = None) -> Any:
        tensor, backward = self._tensor, self._worker.backward
        if not tensor.requires_grad and piece_of(tensor) is None:
            raise errors.no_gradient_of(f"{self._name}.grad")
        gradient = backward.of(tensor, self._name)
        location = Location(gradient, GRAD)
        try:
            request = Request(action, location, value=value, missed=lambda: _missed(gradient))
            return self._worker.ask(request)
        except errors.OutOfOrderError:
            if gradient.met:  # in this very block
                raise _missed(gradient) from None
            raise


class _Accumulated(Exception):
    """The gradient of a leaf was ready before the block asked for it: it lies in its `.grad`."""


def _missed(gradient: Gradient) -> BaseException:
    """Why a gradient that the block asks for does not come any more."""
    tensor, backward, place = gradient.tensor, gradient.backward, Location(gradient, GRAD)
    piece = piece_of(tensor)
    source = tensor if piece is None else piece.whole
    on_path = backward.reaches(source)
    if not on_path and piece is None and tensor._base is not None:
        on_path = backward.reaches(tensor._base)
    if on_path and tensor.is_leaf and piece is None:
        return _Accumulated()
    return errors.gradient_passed(place) if on_path else errors.not_upstream(place)


def gradient_of(value: Any, name: str) -> Any:
    """What `value.grad` is to be read from in a block, where `value` is written as `name`."""
    worker = here.worker
    if isinstance(worker, GradientWorker) and isinstance(value, Tensor):
        return _OfTensor(worker, value, name)
    if value is torch.autograd and worker is not None:
        return _Autograd
    return value


class _Autograd:
    """`torch.autograd`, as a block sees it."""

    @staticmethod
    def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """`torch.autograd.grad`, for one block's rows too."""
        wanted = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        pieces = [piece_of(each) if isinstance(each, Tensor) else None for each in wanted]
        pairs = list(zip(wanted, pieces, strict=True))
        wholes = tuple(each if piece is None else piece.whole for each, piece in pairs)
        if len(args) < 2 and kwargs.get("retain_graph") is None and shares_graph():
            kwargs["retain_graph"] = True
        found: Any = torch.autograd.grad(outputs, wholes, *args, **kwargs)
        return tuple(
            value if piece is None or value is None else piece.rows(value)
            for value, piece in zip(found, pieces, strict=True)
        )


def shares_graph() -> bool:
    """Whether blocks of other invokes may still go backward through the graph of this one."""
    return here.worker is not None and here.worker.shared


provided[GRADIENT] = gradient_of
