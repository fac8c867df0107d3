"""The two pages of a server for people: files without scripts or styles from elsewhere."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Sequence
from pathlib import Path

from starlette.routing import Route, WebSocketRoute

POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@functools.cache
def page() -> str:
    """Models, jobs, and the log of one of them as it grows."""
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def docs(routes: Sequence[Route | WebSocketRoute]) -> str:
    """The paths of a server, with what they do."""
    rows = []
    for route in routes:
        method = "WS"
        if isinstance(route, Route):
            method = next(iter((route.methods or set()) - {"HEAD"}))
        text = inspect.getdoc(route.endpoint) or ""
        cells = (f"<code>{method}</code>", f"<code>{html.escape(route.path)}</code>")
        rows.append(f"<tr><td>{cells[0]}<td>{cells[1]}<td>{html.escape(text)}")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>nnsight server</title>"
        "<style>body{font:15px/1.5 system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem}"
        "td{padding:.3rem .8rem .3rem 0;vertical-align:top}</style>"
        "<h1>What this server answers</h1><p>The key goes into the header "
        '<code>ndif-api-key</code>. A refusal is <code>{"detail": "a sentence"}</code>.</p>'
        f"<table>{''.join(rows)}</table></html>"
    )
