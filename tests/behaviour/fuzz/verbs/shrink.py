"""The shortest program that still goes wrong: parts are left out for as long as it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.behaviour.fuzz.verbs import program as p


def shrink(program: p.Program, wrong: Callable[[p.Program], bool]) -> p.Program:
    """Leave parts out of `program` while `wrong` says that it is still wrong."""
    smaller: p.Program | None = program
    while smaller is not None:
        program = smaller
        smaller = next((one for one in _programs(program) if wrong(one)), None)
    return program


def _programs(program: p.Program) -> Iterator[p.Program]:
    if program.session is not None:
        yield replace(program, session=None)
    for commands in _without_one(program.commands, _commands):
        yield replace(program, commands=tuple(_numbered(commands)), session=None)


def _without_one(parts: tuple[Any, ...], smaller: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    """All ways to leave one part out, or to take a smaller one in its place."""
    for n, part in enumerate(parts):
        yield parts[:n] + parts[n + 1 :]
        for one in smaller(part):
            yield (*parts[:n], one, *parts[n + 1 :])


def _numbered(commands: tuple[p.Command, ...]) -> Iterator[p.Command]:
    """The commands, with the lists of what was seen numbered anew."""
    index = 0
    for command in commands:
        if isinstance(command, p.Run):
            command = replace(command, index=index)
            index += len(command.blocks) + (command.outer_cache is not None)
        yield command


def _commands(command: p.Command) -> Iterator[p.Command]:
    if isinstance(command, p.MakeEdit):
        for body in _without_one(command.body, _statements):
            yield replace(command, body=body)
    if isinstance(command, p.Run):
        if command.outer_cache is not None:
            yield replace(command, outer_cache=None)
        for blocks in _without_one(command.blocks, _entries):
            if any(block.given is not None for block in blocks):
                yield replace(command, blocks=blocks)


def _entries(entry: p.Entry) -> Iterator[p.Entry]:
    for body in _without_one(entry.body, _statements):
        yield replace(entry, body=body)


def _statements(statement: p.Statement) -> Iterator[p.Statement]:
    if isinstance(statement, (p.Loop, p.When)):
        for body in _without_one(statement.body, _statements):
            yield replace(statement, body=body)
    if isinstance(statement, p.Backward):
        for held in _without_one(statement.held, lambda pair: iter([(pair[0], None)])):
            if held != statement.held:
                yield replace(statement, held=held)
