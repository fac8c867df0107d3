"""Where operations are: in the forward of a module, or in a function that an operation calls.

A place knows which function is called there, as far as that is fixed before it is called, and how
it is probed for the length of a run.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any, Protocol, cast

from torch.nn import Module

from nnsight.envoy import errors, handoff
from nnsight.envoy.decorated import cells, innermost, with_inner
from nnsight.envoy.layout import is_container
from nnsight.envoy.listing import Listing, Op
from nnsight.envoy.probes import FUNCTION, Probes, listing_of
from nnsight.envoy.tree import Node
from nnsight.interleave import request
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, SKIP, Location
from nnsight.interleave.request import here

_ACCELERATE = "_old_forward"  # where accelerate keeps a forward that it has replaced


class Step(Protocol):
    """An operation, as the function that it calls sees it."""

    name: str
    path: str
    place: Place

    @property
    def op(self) -> Op | None:
        """What the text says of it, as far as that is known."""
        ...


class Place(Protocol):
    """Where the operations of one function are: a module's forward, or what an operation calls."""

    @property
    def path(self) -> str:
        """`model.layer.source`."""
        ...

    @property
    def envoy(self) -> Node:
        """The module whose forward this is, or leads to this."""
        ...

    def called(self) -> Any:
        """What is called there, if that is known before it is; else None."""
        ...

    def met(self) -> Listing:
        """The operations, where only the run can tell which function it is."""
        ...

    def probes(self, run: Interleaver) -> Probes:
        """What probes the function in `run`, from its next call on."""
        ...


@dataclass(frozen=True)
class Forward:
    """The forward of a module."""

    node: Node

    @property
    def envoy(self) -> Node:
        return self.node

    @property
    def path(self) -> str:
        return f"{self.envoy.path}.source"

    def called(self) -> Any:
        return handoff.own_forward(self.envoy._module, self.attribute())

    def attribute(self) -> str:
        """The attribute that the forward is kept in."""
        return _ACCELERATE if _ACCELERATE in vars(self.envoy._module) else "forward"

    def met(self) -> Listing:
        """The operations of the forward.

        Raises:
            SourceNotAvailable: it has no source, or cannot be exchanged.
        """
        called = self.called()
        function = innermost(called, "forward")
        found = self._listing(function)
        if not isinstance(found, str) and with_inner(called, function, function) is None:
            found = errors.hidden_by_decorator(found.name)
        if isinstance(found, str):
            raise errors.no_source(self.envoy.path, found)
        return found

    def has_source(self) -> bool:
        """Whether there may be operations to meet."""
        return not isinstance(self._listing(innermost(self.called(), "forward")), str)

    def _listing(self, function: Any) -> Listing | str:
        why = _not_to_be_had(self.envoy._module, function)
        return listing_of(function) if why is None else why

    def probes(self, run: Interleaver) -> Probes:
        envoy: Any = self.envoy  # a node that can be asked for values

        def make() -> Probes:
            module = envoy._module
            handoff.touch([*envoy.tree.above(module), module], run)
            if (above := envoy.parent) is not None:
                prepare_from(above, run)
            calls, inside = _calls_of(envoy, run)
            return Probes(run, "forward", envoy.path, calls, inside)

        return handoff.around(self.envoy._module, run, self.attribute(), make)


def _calls_of(envoy: Any, run: Interleaver) -> tuple[int, bool]:
    """How often a module was called in `run` so far, and whether it is running now."""
    if run.passage is None:
        return 0, False
    started = run.passage.before(Location(envoy, INPUT))
    finished = run.passage.before(Location(envoy, OUTPUT))
    at = run.at  # before a forward the module has been called, and is not running yet
    before = at is not None and at.owner == envoy and at.kind in (INPUT, SKIP)
    inside = started > finished and not before
    return (started if inside else finished), inside


def _not_to_be_had(module: Module, function: Any) -> str | None:
    """Why a module's forward cannot be met, for kinds of modules that have none of their own."""
    kind = type(module).__name__
    if kind == "OptimizedModule":
        return errors.compiled()
    if type(module).__module__.startswith("torch.jit"):
        return errors.scripted(kind)
    return errors.container(kind) if function is Module.forward else None


@dataclass(frozen=True)
class Inside:
    """The function that an operation calls."""

    operation: Step

    @property
    def path(self) -> str:
        return f"{self.operation.path}.source"

    @property
    def envoy(self) -> Node:
        return self.operation.place.envoy

    def called(self) -> Any:
        outer, op = self.operation.place.called(), self.operation.op
        if outer is None or op is None:
            return None
        return _known(op.callee, outer, self.envoy._module)

    def found(self) -> Listing | None:
        """The operations, if it is known before the run which function it is."""
        called = self.called()
        return None if called is None else self._of(called)

    def met(self) -> Listing:
        return self._of(request.read(Location(cast(Any, self.operation), FUNCTION)))

    def _of(self, called: Any) -> Listing:
        if isinstance(called, Module):
            node = self.envoy._root()._node_of(called)
            raise errors.is_a_module(self.operation.path, node.path if node is not None else None)
        listing = listing_of(innermost(called))
        if isinstance(listing, str):
            raise errors.no_source(self.operation.path, listing)
        return listing

    def probes(self, run: Interleaver) -> Probes:
        operation = self.operation
        return operation.place.probes(run).inner(operation.name, operation.path)


def _known(callee: tuple[str, ...], outer: Any, module: Module) -> Any:
    """What the dotted name `callee` in the function `outer` means, if that is fixed; else None."""
    function = innermost(outer, "forward")
    if not callee or not isinstance(function, FunctionType):
        return None
    code = function.__code__
    first, *rest = callee
    if first in code.co_varnames or first in code.co_cellvars:
        own = code.co_argcount and first == code.co_varnames[0] and _bound_to(outer) is module
        value = module if own else None
    else:
        own, seen = cells(function), function.__globals__
        value = own.get(first, seen.get(first, vars(builtins).get(first)))
    for name in rest:
        if value is None or isinstance(getattr(type(value), name, None), property):
            return None
        value = getattr(value, name, None)
    return value


def _bound_to(called: Any) -> Any:
    """The object that a method belongs to, behind its decorators."""
    while called is not None and not isinstance(called, MethodType):
        called = getattr(called, "__wrapped__", None)
    return None if called is None else called.__self__


def prepare(place: Place) -> bool:
    """Probe the function in the run that this line stands beside, if it stands beside one."""
    worker = here.worker
    if worker is None or worker.run is None or worker.tree is not place.envoy.tree:
        return False
    if isinstance(worker.run, Interleaver):
        place.probes(worker.run)
    else:  # one in another process, where the model is
        worker.run.prepare(place)
    return True


def prepare_from(envoy: Node, run: Interleaver) -> None:
    """Probe a module and those above it, as far as they can be: one of them may be asked next.

    A block that has read a value in a module finds it running, and then it is too late.
    """
    node: Node | None = envoy
    while node is not None:
        place = Forward(node)
        if not is_container(node._module) and place.has_source():
            place.probes(run)  # and those above
            return
        node = node.parent
