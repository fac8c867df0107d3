"""Tensors and arrays survive the wire bit by bit, and share memory as they did."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnsight.remote.errors import NotSendableError
from nnsight.remote.tensors import _DTYPES
from tests.remote.passing import packed, passed


def bits(tensor: torch.Tensor) -> bytes:
    flat = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return flat.view(-1).view(torch.uint8).numpy().tobytes()


def random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bits of a dtype."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def can_be_made(dtype: torch.dtype) -> bool:
    """Whether torch has more of a dtype than its name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bits(random(dtype, 3, 4))
    except (RuntimeError, NotImplementedError):
        return False
    return True


DTYPES = [d for d in _DTYPES.values() if d.itemsize and not str(d).startswith("torch.q")]
MADE = [dtype for dtype in DTYPES if can_be_made(dtype)]


def test_the_usual_dtypes_are_among_them():
    assert {torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64} <= set(MADE)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", MADE, ids=str)
def test_every_dtype_survives(dtype: torch.dtype):
    value = random(dtype, 3, 4)
    found = passed([value, value[1:, ::2], value[0]])
    assert [bits(f) for f in found] == [bits(value), bits(value[1:, ::2]), bits(value[0])]
    assert found[0].dtype == dtype and found[1].stride() == value[1:, ::2].stride()
    assert found[2].data_ptr() == found[0].data_ptr()


@st.composite
def views(draw: Any) -> list[torch.Tensor]:
    """Some views of one tensor: slices, steps, transposes, expansions, other dtypes."""
    whole = torch.randn(*draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    found = [whole]
    for _ in range(draw(st.integers(0, 4))):
        view = draw(st.sampled_from(found))
        how = draw(st.sampled_from(["slice", "step", "t", "expand", "bytes", "flat", "detach"]))
        if how == "slice" and view.dim():
            view = view[draw(st.integers(0, view.shape[0])) :]
        elif how == "step" and view.dim():
            view = view[..., :: draw(st.integers(1, 3))]
        elif how == "t" and view.dim() > 1:
            view = view.transpose(0, -1)
        elif how == "expand":
            view = view.expand(2, *view.shape)
        elif how == "bytes" and view.is_contiguous() and view.dim() and view.stride(-1) == 1:
            view = view.view(torch.uint8)
        elif how == "flat" and view.is_contiguous():
            view = view.view(-1)
        found.append(view)
    return found


@settings(max_examples=120, deadline=None)
@given(views(), st.booleans())
def test_views_share_memory_as_they_did(tensors: list[torch.Tensor], first: bool):
    found = passed(tensors if first else tensors[::-1])[:: 1 if first else -1]
    for one, other in zip(tensors, found, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype and bits(one) == bits(other)
    tensors[0].fill_(7.0)
    found[0].fill_(7.0)
    assert [bits(t) for t in tensors] == [bits(t) for t in found]


def test_arrays_and_tensors_share_memory_as_they_did():
    array = np.arange(10.0)
    tensor, back, rest = torch.from_numpy(array), array[::-1], array[2:5]
    found = passed([array, tensor, back, rest])
    found[0][3] = 100
    assert found[1][3] == 100 and found[2][6] == 100 and found[3][1] == 100


ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.arange(6).reshape(2, 3).T,
    np.arange(10)[::-3],
    np.zeros((0, 3)),
    np.array(3.5),
    np.array(["a", "bc"]),
    np.array([b"x"]),
    np.array(["2020-01-01"], dtype="M8[D]"),
    np.zeros(3, dtype=[("a", "i4"), ("b", "f8", (2,))]),
    np.array([1, 2], dtype=">i4"),
    np.asfortranarray(np.random.default_rng(0).random((2, 3, 4))),
    np.broadcast_to(np.float32(1), (1000, 1000)),
    np.ma.array([1, 2], mask=[0, 1]),
    np.array([{}, [1], None], dtype=object),
    np.float16(2.5),
    np.datetime64("2020-01-01"),
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda v: f"{v.dtype}{v.shape}")
def test_arrays_survive(value: Any):
    content = packed(value)
    found = passed(value)
    assert type(found) is type(value) and found.dtype == value.dtype and found.shape == value.shape
    assert (found == value).all()
    assert len(content) < 20_000


def test_an_object_in_an_array_keeps_its_identity():
    inner: list[Any] = []
    array = np.array([inner, None], dtype=object)
    inner.append(array)
    found = passed(array)
    assert found[0][0] is found


def test_what_a_tensor_is_beside_its_numbers():
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    grown = (torch.ones(2, requires_grad=True) * 2, torch.ones(3, requires_grad=True))
    found = passed([tied, frozen, grown, torch.ones(2, 2).to_sparse(), torch.empty(0, 3)])
    assert found[0]["a"].weight is found[0]["b"].weight
    assert isinstance(found[1], nn.Parameter) and not found[1].requires_grad
    assert found[2][0].requires_grad and found[2][0].is_leaf and found[2][1].requires_grad
    assert found[3].layout is torch.sparse_coo and found[3].to_dense().sum() == 4
    assert found[4].shape == (0, 3)
    complex_ = torch.complex(torch.ones(2), torch.ones(2))
    assert torch.equal(passed(complex_.conj()), complex_.conj())
    assert torch.equal(passed(complex_.conj().imag), complex_.conj().imag)


def test_what_a_tensor_holds_beside_its_numbers():
    leaf = torch.ones(2, requires_grad=True)
    (leaf * 3).sum().backward()
    leaf.note = {"about": leaf}  # type: ignore[attr-defined]
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    found, again, without = passed([leaf, leaf, weight])
    assert found is again and found.note["about"] is found
    assert found.grad.tolist() == [3, 3] and found.requires_grad
    assert without.grad is None  # what is left over from training is not sent


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", ["csr", "csc", "bsr", "bsc", "coo"])
def test_sparse_tensors_survive(kind: str):
    dense = torch.eye(4) * torch.arange(4.0)
    blocks = {"blocksize": (2, 2)} if kind.startswith("b") else {}
    value = dense.to_sparse() if kind == "coo" else getattr(dense, f"to_sparse_{kind}")(**blocks)
    found = passed([value])[0]
    assert found.layout == value.layout and torch.equal(found.to_dense(), dense)


def test_of_a_large_storage_only_what_is_used_travels():
    large = torch.randn(1000, 1000)
    assert len(packed(large[:, 3], compress=False)) < 10_000
    assert len(packed([large[0], large[500]], compress=False)) < 10_000
    assert torch.equal(passed(large[:, 3]), large[:, 3])


def test_bytes_that_begin_anywhere_are_read():
    raw = bytearray(41)
    odd = torch.frombuffer(raw, dtype=torch.float32, count=10, offset=1)
    assert torch.equal(passed(odd), odd)
    content = packed([torch.arange(100.0)], compress=False)
    shifted = memoryview(bytearray(b"x") + content)[1:]
    from tests.remote.passing import read

    for whole in (shifted, bytes(content), shifted.toreadonly()):
        (found,) = read(whole)
        assert torch.equal(found, torch.arange(100.0))
        found += 1  # it can be written to


def fewer_bits(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8)


class Marked(torch.Tensor):
    def mark(self) -> int:
        return 1


def test_a_class_of_tensors_survives_and_a_tensor_without_numbers_does_not():
    assert passed(torch.ones(2).as_subclass(Marked)).mark() == 1
    with pytest.raises(NotSendableError, match=r"it is no dense tensor\. Send `\.to_dense"):
        packed([torch.ones(2, 2).to_mkldnn()])
    with pytest.raises(NotSendableError, match=r"Send `\.dequantize"):
        packed([fewer_bits(torch.ones(2))])
