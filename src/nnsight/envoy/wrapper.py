"""`WrapperModule`: a module that does nothing, to make a place for values that have none."""

from __future__ import annotations

from typing import Any

from torch.nn import Module


class WrapperModule(Module):
    """Returns what it is given: one value as it is, several as a tuple.

    Called in a model's forward, it is a module like any other, whose `.output` is that value:

        model.residual = WrapperModule()      # and in the forward: x = self.residual(x)
    """

    def forward(self, *values: Any) -> Any:
        """`values`, unpacked if there is one."""
        return values[0] if len(values) == 1 else values
