"""Old address of `save`, and of `Object`, which is for annotations."""

from nnsight.capture.saving import save
from nnsight.hint import Object

__all__ = ["Object", "save"]
