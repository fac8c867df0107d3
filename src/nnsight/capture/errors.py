"""What can go wrong before a block runs, and the texts that say so."""

from __future__ import annotations

from collections.abc import Iterable

CALLABLE_FORM = (
    "Where there is no source, pass the block as a function instead: "
    "`model.run(x, fn)` runs `fn(tracer, model)` on the same engine."
)


class WithBlockNotFoundError(Exception):
    """The source of a `with` block could not be read, so the block cannot run beside the model."""


class NestedTraceError(ValueError):
    """A trace was entered in a way that leaves no block of its own to run."""


def never_entered(what: str) -> str:
    """What a trace without a `with` did."""
    return (
        f"`{what}` was made here and no `with` entered it, so nothing ran. Write `with {what}:`, "
        "and a block under it."
    )


def no_source(filename: str) -> WithBlockNotFoundError:
    """Nothing knows the text behind `filename` (stdin, a bare `exec`, a lost file)."""
    return WithBlockNotFoundError(
        f"The source of this `with` block is not available (it runs from {filename!r}). "
        "nnsight reads a block's source to run it beside the model; standard input and a bare "
        f"`exec` keep none. {CALLABLE_FORM}"
    )


def source_changed(filename: str, lineno: int) -> WithBlockNotFoundError:
    """The text on disk is no longer what the running code was compiled from."""
    return WithBlockNotFoundError(
        f"{filename}, line {lineno}: the file has changed since this code was loaded, so the "
        "block that would run is not the one that you see. Reload the module "
        f"(`importlib.reload`) or restart the process. {CALLABLE_FORM}"
    )


def no_with(filename: str, lineno: int) -> WithBlockNotFoundError:
    """The tracer was entered by something that is not a `with` statement."""
    return WithBlockNotFoundError(
        f"{filename}, line {lineno}: a trace was entered here, but not by a `with` statement that "
        "nnsight can see (`ExitStack.enter_context` and calls of `__enter__` by hand have no block "
        f"to run). Write `with model.trace(...):` at the top of the block. {CALLABLE_FORM}"
    )


def branching_target(filename: str, lineno: int) -> WithBlockNotFoundError:
    """`with own_manager() as d[a if b else c]`: where its body starts cannot be told."""
    return WithBlockNotFoundError(
        f"{filename}, line {lineno} and after: the target after `as` decides something. Bind a "
        "plain name there (`as value`), and the rest at the top of the block."
    )


def not_a_block(filename: str, lineno: int) -> SyntaxError:
    """A text that is said to be a `with` statement, and is none."""
    return SyntaxError(f"{filename}, line {lineno}: what came for a block is no `with` statement")


def not_a_definition(filename: str, lineno: int, name: str) -> SyntaxError:
    """A text that is said to define something, and does not."""
    return SyntaxError(f"{filename}, line {lineno}: what came for `{name}` does not define it")


def no_tool() -> RuntimeError:
    """Python 3.12 and newer have six ids for tools like ours, and other tools hold them all."""
    return RuntimeError(
        "nnsight needs one free sys.monitoring tool id to run a `with` block, and all six are "
        "taken. Free one with `sys.monitoring.free_tool_id(n)`."
    )


def not_skipped(where: str) -> RuntimeError:
    """A `with` ended without its body having been passed over."""
    return RuntimeError(
        f"{where}: this trace was left without its body. Either something set the trace function "
        "(`sys.settrace`; a debugger started in the `__enter__` of a manager around the trace) "
        "before the body began, and it ran where it stands, not beside the model; or a manager "
        "around the trace did not hand its exit on as it came."
    )


def held_lock(name: str, filename: str, lineno: int) -> RuntimeError:
    """The block would wait for a lock that only the code around it can let go."""
    return RuntimeError(
        f"{filename}, line {lineno}: this block takes the lock `{name}`, which the code around the "
        "trace holds. A block runs on a thread of its own while that code waits for it, so it "
        "would wait for the lock for ever. Let go of the lock before the trace and take it in the "
        "block, or hold it around the trace and do not take it again inside."
    )


def illegal_statement(word: str, filename: str, node: object, line: str) -> SyntaxError:
    """`return`, `yield`, `await`, or a `break` of an outer loop inside a block."""
    reason = {
        "return": "there is no caller to return to: bind a name and `return` it after the block",
        "yield": "a block cannot be suspended: collect into a list and yield after the block",
        "await": "a block cannot be suspended: await before the block and use the value inside",
        "break": "the loop is outside the block: save a flag and `break` after the block (to leave "
        "a `with tracer.iter[...]`, write it as `for step in tracer.iter[...]`)",
        "continue": "the loop is outside the block: guard the rest of the body with `if`",
        "import *": "a block has names of its own: import the names you need",
    }[word]
    lineno, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
    before = line.encode()[:column].decode()  # the AST counts bytes, an error characters
    return SyntaxError(
        f"'{word}' inside a trace block: the block runs beside the model, and {reason}",
        (filename, lineno, len(before) + 1, line),
    )


def illegal_in_kept(filename: str, lineno: int, names: Iterable[str]) -> SyntaxError:
    """`nonlocal` in a block that runs when the function around it may be long gone."""
    listed = ", ".join(sorted(names))
    return SyntaxError(
        f"'nonlocal {listed}' inside an edit: the block runs in later traces, each time from the "
        "values of now, so it has no variable of this function to bind. Put what should last into "
        "a list or a dict, which the block can change.",
        (filename, lineno, 1, None),
    )
