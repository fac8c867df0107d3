"""The places where people write code: each runs all constructs in this process.

`python places.py PLACE REPORT` writes a JSON file of what every construct came to there, and of
what it comes to with a plain context manager. Needs no torch and, but for the places that are
made of them, no package at all.
"""

from __future__ import annotations

import doctest
import faulthandler
import importlib
import json
import linecache
import os
import runpy
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import record  # noqa: E402  (the folder is on the path from here on)
from constructs import CONSTRUCTS, Construct  # noqa: E402

CHOSEN = [c for c in CONSTRUCTS if c.since <= sys.version_info]
SHARED = [c for c in CHOSEN if not c.package and not c.alone]  # may stand in a row in one text
SIBLING = "name = 'sibling'\n"
WATCHDOG = 110  # seconds: before `programs.py` gives up, so that it says where it was


def plain() -> dict[str, Any]:
    """What the constructs come to with a manager that lets its body run."""
    folder = Path(tempfile.mkdtemp())
    package = _package(folder, "plain_home", [])
    sys.path.insert(0, str(folder))
    found: dict[str, Any] = {}
    with record.tracing(record.Plain, record.keep):
        for construct in CHOSEN:
            names, text = vars(_module(f"{package.name}.{construct.name}")), construct.source
            _register(text, f"<plain {construct.name}>")
            run = partial(_result, construct, f"<plain {construct.name}>", names)
            found[construct.name] = record.outcome(run)
    return found


def _module(name: str) -> types.ModuleType:
    """An empty module, registered as dataclasses want it."""
    sys.modules[name] = module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    return module


def _result(construct: Construct, filename: str, namespace: dict[str, Any]) -> Any:
    exec(compile(construct.source, filename, "exec", dont_inherit=True), namespace)
    return namespace["case"]() if "case" in namespace else namespace["result"]


def _register(text: str, filename: str) -> None:
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)


# --- files ----------------------------------------------------------------------------------------


def _package(folder: Path, name: str, constructs: Iterable[Construct], head: str = "") -> Path:
    """A package of one module for each construct."""
    package = folder / name
    package.mkdir(exist_ok=True)
    texts = {c.name: c.source for c in constructs}
    for file, text in {"__init__": "", "sibling": SIBLING, **texts}.items():
        (package / f"{file}.py").write_bytes((head + text).encode())
    importlib.invalidate_caches()
    return package


def _imported(constructs: Iterable[Construct], package: str) -> None:
    for construct in constructs:
        record.report[construct.name] = record.outcome(
            lambda c=construct: _of_module(importlib.import_module(f"{package}.{c.name}"))
        )


def _of_module(module: types.ModuleType) -> Any:
    return module.case() if hasattr(module, "case") else module.result


def in_modules(folder: Path) -> None:
    """Modules that are imported from files."""
    _package(folder, "home", CHOSEN)
    sys.path.insert(0, str(folder))
    _imported(CHOSEN, "home")


def in_zip(folder: Path) -> None:
    """Modules that are imported from a zip archive."""
    with zipfile.ZipFile(folder / "home.zip", "w") as archive:
        for path in _package(folder, "zipped", CHOSEN).iterdir():
            archive.write(path, f"zipped/{path.name}")
            path.unlink()
    (folder / "zipped").rmdir()
    sys.path.insert(0, str(folder / "home.zip"))
    _imported(CHOSEN, "zipped")


def in_reloaded_modules(folder: Path) -> None:
    """Modules that were edited and reloaded: the new code must run."""
    sys.path.insert(0, str(folder))
    _package(folder, "home", CHOSEN, head="# as it was first\n")
    _imported(CHOSEN, "home")
    _package(folder, "home", CHOSEN)
    record.report.clear()
    for construct in CHOSEN:
        record.report[construct.name] = record.outcome(
            lambda c=construct: _of_module(importlib.reload(sys.modules[f"home.{c.name}"]))
        )


def in_scripts(folder: Path) -> None:
    """Scripts run by name, each as `__main__`."""
    for construct in SHARED:
        path = folder / f"{construct.name}.py"
        path.write_bytes(construct.source.encode())
        record.report[construct.name] = record.outcome(lambda p=path: _of_script(p))


def _of_script(path: Path) -> Any:
    namespace = runpy.run_path(str(path), run_name="__main__")
    return namespace["case"]() if "case" in namespace else namespace["result"]


def under_debugger(folder: Path) -> None:
    """Modules, while a trace function looks at every line, as a debugger does."""
    seen: list[str] = []

    def local(frame: types.FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen.append(frame.f_code.co_name)
        return local

    def tracing(frame: types.FrameType, event: str, argument: Any) -> Any:
        ours = frame.f_code.co_filename.startswith(str(folder))
        return local(frame, event, argument) if ours else None

    _package(folder, "home", CHOSEN)
    sys.path.insert(0, str(folder))
    for construct in CHOSEN:
        seen.clear()
        sys.settrace(tracing)
        found = record.outcome(
            lambda c=construct: _of_module(importlib.import_module(f"home.{c.name}"))
        )
        kept, _ = sys.gettrace(), sys.settrace(None)
        record.report[construct.name] = found
        if kept is not tracing or not seen:
            record.report[construct.name] = {"value": "the trace function was not put back"}


def under_coverage(folder: Path) -> None:
    """Modules, while coverage measures them with the core that is named in COVERAGE_CORE."""
    (folder / "plain").mkdir()
    with record.tracing(record.Plain, record.keep):
        _, plain = _measured(folder / "plain")
    for name in [name for name in sys.modules if name.partition(".")[0] == "home"]:
        del sys.modules[name]
    record.report.clear()
    core, found = _measured(folder)
    lines = {c.name: c.source.split("\n") for c in CHOSEN}
    unseen = {
        name: [lines[name][n - 1].strip() for n in numbers if n not in plain[name]]
        for name, numbers in found.items()
    }
    more = {name: [n for n in plain[name] if n not in found[name]] for name in found}
    record.report["coverage"] = {"core": core, "unseen": unseen, "more": more}


def _measured(folder: Path) -> tuple[str, dict[str, list[int]]]:
    """The core that measured, and the lines of each construct that it did not see run."""
    import coverage

    measure = coverage.Coverage(data_file=None, include=[f"{folder}/*"], messages=False)
    measure.start()
    in_modules(folder)
    measure.stop()
    sys.path.remove(str(folder))
    core = next(str(value) for key, value in measure.sys_info() if key == "core")
    return core, {
        c.name: measure.analysis2(str(folder / "home" / f"{c.name}.py"))[3]
        for c in CHOSEN
        if c.name != "form_feed" and c.error is None  # coverage does not parse the one
    }


# --- texts without a file -------------------------------------------------------------------------


def in_exec_with_text(folder: Path) -> None:
    """`exec` of a text that is registered with linecache."""
    for construct in SHARED:
        _register(construct.source, f"<made {construct.name}>")
        record.report[construct.name] = record.outcome(
            lambda c=construct: _result(c, f"<made {c.name}>", vars(_module("made")))
        )


def in_exec_without_text(folder: Path) -> None:
    """`exec` of a text that nobody kept."""
    for construct in SHARED:
        record.report[construct.name] = record.outcome(
            lambda c=construct: _result(c, "<string>", vars(_module("made")))
        )


def in_ipython(folder: Path) -> None:
    """Cells of an IPython shell."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config)
    for construct in sorted(CHOSEN, key=lambda c: c.alone):
        if not construct.package:
            done = shell.run_cell(f"{construct.source}\nrecord({construct.name!r})", silent=True)
            if not done.success:
                error = done.error_before_exec or done.error_in_exec
                record.report[construct.name] = record.outcome(lambda e=error: _raise(e))


def _raise(error: BaseException) -> None:
    raise error


def in_doctests(folder: Path) -> None:
    """Examples of a docstring."""
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    for construct in sorted(CHOSEN, key=lambda c: c.alone):
        if not construct.package:
            namespace = vars(_module("documented"))
            examples = [*statements(construct.source), f"record({construct.name!r})\n"]
            text = "".join(map(_example, examples))
            test = parser.get_doctest(text, namespace, construct.name, None, None)
            runner.run(test, out=lambda _: None)


def statements(source: str) -> list[str]:
    """The text of each statement of a module, as a person types them one by one."""
    import ast

    lines = source.splitlines(keepends=True)
    starts = [
        min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        for node in ast.parse(source).body
    ]
    ends = [*(start - 1 for start in starts[1:]), len(lines)]
    together: dict[int, str] = {}  # statements that share a line are typed at once
    for start, end in zip(starts, ends, strict=True):
        together[start] = "".join(lines[start - 1 : max(end, start)])
    return list(together.values())


def _example(statement: str) -> str:
    first, *others = statement.splitlines(keepends=True)
    return f">>> {first}" + "".join(f"... {line}" for line in others)


# --- one text of many constructs ------------------------------------------------------------------


def together(constructs: Iterable[Construct]) -> str:
    """One module text of all `constructs`; each is recorded where it ends."""
    return "".join(f"{c.source}\nrecord({c.name!r})\n" for c in constructs)


def begin() -> None:
    """Called at the start of a text that is run by itself."""
    faulthandler.dump_traceback_later(WATCHDOG, exit=True, file=sys.__stderr__)
    if sys.orig_argv[-2] == "-c":
        record.unkept["<string>"] = sys.orig_argv[-1].split("\n")
    manager = record.tracing(record.Captured, record.saving.save)
    manager.__enter__()
    sys.modules["__main__"].__dict__["_manager"] = manager  # not closed before the end


def end() -> None:
    """Called at its end: writes the report."""
    Path(os.environ["REPORT"]).write_text(json.dumps(record.report))


def under_pytest(folder: Path) -> None:
    """A test file whose asserts pytest has rewritten."""
    import pytest

    path = folder / "test_all.py"
    head = "assert True\nassert '@pytest_ar' in globals()\n"
    path.write_bytes((head + together(SHARED) + "def test_it(): assert True\n").encode())
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-c", os.devnull, str(path)]) == 0


def under_the_finder(folder: Path) -> None:
    """No constructs: whole files, and what the finder finds in them."""
    import finder

    record.report.update(finder.check_all(folder))


PLACES: dict[str, Callable[[Path], None]] = {
    "modules": in_modules,
    "threads": in_modules,
    "zip": in_zip,
    "reloaded": in_reloaded_modules,
    "scripts": in_scripts,
    "debugger": under_debugger,
    "coverage": under_coverage,
    "exec_with_text": in_exec_with_text,
    "exec_without_text": in_exec_without_text,
    "ipython": in_ipython,
    "doctest": in_doctests,
    "pytest": under_pytest,
    "finder": under_the_finder,
}


def run(places: list[str], report: str) -> None:
    """Run all constructs in each place, and write down what they came to."""
    faulthandler.dump_traceback_later(WATCHDOG, exit=True, file=sys.__stderr__)
    found: dict[str, Any] = {"plain": plain()}
    for place in places:
        record.report.clear()
        manager = record.OnThread if place == "threads" else record.Captured
        with tempfile.TemporaryDirectory() as folder:
            with record.tracing(manager, record.saving.save):
                PLACES[place](Path(folder).resolve())
            found[place] = dict(record.report)
            for name in [n for n in sys.modules if n.partition(".")[0] in ("home", "zipped")]:
                del sys.modules[name]
            sys.path[:] = [p for p in sys.path if not p.startswith(folder)]
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    run(sys.argv[2:], sys.argv[1])
