"""`tracer.report()`: what blocks did in a run, in the order in which it happened, as text and HTML.

It is how one finds out why nothing changed. Nothing is taken down for a run whose report nobody
asks for: the code around the `with` says whether it does (`wants_report`).
"""

from __future__ import annotations

import html as markup
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from nnsight.capture.block import Block
from nnsight.traces.journal import IN_PLACE, REPLACED, UNMET, Event

_HEADS = ("", "block", "did", "where", "visit", "line", "value", "change")
_COLOURS = {
    "read": "#4c78a8", "write": "#d95f02", IN_PLACE: "#e6ab02", "skip": "#7570b3", UNMET: "#e7298a"
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What blocks did in one run.

    It prints as a table with a summary under it, and shows as one in a notebook. `events` has the
    rows as data; iterating gives them too.
    """

    title: str
    events: tuple[Event, ...]
    stopped: bool = False  # by `tracer.stop()`
    complete: bool = True  # False while the run goes on
    error: str = ""  # the kind of the error that ended it

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    @property
    def changes(self) -> tuple[Event, ...]:
        """What changed a value that the model went on with."""
        return tuple(e for e in self.events if not e.late and (e.change or e.action == "skip"))

    @property
    def summary(self) -> list[str]:
        """What the rows come to, in sentences: first of all, why nothing changed."""
        lines = [_told(event) for event in self.events]
        found = list(dict.fromkeys(line for line in lines if line))
        if not self.changes and self.complete and not self.error:
            found.insert(0, _nothing(self.events))
        if self.stopped:
            found.append("`tracer.stop()` ended the run.")
        if self.error:
            found.append(f"An error ended the run ({self.error}): what comes after is not here.")
        if not self.complete:
            found.append("The run goes on: this is what happened until now.")
        return found

    def __str__(self) -> str:
        rows = [_HEADS, *(_cells(n, event) for n, event in enumerate(self.events, 1))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self.title, "", *table, "", *self.summary]).rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads = "".join(f'<th style="{_CELL}">{head}</th>' for head in _HEADS)
        most = max((_relative(event) for event in self.events), default=0.0)
        rows = "".join(_row(n, event, most) for n, event in enumerate(self.events, 1))
        below = "".join(f"<div>{markup.escape(line)}</div>" for line in self.summary)
        return (
            f'<div style="{_FRAME}"><div><b>{markup.escape(self.title)}</b></div>'
            f'<table style="border-collapse:collapse;margin:.5em 0"><tr>{heads}</tr>{rows}</table>'
            f"{below}</div>"
        )


# --- the rows -------------------------------------------------------------------------------------


def _cells(number: int, event: Event) -> tuple[str, ...]:
    did = f"{event.action}, late" if event.late else event.action
    return (
        str(number),
        event.block,
        did,
        event.where,
        str(event.visit),
        event.line,
        event.value,
        _change(event),
    )


def _relative(event: Event) -> float:
    """The change as a share of what was there."""
    if not event.change or math.isnan(event.change):
        return 0.0
    return event.change / event.size if event.size else 1.0


def _change(event: Event) -> str:
    if event.change is None:
        return ""
    if math.isnan(event.change):  # values without numbers, in a scan
        return "yes"
    if event.change == 0:
        return "none"
    return f"{event.change:.3g} of {event.size:.3g} ({_relative(event):.0%})"


_FRAME = "font-family:monospace;line-height:1.5;text-align:left"
_CELL = "text-align:left;padding:1px .8em 1px 0;white-space:nowrap;background:none"
_BAR = "display:inline-block;height:.7em;margin-right:.5em"


def _row(number: int, event: Event, most: float) -> str:
    """One row: a dot in the colour of what was done, and a bar as long as the change."""
    cells = [markup.escape(cell) for cell in _cells(number, event)]
    colour = _COLOURS.get(event.action, "#888")
    cells[2] = f'<span style="color:{colour}">{"○" if event.late else "●"}</span> {cells[2]}'
    if most and event.change:
        width = max(1, round(80 * min(1.0, _relative(event) / most)))
        style = f"{_BAR};width:{width}px;background:{colour};opacity:{0.35 if event.late else 1}"
        cells[-1] = f'<span style="{style}"></span>{cells[-1]}'
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


# --- the summary ----------------------------------------------------------------------------------


def _nothing(events: tuple[Event, ...]) -> str:
    if not events:
        return "Nothing happened: no block asked for a value."
    tried = any(event.action in ("write", IN_PLACE) for event in events)
    if tried:
        return "Nothing changed in the model."
    return (
        "Nothing changed in the model: the blocks only read. What a block computes from a value "
        "stays in the block: assign it (`module.output = new`), or change the value in place "
        "(`module.output[:] = new`)."
    )


def _told(event: Event) -> str:
    """What one row means, where it may not be what was meant; else nothing."""
    at = f"`{event.where}` (line {event.line})"
    if event.action == "write" and event.change == 0:
        return f"{at} was replaced by a value that is the same."
    if event.late == REPLACED:
        return f"A value of {at} was changed in place after it had been replaced: nobody reads it."
    if event.late:
        return (
            f"A value of {at} was changed in place when the model had gone on from there (to "
            f"`{event.late}`): what it had computed until then is not changed. Change a value "
            "right after reading it."
        )
    if event.action == UNMET:
        return f"{at} was asked for, and the run did not bring it."
    return ""


# --- whether a report is asked for ----------------------------------------------------------------


_known: WeakKeyDictionary[Block, bool] = WeakKeyDictionary()


def wants_report(block: Block) -> bool:
    """Whether the code from the `with` of a block on shows its tracer: `tracer.report()`,
    `print(tracer)`, or a line with its name alone, as at the end of a notebook cell.
    """
    known = _known.get(block)
    if known is None:  # it depends on the source alone, so it is looked up once
        known = _known[block] = _mentions_tracer(block)
    return known


def _mentions_tracer(block: Block) -> bool:
    node = block.site.node
    target = getattr(node.items[block.site.item].optional_vars, "id", None)
    if target is None:
        return False
    text = "".join(block.site.lines[node.lineno - 1 :])
    shown = rf"\b{target}\.report\(|\b(?:print|display|str|repr)\(\s*{target}\s*[,)]|^{target}\s*$"
    found = re.search(shown, text, re.MULTILINE)
    return found is not None and not _leaves_function(text[: found.start()], node.col_offset)


def _leaves_function(text: str, column: int) -> bool:
    """Whether another function begins in `text`, which starts at `column` of a function."""
    starts = re.finditer(r"^( *)(?:def|class|async def|@)\b", text, re.MULTILINE)
    return any(len(match.group(1)) < column for match in starts)
