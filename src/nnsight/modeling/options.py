"""The keywords of a model's constructor that go on to transformers, and where each belongs.

transformers passes a keyword that it does not know on to the model's own constructor, or drops it.
Here each is held against what there is before anything is loaded. Small words for common wishes
(`dtype="nf4"`, `load_in_8bit=True`) become the quantisation config that they stand for.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from nnsight.capture.traceback import warn
from nnsight.modeling import load_errors

HUB = (
    "cache_dir code_revision force_download gguf_file local_files_only proxies subfolder token "
    "trust_remote_code use_auth_token"
).split()
"""Options of `from_pretrained` that say how to reach the files; the tokenizer needs them too."""

MODEL = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
"""Options of `from_pretrained` that a config would take as settings of its own."""

_OWN = (
    "automodel check_names config dispatch envoys import_edits meta_buffers path peft processor "
    "rename revision tokenizer tokenizer_kwargs tuple_outputs"
).split()

_FOR_RANDOM_WEIGHTS = frozenset(
    "dtype torch_dtype attn_implementation experts_implementation device_map trust_remote_code "
    "code_revision".split()
)

_FOR_THE_TOKENIZER = frozenset(
    "add_bos_token add_eos_token add_prefix_space bos_token chat_template eos_token legacy "
    "model_max_length pad_token padding_side truncation_side unk_token use_fast".split()
)

_ALSO_FOR_IT = frozenset(
    "additional_special_tokens clean_up_tokenization_spaces cls_token do_lower_case errors lang "
    "extra_special_tokens from_slow mask_token merges_file model_input_names pad_token_type_id "
    "revision sep_token sp_model_kwargs split_special_tokens src_lang strip_accents tgt_lang "
    "tokenizer_file tokenizer_type trim_offsets vocab_file".split()
)

_IN_BITS: dict[str, dict[str, Any]] = {
    "8bit": {"load_in_8bit": True},
    "int8": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True},
    "int4": {"load_in_4bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}
"""Names of dtypes that PyTorch does not have, and what bitsandbytes is told instead."""

_FP8 = "fp8"


def chosen(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of `options` that are called so."""
    names = frozenset(names)
    return {name: options[name] for name in options if name in names}


# --- unknown ones, and ones without effect ---------------------------------------------------


def check(options: Mapping[str, Any], config: Any = None) -> None:
    """Refuse options that transformers does not have.

    Args:
        options: what is left for `from_pretrained` when the config has taken its settings.
        config: of the model, to know the names of settings.

    Raises:
        TypeError: one is unknown; the text has the name that is nearest, or where it belongs.
        ValueError: `dtype` is the name of none.
    """
    _check_dtype(options.get("dtype", options.get("torch_dtype")))
    if options.get("trust_remote_code"):  # a constructor of somebody else's may take anything
        return
    for name in options:
        if name not in _known() and not _in_bits(name):
            raise load_errors.unknown_option(name, _hint(name, config))


def check_random(options: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Those of `options` that matter to random weights; one that has no effect is a warning.

    Raises:
        TypeError, ValueError: as for `check`.
    """
    check(options, config)
    without = [name for name in options if name not in _FOR_RANDOM_WEIGHTS]
    _warn_without_effect(chosen(options, without), load_errors.RANDOM)
    return chosen(options, _FOR_RANDOM_WEIGHTS)


def check_tokenizer(options: Any, given: Any) -> None:
    """See that options reach the tokenizer: it keeps any, and looks at those that it knows.

    Args:
        options: the user's `tokenizer_kwargs`.
        given: the tokenizer that was passed, if it is one already: then only its side is theirs.

    Raises:
        TypeError: they are no dict, or one is almost the name of another.
    """
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise load_errors.not_tokenizer_options(options)
    known = {*_FOR_THE_TOKENIZER, *_ALSO_FOR_IT, *HUB}
    for name in options:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        if name not in known and near:
            raise load_errors.unknown_tokenizer_option(name, near[0])
    if given is not None:
        others = {name: options[name] for name in options if name != "padding_side"}
        _warn_without_effect(others, load_errors.GIVEN)


def check_loaded(options: Mapping[str, Any]) -> None:
    """No option has an effect on a module that is there already: unless it is None, warn.

    Raises:
        TypeError, ValueError: as for `check`.
    """
    check({name: options[name] for name in options if name not in _OWN})
    _warn_without_effect(options, load_errors.LOADED)


def _warn_without_effect(options: Mapping[str, Any], reason: str) -> None:
    names = [name for name, value in options.items() if value is not None]
    if names:
        warn(load_errors.no_effect(names, reason))


@functools.cache
def _known() -> frozenset[str]:
    """Every option that the `from_pretrained` of this transformers takes.

    Most are taken out of `**kwargs` in its body: their names are among the constants of its code.
    """
    from transformers import AutoModel, PreTrainedModel

    names = {*HUB, *MODEL}
    for kind in (PreTrainedModel, AutoModel):
        function = inspect.unwrap(kind.from_pretrained.__func__)  # type: ignore[attr-defined]
        names.update(inspect.signature(function).parameters)
        names.update(text for text in function.__code__.co_consts if isinstance(text, str))
    names |= {"compute_dtype", "low_cpu_mem_usage", "resume_download", "tp_plan"}
    return frozenset(names - {"kwargs", "cls", "model_args", "output_loading_info"})


def _in_bits(name: str) -> bool:
    return name in ("load_in_8bit", "load_in_4bit") or name.startswith(("bnb_", "llm_int8_"))


def _hint(name: str, config: Any) -> str:
    if name in _FOR_THE_TOKENIZER:
        return f"It goes to the tokenizer: `tokenizer_kwargs={{{name!r}: ...}}`."
    if name == "device":
        return "Say where the weights go by `device_map=`."
    if hasattr(config, name):
        return f"The config was given too: set `config.{name}` on it."
    settings = getattr(config, "to_dict", dict)()
    names = sorted(n for n in {*_known(), *_OWN, *settings} if n.isidentifier())
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean `{near[0]}=`?"
    import transformers

    if hasattr(transformers.GenerationConfig(), name):
        return f"It goes to `model.generate(..., {name}=...)`."
    return "Remove it."


# --- dtypes and quantisation -----------------------------------------------------------------


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, str) or dtype in (*_IN_BITS, _FP8, "auto"):
        return
    if not isinstance(getattr(torch, dtype.removeprefix("torch."), None), torch.dtype):
        raise load_errors.no_such_dtype(dtype, [*_IN_BITS, _FP8])


def for_transformers(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as this transformers takes them: the dtype by its name there, bits as a config.

    Raises:
        ValueError: a quantisation is asked for twice.
        ImportError: the package that quantises is not installed.
    """
    aside = ("dtype", "torch_dtype", "compute_dtype")
    named = {n: v for n, v in options.items() if n not in aside and not _in_bits(n)}
    dtype = options.get("dtype", options.get("torch_dtype"))
    bits = {name: value for name, value in options.items() if _in_bits(name)}
    asked = dtype in (*_IN_BITS, _FP8) if isinstance(dtype, str) else False
    if asked or any(bits.values()):
        if named.get("quantization_config") is not None or (asked and bits):
            raise load_errors.quantised_twice(dtype if asked else next(iter(bits)))
        compute = options.get("compute_dtype")
        named["quantization_config"] = _quantisation(dtype if asked else None, bits, compute)
        dtype = compute if asked else dtype
    if dtype is not None:
        if isinstance(dtype, str):
            dtype = dtype.removeprefix("torch.")
        named["dtype"] = dtype
    return named


def _quantisation(dtype: str | None, bits: dict[str, Any], compute: Any) -> Any:
    import transformers

    if dtype == _FP8:
        return transformers.FineGrainedFP8Config()
    bits = {**bits, **_IN_BITS.get(dtype or "", {})}
    if compute is not None and bits.get("load_in_4bit"):
        bits["bnb_4bit_compute_dtype"] = compute
    try:
        return transformers.BitsAndBytesConfig(**bits)
    except ImportError as reason:  # it asks for the version of a package that is not there
        raise load_errors.no_bitsandbytes() from reason


def default_dtype() -> Any:
    """What `from_pretrained` loads as when not told: from transformers 5 on, what was saved."""
    return "auto" if transformers_version() >= (5, 0) else torch.float32


def transformers_version() -> tuple[int, ...]:
    """Its first two numbers."""
    import transformers

    return tuple(int(part) for part in transformers.__version__.split(".")[:2])
