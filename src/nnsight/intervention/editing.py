"""Old address of the tracer of an edit."""

from nnsight.traces.edit import Editing as EditingTracer

__all__ = ["EditingTracer"]
