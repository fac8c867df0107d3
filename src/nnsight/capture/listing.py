"""The text of a block and of a function, to be shown, or written where it can run again."""

from __future__ import annotations

import ast
import textwrap
from types import CellType, FunctionType
from typing import Any

from nnsight.capture.block import Block
from nnsight.capture.definition import definition_of, lambda_of
from nnsight.capture.mentions import named_in
from nnsight.capture.source import FUTURES, read_again


def text_of(block: Block) -> str:
    """The body of a block as it was written, without its indentation.

    Where the lines alone are not the body (it stands behind its `with`, a string in it would
    change with the indentation, other managers wrap it), it is spelled anew.
    """
    node = read_again(block.site, block.outer.flags & FUTURES)
    body: list[ast.stmt] = node.body
    later = node.items[block.site.item + 1 :]
    if later:
        body = [ast.With(later, body, lineno=node.lineno, col_offset=0)]
    lines = block.site.lines[body[0].lineno - 1 : node.end_lineno]
    text = textwrap.dedent("".join(lines)).rstrip()
    return text if _same(text, body) else ast.unparse(ast.Module(body, []))


def _same(text: str, body: list[ast.stmt]) -> bool:
    try:
        return ast.dump(ast.parse(text)) == ast.dump(ast.Module(body, []))
    except SyntaxError:
        return False


def text_of_function(function: FunctionType) -> str | None:
    """The `def` of a function or the text of a lambda; None for one without text or decorated."""
    if function.__name__ == "<lambda>":
        expression = lambda_of(function)
        return None if expression is None else ast.unparse(expression)
    found = definition_of(function)
    if found is None or not isinstance(found.node, ast.FunctionDef) or found.node.decorator_list:
        return None
    node = found.node
    text = textwrap.dedent("".join(found.lines[node.lineno - 1 : node.end_lineno])).rstrip()
    return text if _same(text, [node]) else ast.unparse(node)


def with_defaults(text: str, given: list[str]) -> str:
    """The text of a function with `given` for the defaults of its parameters, in their order.

    Defaults that are plain numbers and strings stay as they were written.
    """
    tree = ast.parse(text)
    function = next(n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda)))
    lists = (function.args.defaults, function.args.kw_defaults)
    if all(isinstance(d, ast.Constant) for defaults in lists for d in defaults if d is not None):
        return text
    values = iter(given)
    for defaults in lists:
        for index, default in enumerate(defaults):
            if default is not None:
                defaults[index] = ast.parse(next(values), mode="eval").body
    return ast.unparse(tree)


def indented(text: str) -> str:
    """`text`, four spaces further in; spelled anew where that would change a string."""
    moved = textwrap.indent(text, "    ")
    function = ast.parse(f"def f():\n{moved}").body[0]
    if isinstance(function, ast.FunctionDef) and _same(text, function.body):
        return moved
    return textwrap.indent(ast.unparse(ast.parse(text)), "    ")


def outside_of(function: FunctionType, text: str) -> dict[str, Any]:
    """The values that a function takes from around it, by the name that it has for each."""
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    around = {**function.__globals__, **{n: c.cell_contents for n, c in cells if _is_bound(c)}}
    names = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
    taken = names & {*code.co_freevars, *named_in(code)}
    return {name: around[name] for name in sorted(taken) if name in around}


def _is_bound(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def text_at(text: str, lineno: int) -> str:
    """The statement that begins at a line of a module's `text`."""
    node = next(n for n in ast.parse(text).body if n.lineno == lineno)
    return "".join(text.splitlines(keepends=True)[lineno - 1 : node.end_lineno]).rstrip()
