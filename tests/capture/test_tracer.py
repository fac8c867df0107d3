"""Entering and leaving a trace: what a user sees of it in errors and warnings, and what stays."""

from __future__ import annotations

import gc
import linecache
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import record
from record import Captured as Trace
from record import OnThread

from nnsight.capture import percode, skip, source, tracer
from nnsight.capture.errors import NestedTraceError, WithBlockNotFoundError
from nnsight.capture.saving import save
from nnsight.capture.traceback import clean, hide, note
from nnsight.config import CONFIG

LIBRARY = Path(source.__file__).parents[1]
LINES = Path(__file__).read_text().splitlines()


def _entries(error: BaseException) -> Iterator[tuple[str, str]]:
    """The function and the text of each line of a traceback."""
    entry: TracebackType | None = error.__traceback__
    while entry is not None:
        code = entry.tb_frame.f_code
        if code.co_filename == record.__file__:
            pass
        elif code.co_filename == __file__:
            yield code.co_name, LINES[entry.tb_lineno - 1].strip()
        else:
            yield code.co_filename, ""
        entry = entry.tb_next


def _shown(run: Callable[[], Any], kind: type[BaseException] = Exception) -> list[tuple[str, str]]:
    """What the traceback of the error of `run` shows, below the line that calls it."""
    with pytest.raises(kind) as caught:
        run()
    return list(_entries(caught.value))[1:]


# --- tracebacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("manager", [Trace, OnThread])
def test_an_error_shows_the_with_and_the_line_of_the_block(manager: type[Trace]):
    def case():
        with manager():
            x = [1]
            x[5] = 2

    entrance = ("case", "with manager():")
    assert _shown(case) == [entrance, entrance, ("case", "x[5] = 2")]


def test_an_error_in_a_function_that_a_block_calls():
    def helper(n: int) -> float:
        return 1 / n

    def case():
        with Trace():
            helper(0)

    entrance = ("case", "with Trace():")
    assert _shown(case) == [entrance, entrance, ("case", "helper(0)"), ("helper", "return 1 / n")]


def test_an_error_in_a_block_in_a_block():
    def case():
        with Trace():
            with OnThread():
                raise KeyError("inner")

    assert _shown(case) == [
        *[("case", "with Trace():")] * 2,
        *[("case", "with OnThread():")] * 2,
        ("case", 'raise KeyError("inner")'),
    ]


def test_an_error_of_the_backend_shows_the_with():
    def fails(_: Any) -> Any:
        raise OSError("no such server")

    class Far(Trace):
        def __init__(self) -> None:
            super().__init__()
            self.backend = fails

    def case():
        with Far():
            pass

    assert _shown(case)[:2] == [("case", "with Far():")] * 2


def test_an_error_at_capture_shows_the_line_of_the_block():
    def case():
        with Trace():
            x = 1
            return x

    with pytest.raises(SyntaxError) as caught:
        case()
    assert list(_entries(caught.value))[1:] == [("case", "with Trace():")] * 2
    assert caught.value.text is not None
    assert caught.value.text.strip() == "return x"
    assert caught.value.filename == __file__
    assert LINES[(caught.value.lineno or 0) - 1].strip() == "return x"
    printed = "".join(traceback.format_exception(caught.value))
    assert str(LIBRARY) not in printed
    assert "return x\n" in printed


def test_an_error_at_capture_points_at_a_character_not_at_a_byte():
    def case() -> Any:
        with Trace():
            x = "é😀", (yield 1)
            x.count(1)

    with pytest.raises(SyntaxError) as caught:
        list(case())
    text, column = caught.value.text or "", caught.value.offset or 0
    assert text[column - 1 :].startswith("yield 1")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no columns in a traceback")
def test_the_carets_point_at_the_call_that_made_the_trace():
    def case():
        with open(__file__) as f, Trace(len(f.name)) as t:
            1 / t.value - 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        case()
    printed = "".join(traceback.format_exception(caught.value)).splitlines()
    under = [printed[n + 1] for n, line in enumerate(printed) if "with open(" in line]
    marks = under[-1].count("^") + under[-1].count("~")  # `Trace~~~` from 3.13 on
    assert marks == len("Trace(len(f.name))")


def test_what_led_to_an_error_is_shown_without_our_frames_too():
    def case():
        with Trace():
            try:
                with Trace():
                    {}["first"]
            except KeyError as error:
                try:
                    raise OSError("second") from error
                except OSError:
                    raise ValueError("third")  # noqa: B904  (an implicit context is wanted)

    with pytest.raises(ValueError, match="third") as caught:
        case()
    second = caught.value.__context__
    assert isinstance(second, OSError)
    first = second.__cause__
    assert isinstance(first, KeyError)
    assert first.__context__ is None
    for error in (caught.value, second, first):
        assert all(str(LIBRARY) not in name for name, _ in _entries(error))


def test_an_error_is_chained_to_what_was_being_handled_around_the_trace():
    for manager in (Trace, OnThread):
        with pytest.raises(OSError) as caught:
            try:
                {}["outer"]
            except KeyError as error:
                outer = error
                with manager():
                    raise OSError  # noqa: B904  (as above)
        assert caught.value.__context__ is outer
        with pytest.raises(KeyError) as same:
            try:
                {}["outer"]
            except KeyError as error:
                with manager():
                    raise error
        assert same.value.__context__ is None


def test_all_frames_are_shown_on_demand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CONFIG.APP, "DEBUG", True)

    def case():
        with Trace():
            raise KeyError

    assert any(str(LIBRARY) in name for name, _ in _shown(case))


def test_frames_of_a_folder_that_is_hidden():
    folder = Path(subprocess.__file__).parent
    hidden = len(tracer.traceback._hidden)
    hide(str(folder / "json"))
    try:

        def case():
            import json

            with Trace():
                json.loads("{")

        assert _shown(case)[-1] == ("case", 'json.loads("{")')
    finally:
        del tracer.traceback._hidden[hidden:]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no groups of errors")
def test_errors_in_a_group_are_cleaned():
    pytest.importorskip("exceptiongroup" if sys.version_info < (3, 11) else "sys")

    def case():
        with Trace():
            found = []
            try:
                with Trace():
                    {}["k"]
            except KeyError as error:
                found.append(error)
            raise ExceptionGroup("g", found)  # noqa: F821  (new in 3.11)

    with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
        case()
    (inner,) = caught.value.exceptions
    assert all(str(LIBRARY) not in name for name, _ in _entries(inner))


def test_cleaning_ends_in_a_ring_of_errors():
    first, second = KeyError(), OSError()
    first.__context__, second.__cause__ = second, first
    assert clean(first) is first


def test_a_note_is_added_once():
    error = KeyError("k")
    note(error, "one")
    note(error, "two")
    note(error, "one")
    assert error.__notes__ == ["one", "two"]  # type: ignore[attr-defined]


# --- entering and leaving -------------------------------------------------------------------------


def test_leaving_a_trace_that_was_not_entered():
    Trace().__exit__(None, None, None)


def test_looking_at_the_methods_does_nothing():
    t = Trace()
    assert callable(t.__enter__)
    assert callable(t.__exit__)
    assert callable(Trace.__enter__)
    assert hasattr(t, "__enter__")
    with t:
        x = [1]
        x.append(2)


@pytest.mark.parametrize("enter", [lambda t: t.__enter__(), lambda t: type(t).__enter__(t)])
def test_entering_by_hand_is_told(enter: Callable[[Trace], Any]):
    t = Trace()
    with pytest.raises(WithBlockNotFoundError, match="not by a `with` statement"):
        enter(t)
    with t:  # and the trace can still be used
        x = save([1])
    assert x == [1]


def test_a_trace_is_open_only_once():
    t = Trace()
    with pytest.raises(NestedTraceError, match="already open"), t:
        with t:
            pass


def test_an_exception_from_a_manager_before_the_body_is_left_alone():
    class Interrupts(Trace):
        def __enter__(self) -> Any:
            super().__enter__()
            self.__exit__(OSError, OSError("early"), None)
            raise OSError("early")

    with pytest.raises(OSError, match="early"), Interrupts():
        raise AssertionError("unreachable")


def test_a_deferred_block_runs_when_it_is_asked_to():
    class Later(Trace):
        deferred = True

        def execute(self) -> None:
            assert self.scope is not None
            later.append(self.scope.function(self, save))

    later: list[Callable[[], None]] = []
    found: list[Any] = []
    for n in range(3):
        with Later():
            found.append(n)
    assert found == []
    for run in later:
        run()
    assert found == [0, 1, 2]


def test_the_place_of_a_block_is_known():
    seen: list[str] = []

    class Where(Trace):
        def execute(self) -> None:
            assert self.scope is not None
            seen.append(self.scope.block.where)

    with Where():
        pass
    line = next(n for n, text in enumerate(LINES, 1) if text == "    with Where():")
    assert seen == [f"{__file__}, line {line}"]


# --- nothing stays --------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Thing:
    """Can be watched."""


def _gone(make: Callable[[], weakref.ref[Any]]) -> bool:
    return make()() is None


@pytest.mark.parametrize("manager", [Trace, OnThread])
@pytest.mark.parametrize("ends", ["well", "in an error", "at capture", "wrapped", "one line"])
@pytest.mark.usefixtures("no_collector")
def test_what_a_block_used_is_free_afterwards(manager: type[Trace], ends: str):
    @contextmanager
    def wrapped(thing: Thing) -> Iterator[Thing]:
        with manager(thing):
            yield thing

    def run() -> weakref.ref[Any]:
        thing = Thing()
        t = manager(thing)
        try:
            if ends == "well":
                with t:
                    copy = [thing]
                    save(copy)
            elif ends == "in an error":
                with t:
                    copy = [thing]
                    raise KeyError(copy)
            elif ends == "at capture":
                with t:
                    return weakref.ref(thing)
            elif ends == "wrapped":
                with wrapped(thing) as also:
                    save([also, thing])
            else:
                with t: save([thing])  # noqa: E701  # fmt: skip
        except (KeyError, SyntaxError):
            pass
        return weakref.ref(thing)

    assert _gone(run)
    assert _gone(run)


@pytest.mark.usefixtures("no_collector")
def test_an_error_that_is_kept_keeps_no_frame_of_ours():
    def run() -> tuple[weakref.ref[Any], str]:
        t = Trace()
        try:
            with t:
                raise KeyError
        except KeyError as error:
            text = "".join(traceback.format_exception(error))
        return weakref.ref(t), text

    found, text = run()
    assert found() is None
    assert str(LIBRARY) not in text


def _kept() -> list[int]:
    memos = [source._entering, source._blocks, tracer._places]
    if sys.version_info >= (3, 12):
        memos.append(skip.skip_at.__self__.codes)  # type: ignore[attr-defined]
    return [len(memo) for memo in memos]


MANY = """
def case(trace, save):
    with trace({n}) as t:
        with trace():
            x = save([t.value])
        def inner():
            with trace():
                y = [x]
            return y
        z = inner()
    return x
"""


@pytest.mark.usefixtures("no_collector")
def test_a_thousand_pieces_of_code_leave_nothing():
    def run(n: int) -> None:
        name, text = f"<piece {n}>", MANY.format(n=n)
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        namespace: dict[str, Any] = {}
        exec(compile(text, name, "exec"), namespace)
        assert namespace["case"](Trace, save) == [n]
        del linecache.cache[name]
        namespace.clear()

    run(0)
    before = _kept()
    for n in range(1, 1000):
        run(n)
    assert _kept() == before


@pytest.mark.usefixtures("no_collector")
def test_what_is_kept_of_code_goes_with_the_code():
    memo: percode.PerCode[list[int]] = percode.PerCode(list)
    code = compile("1", "<one>", "eval")
    other = compile("1", "<one>", "eval")
    assert code == other
    memo[code].append(1)
    memo[other].append(2)
    assert (memo[code], memo[other], len(memo)) == ([1], [2], 2)
    assert memo.get(code) == [1]
    memo[code] = [3]
    assert (memo[code], code in memo) == ([3], True)
    del code
    assert len(memo) == 1
    del other
    assert len(memo) == 0
    assert memo.get(compile("2", "<two>", "eval")) is None
