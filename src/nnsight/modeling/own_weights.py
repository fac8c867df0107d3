"""Whether the weights here may be others than those that a server has for the same model."""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch.nn import Module

from nnsight.capture.traceback import warn
from nnsight.modeling.load_errors import changed_weights, weights_of_object


class AsRead:
    """The weights of a model as they were when it was opened, or when they were read.

    Args:
        module: the model.
        given: the user had loaded it, so nobody knows what was done to it before.
    """

    def __init__(self, module: Module, given: bool) -> None:
        # PyTorch counts what is done to a tensor in place, for autograd
        named = ((n, p) for n, p in module.named_parameters() if not p.is_inference())
        self._versions = [(name, ref(parameter), parameter._version) for name, parameter in named]
        self._given = given

    def warn_if_others_run(self, module: Module, name: str) -> None:
        """Warn that a server runs the weights of `name`, if those of `module` may be others."""
        changed = [path for path, there, then in self._versions if _later(there(), then)]
        if changed:
            warn(changed_weights(changed, name))
        elif self._given:
            self._given = False  # it is said once
            warn(weights_of_object(type(module).__name__, name))


def _later(parameter: Any, then: int) -> bool:
    # what is no longer there says nothing: offloading puts other tensors in its place
    return parameter is not None and parameter._version != then
