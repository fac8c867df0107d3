"""The descriptor behind `.output`, `.input`, `.inputs` and `tracer.result`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from nnsight.capture.callsite import is_followed_by_zero
from nnsight.capture.frames import frame_at
from nnsight.capture.traceback import warn
from nnsight.interleave import request
from nnsight.interleave.location import Location

View = Callable[[Location, Any], Any]
Pack = Callable[[Location, Any, Any], Any]


class Value:
    """A value of its owner, met while the model runs: reading parks the block, assigning replaces.

    Args:
        kind: which value of the owner.
        view: makes what the user sees from the location and the raw value.
        pack: makes the raw value again from the location, the raw value and what was assigned.
        doubt: says of an owner and its value, if that is there already, what is doubtful about a
            `[0]` right after it; or None.
    """

    def __init__(
        self,
        kind: str,
        view: View | None = None,
        pack: Pack | None = None,
        doc: str = "",
        doubt: Callable[[Any, Any], str | None] | None = None,
    ) -> None:
        self.kind = kind
        self.view = view
        self._pack = pack
        self._doubt = doubt
        self.__doc__ = doc

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        location = Location(owner, self.kind)
        raw = request.read(location)
        if self._doubt is not None:
            doubt = self._doubt(owner, raw)
            if doubt is not None and is_followed_by_zero(frame_at(1)):
                warn(doubt)
        return raw if self.view is None else self.view(location, raw)

    def take_first(self, owner: Any) -> None:
        """`[0]` of the value is asked for ahead: warn at that line if it is doubtful."""
        if self._doubt is not None and (doubt := self._doubt(owner, None)) is not None:
            warn(doubt)

    def __set__(self, owner: Any, value: Any) -> None:
        location = Location(owner, self.kind)
        if self._pack is not None:
            request.current(location)
            value = self._pack(location, request.read(location), value)
        request.write(location, value)


@runtime_checkable
class Elsewhere(Protocol):
    """A descriptor whose value may be that of another owner, or a part of it."""

    def asked(self, owner: Any) -> tuple[Location, View | None] | None:
        """Where it is, and what makes it of the value there; None if there is more to do."""
        ...
