"""Adapters of PEFT (low-rank matrices and their like), seen before their weights are there.

An adapter puts layers of its own around some layers of a model. Its config alone says which, so
that they are in the tree at once; its weights are read with those of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnsight.modeling import load_errors
from nnsight.modeling.files import explained, place
from nnsight.modeling.loading import Loaded, Loader

_PREFIX = "base_model.model."  # of the names in the files, which are those of a `PeftModel`


class Adapted:
    """A source of a model, with an adapter that is put into it.

    Args:
        model: the source without the adapter.
        adapter: a hub id, or a folder that PEFT wrote.

    Raises:
        ImportError: the package peft is not installed.
        LoadError: there is no such adapter.
        ValueError: it is of a kind that has no layers, or the model is loaded already.
    """

    def __init__(self, model: Loader, adapter: str | Path) -> None:
        if isinstance(model, Loaded):
            raise load_errors.adapter_of_loaded(str(adapter))
        self._model, self._adapter = model, place(adapter)
        self._config = _config_of(self._adapter)
        self.source, self.revision = model.source, model.revision
        self.remote_code = model.remote_code

    def skeleton(self) -> torch.nn.Module:
        from peft import inject_adapter_in_model

        module = self._model.skeleton()
        with _fitting(self._adapter, module):
            inject_adapter_in_model(self._config, module, low_cpu_mem_usage=True)
        return module

    def weights(self) -> torch.nn.Module:
        """The model with the adapter, as transformers' `load_adapter` gives it.

        Raises:
            LoadError: the weights of the adapter cannot be read.
            ValueError: they are not of this model.
        """
        return put(self._adapter, self._model.weights())

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return self._model.tokenizer(options)

    def processor(self, source: str | Path | None) -> Any:
        return self._model.processor(source)


def put(adapter: str | Path, module: Any, **options: Any) -> Any:
    """Put an adapter into a model that has its weights; it is active from then on.

    Args:
        adapter: a hub id, or a folder that PEFT wrote.
        module: a model of transformers.
        options: as for the `load_adapter` of transformers.

    Returns:
        The module.

    Raises:
        ImportError: the package peft is not installed.
        LoadError: there is no such adapter, or its weights cannot be read.
        ValueError: it is of a kind that has no layers, or of another model.
    """
    adapter = place(adapter)
    _config_of(adapter)
    with explained("adapter", adapter), _fitting(adapter, module):
        module.load_adapter(adapter, **options)
    _check_complete(adapter, module, options.get("adapter_name") or "default")
    return module.eval()


def remove(module: Any) -> None:
    """Take every adapter out of a model."""
    for name in list(getattr(module, "peft_config", None) or ()):
        module.delete_adapter(name)


def _config_of(adapter: str) -> Any:
    try:
        from peft import PeftConfig
    except ImportError as reason:
        raise load_errors.no_peft() from reason
    if Path(adapter).is_dir() and not (Path(adapter) / "adapter_config.json").exists():
        raise load_errors.no_adapter(adapter)
    try:
        with explained("adapter", adapter):
            config = PeftConfig.from_pretrained(adapter)
    except ValueError as reason:  # so does PEFT say that it cannot find it
        raise load_errors.unloadable("adapter", adapter, Path(adapter).is_dir(), reason) from reason
    if getattr(config, "is_prompt_learning", False):
        raise load_errors.adapter_without_layers(
            adapter, str(getattr(config.peft_type, "value", "?"))
        )
    config.inference_mode = True
    return config


@contextmanager
def _fitting(adapter: str, module: torch.nn.Module) -> Iterator[None]:
    """Say in one sentence that an adapter is of another model."""
    try:
        yield
    except (ValueError, RuntimeError) as reason:
        raise load_errors.other_adapter(adapter, type(module).__name__, reason) from reason


def _check_complete(adapter: str, module: Any, name: str) -> None:
    """A matrix in the files that the model has no layer for would be dropped without a word."""
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    there = {key.removeprefix(_PREFIX) for key in load_peft_weights(adapter, device="cpu")}
    taken = get_peft_model_state_dict(module, adapter_name=name)
    if left := sorted(there - {key.removeprefix(_PREFIX) for key in taken}):
        reason = ValueError(f"the model has no place for {left[0]}")
        raise load_errors.other_adapter(adapter, type(module).__name__, reason)
