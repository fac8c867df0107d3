"""Old address of the tracers."""

from nnsight.traces.invoke import Invoke as Invoker
from nnsight.traces.scan import Scan as ScanningTracer
from nnsight.traces.trace import Trace as InterleavingTracer

__all__ = ["InterleavingTracer", "Invoker", "ScanningTracer"]
