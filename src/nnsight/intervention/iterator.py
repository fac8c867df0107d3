"""Old address of loops over steps."""

from nnsight.traces.steps import Iter as IteratorProxy
from nnsight.traces.steps import Steps as Iterations

__all__ = ["Iterations", "IteratorProxy"]
