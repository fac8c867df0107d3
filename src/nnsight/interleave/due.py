"""What stands for a value that a block has asked for and goes on without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import CellType
from typing import Any

import torch

from nnsight.capture.ahead import ATTRIBUTE, ITEM
from nnsight.capture.entrance import raise_at
from nnsight.capture.frames import Span
from nnsight.capture.saving import saves
from nnsight.capture.scope import save_method
from nnsight.interleave import ambient
from nnsight.interleave.location import Location
from nnsight.interleave.request import Request
from nnsight.interleave.visit import Visit
from nnsight.interleave.worker import Worker

Path = Sequence[tuple[int, Any]]
State = tuple[tuple[Any, ...], ambient.Ambient]
_NOTHING = object()


class Due:
    """A value on its way: it stands where the value is to be put.

    Args:
        ahead: the `Ahead` of the block that asked.
        request: what it asked for.
        view: makes what the user sees from the location and the raw value.
        path: what is done with that: items, attributes and methods.
        save: how the block saves it, if it does.
        at: the statement that asked.
        holder: the variable that it stands in; None until it is put into a list or a dict.
    """

    __slots__ = (
        *("_block", "_path", "_saves", "_state", "_view", "ahead", "at", "done", "error"),
        *("former", "holder", "key", "request", "value", "worker"),
    )

    def __init__(
        self,
        ahead: Any,
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
        self.former: Any = _NOTHING if holder is None else _before_in(holder)  # what was there
        self._view, self._path = view, path
        self._block = ahead.scope.block
        self._saves = None if save is None else saves.get()
        self._state = ahead.state() if path else None
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
            self.former = _NOTHING

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
        """Leave what was there before: it will not come."""
        self.ahead = None
        if self.holder is not None:
            _take_out(self.holder, self)
            self.former = _NOTHING

    def _value(self, raw: Any) -> Any:
        location = self.request.location
        assert location is not None
        value = raw if self._view is None else self._view(location, raw)
        if self._state is not None:  # that of the block, wherever in the model this is
            value = _in_state(self._state, partial(follow, value, self._path))
        if self._saves is not None:
            place = (self._block, self.at)
            keep, by = self._saves, self.worker.author
            if type(value) is torch.Tensor:
                keep.add(value, place, by)
                return value
            return save_method(lambda value: keep.add(value, place, by) or value, value)
        return value

    def raise_error(self) -> None:
        """Raise what kept the value from coming, if something did."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def raise_there(self, error: BaseException) -> None:
        """Raise `error` at the line that asked."""
        block, self.error = self._block, None
        self.drop()
        try:
            raise_at(block.site.filename, block.outer.name, self.at, error)
        finally:
            del error

    def __repr__(self) -> str:
        return f"<value of `{self.request.location}`, on its way>"


def is_first(path: Path) -> bool:
    """Whether a path begins with `[0]`."""
    return bool(path) and path[0][0] == ITEM and type(path[0][1]) is int and path[0][1] == 0


def follow(value: Any, path: Path) -> Any:
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
        if content(holder) is due:
            holder.cell_contents = value
    elif (key := _key(holder, due)) is not None:
        holder[key] = value


def _take_out(holder: Any, due: Due) -> None:
    """Leave what was there before `due`, if it is still there."""
    if isinstance(holder, CellType):
        if content(holder) is due:
            bind(holder, due.former)
    elif (key := _key(holder, due)) is not None:
        if due.former is _NOTHING:
            del holder[key]
        else:
            holder[key] = due.former


def before(values: Any, key: Any) -> Any:
    """What is at `key`, to be put back; nothing where that has not come either."""
    try:
        there = type(values) in (list,) or key in values
        found: Any = values[key] if there else _NOTHING
    except (IndexError, TypeError):  # raised again where the value is put
        return _NOTHING
    return found.former if type(found) is Due else found


def _in_state(state: State, compute: Callable[[], Any]) -> Any:
    """What `compute()` gives in the torch state of a block."""
    brief, whole = state
    usual = brief == ambient.brief() and not any(brief[1:])
    return compute() if usual else ambient.within(whole, compute)


def _before_in(cell: CellType) -> Any:
    found = content(cell)
    return found.former if type(found) is Due else found


def content(cell: CellType) -> Any:
    """What a variable holds, or a mark that it holds nothing."""
    try:
        return cell.cell_contents
    except ValueError:  # unbound
        return _NOTHING


def bind(cell: CellType, value: Any) -> None:
    """Give a variable what `content` said of it."""
    if value is not _NOTHING:
        cell.cell_contents = value
    elif content(cell) is not _NOTHING:
        del cell.cell_contents


def _key(holder: Any, due: Due) -> Any:
    """Where `due` stands in a list or a dict; None if somebody took it out."""
    try:
        if holder[due.key] is due:
            return due.key
    except (IndexError, KeyError):
        pass
    return next((key for key, value in pairs(holder) if value is due), None)


def pairs(holder: Any) -> list[tuple[Any, Any]]:
    pairs: Any = holder.items() if hasattr(holder, "items") else enumerate(holder)
    return list(pairs)


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
        self.clear()
        for due in dropped:
            due.drop()
        return [due.worker for due in dropped]

    def take_back(self, worker: Worker) -> None:
        """`worker` has asked for nothing after all."""
        for due in [due for due in self if due.worker is worker]:
            assert due.request.location is not None
            self._by_place[due.request.location].remove(due)
            due.drop()

    def clear(self) -> None:
        """Let go of all."""
        self._by_place.clear()
