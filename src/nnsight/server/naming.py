"""Which served model a client means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nnsight.server import errors

KIND = "nnsight.modeling.transformers.TransformersModel"


@dataclass(frozen=True)
class Served:
    """A model of a server: a hub id, with `@revision` if not the default one, or a folder."""

    name: str  # as given on the command line

    @property
    def repo_id(self) -> str:
        return self.name.partition("@")[0]

    @property
    def revision(self) -> str | None:
        return self.name.partition("@")[2] or None

    def answers_to(self, repo_id: str) -> bool:
        """Whether a client that asks for this repository means this model."""
        if repo_id.lower() == self.repo_id.lower():
            return True
        folder = Path(self.repo_id)
        return folder.is_dir() and repo_id in (str(folder.resolve()), folder.resolve().name)

    def key(self, task: str | None) -> str:
        """As NDIF writes the model."""
        asked = {"repo_id": self.repo_id, "revision": self.revision}
        if task is not None:
            asked["task"] = task
        return f"{KIND}:{msgspec.json.encode(asked).decode()}"


def find(key: str, served: Sequence[Served]) -> Served:
    """The model that a client's key names; revision `main` is the default one.

    Raises:
        Refused: the key cannot be read, or no model is meant.
    """
    _, _, text = key.partition(":")
    try:
        asked: Any = msgspec.json.decode(text)
        repo_id, revision = asked["repo_id"], asked.get("revision")
    except (msgspec.DecodeError, TypeError, KeyError, AttributeError):
        raise errors.bad_model_key(key) from None
    if not isinstance(repo_id, str) or not isinstance(revision, (str, type(None))):
        raise errors.bad_model_key(key)
    named = [one for one in served if one.answers_to(repo_id)]
    if not named:
        raise errors.no_such_model(repo_id, [one.name for one in served])
    for one in named:
        if _plain(one.revision) == _plain(revision):
            return one
    raise errors.other_revision(repo_id, revision, [one.revision for one in named])


def _plain(revision: str | None) -> str | None:
    return None if revision == "main" else revision
