"""A model of nnsight in a worker: loading it, what it says of itself, and running requests."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from nnsight.modeling.language import LanguageModel
from nnsight.modeling.transformers import TransformersModel
from nnsight.remote.perform import Outcome, perform
from nnsight.server import errors
from nnsight.server.formats import format_of
from nnsight.server.sandbox.process import Nursery
from nnsight.server.surroundings import Setting, noted, put_back
from nnsight.server.weights import Weights

_TORCH: tuple[Setting, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)


class Loaded:
    """A model with its weights, ready for requests (`Loaded` of `worker.py`)."""

    def __init__(self, model: Any, nursery: Nursery | None = None) -> None:
        self._model, self._nursery = model, nursery
        self._weights = Weights(model._module)
        self._torch = noted(_TORCH)
        self.facts = facts(model)

    def perform(self, format: str, body: memoryview, say: Callable[[str], None]) -> Outcome:
        return perform(body, self._model, say, format_of(format))

    def ready_apart(self) -> None:
        if self._nursery is not None:
            self._nursery.open()

    def perform_apart(self, format: str, body: memoryview, say: Callable[[str], None]) -> Outcome:
        if self._nursery is None:
            return Outcome(None, errors.no_sandbox().failure)
        return self._nursery.perform(body, self._model, say, format)

    def changed(self) -> list[str]:
        put_back(self._torch)
        torch.seed()  # one user's seed is not the next one's
        return self._weights.changed()

    def compare(self) -> list[str]:
        return self._weights.compare()

    def peak(self) -> int:
        if not torch.cuda.is_available():
            return 0
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most


def load(model: str, options: dict[str, Any]) -> Loaded:
    """The model of a hub id or folder, with its weights."""
    if "device_map" not in options and torch.cuda.is_available():
        options = {**options, "device_map": "auto"}
    seen = opened(model, options)
    seen.dispatch()
    return Loaded(seen, Nursery("nnsight.server.models:skeleton", model, options))


def opened(model: str, options: dict[str, Any]) -> Any:
    """The model of a hub id or folder, before its weights are read."""
    repo_id, _, revision = model.partition("@")
    seen = TransformersModel(repo_id, revision=revision or None, **options)
    if type(seen._module).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        seen = LanguageModel(repo_id, revision=revision or None, **options)
    return seen


def skeleton(model: str, options: dict[str, Any]) -> Any:
    """The same without weights, for sandboxes, with all that is read from files."""
    seen = opened(model, {name: v for name, v in options.items() if name != "device_map"})
    for name in ("tokenizer", "processor"):
        with contextlib.suppress(Exception):  # a model without one
            getattr(seen, name)
    return seen


def facts(model: Any) -> dict[str, Any]:
    """What `/status` and `/env` tell of a model."""
    parameters = list(model._module.parameters())
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else {}
    return {
        "model_key": model.to_model_key(),
        "kind": type(model).__name__,
        "architecture": type(model._module).__name__,
        "dtype": str(parameters[0].dtype).removeprefix("torch.") if parameters else "",
        "devices": sorted({str(one.device) for one in parameters}),
        "n_params": sum(one.numel() for one in parameters),
        "size_bytes": sum(one.numel() * one.element_size() for one in parameters),
        "config": json.dumps(config, default=str),
        "python": sys.version,
    }
