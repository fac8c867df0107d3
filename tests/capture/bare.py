"""`nnsight.capture` without the rest: it needs no torch, but the package root imports it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

SOURCE = Path(__file__).resolve().parents[2] / "src" / "nnsight"


def without_torch() -> None:
    """See that `import nnsight.capture...` works here without running `nnsight/__init__.py`.

    Nothing to do where torch has been imported anyway.
    """
    if "nnsight" not in sys.modules and "torch" not in sys.modules:
        root = ModuleType("nnsight")
        root.__path__ = [str(SOURCE)]
        sys.modules["nnsight"] = root
