"""What a block prints there reaches stdout here as if it had been printed here, to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import tqdm

from nnsight import CONFIG, LanguageModel
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend
from nnsight.remote.messages import Event
from nnsight.remote.printing import printing
from nnsight.server import keys
from nnsight.server.store import Store
from tests.benchmarks.remote import tiny
from tests.server.test_models import Real

IDS = torch.arange(4)[None]
Capture = pytest.CaptureFixture[bytes]

# --- the programs --------------------------------------------------------------------------------


def nothing(value: Any) -> None:
    print("", end="")


def an_open_line(value: Any) -> None:
    print(value.shape, end="")


def other_ends(value: Any) -> None:
    print("a", end=", ")
    print("b", end="")
    print("c", "d", sep="-", end=";\n\n")
    print(end="e")
    print("f\ng", end="")


def empty_lines(value: Any) -> None:
    print()
    print("")
    print("\n", end="")
    print("\n\n")


def spaces(value: Any) -> None:
    print("  before", "after  ", "\ttab\t", " ", sep="")
    print(" " * 3, end=" ")


def written(value: Any) -> None:
    sys.stdout.write("one\ntwo")
    sys.stdout.writelines([" three", "\n", "four"])
    assert sys.stdout.write("five\n") == 5
    print("six", file=sys.stdout)


def bytes_written(value: Any) -> None:
    for byte in "caf\u00e9 \U0001f600\n".encode():
        sys.stdout.buffer.write(bytes([byte]))
        sys.stdout.flush()


def dots(value: Any) -> None:
    for _ in range(5):
        print(".", end="", flush=True)
    print("done")
    sys.stdout.flush()
    print("working", end="", flush=True)
    print(flush=True)


def progress(value: Any) -> None:
    for done in range(0, 101, 20):
        print(f"\r{done:3d} %", end="")
    print("\rall  \r\nnext\r", end="")


def bars(value: Any) -> None:
    given: Any = {"ncols": 40, "mininterval": 0, "bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt}"}
    for _ in tqdm.tqdm(range(7), file=sys.stdout, **given):
        pass


def other_alphabets(value: Any) -> None:
    print("caf\u00e9 \u4f60\u597d \U0001f469\u200d\U0001f4bb e\u0301 \u202e\ufeff")
    print("\x00 \x07 \x0b\x0c \x1b[31mred\x1b[0m \x85 \u2028 \u2029 end")


def long_lines(value: Any) -> None:
    print("x" * 100_000)
    print("\u4f60" * 10_001, end="")
    for number in range(9_000):
        print(number % 10, end="")
    print("y" * 20_000, end="")


def many_lines(value: Any) -> None:
    for number in range(300):
        print(number)


def nested(value: Any) -> None:
    def inner(depth: int) -> None:
        print("  " * depth, depth, end="" if depth % 2 else "\n")
        if depth < 4:
            inner(depth + 1)

    inner(0)


def threads(value: Any) -> None:
    for number in range(4):
        thread = threading.Thread(target=print, args=("thread", number), kwargs={"end": "|"})
        thread.start()
        thread.join()


def values(value: Any) -> None:
    print(torch.arange(3), {"a": [1, None]}, 0.1 + 0.2, value.dtype)


def logged(value: Any) -> None:
    handler = logging.StreamHandler(sys.stdout)
    log = logging.Logger("of the block")
    log.addHandler(handler)
    log.warning("to %s", "stdout")


def kept(value: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        print("not shown")
    print(text.getvalue().upper(), end="")


PROGRAMS = [
    *(nothing, an_open_line, other_ends, empty_lines, spaces, written, bytes_written, dots),
    *(progress, bars, other_alphabets, long_lines, many_lines, nested, threads, values, logged),
    kept,
]


def run(model: Any, programs: list[Callable[[Any], None]], **how: Any) -> Any:
    with model.trace(IDS, **how) as tracer:
        value = model.lm_head.output
        print("first", end=" ")
        for program in programs:
            program(value)
        logits = value.sum().save()  # noqa: F841
    return tracer


@pytest.fixture
def here(model: Any, capsysbinary: Capture) -> Callable[..., bytes]:
    """What is printed when programs run here."""

    def printed(*programs: Any) -> bytes:
        run(model, list(programs))
        return capsysbinary.readouterr().out

    return printed


# --- the places ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "gpt2"
    tiny(found)
    return found


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[Real, str, str]]:
    """A server, with a key that it trusts, and one whose blocks run in a sandbox."""
    data = folder.with_name("data")
    server = Real(data, str(folder))
    store = Store(data / "server.db")
    trusted = keys.add(store, "trusted", trusted=True)
    guest = keys.add(store, "guest")
    store.close()
    yield server, trusted, guest
    server.kill()


@pytest.fixture
def host(served: tuple[Real, str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The server, for who is trusted."""
    monkeypatch.setenv("NDIF_API_KEY", served[1])
    return served[0].url


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    return LanguageModel(str(folder))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_block_prints_there_what_it_prints_here(model, host, here, program, capsysbinary):
    run(model, [program], remote=host)
    assert capsysbinary.readouterr().out == here(program)


def test_in_a_sandbox(model, served, host, here, monkeypatch, capsysbinary):
    monkeypatch.setenv("NDIF_API_KEY", served[2])
    run(model, PROGRAMS, remote=host)
    assert capsysbinary.readouterr().out == here(*PROGRAMS)


def test_in_a_process_of_this_machine(model, here, capsysbinary):
    run(model, PROGRAMS, remote="local")
    assert capsysbinary.readouterr().out == here(*PROGRAMS)


def test_a_block_that_is_waited_for_later(model, host, here, capsysbinary):
    tracer = run(model, PROGRAMS, remote=host, blocking=False)
    tracer.backend.wait(30.0)
    there = capsysbinary.readouterr().out
    RemoteBackend(model, host=host, job_id=tracer.backend.job_id).wait(30.0)
    assert there == capsysbinary.readouterr().out == here(*PROGRAMS)


def test_a_block_that_is_awaited(model, host, here, capsysbinary):
    async def ask() -> None:
        await run(model, PROGRAMS, backend=AsyncRemoteBackend(model, host=host)).backend

    asyncio.run(ask())
    assert capsysbinary.readouterr().out == here(*PROGRAMS)


def test_the_updates_of_a_block(model, host, here):
    async def ask() -> list[Any]:
        backend = run(model, PROGRAMS, backend=AsyncRemoteBackend(model, host=host)).backend
        return [update async for update in backend]

    *events, _ = asyncio.run(ask())
    there = "".join(event.printed for event in events if event.status == "LOG")
    assert there.encode() == here(*PROGRAMS)


def test_an_error_in_the_middle_of_a_line(model, host, capsysbinary):
    def block(**how: Any) -> bytes:
        with pytest.raises(ZeroDivisionError), model.trace(IDS, **how):
            print("line\nhalf a ", end="")
            print("line", 1 / 0)
        return capsysbinary.readouterr().out

    assert block() == block(remote=host) == block(remote="local") == b"line\nhalf a "


# --- when it is told -----------------------------------------------------------------------------


def test_a_line_is_told_of_when_it_is_printed(model, host, tmp_path):
    """Each is awaited by who listens before the block goes on."""
    told = [tmp_path / str(number) for number in range(4)]
    with model.trace(IDS, backend=(backend := AsyncRemoteBackend(model, host=host))):
        print("a line")
        heard = []
        for file, ahead in zip(told, ["half", " a line\r", "\r50 %", ""], strict=True):
            while not file.exists():
                pass
            heard.append(file.name)
            print(ahead, end="", flush=ahead == "half")
        heard.save()

    async def listen() -> Any:
        waits = iter(told)
        texts = []
        async for update in backend:
            if isinstance(update, Event) and update.status == "LOG":
                texts.append(update.printed)
                next(waits).touch()
        return texts, update["heard"]

    texts, heard = asyncio.run(asyncio.wait_for(listen(), 20))
    assert texts == ["a line\n", "half", " a line\r", "\r50 %"] and heard == list("0123")


def test_what_is_printed_after_the_block_goes_nowhere():
    said: list[str] = []
    with printing(said.append):
        stream = sys.stdout
        print("in", end="")
    print("after", file=stream)
    assert said == ["in"]
    with printing(said.append):
        print("once more")
        sys.stdout.close()
    assert said == ["in", "once more\n"]


def test_half_a_surrogate_pair_ends_no_job(model, host, capsysbinary):
    with model.trace(IDS, remote=host):
        print("a \ud800")
    assert capsysbinary.readouterr().out == b"a ?\n"


def test_a_print_in_the_middle_of_a_print():
    """As the garbage collector may make one, on the same thread."""
    said: list[str] = []

    def say(text: str) -> None:
        if not said:
            said.append(text)
            print("inner", flush=True)
        else:
            said.append(text)

    with printing(say):
        print("outer")
    assert said == ["outer\n", "inner\n"]


# --- other clients -------------------------------------------------------------------------------


def test_a_text_whose_end_is_not_told_is_a_line():
    """Of NDIF, and of a server of ours of before."""
    assert Event(status="LOG", description="text").printed == "text\n"
    assert Event(status="LOG", description="text\n").printed == "text\n"
    assert Event(status="LOG", description="", meta={"end": "\n"}).printed == "\n"
    assert Event(status="LOG", description="text", meta={"end": ""}).printed == "text"
