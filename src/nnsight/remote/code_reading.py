"""Functions, classes and modules from data: what `code_values.py` wrote."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import torch

from nnsight.capture import portable_code
from nnsight.capture.portable_code import CodeText
from nnsight.remote import made_by_calls
from nnsight.remote.errors import PayloadError
from nnsight.remote.reading import Reader
from nnsight.remote.shown import Show
from nnsight.remote.values import Node


def text_from(node: Node) -> CodeText:
    name, filename, lineno, text, flags, free, cls, top = node
    return CodeText(name, filename, lineno, text, flags, tuple(free), cls, top)


def resolve(module: str, qualname: str) -> Any:
    """The object that a name leads to; this imports its module."""
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def objects(module: str, qualname: str) -> Any:
    """The class or function of a name.

    Raises:
        PayloadError: this side does not have it.
    """
    try:
        return resolve(module, qualname)
    except ImportError as error:
        raise PayloadError(
            f"The block uses `{module}.{qualname}`, and this side has no such module ({error})."
        ) from error
    except AttributeError as error:
        raise PayloadError(
            f"The block uses `{module}.{qualname}`, which this side's version of `{module}` lacks."
        ) from error


def may_be_called(function: Any, given: list[Any]) -> bool:
    """Whether a call may be made to build an object: a block runs whatever it likes anyway."""
    return callable(function)


@dataclass
class CodeReader:
    """Reads what `CodeWriter` wrote.

    Args:
        show: told each text that is compiled, so that errors can show its lines.
        modules: those that came as source, by name.
    """

    show: Show
    modules: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def makers(self) -> dict[str, Callable[[Node, Reader], Any]]:
        return {
            "function": self._function,
            "namespace": self._namespace,
            "class": self._class,
            "module": self._module,
            "method": lambda rest, reader: getattr(reader.value(rest[0]), rest[1]),
            "type variable": self._type_variable,
            "operation of torch": self._operation,
            **made_by_calls.MAKERS,
        }

    def _namespace(self, rest: Node, reader: Reader) -> dict[str, Any]:
        module, names = rest
        found: dict[str, Any] = {"__name__": module, "__builtins__": builtins}
        if module in self.modules:  # its text has run; what has changed since came along
            found = vars(importlib.import_module(module))

        def fill() -> None:
            for name, value in names.items():
                reader.when_made(value, functools.partial(found.__setitem__, name))

        reader.later(fill)
        return found

    def _function(self, rest: Node, reader: Reader) -> FunctionType:
        node, name, qualname, namespace, closure, *more, doc = rest
        defaults, keywords, attributes, annotations = more
        text = text_from(node)
        self.show(text.filename, text.lineno, text.text)
        cells = {name: reader.value(cell) for name, cell in closure}
        function = portable_code.function_of(text, reader.value(namespace), cells, qualname)
        function.__name__, function.__doc__ = name, doc

        def fill() -> None:
            function.__defaults__ = reader.whole(defaults)
            function.__kwdefaults__ = reader.whole(keywords)
            function.__annotations__ = reader.whole(annotations) or {}
            held = reader.value(attributes)
            reader.when_filled(attributes, lambda: function.__dict__.update(held or {}))

        reader.later(fill)
        return function

    def _class(self, rest: Node, reader: Reader) -> type:
        node, qualname, module, namespace, bases, first, free, _, state = rest
        text = text_from(node)
        self.show(text.filename, text.lineno, text.text)
        names = reader.value(namespace)
        names["__name__"] = module
        for name, value in first:
            names[name] = reader.whole(value)
        cells = {name: reader.value(cell) for name, cell in free}
        above = tuple(reader.whole(base) for base in bases)
        with _standing_for(module, names):
            found = portable_code.class_of(text, above, names, cells, qualname)

        def fill() -> None:
            for name, value in state:
                type.__setattr__(found, name, reader.value(value))

        reader.later(fill)
        return found

    def _type_variable(self, rest: Node, reader: Reader) -> Any:
        name, covariant, contravariant, constraints, bound = rest
        given = {"covariant": covariant, "contravariant": contravariant}
        return TypeVar(name, *reader.whole(constraints), bound=reader.whole(bound), **given)  # type: ignore[misc]

    def _operation(self, rest: Node, reader: Reader) -> Any:
        found: Any = torch.ops
        for part in rest[0].split("."):
            found = getattr(found, part)
        return found

    def _module(self, rest: Node, reader: Reader) -> ModuleType:
        try:
            return importlib.import_module(rest[0])
        except ImportError as error:
            raise PayloadError(
                f"The block uses the module `{rest[0]}`, which this side does not have ({error})."
            ) from error


@contextlib.contextmanager
def _standing_for(module: str, names: dict[str, Any]) -> Iterator[None]:
    """Let a class find the module that it was written in while it is made: `dataclass` looks there
    for what its annotations mean, when those are texts."""
    was = sys.modules.get(module)
    if was is not None and vars(was) is names:  # it came as source
        yield
        return
    sys.modules[module] = there = ModuleType(module)
    vars(there).update(names)
    try:
        yield
    finally:
        if was is None:
            del sys.modules[module]
        else:
            sys.modules[module] = was
