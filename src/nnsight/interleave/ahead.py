"""Values that a block has asked for and goes on without (see `capture/ahead.py`)."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import CellType
from typing import Any

import torch

from nnsight.capture.ahead import ATTRIBUTE, ITEM
from nnsight.capture.entrance import raise_at
from nnsight.capture.frames import Span
from nnsight.capture.rewrite import AHEAD, provided
from nnsight.capture.saving import save, saves
from nnsight.capture.scope import Scope, save_method
from nnsight.interleave.location import RESULT, Location
from nnsight.interleave.request import READ, Request, here, request_of, wait
from nnsight.interleave.value import Value
from nnsight.interleave.visit import Visit
from nnsight.interleave.worker import Worker

Path = Sequence[tuple[int, Any]]


class Due:
    """A value on its way: it stands where the value is to be put.

    Args:
        ahead: of the block that asked.
        request: what it asked for.
        view: makes what the user sees from the location and the raw value.
        path: what is done with that: items, attributes and methods.
        save: how the block saves it, if it does.
        at: the statement that asked.
        holder: the variable that it stands in; None until it is put into a list or a dict.
    """

    __slots__ = (
        *("_block", "_grad", "_path", "_saves", "_view", "ahead", "at", "done", "error"),
        *("holder", "key", "request", "value", "worker"),
    )

    def __init__(
        self,
        ahead: Ahead,
        request: Request,
        view: Callable[[Location, Any], Any] | None,
        path: Path,
        save: Callable[[Any], Any] | None,
        at: Span,
        holder: Any,
    ) -> None:
        self.ahead: Any = ahead  # None when it is no longer due
        self.worker: Worker = ahead.worker
        self.request, self.at = request, at
        self.holder: Any = holder
        self.key: Any = None  # where in the list or the dict
        self._view, self._path = view, path
        self._block = ahead.scope.block
        self._saves = None if save is None else saves.get()
        self._grad = torch.is_grad_enabled() if path else None
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None

    def fill(self, raw: Any) -> None:
        """Put the value in its place. An error that this brings is the block's."""
        try:
            value = self._value(raw)
        except Exception as error:
            self.fail(error)
            return
        self._end()
        if self.holder is None:  # a list that is being made
            self.value = value
        else:
            _replace(self.holder, self, value)

    def fail(self, error: Exception) -> None:
        """There is no value to come."""
        self.error = error
        self._end()
        self.drop()

    def _end(self) -> None:
        self.done = True
        self.ahead.open -= 1
        self.ahead = None

    def drop(self) -> None:
        """Take it from where it stands: it will not come."""
        self.ahead = None
        if self.holder is not None:
            _remove(self.holder, self)

    def _value(self, raw: Any) -> Any:
        location = self.request.location
        assert location is not None
        value = raw if self._view is None else self._view(location, raw)
        if self._path:
            if self._grad != torch.is_grad_enabled():
                with torch.set_grad_enabled(bool(self._grad)):
                    value = _follow(value, self._path)
            else:
                value = _follow(value, self._path)
        if self._saves is not None:
            place = (self._block, self.at)
            keep, by = self._saves, self.worker.author
            if type(value) is torch.Tensor:
                keep.add(value, place, by)
                return value
            return save_method(lambda value: keep.add(value, place, by) or value, value)
        return value

    def raise_there(self, error: BaseException) -> None:
        """Raise `error` at the line that asked."""
        block = self._block
        self.drop()
        raise_at(block.site.filename, block.outer.name, self.at, error)

    def __repr__(self) -> str:
        return f"<value of `{self.request.location}`, on its way>"


def _follow(value: Any, path: Path) -> Any:
    for kind, what in path:
        if kind == ITEM:
            value = value[what]
        else:
            value = getattr(value, what)
            if kind != ATTRIBUTE:
                value = value()
    return value


def _replace(holder: Any, due: Due, value: Any) -> None:
    """Put `value` where `due` stands, if it still does."""
    if isinstance(holder, CellType):
        if _content(holder) is due:
            holder.cell_contents = value
    elif (key := _key(holder, due)) is not None:
        holder[key] = value


def _remove(holder: Any, due: Due) -> None:
    if isinstance(holder, CellType):
        if _content(holder) is due:
            del holder.cell_contents
    elif (key := _key(holder, due)) is not None:
        del holder[key]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # unbound
        return None


def _key(holder: Any, due: Due) -> Any:
    """Where `due` stands in a list or a dict; None if somebody took it out."""
    try:
        if holder[due.key] is due:
            return due.key
    except (IndexError, KeyError):
        pass
    return next((key for key, value in _pairs(holder) if value is due), None)


def _pairs(holder: Any) -> list[tuple[Any, Any]]:
    pairs: Any = holder.items() if hasattr(holder, "items") else enumerate(holder)
    return list(pairs)


def _of_class(owner: object, name: str) -> Any:
    """What the class of `owner` has under `name`; its own attributes do not count."""
    return getattr(type(owner), name, None)


def _saves_as_we_do(keep: Any) -> bool:
    """Whether this is `nnsight.save`, or what `.save()` calls; not another of that name."""
    method = type(keep) is partial and keep.func is save_method and keep.args[0] is save
    return method or keep is save


_HOLDERS: frozenset[type] = frozenset({list, dict, OrderedDict, defaultdict})


class Dues:
    """What the blocks of one run have asked for and go on without."""

    def __init__(self) -> None:
        self._by_place: dict[Location, list[Due]] = {}

    def __iter__(self) -> Iterator[Due]:
        return iter([due for dues in self._by_place.values() for due in dues])

    def add(self, due: Due) -> None:
        """One more."""
        assert due.request.location is not None
        self._by_place.setdefault(due.request.location, []).append(due)

    def at(self, location: Location) -> bool:
        """Whether something is due there."""
        return bool(self._by_place.get(location))

    def take(self, worker: Worker, visit: Visit) -> list[Due]:
        """What `worker` gets at this visit: it is due no more."""
        there = self._by_place.get(visit.location, ())
        mine = [due for due in there if due.worker is worker and visit.is_for(due.request)]
        if mine:
            self._by_place[visit.location] = [due for due in there if due not in mine]
        return mine

    def drop(self) -> list[Worker]:
        """Nothing will come any more. Returns whom it was due to."""
        dropped = list(self)
        self._by_place.clear()
        for due in dropped:
            due.drop()
        return [due.worker for due in dropped]


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
        if not known or not self._may_go_on(worker, value.kind, name is not None, save):
            if self.open:
                self.wait()
                owner = way()
            found = _follow(getattr(owner, kind), path)
            return found if save is None else save(found)
        request = request_of(worker, READ, Location(owner, value.kind))
        holder = None if name is None else self.scope.cells[name]
        self.worker, worker.ahead = worker, self
        due = Due(self, request, value.view, path, save, at, holder)
        answered, answer = worker.ask_ahead(due)
        self.open += 1
        if not answered:
            self._asked.append(due)
            return due
        due.holder = None
        due.fill(answer)
        if due.error is not None:
            raise due.error
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
        if self.open and _of_class(values, "watch") is None:  # no part of a model
            self.wait()
            values = way()
        return values

    def append(self, values: Any, value: Any) -> None:
        """`values.append(value)`"""
        if type(value) is Due:
            if type(values) in (list,):
                value.holder, value.key = values, len(values)
            else:
                value = self._now(value)
        values.append(value)

    def put(self, values: Any, key: Any, value: Any) -> None:
        """`values[key] = value`"""
        if type(value) is Due:
            if type(values) in _HOLDERS:
                value.holder, value.key = values, key
            else:
                value = self._now(value)
        values[key] = value

    def hold(self, values: Any) -> Any:
        """A new list or dict, some of whose elements are due."""
        for key, value in _pairs(values):
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
                if due.error is not None:
                    raise due.error
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


provided[AHEAD] = Ahead
