"""One seed over the wire: a random program here, and the same one through bytes and back.

The programs are those of both generators, of blocks and of verbs. Nothing says here what is right:
what a program does in another process is what it does in this one, to the last bit of each value,
to each print and warning, and to the line of each error.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import linecache
from random import Random
from types import ModuleType
from typing import Any

import torch
from tests.behaviour.fuzz import check as blocks
from tests.behaviour.fuzz.after import Wrong, left_behind, traces_of_a_run
from tests.behaviour.fuzz.models import WIDTH, random_model
from tests.behaviour.fuzz.programs import random_program as random_blocks
from tests.behaviour.fuzz.verbs.check import plain
from tests.behaviour.fuzz.verbs.program import Program
from tests.behaviour.fuzz.verbs.subjects import Subject
from tests.behaviour.fuzz.verbs.writer import random_program as random_verbs
from tests.remote.through import Outcome, ThroughBytes, outcome

from nnsight import LanguageModel, NNsight
from nnsight.remote import environment
from nnsight.remote.errors import NotSendableError


class Served(NNsight):
    """A module that goes by a name between processes."""

    def to_model_key(self) -> str:
        return "a random model"


class ServedLanguage(LanguageModel):
    def to_model_key(self) -> str:
        return "a random language model"


def _is_local(module: ModuleType) -> bool:
    """The models and their kinds of values are installed on both sides."""
    return not module.__name__.startswith("tests.behaviour.fuzz") and environment.is_local(module)


@dataclasses.dataclass
class Sides:
    """A model as the programs name it, and where they run."""

    here: Any
    there: ThroughBytes

    def __post_init__(self) -> None:
        self._before = [traces_of_a_run(model._module) for model in self._models]

    @property
    def _models(self) -> tuple[Any, Any]:
        return self.here, self.there.other

    def left_behind(self) -> list[str]:
        pairs = zip(self._models, self._before, strict=True)
        return [text for model, before in pairs for text in left_behind(model._module, before)]


@functools.lru_cache(maxsize=8)
def _sides(subject: Subject) -> Sides:
    kind = Served if subject.square else ServedLanguage
    module = subject.envoy._module
    here = kind(module)
    return Sides(here, ThroughBytes(here, kind(copy.deepcopy(module)), _is_local))


def check(seed: int) -> str:
    """Run one seed; returns how its program ended.

    Raises:
        Wrong: with the program and what differs.
    """
    return (_check_verbs if seed % 3 else _check_blocks)(seed)


# --- programs of verbs ----------------------------------------------------------------------------


def _check_verbs(seed: int) -> str:
    subject, program = random_verbs(Random(seed))
    sides, name = _sides(subject), f"<wire {seed}>"
    generator = torch.Generator().manual_seed(seed)
    xs = [subject.inputs(generator) for _ in range(program.inputs)]
    here = perform_verbs(program, sides.here, xs, name, {})
    there = perform_verbs(program, sides.here, xs, name, {"backend": sides.there})
    return _compare(seed, program.source(sent=True), sides, here, there)


def perform_verbs(
    program: Program, model: Any, xs: list[torch.Tensor], name: str, at: dict[str, Any]
) -> Outcome:
    """What comes of a program whose traces run where `at` says; its value is what blocks saw."""
    function = _compiled(program.source(sent=True), name, {"__name__": "random_program"})
    seen: list[list[Any]] = [[] for _ in range(program.blocks)]
    try:
        with torch.set_grad_enabled(program.grad):
            found = outcome(lambda: function(model, [x.clone() for x in xs], seen, at), name)
    finally:
        model.clear_edits()
        del linecache.cache[name]
    found.value = [[plain(value) for value in each] for each in seen]
    return found


# --- programs of blocks ---------------------------------------------------------------------------


def _check_blocks(seed: int) -> str:
    rng = Random(seed)
    torch.manual_seed(seed)
    model = random_model(rng)
    here = Served(model)
    sides = Sides(here, ThroughBytes(here, Served(copy.deepcopy(model)), _is_local))
    order = blocks.order_of(model, torch.randn(2, WIDTH))
    program = random_blocks(rng, model, order)
    program.method = "trace"
    text, name = program.source(sent=True), f"<wire {seed}>"
    inputs = [
        (
            torch.randn(block.rows, WIDTH) if block.rows else None,
            torch.zeros(block.rows or program.total, WIDTH),
        )
        for block in program.blocks
    ]

    def perform(at: dict[str, Any]) -> Outcome:
        function = _compiled(text, name, dict(blocks.NAMES))
        xs, zeros = zip(*inputs, strict=True)
        log: list[Any] = []
        given = [None if x is None else x.clone() for x in xs]
        others = blocks.OTHER_ENVOY, blocks.EXTRA
        found = outcome(lambda: function(here, *others, log, given, zeros, at), name)
        del linecache.cache[name]
        if found.error is not None and not isinstance(found.error, NotSendableError):
            saved = found.error.saved  # type: ignore[attr-defined]
            found.value = {k: v for k, v in saved.items() if k.startswith("saved")}
        found.value = [found.value, log]
        return found

    there = perform({"backend": sides.there})
    if "other" in text.partition("\n")[2] and isinstance(there.error, NotSendableError):
        assert "a part of another model" in str(there.error)
        return "OtherModel"
    return _compare(seed, text, sides, perform({}), there)


# --- both -----------------------------------------------------------------------------------------


def _compiled(text: str, name: str, names: dict[str, Any]) -> Any:
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), names)
    return names["program"]


def _compare(seed: int, text: str, sides: Sides, here: Outcome, there: Outcome) -> str:
    problems = there.differences(here) + sides.left_behind()
    if problems:
        raise Wrong("\n".join([f"seed {seed}", text, *problems])) from there.error
    return "ok" if here.error is None else type(here.error).__name__
