"""The table of families: adapters that do not fit are told of, and models that nobody told of."""

# ruff: noqa: B018 -- a value is read by naming it
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from nnsight import LanguageModel
from nnsight.modeling import architectures
from nnsight.modeling.architectures import FAMILIES, register
from nnsight.modeling.errors import NamesError, NoSuchName
from nnsight.modeling.family import BLOCKS, BY_HEAD, PARALLEL, Family
from tests.families import zoo
from tests.modeling.named import config_of, given, ids, module_of


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(architectures, "FAMILIES", FAMILIES)
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


OLD = transformers.__version__.startswith("4.")
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"q": "k_proj"}, "attn.q"),
    ("llama", {"k": "v_proj"}, "attn.k"),
    ("llama", {"v": "k_proj"}, "attn.v"),
    ("llama", {"out": "q_proj"}, "attn.z"),
    ("llama", {"mid": "input_layernorm.input"}, "resid_mid"),
    ("gemma2", {"mid": "", "order": PARALLEL}, "resid_post"),
    ("llama", {"v": "values"}, "attn.v"),
    ("gpt2", {"joined": BY_HEAD}, "attn.v"),
    ("gpt_neox-sequential", {"joined": BLOCKS, "order": "pre"}, "attn.v"),
    ("gemma2", {"order": "pre"}, "resid_mid"),
    ("bert", {"order": "pre"}, "resid_mid"),
    ("bert", {"down": "attention.output.dense"}, "mlp.act"),
    ("gptj", {"pattern": "resid_dropout.input"}, "attn.pattern"),
    *([] if OLD else [("mixtral", {"router": "mlp"}, "router.probs")]),  # there it computes them
]


@pytest.mark.parametrize(("name", "wrong", "point"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_table_that_does_not_fit_names_the_point(name, wrong, point):
    module = module_of(name)
    kind = module.config.model_type
    (right,) = architectures.families_of(module.config)
    register(kind, replace(right, **wrong))
    with pytest.raises((NamesError, NoSuchName)) as caught:
        LanguageModel(module).check_names()
    assert "model.layers[" in str(caught.value) and point in str(caught.value)
    register(kind, right)
    LanguageModel(module).check_names()


def test_the_check_can_be_asked_for_when_weights_load():
    config = config_of("llama")
    register("llama", replace(Family(), v="k_proj"))
    model = LanguageModel(config, check_names=True)
    assert not model.dispatched
    with pytest.raises(NamesError, match=r"model.layers\[0\].attn.v"):
        model.dispatch()
    with pytest.raises(NamesError, match=r"attn\.v"):
        LanguageModel(config, check_names=True, dispatch=True)
    register("llama", Family())
    assert LanguageModel(config, check_names=True, dispatch=True).dispatched


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "olmo2", "mixtral", "gpt_neox", "opt"])
def test_a_model_that_nobody_told_of_has_what_its_names_tell(family):
    module = module_of(family)
    known = LanguageModel(module)
    with torch.no_grad(), known.trace(**given(module)):
        layer = known.layers[1]
        expected = [layer.resid_pre, layer.attn.pattern, layer.attn.z, layer.resid_post].save()
    del FAMILIES[module.config.model_type]
    model = LanguageModel(module)
    if family in ("bert", "gpt_neox", "opt"):  # only what the names of their modules tell
        with torch.no_grad(), model.trace(**given(module)):
            found = [model.layers[1].resid_pre, model.layers[1].resid_post].save()
        expected = [expected[0], expected[-1]]
    else:
        with torch.no_grad(), model.trace(**given(module)):
            layer = model.layers[1]
            found = [layer.resid_pre, layer.attn.pattern, layer.attn.z, layer.resid_post].save()
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(value, wanted)
    with pytest.raises(NoSuchName, match="not in the table"):
        with model.trace(**given(module)):
            model.layers[1].resid_mid
    assert "not in the table of families" in str(model.check_names())


def test_a_model_without_layers_has_none():
    plain = LanguageModel(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(AttributeError, match="no module or attribute 'layers'"):
        plain.layers
    with pytest.raises(NoSuchName, match="no list of layers"):
        plain.check_names()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt_neox", "modernbert"])
def test_a_base_model_has_the_same_names(family):
    base = module_of(family).base_model
    model = LanguageModel(base, automodel="AutoModel")
    model.check_names()
    with torch.no_grad():
        expected = base(**given(base), output_hidden_states=True).hidden_states
        with model.trace(**given(base)):
            act = model.layers[0].mlp.act.save()
            first = model.layers[0].resid_post.save()
    assert torch.equal(first, expected[1]) and act.ndim == 3
    with pytest.raises(NoSuchName, match="opened without one"):
        model.lm_head


def test_inside_another_model():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.ModuleDict({"model": module_of("llama")})

        def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> Any:
            return self.base_model["model"](input_ids, attention_mask=attention_mask)

    model = LanguageModel(Wrapped())
    with torch.no_grad(), model.trace(ids()):
        found = model.layers[1].resid_post.save()
        same = model.base_model.model.model.layers[1].output.save()
    assert torch.equal(found, same[0] if isinstance(same, tuple) else same)


# --- two stacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "t5-gated", "bart"])
def test_encoder_and_decoder_each_have_their_layers(family):
    module = module_of(family, "eager")
    model = LanguageModel(module)
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected = module(**given(module), **options)
        with model.trace(**given(module)):
            encoder = [(a.resid_pre, a.attn.pattern, a.resid_post) for a in model.encoder.layers]
            decoder = [
                (a.resid_pre, a.attn.pattern, a.cross_attn.pattern, a.resid_post)
                for a in model.decoder.layers
            ]
            encoder.save(), decoder.save()
    assert len(encoder) == 2 and len(decoder) == 3
    for index, (pre, pattern, post) in enumerate(encoder):
        assert torch.equal(pre, expected.encoder_hidden_states[index])
        assert torch.equal(pattern, expected.encoder_attentions[index])
        if index == 0 or family == "bart":
            assert torch.equal(post, expected.encoder_hidden_states[index + 1])
    for index, (pre, pattern, cross, _) in enumerate(decoder):
        assert torch.equal(pre, expected.decoder_hidden_states[index])
        assert torch.equal(pattern, expected.decoder_attentions[index])
        assert torch.equal(cross, expected.cross_attentions[index])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_write_in_the_decoder_is_that_of_a_hook(family):
    module = module_of(family)
    path = {"t5": "decoder.block.1.layer.1.EncDecAttention.o"}.get(
        family, "model.decoder.layers.1.encoder_attn.out_proj"
    )

    def head(m: nn.Module, args: Any) -> Any:
        merged = args[0].unflatten(-1, (4, -1)).clone()
        merged[:, :, 3] = 0
        return (merged.flatten(-2),)

    model = LanguageModel(module)
    with torch.no_grad():
        handle = module.get_submodule(path).register_forward_pre_hook(head)
        expected = module(**given(module)).logits
        handle.remove()
        with model.trace(**given(module)):
            model.decoder.layers[1].cross_attn.z[:, :, 3] = 0
            found = model.output.logits.save()
        assert not torch.equal(expected, module(**given(module)).logits)
    assert torch.equal(found, expected)
    assert model.encoder.layers[0] == model.get(
        f"{model.encoder.path[6:]}.{'block' if family == 't5' else 'layers'}.0"
    )


KNOWN = frozenset(FAMILIES)  # before other tests add families of their own


def test_every_family_of_the_table_is_made_in_these_tests():
    made = {zoo.model_type_of(name) for name in zoo.ZOO if zoo.is_there(name)}
    there = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES.keys()
    assert (KNOWN - zoo.PARTS) & there <= made
