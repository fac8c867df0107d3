"""Whether the weights here may be others than those that a server has for the same model."""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn import Module, Parameter

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
        self._versions = {path: (id(weight), weight._version) for path, weight in _of(module)}
        self._given = given

    def warn_if_others_run(self, module: Module, name: str) -> None:
        """Warn that a server runs the weights of `name`, if those of `module` may be others."""
        # other tensors than then say nothing: offloading replaces them, and so does a copy
        changed = [
            path
            for path, weight in _of(module)
            if self._versions.get(path, (0, 0))[0] == id(weight)
            and self._versions[path][1] != weight._version
        ]
        if changed:
            warn(changed_weights(changed, name))
        elif self._given:
            self._given = False  # it is said once
            warn(weights_of_object(type(module).__name__, name))


def _of(module: Module) -> Iterator[tuple[str, Parameter]]:
    found = module.named_parameters()
    return ((path, weight) for path, weight in found if not weight.is_inference())
