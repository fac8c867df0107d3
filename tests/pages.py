"""Runs the code blocks of a Markdown page, as a reader would: one after the other.

A block is marked by its info string: `python` runs; `python raises=ValueError` must raise that
exception; `python test=skip` is shown only (it needs weights or a network).

Pages are written for transformers 5. With 4 a reader writes `.output[0]` for the hidden states of a
block of GPT-2, as `docs/language-models.md` says, and that is what runs here. What is marked
`transformers=any` runs as it stands with both; what is marked `transformers=5` warns of a tensor,
which 4 has in a tuple, so that nothing is said there.
"""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

OLD = transformers.__version__.startswith("4.")
ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LAYER = r"(\w[\w.]*\.h\[[^\]]+\]|\blayer)"  # as pages call a block of GPT-2
_READ = re.compile(rf"{_LAYER}\.output\b(?!\[0\]| = )")
_ASSIGNED = re.compile(rf"^( *){_LAYER}\.output = (.+)$", re.MULTILINE)


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


def code_of(block: Block) -> str:
    """The code of a block as it is written for the transformers that is installed."""
    of_gpt2 = "transformer.h" in block.code and block.info.get("transformers") != "any"
    if not OLD or not of_gpt2:
        return block.code
    read = _READ.sub(r"\1.output[0]", block.code)
    return _ASSIGNED.sub(r"\1\2.output = (\3, *\2.output[1:])", read)


def run(block: Block, names: dict[str, Any]) -> None:
    """Run one block in `names`, with its source where a block's source is looked for."""
    filename = f"<{block.page}:{block.lineno}>"
    code = code_of(block)
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    exec(compile(code, filename, "exec"), names)
