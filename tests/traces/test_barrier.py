"""`tracer.barrier(n)`: blocks that wait for one another."""

from __future__ import annotations

import pytest
import torch

from nnsight import NNsight
from tests.behaviour.small import Network
from tests.conftest import hooks_on

X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def model():
    model = NNsight(Network())
    yield model
    assert hooks_on(model._module) == []


def test_two_blocks_meet(model):
    order = []
    with model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(X):
            order.append("a")
            meet()
            order.append("a again")
        with tracer.invoke(X):
            order.append("b")
            meet()
            order.append("b again")
    assert order == ["a", "b", "b again", "a again"]


def test_three_blocks_three_rounds(model):
    rounds = []
    with model.trace() as tracer:
        meet = tracer.barrier(3)
        for name in "abc":
            with tracer.invoke(X):
                for number in range(3):
                    rounds.append((number, name))
                    meet()
    assert [number for number, _ in rounds] == [0] * 3 + [1] * 3 + [2] * 3
    assert all({n for r, n in rounds if r == number} == set("abc") for number in range(3))


def test_what_was_filled_before_is_there_afterwards(model):
    found = []
    with model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(X):
            found.append(model.first.output)
            meet()
        with tracer.invoke(-X):
            meet()
            model.second.input = found[0].relu()
            patched = model.output.save()
    assert torch.allclose(patched, model._module(X), atol=1e-6)


def test_changes_in_place_are_seen_on_the_other_side(model):
    kept = torch.zeros(2, 4)
    with model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(X):
            model.first.output[:] = 1
            kept += model.first.output
            meet()
            model.second.output[:] = kept
            one = model.second.output.save()
        with tracer.invoke(X):
            meet()
            kept *= 5
            two = model.second.output.save()
    assert (kept == 5).all() and (one == 5).all()
    assert torch.allclose(two, model._module.second(model._module.first(X).relu()), atol=1e-6)


def test_blocks_that_take_no_part_pass_by(model):
    with model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(X):
            meet()
            one = model.output.save()
        with tracer.invoke(X):
            alone = model.output.save()
        with tracer.invoke():
            meet()
            all_rows = model.output.save()
    assert torch.equal(torch.cat([one, alone]), all_rows)


def test_a_barrier_of_one_waits_for_nobody(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            meet = tracer.barrier(1)
            meet()
            meet()
            out = model.output.save()
    assert out.shape == (2, 2)


def test_a_barrier_that_is_too_large(model):
    with pytest.raises(ValueError, match="never reached by every block: 2 of 3 blocks") as caught:
        with model.trace() as tracer:
            meet = tracer.barrier(3)
            with tracer.invoke(X):
                meet()
            with tracer.invoke(X):
                model.output.save()
                meet()
    assert "`tracer.barrier(2)`" in str(caught.value)


@pytest.mark.parametrize("n", [0, -1, "a", 2.0, None])
def test_a_number_that_is_none(model, n):
    with pytest.raises(ValueError, match="a whole number from 1 on") as caught:
        with model.trace() as tracer:
            tracer.barrier(n)
    assert repr(n) in str(caught.value)


def test_a_barrier_where_no_block_runs(model):
    with pytest.warns(UserWarning, match="no `with` entered it"):
        meet = model.trace().barrier(2)
    with pytest.raises(ValueError, match=r"barrier\(\)"):
        meet()
    with pytest.raises(ValueError, match=r"barrier\(\)"), model.trace() as tracer:
        meet = tracer.barrier(2)
        meet()


def test_a_block_that_fails_at_a_barrier_frees_the_other(model):
    ended = []
    with pytest.raises(ZeroDivisionError), model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(X):
            try:
                meet()
            finally:
                ended.append("first")
        with tracer.invoke(X):
            model.first.output.save()
            1 / 0  # noqa: B018  (it is to fail)
            meet()
    assert ended == ["first"]
