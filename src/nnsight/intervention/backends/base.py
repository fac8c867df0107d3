"""Old address of `Backend`."""

from nnsight.capture.tracer import Backend

__all__ = ["Backend"]
