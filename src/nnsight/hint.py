"""`Object`: what a value of a trace is called in an annotation."""

from __future__ import annotations

import torch


class Object(torch.Tensor):
    """For annotations only: `def steer(hidden: Object) -> Object`.

    A value in a block is the real one, most often a tensor. This class says so to an editor, and
    that `.save()` can be written behind it whatever it is.
    """

    def save(self) -> Object:
        """Keep this value beyond the end of the trace (see `nnsight.save`)."""
        raise TypeError("`Object` is a name for annotations; values of it are never made")
