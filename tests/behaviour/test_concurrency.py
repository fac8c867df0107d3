"""Threads that trace one model, or a model each, at once: every value right, nothing left."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.behaviour.small import Network
from tests.conftest import hooks_on

from nnsight import LanguageModel, NNsight, OutOfOrderError

THREADS, TRACES = 8, 100


def check(model: NNsight, number: int) -> None:
    """One trace of each kind, against the network itself."""
    network = model._module
    x = torch.full((2, 4), float(number))
    with model.trace(x):
        hidden = model.first.output.save()
        model.second.output = torch.full((2, 4), number + 0.5)
        out = model.output.save()
    assert torch.equal(hidden, network.first(x))
    assert torch.equal(out, network.last(torch.full((2, 4), number + 0.5)))
    with model.trace() as tracer:
        with tracer.invoke(x):
            value = model.first.output
        with tracer.invoke(-x):
            model.first.output = value
            patched = model.output.save()
    assert torch.allclose(patched, network(x), atol=1e-6)


def check_inputs(model: NNsight, number: int) -> None:
    """Hooks before modules and gates, which a thread may meet just when another's run ends."""
    network = model._module
    x = torch.full((1, 4), float(number))
    with model.trace(x):
        given = model.first.input.save()
        model.second.input = torch.zeros(1, 4)
        arguments = model.last.inputs[0][0].save()
    assert torch.equal(given, x)
    assert torch.equal(arguments, network.second(torch.zeros(1, 4)).relu())
    with model.trace(x):
        model.second.skip(torch.full((1, 4), number + 2.0))
        out = model.output.save()
    assert torch.equal(out, network.last(torch.full((1, 4), number + 2.0)))


def call(model: NNsight, number: int) -> None:
    """The bare network, which no trace of another thread may touch."""
    x = torch.full((1, 4), float(number))
    first, second, last = model._module.children()
    expected = last(torch.relu(second(torch.relu(first(x)))))
    assert torch.equal(model._module(x), expected)


def fail(model: NNsight, number: int) -> None:
    """A trace that ends with an error."""
    with pytest.raises(OutOfOrderError):
        with model.trace(torch.ones(1, 4)):
            model.output.save()
            model.first.output.save()


def run_threads(jobs) -> None:
    """Run `(work, model)` pairs in threads; the first error of any is raised."""
    errors: list[BaseException] = []

    def loop(work, model, seed):
        try:
            for number in range(TRACES):
                work(model, seed + number)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=loop, args=(work, model, 1000 * index), daemon=True)
        for index, (work, model) in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def test_eight_threads_and_one_model():
    model = NNsight(Network())
    run_threads([(check, model)] * THREADS)
    assert hooks_on(model._module) == []


def test_inputs_skips_and_bare_calls_beside_each_other():
    model = NNsight(Network())
    run_threads([(check_inputs, model)] * 5 + [(call, model)] * 2 + [(check, model)])
    assert hooks_on(model._module) == []


def test_eight_threads_and_eight_models():
    models = [NNsight(Network()) for _ in range(THREADS)]
    run_threads([(check, model) for model in models])
    assert [hooks_on(model._module) for model in models] == [[]] * THREADS


def test_errors_of_one_thread_disturb_no_other():
    model = NNsight(Network())
    run_threads([(fail, model), *[(check, model)] * 3])
    assert hooks_on(model._module) == []


def test_threads_whose_traces_come_first_load_the_weights_once(gpt2_folder, monkeypatch):
    with torch.no_grad():
        expected = LanguageModel(gpt2_folder, dispatch=True).trace([5, 6, 7], trace=False).logits
    model, together = LanguageModel(gpt2_folder), threading.Barrier(4)
    loads: list[int] = []
    weights = model._loader.weights
    monkeypatch.setattr(model._loader, "weights", lambda: loads.append(0) or weights())
    with model.edit() as edited:
        model.transformer.h[0].mlp.output[:] += 0
    found: list[torch.Tensor] = []

    def work(of) -> None:
        together.wait()
        with torch.no_grad(), of.trace([5, 6, 7]):
            layer = of.transformer.h[1].output.save()
            logits = of.output.logits.save()
        assert layer is not None
        found.append(logits)

    threads = [threading.Thread(target=work, args=[of]) for of in (model, model, edited, edited)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(loads) == 1
    assert len(found) == 4 and all(torch.equal(logits, expected) for logits in found)
