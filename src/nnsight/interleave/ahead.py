"""How a block asks for values and goes on without them (see `capture/ahead.py`)."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from nnsight.capture.frames import Span
from nnsight.capture.percode import PerCode
from nnsight.capture.saving import save, saves
from nnsight.capture.scope import Scope, save_method
from nnsight.interleave import ambient
from nnsight.interleave.due import (
    Due,
    Path,
    State,
    before,
    bind,
    content,
    follow,
    is_first,
    pairs,
)
from nnsight.interleave.location import RESULT, Location
from nnsight.interleave.request import READ, here, request_of, wait
from nnsight.interleave.value import Elsewhere, Value
from nnsight.interleave.worker import NeedsTurn, Worker


def _of_class(owner: object, name: str) -> Any:
    """What the class of `owner` has under `name`; its own attributes do not count."""
    return getattr(type(owner), name, None)


def _saves_as_we_do(keep: Any) -> bool:
    """Whether this is `nnsight.save`, or what `.save()` calls; not another of that name."""
    method = type(keep) is partial and keep.func is save_method and keep.args[0] is save
    return method or keep is save


def _is_fixed(value: Any) -> bool:
    """Whether `value` is the same however far the model comes: a number, a text, a module."""
    if type(value) in (tuple, frozenset):
        return all(map(_is_fixed, value))
    return type(value) in _SCALARS or _of_class(value, "watch") is not None


_SCALARS = frozenset({bool, bytes, float, int, range, str, type(None)})
_PLAIN = frozenset({dict, list, range, set, str, tuple})
_LISTS: frozenset[type] = frozenset({list})
_HOLDERS: frozenset[type] = _LISTS | {dict, OrderedDict, defaultdict}


def asks_here(worker: Worker, run: Any) -> bool:
    """Run a block that only asks, on the thread of the model: it has nothing to wait for.

    Where it turns out to need a turn, everything is as it was before, and it gets a thread.

    Returns:
        Whether it has run.
    """
    scope = worker.scope
    if scope is None or run.told or _parks[scope.block.code]:
        return False
    bound = [cell for name, cell in scope.cells.items() if name in scope.block.bound]
    values = list(map(content, bound))
    outer = here.worker, here.outside_invokes
    here.worker, here.outside_invokes = worker, False
    try:
        worker.ask_here(run)
    except BaseException as error:
        run.take_back(worker)
        for cell, value in zip(bound, values, strict=True):
            bind(cell, value)
        if not isinstance(error, (Exception, NeedsTurn)):
            raise
        _parks[scope.block.code].append(True)
        return False
    finally:
        here.worker, here.outside_invokes = outer
    return True


_parks: PerCode[list[bool]] = PerCode(list)  # codes of blocks that needed a turn


class _RunEnded(Exception):
    """The run is over, and what is still due will not come."""


class Ahead:
    """How one run of a block asks ahead. Compiled bodies call it."""

    def __init__(self, scope: Scope, inside: bool) -> None:
        self.scope = scope
        self._inside = inside  # code of the user's follows that may do anything
        self.open = 0  # how many values are due
        self.worker: Any = None
        self._asked: list[Due] = []  # since the block last waited
        self._state: State | None = None

    def __getitem__(self, index: Any) -> Any:
        """What stands between the brackets."""
        return index

    def __call__(
        self,
        way: Callable[[], Any],
        kind: str,
        path: Path,
        save: Callable[[Any], Any] | None,
        at: Span,
        name: str | None,
    ) -> Any:
        """`way().kind`, or what stands for it until it is there.

        Args:
            way: leads to the owner of the value.
            name: the name that is bound to it; None in a list or a dict.
        """
        owner = self._at_rest(way)
        value = _of_class(owner, kind)
        worker = here.worker
        known = type(value) is Value
        asked = None
        if known:
            asked = Location(owner, value.kind), value.view
        elif isinstance(value, Elsewhere):
            asked = value.asked(owner)
        if asked is None or not self._may_go_on(worker, asked[0].kind, name is not None, save):
            if self.open:
                self.wait()
                owner = way()
            found = getattr(owner, kind)
            if known and is_first(path):
                value.take_first(owner)
            found = follow(found, path)
            return found if save is None else save(found)
        if known and is_first(path):
            value.take_first(owner)
        location, view = asked
        request = request_of(worker, READ, location)
        holder = None if name is None else self.scope.cells[name]
        self.worker, worker.ahead = worker, self
        due = Due(self, request, view, path, save, at, holder)
        answered, answer = worker.ask_ahead(due)
        self.open += 1
        if not answered:
            self._asked.append(due)
            return due
        due.holder = None
        due.fill(answer)
        due.raise_error()
        return due.value

    def _may_go_on(
        self, worker: Any, kind: str, named: bool, keep: Callable[[Any], Any] | None
    ) -> bool:
        """Whether the block can go on without a value that it asks for now."""
        if type(worker) is not Worker or here.outside_invokes or self._inside:
            return False
        if kind == RESULT and worker.pin is not None:  # a loop over steps waits for the end there
            return False
        if keep is not None and (saves.get() is None or not _saves_as_we_do(keep)):
            return False
        return worker.goes_on(named)

    def _at_rest(self, way: Callable[[], Any]) -> Any:
        """Where `way` leads; if it leads nowhere, what is due may show it."""
        try:
            return way()
        except Exception:
            if not self.open:
                raise
        self.wait()
        return way()

    def over(self, way: Callable[[], Any]) -> Any:
        """What a loop runs over: parts of a model, or what may change as the model runs."""
        values = self._at_rest(way)
        if _of_class(values, "watch") is not None:  # parts of a model
            return values
        if self.open:
            self.wait()
            values = way()
        plain = type(values) in _PLAIN or _of_class(values, "still")
        return values if plain else self._one_by_one(values)

    def _one_by_one(self, values: Iterable[Any]) -> Iterator[Any]:
        """What a loop over a generator gets: what that does on its way may do anything."""
        if here.worker is not None and here.worker.threadless:
            raise NeedsTurn  # it could not begin again
        rest = iter(values)
        while True:
            self.wait()
            try:
                value = next(rest)
            except StopIteration:
                return
            yield value

    def fixed(self, value: Any) -> Any:
        """`value`, which is looked into: what is due comes first, if the model may change it."""
        if self.open and not _is_fixed(value):
            self.wait()
        return value

    def state(self) -> State:
        """The torch state of the block."""
        brief = ambient.brief()
        if self._state is None or self._state[0] != brief or any(brief[1:]):
            self._state = brief, ambient.current()
        return self._state

    def append(self, values: Any, value: Any) -> None:
        """`values.append(value)`"""
        if type(value) is Due:
            if type(values) in _LISTS:
                value.holder, value.key = values, len(values)
            else:
                value = self._now(value)
        values.append(value)

    def put(self, values: Any, key: Any, value: Any) -> None:
        """`values[key] = value`"""
        if type(value) is Due:
            if type(values) in _HOLDERS and type(key) is not slice:
                value.former = before(values, key)
                values[key] = value
                value.holder, value.key = values, key
                return
            value = self._now(value)
        values[key] = value

    def hold(self, values: Any) -> Any:
        """A new list or dict, some of whose elements are due."""
        for key, value in pairs(values):
            if type(value) is Due:
                value.holder, value.key = values, key
                if value.done:
                    values[key] = value.value
        return values

    def _now(self, due: Due) -> Any:
        """The value itself: it goes where nothing can be put later."""
        self.wait()
        self.settle(due.at)
        return due.value

    def forget(self) -> None:
        """The block has asked for nothing after all."""
        self.open, self._asked = 0, []

    def settle(self, at: Span) -> None:
        """Wait for all that is due. What the statement `at` asked for must be there then.

        Raises:
            MissedProviderError: the run ended without it.
            Exception: it could not be had.
        """
        if self.open:
            self.wait()
        mine = [due for due in self._asked if due.at == at]
        if mine:
            self._asked = [due for due in self._asked if due.at != at]
            for due in mine:
                due.raise_error()
                if not due.done:
                    due.drop()
                    raise self.worker.missed(due.request)

    def wait(self) -> None:
        """Wait until nothing is due any more, or nothing can come."""
        if self.open:
            try:
                wait(lambda: not self.open, _RunEnded)
            except _RunEnded:
                self.open = 0
