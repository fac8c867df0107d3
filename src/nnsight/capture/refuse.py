"""What may not stand in a block: statements that would leave it, or suspend it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from nnsight.capture import errors
from nnsight.capture.names import Function, children, parts
from nnsight.capture.repeats import is_repeated
from nnsight.capture.source import Site

_LEAVING: dict[type[ast.AST], str] = {
    ast.Return: "return",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
    ast.Await: "await",
    ast.AsyncFor: "await",
    ast.AsyncWith: "await",
    ast.Break: "break",
    ast.Continue: "continue",
}


_WORDS = re.compile(r"\b(?:return|yield|await|async|break|continue)\b|import[\s\\]*\*")


def _leaving(node: ast.AST, in_loop: bool) -> Iterator[tuple[str, ast.AST]]:
    """Statements under `node` that would leave or suspend the block."""
    word = _LEAVING.get(type(node))
    if isinstance(node, ast.comprehension) and node.is_async:
        word, node = "await", node.target
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        word = "import *"
    if word is not None and not (in_loop and word in ("break", "continue")):
        yield word, node
    if isinstance(node, (*Function, ast.ClassDef)):  # its decorators and defaults run in the block
        for part in parts(node)[0]:
            yield from _leaving(part, in_loop)
        return
    loop = isinstance(node, (ast.For, ast.While))
    repeated = isinstance(node, ast.With) and any(map(is_repeated, node.items))
    for name, child in children(node):  # a loop's `else` is no longer in the loop
        yield from _leaving(child, (in_loop and not repeated) or (loop and name == "body"))


def refuse(body: list[ast.stmt], site: Site) -> None:
    """See that `body` can be a block.

    Raises:
        SyntaxError: it holds a `return`, `yield`, `await`, `import *`, or a `break` or `continue`
            of an outer loop.
    """
    if not _WORDS.search(site.text):  # most blocks are done here
        return
    for statement in body:
        for word, node in _leaving(statement, in_loop=False):
            line = site.lines[getattr(node, "lineno", 1) - 1]
            raise errors.illegal_statement(word, site.filename, node, line)
