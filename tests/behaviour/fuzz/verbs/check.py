"""One seed: a random program of every verb, run through nnsight and worked out without it."""

from __future__ import annotations

import contextlib
import linecache
import warnings
from random import Random
from typing import Any

import torch
from tests.behaviour.fuzz.after import Wrong, left_behind, traces_of_a_run
from tests.behaviour.fuzz.verbs.expected import Right, expected
from tests.behaviour.fuzz.verbs.program import Program, Run
from tests.behaviour.fuzz.verbs.shrink import shrink
from tests.behaviour.fuzz.verbs.sim import Kept, Refused
from tests.behaviour.fuzz.verbs.subjects import WIDTH, Subject, gpt2, stack
from tests.behaviour.fuzz.verbs.writer import random_program

from nnsight.interleave.errors import MissedProviderError


def family(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    missed = isinstance(error, MissedProviderError)
    return MissedProviderError.__name__ if missed else type(error).__name__


def perform(program: Program, subject: Subject, xs: list[Any], name: str) -> Any:
    """What the blocks saw, and the error that ended the program."""
    text = program.source()
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {}
    exec(compile(text, name, "exec"), namespace)
    seen: list[list[Any]] = [[] for _ in range(program.blocks)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            namespace["program"](subject.envoy, [x.clone() for x in xs], seen)
    except Exception as error:
        return seen, error
    finally:
        del linecache.cache[name]
        subject.envoy.clear_edits()
    return seen, None


# --- comparing ------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A cache as the values in it."""
    if isinstance(value, Kept):
        return value.entries
    if torch.is_tensor(value) or not hasattr(value, "visits"):
        return value
    found: dict[str, list[dict[str, Any]]] = {}
    for path, view in value.items():
        entries = [dict(entry.values) for entry in view.visits]
        for entry in entries:
            if "input" in entry:
                args, kwargs = entry["input"]
                entry["input"] = args[0] if args else next(iter(kwargs.values()))
        found[path.partition(".")[2]] = entries
    return found


def differs(one: Any, right: Any, shapes: bool = False) -> str:
    """Where two values differ; nothing where they are the same."""
    one, right = plain(one), plain(right)
    if torch.is_tensor(right):
        if shapes:
            shape = tuple(one.shape) if torch.is_tensor(one) else one
            return "" if shape == tuple(right.shape) else f": {shape} for {tuple(right.shape)}"
        same = torch.is_tensor(one) and one.shape == right.shape and torch.allclose(one, right)
        return "" if same else f": {one}\n    instead of {right}"
    if isinstance(right, dict) and isinstance(one, dict):
        if one.keys() != right.keys():
            return f": {list(one)}\n    instead of {list(right)}"
        found = {key: differs(one[key], right[key], shapes) for key in right}
        return next((f"[{key!r}]{text}" for key, text in found.items() if text), "")
    if isinstance(right, list) and isinstance(one, list):
        if len(one) != len(right):
            return f": {len(one)} values instead of {len(right)}: {one}"
        for n, (a, b) in enumerate(zip(one, right, strict=True)):
            if found := differs(a, b, shapes):
                return f"[{n}]{found}"
        return ""
    return "" if one == right else f": {one!r} instead of {right!r}"


def _common(one: list[Any], wanted: list[Any]) -> tuple[list[Any], list[Any]]:
    """What both saw before the end that another made: caches may have gone on for longer."""
    pairs = [(a, b) for a, b in zip(one, wanted, strict=False) if not isinstance(b, Kept)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def compare(program: Program, seen: list[Any], error: Exception | None, right: Right) -> list[str]:
    """What is not as it must be."""
    problems = []
    ours = isinstance(error, (MissedProviderError, ValueError, NotImplementedError))
    if family(error) not in right.ends and not (ours and Refused.__name__ in right.ends):
        problems.append(f"it ended with {error!r} instead of {sorted(right.ends)}")
    scans = {
        run.index + number
        for run in program.commands
        if isinstance(run, Run) and run.scan
        for number in range(len(run.blocks) + 1)
    }
    for number, (one, wanted) in enumerate(zip(seen, right.seen, strict=True)):
        if wanted is None:
            continue
        if number in right.cut:
            one, wanted = _common(one, wanted)
        if found := differs(one, wanted, number in scans):
            problems.append(f"seen[{number}]{found}")
    return problems


def problems_of(program: Program, subject: Subject, seed: int) -> tuple[list[str], Any]:
    """What is wrong with a program, and the error that it ended with."""
    generator = torch.Generator().manual_seed(seed)
    xs = [subject.inputs(generator) for _ in range(program.inputs)]
    module = subject.envoy._module
    before, x = traces_of_a_run(module), subject.inputs(generator)
    with torch.set_grad_enabled(program.grad):
        reference = subject.call(module, x, None)
        seen, error = perform(program, subject, xs, f"<verbs {seed}>")
        problems = left_behind(module, before)
        right = expected(program, subject, xs)
        problems += compare(program, seen, error, right)
        again: list[torch.Tensor] = []
        with subject.envoy.trace(x):
            again.append(getattr(subject.envoy.output, "logits", subject.envoy.output))
    if not torch.equal(again[0], reference):
        problems.append("the next trace of the model is not right")
    return problems, error


def warm_up() -> None:
    """Import what generations and scans need, which may take longer than any program."""
    with stack(1).envoy.scan(torch.ones(1, WIDTH, dtype=torch.double)):
        pass
    subject = gpt2()
    subject.call(subject.envoy._module, subject.inputs(torch.Generator()), 1)


def check(seed: int) -> str:
    """Run one seed; returns how its program ended.

    Raises:
        Wrong: with the shortest program that goes wrong, and what came of it.
    """
    subject, program = random_program(Random(seed))
    problems, error = problems_of(program, subject, seed)
    if problems:
        program = shrink(program, lambda smaller: _goes_wrong(smaller, subject, seed))
        problems, error = problems_of(program, subject, seed)
        listed = "\n".join(problems)
        raise Wrong(f"seed {seed}\n{program.source()}\n{listed}") from error
    return family(error)


def _goes_wrong(program: Program, subject: Subject, seed: int) -> bool:
    try:
        return bool(problems_of(program, subject, seed)[0])
    except Exception:  # it makes no sense any more: a name is missing
        return False
