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
from typing import Any, Generic

from nnsight.capture.definition import definition_of, lambda_of, texts_of
from nnsight.capture.errors import not_a_definition
from nnsight.capture.portable import globals_named
from nnsight.capture.source import FUTURES, command_line, split, statement_at

_OURS = "__nnsight_"
_FACTORY, _MAKER, _BASE = f"{_OURS}factory__", f"{_OURS}maker__", f"{_OURS}base__"


@dataclass(frozen=True)
class CodeText:
    """A `def`, a lambda or a class."""

    name: str
    filename: str
    lineno: int
    text: str
    flags: int  # of `from __future__ import ...`
    free: tuple[str, ...]  # variables of the functions around it
    cls: str | None = None  # the class around a function, for `self.__private`
    top: bool = False  # whether its name is one of its module


# --- functions ------------------------------------------------------------------------------------


def text_of_function(function: FunctionType) -> CodeText | None:
    """The text of a function; None where it is kept nowhere."""
    code, cls = function.__code__, _class_around(function)
    flags = code.co_flags & FUTURES
    if code.co_name == "<lambda>":
        node = lambda_of(function)
        if node is None:
            return None
        text = ast.unparse(node)
        free = code.co_freevars
        return CodeText("<lambda>", code.co_filename, node.lineno, text, flags, free, cls)
    found = definition_of(function)
    if found is None:
        return None
    start = min([found.node.lineno, *(d.lineno for d in found.node.decorator_list)])
    text = "".join(found.lines[start - 1 : found.node.end_lineno])
    return CodeText(code.co_name, code.co_filename, start, text, flags, code.co_freevars, cls)


def _class_around(function: FunctionType) -> str | None:
    """The class that a `def` stands in, directly or within functions."""
    parts = function.__qualname__.split(".")[:-1]
    while parts and parts[-1] == "<locals>":
        parts = parts[:-2]
    return parts[-1] if parts else None


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
    statements = [statement]
    if text.cls is not None:
        around = ast.ClassDef(text.cls, [], [], [statement], [])
        vars(around)["type_params"] = []
        statements = [ast.copy_location(around, statement)]
    elif text.name.isidentifier() and text.name not in text.free:
        statements = [ast.Global([text.name]), statement]  # one that calls itself finds it there
    compiled = compile(_factory(text.free, *statements), text.filename, "exec", text.flags)
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


def _factory(parameters: tuple[str, ...], *statements: ast.stmt) -> ast.Module:
    """`statements` in a function that has the free variables for parameters."""
    factory = _function(_FACTORY, parameters, list(statements))
    ast.copy_location(factory, statements[-1])
    return ast.fix_missing_locations(ast.Module([factory], []))


def _function(name: str, parameters: tuple[str, ...], body: list[ast.stmt]) -> ast.FunctionDef:
    arguments = ast.arguments([], [ast.arg(n) for n in parameters], None, [], [], None, [])
    function = ast.FunctionDef(name, arguments, body, [])
    vars(function)["type_params"] = []  # a field from 3.12 on, required there
    return function


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
            top = cls.__qualname__ == cls.__name__
            free = _free(functions)
            return CodeText(cls.__name__, filename, start, text, flags, free, None, top)
    return None


def functions_of(cls: type) -> list[FunctionType]:
    """The functions that the class statement defines, whatever wraps them."""
    found: list[FunctionType] = []
    for value in vars(cls).values():
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        while hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        if not isinstance(inner, FunctionType) or inner.__module__ != cls.__module__:
            continue  # what a base or a decorator put there
        own = inner.__qualname__.startswith(f"{cls.__qualname__}.")
        if own and not inner.__code__.co_filename.startswith("<string"):
            found.append(inner)
    return found


def bases_of(cls: type, text: CodeText) -> tuple[Any, ...]:
    """What stands between the parentheses of a class statement."""
    written = vars(cls).get("__orig_bases__", cls.__bases__)  # `Generic[T]`, not `Generic`
    if not getattr(_class_node(text), "type_params", None):
        return written
    return tuple(b for b in written if getattr(b, "__origin__", b) is not Generic)


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
    for function in functions:  # of `python -c`, whose text no file has
        yield from ((function.__code__.co_filename, lines) for lines in texts_of(function))
    if cls.__module__ == "__main__" and (text := command_line()):
        yield "<string>", split(text)


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
    return sorted(n for n in own - bound - {text.name} if not n.startswith("__"))


def _stored(code: CodeType) -> set[str]:
    return {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}


def _maker(text: CodeText, bases: int) -> CodeType:
    """The code of a function that takes the bases and gives the class."""
    compiled = compile(_class_module(text, bases), text.filename, "exec", text.flags)
    return next(c for c in _codes_in(compiled) if c.co_name == _MAKER)


def _class_node(text: CodeText) -> ast.ClassDef:
    node = _statement(text)
    if not isinstance(node, ast.ClassDef):
        raise not_a_definition(text.filename, text.lineno, text.name)
    return node


def _class_module(text: CodeText, bases: int) -> ast.Module:
    node = _class_node(text)
    given = tuple(f"{_BASE}{index}" for index in range(bases))
    node.bases = [ast.Name(name, ast.Load()) for name in given]
    body: list[ast.stmt] = [node, ast.Return(ast.Name(text.name, ast.Load()))]
    if text.name in text.free:
        body.insert(0, ast.Nonlocal([text.name]))
    elif text.top:
        body.insert(0, ast.Global([text.name]))
    maker = ast.copy_location(_function(_MAKER, given, body), node)
    return _factory(text.free, maker)


def class_of(
    text: CodeText,
    bases: tuple[Any, ...],
    globals: dict[str, Any],
    cells: Mapping[str, CellType],
    qualname: str,
) -> type:
    """The class, made again; this runs its statement.

    Raises:
        SyntaxError: the text defines no such class.
    """
    code = _maker(text, len(bases))
    closure = tuple(cells[name] for name in code.co_freevars)
    cls = FunctionType(code, globals, _MAKER, None, closure)(*bases)
    cls.__qualname__ = qualname
    return cls
