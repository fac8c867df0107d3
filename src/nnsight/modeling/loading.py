"""Where a model comes from: its skeleton now, its weights on the first run.

A wrapped model shows its tree before any weight is read. Each class here is one kind of source and
answers the same two questions: `skeleton()`, the modules with their parameters on the meta device,
and `weights()`, the modules ready to run. transformers is imported when one of them is asked.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

import torch

from nnsight.capture.traceback import warn
from nnsight.envoy.tree import Node
from nnsight.modeling import load_errors
from nnsight.modeling.files import (
    check_generation_config,
    explained,
    place,
    read_config,
    read_processor,
    read_tokenizer,
)
from nnsight.modeling.meta import is_meta, on_meta
from nnsight.modeling.options import (
    HUB,
    MODEL,
    check,
    check_loaded,
    check_random,
    chosen,
    default_dtype,
    for_transformers,
    transformers_version,
)

_IN_A_LAYER = re.compile(r"\.\d+\.")

_ATTENTION_WITHOUT_PACKAGES = ("eager", "sdpa")


class Loader(Protocol):
    """One source of a model."""

    @property
    def source(self) -> str | None:
        """The hub id or folder, if there is one."""
        ...

    @property
    def revision(self) -> str | None: ...

    @property
    def remote_code(self) -> bool:
        """Whether the model may bring its own code along: `trust_remote_code`."""
        ...

    def skeleton(self) -> torch.nn.Module:
        """The modules, without reading weights."""
        ...

    def weights(self) -> torch.nn.Module:
        """The modules with their weights, in evaluation mode."""
        ...

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        """The tokenizer that belongs to the model; None if the source has none."""
        ...

    def processor(self, source: str | Path | None) -> Any:
        """The processor at `source`, or else the model's own; None if the source has none."""
        ...


def loader(
    source: Any,
    automodel: Any,
    config: Any = None,
    revision: str | None = None,
    meta_buffers: bool = True,
    **options: Any,
) -> Loader:
    """The loader for whatever a user passes as a model.

    Args:
        source: a hub id, a folder (string or path), a loaded module, or a config; None to build
            from `config`.
        automodel: the transformers class that builds the model, or its name.
        config: used instead of the source's own; a config, or where to load one from.
        revision: of a hub id: a branch, a tag or a commit.
        meta_buffers: whether the skeleton's buffers are on the meta device too.
        options: keywords of `from_pretrained`.

    Raises:
        LoadError: there is no such folder, or the config cannot be read.
        TypeError: there is no source at all, or an option that nothing takes.
    """
    if isinstance(source, torch.nn.Module):
        check_loaded({"config": config, "revision": revision, **options})
        return Loaded(source)
    if not isinstance(automodel, (str, type, NoneType)):
        raise load_errors.not_an_automodel(automodel)
    if isinstance(source, (str, Path)) and str(source):
        return Checkpoint(
            place(source), automodel, config, meta_buffers, {"revision": revision, **options}
        )
    config = config if source in (None, "") else source
    if config is None:
        raise load_errors.nothing_to_load()
    if isinstance(config, (str, Path)):
        config = read_config(place(config), chosen(options, HUB))[0]
    if isinstance(config, (Node, type)) or not hasattr(config, "to_dict"):
        raise load_errors.not_a_model(config)
    options = check_random({"revision": revision, **options}, config)
    return Untrained(config, automodel, meta_buffers, options)


class Loaded:
    """A module that the user has loaded already."""

    source = None
    revision = None
    remote_code = False

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def skeleton(self) -> torch.nn.Module:
        return self._module

    def weights(self) -> torch.nn.Module:
        """The module.

        Raises:
            ValueError: it is on the meta device, and there is nothing to fill it from.
        """
        if is_meta(self._module):
            raise load_errors.meta_module()
        return self._module

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return None

    def processor(self, source: str | Path | None) -> Any:
        return None if source is None else read_processor(source, {})


class Untrained:
    """A config: the architecture it describes, with random weights."""

    source = None
    revision = None
    remote_code = False

    def __init__(
        self, config: Any, automodel: Any, meta_buffers: bool, options: Mapping[str, Any]
    ) -> None:
        self._config = config
        self._automodel = automodel
        self._meta_buffers = meta_buffers
        self._options = dict(options)

    def skeleton(self) -> torch.nn.Module:
        return skeleton(self._config, self._automodel, self._options, self._meta_buffers)

    def weights(self) -> torch.nn.Module:
        """Random weights, drawn now: `torch.manual_seed` before this makes them repeatable."""
        options = dict(self._options)
        device = options.pop("device_map", None)
        if isinstance(device, dict) or device in ("balanced", "balanced_low_0", "sequential"):
            raise load_errors.spread_config(device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else None
        module = build(self._config, self._automodel, for_transformers(options))
        return module if device is None else module.to(device)

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return None

    def processor(self, source: str | Path | None) -> Any:
        return None if source is None else read_processor(source, {})


class Checkpoint:
    """A hub id or a folder that `save_pretrained` wrote."""

    def __init__(
        self,
        source: str,
        automodel: Any,
        config: Any,
        meta_buffers: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.source = source
        self.revision = options["revision"]
        self._automodel = automodel
        self._meta_buffers = meta_buffers
        options = {name: value for name, value in options.items() if value is not None}
        named = {"automodel": automodel, "config": config}
        self.given = {**options, **{n: v for n, v in named.items() if v is not None}}
        self._hub = chosen(options, ("revision", *HUB))
        self.remote_code = bool(self._hub.get("trust_remote_code"))
        self._options = {name: options[name] for name in options if name not in self._hub}
        self._config = config

    def _configure(self) -> Any:
        """The config, read once; the options that are settings of it go into it."""
        if isinstance(self._config, (str, Path)):
            self._config = read_config(place(self._config), self._hub)[0]
        if self._config is None:
            aside = chosen(self._options, MODEL)
            others = {name: self._options[name] for name in self._options if name not in aside}
            self._config, unused = read_config(self.source, {**self._hub, **others})
            self._options = {**unused, **aside}
        check(self._options, self._config)
        return self._config

    def skeleton(self) -> torch.nn.Module:
        return skeleton(
            self._configure(), self._automodel, {**self._hub, **self._options}, self._meta_buffers
        )

    def weights(self) -> torch.nn.Module:
        """What `from_pretrained` gives for the user's options.

        Raises:
            LoadError: the weights cannot be read.
        """
        check_generation_config(self.source)
        config = self._configure()
        kind = model_class(self._automodel, config)
        options = for_transformers({**self._hub, **self._options})
        reports = _is_of_transformers(kind)
        if reports:
            options["output_loading_info"] = True
        with explained("weights", self.source, kind, config):
            loaded = kind.from_pretrained(self.source, config=config, **options)
        if not reports:
            return loaded
        module, found = loaded
        _check_complete(module, self.source, sorted(found["missing_keys"]))
        return module

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return read_tokenizer(self.source, {**self._hub, **options})

    def processor(self, source: str | Path | None) -> Any:
        return read_processor(self.source if source is None else source, self._hub)


# --- building --------------------------------------------------------------------------------


def model_class(automodel: Any, config: Any = None) -> Any:
    """The transformers class of that name; a class is handed back, and None is what `config` names.

    Raises:
        ValueError: transformers has no class of that name.
    """
    import transformers

    if automodel is None:
        named = next(iter(getattr(config, "architectures", None) or ()), "")
        return getattr(transformers, named, transformers.AutoModel)
    if not isinstance(automodel, str):
        return automodel
    found = getattr(transformers, automodel, None)
    if found is None:
        names = [name for name in dir(transformers) if name.startswith(("Auto", automodel[:3]))]
        raise load_errors.no_such_automodel(
            automodel, difflib.get_close_matches(automodel, names, n=1)
        )
    return found


def build(config: Any, automodel: Any, options: Mapping[str, Any]) -> torch.nn.Module:
    """A module with fresh weights, in evaluation mode as `from_pretrained` would have it."""
    kind = model_class(automodel, config)
    make = getattr(kind, "from_config", None) or kind._from_config  # a class that is not auto
    name = getattr(config, "name_or_path", "") or type(config).__name__
    with explained("architecture", name, kind, config):
        return make(config, **options).eval()


def skeleton(
    config: Any, automodel: Any, options: Mapping[str, Any], buffers: bool
) -> torch.nn.Module:
    """The modules that `config` describes, with their parameters on the meta device.

    An attention implementation that needs a package is left to the real model, so that a tree can
    be looked at where the package is not installed.
    """
    kept = chosen(options, ("trust_remote_code", "code_revision"))
    if options.get("attn_implementation") in _ATTENTION_WITHOUT_PACKAGES:
        kept["attn_implementation"] = options["attn_implementation"]
    with _uninitialised():
        module = on_meta(lambda: build(config, automodel, kept), buffers)
    module.tie_weights()  # type: ignore[operator] # moving each parameter to meta untied them
    _cast(module, options.get("dtype", options.get("torch_dtype", default_dtype())))
    return module


def _uninitialised() -> AbstractContextManager[Any]:
    """Keeps transformers 4 from drawing weights, which some families cannot on meta (Bamba)."""
    if transformers_version() >= (5, 0):
        return nullcontext()
    from transformers import modeling_utils

    return modeling_utils.no_init_weights()  # type: ignore[attr-defined] # only there


def _cast(module: torch.nn.Module, dtype: Any) -> None:
    """Give the parameters the dtype that the weights will have; `"auto"` is the config's."""
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype):
        return
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


# --- what the files lack ---------------------------------------------------------------------


def _is_of_transformers(kind: Any) -> bool:
    """Whether `kind` tells what it did not find; a class of somebody else's may not."""
    from transformers import PreTrainedModel

    return issubclass(kind, PreTrainedModel) or hasattr(kind, "_model_mapping")


def _check_complete(module: torch.nn.Module, source: str, missing: Sequence[str]) -> None:
    """What the files do not hold has random values: in a layer they are broken, elsewhere warn.

    A head that is new, or a pooler that the saved model did not have, is nobody's mistake.
    """
    if not missing:
        return
    prefix = getattr(module, "base_model_prefix", "")
    within = f"{prefix}." if prefix and hasattr(module, prefix) else ""
    layers = [name for name in missing if name.startswith(within) and _IN_A_LAYER.search(name)]
    if layers:
        raise load_errors.incomplete(source, layers)
    warn(load_errors.random_parts(source, missing))
