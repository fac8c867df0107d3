"""The places that are a program of their own: a script, `-c`, standard input, a prompt, a kernel.

Each runs texts of many constructs in one process, and returns its report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from constructs import CONSTRUCTS, Construct
from verdict import asked

HERE = Path(__file__).resolve().parent
WATCHDOG = 120  # seconds, on a machine that does much else
LONGEST = 100_000  # characters of one argument on a command line

BEGIN = f"import sys; sys.path.insert(0, {str(HERE)!r}); import places; places.begin()\n"
END = "import places; places.end()\n"

Report = dict[str, Any]


class Failed(Exception):
    """A program ended in another way than it should."""


def _chosen(version: tuple[int, ...], place: str) -> list[Construct]:
    """What runs in `place`; a construct that changes the compiler comes last."""
    chosen = [c for c in CONSTRUCTS if c.since <= version and asked(c, place)]
    return sorted(chosen, key=lambda construct: construct.alone)


def _text(constructs: Iterable[Construct]) -> str:
    """One text of all `constructs`; each is recorded where it ends."""
    return BEGIN + "".join(f"{c.source}\nrecord({c.name!r})\n" for c in constructs) + END


def _environment(report: Path) -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "PYTEST", "COV", "NNSIGHT"))
    }
    return {**kept, "REPORT": str(report), "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}


def _run(words: list[str], report: Path, given: bytes = b"") -> Report:
    done = subprocess.run(
        words,
        input=given,
        capture_output=True,
        env=_environment(report),
        cwd=report.parent,
        timeout=WATCHDOG,
    )
    if done.returncode or not report.exists():
        raise Failed(f"{words[0]}: {done.returncode}\n{done.stderr.decode()[-3000:]}")
    return json.loads(report.read_text())


def in_places(python: str, folder: Path, *places: str, **environment: str) -> Report:
    """The places of `places.py`, all in one process of `python`."""
    report = folder / "places.json"
    done = subprocess.run(
        [python, str(HERE / "places.py"), str(report), *places],
        capture_output=True,
        env={**_environment(report), **environment},
        cwd=folder,
        timeout=WATCHDOG,
    )
    if done.returncode:
        raise Failed(f"{python} {places}: {done.returncode}\n{done.stderr.decode()[-3000:]}")
    return json.loads(report.read_text())


def as_script(python: str, version: tuple[int, ...], folder: Path) -> Report:
    """`python script.py`."""
    script = folder / "script.py"
    script.write_bytes(_text(_chosen(version, "script")).encode())
    return _run([python, str(script)], folder / "program.json")


def as_command(python: str, version: tuple[int, ...], folder: Path) -> Report:
    """`python -c TEXT`, as often as it takes to say it all."""
    found: Report = {}
    for part in _parts(_chosen(version, "command")):
        found.update(_run([python, "-X", "utf8", "-c", _text_of(part)], folder / "program.json"))
    return found


def _text_of(part: list[Construct]) -> str:
    text = _text(part)
    if part[0].alone:  # what has to come first
        first, _, rest = part[0].source.partition("\n")
        return f"{first}\n{BEGIN}{rest}\nrecord({part[0].name!r})\n{END}"
    return text


def _parts(constructs: list[Construct]) -> Iterator[list[Construct]]:
    part: list[Construct] = []
    for construct in constructs:
        if part and (construct.alone or len(_text([*part, construct]).encode()) > LONGEST):
            yield part
            part = []
        part.append(construct)
    yield part


def from_standard_input(python: str, version: tuple[int, ...], folder: Path) -> Report:
    """`python < script.py`: nobody keeps the text, so the first trace in a module would end it."""
    text = _text(_chosen(version, "stdin"))
    return _run([python, "-"], folder / "program.json", text.encode())


def at_the_prompt(python: str, version: tuple[int, ...], folder: Path) -> Report:
    """The prompt of Python 3.13 and newer, in a terminal; every construct is pasted."""
    import pexpect

    report = folder / "program.json"
    environment = {**_environment(report), "TERM": "xterm", "PYTHON_HISTORY": str(folder / "h")}
    child = pexpect.spawn(
        python, ["-q"], env=environment, encoding="utf-8", timeout=20, cwd=str(folder)
    )
    child.delaybeforesend = None
    child.expect(">>> ")
    texts = [f"{c.source}\nrecord({c.name!r})\n" for c in _chosen(version, "prompt")]
    for number, text in enumerate([BEGIN, *texts, END]):
        child.send(f"\x1b[200~{text}print('do' + 'ne {number};')\n\x1b[201~\n")
        child.expect(f"done {number};")
    child.close(force=True)
    return json.loads(report.read_text())


def in_a_kernel(python: str, version: tuple[int, ...], folder: Path) -> Report:
    """The cells of a notebook. The client is a process of its own too: it leaves sockets open."""
    words = [sys.executable, __file__, python, ".".join(map(str, version)), str(folder)]
    return _run(words, folder / "program.json")


def _as_notebook(python: str, version: tuple[int, ...], folder: Path) -> None:
    from jupyter_client.manager import KernelManager

    report = folder / "program.json"
    manager = KernelManager()
    command = [
        python,
        "-Xfrozen_modules=off",
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ]
    manager.kernel_spec.argv = command
    environment = {
        **_environment(report),
        "IPYTHONDIR": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder),
    }
    manager.start_kernel(env=environment, cwd=str(folder))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=WATCHDOG)
        texts = [f"{c.source}\nrecord({c.name!r})" for c in _chosen(version, "kernel")]
        for text in [BEGIN, *texts, END]:
            client.execute(text, store_history=False, stop_on_error=False)
        for _ in range(len(texts) + 2):
            client.get_shell_msg(timeout=WATCHDOG)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    _as_notebook(sys.argv[1], tuple(map(int, sys.argv[2].split("."))), Path(sys.argv[3]))
