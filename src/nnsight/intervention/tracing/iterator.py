"""Old address of loops over steps."""

from nnsight.traces.steps import Iter as IteratorProxy

__all__ = ["IteratorProxy"]
