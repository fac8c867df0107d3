"""Each keyword of a model's constructor goes where it belongs, or somebody says so."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnsight import LanguageModel, NNsight
from nnsight.modeling import options
from nnsight.modeling.options import for_transformers
from tests.modeling.tiny import config_of, model_of


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("dvice_map", "Did you mean `device_map=`?"),
        ("attn_implementaton", "Did you mean `attn_implementation=`?"),
        ("revison", "Did you mean `revision=`?"),
        ("tokeniser", "Did you mean `tokenizer=`?"),
        ("n_heads", "Did you mean `n_head=`?"),
        ("device", "Say where the weights go by `device_map=`."),
        ("padding_side", "It goes to the tokenizer: `tokenizer_kwargs={'padding_side': ...}`."),
        ("max_new_tokens", "It goes to `model.generate(..., max_new_tokens=...)`."),
        ("frobnicate", "Remove it."),
    ],
)
def test_an_unknown_keyword_is_refused_before_anything_is_loaded(gpt2_folder, name, way_out):
    expected = f"`{name}=` is neither an option of `from_pretrained` nor of nnsight. {way_out}"
    for source in (gpt2_folder, config_of("gpt2")):
        with pytest.raises(TypeError, match=re.escape(expected)):
            LanguageModel(source, **{name: 1})


def test_a_setting_beside_a_config_belongs_on_the_config(gpt2_folder):
    with pytest.raises(TypeError, match=re.escape("set `config.n_head` on it")):
        LanguageModel(gpt2_folder, config=config_of("gpt2"), n_head=1)


@pytest.mark.parametrize(
    "given",
    [
        {"low_cpu_mem_usage": True},
        {"use_safetensors": True},
        {"max_memory": {"cpu": "1GB"}, "device_map": "auto"},
        {"variant": None, "token": None, "local_files_only": True},
        {"trust_remote_code": False, "n_head": 1},
    ],
)
def test_what_transformers_takes_goes_there(gpt2_folder, given):
    model = LanguageModel(gpt2_folder, **given)
    model.dispatch()
    assert model.config.n_head == given.get("n_head", 2)


@pytest.mark.parametrize("name", ["device_map", "config", "revision", "dtype"])
def test_an_option_of_a_loaded_model_has_no_effect_and_says_so(name):
    with pytest.warns(UserWarning, match=f"`{name}=` has no effect: the model is loaded") as found:
        LanguageModel(model_of("gpt2"), **{name: "float16"})
    assert found[0].filename == __file__


def test_an_unknown_option_of_a_loaded_model_is_refused():
    with pytest.raises(TypeError, match=re.escape("Did you mean `tokenizer=`?")):
        LanguageModel(model_of("gpt2"), tokenzer=None)


def test_a_config_alone_reads_no_files_and_says_so():
    with pytest.warns(UserWarning, match="`revision=`, `cache_dir=` have no effect: a model made"):
        LanguageModel(config_of("gpt2"), revision="main", cache_dir="somewhere")


@pytest.mark.parametrize(
    ("source", "way_out"),
    [
        (5, "an object of type int. Pass a hub id, a folder, a loaded module or a config."),
        ({"n_layer": 2}, "Make a config of it first: `AutoConfig.for_model(**settings)`."),
        (torch.nn.Linear, "the class Linear. Pass an instance, or where to load it from"),
        (NNsight(torch.nn.Linear(2, 2)), "It is wrapped already: use it as it is"),
        (SimpleNamespace(model=1, tokenizer=2), "Pass its parts: `LanguageModel(it.model,"),
    ],
)
def test_what_is_no_model(source: Any, way_out: str):
    with pytest.raises(TypeError, match=re.escape(way_out)):
        LanguageModel(source)


def test_what_builds_no_model(gpt2_folder):
    with pytest.raises(TypeError, match="`automodel` is 3; it is the class that builds the model"):
        LanguageModel(gpt2_folder, automodel=3)  # type: ignore[arg-type] # the mistake


def test_what_is_no_tokenizer(gpt2_folder, tokenizer):
    for wrong in (5, False, type(tokenizer)):
        with pytest.raises(TypeError, match=r"which reads no text\. Pass a tokenizer of"):
            LanguageModel(gpt2_folder, tokenizer=wrong)
    with pytest.raises(TypeError, match=re.escape("PreTrainedTokenizerFast(tokenizer_object=")):
        LanguageModel(gpt2_folder, tokenizer=tokenizer.backend_tokenizer)


def test_options_of_a_tokenizer_that_it_would_never_look_at(gpt2_folder):
    with pytest.raises(TypeError, match=r"has 'padding_sid', .* Did you mean 'padding_side'\?"):
        LanguageModel(gpt2_folder, tokenizer_kwargs={"padding_sid": "left"})
    with pytest.raises(
        TypeError, match=r"`tokenizer_kwargs` is \['a'\] of type list; it is a dict"
    ):
        LanguageModel(gpt2_folder, tokenizer_kwargs=["a"])  # type: ignore[arg-type] # the mistake
    model = LanguageModel(gpt2_folder, tokenizer_kwargs={"pad_token_id": 3, "trust_me": True})
    assert len(model.tokenizer)


def test_options_beside_a_tokenizer(gpt2_folder, tokenizer):
    with pytest.warns(UserWarning, match="`use_fast=` has no effect: the tokenizer that was") as at:
        LanguageModel(
            gpt2_folder,
            tokenizer=tokenizer,
            tokenizer_kwargs={"use_fast": True, "padding_side": "right"},
        )
    assert at[0].filename == __file__


@pytest.mark.parametrize("gives", [[1, 2], {"ids": [[1]]}])
def test_a_function_in_place_of_a_tokenizer(gpt2_folder, gives):
    model = LanguageModel(gpt2_folder, tokenizer=lambda texts, **options: gives)
    with pytest.raises(TypeError, match=r"gives a (list|dict) for a list of texts; it should give"):
        with model.trace("Hello"):
            pass


# --- dtypes and bits -------------------------------------------------------------------------


def test_a_dtype_that_does_not_exist(gpt2_folder):
    with pytest.raises(ValueError, match=r"There is no dtype 'float17'\. Pass 'auto', one of"):
        LanguageModel(gpt2_folder, dtype="float17")


def test_a_dtype_may_be_written_as_pytorch_prints_it(gpt2_folder):
    model = LanguageModel(gpt2_folder, dtype=str(torch.bfloat16), dispatch=True)
    assert model._module.dtype == torch.bfloat16


class Bits(dict):
    """What stands for transformers' config, which needs the package that quantises."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(settings)


@pytest.mark.parametrize(
    ("given", "config", "rest"),
    [
        ({"dtype": "int8"}, {"load_in_8bit": True}, {}),
        ({"dtype": "4bit"}, {"load_in_4bit": True}, {}),
        ({"torch_dtype": "nf4"}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {}),
        (
            {"dtype": "fp4", "compute_dtype": "bfloat16"},
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "fp4",
                "bnb_4bit_compute_dtype": "bfloat16",
            },
            {"dtype": "bfloat16"},
        ),
        ({"load_in_8bit": True, "dtype": "float16"}, {"load_in_8bit": True}, {"dtype": "float16"}),
        (
            {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            {},
        ),
    ],
)
def test_bits_become_the_config_that_they_stand_for(monkeypatch, given, config, rest):
    monkeypatch.setattr("transformers.BitsAndBytesConfig", Bits)
    expected = {"quantization_config": config, "device_map": "auto", **rest}
    assert for_transformers({**given, "device_map": "auto"}) == expected


def test_eight_bit_floats_have_a_config_of_their_own():
    config = for_transformers({"dtype": "fp8"})["quantization_config"]
    assert type(config).__name__ == "FineGrainedFP8Config"


def test_no_bits_need_no_config():
    assert for_transformers({"load_in_8bit": False, "variant": "x"}) == {"variant": "x"}


@pytest.mark.parametrize(
    "given", [{"quantization_config": object()}, {"load_in_8bit": True}], ids=["config", "bits"]
)
def test_two_ways_of_quantising_are_refused(given):
    with pytest.raises(ValueError, match="quantised in two ways: by 'nf4' and by another option"):
        for_transformers({"dtype": "nf4", **given})


def test_a_missing_package_is_named(gpt2_folder, monkeypatch):
    def needs_the_package(**settings: Any) -> None:
        raise ModuleNotFoundError("bitsandbytes")

    monkeypatch.setattr("transformers.BitsAndBytesConfig", needs_the_package)
    model = LanguageModel(gpt2_folder, dtype="nf4")  # its tree can be looked at
    assert len(model.transformer.h) == 2
    with pytest.raises(ImportError, match="need the package bitsandbytes: `pip install"):
        model.dispatch()


def test_the_names_that_are_known_are_those_of_this_transformers():
    known = options._known()
    assert {"device_map", "quantization_config", "subfolder", "use_safetensors"} <= known
    assert "output_loading_info" not in known  # it would change what is returned
