"""Run the blocks here, on NDIF's server and on ours, compare the values, and say so in a table.

python -m tests.ndif.real.compare MODEL URL URL_OF_OURS [CASE...]
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

import nnsight
from nnsight import CONFIG
from nnsight.remote.ndif08.connection import NdifConnection
from tests.ndif import cases
from tests.ndif.client import difference
from tests.ndif.real.extra import EXTRA

WARM = 7
"""Runs of a block, of which the shortest is its time: others may use the machine."""
APART = ("trace", "helper", "generate_iter", "invokes", "session", "printing")
"""Blocks that are run once more as those of a user who is not trusted."""


def main(repo: str, url: str, ours: str, names: list[str]) -> int:
    torch.set_num_threads(1)
    CONFIG.APP.REMOTE_LOGGING = False
    model = nnsight.LanguageModel(repo, dispatch=True)
    blocks = {n: case for n, case in cases.CASES.items() if not names or n in names}
    extra = {n: case for n, case in EXTRA.items() if not names or n in names}
    apart = {n: case for n, case in blocks.items() if n in APART}
    failed: list[str] = []
    print(f"{'block':28} {'values':18} {'NDIF ms':>8} {'warm':>6} {'ours':>6} {'here':>6}")
    for name, case in blocks.items():
        failed += _block(name, case, model, url, ours)
    for name, case in extra.items():
        failed += _extra(name, case, model, url)
    with _not_trusted():
        for name, case in apart.items():
            failed += _block(f"{name} (not trusted)", case, model, url)
    count = len(blocks) + len(extra) + len(apart)
    print(f"{count - len(failed)} of {count} are as they should be; not: {failed or 'none'}")
    return len(failed)


def _block(
    name: str, case: Callable[..., Any], model: Any, url: str, ours: str | None = None
) -> list[str]:
    try:
        here, _ = _timed(case, model, {})
        there, first = _timed(case, model, {"remote": url})
        most = difference(here, there)
        values = "equal to the bit" if most == 0 else f"differ by {most:.2g}"
        times = f"{first:8.0f}"
        if ours is not None:
            assert difference(here, _timed(case, model, {"remote": ours})[0]) == 0, "ours differs"
            times += "".join(
                f" {min(_timed(case, model, where)[1] for _ in range(WARM)):6.1f}"
                for where in ({"remote": url}, {"remote": ours}, {})
            )
    except Exception as error:
        most, values, times = 1.0, f"FAILS {type(error).__name__}: {error}"[:500], ""
        traceback.print_exc()
    print(f"{name:28} {values:18} {times}", flush=True)
    return [] if most == 0 else [name]


def _extra(name: str, case: Callable[[Any, str], None], model: Any, url: str) -> list[str]:
    began = time.perf_counter()
    try:
        case(model, url)
        found = "as it should be"
    except BaseException as error:  # pytest's own failures are no exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        found = f"FAILS {type(error).__name__}: {error}"[:500]
        traceback.print_exc()
    print(f"{name:28} {found:18} {(time.perf_counter() - began) * 1e3:8.0f}", flush=True)
    return [] if not found.startswith("FAILS") else [name]


def _timed(case: Callable[..., Any], model: Any, where: dict[str, Any]) -> tuple[Any, float]:
    """What a block gives, and in how many milliseconds. What it prints is left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        found = case(model, where)
        return found, (time.perf_counter() - began) * 1e3


@contextlib.contextmanager
def _not_trusted() -> Iterator[None]:
    """Ask NDIF to run blocks in processes of their own: where it has no keys, one may ask."""
    form = NdifConnection._form
    NdifConnection._form = lambda *given: {**form(*given), "trusted": False}  # type: ignore[method-assign]
    try:
        yield
    finally:
        NdifConnection._form = form  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
