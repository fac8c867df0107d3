"""Batch equals solo: in whichever form prompts go in, each has the numbers that it has alone."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch

import nnsight
from nnsight import nested
from tests.families import zoo
from tests.families.subject import Subject, floating, scores
from tests.families.zoo import Prompt

TOLERANCE = 1e-4
NEW = 4


class Unequal(AssertionError):
    """Some rows of a batch are not what they are alone."""


class Warned(Exception):
    """The model itself cannot, and the trace says so."""


def batch_equals_solo(subject: Subject) -> str | None:
    """Logits in each form; values of all modules, edits, gradients and new tokens in invokes."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            return _batch_equals_solo(subject)
        except Unequal as unequal:
            why = next(
                (str(w.message) for w in told if "other numbers than alone" in str(w.message)), ""
            )
            if not why:
                raise
            raise Warned(f"{why.partition(':')[0]} ({unequal})") from unequal


def _batch_equals_solo(subject: Subject) -> str | None:
    with torch.no_grad():
        solo = [scores(subject.module(**subject.bare(prompt)))[0] for prompt in subject.prompts]
    forms = forms_of(subject)
    for form, (args, kwargs) in forms.items():
        with torch.no_grad(), subject.model.trace(*args, **kwargs):
            together = nnsight.save(scores(subject.model.output))
        for row, alone in enumerate(solo):
            hold(subject.own_tokens(together[row : row + 1], alone[None], row)[0], alone, form)
    unlike = modules(subject)
    edits_and_gradients(subject)
    if subject.has_text and subject.module.can_generate():
        generations(subject)
    told = [f"of no row: {', '.join(unlike)}"] if unlike else []
    return "; ".join([*told, *beside_embeddings(subject)]) or None


def beside_embeddings(subject: Subject) -> list[str]:
    """Scores and gradients where one prompt is embeddings; what to say of a model that cannot."""
    takes = "inputs_embeds" in inspect.signature(subject.module.forward).parameters
    if not takes or not subject.has_text or "pixel_values" in subject.prompts[1].beside:
        return []
    mixed = subject.with_embeddings(1)
    try:
        edits_and_gradients(mixed)
    except ValueError as refused:
        if "some go in as embeddings and others as ids" not in str(refused):
            raise
        return ["no embeddings beside ids"]
    return []


def hold(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    if found.shape != wanted.shape:
        raise Unequal(f"{what}: {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    if not close(found, wanted):
        raise Unequal(f"{what}: off by {(found - wanted).abs().max().item():.1e}")


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, TOLERANCE, TOLERANCE)


def forms_of(subject: Subject) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The three prompts at once, in each form that they can go in."""
    prompts = subject.prompts
    beside = {name: together(name, prompts) for name in prompts[0].beside}
    if not subject.has_text:
        return {"tensors": ((), beside)}
    texts = [prompt.text for prompt in prompts]
    encoding = zoo.tokenizer()(texts, padding=True, padding_side=subject.side, return_tensors="pt")
    return {
        "texts": ((texts,), beside),
        "ids": (([prompt.ids for prompt in prompts],), beside),
        "ids and mask": ((), {**encoding, **beside}),
        "dict": ((encoding,), beside),
    }


def together(name: str, prompts: list[Prompt]) -> Any:
    if name in ("decoder_input_ids", "mm_token_type_ids"):  # of unequal lengths
        return [prompt.beside[name][0].tolist() for prompt in prompts]
    return torch.cat([prompt.beside[name] for prompt in prompts])


def modules(subject: Subject) -> list[str]:
    """Of each invoke the output of every module, against raw hooks on the prompt alone.

    Returns:
        The modules with values that belong to no row, so that all blocks have the same: tables of
        positions, the tokens that went to one expert.
    """
    kept = []
    with torch.no_grad(), subject.model.trace() as tracer:
        whole = tracer.cache()
        for prompt in subject.prompts:
            args, kwargs = subject.given(prompt)
            with tracer.invoke(*args, **kwargs):
                kept.append(tracer.cache())
    compared, of_no_row = 0, set[str]()
    for row, prompt in enumerate(subject.prompts):
        with torch.no_grad():
            values = subject.raw(prompt).values
        for path, visits in values.items():
            batched, together, *others = (
                flat(
                    [
                        floating(visit.output)
                        for visit in seen[f"{subject.model._path}.{path}"].visits
                    ]
                )
                for seen in (kept[row], whole, *kept)
            )
            # an expert may run less often for one prompt than for all
            pairs = zip(batched, together, flat(visits), *others, strict=False)
            for own, all_rows, alone, *every in pairs:
                alike = all(torch.equal(own, other) for other in every)  # positions, for each row
                split = own.shape != all_rows.shape and not alike
                own = subject.own_tokens(own, alone, row)
                missed = all_rows.shape[:1] == (len(subject.prompts),) != alone.shape[:1]
                missed &= "expert" not in path  # how many tokens one is sent may be anything
                if split or missed or close(own, alone):
                    hold(own, alone, path)
                    compared += 1
                else:
                    of_no_row.add(path)
    unlike = {path for path in of_no_row if "expert" not in path}
    if compared < 30 or len(unlike) * 5 > compared:
        raise Unequal(f"{compared} values are those of a row, and of {len(of_no_row)} modules none")
    return sorted({path.rpartition(".")[2] for path in of_no_row})


def flat(visits: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [leaf for leaves in visits for leaf in leaves]


def edits_and_gradients(subject: Subject) -> None:
    """Every row is changed otherwise: its scores and its gradient are those of its change alone."""
    layer = subject.model.get(subject.layer)
    found = []
    with subject.model.trace() as tracer:
        for row, prompt in enumerate(subject.prompts):
            args, kwargs = subject.given(prompt)
            with tracer.invoke(*args, **kwargs):
                hidden = first(layer.output)
                layer.output = with_first(layer.output, hidden * (row + 2))
                own = scores(subject.model.output)
                real = subject.own_tokens(own, alone_shape(subject, row), row)
                with real.logsumexp(-1).sum().backward():
                    gradient = hidden.grad
                found.append((real.detach(), gradient))
    for row, (prompt, (own, gradient)) in enumerate(zip(subject.prompts, found, strict=True)):
        kept: list[torch.Tensor] = []

        def change(output: Any, row: int = row, kept: list[torch.Tensor] = kept) -> Any:
            hidden = first(output)
            hidden.retain_grad()
            kept.append(hidden)
            return with_first(output, hidden * (row + 2))

        wanted = scores(subject.raw(prompt, {subject.layer: change}).output)
        wanted.logsumexp(-1).sum().backward()
        hold(own, wanted, "scores after an edit")
        alone = kept[0].grad
        hold(subject.own_tokens(gradient, alone, row), alone, "a gradient")
    subject.module.zero_grad()


def alone_shape(subject: Subject, row: int) -> torch.Tensor:
    with torch.no_grad():
        return scores(subject.module(**subject.bare(subject.prompts[row])))


def first(value: Any) -> torch.Tensor:
    return next(nested.leaves(value))


def with_first(value: Any, new: torch.Tensor) -> Any:
    old = first(value)
    return nested.map_leaves(lambda leaf: new if leaf is old else leaf, value)


def generations(subject: Subject) -> None:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    texts = [prompt.text for prompt in subject.prompts]
    tokens = subject.model.generate(texts, **settings)[:, -NEW:]
    for row, prompt in enumerate(subject.prompts):
        ids = torch.tensor([prompt.ids])
        alone = subject.module.generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=2, **settings
        )
        if not torch.equal(tokens[row], alone[0, -NEW:]):
            raise Unequal(f"generated tokens: {tokens[row].tolist()} for {alone[0].tolist()}")
