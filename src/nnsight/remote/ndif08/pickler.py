"""Writing pickles that name what this process does not have: NDIF 0.8's own classes and functions.

The counterpart of `pickle.py`: whoever writes says for an object which `Name`, `Pid` or
`Made` stands for it, and those are written as if they had been imported and called.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from nnsight.remote.ndif08.pickle import Made, Name, Pid

_Python: Any = pickle._Pickler  # type: ignore[attr-defined] # of the two, the one to be told how
StandIn = Callable[[Any], Any]
"""Gives what is written in place of an object: a Name, Pid or Made, another object, or itself."""


class Pickler(_Python):
    """Writes an object; `stand_in` says what is written in its place."""

    stand_in: StandIn = staticmethod(lambda value: value)

    def __init__(self, file: Any, protocol: int | None = None, **more: Any) -> None:
        super().__init__(file, protocol, **more)
        self._alive: list[Any] = []  # the memo goes by id
        self._nodes: dict[int, tuple[Any, Any]] = {}  # by id: an object, and what stands for it

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, (Name, Pid, Made)):
            self._write(obj)
        elif id(obj) in self._nodes:
            self._write(self._nodes[id(obj)][1])
        elif id(obj) in self.memo or type(obj) in _PLAIN:
            super().save(obj, save_persistent_id)
        elif (node := type(self).stand_in(obj)) is obj:
            super().save(obj, save_persistent_id)
        elif isinstance(node, (Name, Pid, Made)):
            self._nodes[id(obj)] = obj, node
            self._write(node)
        else:
            self._alive += [obj, node]
            super().save(node, save_persistent_id)

    def _write(self, node: Any) -> None:
        if id(node) in self.memo:
            super().save(node)
        elif isinstance(node, Name):
            self._write_name(node)
            self.memoize(node)
        elif isinstance(node, Pid):
            super().save(node.id)
            self.write(pickle.BINPERSID)
        else:
            self._write_made(node)

    def _write_name(self, name: Name) -> None:
        if self.proto >= 4:
            super().save(name.module)
            super().save(name.qualname)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(b"c" + f"{name.module}\n{name.qualname}\n".encode())

    def _write_made(self, node: Made) -> None:
        self.save(node.maker)
        self.save(node.args)
        self.write(pickle.NEWOBJ if node.new else pickle.REDUCE)
        self.memoize(node)
        for call in node.later:
            self.save(call.maker)
            self.save(call.args)
            self.write(pickle.REDUCE + pickle.POP)
        if node.pairs:
            self.write(pickle.MARK)
            for name, value in node.pairs:
                self.save(name)
                self.save(value)
            self.write(pickle.SETITEMS)
        if node.has_state:
            self.save(node.state)
            self.write(pickle.BUILD)


_PLAIN = {int, float, bool, str, bytes, type(None), complex}


def pickler_with(stand_in: StandIn) -> type[Pickler]:
    """A class of picklers that ask `stand_in`."""
    return type("Pickler", (Pickler,), {"stand_in": staticmethod(stand_in)})
