"""What stands behind `tracer.stop()`: code that would never run, of which a block is told."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from itertools import pairwise
from weakref import WeakKeyDictionary

from nnsight.capture.block import Block
from nnsight.capture.traceback import warn

# by line of a `stop()`, the line of the statement after it
_known: WeakKeyDictionary[Block, dict[int, int]] = WeakKeyDictionary()


def warn_of_the_rest(block: Block, depth: int) -> None:
    """Warn if a statement follows the `stop()` that is running, in the same suite of the block.

    Args:
        depth: how many frames up it was called.
    """
    caller = sys._getframe(depth + 1)
    if caller.f_code.co_filename != block.site.filename:
        return
    if block not in _known:
        _known[block] = dict(_behind_stops(block.site.node))
    line = _known[block].get(caller.f_lineno)
    if line is not None:
        warn(
            f"line {line} comes after `stop()`, which ends the block here and everywhere: it does "
            "not run. Write it before the `stop()`, or after the `with`."
        )


def _behind_stops(node: ast.AST) -> Iterator[tuple[int, int]]:
    for inner in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            suite = getattr(inner, name, None)
            if isinstance(suite, list):
                for one, after in pairwise(suite):
                    if _is_stop(one):
                        yield one.lineno, after.lineno


def _is_stop(statement: ast.stmt) -> bool:
    call = getattr(statement, "value", None)
    return isinstance(call, ast.Call) and getattr(call.func, "attr", None) == "stop"
