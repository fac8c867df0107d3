"""Which names a block binds, and how: what the compiler knows, read off the AST.

A block's names are known before it runs. That is what lets two invokes share a value without a
barrier: a name that a sibling *will* bind can be waited for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

Function = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Names:
    """The names of one block body.

    `fresh` names get a value that does not depend on their old one (`x = ...`, `for x in`);
    `updated` names are only ever changed (`x += 1`, `x = x + y`). A block `accumulates` if it
    updates what others may see without a name of its own: `d["k"] += 1`, `x.n += 1`, a global.
    """

    mentioned: set[str] = field(default_factory=set[str])  # anywhere in the body, at any depth
    fresh: set[str] = field(default_factory=set[str])
    updated: set[str] = field(default_factory=set[str])
    declared_global: set[str] = field(default_factory=set[str])
    declared_nonlocal: set[str] = field(default_factory=set[str])
    accumulates: bool = False

    @property
    def bound(self) -> set[str]:
        return (self.fresh | self.updated) - self.declared_global


def leftmost(value: ast.expr) -> ast.expr:
    """The operand that `a + b + c` evaluates first: `a`."""
    while isinstance(value, ast.BinOp):
        value = value.left
    return value


def updates(node: ast.AST) -> str | None:
    """The name that a statement changes in terms of itself: `x += 1`, `x = x + y`."""
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in _loads(node.value):
            return target.id
    return None


def _loads(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _handed_on(node: ast.AST) -> Iterator[str]:
    """Names that a node binds other than through an `ast.Name`."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The nodes right under `node`, with the name of the field that they are in."""
    for name, values in _fields(node):
        yield from ((name, value) for value in values if isinstance(value, ast.AST))


def words(node: ast.AST) -> Iterator[str]:
    """The names that `node` itself has, whatever it calls them."""
    for _, values in _fields(node):
        yield from (value for value in values if isinstance(value, str))


def _fields(node: ast.AST) -> Iterator[tuple[str, list[object]]]:
    for name, value in ast.iter_fields(node):
        yield name, cast("list[object]", value) if isinstance(value, list) else [value]


def parts(node: ast.AST) -> tuple[list[ast.AST], list[ast.AST]]:
    """The parts of a node that belong to the block's own scope, and those of a scope of its own."""
    if isinstance(node, ast.Lambda):
        return [node.args], [node.body]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        own: list[ast.AST] = [*node.decorator_list, node.args]
        return own + ([node.returns] if node.returns else []), list(node.body)
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *node.keywords], list(node.body)
    return list(ast.iter_child_nodes(node)), []


class _Reader:
    def __init__(self) -> None:
        self.names = Names()

    def read(self, node: ast.AST, comprehension: bool = False) -> None:
        """Take in one node of the block's own scope (or of a comprehension in it)."""
        names = self.names
        if isinstance(node, ast.Name):
            names.mentioned.add(node.id)
            if not isinstance(node.ctx, ast.Load) and not comprehension:
                names.fresh.add(node.id)
            return
        if isinstance(node, ast.Global):
            names.declared_global.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            names.declared_nonlocal.update(node.names)
        elif isinstance(node, ast.NamedExpr):  # binds in the block even inside a comprehension
            names.fresh.add(node.target.id)
        names.accumulates |= isinstance(node, ast.AugAssign)
        updated = updates(node)
        if updated is not None:
            names.updated.add(updated)
            names.mentioned.add(updated)
            assert isinstance(node, (ast.AugAssign, ast.Assign))
            self.read(node.value, comprehension)
            return
        handed_on = list(_handed_on(node))
        names.fresh.update(handed_on)
        names.mentioned.update(handed_on)
        own, elsewhere = parts(node)
        for child in own:
            self.read(child, comprehension or isinstance(node, Comprehension))
        for child in elsewhere:
            names.mentioned |= _mentions(child)


def _mentions(node: ast.AST) -> set[str]:
    """Every name in another scope: any of them may be a free name of the block."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, (ast.Nonlocal, ast.Global)):
            found.update(inner.names)
        found.update(_handed_on(inner))
    return found


def names_of(body: Iterable[ast.AST]) -> Names:
    """The names of the statements `body`, taken as the body of a function."""
    reader = _Reader()
    for node in body:
        reader.read(node)
    names = reader.names
    names.updated -= names.fresh
    if "super" in names.mentioned:
        names.mentioned.add("__class__")
    return names


_RUN_WHOLE = frozenset({"trace", "generate", "scan", "session", "invoke"})
"""Methods that give a manager which lets no error of its body pass for none."""


def set_first(body: Iterable[ast.stmt]) -> set[str]:
    """Names that `body` surely gives a value before anything in it can look at the old one."""
    found, seen = set[str](), set[str]()
    for used, bound, surely in _in_turn(body):
        if surely:
            found |= bound - used - seen
        seen |= used | bound
    return found


def _in_turn(body: Iterable[ast.stmt]) -> Iterator[tuple[set[str], set[str], bool]]:
    """What each statement looks at and binds, and whether it surely does; a `with` is several."""
    for statement in body:
        if isinstance(statement, (ast.With, ast.AsyncWith)):
            for item in statement.items:
                target = [] if item.optional_vars is None else [item.optional_vars]
                yield _loads(item), names_of(target).fresh, True
            whole = _runs_whole(statement)
            for used, bound, sure in _in_turn(statement.body):
                yield used, bound, whole and sure
            continue
        kinds = (ast.Assign, ast.Import, ast.ImportFrom, ast.FunctionDef)
        names = names_of([statement])
        sure = isinstance(statement, kinds)
        yield _loads(statement), names.fresh if sure else names.bound, sure


def _runs_whole(statement: ast.With | ast.AsyncWith) -> bool:
    """Whether what comes after a `with` runs only if all of its body did."""
    calls = [n.func for n in ast.walk(statement) if isinstance(n, ast.Call)]
    called = {n.attr for n in calls if isinstance(n, ast.Attribute)}
    entered = [getattr(item.context_expr, "func", None) for item in statement.items]
    names = {getattr(function, "attr", "") for function in entered}
    return names <= _RUN_WHOLE and "stop" not in called


def mangled(name: str, cls: str | None) -> str:
    """`name` as Python spells it inside class `cls`: `__x` is `_Cls__x`."""
    owner = (cls or "").lstrip("_")
    if not owner or not name.startswith("__") or name.endswith("__"):
        return name
    return f"_{owner}{name}"
