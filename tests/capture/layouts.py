"""Files full of `with` statements in odd layouts, made from a seed.

The truth about them is in the text: every manager is `manager(n)` with a number of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Lines = list[str]

FAKES = (  # what looks like a `with` and is none
    "text = 'with manager(0): pass'",
    'text = """\nwith manager(0):\n    pass\n"""',
    "# with manager(0):",
    'text = [\n"é😀", """\n    with manager(0): x\n""",\n]',
    "number = {\n'with': 1,\n}['with']",
    "text = 'a' \\\n    'with manager(0):'",
    "call(lambda: [manager(0)], 'é' * 3)",
)


class Writer:
    """Writes one file."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0

    def text(self) -> str:
        body = [line for _ in range(6) for line in self._statement(0)]
        return "from contextlib import nullcontext\n" + "\n".join(body) + "\n"

    def _number(self) -> int:
        self.count += 1
        return self.count

    # --- one statement at a depth, as lines ---------------------------------------------------

    def _block(self, depth: int) -> Lines:
        lines: Lines = []
        for _ in range(self.random.randint(1, 2)):
            lines += self._statement(depth) if depth < 5 else self._leaf()
        step = self.random.choice(["    ", "  ", "\t", "        "])
        return [step + line for line in lines]

    def _leaf(self) -> Lines:
        return self.random.choice([["pass"], ["x = 1; y = [x]"], ["'é😀', 1"]])

    def _statement(self, depth: int) -> Lines:
        kinds: list[Callable[[int], Lines]] = [
            *(self._with, self._with, self._with, self._one_liner),
            *(self._fake, self._if, self._loop, self._try, self._function, self._class),
        ]
        return self.random.choice(kinds)(depth)

    def _fake(self, depth: int) -> Lines:
        fake = self.random.choice(FAKES)
        return [*fake.split("\n"), "pass"] if "\n" not in fake else [*self._quoted(fake), "pass"]

    def _quoted(self, text: str) -> Lines:
        """A statement over several lines, as one entry: it must not be indented inside."""
        return [text]

    def _if(self, depth: int) -> Lines:
        lines = ["if x:", *self._block(depth + 1)]
        if self.random.random() < 0.5:
            lines += ["elif not x:", *self._block(depth + 1)]
        return [*lines, "else:", *self._block(depth + 1)]

    def _loop(self, depth: int) -> Lines:
        head = self.random.choice(["for i in [1, 2]:", "while call(0):"])
        return [head, *self._block(depth + 1), "else:", *self._block(depth + 1)]

    def _try(self, depth: int) -> Lines:
        lines = ["try:", *self._block(depth + 1)]
        if self.random.random() < 0.6:
            lines += ["except OSError:", *self._block(depth + 1)]
            lines += ["else:", *self._block(depth + 1)]
        return [*lines, "finally:", *self._block(depth + 1)]

    def _function(self, depth: int) -> Lines:
        name = f"f{self._number()}"
        return [f"def {name}(a=1):", *self._block(depth + 1), f"{name}()"]

    def _class(self, depth: int) -> Lines:
        return [f"class C{self._number()}:", *self._block(depth + 1)]

    # --- a `with` -----------------------------------------------------------------------------

    def _manager(self) -> str:
        call = f"manager({self._number()})"
        forms = [
            *(call, call, f"({call})", f"{call} if x else None", f"[{call}][0]"),
            *(f"'é😀' and {call}", f"call({call}, 'with')", f"call(\n{call}\n)"),
            f'call({call}, """\nwith manager(0):\n    pass\n""")',
        ]
        return self.random.choice(forms)

    def _items(self) -> Lines:
        items: Lines = []
        for _ in range(self.random.choice([1, 1, 1, 2, 2, 3])):
            item = self._manager() if self.random.random() < 0.8 else "nullcontext()"
            target = self.random.choice(["", "", " as t", " as d[0]", " as (t, *u)"])
            items.append(item + target.replace("(t, *u)", "u"))
        return items

    def _head(self) -> str:
        items = self._items()
        layout = self.random.choice(["plain", "plain", "parentheses", "lines", "backslash"])
        if layout == "parentheses":
            return f"with ({', '.join(items)}):"
        if layout == "lines":
            joined = ",  # with\n".join(items)
            return f"with (\n{joined},\n):"
        if layout == "backslash":
            return "with \\\n" + ", \\\n".join(items) + ":"
        return f"with {', '.join(items)}:"

    def _with(self, depth: int) -> Lines:
        return [self._head(), *self._block(depth + 1)]

    def _one_liner(self, depth: int) -> Lines:
        bodies = ["pass", "x = 1", "x = 1; y = 2", "x = [\n1,\n]; y = 'é'"]
        return [f"{self._head()} {self.random.choice(bodies)}"]
