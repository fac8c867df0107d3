"""`router.probs`: with which probabilities a mixture of experts chooses among its experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Linear

from nnsight.interleave import request
from nnsight.interleave.location import OUTPUT, Location
from nnsight.modeling import errors
from nnsight.modeling.points import Spot, Value, by_row, fitting, held


def probabilities_of(router: Any, above: Any, name: str) -> Spot:
    """Where a router's probabilities are.

    Args:
        router: the module that scores the experts; a mere projection leaves the rest to `above`.
        above: the mixture that it is part of.

    Raises:
        NoSuchName: no call of a softmax is found.
    """
    node = above if isinstance(router._module, Linear) else router
    calls = [(op, op.op.callee[-1:]) for op in node.source]
    order = [callee[0] for _, callee in calls if callee and callee[0] in ("topk", "softmax")]
    softmax = next((op for op, callee in calls if callee == ("softmax",)), None)
    if softmax is None:
        raise errors.no_kernel(name, type(node._module).__name__)
    if order[0] == "topk":  # the softmax is over the chosen ones only
        return Chosen(name, Location(node, OUTPUT))
    return Value(name, Location(softmax, OUTPUT), look=by_row)


@dataclass(frozen=True)
class Chosen:
    """The probabilities of a router that chooses first: 0 for the experts that it did not choose.

    After a write the most probable experts are used, as many as before, with what was written.
    """

    name: str
    location: Location

    def read(self) -> torch.Tensor:
        seen = self._seen(request.read(self.location))
        flows = seen.requires_grad and torch.is_grad_enabled()
        return held(self.location, seen, self._put, always=flows)

    def write(self, value: Any) -> None:
        seen = self._seen(request.read(self.location))
        self._put(fitting(self.name, value, seen))

    def _seen(self, raw: Any) -> torch.Tensor:
        *logits, scores, indices = raw
        if scores.shape != indices.shape:  # spread over all experts already
            return by_row(scores).clone()
        return by_row(torch.zeros_like(logits[0]).scatter(-1, indices, scores))

    def _put(self, value: torch.Tensor) -> None:
        *logits, scores, indices = request.read(self.location)
        flat = value.flatten(0, -2)
        best = flat.topk(indices.shape[-1], dim=-1)
        if scores.shape != indices.shape:
            kept = torch.zeros_like(flat).scatter(-1, best.indices, best.values)
        else:
            kept = best.values
        request.write(self.location, (*logits, kept, best.indices))
