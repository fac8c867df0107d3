"""Run a construct and note what came of it, so that two ways of running it can be compared.

`Plain` runs a body where it stands, `Captured` is a trace. Both are called `trace` where a
construct looks them up, among the builtins, so that no construct needs a line of ours. A block
runs here as one inside another trace does: every name that it binds comes back.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import inspect
import linecache
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bare

bare.without_torch()

from nnsight.capture import saving  # noqa: E402  (the line above makes it importable)
from nnsight.capture.tracer import Tracer  # noqa: E402

HERE = "# <- here"  # the line that an error must point at
PATIENCE = 20  # seconds, for anything that might never come


class Captured(Tracer):
    """A trace without a model: its block runs at once."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = value

    def execute(self) -> None:
        assert self.scope is not None
        self.scope.function(self, saving.save)()


class OnThread(Captured):
    """The same, with the block on a thread of its own, as beside a model."""

    def execute(self) -> None:
        assert self.scope is not None
        body, errors = self.scope.function(self, saving.save), list[BaseException]()

        def live() -> None:
            try:
                body()
            except BaseException as error:
                errors.append(error)

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(live,), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if errors:
            raise errors.pop()


class Plain:
    """Runs its body where it stands: what every construct is compared with."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *exception: object) -> bool:
        return False

    async def __aenter__(self) -> Plain:
        return self

    async def __aexit__(self, *exception: object) -> bool:
        return False


# one name for all, for messages that have it
for manager in (Captured, OnThread, Plain):
    manager.__qualname__ = manager.__name__ = "Trace"


def keep(value: Any) -> Any:
    """What `save` is outside a trace."""
    return value


@contextlib.contextmanager
def tracing(manager: type, save: Callable[[Any], Any]) -> Iterator[None]:
    """`trace`, `save` and `view` among the builtins, for constructs to find."""
    before = dict(vars(builtins))
    vars(builtins).update(trace=manager, save=save, view=view, record=record)
    token = saving.saves.set(saving.Saves())
    try:
        yield
    finally:
        saving.saves.reset(token)
        vars(builtins).update(before)


def show(value: Any) -> Any:
    """`value` as something that is the same in two runs."""
    if isinstance(value, (types.FunctionType, type)):
        return f"<{type(value).__name__} {value.__qualname__}>"
    if isinstance(value, dict):
        return {str(key): show(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(show, value)]
    if isinstance(value, BaseException):
        return [type(value).__name__, str(value), show(value.__cause__)]
    if isinstance(value, (set, frozenset)):
        return [type(value).__name__, *sorted(map(repr, value))]
    plain = isinstance(value, (int, float, complex, str, bytes, type(None), range))
    return repr(value) if plain else f"<{type(value).__qualname__} object>"


def view(names: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """What the `wanted` names hold, as far as they are bound."""
    return {name: names[name] for name in wanted.split() if name in names}


def outcome(run: Callable[[], Any]) -> dict[str, Any]:
    """What `run` gave or raised, ready for JSON."""
    try:
        return {"value": show(_driven(run()))}
    except BaseException as error:
        return _failure(error)


def _driven(value: Any) -> Any:
    """The result of a coroutine that never really waits (a kernel has a loop of its own)."""
    if inspect.isgenerator(value):  # of a construct with a `yield` in its block
        return list(value)
    if not inspect.iscoroutine(value):
        return value
    try:
        value.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("this construct waits for something")


def _failure(error: BaseException) -> dict[str, Any]:
    found = {"error": type(error).__name__, "message": str(error)}
    entries = []
    entry = error.__traceback__
    while entry is not None:
        entries.append((entry.tb_frame, entry.tb_lineno))
        entry = entry.tb_next
    entries = [e for e in entries if e[0].f_code.co_filename != __file__]
    found["ours"] = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in entries
        if frame.f_code.co_filename.startswith(str(bare.SOURCE))
    ]
    found["lines"] = [_text(frame, line) for frame, line in entries]
    if isinstance(error, SyntaxError):
        found["lines"].append((error.text or "").strip())
        found["at"] = (error.text or "")[(error.offset or 1) - 1 :].strip()
    return found


unkept: dict[str, list[str]] = {}  # texts that Python keeps not at all, or cut where no line ends


def _text(frame: types.FrameType, line: int) -> str:
    filename = frame.f_code.co_filename
    linecache.checkcache(filename)
    lines = unkept.get(filename) or linecache.getlines(filename, frame.f_globals)
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""


# --- constructs that share one namespace ----------------------------------------------------------

report: dict[str, dict[str, Any]] = {}


def finish(name: str, namespace: dict[str, Any]) -> None:
    """Note what the construct `name`, whose text has just run in `namespace`, comes to."""
    if "case" in namespace:
        report[name] = outcome(namespace["case"])
    else:
        report[name] = outcome(lambda: namespace["result"])


def record(name: str) -> None:
    """The same, called by a text of several constructs after each; clears up for the next."""
    namespace = sys._getframe(1).f_globals
    finish(name, namespace)
    for key in [key for key in namespace if key.isidentifier()]:
        if key[0] != "_" and key not in ("In", "Out", "exit", "quit", "get_ipython", "open"):
            del namespace[key]
