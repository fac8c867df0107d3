"""With the garbage collector off, traces of every kind leave no tensor, no thread and no model."""

from __future__ import annotations

import contextlib
import gc
import weakref
from functools import partial

import pytest
import torch
from tests.behaviour.leaks import keeps_nothing
from tests.behaviour.small import Network

from nnsight import Envoy, NNsight, OutOfOrderError, eproperty


def reads(model, x):
    with model.trace(x) as tracer:
        hidden = model.first.output.save()
        inputs = model.second.inputs.save()
        result = tracer.result.save()
    return hidden, inputs, result


def writes(model, x):
    with model.trace(x):
        model.first.output = model.first.output * 2
        model.second.output[:] = 0
        out = model.output.save()
    return out


def skips(model, x):
    with model.trace(x):
        model.second.skip(model.second.input)
        out = model.output.save()
    return out


def invokes(model, x):
    with model.trace() as tracer:
        with tracer.invoke(x):
            hidden = model.first.output
            one = model.output.save()
        with tracer.invoke(x):
            model.first.output = hidden
            two = model.output.save()
        with tracer.invoke():
            both = model.output.save()
    return one, two, both


def barriers(model, x):
    with model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(x):
            hidden = model.first.output
            meet()
        with tracer.invoke(x):
            meet()
            model.second.output = hidden
            out = model.output.save()
    return out


def caches(model, x):
    with model.trace() as tracer:
        whole = tracer.cache()
        with tracer.invoke(x):
            cache = tracer.cache(include_inputs=True, detach=False)
            model.second.output[:] = 0
        with tracer.invoke(x):
            few = tracer.cache(modules="*.first", dtype=torch.float16)
    return whole, cache, few


def reports(model, x):
    with model.trace(report=True) as tracer:
        with tracer.invoke(x):
            model.first.output[:] = 0
        with tracer.invoke(x):
            model.second.output = model.second.output * 2
    return tracer, tracer.report()


class Halves(Envoy):
    """A module whose output can be changed by halves."""

    @eproperty(key="output")
    def halves(self, value):
        return value.unflatten(-1, (2, -1)).clone()

    @halves.transform
    def halves(self, halves):
        return halves.flatten(-2)


def views(model, x):
    by_halves = NNsight(model._module, envoys={"first": Halves})
    with by_halves.trace() as tracer:
        with tracer.invoke(x):
            by_halves.first.halves[:, 0] = 0
            one = by_halves.output.save()
        with tracer.invoke(x):
            two = by_halves.first.halves.save()
    return one, two


def stops(model, x):
    with model.trace(x) as tracer:
        hidden = model.first.output.save()
        tracer.stop()
    return hidden


def functions(model, x):
    return model.run(x, lambda tracer, model: model.first.output.sum())


def plain(model, x):
    return model.trace(x, trace=False)


def another_model(model, x):
    other = NNsight(torch.nn.Linear(4, 4))
    with model.trace(x):
        hidden = model.first.output
        with other.trace(hidden):
            changed = other.output
        model.second.output = changed
        out = model.output.save()
    return out


def fails_in_the_block(model, x):
    with contextlib.suppress(ZeroDivisionError), model.trace(x):
        hidden = model.first.output.save()
        hidden.sum() / (1 // 0)


def fails_in_a_helper(model, x):
    def helper(value):
        raise KeyError(value.shape)

    with contextlib.suppress(KeyError):
        with model.trace(x):
            helper(model.first.output)


def fails_in_the_second_invoke(model, x):
    with contextlib.suppress(LookupError):
        with model.trace() as tracer:
            with tracer.invoke(x):
                out = model.output.save()
            with tracer.invoke(x):
                hidden = model.second.output
                raise LookupError(hidden.shape, "out" in locals() and out)


def fails_in_the_model(model, x):
    model.fails = True
    try:
        with model.trace(x):
            hidden = model.first.output.save()
            model.output.save()
    except RuntimeError as error:
        assert error.saved["hidden"] is not None
    finally:
        model.fails = False
    assert "hidden" not in locals()


def comes_too_late(model, x):
    try:
        with model.trace(x):
            out = model.output.save()
            model.first.output.save()
            assert out is None, "not reached"
    except OutOfOrderError as error:
        assert set(error.saved) == {"out"}


def edits(model, x):
    with model.edit() as edited:
        model.first.output = model.first.output * 2
    with edited.trace(x):
        out = model.output.save()
    return out, edited.trace(x, trace=False)


def edits_in_place(model, x):
    with model.edit(inplace=True) as tracer:
        tracer.first.output[:] = 0
    with model.trace() as runner:
        with runner.invoke(x):
            one = model.output.save()
        with runner.invoke(x):
            two = model.output.save()
    model.clear_edits()
    return one, two


def edit_fails(model, x):
    with model.edit() as edited:
        model.first.output.sum() / (1 // 0)
    with contextlib.suppress(ZeroDivisionError):
        with edited.trace(x):
            out = model.output.save()
            assert out is None, "not reached"


def scans(model, x):
    with model.scan(x):
        shape = model.first.output.shape
        out = model.output.save()
    return shape, out


def scan_fails(model, x):
    try:
        with model.scan(x):
            model.first.output.sum().item()
    except RuntimeError as error:
        assert "needs the numbers" in str(error)


def sessions(model, x):
    with model.session():
        with model.trace(x):
            hidden = model.first.output
        with model.trace(x):
            model.first.output = hidden
            out = model.output.save()
    return out


def session_fails(model, x):
    with contextlib.suppress(ZeroDivisionError):
        with model.session():
            with model.trace(x):
                hidden = model.first.output.save()
            hidden.sum() / (1 // 0)


def operations(model, x):
    with model.trace(x):
        model.source.self_first_0.output[:] = 1
        relu = model.source.relu_0.output.save()
        model.source.x_0.output = relu
        linear = model.last.source.F_linear_0.output.save()
    return relu, linear


def operations_inside(model, x):
    with model.trace(x):
        ops = model.second.source
        ops.F_linear_0.skip(ops.F_linear_0.input)
        with contextlib.suppress(OutOfOrderError):
            model.first.source.F_linear_0.output  # noqa: B018
        out = model.output.save()
    return out


def gradients(model, x):
    with model.trace(x):
        hidden = model.first.output
        with model.output.sum().backward():
            grad = hidden.grad.save()
            hidden.grad = grad * 2
    return grad


def gradients_of_invokes(model, x):
    grads = []
    with model.trace() as tracer:
        for factor in (1, 2):
            with tracer.invoke(x):
                hidden = model.first.output
                with (factor * model.output.sum()).backward():
                    grads.append(hidden.grad)
    return grads


def backward_fails(model, x):
    with contextlib.suppress(ZeroDivisionError), model.trace(x):
        hidden = model.first.output
        with model.output.sum().backward():
            hidden.grad.sum() / (1 // 0)


def stops_in_a_backward(model, x):
    with model.trace(x) as tracer:
        hidden = model.first.output
        with model.output.sum().backward():
            grad = hidden.grad.save()
            tracer.stop()
    return grad


def steps(model, x):
    with model.trace(x, fn=lambda x: [model._module(x) for _ in range(3)]) as tracer:
        states = [].save()
        for step in tracer.iter[:]:
            states.append(model.first.output)
            if step == 1:
                model.second.output[:] = 0
        tracer.result.save()
    return states


def steps_fail(model, x):
    with contextlib.suppress(ZeroDivisionError):
        with model.trace(x, fn=lambda x: [model._module(x) for _ in range(3)]) as tracer:
            for step in tracer.iter[:]:
                model.first.output.sum() / (1 // (1 - step))


KINDS = [
    gradients,
    gradients_of_invokes,
    backward_fails,
    stops_in_a_backward,
    steps,
    steps_fail,
    operations,
    operations_inside,
    edits,
    edits_in_place,
    edit_fails,
    scans,
    scan_fails,
    sessions,
    session_fails,
    reads,
    writes,
    skips,
    invokes,
    barriers,
    caches,
    reports,
    views,
    stops,
    functions,
    plain,
    another_model,
    fails_in_the_block,
    fails_in_a_helper,
    fails_in_the_second_invoke,
    fails_in_the_model,
    comes_too_late,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_traces_leave_nothing(kind):
    network = Network()
    model, x = NNsight(network), torch.rand(2, 4)
    keeps_nothing(partial(kind, model, x), network)
    gone = weakref.ref(network)
    gc.disable()
    try:
        del model, network
        assert gone() is None
    finally:
        gc.enable()
