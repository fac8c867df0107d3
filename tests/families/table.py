"""The marks of all families, each from a run, and the page that shows them."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.families import zoo
from tests.families.checks import CHECKS, NotThere
from tests.families.forms import Warned
from tests.families.subject import Subject

HERE = Path(__file__).parent
RECORD = HERE / "marks.json"
PAGE = HERE.parents[1] / "docs" / "families.md"
GOOD, WARNS, ABSENT, WRONG = "✓", "!", "-", "✗"
Mark = tuple[str, str]  # the mark, and what there is to say about it
Row = dict[str, Mark]  # by column


def row_of(family: str) -> Row:
    """Try everything on one family."""
    if not zoo.is_there(family):
        return dict.fromkeys(CHECKS, (ABSENT, "not in this transformers"))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            subject = Subject(family, Path(folder))
        except Exception as error:
            return dict.fromkeys(CHECKS, (ABSENT, f"cannot be built: {_short(error)}"))
        return {column: _mark(check, subject) for column, check in CHECKS.items()}


def _mark(check: Any, subject: Subject) -> Mark:
    try:
        return GOOD, check(subject) or ""
    except NotThere as missing:
        return ABSENT, _short(missing)
    except Warned as warned:
        return WARNS, _short(warned)
    except Exception as error:
        return WRONG, f"{type(error).__name__}: {_short(error)}"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200].rpartition(' ')[0]} …"


def release() -> str:
    """The transformers that is installed, by its major number."""
    return transformers.__version__.partition(".")[0]


def read() -> dict[str, Any]:
    """The marks as they were written last, by release."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def write(rows: dict[str, Row]) -> None:
    """Keep the marks of this release, and write the page."""
    record = read()
    about = {"transformers": transformers.__version__, "torch": torch.__version__}
    record[release()] = {**about, "families": rows}
    RECORD.write_text(_text(record), encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")


def _text(record: dict[str, Any]) -> str:
    """The record with a line for each family."""
    kept = []
    for one, marks in sorted(record.items()):
        rows = (
            f"  {json.dumps(family)}: {json.dumps(row, ensure_ascii=False)}"
            for family, row in sorted(marks["families"].items())
        )
        about = (f'"{name}": "{marks[name]}"' for name in ("transformers", "torch"))
        families = ",\n".join(rows)
        kept.append(f' "{one}": {{{", ".join(about)}, "families": {{\n{families}\n }}}}')
    return "{\n" + ",\n".join(kept) + "\n}\n"


def line(family: str, rows: Iterable[Row]) -> str:
    """One row of the table; a cell has a mark for each release where they differ."""
    rows = list(rows)
    cells = []
    for column in CHECKS:
        marks = [row[column][0] for row in rows]
        cells.append(marks[0] if len(set(marks)) == 1 else " / ".join(marks))
    return f"| {family} | {' | '.join(cells)} |"


def page(record: dict[str, Any]) -> str:
    """docs/families.md."""
    releases = sorted(record, reverse=True)
    versions = " and ".join(record[one]["transformers"] for one in releases)
    order = " / ".join(record[one]["transformers"] for one in releases)
    introduction = (HERE / "introduction.md").read_text(encoding="utf-8").strip()
    parts = [introduction.format(versions=versions, order=order)]
    for kind in dict.fromkeys(map(zoo.kind_of, zoo.ZOO)):
        families = sorted(family for family in zoo.ZOO if zoo.kind_of(family) == kind)
        head = f"| | {' | '.join(CHECKS)} |\n|---|{'---|' * len(CHECKS)}"
        lines = [
            line(family, [record[one]["families"][family] for one in releases])
            for family in families
            if all(family in record[one]["families"] for one in releases)
        ]
        parts.append(f"## {kind}\n\n{head}\n" + "\n".join(lines))
    parts.append("## Why not\n\n" + "\n".join(_notes(record, releases)))
    return "\n\n".join(parts) + "\n"


def _notes(record: dict[str, Any], releases: list[str]) -> list[str]:
    """What there is to say, once for all families of which it is said."""
    said: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for column in CHECKS:
        for one in releases:
            for family, row in sorted(record[one]["families"].items()):
                mark, why = row[column]
                if why:
                    where = said.setdefault((column, mark, why), {})
                    where.setdefault(family, []).append(record[one]["transformers"])
    notes = []
    for (column, mark, why), where in said.items():
        names = ", ".join(
            family if len(versions) == len(releases) else f"{family} ({', '.join(versions)})"
            for family, versions in where.items()
        )
        why = why.replace("|", "\\|").replace("<", "&lt;")
        notes.append(f"- {mark} **{column}** {names}: {why}")
    return notes
