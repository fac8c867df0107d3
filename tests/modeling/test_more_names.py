"""Standard names where a family keeps its parts otherwise: latents, gates, sound, images."""

# ruff: noqa: B018 -- a value is read by naming it
from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from nnsight import LanguageModel
from nnsight.modeling.errors import NoSuchName
from tests.families import zoo

ATTENTION = {"attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z", "attn.out"}
ROUTED = {"router.probs"}
LATENT = ATTENTION - {"attn.k", "attn.v"}
FAMILIES = {
    **dict.fromkeys(["gpt_bigcode", "xglm", "marian", "pegasus", "whisper", "clip"], ATTENTION),
    **dict.fromkeys(["siglip", "vit", "dinov2"], ATTENTION),
    **dict.fromkeys(["switch_transformers", "granitemoe", "qwen3_next"], ATTENTION | ROUTED),
    "deepseek_v2": LATENT | ROUTED,
    "deepseek_v3": LATENT,
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ids() -> torch.Tensor:
    return torch.randint(5, 96, (2, 7), generator=torch.Generator().manual_seed(3))


def model_of(family: str, **settings: Any) -> LanguageModel:
    module: Any = zoo.build(family)
    if settings:
        module.set_attn_implementation(**settings)
    return LanguageModel(module, automodel=zoo.ZOO[family][2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")  # of transformers about itself
def test_the_self_check_passes_and_nothing_is_left_out(family):
    report = model_of(family).check_names()
    found = {finding.name for finding in report.findings if finding.layers}
    assert found >= {*FAMILIES[family], "resid_pre", "resid_mid", "resid_post", "mlp.out"}
    assert ROUTED & found == ROUTED & FAMILIES[family]
    assert "not in the table" not in report.title


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_attention_over_a_latent_says_what_it_has_not(family):
    model = model_of(family)
    attention = model.model.layers[1].self_attn
    with model.trace(ids()):
        q = model.layers[1].attn.q.save()
        projected = attention.q_b_proj.output.save()
        k_rot = model.layers[1].attn.k_rot.save()
        z = model.layers[1].attn.z.save()
        mixed = attention.o_proj.input.save()
    assert torch.equal(q, projected.view(2, 7, 4, 12)) and k_rot.shape == (2, 7, 4, 12)
    assert torch.equal(z, mixed.view(2, 7, 4, 8))
    for name in ("k", "v"):
        with pytest.raises(NoSuchName, match=rf"no `model.layers\[1\].attn.{name}`.*a latent"):
            with model.trace(ids()):
                getattr(model.layers[1].attn, name)


def test_scores_that_are_no_probabilities():
    model = model_of("deepseek_v3")
    with pytest.raises(NoSuchName, match="each expert has a score of its own"):
        with model.trace(ids()):
            model.layers[1].router.probs


def test_queries_beside_their_gates():
    model = model_of("qwen3_next")
    with model.trace(ids()):
        q = model.layers[1].attn.q.save()
        both = model.model.layers[1].self_attn.q_proj.output.save()
    assert torch.equal(q, both.view(2, 7, 4, 24)[..., :12])


@pytest.mark.parametrize("family", ["xglm", "gpt_bigcode", "modernbert"])
@pytest.mark.filterwarnings("ignore:.*is changed or has a gradient")
def test_a_pattern_in_a_batch_is_that_of_the_prompt_alone(family):
    model = model_of(family)
    first, second = ids()[:1, :5], ids()[1:]
    with model.trace() as tracer:
        with tracer.invoke(first):
            model.layers[1].attn.q[:, :, 0] = 0
            own = model.layers[1].attn.pattern.save()
        with tracer.invoke(second):
            other = model.layers[1].attn.pattern.clone().save()
            model.layers[1].attn.pattern[:, 1] = 0
            z = model.layers[1].attn.z.save()
    with model.trace(first):
        model.layers[1].attn.q[:, :, 0] = 0
        own_alone = model.layers[1].attn.pattern.save()
    with model.trace(second):
        other_alone = model.layers[1].attn.pattern.save()
    left = family != "modernbert"  # where padding is
    own = own[..., -5:, -5:] if left else own[..., :5, :5]
    torch.testing.assert_close(own, own_alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other, other_alone, atol=1e-5, rtol=1e-4)
    assert not z[:, :, 1].any() and z[:, :, 0].any()


@pytest.mark.parametrize("family", ["vit", "clip", "whisper"])
def test_patterns_are_the_attentions_of_transformers(family):
    model = model_of(family, attn_implementation="eager")
    random = torch.Generator().manual_seed(1)
    given: dict[str, Any] = {"pixel_values": torch.randn(2, 3, 8, 8, generator=random)}
    if family == "clip":
        given["input_ids"] = ids()
        layers = model.vision_model.layers
    elif family == "whisper":
        sound = torch.randn(2, 8, 32, generator=random)
        given = {"input_features": sound, "decoder_input_ids": ids()}
        layers = model.decoder.layers
    else:
        layers = model.layers
    bare = model._module(**given, output_attentions=True, output_hidden_states=True)
    with model.trace(**given):
        pattern = layers[0].attn.pattern.save()
        if family == "whisper":
            cross = layers[0].cross_attn.pattern.save()
        post = layers[0].resid_post.save()
    of = bare.vision_model_output if family == "clip" else bare
    if family == "whisper":
        torch.testing.assert_close(pattern, bare.decoder_attentions[0])
        torch.testing.assert_close(cross, bare.cross_attentions[0])
        assert torch.equal(post, bare.decoder_hidden_states[1])
    else:
        torch.testing.assert_close(pattern, of.attentions[0])
        assert torch.equal(post, of.hidden_states[1])


def test_a_change_of_which_experts_are_chosen():
    model = model_of("granitemoe")
    wanted = torch.tensor([0.0, 0.6, 0.0, 0.4])
    with model.trace(ids()):
        before = model.layers[1].router.probs.save()
        model.layers[1].router.probs = wanted.expand(2, 7, 4)
        out = model.layers[1].mlp.out.save()
    assert before.shape == (2, 7, 4) and ((before > 0).sum(-1) == 2).all()
    torch.testing.assert_close(before.sum(-1), torch.ones(2, 7))

    logits = wanted.log().clamp(min=-30).expand(14, 4)
    router = model._module.model.layers[1].block_sparse_moe.router
    if hasattr(router, "layer"):  # transformers 4.57: a projection, and the rest behind it
        handle = router.layer.register_forward_hook(lambda *_: logits)
    else:
        values, chosen = wanted.expand(14, 4).topk(2)
        handle = router.register_forward_hook(lambda *_: (logits, values, chosen))
    try:
        with model.trace(ids()):
            raw = model.layers[1].mlp.out.save()
    finally:
        handle.remove()
    torch.testing.assert_close(out, raw)


@pytest.mark.parametrize("kind", ["GPT2", "Bert"])
def test_attention_to_an_encoder_that_is_given(kind):
    settings = {"vocab_size": 96, "bos_token_id": 0, "eos_token_id": 1, "add_cross_attention": True}
    if kind == "GPT2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **settings)
        module: Any = transformers.GPT2LMHeadModel(config).eval()
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        config = transformers.BertConfig(**sizes, num_hidden_layers=2, is_decoder=True, **settings)
        module = transformers.BertLMHeadModel(config).eval()
    torch.nn.init.normal_(module.get_input_embeddings().weight)
    model = LanguageModel(module)
    report = {finding.name: finding for finding in model.check_names().findings}
    assert report["cross_attn.pattern"].layers == report["cross_attn.v"].layers == 2
    assert report["resid_mid"].checks
    seen = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    with model.trace(input_ids=ids(), encoder_hidden_states=seen):
        k = model.layers[1].cross_attn.k.save()
        v = model.layers[1].cross_attn.v.save()
        pattern = model.layers[1].cross_attn.pattern.save()
    if kind == "GPT2":
        whole = module.transformer.h[1].crossattention.c_attn(seen)
        wanted_k, wanted_v = (part.view(2, 3, 4, 8) for part in whole.split(32, -1))
    else:
        own = module.bert.encoder.layer[1].crossattention.self
        wanted_k, wanted_v = (part(seen).view(2, 3, 4, 8) for part in (own.key, own.value))
    torch.testing.assert_close(k, wanted_k)
    torch.testing.assert_close(v, wanted_v)
    assert pattern.shape == (2, 4, 7, 3)


def test_one_that_nobody_told_of_with_more_in_its_queries_has_none(monkeypatch):
    from nnsight.modeling.architectures import FAMILIES as table

    monkeypatch.delitem(table, "qwen3_next")
    model = model_of("qwen3_next")
    with pytest.raises(NoSuchName, match="4 heads of width 12, by the config, is 96 wide"):
        with model.trace(ids()):
            model.layers[1].attn.q


# --- lines that only keep values ------------------------------------------------------------------


def test_names_that_are_only_kept_are_asked_for_in_any_order():
    model = model_of("gpt_bigcode")
    blocks = model._module.transformer.h
    with model.trace(ids()):
        last = model.layers[2].resid_post[:, -1].save()
        out = model.layers[0].attn.out.save()
        before = [layer.resid_pre for layer in model.layers].save()
        after = {i: layer.resid_post.clone() for i, layer in enumerate(model.layers)}.save()
    states = model._module(ids(), output_hidden_states=True).hidden_states
    assert all(map(torch.equal, before, states))
    assert torch.equal(after[0], states[1]) and torch.equal(after[1], states[2])
    assert torch.equal(last, after[2][:, -1])
    assert torch.equal(out, blocks[0].attn.c_proj(out_input(model)))


def out_input(model: LanguageModel) -> torch.Tensor:
    with model.trace(ids()):
        given = model.layers[0].attn.c_proj.input.save()
    return given


def test_a_change_between_names_that_are_kept():
    model = model_of("gpt_bigcode")
    with model.trace(ids()):
        first = model.layers[0].resid_post.clone().save()
        model.layers[1].resid_pre[:, 0] = 0
        kept = model.layers[1].resid_post
        kept[:, -1] = 1
        last = model.layers[2].resid_pre.save()

    def zero(_: Any, args: Any) -> None:
        args[0][:, 0] = 0

    block = model._module.transformer.h[1]
    handle = block.register_forward_pre_hook(zero)
    try:
        states = model._module(ids(), output_hidden_states=True).hidden_states
    finally:
        handle.remove()
    changed = states[2].clone()
    changed[:, -1] = 1
    assert torch.equal(last, changed)
    assert not torch.equal(first[:, 0], torch.zeros(2, 32))


def test_names_that_are_kept_in_steps_and_invokes():
    model = model_of("gpt_bigcode")
    alone = []
    for row in range(2):
        with model.trace(ids()[row : row + 1]):
            alone.append(model.layers[1].resid_post.save())
    with model.trace() as tracer:
        with tracer.invoke(ids()[:1]):
            one = model.layers[1].resid_post.save()
        with tracer.invoke(ids()[1:]):
            two = model.layers[1].resid_post.save()
    torch.testing.assert_close(torch.cat([one, two]), torch.cat(alone), atol=1e-5, rtol=1e-4)
    with model.generate(ids()[:1], max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
        steps = [].save()
        for _ in tracer.iter[:]:
            steps.append(model.layers[1].resid_post)
    assert [step.shape[1] for step in steps] == [7, 1, 1]
