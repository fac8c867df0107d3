"""How the operations of a forward print: the text of the function, their names beside the lines.

    self_c_proj_0       -> 79          attn_output = self.c_proj(attn_output)
    attn_output_0       ->  +

A `+` stands for the line above: several operations are in it. Lines count from the `def` (or the
first decorator), which is line 0.
"""

from __future__ import annotations

import html as markup
import textwrap
from collections import defaultdict
from collections.abc import Iterator

from nnsight.envoy.listing import Listing, Op

_AROUND = 4  # lines shown above and below one operation


def _dedented(listing: Listing) -> list[str]:
    return textwrap.dedent("\n".join(listing.lines)).split("\n")


def _by_line(listing: Listing) -> dict[int, list[Op]]:
    found: defaultdict[int, list[Op]] = defaultdict(list)
    for op in listing.ops:
        found[op.line - listing.first].append(op)
    return found


def _rows(listing: Listing) -> Iterator[tuple[str, str, str]]:
    """The name, the number and the text of every row."""
    ops = _by_line(listing)
    for number, line in enumerate(_dedented(listing)):
        first, *more = [op.name for op in ops.get(number, [])] or [""]
        yield first, str(number), line
        yield from ((name, "+", "") for name in more)


def text(listing: Listing) -> str:
    """The whole function, as a listing."""
    rows = list(_rows(listing))
    width = max(len(name) for name, _, _ in rows)
    digits = max(len(number) for _, number, _ in rows)
    return "\n".join(
        f"{name:{width}} {'->' if name else '  '} {number:>{digits}}  {line}".rstrip()
        for name, number, line in rows
    )


def one(listing: Listing, op: Op, path: str) -> str:
    """One operation among the lines around it, with an arrow at its own."""
    lines = _dedented(listing)
    first, last = op.line - listing.first, op.end - listing.first
    start, stop = max(0, first - _AROUND), min(len(lines), last + _AROUND + 1)
    digits = len(str(stop))
    shown = [
        f"{arrow} {number:>{digits}}  {lines[number]}".rstrip()
        for number in range(start, stop)
        for arrow in ["-->" if first <= number <= last else "   "]
    ]
    above, below = ["    ..."] * (start > 0), ["    ..."] * (stop < len(lines))
    return "\n".join([f"{path}:", "", *above, *shown, *below])


# --- in a notebook --------------------------------------------------------------------------------

_FRAME = "font-family:monospace;line-height:1.5;text-align:left;overflow-x:auto"
_CELL = "padding:0 1em 0 0;border:0;text-align:left;white-space:pre;vertical-align:top"
_NAME = f"{_CELL};font-weight:bold"
_NUMBER = f"{_CELL};opacity:.55;text-align:right"


def html(listing: Listing, title: str) -> str:
    """The same as a table that folds; it brings its style along and has no scripts and no ids."""
    rows = "".join(
        f'<tr style="background:none"><td style="{_NAME}">{markup.escape(name)}</td>'
        f'<td style="{_NUMBER}">{number}</td><td style="{_CELL}">{markup.escape(line)}</td></tr>'
        for name, number, line in _rows(listing)
    )
    return (
        f'<div style="{_FRAME}"><details open><summary style="cursor:pointer">'
        f"{markup.escape(title)}: {len(listing.ops)} operations of {markup.escape(listing.name)}"
        f'</summary><table style="border-collapse:collapse">{rows}</table></details></div>'
    )


def framed(shown: str) -> str:
    """Text as it prints in a terminal."""
    return f'<pre style="{_FRAME}">{markup.escape(shown)}</pre>'
