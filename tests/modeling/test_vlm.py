"""Prompts with images: every form, and each of a batch as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from nnsight import VisionLanguageModel, nested  # noqa: E402 # only where Pillow is
from nnsight.toolbox import tiny  # noqa: E402

OLD = transformers.__version__.startswith("4.")
PLACES = {
    "llava": "<image>",
    "qwen2": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2.5": "<|vision_start|><|image_pad|><|vision_end|>",
}
BUILD = {
    "llava": tiny.llava,
    "qwen2": lambda: tiny.qwen_vl("2"),
    "qwen2.5": lambda: tiny.qwen_vl("2.5"),
}


def image(width: int, height: int, seed: int) -> Any:
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGES = [image(56, 84, 0), image(56, 56, 1), image(112, 84, 2)]


class Case:
    """One family with prompts that have one, two and no images."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.module, self.processor = BUILD[family]()
        self.model = VisionLanguageModel(self.module, processor=self.processor)
        place = PLACES[family]
        self.prompts = [f"{place} What is this?", f"Is {place} like {place}, or not?", "No picture"]
        self.images = [[IMAGES[0]], [IMAGES[1], IMAGES[2]], None]

    @property
    def eye(self) -> Any:
        return self.eyes[0] if self.family == "llava" else self.model.model.visual.blocks[0]

    @property
    def eyes(self) -> Any:
        """The layers of LLaVA's tower, which transformers 4 has one module deeper."""
        tower = self.model.model.vision_tower
        return (tower.vision_model if OLD else tower).encoder.layers

    @property
    def projector(self) -> Any:
        inner = self.model.model
        return inner.multi_modal_projector if self.family == "llava" else inner.visual.merger

    def bare(self, number: int) -> dict[str, torch.Tensor]:
        prompt, images = [self.prompts[number]], self.images[number]
        return self.processor(text=prompt, images=images, return_tensors="pt")


_cases: dict[str, Case] = {}


@pytest.fixture(params=sorted(BUILD))
def case(request: pytest.FixtureRequest) -> Case:
    if request.param not in _cases:
        _cases[request.param] = Case(request.param)
    return _cases[request.param]


@pytest.fixture
def llava() -> Case:
    return _cases.setdefault("llava", Case("llava"))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def seen(layer: Any) -> torch.Tensor:
    """What a layer of an eye puts out; in transformers 4 that of CLIP has it first in a tuple."""
    output = layer.output
    return output[0] if isinstance(output, tuple) else output


def show(layer: Any, new: torch.Tensor) -> None:
    """Let a layer of an eye put out `new`."""
    output = layer.output
    layer.output = (new, *output[1:]) if isinstance(output, tuple) else new


def logits_of(case: Case, *args: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad(), case.model.trace(*args, **kwargs):
        logits = case.model.output.logits.save()
    return logits


# --- one prompt -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(3))
def test_a_prompt_alone_gives_what_the_bare_model_gives(case: Case, number: int):
    with torch.no_grad():
        expected = case.module(**case.bare(number)).logits
    assert torch.equal(logits_of(case, case.prompts[number], images=case.images[number]), expected)


def test_every_form_of_a_prompt_gives_the_same(case: Case):
    prompt, picture = case.prompts[0], IMAGES[0]
    expected = logits_of(case, prompt, images=[picture])
    array = np.asarray(picture)
    for form in (picture, [picture], [[picture]], array, [array], array[None]):
        assert torch.equal(logits_of(case, prompt, images=form), expected)
    assert torch.equal(logits_of(case, [prompt], images=[picture]), expected)
    assert torch.equal(logits_of(case, text=prompt, images=picture), expected)
    assert torch.equal(logits_of(case, case.bare(0)), expected)
    assert torch.equal(logits_of(case, **case.bare(0)), expected)


def test_a_chat_holds_its_images(llava: Case):
    text = {"type": "text", "text": "What is this?"}
    chat = [{"role": "user", "content": [{"type": "image", "image": IMAGES[0]}, text]}]
    written = llava.processor.apply_chat_template(chat, add_generation_prompt=True)
    assert "<image>" in written
    expected = logits_of(llava, written, images=IMAGES[0])
    assert torch.equal(logits_of(llava, chat), expected)
    with torch.no_grad(), llava.model.trace() as tracer:
        with tracer.invoke(chat):
            first = llava.model.output.logits.save()
        with tracer.invoke(llava.prompts[1], images=llava.images[1]):
            second = llava.model.output.logits.save()
    close(first[:, -expected.shape[1] :], expected)
    alone = logits_of(llava, llava.prompts[1], images=llava.images[1])
    close(second[:, -alone.shape[1] :], alone)


def test_images_by_their_path(llava: Case, tmp_path):
    IMAGES[0].save(tmp_path / "one.png")
    expected = logits_of(llava, llava.prompts[0], images=IMAGES[0])
    assert torch.equal(
        logits_of(llava, llava.prompts[0], images=str(tmp_path / "one.png")), expected
    )


def test_an_edit_of_what_is_seen_is_in_force_in_every_layer(llava: Case):
    """transformers takes the last layer's states by a hook of its own."""
    plain = logits_of(llava, llava.prompts[0], images=IMAGES[0])
    for layer in llava.eyes:
        with torch.no_grad(), llava.model.trace(llava.prompts[0], images=IMAGES[0]):
            show(layer, torch.ones_like(seen(layer)))
            assigned = llava.model.output.logits.save()
        with torch.no_grad(), llava.model.trace(llava.prompts[0], images=IMAGES[0]):
            seen(layer)[:] = 1
            in_place = llava.model.output.logits.save()
        assert (assigned - plain).abs().max() > 1e-3
        assert torch.equal(assigned, in_place)


# --- several prompts --------------------------------------------------------------------------

ORDERS = [(0, 1, 2), (2, 1), (1, 0), (0, 0), (2, 2), (1,)]


def seen_alone(case: Case, number: int) -> tuple[Any, ...]:
    eye = projected = None
    with torch.no_grad(), case.model.trace(case.prompts[number], images=case.images[number]):
        if case.images[number]:
            eye, projected = seen(case.eye).save(), case.projector.output.save()
        logits = case.model.output.logits.save()
    return eye, projected, logits


@pytest.mark.parametrize("order", ORDERS)
def test_each_prompt_of_a_batch_sees_its_own(case: Case, order: tuple[int, ...]):
    """Unlike many images of unlike sizes: in the eyes, in what is made of them, in the logits."""
    got: list[Any] = []
    with torch.no_grad(), case.model.trace() as tracer:
        for number in order:
            with tracer.invoke(case.prompts[number], images=case.images[number]):
                eye = seen(case.eye) if any(case.images[n] for n in order) else None
                projected = case.projector.output if eye is not None else None
                got.append((eye, projected, case.model.output.logits))
    for number, (eye, projected, logits) in zip(order, got, strict=True):
        expected = seen_alone(case, number)
        if case.images[number]:
            close(eye, expected[0])
            close(
                torch.cat(list(nested.leaves(projected))), torch.cat([*nested.leaves(expected[1])])
            )
        elif eye is not None:
            assert eye.shape[0] == 0
        close(logits[:, -expected[2].shape[1] :], expected[2])


def test_an_edit_in_the_eyes_is_that_of_the_prompt_alone(case: Case):
    with torch.no_grad(), case.model.trace(case.prompts[1], images=case.images[1]):
        show(case.eye, seen(case.eye) * 2)
        expected = case.model.output.logits.save()
    for in_place in (False, True):
        with torch.no_grad(), case.model.trace() as tracer:
            with tracer.invoke(case.prompts[0], images=case.images[0]):
                untouched = case.model.output.logits.save()
            with tracer.invoke(case.prompts[1], images=case.images[1]):
                if in_place:
                    seen(case.eye)[:] *= 2
                else:
                    show(case.eye, seen(case.eye) * 2)
                edited = case.model.output.logits.save()
        close(edited[:, -expected.shape[1] :], expected)
        plain = seen_alone(case, 0)[2]
        close(untouched[:, -plain.shape[1] :], plain)


def test_the_gradient_of_what_is_seen_is_that_of_the_prompt_alone(case: Case):
    def alone(number: int) -> torch.Tensor:
        with case.model.trace(case.prompts[number], images=case.images[number]):
            eye = seen(case.eye)
            eye.requires_grad_()
            with case.model.output.logits[:, -1].logsumexp(-1).sum().backward():
                gradient = eye.grad.save()
        return gradient

    gradients: list[Any] = []
    with case.model.trace() as tracer:
        for number in (0, 1):
            with tracer.invoke(case.prompts[number], images=case.images[number]):
                eye = seen(case.eye)
                with case.model.output.logits[:, -1].logsumexp(-1).sum().backward():
                    gradients.append(eye.grad)
    for number, gradient in enumerate(gradients):
        close(gradient, alone(number))


def test_several_prompts_in_one_invoke(case: Case):
    nested_images = [images or [] for images in case.images]
    flat = [picture for images in nested_images for picture in images]
    for images in (nested_images, flat):
        logits = logits_of(case, case.prompts, images=images)
        for number, row in enumerate(logits):
            expected = seen_alone(case, number)[2][0]
            close(row[-len(expected) :], expected)


def test_tensors_and_text_in_one_batch(case: Case):
    with torch.no_grad(), case.model.trace() as tracer:
        with tracer.invoke(**case.bare(1)):
            first = case.model.output.logits.save()
        with tracer.invoke(case.prompts[0], images=case.images[0]):
            second = case.model.output.logits.save()
    for number, logits in ((1, first), (0, second)):
        expected = seen_alone(case, number)[2]
        close(logits[:, -expected.shape[1] :], expected)


# --- generation -------------------------------------------------------------------------------


def test_generation(case: Case):
    settings = {"max_new_tokens": 3, "do_sample": False}
    alone = []
    for number in range(3):
        expected = case.module.generate(**case.bare(number), **settings)
        made = case.model.generate(case.prompts[number], images=case.images[number], **settings)
        assert torch.equal(made, expected)
        alone.append(made[0, -3:])
    chosen: list[Any] = []
    with case.model.generate(**settings) as tracer:
        for number in range(3):
            with tracer.invoke(case.prompts[number], images=case.images[number]):
                steps = []
                for _step in tracer.iter[:]:
                    steps.append(case.model.lm_head.output[0, -1].argmax())
                chosen.append(torch.stack(steps))
    for expected, steps in zip(alone, chosen, strict=True):
        assert torch.equal(steps, expected)


# --- loading and mistakes -----------------------------------------------------------------------


def test_a_folder_with_its_processor(llava: Case, tmp_path):
    llava.module.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    model = VisionLanguageModel(tmp_path)
    assert not model.dispatched
    with torch.no_grad(), model.trace(llava.prompts[0], images=IMAGES[0]):
        logits = model.output.logits.save()
    assert model.dispatched and model.tokenizer is not None
    close(logits, logits_of(llava, llava.prompts[0], images=IMAGES[0]))


def test_from_a_config_it_is_a_skeleton_first(case: Case):
    model = VisionLanguageModel(case.module.config, processor=case.processor)
    assert model.device is not None and model.device.type == "meta"
    with torch.no_grad(), model.trace(case.prompts[0], images=case.images[0]):
        logits = model.output.logits.save()
    assert logits.device.type == "cpu"


def test_more_images_than_places(llava: Case):
    with pytest.raises(ValueError, match=r"Prompt 0 has 1 place\(s\).*2 image"):
        logits_of(llava, llava.prompts[0], images=IMAGES[:2])


def test_an_image_without_a_place(llava: Case):
    with pytest.raises(ValueError, match=r"Prompt 0 has 0 place\(s\)"):
        logits_of(llava, "no place", images=IMAGES[0])


def test_images_without_a_text(llava: Case):
    with pytest.raises(ValueError, match="images without a text"):
        logits_of(llava, images=IMAGES[0])
    with pytest.raises(ValueError, match="images without a text"):
        logits_of(llava, [1, 2, 3], images=IMAGES[0])


def test_images_of_which_it_is_not_known_whose_they_are(llava: Case):
    with pytest.raises(ValueError, match="It cannot be told"):
        logits_of(llava, llava.prompts[:2], images=IMAGES[:1])
    with pytest.raises(ValueError, match="It cannot be told"):
        logits_of(llava, llava.prompts[:2], images=[IMAGES[:1]])


def test_a_model_without_a_processor(llava: Case):
    model = VisionLanguageModel(llava.module)
    with pytest.raises(ValueError, match="no processor to read them with"):
        with model.trace(llava.prompts[0], images=IMAGES[0]):
            pass


def test_a_folder_without_a_processor(llava: Case, tmp_path):
    llava.module.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"processor of .* could not be loaded"):
        _ = VisionLanguageModel(tmp_path).processor


def test_ready_tensors_of_unequal_sizes(llava: Case):
    one, other = llava.bare(0), dict(llava.bare(0))
    other["pixel_values"] = torch.zeros(1, 3, 42, 42)
    with pytest.raises(ValueError, match="their images differ in size"):
        with llava.model.trace() as tracer:
            with tracer.invoke(**one):
                pass
            with tracer.invoke(**other):
                pass
