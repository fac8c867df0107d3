"""Random small models: containers of every kind, modules called often, twice or never."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any, NamedTuple

import torch
from torch import nn

WIDTH = 5


class Boom(Exception):
    """What a model, a helper or a block of a random program raises."""


class Pair(NamedTuple):
    h: torch.Tensor
    k: torch.Tensor


@dataclasses.dataclass
class Data:
    h: torch.Tensor
    k: torch.Tensor


def pack(kind: str, h: Any, k: Any) -> Any:
    """A value of one kind around two tensors (one, for a bare tensor)."""
    if kind == "tensor":
        return h
    if kind == "dict":
        return {"h": h, "k": k}
    return (
        {"tuple": tuple, "list": list}[kind]((h, k))
        if kind in ("tuple", "list")
        else (Pair(h, k) if kind == "named" else Data(h, k))
    )


PICK = {"tensor": "", "tuple": "[0]", "list": "[0]", "dict": "['h']", "named": ".h", "data": ".h"}
OTHER = {"tuple": "[1]", "list": "[1]", "dict": "['k']", "named": ".k", "data": ".k"}
KINDS = list(PICK)


def first(value: Any) -> torch.Tensor:
    """The first tensor of a packed value."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        return value["h"]
    return value[0] if isinstance(value, (tuple, list)) else value.h


class Unit(nn.Module):
    """A module of the random model; `kind` is what its output is packed in."""

    kind = "tensor"
    keyword = False  # whether it is called with `x=`

    def call(self, child: Unit, x: torch.Tensor) -> torch.Tensor:
        return first(child(x=x) if child.keyword else child(x))


class Leaf(Unit):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 2)

    def forward(self, x: torch.Tensor) -> Any:
        h = torch.tanh(x @ self.weight)
        return pack(self.kind, h, x * 0.5)


class Chain(Unit):
    """Calls its children one after the other."""

    def __init__(self, kind: str, children: list[Unit], in_list: bool) -> None:
        super().__init__()
        self.kind = kind
        self.in_list = in_list
        if in_list:
            self.layers = nn.ModuleList(children)
        else:
            for index, child in enumerate(children):
                setattr(self, f"c{index}", child)

    def forward(self, x: torch.Tensor) -> Any:
        h = x
        for child in self.layers if self.in_list else self._modules.values():
            h = self.call(child, h)  # type: ignore[arg-type]
        return pack(self.kind, h + 0.1, x + h)


class Repeat(Unit):
    """Calls its child several times."""

    def __init__(self, kind: str, cell: Unit, times: int) -> None:
        super().__init__()
        self.kind, self.cell, self.times = kind, cell, times

    def forward(self, x: torch.Tensor) -> Any:
        h = x
        for _ in range(self.times):
            h = self.call(self.cell, h)
        return pack(self.kind, h, x)


class Branch(Unit):
    """Has a child that it never calls."""

    def __init__(self, kind: str, used: Unit, unused: Unit) -> None:
        super().__init__()
        self.kind, self.used, self.unused = kind, used, unused

    def forward(self, x: torch.Tensor) -> Any:
        return pack(self.kind, self.call(self.used, x) + x, x)


class Twice(Unit):
    """Has the same child under two names, and calls it under both."""

    def __init__(self, kind: str, child: Unit) -> None:
        super().__init__()
        self.kind, self.one, self.two = kind, child, child

    def forward(self, x: torch.Tensor) -> Any:
        h = self.call(self.one, x)
        return pack(self.kind, self.call(self.two, h * 0.7), h)


class Careful(Unit):
    """Catches what its child raises."""

    def __init__(self, kind: str, child: Unit) -> None:
        super().__init__()
        self.kind, self.child = kind, child

    def forward(self, x: torch.Tensor) -> Any:
        try:
            return pack(self.kind, self.call(self.child, x), x)
        except Exception:
            return pack(self.kind, x * 1.0, x)


class Failing(Unit):
    def forward(self, x: torch.Tensor) -> Any:
        raise Boom("the model failed")


class Model(Unit):
    """The root: a chain that is called with one tensor and may fail on the way."""

    def __init__(self, body: Unit) -> None:
        super().__init__()
        self.body = body
        self.last = Leaf("tensor")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.last, self.call(self.body, x) + x)


def _unit(rng: Random, depth: int, failing: bool) -> Unit:
    kind = rng.choice(KINDS) if rng.random() < 0.5 else "tensor"
    roll = rng.random() if depth else 0.0
    if roll < 0.3:
        unit: Unit = Leaf(kind)
    elif roll < 0.62:
        children = [_unit(rng, depth - 1, failing) for _ in range(rng.randint(1, 3))]
        if failing and rng.random() < 0.4:
            children.append(Failing())
        unit = Chain(kind, children, rng.random() < 0.5)
    elif roll < 0.72:
        unit = Repeat(kind, _unit(rng, depth - 1, failing), rng.randint(1, 3))
    elif roll < 0.82:
        unit = Branch(kind, _unit(rng, depth - 1, failing), _unit(rng, 0, False))
    elif roll < 0.92:
        unit = Twice(kind, _unit(rng, depth - 1, failing))
    else:
        unit = Careful(kind, _unit(rng, depth - 1, failing))
    unit.keyword = rng.random() < 0.2
    return unit


def _change(value: Any) -> Any:
    """What a hook of the user's own does to an output."""
    if isinstance(value, torch.Tensor):
        return value * 0.9
    if isinstance(value, dict):
        return {key: member * 0.9 for key, member in value.items()}
    if isinstance(value, Data):
        return Data(value.h * 0.9, value.k)
    return (
        Pair(value.h * 0.9, value.k)
        if isinstance(value, Pair)
        else type(value)(member * 0.9 for member in value)
    )


def _add_hooks(model: nn.Module, rng: Random) -> None:
    """Hooks of the user's own, of every kind that PyTorch has."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) or rng.random() > 0.1:
            continue
        roll = rng.random()
        if roll < 0.4:
            module.register_forward_hook(lambda m, args, out: _change(out))
        elif roll < 0.6:
            module.register_forward_hook(
                lambda m, args, kwargs, out: None, with_kwargs=True, always_call=True
            )
        elif not module.keyword:  # type: ignore[truthy-function]
            module.register_forward_pre_hook(lambda m, args: (args[0] + 0.1, *args[1:]))
        else:
            module.register_forward_pre_hook(
                lambda m, args, kwargs: (args, {k: v + 0.1 for k, v in kwargs.items()}),
                with_kwargs=True,
            )


def random_model(rng: Random) -> Model:
    """A model of two to thirty modules, which may fail at one of them."""
    torch.manual_seed(rng.randrange(1 << 30))
    failing = rng.random() < 0.06
    model = Model(_unit(rng, rng.randint(1, 3), failing))
    _add_hooks(model, rng)
    return model
