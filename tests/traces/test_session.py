# ruff: noqa: B018, F841 -- blocks that lose their names are what is tested
"""A session: several traces as one block."""

from __future__ import annotations

import pytest
import torch

import nnsight
from nnsight import NNsight
from tests.behaviour.small import Network


@pytest.fixture
def model() -> NNsight:
    return NNsight(Network())


X = torch.linspace(-1, 1, 8).reshape(2, 4)


def test_values_pass_between_traces_without_a_save(model):
    with model.session() as session:
        with model.trace(X):
            hidden = model.first.output
        with model.trace(X * 2):
            model.first.output = hidden
            out = model.output.save()
    assert torch.equal(out, model._module(X))
    assert isinstance(session, nnsight.traces.session.Session)
    assert "hidden" not in locals()


def test_the_body_runs_once_in_order(model):
    order = []
    with model.session():
        order.append("start")
        for scale in range(3):
            with model.trace(X * scale):
                order.append(model.first.output.shape)
                norm = model.output.norm()
            if norm > 0:
                order.append(scale)
        outs = nnsight.save([norm])
    assert order == ["start", (2, 4), 0, (2, 4), 1, (2, 4), 2]
    assert torch.equal(outs[0], model._module(X * 2).norm())


def test_several_models_and_none(model):
    other = NNsight(Network())
    with nnsight.session():
        with model.trace(X):
            hidden = model.second.output
        with other.trace(X):
            other.second.output = hidden
            out = other.output.save()
    expected = other._module.last(model._module.second(model._module.first(X).relu()).relu())
    assert torch.equal(out, expected)


def test_invokes_in_a_session(model):
    with model.session():
        with model.trace() as tracer:
            with tracer.invoke(X):
                first = model.first.output
            with tracer.invoke(X + 1):
                second = model.first.output
        difference = (second - first).save()
    module = model._module.first
    torch.testing.assert_close(difference, module(X + 1) - module(X))


def test_an_error_keeps_what_was_saved(model):
    with pytest.raises(ZeroDivisionError) as caught:
        with model.session():
            with model.trace(X):
                kept = model.first.output.save()
            with model.trace(X):
                lost = model.output
                1 / 0
    assert set(caught.value.saved) == {"kept"}
    assert torch.equal(caught.value.saved["kept"], model._module.first(X))
    assert "kept" not in locals() and "lost" not in locals()


def test_an_error_can_be_caught_inside(model):
    with model.session():
        try:
            with model.trace(X):
                model.first.output.sum() / [][0]
        except IndexError:
            with model.trace(X):
                out = model.output.save()
    assert torch.equal(out, model._module(X))


def test_a_session_in_a_session_is_part_of_it(model):
    with model.session():
        with model.session():
            with model.trace(X):
                inner = model.first.output
            doubled = inner * 2
        out = doubled.save()
    assert torch.equal(out, model._module.first(X) * 2)
    assert "inner" not in locals()


def test_a_session_beside_another_model(model):
    other = NNsight(Network())
    with model.trace(X):
        with nnsight.session():
            with other.trace(X):
                hidden = other.first.output
        model.first.output = hidden
        out = model.first.output.save()
    assert torch.equal(out, other._module.first(X))


def test_nothing_saved_is_said(model):
    with pytest.warns(UserWarning, match="`hidden` will not exist after it"):
        with model.session():
            with model.trace(X):
                hidden = model.first.output


def test_no_session_between_invokes(model):
    with pytest.raises(ValueError, match=r"write `with model\.session\(\):` around the trace"):
        with model.trace() as tracer:
            with model.session():
                with tracer.invoke(X):
                    model.output.save()


def test_helpers_trace_in_a_session(model):
    def state(x):
        with model.trace(x):
            hidden = model.first.output
        return hidden

    with model.session():
        states = nnsight.save([state(X), state(X + 1)])
    assert torch.equal(states[1], model._module.first(X + 1))
