"""Where a model comes from: its skeleton now, its weights on the first run.

A wrapped model shows its tree before any weight is read. Each class here is one kind of source and
answers the same two questions: `skeleton()`, the modules with their parameters on the meta device,
and `weights()`, the modules ready to run. transformers is imported when one of them is asked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from nnsight.modeling import errors
from nnsight.modeling.meta import is_meta, on_meta

_HUB_OPTIONS = (
    "cache_dir code_revision force_download gguf_file local_files_only proxies subfolder token "
    "trust_remote_code use_auth_token"
).split()
"""Options of `from_pretrained` that say how to reach the files; the tokenizer needs them too."""

_MODEL_OPTIONS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
"""Options of `from_pretrained` that a config would take as settings of its own."""

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt", "tekken.json")

_ATTENTION_WITHOUT_PACKAGES = ("eager", "sdpa")


class Loader(Protocol):
    """One source of a model."""

    @property
    def source(self) -> str | None:
        """The hub id or folder, if there is one."""
        ...

    @property
    def revision(self) -> str | None: ...

    def skeleton(self) -> torch.nn.Module:
        """The modules, without reading weights."""
        ...

    def weights(self) -> torch.nn.Module:
        """The modules with their weights, in evaluation mode."""
        ...

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        """The tokenizer that belongs to the model; None if the source has none."""
        ...

    def processor(self, place: str | Path | None) -> Any:
        """The processor at `place`, or else the model's own; None if the source has none."""
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
        TypeError: there is no source at all.
    """
    if isinstance(source, torch.nn.Module):
        return Loaded(source)
    if isinstance(source, (str, Path)):
        return Checkpoint(
            _place(source), automodel, config, meta_buffers, {"revision": revision, **options}
        )
    config = source if source is not None else config
    if config is None:
        raise errors.nothing_to_load()
    if isinstance(config, (str, Path)):
        config = read_config(_place(config), _chosen(options, _HUB_OPTIONS))[0]
    return Untrained(config, automodel, meta_buffers, options)


class Loaded:
    """A module that the user has loaded already."""

    source = None
    revision = None

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
            raise errors.meta_module()
        return self._module

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return None

    def processor(self, place: str | Path | None) -> Any:
        return None if place is None else read_processor(place, {})


class Untrained:
    """A config: the architecture it describes, with random weights."""

    source = None
    revision = None

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
            raise errors.spread_config(device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else None
        module = build(self._config, self._automodel, with_dtype(options))
        return module if device is None else module.to(device)

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return None

    def processor(self, place: str | Path | None) -> Any:
        return None if place is None else read_processor(place, {})


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
        self._hub = _chosen(options, ("revision", *_HUB_OPTIONS))
        self._options = {name: options[name] for name in options if name not in self._hub}
        self._config = config

    def _configure(self) -> Any:
        """The config, read once; the options that are settings of it go into it."""
        if isinstance(self._config, (str, Path)):
            self._config = read_config(_place(self._config), self._hub)[0]
        if self._config is None:
            aside = _chosen(self._options, _MODEL_OPTIONS)
            others = {name: self._options[name] for name in self._options if name not in aside}
            self._config, unused = read_config(self.source, {**self._hub, **others})
            self._options = {**unused, **aside}
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
        options = with_dtype({**self._hub, **self._options})
        chosen = model_class(self._automodel, self._configure())
        with _explained("weights", self.source, chosen, self._config):
            return chosen.from_pretrained(self.source, config=self._config, **options)

    def tokenizer(self, options: Mapping[str, Any]) -> Any:
        return read_tokenizer(self.source, {**self._hub, **options})

    def processor(self, place: str | Path | None) -> Any:
        return read_processor(self.source if place is None else place, self._hub)


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
        raise errors.no_such_automodel(automodel, difflib.get_close_matches(automodel, names, n=1))
    return found


def build(config: Any, automodel: Any, options: Mapping[str, Any]) -> torch.nn.Module:
    """A module with fresh weights, in evaluation mode as `from_pretrained` would have it."""
    automodel = chosen = model_class(automodel, config)
    make = getattr(chosen, "from_config", None) or chosen._from_config  # a class that is not auto
    name = getattr(config, "name_or_path", "") or type(config).__name__
    with _explained("architecture", name, automodel, config):
        return make(config, **options).eval()


def skeleton(
    config: Any, automodel: Any, options: Mapping[str, Any], buffers: bool
) -> torch.nn.Module:
    """The modules that `config` describes, with their parameters on the meta device.

    An attention implementation that needs a package is left to the real model, so that a tree can
    be looked at where the package is not installed.
    """
    kept = _chosen(options, ("trust_remote_code", "code_revision"))
    if options.get("attn_implementation") in _ATTENTION_WITHOUT_PACKAGES:
        kept["attn_implementation"] = options["attn_implementation"]
    module = on_meta(lambda: build(config, automodel, kept), buffers)
    module.tie_weights()  # type: ignore[operator] # moving each parameter to meta untied them
    _cast(module, options.get("dtype", options.get("torch_dtype", _default_dtype())))
    return module


def _cast(module: torch.nn.Module, dtype: Any) -> None:
    """Give the parameters the dtype that the weights will have; `"auto"` is the config's."""
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype):
        return
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _default_dtype() -> Any:
    """What `from_pretrained` loads as when not told: from transformers 5 on, what was saved."""
    return "auto" if _transformers_version() >= (5, 0) else torch.float32


def with_dtype(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the dtype under the one name that this transformers has for it."""
    named = {name: value for name, value in options.items() if name not in ("dtype", "torch_dtype")}
    dtype = options.get("dtype", options.get("torch_dtype"))
    if dtype is not None:
        named["dtype" if _transformers_version() >= (4, 56) else "torch_dtype"] = dtype
    return named


def _transformers_version() -> tuple[int, ...]:
    import transformers

    return tuple(int(part) for part in transformers.__version__.split(".")[:2])


# --- reading ---------------------------------------------------------------------------------


def read_config(source: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config at `source`, and the `options` that are neither settings of it nor the hub's.

    Raises:
        LoadError: there is none, or it cannot be reached.
    """
    from transformers import AutoConfig

    folder = Path(source, options.get("subfolder", ""))
    holds_config = (folder / options.get("gguf_file", "config.json")).is_file()
    if Path(source).is_dir() and not holds_config:
        raise errors.no_config(source)
    with _explained("config", source):
        read: Any = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **options)
    return read


def read_tokenizer(source: str | Path, options: Mapping[str, Any]) -> Any:
    """The tokenizer at `source`; one without a padding token pads with its end of sequence.

    Raises:
        LoadError: there is none, or it cannot be reached.
    """
    from transformers import AutoTokenizer

    source = _place(source)
    folder = Path(source, options.get("subfolder", ""))
    if folder.is_dir() and not any(
        match for name in _TOKENIZER_FILES for match in folder.glob(name)
    ):
        raise errors.no_tokenizer_at(source, "the folder holds none.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise errors.no_tokenizer_at(source, reason) from reason
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers 5 makes one up, empty
        raise errors.no_tokenizer_at(source, "it has no vocabulary.")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_processor(source: str | Path, options: Mapping[str, Any]) -> Any:
    """What makes the model's inputs at `source`: a processor, or the part of one that is there.

    Raises:
        LoadError: there is none, it cannot be reached, or it needs a package that is not there.
    """
    from transformers import AutoProcessor

    source = _place(source)
    try:
        return AutoProcessor.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as reason:
        raise errors.no_processor_at(source, reason) from reason


def _place(source: str | Path) -> str:
    """`source` as transformers takes it: a hub id, or a folder that is there and holds a model."""
    text = str(source)
    if isinstance(source, str) and not text.startswith(("~", ".", "/")) and not Path(text).is_dir():
        return text
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise errors.no_folder(text)
    return str(folder)


@contextmanager
def _explained(what: str, source: str, automodel: Any = None, config: Any = None) -> Iterator[None]:
    """Say in one sentence what could not be loaded, and the way out."""
    try:
        yield
    except errors.LoadError:
        raise
    except OSError as reason:
        raise errors.unloadable(what, source, Path(source).is_dir(), reason) from reason
    except ValueError as reason:
        if "Unrecognized configuration class" not in str(reason):
            raise
        name = automodel if isinstance(automodel, str) else automodel.__name__
        architectures = getattr(config, "architectures", None) or ()
        raise errors.wrong_automodel(name, source, architectures) from reason


def _chosen(options: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: options[name] for name in options if name in names}
