"""Values that a block has asked for and goes on without (see `capture/ahead.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import CellType
from typing import Any

import torch

from nnsight.capture.ahead import ATTRIBUTE, ITEM
from nnsight.capture.entrance import raise_at
from nnsight.capture.frames import Span
from nnsight.capture.rewrite import AHEAD, provided
from nnsight.capture.saving import Saves, save, saves
from nnsight.capture.scope import Scope, save_method
from nnsight.interleave.location import RESULT, Location
from nnsight.interleave.request import READ, Request, here, request_of, wait
from nnsight.interleave.value import Value
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
        holder: where it stands: the variable of a name; a list or a dict, once it is in one.
    """

    __slots__ = ("_block", "_grad", "_path", "_save", "_saves", "_view", "ahead", "at", "done", "error")
    __slots__ += ("holder", "request", "value", "worker")

    def __init__(
        self,
        ahead: Ahead,
        request: Request,
        view: Callable[[Location, Any], Any] | None,
        path: Path,
        save: Callable[[Any], Any] | None,
        at: Span,
        holder: CellType | None,
    ) -> None:
        self.ahead: Any = ahead  # None when it is no longer due
        self.worker: Worker = ahead.worker
        self.request, self.at, self.holder = request, at, holder
        self._view, self._path, self._save = view, path, save
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
    else:
        for key in _keys(holder, due):
            holder[key] = value


def _remove(holder: Any, due: Due) -> None:
    if isinstance(holder, CellType):
        if _content(holder) is due:
            del holder.cell_contents
    else:
        for key in reversed(_keys(holder, due)):
            del holder[key]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # unbound
        return None


def _keys(holder: list[Any] | dict[Any, Any], due: Due) -> list[Any]:
    pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
    return [key for key, value in pairs if value is due]


def _saves_as_we_do(keep: Any) -> bool:
    """Whether this is `nnsight.save`, or what `.save()` calls; not another function of that name."""
    method = type(keep) is partial and keep.func is save_method and keep.args[0] is save
    return method or keep is save


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
        value = getattr(type(owner), kind, None)
        worker = here.worker
        if not (type(value) is Value and self._may_go_on(worker, value.kind, name is not None, save)):
            if self.open:
                self.wait()
                owner = way()
            found = _follow(getattr(owner, kind), path)
            return found if save is None else save(found)
        request = request_of(worker, READ, Location(owner, value.kind))
        holder = None if name is None else self.scope.cells[name]
        self.worker, worker.ahead = worker, self
        due = Due(self, request, value.view, path, save, at, holder)
        self.open += 1
        answered, answer = worker.ask_ahead(due)
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
        part = hasattr(type(values), "watch")  # of a model
        if self.open and not part:
            self.wait()
            values = way()
        return values

    def append(self, values: Any, value: Any) -> None:
        """`values.append(value)`"""
        if type(value) is Due:
            if type(values) is list:
                value.holder = values
            else:
                value = self._now(value)
        values.append(value)

    def put(self, values: Any, key: Any, value: Any) -> None:
        """`values[key] = value`"""
        if type(value) is Due:
            if type(values) is list or isinstance(values, dict):
                value.holder = values
            else:
                value = self._now(value)
        values[key] = value

    def hold(self, values: Any) -> Any:
        """A new list or dict, some of whose elements are due."""
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in list(pairs):
            if type(value) is Due:
                value.holder = values
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
