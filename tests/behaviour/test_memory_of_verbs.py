"""With the garbage collector off, two hundred runs of each verb keep nothing: verb by verb.

`test_memory.py` has the kinds of traces, and how they fail; here are steps, caches, edits,
gradients, operations, extensions and the spellings of earlier releases.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import weakref

import pytest
import torch
from tests.behaviour.fuzz.verbs.subjects import Stack, gpt2
from tests.behaviour.leaks import alive, keeps_nothing
from torch import nn

import nnsight
from nnsight import MissedProviderError, NNsight, WrapperModule

STEPS = 3
X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Wrapped(Stack):
    """With a place for a value that no module returns, and a method of its own."""

    def __init__(self) -> None:
        super().__init__(2)
        self.place = WrapperModule()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.place(super().forward(x).relu())

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x)


# --- steps ----------------------------------------------------------------------------------------


def iter_for(model):
    with model.trace(X, STEPS, fn="roll") as tracer:
        found = [].save()
        for step in tracer.iter[:]:
            model.layers[0].output = model.layers[0].output * step
            found.append(model.head.output)
        result = tracer.result.save()
    return found, result


def iter_with(model):
    with model.trace(X, STEPS, fn="roll") as tracer:
        with tracer.iter[1:] as step:
            hidden = model.layers[0].output.save()
            assert step
    return hidden


def iter_numbers(model):
    with model.trace(X, STEPS, fn="roll") as tracer:
        for _ in tracer.iter[[0, 2]]:
            hidden = model.layers[0].up.output.save()
        for _ in tracer.iter[7]:
            hidden = None
    return hidden


def all_steps(model):
    with model.trace(fn="roll") as tracer:
        with tracer.invoke(X, STEPS):
            for _ in tracer.all():
                hidden = model.layers[0].output.save()
        with tracer.invoke(X, STEPS):
            for _ in tracer.all():
                model.layers[1].skip(model.layers[1].input)
    return hidden


def next_step(model):
    with model.trace(X, STEPS, fn="roll") as tracer:
        one = model.layers[0].output.save()
        two = model.layers[1].next().output.save()
        tracer.next()
        model.embed.output[:] = 0
        three = model.output.save()
    return one, two, three


def next_beyond(model):
    try:
        with model.trace(X, STEPS, fn="roll") as tracer:
            model.layers[0].next(STEPS).output.save()
            assert tracer is None, "not reached"
    except MissedProviderError as error:
        assert error.saved == {}


def stop_at_a_step(model):
    with model.trace(X, STEPS, fn="roll") as tracer:
        for step in tracer.iter[:]:
            hidden = model.layers[0].output.save()
            if step == 1:
                tracer.stop()
    return hidden


def error_at_a_step(model):
    with contextlib.suppress(ZeroDivisionError), model.trace(X, STEPS, fn="roll") as tracer:
        for step in tracer.all():
            model.layers[0].output.save() / (1 // (1 - step))


# --- caches ---------------------------------------------------------------------------------------


def cache_of_every_option(model):
    with model.trace(X, STEPS, fn="roll") as tracer:
        caches = [
            tracer.cache(),
            tracer.cache(modules=[model.embed, "layers.*"], device=None),
            tracer.cache(device="cpu", dtype=torch.float16, detach=True),
            tracer.cache(detach=False),
            tracer.cache(include_output=False, include_inputs=True),
            tracer.cache(include_inputs=True, non_blocking=True),
        ].save()
    return caches


def cache_with_gradients(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            one = tracer.cache(detach=False)
        with tracer.invoke(X):
            two = tracer.cache(detach=False, modules="head")
    loss = one["head"].output.sum() + two["head"].output.sum()
    hidden = one["embed"].output
    hidden.retain_grad()
    loss.backward()
    return hidden.grad


def cache_in_a_file(model, folder):
    with model.trace(X) as tracer:
        cache = tracer.cache(include_inputs=True)
    cache.save(folder / "cache.safetensors")
    return nnsight.Cache.load(folder / "cache.safetensors")


# --- edits ----------------------------------------------------------------------------------------


def edits_of_every_kind(model):
    with model.edit(inplace=True, name="one"):
        model.embed.output = model.embed.output * 2
    with model.edit(every_step=True) as edited:
        model.layers[0].output[:] = 0
    with edited.layers[1].edit() as part:
        part.up.output = part.up.output + 1
    model.edits.append(model.edits.pop())
    with edited.trace(X, STEPS, fn="roll") as tracer:
        result = tracer.result.save()
    model.clear_edits()
    return result, part


def edits_in_a_file(model, folder):
    with model.edit(inplace=True):
        model.embed.output = model.embed.output * 2
    model.export_edits("doubled", folder)
    model.clear_edits()
    model.import_edits("doubled", folder)
    with model.trace(X):
        out = model.output.save()
    model.clear_edits()
    return out


# --- scans, sessions ------------------------------------------------------------------------------


def scan_with_a_cache(model):
    with model.scan(X) as tracer:
        cache = tracer.cache(modules="head")
        for _ in tracer.iter[:]:
            shape = model.layers[0].output.shape
    return shape, cache


def session_of_two_models(model):
    other = NNsight(nn.Linear(4, 4))
    with nnsight.session():
        with model.trace(X):
            hidden = model.layers[0].output
        with other.trace(hidden):
            hidden = other.output
        with model.trace(X):
            model.layers[0].output = hidden
            out = model.output.save()
    return out


# --- gradients ------------------------------------------------------------------------------------


def backward_with_retain(model):
    with model.trace(X):
        hidden, out = model.layers[0].output, model.output
        with out.sum().backward(retain_graph=True):
            one = hidden.grad.save()
            hidden.grad = hidden.grad * 2
        with out.square().sum().backward():
            two = hidden.grad.save()
    return one, two


def backward_by_itself(model):
    with model.trace(X):
        hidden = model.layers[0].output.save()
        out = model.output.save()
    with out.sum().backward():
        gradient = hidden.grad.save()
    return gradient


def backward_of_invokes(model):
    found = []
    with model.trace() as tracer:
        for _ in range(2):
            with tracer.invoke(X):
                hidden = model.layers[0].output
                with model.output.sum().backward():
                    found.append(hidden.grad)
    return found


def backward_fails(model):
    with contextlib.suppress(ZeroDivisionError), model.trace(X):
        hidden = model.layers[0].output
        with model.output.sum().backward():
            hidden.grad.sum() / (1 // 0)


def backward_of_what_is_not_there(model):
    with contextlib.suppress(MissedProviderError), model.trace(X):
        hidden = model.layers[1].output
        with model.layers[0].output.sum().backward():
            assert hidden.grad is None, "not reached"


# --- operations, extensions, old spellings --------------------------------------------------------


def source_inside_source(model):
    with model.trace(X, STEPS, fn="roll") as tracer:
        ops = model.layers[0].source
        sine = ops.self_mix_0.source.torch_sin_0
        sine.output = sine.output * 2
        tracer.next()
        sine.skip(sine.input)
        tracer.next()
        mixed = ops.self_mix_0.output.save()
    return mixed, repr(model.layers[0].source), repr(model.layers[0].source.torch_tanh_0)


def wrapper_module(model):
    with model.trace(X):
        model.place.output[:] = 0
        out = model.output.save()
    return out


def called_by_a_block(model):
    with model.trace(X):
        logits = model.head(model.layers[0].output)
        again = model.layers[0](model.layers[0].output, hook=True)
        model.head.output = logits + again
        out = model.output.save()
    return out


def report_shown(model):
    with model.trace(X, STEPS, fn="roll", report=True) as tracer:
        for _ in tracer.iter[:]:
            model.layers[0].output[:] *= 2
    return str(tracer), tracer._repr_html_(), tracer.report().summary


def copies(model):
    copied = copy.deepcopy(model)
    with copied.trace(X):
        out = copied.output.save()
    return out


def old_spellings(model):
    with pytest.warns():
        with model.trace(X, validate=False, scan=False) as runner:
            hidden = nnsight.save(model.layers[0].output)
    with model.trace() as runner:
        with runner.invoke(X) as invoker:
            out = model.output.save()
    with model.encode(X) as tracer:
        embedded = tracer.result.save()
    with model.trace(X, STEPS, fn="roll"):
        with model.all():
            last = model.head.output.save()
    return hidden, out, embedded, last, invoker


KINDS = [
    iter_for, iter_with, iter_numbers, all_steps, next_step, next_beyond, stop_at_a_step,
    error_at_a_step, cache_of_every_option, cache_with_gradients, cache_in_a_file,
    edits_of_every_kind, edits_in_a_file, scan_with_a_cache, session_of_two_models,
    backward_with_retain, backward_by_itself, backward_of_invokes, backward_fails,
    backward_of_what_is_not_there, source_inside_source, wrapper_module, called_by_a_block,
    report_shown, copies, old_spellings,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_verb_keeps_nothing(kind, tmp_path):
    network = Wrapped()
    model = NNsight(network)
    given = {"folder": tmp_path} if kind.__name__.endswith("_in_a_file") else {}
    keeps_nothing(functools.partial(kind, model, **given), network)
    gone = weakref.ref(network)
    gc.disable()
    try:
        del model, network
        assert gone() is None
    finally:
        gc.enable()


def generate_iter(model, x):
    with model.generate(x, max_new_tokens=2) as tracer:
        for _ in tracer.iter[:]:
            hidden = model.transformer.h[0].output.save()
        result = tracer.result.save()
    return hidden, result


def generate_all(model, x):
    with model.generate(max_new_tokens=2) as tracer:
        for _ in range(2):
            with tracer.invoke(x):
                for _ in tracer.all():
                    model.transformer.h[1].mlp.output[:] = 0
    return tracer


def generate_next(model, x):
    with model.generate(x, max_new_tokens=2):
        one = model.lm_head.output.save()
        two = model.lm_head.next().output.save()
    return one, two


def generate_stops(model, x):
    with model.generate(x, max_new_tokens=2) as tracer:
        token = model.generator.streamer.output.save()
        tracer.stop()
    return token


@pytest.mark.parametrize(
    "kind", [generate_iter, generate_all, generate_next, generate_stops], ids=lambda k: k.__name__
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_generation_keeps_nothing(kind):
    subject = gpt2()
    x = subject.inputs(torch.Generator())
    keeps_nothing(functools.partial(kind, subject.envoy, x), subject.envoy._module)


def test_a_tracer_that_lives_on_holds_its_model_and_nothing_of_the_run():
    network = Wrapped()
    model = NNsight(network)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        with model.trace() as tracer:
            with tracer.invoke(X) as invoker:
                hidden = model.layers[0].output
                model.layers[1].output = hidden
        with model.trace(X) as other:
            hidden = model.layers[0].output
            model.layers[1].output = hidden
        kept = alive() - before
        assert not kept["tensors"], kept
        assert invoker.inputs[0][0] is X
    finally:
        gc.enable()
    with tracer.trace(X) as model:  # read like the model, which it is the way to
        with_tracer = model.layers[0].output.save()
    assert with_tracer.shape == X.shape and other is not tracer
    assert torch.equal(tracer.model._module(X), model.trace(X, trace=False))
