"""`envoy.source`: the calls and assignments in a module's forward, each with its values.

`envoy.source.<operation>` stands for one of them and has `.output`, `.input`, `.inputs` and
`.skip` like an envoy; `.source` of an operation that calls a Python function leads into that
function. Nothing is changed on the module until a block asks, and then for that run only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

from torch.nn import Module

from nnsight.envoy import errors, show_source
from nnsight.envoy.arguments import checked_inputs, first_input, with_first_input
from nnsight.envoy.listing import BOUND, Listing, Op
from nnsight.envoy.places import Forward, Inside, Place, Step, prepare
from nnsight.envoy.probes import Probes
from nnsight.envoy.tree import Node
from nnsight.interleave import request
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, Location
from nnsight.interleave.value import Value


class Source:
    """The operations of a module's forward, or of the function that an operation calls.

    `source.<operation>` is one of them, and so is `source["<operation>"]`; `source.names` are all
    their names, iterating gives all of them, in the order in which they run. Printing shows each
    beside its line.
    """

    def __init__(self, place: Place, listing: Listing | None) -> None:
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


def source_of(envoy: Node) -> Source:
    """The operations of a module's forward. Inside a trace they can be met from now on.

    Raises:
        SourceNotAvailable: the forward has no Python source.
    """
    place = Forward(envoy)
    listing = place.met()
    prepare(place)
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

    def __init__(self, place: Place, name: str, listing: Listing | None = None) -> None:
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
        place = Inside(self)
        listing = place.found()
        if not prepare(place) and listing is None:
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
        self.undo: list[Callable[[], None]] = []
        self.threads = {get_ident()}
        self.visits: dict[Location, int] = {}

    def at_close(self, undo: Callable[[], None]) -> None:
        self.undo.append(undo)

    def close(self) -> None:
        """It has seen enough."""
        self.threads.clear()
        while self.undo:
            self.undo.pop()()

    def offer(self, location: Location, value: Any) -> Any:
        self.see(location.kind, value)
        return value

    def refuse(self, location: Location, error: BaseException) -> None:
        """Nobody waits."""


def watch_twin(
    operation: Operation, twin: Module, see: Callable[[str, Any], None]
) -> Callable[[], None]:
    """Show `see` the values of an operation, by kind, whenever a copy of its module runs.

    Returns:
        What takes it off the copy.
    """
    run: Any = _Onlooker(see)
    outer: list[Step] = []
    place = operation.place
    while isinstance(place, Inside):
        outer.insert(0, place.operation)
        place = place.operation.place
    probes = top = Probes(run, "forward", operation.within.path)
    for each in outer:
        probes = probes.inner(each.name, each.path)
    for kind in (INPUT, OUTPUT):
        probes.ask(operation.name, Location(operation, kind))
    name = place.attribute() if isinstance(place, Forward) else "forward"
    forward = getattr(twin, name)
    twin.__dict__[name] = lambda *args, **kwargs: top.through(forward, args, kwargs)
    run.at_close(lambda: twin.__dict__.pop(name, None))
    return run.close
