"""Passing over a body: nothing of it runs in place, and nothing else is disturbed."""

# ruff: noqa: E701  (bodies on one line are a case of their own)

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import pythons
from record import Captured as Trace

from nnsight.capture import instructions
from nnsight.capture.errors import NestedTraceError, WithBlockNotFoundError
from nnsight.capture.skip import SkipBody

MONITORING = pytest.mark.skipif(
    pythons.with_monitoring() is None, reason="no Python 3.12 or newer on this machine"
)

TARGETS = [
    "t",
    "o.a",
    "o.a.b",
    "d[k]",
    "d['x'][k + 1]",
    "d[1:2]",
    "(a, b)",
    "[a, *b]",
    "(a, (b, o.c), d[0])",
    "(a, b, c, t)",
    "d[f(a, b=1)]",
    "d[lambda: 1]",
]


def _code(text: str) -> types.CodeType:
    return compile(text, "<target>", "exec", dont_inherit=True)


def _function(text: str) -> types.CodeType:
    module = _code(text)
    return next(c for c in module.co_consts if isinstance(c, types.CodeType))


def _name_at(code: types.CodeType, offset: int) -> str:
    import dis

    at = {i.offset: i for i in dis.get_instructions(code)}
    while at[offset].opname in ("EXTENDED_ARG", "PUSH_NULL", "NOP"):
        offset += 2
    return str(at[offset].argval)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["one line", "lines"])
@pytest.mark.parametrize("where", ["module", "function"])
def test_where_a_target_is_bound(target: str, layout: str, where: str):
    """The instruction after it is the first of the body: here it loads the name `BODY`."""
    line = f"with m as {target}:{' ' if layout == 'one line' else chr(10) + '        '}BODY.x()"
    code = _code(line) if where == "module" else _function(f"def f(d, o, k, m):\n    {line}\n")
    (entry,) = instructions.entries(code)
    assert _name_at(code, instructions.past_target(code, instructions.after(code, entry))) == "BODY"


@pytest.mark.parametrize("target", ["d[a if b else c]", "d[a or b]", "(x, d[a and b])"])
def test_a_target_that_decides_something_is_refused(target: str):
    class Manager:
        def __enter__(self) -> tuple[int, int]:
            self.trace = Trace()
            self.trace.__enter__()
            return 1, 2

        def __exit__(self, *exception: Any) -> Any:
            return self.trace.__exit__(*exception)

    import linecache

    text = f"def case(m, d, a, b, c):\n    with m as {target}:\n        ran.append(1)\n"
    linecache.cache["<decides>"] = (len(text), None, text.splitlines(True), "<decides>")
    namespace: dict[str, Any] = {"ran": []}
    exec(compile(text, "<decides>", "exec"), namespace)
    with pytest.raises(WithBlockNotFoundError, match="Bind a plain name there"):
        namespace["case"](Manager(), {}, 1, 0, 2)
    assert namespace["ran"] == []


def test_a_branching_target_of_a_trace_itself_is_fine():
    d: dict[int, Any] = {}
    with Trace(5) as d[1 if d else 2]:
        x = d[2].value
        d[3] = x
    assert d[3] == d[2].value == 5


def test_nothing_of_the_body_runs_in_place():
    class Nowhere(Trace):
        def execute(self) -> None:
            pass

    ran: list[int] = []
    with Nowhere():
        ran.append(1)
    with Nowhere(): ran.append(2)  # fmt: skip
    with Nowhere() as t:
        try:
            ran.append(3)
        finally:
            ran.append(4)
    with Nowhere() as t, pytest.raises(KeyError):
        ran.append(t.value)
    assert ran == []


def test_a_tracer_that_is_open_cannot_be_entered_again():
    tracer = Trace()
    with pytest.raises(NestedTraceError, match="already open"):
        with tracer:
            with tracer:
                pass
    with tracer:  # and it is not broken by that
        x = [1]
        x.append(2)


class Careless(Trace):
    """A manager that does not hand its exit on."""

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)


class Deaf(Trace):
    """A manager that keeps its exit to itself."""

    def __exit__(self, *exception: Any) -> None:
        pass


@pytest.mark.parametrize("kind", [Careless, Deaf])
def test_a_manager_that_swallows_the_exit_is_told(kind: type[Trace]):
    before = sys.gettrace()
    ran: list[int] = []
    with pytest.raises(SkipBody, match="its `__exit__` must return what the trace's own"):
        with kind():
            ran.append(1)
    sys.settrace(before)  # Python 3.11 switches tracing off at an error of a trace function
    assert ran == ([1] if kind is Careless else [])
    with Trace():
        ran.append(2)
    assert ran[-1] == 2


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="no trace function is used there")
def test_a_trace_function_that_is_set_in_between_is_told():
    """The body has run in place then: an error, not a wrong result."""

    class Debugged(Trace):
        def __enter__(self) -> Any:
            found = super().__enter__()
            sys._getframe(1).f_trace = None
            return found

    before = sys.gettrace()
    ran: list[int] = []
    with pytest.raises(RuntimeError, match=r"left without its body.*sys\.settrace"):
        with Debugged():
            ran.append(1)
    sys.settrace(before)
    assert ran == [1]


def test_the_exception_that_skips_is_nowhere_to_be_seen():
    seen: list[Any] = []
    try:
        raise KeyError("outer")
    except KeyError as outer:
        with Trace():
            seen.append(sys.exc_info()[1])
            try:
                raise OSError
            except OSError as error:
                seen.append(error.__context__)
        assert seen == [outer, outer]
    with Trace():
        seen.append(sys.exc_info()[1])
    assert seen[-1] is None


def test_an_unfinished_enter_leaves_nothing_behind():
    """A manager that fails after it has entered the trace; the next one is not skipped for it."""

    class Fails(Trace):
        def __enter__(self) -> Any:
            super().__enter__()
            raise OSError

    class Plain:
        def __enter__(self) -> None: ...
        def __exit__(self, *exception: Any) -> None: ...

    ran: list[int] = []
    for kind in (Fails, Plain, Fails, Plain, Trace):
        try:
            with kind():
                ran.append(1)
        except OSError:
            ran.append(0)
    assert ran == [0, 1, 0, 1, 1]


# --- the ids of `sys.monitoring` ------------------------------------------------------------------


def _monitored(python_c: Callable[..., Any], text: str) -> Any:
    return python_c(text, pythons.with_monitoring())


@MONITORING
def test_all_ids_are_taken(python_c: Callable[..., Any]):
    text = """
m = sys.monitoring
for tool in range(6):
    m.use_tool_id(tool, f"other {tool}")
def case():
    with record.Captured():
        x = record.saving.save([1])
    return x
result = []
try:
    case()
except RuntimeError as error:
    result.append(str(error))
m.free_tool_id(5)
result.append(case())
result.append(m.get_tool(5))
"""
    message, value, owner = _monitored(python_c, text)
    assert "nnsight needs one free sys.monitoring tool id" in message
    assert "free_tool_id" in message
    assert (value, owner) == ([1], "nnsight")


@MONITORING
def test_an_id_without_a_customary_owner_is_taken(python_c: Callable[..., Any]):
    text = """
with record.Captured():
    x = record.saving.save([1])
result = [sys.monitoring.get_tool(tool) for tool in range(6)]
"""
    assert _monitored(python_c, text) == [None, None, None, None, "nnsight", None]


@MONITORING
def test_importing_takes_no_id(python_c: Callable[..., Any]):
    text = "result = [sys.monitoring.get_tool(tool) for tool in range(6)]"
    assert _monitored(python_c, text) == [None] * 6


@MONITORING
def test_somebody_frees_our_id(python_c: Callable[..., Any]):
    text = """
def case():
    with record.Captured():
        x = record.saving.save([1])
    return x
result = [case()]
sys.monitoring.free_tool_id(4)
result.append(case())
sys.monitoring.free_tool_id(4)
sys.monitoring.use_tool_id(4, "other")
result.append(case())
"""
    assert _monitored(python_c, text) == [[1], [1], [1]]


@MONITORING
def test_other_tools_see_what_they_watch(python_c: Callable[..., Any]):
    """Every event but INSTRUCTION, which CPython takes from all tools where one switches it off."""
    text = """
m = sys.monitoring
seen = []
m.use_tool_id(3, "other")
kinds = ("LINE", "CALL", "PY_START", "PY_RETURN", "JUMP", "BRANCH")
for kind in kinds:
    m.register_callback(3, getattr(m.events, kind), lambda *a, k=kind: seen.append((k, a[1])))
def case(n):
    while n:
        with record.Captured() as t:
            x = len([1])
        n -= 1
    return 1
m.set_local_events(3, case.__code__, sum(getattr(m.events, kind) for kind in kinds))
found = []
for n in range(4):
    if n == 3:
        m.restart_events()
    case(2)
    found.append(list(seen))
    seen.clear()
result = [found[0] == found[1] == found[2] == found[3], sorted({kind for kind, _ in found[0]})]
"""
    same, kinds = _monitored(python_c, text)
    assert same
    assert kinds == ["BRANCH", "CALL", "JUMP", "LINE", "PY_RETURN", "PY_START"]


@MONITORING
def test_lines_that_another_tool_switches_off(python_c: Callable[..., Any]):
    """As coverage does; CPython passes over the instruction's own event then."""
    text = """
m = sys.monitoring
m.use_tool_id(1, "coverage")
m.register_callback(1, m.events.LINE, lambda code, line: m.DISABLE)
m.set_events(1, m.events.LINE)
ran = []
def case():
    with (
        record.Captured()
    ) as t:
        ran.append(1)
    with record.Captured(
    ):
        ran.append(2)
    return list(ran)
result = [case(), case()]
"""
    assert _monitored(python_c, text) == [[1, 2], [1, 2, 1, 2]]


@MONITORING
def test_a_site_that_another_manager_enters_first(python_c: Callable[..., Any]):
    text = """
from contextlib import nullcontext
ran = []
class Nowhere(record.Captured):
    def execute(self): pass
def case(manager):
    with manager:
        ran.append(1)
    with record.Captured(): x = 2
    return len(ran)
result = [case(nullcontext()), case(Nowhere()), case(nullcontext()), case(Nowhere())]
"""
    assert _monitored(python_c, text) == [1, 1, 2, 2]


def test_a_fork_goes_on(python_c: Callable[..., Any]):
    text = """
import os
with record.Captured():
    x = record.saving.save([1])
child = os.fork()
if child == 0:
    with record.Captured():
        y = record.saving.save([2])
    os._exit(y[0])
result = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    assert python_c(text) == 2


def test_nothing_is_traced_or_watched_by_the_import():
    text = "import sys, record; print(sys.gettrace(), sys.getprofile())"
    from pathlib import Path

    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["None", "None"]
