"""What a check of the standard names found, as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found of one standard name."""

    name: str  # "attn.z", in whichever layer
    shape: tuple[int, ...] = ()  # of its value on two prompts of five tokens
    checks: tuple[str, ...] = ()  # what was held true
    deviation: float = 0.0  # the largest of any check, relative to the value
    layers: int = 0  # how many have it
    absent: str = ""  # why others do not


@dataclass(frozen=True)
class NamesReport:
    """What `check_names` found. It prints as a table; `findings` has the rows."""

    title: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        there = [found for found in self.findings if found.layers]
        absent = [found.name for found in self.findings if not found.layers]
        rows = [("name", "shape", "layers", "off by", "checked"), *map(_cells, there)]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        lines += [f"not in this model: {', '.join(absent)}"] if absent else []
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    __repr__ = __str__


def _cells(found: Finding) -> tuple[str, ...]:
    off = f"{found.deviation:.0e}" if found.checks else "-"
    return found.name, str(list(found.shape)), str(found.layers), off, "; ".join(found.checks)
