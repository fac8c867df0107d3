"""What a block may not do where its own process is not around it: refused before it is sent."""

from __future__ import annotations

import ast

import torch

from nnsight.capture.rewrite import SAVE
from nnsight.capture.scope import Scope
from nnsight.remote.errors import only_changed_here

_GROWS = {"append", "extend", "insert", "add", "update", "setdefault", "appendleft"}


def refuse_block(scope: Scope) -> None:
    """Refuse a list, dict, set or tensor from outside that the block fills and never saves.

    Here it would be filled; there a copy of it is, which nobody sees.

    Raises:
        NotSendableError: the block does that.
    """
    body, bound = scope.block.body, scope.block.bound
    filled = dict(_filled(body))
    if not filled:
        return
    read = _read_otherwise(body)
    for name, lineno in filled.items():
        value = scope.get(name, scope.globals.get(name))
        outside = name not in bound and name not in read
        if outside and isinstance(value, (list, dict, set, torch.Tensor)):
            raise only_changed_here(name, type(value).__name__, scope.block.site.filename, lineno)


def _filled(body: list[ast.stmt]) -> list[tuple[str, int]]:
    """Names that statements fill: `x.append(...)`, `x[k] = ...`."""
    found = [_grown(node) for statement in body for node in ast.walk(statement)]
    return [(target.id, target.lineno) for target in found if isinstance(target, ast.Name)]


def _grown(node: ast.AST) -> ast.expr | None:
    """What a node puts something into."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.value if node.func.attr in _GROWS else None
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        return node.value
    return None


def _read_otherwise(body: list[ast.stmt]) -> set[str]:
    """Names that statements use for more than to fill them; to save them, for one."""
    nodes = [n for statement in body for n in ast.walk(statement)]
    only = {id(_grown(node)) for node in nodes}
    return {n.id for n in nodes if isinstance(n, ast.Name) and id(n) not in only and n.id != SAVE}
