"""Old address of `eproperty`."""

from nnsight.interleave.eproperty import eproperty

__all__ = ["eproperty"]
