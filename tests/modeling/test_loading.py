"""A skeleton at once, weights on demand, from wherever a model may come."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers

from nnsight.modeling.errors import LoadError
from nnsight.modeling.loading import Checkpoint, Loaded, Untrained, loader
from nnsight.modeling.meta import is_meta, on_meta
from nnsight.modeling.options import for_transformers
from nnsight.modeling.tokenizer import LazyTokenizer

from .tiny import config_of, model_of

CAUSAL = "AutoModelForCausalLM"
LATEST = transformers.__version__ >= "5"


def names_and_shapes(module: torch.nn.Module) -> dict:
    return {name: tensor.shape for name, tensor in module.named_parameters()}


# --- skeletons -------------------------------------------------------------------------------


def test_a_skeleton_has_every_parameter_on_meta_and_reads_no_weights(gpt2_folder, monkeypatch):
    monkeypatch.setattr("safetensors.safe_open", None)
    monkeypatch.setattr("torch.load", None)
    module = loader(gpt2_folder, CAUSAL).skeleton()
    assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    assert names_and_shapes(module) == names_and_shapes(model_of("gpt2"))
    assert not module.training


def test_buffers_may_stay_real(tmp_path):
    module = loader(config_of("llama"), CAUSAL, meta_buffers=False).skeleton()
    assert is_meta(module) and not any(buffer.is_meta for buffer in module.buffers())


def test_a_skeleton_ties_what_the_model_ties(gpt2_folder):
    module = loader(gpt2_folder, CAUSAL).skeleton()
    assert module.lm_head.weight is module.transformer.wte.weight


def test_a_constructor_may_look_at_its_numbers():
    class Curious(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.layer = torch.nn.Linear(2, 2)

    module = on_meta(Curious)
    assert module.rates == [0.0, 0.5, 1.0] and is_meta(module)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, torch.float32),
        ({"dtype": torch.float16}, torch.float16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": "auto"}, torch.float32),
    ],
)
def test_skeleton_and_weights_agree_on_the_dtype(gpt2_folder, asked, expected):
    found = loader(gpt2_folder, CAUSAL, **asked)
    assert found.skeleton().transformer.wte.weight.dtype == expected
    assert found.weights().transformer.wte.weight.dtype == expected


def test_the_default_dtype_is_that_of_transformers(tmp_path):
    copy.deepcopy(model_of("gpt2")).to(torch.float16).save_pretrained(tmp_path)
    found = loader(tmp_path, CAUSAL)
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).dtype
    assert expected == (torch.float16 if LATEST else torch.float32)
    assert found.skeleton().dtype == expected
    assert found.weights().dtype == expected


def test_the_dtype_goes_by_the_name_that_transformers_has_for_it():
    assert for_transformers({"torch_dtype": "auto", "other": 1}) == {"dtype": "auto", "other": 1}


# --- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_folder_gives_its_weights(gpt2_folder, as_path):
    found = loader(as_path(gpt2_folder), CAUSAL)
    assert isinstance(found, Checkpoint) and found.source == str(gpt2_folder)
    found.skeleton()
    state, expected = found.weights().state_dict(), model_of("gpt2").state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_weights_need_no_skeleton_first(gpt2_folder):
    assert not is_meta(loader(gpt2_folder, CAUSAL).weights())


def test_options_reach_the_model_and_its_config(gpt2_folder):
    found = loader(
        gpt2_folder,
        CAUSAL,
        attn_implementation="eager",
        output_hidden_states=True,
        device_map="cpu",
    )
    skeleton = found.skeleton()
    module = found.weights()
    for one in (skeleton, module):
        assert one.config._attn_implementation == "eager"
        assert one.config.output_hidden_states is True
    assert module.device.type == "cpu"


def test_what_is_changed_on_the_config_before_the_weights_come_is_in_force_then(gpt2_folder):
    found = loader(gpt2_folder, CAUSAL)
    found.skeleton().config.summary_type = "mean"
    assert found.weights().config.summary_type == "mean"


def test_a_skeleton_needs_no_package_for_an_attention(gpt2_folder):
    found = loader(gpt2_folder, CAUSAL, attn_implementation="flash_attention_2")
    assert is_meta(found.skeleton())


def test_another_config_may_be_given(gpt2_folder):
    config = config_of("gpt2")
    config.summary_type = "mean"
    assert loader(gpt2_folder, CAUSAL, config).weights().config.summary_type == "mean"
    by_path = loader(gpt2_folder, CAUSAL, str(gpt2_folder))
    assert names_and_shapes(by_path.skeleton()) == names_and_shapes(model_of("gpt2"))


def test_a_config_gives_random_weights_drawn_when_they_are_asked_for():
    found = loader(config_of("gpt2"), CAUSAL)
    assert isinstance(found, Untrained) and is_meta(found.skeleton())
    torch.manual_seed(0)
    first = found.weights()
    torch.manual_seed(0)
    second = found.weights()
    assert not first.training and not is_meta(first)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert torch.equal(first.lm_head.weight, model_of("gpt2").lm_head.weight)


def test_a_config_may_come_alone_by_keyword_or_by_path(gpt2_folder):
    for config in (config_of("gpt2"), gpt2_folder, str(gpt2_folder)):
        module = loader(None, CAUSAL, config, dtype=torch.float16, device_map="cpu").weights()
        assert module.dtype == torch.float16 and not is_meta(module)


def test_a_loaded_module_is_itself():
    module = model_of("gpt2")
    found = loader(module, CAUSAL)
    assert isinstance(found, Loaded)
    assert found.skeleton() is module and found.weights() is module
    assert found.tokenizer({}) is None


def test_the_class_may_be_one_that_is_not_auto(gpt2_folder):
    found = loader(gpt2_folder, transformers.GPT2Model)
    assert type(found.skeleton()) is type(found.weights()) is transformers.GPT2Model


# --- tokenizers ------------------------------------------------------------------------------


def test_the_models_tokenizer_comes_along_with_a_padding_token(gpt2_folder):
    found = LazyTokenizer(None, loader(gpt2_folder, CAUSAL).tokenizer, usual_side="left")
    assert found.side is None
    tokenizer = found.get()
    assert found.side is None
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.padding_side == "left"
    assert found.get() is tokenizer
    tokenizer.padding_side = "right"
    assert found.side == "right"


def test_a_padding_side_may_be_asked_for(gpt2_folder):
    read = loader(gpt2_folder, CAUSAL).tokenizer
    found = LazyTokenizer(None, read, {"padding_side": "right"}, usual_side="left")
    assert found.side == "right" == found.get().padding_side == found.side


def test_a_tokenizer_may_be_given_by_its_folder(tokenizer_folder):
    assert LazyTokenizer(tokenizer_folder).get()("hello")["input_ids"]
    assert LazyTokenizer(str(tokenizer_folder)).get()("hello")["input_ids"]


def test_a_given_tokenizer_is_used_as_it_is(tokenizer):
    found = LazyTokenizer(tokenizer)
    assert found.get() is tokenizer and found.side is None
    assert tokenizer.pad_token is None


def test_a_missing_tokenizer_says_so_each_time_but_padding_goes_on(bare_folder):
    found = LazyTokenizer(None, loader(bare_folder, CAUSAL).tokenizer)
    assert found.pad_ids == []
    for _ in range(2):
        with pytest.raises(
            LoadError, match=r"The tokenizer of .* could not be loaded.*`tokenizer=`"
        ):
            found.get()


# --- errors ----------------------------------------------------------------------------------


def test_a_folder_that_is_not_there():
    for place in ("./nowhere", Path("nowhere")):
        with pytest.raises(LoadError, match=r"There is no folder .*nowhere"):
            loader(place, CAUSAL)


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(LoadError, match=r"has no config.json, so it is not a saved model"):
        loader(tmp_path, CAUSAL).skeleton()


def test_a_folder_without_weights(tmp_path):
    config_of("gpt2").save_pretrained(tmp_path)
    found = loader(tmp_path, CAUSAL)
    found.skeleton()
    with pytest.raises(LoadError, match=r"The weights of .* could not be loaded.*complete"):
        found.weights()


def test_a_hub_that_cannot_be_reached():
    with pytest.raises(
        LoadError, match=r"The config of 'no-one/nothing' .*downloaded folder"
    ) as caught:
        loader("no-one/nothing", CAUSAL).skeleton()
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in str(caught.value)


def test_a_class_that_does_not_know_the_model(tmp_path):
    config = config_of("t5")
    config.architectures = ["T5ForConditionalGeneration"]
    with pytest.raises(ValueError, match=r"does not know .*automodel='T5ForConditionalGeneration'"):
        loader(config, CAUSAL).skeleton()


def test_a_class_that_does_not_exist():
    with pytest.raises(ValueError, match="Did you mean 'AutoModelForCausalLM'"):
        loader(config_of("gpt2"), "AutoModelForCausualLM").skeleton()


def test_nothing_to_load():
    with pytest.raises(TypeError, match="Nothing to load"):
        loader(None, CAUSAL)


def test_a_module_that_was_handed_over_on_meta():
    with pytest.raises(ValueError, match="handed over on the meta device"):
        loader(torch.nn.Linear(2, 2, device="meta"), CAUSAL).weights()


def test_random_weights_go_to_one_device():
    with pytest.raises(ValueError, match="goes to one device"):
        loader(config_of("gpt2"), CAUSAL, device_map={"": 0}).weights()
