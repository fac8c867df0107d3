"""Models whose values have the tokens first and the rows of the batch behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tests.families import zoo
from torch import nn

from nnsight import LanguageModel, NNsight, TransformersModel, nested
from nnsight.modeling.options import transformers_version

LENGTHS = (5, 11, 7)
OLD = transformers_version() < (5, 0)
NEW = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@functools.cache
def xlnet() -> LanguageModel:
    return LanguageModel(zoo.build("xlnet"), tokenizer=zoo.tokenizer())


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 90, (length,), generator=generator).tolist() for length in lengths]


def bare(
    ids: list[int], change: Callable[[torch.Tensor], Any] = lambda hidden: None, layer: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's output, changed, and the logits, of one prompt without nnsight."""
    module, kept = xlnet()._module, []

    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        new = change(output[0])
        kept.append(output[0] if new is None else new)
        return (kept[-1], *output[1:])

    handle = module.transformer.layer[layer].register_forward_hook(hook)
    try:
        logits = module(input_ids=torch.tensor([ids])).logits
    finally:
        handle.remove()
    return kept[0], logits


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# as long as the batch, a multiple of it, neither, and of unequal lengths: padding is in front
@pytest.mark.parametrize("lengths", [(3, 3, 3), (6, 6, 6), (7, 7), (1, 1), (1, 1, 1), LENGTHS])
@torch.no_grad()
def test_a_block_sees_its_own_rows(lengths):
    model, seen = xlnet(), []
    with model.trace() as tracer:
        for ids in prompts(*lengths):
            with tracer.invoke(ids):
                attended = model.transformer.layer[1].rel_attn.output[0]
                hidden = model.transformer.layer[1].output[0]
                seen.append((hidden, attended, model.output.logits))
    for ids, (hidden, attended, logits) in zip(prompts(*lengths), seen, strict=True):
        alone, alone_logits = bare(ids)
        assert hidden.shape == attended.shape == (max(lengths), 1, 32)
        near(hidden[-len(ids) :], alone)
        near(logits[:, -len(ids) :], alone_logits)


@torch.no_grad()
def test_an_invoke_of_several_rows_sees_them_all():
    model, (first, second, third) = xlnet(), prompts(6, 6, 6)
    with model.trace() as tracer:
        with tracer.invoke(first):
            one = model.transformer.layer[1].output[0].save()
        with tracer.invoke([second, third]):
            two = model.transformer.layer[1].output[0].save()
    near(one, bare(first)[0])
    near(two, torch.cat([bare(second)[0], bare(third)[0]], dim=1))


@pytest.mark.parametrize("in_place", [True, False])
@torch.no_grad()
def test_what_a_block_changes_is_changed_in_its_rows_only(in_place):
    model, (first, second) = xlnet(), prompts(6, 6)
    with model.trace() as tracer:
        with tracer.invoke(first):
            plain = model.output.logits.save()
        with tracer.invoke(second):
            output = model.transformer.layer[1].output
            if in_place:
                output[0][2] = 0
            else:
                hidden = output[0].clone()
                hidden[2] = 0
                model.transformer.layer[1].output = (hidden, *output[1:])
            changed = model.output.logits.save()

    def without(hidden: torch.Tensor) -> None:
        hidden[2] = 0

    near(plain, bare(first)[1])
    near(changed, bare(second, without)[1])
    assert (changed - bare(second)[1]).abs().max() > 1e-2


def test_gradients_are_those_of_the_prompt_alone():
    model, found = xlnet(), []
    with model.trace() as tracer:
        for number, ids in enumerate(prompts(6, 6)):
            with tracer.invoke(ids):
                hidden = model.transformer.layer[1].output[0]
                if number:
                    hidden.retain_grad()
                    model.output.logits.logsumexp(-1).sum().backward(retain_graph=True)
                    found.append(hidden.grad)
                else:
                    with model.output.logits.logsumexp(-1).sum().backward(retain_graph=True):
                        found.append(hidden.grad)
    for ids, gradient in zip(prompts(6, 6), found, strict=True):
        hidden, logits = bare(ids, lambda hidden: hidden.retain_grad())
        logits.logsumexp(-1).sum().backward()
        near(gradient, hidden.grad)
    model._module.zero_grad()


@pytest.mark.parametrize("length", [1, 2, 6])
@pytest.mark.parametrize("everybody", [True, False])
@torch.no_grad()
def test_a_layer_is_skipped(length, everybody):
    model, (first, second) = xlnet(), prompts(length, length)

    def skipping(layer: Any, factor: float) -> None:
        hidden = layer.inputs[1]["output_h"] if "output_h" in layer.inputs[1] else layer.input
        layer.skip((hidden * factor, None))

    with model.trace() as tracer:
        with tracer.invoke(first):
            if everybody:
                skipping(model.transformer.layer[1], 2.0)
            one = model.output.logits.save()
        with tracer.invoke(second):
            skipping(model.transformer.layer[1], 3.0)
            two = model.output.logits.save()

    def alone(ids: list[int], factor: float) -> torch.Tensor:
        stream, _ = bare(ids, layer=0)
        return bare(ids, lambda hidden: stream * factor)[1]

    near(one, alone(first, 2.0) if everybody else bare(first)[1])
    near(two, alone(second, 3.0))


@torch.no_grad()
def test_each_step_of_a_generation():
    model, seen = xlnet(), []
    ids = prompts(6, 6)
    with model.generate(**NEW) as tracer:
        for one in ids:
            with tracer.invoke(one):
                steps = []
                for _ in tracer.iter[:]:
                    steps.append(model.transformer.layer[1].output)
                seen.append((steps, tracer.result))
    for one, (steps, tokens) in zip(ids, seen, strict=True):
        alone = []
        handle = model._module.transformer.layer[1].register_forward_hook(
            lambda _, args, output, alone=alone: alone.append(output)
        )
        wanted = model._module.generate(torch.tensor([one]), pad_token_id=2, **NEW)
        handle.remove()
        assert torch.equal(tokens, wanted) and len(steps) == len(alone) == 3
        for own, output in zip(steps, alone, strict=True):
            near(own[1], output[1])  # of the token that is predicted


class Recurrent(nn.Module):
    """As `nn.LSTM` has it: tokens first inside, rows first outside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x.transpose(0, 1))[0]).transpose(0, 1)


@pytest.mark.parametrize("tokens", [2, 4, 5])
@torch.no_grad()
def test_a_recurrent_layer(tokens):
    torch.manual_seed(0)
    module = Recurrent()
    model, x = NNsight(module), torch.randn(2, tokens, 4)
    seen = []
    with model.trace() as tracer:
        for row in x:
            with tracer.invoke(row[None]):
                output, state = model.lstm.output
                model.lstm.output = (output * 2, state)
                seen.append((output, state[0], model.output))
    for row, (output, last, out) in zip(x, seen, strict=True):
        wanted, (wanted_last, _) = module.lstm(row[:, None])
        near(output, wanted)
        near(last, wanted_last)
        near(out, module.head(wanted * 2).transpose(0, 1))


@torch.no_grad()
def test_where_the_model_cannot_be_run_again_its_length_says_it():
    """A function is not run twice: 7 is no size of anything, so what is as long is made of rows."""
    torch.manual_seed(0)
    module = Recurrent()
    model, x = NNsight(module), torch.randn(7, 20, 4)
    seen = []
    with model.trace(fn=lambda x: module(x)) as tracer:
        for row in x:
            with tracer.invoke(row[None]):
                seen.append(model.lstm.output[0])
    for row, output in zip(x, seen, strict=True):
        near(output, module.lstm(row[:, None])[0])


@torch.no_grad()
def test_longformer_reads_its_queries_with_the_tokens_first():
    from transformers import LongformerConfig, LongformerModel

    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        attention_window=4,
        max_position_embeddings=64,
    )
    module = LongformerModel(config).eval()
    model, ids = NNsight(module), torch.tensor(prompts(8, 8))
    queries, seen = [], []
    handle = module.encoder.layer[1].attention.self.query.register_forward_hook(
        lambda _, args, output: queries.append(output)
    )
    for row in ids:
        module(row[None])
    handle.remove()
    assert queries[0].shape == (8, 1, 32)
    with model.trace() as tracer:
        for row in ids:
            with tracer.invoke(row[None]):
                seen.append(model.encoder.layer[1].attention.self.query.output)
    for own, wanted in zip(seen, queries, strict=True):
        near(own, wanted)


# --- encoders with a decoder, and queries in front ------------------------------------------------


def outputs_of(cache: Any) -> dict[str, list[torch.Tensor]]:
    """The numbers that every module gave, at each of its calls."""
    return {
        path: [leaf for leaf in nested.leaves(entry.output) if leaf.is_floating_point()]
        for path, entry in cache.items()
    }


@torch.no_grad()
def check_each_invoke(model: Any, inputs: list[dict[str, torch.Tensor]]) -> int:
    """Hold every value of every module to that of the invoke alone; returns how many there were."""
    alone, together, compared = [], [], 0
    for given in inputs:
        with model.trace(**given) as tracer:
            seen = tracer.cache()
        alone.append(outputs_of(seen))
    with model.trace() as tracer:
        for given in inputs:
            with tracer.invoke(**given):
                together.append(tracer.cache())
    for wanted, cache in zip(alone, together, strict=True):
        found = outputs_of(cache)
        assert found.keys() == wanted.keys()
        for path in wanted:
            for one, other in zip(found[path], wanted[path], strict=True):
                assert one.shape == other.shape, path
                near(one, other)
                compared += 1
    return compared


@pytest.mark.parametrize(
    "name",
    ["led", pytest.param("fsmt", marks=pytest.mark.skipif(OLD, reason="it fails by itself"))],
)
@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (2, 2)])
def test_an_encoder_with_a_decoder(name, rows):
    config: Any = {
        **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size"), 96),
        **{f"{half}_layers": 2 for half in ("encoder", "decoder")},
        **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
        **{f"{half}_ffn_dim": 32 for half in ("encoder", "decoder")},
        "d_model": 16,
    }
    torch.manual_seed(0)
    if name == "led":
        longest = {f"max_{half}_position_embeddings": 64 for half in ("encoder", "decoder")}
        config = transformers.LEDConfig(**config, **longest, attention_window=[4, 4])
        module: Any = transformers.LEDForConditionalGeneration(config)
    else:
        config = transformers.FSMTConfig(**config, langs=["en", "de"], max_position_embeddings=64)
        module = transformers.FSMTForConditionalGeneration(config)
    ids = [torch.tensor(prompts(*[8] * count)) for count in rows]
    inputs = [{"input_ids": i, "decoder_input_ids": i[:, :3]} for i in ids]
    assert check_each_invoke(LanguageModel(module.eval()), inputs) > 100


@functools.cache
def mask2former() -> Any:
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32),
        **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 16),
        **dict.fromkeys(("encoder_layers", "decoder_layers", "num_attention_heads"), 2),
        num_queries=5,
        num_labels=3,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (2, 3)])  # the last as many as there are queries
@pytest.mark.parametrize("wrapped", [TransformersModel, NNsight])
def test_queries_in_front_of_images_and_a_module_that_runs_twice_with_other_shapes(wrapped, rows):
    pytest.importorskip("scipy")  # the model asks for it
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(count, 3, 64, 64, generator=generator) for count in rows]
    inputs = [{"pixel_values": image} for image in images]
    assert check_each_invoke(wrapped(mask2former()), inputs) > 400


@torch.no_grad()
def test_queries_of_one_image_are_left_out():
    pytest.importorskip("scipy")
    module, generator = mask2former(), torch.Generator().manual_seed(1)
    images = [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(2)]
    attention = module.model.transformer_module.decoder.layers[0].self_attn
    handle = attention.register_forward_hook(lambda m, args, out: (out[0] * 0, *out[1:]))
    wanted = [module(pixel_values=images[0]).class_queries_logits]
    handle.remove()
    wanted.append(module(pixel_values=images[1]).class_queries_logits)
    model, found = TransformersModel(module), []
    with model.trace() as tracer:
        for number, image in enumerate(images):
            with tracer.invoke(pixel_values=image):
                if number == 0:
                    model.model.transformer_module.decoder.layers[0].self_attn.output[0][:] = 0
                found.append(model.output.class_queries_logits)
    for own, alone in zip(found, wanted, strict=True):
        near(own, alone)
    assert not torch.allclose(wanted[0], module(pixel_values=images[0]).class_queries_logits)
