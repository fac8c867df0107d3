"""Which modules travel by source, and which a server lacks."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

import nnsight
from nnsight.remote import environment
from nnsight.remote.environment import Lack, alike, get_local_env, is_local, lacking, register


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder: modules written there can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "_registered", set())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def made(folder: Path, name: str, text: str = "VALUE = 1\n") -> types.ModuleType:
    path = folder.joinpath(*name.split("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".py").write_text(text)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def in_a_process(code: str, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- what travels --------------------------------------------------------------------------------


def test_modules_of_the_users_folder_are_local(folder: Path):
    assert is_local(made(folder, "my_steering"))
    assert is_local(made(folder, "my_parts.inner"))  # a folder without `__init__.py`
    assert is_local(sys.modules["my_parts"])


def test_no_module_of_python_is_local():
    wrong = [
        name
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in sys.stdlib_module_names
        and name != "__main__"
        and isinstance(module, types.ModuleType)
        and is_local(module)
    ]
    assert wrong == []


def test_no_installed_package_is_local():
    import msgspec
    import numpy
    import transformers

    for module in (torch, torch.nn.functional, transformers, numpy, msgspec, pytest, nnsight):
        assert not is_local(module)
    assert not is_local(nnsight.remote.environment)


def test_python_is_not_local_where_it_lies_in_the_current_folder():
    home = Path(os.__file__).parents[2]
    code = """
        import abc, collections, concurrent.futures, json, pathlib, torch, typing, xml.dom
        from nnsight.remote.environment import is_local
        modules = [abc, collections, concurrent.futures, json, pathlib, torch, typing]
        print([m.__name__ for m in [*modules, xml, xml.dom] if is_local(m)])
    """
    assert in_a_process(code, cwd=home) == "[]"


def test_a_file_of_the_user_that_has_a_name_of_python_is_the_users(folder: Path):
    place = folder / "statistics.py"
    place.write_text("def mean(values): return 0\n")
    spec = importlib.util.spec_from_file_location("statistics", place)
    assert is_local(importlib.util.module_from_spec(spec))


def test_what_has_no_source_is_not_local(folder: Path):
    compiled = types.ModuleType("fast")
    compiled.__file__ = str(folder / "fast.cpython-311-x86_64-linux-gnu.so")
    assert not is_local(compiled)
    assert not is_local(types.ModuleType("made_on_the_spot"))


def test_a_script_and_a_notebook_are_local(folder: Path):
    script = folder / "experiment.py"
    code = """
        import __main__
        from nnsight.remote.environment import is_local
        print(is_local(__main__))
    """
    assert in_a_process(code) == "True"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True"
    main = types.ModuleType("__main__")
    main.__file__ = pytest.__file__
    assert not is_local(main)


def editable(folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`folder` as pip leaves it after `pip install -e`: a pointer, and a record of it."""
    info = site / "their_tools-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tools\nVersion: 1.2\n")
    (info / "RECORD").write_text("_their.pth,,\ntheir_tools-1.2.dist-info/METADATA,,\n")
    url = {"dir_info": {"editable": True}, "url": folder.as_uri()}
    (info / "direct_url.json").write_text(json.dumps(url))
    (site / "_their.pth").write_text(f"{folder}\n")
    monkeypatch.syspath_prepend(site)
    environment._editable.cache_clear()
    environment._packages.cache_clear()


def test_an_editable_package_counts_as_installed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    made(folder, "their_tools.__init__")
    tools, beside = made(folder, "their_tools.deep"), made(folder, "scratch")
    assert is_local(tools)
    editable(folder, tmp_path_factory.mktemp("site"), monkeypatch)
    try:
        assert not is_local(tools) and is_local(beside)
        assert get_local_env()["packages"]["their_tools"] == "1.2"
        register("their_tools")
        assert is_local(tools)
    finally:
        monkeypatch.undo()
        environment._editable.cache_clear()
        environment._packages.cache_clear()


# --- register ------------------------------------------------------------------------------------


def test_an_installed_package_travels_when_registered(folder: Path):
    import rich
    import rich.table

    assert not is_local(rich.table)
    register(rich)
    assert is_local(rich) and is_local(rich.table) and not is_local(torch)


def test_a_name_is_enough(folder: Path):
    register("rich.table")
    import rich.table

    assert is_local(rich.table) and not is_local(rich)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (len, TypeError, "takes a module or its name, not a builtin_function_or_method"),
        ("no_such_module_here", ModuleNotFoundError, "no module 'no_such_module_here' here"),
        ("rich.no_such_module", ModuleNotFoundError, "no module 'rich.no_such_module'"),
        ("json", ValueError, "`json` comes with Python"),
        ("sys", ValueError, "`sys` comes with Python"),
        (os, ValueError, "`os` comes with Python"),
        ("torch._C", ValueError, "`torch._C` has no Python source"),
    ],
)
def test_what_cannot_be_registered(given: object, error: type, text: str, folder: Path):
    with pytest.raises(error, match=text):
        register(given)


# --- packages ------------------------------------------------------------------------------------


def test_the_local_environment():
    found = get_local_env()
    assert found["python_version"] == sys.version
    packages = found["packages"]
    assert packages["nnsight"] == nnsight.__version__
    assert packages["torch"] == importlib.metadata.version("torch")
    assert packages["yaml"] == importlib.metadata.version("PyYAML")
    assert packages["socketio"] == importlib.metadata.version("python-socketio")
    assert not any("." in name or "-" in name for name in packages)
    packages.clear()
    assert get_local_env()["packages"]


def test_it_agrees_with_the_standard_library():
    ours = get_local_env()["packages"]
    theirs = importlib.metadata.packages_distributions()
    named = {name for name in theirs if name.isidentifier() and name in sys.modules}
    assert {name for name in named if name not in ours} == set()


def test_what_a_server_lacks():
    there = {"packages": {"torch": importlib.metadata.version("torch"), "rich": "1.0"}}
    found = lacking(
        ["torch.nn", "rich.table", "yaml", "json.decoder", "nnsight", "yaml.nodes"], there
    )
    assert [lack.name for lack in found] == ["rich", "yaml"]
    rich, yaml = found
    here = importlib.metadata.version("rich")
    assert not rich.absent and str(rich) == f"`rich` is {here} here and 1.0 on the server"
    assert yaml == Lack("yaml", importlib.metadata.version("PyYAML"), None)
    assert yaml.absent and str(yaml) == "`yaml` is not on the server"


def test_of_a_server_that_does_not_tell_nothing_is_known():
    assert lacking(["yaml"], {}) == [] == lacking(["yaml"], {"packages": {}})


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("numpy", "2.1.0", "2.3.1", True),
        ("numpy", "1.26.4", "2.0.0", False),
        ("einops", "0.8.0", "0.8.2", True),
        ("einops", "0.8.0", "0.9.0", False),
        ("torch", "2.9.0+cu128", "2.9.1", True),
        ("torch", "2.9.0", "2.13.0", False),
        ("transformers", "5.15.0", "5.23.0", False),
        ("odd", "unknown", "unknown", True),
        ("odd", "unknown", "1.0", False),
        ("dated", "2024.1", "2024.12.3", True),
    ],
)
def test_which_versions_are_alike(name: str, one: str, other: str, same: bool):
    assert alike(name, one, other) is same is alike(name, other, one)
