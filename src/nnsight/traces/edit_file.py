"""The edits of a model as files: Python to read and run, and safetensors beside it.

    exports/steering/__default__.py             one function for each edit
    exports/steering/__default__.safetensors    the tensors that they use, if there are any

Reading runs the Python file, as importing a module does: read only files that you trust.
"""

from __future__ import annotations

import copyreg
import keyword
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nnsight.capture import listing
from nnsight.config import CONFIG
from nnsight.traces import errors
from nnsight.traces.edit import Edit
from nnsight.traces.edit_text import PlaceOf, TextBody
from nnsight.traces.edit_text import write as written
from nnsight.version import __version__

_HEAD = '''"""Edits of a model, written by nnsight {version}.

`model.import_edits(...)` reads them back, and runs this file to do so.
"""

import torch

'''


def place(name: str, folder: str | os.PathLike[str] | None, variant: str) -> Path:
    """Where the edits called `name` are kept: the Python file."""
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = CONFIG.APP.CACHE_DIR or Path(cache, "nnsight")
        folder = Path(folder, "exports")
    return Path(folder, _one_part(name), f"{_one_part(variant)}.py")


def _one_part(name: str) -> str:
    """`name` as one part of a path: it leads nowhere else."""
    return re.sub(r"[^\w.-]+", "--", name).lstrip(".") or "edits"


def compose(edits: Iterable[Edit], place_of: PlaceOf) -> tuple[str, dict[str, torch.Tensor]]:
    """The text of a file with `edits`, and the tensors that it needs beside it.

    Raises:
        ValueError: one uses something that cannot be written.
    """
    text, tensors, rows = _HEAD.format(version=__version__), dict[str, torch.Tensor](), list[str]()
    names: set[str] = set()
    for edit in edits:
        name = _identifier(edit.name, names)
        function, used = written(edit, name, place_of)
        text += f"\n{function}\n"
        tensors.update(used)
        rows.append(
            f"    dict(function={name}, name={edit.name!r}, path={edit.path!r}, "
            f"every_step={edit.every_step!r}),\n"
        )
    return f"{text}\nEDITS = [\n{''.join(rows)}]\n", tensors


def save(path: Path, edits: Iterable[Edit], place_of: PlaceOf) -> None:
    """Write `edits`, in place of what is there.

    Raises:
        ValueError: one uses something that cannot be written.
    """
    text, tensors = compose(edits, place_of)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    beside = path.with_suffix(".safetensors")
    if tensors:
        from safetensors.torch import save_file

        save_file(tensors, beside)
    else:
        beside.unlink(missing_ok=True)


def _identifier(name: str, taken: set[str]) -> str:
    """A name for the function of an edit, that no other has."""
    found = re.sub(r"\W", "_", name)
    if not found.isidentifier() or keyword.iskeyword(found) or found in ("torch", "EDITS"):
        found = f"edit_{found}"
    while found in taken:
        found += "_"
    taken.add(found)
    return found


def load(path: Path) -> list[Edit]:
    """The edits in a file that `save` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is another one.
    """
    if not path.is_file():
        raise FileNotFoundError(errors.no_edits_at(path))
    beside = path.with_suffix(".safetensors")
    tensors: Mapping[str, torch.Tensor] = {}
    if beside.is_file():
        from safetensors.torch import load_file

        tensors = load_file(beside)
    return run(path.read_text(encoding="utf-8"), str(path), tensors)


def run(text: str, filename: str, tensors: Mapping[str, torch.Tensor]) -> list[Edit]:
    """The edits that the Python `text` makes."""
    names: dict[str, Any] = {"__name__": "nnsight_edits", "__file__": filename}
    exec(compile(text, filename, "exec", dont_inherit=True), names)
    if not isinstance(rows := names.get("EDITS"), list):
        raise ValueError(errors.not_edits(filename))
    return [_edit(row, text, tensors) for row in rows]


def _edit(row: dict[str, Any], text: str, tensors: Mapping[str, torch.Tensor]) -> Edit:
    function = row["function"]
    name = function.__name__
    own = {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}
    body = TextBody(function, listing.text_at(text, function.__code__.co_firstlineno), name, own)
    return Edit(row["name"], row["path"], body, row["every_step"])


# --- pickling -------------------------------------------------------------------------------------


def _from_text(text: str, tensors: Mapping[str, torch.Tensor]) -> Edit:
    return run(text, "<edit>", tensors)[0]


def _reduce(edit: Edit) -> tuple[Any, ...]:
    """An edit pickles as its text, so that a model with edits can be pickled."""
    return _from_text, compose([edit], lambda value: None)


copyreg.pickle(Edit, _reduce)  # type: ignore[arg-type]
