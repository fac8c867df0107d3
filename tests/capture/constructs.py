"""The table of what a person may write in a `with` block, and around one.

A construct is a text. It defines `case`, whose result is looked at, or binds `result`. The same
text runs with a trace and with a plain context manager, and must come to the same, unless the
table says that a block refuses it or gives something else, and why.

`bodies.txt` has blocks, each tried in a function, in a module and in a class. `statements.txt` has
whole texts: the `with` statement itself and what may stand around it. A few texts that no editor
keeps as they are (tabs, form feeds, thousands of lines) are written below.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Construct:
    """One text, and what it is to come to."""

    name: str
    source: str
    error: tuple[str, str] | None = None  # the documented refusal: its type, a part of its text
    differs: tuple[dict[str, Any], str] | None = None  # what a block comes to, and why
    since: tuple[int, ...] = (3, 10)
    package: bool = False  # imports from its own package
    alone: bool = False  # has to be the first of its file


# --- reading the tables ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One section of a table: `=== name`, some `key: value`, an empty line and the text."""

    name: str
    keys: dict[str, str]
    text: str

    def construct(self, name: str, source: str) -> Construct:
        keys, needs = self.keys, self.keys.get("needs")
        kind, _, part = keys.get("refused", "").partition(": ")
        gives = json.loads(keys.get("gives", "null"))
        return Construct(
            name,
            source,
            error=(kind, part) if kind else None,
            differs=None if gives is None else (gives, keys["because"]),
            since=tuple(map(int, keys.get("since", "3.10").split("."))),
            package=needs == "a package",
            alone=needs == "the first line",
        )


def _entries(table: str) -> Iterator[Entry]:
    for section in re.split(r"^=== ", (HERE / table).read_text("utf-8"), flags=re.MULTILINE)[1:]:
        head, _, text = section.partition("\n\n")
        name, *lines = head.split("\n")
        keys = dict(line.split(": ", 1) for line in lines)
        yield Entry(name, keys, text.rstrip("\n") + "\n")


# --- bodies ---------------------------------------------------------------------------------------

LEVELS = {
    "function": ("def case():\n{text}    return view(locals(), {names!r})\n", 1),
    "module": ("{text}result = view(globals(), {names!r})\n", 0),
    "class": (
        "def case():\n    class Home:\n{text}    return view(vars(Home), {names!r})\n",
        2,
    ),
}


def _bodies() -> Iterator[Construct]:
    for entry in _entries("bodies.txt"):
        for level in entry.keys.get("levels", "function module class").split():
            form, depth = LEVELS[level]
            text = textwrap.indent(entry.text, "    " * depth)
            source = form.format(text=text, names=entry.keys.get("names", ""))
            yield entry.construct(f"{entry.name}_in_a_{level}", source)


# --- whole texts ----------------------------------------------------------------------------------

SHARED = {
    "subclass": """
class Mine(trace):
    def __enter__(self):
        self.log = ['enter']
        return super().__enter__()
    def __exit__(self, *exception):
        self.log.append('exit')
        return super().__exit__(*exception)
""",
    "delegates": """
class Wrapper:
    def __init__(self, value):
        self.inner = trace(value)
        self.log = []
    def __enter__(self):
        self.log.append('enter')
        self.inner.__enter__()
        return self.log, self.inner.value
    def __exit__(self, *exception):
        done = self.inner.__exit__(*exception)
        self.log.append('exit')
        return done
""",
    "generator": """
from contextlib import contextmanager
@contextmanager
def wrapper(value, log):
    log.append('before')
    with trace(value) as t:
        yield t.value, log
    log.append('after')
""",
}


def _statements() -> Iterator[Construct]:
    for entry in _entries("statements.txt"):
        shared = SHARED.get(entry.keys.get("uses", ""), "").lstrip("\n")
        yield entry.construct(entry.name, shared + entry.text)


def _in_a_function(*lines: str) -> str:
    return "\n".join(["def case():", *lines, ""])


def _no_editor_keeps() -> Iterator[Construct]:
    with_tabs = ["\twith trace():", "\t\tx = 1", "\t\tif x:", "\t\t\ty = '\t'"]
    yield Construct("tabs", _in_a_function(*with_tabs, "\treturn x, len(y)"))
    mixed = ["    with trace():", "    \tx = 1", "    \ty = 2", "    return x, y"]
    yield Construct("tabs_and_spaces", _in_a_function(*mixed))
    short = ["    with trace():", "        x = 1", "    return x"]
    yield Construct("form_feed", "\x0c" + _in_a_function(*short) + "\x0c\n")
    separated = "    s = 'a\u2028b\x1cc'"
    yield Construct("line_separators", _in_a_function(separated, *short))
    windows = ["    with trace():", "        x = '''a", "b'''", "    return x"]
    yield Construct("windows_lines", _in_a_function(*windows).replace("\n", "\r\n"))


def _large() -> Iterator[Construct]:
    names = "; ".join(f"v{n} = {n}" for n in range(300))
    block = "with trace(1) as last:\n        x = last.value + v0 + v299"
    yield Construct(
        "many_names", _in_a_function(f"    {names}", f"    {block}", "    return x, last.value")
    )
    yield Construct("many_names_in_a_module", f"{names}\n{block}\nresult = x, last.value\n")
    wrapped = "with Wrapper(3) as last: x = last[1] + v0"
    delegates = SHARED["delegates"].lstrip("\n")
    yield Construct(
        "wrapper_many_names",
        delegates + _in_a_function(f"    {names}", f"    {wrapped}", "    return x, last"),
    )
    yield Construct(
        "wrapper_many_names_in_a_module", f"{delegates}{names}\n{wrapped}\nresult = x, last\n"
    )
    numbers = f"    s = [{', '.join(f'{n}.5' for n in range(300))}]"
    keys = f"    t = {{{', '.join(f'{n!r}: s' for n in map(str, range(300)))}}}"
    block = "    with trace(): x = [9999.5, t['1'][0]]; y = 7777.25"
    yield Construct("many_constants", _in_a_function(numbers, keys, block, "    return x, y"))
    filler = "def filler_{}(a):\n    return [a, {}, '''\n  with trace():\n''']\n"
    block = "    with trace():\n        x = filler_599(1)[1]"
    yield Construct(
        "very_long_file",
        "\n".join(filler.format(n, n) for n in range(600)) + _in_a_function(block, "    return x"),
    )


CONSTRUCTS: list[Construct] = [*_bodies(), *_statements(), *_no_editor_keeps(), *_large()]
