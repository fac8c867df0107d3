"""`with loss.backward():`: a backward pass with a block of the user's beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnsight.capture.saving import save
from nnsight.capture.tracer import Tracer
from nnsight.interleave import errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.gradients import Backward, GradientWorker
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import RESULT, Location
from nnsight.interleave.request import here
from nnsight.interleave.run import run
from nnsight.interleave.worker import Worker


class BackwardBlock(Tracer):
    """What `loss.backward(...)` returns in the header of a `with`.

    The backward pass runs when the block is left, with the block beside it: `h.grad` waits until
    autograd has computed the gradient of `h`, and `h.grad = v` replaces it for everything before
    `h`. Gradients come in the reverse order of the forward.

    Args:
        loss: the tensor to go backward from.
        call: the plain `loss.backward(...)`.
    """

    def __init__(self, loss: Tensor, call: Callable[[], Any]) -> None:
        super().__init__()
        self._pass: tuple[Backward, Callable[[], Any]] | None = Backward(loss), call

    def execute(self) -> None:
        """Run the backward pass with the block beside it.

        Raises:
            NotImplementedError: the loss requires no gradient.
        """
        assert self._pass is not None and self.scope is not None
        (backward, call), self._pass = self._pass, None
        if not backward.loss.requires_grad:
            raise errors.no_gradient()
        workers: list[Worker] = []
        block = self.scope.block
        if not block.trivial:
            body = self.scope.function(self, save)
            workers = [GradientWorker(backward, body, block.where)]
        result, around = Location(backward, RESULT), here.worker

        def enter(inner: Interleaver) -> None:
            backward.enter(inner)
            if around is not None and around.run is not None and around.run.journal is not None:
                around.run.journal.join(inner, around)

        run(backward, workers, Batch(), partial(_on_this_thread, call), result, enter)
        if here.worker is not None and any(worker.stopped for worker in workers):
            self.hand_back(outermost=False)
            raise errors.Stop  # for the run that the backward pass is a part of


def _on_this_thread(call: Callable[[], Any]) -> None:
    with torch.autograd.set_multithreading_enabled(False):
        call()
