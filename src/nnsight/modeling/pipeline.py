"""A diffusers pipeline as one module, and where it comes from.

A pipeline is no module: it calls several, one of them again and again. `Pipeline` holds them under
the names that the pipeline has for them, so that they are one tree.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnsight.modeling import errors
from nnsight.modeling.captions import OfPrompts
from nnsight.modeling.files import place
from nnsight.modeling.meta import on_meta

_DENOISERS = ("unet", "transformer", "prior", "dit", "denoiser")


class Pipeline(torch.nn.Module):
    """The modules of a pipeline; called, it runs the pipeline.

    Args:
        modules: by the name that the pipeline has for each.
        pipeline: what runs; None for a skeleton.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module], pipeline: Any = None) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.__dict__["pipeline"] = pipeline

    @classmethod
    def of(cls, pipeline: Any) -> Pipeline:
        """All modules of a pipeline of diffusers."""
        parts = pipeline.components.items()
        return cls({n: p for n, p in parts if isinstance(p, torch.nn.Module)}, pipeline).eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.pipeline is None:
            raise errors.pipeline_without_weights()
        drawn = kwargs.get("generator")
        if isinstance(drawn, OfPrompts):
            kwargs["generator"] = drawn.for_images(kwargs.get("num_images_per_prompt") or 1)
        return self.pipeline(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The same: of a trace, the one with as many steps as the pipeline has by default."""
        return self(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not hasattr(self.__dict__.get("pipeline"), name):
                raise
            return getattr(self.pipeline, name)

    @property
    def denoiser(self) -> str:
        """The name of the module that is called once in each step."""
        named = (name for name in _DENOISERS if name in self._modules)
        sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in self.named_children()}
        return next(named, None) or max(sizes, key=lambda name: sizes[name])


class LoadedPipeline:
    """A pipeline that the user has loaded already."""

    source = None
    revision = None
    remote_code = False

    def __init__(self, pipeline: Any) -> None:
        self._module = pipeline if isinstance(pipeline, Pipeline) else Pipeline.of(pipeline)

    def skeleton(self) -> torch.nn.Module:
        return self._module

    def weights(self) -> torch.nn.Module:
        return self._module

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return None

    def processor(self, source: Any) -> Any:
        return None


class PipelineCheckpoint:
    """A hub id or a folder that `save_pretrained` of a pipeline wrote."""

    def __init__(self, source: str | Path, automodel: Any, revision: Any, **options: Any) -> None:
        self.source, self.revision = place(source), revision
        self.remote_code = bool(options.get("trust_remote_code"))
        self._automodel = automodel
        self._options = options if revision is None else {"revision": revision, **options}

    def _class(self) -> Any:
        diffusers = _diffusers()
        if self._automodel is None:
            return diffusers.DiffusionPipeline
        if isinstance(self._automodel, str):
            return getattr(diffusers, self._automodel)
        return self._automodel

    def skeleton(self) -> torch.nn.Module:
        """The modules that the configs describe, with their parameters on the meta device.

        Raises:
            LoadError: there is no pipeline.
        """
        try:
            names = self._class().load_config(self.source, **self._where())
        except (OSError, ValueError) as reason:
            raise errors.no_pipeline(self.source, reason) from reason
        found: dict[str, torch.nn.Module] = {}
        kind = getattr(_diffusers(), str(names.get("_class_name")), None)
        order = list(inspect.signature(kind).parameters) if kind is not None else list(names)
        for name in filter(names.__contains__, order):
            entry = names[name]
            if name in self._options or not isinstance(entry, (list, tuple)) or None in entry:
                continue
            kind = getattr(importlib.import_module(entry[0]), entry[1], None)
            if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
                found[name] = on_meta(lambda kind=kind, name=name: self._empty(kind, name))
        return Pipeline(found).eval()

    def _empty(self, kind: Any, name: str) -> torch.nn.Module:
        where = {**self._where(), "subfolder": name}
        if hasattr(kind, "config_class") and kind.config_class is not None:  # of transformers
            return kind(kind.config_class.from_pretrained(self.source, **where))
        return kind.from_config(kind.load_config(self.source, **where))

    def _where(self) -> dict[str, Any]:
        named = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        return {name: self._options[name] for name in named if name in self._options}

    def weights(self) -> torch.nn.Module:
        """What `from_pretrained` of the pipeline gives.

        Raises:
            LoadError: the weights cannot be read.
        """
        try:
            return Pipeline.of(self._class().from_pretrained(self.source, **self._options))
        except OSError as reason:
            raise errors.no_pipeline(self.source, reason) from reason

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return None

    def processor(self, source: Any) -> Any:
        return None


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as reason:
        raise errors.no_package("diffusers", "DiffusionModel") from reason
    return diffusers
