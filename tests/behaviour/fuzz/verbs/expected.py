"""What a program must do, worked out without nnsight: one input at a time.

Every invoke of a batch is worked out alone, with the edits and the invokes that see all rows beside
it: that a batch is its inputs alone is the law that is put to the test. What a block without an
input sees is all of that together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tests.behaviour.fuzz.verbs import program as p
from tests.behaviour.fuzz.verbs.sim import Block, Kept, Refused, Sim
from tests.behaviour.fuzz.verbs.subjects import Subject

from nnsight.interleave.errors import MissedProviderError


class Unknown(Exception):
    """What is right here hangs on rows that did not all come by."""


@dataclass
class Right:
    """What is right for a program, as far as it goes."""

    seen: list[Any]  # by block; None where it is not known
    cut: set[int] = field(
        default_factory=set
    )  # blocks that may have seen more or less: an error or a stop
    ends: set[str] = field(default_factory=lambda: {"ok"})


def expected(program: p.Program, subject: Subject, xs: list[torch.Tensor]) -> Right:
    right = Right([None] * program.blocks)
    edits: dict[str, list[p.MakeEdit]] = {"model": []}
    env: dict[str, Any] = {}
    for command in program.commands:
        if isinstance(command, p.MakeEdit):
            edits[command.edited] = [*edits[command.model], command]
        elif isinstance(command, p.ClearEdits):
            edits[command.model] = []
        else:
            try:
                ends = run(command, subject, xs, edits[command.model], env, right)
            except Unknown:
                right.ends = {"ok", MissedProviderError.__name__, Refused.__name__}
                right.ends.add(ZeroDivisionError.__name__)
                break
            if ends - {"ok", "stop"}:
                right.ends = {"ok" if end == "stop" else end for end in ends}
                # beside rows that have a gradient, those that have none have one of their own
                unsure = "stop" in ends or (Refused.__name__ in ends and len(command.blocks) > 1)
                after = {"ok", ZeroDivisionError.__name__}  # of this command or a later one
                right.ends = right.ends | after if unsure else right.ends - {"ok"}
                break
    return right


def run(
    command: p.Run,
    subject: Subject,
    xs: list[torch.Tensor],
    edits: list[p.MakeEdit],
    env: dict[str, Any],
    right: Right,
) -> set[str]:
    """How it ends for each input; what its blocks see goes to `right`.

    Raises:
        Unknown: an edit met its place beside some inputs alone, and would have gone on.
    """
    given = [number for number, block in enumerate(command.blocks) if block.given is not None]
    alone = [_alone(command, one, subject, xs, edits, env) for one in given]
    ends = {run.end for run in alone}
    if len({run.met for run in alone}) > 1 and ends & {"ok", "stop"}:
        raise Unknown
    if len(alone) > 1 and any(run.late for run in alone):
        raise Unknown  # what was skipped for some rows did come by for others
    # that a place has passed is found out at once, or when the run is over
    cut = bool(ends - {"ok", "stop"}) or (len(command.blocks) > 1 and "stop" in ends)
    for number in range(len(command.blocks) + (command.outer_cache is not None)):
        index = command.index + number
        found = [run.seen[number] for run in alone if number in run.seen]
        right.seen[index] = _together(found)
        if cut:
            right.cut.add(index)
    return ends


@dataclass
class Alone:
    """What came of one input of a run, beside the blocks that see all rows."""

    end: str
    seen: dict[int, list[Any]]
    met: tuple[Any, ...]  # where those blocks met the model
    late: bool  # whether a block asked for what the first step left out


def _alone(
    command: p.Run,
    one: int,
    subject: Subject,
    xs: list[torch.Tensor],
    edits: list[p.MakeEdit],
    env: dict[str, Any],
) -> Alone:
    sim = Sim(subject, env)
    shared = [Block(sim, _body(edit), None) for edit in edits]
    sim.blocks = list(shared)
    seen: dict[int, list[Any]] = {}
    if command.outer_cache is not None:
        number = len(command.blocks)
        seen[number] = []
        sim.blocks.append(Block(sim, [command.outer_cache], seen[number]))
    for number, other in enumerate(command.blocks):
        if number == one or other.given is None:
            seen[number] = []
            sim.blocks.append(Block(sim, other.body, seen[number]))
            shared += sim.blocks[-1:] if other.given is None else []
    given = command.blocks[one].given
    assert given is not None
    end = sim.run(xs[given].clone(), command.steps)
    met = tuple((tuple(block.met), block.request) for block in shared)
    return Alone(end, seen, met, any(block.late for block in sim.blocks))


def _body(edit: p.MakeEdit) -> tuple[p.Statement, ...]:
    return (p.Loop("all()", tuple(range(20)), edit.body),) if edit.every_step else edit.body


def _together(found: list[Any]) -> Any:
    """What a block without an input sees, from what it sees beside each; None if not known."""
    try:
        return join(found)
    except Unknown:
        return None


def join(found: list[Any]) -> Any:
    first = found[0]
    if len(found) == 1:
        return first
    if torch.is_tensor(first):
        if len({value.shape[1:] for value in found}) > 1:
            raise Unknown
        return torch.cat(found)
    if isinstance(first, Kept):
        return Kept(first.modules, first.inputs, join([kept.entries for kept in found]))
    if isinstance(first, list):
        if len({len(value) for value in found}) > 1:
            raise Unknown
        return [join(list(values)) for values in zip(*found, strict=True)]
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in found):
            raise Unknown
        return {key: join([value[key] for value in found]) for key in first}
    return first
