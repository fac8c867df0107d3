"""An edit as text: a function of Python that a person can read, and the tensors that it uses.

The first lines of the function give the names that the edit uses the values they had when it was
written. What was a part of the model is a path, in the model that the text is run for.
"""

from __future__ import annotations

import ast
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch

from nnsight.capture import listing
from nnsight.capture.libraries import is_installed
from nnsight.traces import errors
from nnsight.traces.edit import (
    MODEL,
    PAIR,
    TRACER,
    BlockBody,
    Edit,
    Face,
    FunctionBody,
    Place,
    steps_in,
)

PlaceOf = Callable[[object], "str | None"]
GIVEN = ("tracer", "model", "tensors")  # the parameters of a written edit
_LITERALS = (type(None), bool, int, str, bytes, complex, type(...), range)


@dataclass
class _Writing:
    """One edit on its way to text."""

    name: str
    where: str
    place_of: PlaceOf
    lines: dict[str, str] = field(default_factory=dict[str, str])  # by the name that each binds
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    tensors: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def bind(self, name: str, value: Any) -> None:
        """Give `name` its value, before the body.

        Raises:
            ValueError: the value cannot be written, or the name has another one already.
        """
        if name in self.values:
            if self.values[name] is not value:
                raise ValueError(errors.two_values(name, self.where))
            return
        self.values[name] = value
        if isinstance(value, ModuleType):
            self.lines[name] = f"import {value.__name__} as {name}"
        elif isinstance(value, (FunctionType, BuiltinFunctionType, type)) and _importable(value):
            self.lines[name] = f"from {value.__module__} import {value.__name__} as {name}"
        elif isinstance(value, FunctionType):
            self._bind_function(name, value)
        else:
            self.lines[name] = f"{name} = {self.expression(value, name)}"

    def _bind_function(self, name: str, function: FunctionType) -> None:
        text = self._text_of(function, name)
        if function.__name__ == "<lambda>":
            text = f"{name} = {text}"
        elif function.__name__ != name:
            raise self._unwritable(name, function)
        self.lines[name] = text

    def _text_of(self, function: FunctionType, key: str) -> str:
        """A `def` or a lambda, where the values that it takes from around it are bound."""
        text = listing.text_of_function(function)
        if text is None:
            raise self._unwritable(key, function)
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if defaults:
            given = [self.expression(v, f"{key}.default{n}") for n, v in enumerate(defaults)]
            text = listing.with_defaults(text, given)
        for inner, value in listing.outside_of(function, text).items():
            self.bind(inner, value)
        return text

    def expression(self, value: Any, key: str) -> str:
        """Python that makes `value` again."""
        if isinstance(value, Place):
            return _model_at(value.path)
        kind, place = type(value), self.place_of(value)
        if place is not None:
            return _model_at(place)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, key)
        if kind.__module__ == "numpy" and hasattr(value, "dtype"):
            return self._array(value, key)
        if isinstance(value, (FunctionType, BuiltinFunctionType, type)):
            return self._callable(value, key)
        if kind is float:
            return repr(value) if math.isfinite(value) else f'float("{value}")'
        if kind in _LITERALS:
            return repr(value)
        if isinstance(value, (torch.dtype, torch.Size)):
            return repr(value) if isinstance(value, torch.dtype) else f"torch.Size({[*value]})"
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        return self._container(value, key)

    def _container(self, value: Any, key: str) -> str:
        if type(value) is dict:
            pairs = [
                f"{self.expression(k, key)}: {self.expression(v, f'{key}.{k}')}"
                for k, v in value.items()
            ]
            return f"{{{', '.join(pairs)}}}"
        if type(value) is slice:
            return f"slice({self._members((value.start, value.stop, value.step), key)})"
        brackets = {list: "[{}]", tuple: "({})", set: "{{{}}}"}.get(type(value))
        if brackets is None or (type(value) is set and not value):
            raise self._unwritable(key, value)
        comma = "," if type(value) is tuple and len(value) == 1 else ""
        return brackets.format(self._members(value, key) + comma)

    def _members(self, values: Iterable[Any], key: str) -> str:
        return ", ".join(self.expression(v, f"{key}.{n}") for n, v in enumerate(values))

    def _tensor(self, value: torch.Tensor, key: str) -> str:
        name = f"{self.name}.{key}"
        self.tensors[name] = value.detach().cpu().contiguous().clone()
        placed = "" if value.device.type == "cpu" else ".to(model.device)"
        return f"tensors[{name!r}]{placed}"

    def _array(self, value: Any, key: str) -> str:
        """An array of NumPy, or one number of it, kept as a tensor."""
        try:
            tensor = torch.tensor(value)
        except TypeError:  # of strings or objects
            raise self._unwritable(key, value) from None
        return f"{self._tensor(tensor, key)}.numpy(){'' if value.shape else '[()]'}"

    def _callable(self, value: Any, key: str) -> str:
        """A function among other values: a lambda as it is, others by their name."""
        if value.__name__ == "<lambda>":
            return f"({self._text_of(value, key)})"
        self.bind(value.__name__, value)
        return value.__name__

    def _unwritable(self, key: str, value: Any) -> ValueError:
        return ValueError(errors.unwritable(key, value, self.where))

    def function(self, body: str) -> str:
        """The text of the whole function."""
        given = {name: line for name, line in self.lines.items() if name in GIVEN}
        given = {n: line for n, line in given.items() if line != f"{n} = {n}"}
        if not all(line.startswith(f"{name} = ") for name, line in given.items()):
            raise ValueError(errors.reserved_names(sorted(given), self.where))
        others = [line for name, line in self.lines.items() if name not in GIVEN]
        if given:  # last, and at once: the lines above use what they replace
            values = [line.partition(" = ")[2] for line in given.values()]
            others.append(f"{', '.join(given)} = {', '.join(values)}")
        inside = "\n".join(listing.indented(text) for text in (*others, body))
        return f"def {self.name}({', '.join(GIVEN)}):  # {self.where}\n{inside}\n"


def _importable(value: Any) -> bool:
    """Whether another process finds `value` by importing its name.

    What stands in a file of the user's own is written out where it can be.
    """
    module = sys.modules.get(value.__module__ or "")
    if value.__module__ == "__main__" or getattr(module, "__spec__", None) is None:
        return False
    if getattr(module, value.__name__, None) is not value:
        return False
    own = isinstance(value, FunctionType) and not _installed(module)
    return not own or listing.text_of_function(value) is None


def _installed(module: Any) -> bool:
    """Whether a module belongs to Python or to a package, and not to the user's own files."""
    file = module.__spec__.origin or ""
    ours = os.path.join(os.path.dirname(os.path.dirname(errors.__file__)), "")
    return not os.path.isabs(file) or is_installed(file) or file.startswith(ours)


def _model_at(path: str) -> str:
    return f"model.get({path!r})" if path else "model"


def _block(writing: _Writing, body: BlockBody, path: str) -> str:
    """Bind the names of a block; returns its text."""
    kept = body.kept
    if kept.saves or kept.block.names.declared_global or kept.block.cls is not None:
        raise ValueError(errors.unwritable_block(body.where))
    for name, value in kept.used().items():
        writing.bind(name, value)
    given = {TRACER: ["tracer"], MODEL: [_model_at(path)], PAIR: ["tracer", _model_at(path)]}
    for name, value in zip(body.targets, given[body.form], strict=False):
        writing.lines[name] = f"{name} = {value}"
    return listing.text_of(kept.block)


def _again(writing: _Writing, body: TextBody) -> str:
    """An edit that was text before: the function as it stands, inside the new one."""
    pairs = [f"{key!r}: {writing.expression(t, key)}" for key, t in body.tensors.items()]
    return f"{body.text}\nreturn {body.name}(tracer, model, {{{', '.join(pairs)}}})"


def write(edit: Edit, name: str, place_of: PlaceOf) -> tuple[str, dict[str, torch.Tensor]]:
    """The text of `edit` as a function called `name`, and the tensors that it uses.

    Args:
        edit: what to write.
        name: an identifier.
        place_of: where in the model a value is, if it is a part of it.

    Raises:
        ValueError: it uses something that cannot be written.
    """
    writing = _Writing(name, edit.body.where, place_of)
    if isinstance(edit.body, BlockBody):
        body = _block(writing, edit.body, edit.path)
    elif isinstance(edit.body, TextBody):
        body = _again(writing, edit.body)
    else:
        assert isinstance(edit.body, FunctionBody)
        function: Any = edit.body.function
        called = getattr(function, "__name__", "function").replace("<lambda>", "function")
        writing.bind(called, function)
        body = f"{called}(tracer, {_model_at(edit.path)})"
    return writing.function(body), writing.tensors


@dataclass(frozen=True, eq=False)
class TextBody:
    """What an edit does, as read from text."""

    function: Any
    text: str
    name: str  # of the function in the text
    tensors: Mapping[str, torch.Tensor]

    @property
    def where(self) -> str:
        code = self.function.__code__
        return f"{code.co_filename}, line {code.co_firstlineno}"

    @property
    def source(self) -> str:
        return self.text

    @property
    def stepping(self) -> bool:
        return steps_in([ast.parse(self.text)])

    def begin(self, trace: Any, model: Any) -> Callable[[], Any]:
        return partial(self.function, Face(trace, model), model._at(""), self.tensors)
