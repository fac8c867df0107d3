"""Old addresses: names of earlier releases, imported from where they are now. Nothing else."""

from nnsight.envoy.envoy import Envoy

__all__ = ["Envoy"]
