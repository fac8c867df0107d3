"""`router.probs`: with which probabilities a mixture of experts chooses among its experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Linear

from nnsight.envoy.operations import Operation
from nnsight.interleave import request
from nnsight.interleave.location import OUTPUT, Location
from nnsight.modeling import errors
from nnsight.modeling.calls import calls_of
from nnsight.modeling.points import Spot, Value, by_row, fitting, held, let_go


def probabilities_of(router: Any, above: Any, name: str) -> Spot:
    """Where a router's probabilities are.

    Args:
        router: the module that scores the experts; a mere projection leaves the rest to `above`.
        above: the mixture that it is part of.

    Raises:
        NoSuchName: no call of a softmax is found.
    """
    node = above if isinstance(router._module, Linear) else router
    calls = calls_of(node, ("topk", "softmax"))
    if "softmax" not in calls:
        raise errors.no_kernel(name, type(node._module).__name__)
    if next(iter(calls)) == "topk":  # the softmax is over the chosen ones only
        module = router._module
        count = getattr(module, "num_experts", None) or module.out_features
        return Chosen(name, calls["topk"][0], calls["softmax"][0], count)
    return Value(name, Location(calls["softmax"][0], OUTPUT), look=by_row)


@dataclass(frozen=True)
class Chosen:
    """The probabilities of a router that chooses first: 0 for the experts that it did not choose.

    After a write the most probable experts are used, as many as before, with what was written.
    """

    name: str
    choice: Operation
    softmax: Operation
    count: int  # of experts

    def read(self) -> torch.Tensor:
        location = Location(self.choice, OUTPUT)
        seen = self._seen(request.read(location))
        flows = seen.requires_grad and torch.is_grad_enabled()
        return held(location, seen, self._put, always=flows)

    def write(self, value: Any) -> None:
        place = Location(self.choice, OUTPUT)
        let_go(place)
        seen = self._seen(request.read(place))
        self._put(fitting(self.name, value, seen))

    def _seen(self, raw: Any) -> torch.Tensor:
        scores, indices = raw
        none = scores.new_zeros(*scores.shape[:-1], self.count)
        return by_row(none.scatter(-1, indices, scores.softmax(-1)))

    def _put(self, value: torch.Tensor) -> None:
        place = Location(self.choice, OUTPUT)
        _, indices = request.read(place)
        best = value.reshape(*indices.shape[:-1], self.count).topk(indices.shape[-1], dim=-1)
        request.write(place, (best.values, best.indices))
        place = Location(self.softmax, OUTPUT)
        request.write(place, best.values.to(request.read(place).dtype))
