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
from nnsight.capture.rewrite import SAVE
from nnsight.capture.scope import Scope

_LIVE = {"eval", "exec", "globals"}  # what sees the module's own variables, and not only by name
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
        mentioned = self.block.names.mentioned
        if mentioned & _LIVE or self.block.names.declared_global:
            return self.module
        later = {n: self.module[n] for n in mentioned if n in self.module and n not in names}
        own = {name: self.module[name] for name in _OF_A_MODULE if name in self.module}
        return {**own, **later, **names}


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
    values = {name: stand_in(v) for name, v in values.items() if v is not missing}
    return Kept(block, values, scope.globals)
