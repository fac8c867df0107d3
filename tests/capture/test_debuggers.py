"""A debugger at work: in a block, around one, and before and after it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import pythons
from record import Captured as Trace

from nnsight.capture.saving import save

HERE = Path(__file__).resolve().parent
HEAD = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
from record import Captured as Trace
from nnsight.capture.saving import save
"""
VERSIONS = [
    pytest.param(
        version,
        marks=pytest.mark.skipif(
            version not in pythons.found(), reason=f"no Python {jobs.name_of(version)} here"
        ),
        id=jobs.name_of(version),
    )
    for version in pythons.SUPPORTED
]


def _session(
    version: tuple[int, int], folder: Path, text: str, commands: str, *options: str
) -> str:
    """What a debugger prints, given its commands one by one."""
    script = folder / "script.py"
    script.write_text(HEAD + text)
    words = [pythons.found()[version], *options, str(script)]
    given = "\n".join([*commands.split("; "), "q", ""])
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_a_breakpoint_in_a_block(version: tuple[int, int], tmp_path: Path):
    """It stops there, sees every name of the function, and steps from line to line."""
    text = """
def case():
    outer = 'of the function'
    n = 1
    with Trace():
        x = n + 1
        breakpoint()
        y = save([x])
        z = save('last')
    return y, z, outer
print('RESULT', case())
"""
    before = "p x, outer; " + ("n; " if version >= (3, 13) else "")  # 3.13 stops at the call itself
    seen = _session(version, tmp_path, text, before + "n; p y; c")
    assert "(2, 'of the function')" in seen
    assert "-> y = save([x])" in seen
    assert "-> z = save('last')" in seen
    assert "(Pdb) [2]" in seen
    assert "RESULT ([2], 'last', 'of the function')" in seen


@pytest.mark.parametrize("version", VERSIONS)
def test_a_breakpoint_in_a_module(version: tuple[int, int], tmp_path: Path):
    text = (
        "n = 1\nwith Trace():\n    x = save([n])\n    breakpoint()\n    y = 2\nprint('RESULT', x)\n"
    )
    seen = _session(version, tmp_path, text, "p n; p x; c")
    assert "(Pdb) 1" in seen
    assert "(Pdb) [1]" in seen
    assert "RESULT [1]" in seen


STEPS = """
def case():
    n = 1
    with Trace():
        x = n + 1
        y = save([x])
    z = y
    return z
print('RESULT', case())
"""


def _line(text: str) -> int:
    return (HEAD + STEPS).split("\n").index(text) + 1


@pytest.mark.parametrize("version", VERSIONS)
def test_stepping_over_a_block(version: tuple[int, int], tmp_path: Path):
    """From the line before it to the line after it, and nothing is seen of how."""
    commands = f"b {_line('    n = 1')}; c; n; n; n; p z; c"
    seen = _session(version, tmp_path, STEPS, commands, "-m", "pdb")
    stops = re.findall(r"^-> (.*)$", seen, flags=re.MULTILINE)
    assert stops[1:5] == ["n = 1", "with Trace():", "z = y", "return z"]
    assert "(Pdb) [2]" in seen
    assert "RESULT [2]" in seen
    assert "SkipBody" not in seen


@pytest.mark.parametrize("version", VERSIONS)
def test_stopping_at_a_line_of_a_block(version: tuple[int, int], tmp_path: Path):
    commands = f"b {_line('        y = save([x])')}; b {_line('    z = y')}; c; p x; c; p y; c"
    seen = _session(version, tmp_path, STEPS, commands, "-m", "pdb")
    stops = re.findall(r"^-> (.*)$", seen, flags=re.MULTILINE)
    assert stops[1:3] == ["y = save([x])", "z = y"]
    assert "(Pdb) 2\n" in seen
    assert "(Pdb) [2]" in seen
    assert "RESULT [2]" in seen


@pytest.mark.parametrize("version", VERSIONS)
def test_after_an_error_in_a_block(version: tuple[int, int], tmp_path: Path):
    """`pdb` goes to the line of the block that failed."""
    text = "def case():\n    with Trace():\n        x = [1]\n        x[2]\ncase()\n"
    seen = _session(version, tmp_path, text, "c; p x", "-m", "pdb")
    assert "IndexError" in seen
    assert "-> x[2]" in seen
    assert "(Pdb) [1]" in seen


# --- what a trace function sees, in this process --------------------------------------------------


def _events(run: Callable[[], Any]) -> list[tuple[str, int]]:
    """The events of this file while `run` runs, by line from its own first one."""
    first = run.__code__.co_firstlineno
    seen: list[tuple[str, int]] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename == __file__ and frame.f_code.co_name == run.__name__:
            seen.append((event, frame.f_lineno - first))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    return seen


def test_lines_before_in_and_after_a_block_are_traced():
    def case():
        n = 1
        with Trace():
            x = save(n)
            x = save(x)
        z = n
        return z

    lines = [line for event, line in _events(case) if event == "line"]
    assert [line for line in lines if line != 2] == [1, 3, 4, 5, 6]
    assert "exception" not in {event for event, _ in _events(case)}


def test_calls_and_returns_balance():
    def case():
        for n in range(3):
            with Trace():
                x = save(n)
        return x

    events = [event for event, _ in _events(case)]
    assert events.count("call") == events.count("return")


@pytest.mark.parametrize("fails", ["in the block", "at capture", "while entering", "nested"])
def test_the_trace_function_comes_back_after_every_failure(fails: str):
    class Manager(Trace):
        def __enter__(self) -> Any:
            super().__enter__()
            raise OSError("while entering")

    def case():
        before = sys._getframe().f_trace
        tracer = Trace()
        try:
            if fails == "in the block":
                with tracer:
                    raise OSError
            elif fails == "at capture":
                with tracer:
                    return
            elif fails == "while entering":
                with Manager():
                    pass
            else:
                with tracer, tracer:
                    pass
        except (OSError, SyntaxError, ValueError):
            pass
        else:
            raise AssertionError("nothing failed")
        frame = sys._getframe()
        assert frame.f_trace is before
        assert (frame.f_trace_lines, frame.f_trace_opcodes) == (True, False)

    lines = [line for event, line in _events(case) if event == "line"]
    assert lines[-1] == 22  # the last one of the function
