"""`model.edit()`: a block that is kept with a model and runs beside each of its runs.

An edit is one more worker beside every run of the module that it was made on, before the user's own
blocks, and sees the whole batch. It begins each time with the values that its names had when it was
written. What in it refers to the model is kept as a place, not as an object: an edit holds no model
alive, and means the same in another model of that architecture.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Protocol

from nnsight.capture import listing
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

    @property
    def source(self) -> str:
        """What was written."""
        ...

    @property
    def stepping(self) -> bool:
        """Whether it goes from step to step by itself."""
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
    every_step: bool | None = None  # None: the first step, and a warning if there are more

    @property
    def source(self) -> str:
        """What the edit does, as it was written."""
        return self.body.source

    @property
    def where(self) -> str:
        """`file, line n`."""
        return self.body.where

    def __repr__(self) -> str:
        on = f" on {self.path}" if self.path else ""
        return f"<edit {self.name!r}{on}, {self.where}>"

    def __deepcopy__(self, memo: Any) -> Edit:
        return self

    def worker(self, trace: Any) -> Worker:
        """One run of it, beside the run of `trace`."""
        envoy = trace.model._at(self.path)
        body = once = self.body.begin(trace, envoy)
        if self.every_step:
            body = partial(self._at_every_step, trace, envoy)
        return Worker(body, where=self.where, unmet=self._warn_unmet, shows=once)

    def _at_every_step(self, trace: Any, envoy: Any) -> None:
        for _ in trace.all():
            self.body.begin(trace, envoy)()

    def tell_steps(self, steps: int) -> None:
        """Warn if the run had more steps than the edit was in force in."""
        if steps > 1 and self.every_step is None and not self.body.stepping:
            warn(errors.first_step_only(self.name, self.where, steps))

    def _warn_unmet(self, error: MissedProviderError) -> None:
        warn(errors.edit_without_effect(self.name, self.where, error))


@dataclass(frozen=True, eq=False)
class BlockBody:
    """The block under a `with model.edit():`."""

    kept: Kept
    form: str  # what `as` gives: TRACER, MODEL or PAIR

    @property
    def where(self) -> str:
        return self.kept.block.where

    @property
    def source(self) -> str:
        return listing.text_of(self.kept.block)

    @property
    def stepping(self) -> bool:
        return steps_in(self.kept.block.body)

    @property
    def targets(self) -> list[str]:
        """The names after `as`."""
        target = target_of(self.kept.block)
        parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
        return [part.id for part in parts if isinstance(part, ast.Name)]

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

    @property
    def source(self) -> str:
        plain = isinstance(self.function, FunctionType)
        text = listing.text_of_function(self.function) if plain else None  # type: ignore[arg-type]
        return text or repr(self.function)

    @property
    def stepping(self) -> bool:
        code = getattr(self.function, "__code__", None)
        return code is not None and not STEPPING.isdisjoint(code.co_names)

    def begin(self, trace: Any, model: Any) -> Callable[[], Any]:
        function, face = self.function, Face(trace, model)
        return lambda: function(face, model)  # which, unlike a `partial`, shows its code


STEPPING = {"iter", "all", "next"}


def steps_in(body: Iterable[ast.AST]) -> bool:
    """Whether statements name one of the verbs that go from step to step."""
    nodes = (node for statement in body for node in ast.walk(statement))
    return any(isinstance(node, ast.Attribute) and node.attr in STEPPING for node in nodes)


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


# --- making one -----------------------------------------------------------------------------------


class Editing(Tracer):
    """What `model.edit()` returns: enter it with `with`.

    Args:
        model: the module to edit.
        inplace: whether the edit is made on `model` itself, or on another view of it.
        name: what the edit is called where edits are listed.
        every_step: whether it is in force in every step of a run, or in the first; None is the
            first too, and warns where there are more.
        backend: what takes the captured block; here it becomes an edit.
    """

    deferred = True

    def __init__(
        self,
        model: Model,
        inplace: bool = False,
        name: str | None = None,
        every_step: bool | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(backend)
        self.inplace = inplace
        self.every_step = every_step
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
        self.add(BlockBody(kept, self._form(target_of(block))))

    def add(self, body: Body) -> None:
        """Put an edit with this body in force."""
        store = self.edited._edits()
        taken = {edit.name for edit in store}
        number = next(n for n in range(1, len(store) + 2) if f"edit_{n}" not in taken)
        place = self.edited._place_of(self.edited) or ""
        store.append(Edit(self.name or f"edit_{number}", place, body, self.every_step))

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


def target_of(block: Any) -> ast.expr | None:
    return block.site.node.items[block.site.item].optional_vars
