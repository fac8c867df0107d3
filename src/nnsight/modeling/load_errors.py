"""What can be wrong with what a model is to be made from, and the texts that say so."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from nnsight.modeling.errors import LoadError, first_sentence, show

GIVEN = "the tokenizer that was passed is used as it is; set it there"
RANDOM = "a model made from a config has random weights and reads no files"
LOADED = "the model is loaded already; pass it to `from_pretrained` there"


def unknown_option(name: str, hint: str) -> TypeError:
    return TypeError(f"`{name}=` is neither an option of `from_pretrained` nor of nnsight. {hint}")


def no_effect(names: Sequence[str], reason: str) -> str:
    listed = ", ".join(f"`{name}=`" for name in names)
    return f"{listed} {'has' if len(names) == 1 else 'have'} no effect: {reason}."


def no_such_dtype(dtype: str, short: Sequence[str]) -> ValueError:
    return ValueError(
        f"There is no dtype {dtype!r}. Pass 'auto', one of PyTorch's such as 'bfloat16', or for "
        f"quantised weights one of {', '.join(map(repr, short))}."
    )


def quantised_twice(name: str) -> ValueError:
    return ValueError(
        f"The weights are to be quantised in two ways: by {name!r} and by another option. Keep one."
    )


def no_bitsandbytes() -> ImportError:
    return ImportError(
        "Weights of 8 or 4 bits need the package bitsandbytes: `pip install bitsandbytes`."
    )


# --- what is no model ------------------------------------------------------------------------


def not_a_model(value: Any) -> TypeError:
    """`value` is neither a place to load from nor a module nor a config."""
    what = f"an object of type {type(value).__name__}"
    if isinstance(value, type):
        what = f"the class {value.__name__}"
        way_out = f"Pass an instance, or where to load it from and `automodel={value.__name__}`."
    elif hasattr(value, "_module"):
        way_out = "It is wrapped already: use it as it is, or wrap the module in it, `._module`."
    elif hasattr(value, "model") and hasattr(value, "tokenizer"):
        way_out = "Pass its parts: `LanguageModel(it.model, tokenizer=it.tokenizer)`."
    elif isinstance(value, dict):
        way_out = "Make a config of it first: `AutoConfig.for_model(**settings)`."
    else:
        way_out = "Pass a hub id, a folder, a loaded module or a config."
    return TypeError(f"A model cannot be made from {what}. {way_out}")


def not_an_automodel(value: Any) -> TypeError:
    return TypeError(
        f"`automodel` is {reprlib.repr(value)}; it is the class that builds the model, such as "
        "`AutoModelForCausalLM`, or its name."
    )


def not_a_tokenizer(value: Any) -> TypeError:
    kind = type(value)
    if kind.__module__.partition(".")[0] == "tokenizers":
        way_out = "Wrap it: `PreTrainedTokenizerFast(tokenizer_object=tokenizer)`."
    else:
        way_out = "Pass a tokenizer of transformers, or the hub id or folder of one."
    return TypeError(
        f"`tokenizer` is {reprlib.repr(value)} of type {kind.__name__}, which reads no text. "
        f"{way_out}"
    )


def reads_otherwise(tokenizer: Any, given: Any) -> TypeError:
    """A function that was passed for a tokenizer gives no named values."""
    return TypeError(
        f"The tokenizer, {reprlib.repr(tokenizer)}, gives a {type(given).__name__} for a list of "
        "texts; it should give a dict with `input_ids`, as a tokenizer of transformers does. Pass "
        "ids in place of text, or one of those."
    )


def not_tokenizer_options(value: Any) -> TypeError:
    return TypeError(
        f"`tokenizer_kwargs` is {reprlib.repr(value)} of type {type(value).__name__}; it is a dict "
        "of what `AutoTokenizer.from_pretrained` takes, such as `{'padding_side': 'left'}`."
    )


def unknown_tokenizer_option(name: str, near: str) -> TypeError:
    return TypeError(
        f"`tokenizer_kwargs` has {name!r}, which a tokenizer would keep and never look at. Did "
        f"you mean {near!r}?"
    )


def a_file(path: str) -> LoadError:
    return LoadError(f"{path!r} is a file. Pass the folder that it lies in.")


# --- what is broken --------------------------------------------------------------------------


def other_sizes(source: str) -> LoadError:
    return LoadError(
        f"The weights of {source!r} have other sizes than its config says (or the `config=` and "
        "settings that were given); transformers lists which. Take the config that they were "
        "saved with."
    )


def incomplete(source: str, missing: Sequence[str]) -> LoadError:
    return LoadError(
        f"The weights of {source!r} are not complete: {_some(missing)} of its layers "
        f"{'is' if len(missing) == 1 else 'are'} not in the files and would be random. Download "
        "or save it again; if the config asks for more layers than there are, change the config."
    )


def random_parts(source: str, missing: Sequence[str]) -> str:
    return (
        f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} not in the files of {source!r}, "
        "so the values are random and differ each time that it is loaded. Load it by the class "
        "that it was saved from, `automodel=`, or train the new part."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:2])
    return shown if len(names) <= 2 else f"{shown} and {len(names) - 2} more"


# --- what is not there, or cannot be read ----------------------------------------------------


def no_folder(path: str) -> LoadError:
    return LoadError(
        f"There is no folder {path!r}. Pass the folder that `save_pretrained` wrote, or a hub id "
        "such as 'openai-community/gpt2'."
    )


def no_config(path: str) -> LoadError:
    return LoadError(
        f"The folder {path!r} has no config.json, so it is not a saved model. Pass the folder that "
        "`save_pretrained` wrote (for a training run, one of its checkpoint folders)."
    )


def no_settings(path: str) -> LoadError:
    return LoadError(
        f"{path!r} holds no settings by name. Save the model again, or remove the file: then "
        "generation has the settings of the config."
    )


def unloadable(what: str, source: str, local: bool, reason: BaseException) -> LoadError:
    """transformers could not read `source`; its reason is kept as the cause."""
    if "does not recognize" in str(reason):
        way_out = "A newer transformers may know it."
    elif local:
        way_out = "See that the folder is complete: `save_pretrained` writes all there is to it."
    else:
        way_out = (
            "Check the spelling, the network and, for a gated model, that you are logged in to the "
            "hub; without network, pass the path of a downloaded folder."
        )
    return LoadError(
        f"The {what} of {source!r} could not be loaded: {first_sentence(reason)} {way_out}"
    )


def no_tokenizer_at(source: str, reason: BaseException | str) -> LoadError:
    return LoadError(
        f"The tokenizer of {source!r} could not be loaded: {first_sentence(reason)} Pass another, "
        "as an object or by where it lies: `tokenizer=`. Token ids need no tokenizer."
    )


def no_processor_at(source: str, reason: BaseException) -> LoadError:
    return LoadError(
        f"The processor of {source!r} could not be loaded: {first_sentence(reason)} Pass another, "
        "as an object or by where it lies: `processor=`."
    )


def wrong_automodel(automodel: str, source: str, architectures: Sequence[str]) -> ValueError:
    hint = f"automodel={architectures[0]!r}" if architectures else "the class it was saved from"
    return ValueError(
        f"{automodel} does not know how to build {source!r}. Say which class does: {hint}."
    )


def no_such_automodel(name: str, near: Sequence[str]) -> ValueError:
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"transformers has no class named {name!r}.{hint}")


def nothing_to_load() -> TypeError:
    return TypeError(
        "Nothing to load: pass a hub id, a folder, a loaded module or a config as the first "
        "argument."
    )


def meta_module() -> ValueError:
    return ValueError(
        "This module was handed over on the meta device, so it has no weights, and nothing says "
        "where to load them from. Load it first, or pass its hub id or folder instead."
    )


def spread_config(device_map: Any) -> ValueError:
    return ValueError(
        f"A model with random weights goes to one device, and `device_map` is {show(device_map)}. "
        "Pass one device, such as 'cuda:0'."
    )


def no_key(kind: str) -> ValueError:
    return ValueError(
        f"This {kind} comes from no hub id and no folder, so no server could know which model is "
        "meant. Open it by hub id, which reads no weights until they are needed: "
        "`LanguageModel('openai-community/gpt2')`."
    )


def key_of_another_kind(kind: str, name: str) -> ValueError:
    return ValueError(f"{name} cannot open what the key names: a {kind.rpartition('.')[2]}.")


# --- adapters --------------------------------------------------------------------------------


def no_peft() -> ImportError:
    return ImportError("An adapter needs the package peft: `pip install peft`.")


def no_adapter(folder: str) -> LoadError:
    return LoadError(
        f"There is no adapter in {folder!r}: it has no adapter_config.json. Pass the folder that "
        "`save_pretrained` of a PeftModel wrote, or a hub id."
    )


def adapter_without_layers(adapter: str, kind: str) -> ValueError:
    return ValueError(
        f"The adapter {adapter!r} is of the kind {kind}, which puts virtual tokens before a prompt "
        "and has no layers to put into a model. Load it with PEFT and wrap the PeftModel: "
        "`LanguageModel(peft_model, tokenizer=...)`."
    )


def other_adapter(adapter: str, model: str, reason: Exception) -> ValueError:
    return ValueError(
        f"The adapter {adapter!r} is not of this model, a {model}: {first_sentence(reason)}. Pass "
        "the model that it was trained on, which its adapter_config.json names as "
        "`base_model_name_or_path`."
    )


def adapter_of_loaded(adapter: str) -> ValueError:
    return ValueError(
        f"`peft={adapter!r}` is read with the weights of a model, and this one is loaded already. "
        f"Wrap it without, and then call `model.load_adapter({adapter!r})`, or wrap a PeftModel."
    )


def changed_weights(names: Sequence[str], repo_id: str) -> str:
    more = f" and of {len(names) - 1} more parameters" if len(names) > 1 else ""
    return (
        f"The values of `{names[0]}`{more} were changed here after they were read. They are not "
        f"sent: this block runs with the weights that {repo_id!r} has there. Make the change in "
        "the block or as an edit, or run the block here."
    )


def weights_of_object(kind: str, repo_id: str) -> str:
    return (
        f"This {kind} was given as an object, and its weights are not sent: the block runs with "
        f"those that {repo_id!r} has there. If they are the same, open the model by that name; if "
        "not, run the block here."
    )


def key_of_adapted(kind: str) -> ValueError:
    return ValueError(
        f"This {kind} has an adapter, which no key names: a server would run the model without it. "
        "Run it here, or call `model.load_adapter(None)` first."
    )
