"""Functions and classes as text, to be compiled again in another process, at the same lines."""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from inspect import CO_OPTIMIZED
from types import CellType, CodeType, FunctionType
from typing import Any

from nnsight.capture.definition import definition_of, lambda_of
from nnsight.capture.errors import not_a_definition
from nnsight.capture.portable import globals_named
from nnsight.capture.source import FUTURES, split, statement_at

_OURS = "__nnsight_"
_FACTORY, _BASE = f"{_OURS}factory__", f"{_OURS}base__"


@dataclass(frozen=True)
class CodeText:
    """A `def`, a lambda or a class."""

    name: str
    filename: str
    lineno: int
    text: str
    flags: int  # of `from __future__ import ...`
    free: tuple[str, ...]  # variables of the functions around it


# --- functions ------------------------------------------------------------------------------------


def text_of_function(function: FunctionType) -> CodeText | None:
    """The text of a function; None where it is kept nowhere."""
    code = function.__code__
    flags = code.co_flags & FUTURES
    if code.co_name == "<lambda>":
        node = lambda_of(function)
        if node is None:
            return None
        text = ast.unparse(node)
        return CodeText("<lambda>", code.co_filename, node.lineno, text, flags, code.co_freevars)
    found = definition_of(function)
    if found is None:
        return None
    start = min([found.node.lineno, *(d.lineno for d in found.node.decorator_list)])
    text = "".join(found.lines[start - 1 : found.node.end_lineno])
    return CodeText(code.co_name, code.co_filename, start, text, flags, code.co_freevars)


@lru_cache(maxsize=1024)
def code_of(text: CodeText) -> CodeType:
    """The code of a function, compiled again.

    Raises:
        SyntaxError: the text defines no such function.
    """
    if text.name == "<lambda>":
        padding = "\n" * (text.lineno - 1)
        tree = compile(
            f"{padding}({text.text})", text.filename, "eval", text.flags | ast.PyCF_ONLY_AST
        )
        assert isinstance(tree, ast.Expression)
        statement: ast.stmt = ast.copy_location(ast.Expr(tree.body), tree.body)
    else:
        statement = _statement(text)
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            raise not_a_definition(text.filename, text.lineno, text.name)
        statement.decorator_list = []
    compiled = compile(_factory(text.free, statement), text.filename, "exec", text.flags)
    for code in _codes_in(compiled):
        if code.co_name == text.name and code.co_freevars == text.free:
            return code
    raise not_a_definition(text.filename, text.lineno, text.name)


def _statement(text: CodeText) -> ast.stmt:
    lines = ["\n"] * (text.lineno - 1) + split(text.text)
    statement = statement_at(lines, text.lineno, text.flags)
    if statement is None or getattr(statement, "name", None) != text.name:
        raise not_a_definition(text.filename, text.lineno, text.name)
    return statement


def _factory(parameters: tuple[str, ...], statement: ast.stmt) -> ast.Module:
    """`statement` in a function that has the free variables for parameters."""
    arguments = ast.arguments([], [ast.arg(n) for n in parameters], None, [], [], None, [])
    factory = ast.FunctionDef(_FACTORY, arguments, [statement], [])
    vars(factory)["type_params"] = []  # a field from 3.12 on, required there
    ast.copy_location(factory, statement)
    return ast.fix_missing_locations(ast.Module([factory], []))


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    """The codes in a code, outer ones first."""
    pending = [code]
    while pending:
        current = pending.pop(0)
        inside = [c for c in current.co_consts if isinstance(c, CodeType)]
        yield from inside
        pending += inside


def function_of(
    text: CodeText,
    globals: dict[str, Any],
    cells: Mapping[str, CellType],
    qualname: str,
) -> FunctionType:
    """A function over the given variables; its defaults are set by the caller."""
    code = code_of(text)
    closure = tuple(cells[name] for name in code.co_freevars)
    function = FunctionType(code, globals, text.name, None, closure)
    function.__qualname__ = qualname
    return function


# --- classes --------------------------------------------------------------------------------------


def text_of_class(cls: type) -> CodeText | None:
    """The text of a class statement; None where it is kept nowhere."""
    functions = functions_of(cls)
    for filename, lines in _texts(cls, functions):
        node = _class_in(lines, cls, functions)
        if node is not None:
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            text = "".join(lines[start - 1 : node.end_lineno])
            flags = functions[0].__code__.co_flags & FUTURES if functions else 0
            return CodeText(cls.__name__, filename, start, text, flags, _free(functions))
    return None


def functions_of(cls: type) -> list[FunctionType]:
    """The functions that the class statement defines, whatever wraps them."""
    found: list[FunctionType] = []
    for value in vars(cls).values():
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        while hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        own = isinstance(inner, FunctionType) and inner.__qualname__.startswith(cls.__qualname__)
        if own and not inner.__code__.co_filename.startswith("<string"):
            found.append(inner)
    return found


def _free(functions: list[FunctionType]) -> tuple[str, ...]:
    names = {name for f in functions for name in f.__code__.co_freevars}
    return tuple(sorted(names - {"__class__"}))


def _texts(cls: type, functions: list[FunctionType]) -> Iterator[tuple[str, list[str]]]:
    """Texts that a class may stand in: files of its methods, its module, cells of a notebook."""
    names = list(dict.fromkeys(f.__code__.co_filename for f in functions))
    module = sys.modules.get(cls.__module__)
    if file := getattr(module, "__file__", None):
        names.append(file)
    if not functions and cls.__module__ == "__main__":  # the cell that ran last, first
        names += [name for name in reversed(linecache.cache) if "ipykernel" in name or "<" in name]
    for name in dict.fromkeys(names):
        if lines := linecache.getlines(name, vars(module) if module is not None else None):
            yield name, lines


def _class_in(lines: list[str], cls: type, functions: list[FunctionType]) -> ast.ClassDef | None:
    """The statement of a class in a text: the last one of its name that its methods stand in."""
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        return None
    first = {f.__code__.co_firstlineno for f in functions}
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == cls.__name__]
    around = [n for n in nodes if all(n.lineno <= x <= (n.end_lineno or x) for x in first)]
    return max(around, key=lambda node: node.lineno, default=None)


def names_of_class(text: CodeText) -> list[str]:
    """The names of its module that making the class looks up, or a method of it."""
    return sorted({n for n in globals_named(_maker(text, 0)) if not n.startswith(_OURS)})


def needed_at_once(text: CodeText) -> list[str]:
    """Those that making the class looks up: its decorators and what stands in its body."""
    maker = _maker(text, 0)
    body = [c for c in maker.co_consts if isinstance(c, CodeType) and c.co_name == text.name]
    inside = [c for code in body for c in code.co_consts if isinstance(c, CodeType)]
    shown = [c for c in inside if c.co_name.startswith("<") or not c.co_flags & CO_OPTIMIZED]
    own = {n for code in (maker, *body) for n in globals_named(code, deep=False)}
    own |= {n for code in shown for n in globals_named(code)}
    bound = {n for code in body for n in code.co_names if n in _stored(code)}
    return sorted(n for n in own - bound if not n.startswith("__"))


def _stored(code: CodeType) -> set[str]:
    return {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}


def _maker(text: CodeText, bases: int) -> CodeType:
    compiled = compile(_class_module(text, bases), text.filename, "exec", text.flags)
    return next(c for c in compiled.co_consts if isinstance(c, CodeType))


def _class_module(text: CodeText, bases: int) -> ast.Module:
    node = _statement(text)
    if not isinstance(node, ast.ClassDef):
        raise not_a_definition(text.filename, text.lineno, text.name)
    node.bases = [ast.Name(f"{_BASE}{index}", ast.Load()) for index in range(bases)]
    node.keywords = [k for k in node.keywords if k.arg != "metaclass"]  # that of the bases
    given = ast.copy_location(ast.Return(ast.Name(text.name, ast.Load())), node)
    module = _factory((*text.free, *(f"{_BASE}{index}" for index in range(bases))), node)
    factory = module.body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body.append(given)
    return ast.fix_missing_locations(module)


def class_of(
    text: CodeText,
    bases: tuple[type, ...],
    globals: dict[str, Any],
    free: Mapping[str, Any],
    qualname: str,
) -> type:
    """The class, made again; this runs its statement.

    Raises:
        SyntaxError: the text defines no such class.
    """
    compiled = compile(_class_module(text, len(bases)), text.filename, "exec", text.flags)
    names: dict[str, Any] = {}
    exec(compiled, globals, names)
    cls = names[_FACTORY](*(free[name] for name in text.free), *bases)
    cls.__qualname__ = qualname
    return cls
