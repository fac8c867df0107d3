"""`eproperty`: a value of your own making on an Envoy, read and assigned like `.output`.

It looks at a location through functions of yours: one makes what the user sees of the raw value,
others make the raw value again from what was assigned, or from what was changed in place. A module
that computes values between its calls can also offer them, under names of its own (`provide`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from nnsight import nested
from nnsight.interleave import errors, request
from nnsight.interleave.location import Location
from nnsight.interleave.request import Pin, here

Function = Callable[..., Any]


class eproperty:
    """A property of an Envoy whose value is met while the model runs.

        class Attention(Envoy):
            @eproperty(key="output")
            def heads(self, value):
                return value[0].unflatten(-1, (12, -1))

            @heads.postprocess
            def heads(self, heads, value):
                return (heads.flatten(-2), *value[1:])

    The decorated function makes the view from the raw value; one that takes `self` alone gives the
    raw value itself. Give the class to a model by `envoys=`.

    Args:
        key: which value of its owner: `output`, `input` (raw: `(args, kwargs)`), or a name of your
            own for what `provide` offers. By default the name of the property.
        description: what the value is, for whoever prints the model.
        iterate: taken for older code; every value has its visits.
    """

    def __init__(
        self,
        key: str | Function | None = None,
        description: str | None = None,
        iterate: bool = True,
    ) -> None:
        self.key = None if callable(key) else key
        self.description = description
        self.name = ""
        self._view: Function | None = None
        self._pack: Function | None = None
        self._transform: Function | None = None
        if callable(key):  # `@eproperty` without brackets
            self(key)

    def __call__(self, view: Function) -> eproperty:
        """Take the function that makes the view."""
        self.name, self.__doc__ = view.__name__, view.__doc__
        self._view = _with(view, 2) if _count(view) > 1 else None
        return self

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.key = self.key or name

    def preprocess(self, function: Function) -> eproperty:
        """`function(self, value)` makes what the user sees from the raw value."""
        self._view = _with(function, 2)
        return self

    def postprocess(self, function: Function) -> eproperty:
        """`function(self, assigned)` or `(self, assigned, value)` makes the raw value of it."""
        self._pack = _with(function, 3)
        return self

    def transform(self, function: Function) -> eproperty:
        """`function(self, view)` or `(self, view, value)` makes the raw value from a view.

        It is called when the block has done with the view: before it asks for another value, and
        at its end; also before it waits for another block (a barrier, a name), and then again if
        the view has changed since. So what was changed in a view that is a copy is in force when
        the model goes on. A function of the view alone may be a plain `function(view)`.
        """
        self._transform = _with(function, 3) if _count(function) > 1 else _alone(function)
        return self

    def provide(self, owner: Any, value: Any) -> Any:
        """Offer `value` to the blocks of the run that this thread is in, and return what to go on
        with. To be called by the model's own code; outside a trace `value` comes back as it is.
        """
        run = here.run
        if run is None or run.tree is not owner.tree:
            return value
        return run.offer(self._at(owner), value)

    def _at(self, owner: Any) -> Location:
        return Location(owner, self.key or self.name)

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        location = self._at(owner)
        raw = request.read(location)
        view = raw if self._view is None else self._view(owner, raw)
        if self._transform is not None:
            again = partial(self._transform, owner, view, raw)
            worker: Any = request.current(location)
            worker.unfinished.append(_InHand(worker, location, view, again).put_back)
        return view

    def __set__(self, owner: Any, value: Any) -> None:
        location = self._at(owner)
        request.current(location)
        if value is None:
            raise errors.none_value(f"{location.owner.path}.{self.name}")
        if self._pack is not None:
            value = self._pack(owner, value, request.read(location))
        elif self._view is not None:
            raise errors.no_postprocess(f"{location.owner.path}.{self.name}", self.name)
        request.write(location, value)


def described(kind: type) -> list[str]:
    """`.name: description` of each property of a class that has a description."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        for name, value in vars(cls).items():
            if isinstance(value, eproperty) and value.description:
                found[name] = f".{name}: {value.description}"
    return list(found.values())


def _count(function: Function) -> int:
    """How many arguments a function takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in inspect.signature(function).parameters.values())


def _with(function: Function, most: int) -> Function:
    """`function` called with as many of at most `most` arguments as it takes."""
    count = min(_count(function), most)
    return lambda *arguments: function(*arguments[:count])


def _alone(function: Function) -> Function:
    """`function`, which takes the second of three arguments alone."""
    return lambda *arguments: function(arguments[1])


class _InHand:
    """A view that a block has read, and may change in place until it asks for another value.

    Args:
        worker: of the block.
        location: whose value is seen.
        view: what the block was given.
        again: makes the raw value of the view as it is then.
    """

    def __init__(
        self, worker: Any, location: Location, view: Any, again: Callable[[], Any]
    ) -> None:
        self.worker, self.location, self.view, self.again = worker, location, view, again
        self.step = None if worker.pin is None else worker.pin.step
        self.visit = worker.run.comes_by(location)
        self.done = False
        self.copies: list[torch.Tensor] | None = None  # the view as it was put back

    def put_back(self, keeps: bool) -> None:
        """Replace the value, at the visit it was read at. If the block `keeps` the view while it
        waits for another block, this is done again after that, should the view have changed.
        """
        if self.done and not self._is_due():
            return
        worker, self.done = self.worker, True
        pin, worker.pin = worker.pin, None if self.step is None else Pin(self.step)
        try:
            request.write(self.location, self.again(), back=True)
        finally:
            worker.pin = pin
        if keeps:
            self.copies = [tensor.detach().clone() for tensor in nested.leaves(self.view)]

    def _is_due(self) -> bool:
        run, location = self.worker.run, self.location
        if run is None or run.at != location or run.comes_by(location) != self.visit:
            return False  # the model has gone on
        tensors = list(nested.leaves(self.view))
        if self.copies is None or len(tensors) != len(self.copies):
            return True
        return not all(map(nested.same, tensors, self.copies))
