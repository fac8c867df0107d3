"""What another process must know of a model to see it as this one does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def settings(model: Any) -> dict[str, Any]:
    """How a model is seen: other names, classes of envoys, the form of outputs."""
    tree = model._tree
    return {
        "aliases": {place: dict(names) for place, names in tree.aliases.items()},
        "classes": tree.classes,
        "tuples": tree.tuple_outputs,
        "path": model._path.partition(".")[0],
    }


def with_settings(model: Any, given: Mapping[str, Any]) -> Any:
    """A model over the same weights that is seen so, without edits."""
    known = settings(model)
    if all(given[name] == known[name] for name in known):
        seen = model._twin()  # what was found out about the model is kept
        seen._edits().clear()
        return seen
    seen = copy.copy(model)
    seen._tree.aliases = given["aliases"]
    seen._tree.classes = given["classes"]
    seen._tree.tuple_outputs = given["tuples"]
    seen.__dict__["_path"] = given["path"]
    seen._edits().clear()
    return seen


def parts(model: Any) -> dict[str, Any]:
    """What belongs to a model beside its modules, by name: of it only what is there already."""
    module = model._module
    found = {name: getattr(module, name, None) for name in ("config", "generation_config")}
    lazy = {name: getattr(model, f"_{name}", None) for name in ("tokenizer", "processor")}
    found.update({name: getattr(holder, "known", None) for name, holder in lazy.items()})
    return {name: value for name, value in found.items() if value is not None}
