"""Activation checkpointing: what blocks change in a forward is changed again in its recomputation.

`torch.utils.checkpoint` keeps nothing of a region but its inputs, and runs the region once more
when the backward pass needs what was computed in it. By itself it would do so without the blocks.
So what a visit in a region gave back to the model is kept, and given again in the recomputation,
wherever and whenever that takes place. The gradient goes through what the block did, because the
original graph does: the recomputation only brings back values that were not kept.

The older kind (`use_reentrant=True`) builds the graph itself anew in the recomputation, where a
block cannot take part: there a change is refused.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any, Protocol

import torch
from torch.utils import checkpoint

from nnsight import nested
from nnsight.interleave import errors
from nnsight.interleave.location import SKIP, Location

_top_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore
_FILE = checkpoint.__file__

# by visit of the region: the value that the model went on with, and what skips gave it
Kept = dict[tuple[Location, int], tuple[Any, dict[Any, Any]]]


class Run(Protocol):
    """What a region sees of the run that it is computed in."""

    batch: Any
    threads: set[int]
    replay: Callable[[Any, Script], Any] | None


def region_at(run: Run, grad: bool) -> Region | None:
    """The checkpointed region that the model is in; None outside, at next to no price.

    Args:
        grad: whether the run began with gradients enabled.
    """
    hooks = None if run.replay is None else _top_hooks(True)
    if hooks is None:
        # a region of the older kind computes without gradients, as `generate` does
        return Region(run, None) if grad and not torch.is_grad_enabled() else None
    pack: Any = hooks[0]  # saves a tensor for the backward pass: here, by computing it again
    code: CodeType | None = getattr(pack, "__code__", None)
    if code is None or code.co_filename != _FILE or "frame" not in code.co_freevars:
        return None
    frame: Any = pack.__closure__[code.co_freevars.index("frame")].cell_contents
    if not isinstance(frame.recompute_fn, Region):
        frame.recompute_fn = Region(run, frame.recompute_fn)
    return frame.recompute_fn


def fingerprint(value: Any) -> list[tuple[int, int]]:
    """Tells whether the tensors of a value are others later, or were changed in place."""
    return [(id(t), 0 if t.is_inference() else t._version) for t in nested.leaves(value)]


class Region:
    """A checkpointed region, as far as blocks took part in it. Calling it computes it again.

    Args:
        run: in which it was computed first.
        compute: computes it again; None where only a change tells whether it is a region at all.
    """

    def __init__(self, run: Run, compute: Callable[..., Any] | None) -> None:
        self._run = weakref.ref(run)
        self._thread = threading.get_ident()  # of the model; a block may be asking
        self._batch, self._replay = run.batch, run.replay
        self._compute = compute
        self._kept: Kept = {}
        self._visits: dict[Location, int] = {}

    def refuse(self, location: Location) -> None:
        """Called before a block changes something here.

        Raises:
            NotImplementedError: the change could not be made again.
        """
        names = _frames_of_checkpoint(self._thread)
        once = names.count("checkpoint") == 1 and "forward" not in names
        if names and not once:
            raise errors.checkpointed(location)

    def visit(self, location: Location, changed: bool, value: Any, skips: dict[Any, Any]) -> None:
        """The run was at `location`: what the model goes on with, if blocks have changed it."""
        number = self._visits.get(location, 0)
        self._visits[location] = number + 1
        if changed:
            self.refuse(location)
            if self._compute is not None:
                skips = {rows: _kept(skip) for rows, skip in skips.items()}
                kept = None if location.kind == SKIP else _kept(value)
                self._kept[location, number] = kept, skips

    def __call__(self, *args: Any) -> Any:
        assert self._compute is not None and self._replay is not None
        run, ident = self._run(), threading.get_ident()
        within = run is not None and ident in run.threads
        if run is not None and within:
            run.threads.discard(ident)  # no visit of the run, which may still be going on
        replay = self._replay(self._batch, Script(self._kept))
        try:
            for location, _ in self._kept:
                replay.watch(location)
            return self._compute(*args)
        finally:
            replay.close()
            if run is not None and within:
                run.threads.add(ident)


def _kept(value: Any) -> Any:
    """A copy without history, that requires gradients where `value` does."""
    return nested.map_leaves(lambda t: t.detach().clone().requires_grad_(t.requires_grad), value)


def _again(value: Any) -> Any:
    """What was kept, as something that the model may change in place."""
    return nested.map_leaves(torch.clone, value)


def _frames_of_checkpoint(thread: int) -> list[str]:
    """The functions of `torch.utils.checkpoint` that are running on a thread."""
    names: list[str] = []
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code.co_filename == _FILE:
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


class Script:
    """What blocks gave the model in a region, to be given again."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._visits: dict[Location, int] = {}

    def take(self, location: Location) -> tuple[Any, dict[Any, Any]] | None:
        """The value and the skips of the next visit at `location`, if a block changed something."""
        number = self._visits.get(location, 0)
        self._visits[location] = number + 1
        kept = self._kept.get((location, number))
        return (
            None if kept is None else (_again(kept[0]), {r: _again(s) for r, s in kept[1].items()})
        )
