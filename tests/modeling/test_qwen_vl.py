"""Qwen-VL, whose images of any size become as many tokens: its names, and prompts in one batch."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers

from nnsight import LanguageModel, VisionLanguageModel
from nnsight.modeling import architectures
from nnsight.modeling.options import transformers_version

IMAGE, START, END = 90, 92, 93
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": _ROPE,
    "rope_scaling": {**_ROPE, "type": "mrope"},
}
_EYES = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
_NEWER = {**_EYES, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}
VISION: dict[str, dict[str, Any]] = {
    "Qwen2VL": {**_EYES, "embed_dim": 16, "hidden_size": 32},
    "Qwen2_5_VL": {**_NEWER, "window_size": 16, "fullatt_block_indexes": [1]},
    "Qwen3VL": {**_NEWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
}


@functools.cache
def module_of(family: str) -> Any:
    torch.manual_seed(0)
    ids = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
    config = getattr(transformers, f"{family}Config")(
        text_config=_TEXT, vision_config=VISION[family], video_token_id=91, **ids
    )
    return getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()


def prompt(sizes: list[tuple[int, int]], words: int, seed: int) -> dict[str, torch.Tensor]:
    """What the processor would make of images of so many patches, and of some words."""
    random = torch.Generator().manual_seed(seed)
    ids = [i for h, w in sizes for i in (START, *[IMAGE] * (h * w // 4), END)]
    ids += torch.randint(3, 80, (words,), generator=random).tolist()
    made = {"input_ids": torch.tensor([ids])}
    if sizes:
        patches = sum(h * w for h, w in sizes)
        made["pixel_values"] = torch.randn(patches, 3 * 2 * 16, generator=random)
        made["image_grid_thw"] = torch.tensor([[1, h, w] for h, w in sizes])
    if transformers_version() >= (5, 0):
        made["mm_token_type_ids"] = (made["input_ids"] == IMAGE).long()
    return made


PROMPTS = [prompt([(4, 4)], 3, 1), prompt([(4, 8), (8, 4)], 5, 2), prompt([], 4, 3)]


@pytest.mark.parametrize("kind", [LanguageModel, VisionLanguageModel])
@pytest.mark.parametrize("family", VISION)
@torch.no_grad()
def test_each_prompt_of_a_batch_is_as_alone(family, kind):
    module, found = module_of(family), []
    model = kind(module)
    with model.trace() as tracer:
        for given in PROMPTS:
            with tracer.invoke(**given):
                seen = model.model.visual.merger.output if "pixel_values" in given else None
                found.append((seen, model.layers[1].resid_post, model.lm_head.output))
    for given, (seen, stream, logits) in zip(PROMPTS, found, strict=True):
        kept: dict[str, Any] = {}
        handles = [
            part.register_forward_hook(lambda m, a, out, n=name, k=kept: k.update({n: out}))
            for name, part in {
                "eyes": module.model.visual.merger,
                "layer": module.model.language_model.layers[1],
            }.items()
        ]
        expected = module(**given).logits
        for handle in handles:
            handle.remove()
        length = expected.shape[1]
        assert torch.allclose(logits[:, -length:], expected, atol=1e-4)
        layer = kept["layer"][0] if isinstance(kept["layer"], tuple) else kept["layer"]
        assert torch.allclose(stream[:, -length:], layer, atol=1e-4)
        assert seen is None or torch.allclose(seen, kept["eyes"], atol=1e-4)


@torch.no_grad()
def test_what_looks_at_images_is_changed_for_one_invoke():
    module = module_of("Qwen2VL")
    model, found = LanguageModel(module), []
    with model.trace() as tracer:
        for number, given in enumerate(PROMPTS):
            with tracer.invoke(**given):
                if number == 1:
                    model.model.visual.merger.output = model.model.visual.merger.output * 2
                found.append(model.output.logits)

    def double(merger: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out * 2

    for number, (given, logits) in enumerate(zip(PROMPTS, found, strict=True)):
        handle = module.model.visual.merger.register_forward_hook(double) if number == 1 else None
        expected = module(**given).logits
        if handle is not None:
            handle.remove()
        torch.testing.assert_close(logits[:, -expected.shape[1] :], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_prompts_with_images_are_generated_from_beside_one_without():
    module = module_of("Qwen2VL")
    model, found = LanguageModel(module), []
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with model.generate(**settings) as tracer:
        for given in PROMPTS:
            with tracer.invoke(**given):
                found.append(tracer.result[:, -3:])
    for given, tokens in zip(PROMPTS, found, strict=True):
        mask = torch.ones_like(given["input_ids"])
        alone = module.generate(**given, attention_mask=mask, **settings)
        assert torch.equal(tokens, alone[:, -3:])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("family", VISION)
def test_its_layers_are_those_that_read_text(family, known, monkeypatch):
    if not known:
        for name in [n for n in architectures.FAMILIES if n.startswith("qwen")]:
            monkeypatch.delitem(architectures.FAMILIES, name)
    module = module_of(family)
    model = VisionLanguageModel(module)
    assert model.layers[0]._module is module.model.language_model.layers[0]
    checked = {f.name: f.layers for f in model.check_names().findings}
    assert checked["resid_post"] == checked["attn.z"] == checked["attn.pattern"] == 2
    assert bool(checked["resid_mid"]) == known


@pytest.mark.parametrize("family", VISION)
@torch.no_grad()
def test_positions_are_the_models_own_in_every_class(family):
    """It places images by itself: positions of padding that are made for it would be wrong."""
    module = module_of(family)
    model = LanguageModel(module)
    prompts = PROMPTS[:2]
    more = {
        name: torch.cat([given[name] for given in prompts])
        for name in ("pixel_values", "image_grid_thw")
    }
    if "mm_token_type_ids" in prompts[0]:
        more["mm_token_type_ids"] = [given["mm_token_type_ids"][0].tolist() for given in prompts]
    with model.trace([given["input_ids"][0].tolist() for given in prompts], **more):
        logits = model.lm_head.output.save()
    for given, row in zip(prompts, logits, strict=True):
        expected = module(**given).logits[0]
        torch.testing.assert_close(row[-len(expected) :], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_pattern_is_that_of_the_prompt_alone_beside_other_images():
    model, orders = LanguageModel(module_of("Qwen2VL")), [(0, 1), (2, 1, 0), (1, 0, 2, 1)]
    alone = []
    for given in PROMPTS:
        with model.trace(**given):
            alone.append(model.layers[1].attn.pattern.save())
    for order in orders:
        with model.trace() as tracer:
            found = [].save()
            for number in order:
                with tracer.invoke(**PROMPTS[number]):
                    found.append(model.layers[1].attn.pattern)
        for number, pattern in zip(order, found, strict=True):
            length = alone[number].shape[-1]
            own = pattern[..., -length:, -length:]
            torch.testing.assert_close(own, alone[number], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_operation_in_the_eyes_is_changed_for_one_invoke():
    module = module_of("Qwen2VL")
    model, logits = LanguageModel(module), []
    for number, given in enumerate(PROMPTS):
        with model.trace(**given):
            if number == 1:
                model.model.visual.blocks[0].attn.source.self_qkv_0.output *= 2
            logits.append(model.output.logits.save())
    with model.trace() as tracer:
        found = [].save()
        for number, given in enumerate(PROMPTS):
            with tracer.invoke(**given):
                if number == 1:
                    model.model.visual.blocks[0].attn.source.self_qkv_0.output *= 2
                found.append(model.output.logits)
    for own, expected in zip(found, logits, strict=True):
        torch.testing.assert_close(own[:, -expected.shape[1] :], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.skipif(not hasattr(transformers, "Qwen3VLMoeConfig"), reason="it is not there")
def test_what_experts_are_sent_is_split_beside_other_images():
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = transformers.Qwen3VLMoeConfig(
        text_config={**_TEXT, **experts}, vision_config=VISION["Qwen3VL"], image_token_id=IMAGE
    )
    module = transformers.Qwen3VLMoeForConditionalGeneration(config).eval()
    model, alone = LanguageModel(module), []
    for given in PROMPTS:
        with model.trace(**given):
            probs = model.layers[1].router.probs.clone().save()
            model.layers[1].router.probs[..., 1] = 0.9
            alone.append((probs, model.output.logits.save()))
    with model.trace() as tracer:
        found = [].save()
        for given in PROMPTS:
            with tracer.invoke(**given):
                probs = model.layers[1].router.probs.clone()
                model.layers[1].router.probs[..., 1] = 0.9
                found.append((probs, model.output.logits))
    for own, expected in zip(found, alone, strict=True):
        for one, other in zip(own, expected, strict=True):
            length = other.shape[1]
            torch.testing.assert_close(one[:, -length:], other, atol=1e-4, rtol=1e-4)
