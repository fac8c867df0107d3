"""`Block`: a `with` body compiled as a function that can run later, on another thread.

The body becomes the innermost of

    def factory(a, b, ...):         # one parameter per name that the block shares with its frame
        def block():
            nonlocal a              # the ones it binds
            ...                     # the body, untouched but for what `rewrite.py` does

and `block` is then given cells of our choosing. So the body has Python's own scoping: lambdas,
nested functions, comprehensions and classes in it close over its names as in any function.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType
from typing import TypeVar

from nnsight.capture import errors
from nnsight.capture.ahead import ask_ahead
from nnsight.capture.names import Names, mangled, names_of, words
from nnsight.capture.refuse import refuse
from nnsight.capture.rewrite import (
    AHEAD,
    AWAIT,
    GRADIENT,
    HELPER,
    SAVE,
    TRACER,
    Rewrite,
    Sharing,
    load,
    provided,
)
from nnsight.capture.source import FUTURES, Site, adopt

T = TypeVar("T", ast.FunctionDef, ast.ClassDef)

_FACTORY = f"{HELPER}factory__"
_LOOKING = {"breakpoint", "dir", "eval", "exec", "locals", "pdb", "vars"}


@dataclass(frozen=True)
class Outer:
    """What a body needs to know of the code that it stands in, and must not hold (`PerCode`)."""

    name: str
    qualname: str  # "" for a module
    flags: int
    names: frozenset[str]  # those that a body shares with the frame if it mentions them
    first_argument: str | None  # what `super()` means, where there is a `__class__`

    @property
    def is_function(self) -> bool:
        return bool(self.flags & CO_OPTIMIZED)

    @property
    def prefix(self) -> str:
        """What the qualified name of a function in the body begins with."""
        if not self.qualname:
            return ""
        return f"{self.qualname}.<locals>." if self.is_function else f"{self.qualname}."


def outer_of(frame: FrameType) -> Outer:
    """What a body in `frame` needs to know of it."""
    code = frame.f_code
    names: set[str] = set()
    if code.co_flags & CO_OPTIMIZED:
        names = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    elif frame.f_locals is not frame.f_globals:  # a class body, an `exec` with two dictionaries
        names = {*code.co_names, *code.co_freevars}
    has_class = "__class__" in code.co_freevars and code.co_argcount > 0
    first_argument = code.co_varnames[0] if has_class else None
    qualname = getattr(code, "co_qualname", code.co_name)  # new in 3.11
    if not code.co_flags & CO_OPTIMIZED:
        qualname = (
            "" if frame.f_locals is frame.f_globals else frame.f_locals.get("__qualname__", "")
        )
    return Outer(code.co_name, qualname, code.co_flags, frozenset(names), first_argument)


@dataclass(frozen=True, eq=False)
class Block:
    """A compiled body. Immutable, and the same for every run of its `with` statement."""

    code: CodeType
    site: Site
    names: Names
    bound: frozenset[str]  # names the body binds for itself, as the frame spells them
    target: frozenset[str]  # names of the `as` target: always written back
    outer: Outer
    cls: str | None  # the class around it, for `self.__private`
    body: list[ast.stmt]  # rewritten
    only_asks: bool = False  # it only keeps values, and asks for them ahead
    wrapped: bool = False  # a user's own manager stands between, and gives the `as` target
    shared: frozenset[str] = frozenset()  # names whose reads go through `await_name`
    variants: dict[frozenset[str], Block] = field(default_factory=dict[frozenset[str], "Block"])

    @property
    def lineno(self) -> int:
        return self.site.node.lineno

    @property
    def where(self) -> str:
        """`file, line n` of the `with` statement."""
        return f"{self.site.filename}, line {self.lineno}"

    @property
    def trivial(self) -> bool:
        """Whether there is nothing to run: only `pass`, `...`, a docstring."""
        item = self.site.node.items[self.site.item]
        plain = item.optional_vars is None or isinstance(item.optional_vars, ast.Name)
        alone = item is self.site.node.items[-1]
        return plain and alone and all(map(_idle, self.site.node.body))

    def sharing(self, names: frozenset[str]) -> Block:
        """This block beside others: every read of `names` goes through `await_name`."""
        if not names and not self.names.accumulates:
            return self
        if names not in self.variants:
            _, global_names = _shared_names(self.names, self.outer, self.cls)
            sharing = Sharing(names, frozenset(global_names))
            module = sharing.visit(copy.deepcopy(ast.Module(self.body, [])))
            # a block inside finds the names among those of the code around it
            body = [_mention(names, self.site), *module.body]
            code, _, asks = _compile(self.site, self.outer, self.cls, body, self.names, names)
            adopt(code, self.site.lines, self.body)
            self.variants[names] = replace(self, code=code, only_asks=asks, shared=names)
        return self.variants[names]


def _idle(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, (ast.Pass, ast.Global, ast.Nonlocal))


# --- compiling ------------------------------------------------------------------------------------


def _enclosing_class(site: Site) -> str | None:
    """The class that the block stands in, for name mangling: only asked where it matters."""
    tree = compile("".join(site.lines), "<block>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    line = site.node.lineno
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.lineno <= line <= (node.end_lineno or line)
    ]
    return max(around, key=lambda node: node.lineno).name if around else None


def _has_private(body: list[ast.stmt], text: str) -> bool:
    """Whether a name in `body` is spelled differently in a class: `__x`."""
    return "__" in text and any(
        word.startswith("__") and not word.endswith("__")
        for statement in body
        for node in ast.walk(statement)
        for word in words(node)
    )


def _own(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith(HELPER)}


def _shared_names(names: Names, outer: Outer, cls: str | None) -> tuple[set[str], set[str]]:
    """Names the block has in common with its frame, and those that are global after all."""
    mentioned = _own(names.mentioned | names.bound)
    shared = {n for n in mentioned if mangled(n, cls) in outer.names}
    if names.mentioned & _LOOKING:
        shared |= _own(outer.names) - {mangled(n, cls) for n in shared}
    if outer.is_function:
        declared = _own(names.bound) - shared
    else:  # a module: what is only read is read from the module, live
        shared |= _own(names.bound)
        declared = set[str]()
    shared = {name for name in shared if name.isidentifier()}  # `.0` is a comprehension's
    return shared - names.declared_global, declared | names.declared_global


def _innermost(code: CodeType, depth: int) -> CodeType:
    for _ in range(depth):
        code = next(c for c in code.co_consts if isinstance(c, CodeType))
    return code


def _function(name: str, arguments: set[str], body: list[ast.stmt]) -> ast.FunctionDef:
    parameters = [ast.arg(n) for n in sorted(arguments)]
    signature = ast.arguments([], parameters, None, [], [], None, [])
    return _plain(ast.FunctionDef(name, signature, body, []))


def _class(name: str, body: ast.stmt) -> ast.ClassDef:
    return _plain(ast.ClassDef(name, [], [], [body], []))


def _plain(node: T) -> T:
    vars(node)["type_params"] = []  # a field from 3.12 on, required there
    return node


def _mention(names: Iterable[str], site: Site) -> ast.stmt:
    """A statement that never runs, and makes `names` variables of the code that it stands in."""
    seen = ast.Tuple([load(name, site.node) for name in sorted(names)], ast.Load())
    statement = ast.If(ast.Constant(False), [ast.Expr(seen)], [])
    return ast.fix_missing_locations(ast.copy_location(statement, site.node))


def _compile(
    site: Site,
    outer: Outer,
    cls: str | None,
    body: list[ast.stmt],
    names: Names,
    shared: frozenset[str] = frozenset(),
) -> tuple[CodeType, frozenset[str], bool]:
    """The code of a function with `body`, the names that it binds for itself, whether it only asks.

    Args:
        shared: names that other blocks read or bind too.
    """
    local, global_ = _shared_names(names, outer, cls)
    bound = names.bound & local
    head: list[ast.stmt] = []
    if bound:
        head.append(ast.Nonlocal(sorted(bound)))
    if global_:
        head.append(ast.Global(sorted(global_)))
    if names.mentioned & _LOOKING:  # never run, but who looks around sees all names of the frame
        head.append(_mention(local, site))
    block = _function("block", set(), head)
    top: ast.stmt = _function(_FACTORY, local | {SAVE, AWAIT, TRACER, GRADIENT, AHEAD}, [block])
    depth = 2
    if cls is not None:  # inside a class of that name the compiler mangles `__x` itself
        top, depth = _class(cls, top), 3
    tree = ast.fix_missing_locations(ast.Module([ast.copy_location(top, site.node)], []))
    only_asks = False
    if AHEAD in provided:
        body, only_asks = ask_ahead(body, frozenset(bound) - shared)
    block.body += body  # has its locations
    compiled = compile(tree, site.filename, "exec", outer.flags & FUTURES, dont_inherit=True)
    code = _requalified(_innermost(compiled, depth), outer)
    return code, frozenset(mangled(n, cls) for n in bound), only_asks


def _requalified(code: CodeType, outer: Outer) -> CodeType:
    """`code` with its functions and classes called what they would be called in the frame."""
    ours, theirs = f"{_FACTORY}.<locals>.block.<locals>.", outer.prefix

    def known(name: str) -> str:
        _, found, rest = name.partition(ours)
        return theirs + rest if found else name

    def renamed(code: CodeType) -> CodeType:
        constants = tuple(
            renamed(c) if isinstance(c, CodeType) else known(c) if isinstance(c, str) else c
            for c in code.co_consts
        )
        if sys.version_info < (3, 11):
            return code.replace(co_consts=constants)
        return code.replace(co_consts=constants, co_qualname=known(code.co_qualname))

    code = renamed(code).replace(co_name=outer.name)
    if sys.version_info < (3, 11):
        return code
    return code.replace(co_qualname=outer.qualname or outer.name)


def _statements(site: Site, wrapped: bool) -> tuple[list[ast.stmt], frozenset[str]]:
    """What to run: bind the `as` target, enter the managers written after ours, then the body."""
    node = site.node
    body: list[ast.stmt] = node.body
    later = node.items[site.item + 1 :]
    if later and isinstance(node, ast.AsyncWith):
        at = later[0].context_expr
        raise errors.illegal_statement("await", site.filename, at, site.lines[at.lineno - 1])
    if later:
        body = [ast.copy_location(ast.With(later, body), node)]
    target = node.items[site.item].optional_vars
    if target is None or wrapped:
        return body, frozenset()
    bind = ast.copy_location(ast.Assign([target], load(TRACER, node)), node)
    return [bind, *body], frozenset(names_of([bind]).bound)


def compile_block(site: Site, outer: Outer, wrapped: bool, cls: str | None = None) -> Block:
    """The block of `site`, which stands in the code `outer`.

    Args:
        site: the `with` statement.
        outer: the code that it stands in.
        wrapped: whether a user's own manager stands between, and gives the `as` target its value.
        cls: the class around it, where the text does not show it.

    Raises:
        SyntaxError: the body holds what may not stand in a block.
    """
    body, target = _statements(site, wrapped)
    refuse(body, site)
    names = names_of(body)
    if outer.first_argument is not None and "__class__" in names.mentioned:
        names.mentioned.add(outer.first_argument)
    if cls is None and _has_private(body, site.text):
        cls = _enclosing_class(site)
    rewrite = Rewrite(outer.first_argument)
    body = [rewrite.visit(statement) for statement in body]
    code, bound, only_asks = _compile(site, outer, cls, body, names)
    adopt(code, site.lines, body)
    return Block(code, site, names, bound, target, outer, cls, body, only_asks, wrapped)
