"""`model.edit()`: a block that is kept with a model and runs beside each of its runs.

An edit is one more worker beside every run of the module that it was made on, before the user's own
blocks, and sees the whole batch. It begins each time with the values that its names had when it was
written. What in it refers to the model is kept as a place, not as an object: an edit holds no model
alive, and means the same in another model of that architecture.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, overload

from nnsight.capture.keep import Kept, keep
from nnsight.capture.traceback import warn
from nnsight.capture.tracer import Backend, Tracer
from nnsight.interleave.errors import MissedProviderError
from nnsight.interleave.worker import Worker
from nnsight.traces import errors
from nnsight.traces.model import Model

TRACER, MODEL, PAIR = "tracer", "model", "pair"  # what `as` gives in the block of an edit


class Body(Protocol):
    """What an edit does: a block that was captured, or a function."""

    @property
    def where(self) -> str:
        """`file, line n`."""
        ...

    def begin(self, trace: Any, model: Any) -> Callable[[], Any]:
        """The body as a function without arguments, for one run beside `model`."""
        ...


@dataclass(frozen=True)
class Place:
    """Stands for a part of the model among the values of an edit."""

    path: str  # from the root; "" is the root itself


@dataclass(frozen=True, eq=False)
class Edit:
    """Something that is done in every run of a model. Immutable; it may stand in many models.

    `model.edits` lists those of a model.
    """

    name: str
    path: str  # of the module that it was made on, from the root; "" is the root
    body: Body

    def __repr__(self) -> str:
        on = f" on {self.path}" if self.path else ""
        return f"<edit {self.name!r}{on}, {self.body.where}>"

    def __deepcopy__(self, memo: Any) -> Edit:
        return self

    def worker(self, trace: Any) -> Worker:
        """One run of it, beside the run of `trace`."""
        envoy = trace.model._at(self.path)
        return Worker(self.body.begin(trace, envoy), where=self.body.where, unmet=self._warn_unmet)

    def _warn_unmet(self, error: MissedProviderError) -> None:
        warn(errors.edit_without_effect(self.name, self.body.where, error))


@dataclass(frozen=True, eq=False)
class BlockBody:
    """The block under a `with model.edit():`."""

    kept: Kept
    form: str  # what `as` gives: TRACER, MODEL or PAIR

    @property
    def where(self) -> str:
        return self.kept.block.where

    def begin(self, trace: Any, model: Any) -> Callable[[], Any]:
        face = Face(trace, model)
        given = {TRACER: face, MODEL: model, PAIR: (face, model)}[self.form]

        def see(name: str, value: Any) -> Any:
            return model._at(value.path) if isinstance(value, Place) else value

        return self.kept.function(given, lambda value: value, see)


@dataclass(frozen=True, eq=False)
class FunctionBody:
    """A function of the tracer and the model."""

    function: Callable[[Any, Any], Any]

    @property
    def where(self) -> str:
        code = getattr(self.function, "__code__", None)
        if code is None:
            return repr(self.function)
        return f"{code.co_filename}, line {code.co_firstlineno}"

    def begin(self, trace: Any, model: Any) -> Callable[[], Any]:
        return partial(self.function, Face(trace, model), model)


class Face:
    """The tracer that the block of an edit sees: of the run that it takes part in.

    What a tracer does not have is the edited module's.
    """

    def __init__(self, trace: Any, model: Any) -> None:
        self.__dict__.update(_trace=trace, _model=model)

    def _owner(self, name: str) -> Any:
        trace = self.__dict__["_trace"]
        model = self.__dict__["_model"]
        return trace if hasattr(type(trace), name) and not hasattr(type(model), name) else model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner(name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._owner(name), name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__dict__["_model"][key]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_model"](*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self.__dict__["_model"])


# --- the edits of a model -------------------------------------------------------------------------


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


def workers(trace: Any) -> Iterable[Worker]:
    """A worker for each edit that takes part in the run of `trace`."""
    return [edit.worker(trace) for edit in in_force(trace.model)]


# --- making one -----------------------------------------------------------------------------------


class Editing(Tracer):
    """What `model.edit()` returns: enter it with `with`.

    Args:
        model: the module to edit.
        inplace: whether the edit is made on `model` itself, or on another view of it.
        name: what the edit is called where edits are listed.
        backend: what takes the captured block; here it becomes an edit.
    """

    deferred = True

    def __init__(
        self,
        model: Model,
        inplace: bool = False,
        name: str | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(backend)
        self.inplace = inplace
        self.name = name
        self.edited = model if inplace else model._twin()

    def execute(self) -> None:
        """Keep the block as an edit; it runs beside later runs of the model."""
        assert self.scope is not None
        block = self.scope.block
        if block.trivial:
            return
        kept = keep(self.scope, self._without_model)
        if kept.saves:
            warn(errors.save_in_edit(block.where))
        self.add(BlockBody(kept, self._form(_target_of(block))))

    def add(self, body: Body) -> None:
        """Put an edit with this body in force."""
        store = self.edited._edits()
        taken = {edit.name for edit in store}
        number = next(n for n in range(1, len(store) + 2) if f"edit_{n}" not in taken)
        place = self.edited._place_of(self.edited) or ""
        store.append(Edit(self.name or f"edit_{number}", place, body))

    def _without_model(self, value: Any) -> Any:
        place = self.edited._place_of(value)
        return value if place is None else Place(place)

    def _form(self, target: ast.expr | None) -> str:
        if isinstance(target, (ast.Tuple, ast.List)):
            return PAIR
        return TRACER if self.inplace else MODEL

    def targets(self, target: ast.expr | None) -> dict[str, Any]:
        """`as edited` is the edited model; where it is the model itself, the tracer, for both."""
        given = self.edited if not self.inplace else Face(self, self.edited)
        if isinstance(target, ast.Name):
            return {target.id: given}
        if not isinstance(target, (ast.Tuple, ast.List)):
            return {}
        if len(target.elts) != 2 or not all(isinstance(t, ast.Name) for t in target.elts):
            raise ValueError(errors.edit_target(ast.unparse(target)))
        names = [t.id for t in target.elts if isinstance(t, ast.Name)]
        return dict(zip(names, (self, self.edited), strict=True))

    def hand_back(self, outermost: bool) -> None:
        """Nothing: the block has not run."""


def _target_of(block: Any) -> ast.expr | None:
    return block.site.node.items[block.site.item].optional_vars
