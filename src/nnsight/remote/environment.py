"""Which modules there are: here, on a server, and which of those here travel by source.

A module of the user's own folder travels with the block that uses it. One that is installed is
named, and must be installed on the server too; `register` makes it travel.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import site
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from nnsight.config import CONFIG
from nnsight.remote import service_errors as errors
from nnsight.remote.ask import ask
from nnsight.remote.deadline import Deadline
from nnsight.version import __version__

CRITICAL = ("nnsight", "torch", "transformers")
"""Packages whose version changes what a model computes, or how a block is read."""
_FRESH = 300.0  # seconds for which what a server has is not asked again
_registered: set[str] = set()
_asked: dict[str, tuple[float, dict[str, Any]]] = {}  # by host: when, and its answer


# --- what is installed --------------------------------------------------------------------------


def get_local_env() -> dict[str, Any]:
    """The Python and the packages of this process.

    Returns:
        `{"python_version": sys.version, "packages": {import name: version}}`.
    """
    return {"python_version": sys.version, "packages": dict(_packages())}


def get_remote_env(force_refresh: bool = False) -> dict[str, Any]:
    """The Python and the packages of the server; kept for five minutes.

    Args:
        force_refresh: ask again now.

    Returns:
        As `get_local_env`, with what else the server tells; empty if it cannot be reached, with
        the reason on stderr.
    """
    try:
        return remote_env(force_refresh=force_refresh)
    except errors.ServiceError as error:
        print(error, file=sys.stderr)
        return {}


def remote_env(
    host: str | None = None, force_refresh: bool = False, deadline: Deadline | None = None
) -> dict[str, Any]:
    """What the server at `host` tells of itself under `/env`; kept for five minutes.

    Args:
        host: its address; `CONFIG.API.HOST` if left out.
        force_refresh: ask again now.
        deadline: when to stop waiting, if that is sooner than usual.

    Raises:
        ServiceError: it cannot be reached.
    """
    host = CONFIG.API.HOST if host is None else host.rstrip("/")
    when, known = _asked.get(host, (0.0, {}))
    if force_refresh or not known or time.monotonic() - when > _FRESH:
        known = ask("/env", host=host, deadline=deadline)
        if not _is_about_a_server(known):
            raise errors.not_understood(host, "/env")
        _asked[host] = (time.monotonic(), known)
    return dict(known)


def _is_about_a_server(told: Any) -> bool:
    """Whether this is what a server tells of itself, with each part of the kind that it is of."""
    if not isinstance(told, dict) or not isinstance(told.get("packages"), dict):
        return False
    texts = (told.get("python_version") or "", *told["packages"].values())
    kinds = {"protocols": list, "limits": dict}
    return all(isinstance(text, str) for text in texts) and all(
        isinstance(told.get(name) or kind(), kind) for name, kind in kinds.items()
    )


@functools.lru_cache(maxsize=1)
def _packages() -> dict[str, str]:
    """The version of each installed package, by the name that it is imported by."""
    found = {}
    for package in metadata.distributions():
        version = re.search(r"^Version: *(\S+)", _text(package, "METADATA", "PKG-INFO"), re.M)
        if version is not None:
            found.update(dict.fromkeys(_import_names(package), version.group(1)))
    return {**dict(sorted(found.items())), "nnsight": __version__}


def _text(package: metadata.Distribution, *files: str) -> str:
    return next((text for file in files if (text := package.read_text(file))), "")


def _import_names(package: metadata.Distribution) -> set[str]:
    """The names that a package is imported by. (`packages_distributions` takes a second.)"""
    listed = _text(package, "top_level.txt").split()
    if not listed:
        record = _text(package, "RECORD")
        listed = re.findall(r"^([^\W\d]\w*)(?:/|\.py,|\.[\w-]+\.so,|\.pyd,)", record, re.M)
        listed += _beside_pth(package, record)
    return {name for name in listed if name.isidentifier() and name != "__pycache__"}


def _beside_pth(package: metadata.Distribution, record: str) -> list[str]:
    """The packages in the folders that a package only points to: it is installed as editable."""
    found = []
    for pth in re.findall(r"^([^/\n,]+\.pth),", record, re.M):
        try:
            folders = Path(str(package.locate_file(pth))).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for folder in filter(os.path.isdir, folders):
            found += [inner.parent.name for inner in Path(folder).glob("*/__init__.py")]
    return found


# --- which modules travel by source ------------------------------------------------------------


def register(module: ModuleType | str) -> None:
    """Send this module, or package, by its source when a block uses it.

    Modules of your own folder do so without. It is for what is installed here and not on the
    server, packages installed as editable included.

    Raises:
        TypeError: it is neither a module nor the name of one.
        ModuleNotFoundError: there is no such module.
        ValueError: it comes with Python, or has no Python source.
    """
    if not isinstance(module, (ModuleType, str)):
        raise errors.not_a_module(module)
    name = module if isinstance(module, str) else module.__name__
    if name != "__main__":
        _check_source(name, sys.modules.get(name) if isinstance(module, str) else module)
    _registered.add(name)


def _check_source(name: str, module: ModuleType | None) -> None:
    try:
        spec = importlib.util.find_spec(name) if module is None else module.__spec__
    except (ImportError, ValueError):
        spec = None
    origin = spec.origin if spec is not None else getattr(module, "__file__", None)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if module is None and spec is None:
        raise errors.no_such_module(name)
    if origin in ("built-in", "frozen") or _comes_with_python(origin):
        raise errors.of_python(name)
    if not (origin or "").endswith(".py") and not folders:
        raise errors.no_source(name)


def is_registered(name: str) -> bool:
    """Whether a module, or a package that it is in, was registered."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in _registered for end in range(1, len(parts) + 1))


def is_local(module: ModuleType) -> bool:
    """Whether a module travels by its source: it is the user's own, or was registered.

    Where it lies decides, not its name alone: a `statistics.py` in the user's folder is the
    user's, while a Python or an environment that lies in that folder is not.
    """
    name = module.__name__
    if name.partition(".")[0] == "nnsight":
        return False
    if is_registered(name):
        return True
    file = getattr(module, "__file__", None)
    if file is None:  # a folder without `__init__.py`, a notebook, or built in
        places = list(getattr(module, "__path__", ()))
        return name == "__main__" if not places else not any(map(_is_installed, places))
    if name != "__main__" and not file.endswith(".py"):
        return False
    return not _is_installed(file) and name.partition(".")[0] not in _editable()


@functools.lru_cache(maxsize=4096)
def _is_installed(file: str) -> bool:
    return _among_packages(file) or _within(file, _folders_of_python() | _folders_of_packages())


def _among_packages(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _comes_with_python(file: str | None) -> bool:
    return bool(file) and not _among_packages(file) and _within(file, _folders_of_python())


def _within(file: str | None, folders: frozenset[str]) -> bool:
    if not file:
        return False
    spellings = {os.path.normcase(os.path.abspath(file)), os.path.normcase(os.path.realpath(file))}
    return any(spelling.startswith(folder) for spelling in spellings for folder in folders)


def _prefixes(folders: Iterable[str | None]) -> frozenset[str]:
    """Folders as the beginnings of what lies in them, as written and with links followed."""
    given = [folder for folder in folders if folder]
    both = {os.path.abspath(f) for f in given} | {os.path.realpath(f) for f in given}
    return frozenset(os.path.join(os.path.normcase(folder), "") for folder in both)


@functools.lru_cache(maxsize=1)
def _folders_of_python() -> frozenset[str]:
    paths = sysconfig.get_paths()
    # `os` too, as a virtual environment's paths may not name the Python that it was made from
    return _prefixes([paths["stdlib"], paths["platstdlib"], os.path.dirname(os.__file__)])


@functools.lru_cache(maxsize=1)
def _folders_of_packages() -> frozenset[str]:
    paths = sysconfig.get_paths()
    listed = [*site.getsitepackages(), site.getusersitepackages()]
    return _prefixes([paths["purelib"], paths["platlib"], paths["scripts"], *listed])


@functools.lru_cache(maxsize=1)
def _editable() -> frozenset[str]:
    """The names that packages installed as editable are imported by."""
    found: set[str] = set()
    for package in metadata.distributions():
        text = package.read_text("direct_url.json")
        if text and json.loads(text).get("dir_info", {}).get("editable"):
            found |= _import_names(package)
    return frozenset(found)


# --- what a server lacks ------------------------------------------------------------------------


@dataclass(frozen=True)
class Lack:
    """A package that is here, and not, or not like this, on the server."""

    name: str
    here: str | None  # its version, if that is known
    there: str | None  # None: it is not there at all

    @property
    def absent(self) -> bool:
        """Whether the server does not have it at all."""
        return self.there is None

    def __str__(self) -> str:
        if self.there is None:
            return f"`{self.name}` is not on the server"
        return f"`{self.name}` is {self.here} here and {self.there} on the server"


def lacking(modules: Iterable[str], remote_env: Mapping[str, Any]) -> list[Lack]:
    """Which of these modules a server lacks, or has in a version that is not alike.

    Versions are alike that differ in their last part only: `2.1.0` and `2.3.1`, but neither `2.1`
    and `3.0` nor `0.8` and `0.9`; for torch, transformers and nnsight, not `2.1` and `2.3` either.

    Args:
        modules: names as they are imported; of `a.b.c`, `a` is looked for.
        remote_env: what `get_remote_env` returned. Of a server that does not tell, nothing is
            known, so nothing is lacking.
    """
    there: Mapping[str, str] = remote_env.get("packages") or {}
    if not there:
        return []
    names = sorted({name.partition(".")[0] for name in modules} - sys.stdlib_module_names)
    found = []
    for name in names:
        if name not in there:
            if name not in ("nnsight", "__main__"):
                found.append(Lack(name, _version(name), None))
        elif (here := _version(name)) and not alike(name, here, str(there[name])):
            found.append(Lack(name, here, str(there[name])))
    return found


def alike(name: str, one: str, other: str) -> bool:
    """Whether a block may expect the same of two versions of a package."""
    first, second = _release(one), _release(other)
    if not first or not second:
        return one == other
    parts = 2 if name in CRITICAL or first[0] == second[0] == 0 else 1
    return first[:parts] == second[:parts]


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"v?(?:\d+!)?(\d+(?:\.\d+)*)", version.strip())
    return tuple(map(int, found.group(1).split("."))) if found else ()


@functools.lru_cache(maxsize=512)
def _version(name: str) -> str | None:
    if name == "nnsight":
        return __version__
    try:
        return metadata.version(name)  # most are imported by the name that they are installed by
    except metadata.PackageNotFoundError:
        return _packages().get(name)
