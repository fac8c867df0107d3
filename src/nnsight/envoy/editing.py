"""The methods of an envoy that make and list edits, and that open sessions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnsight.capture.tracer import Backend
from nnsight.traces import edit_file, errors
from nnsight.traces.edit import Edit, Editing, FunctionBody
from nnsight.traces.edits import Edits
from nnsight.traces.session import Session

if TYPE_CHECKING:
    from nnsight.envoy.tree import Node


def edit(
    self: Any,
    fn: Callable[[Any, Any], Any] | None = None,
    *,
    inplace: bool = False,
    name: str | None = None,
    every_step: bool | None = None,
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
        every_step: in a run of several steps (a generation), do it in each of them. Left out, it
            is done in the first, and a warning says so.
        backend: what takes the captured block.

    Returns:
        A context manager; with `fn`, the edited model.
    """
    made = Editing(self, inplace, name, every_step, backend)
    if fn is None:
        return made.offered("model.edit()")
    made.add(FunctionBody(fn))
    return made.edited


def edits(self: Any) -> Edits:
    """The edits in force in this module, in the order in which they run."""
    return Edits(self, self._edits())


def clear_edits(self: Any) -> None:
    """Take out every edit that was made on this module or on one below it."""
    edits(self).clear()


def export_edits(
    self: Any,
    name: str | None = None,
    export_dir: str | os.PathLike[str] | None = None,
    variant: str = "__default__",
) -> Path:
    """Write the edits in force here to a file of Python, with tensors beside it.

    `import_edits` reads them back, in another process too, into any model of this architecture.

    Args:
        name: what they are called; that of the model if it has one.
        export_dir: the folder; one in the user's cache if left out (`NNSIGHT_CACHE_DIR` moves it).
        variant: tells several files of one name apart.

    Returns:
        The Python file, `export_dir/name/variant.py`.

    Raises:
        ValueError: there are no edits, or one uses something that cannot be written.
    """
    found = list(edits(self))
    if not found:
        raise ValueError(errors.nothing_to_export(self.path))
    file = edit_file.place(_name(self, name), export_dir, variant)
    edit_file.save(file, found, self._place_of)
    return file


def import_edits(
    self: Any,
    name: str | None = None,
    export_dir: str | os.PathLike[str] | None = None,
    variant: str = "__default__",
) -> None:
    """Put edits in force that `export_edits` wrote. This runs the Python file that it wrote.

    Args:
        name: what they were called.
        export_dir: the folder they were written to.
        variant: which file of that name.

    Raises:
        FileNotFoundError: there is no such file.
        AttributeError: this model lacks a module that was edited.
    """
    edits(self).extend(edit_file.load(edit_file.place(_name(self, name), export_dir, variant)))


def _name(self: Any, name: str | None) -> str:
    found = name or self._known_as
    if not found:
        raise ValueError(errors.unnamed_export())
    return found


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
    return Session(backend).offered("model.session()")
