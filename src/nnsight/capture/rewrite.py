"""How the statements of a block are changed before they are compiled.

`x.save()` becomes `save(x)` (nothing is mounted on `object`), an argument-less `super()` gets its
arguments, `x.grad` goes through `gradient_of` (nothing is mounted on tensors), `with
tracer.iter[...] as n:` becomes a loop, and where a sibling block binds a name too, reads of that
name go through `await_name`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from nnsight.capture.names import Comprehension, leftmost, names_of, updates
from nnsight.capture.repeats import as_loop

HELPER = "__nnsight_"  # names of ours in a compiled body: never the user's, never handed back
SAVE, AWAIT, TRACER = f"{HELPER}save__", f"{HELPER}await__", f"{HELPER}tracer__"
GRADIENT, AHEAD = f"{HELPER}gradient__", f"{HELPER}ahead__"


def _as_it_is(value: Any, name: str) -> Any:
    return value


provided: dict[str, Callable[..., Any]] = {GRADIENT: _as_it_is}
"""What compiled bodies call that only a room above this one can say."""


def load(name: str, at: ast.AST) -> ast.expr:
    return ast.copy_location(ast.Name(name, ast.Load()), at)


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) == "super"


class Rewrite(ast.NodeTransformer):
    """`x.save()` → `save(x)`, `x.grad` → `gradient_of(x, "x").grad`, `super()` with arguments.

    No declarations: they move to the top of the function. And an annotated name is a plain one:
    Python forbids `x: int = 1` for a name of an outer scope, as the block's names become.
    """

    def __init__(self, first_argument: str | None) -> None:
        self.first_argument = first_argument
        self.depth = 0  # how many functions and classes deep

    def _nested(self, node: ast.AST) -> ast.AST:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _nested

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        bare = not node.args and not node.keywords
        if bare and isinstance(node.func, ast.Attribute) and node.func.attr == "save":
            if _is_super(node.func.value):
                return node
            node.args, node.func = [node.func.value], load(SAVE, node.func)
        elif bare and isinstance(node.func, ast.Name) and node.func.id == "super":
            if self.depth == 0 and self.first_argument is not None:
                node.args = [load("__class__", node), load(self.first_argument, node)]
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        return as_loop(node, f"{HELPER}step__")

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr != "grad":
            return self.generic_visit(node)
        value = node.value  # in a block inside another it has been done already
        if not (isinstance(value, ast.Call) and getattr(value.func, "id", None) == GRADIENT):
            name = ast.copy_location(ast.Constant(ast.unparse(value)), value)
            self.generic_visit(node)
            call = ast.Call(load(GRADIENT, value), [node.value, name], [])
            node.value = ast.copy_location(call, value)
        return node

    def _declaration(self, node: ast.stmt) -> ast.AST:
        return node if self.depth else ast.copy_location(ast.Pass(), node)

    visit_Global = visit_Nonlocal = _declaration

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if self.depth or not isinstance(node.target, ast.Name):
            return node
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)


class Sharing(ast.NodeTransformer):
    """Reads of shared names become `await_name("x")`, and updates read what they change last.

    `total += model.layer.output.sum()` reads `total`, waits for the model, and adds. With two
    blocks doing so, both would read before either writes. Evaluating the other operands first
    makes each update one step that no other block can come between. The same goes for what blocks
    share without a name of their own: `sums["a"] += ...`, `self.n += ...`, a global.

    A loop tells which shared names its body binds, and each of them as it is bound: in a loop over
    steps, a sibling waits for the value of its own step. So does a block that goes on by `.next()`.
    """

    def __init__(
        self,
        names: frozenset[str],
        global_names: frozenset[str] = frozenset(),
        in_class: bool = False,
    ) -> None:
        self.names = names
        self.global_names = global_names
        self.in_class = in_class  # where a name of ours would become an attribute
        self.loops = 0  # how many loops deep
        self.stepped: set[str] = set()  # names that are bound anew after a `.next()`

    def visit(self, node: ast.AST) -> Any:
        new = super().visit(node)
        names = self.names if self.loops else self.stepped
        if not names or self.in_class or not isinstance(node, _BINDING):
            return new
        told = _tell("bound" if self.loops else "stepped", names_of([node]).bound & names, node)
        return [*(new if isinstance(new, list) else [new]), *told]

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.stepped = _bound_anew(node.body) & self.names
        return self.generic_visit(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        names = names_of(node.body).bound & self.names
        targets = names_of([node.target]).bound & self.names
        first = node.body[0]
        self.loops += 1
        self.generic_visit(node)
        self.loops -= 1
        if not self.in_class:
            told = _tell("loops", names | targets, first) + _tell("bound", targets, first)
            node.body[:0] = told
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not isinstance(node.ctx, ast.Load) or node.id not in self.names:
            return node
        call = ast.Call(load(AWAIT, node), [ast.copy_location(ast.Constant(node.id), node)], [])
        return ast.copy_location(call, node)

    def _scope(self, node: ast.AST) -> ast.AST:
        own = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = names_of(node.body)
            own |= inner.bound - inner.declared_nonlocal
        elif isinstance(node, Comprehension):
            targets = [t for g in node.generators for t in ast.walk(g.target)]
            own |= {t.id for t in targets if isinstance(t, ast.Name)}
        in_class = isinstance(node, ast.ClassDef)
        return Sharing(self.names - own, self.global_names, in_class).generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _scope
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _scope

    def _hoist(self, values: list[ast.expr], at: ast.stmt) -> tuple[list[ast.stmt], list[ast.expr]]:
        """Statements that evaluate `values` in order, and what stands for each afterwards."""
        kept = [f"{HELPER}operand_{index}__" for index in range(len(values))]
        before: list[ast.stmt] = [
            ast.Assign([ast.Name(name, ast.Store())], self.visit(value))
            for name, value in zip(kept, values, strict=True)
        ]
        return before, [load(name, at) for name in kept]

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        name, target = updates(node), node.target
        if self.in_class:
            return self.generic_visit(node)
        if isinstance(target, ast.Attribute):
            before, [target.value, node.value] = self._hoist([target.value, node.value], node)
            return _at([*before, node], node)
        if isinstance(target, ast.Subscript) and not _has_slice(target):
            operands = [target.value, target.slice, node.value]
            before, [target.value, target.slice, node.value] = self._hoist(operands, node)
            return _at([*before, node], node)
        if name not in self.names | self.global_names:
            return self.generic_visit(node)
        before, [node.value] = self._hoist([node.value], node)
        if name in self.global_names:
            return _at([*before, node], node)
        refresh = ast.Assign([ast.Name(name, ast.Store())], self.visit(load(name, node)))
        return _at([*before, refresh, node], node)

    def visit_Assign(self, node: ast.Assign) -> Any:
        name, first = updates(node), leftmost(node.value)
        chained = isinstance(first, ast.Name) and first.id == name
        if name not in self.names or not chained or self.in_class:
            return self.generic_visit(node)
        operations: list[ast.BinOp] = []
        value = node.value
        while isinstance(value, ast.BinOp):
            operations.insert(0, value)
            value = value.left
        before, after = self._hoist([o.right for o in operations], node)
        for operation, operand in zip(operations, after, strict=True):
            operation.right = operand
        if operations:
            operations[0].left = self.visit(first)
        else:
            node.value = self.visit(first)
        return _at([*before, node], node)


_BINDING = (ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def _bound_anew(body: list[ast.stmt]) -> set[str]:
    """Names that `body` binds more than once, and at least once after a `.next()`."""
    seen, again, moved = set[str](), set[str](), False
    for statement in body:
        nodes = list(ast.walk(statement))
        moved = moved or any(isinstance(n, ast.Attribute) and n.attr == "next" for n in nodes)
        bound = set[str](names_of([statement]).bound)
        again |= bound & seen if moved else set()
        seen |= bound
    return again


def _tell(what: str, names: set[str], at: ast.AST) -> list[ast.stmt]:
    """`await_name.what("x", ...)`, if there are names to tell of."""
    if not names:
        return []
    method = ast.Attribute(ast.Name(AWAIT, ast.Load()), what, ast.Load())
    call = ast.Call(method, [ast.Constant(name) for name in sorted(names)], [])
    return [ast.fix_missing_locations(ast.copy_location(ast.Expr(call), at))]


def _has_slice(node: ast.AST) -> bool:
    """Whether there is an `a:b` in `node`, which is no value that a name could hold."""
    return any(isinstance(inner, ast.Slice) for inner in ast.walk(node))


def _at(statements: list[ast.stmt], node: ast.stmt) -> list[ast.stmt]:
    return [ast.fix_missing_locations(ast.copy_location(s, node)) for s in statements]
