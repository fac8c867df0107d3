"""The processes in which the constructs run: one job gives the report of one process.

The places that need nothing but an interpreter run on every interpreter of this machine; those
that are made of a package, on this one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import programs
import pythons

Job = Callable[[Path], dict[str, Any]]

BARE = (
    *("modules", "threads", "zip", "reloaded", "scripts", "debugger"),
    *("exec_with_text", "exec_without_text", "doctest"),
)
PROGRAMS = {
    "script": programs.as_script,
    "command": programs.as_command,
    "stdin": programs.from_standard_input,
    "prompt": programs.at_the_prompt,
    "kernel": programs.in_a_kernel,
}


def name_of(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _program(name: str, version: tuple[int, int], folder: Path) -> dict[str, Any]:
    python = pythons.found()[version]
    plain = programs.in_places(python, folder)["plain"]
    return {"plain": plain, name: PROGRAMS[name](python, version, folder)}


def _bare(version: tuple[int, int], folder: Path) -> dict[str, Any]:
    return programs.in_places(pythons.found()[version], folder, *BARE)


def _finder(version: tuple[int, int], folder: Path) -> dict[str, Any]:
    return programs.in_places(pythons.found()[version], folder, "finder")


def _here(place: str, folder: Path) -> dict[str, Any]:
    return programs.in_places(sys.executable, folder, place)


def _coverage(core: str, version: tuple[int, int], folder: Path) -> dict[str, Any]:
    """Under coverage. Its package is plain Python but for one core, so any interpreter takes it."""
    import coverage

    (folder / "packages").mkdir()
    (folder / "packages" / "coverage").symlink_to(Path(coverage.__file__).parent)
    return programs.in_places(
        pythons.found()[version],
        folder,
        "coverage",
        COVERAGE_CORE=core,
        PYTHONPATH=str(folder / "packages"),
    )


JOBS: dict[str, Job] = {
    "ipython": partial(_here, "ipython"),
    "pytest": partial(_here, "pytest"),
    "kernel": partial(_program, "kernel", pythons.RUNNING),
    "script": partial(_program, "script", pythons.RUNNING),
    "stdin": partial(_program, "stdin", pythons.RUNNING),
    "prompt": partial(_program, "prompt", (3, 13)),
    "coverage ctrace": partial(_coverage, "ctrace", pythons.RUNNING),
    "coverage pytrace": partial(_coverage, "pytrace", pythons.RUNNING),
}
for _version in {*pythons.SUPPORTED, pythons.RUNNING}:
    JOBS[f"bare {name_of(_version)}"] = partial(_bare, _version)
    JOBS[f"finder {name_of(_version)}"] = partial(_finder, _version)
    JOBS[f"command {name_of(_version)}"] = partial(_program, "command", _version)
    JOBS[f"coverage sysmon {name_of(_version)}"] = partial(_coverage, "sysmon", _version)

if __name__ == "__main__":  # to look at one by itself: python jobs.py NAME FOLDER
    print(JOBS[sys.argv[1]](Path(sys.argv[2])), file=open(os.devnull, "w"))
