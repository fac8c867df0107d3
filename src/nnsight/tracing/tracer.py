"""Old address of `Tracer`."""

from nnsight.capture.errors import WithBlockNotFoundError
from nnsight.capture.saving import save
from nnsight.capture.tracer import Tracer

__all__ = ["Tracer", "WithBlockNotFoundError", "save"]
