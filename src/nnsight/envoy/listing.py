"""The operations of one function, and what they are called."""

from __future__ import annotations

import ast
import difflib
from collections import defaultdict
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

CALLED, BOUND = "call", "assignment"


@dataclass(frozen=True)
class Op:
    """One call or assignment in a function."""

    index: int
    kind: str  # CALLED or BOUND
    name: str  # as users say it: `self_c_proj_0`
    callee: tuple[str, ...]  # of a call, what is called, if that is a dotted name
    line: int  # its first and last line, in the file
    end: int
    once: bool  # whether one call of the function comes by at most once (it is in no loop)


Pattern = Any  # of an assignment to several targets: an op's index, None, or a `Several`


@dataclass(frozen=True)
class Several:
    """Targets that one value is spread over."""

    parts: tuple[Pattern, ...]
    star: int | None  # which of them takes what is left over
    chained: bool  # `a = b = value`: each of them gets the whole value
    ops: tuple[int, ...]  # every operation in it


@dataclass(frozen=True)
class Listing:
    """The operations of one function, and its code with a probe at each of them."""

    name: str
    first: int  # the number of its first line in the file
    lines: tuple[str, ...]  # its text
    ops: tuple[Op, ...]
    patterns: tuple[Several, ...]
    code: CodeType
    by_name: dict[str, int] = field(default_factory=dict[str, int])

    def find(self, name: str) -> Op | None:
        """The operation that `name` means, in this numbering or that of another release."""
        index = self.by_name.get(name)
        return None if index is None else self.ops[index]

    def near(self, name: str) -> list[str]:
        """Names of operations that may have been meant by `name`."""
        names = [op.name for op in self.ops]
        stem = name.rstrip("0123456789").rstrip("_")
        alike = [n for n in names if n.rpartition("_")[0] == stem]
        return alike or difflib.get_close_matches(name, names, n=4, cutoff=0.5)


# --- names ----------------------------------------------------------------------------------------


def dotted(node: ast.expr) -> tuple[tuple[str, ...], bool]:
    """The names of `a.b.c`, and whether they are all of it; of `f(x).c`, `("c",)`."""
    if isinstance(node, ast.Name):
        return (node.id,), True
    if isinstance(node, ast.Attribute):
        before, whole = dotted(node.value)
        return (*before, node.attr), whole
    return (), False


def said(node: ast.expr) -> str:
    """What a callee or a target is called: `self_c_proj`; for `layers[0](x)` `layers`."""
    names, _ = dotted(node)
    while not names and isinstance(node, ast.Subscript):
        node = node.value
        names, _ = dotted(node)
    return "_".join(names) or ("lambda" if isinstance(node, ast.Lambda) else "call")


def resolved(found: list[tuple[str, str]]) -> tuple[list[str], dict[str, int]]:
    """The name of each operation, from its kind and what it is called; and what names mean.

    `x_0` is the first call of `x`. Releases that number calls and assignments together in one
    sequence mean the first of both: their number counts where there is no such call. An
    assignment beside calls of its name is `x_bound_0`.
    """
    called: defaultdict[str, list[int]] = defaultdict(list)
    bound: defaultdict[str, list[int]] = defaultdict(list)
    merged: defaultdict[str, list[int]] = defaultdict(list)
    for index, (kind, said) in enumerate(found):
        (called if kind == CALLED else bound)[said].append(index)
        merged[said].append(index)
    names, meaning = [""] * len(found), dict[str, int]()

    def give(name: str, index: int) -> None:
        if meaning.setdefault(name, index) == index and not names[index]:
            names[index] = name

    for said, indices in called.items():
        for number, index in enumerate(indices):
            give(f"{said}_{number}", index)
    for said, indices in bound.items():
        stem = f"{said}_bound" if said in called else said
        for number, index in enumerate(indices):
            give(f"{stem}_{number}", index)
    for said, indices in merged.items():
        for number, index in enumerate(indices):
            meaning.setdefault(f"{said}_{number}", index)
    for index, (_, said) in enumerate(found):
        if not names[index]:  # a variable that is itself called `x_bound`
            give(f"{said}_op{index}", index)
    return names, meaning
