"""The key of a model: how a request says which model it is for.

    nnsight.modeling.transformers.TransformersModel:{"repo_id": "...", "revision": null,
        "task": "text-generation"}

The part before the colon is an address that servers know, whatever our classes are called.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from typing import Any

from nnsight.remote import service_errors as errors

TRANSFORMERS = "nnsight.modeling.transformers.TransformersModel"
DIFFUSION = "nnsight.modeling.diffusion.DiffusionModel"
_OLDER = {  # addresses of older releases, with the task that each is for
    "nnsight.modeling.language.LanguageModel": "text-generation",
    "nnsight.modeling.vlm.VisionLanguageModel": "image-text-to-text",
}
_SAME_TASK = {  # older words of transformers
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "text-to-speech": "text-to-audio",
    "vqa": "visual-question-answering",
}


@dataclass(frozen=True)
class ModelKey:
    """Which model, as a client names it and a server looks it up. `str(key)` is what is sent."""

    repo_id: str  # a hub id, or a folder of the server
    revision: str | None = None  # a branch, a tag or a commit of the hub id; None for the usual one
    task: str | None = None  # what it is for, as in transformers; None where nothing says so
    trust_remote_code: bool = False  # whether its code is not of transformers
    kind: str = TRANSFORMERS  # the address of its class

    def __str__(self) -> str:
        fields: dict[str, Any] = {"repo_id": self.repo_id, "revision": self.revision}
        if self.trust_remote_code:
            fields["trust_remote_code"] = True
        if self.task is not None:
            fields["task"] = self.task
        return f"{self.kind}:{json.dumps(fields)}"

    def is_same_model(self, other: ModelKey) -> bool:
        """Whether both name one model: revision `main` is none, and upper case is lower case.

        The task counts only where both name one.
        """
        if self.task and other.task and self.task != other.task:
            return False
        return self._place() == other._place()

    def _place(self) -> tuple[str, str | None, bool]:
        revision = None if self.revision == "main" else self.revision
        return self.repo_id.casefold(), revision, self.kind == DIFFUSION


def parse(text: str) -> ModelKey:
    """A key, in the spelling of any release.

    What stands before it in the name of a deployment, such as `0:ModelActor:`, is passed over.

    Raises:
        ValueError: it is none.
    """
    address, brace, rest = text.partition("{")
    try:
        fields = json.loads(brace + rest)
    except (ValueError, RecursionError):
        raise errors.not_a_model_key(text) from None
    kind = address.rstrip(":").rpartition(":")[2]
    repo_id, revision = fields.get("repo_id"), fields.get("revision")
    task = fields.get("task", _OLDER.get(kind))
    words = (revision, task)
    if not kind or not isinstance(repo_id, str) or not repo_id:
        raise errors.not_a_model_key(text)
    if not all(word is None or isinstance(word, str) for word in words):
        raise errors.not_a_model_key(text)
    if not _is_text(repo_id) or not all(_is_text(word or "") for word in words):
        raise errors.not_a_model_key(text)
    kind = TRANSFORMERS if kind in _OLDER else kind
    return ModelKey(repo_id, revision, task, fields.get("trust_remote_code") is True, kind)


def _is_text(word: str) -> bool:
    """Whether it can be said again: half a surrogate pair cannot."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def usual_task(task: str | None) -> str | None:
    """A task in the word that keys have for it."""
    return _SAME_TASK.get(task or "", task)


@functools.lru_cache(maxsize=256)
def canonical(repo_id: str) -> str:
    """A hub id as the hub spells it: `gpt2` is `openai-community/gpt2`.

    A folder, and any id while the hub is not reached or offline mode is on, stays as it is.
    """
    if os.path.exists(repo_id):
        return repo_id
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return repo_id
    try:
        return HfApi().model_info(repo_id, timeout=5.0).id
    except Exception:  # no network, no such id, no right to it: the server says more about it
        return repo_id
