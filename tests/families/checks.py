"""What is tried of each family: one function for each column of the table.

A function runs the library as a user would and holds it to bare PyTorch. It returns a note, if
there is something to say, and raises `NotThere` where the family has no such thing. What else it
raises, or the library does, is something wrong.
"""

# ruff: noqa: B018 -- a value is read by naming it
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import nnsight
from nnsight import nested
from tests.families.forms import batch_equals_solo
from tests.families.subject import Subject, Values, floating, scores

NEW = 4  # tokens


class NotThere(Exception):
    """The family has no such thing."""


@contextmanager
def bare_pytorch() -> Iterator[None]:
    """What fails without the library is no fault of it."""
    try:
        yield
    except Exception as error:
        raise NotThere(f"the bare model fails: {error}") from error


def same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    assert torch.equal(found, wanted), f"{what} is off by {(found - wanted).abs().max():.1e}"


def trace(subject: Subject) -> None:
    """Reading changes no number, and what is read is what a raw hook sees."""
    model, prompt = subject.model, subject.prompts[0]
    layer = model.get(subject.layer)
    args, kwargs = subject.given(prompt)
    with torch.no_grad():
        wanted = subject.raw(prompt)
        bare = scores(subject.module(**subject.bare(prompt)))
        with model.trace(*args, **kwargs):
            hidden = nnsight.save([leaf.clone() for leaf in floating(layer.output)])
            output = nnsight.save(model.output)
    same(scores(output), bare, "what the model gives")
    for own, raw in zip(hidden, wanted.values[subject.layer][0], strict=True):
        same(own, raw, subject.layer)


def doubled(value: Any) -> Any:
    """The hidden states of a layer's output doubled, whatever they are in."""
    first = True

    def double(leaf: torch.Tensor) -> torch.Tensor:
        nonlocal first
        doubled, first = (leaf * 2 if first else leaf), False
        return doubled

    return nested.map_leaves(double, value)


def edit(subject: Subject) -> None:
    """An edit, assigned or in place, does what a raw hook does that does the same."""
    model, prompt = subject.model, subject.prompts[0]
    layer = model.get(subject.layer)
    args, kwargs = subject.given(prompt)
    with torch.no_grad():
        plain = scores(subject.module(**subject.bare(prompt)))
        wanted = scores(subject.raw(prompt, {subject.layer: doubled}).output)
        assert not torch.equal(plain, wanted), "the edit of a raw hook changes nothing"
        with model.trace(*args, **kwargs):
            layer.output = doubled(layer.output)
            assigned = nnsight.save(scores(model.output))
        with model.trace(*args, **kwargs):
            next(nested.leaves(layer.output)).mul_(2)
            in_place = nnsight.save(scores(model.output))
    same(assigned, wanted, "assigned")
    same(in_place, wanted, "in place")


def meta(subject: Subject) -> None:
    """A tree on meta; weights with the first run; what shares a weight shares it still."""
    with bare_pytorch():
        subject.module.save_pretrained(subject.folder)
        loaded = type(subject.module).from_pretrained(subject.folder)
    model = subject.wrap(subject.folder)
    prompt = subject.prompts[0]
    args, kwargs = subject.given(prompt)
    assert all(weight.is_meta for weight in model._module.parameters()), (
        "weights are there too early"
    )
    assert not model.dispatched
    layer = model.get(subject.layer)
    with torch.no_grad():
        bare = scores(loaded(**subject.bare(prompt)))
        with model.trace(*args, **kwargs):
            layer.output
            output = nnsight.save(scores(model.output))
    assert model.dispatched
    same(output, bare, "what the model gives")
    assert shared(model._module) == shared(loaded), "other weights are shared"


def shared(module: torch.nn.Module) -> set[frozenset[str]]:
    """Which weights are one."""
    names: dict[int, set[str]] = {}
    for name, weight in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), set()).add(name)
    return {frozenset(one) for one in names.values() if len(one) > 1}


def generate(subject: Subject) -> None:
    """The tokens of the bare model, with a layer read in each step."""
    module, prompt = subject.module, subject.prompts[0]
    if not (hasattr(module, "generate") and module.can_generate()):
        raise NotThere("it generates nothing")
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    layer = subject.model.get(subject.layer)
    args, kwargs = subject.given(prompt)
    bare = subject.bare(prompt)
    if subject.has_text:
        bare["attention_mask"] = torch.ones_like(bare["input_ids"])
    with bare_pytorch():
        wanted = module.generate(**bare, **settings, pad_token_id=2)
    with subject.model.generate(*args, **kwargs, **settings) as tracer:
        steps = nnsight.save([])
        for _ in tracer.iter[:]:
            steps.append(floating(layer.output)[0])
        tokens = nnsight.save(tracer.result)
    same(tokens, wanted, "the tokens")
    assert len(steps) == NEW, f"{len(steps)} steps of {NEW} new tokens"


def gradients(subject: Subject) -> None:
    """The gradient at a layer is that of a raw hook."""
    prompt = subject.prompts[0]
    layer = subject.model.get(subject.layer)
    args, kwargs = subject.given(prompt)
    kept: list[torch.Tensor] = []

    def keep(output: Any) -> Any:
        hidden = next(nested.leaves(output))
        hidden.retain_grad()
        kept.append(hidden)
        return output

    with bare_pytorch():
        scores(subject.raw(prompt, {subject.layer: keep}).output).logsumexp(-1).sum().backward()
    subject.module.zero_grad()
    with subject.model.trace(*args, **kwargs):
        hidden = next(nested.leaves(layer.output))
        with scores(subject.model.output).logsumexp(-1).sum().backward():
            gradient = hidden.grad.save()
    subject.module.zero_grad()
    torch.testing.assert_close(gradient, kept[0].grad, atol=1e-6, rtol=1e-5)


def source(subject: Subject) -> None:
    """An operation of a forward, read and changed: the call of one of a layer's modules."""
    model, prompt = subject.model, subject.prompts[0]
    args, kwargs = subject.given(prompt)
    with torch.no_grad():
        values = subject.raw(prompt).values
    within, name, path = next(calls(subject, values))
    with torch.no_grad():
        wanted = scores(subject.raw(prompt, {path: doubled}).output)
        with model.trace(*args, **kwargs):
            seen = nnsight.save([leaf.clone() for leaf in floating(within.source[name].output)])
            unchanged = nnsight.save(scores(model.output))
        with model.trace(*args, **kwargs):
            operation = within.source[name]
            operation.output = doubled(operation.output)
            changed = nnsight.save(scores(model.output))
        bare = scores(subject.module(**subject.bare(prompt)))
    for own, raw in zip(seen, values[path][0], strict=True):
        same(own, raw, f"the operation {name}")
    same(unchanged, bare, "what the model gives")
    same(changed, wanted, "what it gives after an edit of an operation")


def calls(subject: Subject, values: Values) -> Iterator[tuple[Any, str, str]]:
    """Operations that call a module: the module whose forward it is, the name, the one called."""
    for path, _ in subject.module.get_submodule(subject.layer).named_modules(prefix=subject.layer):
        if path not in values:
            continue
        within = subject.model.get(path)
        names = within.source.names
        for name in names:
            base, _, number = name.removeprefix("self_").rpartition("_")
            once = f"self_{base}_1" not in names
            for called in (f"{path}.{base}", f"{path}.{base}.{number}"):
                if name.startswith("self_") and number == "0" and once and called in values:
                    if values[called][0]:
                        yield within, name, called


def cache(subject: Subject) -> None:
    """Every module that runs is in the cache, at each visit, with what a raw hook sees."""
    prompt = subject.prompts[0]
    args, kwargs = subject.given(prompt)
    with torch.no_grad():
        values = subject.raw(prompt).values
        with subject.model.trace(*args, **kwargs) as tracer:
            kept = tracer.cache()
    ran = {path for path, visits in values.items() if any(visits)}
    for path in ran:
        visits = kept[f"{subject.model._path}.{path}"].visits
        assert len(visits) == len(values[path]), f"{path} has {len(visits)} visits"
        for visit, raw in zip(visits, values[path], strict=True):
            for own, one in zip(floating(visit.output), raw, strict=True):
                same(own, one, path)
    assert len(ran) > 10


def names(subject: Subject) -> str | None:
    """The standard names, held to what must be true of them."""
    report = subject.model.check_names()
    found = {finding.name for finding in report.findings if finding.layers}
    if "resid_post" not in found:
        raise NotThere("no layers are found")
    return "guessed from its modules" if "not in the table" in report.title else None


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "meta build": meta,
    "trace": trace,
    "edit": edit,
    "generate": generate,
    "gradients": gradients,
    "source": source,
    "cache": cache,
    "batch = solo": batch_equals_solo,
    "names": names,
}
"""By the heading of its column."""
