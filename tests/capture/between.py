"""Blocks, functions and classes as text, from one Python to another.

`between.py write` prints them as JSON, each with what it gives here; `between.py read` takes that
on standard input, and prints what each gives there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from record import Captured  # makes the next lines importable

from nnsight.capture import portable, portable_code, saving
from nnsight.capture.block import Outer
from nnsight.capture.portable import BlockText, Taken
from nnsight.capture.portable_code import CodeText

BASE = 10
BLOCKS: list[dict[str, Any]] = []
CODE: list[dict[str, Any]] = []


class Sent(Captured):
    """A trace that notes what its block is as text, and what it takes with it."""

    def execute(self) -> None:
        assert self.scope is not None
        scope, taken = self.scope, portable.taken_by(self.scope)
        text = dataclasses.asdict(portable.text_of(scope.block))
        text["outer"]["names"] = sorted(text["outer"]["names"])
        names = {n: v for n, v in taken.globals.items() if isinstance(v, (int, str, list))}
        names.setdefault("__name__", "between")
        super().execute()
        BLOCKS.append({"text": text, "cells": dict(taken.cells), "globals": names})


def note(code: Any, given: Any) -> None:
    """Note a function or class as text, and what it gives."""
    kind = "class" if isinstance(code, type) else "function"
    make = portable_code.text_of_class if kind == "class" else portable_code.text_of_function
    text = make(code)
    assert text is not None
    CODE.append({"kind": kind, "text": dataclasses.asdict(text), "given": given})
    if kind == "function":
        CODE[-1] |= {"defaults": code.__defaults__, "keywords": code.__kwdefaults__}
    CODE[-1]["gives"] = code(*given).total() if kind == "class" else list(code(*given))


# --- what is sent ---------------------------------------------------------------------------------


def blocks() -> list[Any]:
    """Blocks as users write them; each leaves what it found in a list of its own."""
    results: list[Any] = []
    shift, words = 3, ["b", "a"]
    with Sent():
        numbers = [n + shift for n in range(3)]
        found = sorted(words), {n: str(n) for n in numbers}, BASE + sum(numbers)
        found.save()
    results.append(found)
    with Sent():

        def helper(value, *more, scale=2, **rest):
            return value * scale + shift + len(more) + len(rest)

        found = [helper(1), helper(1, 2, scale=3, a=1), (lambda x: x - shift)(5)]
        found.save()
    results.append(found)
    with Sent():
        found = []
        for n in range(5):
            if (half := n // 2) > 1:
                break
            try:
                found.append(1 / half)
            except ZeroDivisionError as error:
                found.append(f"{error!s:.8}|{n=}")
            finally:
                found.append(n)
        else:
            found.append("whole")
        found.save()
    results.append(found)
    with Sent():
        match words:
            case [first, *rest] if first == "b":
                found = {"first": first, "rest": rest}
            case _:
                found = {}

        class Inner:
            total = shift

            def of(self):
                return self.total + BASE

        found["inner"] = Inner().of()
        found["nested"] = [[a * b for a in range(2)] for b in range(shift)]
        found.save()
    results.append(found)
    with Sent():

        def count():
            n = 0

            def step():
                nonlocal n
                n += 1
                return n

            return step

        step = count()
        found = [step(), step(), *(x for x in "ab"), (lambda s: s * 2)(words[0])]
        found.save()
    results.append(found)
    return results


def pieces(values, *, start=0):
    """A generator with a keyword."""
    total = start
    for value in values:
        total += value
        yield f"{total:>3}"


def branches(x):
    table = {"default": lambda y, z=2: y * z + x}
    return [table["default"](n) for n in range(3) if n != 1] + [x if x > 1 else -x]


class Counter:
    """A class with most of what a class can have."""

    step = 2

    def __init__(self, start: int) -> None:
        self.__start = start
        self.seen = [start]

    @property
    def start(self) -> int:
        return self.__start

    @classmethod
    def twice(cls, start: int) -> int:
        return cls.step * start

    @staticmethod
    def plus(x: int) -> int:
        return x + 1

    def total(self) -> list[int]:
        return [self.start, self.twice(4), self.plus(1), *self.seen]


# --- both ways ------------------------------------------------------------------------------------


def write() -> None:
    gives = blocks()
    note(pieces, [[1, 2, 3]])
    note(branches, [5])
    note(Counter, [7])
    print(json.dumps({"blocks": BLOCKS, "gives": gives, "code": CODE}))


def read() -> None:
    sent = json.load(sys.stdin)
    print(
        json.dumps({"gives": [run(b) for b in sent["blocks"]], "code": [*map(call, sent["code"])]})
    )


def run(sent: dict[str, Any]) -> Any:
    """What a block leaves under `found`."""
    about = dict(sent["text"])
    outer = about.pop("outer")
    outer["names"] = frozenset(outer["names"])
    block = portable.block_of(BlockText(outer=Outer(**outer), **about))
    scope = portable.scope_of(block, Taken(sent["cells"], sent["globals"]))
    tracer = Captured()
    tracer.scope = scope
    saving.saves.set(saving.Saves())
    scope.function(tracer, saving.save)()
    return scope.bound()["found"]


def call(sent: dict[str, Any]) -> Any:
    """What a function gives, or an object of a class."""
    text = CodeText(**{**sent["text"], "free": tuple(sent["text"]["free"])})
    names: dict[str, Any] = {"__name__": "between", "__builtins__": __builtins__}
    if sent["kind"] == "class":
        return portable_code.class_of(text, (), names, {}, text.name)(*sent["given"]).total()
    function = portable_code.function_of(text, names, {}, text.name)
    function.__defaults__ = tuple(sent["defaults"] or ())
    function.__kwdefaults__ = sent["keywords"]
    return list(function(*sent["given"]))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]]()
