"""Which files are Python's own or a package's, and not the user's."""

from __future__ import annotations

import os
import site
from collections.abc import Iterator


def _folders() -> Iterator[str]:
    # not from `sysconfig`, whose import takes longer than that of this whole room
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    for folder in (os.path.dirname(os.__file__), *packages):
        yield os.path.join(folder, "")
        yield os.path.join(os.path.realpath(folder), "")


_FOLDERS = tuple(dict.fromkeys(_folders()))


def is_installed(filename: str) -> bool:
    """Whether a file came with Python or with an installed package."""
    return filename.startswith(_FOLDERS)
