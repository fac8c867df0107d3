"""The text that a frame runs from, and the `with` statement in it that entered a trace.

The statement is found by the position of the instruction that is running, not by its line alone,
and no more is parsed than that one statement. Lines are never dedented or re-flowed: columns,
line numbers and triple-quoted strings stay as they were written.
"""

from __future__ import annotations

import ast
import contextlib
import linecache
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType
from typing import Any

from nnsight.capture import errors, instructions
from nnsight.capture.percode import PerCode

FUTURES = 0x1FE0000  # the compiler flags of `from __future__ import ...`
_WITH = re.compile(r"\s*(?:async\s+)?with\b")
With = ast.With | ast.AsyncWith


@dataclass(frozen=True)
class Site:
    """One `with` statement of ours in one code object."""

    node: With  # with the file's own line and column numbers
    item: int  # which of its items enters the trace
    filename: str
    lines: list[str]
    offset: int  # of the instruction that binds the `as` target

    @property
    def text(self) -> str:
        """The lines that it stands on."""
        return "".join(self.lines[self.node.lineno - 1 : self.node.end_lineno])


# --- the text ------------------------------------------------------------------------------------


def _process_start() -> float:
    """When this process began; where the system does not say, when nnsight was imported."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - since_boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()


_STARTED = _process_start()  # a file changed after this may not be the one that runs: look closer


_PROGRAM = re.compile(r"-[bBdEhiIOPqRsSuvVx?]*([cm])")  # the option after which the program is


def command_line() -> str:
    """The text of `python -c TEXT`, or nothing."""
    words = iter(sys.orig_argv[1:])
    for word in words:
        program = _PROGRAM.match(word)
        if program is not None and program[1] == "c":
            return word[program.end() :] or next(words, "")
        if program is not None or not word.startswith("-") or word == "-":
            return ""
        if word in ("-W", "-X", "--check-hash-based-pycs"):
            next(words, None)  # the option's own value
    return ""


def _timed_cell(frame: FrameType) -> str:
    """The text that IPython's `%%time` is running: kept nowhere, but a variable of the magic."""
    magic = frame if frame.f_code.co_filename == "<timed exec>" else None
    while magic is not None and "expr_ast" not in magic.f_code.co_varnames:
        magic = magic.f_back
    return "" if magic is None else str(magic.f_locals.get("expr", ""))


def split(text: str) -> list[str]:
    """The lines of `text` as the compiler counts them: a form feed does not end one."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)


@lru_cache(maxsize=2)  # the text kept of a command, and the command itself
def _codes_in(text: str, filename: str, flags: int) -> dict[int, list[CodeType]]:
    """What `text` compiles to, nested code too, by first line."""
    found: dict[int, list[CodeType]] = {}
    try:
        pending = [compile(text, filename, "exec", flags, dont_inherit=True)]
    except (SyntaxError, ValueError):
        return found
    while pending:
        code = pending.pop()
        found.setdefault(code.co_firstlineno, []).append(code)
        pending += [c for c in code.co_consts if isinstance(c, CodeType)]
    return found


def compiled_from(code: CodeType, text: str) -> bool:
    """Whether compiling `text` gives `code` again, instruction for instruction."""
    codes = _codes_in(text, code.co_filename, code.co_flags & FUTURES)
    return code in codes.get(code.co_firstlineno, [])


def doubtful(code: CodeType, names: dict[str, Any]) -> bool:
    """Whether the text may be another one than `code` was compiled from."""
    filename = code.co_filename
    if filename.startswith("<string"):  # a name that every bare `exec` shares
        return True
    if "@pytest_ar" in names:  # rewritten asserts: never equal to the text
        return False
    try:
        return os.stat(filename).st_mtime >= _STARTED
    except OSError:
        return False


_reading = threading.Lock()  # two threads in linecache at once can find nothing


def kept_lines(code: CodeType, names: dict[str, Any]) -> list[str]:
    """What the interpreter keeps of the text: of a file, a cell, a line typed at the prompt."""
    filename = code.co_filename
    with _reading:
        linecache.checkcache(filename)
        lines = linecache.getlines(filename, names)
    by_code = getattr(linecache, "_getlines_from_code", None)  # the prompt, from 3.13.1 on
    return lines or (by_code(code) if by_code is not None else [])


def lines_of(frame: FrameType) -> list[str]:
    """The lines of the file, cell or command that `frame` runs from.

    Raises:
        WithBlockNotFoundError: there is no text, or it is not what the code was compiled from.
    """
    code = frame.f_code
    kept = kept_lines(code, frame.f_globals)
    if kept and not doubtful(code, frame.f_globals):
        return kept
    cell = _timed_cell(frame)
    if cell and code.co_name == "<module>":  # without its last line, if that is an expression
        return split(cell)
    for lines in (kept, split(command_line()), split(cell)):
        if lines and compiled_from(code, "".join(lines)):
            return lines
    if not kept or code.co_filename.startswith("<"):
        raise errors.no_source(code.co_filename)
    raise errors.source_changed(code.co_filename, frame.f_lineno)


@dataclass(frozen=True)
class _Block:
    lines: list[str]
    body: list[ast.stmt]


_blocks: PerCode[_Block] = PerCode(lambda: _Block([], []))


def adopt(code: CodeType, lines: list[str], body: list[ast.stmt]) -> None:
    """Take `code` for what `body` was compiled to: a trace in it is found there, not in a text."""
    _blocks[code] = _Block(lines, body)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            adopt(inner, lines, body)


# --- the statement -------------------------------------------------------------------------------


def _indent(line: str) -> int:
    expanded = line.expandtabs(8)
    return len(expanded) - len(expanded.lstrip())


def _ends(lines: list[str], start: int) -> Iterator[int]:
    """Lines before which the statement at `start` may end: what is not indented deeper."""
    depth = _indent(lines[start - 1])
    for number, line in enumerate(islice(lines, start, None), start=start):
        text = line.strip()
        if text and text[0] != "#" and _indent(line) <= depth:
            yield number
    yield len(lines)


def _parse(text: str, filename: str, flags: int) -> ast.Module | None:
    try:
        tree = compile(text, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    assert isinstance(tree, ast.Module)
    return tree


def statement_at(lines: list[str], start: int, flags: int) -> ast.stmt | None:
    """The statement whose first line is `start`, or None if that line begins none.

    A cut in the middle of a string, a bracket or a continued line does not parse, so the first
    cut that parses is the end of the statement.
    """
    first = lines[start - 1]
    header = "if 1:\n" if first[:1].isspace() else ""
    padding = "\n" * (start - 1 - bool(header)) + header
    for end in _ends(lines, start):
        tree = _parse(padding + "".join(lines[start - 1 : end]), "<block>", flags)
        if tree is not None:
            outer = tree.body[0]
            return outer.body[0] if header and isinstance(outer, ast.If) else outer
    return None


def _heads(node: With, lineno: int) -> bool:
    """Whether `lineno` is in the header of `node`: where its managers are written."""
    last = node.items[-1].context_expr
    return node.lineno <= lineno <= (last.end_lineno or last.lineno)


def _headed(nodes: Iterable[ast.AST], lineno: int) -> With | None:
    """The `with` under `nodes` whose header stands at `lineno`."""
    found = (node for root in nodes for node in ast.walk(root) if isinstance(node, With))
    return next((node for node in found if _heads(node, lineno)), None)


def _nearest(lines: list[str], lineno: int, flags: int) -> With | None:
    """The `with` whose header stands at `lineno`, found from the text around it."""
    for start in range(lineno, 0, -1):
        if start <= len(lines) and _WITH.match(lines[start - 1]):
            node = statement_at(lines, start, flags)
            if isinstance(node, With) and _heads(node, lineno):
                return node
    tree = _parse("".join(lines), "<block>", flags)
    return None if tree is None else _headed([tree], lineno)


def read_again(site: Site, flags: int) -> With:
    """The `with` of a site as it was written: that of the site itself is changed by compiling it.

    Raises:
        WithBlockNotFoundError: its text no longer parses.
    """
    node = _nearest(site.lines, site.node.lineno, flags)
    if node is None:
        raise errors.source_changed(site.filename, site.node.lineno)
    return node


def _position(node: ast.expr | ast.stmt) -> tuple[int | None, ...]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _item_by_count(code: CodeType, offset: int, lineno: int, count: int) -> int:
    """Which manager is entered, when the interpreter keeps no columns: by counting entries."""
    if count == 1:
        return 0
    lines = [line for start, end, line in code.co_lines() for _ in range(start, end, 2)]
    entries = [entry for entry in instructions.entries(code) if lines[entry // 2] == lineno]
    return entries.index(offset) % count


def _item(node: With, code: CodeType, offset: int, lineno: int) -> int | None:
    """Which item of `node` the instruction at `offset` enters; None if the text does not fit."""
    exact: tuple[int | None, ...] = (None,)
    if sys.version_info >= (3, 11):
        exact = next(islice(code.co_positions(), offset // 2, None))
    positions = [_position(item.context_expr) for item in node.items]
    if exact in positions:  # 3.13 and newer: the instruction stands at its manager
        return positions.index(exact)
    if None in exact or exact == _position(node):  # at the statement, or nowhere
        return _item_by_count(code, offset, lineno, len(node.items))
    return None


def _locate(frame: FrameType) -> Site:
    """The `with` statement that `frame` is entering."""
    code, lineno, offset = frame.f_code, frame.f_lineno, instructions.current(frame)
    block = _blocks.get(code)
    if block is not None:
        lines, node = block.lines, _headed(block.body, lineno)
    else:
        lines = lines_of(frame)
        node = _nearest(lines, lineno, code.co_flags & FUTURES)
    item = None if node is None else _item(node, code, offset, lineno)
    if node is None or item is None:
        raise errors.source_changed(code.co_filename, lineno)
    return Site(node, item, code.co_filename, lines, instructions.after(code, offset))


# --- from a call of `__enter__` to its site -------------------------------------------------------


def _yields_only(node: With, item: int) -> bool:
    """Whether a generator's `with` only lends its place to the caller's block."""
    body = node.body
    return (
        len(body) == 1
        and item == len(node.items) - 1
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Yield)
    )


_entering: PerCode[dict[int, Site | None]] = PerCode(dict)


def _site_at(frame: FrameType) -> Site | None:
    """The site of ours that `frame` is entering, or None if it is doing something else."""
    known = _entering[frame.f_code]
    if frame.f_lasti not in known:
        enters = instructions.enters(frame.f_code, instructions.current(frame))
        known[frame.f_lasti] = _locate(frame) if enters else None
    return known[frame.f_lasti]


def find_site(frame: FrameType) -> tuple[FrameType, Site, bool]:
    """The frame that holds the block, its `with` statement, and whether a manager stands between.

    `frame` is the caller of `__enter__`. Where it is a user's own context manager (a class that
    delegates, or a `@contextmanager` generator that yields inside the trace), the block is the one
    under the user's `with`, further out.

    Raises:
        WithBlockNotFoundError: no `with` statement, or no text for it.
    """
    current: FrameType | None = frame
    lent: tuple[FrameType, Site, bool] | None = None
    while current is not None:
        site = _site_at(current)
        if site is not None and not _yields_only(site.node, site.item):
            return current, site, current is not frame
        if site is not None:
            lent = lent or (current, site, False)
        current = current.f_back
    if lent is not None:  # nobody's `with` out there: a plain generator, and its `yield` is refused
        return lent
    caller = without_contextlib(frame)
    raise errors.no_with(caller.f_code.co_filename, caller.f_lineno)


def without_contextlib(frame: FrameType) -> FrameType:
    """The frame that called `contextlib`, where `frame` is in it."""
    while frame.f_code.co_filename == contextlib.__file__ and frame.f_back is not None:
        frame = frame.f_back
    return frame
