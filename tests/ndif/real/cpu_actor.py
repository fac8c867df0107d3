"""What NDIF's server runs a model with, on a machine without a GPU. It is imported there, not here.

`NDIF_DEFAULT_MODEL_ACTOR_CLASS` names it. The usual one asks CUDA for devices and memory.
"""

from __future__ import annotations

from typing import Any

import ray
import torch
from ndif.services.ray.sandbox.model import SandboxModelDeployment

from nnsight.modeling.huggingface import HuggingFaceModel


def _nothing(*_: Any) -> None:
    pass


torch.cuda.synchronize = torch.cuda.empty_cache = _nothing


class CpuDeployment(SandboxModelDeployment):
    """A model in the memory of the host; blocks that are not trusted run in other processes."""

    CACHEABLE = False

    def load_from_disk(self) -> Any:
        torch.set_num_threads(1)  # or sums differ in their last bit
        model = HuggingFaceModel.from_model_key(self.model_key, dispatch=True, dtype=self.dtype)
        model._module.requires_grad_(False)
        return model

    def to_cache(self) -> None:
        raise RuntimeError("a model on the CPU has nowhere to be put away to")


CpuModelActor = ray.remote(num_cpus=1, max_restarts=-1)(CpuDeployment)
