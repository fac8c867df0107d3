"""Prompts with images, made into the arguments of one call by the model's own processor.

Where every invoke is text, one call of the processor lays out all of them, as it would for
`processor(text=[...], images=[...])`. Images have no rows: a prompt may have none, one or several.
What the processor makes of them goes to the model as it is, one prompt's after the other's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight.modeling import embeds, errors, prompts
from nnsight.modeling import inputs as reading
from nnsight.modeling.format import Format
from nnsight.modeling.keywords import merged
from nnsight.modeling.padding import Fields, join
from nnsight.modeling.sights import end_to_end
from nnsight.traces.model import Inputs

_OPTIONS = ("add_special_tokens", "truncation", "max_length")
_PLACES = ("image", "path", "url")
"""Under which of these a part of a chat's message holds its image."""


@dataclass(frozen=True)
class Seen:
    """One invoke whose prompts are text: each with its images."""

    texts: list[str]
    images: list[list[Any]]
    options: dict[str, Any]  # for the processor
    params: dict[str, Any]  # for the model


def plain(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs without their images, and with `text=` as the prompt that it is."""
    kwargs = {name: value for name, value in kwargs.items() if name not in _OURS}
    text = kwargs.pop("text", None)
    if text is not None and args:
        raise errors.given_twice("text")
    return (args if text is None else (text,)), kwargs


_OURS = ("images", "processor_kwargs")


def has_images(args: tuple[Any, ...], kwargs: Mapping[str, Any], rest: frozenset[str]) -> bool:
    """Whether there is anything to see: images, or what a processor made of them."""
    if kwargs.get("images") is not None or any(kwargs.get(name) is not None for name in rest):
        return True
    prompt = kwargs.get("text", args[0] if args else None)
    if prompts.is_encoding(prompt):
        return any(prompt.get(name) is not None for name in rest)
    if isinstance(prompt, str) or not isinstance(prompt, (list, tuple, Mapping)):
        return False
    return any(_images_in(atom) for atom in prompts.atoms(prompt))


def batch(
    given: Sequence[Inputs], format: Format, processor: Any, names: frozenset[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All invokes as the keywords of one call that a model without eyes would take, and the rest.

    The rest is what is made of images, and embeddings that go in beside ids.

    Args:
        given: what each invoke was given.
        format: how the model wants its tokens.
        processor: of the model; None if it has none.
        names: the inputs of the model that are made of images.

    Raises:
        ValueError: images and places for them in the text are not as many, the invokes do not fit
            together, or there is no processor.
    """
    seen = [read(invoke, format, processor, names) for invoke in given]
    texts = [one for one in seen if isinstance(one, Seen)]
    if len(texts) == len(seen) and all(one.options == texts[0].options for one in texts):
        seen = [_together(texts)]
    made = [_processed(one, format, processor) if isinstance(one, Seen) else one for one in seen]
    words, sights = zip(*(_apart(fields, names) for fields, _ in made), strict=True)
    params = merged([params for _, params in made])
    shown: dict[str, Any] = {**end_to_end(sights)}
    rows, replaced = embeds.with_placeholders(words, [bool(own) for own in sights], format)
    tokens = join(rows, format)
    if replaced:
        shown |= embeds.beside(replaced, rows, tokens, params, format)
    return {**tokens, **params}, shown


def read(
    given: Inputs, format: Format, processor: Any, names: frozenset[str]
) -> Seen | tuple[Fields, dict[str, Any]]:
    """One invoke: its texts and images, or, of one that is no text, its tensors and keywords."""
    (args, kwargs), images = plain(given.args, given.kwargs), given.kwargs.get("images")
    prompt = args[0] if args else None
    ready = prompt is None or prompts.is_encoding(prompt) or not prompts.has_text(prompt)
    if ready:
        if images is not None:
            raise errors.images_without_text()
        sights = {n: torch.as_tensor(kwargs.pop(n)) for n in names if kwargs.get(n) is not None}
        if isinstance(prompt, Mapping):
            args, kwargs = (), {**prompt, **kwargs}
            sights |= {n: torch.as_tensor(kwargs.pop(n)) for n in names if n in kwargs}
        _, fields = reading.batch([Inputs(args, kwargs)], format)
        tensors = {n: fields[n] for n in fields if _has_rows(n, fields)}
        return {**tensors, **sights}, {n: fields[n] for n in fields if n not in tensors}
    if processor is None:
        raise errors.no_processor()
    atoms = list(prompts.atoms(prompt))
    if not all(isinstance(atom, str) or _is_chat(atom) for atom in atoms):
        raise errors.images_beside_ids()
    texts = [atom if isinstance(atom, str) else _written_out(atom, processor) for atom in atoms]
    inside = [[] if isinstance(atom, str) else _images_in(atom) for atom in atoms]
    if any(inside) and images is not None:
        raise errors.given_twice("images")
    beside = _for_each(images, texts, processor) if images is not None else inside
    options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
    options |= given.kwargs.get("processor_kwargs") or {}
    if any(_is_chat(atom) for atom in atoms):
        options.setdefault("add_special_tokens", False)  # the template has written them
    return Seen(texts, beside, options, kwargs)


def _has_rows(name: str, fields: Mapping[str, Any]) -> bool:
    tokens = fields.get("input_ids", fields.get("inputs_embeds"))
    value = fields[name]
    if not isinstance(value, torch.Tensor) or tokens is None:
        return False
    return value.ndim > 0 and value.shape[0] == tokens.shape[0]


def _together(seen: list[Seen]) -> Seen:
    return Seen(
        [text for one in seen for text in one.texts],
        [images for one in seen for images in one.images],
        seen[0].options,
        merged([one.params for one in seen]),
    )


def _processed(seen: Seen, format: Format, processor: Any) -> tuple[Fields, dict[str, Any]]:
    images = seen.images if any(seen.images) else None
    if len(seen.texts) == 1 and images is not None:
        images = images[0]
    padding = {"padding": True, "padding_side": format.side} if len(seen.texts) > 1 else {}
    made = processor(text=seen.texts, images=images, return_tensors="pt", **padding, **seen.options)
    return {name: value for name, value in made.items() if torch.is_tensor(value)}, seen.params


def _apart(fields: Fields, names: frozenset[str]) -> tuple[Fields, Fields]:
    """The fields that run along the tokens, and those made of images."""
    sights = {name: fields[name] for name in fields if name in names}
    return {name: fields[name] for name in fields if name not in names}, sights


# --- images ----------------------------------------------------------------------------------


def _is_chat(atom: Any) -> bool:
    return isinstance(atom, (list, tuple)) and isinstance(atom[0], Mapping)


def _images_in(atom: Any) -> list[Any]:
    """The images in the messages of a chat."""
    if not _is_chat(atom):
        return []
    parts = [part for message in atom for part in _parts_of(message) if _is_image(part)]
    return [loaded(next(part[n] for n in _PLACES if part.get(n) is not None)) for part in parts]


def _parts_of(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def _is_image(part: Any) -> bool:
    if not isinstance(part, Mapping) or part.get("type") != "image":
        return False
    return any(part.get(name) is not None for name in _PLACES)


def loaded(image: Any) -> Any:
    """An image that is told by its path or address."""
    if not isinstance(image, str):
        return image
    from transformers.image_utils import load_image

    return load_image(image)


def _written_out(chat: Any, processor: Any) -> str:
    if not getattr(processor, "chat_template", None):
        raise errors.no_chat_template()
    answered = chat[-1]["role"] == "assistant"
    return processor.apply_chat_template(
        [dict(message) for message in chat],
        tokenize=False,
        add_generation_prompt=not answered,
        continue_final_message=answered,
    )


def _for_each(images: Any, texts: list[str], processor: Any) -> list[list[Any]]:
    """The images of each text.

    A list of lists has one for each text. Of a flat list each text takes as many as it has places
    for; a lone text takes all.
    """
    rows = listed(images)
    if any(isinstance(row, (list, tuple)) for row in rows):
        nested = [[loaded(image) for image in listed(row)] for row in rows]
        if len(nested) != len(texts):
            raise errors.images_for_prompts(len(nested), len(texts))
    else:
        flat = [loaded(image) for image in rows]
        nested = [flat] if len(texts) == 1 else _dealt_out(flat, _places(texts, processor))
    for number, (text, own) in enumerate(zip(texts, nested, strict=True)):
        (places,) = _places([text], processor) or (None,)
        if places is not None and places != len(own) and places + len(own) > 0:
            if places or len(texts) > 1 or _must_be_placed(processor):
                raise errors.image_places(number, places, len(own), _token(processor))
    return nested


def listed(images: Any) -> list[Any]:
    """`images` as a list: one image, or an array of several, are no list yet."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if getattr(images, "ndim", 3) == 4:
        return list(images)
    return [images]


def _token(processor: Any) -> str:
    token = getattr(processor, "image_token", None)
    return token if isinstance(token, str) else ""


def _places(texts: list[str], processor: Any) -> list[int]:
    """How many images each text has a place for; nothing if the processor has no word for one."""
    token = _token(processor)
    return [text.count(token) for text in texts] if token else []


def _must_be_placed(processor: Any) -> bool:
    """Whether a text without a place for its image is a mistake: some processors add one."""
    return not any(name in type(processor).__name__ for name in _PUT_IN_PLACE)


_PUT_IN_PLACE = ("PaliGemma", "Blip", "Kosmos", "Florence", "Git", "Pix2Struct", "Ovis")


def _dealt_out(images: list[Any], places: list[int]) -> list[list[Any]]:
    if not places or sum(places) != len(images):
        raise errors.images_for_prompts(len(images), len(places))
    left = iter(images)
    return [[next(left) for _ in range(count)] for count in places]
