"""`EnvComparison`: the packages here and on a server, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight.remote.environment import CRITICAL, alike
from nnsight.remote.table import Cell, Table


class EnvComparison:
    """Python and the packages that both have; it prints as a table of those that differ.

    Args:
        local_env: what `get_local_env()` returned.
        remote_env: what the server told; empty if that is not known.
        problem: why it is not known.
    """

    def __init__(
        self,
        local_env: Mapping[str, Any],
        remote_env: Mapping[str, Any],
        problem: str | None = None,
    ) -> None:
        self.local_env, self.remote_env, self.problem = local_env, remote_env, problem

    @property
    def python_matches(self) -> bool:
        """Whether both run Python of the same minor version, such as 3.12.

        A block travels as source, so it may run where this is False.
        """
        return self._python(self.local_env)[:2] == self._python(self.remote_env)[:2] != []

    @property
    def mismatches(self) -> dict[str, dict[str, Any]]:
        """The packages whose versions differ: `{name: {local, remote, match, critical}}`."""
        here, there = self.local_env.get("packages", {}), self.remote_env.get("packages", {})
        names = [name for name in there if name in here and here[name] != there[name]]
        names.sort(key=lambda name: (name not in CRITICAL, name))
        return {
            name: {
                "local": here[name],
                "remote": there[name],
                "match": False,
                "critical": name in CRITICAL,
            }
            for name in names
        }

    @property
    def critical_mismatches(self) -> dict[str, dict[str, Any]]:
        """Those of nnsight, torch and transformers, which change what a model computes."""
        return {name: both for name, both in self.mismatches.items() if both["critical"]}

    @staticmethod
    def _python(env: Mapping[str, Any]) -> list[str]:
        return str(env.get("python_version", "")).split(" ")[0].split(".") if env else []

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        if self.problem:
            return Table("The packages of the server are not known.", (), (), self.problem)
        rows = [(name, both["local"], both["remote"]) for name, both in self.mismatches.items()]
        versions = (".".join(self._python(self.local_env)), ".".join(self._python(self.remote_env)))
        cells = [_cells(*row) for row in [("Python", *versions), *rows]]
        count = f"{len(rows)} package(s) differ" if rows else "the packages that both have agree"
        return Table(f"Here and on the server: {count}.", ("", "Here", "Server", ""), cells)


def _cells(name: str, here: str, there: str) -> tuple[Cell, ...]:
    if here == there:
        return Cell(name), Cell(here), Cell(there), Cell("same", "green")
    if alike("torch" if name == "Python" else name, here, there):
        word = Cell("alike", "dim")
    elif name in CRITICAL:
        word = Cell("differs: numbers may, too", "red")
    else:
        word = Cell("differs", "yellow" if name != "Python" else "dim")
    return Cell(name), Cell(here), Cell(there), word
