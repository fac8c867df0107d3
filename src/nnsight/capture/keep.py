"""A block that is kept, to run any number of times: each run begins with the names of the first.

What a block that runs once takes from its frame (`scope.py`) is taken here once and for all: the
values that its names had when its `with` was entered, those of the module around it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CellType
from typing import Any

from nnsight.capture.block import Block
from nnsight.capture.errors import illegal_in_kept
from nnsight.capture.names import set_first
from nnsight.capture.rewrite import SAVE
from nnsight.capture.scope import Scope

_LIVE = {"eval", "exec", "globals"}  # what sees the module's own variables, and not only by name
_LOOKING = {*_LIVE, "dir", "locals", "vars"}
_OF_A_MODULE = ("__builtins__", "__name__", "__package__", "__spec__", "__file__")


@dataclass(frozen=True, eq=False)
class Kept:
    """A captured block and the values that its names had."""

    block: Block
    values: Mapping[str, Any]  # by name: those of the frame, and of the module
    module: dict[str, Any]  # the variables of the module that it was written in

    @property
    def saves(self) -> bool:
        """Whether the block saves something."""
        return SAVE in self.block.code.co_freevars

    def used(self) -> dict[str, Any]:
        """Every name that the block looks up outside of itself, with its value."""
        return {**self._later(self.values), **self.values}

    def _later(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Names of the module that were not there yet when the block was written."""
        bound = self.block.bound
        return {
            name: self.module[name]
            for name in self.block.names.mentioned
            if name in self.module and name not in names and name not in bound
        }

    def function(
        self, tracer: Any, save: Callable[[Any], Any], see: Callable[[str, Any], Any]
    ) -> Callable[[], None]:
        """The block as a function without arguments, for one run.

        Args:
            tracer: what `as` gives in the block.
            save: what `x.save()` calls.
            see: makes what the block sees under a name from the name and the value that was kept.
        """
        names = {name: see(name, value) for name, value in self.values.items()}
        cells = {
            name: CellType(names[name]) if name in names else CellType()
            for name in self.block.code.co_freevars
        }
        return Scope.of(self.block, self._globals(names), cells).function(tracer, save)

    def _globals(self, names: Mapping[str, Any]) -> dict[str, Any]:
        if self.block.names.mentioned & _LIVE or self.block.names.declared_global:
            return self.module
        own = {name: self.module[name] for name in _OF_A_MODULE if name in self.module}
        return {**own, **self._later(names), **names}


def keep(scope: Scope, stand_in: Callable[[Any], Any]) -> Kept:
    """What `scope` holds now, kept.

    Args:
        scope: of the block.
        stand_in: makes what is kept from the value of a name.

    Raises:
        SyntaxError: the block binds a name of the function around it, which will be gone.
    """
    block = scope.block
    if block.names.declared_nonlocal:
        raise illegal_in_kept(block.site.filename, block.lineno, block.names.declared_nonlocal)
    missing = object()
    mentioned = block.names.mentioned | scope.cells.keys()
    held = {name: scope.get(name, missing) for name in scope.cells}
    values = {name: held.get(name, scope.globals.get(name, missing)) for name in mentioned}
    unneeded = set[str]() if mentioned & _LOOKING else set_first(block.body)
    values = {
        name: stand_in(value)
        for name, value in values.items()
        if value is not missing and name not in unneeded
    }
    return Kept(block, values, scope.globals)
