"""The `def` statement that a function was compiled from, found through its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType

from nnsight.capture.source import (
    FUTURES,
    command_line,
    compiled_from,
    doubtful,
    kept_lines,
    split,
    statement_at,
)

Def = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """One `def`, with the file's own line and column numbers."""

    node: Def
    lines: list[str]  # of the whole file, cell or command


def _texts(function: FunctionType) -> Iterator[list[str]]:
    """Texts that the function may have been compiled from: certainly so, as far as files tell."""
    code, names = function.__code__, function.__globals__
    kept = kept_lines(code, names)
    if kept and not doubtful(code, names):
        yield kept
        return
    for lines in (kept, split(command_line())):
        if lines and compiled_from(code, "".join(lines)):
            yield lines


def definition_of(function: FunctionType) -> Definition | None:
    """The `def` of a function, or None where its text is kept nowhere, or is another one by now.

    Lambdas have none.
    """
    code = function.__code__
    for lines in _texts(function):
        if code.co_firstlineno <= len(lines):
            node = statement_at(lines, code.co_firstlineno, code.co_flags & FUTURES)
            if isinstance(node, Def) and node.name == code.co_name:
                return Definition(node, lines)
    return None
