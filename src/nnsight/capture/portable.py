"""A captured block as text, to be compiled again in another process, at the same lines.

What travels is the `with` statement itself, with its comments, and not the file around it. It is
put back at its own line numbers, so that errors name the lines that its author sees.
"""

from __future__ import annotations

import ast
import builtins
import dis
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from inspect import CO_NEWLOCALS, CO_OPTIMIZED
from types import CellType, CodeType
from typing import Any

from nnsight.capture.block import Block, Outer, compile_block
from nnsight.capture.errors import not_a_block
from nnsight.capture.names import names_of, set_first
from nnsight.capture.rewrite import HELPER
from nnsight.capture.scope import Scope
from nnsight.capture.source import FUTURES, Site, With, split, statement_at


@dataclass(frozen=True)
class BlockText:
    """A `with` statement and what its compilation depends on."""

    filename: str
    lineno: int  # of its first line
    text: str  # its lines
    item: int  # which of its items enters the trace
    wrapped: bool  # whether a user's own manager stands between, and gives the `as` target
    outer: Outer  # the code that it stands in
    cls: str | None  # the class around it, for `self.__private`


def text_of(block: Block) -> BlockText:
    """The text of a captured block."""
    site = block.site
    return BlockText(
        site.filename, site.node.lineno, site.text, site.item, block.wrapped, block.outer, block.cls
    )


@lru_cache(maxsize=256)
def block_of(text: BlockText) -> Block:
    """The block of a text; the same one each time, as for a `with` that runs again.

    Raises:
        SyntaxError: the text is no `with` statement, or one that this Python does not know.
    """
    lines = ["\n"] * (text.lineno - 1) + split(text.text)
    node = statement_at(lines, text.lineno, text.outer.flags & FUTURES)
    if not isinstance(node, With) or not 0 <= text.item < len(node.items):
        raise not_a_block(text.filename, text.lineno)
    site = Site(node, text.item, text.filename, lines, 0)
    return compile_block(site, text.outer, text.wrapped, text.cls)


def globals_named(code: CodeType, deep: bool = True) -> Iterator[str]:
    """The names that a code, or one in it (if `deep`), looks up in its module."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for inner in code.co_consts if deep else ():
        if isinstance(inner, CodeType):
            yield from globals_named(inner)


@dataclass(frozen=True)
class Taken:
    """What a block takes from around it: the values that its names have where it is written."""

    cells: Mapping[str, Any]  # variables of the code that it stands in
    globals: dict[str, Any]  # variables of the module


def taken_by(scope: Scope) -> Taken:
    """The values that the block of `scope` reads, and no others.

    A name that the block surely binds before it reads it is not among them, nor are the names
    after `as`, nor what every Python has.
    """
    block = scope.block
    own = block.target | set_first(block.body)
    missing = object()
    cells = {
        name: value
        for name in sorted(scope.cells)
        if name not in own and (value := scope.get(name, missing)) is not missing
    }
    named = sorted({n for n in globals_named(block.code) if not n.startswith(HELPER)})
    return Taken(cells, {n: scope.globals[n] for n in named if n in scope.globals})


def scope_of(block: Block, taken: Taken) -> Scope:
    """The variables of a run of `block`, from what it took with it.

    Args:
        block: what is to run.
        taken: the values of its names; the others are not bound. The variables of the module are
            those that the functions of that module see too.
    """
    names = taken.globals
    names.setdefault("__builtins__", builtins)
    cells = {
        name: CellType(taken.cells[name]) if name in taken.cells else CellType()
        for name in block.code.co_freevars
    }
    return Scope.of(block, names, cells)


@lru_cache(maxsize=256)
def block_of_body(
    text: str, filename: str, function: str, names: frozenset[str], target: str | None = None
) -> Block:
    """The block of a body that comes without the `with` it stood under.

    Args:
        text: the body, not indented, at its own line numbers.
        filename: where it stood.
        function: the function that it stood in.
        names: variables of that function that it reads.
        target: the name after `as`, if there was one.

    Raises:
        SyntaxError: this Python does not know the text.
    """
    tree = compile(text, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    body = tree.body or [ast.Pass(lineno=1, col_offset=0, end_lineno=1, end_col_offset=0)]
    bound = None if target is None else ast.Name(target, ast.Store())
    item = ast.withitem(ast.Name("_", ast.Load()), bound)
    start = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", ()))])
    node = ast.With([item], body, lineno=start, col_offset=0, end_lineno=body[-1].end_lineno)
    node = ast.fix_missing_locations(node)
    own = names | names_of(body).bound | frozenset(() if target is None else (target,))
    outer = Outer(function, function, CO_OPTIMIZED | CO_NEWLOCALS, own, None)
    return compile_block(Site(node, 0, filename, split(text), 0), outer, wrapped=False)
