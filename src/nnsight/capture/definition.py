"""The `def` or the lambda that a function was compiled from, found through its code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType

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


def texts_of(function: FunctionType) -> Iterator[list[str]]:
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
    for lines in texts_of(function):
        if code.co_firstlineno <= len(lines):
            node = statement_at(lines, code.co_firstlineno, code.co_flags & FUTURES)
            if isinstance(node, Def) and node.name == code.co_name:
                return Definition(node, lines)
    return None


def lambda_of(function: FunctionType) -> ast.Lambda | None:
    """The expression of a lambda, or None where its text is kept nowhere.

    None too on Python 3.10, which keeps no columns, for one of several lambdas on one line.
    """
    code = function.__code__
    for lines in texts_of(function):
        for start in range(min(code.co_firstlineno, len(lines)), 0, -1):
            statement = statement_at(lines, start, code.co_flags & FUTURES)
            nodes = ast.walk(statement) if statement is not None else ()
            found = [n for n in nodes if isinstance(n, ast.Lambda) and _may_be(n, code)]
            if found:
                return found[0] if len(found) == 1 else None
    return None


def _may_be(node: ast.Lambda, code: CodeType) -> bool:
    """Whether `code` stands where `node` does: as near as the interpreter tells."""
    if code.co_firstlineno != node.lineno:
        return False
    if sys.version_info < (3, 11):
        return True
    body = node.body  # what the last instruction returns
    at = (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset)
    return at in code.co_positions()
