"""Forwards written in every way that Python allows, to be run with and without probes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

SCALE = 2.0
calls = 0


def double(x: Tensor) -> Tensor:
    return x * SCALE


def logged(forward: Callable[..., Any]) -> Callable[..., Any]:
    """With `functools.wraps`."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs) + 1

    return wrapper


def bare(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Without."""

    def wrapper(self: Any, x: Tensor) -> Any:
        return forward(self, x) * 3

    return wrapper


class Decorator:
    """A decorator that is an object, and a descriptor."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn

    def __get__(self, owner: Any, cls: Any = None) -> Any:
        return functools.partial(self, owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs) - 1


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Loops(Base):
    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if i == 1:
                continue
            x = layer(x)
        else:
            x = double(x)
        n = 0
        while n < 2 and (y := self.fc(x)).ndim == 2:
            x, n = y.relu(), n + 1
        return x


class Comprehensions(Base):
    def forward(self, x: Tensor) -> Tensor:
        outs = [layer(x) for layer in self.layers if isinstance(layer, nn.Linear)]
        table = {str(i): torch.sin(o) for i, o in enumerate(outs)}
        pairs = {(i, j) for i in range(2) for j in range(i)}
        return sum((torch.tanh(o) for o in outs), start=table["0"]) + len(pairs)


class Closures(Base):
    def forward(self, x: Tensor) -> Tensor:
        count = 0

        def step(value: Tensor, scale: float = float("2")) -> Tensor:
            nonlocal count
            count += 1
            return self.fc(value) * scale

        twice = lambda v: step(step(v))  # noqa: E731
        x = twice(x) + max([1, 2], key=lambda n: -n)
        return x * count


class Inherits(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return super().forward(x) + (__class__ is Inherits)  # type: ignore[name-defined]


class Private(Base):
    def __init__(self) -> None:
        super().__init__()
        self.__scale = 3.0
        self.__last = None

    def __inner(self, x: Tensor) -> Tensor:
        return x * self.__scale

    def forward(self, x: Tensor) -> Tensor:
        __local = self.__inner(x)
        self.__last = __local.detach()
        return self.fc(__local) + self.__last


class Globals(Base):
    def forward(self, x: Tensor) -> Tensor:
        global calls
        calls = calls + 1
        calls += 0
        return self.fc(x) * SCALE + globals()["calls"] * 0


class Arguments(Base):
    def forward(
        self,
        x: Tensor,
        /,
        bias: float = 0.5,
        *rest: Tensor,
        scale: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, int]:
        scaled = x if scale is None else x * scale
        total = functools.reduce(torch.add, rest, scaled)
        return self.fc(total, **more) + bias, len(rest)


class Statements(Base):
    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.missing(x)
        except AttributeError as error:
            x = self.fc(x) + len(str(error)) * 0
        finally:
            x = x.clone()
        with torch.enable_grad(), contextlib.suppress(ValueError):
            x = self.act(x)
            raise ValueError(f"{x.sum():.2f} {double(x)!r}")
        assert x.ndim == 2, str(x)
        match x.shape:
            case [rows, 4] if int(rows) > 0:
                x = self.fc(x)
            case _:
                raise AssertionError
        del rows
        return x


class Assignments(Base):
    def forward(self, x: Tensor) -> Tensor:
        a = b = self.fc(x)
        (c, d), *rest = (a, b), a + 1, b + 2
        e, f = g = torch.chunk(x, 2, dim=1)
        self.kept: Any = c.detach()
        self.kept_too, self.kept[0] = d, 0.0
        out = torch.zeros_like(x)
        out[:, :2], out[:, 2:] = e, f
        out[0] += self.fc(x)[0]
        first, *_ = iter(g)
        x = x + out
        x += first.sum()
        x *= 2
        [last] = [rest[-1]]
        self.kept += 1
        return x + last + self.kept


class Conditions(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) if x.sum() > 0 else self.act(x)
        z = None or self.fc(y)
        w = bool(z.numel()) and double(z)
        if 0 < z.abs().sum().item() < 1e9 and not torch.isnan(w).any():
            return w[..., :].view(*w.shape).transpose(0, 1).contiguous().t()
        return z


class Generator(Base):
    def pieces(self, x: Tensor) -> Iterator[Tensor]:
        for layer in self.layers:
            sent = yield layer(x)
            if sent:
                return
        yield from (self.act(p) for p in x.split(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(self.pieces(x)))


class Yields(Base):
    def forward(self, x: Tensor) -> Iterator[Tensor]:
        for layer in self.layers:
            x = layer(x)
            yield x


class Decorated(Base):
    @logged
    @torch.no_grad()
    @logged
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class BareDecorator(Base):
    @bare
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class ObjectDecorator(Base):
    @Decorator
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def _make(scale: float) -> type[Base]:
    class Made(Base):
        def forward(self, x: Tensor) -> Tensor:
            class Local:
                value = scale * float(len("ab"))

            return self.fc(x) * Local.value * scale

    return Made


class Looks(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return eval("h + 1") * len(vars(self)) ** 0 + ("h" in locals()) + ("self" in dir())


class Recomputes(Base):
    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(lambda y: self.act(self.fc(y)), x, use_reentrant=False)


class Static(Base):
    def __init__(self) -> None:
        super().__init__()
        fc = nn.Linear(4, 4)
        self.inner = fc

        def forward(x: Tensor) -> Tensor:
            return fc(x).relu()

        self.forward = forward


_CLASSES: list[type[nn.Module]] = [
    *(Base, Loops, Comprehensions, Closures, Inherits, Private, Globals, Statements, Assignments),
    *(Conditions, Generator, Yields, Decorated, BareDecorator, ObjectDecorator, Looks, Recomputes),
    *(Static, _make(1.5)),
]
MODULES = {cls.__name__: cls for cls in _CLASSES}
