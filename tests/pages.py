"""Runs the code blocks of a Markdown page, as a reader would: one after the other.

A block is marked by its info string: `python` runs; `python raises=ValueError` must raise that
exception; `python test=skip` is shown only (it needs weights or a network).
"""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    page: str
    lineno: int
    info: dict[str, str]
    code: str


def pages() -> list[Path]:
    """Every page whose code must run."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        info = dict(word.partition("=")[::2] for word in match.group(1).split())
        lineno = text[: match.start(2)].count("\n") + 1
        found.append(Block(str(page.relative_to(ROOT)), lineno, info, match.group(2)))
    return found


def run(block: Block, names: dict[str, Any]) -> None:
    """Run one block in `names`, with its source where a block's source is looked for."""
    filename = f"<{block.page}:{block.lineno}>"
    lines = block.code.splitlines(keepends=True)
    linecache.cache[filename] = (len(block.code), None, lines, filename)
    exec(compile(block.code, filename, "exec"), names)
