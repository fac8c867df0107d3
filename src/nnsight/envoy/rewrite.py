"""A forward's source with a probe at every operation: pure AST, knows neither models nor runs.

`h = self.fc(x)` becomes `h = <bind>(1, <call>(0, self.fc, x))`. The three probes are closure cells
of the new function, so its globals, its own cells and its defaults are those of the old one. The
parts of every expression are evaluated in the order in which they were written, and positions
stay, so errors point at the same lines.

Operations are numbered in the order in which Python runs them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from nnsight.capture.definition import Def, definition_of
from nnsight.capture.source import FUTURES
from nnsight.envoy.augmented import in_steps
from nnsight.envoy.listing import (
    BOUND,
    CALLED,
    Listing,
    Op,
    Pattern,
    Several,
    dotted,
    resolved,
    said,
)

CALL, BIND, UNPACK = "<call>", "<bind>", "<unpack>"  # names that no program can write
PROBES = (CALL, BIND, UNPACK)
_FACTORY = "<factory>"
_SEES_THE_CALLER = {"super", "locals", "globals", "vars", "dir", "eval", "exec", "breakpoint"}
_SEES_THE_CALLER |= {"warnings.warn", "sys._getframe", "inspect.currentframe", "inspect.stack"}


# --- the rewrite ----------------------------------------------------------------------------------


class _Rewrite(ast.NodeTransformer):
    """Puts the probes in, and lists the operations in the order in which they run."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []  # kind, and what it is called
        self.places: list[tuple[tuple[str, ...], ast.AST, bool]] = []
        self.patterns: list[Several] = []
        self._loops = 0

    def _add(self, kind: str, said: str, node: ast.AST, callee: tuple[str, ...] = ()) -> int:
        self.found.append((kind, said))
        self.places.append((callee, node, not self._loops))
        return len(self.found) - 1

    def _all(self, nodes: list[Any]) -> list[Any]:
        """The rewritten statements or expressions of a list."""
        out: list[Any] = []
        for node in nodes:
            done = self.visit(node) if node is not None else None
            out.extend(done) if isinstance(done, list) else out.append(done)
        return out

    def _repeated(self, nodes: list[Any]) -> list[Any]:
        """The same, of what may run any number of times."""
        self._loops += 1
        try:
            return self._all(nodes)
        finally:
            self._loops -= 1

    # calls

    def visit_Call(self, node: ast.Call) -> ast.expr:
        names, whole = dotted(node.func)
        func = self.visit(node.func)
        args = self._all(node.args)
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        if whole and ".".join(names) in _SEES_THE_CALLER:  # must be called from here
            node.func, node.args = func, args
            return node
        index = self._add(CALLED, said(node.func), node, names if whole else ())
        return _probe(CALL, index, [func, *args], node, node.keywords)

    # assignments

    def _bind(self, target: ast.expr, value: ast.expr, node: ast.AST) -> ast.expr:
        """`value`, passed through the probe of the assignment to `target`."""
        if isinstance(target, (ast.Tuple, ast.List)):
            pattern = self._pattern(target, node)
            return _probe(UNPACK, self._keep(pattern), [value], node)
        return _probe(BIND, self._target(target, node), [value], node)

    def _target(self, target: ast.expr, node: ast.AST) -> int:
        stored = "_item" if isinstance(target, ast.Subscript) else ""
        return self._add(BOUND, said(target) + stored, node)

    def _pattern(self, target: ast.expr, node: ast.AST) -> Pattern:
        if isinstance(target, ast.Starred):
            return self._pattern(target.value, node)
        if not isinstance(target, (ast.Tuple, ast.List)):
            return self._target(target, node)
        parts = tuple(self._pattern(part, node) for part in target.elts)
        stars = [i for i, part in enumerate(target.elts) if isinstance(part, ast.Starred)]
        return Several(parts, stars[0] if stars else None, False, _ops_in(parts))

    def _keep(self, pattern: Several) -> int:
        self.patterns.append(pattern)
        return len(self.patterns) - 1

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        value = self.visit(node.value)
        if len(node.targets) == 1:
            node.value = self._bind(node.targets[0], value, node)
            node.targets = self._all(node.targets)
            return node
        parts = tuple(self._pattern(target, node) for target in node.targets)
        chain = Several(parts, None, True, _ops_in(parts))
        node.value = _probe(UNPACK, self._keep(chain), [value], node)
        each = ast.Tuple(self._all(node.targets), ast.Store())  # stored from left to right as well
        node.targets = [ast.copy_location(each, node)]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is not None:
            node.value = self._bind(node.target, self.visit(node.value), node)
        node.target = self.visit(node.target)
        return node

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.expr:
        node.value = self._bind(node.target, self.visit(node.value), node)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        node.target, node.value = self.visit(node.target), self.visit(node.value)
        index = self._target(node.target, node)
        return in_steps(node, lambda value: _probe(BIND, index, [value], node))

    # what runs in another order than it is written, or more than once

    def visit_For(self, node: ast.For | ast.AsyncFor) -> ast.stmt:
        node.iter = self.visit(node.iter)
        [node.target] = self._repeated([node.target])
        node.body = self._repeated(node.body)
        node.orelse = self._all(node.orelse)
        return node

    visit_AsyncFor = visit_For

    def visit_While(self, node: ast.While) -> ast.stmt:
        [node.test] = self._repeated([node.test])
        node.body = self._repeated(node.body)
        node.orelse = self._all(node.orelse)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        node.test = self.visit(node.test)
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        for position, value in enumerate(node.values):
            key = node.keys[position]
            node.keys[position] = self.visit(key) if key is not None else None
            node.values[position] = self.visit(value)
        return node

    def _comprehension(self, node: Any) -> ast.expr:
        for position, part in enumerate(node.generators):
            [part.iter] = (self._repeated if position else self._all)([part.iter])
            [part.target] = self._repeated([part.target])
            part.ifs = self._repeated(part.ifs)
        for name in ("key", "value", "elt"):
            if hasattr(node, name):
                setattr(node, name, self._repeated([getattr(node, name)])[0])
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    # scopes of their own

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        self._defaults(node.args)
        [node.body] = self._repeated([node.body])
        return node

    def visit_FunctionDef(self, node: Def) -> ast.stmt:
        node.decorator_list = self._all(node.decorator_list)
        self._defaults(node.args)
        node.body = self._repeated(node.body)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def _defaults(self, arguments: ast.arguments) -> None:
        arguments.defaults = self._all(arguments.defaults)
        arguments.kw_defaults = self._all(arguments.kw_defaults)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:
        return node  # what a class body runs is no operation of the function


def _ops_in(parts: tuple[Pattern, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for part in parts:
        found.extend(part.ops if isinstance(part, Several) else [part])
    return tuple(found)


def _probe(
    probe: str,
    index: int,
    args: list[ast.expr],
    node: Any,
    keywords: list[ast.keyword] | None = None,
) -> ast.Call:
    call = ast.Call(ast.Name(probe, ast.Load()), [ast.Constant(index), *args], keywords or [])
    for part in (call, call.func, call.args[0]):
        ast.copy_location(part, node)
    return call


# --- compiling ------------------------------------------------------------------------------------


def _class_of(function: FunctionType) -> str | None:
    """The class that a function was written in: what `self.__private` depends on."""
    code = function.__code__
    names = getattr(code, "co_qualname", function.__qualname__).split(".")
    return names[-2] if len(names) > 1 and names[-2] != "<locals>" else None


def _compiled(node: Def, function: FunctionType) -> CodeType:
    """The code of `node`, with the free names of `function` and the probes as free names."""
    free = [*function.__code__.co_freevars, *PROBES]
    signature = ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, [])
    top: Any = ast.FunctionDef(_FACTORY, signature, [node], [])
    vars(top)["type_params"] = []  # required from 3.12 on
    if (cls := _class_of(function)) is not None:  # where the compiler mangles `__x` itself
        top = ast.ClassDef(cls, [], [], [top], [])
        vars(top)["type_params"] = []
    tree = ast.Module([ast.copy_location(top, node)], [])
    ast.fix_missing_locations(tree)
    old = function.__code__
    code = compile(tree, old.co_filename, "exec", old.co_flags & FUTURES, dont_inherit=True)
    for name in (_FACTORY, node.name):
        code = next(inner for inner in _inside(code) if inner.co_name == name)
    around = f"{cls}.{_FACTORY}" if cls is not None else _FACTORY
    qualname = getattr(old, "co_qualname", function.__qualname__)
    return _requalified(code, f"{around}.<locals>.{node.name}", qualname)


def _requalified(code: CodeType, ours: str, theirs: str) -> CodeType:
    """`code` with its functions and classes called what they are called in the original."""

    def known(value: Any) -> Any:
        if isinstance(value, CodeType):
            return _requalified(value, ours, theirs)
        inside = isinstance(value, str) and value.startswith(ours)
        return theirs + value[len(ours) :] if inside else value

    code = code.replace(co_consts=tuple(map(known, code.co_consts)))
    if sys.version_info < (3, 11):
        return code
    return code.replace(co_qualname=known(code.co_qualname))


def _inside(code: CodeType) -> Iterator[CodeType]:
    """The codes in a code, the nearest first."""
    level = [code]
    while level:
        level = [c for outer in level for c in outer.co_consts if isinstance(c, CodeType)]
        yield from level


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether two codes speak of the same things.

    Instructions are not compared: the compiler picks some by what the rest of the file imports.
    """
    if one.co_names != other.co_names or one.co_freevars != other.co_freevars:
        return False
    if one.co_varnames != other.co_varnames or one.co_firstlineno != other.co_firstlineno:
        return False
    return len(one.co_consts) == len(other.co_consts) and all(
        map(_same_constant, one.co_consts, other.co_consts)
    )


def _same_constant(one: object, other: object) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _same(one, other)
    if isinstance(one, str) and "<locals>" in one:  # a qualified name
        return isinstance(other, str)
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


def rewritten(function: FunctionType) -> Listing | str:
    """The operations of a function and its code with probes; or why that cannot be had."""
    definition = definition_of(function)
    if definition is None:
        if function.__name__ == "<lambda>":
            return "it is a lambda: write it as a function with `def`"
        return (
            f"the text of `{function.__qualname__}` is kept nowhere, or is not the one that it was "
            "compiled from (its file has changed since it was loaded: reload it, or restart)"
        )
    node, lines = definition.node, definition.lines
    rewritten_asserts = "@pytest_ar" in function.__globals__
    if not rewritten_asserts and not _same(function.__code__, _compiled(node, function)):
        return (
            f"the text of `{function.__qualname__}` is not what the function was compiled from: "
            "something rewrote it when it was imported"
        )
    start = function.__code__.co_firstlineno
    text = tuple(line.rstrip("\r\n") for line in lines[start - 1 : node.end_lineno])
    rewrite = _Rewrite()
    node.body = rewrite._all(node.body)
    code = _compiled(node, function)
    names, meaning = resolved(rewrite.found)
    ops = tuple(
        Op(index, kind, names[index], callee, place.lineno, place.end_lineno, once)  # type: ignore[attr-defined]
        for index, ((kind, _), (callee, place, once)) in enumerate(
            zip(rewrite.found, rewrite.places, strict=True)
        )
    )
    patterns = tuple(rewrite.patterns)
    return Listing(function.__qualname__, start, text, ops, patterns, code, meaning)
