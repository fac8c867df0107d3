"""Write each block of `cases.py` as our client sends it to a server of NDIF 0.8, into files.

    cd FOLDER && PYTHON tests/ndif/dump.py MODEL FOLDER_FOR_THE_FILES

`load.py` reads and runs them with the published package.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch

from nnsight import LanguageModel
from nnsight.remote import environment
from nnsight.remote.ndif08 import write as ndif08_write
from tests.ndif import cases


def main(repo: str, folder: Path) -> None:
    torch.set_num_threads(1)
    model = LanguageModel(repo, dispatch=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in cases.CASES.items():
        blobs: list[bytes] = []
        texts: list[tuple[str, str]] = []
        here: list[dict[str, Any]] = []

        def backend(tracer: Any, blobs: Any = blobs, texts: Any = texts, here: Any = here) -> None:
            block = tracer.scope.block
            texts.append((block.site.filename, ndif08_write.body_text(block)))
            request = ndif08_write.write(tracer, model, environment.is_local)
            blobs.append(b"".join(request.pieces))
            tracer.execute()
            here.append(dict(tracer.results(only_saved=True)))

        case(model, {"backend": backend})
        plain = [{n: _plain(v) for n, v in names.items() if _is_plain(v)} for names in here]
        (folder / f"{name}.pkl").write_bytes(pickle.dumps((blobs, texts, plain)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (torch.Tensor, int, float, str))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
