"""Tensors with a shape, a dtype and a device, but no numbers: what a scan computes with.

torch's `FakeTensorMode` does the work. Here stands what a scan needs besides: weights that are not
there yet (on the meta device) count as weights on the CPU, errors say what a scan cannot do, and
nothing fake stays on the modules.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Module, Parameter

from nnsight import nested
from nnsight.traces import errors

_LOG = logging.getLogger(fake_tensor.__name__)
_REAL = (torch.Tensor, Parameter)
_CPU = torch.device("cpu")
_LACKS_NUMBERS = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
)


class Fakes(FakeTensorMode):
    """A mode in which every operation gives a fake tensor, real ones among its inputs too."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.met: dict[int, _Graph] = {}  # real tensors by id, as autograd had them at first

    def fake(self, value: Any) -> Any:
        """A fake tensor like `value`; the same one each time. Anything else stays as it is."""
        if isinstance(value, torch.Tensor):
            self.meet(value)
        if type(value) not in _REAL:
            return value
        if value.is_meta:
            return self.fake_tensor_converter.from_meta_and_device(self, value, _CPU)
        return self.from_tensor(value)

    def meet(self, tensor: torch.Tensor) -> None:
        """Remember what autograd knows of a real tensor, which it would write fakes to."""
        if type(tensor) is not FakeTensor and id(tensor) not in self.met:
            self.met[id(tensor)] = _Graph(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags and _known(args):
            return func(*args, **kwargs)  # `scale.item()` of a weight that is there
        args = tuple(_each(self.fake, arg) for arg in args)  # torch remembers what it did for fakes
        if kwargs:
            kwargs = {name: self._on_cpu(_each(self.fake, arg)) for name, arg in kwargs.items()}
        if func is _GROUPED and args[0].dtype != torch.bfloat16:
            with self:
                return _grouped(*args, **kwargs)
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except _LACKS_NUMBERS:
            raise RuntimeError(errors.needs_numbers(str(func))) from None

    def _on_cpu(self, value: Any) -> Any:
        return _CPU if isinstance(value, torch.device) and value.type == "meta" else value


_GROUPED = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)  # newer torch


def _grouped(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: Any = None,
    bias: Any = None,
    out_dtype: Any = None,
) -> torch.Tensor:
    """A product of groups of rows, as mixtures of experts have it.

    torch computes it in every floating dtype, and refuses all but one for tensors without numbers.
    """
    shape = [left.shape[-2], right.shape[-1]]
    if left.ndim == right.ndim:
        shape = [len(left if left.ndim == 3 else offs), *shape]
    return left.new_empty(shape, dtype=out_dtype)


def _each(change: Any, value: Any) -> Any:
    """`change` applied to `value`, or to each member of a list."""
    return [change(member) for member in value] if type(value) is list else change(value)


def _known(args: Iterable[Any]) -> bool:
    """Whether the numbers of every tensor in `args` are there."""
    return all(
        type(arg) is not FakeTensor and not arg.is_meta
        for arg in args
        if isinstance(arg, torch.Tensor)
    )


def _holds_fake(value: Any) -> bool:
    members = dict(enumerate(value)) if isinstance(value, (set, frozenset)) else value
    return any(isinstance(leaf, FakeTensor) for leaf in nested.leaves(members))


class _Graph:
    """What autograd knew of a real tensor before a scan: its gradient, and whether it has any."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.needed = tensor, tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None

    def restore(self) -> None:
        tensor = self.tensor
        if not self.needed and tensor.grad_fn is not None:  # changed in place, by something fake
            tensor.detach_()
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad


# --- the modules, as they were --------------------------------------------------------------------

_EVERY_MODULE = frozenset({*vars(Module()), "forward"})  # a run may lend a module its `forward`


class _Before:
    """What the attributes of a module were before a scan."""

    def __init__(self, module: Module) -> None:
        self.module = module
        own = {n: v for n, v in vars(module).items() if n not in _EVERY_MODULE}
        self.names = {"": own, "_parameters": module._parameters, "_buffers": module._buffers}
        self.names = {name: dict(values) for name, values in self.names.items()}
        self.contents = {n: v.copy() for n, v in own.items() if type(v) in (list, dict, set)}

    def restore(self) -> None:
        """Take back what was set, if something fake is among it."""
        module = self.module
        now = {n: v for n, v in vars(module).items() if n not in _EVERY_MODULE}
        self._restore(vars(module), now, self.names[""])
        for table in ("_parameters", "_buffers"):
            values = vars(module)[table]
            self._restore(values, dict(values), self.names[table])
        for name, content in self.contents.items():
            value = self.names[""][name]
            if len(value) != len(content) or _holds_fake(value):
                _refill(value, content)

    def _restore(self, target: dict[str, Any], now: dict[str, Any], before: dict[str, Any]) -> None:
        changed = [name for name in now if now[name] is not before.get(name, self)]
        if not any(_holds_fake(now[name]) for name in changed):
            return
        for name in changed:
            del target[name]
        target.update({name: before[name] for name in changed if name in before})


def _refill(value: Any, content: Any) -> None:
    if not _holds_fake(value):
        return
    value.clear()
    (value.extend if type(value) is list else value.update)(content)


class _Quiet(logging.Filter):
    """Keeps torch from logging the whole stack of an error that is raised besides."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.exc_info


@contextmanager
def fake_world(module: Module) -> Generator[Fakes]:
    """Compute with fakes on this thread meanwhile; afterwards nothing fake is on `module`, nor on
    any real tensor that the computation has met.
    """
    before = [_Before(inner) for inner in module.modules()]
    fakes = Fakes()
    for tensor in (*module.parameters(), *module.buffers()):
        fakes.meet(tensor)
    quiet = _Quiet()
    _LOG.addFilter(quiet)
    try:
        with fakes:
            yield fakes
    finally:
        _LOG.removeFilter(quiet)
        for entry in (*before, *fakes.met.values()):
            entry.restore()
        fakes.met.clear()
