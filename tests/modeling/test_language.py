"""Language models as a user meets them: by folder, module or config, with prompts of any form."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
import transformers

from nnsight.modeling.errors import LoadError
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.language import LanguageModel

from .conftest import TEXTS
from .tiny import FAMILIES, config_of, model_of

PROMPT = "the eiffel tower is in"
PROMPTS = ["hello", "the eiffel tower is in", "the city of paris hello world world"]


@pytest.fixture(scope="module")
def model(gpt2_folder) -> LanguageModel:
    return LanguageModel(gpt2_folder)


def bare_logits(tokenizer: Any, prompt: str, family: str = "gpt2") -> torch.Tensor:
    with torch.no_grad():
        return model_of(family)(**tokenizer(prompt, return_tensors="pt")).logits


# --- loading ---------------------------------------------------------------------------------


def test_the_weights_come_with_the_first_run(gpt2_folder, tokenizer):
    model = LanguageModel(gpt2_folder)
    layer, embedding = model.transformer.h[1], model.transformer.wte
    assert not model.dispatched and model.device.type == "meta"
    with torch.no_grad(), model.trace(PROMPT):
        logits = model.output.logits.save()
    assert model.dispatched and model.device.type == "cpu"
    assert model.transformer.h[1] is layer and model.transformer.wte is embedding
    assert layer._module is model._module.transformer.h[1]
    assert torch.equal(logits, bare_logits(tokenizer, PROMPT))


def test_lazily_loaded_is_the_same_as_dispatched(gpt2_folder):
    found = []
    for dispatch in (False, True):
        model = LanguageModel(str(gpt2_folder), dispatch=dispatch)
        assert model.dispatched is dispatch
        with torch.no_grad(), model.trace(PROMPTS):
            hidden = model.transformer.h[0].output.save()
            logits = model.output.logits.save()
        found.append((hidden, logits))
    (lazy_hidden, lazy_logits), (hidden, logits) = found
    assert torch.equal(lazy_logits, logits)
    first = lazy_hidden[0] if isinstance(hidden, tuple) else lazy_hidden
    assert torch.equal(first, hidden[0] if isinstance(hidden, tuple) else hidden)


@pytest.mark.parametrize("name", ["dispatch", "dispatch_model"])
def test_dispatch_loads_once(gpt2_folder, name):
    model = LanguageModel(gpt2_folder)
    getattr(model, name)()
    module = model._module
    getattr(model, name)()
    assert model.dispatched and model._module is module


def _hook(*_: Any) -> None: ...


def _add(model: Any) -> None:
    model.transformer.h[0].sae = torch.nn.Linear(2, 2)


CHANGES = {
    "to": (lambda m: m.to(torch.bfloat16), lambda m: m.lm_head.weight.dtype == torch.bfloat16),
    "half": (lambda m: m.half(), lambda m: m.lm_head.weight.dtype == torch.float16),
    "cpu": (lambda m: m.cpu(), lambda m: m.lm_head.weight.is_cpu),
    "train": (lambda m: m.train(), lambda m: m.training and m.transformer.h[0].mlp.training),
    "training": (
        lambda m: setattr(m.transformer, "training", True),
        lambda m: m.transformer.training,
    ),
    "freeze": (
        lambda m: m.requires_grad_(False),
        lambda m: not any(p.requires_grad for p in m.parameters()),
    ),
    "parameters": (
        lambda m: [p.data.zero_() for p in m.parameters()],
        lambda m: not m.lm_head.weight.any(),
    ),
    "hook": (
        lambda m: m.transformer.h[0].attn.attn_dropout.register_forward_hook(_hook),
        lambda m: _hook in m.transformer.h[0].attn.attn_dropout._forward_hooks.values(),
    ),
    "module": (_add, lambda m: m.transformer.h[0].sae.weight.shape == (2, 2)),
    "weight": (
        lambda m: m.transformer.wte.weight.data.zero_(),
        lambda m: not m.transformer.wte.weight.any(),
    ),
    "a method of its own": (
        lambda m: m.resize_token_embeddings(300),
        lambda m: m.lm_head.weight.shape[0] == 300,
    ),
}


@pytest.mark.parametrize(("change", "is_there"), CHANGES.values(), ids=CHANGES.keys())
def test_what_is_done_before_the_weights_come_is_done_to_the_weights(gpt2_folder, change, is_there):
    model = LanguageModel(gpt2_folder)
    change(model)
    with torch.no_grad(), model.trace([5, 6]):
        ran = model.lm_head.output.save()
    assert is_there(model._module) and not ran.is_meta and ran.dtype == model.lm_head.weight.dtype


def test_looking_at_the_tree_loads_nothing(gpt2_folder):
    model = LanguageModel(gpt2_folder)
    assert model.training is False and model.config.n_layer == 2 and hasattr(model, "train")
    assert len(model.modules()) == len(list(model._module.modules())) and repr(model)
    with model.scan([5, 6]):
        shape = model.transformer.wte.weight.shape
    assert shape[1] == model.config.n_embd and not model.dispatched


def test_a_loaded_module_is_wrapped_as_it_is(tokenizer):
    module = model_of("gpt2")
    model = LanguageModel(module, tokenizer=tokenizer)
    assert model.dispatched and model._module is model._model is model.local_model is module
    assert model.config is module.config and model.tokenizer is tokenizer
    with torch.no_grad(), model.trace(PROMPT):
        logits = model.output.logits.save()
    assert torch.equal(logits, bare_logits(tokenizer, PROMPT))


def test_a_config_gives_random_weights(tokenizer):
    torch.manual_seed(0)
    model = LanguageModel(config_of("gpt2"), tokenizer=tokenizer)
    with torch.no_grad(), model.trace(PROMPT):
        logits = model.output.logits.save()
    assert torch.equal(logits, bare_logits(tokenizer, PROMPT))


def test_older_names_of_the_arguments(gpt2_folder):
    model = LanguageModel(model_key=str(gpt2_folder), config_model=config_of("gpt2"))
    assert model.repo_id == str(gpt2_folder) and model.revision is None


def test_what_a_model_knows_of_itself(gpt2_folder, model):
    assert model.repo_id == str(gpt2_folder)
    assert model.config.n_layer == 2
    assert LanguageModel(torch.nn.Linear(2, 2)).config is None


def test_options_reach_from_pretrained(gpt2_folder):
    model = LanguageModel(gpt2_folder, dispatch=True, torch_dtype=torch.float16, device_map="cpu")
    assert model.transformer.wte.weight.dtype == torch.float16


def test_names_may_be_given_to_modules(gpt2_folder):
    model = LanguageModel(gpt2_folder, rename={"transformer.h": "layers"})
    with torch.no_grad(), model.trace([5, 6]):
        hidden = model.layers[0].output.save()
    assert hidden is not None


def test_another_class_may_build_the_model(gpt2_folder):
    for automodel in ("AutoModel", transformers.AutoModel):
        model = LanguageModel(gpt2_folder, automodel=automodel)
        assert isinstance(model._module, transformers.GPT2Model)


def test_subclasses_are_language_models_with_more(gpt2_folder):
    class Standardized(LanguageModel):
        def __init__(self, repo_id: str, *, scale: float = 1.0, **options: Any) -> None:
            super().__init__(repo_id, rename={"transformer.h": "layers"}, **options)
            self.scale = scale

        @property
        def layer_count(self) -> int:
            return len(self.layers)

    model = Standardized(str(gpt2_folder), scale=2.0)
    with torch.no_grad(), model.trace(PROMPT):
        logits = model.output.logits.save()
    assert model.scale == 2.0 and model.layer_count == 2 and logits.ndim == 3


def test_a_model_that_reads_no_text(gpt2_folder):
    model = HuggingFaceModel(gpt2_folder)
    with torch.no_grad(), model.trace(input_ids=torch.tensor([[5, 6]])):
        hidden = model.output.last_hidden_state.save()
    assert hidden.shape == (1, 2, 32)


def test_importing_nnsight_does_not_import_transformers():
    code = (
        "import sys, nnsight\n"
        "from nnsight.modeling.language import LanguageModel\n"
        "assert nnsight.LanguageModel is LanguageModel\n"
        "sys.exit('transformers' in sys.modules or 'accelerate' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_is_freed_without_the_garbage_collector(gpt2_folder):
    gc.collect()
    gc.disable()
    try:
        model = LanguageModel(gpt2_folder)
        with torch.no_grad(), model.trace(PROMPTS):
            pass
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


# --- inputs ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "bart-decoder"])
def test_a_prompt_has_the_same_values_alone_in_a_list_and_in_an_invoke(family, tokenizer):
    model = LanguageModel(model_of(family), tokenizer=tokenizer)
    with model.trace(PROMPTS):
        inputs = model.inputs.save()
        together = model.output.logits.save()
    mask = inputs[1]["attention_mask"].bool()
    for row, prompt in enumerate(PROMPTS):
        with model.trace(prompt):
            alone = model.output.logits.save()
        assert torch.equal(alone, bare_logits(tokenizer, prompt, family))
        with model.trace() as tracer:
            with tracer.invoke(PROMPTS[row - 1]):
                pass
            with tracer.invoke(prompt):
                invoked = model.output.logits.save()
        real = slice(alone.shape[1]) if "b" in family else slice(-alone.shape[1], None)
        torch.testing.assert_close(together[row][mask[row]], alone[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(invoked[0, real], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_invokes_of_different_forms_share_a_batch(model, tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            text = model.lm_head.output[:, -1].save()
        with tracer.invoke(ids):
            listed = model.lm_head.output[:, -1].save()
        with tracer.invoke(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))):
            named = model.lm_head.output[:, -1].save()
        with tracer.invoke(["hello", PROMPT]):
            several = model.lm_head.output[:, -1].save()
        with tracer.invoke():
            everything = model.lm_head.output[:, -1].save()
    assert torch.equal(text, listed) and torch.equal(text, named)
    assert torch.equal(text[0], several[1]) and everything.shape[0] == 5


def test_a_trace_without_a_block(model, tokenizer):
    with torch.no_grad():
        out = model.trace(PROMPT, trace=False)
    assert torch.equal(out.logits, bare_logits(tokenizer, PROMPT))


def test_settings_of_the_call_are_given_to_the_trace(model):
    with torch.no_grad(), model.trace(output_hidden_states=True) as tracer:
        with tracer.invoke("hello"):
            hidden = model.output.hidden_states.save()
    assert len(hidden) == 3


def test_labels_may_be_text(model):
    with torch.no_grad(), model.trace(PROMPT, labels=PROMPT):
        loss = model.output.loss.save()
    assert torch.isfinite(loss)


def test_a_keyword_without_effect_is_a_warning_at_the_users_line(model):
    with pytest.warns(UserWarning, match=r"`max_new_tokens=` has no effect") as direct:
        with torch.no_grad(), model.trace(PROMPT, max_new_tokens=3):
            pass
    with pytest.warns(UserWarning, match=r"`max_new_tokens=` has no effect") as with_invokes:
        with torch.no_grad(), model.trace(max_new_tokens=3) as tracer:
            with tracer.invoke(PROMPT):
                pass
    for caught in (direct, with_invokes):
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("keyword", ["scan", "validate", "invoker_args", "inference"])
def test_keywords_of_old_traces_are_dropped(model, keyword):
    with pytest.warns(DeprecationWarning, match=keyword) as caught:
        with torch.no_grad(), model.trace(PROMPT, **{keyword: False}):
            logits = model.output.logits.save()
    assert logits.ndim == 3 and [warning.filename for warning in caught] == [__file__]
    with pytest.warns(DeprecationWarning, match=keyword):
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(PROMPT, **{keyword: False}):
                logits = model.output.logits.save()
    assert logits.ndim == 3


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="The input is empty"):
        with model.trace(""):
            pass


def test_a_token_out_of_range_is_refused(model):
    with pytest.raises(ValueError, match=r"Token id 290 .* vocabulary of 290"):
        with model.trace([1, 290]):
            pass


# --- tokenizers ------------------------------------------------------------------------------


def test_text_needs_a_tokenizer_and_ids_do_not(bare_folder):
    for model in (LanguageModel(model_of("gpt2")), LanguageModel(config_of("gpt2"))):
        assert model.tokenizer is None
        with pytest.raises(ValueError, match="tokenizer=tokenizer"):
            with model.trace(PROMPT):
                pass
        with torch.no_grad(), model.trace([[5, 6, 7], [8]]):
            logits = model.output.logits.save()
        assert logits.shape[:2] == (2, 3)
    model = LanguageModel(bare_folder)
    with pytest.raises(LoadError, match="`tokenizer=`"):
        with model.trace(PROMPT):
            pass
    with torch.no_grad(), model.trace([[5, 6, 7], [8]]):
        logits = model.output.logits.save()
    assert logits.shape[:2] == (2, 3)


def test_the_tokenizer_may_come_from_elsewhere(bare_folder, tokenizer_folder, tokenizer):
    by_place = LanguageModel(bare_folder, tokenizer=tokenizer_folder)
    set_later = LanguageModel(bare_folder)
    set_later.tokenizer = tokenizer
    for model in (by_place, set_later):
        with torch.no_grad(), model.trace(PROMPT):
            logits = model.output.logits.save()
        assert torch.equal(logits, bare_logits(tokenizer, PROMPT))


def test_its_own_tokenizer_pads_as_the_model_needs(gpt2_folder, tmp_path, tokenizer):
    assert LanguageModel(gpt2_folder).tokenizer.padding_side == "left"
    model_of("bert").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = LanguageModel(tmp_path, automodel="AutoModelForMaskedLM")
    assert encoder.tokenizer.padding_side == "right"


def test_numbers_come_before_sides_whoever_reads_the_tokenizer(tmp_path, tokenizer):
    model_of("bart-decoder").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = LanguageModel(tmp_path)
    with torch.no_grad(), model.trace(PROMPTS):
        logits = model.output.logits[0].save()
    alone = bare_logits(tokenizer, PROMPTS[0], "bart-decoder")[0]
    torch.testing.assert_close(logits[: len(alone)], alone, atol=1e-5, rtol=0)


def test_a_padding_side_that_the_user_sets_is_used(gpt2_folder):
    asked = LanguageModel(gpt2_folder, tokenizer_kwargs={"padding_side": "right"})
    changed = LanguageModel(gpt2_folder)
    changed.tokenizer.padding_side = "right"
    for model in (asked, changed):
        with torch.no_grad(), model.trace([[5, 6, 7], [8]]):
            ids = model.inputs[1]["input_ids"].save()
        assert ids[1].tolist() == [8, 0, 0]


# --- generation ------------------------------------------------------------------------------


def test_generate_returns_what_the_models_own_generate_returns(model, tokenizer, capfd):
    settings = {"max_new_tokens": 4, "do_sample": False}
    encoding = tokenizer(PROMPT, return_tensors="pt")
    expected = model_of("gpt2").generate(**encoding, pad_token_id=0, **settings)
    assert torch.equal(model.generate(PROMPT, **settings), expected)
    assert torch.equal(model.generate(encoding, **settings), expected)
    assert torch.equal(model.generate(encoding["input_ids"], **settings), expected)
    assert "pad_token_id" not in capfd.readouterr().err


def test_generate_loads_the_weights_and_continues_each_row_as_alone(gpt2_folder):
    model = LanguageModel(gpt2_folder)
    settings = {"max_new_tokens": 4, "do_sample": False}
    together = model.generate(PROMPTS, **settings)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(together[row, -4:], model.generate(prompt, **settings)[0, -4:])


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_scan_needs_no_numbers_of_a_mask(family, attention, tokenizer):
    model = LanguageModel(
        config_of(family), automodel=FAMILIES[family][2], attn_implementation=attention,
        tokenizer=tokenizer,
    )  # fmt: skip

    with model.scan([TEXTS[0], TEXTS[1]]):
        scanned = model.output.logits.shape
    assert not model.dispatched
    with model.trace([TEXTS[0], TEXTS[1]]):
        assert model.output.logits.shape == scanned
