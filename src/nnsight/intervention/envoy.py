"""Old address of `Envoy`."""

from nnsight.envoy.envoy import Envoy

__all__ = ["Envoy"]
