"""Classes and functions that a call made and no statement: what made them, with what it was given.

`Enum("Color", "RED GREEN")`, `make_dataclass`, `namedtuple` and `TypedDict` give classes that have
no source; `singledispatch` and `lru_cache` wrap a function that has one.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from enum import Enum
from types import FunctionType
from typing import Any, TypedDict, is_typeddict

from nnsight.remote.reading import Reader
from nnsight.remote.values import Node, Value, Writer

CACHED: Any = type(functools.lru_cache(len))
_GENERATED = {
    "init": ("__init__",),
    "repr": ("__repr__",),
    "eq": ("__eq__",),
    "order": ("__lt__", "__le__", "__gt__", "__ge__"),
    "frozen": ("__setattr__", "__delattr__"),
}
"""The methods of a dataclass, by the option that has them made."""
_OF_A_FIELD = ("init", "repr", "hash", "compare", "kw_only")


# --- classes --------------------------------------------------------------------------------------


def class_node(cls: type, writer: Writer) -> Node | None:
    """A class as the call that made it; None if it is no such class."""
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        fields = list(cls._fields)  # type: ignore[attr-defined]
        defaults = writer.value(getattr(cls, "_field_defaults", {}))
        return ["named tuple", cls.__name__, fields, defaults, cls.__module__]
    if issubclass(cls, Enum):
        return _enum_node(cls, writer)
    if is_typeddict(cls):
        fields = writer.value(dict(cls.__annotations__))
        return ["typed dict", cls.__name__, fields, cls.__total__, cls.__module__]  # type: ignore[attr-defined]
    if "__dataclass_fields__" in vars(cls):
        return _dataclass_node(cls, writer)
    return None


def _enum_node(cls: type[Enum], writer: Writer) -> Node | None:
    *mixed, base = cls.__bases__
    own = [n for n, v in vars(cls).items() if isinstance(v, FunctionType) and _is_written(v)]
    if len(mixed) > 1 or own:  # a class statement's, and its text is gone
        return None
    members = [[n, writer.value(m.value, f".{n}")] for n, m in cls.__members__.items()]
    kinds = [writer.value(base), *map(writer.value, mixed)]
    return ["enum", cls.__name__, members, kinds, cls.__module__, cls.__qualname__]


def _is_written(function: FunctionType) -> bool:
    """Whether a function of an enum is its author's: its own class does not give it."""
    return function.__module__ not in ("enum", "re")


def _dataclass_node(cls: type, writer: Writer) -> Node:
    given = cls.__dataclass_params__  # type: ignore[attr-defined]
    options = {name: getattr(given, name) for name in (*_GENERATED, "unsafe_hash")}
    options["slots"] = "__slots__" in vars(cls)
    made = {name for option, names in _GENERATED.items() if options[option] for name in names}
    made |= {"__hash__", "__getstate__", "__setstate__", "__replace__"}
    fields = dataclasses.fields(cls)  # those of its bases too, which come first
    own = [field for field in fields if field.name in inspect.get_annotations(cls)]
    names = made | {field.name for field in fields}
    rest = {n: v for n, v in vars(cls).items() if n not in names and _is_of_the_user(n, v)}
    return [
        "dataclass",
        cls.__name__,
        [_field_node(field, writer) for field in own],
        [writer.value(base) for base in cls.__bases__],
        {n: writer.value(v, f".{n}") for n, v in rest.items()},
        options,
        cls.__module__,
        cls.__qualname__,
    ]


def _is_of_the_user(name: str, value: Any) -> bool:
    return isinstance(value, FunctionType) or not name.startswith("__")


def _field_node(field: dataclasses.Field[Any], writer: Writer) -> Node:
    about = {name: getattr(field, name) for name in _OF_A_FIELD}
    kept = dict(field.metadata)
    values: dict[str, Value] = {"metadata": writer.value(kept)} if kept else {}
    for name in ("default", "default_factory"):
        if (value := getattr(field, name)) is not dataclasses.MISSING:
            values[name] = writer.value(value, f".{field.name}")
    kind = field.type if isinstance(field.type, (str, type)) else "typing.Any"
    plain = isinstance(kind, str) or kind.__module__ in ("builtins", "torch")
    return [field.name, writer.value(kind if plain else "typing.Any"), about, values]


def _enum(rest: Node, reader: Reader) -> Any:
    name, members, (base, *mixed), module, qualname = rest
    values = [(member, reader.whole(value)) for member, value in members]
    about = {"module": module, "qualname": qualname}
    if mixed:
        about["type"] = reader.whole(mixed[0])
    return reader.whole(base)(name, values, **about)


def _named_tuple(rest: Node, reader: Reader) -> Any:
    name, fields, defaults, module = rest
    last = list(reader.whole(defaults).values())
    return collections.namedtuple(name, fields, defaults=last, module=module)


def _typed_dict(rest: Node, reader: Reader) -> Any:
    name, fields, total, module = rest
    made: Any = TypedDict(name, reader.whole(fields), total=total)  # type: ignore[operator]
    made.__module__ = module
    return made


def _dataclass(rest: Node, reader: Reader) -> Any:
    name, fields, bases, names, options, module, qualname = rest
    made = dataclasses.make_dataclass(
        name,
        [_field(field, reader) for field in fields],
        bases=tuple(base for base in map(reader.whole, bases) if base is not object),
        namespace={n: reader.whole(value) for n, value in names.items()},
        **options,
    )
    made.__module__, made.__qualname__ = module, qualname
    return made


def _field(node: Node, reader: Reader) -> Any:
    name, kind, about, values = node
    given = {key: reader.whole(value) for key, value in values.items()}
    return name, reader.whole(kind), dataclasses.field(**about, **given)


# --- functions ------------------------------------------------------------------------------------


def function_node(function: FunctionType, writer: Writer) -> Node | None:
    """A function of `singledispatch` as what it chooses from; None for any other."""
    registry = getattr(function, "registry", None)
    if not isinstance(registry, types.MappingProxyType) or not hasattr(function, "dispatch"):
        return None
    chosen = [[writer.value(cls), writer.value(one)] for cls, one in registry.items()]
    return ["single dispatch", writer.value(registry[object]), chosen]


def _single_dispatch(rest: Node, reader: Reader) -> Any:
    first, chosen = rest
    made = functools.singledispatch(reader.whole(first))

    def fill() -> None:
        for cls, function in chosen:
            made.register(reader.whole(cls), reader.whole(function))

    reader.later(fill)
    return made


def _cached(rest: Node, reader: Reader) -> Any:
    function, parameters = rest
    return functools.lru_cache(**parameters)(reader.whole(function))


MAKERS: dict[str, Callable[[Node, Reader], Any]] = {
    "named tuple": _named_tuple,
    "enum": _enum,
    "typed dict": _typed_dict,
    "dataclass": _dataclass,
    "single dispatch": _single_dispatch,
    "cached": _cached,
}
