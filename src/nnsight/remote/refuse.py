"""What a block may not do where its own process is not around it: refused before it is sent."""

from __future__ import annotations

import ast
import sys
from collections import deque
from typing import Any

import torch

from nnsight.capture.rewrite import SAVE
from nnsight.capture.scope import Scope
from nnsight.remote.environment import is_local
from nnsight.remote.errors import global_written, only_changed_here

_FILLED = (list, dict, set, deque, torch.Tensor)
_GROWS = {"append", "extend", "insert", "add", "update", "setdefault", "appendleft"}


def refuse_block(scope: Scope) -> None:
    """Refuse a list, dict, set or tensor from outside that the block fills and never saves.

    Here it would be filled; there a copy of it is, which nobody sees.

    Raises:
        NotSendableError: the block does that.
    """
    site, written = scope.block.site, sorted(scope.block.names.declared_global)
    for name in written:
        raise global_written(name, site.filename, _line_of_global(site.node.body, name))
    body, bound = scope.block.body, scope.block.bound
    filled = dict(_filled(body))
    if not filled:
        return
    read = _read_otherwise(body)
    for name, lineno in filled.items():
        value = scope.get(name, scope.globals.get(name))
        outside = name not in bound and name not in read
        if outside and (isinstance(value, _FILLED) or _is_own(value)):
            raise only_changed_here(name, type(value).__name__, site.filename, lineno)


def _filled(body: list[ast.stmt]) -> list[tuple[str, int]]:
    """Names that statements fill: `x.append(...)`, `x[k] = ...`."""
    found = [_grown(node) for statement in body for node in ast.walk(statement)]
    return [(target.id, target.lineno) for target in found if target is not None]


def _grown(node: ast.AST) -> ast.Name | None:
    """The name of what a node puts something into: of `x`, or of what lies in it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _root(node.func.value) if node.func.attr in _GROWS else None
    if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
        return _root(node.value)
    return None


def _root(node: ast.expr) -> ast.Name | None:
    """`x` of `x["a"].b`."""
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node if isinstance(node, ast.Name) else None


def _is_own(value: Any) -> bool:
    """Whether a value is an object of a class of the user's own, which is sent as a copy."""
    if hasattr(type(value), "_place_of"):  # a model, of a class of the user's own or not
        return False
    module = sys.modules.get(type(value).__module__)
    return type(value).__module__ == "types" or (module is not None and is_local(module))


def _line_of_global(body: list[ast.stmt], name: str) -> int:
    nodes = [n for statement in body for n in ast.walk(statement)]
    return next(n.lineno for n in nodes if isinstance(n, ast.Global) and name in n.names)


def _read_otherwise(body: list[ast.stmt]) -> set[str]:
    """Names that statements use for more than to fill them; to save them, for one."""
    nodes = [n for statement in body for n in ast.walk(statement)]
    only = {id(_grown(node)) for node in nodes}
    return {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in only and n.id != SAVE}
