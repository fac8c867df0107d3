"""The methods of an envoy that make and list edits, and that open sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nnsight.capture.tracer import Backend
from nnsight.traces.edit import Edit, Editing, Edits, FunctionBody
from nnsight.traces.session import Session

if TYPE_CHECKING:
    from nnsight.envoy.tree import Node


def edit(
    self: Any,
    fn: Callable[[Any, Any], Any] | None = None,
    *,
    inplace: bool = False,
    name: str | None = None,
    backend: Backend | None = None,
) -> Any:
    """Keep the block under this `with`: it runs beside every later run of this module.

        with model.edit() as edited:
            model.transformer.h[0].mlp.output[:] = 0

    `edited` is the same model with the edit in force; `model` is as it was. The block sees the
    whole batch, before the blocks of a trace do, and the values that its names have now.
    `as (tracer, edited)` gives the tracer too, for `tracer.stop()` and the like.

    Args:
        fn: a function `fn(tracer, model)` in place of a block: `edited = model.edit(fn)`.
        inplace: put the edit in force in this model itself. `as tracer` is the tracer then.
        name: what the edit is called in `model.edits`.
        backend: what takes the captured block.

    Returns:
        A context manager; with `fn`, the edited model.
    """
    made = Editing(self, inplace, name, backend)
    if fn is None:
        return made
    made.add(FunctionBody(fn))
    return made.edited


def edits(self: Any) -> Edits:
    """The edits in force in this module, in the order in which they run."""
    return Edits(self, self._edits())


def clear_edits(self: Any) -> None:
    """Take out every edit that was made on this module or on one below it."""
    edits(self).clear()


def stored(self: Node) -> list[Edit]:
    """The edits of the whole model, as seen through this view."""
    return self._view.edits


def holds(self: Node, place: str) -> bool:
    """Whether the module at `place` is in this one, by whatever path."""
    return self._module in self._tree.above(self._at(place)._module)


def session(self: Any, backend: Backend | None = None) -> Session:
    """Run the traces under this `with` as one block: values pass between them without a save.

    The traces in it may be of any model; `nnsight.session()` is the same.
    """
    return Session(backend)
