"""Tensors and arrays on their way: the memory that they lie in, once for all that share it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from nnsight.remote.errors import damaged

_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if type(d) is torch.dtype}
_ALIGN = 16  # bytes; no number is longer


def dtype_of(name: object) -> torch.dtype:
    """The dtype of a name such as `float32`.

    Raises:
        PayloadError: there is none.
    """
    if not isinstance(name, str) or name not in _DTYPES:
        raise damaged(f"it has a tensor of an unknown dtype, {str(name)[:40]!r}")
    return _DTYPES[name]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- what a tensor is beside dense numbers -------------------------------------------------------

_ROWS, _COLUMNS = ("crow_indices", "col_indices"), ("ccol_indices", "row_indices")
COMPRESSED = {
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}
"""What says where the numbers of a sparse tensor are, by its layout."""


def not_dense(value: torch.Tensor) -> str:
    """What to send in place of a tensor that does not lie in memory as numbers; else nothing."""
    if value.is_quantized:
        return ".dequantize()"
    if value.is_nested:
        return ".unbind()"
    dense = value.layout is torch.strided and not is_traceable_wrapper_subclass(value)
    return "" if dense else ".to_dense()"


def what_is_beside(value: torch.Tensor) -> dict[str, Any]:
    """What a tensor holds beside its numbers: its gradient, and what its user put on it.

    The gradient of a parameter is left over from training more often than not, and not taken.
    """
    found = {n: v for n, v in vars(value).items() if not n.startswith("_")}
    has_one = value.is_leaf or value.retains_grad
    if has_one and not isinstance(value, torch.nn.Parameter) and value.grad is not None:
        found["grad"] = value.grad
    return found


def put_beside(tensor: torch.Tensor, name: str, value: Any) -> None:
    """Give a tensor a gradient, or what its user had put on it.

    Raises:
        PayloadError: it is no gradient of this tensor, or would hide what every tensor has.
    """
    try:
        if name == "grad":
            tensor.grad = value
            return
    except (RuntimeError, TypeError) as error:
        raise damaged("it has a gradient that fits no tensor") from error
    if type(name) is not str or hasattr(torch.Tensor, name):
        raise damaged("it puts on a tensor what every tensor has")
    setattr(tensor, name, value)


def coo_of(indices: Any, values: Any, shape: Any) -> Any:
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True).coalesce()


def compressed_of(*given: Any) -> Any:
    where, which, values, shape, layout = given
    about: dict[str, Any] = {"layout": layout, "check_invariants": True}
    return torch.sparse_compressed_tensor(where, which, values, tuple(shape), **about)


# --- writing --------------------------------------------------------------------------------------


@dataclass
class _View:
    """What lies in a piece of memory, and where in its node that is to be said."""

    start: int  # of the bytes that it uses: their address, or place in a storage on a device
    stop: int
    owner: Any  # keeps the memory alive
    node: list[Any]  # ends with the number of the buffer, the strides, and the place in the buffer
    compact: Callable[[], Any] | None = None  # gives a copy without gaps

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass
class MemoryWriter:
    """Takes tensors and arrays, and gives the buffers that they lie in."""

    _views: dict[Any, list[_View]] = field(default_factory=dict[Any, list[_View]])  # by storage

    def tensor(self, tensor: torch.Tensor) -> list[Any]:
        """What describes a tensor; its place in a buffer is filled in by `buffers`."""
        parameter = isinstance(tensor, torch.nn.Parameter)
        plain = tensor.detach().resolve_conj().resolve_neg()
        device, stride = plain.device.type, list(plain.stride())
        about = [name_of(plain.dtype), list(plain.shape), tensor.requires_grad, parameter, device]
        node = ["tensor", *about, -1, stride, 0]
        if device == "meta" or not plain.numel():
            return node
        size = plain.element_size()
        if device == "cpu" and plain.data_ptr() % size:  # made from bytes that begin anywhere
            plain = plain.clone()
            node[-2] = list(plain.stride())
        reach = sum((n - 1) * s for n, s in zip(plain.shape, plain.stride(), strict=True))
        host = device == "cpu"
        start = plain.data_ptr() if host else int(plain.storage_offset()) * size
        view = _View(start, start + int(reach + 1) * size, plain, node)
        if view.size > 2 * plain.numel() * size:
            view.compact = plain.contiguous
        key = None if host else plain.untyped_storage()._cdata
        self._views.setdefault(key, []).append(view)
        return node

    def array(self, array: Any, about: list[Any]) -> list[Any]:
        """What describes an array of numpy.

        Args:
            array: without objects in it.
            about: what stands at the beginning of its description.
        """
        node = [*about, list(array.shape), -1, list(array.strides), 0]
        if array.nbytes:
            steps = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
            below = sum(step for step in steps if step < 0)  # of what runs backwards
            above = sum(step for step in steps if step > 0) + array.itemsize
            first = array.__array_interface__["data"][0]
            node[-1] = -below
            view = _View(first + below, first + above, array, node)
            if view.size > 2 * array.nbytes:
                view.compact = array.copy
            self._views.setdefault(None, []).append(view)
        return node

    def buffers(self) -> list[Any]:
        """The bytes that were taken: each once, and none that nothing uses."""
        found: list[Any] = []
        for key, views in self._views.items():
            for group in _overlapping(views):
                found.append(_content(group, key is None, len(found)))
        return found


def _overlapping(views: list[_View]) -> list[list[_View]]:
    """Views in groups, of which no two have a byte in common."""
    groups: list[list[_View]] = []
    end = -1
    for view in sorted(views, key=lambda view: view.start):
        if view.start >= end:
            groups.append([])
        groups[-1].append(view)
        end = max(end, view.stop)
    return groups


def _content(group: list[_View], host: bool, number: int) -> Any:
    """The bytes of a group of views, each of which is told where it lies in them."""
    low, high = group[0].start, max(view.stop for view in group)
    if len(group) == 1 and group[0].compact is not None:
        return _compacted(group[0], number)
    for view in group:
        view.node[-3] = number
        view.node[-1] += view.start - low + low % _ALIGN
    if not host:
        whole = torch.empty(0, dtype=torch.uint8, device=group[0].owner.device)
        whole.set_(group[0].owner.untyped_storage(), low, (high - low,), (1,))
        content = memoryview(whole.cpu().numpy())  # type: ignore[arg-type]
    else:
        memory = (ctypes.c_char * (high - low)).from_address(low)
        memory.owners = [view.owner for view in group]  # type: ignore[attr-defined]
        content = memoryview(memory).cast("B")
    return bytes(low % _ALIGN) + content if low % _ALIGN else content


def _compacted(view: _View, number: int) -> Any:
    """A few numbers of a large memory, without what lies between them."""
    assert view.compact is not None
    copy = view.compact()
    view.node[-3], view.node[-1] = number, 0
    if isinstance(copy, torch.Tensor):
        view.node[-2] = list(copy.stride())
        return memoryview(copy.cpu().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    view.node[-2] = list(copy.strides)
    return copy.tobytes("A")


# --- reading --------------------------------------------------------------------------------------


class MemoryReader:
    """The buffers of a message, each as one piece of memory that can be written to.

    Args:
        buffers: as they came; they are used where they lie, if that is as numbers must lie.
    """

    def __init__(self, buffers: Sequence[memoryview] = ()) -> None:
        self._buffers, self._ready = buffers, dict[int, memoryview]()

    def at(self, index: int) -> memoryview:
        """The memory of a buffer.

        Raises:
            PayloadError: there is none of that number.
        """
        if index not in self._ready:
            if not isinstance(index, int) or not 0 <= index < len(self._buffers):
                raise damaged("it has a tensor that lies nowhere")
            self._ready[index] = _usable(self._buffers[index])
        return self._ready[index]


def _usable(buffer: memoryview) -> memoryview:
    if buffer.nbytes and not buffer.readonly:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        if address % _ALIGN == 0:
            return buffer
    copy = memoryview(torch.empty(buffer.nbytes, dtype=torch.uint8).numpy())  # type: ignore[arg-type]
    copy[:] = buffer
    return copy


def tensor_of(node: Sequence[Any], memory: MemoryReader, device: Any) -> torch.Tensor:
    """The tensor that a node describes, in the memory that its buffer lies in.

    Args:
        node: as `MemoryWriter.tensor` makes it, without its first word.
        memory: the buffers.
        device: where tensors go that were not on the CPU.

    Raises:
        PayloadError: it describes no tensor, or one that does not lie in its buffer.
    """
    try:
        return _tensor(node, memory, device)
    except RuntimeError as error:
        raise damaged(f"it has a tensor that cannot be ({str(error).splitlines()[0]})") from error


def _tensor(node: Sequence[Any], memory: MemoryReader, device: Any) -> torch.Tensor:
    name, shape, requires_grad, parameter, kind, index, stride, offset = node
    dtype = dtype_of(name)
    numbers = [*shape, *stride, offset]
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(shape) != len(stride):
        raise damaged("it has a tensor that lies nowhere")
    if kind == "meta":
        found = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    elif 0 in shape:
        found = torch.empty_strided(shape, stride, dtype=dtype)
    else:
        found = _in_buffer(dtype, shape, stride, offset, memory.at(index))
    if kind not in ("cpu", "meta") and device is not None:
        found = found.to(device)
    if parameter:
        return torch.nn.Parameter(found, bool(requires_grad))
    return found.requires_grad_() if requires_grad else found


def _in_buffer(
    dtype: torch.dtype, shape: list[int], stride: list[int], offset: int, buffer: memoryview
) -> torch.Tensor:
    size = dtype.itemsize
    last = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if offset % size or offset + (last + 1) * size > buffer.nbytes or math.prod(shape) >= 2**62:
        raise damaged("it has a tensor that lies outside of its buffer")
    whole = torch.frombuffer(buffer, dtype=torch.uint8)
    return torch.empty(0, dtype=dtype).set_(
        whole.untyped_storage(), offset // size, tuple(shape), tuple(stride)
    )


def array_of(dtype: Any, node: Sequence[Any], memory: MemoryReader) -> Any:
    """The array of numpy that a node describes.

    Args:
        dtype: of its numbers.
        node: its shape, buffer, strides in bytes and the place of its first number.
        memory: the buffers.

    Raises:
        PayloadError: it does not lie in its buffer.
    """
    import numpy as np

    shape, index, strides, offset = node
    if dtype.hasobject:
        raise damaged("it has an array of objects as bytes")
    if not math.prod(shape) or not dtype.itemsize:
        return np.zeros(shape, dtype)
    try:
        return np.ndarray(tuple(shape), dtype, memory.at(index), offset, tuple(strides))
    except (TypeError, ValueError) as error:
        raise damaged("it has an array that lies outside of its buffer") from error
