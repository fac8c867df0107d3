"""`attn.pattern`: the probabilities with which tokens look at each other.

Fast kernels never have them. They are computed here from what the kernel of one layer is given,
as the eager attention of that model computes them, so reading them changes nothing in the model.
When a block changes them, or names gradients, that layer's output is made from them in that run;
every other layer keeps its kernel. Models that compute them anyway give their own.

Which call is the kernel is read off the operations of the attention's forward.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from nnsight.capture.traceback import users_place
from nnsight.envoy.operations import Operation
from nnsight.envoy.places import Forward, prepare
from nnsight.interleave import request
from nnsight.interleave.location import INPUT, OUTPUT, Location
from nnsight.interleave.request import here
from nnsight.modeling import errors
from nnsight.modeling.calls import calls_of, implementation
from nnsight.modeling.points import Spot, Value, fitting, held

INTERFACE, SDPA, SOFTMAX = "attention_interface", "scaled_dot_product_attention", "softmax"


KERNEL = "kernel"


def told_of(node: Any) -> set[str]:
    """What users of a model have been told of already."""
    return node.tree.memory.setdefault("<names>", {}).setdefault("told", set())


def kernel_of(node: Any, name: str) -> tuple[str, Operation]:
    """The call that computes attention in the forward of a module, and of which kind it is.

    Raises:
        NoSuchName: there is none that is known.
    """
    calls = calls_of(node, (INTERFACE, SDPA, SOFTMAX))
    fast = implementation(node._module) == "sdpa" or SOFTMAX not in calls
    for kind in (INTERFACE, SDPA, SOFTMAX) if fast else (INTERFACE, SOFTMAX):
        if kind in calls:  # Falcon has one for each kind of positions
            alibi = getattr(getattr(node._module, "config", None), "alibi", False)
            return kind, calls[kind][-1 if alibi else 0]
    raise errors.no_kernel(name, type(node._module).__name__)


def meetable(node: Any) -> None:
    """See that the calls of a module's forward can be met in this run: too late once it runs."""
    place = Forward(node)
    if here.worker is not None and place.has_source():
        prepare(place)


def pattern_of(node: Any, name: str) -> Spot:
    """The pattern of the attention whose forward `node` has."""
    kind, operation = kernel_of(node, name)
    if kind == SOFTMAX:
        return Value(name, Location(operation, OUTPUT), guarded=True)
    return Pattern(name, node, operation, kind)


def turned_of(node: Any, name: str, which: int) -> Spot:
    """The query (0) or key (1) that the kernel is given: normed and turned, with earlier tokens."""
    kind, operation = kernel_of(node, name)
    if kind == SOFTMAX:
        raise errors.no_kernel(name, type(node._module).__name__)
    return Turned(name, Location(operation, INPUT), which + (kind == INTERFACE))


@dataclass(frozen=True)
class Pattern:
    """The probabilities of a kernel that does not give them."""

    name: str
    node: Any
    operation: Operation
    kind: str

    def read(self) -> torch.Tensor:
        given = request.read(Location(self.operation, INPUT))
        pattern, value = self._computed(given)
        flows = pattern.requires_grad and torch.is_grad_enabled() and _names_gradients()
        where = users_place()

        def put(new: torch.Tensor) -> None:
            self._put(new, value, where)

        view = pattern.clone() if flows else pattern
        return held(Location(self.operation, INPUT), view, put, always=flows)

    def write(self, value: Any) -> None:
        pattern, values = self._computed(request.read(Location(self.operation, INPUT)))
        self._put(fitting(self.name, value, pattern), values, users_place())

    def _computed(self, given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The pattern, and the values that it mixes."""
        args, kwargs = given
        if self.kind == INTERFACE:
            module, query, key, value, mask, *_ = _bound(args, kwargs)
            rest = {k: v for k, v in kwargs.items() if k not in _NAMES}
            if "output_attentions" in rest:  # CLIP of 4.57 returns them only if so
                rest["output_attentions"] = True
            if implementation(module) != "eager":
                mask = additive(self.name, mask, query, key, _is_causal(module, kwargs))
            return _eager(module)(module, query, key, value, mask, **rest)[1], value
        query, key, value = (_argument(args, kwargs, i) for i in range(3))
        causal = kwargs.get("is_causal", False)
        mask = additive(self.name, kwargs.get("attn_mask"), query, key, causal)
        return _plain(None, query, key, value, mask, kwargs.get("scale"))[1], value

    def _put(self, pattern: torch.Tensor, value: torch.Tensor, where: tuple[str, int]) -> None:
        location = Location(self.operation, OUTPUT)
        raw = request.read(location)
        self._tell(where)
        mixed = pattern.to(value.dtype) @ _for_each_head(value, pattern.shape[1])
        if self.kind == SDPA:
            request.write(location, mixed)
        else:
            shown = None if raw[1] is None else pattern
            request.write(location, (mixed.transpose(1, 2).contiguous(), shown))

    def _tell(self, where: tuple[str, int]) -> None:
        kernel = implementation(self.node._module)
        told = told_of(self.node)
        if kernel != "eager" and KERNEL not in told:
            told.add(KERNEL)
            warnings.warn_explicit(errors.kernel_switched(self.name, kernel), UserWarning, *where)


@dataclass(frozen=True)
class Turned:
    """The query or the key of a kernel, `[rows, tokens, heads, width]`."""

    name: str
    location: Location
    which: int

    def read(self) -> torch.Tensor:
        tensor = self._tensor(request.read(self.location))
        flows = tensor.requires_grad and torch.is_grad_enabled()
        view = tensor.transpose(1, 2)
        return held(self.location, view.clone(), self._put, True) if flows else view

    def write(self, value: Any) -> None:
        seen = self._tensor(request.read(self.location)).transpose(1, 2)
        self._put(fitting(self.name, value, seen))

    def _tensor(self, given: Any) -> torch.Tensor:
        return given[0][self.which]

    def _put(self, value: torch.Tensor) -> None:
        args, kwargs = request.read(self.location)
        args = list(args)
        args[self.which] = value.transpose(1, 2)
        request.write(self.location, (tuple(args), kwargs))


# --- as the eager attention computes it -----------------------------------------------------------

_NAMES = ("module", "query", "key", "value", "attention_mask")


def _argument(args: Any, kwargs: Any, index: int) -> Any:
    return args[index] if index < len(args) else kwargs[_NAMES[index + 1]]


def _bound(args: Any, kwargs: Any) -> list[Any]:
    return [*args, *(kwargs[name] for name in _NAMES[len(args) :])]


def _is_causal(module: Any, kwargs: Any) -> bool:
    given = kwargs.get("is_causal")
    return getattr(module, "is_causal", True) if given is None else given


def _eager(module: Any) -> Any:
    """The eager attention of the file that a module's class is from."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    return _plain


def _plain(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, each = (_for_each_head(tensor, query.shape[1]) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    scores = scores if mask is None else scores + mask
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (pattern @ each).transpose(1, 2), pattern


def _for_each_head(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Keys or values `[rows, heads, tokens, width]`, once for each of the heads that share them."""
    return tensor.repeat_interleave(count // tensor.shape[1], 1)


def additive(name: str, mask: Any, query: Any, key: Any, causal: bool) -> torch.Tensor | None:
    """The mask of a fast kernel as what eager attention adds to the scores.

    Raises:
        ValueError: it is of a kind that only that kernel understands.
    """
    lowest = torch.finfo(query.dtype).min
    if mask is None:
        length, seen = query.shape[2], key.shape[2]
        if not causal or length == 1:
            return None
        mask = torch.ones(1, 1, length, seen, dtype=torch.bool, device=query.device).tril()
    if not isinstance(mask, torch.Tensor) or mask.ndim < 4:
        raise errors.unreadable_mask(name, mask)
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros((), dtype=query.dtype, device=query.device).where(mask, lowest)


def _names_gradients() -> bool:
    """Whether the block says anything of gradients: else the kernel's own output stays."""
    return any(map(here.worker.names, ("backward", "grad", "retain_grad")))
