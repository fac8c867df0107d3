"""What runs in a probed function: every operation of it is counted, those asked for are offered.

One `Probes` belongs to one run and one place: the forward of a module, or an operation whose own
function is probed. A function meets it as three cells, `<call>`, `<bind>` and `<unpack>`.

An operation that one call of its function meets at most once is visited with that call: its
visit *n* is in the *n*-th call, whether or not earlier calls came by. In a loop every visit counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from threading import get_ident
from types import CellType, FunctionType, MethodType
from typing import Any

from torch.nn import Module

from nnsight.capture.percode import PerCode
from nnsight.envoy import errors
from nnsight.envoy.decorated import innermost, like, with_inner
from nnsight.envoy.listing import Listing, Several
from nnsight.envoy.rewrite import BIND, CALL, UNPACK, rewritten
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, SKIP, Location
from nnsight.interleave.visit import outcome

FUNCTION = "function"
"""The kind of location where an operation's function is met, before it is called."""

_listings: PerCode[dict[str, Listing | str]] = PerCode(dict)


def listing_of(function: Any) -> Listing | str:
    """The operations of a function, found once per code object; or why it has none."""
    if not isinstance(function, FunctionType):
        return errors.not_python(type(function).__name__)
    kept = _listings[function.__code__]
    if "listing" not in kept:
        kept["listing"] = rewritten(function)
    return kept["listing"]


class _Watch:
    """One operation that was asked for, by one name."""

    def __init__(self) -> None:
        self.locations: dict[str, Location] = {}  # by kind
        self.inner: Probes | None = None  # of the function that it calls


class Probes:
    """The operations of one place, in one run.

    Args:
        run: the run that they are offered to.
        name: what the function is called, if known.
        place: what the user calls the place, for messages.
        calls: how often the function was called before it was probed.
        inside: whether one of these calls is still running.
    """

    def __init__(
        self, run: Interleaver, name: str, place: str, calls: int = 0, inside: bool = False
    ) -> None:
        self.run, self.name, self.place = run, name, place
        self.calls, self.missed = calls, calls
        self.inside = inside
        self.running = 0
        self.asked: dict[str, _Watch] = {}
        self.views: list[_View] = []
        run.at_close(self._let_go)

    def _let_go(self) -> None:
        """The run is over: a probed function that outlives it (a generator) calls straight on."""
        for view in self.views:
            view.called = view.probed = None
            view.watched.clear()
        self.views, self.asked = [], {}

    # --- the block's side -------------------------------------------------------------------------

    def ask(self, name: str, location: Location) -> None:
        """From now on offer the value at `location`, of the operation `name`.

        Raises:
            OutOfOrderError: the operation is being passed unseen, or was in a loop.
        """
        watch = self._watch(name)
        if self.inside:
            raise errors.running(location, self.place)
        for view in self.views:
            if (op := view.listing.find(name)) is not None:
                if not op.once and self.missed:
                    raise errors.uncounted(location, self.place)
                self.run.visits.setdefault(location, view.passed(op.index, location.kind))
        if not self.views and self.calls:
            self.run.visits.setdefault(location, self.calls)
        watch.locations[location.kind] = location

    def _watch(self, name: str) -> _Watch:
        watch = self.asked.get(name)
        if watch is None:
            watch = self.asked[name] = _Watch()
            for view in self.views:
                view.look(name, watch)
        return watch

    def inner(self, name: str, place: str) -> Probes:
        """The probes of the function that the operation `name` calls."""
        watch = self._watch(name)
        if watch.inner is None:
            states = [s for view in self.views if (s := view.state_of(name)) is not None]
            calls, inside = states[0] if states else (self.calls, self.inside)
            watch.inner = Probes(self.run, "", place, calls, inside)
        return watch.inner

    # --- the model's side -------------------------------------------------------------------------

    def passed_over(self) -> None:
        """The function would be called now, but is skipped."""
        self.calls, self.inside = self.calls + 1, False

    def through(
        self, called: Any, args: Sequence[Any], kwargs: dict[str, Any], number: int | None = None
    ) -> Any:
        """Call `called` with its operations probed.

        Args:
            number: which call of it this is, from 0; the next one by default.
        """
        self.calls = (self.calls if number is None else number) + 1
        self.inside = False
        probed = self._probed(called)
        for view in self.views:
            view.at_call(self.calls - 1)
        self.running += 1
        try:
            return probed(*args, **kwargs)
        finally:
            self.running -= 1

    def _probed(self, called: Any) -> Any:
        for view in self.views:
            if view.stands_for(called):
                return view.probed
        function = innermost(called, self.name)
        if isinstance(function, Module):
            self._refuse_all(errors.is_a_module(self.place, None))
            return called
        listing = listing_of(function)
        if isinstance(listing, str):
            self._refuse_all(errors.no_source(self.place, listing))
            return called
        view = next((v for v in self.views if v.listing is listing), None)
        view = view or _View(self, listing)
        if not view.stand_for(called, function):
            why = errors.hidden_by_decorator(listing.name)
            self._refuse_all(errors.no_source(self.place, why))
            return called
        if view not in self.views:
            self.views.append(view)
            self._refuse_unknown(listing)
        return view.probed

    def _refuse_unknown(self, listing: Listing) -> None:
        """Tell who asked for what is not in this function, or cannot be counted any more."""
        for name, watch in list(self.asked.items()):
            op = listing.find(name)
            if op is None:
                text = errors.no_such_operation(f"{self.place}.source", name, listing)
                self._refuse(watch, AttributeError(text, name=name))
            elif self.missed and not op.once:
                for location in watch.locations.values():
                    self.run.refuse(location, errors.uncounted(location, self.place))

    def _refuse_all(self, error: Exception) -> None:
        for watch in self.asked.values():
            self._refuse(watch, error)

    def _refuse(self, watch: _Watch, error: Exception) -> None:
        for location in watch.locations.values():
            self.run.refuse(location, error)
        if watch.inner is not None:
            watch.inner._refuse_all(error)


class _View:
    """One function as a place meets it: mostly the only one."""

    def __init__(self, probes: Probes, listing: Listing) -> None:
        self.probes, self.run, self.listing = probes, probes.run, listing
        self.called: Any = None
        self.probed: Any = None  # what to call instead of `called`
        self.threads = self.run.threads
        self.once = [op.once for op in listing.ops]
        self.started = [0] * len(listing.ops)  # visits of each operation: see `_number`
        self.finished = [0] * len(listing.ops)
        self.at_gate: int | None = None  # the operation whose call may be skipped just now
        self.watched: dict[int, list[_Watch]] = {}
        for name, watch in probes.asked.items():
            self.look(name, watch)

    def stands_for(self, called: Any) -> bool:
        """Whether `called` was met before. (A bound method is made anew at every look.)"""
        method = isinstance(called, MethodType)
        return self.called is called or (method and self.called == called)

    def stand_for(self, called: Any, function: FunctionType) -> bool:
        """Probe `function`, which `called` is or holds; False if it is held out of reach."""
        self.called = called
        self.probed = with_inner(called, function, self._with_probes(function))
        return self.probed is not None

    def _with_probes(self, function: FunctionType) -> FunctionType:
        code = self.listing.code
        own = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        cells = dict(own)
        probes: dict[str, Callable[..., Any]] = {CALL: self.call, BIND: self.bind}
        probes[UNPACK] = self.unpack
        closure = tuple(
            CellType(probes[name]) if name in probes else cells[name] for name in code.co_freevars
        )
        return like(function, code, closure)

    # --- what was asked for -----------------------------------------------------------------------

    def look(self, name: str, watch: _Watch) -> None:
        """From now on look for an operation by the name `name`."""
        op = self.listing.find(name)
        if op is not None:
            self.watched.setdefault(op.index, []).append(watch)

    def at_call(self, number: int) -> None:
        """The n-th call begins: what it does not visit is not visited in it."""
        for index, watches in self.watched.items():
            if self.listing.ops[index].once:
                for watch in watches:
                    for location in watch.locations.values():
                        self.run.visits[location] = number

    def passed(self, index: int, kind: str) -> int:
        """How many visits of an operation are over."""
        counts = self.finished if kind == OUTPUT else self.started
        if not self.listing.ops[index].once:
            return counts[index]
        calls = self.probes.calls
        return calls - 1 if self.probes.running and counts[index] < calls else calls

    def state_of(self, name: str) -> tuple[int, bool] | None:
        """How often an operation was visited, and whether it is being visited."""
        op = self.listing.find(name)
        if op is None:
            return None
        started, finished = self.passed(op.index, INPUT), self.passed(op.index, OUTPUT)
        if op.index == self.at_gate:  # begun, and not called yet
            return finished, False
        return started, started > finished

    # --- the probes -------------------------------------------------------------------------------

    def _number(self, index: int) -> int:
        """The number of the visit that begins now."""
        return self.probes.calls - 1 if self.once[index] else self.started[index]

    def call(self, index: int, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call `called`, as operation number `index`."""
        if get_ident() not in self.threads:  # as `run.holds()`, which is slower
            return called(*args, **kwargs)
        number = self._number(index)
        if index in self.watched:
            self._offer(index, FUNCTION, number, called)
            args, kwargs = self._offer(index, INPUT, number, (args, kwargs))
            self.started[index] = number + 1
            result = self._gate(index, number, called, args, kwargs)
        else:
            self.started[index] = number + 1
            result = called(*args, **kwargs)
        self.finished[index] = number + 1
        if index in self.watched:  # perhaps since it was called
            result = self._offer(index, OUTPUT, number, result)
        return result

    def bind(self, index: int, value: Any) -> Any:
        """The value that an assignment stores."""
        if get_ident() not in self.threads:
            return value
        number = self._number(index)
        self.started[index] = self.finished[index] = number + 1
        if index in self.watched:
            value = self._offer(index, OUTPUT, number, value)
        return value

    def unpack(self, index: int, value: Any) -> Any:
        """The value that an assignment spreads over several targets."""
        return self._spread(self.listing.patterns[index], value)

    def _spread(self, pattern: Several, value: Any) -> Any:
        if pattern.chained:
            return tuple(self._part(part, value) for part in pattern.parts)
        if get_ident() not in self.threads:
            return value
        if self.watched.keys().isdisjoint(pattern.ops):
            for index in pattern.ops:
                self.started[index] = self.finished[index] = self._number(index) + 1
            return value
        count, star = len(pattern.parts), pattern.star
        # one more than there are targets is enough for Python to see that they are too many
        items = list(value if star is not None else islice(value, count + 1))
        if star is not None and len(items) >= count - 1:
            tail = len(items) - (count - 1 - star)
            items = [*items[:star], items[star:tail], *items[tail:]]
        if len(items) != count:
            return items
        parts = [self._part(part, item) for part, item in zip(pattern.parts, items, strict=True)]
        if star is not None:
            parts[star : star + 1] = parts[star]
        return parts

    def _part(self, part: Any, value: Any) -> Any:
        return self._spread(part, value) if isinstance(part, Several) else self.bind(part, value)

    # --- offering ---------------------------------------------------------------------------------

    def _offer(self, index: int, kind: str, number: int, value: Any) -> Any:
        for watch in list(self.watched[index]):
            if (location := watch.locations.get(kind)) is not None:
                self.run.visits[location] = number
                value = self.run.offer(location, value)
        return value

    def _gate(
        self, index: int, number: int, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call `called`, or not if blocks skip it."""
        run = self.run

        def observed() -> Any:
            for watch in self.watched[index]:
                if watch.inner is not None:
                    return watch.inner.through(called, args, kwargs, number)
            return called(*args, **kwargs)

        for watch in list(self.watched[index]):
            if (location := watch.locations.get(SKIP)) is not None:
                run.visits[location] = number
                if skips := self._skips(index, location, (args, kwargs)):
                    run.written.append(location)
                    run.typical = False  # what the operation would have run did not run
                    return outcome(run.batch, location, skips, run.away, observed)
        return observed()

    def _skips(self, index: int, location: Location, given: Any) -> Any:
        """What blocks give in place of the call that would begin now."""
        before, self.at_gate = self.at_gate, index
        try:
            return self.run.gate(location, given)
        finally:
            self.at_gate = before
