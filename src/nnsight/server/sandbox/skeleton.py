"""A model without weights: its modules run where the weights are, and its weights come from there.

`Skeleton` turns a model on the meta device into that, for good. Everything that a block can do with
a module outside of a run comes through here: calling it, and reading a parameter or a buffer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.nn import Module

from nnsight.capture.libraries import is_installed
from nnsight.capture.traceback import is_hidden
from nnsight.envoy import method
from nnsight.interleave.request import here
from nnsight.server.sandbox.errors import changes_model


def _computes_shapes() -> bool:
    """Whether this thread is in a scan, which needs no weights."""
    length: Any = torch._C._len_torch_dispatch_stack  # type: ignore[attr-defined]
    return length() > 0


class Elsewhere(Protocol):
    """What modules without weights ask."""

    def call(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module at a place."""
        ...

    def fetch(self, place: str) -> torch.Tensor:
        """The parameter or the buffer at a place."""
        ...

    def forget_gradients(self) -> None:
        """Let go of the gradients that parameters have got."""
        ...


def _asked_by_block() -> bool:
    """Whether code of a block reads here, with nothing but torch between: `model.parameters()`."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_BETWEEN) and frame.f_back is not None:
        frame = frame.f_back
    name = frame.f_code.co_filename
    return not is_hidden(name) and not is_installed(name)


_BETWEEN = (os.path.join(os.path.dirname(torch.__file__), ""), __file__, method.__file__)


class _Fetching(dict[str, Any]):
    """The parameters or the buffers of a module: each comes when it is first read."""

    def __init__(self, own: dict[str, Any], place: str, elsewhere: Elsewhere) -> None:
        super().__init__(own)
        self._place, self._elsewhere = place, elsewhere
        self._there: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if not isinstance(value, torch.Tensor) or not value.is_meta or _computes_shapes():
            return value
        if name not in self._there:
            self._there[name] = self._elsewhere.fetch(
                f"{self._place}.{name}" if self._place else name
            )
        return self._there[name]

    def there(self) -> list[torch.Tensor]:
        """Those that have come."""
        return list(self._there.values())

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def items(self) -> Any:
        """With their content for a block; who sends a result, or looks for a device, needs none."""
        if here.worker is None and not _asked_by_block():
            return super().items()
        return [(name, self[name]) for name in self]

    def values(self) -> Any:
        return [value for _, value in self.items()]


class Skeleton:
    """A model whose modules run elsewhere, and whose weights come from there.

    Args:
        model: a model on the meta device; it stays so.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.elsewhere: Elsewhere | None = (
            None  # where that is; nothing can be run before it is set
        )
        vars(model)["_dispatched"] = True  # its weights never come
        _detach(model._module, self)
        self._was = dict(_marks(model._module))

    def call(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.elsewhere is not None
        return self.elsewhere.call(place, args, kwargs)

    def fetch(self, place: str) -> torch.Tensor:
        assert self.elsewhere is not None
        return self.elsewhere.fetch(place)

    def forget_gradients(self) -> None:
        if self.elsewhere is not None:
            self.elsewhere.forget_gradients()

    def refuse_changed(self) -> None:
        """Raise if the block has changed the model: it has changed the skeleton only.

        Raises:
            SandboxError: where it has.
        """
        was, now = self._was, dict(_marks(self.model._module))
        different = (key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
        place = min(different, default=None)
        if place is not None:
            raise changes_model(place)


def _detach(root: Module, elsewhere: Elsewhere) -> None:
    for place, module in root.named_modules():

        def impl(*args: Any, _place: str = place, _module: Module = module, **kwargs: Any) -> Any:
            if _computes_shapes():
                return _module._call_impl(*args, **kwargs)  # type: ignore[operator]
            return elsewhere.call(_place, args, kwargs)

        module._compiled_call_impl = impl  # what `Module.__call__` calls, if it is there
        for kind in ("_parameters", "_buffers"):
            module.__dict__[kind] = _Fetching(module.__dict__[kind], place, elsewhere)

    def zero_grad(set_to_none: bool = True) -> None:
        elsewhere.forget_gradients()
        for module in root.modules():
            for weight in module.__dict__["_parameters"].there():
                weight.grad = None if set_to_none or weight.grad is None else weight.grad.zero_()

    root.zero_grad = zero_grad  # type: ignore[method-assign]


_PLAIN = (int, float, str, bool, type(None))


def _marks(root: Module) -> Iterator[tuple[str, Any]]:
    """What of a model a block may have changed."""
    for place, module in root.named_modules():
        start = f"{place}." if place else ""
        yield start + "forward", (id(module), "forward" in vars(module))
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        yield start + "_forward_hooks", hooks
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN):
                yield start + name, value
        for kind in ("_parameters", "_buffers"):
            held: Any = module.__dict__[kind]
            for name in held:
                yield start + name, id(dict.__getitem__(held, name))
