"""The edits of a model: which there are, and which take part in a run."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Any, overload

from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.worker import Worker
from nnsight.traces import errors
from nnsight.traces.edit import Edit
from nnsight.traces.model import Model


class Edits(MutableSequence[Edit]):
    """The edits in force in a module: a list that can be changed.

    They run in this order. `edits.append(edit)`, `edits.remove(edit)`, `edits[0]`, `del edits[0]`,
    `edits += other.edits`; an edit may come from another model of the same architecture.

    Args:
        model: the module.
        store: the edits of the whole model, which this changes.
    """

    def __init__(self, model: Model, store: list[Edit]) -> None:
        self._model = model
        self._store = store

    def _shown(self) -> list[Edit]:
        return [edit for edit in self._store if concerns(edit, self._model)]

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Edit]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._shown()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        many = isinstance(index, slice)
        old = self._shown()[index] if many else [self._shown()[index]]
        new = list(value) if many else [value]
        at = self._store.index(old[0]) if old else len(self._store)
        for edit in new:
            self._check(edit)
        self._store[at:at] = new
        for edit in old:
            self._store.remove(edit)

    def __delitem__(self, index: int | slice) -> None:
        found = self._shown()[index]
        for edit in found if isinstance(found, list) else [found]:
            self._store.remove(edit)

    def __len__(self) -> int:
        return len(self._shown())

    def __iter__(self) -> Iterator[Edit]:
        return iter(self._shown())

    def insert(self, index: int, value: Edit) -> None:
        self._check(value)
        after = self._shown()[index:]
        self._store.insert(self._store.index(after[0]) if after else len(self._store), value)

    def append(self, value: Edit) -> None:
        """Let `value` run after the others."""
        self.insert(len(self), value)

    def _check(self, edit: Edit) -> None:
        """See that `edit` can be in force here.

        Raises:
            TypeError: it is no edit.
            AttributeError: the model lacks the module that it was made on.
            ValueError: it was made on a module outside this one.
        """
        if not isinstance(edit, Edit):
            raise TypeError(errors.not_an_edit(edit))
        self._model._at(edit.path)
        if not concerns(edit, self._model):
            raise ValueError(errors.edit_elsewhere(edit.path, self._model.path))

    def __repr__(self) -> str:
        lines = [f"edits of {self._model.path}:"]
        lines += [f"  [{index}] {edit!r}" for index, edit in enumerate(self)] or ["  none"]
        return "\n".join(lines)


def concerns(edit: Edit, model: Model) -> bool:
    """Whether a run of `model` runs the module that `edit` was made on."""
    here = model.path.partition(".")[2]
    return not here or f"{edit.path}.".startswith(f"{here}.") or model._holds(edit.path)


def in_force(model: Model) -> list[Edit]:
    """The edits that take part in a run of `model`."""
    store = model._edits()
    return [edit for edit in store if concerns(edit, model)] if store else []


def workers(trace: Any) -> list[Worker]:
    """A worker for each edit that takes part in the run of `trace`."""
    return [edit.worker(trace) for edit in in_force(trace.model)]


def tell_steps(trace: Any, run: Interleaver) -> None:
    """Warn of edits that were in force in the first step only; called when `run` closes."""
    steps = run.passage.step() + 1 if run.completed and run.passage is not None else 1
    for edit in in_force(trace.model) if steps > 1 else ():
        edit.tell_steps(steps)
