"""The user's own settings on disk: one JSON file that only the user can read.

It holds what `CONFIG.save()` and `CONFIG.set_default_api_key` put there, as
`{"API": {"APIKEY": ...}, "APP": {"DEBUG": ...}}`, and nothing that came from the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

Sections = dict[str, dict[str, Any]]
_OTHER = "config.yaml"  # what some releases wrote, in the same folder; it is only read


def path() -> Path:
    """Where the file is: `NNSIGHT_CONFIG`, or in the user's folder for settings."""
    if given := os.environ.get("NNSIGHT_CONFIG"):
        return Path(given).expanduser()
    base = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME")
    return Path(base) / "nnsight" / "config.json" if base else _home() / "config.json"


def _home() -> Path:
    return Path(os.path.expanduser("~"), ".config", "nnsight")


def read() -> Sections:
    """What the file holds; nothing if there is none. One that cannot be read is a warning."""
    try:
        return _read(path())
    except (OSError, ValueError) as error:
        warnings.warn(f"{error} It is left out.", stacklevel=2)
        return {}


def read_other() -> Sections:
    """What a file of another release beside it holds; nothing if it cannot be read."""
    other = path().with_name(_OTHER)
    try:
        import yaml  # comes with transformers

        return _sections(yaml.safe_load(other.read_text(encoding="utf-8")), other)
    except Exception:  # another program's file: nothing in it is needed
        return {}


def write(changes: Sections) -> Path:
    """Put values into the file, beside those that it has; the whole file is replaced at once.

    Raises:
        ValueError: there is a file already, and it is not one of settings.
        OSError: it cannot be written.
    """
    file = path()
    known = _read(file)
    for section, values in changes.items():
        known.setdefault(section, {}).update(values)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A file of mkstemp is for its owner alone (mode 600) from the start, and so is what it replaces
    handle, fresh = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(known, out, indent=2)
            out.write("\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    return file


def _read(file: Path) -> Sections:
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not text.strip():
        return {}
    if file.suffix in (".yaml", ".yml") and not text.lstrip().startswith("{"):
        import yaml

        try:
            return _sections(yaml.safe_load(text), file)
        except yaml.YAMLError:
            raise _no_settings(file) from None
    try:
        return _sections(json.loads(text), file)
    except json.JSONDecodeError:  # its text may hold the key: nothing of it is shown
        raise _no_settings(file) from None


def _sections(found: Any, file: Path) -> Sections:
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise _no_settings(file)
    return found


def _no_settings(file: Path) -> ValueError:
    return ValueError(
        f"{file} is no file of settings: it should hold an object such as "
        '{"APP": {"DEBUG": true}}. Correct it, or delete it.'
    )
