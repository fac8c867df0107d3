"""Which part of a value belongs to which block: cutting, putting back, joining, combining."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any, NamedTuple

import pytest
import torch

from nnsight import nested
from nnsight.interleave.assembly import assemble
from nnsight.interleave.batching import Batch, combine, count_rows
from nnsight.interleave.errors import BatchError
from nnsight.interleave.location import SKIP
from nnsight.interleave.rows import Rows, Uneven
from tests.interleave.scripted import Script

TOTAL = 5
FIRST, MIDDLE, LAST = Rows(0, 2), Rows(2, 1), Rows(3, 2)
BATCH = Batch(TOTAL, split=True)
AT = Script(a=0).a


class Pair(NamedTuple):
    one: Any
    two: Any


@dataclasses.dataclass
class Data:
    one: Any
    two: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    one: Any
    two: Any


def model_output(one: Any, two: Any):
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=one, hidden_states=two)


def returned(one: torch.Tensor, two: torch.Tensor):
    """What `torch.max` returns: a tuple of a kind of its own."""
    return torch.return_types.max((one, two))


CONTAINERS = {
    "tuple": lambda one, two: (one, two),
    "list": lambda one, two: [one, two],
    "dict": lambda one, two: {"one": one, "two": two},
    "ordered dict": lambda one, two: collections.OrderedDict(one=one, two=two),
    "named tuple": Pair,
    "dataclass": Data,
    "frozen dataclass": Frozen,
    "model output": model_output,
    "slice": lambda one, two: slice(one, two),
    "torch's own tuple": returned,
    "nested": lambda one, two: (([{"a": one}], None, "text"), {"b": (two,)}),
}
in_every_container = pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS.keys())


def batched(width: int = 3) -> torch.Tensor:
    return torch.arange(TOTAL * width, dtype=torch.float32).reshape(TOTAL, width)


def tensors(value: Any) -> list[torch.Tensor]:
    return list(nested.leaves(value))


# --- cutting --------------------------------------------------------------------------------------


@in_every_container
@pytest.mark.parametrize("rows", [FIRST, MIDDLE, LAST])
def test_a_block_is_handed_views_of_its_rows(make, rows):
    one, two = batched(), batched(2)
    value = make(one, two)
    own = BATCH.narrow(value, rows, AT)
    assert type(own) is type(value)
    cut = tensors(own)
    assert [tuple(t.shape) for t in cut] == [(rows.size, 3), (rows.size, 2)]
    for view, whole in zip(cut, (one, two), strict=True):
        assert torch.equal(view, whole[rows.start : rows.stop])
        view[:] = -1
        assert (whole[rows.start : rows.stop] == -1).all()
    assert (one == -1).all(dim=1).sum() == rows.size


@in_every_container
def test_who_has_no_rows_is_handed_the_value_itself(make):
    value = make(batched(), batched())
    assert BATCH.narrow(value, None, AT) is value
    assert Batch(TOTAL, split=False).narrow(value, FIRST, AT) is value


UNBATCHED = {
    "another length": lambda: torch.zeros(4, TOTAL),
    "no dimension": lambda: torch.tensor(float(TOTAL)),
    "no rows": lambda: torch.zeros(0, 3),
    "one row": lambda: torch.zeros(1, 3),
}


@pytest.mark.parametrize("make", UNBATCHED.values(), ids=UNBATCHED.keys())
def test_what_has_no_rows_is_whole_for_everyone(make):
    value = make()
    assert BATCH.narrow(value, FIRST, AT) is value
    held = (batched(), value)
    assert BATCH.narrow(held, FIRST, AT)[1] is value


@pytest.mark.parametrize(
    "value", [None, 5, "text", object(), torch.nn.Identity(), range(TOTAL), {1, 2}]
)
def test_what_is_no_container_is_handed_as_it_is(value):
    assert BATCH.narrow(value, FIRST, AT) is value
    assert BATCH.widen(value, FIRST, "new", AT) == "new"


def test_a_batch_of_unknown_size_is_never_cut():
    value = torch.zeros(0, 3)
    assert Batch(0, split=True).narrow(value, FIRST, AT) is value


def test_a_model_that_knows_better_is_asked_leaf_by_leaf():
    asked = []

    def varies(location, leaf):
        asked.append((location, leaf))
        return {0: True, 1: False, 2: None}[leaf]

    value = (batched(), [batched()], torch.tensor(1.0), {"k": batched()})
    batch = Batch(TOTAL, True, lambda at, leaf, shape: varies(at, min(leaf, 2)))
    one, [two], _, rest = batch.narrow(value, FIRST, AT)
    assert [t.shape[0] for t in (one, two, rest["k"])] == [2, TOTAL, 2]
    assert {at for at, _ in asked} == {AT}


def test_rows_that_lie_one_after_the_other_in_one_dimension():
    batch = Batch(TOTAL, True, lambda at, leaf, shape: shape[0] == 3 * TOTAL)
    whole = torch.arange(3.0 * TOTAL)[:, None]
    own = batch.narrow(whole, LAST, AT)
    assert torch.equal(own, whole[3 * LAST.start : 3 * LAST.stop])
    changed = batch.widen(whole, LAST, own + 1, AT)
    assert torch.equal(changed[: 3 * LAST.start], whole[: 3 * LAST.start])
    assert torch.equal(changed[3 * LAST.start : 3 * LAST.stop], own + 1)
    table = torch.zeros(2 * TOTAL, 4)  # as long by chance
    assert batch.narrow(table, LAST, AT) is table


def cache():
    from transformers import DynamicCache

    made = DynamicCache()
    for layer in range(2):
        made.update(torch.randn(TOTAL, 2, 3, 4), torch.randn(TOTAL, 2, 3, 4), layer)
    return made


def test_a_cache_of_keys_and_values():
    whole = cache()
    own = BATCH.narrow(whole, LAST, AT)
    assert type(own) is type(whole)
    assert own.get_seq_length() == 3
    assert [tuple(layer.keys.shape) for layer in own.layers] == [(2, 2, 3, 4)] * 2
    own.layers[1].values[:] = 7
    assert (whole.layers[1].values[3:] == 7).all()
    assert not (whole.layers[1].values[:3] == 7).any()
    assert [tuple(layer.keys.shape) for layer in whole.layers] == [(TOTAL, 2, 3, 4)] * 2


def test_a_cache_is_put_back_into_its_rows():
    whole = cache()
    own = BATCH.narrow(whole, LAST, AT)
    own.layers[0].keys = own.layers[0].keys * 0
    merged = BATCH.widen(whole, LAST, own, AT)
    assert type(merged) is type(whole)
    assert (merged.layers[0].keys[3:] == 0).all()
    assert torch.equal(merged.layers[0].keys[:3], whole.layers[0].keys[:3])
    assert merged.layers[1].values is whole.layers[1].values


# --- putting back ---------------------------------------------------------------------------------


@in_every_container
@pytest.mark.parametrize("rows", [FIRST, MIDDLE, LAST])
def test_a_replacement_is_put_into_its_rows(make, rows):
    value = make(batched(), batched(2))
    before = [t.clone() for t in tensors(value)]
    new = make(torch.full((rows.size, 3), -1.0), torch.full((rows.size, 2), -2.0))
    merged = BATCH.widen(value, rows, new, AT)
    assert type(merged) is type(value)
    for got, old, fill in zip(tensors(merged), before, (-1, -2), strict=True):
        assert got.shape == old.shape
        assert (got[rows.start : rows.stop] == fill).all()
        others = torch.ones(TOTAL, dtype=torch.bool)
        others[rows.start : rows.stop] = False
        assert torch.equal(got[others], old[others])
    assert all(
        torch.equal(a, b) for a, b in zip(tensors(value), before, strict=True)
    )  # not in place


@in_every_container
def test_what_was_handed_out_and_comes_back_changes_nothing(make):
    value = make(batched(), batched(2))
    assert BATCH.widen(value, MIDDLE, BATCH.narrow(value, MIDDLE, AT), AT) is value


def test_what_comes_back_detached_is_cut_from_the_graph():
    weight = batched().requires_grad_()
    full = weight * 2
    merged = BATCH.widen(full, FIRST, BATCH.narrow(full, FIRST, AT).detach(), AT)
    merged.sum().backward()
    assert weight.grad is not None
    assert (weight.grad[:2] == 0).all()
    assert (weight.grad[2:] == 2).all()


def test_rows_of_another_block_are_no_rows_of_ones_own():
    full = batched()
    merged = BATCH.widen(full, FIRST, full[3:], AT)
    assert torch.equal(merged[:2], full[3:])


def test_under_inference_mode_what_comes_back_changes_nothing():
    with torch.inference_mode():
        full = batched() + 0
        own = BATCH.narrow(full, FIRST, AT)
        assert BATCH.widen(full, FIRST, own, AT) is full
        assert BATCH.widen(full, FIRST, own + 1, AT) is not full


def test_gradients_reach_the_replacement_and_the_other_rows():
    weight, own = batched().requires_grad_(), torch.ones(1, 3, requires_grad=True)
    BATCH.widen(weight * 2, MIDDLE, own * 5, AT).sum().backward()
    assert weight.grad is not None
    assert own.grad is not None
    assert weight.grad[:, 0].tolist() == [2, 2, 0, 2, 2]
    assert own.grad.flatten().tolist() == [5, 5, 5]


def test_a_tensor_without_rows_is_replaced_for_everyone():
    full = (batched(), torch.zeros(1, 7), torch.tensor(1.0), "flag")
    new = (BATCH.narrow(full, FIRST, AT)[0], torch.ones(2, 2), torch.tensor(2.0), "other")
    merged = BATCH.widen(full, FIRST, new, AT)
    assert merged[0] is full[0]
    assert merged[1:] == new[1:]


def test_a_value_for_everyone_is_taken_as_it_is():
    new = batched() + 1
    assert BATCH.widen(batched(), None, new, AT) is new
    assert Batch(TOTAL, split=False).widen(batched(), FIRST, new, AT) is new


WRONG = {
    "too few rows": (batched, lambda: torch.zeros(1, 3)),
    "too many rows": (batched, lambda: torch.zeros(3, 3)),
    "the whole batch": (batched, batched),
    "no rows": (batched, lambda: torch.zeros(0, 3)),
    "no dimension": (batched, lambda: torch.tensor(1.0)),
    "another width": (batched, lambda: torch.zeros(2, 4)),
    "another dtype": (batched, lambda: torch.zeros(2, 3, dtype=torch.float64)),
    "a number": (batched, lambda: 5.0),
    "None": (lambda: (batched(), batched()), lambda: (None, torch.zeros(2, 3))),
    "a tuple for a tensor": (batched, lambda: (torch.zeros(2, 3),)),
    "a tensor for a tuple": (lambda: (batched(), batched()), lambda: torch.zeros(2, 3)),
    "a shorter tuple": (lambda: (batched(), batched()), lambda: (torch.zeros(2, 3),)),
    "a longer tuple": (lambda: (batched(),), lambda: (torch.zeros(2, 3), torch.zeros(2, 3))),
    "another key": (lambda: {"a": batched()}, lambda: {"b": torch.zeros(2, 3)}),
    "a key more": (lambda: {"a": batched()}, lambda: {"a": torch.zeros(2, 3), "b": 1}),
    "deep inside": (lambda: [({"a": batched()},)], lambda: [({"a": torch.zeros(3, 3)},)]),
}


@pytest.mark.parametrize(("full", "new"), WRONG.values(), ids=WRONG.keys())
def test_a_replacement_that_does_not_fit_is_refused(full, new):
    value = full()
    before = [t.clone() for t in tensors(value)]
    with pytest.raises(BatchError, match=r"replacement for `model\.a\.output`"):
        BATCH.widen(value, FIRST, new(), AT)
    assert all(torch.equal(a, b) for a, b in zip(tensors(value), before, strict=True))


@pytest.mark.parametrize("batch", [BATCH, Batch(TOTAL, split=False)])
@pytest.mark.parametrize("size", [0, 1, 4, 6])
def test_the_whole_value_keeps_its_batch_size(batch, size):
    with pytest.raises(BatchError, match="keeps the batch size"):
        batch.widen((batched(), None), None, (torch.zeros(size, 3), None), AT)


def test_the_whole_value_may_change_everything_else():
    batch = Batch(TOTAL, split=False)
    new = torch.zeros(TOTAL, 9, dtype=torch.float64)
    assert batch.widen(batched(), None, new, AT) is new


# --- joining --------------------------------------------------------------------------------------


def each(make, *numbers: float):
    given = zip((FIRST, MIDDLE, LAST), numbers, strict=True)
    return [
        (rows, make(torch.full((rows.size, 2), n), torch.full((rows.size,), n)))
        for rows, n in given
    ]


@in_every_container
def test_values_of_all_blocks_become_one(make):
    parts = each(make, 1.0, 2.0, 3.0)
    joined = assemble([parts[2], parts[0], parts[1]], AT)
    assert type(joined) is type(parts[0][1])
    one, two = tensors(joined)
    assert one[:, 0].tolist() == two.tolist() == [1, 1, 2, 3, 3]


def test_what_is_not_a_tensor_is_the_first_block_s():
    joined = assemble([(FIRST, (torch.zeros(2), "a", None)), (LAST, (torch.ones(2), "b", 5))], AT)
    assert joined[0].tolist() == [0, 0, 1, 1]
    assert joined[1:] == ("a", None)


def test_a_tensor_that_is_the_same_for_all_is_not_joined():
    table = torch.zeros(1, 7)
    joined = assemble([(FIRST, (torch.zeros(2), table)), (LAST, (torch.ones(2), table))], AT)
    assert joined[1] is table


def test_a_tensor_without_dimension_is_the_first_block_s():
    assert assemble([(FIRST, torch.tensor(1.0)), (LAST, torch.tensor(2.0))], AT).item() == 1


JOIN_WRONG = {
    "rows": lambda: [(FIRST, torch.zeros(3, 2)), (LAST, torch.zeros(2, 2))],
    "rows that add up": lambda: [(FIRST, torch.zeros(3, 2)), (LAST, torch.zeros(1, 2))],
    "width": lambda: [(FIRST, torch.zeros(2, 2)), (LAST, torch.zeros(2, 3))],
    "dtype": lambda: [(FIRST, torch.zeros(2)), (LAST, torch.zeros(2, dtype=torch.int64))],
    "structure": lambda: [(FIRST, (torch.zeros(2),)), (LAST, [torch.zeros(2), 1])],
    "a tensor and none": lambda: [(FIRST, torch.zeros(2)), (LAST, None)],
    "keys": lambda: [(FIRST, {"a": 1}), (LAST, {"b": 1})],
}


@pytest.mark.parametrize("parts", JOIN_WRONG.values(), ids=JOIN_WRONG.keys())
def test_values_that_cannot_be_joined(parts):
    with pytest.raises(BatchError, match=r"`model\.a\.skip`"):
        assemble(parts(), AT._replace(kind=SKIP))


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "rows"),
    [
        ((), {}, 0),
        ((torch.zeros(3, 2),), {}, 3),
        ((), {"x": torch.zeros(4)}, 4),
        (("text",), {}, 1),
        ((), {"flag": True}, 1),
        ((torch.tensor(1.0),), {}, 1),
        (([{"x": torch.zeros(2, 2)}], torch.zeros(9)), {}, 2),
    ],
)
def test_how_many_rows_inputs_bring(args, kwargs, rows):
    assert count_rows(args, kwargs) == rows


@in_every_container
def test_inputs_of_invokes_become_one_call(make):
    inputs = [
        ((make(torch.full((n, 2), float(n)), torch.ones(n)),), {"flag": True}) for n in (1, 2)
    ]
    (args,), kwargs = combine(inputs)
    one, two = tensors(args)
    assert one[:, 0].tolist() == [1, 2, 2]
    assert two.shape == (3,)
    assert kwargs == {"flag": True}


def test_one_input_is_taken_as_it_is():
    args, kwargs = (object(),), types.MappingProxyType({"a": 1})
    assert combine([(args, kwargs)]) == (args, {"a": 1})


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((torch.zeros(1, 2),), (torch.zeros(1, 3),)),
        ((torch.tensor(1.0),), (torch.tensor(1.0),)),
        ((torch.zeros(1, 2),), ("text",)),
        ((torch.zeros(1, 2),), (torch.zeros(1, 2), 5)),
        ((5,), (6,)),
        (({"a": 1},), ({"b": 1},)),
    ],
)
def test_inputs_that_cannot_become_one_batch(one, two):
    with pytest.raises(BatchError, match="Can't batch these invokes"):
        combine([(one, {}), (two, {})])


# --- blocks with unlike many ----------------------------------------------------------------------


class Images(Batch):
    """The first block has one image of four, the second none, the third three."""

    def share(self, value: torch.Tensor, location: Any, leaf: int) -> Uneven | None:
        own = {FIRST: Rows(0, 1), MIDDLE: Rows(1, 0), LAST: Rows(1, 3)}
        return Uneven(own) if value.shape[0] == 4 else None


def test_a_block_has_its_own_many():
    batch, value = Images(TOTAL, split=True), torch.arange(8.0).view(4, 2)
    for rows, expected in ((FIRST, value[:1]), (MIDDLE, value[:0]), (LAST, value[1:])):
        assert torch.equal(batch.narrow(value, rows, AT), expected)
    cuts: list[Any] = []
    widened = batch.widen(value, LAST, torch.zeros(3, 2), AT, cuts)
    assert torch.equal(widened, torch.cat([value[:1], torch.zeros(3, 2)]))
    before = cuts[0].versions()
    widened[:1] = 9  # in rows that nobody replaced: the tensor before has them too
    cuts[0].mend(FIRST, before)
    assert value.tolist() == [[9, 9], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(BatchError):
        batch.widen(value, LAST, torch.zeros(2, 2), AT)
