"""Functions and classes of a request of NDIF 0.8, from their source.

That client writes classes as cloudpickle does: a bare class first, then its attributes. Methods
are source; what `dataclass`, `namedtuple` and `Enum` add is bytecode of the client's Python, which
is not run here: these are made again by what made them there.
"""

from __future__ import annotations

import ast
import builtins
import collections
import dataclasses
import enum
import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CellType, CodeType, FunctionType
from typing import Any, ClassVar, Protocol

from nnsight.remote.errors import PayloadError, damaged
from nnsight.remote.ndif08.pickle import Made

_CP = "cloudpickle.cloudpickle."


class Reader(Protocol):
    """What reads the other parts of a message."""

    made: dict[int, Any]

    def value(self, node: Any) -> Any: ...
    def fill(self, node: Made) -> Any: ...


@dataclasses.dataclass
class Compiled:
    """Stands for a function that came as bytecode."""

    name: str = "?"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise PayloadError(
            f"The function `{self.name}` came as bytecode, because its source is kept nowhere. "
            "Define it in a file or a notebook cell, with a `def` of its own."
        )


def makers(reader: Reader) -> Mapping[str, Callable[[Made], Any]]:
    """By name, what makes the parts that cloudpickle writes."""
    return {
        "nnsight.intervention.serialization._fill": reader.fill,
        f"{_CP}_builtin_type": lambda node: _builtin_type(str(node.args[0])),
        f"{_CP}subimport": lambda node: _module(str(node.args[0])),
        f"{_CP}_make_skeleton_class": lambda node: _class(reader, node),
        f"{_CP}_make_skeleton_enum": lambda node: _enum(reader, node),
        f"{_CP}_class_setstate": lambda node: _fill_class(reader, node),
        f"{_CP}_make_function": lambda node: Compiled(),
        f"{_CP}_function_setstate": lambda node: _name_compiled(reader, node),
        f"{_CP}_make_empty_cell": lambda node: CellType(),
        f"{_CP}_make_cell": lambda node: _cell(reader, node),
        f"{_CP}_get_dataclass_field_type_sentinel": lambda node: getattr(
            dataclasses, str(node.args[0])
        ),
        "dataclasses._MISSING_TYPE": lambda node: dataclasses.MISSING,
        "nnsight.tracing.util.SerializedFrame": lambda node: types.SimpleNamespace(),
    }


def _builtin_type(name: str) -> Any:
    found = getattr(types, name, None)
    if not isinstance(found, type):
        raise damaged(f"it names `types.{name}`, which there is not")
    return _no_code if found is CodeType else found


def _no_code(*args: Any) -> None:
    """Bytecode: not made, as it would be of another Python's."""
    return None


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PayloadError(
            f"The block uses the module `{name}`, which this side does not have ({error})."
        ) from None


def _cell(reader: Reader, node: Made) -> CellType:
    cell = reader.made[id(node)] = CellType()
    if node.args:
        cell.cell_contents = reader.value(node.args[0])
    return cell


# --- functions ------------------------------------------------------------------------------------


def function_of(
    text: str, name: str, filename: str, lineno: int, in_class: bool = False
) -> FunctionType:
    """A function with variables of its own, none of which is set yet.

    Args:
        text: its `def` or lambda.
        name: what it is called.
        filename: where it stood.
        lineno: on which line.
        in_class: whether `super()` in it has a class to go by.

    Raises:
        PayloadError: the text holds no such function.
    """
    code = _code_of(text, name, filename, lineno, in_class)
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    cells = tuple(CellType() for _ in code.co_freevars)
    return FunctionType(code, names, name, None, cells)


@lru_cache(maxsize=1024)
def _code_of(text: str, name: str, filename: str, lineno: int, in_class: bool) -> CodeType:
    parameters = [ast.arg("__class__")] if in_class else []
    try:
        tree = compile(text, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        assert isinstance(tree, ast.Module)
        statement = tree.body[0]
        ast.increment_lineno(tree, lineno - 1)
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            statement.decorator_list = []
        arguments = ast.arguments([], parameters, None, [], [], None, [])
        # of its own name it means the one among its variables
        own = [ast.Global([name])] if name.isidentifier() else []
        factory = ast.FunctionDef("factory", arguments, [*own, statement], [])
        vars(factory)["type_params"] = []  # a field from 3.12 on, required there
        module = ast.Module([ast.copy_location(factory, statement)], [])
        whole = compile(ast.fix_missing_locations(module), filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, IndexError, OverflowError) as error:
        raise damaged(
            f"its function `{name}` is not Python as this side knows it ({error})"
        ) from None
    pending = [c for c in whole.co_consts if isinstance(c, CodeType)]
    while pending:
        code = pending.pop(0)
        if code.co_name == name and not set(code.co_freevars) - {"__class__"}:
            return code
        pending += [c for c in code.co_consts if isinstance(c, CodeType)]
    raise damaged(f"the text of its function `{name}` holds no such function")


def _name_compiled(reader: Reader, node: Made) -> Any:
    """What a function of bytecode would be called: all that is taken of it."""
    function, state = node.args[0], node.args[1]
    found = reader.value(function)
    slots = state[1] if isinstance(state, tuple) and len(state) == 2 else {}
    if isinstance(found, Compiled) and isinstance(slots, dict):
        found.name = str(slots.get("__name__", "?"))
    return found


# --- classes --------------------------------------------------------------------------------------


def _class(reader: Reader, node: Made) -> type:
    """A class without its attributes: they come in a call that is made after."""
    kind, name, bases, keywords = (reader.value(arg) for arg in node.args[:4])
    attributes = _attributes_of(node)
    if isinstance(attributes.get("_fields"), tuple) and bases == (tuple,):
        defaults = reader.value(attributes.get("_field_defaults") or {})
        found: Any = collections.namedtuple(
            str(name), attributes["_fields"], defaults=list(defaults.values())
        )
        return found
    given = {k: v for k, v in (keywords or {}).items() if k != "__slots__"}
    slots = attributes.get("__slots__")
    body = {"__slots__": slots} if slots else {}
    return types.new_class(
        str(name), bases, {"metaclass": kind}, lambda names: names.update(given | body)
    )


def _attributes_of(node: Made) -> dict[str, Any]:
    """The attributes that a bare class is given later, not read yet."""
    for call in node.later:
        if call.is_of(f"{_CP}_class_setstate") and len(call.args) > 1:
            state = call.args[1]
            if isinstance(state, tuple) and state and isinstance(state[0], dict):
                return state[0]
    return {}


def _enum(reader: Reader, node: Made) -> Any:
    bases, name, qualname, members, module = (reader.value(arg) for arg in node.args[:5])
    base = bases[-1]
    if not (isinstance(base, type) and issubclass(base, enum.Enum)):
        raise damaged("an enum in it is none")
    kind = type(base)
    names = kind.__prepare__(name, bases)
    for member, value in members.items():
        names[member] = value
    names["__module__"], names["__qualname__"] = module, qualname
    return kind(name, bases, names)


_SKIPPED = {"__dict__", "__weakref__", "__slotnames__", "__module__", "__slots__", "__qualname__"}
_OF_ENUMS = {"__new__", "_new_member_", "_unhashable_values_", "_generate_next_value_"}


def _fill_class(reader: Reader, node: Made) -> Any:
    """Give a class its attributes."""
    cls = reader.value(node.args[0])
    attributes = _attributes_of(node.args[0])
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return cls
    if isinstance(cls, enum.EnumMeta):
        attributes = {k: v for k, v in attributes.items() if k not in _OF_ENUMS}
    slots = attributes.get("__slots__") or ()
    fields = attributes.get("__dataclass_fields__")
    generated: list[str] = []
    for name, part in attributes.items():
        if name in _SKIPPED or name in slots:
            continue
        value = reader.value(part)
        if isinstance(value, Compiled) or isinstance(getattr(value, "__func__", None), Compiled):
            generated.append(name)
        elif isinstance(value, types.GetSetDescriptorType):
            continue
        else:
            type.__setattr__(cls, str(name), value)
    if fields is not None:
        _as_dataclass(cls, generated)
    elif generated:
        own = Compiled(f"{cls.__name__}.{generated[0]}")
        own()
    return cls


def _as_dataclass(cls: Any, generated: list[str]) -> None:
    """Let `dataclass` write the methods again that it had written there."""
    fields, params = cls.__dataclass_fields__, cls.__dataclass_params__
    annotations = inspect.get_annotations(cls)
    for name in annotations.keys() & fields.keys():
        type.__setattr__(cls, name, fields[name])
    options = {
        name: getattr(params, name)
        for name in ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
    }
    for name in ("init", "repr"):
        options[name] = options[name] and f"__{name}__" in generated
    # types that are strings would be looked up in a module that is not here
    cls.__annotations__ = {name: _plain_type(fields.get(name)) for name in annotations}
    dataclasses.dataclass(**options)(cls)
    cls.__annotations__ = annotations


def _plain_type(field: Any) -> Any:
    """A type of the kind that a field of a dataclass has: of the class, for `__init__`, its own."""
    kind = getattr(getattr(field, "_field_type", None), "name", "_FIELD")
    return {"_FIELD_CLASSVAR": ClassVar, "_FIELD_INITVAR": dataclasses.InitVar}.get(kind, object)
