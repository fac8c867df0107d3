"""Read and run with the published nnsight 0.8.1 what `dump.py` wrote, and compare the values.

    cd FOLDER && PYTHON tests/ndif/load.py MODEL FOLDER_OF_THE_FILES

The published package reads by its own `RequestModel.deserialize`, as NDIF's server does.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from nnsight.schema.request import RequestModel

import nnsight
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel
from nnsight.tracing import tracer as saves


def difference(one: Any, other: Any) -> float:
    if isinstance(one, (list, tuple)):
        return max(map(difference, one, other), default=0.0) if len(one) == len(other) else 9e9
    if isinstance(other, torch.Tensor):
        apart = torch.as_tensor(one).double() - other.detach().double()
        return float(apart.abs().max())
    return 0.0 if one == other else 9e9


def main(repo: str, folder: Path) -> None:
    torch.set_num_threads(1)
    huggingface._ID_CACHE[repo] = repo
    model = TransformersModel(repo, task="text-generation", dispatch=True)
    good = []
    for path in sorted(folder.glob("*.pkl")):
        blobs, texts, wanted = pickle.loads(path.read_bytes())
        try:
            most = 0.0
            for blob, (filename, text), names in zip(blobs, texts, wanted, strict=True):
                saves.SOURCES[filename] = text
                found = run(model, blob)
                assert names.keys() <= found.keys(), (list(names), list(found))
                most = max([most, *(difference(v, found[n]) for n, v in names.items())])
            print(f"{path.stem}: differs by {most:.2g}")
            good += [path.stem] * (most < 1e-4)
        except BaseException as error:
            print(f"{path.stem}: FAILS {type(error).__name__}: {error}"[:500])
            if os.environ.get("SHOW"):
                traceback.print_exc()
    print(f"{len(good)} of {len(list(folder.glob('*.pkl')))} give the same")


def run(model: Any, blob: bytes) -> dict[str, Any]:
    objects = model._remoteable_persistent_objects()
    tracer = RequestModel.deserialize(blob, objects, True)
    saves.inc()
    try:
        tracer.execute(tracer.info.code)
        frame = tracer.info.frame
        kept = saves._saves()
        return {n: v for n, v in frame.f_locals.items() if id(v) in kept}
    finally:
        saves.dec()


if __name__ == "__main__":
    print(nnsight.__version__)
    main(sys.argv[1], Path(sys.argv[2]))
