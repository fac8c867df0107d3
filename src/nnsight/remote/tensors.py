"""Tensors on their way: the bytes of their storages, once for all tensors that share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight.remote.errors import damaged

_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if type(d) is torch.dtype}


def dtype_of(name: object) -> torch.dtype:
    """The dtype of a name such as `float32`.

    Raises:
        PayloadError: there is none.
    """
    if not isinstance(name, str) or name not in _DTYPES:
        raise damaged(f"it has a tensor of an unknown dtype, {name!r}")
    return _DTYPES[name]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor uses, from the first to after the last."""
    if tensor.numel() == 0:
        return 0, 0
    size, start = tensor.element_size(), int(tensor.storage_offset())
    last = start + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start * size, int(last + 1) * size


@dataclass
class _Storage:
    index: int
    views: list[tuple[torch.Tensor, list[Any]]] = field(default_factory=list[Any])


@dataclass
class TensorWriter:
    """Takes tensors, and gives the buffers that they lie in."""

    storages: dict[int, _Storage] = field(default_factory=dict[int, _Storage])

    def node(self, tensor: torch.Tensor) -> list[Any]:
        """What describes a tensor; its place in a buffer is filled in by `buffers`."""
        parameter = isinstance(tensor, torch.nn.Parameter)
        plain = tensor.detach().resolve_conj().resolve_neg()
        device = plain.device.type
        about = [name_of(plain.dtype), list(plain.shape), tensor.requires_grad, parameter, device]
        if device == "meta":
            return ["tensor", *about, -1, list(plain.stride()), 0]
        if device != "cpu":
            plain = plain.cpu()
        node = ["tensor", *about, -1, list(plain.stride()), 0]
        key = plain.untyped_storage()._cdata
        storage = self.storages.setdefault(key, _Storage(len(self.storages)))
        storage.views.append((plain, node))
        return node

    def buffers(self) -> list[memoryview]:
        """The bytes of all storages; of each only the part that some tensor uses."""
        return [self._buffer(storage) for storage in self.storages.values()]

    def _buffer(self, of: _Storage) -> memoryview:
        views = of.views
        spans = [_span(tensor) for tensor, _ in views]
        low, high = min(a for a, _ in spans), max(b for _, b in spans)
        tensor, node = views[0]
        if len(views) == 1 and high - low > 2 * tensor.numel() * tensor.element_size():
            tensor = tensor.contiguous()  # a few numbers of a large storage
            node[-2] = list(tensor.stride())
            low, high = _span(tensor)
            views = [(tensor, node)]
        for view, about in views:
            about[-3] = of.index
            about[-1] = int(view.storage_offset()) * view.element_size() - low
        storage = views[0][0].untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage, low, (high - low,), (1,))
        return memoryview(whole.numpy())  # type: ignore[arg-type]


def tensor_of(node: Sequence[Any], buffers: Sequence[memoryview], device: Any) -> torch.Tensor:
    """The tensor that a node describes, in the memory that the buffer lies in.

    Args:
        node: as `TensorWriter.node` makes it, without its first word.
        buffers: of the message.
        device: where tensors go that were not on the CPU.

    Raises:
        PayloadError: it describes no tensor, or one that does not lie in its buffer.
    """
    name, shape, requires_grad, parameter, kind, index, stride, offset = node
    dtype = dtype_of(name)
    if kind == "meta":
        found = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    else:
        found = _in_buffer(dtype, shape, stride, offset, buffers, index)
        if kind != "cpu" and device is not None:
            found = found.to(device)
    if parameter:
        return torch.nn.Parameter(found, bool(requires_grad))
    return found.requires_grad_() if requires_grad else found


def _in_buffer(
    dtype: torch.dtype,
    shape: list[int],
    stride: list[int],
    offset: int,
    buffers: Sequence[memoryview],
    index: int,
) -> torch.Tensor:
    numbers = [*shape, *stride, offset, index]
    sound = all(isinstance(n, int) and n >= 0 for n in numbers) and len(shape) == len(stride)
    if not sound or index >= len(buffers):
        raise damaged("it has a tensor that lies nowhere")
    size, buffer = dtype.itemsize, buffers[index]
    if 0 in shape or not buffer.nbytes:
        if 0 not in shape:
            raise damaged("it has a tensor that lies outside of its buffer")
        return torch.empty(shape, dtype=dtype)
    last = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if offset % size or offset + (last + 1) * size > buffer.nbytes:
        raise damaged("it has a tensor that lies outside of its buffer")
    if buffer.readonly:
        buffer = memoryview(bytearray(buffer))
    whole = torch.frombuffer(buffer, dtype=torch.uint8)
    base = whole.storage_offset()
    if (whole.data_ptr() % size) or base:
        whole = whole.clone()
    return torch.empty(0, dtype=dtype).set_(
        whole.untyped_storage(), offset // size, tuple(shape), tuple(stride)
    )
