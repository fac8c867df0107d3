"""The descriptor behind `.output`, `.input`, `.inputs` and `tracer.result`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    """

    def __init__(
        self, kind: str, view: View | None = None, pack: Pack | None = None, doc: str = ""
    ) -> None:
        self.kind = kind
        self.view = view
        self._pack = pack
        self.__doc__ = doc

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        location = Location(owner, self.kind)
        raw = request.read(location)
        return raw if self.view is None else self.view(location, raw)

    def __set__(self, owner: Any, value: Any) -> None:
        location = Location(owner, self.kind)
        if self._pack is not None:
            request.current(location)
            value = self._pack(location, request.read(location), value)
        request.write(location, value)
