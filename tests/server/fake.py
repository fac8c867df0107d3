"""A model without weights: a request is Python that may set `result`, `failure` or `changed`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnsight.remote.messages import Failure
from nnsight.remote.model_key import ModelKey


@dataclass
class Outcome:
    result: bytes | None
    failure: Failure | None


class Fake:
    """`Loaded` of `nnsight.server.worker`."""

    def __init__(self, model: str) -> None:
        key = str(ModelKey(model, task="text-generation"))
        self.facts = {"kind": "Fake", "n_params": 0, "model_key": key}
        self._changed: list[str] = []  # that torch would have noted
        self._hidden: list[str] = []  # that only the bytes show

    def perform(self, format: str, body: memoryview, say: Any) -> Outcome:
        names: dict[str, Any] = {"say": say, "result": b"", "failure": None, "model": self}
        names["Failure"] = Failure
        exec(bytes(body).decode(), names)
        return Outcome(names["result"], names["failure"])

    def perform_apart(self, format: str, body: memoryview, say: Any) -> Outcome:
        return Outcome(b"apart", None)

    def ready_apart(self) -> None:
        pass

    def changed(self) -> list[str]:
        return self._changed

    def compare(self) -> list[str]:
        return self._changed + self._hidden

    def peak(self) -> int:
        return 7


def load(model: str, options: dict[str, Any]) -> Fake:
    if Path(model).name == "broken":
        raise ValueError("the files are not whole")
    return Fake(model)


def load_slowly(model: str, options: dict[str, Any]) -> Fake:
    """So that a job that is sent as soon as the server listens waits for the model."""
    time.sleep(0.4)
    return load(model, options)
