"""Old address of the tracer of a run, and of what it gives."""

from nnsight.traces.barrier import Barrier
from nnsight.traces.cache import Cache
from nnsight.traces.scan import Scan as ScanningTracer
from nnsight.traces.trace import Trace as InterleavingTracer

Tracer = InterleavingTracer

__all__ = ["Barrier", "Cache", "InterleavingTracer", "ScanningTracer", "Tracer"]
