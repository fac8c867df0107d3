"""Old address of the tracer of an invoke."""

from nnsight.traces.invoke import Invoke as Invoker

__all__ = ["Invoker"]
