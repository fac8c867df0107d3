"""Times the library beside raw PyTorch hooks that do the same work.

The two alternate in one process, so that whatever slows the machine slows both; each side's figure
is its fastest run, and the overhead is the difference. The runs are split into rounds with a
figure of their own each: how far those lie apart is how far to trust the result.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One thing to do, in two ways; both return the values that they met."""

    library: Run
    raw: Run
    fresh: Callable[[], Run] | None = None  # makes `library` anew before each run, untimed
    share: int = 1  # how many traces one run makes; figures are for one of them


@dataclass(frozen=True)
class Scenario:
    """One line of the table."""

    name: str
    target: float  # the most that it should cost, in `unit`
    make: Callable[[], Case] | None = None
    measure: Callable[[], float] | None = None  # for what is not a time beside raw hooks
    unit: str = "µs"


@dataclass(frozen=True)
class Figure:
    """What was measured of one scenario."""

    name: str
    unit: str
    target: float
    overhead: float  # library minus raw
    spread: float = 0.0  # how far the overheads of single rounds lie apart
    library: float | None = None
    raw: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.library / self.raw if self.library and self.raw else None

    @property
    def met(self) -> bool:
        return self.overhead <= self.target


def _time(run: Run) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


def _round(case: Case, repeats: int) -> tuple[float, float]:
    """The fastest run of each side."""
    library: list[float] = []
    raw: list[float] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            run = case.fresh() if case.fresh is not None else case.library
            library.append(_time(run))
            raw.append(_time(case.raw))
    finally:
        gc.enable()
    return min(library) / case.share, min(raw) / case.share


def measure(scenario: Scenario, repeats: int, rounds: int) -> Figure:
    """Measure one scenario."""
    about = scenario.name, scenario.unit, scenario.target
    if scenario.measure is not None:
        return Figure(*about, scenario.measure())
    assert scenario.make is not None
    case = scenario.make()
    for run in (case.library, case.raw, case.library, case.raw):  # the first runs only warm up
        run()
    pairs = [_round(case, repeats) for _ in range(rounds)]
    library, raw = (min(side) for side in zip(*pairs, strict=True))
    overheads = [ours - theirs for ours, theirs in pairs]
    spread = max(overheads) - min(overheads)
    return Figure(*about, library - raw, spread, library, raw)


def machine() -> dict[str, Any]:
    """What the figures were measured on, in general words."""
    return {
        "system": platform.system(),
        "cores": len(_cores()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cores() -> Iterable[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity is not None else range(os.cpu_count() or 1)


# --- the table ------------------------------------------------------------------------------------

_HEAD = ("scenario", "overhead", "±", "target", "", "library", "raw hooks", "ratio")


def _cells(figure: Figure) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:,.1f}" if abs(value) < 10 else f"{value:,.0f}"

    ratio = f"{figure.ratio:.2f}" if figure.ratio else "-"
    unit = "" if figure.unit == "µs" else f" {figure.unit}"
    return (
        figure.name,
        number(figure.overhead) + unit,
        number(figure.spread) if figure.library else "-",
        f"≤ {figure.target:,.0f}{unit}",
        "" if figure.met else "over",
        number(figure.library),
        number(figure.raw),
        ratio,
    )


def markdown(figures: list[Figure]) -> str:
    """The table, in µs where no unit stands."""
    rows = [_HEAD, *map(_cells, figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def store(figures: list[Figure], out: Path) -> None:
    """Keep the figures as `figures.json` and `figures.md` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {"machine": machine(), "figures": [asdict(f) | {"ratio": f.ratio} for f in figures]}
    (out / "figures.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    (out / "figures.md").write_text(markdown(figures))
