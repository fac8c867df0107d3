"""`VisionLanguageModel`: a transformers model that reads text and looks at images."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from nnsight import nested
from nnsight.envoy.batch_axis import BatchAxis
from nnsight.interleave.batching import Batch
from nnsight.interleave.rows import Rows
from nnsight.modeling import errors, generation, images
from nnsight.modeling import inputs as reading
from nnsight.modeling.alone import Seeing
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

    def _rows_of(
        self, total: int, split: bool, call: functools.partial[Any], given: list[Inputs]
    ) -> Batch:
        batch = super()._rows_of(total, split, call, given)
        if not split or not self._sees(given) or not isinstance(batch.varies, BatchAxis):
            return batch
        invokes, start = [], 0
        for one in given:
            if size := self._batch_size(*one.args, **one.kwargs):
                invokes.append((Rows(start, size), functools.partial(self._alone, one, call)))
                start += size
        return Seeing(
            total,
            split,
            batch.varies,
            batch.lies,
            module=self._module,
            path=self._path,
            texts=_text_parts(self._module),
            invokes=invokes,
        )

    def _alone(self, given: Inputs, call: functools.partial[Any]) -> functools.partial[Any]:
        """The call that `call` would be, were there no other invoke than this one."""
        generates = call.func == getattr(self._module, generation.METHOD, None)
        args, own = self._batch([given], generation.METHOD if generates else "__call__")
        shared = {n: v for n, v in call.keywords.items() if nested.first_tensor(v) is None}
        args, own = self._place((args, own))
        alone = functools.partial(call.func, *args, **{**shared, **own})
        return generation.two_steps(alone) if generates else alone


def _text_parts(module: Any) -> tuple[str, ...]:
    """The paths of the modules that read text only: those around the words, and the head."""
    paths = {id(inner): path for path, inner in module.named_modules()}
    try:
        words, head = module.get_input_embeddings(), module.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # of two towers, such as CLIP
        return ()
    found = [paths.get(id(words), "").rpartition(".")[0], paths.get(id(head), "")]
    return tuple(path for path in found if path)
