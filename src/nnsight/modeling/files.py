"""What lies in a folder or on the hub, and what to say when it cannot be read."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnsight.modeling import errors, load_errors

_SAYS_ITSELF = (ImportError, MemoryError, NotImplementedError, torch.cuda.OutOfMemoryError)
"""Errors that are about the machine, and say so."""

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt", "tekken.json")


def read_config(source: str, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config at `source`, and the `options` that are neither settings of it nor the hub's.

    Raises:
        LoadError: there is none, or it cannot be reached.
    """
    from transformers import AutoConfig

    folder = Path(source, options.get("subfolder", ""))
    holds_config = (folder / options.get("gguf_file", "config.json")).is_file()
    if Path(source).is_dir() and not holds_config:
        raise load_errors.no_config(source)
    with explained("config", source):
        read: Any = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **options)
    return read


def read_tokenizer(source: str | Path, options: Mapping[str, Any]) -> Any:
    """The tokenizer at `source`; one without a padding token pads with its end of sequence.

    Raises:
        LoadError: there is none, or it cannot be reached.
    """
    from transformers import AutoTokenizer

    source = place(source)
    folder = Path(source, options.get("subfolder", ""))
    if folder.is_dir() and not any(
        match for name in _TOKENIZER_FILES for match in folder.glob(name)
    ):
        raise load_errors.no_tokenizer_at(source, "the folder holds none.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as reason:  # tokenizers raises nothing more special
        raise load_errors.no_tokenizer_at(source, reason) from reason
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers 5 makes one up, empty
        raise load_errors.no_tokenizer_at(source, "it has no vocabulary.")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_processor(source: str | Path, options: Mapping[str, Any]) -> Any:
    """What makes the model's inputs at `source`: a processor, or the part of one that is there.

    Raises:
        LoadError: there is none, it cannot be reached, or it needs a package that is not there.
    """
    from transformers import AutoProcessor

    source = place(source)
    try:
        return AutoProcessor.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as reason:
        raise load_errors.no_processor_at(source, reason) from reason


def check_generation_config(source: str) -> None:
    """See that a folder's settings of generation can be read: transformers takes its own if not.

    Raises:
        LoadError: they cannot.
    """
    path = Path(source, "generation_config.json")
    if path.is_file():
        with explained("settings of generation", source):
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                raise load_errors.no_settings(str(path))


def place(source: str | Path) -> str:
    """`source` as transformers takes it: a hub id, or a folder that is there and holds a model."""
    text = str(source)
    folder = Path(text).expanduser()
    if folder.is_file():
        raise load_errors.a_file(text)
    if isinstance(source, str) and not text.startswith(("~", ".", "/")) and not folder.is_dir():
        return text
    if not folder.is_dir():
        raise load_errors.no_folder(text)
    return str(folder)


@contextmanager
def explained(what: str, source: str, automodel: Any = None, config: Any = None) -> Iterator[None]:
    """Say in one sentence what could not be loaded, and the way out.

    What is wrong with an argument transformers says itself, and so does a package that is missing.
    """
    try:
        yield
    except (errors.LoadError, *_SAYS_ITSELF):
        raise
    except Exception as reason:
        text = str(reason)
        if "Unrecognized configuration class" in text:
            name = automodel if isinstance(automodel, str) else automodel.__name__
            architectures = getattr(config, "architectures", None) or ()
            raise load_errors.wrong_automodel(name, source, architectures) from reason
        if "ignore_mismatched_sizes" in text or "size mismatch" in text:
            raise load_errors.other_sizes(source) from reason
        if "trust_remote_code" in text or not isinstance(reason, _blame(what)):
            raise
        local = Path(source).is_dir()
        raise load_errors.unloadable(what, source, local, reason) from reason


def _blame(what: str) -> tuple[type[Exception], ...]:
    """The errors that show a broken file, and no wrong argument, while `what` is loaded."""
    from safetensors import SafetensorError

    if what == "architecture":
        return (OSError, KeyError, AttributeError, TypeError, IndexError, ArithmeticError)
    if what in ("config", "settings of generation"):
        return (Exception,)
    damaged = (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError)
    return (OSError, KeyError, AttributeError, json.JSONDecodeError, *damaged)
