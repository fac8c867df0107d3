"""What a block may not do where its own process is not around it: refused before it is sent."""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy
import torch

from nnsight.capture.rewrite import SAVE
from nnsight.capture.scope import Scope
from nnsight.remote.environment import is_local
from nnsight.remote.errors import global_written, only_changed_here

_FILLED = (list, dict, set, deque, torch.Tensor, numpy.ndarray)
_GROWS = {"append", "extend", "insert", "add", "update", "setdefault", "appendleft", "extendleft"}


class _Read(NamedTuple):
    """What is read: `x.a.b`, as the steps that lead there; `called` if that is a method."""

    steps: tuple[str, ...]
    called: bool


class _Filled(NamedTuple):
    """Something is put into a thing: that of `steps`, as its `attribute` if it has that."""

    steps: tuple[str, ...]
    attribute: str
    lineno: int
    saved: bool = False  # what is put there is saved at once
    updates: bool = False  # `x += 1`

    def is_read_by(self, read: _Read) -> bool:
        """Whether what was put there may be seen in the block, or the thing be saved."""
        last = read.steps[-2] if read.called else read.steps[-1]
        if last in self.steps:  # `save(x)`, `x.method()`
            return True
        return not self.saved and (self.attribute or self.steps[-1]) in read.steps


def refuse_block(scope: Scope, saved_come_back: bool = True) -> None:
    """Refuse a list, dict, object or tensor from outside that the block fills and never saves.

    Here it would be filled; there a copy of it is, which nobody sees.

    Args:
        scope: of the block.
        saved_come_back: whether a server sends what is saved to where it was put.

    Raises:
        NotSendableError: the block does that.
    """
    site, written = scope.block.site, sorted(scope.block.names.declared_global)
    for name in written:
        raise global_written(name, site.filename, _line_of_global(site.node.body, name))
    nodes = [node for statement in scope.block.body for node in ast.walk(statement)]
    filled = [each for each in _filled(nodes) if not (each.saved and saved_come_back)]
    if not filled:
        return
    reads = _reads(nodes)
    for each in filled:
        name = each.steps[0]
        if name in scope.block.bound and not each.updates:
            continue
        found = _outside(each.steps, scope.get(name, scope.globals.get(name)))
        if found is not None and not any(map(each.is_read_by, reads)):
            raise only_changed_here(found[0], type(found[1]).__name__, site.filename, each.lineno)


def _filled(nodes: list[ast.AST]) -> Iterator[_Filled]:
    """What statements fill: `x.append(1)`, `x[k] = 1`, `x.a = 1`, `x += [1]`, `x.add_(1)`."""
    given = {
        id(target): node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if _fills(node.func.attr) and (steps := _steps(node.func.value)):
                saved = any(_is_save(value) for value in node.args)
                yield _Filled(steps, "", node.lineno, saved)
        elif isinstance(node, (ast.Subscript, ast.Attribute)):
            if not isinstance(node.ctx, ast.Load) and (steps := _steps(node.value)):
                attribute = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                yield _Filled(steps, attribute, node.lineno, _is_save(given.get(id(node))))
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield _Filled((node.target.id,), "", node.lineno, updates=True)


def _fills(method: str) -> bool:
    return method in _GROWS or (method.endswith("_") and not method.startswith("_"))


def _is_save(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and (
        (isinstance(node.func, ast.Name) and node.func.id in (SAVE, "save"))
        or (isinstance(node.func, ast.Attribute) and node.func.attr == "save")
    )


def _outside(steps: tuple[str, ...], value: Any) -> tuple[str, Any] | None:
    """The thing on the way along `steps` that would be filled, and its path.

    Args:
        steps: to what is filled.
        value: of the first of them.

    Returns:
        None where they lead into a model, or to what is not known before the block runs.
    """
    path = steps[0]
    for step in steps[1:]:
        if isinstance(value, _FILLED):
            break
        name = step[len(path) + 1 :]
        if not step[len(path)] == "." or name not in getattr(value, "__dict__", ()):
            return None
        path, value = step, vars(value)[name]
    if isinstance(value, (list, dict)) and any(hasattr(type(v), "_place_of") for v in _in(value)):
        return None
    return (path, value) if isinstance(value, _FILLED) or _is_own(value) else None


def _in(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _steps(node: ast.AST) -> tuple[str, ...]:
    """`x`, `x["a"]` and `x["a"].b` of `x["a"].b`; nothing of what does not begin with a name."""
    inner = node
    found: list[str] = []
    while isinstance(inner, (ast.Subscript, ast.Attribute)):
        found.append(ast.unparse(inner))
        inner = inner.value
    return (inner.id, *reversed(found)) if isinstance(inner, ast.Name) else ()


def _reads(nodes: list[ast.AST]) -> list[_Read]:
    """What statements do with names other than to fill them; to save them, for one."""
    inner = {id(n.value) for n in nodes if isinstance(n, (ast.Subscript, ast.Attribute))}
    called = {id(n.func) for n in nodes if isinstance(n, ast.Call)}
    return [
        _Read(steps, isinstance(node, ast.Attribute) and id(node) in called)
        for node in nodes
        if isinstance(node, (ast.Name, ast.Subscript, ast.Attribute)) and id(node) not in inner
        if isinstance(node.ctx, ast.Load) and (steps := _steps(node))
        if not (id(node) in called and isinstance(node, ast.Attribute) and _fills(node.attr))
    ]


def _is_own(value: Any) -> bool:
    """Whether a value is an object of a class of the user's own, which is sent as a copy."""
    if hasattr(type(value), "_place_of"):  # a model, of a class of the user's own or not
        return False
    module = sys.modules.get(type(value).__module__)
    return type(value).__module__ == "types" or (module is not None and is_local(module))


def _line_of_global(body: list[ast.stmt], name: str) -> int:
    nodes = [n for statement in body for n in ast.walk(statement)]
    return next(n.lineno for n in nodes if isinstance(n, ast.Global) and name in n.names)
