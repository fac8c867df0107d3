"""`y += v`, `y[i] += v` and `y.z += v` taken apart, so that a probe stands before the store.

Each becomes the steps that Python does in it, in their order: `y` and `i` are evaluated once, the
element is loaded, `v` is evaluated, the result is stored once. What a step leaves for a later one
is in variables that no program can name, and that are deleted at the end.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any


def in_steps(node: ast.AugAssign, probed: Callable[[ast.expr], ast.expr]) -> list[ast.stmt]:
    """The statements that do what `node` does.

    Args:
        probed: makes what is stored from the expression of the result.
    """
    target: Any = node.target
    if isinstance(target, ast.Name):  # storing a variable twice cannot be seen
        store = ast.Name(target.id, ast.Store())
        return [node, _assigned(store, probed(_load(target.id, node)), node)]
    before: list[ast.stmt] = []
    target.value = _held(target.value, before, node)
    if isinstance(target, ast.Subscript):
        target.slice = _held_key(target.slice, before, node)
        old: ast.expr = ast.Subscript(target.value, target.slice, ast.Load())
    else:
        old = ast.Attribute(target.value, target.attr, ast.Load())
    result = _held(ast.copy_location(old, target), before, node)
    change = ast.AugAssign(ast.Name(result.id, ast.Store()), node.op, node.value)
    forget = ast.Delete([ast.Name(_name(number), ast.Del()) for number in range(len(before))])
    return [*before, _at(change, node), _assigned(target, probed(result), node), _at(forget, node)]


def _held(part: ast.expr, before: list[ast.stmt], node: ast.stmt) -> ast.Name:
    """A variable that holds the value of `part`: it is set in `before`."""
    name = _name(len(before))
    before.append(_assigned(ast.Name(name, ast.Store()), part, node))
    return _load(name, part)


def _held_key(key: Any, before: list[ast.stmt], node: ast.stmt) -> Any:
    """The same for what stands in `[...]`, where `a:b` is no expression of its own."""
    if key is None or isinstance(key, ast.Constant):
        return key
    if isinstance(key, ast.Slice):
        for end in ("lower", "upper", "step"):
            setattr(key, end, _held_key(getattr(key, end), before, node))
    elif isinstance(key, ast.Tuple):
        key.elts = [_held_key(part, before, node) for part in key.elts]
    elif isinstance(key, ast.Starred):  # what it goes through may go by only once
        each = ast.copy_location(ast.Tuple([key], ast.Load()), key)
        return ast.copy_location(ast.Starred(_held(each, before, node), ast.Load()), key)
    else:
        return _held(key, before, node)
    return key


def _assigned(target: ast.expr, value: ast.expr, node: ast.AST) -> ast.stmt:
    return _at(ast.Assign([target], value), node)


def _at(statement: ast.stmt, node: ast.AST) -> ast.stmt:
    return ast.fix_missing_locations(ast.copy_location(statement, node))


def _load(name: str, node: ast.AST) -> ast.Name:
    return ast.copy_location(ast.Name(name, ast.Load()), node)


def _name(number: int) -> str:
    return f"<part {number}>"
