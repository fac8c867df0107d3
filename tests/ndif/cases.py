"""Blocks as users write them, that mean the same in nnsight 0.8 and here.

Each function takes a model, and where its block is to run; what it gives back is the same wherever
that is. `record.py` takes down what the published package sends for them, `published.py` runs them
with that package against our server.
"""

# ruff: noqa: B007, C408, F841 (as users write)
from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import math
from typing import Any

import torch

from nnsight import save

PROMPT = "The cat sat on the mat"
OTHER = "Hello world!"
SCALE = 3.0


def first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def halved(hidden: torch.Tensor, by: float = 2.0, *, plus: float = 0.0) -> torch.Tensor:
    """A helper with defaults, a global and a helper of its own."""
    return first(hidden) / by * SCALE + plus


@dataclasses.dataclass
class Steering:
    """A class of the user's own."""

    vector: torch.Tensor
    strength: float = 2.0

    def apply(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.strength * self.vector


class Kind(enum.Enum):
    ADD = "add"
    ZERO = "zero"


class Base:
    factor = 2.0

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.factor


class Derived(Base):
    def __init__(self, plus: float) -> None:
        self.plus = plus

    @property
    def twice(self) -> float:
        return 2 * self.plus

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().of(hidden) + self.twice


Pair = collections.namedtuple("Pair", ["left", "right"])


def trace(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        hidden = first(model.transformer.h[0].output).save()
        logits = model.lm_head.output.save()
        shape = list(logits.shape).save()
    return hidden, logits, shape


def trace_settings(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, output_hidden_states=True, **where) as tracer:
        states = model.transformer.output.hidden_states
        last = states[-1].save()
        result = tracer.result.logits.save()
    return last, result


def batch(model: Any, where: dict) -> Any:
    with model.trace([PROMPT, OTHER], **where):
        logits = model.lm_head.output.save()
    return logits


def tokens(model: Any, where: dict) -> Any:
    ids = torch.tensor([[5, 7, 11, 2]])
    with model.trace(ids, **where):
        given = model.input.save()
        logits = model.lm_head.output.save()
    return logits, given


def write(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        first(model.transformer.h[0].output)[:] = 0
        logits = model.lm_head.output.save()
    return logits


def write_input(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        model.transformer.h[1].input = model.transformer.h[1].input * 2
        logits = model.lm_head.output.save()
    return logits


def captured(model: Any, where: dict) -> Any:
    vector = torch.arange(16.0) / 16
    same = vector.view(4, 4)
    options = {"layers": [0, 1], "scale": 0.5, "more": (None, True, slice(1, None))}
    with model.trace(PROMPT, **where):
        for layer in options["layers"]:
            first(model.transformer.h[layer].output)[:] += options["scale"] * vector
        logits = model.lm_head.output[:, options["more"][2]].save()
        whole = nnsight_save(same.flatten() == vector)
    return logits, whole


def nnsight_save(value: Any) -> Any:
    import nnsight

    return nnsight.save(value)


def helper(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        hidden = model.transformer.h[0].output
        changed = halved(hidden, plus=1.0).save()
    return changed


def anonymous(model: Any, where: dict) -> Any:
    by = 3.0
    change = lambda hidden: first(hidden) * by  # noqa: E731
    with model.trace(PROMPT, **where):
        changed = change(model.transformer.h[0].output).save()
    return changed


def inner_function(model: Any, where: dict) -> Any:
    offset = torch.ones(16)
    depth = [0]

    def outer(hidden: torch.Tensor, times: int) -> torch.Tensor:
        depth[0] += 1
        return hidden if times == 0 else outer(hidden + offset, times - 1)

    with model.trace(PROMPT, **where):
        changed = outer(first(model.transformer.h[0].output), 3).save()
        count = torch.tensor(depth[0]).save()
    return changed, count


def partial(model: Any, where: dict) -> Any:
    change = functools.partial(halved, by=4.0)
    with model.trace(PROMPT, **where):
        changed = change(model.transformer.h[0].output).save()
        root = torch.tensor(math.sqrt(2.0)).save()
    return changed, root


def dataclass(model: Any, where: dict) -> Any:
    steering = Steering(torch.linspace(0, 1, 16), strength=5.0)
    with model.trace(PROMPT, **where):
        hidden = first(model.transformer.h[0].output)
        hidden[:] = steering.apply(hidden)
        fresh = Steering(torch.zeros(16)).strength
        logits = model.lm_head.output.save()
        strength = torch.tensor(fresh).save()
    return logits, strength


def classes(model: Any, where: dict) -> Any:
    derived = Derived(1.5)
    kind = Kind.ADD
    pair = Pair(torch.ones(16), 2)
    with model.trace(PROMPT, **where):
        hidden = first(model.transformer.h[0].output)
        if kind is Kind.ADD:
            hidden[:] = derived.of(hidden) + pair.left * pair.right
        logits = model.lm_head.output.save()
    return logits


def comprehension(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        norms = [first(layer.output).norm() for layer in model.transformer.h]
        found = nnsight_save({"norms": norms, "n": len(norms)})
    return found["norms"], found["n"]


def generate(model: Any, where: dict) -> Any:
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False, **where) as tracer:
        out = tracer.result.save()
    return out


def generate_iter(model: Any, where: dict) -> Any:
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False, **where) as tracer:
        found = list().save()
        for step in tracer.iter[:]:
            found.append(model.lm_head.output[:, -1].argmax(-1))
    return found


def generate_steer(model: Any, where: dict) -> Any:
    vector = torch.ones(16)
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False, **where) as tracer:
        found = list().save()
        for step in tracer.iter[0:3]:
            if step < 2:
                first(model.transformer.h[0].output)[:] += 10 * vector * step
            found.append(model.lm_head.output[:, -1])
    return found


def invokes(model: Any, where: dict) -> Any:
    with model.trace(**where) as tracer:
        with tracer.invoke(PROMPT):
            clean = first(model.transformer.h[0].output)[:, -1].save()
            one = model.lm_head.output[:, -1].save()
        with tracer.invoke(OTHER):
            first(model.transformer.h[0].output)[:] = 0
            two = model.lm_head.output[:, -1].save()
        with tracer.invoke():
            both = model.lm_head.output.shape[0]
            both = nnsight_save(both)
    return clean, one, two, both


def patching(model: Any, where: dict) -> Any:
    with model.trace(**where) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("The cat sat on the mat"):
            source = first(model.transformer.h[0].output)[:, -1]
            barrier()
        with tracer.invoke("The dog sat on the mat"):
            barrier()
            first(model.transformer.h[0].output)[:, -1] = source
            logits = model.lm_head.output.save()
    return logits


def session(model: Any, where: dict) -> Any:
    with model.session(**where):
        with model.trace(PROMPT):
            hidden = first(model.transformer.h[0].output)[:, -1]
        total = 0
        for _ in range(2):
            with model.trace(OTHER):
                first(model.transformer.h[0].output)[:, -1] = hidden
                logits = model.lm_head.output.save()
            total = total + logits.sum()
        total = total.save()
    return logits, total


def gradient(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        hidden = first(model.transformer.h[0].output)
        hidden.requires_grad_(True)
        loss = model.lm_head.output.sum()
        with loss.backward():
            grad = hidden.grad.save()
    return grad


def edited(model: Any, where: dict) -> Any:
    with model.edit() as (_, changed):
        changed.transformer.h[0].mlp.output = changed.transformer.h[0].mlp.output * 0
    with changed.trace(PROMPT, **where):
        logits = changed.lm_head.output.save()
    with model.trace(PROMPT, **where):
        plain = model.lm_head.output.save()
    return logits, plain


def cache(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where) as tracer:
        kept = tracer.cache(modules=[model.transformer.h[0], model.transformer.h[1].mlp])
    found = {str(path): first(kept[path].output) for path in kept.keys()}
    return sorted(found), [found[path] for path in sorted(found)]


def stop(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where) as tracer:
        hidden = first(model.transformer.h[0].output).save()
        tracer.stop()
    return hidden


def printing(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        print("the shape is", tuple(model.lm_head.output.shape))
        logits = model.lm_head.output.save()
    return logits


def skip(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        hidden = model.transformer.h[0].output
        model.transformer.h[1].skip(hidden)
        logits = model.lm_head.output.save()
    return logits


def source(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        inner = model.transformer.h[0].attn.source
        found = first(inner.self_c_proj_0.output).save()
    return found


def module_call(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        hidden = first(model.transformer.h[0].output)
        early = model.lm_head(model.transformer.ln_f(hidden)).save()
    return early


def tokenizer(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        best = model.lm_head.output[0, -1].argmax()
        word = model.tokenizer.decode(best)
        word = nnsight_save(word)
    return word


def parameters(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        weight = model.lm_head.weight.detach().clone().save()
        bias = model.transformer.h[0].ln_1.bias.sum().save()
    return weight, bias


def scan_free(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where) as tracer:
        a, *rest = [first(layer.output).mean() for layer in model.transformer.h]
        with torch.no_grad():
            b = (a + sum(rest)).save()
        del rest
        text = f"{SCALE:.1f}"
        text = nnsight_save(text)
    return b, text


def method(model: Any, where: dict) -> Any:
    class Local:
        def __init__(self) -> None:
            self.by = 2.5

        def change(self, hidden: Any) -> Any:
            return first(hidden) * self.by

    local = Local()
    change = local.change
    with model.trace(PROMPT, **where):
        one = local.change(model.transformer.h[0].output).save()
        two = change(model.transformer.h[1].output).save()
    return one, two


def edited_inplace(model: Any, where: dict) -> Any:
    vector = torch.ones(16)
    with model.edit(inplace=True):
        first(model.transformer.h[0].output)[:] += 3 * vector
    try:
        with model.trace(PROMPT, **where):
            logits = model.lm_head.output.save()
    finally:
        model.clear_edits()
    return logits


def loop_save(model: Any, where: dict) -> Any:
    with model.trace(PROMPT, **where):
        states = save([])
        for layer in model.transformer.h:
            states.append(first(layer.output)[:, -1])
    return states


def generate_invokes(model: Any, where: dict) -> Any:
    with model.generate(max_new_tokens=2, do_sample=False, **where) as tracer:
        with tracer.invoke(PROMPT):
            one = list().save()
            for step in tracer.iter[:]:
                one.append(model.lm_head.output[:, -1].argmax(-1))
        with tracer.invoke([OTHER, PROMPT]):
            out = tracer.result.save()
    return one, out


def part(model: Any, where: dict) -> Any:
    layers = model.transformer.h
    last = [layers[-1], {"norm": model.transformer.ln_f}]
    with model.trace(PROMPT, **where):
        norms = save([first(layer.output).norm() for layer in layers])
        other = first(last[0].output).mean().save()
        end = last[1]["norm"].output.save()
    return norms, end, other


CASES = {
    case.__name__: case
    for case in (
        trace,
        trace_settings,
        batch,
        tokens,
        write,
        write_input,
        captured,
        helper,
        anonymous,
        inner_function,
        partial,
        dataclass,
        classes,
        comprehension,
        generate,
        generate_iter,
        generate_steer,
        invokes,
        patching,
        session,
        gradient,
        edited,
        cache,
        stop,
        printing,
        skip,
        source,
        module_call,
        tokenizer,
        parameters,
        scan_free,
        method,
        edited_inplace,
        loop_save,
        generate_invokes,
        part,
    )
}
