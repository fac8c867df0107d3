"""`VisionLanguageModel`: a transformers model that reads text and looks at images."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from nnsight.modeling import errors, images
from nnsight.modeling import inputs as reading
from nnsight.modeling.format import Format, format_of
from nnsight.modeling.language import LanguageModel
from nnsight.modeling.sights import is_sight
from nnsight.traces.model import Inputs


class VisionLanguageModel(LanguageModel):
    """A model whose prompts may have images.

        model = VisionLanguageModel("llava-hf/llava-1.5-7b-hf", device_map="auto")
        with model.trace("USER: <image> What is this? ASSISTANT:", images=[image]):
            seen = model.model.multi_modal_projector.output.save()

    Beside every form of prompt that `LanguageModel` takes, a trace, an invoke and `generate` take
    `images=`: PIL images, arrays, tensors, paths or addresses; one, a list, or, for several
    prompts, a list for each. `text=` is another name for the prompt. A chat may hold its images:
    `{"type": "image", "image": image}`. What the processor returns goes in as it is.

    Invokes may have unlike many images, of unlike sizes where the model takes those. Each block
    sees its own rows, and in the modules that look at images its own images.

    Args:
        repo_id: a hub id, a folder (string or `Path`), a loaded module, or a config.
        processor: makes inputs of text and images, or the hub id or folder of one; the model's own
            if left out. A loaded module brings none along, so images need one here.
        tokenizer: for prompts without images; that of the processor if left out.
        automodel: the transformers class that builds the model, or its name.
        **options: as for `LanguageModel`.
    """

    _usual_task = "image-text-to-text"

    def __init__(
        self,
        repo_id: str | Path | torch.nn.Module | Any = None,
        *,
        processor: Any = None,
        tokenizer: Any = None,
        automodel: str | type = "AutoModelForImageTextToText",
        **options: Any,
    ) -> None:
        own = tokenizer is None and not isinstance(processor, (str, Path))
        tokenizer = getattr(processor, "tokenizer", None) if own else tokenizer
        super().__init__(repo_id, tokenizer=tokenizer, automodel=automodel, **options)
        self._processor = processor

    @property
    def processor(self) -> Any:
        """The processor, read when first asked for; None if the model came without one.

        Raises:
            LoadError: it cannot be read.
        """
        if self._processor is None or isinstance(self._processor, (str, Path)):
            self._processor = self._loader.processor(self._processor)
        return self._processor

    @property
    def _format(self) -> Format:
        if self._known_format is None or self._known_format.module is not self._module:
            found = format_of(self._module, self._tokenizer)
            self._known_format = dataclasses.replace(found, causal=not found.seq2seq)
        return self._known_format

    @functools.cached_property
    def _sights(self) -> frozenset[str]:
        """The inputs of the model that are made of images."""
        return frozenset(filter(is_sight, self._format.of("__call__").taken.names))

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        size = reading.count_rows(*images.plain(args, kwargs))
        if not size and kwargs.get("images") is not None:
            raise errors.images_without_text()
        return size

    def _batch(self, inputs: list[Inputs], fn: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self._sees(inputs):
            return super()._batch([Inputs(*images.plain(i.args, i.kwargs)) for i in inputs], fn)
        format = self._format.of(fn)
        kwargs, sights = images.batch(inputs, format, self._processor_for(inputs), self._sights)
        args, kwargs = super()._batch([Inputs((), kwargs)], fn)
        return args, {**kwargs, **sights}

    def _sees(self, inputs: list[Inputs]) -> bool:
        return any(images.has_images(i.args, i.kwargs, self._sights) for i in inputs)

    def _processor_for(self, inputs: list[Inputs]) -> Any:
        """The processor; an input that is tensors already needs none."""
        ready = all(not i.args and "text" not in i.kwargs for i in inputs)
        return None if ready else self.processor
