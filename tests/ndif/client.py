"""Run each block of `cases.py` here and on a server, and compare what it gives.

Runs with this package as with the published one, whichever the Python that runs it has:

    cd FOLDER && PYTHON .../tests/ndif/client.py MODEL URL [CASE...]

MODEL is a folder beside, under which the server knows the model.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch

from tests.ndif import cases


def difference(one: Any, other: Any) -> float:
    """The largest difference of two numbers in them; infinite where they are of other kinds."""
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.shape != other.shape:
            return math.inf
        apart = one.detach().double() - other.detach().double()
        return float(apart.abs().max()) if apart.numel() else 0.0
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return math.inf
        return max(map(difference, one, other), default=0.0)
    return 0.0 if one == other else math.inf


def opened(repo: str, url: str) -> Any:
    """The model, by whichever package is here."""
    import nnsight
    from nnsight.modeling import huggingface

    cache = getattr(huggingface, "_ID_CACHE", None)
    if cache is None:  # this package; the server is to look as one that speaks NDIF 0.8 only
        from nnsight.remote import environment

        about = environment.remote_env(url)
        environment._asked[url] = (math.inf, {**about, "protocols": ["ndif/8"]})
        return nnsight.LanguageModel(repo, dispatch=True)
    from nnsight.modeling.transformers import TransformersModel

    cache[repo] = repo  # what it would ask the hub for
    nnsight.CONFIG.API.APIKEY = "00000000-0000-0000-0000-000000000000"
    return TransformersModel(repo, task="text-generation", dispatch=True)


def main(repo: str, url: str, names: list[str]) -> int:
    torch.set_num_threads(1)
    model = opened(repo, url)
    failed = []
    for name in names or cases.CASES:
        case = cases.CASES[name]
        try:
            here = case(model, {})
            start = time.perf_counter()
            there = case(model, {"remote": url})
            took = time.perf_counter() - start
            most = difference(here, there)
            found = "same" if most == 0 else f"differs by {most:.2g}"
        except Exception as error:
            found, took = f"FAILS {type(error).__name__}: {error}"[:900], 0.0
        print(f"{name}: {found} ({took * 1e3:.0f} ms)", flush=True)
        if found != "same":
            failed.append(name)
    count = len(names or cases.CASES)
    print(f"{count - len(failed)} of {count} are the same; others: {failed}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
