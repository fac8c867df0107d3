"""Which served model a client means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnsight.remote import model_key
from nnsight.remote.model_key import ModelKey
from nnsight.server import errors


@dataclass(frozen=True)
class Served:
    """A model of a server: a hub id, with `@revision` if not the default one, or a folder."""

    name: str  # as given on the command line

    @property
    def key(self) -> ModelKey:
        """What is known of it before it is loaded."""
        repo_id, _, revision = self.name.partition("@")
        return ModelKey(repo_id, revision or None)

    def spellings(self, loaded: str | None) -> list[ModelKey]:
        """The keys that mean it, once it is loaded, or before; of a folder, its last name too."""
        key = self.key if loaded is None else model_key.parse(loaded)
        keys = [key, replace(self.key, task=key.task)]
        folder = Path(self.key.repo_id)
        if folder.is_dir():
            keys += [replace(key, repo_id=name) for name in (str(folder.resolve()), folder.name)]
        return keys


def find(text: str, served: Sequence[tuple[Served, str | None]]) -> Served:
    """The model that a client's key names.

    Args:
        text: the key.
        served: the models, each with its own key once it is loaded.

    Raises:
        Refused: the key cannot be read, or no model is meant.
    """
    try:
        asked = model_key.parse(text)
    except ValueError as error:
        raise errors.bad_model_key(str(error)) from None
    near: list[ModelKey] = []
    for one, loaded in served:
        for key in one.spellings(loaded):
            if key.is_same_model(asked):
                return one
            near += [key] if key.repo_id.casefold() == asked.repo_id.casefold() else []
    if not near:
        raise errors.no_such_model(asked.repo_id, [one.name for one, _ in served])
    raise errors.other_form(asked, near[0])
