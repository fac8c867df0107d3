"""Functions, classes and modules as data: by name where the other side has them, else by source.

What is installed travels as its name. What is the user's own travels as its text, with the values
that it takes from around it: defaults, closures, the names of its module that it looks up.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import torch

from nnsight.capture import portable_code
from nnsight.capture.portable import globals_named
from nnsight.capture.portable_code import CodeText
from nnsight.remote import made_by_calls
from nnsight.remote.code_reading import resolve
from nnsight.remote.values import Node, Value, Writer

IsLocal = Callable[[ModuleType], bool]

_BUILT_IN = frozenset(v for v in vars(types).values() if isinstance(v, type))
_DEFINED = frozenset({"function", "class", *made_by_calls.MAKERS})
_OPERATIONS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


def text_node(text: CodeText) -> Node:
    name, filename, lineno = text.name, text.filename, text.lineno
    return [name, filename, lineno, text.text, text.flags, list(text.free), text.cls, text.top]


@dataclass
class CodeWriter:
    """Writes what a block's code is made of.

    Args:
        is_local: whether a module is the user's own, and travels by source.
    """

    is_local: IsLocal
    modules: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])  # by source
    imported: dict[str, str] = field(default_factory=dict[str, str])  # by name, and what needs it
    _namespaces: dict[int, tuple[int, dict[str, Value]]] = field(
        default_factory=dict[int, tuple[int, dict[str, Value]]]
    )

    def __call__(self, value: Any, writer: Writer) -> Node | None:
        if isinstance(value, FunctionType):
            made = made_by_calls.function_node(value, writer)
            return self._function(value, writer) if made is None else made
        if type(value) is types.GenericAlias:  # of which Python 3.10 says that it is a class
            return writer.reduced(value)
        if isinstance(value, type):
            return self._class(value, writer)
        if isinstance(value, ModuleType):
            return self._module(value, writer)
        if isinstance(value, made_by_calls.CACHED):
            return ["cached", writer.value(value.__wrapped__), value.cache_parameters()]
        if isinstance(value, TypeVar):
            about = [value.__name__, value.__covariant__, value.__contravariant__]
            bounds = writer.values((value.__constraints__, value.__bound__))
            return ["type variable", *about, *bounds]
        if isinstance(value, _OPERATIONS):
            return ["operation of torch", str(value)]
        return None

    # --- by name ----------------------------------------------------------------------------------

    def _is_own(self, value: Any) -> bool:
        """Whether a function or class is the user's own."""
        module = sys.modules.get(value.__module__ or "")
        if module is None or "<locals>" in value.__qualname__ or value.__name__ == "<lambda>":
            return True
        return module.__name__ == "__main__" or self.is_local(module) or not _leads_to(value)

    def _by_name(self, value: Any, writer: Writer) -> Node:
        self._needs(value.__module__, writer)
        return writer.name(value)

    def _needs(self, module: str, writer: Writer) -> None:
        self.imported.setdefault(module.partition(".")[0], writer.place())

    def settle(self, writer: Writer) -> None:
        """Name what stands in modules that go along: there is one of it, as there is here."""
        for index, value in writer.written.items():
            if writer.nodes[index][0] in _DEFINED:
                if value.__module__ in self.modules and _leads_to(value):
                    writer.nodes[index] = writer.name(value)

    # --- by source --------------------------------------------------------------------------------

    def _function(self, function: FunctionType, writer: Writer) -> Node:
        if not self._is_own(function):
            return self._by_name(function, writer)
        text = portable_code.text_of_function(function)
        if text is None:
            raise writer.refused(
                function,
                "its source is kept nowhere",
                "Define it in a file or a notebook cell, with a `def` of its own.",
            )
        cells = zip(text.free, function.__closure__ or (), strict=True)
        return [
            "function",
            text_node(text),
            function.__name__,
            function.__qualname__,
            self.namespace(
                function.__module__ or "__main__",
                function.__globals__,
                globals_named(function.__code__),
                writer,
            ),
            [[name, writer.value(cell, f".{name}")] for name, cell in cells],
            writer.value(function.__defaults__),
            writer.value(function.__kwdefaults__),
            writer.value(vars(function) or None),
            writer.value({n: a for n, a in _annotations(function) if _is_plain_type(a)} or None),
            function.__doc__,
        ]

    def namespace(
        self, module: str, names: dict[str, Any], needed: Iterable[str], writer: Writer
    ) -> Value:
        """The variables of a module that code looks up; one for all code of that module."""
        known = self._namespaces.get(id(names))
        if known is None:
            written: dict[str, Value] = {}
            known = writer.reserve("", ["namespace", module, written]), written
            self._namespaces[id(names)] = known
        index, written = known
        for name in sorted(set(needed)):
            if name in names and name not in written:
                written[name] = None
                written[name] = writer.value(names[name], f": {name}")
        return [index]

    def _class(self, cls: type, writer: Writer) -> Node:
        if cls in _BUILT_IN or not self._is_own(cls):
            return self._by_name(cls, writer)
        text = portable_code.text_of_class(cls)
        if text is None:
            made = made_by_calls.class_node(cls, writer)
            if made is not None:
                return made
            raise writer.refused(
                cls,
                "its source is kept nowhere",
                "Define it in a file or a notebook cell, with a `class` statement of its own.",
            )
        functions = portable_code.functions_of(cls)
        names = _module_names(cls, functions)
        first = [*portable_code.needed_at_once(text), *_of_annotations(cls, names)]
        free = {n: c for f in functions for n, c in _closure(f) if n in text.free}
        state = _state_of(cls)
        lost = [n for n in first if n not in names and n not in free and not hasattr(builtins, n)]
        if lost:
            raise writer.refused(
                cls,
                f"its statement uses `{lost[0]}`, a variable of the function around it",
                "Move the class to the top of the file.",
            )
        later = portable_code.names_of_class(text)
        return [
            "class",
            text_node(text),
            cls.__qualname__,
            cls.__module__,
            self.namespace(cls.__module__, names, (), writer),
            [writer.value(base) for base in portable_code.bases_of(cls, text)],
            [[n, writer.value(names[n], f": {n}")] for n in first if n in names],
            [[n, writer.value(cell)] for n, cell in free.items()],
            self.namespace(cls.__module__, names, later, writer),
            [[n, writer.value(value, f".{n}")] for n, value in state],
        ]

    def _module(self, module: ModuleType, writer: Writer) -> Node:
        name = module.__name__
        if name == "__main__":
            raise writer.refused(
                module, "it is the script that runs", "Name what you need of it instead."
            )
        if self.is_local(module):
            self._take(module, writer)
        else:
            self._needs(name, writer)
        return ["module", name]

    def _take(self, module: ModuleType, writer: Writer) -> None:
        """Take the source of a module along, and of those of the user's own that it imports."""
        if module.__name__ in self.modules:
            return
        package, text = hasattr(module, "__path__"), _source(module)
        if text is None and package:  # a folder without `__init__.py`
            text = ""
        if text is None:
            raise writer.refused(module, "its source is kept nowhere")
        state = [n for n, v in vars(module).items() if not n.startswith("__") and is_data(v)]
        names = self.namespace(module.__name__, vars(module), state, writer)
        self.modules[module.__name__] = [getattr(module, "__file__", ""), text, package, names]
        above = module.__name__.rpartition(".")[0]
        for name in [*([above] if above else []), *imports_of(text, module.__name__, package)]:
            parents = [name.rsplit(".", depth)[0] for depth in range(name.count(".") + 1)]
            for each in reversed(parents):
                found = sys.modules.get(each)
                if found is not None and self.is_local(found):
                    self._take(found, writer)
                elif found is not None:
                    self._needs(each, writer)


def _leads_to(value: Any) -> bool:
    """Whether the name of `value` leads to it."""
    try:
        return resolve(value.__module__, value.__qualname__) is value
    except (ImportError, AttributeError):
        return False


def _closure(function: FunctionType) -> Iterator[tuple[str, types.CellType]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _annotations(function: FunctionType) -> Iterable[tuple[str, Any]]:
    try:
        return function.__annotations__.items()
    except NameError:  # they are evaluated now, from Python 3.14 on
        return ()


def _of_annotations(cls: type, names: Mapping[str, Any]) -> list[str]:
    """What the annotations of a class that are texts begin with, where `dataclass` heeds it."""
    texts = (text for text in vars(cls).get("__annotations__", {}).values() if type(text) is str)
    begins = {text.partition("[")[0].partition(".")[0].strip() for text in texts}
    return sorted(n for n in begins if any(names.get(n) is heeded for heeded in _HEEDED))


_HEEDED = (typing, dataclasses, typing.ClassVar, dataclasses.InitVar)


def _is_plain_type(annotation: Any) -> bool:
    """Whether an annotation is there wherever Python and torch are."""
    plain = isinstance(annotation, type) and annotation.__module__ in ("builtins", "torch")
    return plain or annotation is None or isinstance(annotation, str)


def _state_of(cls: type) -> list[tuple[str, Any]]:
    """The variables of a class, as they are now: they may have changed since its statement ran."""
    if issubclass(cls, (Enum, tuple)):
        return []
    return [(n, v) for n, v in vars(cls).items() if not n.startswith("__") and is_data(v)]


def is_data(value: Any, depth: int = 4) -> bool:
    """Whether a variable of a class or module holds data, and nothing that its text makes."""
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return depth > 0 and all(is_data(member, depth - 1) for member in value)
    if kind is dict:
        return depth > 0 and all(is_data(member, depth - 1) for member in value.values())
    if value is None or kind in (bool, int, float, complex, str, bytes, bytearray):
        return True
    return isinstance(value, torch.Tensor) or kind.__module__ == "numpy"


def _module_names(cls: type, functions: list[FunctionType]) -> dict[str, Any]:
    if functions:
        return functions[0].__globals__
    module = sys.modules.get(cls.__module__)
    return {} if module is None else vars(module)


def _source(module: ModuleType) -> str | None:
    loader = getattr(module, "__loader__", None)
    try:
        return loader.get_source(module.__name__)  # type: ignore[union-attr]
    except (AttributeError, ImportError, OSError):
        return None


def imports_of(text: str, name: str, package: bool) -> list[str]:
    """The modules that a module's text imports, by their whole names."""
    found: list[str] = []
    here = name if package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = here.split(".")[: here.count(".") + 2 - node.level]
                base = ".".join([*above, *([base] if base else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return found
