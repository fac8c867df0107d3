"""Whether a job left a model as it was, and putting back what is small.

torch counts the changes of a tensor, which costs next to nothing to look at. Changes that it does
not count (through `.data`, or NumPy) show in sums over the bytes, read when another user is next.
Buffers, modes, gradients and plain attributes are put back; changed parameters are for the server,
which loads the model again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_PLAIN = (int, float, str, bool, type(None))


class Weights:
    """A module as it is now, to compare with later."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._modules = [(path or "the model", one) for path, one in module.named_modules()]
        self._plain = [_plain(one) for _, one in self._modules]
        self._buffers = _buffers(self._modules)
        self._requires = [(p, p.requires_grad) for p in module.parameters()]
        self._put_back()
        self._marks = self._seen()
        self._sums = _sums(module)

    def changed(self) -> list[str]:
        """Put back what is small; the names of parameters and modules that are not as they were."""
        self._put_back()
        return _different(self._marks, self._seen())

    def compare(self) -> list[str]:
        """The same, with every byte of every tensor."""
        return self.changed() or _different(self._sums, _sums(self._module))

    def _put_back(self) -> None:
        for (_, module), plain in zip(self._modules, self._plain, strict=True):
            vars(module).update(plain)
        for kept in self._buffers:
            kept.put_back()
        for parameter, requires in self._requires:
            parameter.grad = None
            if parameter.requires_grad != requires:
                parameter.requires_grad_(requires)

    def _seen(self) -> dict[str, object]:
        """What torch notes of parameters and modules, without reading a tensor."""
        seen: dict[str, object] = {}
        for path, module in self._module.named_modules():
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            hooks = sum(not _of_transformers(hook) for hook in hooks)
            seen[path or "the model"] = (id(module), hooks, "forward" in vars(module))
        for name, tensor in _tensors(self._module):
            place = (id(tensor), _changes(tensor), tensor.data_ptr())
            seen[name] = (*place, tensor.shape, tensor.stride(), tensor.dtype)
        return seen


def _of_transformers(hook: Any) -> bool:
    """Whether it is one that transformers leaves, to give hidden states and attentions."""
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__module__", "")).startswith("transformers.")


def _different(was: dict[str, object], now: dict[str, object]) -> list[str]:
    return sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))


def _plain(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}


class _Buffer:
    """A buffer as it was loaded."""

    def __init__(self, module: torch.nn.Module, name: str, buffer: torch.Tensor) -> None:
        self._module, self._name, self._buffer = module, name, buffer
        self._copy = buffer.clone()

    def put_back(self) -> None:
        """By value: torch does not count what a batch norm does to its buffers."""
        same = self._module._buffers.get(self._name) is self._buffer
        if not same or not torch.equal(self._buffer, self._copy):
            self._buffer = self._module._buffers[self._name] = self._copy.clone()


def _buffers(modules: list[tuple[str, torch.nn.Module]]) -> list[_Buffer]:
    return [
        _Buffer(module, name, buffer)
        for _, module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _changes(tensor: torch.Tensor) -> int:
    """How often torch has seen the tensor changed."""
    return -1 if tensor.is_inference() else tensor._version


def _sums(module: torch.nn.Module) -> dict[str, object]:
    return {
        name: _sum(tensor.detach())
        for name, tensor in _tensors(module)
        if tensor.device.type != "meta"
    }


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of bytes that the parameters are, or are made of (quantised ones)."""
    for name, parameter in module.named_parameters():
        yield from _parts(name, parameter)


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from _parts(f"{name}.{inner}", getattr(tensor, inner))


def _sum(tensor: torch.Tensor) -> tuple[int, ...]:
    """Sums over the bytes that say where each of them is; they are read as fast as memory is.

    The bytes are seen as a table of whole numbers: its sums by column and by row are weighted by
    the column and the row.
    """
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor)
    bytes = tensor.contiguous().view(-1).view(torch.uint8)
    if bytes.storage_offset() % 8:
        bytes = bytes.clone()
    whole = len(bytes) // _ROW * _ROW
    table, rest = bytes[:whole].view(torch.int64).view(-1, _ROW // 8), bytes[whole:].long()
    return tuple(
        int((sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum())
        for sums in (table.sum(0), table.sum(1), rest)
    )


_ROW = 8192  # bytes
