"""A table that prints alike in a terminal, a log file and a notebook."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_CSS = {"green": "#1a7f37", "yellow": "#9a6700", "red": "#cf222e", "dim": "#6e7781"}


@dataclass(frozen=True)
class Cell:
    """Text of a table, in a colour where there are colours: green, yellow, red or dim."""

    text: str
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head, with a line above and perhaps one below."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    note: str | None = None

    def text(self) -> str:
        """As lines; with colours where stdout is a terminal."""
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        out = io.StringIO()
        on_terminal = bool(getattr(sys.stdout, "isatty", bool)())
        # A terminal's own width; elsewhere nothing is cut off
        width = None if on_terminal else 10_000
        console = Console(file=out, force_terminal=on_terminal, width=width, highlight=False)
        console.print(Text(self.title), soft_wrap=True)
        if self.rows:
            table = RichTable(*self.head, box=None, pad_edge=False, header_style="bold")
            for row in self.rows:
                table.add_row(*(Text(cell.text, style=cell.colour) for cell in row))
            console.print(table)
        if self.note:
            console.print(Text(self.note), soft_wrap=True)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def html(self) -> str:
        """For a notebook."""
        lines = [f"<div><b>{html.escape(self.title)}</b></div>"]
        if self.rows:
            head = "".join(f"<th style='text-align:left'>{html.escape(h)}</th>" for h in self.head)
            body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in self.rows)
            lines.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        if self.note:
            lines.append(f"<div>{html.escape(self.note)}</div>")
        return "\n".join(lines)


def _html_cell(cell: Cell) -> str:
    style = "text-align:left" + (f";color:{_CSS[cell.colour]}" if cell.colour else "")
    return f"<td style='{style}'>{html.escape(cell.text)}</td>"
