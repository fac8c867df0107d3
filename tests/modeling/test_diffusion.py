"""Pipelines of diffusers: steps, the rows of guidance, seeds; each prompt as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from nnsight import DiffusionModel  # only where diffusers is
from nnsight.toolbox import tiny

STEPS = 2
PLAIN: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "pt"}
FLUX: dict[str, Any] = {**PLAIN, "height": 8, "width": 8, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny.stable_diffusion()


@pytest.fixture
def model(pipeline: Any) -> DiffusionModel:
    return DiffusionModel(pipeline)


@pytest.fixture(scope="module")
def flux() -> DiffusionModel:
    return DiffusionModel(tiny.flux())


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


# --- one prompt -------------------------------------------------------------------------------


def test_images_are_those_of_the_bare_pipeline(model: DiffusionModel, pipeline: Any):
    expected = pipeline("a cat", generator=noise(3), **PLAIN).images
    assert torch.equal(model.generate("a cat", seed=3, **PLAIN).images, expected)
    assert torch.equal(model.generate(prompt="a cat", seed=3, **PLAIN).images, expected)
    assert torch.equal(model.generate("a cat", generator=noise(3), **PLAIN).images, expected)
    with model.generate("a cat", seed=3, **PLAIN) as tracer:
        images = tracer.result.images.save()
    assert torch.equal(images, expected)


def test_a_seed_for_several_images(model: DiffusionModel, pipeline: Any):
    several = {"num_images_per_prompt": 2, **PLAIN}
    expected = pipeline(["a cat", "a dog"], generator=noise(3), **several).images
    close(model.generate(["a cat", "a dog"], seed=3, **several).images, expected)


def test_without_a_seed_it_is_torch_that_is_asked(model: DiffusionModel, pipeline: Any):
    torch.manual_seed(4)
    expected = pipeline("a cat", **PLAIN).images
    torch.manual_seed(4)
    assert torch.equal(model.generate("a cat", **PLAIN).images, expected)


def test_a_trace_is_one_step(model: DiffusionModel):
    noises: list[Any] = []
    with model.trace("a cat", seed=1) as tracer:
        for _ in tracer.iter[:]:
            noises.append(model.unet.output[0])
    assert len(noises) == 1 and noises[0].shape == (2, 4, 8, 8)
    with model.trace("a cat", seed=1, num_inference_steps=3) as tracer:
        for _ in tracer.iter[:]:
            noises.append(model.unet.output[0])
    assert len(noises) == 4


def test_steps(model: DiffusionModel, pipeline: Any):
    """Every step, against a hook on the bare module."""
    expected: list[torch.Tensor] = []
    handle = pipeline.unet.register_forward_hook(lambda m, a, out: expected.append(out[0].clone()))
    images = pipeline("a cat", generator=noise(3), **PLAIN).images
    handle.remove()
    got: list[Any] = []
    with model.generate("a cat", seed=3, **PLAIN) as tracer:
        for _ in tracer.iter[:STEPS]:
            got.append(model.unet.output[0].clone())
        decoded = model.vae.decoder.output.save()
    assert len(got) == STEPS
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal((decoded / 2 + 0.5).clamp(0, 1), images)


def test_an_edit_in_one_step(model: DiffusionModel, pipeline: Any):
    calls = 0

    def hook(module: Any, args: Any, out: Any) -> Any:
        nonlocal calls
        calls += 1
        return out * 2 if calls == 2 else None

    handle = pipeline.unet.mid_block.register_forward_hook(hook)
    expected = pipeline("a cat", generator=noise(3), **PLAIN).images
    handle.remove()
    with model.generate("a cat", seed=3, **PLAIN) as tracer:
        for _ in tracer.iter[1]:
            model.unet.mid_block.output = model.unet.mid_block.output * 2
        images = tracer.result.images.save()
    assert torch.equal(images, expected)


# --- several invokes --------------------------------------------------------------------------

PROMPTS: list[Any] = ["a cat", ["the dog", "a tower in Paris"], "where"]
SEEDS = [3, 5, 7]
SETTINGS = {
    "guided": {},
    "unguided": {"guidance_scale": 1.0},
    "two images each": {"num_images_per_prompt": 2},
}


def seen(model: DiffusionModel, tracer: Any) -> list[Any]:
    """What one invoke sees of the text, in the first step, in the second, and in the end."""
    values = [model.text_encoder.output[0].clone()]
    for _ in tracer.iter[:STEPS]:
        values.append(model.unet.input.clone())
        values.append(model.unet.mid_block.attentions[0].transformer_blocks[0].output.clone())
        values.append(model.unet.output[0].clone())
    values.append(model.vae.decoder.output)
    values.append(tracer.result.images)
    return values


@pytest.mark.parametrize("setting", ["guided", "unguided", "two images each"])
def test_each_invoke_sees_its_own(model: DiffusionModel, setting: str):
    settings = {**PLAIN, **SETTINGS[setting]}
    alone: list[Any] = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        with model.generate(prompt, seed=seed, **settings) as tracer:
            alone.append(seen(model, tracer))
    together: list[Any] = []
    with model.generate(**settings) as tracer:
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
            with tracer.invoke(prompt, seed=seed):
                together.append(seen(model, tracer))
    for own, expected in zip(together, alone, strict=True):
        for one, other in zip(own, expected, strict=True):
            close(one, other)


@pytest.mark.parametrize("number, setting", [(0, "guided"), (1, "guided"), (1, "two images each")])
@pytest.mark.parametrize("way", ["assigned", "in place", "skipped"])
def test_an_edit_is_that_of_the_invoke_alone(
    model: DiffusionModel, number: int, setting: str, way: str
):
    settings = {**PLAIN, **SETTINGS[setting]}

    def change(tracer: Any) -> None:
        for _ in tracer.iter[:STEPS]:
            if way == "assigned":
                model.unet.mid_block.output = model.unet.mid_block.output * 2
            elif way == "in place":
                model.unet.mid_block.output[:] *= 2
            else:
                model.unet.mid_block.skip(model.unet.mid_block.input * 0.5)

    with model.generate(PROMPTS[number], seed=SEEDS[number], **settings) as tracer:
        change(tracer)
        expected = tracer.result.images.save()
    results: list[Any] = []
    with model.generate(**settings) as tracer:
        for other in (0, 1):
            with tracer.invoke(PROMPTS[other], seed=SEEDS[other]):
                if other == number:
                    change(tracer)
                results.append(tracer.result.images)
    close(results[number], expected)
    other = 1 - number
    close(results[other], model.generate(PROMPTS[other], seed=SEEDS[other], **settings).images)


def test_all_invokes_skip(model: DiffusionModel):
    def change() -> None:
        model.unet.mid_block.skip(model.unet.mid_block.input * 0.5)

    together: list[Any] = []
    with model.trace(output_type="pt") as tracer:
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
            with tracer.invoke(prompt, seed=seed):
                change()
                together.append(tracer.result.images)
    for prompt, seed, images in zip(PROMPTS, SEEDS, together, strict=True):
        with model.trace(prompt, seed=seed, output_type="pt") as tracer:
            change()
            expected = tracer.result.images.save()
        close(images, expected)


def test_negative_prompts_where_they_are_given(model: DiffusionModel):
    results: list[Any] = []
    with model.generate(**PLAIN) as tracer:
        with tracer.invoke("a cat", seed=1, negative_prompt="a dog"):
            results.append(tracer.result.images)
        with tracer.invoke("a mat", seed=2):
            results.append(tracer.result.images)
    close(results[0], model.generate("a cat", seed=1, negative_prompt="a dog", **PLAIN).images)
    close(results[1], model.generate("a mat", seed=2, **PLAIN).images)


def test_images_of_pillow_are_each_invokes_own(model: DiffusionModel):
    results: list[Any] = []
    with model.trace() as tracer:
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
            with tracer.invoke(prompt, seed=seed):
                results.append(tracer.result.images)
    assert [len(images) for images in results] == [1, 2, 1]
    assert results[0][0].size == (16, 16)


def test_seeds_for_some(model: DiffusionModel):
    results: list[Any] = []
    with model.generate(**PLAIN) as tracer:
        with tracer.invoke("a cat"):
            results.append(tracer.result.images)
        with tracer.invoke("a cat", seed=3):
            results.append(tracer.result.images)
    close(results[1], model.generate("a cat", seed=3, **PLAIN).images)
    assert (results[0] - results[1]).abs().max() > 0.01


def test_a_transformer_that_takes_no_guidance(flux: DiffusionModel):
    alone: list[Any] = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        with flux.generate(prompt, seed=seed, **FLUX) as tracer:
            for _ in tracer.iter[:STEPS]:
                alone.append(flux.transformer.transformer_blocks[0].output[1].clone())
            alone.append(tracer.result.images)
    together: list[Any] = []
    with flux.generate(**FLUX) as tracer:
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
            with tracer.invoke(prompt, seed=seed):
                for _ in tracer.iter[:STEPS]:
                    together.append(flux.transformer.transformer_blocks[0].output[1].clone())
                together.append(tracer.result.images)
    assert len(together) == len(alone) == 9
    key = lambda value: (value.shape, value.flatten()[0].item())  # noqa: E731 # blocks alternate
    for own, expected in zip(sorted(together, key=key), sorted(alone, key=key), strict=True):
        close(own, expected)


# --- loading and mistakes -----------------------------------------------------------------------


def test_a_folder_is_a_skeleton_until_it_runs(model: DiffusionModel, pipeline: Any, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionModel(tmp_path)
    assert not loaded.dispatched
    assert loaded.device is not None and loaded.device.type == "meta"
    assert [n for n, _ in loaded._module.named_modules()] == [
        n for n, _ in DiffusionModel(pipeline)._module.named_modules()
    ]
    unet = loaded.unet
    with loaded.generate("a cat", seed=3, **PLAIN) as tracer:
        images = tracer.result.images.save()
    assert loaded.dispatched and loaded.unet is unet
    close(images, model.generate("a cat", seed=3, **PLAIN).images)


def test_a_folder_that_holds_no_pipeline(tmp_path):
    with pytest.raises(OSError, match=r"pipeline of .* could not be loaded"):
        DiffusionModel(tmp_path)


def test_what_is_no_pipeline():
    with pytest.raises(TypeError, match="opens a pipeline of diffusers"):
        DiffusionModel(torch.nn.Linear(2, 2))


def test_prompts_and_embeddings_do_not_mix(model: DiffusionModel):
    with pytest.raises(ValueError, match="Can't batch these invokes: `prompt` is given by"):
        with model.trace() as tracer:
            with tracer.invoke("a cat"):
                pass
            with tracer.invoke(prompt_embeds=torch.zeros(1, 16, 32)):
                pass


def test_other_settings_are_shared(model: DiffusionModel):
    with pytest.raises(ValueError, match="`guidance_scale` is"):
        with model.trace() as tracer:
            with tracer.invoke("a cat", guidance_scale=2.0):
                pass
            with tracer.invoke("a dog", guidance_scale=3.0):
                pass


def test_seeds_are_as_many_as_prompts(model: DiffusionModel):
    with pytest.raises(ValueError, match="2 seed"):
        model.generate("a cat", seed=[1, 2], **PLAIN)


def test_nothing_to_generate_from(model: DiffusionModel):
    with pytest.raises(ValueError, match="needs a prompt"):
        model.generate(**PLAIN)
