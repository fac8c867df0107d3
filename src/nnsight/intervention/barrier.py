"""Old address of `Barrier`."""

from nnsight.traces.barrier import Barrier

__all__ = ["Barrier"]
