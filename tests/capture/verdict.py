"""Whether what a construct came to is what the table promises."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from constructs import CONSTRUCTS, Construct

HERE = "# <- here"
Outcome = dict[str, Any]
BY_NAME = {construct.name: construct for construct in CONSTRUCTS}


def fault(construct: Construct, plain: Outcome, found: Outcome) -> str | None:
    """What is wrong with `found`; None if nothing."""
    if found.get("ours"):
        return f"the traceback shows our frames: {found['ours']}"
    if construct.error is not None:
        kind, part = construct.error
        if found.get("error") != kind or part not in found["message"]:
            return f"{kind} ({part}) was promised, not {found}"
        return _at_marked_line(construct, found)
    if construct.differs is not None:
        wanted, _ = construct.differs
        if any(found.get(key) != value for key, value in wanted.items()):
            return f"{wanted} was promised, not {found}"
    elif {**plain, "lines": 0, "ours": 0} != {**found, "lines": 0, "ours": 0}:
        return f"plain Python gives {plain}, a block {found}"
    return _at_marked_line(construct, found)


def _at_marked_line(construct: Construct, found: Outcome) -> str | None:
    if HERE in construct.source and "error" in found:
        if not found["lines"] or HERE not in found["lines"][-1]:
            return f"the error is not at the marked line: {found}"
    return None


def no_text(construct: Construct, plain: Outcome, found: Outcome) -> str | None:
    """The verdict where nobody keeps the text of the block: an error that says what to write."""
    if found.get("ours"):
        return f"the traceback shows our frames: {found['ours']}"
    if found.get("error") == "WithBlockNotFoundError":
        return None if "model.run(x, fn)" in found["message"] else "no callable form is named"
    before = construct.name in ("error_before_the_block", "two_threads_at_once")
    return None if before else f"this ran: {found}"


def faults(
    plain: dict[str, Outcome],
    found: dict[str, Outcome],
    wanted: Callable[[Construct], bool] = lambda _: True,
    judge: Callable[[Construct, Outcome, Outcome], str | None] = fault,
) -> list[str]:
    """Every construct that did not come to what was promised, with what it came to."""
    wrong: list[str] = []
    for name, outcome in plain.items():
        construct = BY_NAME[name]
        if not wanted(construct):
            continue
        problem = judge(construct, outcome, found[name]) if name in found else "it did not run"
        if problem is not None:
            wrong.append(f"{name}: {problem}")
    return wrong


# --- what is not asked of a place -----------------------------------------------------------------

CUT = "the place cuts lines at control characters, so the text that it keeps does not fit the code"
REFUSED: dict[str, dict[str, str]] = {  # where a construct gives `WithBlockNotFoundError`
    "zip": {"form_feed": CUT, "line_separators": CUT},
    "ipython": {"line_separators": CUT},
    "kernel": {"line_separators": CUT},
}
NOT_ASKED: dict[str, dict[str, str]] = {
    "threads": {
        "block_while_an_error_is_handled": "the error that is being handled belongs to a thread"
    },
    "reloaded": {"shadows_builtins_in_a_module": "the name is still bound from the first time"},
    "ipython": {"doctest_like_text": "IPython takes the prompts away"},
    "kernel": {"doctest_like_text": "IPython takes the prompts away"},
    "doctest": {
        "tabs": "doctest turns tabs into spaces",
        "form_feed": "doctest takes it for the end of a line",
        "line_separators": "doctest takes them for ends of a line",
        "future_annotations": "doctest compiles each example by itself",
    },
    "prompt": {
        "line_separators": "a control character is a signal to the terminal",
        "very_long_file": "nobody types three thousand lines",
        "tabs": "the prompt turns tabs into spaces",
        "windows_lines": "the terminal turns a carriage return into a new line",
    },
}
IN_FILES = ("modules", "threads", "zip", "reloaded", "debugger", "coverage")
ONE_BY_ONE = (*IN_FILES, "ipython", "kernel", "doctest", "prompt", "command")


def is_lazy(construct: Construct) -> bool:
    """Whether it enters no trace before its `case` is called."""
    try:
        pending: list[ast.AST] = [ast.parse(construct.source)]
    except SyntaxError:  # of a newer Python
        return False
    while pending:
        node = pending.pop()
        if isinstance(node, ast.With):
            return False
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)
    return True


def asked(construct: Construct, place: str) -> bool:
    """Whether `construct` is to run in `place`."""
    if construct.package and place not in IN_FILES:
        return False
    if construct.alone and place not in ONE_BY_ONE:
        return False
    if place == "stdin" and not is_lazy(construct):  # it would end the program
        return False
    return construct.name not in NOT_ASKED.get(place, {})


def wrong_in(place: str, report: dict[str, dict[str, Outcome]]) -> list[str]:
    """Every construct that did not come to what was promised of `place`."""

    def judge(construct: Construct, plain: Outcome, found: Outcome) -> str | None:
        if construct.name in REFUSED.get(place, {}):
            return no_text(construct, plain, found)
        if place in ("exec_without_text", "stdin"):
            return no_text(construct, plain, found)
        return fault(construct, plain, found)

    return faults(report["plain"], report[place], lambda c: asked(c, place), judge)
