"""The modules of a wrapped model by path, as plain data: which there are, and how they are spelled.

A path has one own spelling, from the root by real names: `model.transformer.h.0.mlp`. The root may
be left out, and an alias (`rename=`) may stand wherever it is mounted. What a user writes is turned
into the own spelling in one place, here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nnsight.interleave.location import INPUT, OUTPUT, Location
from nnsight.traces import errors

Aliases = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Names:
    """How paths of one model are spelled. Holds no module, so it can be kept and pickled."""

    root: str
    aliases: Aliases  # for each place the other names there and their targets, without the root
    lengths: Mapping[str, int]  # how many numbered children a module has, where it has such
    twins: Mapping[str, str]  # other paths of a module that is in several places, and its first

    def _spellings(self, path: str) -> Iterator[str]:
        """The own spellings that `path` may mean: from the root, and with the root left out."""
        first, _, rest = path.partition(".")
        if first == self.root:
            yield self._own(rest)
        yield self._own(path)

    def find(self, path: str, known: Collection[str]) -> str | None:
        """The own spelling of `path`, if it is one of `known`."""
        return next((own for own in self._spellings(path) if own in known), None)

    def _own(self, path: str) -> str:
        place = ""
        for name in path.split(".") if path else ():
            place = self.aliases.get(place, {}).get(name) or join(place, name)
        own = join(self.root, place)
        return self.twins.get(own, own)

    def alias(self, path: str) -> str:
        """`path`, given in its own spelling, by the other names there are for its parts."""
        place, left = "", path[len(self.root) + 1 :]
        spelled = self.root
        while left:
            fits = (
                (target, name)
                for name, target in self.aliases.get(place, {}).items()
                if target == join(place, left) or join(place, left).startswith(f"{target}.")
            )
            name, _, _ = left.partition(".")
            target, name = max(fits, key=lambda fit: len(fit[0]), default=(join(place, name), name))
            left = join(place, left)[len(target) + 1 :]
            place, spelled = target, join(spelled, name)
        return spelled


@dataclass(frozen=True)
class Place:
    """The owner of a location that is only looked at: nobody parks there for its sake."""

    path: str
    tree: Any = None

    def watch(self, kind: str, run: Any) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Layout:
    """Every module of a wrapped model."""

    names: Names
    modules: Mapping[str, Any]  # those that have a forward, by path
    containers: Collection[str]  # paths of those that only hold others
    places: Mapping[tuple[str, str], Location]  # by path and kind

    def under(self, path: str) -> list[str]:
        """The paths of a module and of all below it."""
        return [p for p in self.modules if p == path or p.startswith(f"{path}.")]

    def select(self, asked: Iterable[str]) -> list[str]:
        """The paths of modules that `asked` names: paths, aliases, and patterns with `*`.

        Raises:
            ValueError: one of `asked` names no module that can run.
        """
        found = (self._matching(one) if "*" in one else [self._one(one)] for one in asked)
        return list(dict.fromkeys(path for paths in found for path in paths))

    def _one(self, asked: str) -> str:
        own = self.names.find(asked, self.modules)
        if own is not None:
            return own
        container = self.names.find(asked, self.containers)
        if container is not None:
            raise errors.only_holds(asked, container)
        raise errors.no_module(asked, self.modules)

    def _matching(self, pattern: str) -> list[str]:
        rule = re.compile(".*".join(map(re.escape, pattern.split("*"))))
        found = [path for path in self.modules if any(map(rule.fullmatch, self._spelled(path)))]
        if not found:
            raise errors.no_match(pattern, self.modules)
        return found

    def _spelled(self, path: str) -> Iterable[str]:
        spelled = {path, self.names.alias(path)} if self.names.aliases else {path}
        return [form for each in spelled for form in (each, each[len(self.names.root) + 1 :])]


def layout_of(
    root: str,
    found: Mapping[str, tuple[Any, bool, int]],
    twins: Mapping[str, str],
    aliases: Aliases,
) -> Layout:
    """A layout from each module by path, with whether it can run and its numbered children."""
    modules = {path: module for path, (module, runs, _) in found.items() if runs}
    return Layout(
        Names(root, aliases, {path: n for path, (_, _, n) in found.items() if n}, twins),
        modules,
        frozenset(found.keys() - modules.keys()),
        {(p, kind): Location(Place(p), kind) for p in modules for kind in (INPUT, OUTPUT)},
    )


def join(place: str, name: str) -> str:
    """The path of `name` under `place`."""
    return f"{place}.{name}" if place and name else place or name
