"""`envoy.source`: the calls and assignments in a module's forward, each with its values.

`envoy.source.<operation>` stands for one of them and has `.output`, `.input`, `.inputs` and
`.skip` like an envoy; `.source` of an operation that calls a Python function leads into that
function. Nothing is changed on the module until a block asks, and then for that run only.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import get_ident
from types import FunctionType, MethodType
from typing import Any, Protocol

from torch.nn import Module

from nnsight.envoy import errors, handoff, show_source
from nnsight.envoy.arguments import checked_inputs, first_input, with_first_input
from nnsight.envoy.decorated import cells, innermost, with_inner
from nnsight.envoy.layout import is_container
from nnsight.envoy.probes import FUNCTION, Probes, listing_of
from nnsight.envoy.rewrite import BOUND, Listing, Op
from nnsight.envoy.tree import Node
from nnsight.interleave import request
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, Location
from nnsight.interleave.request import here
from nnsight.interleave.value import Value

_ACCELERATE = "_old_forward"  # where accelerate keeps a forward that it has replaced


class Source:
    """The operations of a module's forward, or of the function that an operation calls.

    `source.<operation>` is one of them, and so is `source["<operation>"]`; `source.names` are all
    their names, iterating gives all of them, in the order in which they run. Printing shows each
    beside its line.
    """

    def __init__(self, place: _Place, listing: Listing | None) -> None:
        self._place = place
        self._known = listing  # None while it is open which function is called

    @property
    def _listing(self) -> Listing:
        if self._known is None:
            self._known = self._place.met()
        return self._known

    @property
    def names(self) -> list[str]:
        """The names of the operations, in the order in which they run."""
        return [op.name for op in self._listing.ops]

    def _find(self, name: str) -> Operation:
        """The operation of a name.

        Raises:
            AttributeError: there is none.
        """
        listing = self._known
        if listing is None:  # whether it is there shows when the function is called
            return Operation(self._place, name)
        op = listing.find(name)
        if op is None:
            text = errors.no_such_operation(self._place.path, name, listing)
            raise AttributeError(text, name=name, obj=None)
        return Operation(self._place, op.name, listing)

    def node(self, name: str) -> Operation:
        """The operation `name`; the same as `source.<name>`."""
        return self._find(name)

    def __getattr__(self, name: str) -> Operation:
        if name in ("_place", "_known") or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # not mounted yet, or what Python looks for
        return self._find(name)

    def __getitem__(self, name: str) -> Operation:
        return self._find(name)

    def __iter__(self) -> Iterator[Operation]:
        return iter([Operation(self._place, name, self._listing) for name in self.names])

    def __len__(self) -> int:
        return len(self._listing.ops)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._listing.find(name) is not None

    def __dir__(self) -> list[str]:
        own = [] if self._known is None else self.names
        return sorted({*super().__dir__(), *own})

    def __repr__(self) -> str:
        return show_source.text(self._listing)

    def _repr_html_(self) -> str:
        return show_source.html(self._listing, self._place.path)


class _Place(Protocol):
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
class _Forward:
    """The forward of a module."""

    node: Node

    @property
    def envoy(self) -> Node:
        return self.node

    @property
    def path(self) -> str:
        return f"{self.envoy.path}.source"

    def called(self) -> Any:
        return handoff.own_forward(self.envoy._module, self._attribute())

    def _attribute(self) -> str:
        """The attribute that the forward is kept in."""
        return _ACCELERATE if _ACCELERATE in vars(self.envoy._module) else "forward"

    def met(self) -> Listing:
        """The operations of the forward.

        Raises:
            SourceNotAvailable: it has no source, or cannot be exchanged.
        """
        found = self._found()
        if isinstance(found, str):
            raise errors.no_source(self.envoy.path, found)
        return found

    def found(self) -> Listing | None:
        """The same, None where there is none."""
        found = self._found()
        return None if isinstance(found, str) else found

    def _found(self) -> Listing | str:
        called = self.called()
        function = innermost(called, "forward")
        if (why := _not_to_be_had(self.envoy._module, function)) is not None:
            return why
        listing = listing_of(function)
        if not isinstance(listing, str) and with_inner(called, function, function) is None:
            return errors.hidden_by_decorator(listing.name)
        return listing

    def probes(self, run: Interleaver) -> Probes:
        envoy: Any = self.envoy  # a node that can be asked for values

        def make() -> Probes:
            module = envoy._module
            handoff.touch([*envoy.tree.above(module), module], run)
            if (above := envoy.parent) is not None:
                prepare_from(above, run)
            started, finished = (
                run.passage.before(Location(envoy, kind)) if run.passage is not None else 0
                for kind in (INPUT, OUTPUT)
            )
            return Probes(run, "forward", envoy.path, started, inside=started > finished)

        return handoff.around(self.envoy._module, run, self._attribute(), make)


def _not_to_be_had(module: Module, function: Any) -> str | None:
    """Why a module's forward cannot be met, for kinds of modules that have none of their own."""
    kind = type(module).__name__
    if kind == "OptimizedModule":
        return errors.compiled()
    if type(module).__module__.startswith("torch.jit"):
        return errors.scripted(kind)
    return errors.container(kind) if function is Module.forward else None


@dataclass(frozen=True)
class _Inside:
    """The function that an operation calls."""

    operation: Operation

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
        return self._of(request.read(Location(self.operation, FUNCTION)))

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


def _prepare(place: _Place) -> bool:
    """Probe the function in the run that this line stands beside, if it stands beside one."""
    worker = here.worker
    if worker is None or worker.run is None or worker.tree is not place.envoy.tree:
        return False
    place.probes(worker.run)
    return True


def prepare_from(envoy: Node, run: Interleaver) -> None:
    """Probe a module and those above it, as far as they can be: one of them may be asked next.

    A block that has read a value in a module finds it running, and then it is too late.
    """
    node: Node | None = envoy
    while node is not None:
        place = _Forward(node)
        if not is_container(node._module) and place.found() is not None:
            place.probes(run)  # and those above
            return
        node = node.parent


def source_of(envoy: Node) -> Source:
    """The operations of a module's forward. Inside a trace they can be met from now on.

    Raises:
        SourceNotAvailable: the forward has no Python source.
    """
    place = _Forward(envoy)
    listing = place.met()
    _prepare(place)
    return Source(place, listing)


class Operation:
    """One call or assignment in a forward.

    Inside a trace, `.output` is what the call returns or the assignment stores; `.input` is the
    first argument of a call and `.inputs` all of them as `(args, kwargs)`. Reading waits until the
    model is there, assigning replaces the value. `.skip(value)` leaves the call out.
    """

    output = Value(OUTPUT, doc="What the call returns, or the assignment stores.")
    inputs = Value(INPUT, pack=checked_inputs, doc="All arguments, as `(args, kwargs)`.")
    input = Value(
        INPUT,
        view=first_input,
        pack=with_first_input,
        doc="The first argument: positional, else the first keyword.",
    )

    def __init__(self, place: _Place, name: str, listing: Listing | None = None) -> None:
        self.place, self.name, self._listing = place, name, listing
        self.path = f"{place.path}.{name}"
        self.within = place.envoy  # the module whose forward leads here
        self._hash = hash((place, name))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Operation) or self.name != other.name:
            return False
        return self.place == other.place

    def __hash__(self) -> int:
        return self._hash

    @property
    def tree(self) -> Any:
        """The wrapped model that it is part of."""
        return self.place.envoy.tree

    @property
    def op(self) -> Op | None:
        """What the text says of it; None while it is open which function it is in."""
        return None if self._listing is None else self._listing.find(self.name)

    def skip(self, value: Any) -> None:
        """Leave the call out: `value` is what it returns.

        Raises:
            OutOfOrderError: the model has passed it.
        """
        request.skip(self, value)

    @property
    def source(self) -> Source:
        """The operations of the function that is called here.

        Raises:
            SourceNotAvailable: it is a module, or has no Python source; or which function it is
                shows only in a trace.
        """
        self._refuse_assignment("source")
        place = _Inside(self)
        listing = place.found()
        if not _prepare(place) and listing is None:
            raise errors.only_inside(self.path)
        return Source(place, listing)

    def watch(self, kind: str, run: Interleaver) -> None:
        """From now on in `run`, offer the value at `kind` whenever the model comes by there.

        Raises:
            ValueError: an assignment has no such value.
            OutOfOrderError: the function is already running, and nothing in it was asked for.
        """
        if kind != OUTPUT:
            self._refuse_assignment(kind)
        self.place.probes(run).ask(self.name, Location(self, kind))

    def _refuse_assignment(self, kind: str) -> None:
        if self.op is not None and self.op.kind == BOUND:
            raise errors.no_such_call(self.path, kind)

    def __repr__(self) -> str:
        op = self.op
        if self._listing is None or op is None:
            return self.path
        return show_source.one(self._listing, op, self.path)

    def _repr_html_(self) -> str:
        return show_source.framed(repr(self))


class _Onlooker:
    """Stands for a run, and sees every value that it is offered."""

    def __init__(self, see: Callable[[str, Any], None]) -> None:
        self.see = see
        self.threads = {get_ident()}
        self.visits: dict[Location, int] = {}

    def offer(self, location: Location, value: Any) -> Any:
        self.see(location.kind, value)
        return value

    def refuse(self, location: Location, error: BaseException) -> None:
        """Nobody waits."""


def watch_for_good(operation: Operation, twin: Module, see: Callable[[str, Any], None]) -> None:
    """Show `see` the values of an operation, by kind, whenever a copy of its module runs."""
    run: Any = _Onlooker(see)
    outer: list[Operation] = []
    place = operation.place
    while isinstance(place, _Inside):
        outer.insert(0, place.operation)
        place = place.operation.place
    probes = top = Probes(run, "forward", operation.within.path)
    for each in outer:
        probes = probes.inner(each.name, each.path)
    for kind in (INPUT, OUTPUT):
        probes.ask(operation.name, Location(operation, kind))
    name = place._attribute() if isinstance(place, _Forward) else "forward"
    forward = getattr(twin, name)
    twin.__dict__[name] = lambda *args, **kwargs: top.through(forward, args, kwargs)
