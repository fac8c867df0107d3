"""The user's own line as a frame: code of ours that stands there in a traceback."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, NoReturn

from nnsight.capture import traceback
from nnsight.capture.frames import Span, linetable

_ENTRANCE = (
    "def entrance(*exception):\n"
    "    global step\n"
    "    value = error = context = None\n"
    "    try:\n"
    "        value, error = step(*exception)\n"
    "        if error is not None:\n"
    "            context = error.__context__\n"
    "            raise error\n"
    "        return value\n"
    "    finally:\n"
    "        if error is not None:\n"
    "            set_context(error, context)\n"  # not the exception that skipped the body
    "            step = None\n"  # it may hold the error, whose traceback holds this frame
    "        value = error = context = exception = None\n"  # an error that names itself never dies
)


GLOBALS = {"__name__": __package__, "set_context": traceback.set_context}


def _compiled_entrance() -> CodeType:
    module = compile(_ENTRANCE, "<entrance>", "exec", dont_inherit=True)
    return next(c for c in module.co_consts if isinstance(c, CodeType))


_entrance_code = _compiled_entrance()


def entrance(filename: str, name: str, span: Span) -> CodeType:
    """Code that takes one step of ours and raises its error at the user's line.

    Compiling it anew for each place would take five times as long.
    """
    table = linetable(len(_entrance_code.co_code), span)
    return _entrance_code.replace(
        co_filename=filename, co_name=name, co_firstlineno=span[0], co_linetable=table
    )


def call_at(
    filename: str,
    name: str,
    span: Span,
    step: Callable[[], Any],
    module: str | None = __package__,
) -> Any:
    """Call `step` from the function `name` at `span`: a line of the user's in the traceback.

    With `module`, the name of a module of the user's, warnings too are given at that line.
    """
    given = {**GLOBALS, "__name__": module, "step": lambda: (step(), None)}
    return FunctionType(entrance(filename, name, span), given)()


def raise_at(filename: str, name: str, span: Span, error: BaseException) -> NoReturn:
    """Raise `error` from the function `name` at `span`, where it was brought about earlier."""
    held = [error]
    del error  # its traceback will hold this frame
    step = {**GLOBALS, "step": lambda: (None, held.pop())}
    FunctionType(entrance(filename, name, span), step)()
    raise AssertionError("an entrance raises what its step gives")
