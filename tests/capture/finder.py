"""Does the finder find exactly the `with` that is being entered? (The method of `executing`.)

Over whole files: every instruction that enters a manager is located, and the statement and item
found must be one of the file's own; all of the file's must be found. Nothing is run for it.
"""

from __future__ import annotations

import ast
import glob
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layouts
import record  # noqa: F401  (makes the next line importable)

from nnsight.capture import instructions, source

LIBRARY = Path(os.__file__).parent
FOLDERS = ("*.py", "concurrent/**/*.py", "unittest/*.py")
TESTS = ("test_with", "test_contextlib", "test_sys_settrace", "test_argparse")
Place = tuple[int, int, int]  # line and column of the statement, number of the item


def library() -> list[Path]:
    """Files of the standard library that have many a `with`."""
    names = [n for f in FOLDERS for n in glob.glob(str(LIBRARY / f), recursive=True)]
    tests = [LIBRARY / "test" / f"{name}.py" for name in TESTS]
    files = [path for path in [*map(Path, names), *tests] if path.exists()]
    return [path for path in files if path.read_bytes().count(b" with ") > 9]


def made(folder: Path, count: int) -> Iterator[Path]:
    """Files of odd layouts."""
    for seed in range(count):
        path = folder / f"layout_{seed}.py"
        path.write_text(layouts.Writer(seed).text(), encoding="utf-8")
        yield path


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def _entered(code: types.CodeType) -> Iterator[Any]:
    """Frames, as far as the finder looks at them, that enter a manager."""
    lines = [line for start, end, line in code.co_lines() for _ in range(start, end, 2)]
    for offset in instructions.entries(code):
        yield types.SimpleNamespace(
            f_code=code, f_lasti=offset, f_lineno=lines[offset // 2], f_globals={}
        )


def check(path: Path) -> tuple[int, list[str]]:
    """How many entries a file has, and what is wrong with those found."""
    text = path.read_text("utf-8")
    wanted: dict[Place, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.With, ast.AsyncWith)):
            for item in range(len(node.items)):
                wanted[node.lineno, node.col_offset, item] = ast.dump(node, include_attributes=True)
    found: set[Place] = set()
    count, wrong = 0, []
    module = compile(text, str(path), "exec", dont_inherit=True)
    for code in _codes(module):
        for frame in _entered(code):
            count += 1
            try:
                site = source._locate(frame)
            except Exception as error:
                wrong.append(f"{path}, line {frame.f_lineno}: {error!r}")
                continue
            place = (site.node.lineno, site.node.col_offset, site.item)
            found.add(place)
            if wanted.get(place) != ast.dump(site.node, include_attributes=True):
                wrong.append(f"{path}, line {frame.f_lineno}: found {place}")
    wrong += [f"{path}: {place} was not found" for place in set(wanted) - found]
    return count, wrong


def check_all(folder: Path, layouts_made: int = 10) -> dict[str, Any]:
    """The library and the odd layouts."""
    entries, wrong, files = 0, list[str](), 0
    for path in [*library(), *made(folder, layouts_made)]:
        try:
            count, faults = check(path)
        except (SyntaxError, UnicodeDecodeError):  # the library has examples of both
            if folder in path.parents:
                raise
            continue
        entries, files, wrong = entries + count, files + 1, wrong + faults
    return {"entries": entries, "files": files, "wrong": wrong}


if __name__ == "__main__":
    import tempfile

    print(sys.version_info[:3], check_all(Path(tempfile.mkdtemp())))
