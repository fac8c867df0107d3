"""Old address of `Object`."""

from nnsight.hint import Object

__all__ = ["Object"]
