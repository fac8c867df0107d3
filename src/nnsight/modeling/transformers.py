"""`TransformersModel`: a transformers model of any task, with whatever it reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnsight.modeling import errors, images
from nnsight.modeling.format import Format, format_of
from nnsight.modeling.tasks import TASKS, task_of
from nnsight.modeling.vlm import VisionLanguageModel
from nnsight.remote.model_key import ModelKey
from nnsight.traces.model import Inputs

if TYPE_CHECKING:
    from typing_extensions import Self


class TransformersModel(VisionLanguageModel):
    """Any transformers model: of images, of sound, of text, of several of them.

        model = TransformersModel("google/vit-base-patch16-224")
        with model.trace(image):
            seen = model.vit.layers[5].output.save()

    A trace, an invoke and `generate` take text in every form that `LanguageModel` takes,
    `images=` (or images as they are), `audio=` with `sampling_rate=`, and tensors, by name or, of
    the model's main input, as they are.

    Args:
        repo_id: a hub id, a folder (string or `Path`), a loaded module, or a config.
        task: what the model is for, such as `"image-classification"`; it says which class builds
            it. Left out, it is the class that the model was saved from.
        automodel: that class, or its name; goes before `task`.
        processor: makes inputs of what the model reads, or the hub id or folder of one.
        tokenizer: for text; that of the processor if left out.
        image_processor: for images; that of the processor if left out.
        feature_extractor: for sound; that of the processor if left out.
        **options: as for `HuggingFaceModel`.

    Raises:
        ValueError: there is no such task.
    """

    def __init__(
        self,
        repo_id: str | Path | torch.nn.Module | Any = None,
        *,
        task: str | None = None,
        automodel: str | type | None = None,
        processor: Any = None,
        tokenizer: Any = None,
        image_processor: Any = None,
        feature_extractor: Any = None,
        **options: Any,
    ) -> None:
        if task is not None and task not in TASKS:
            raise errors.no_such_task(task, TASKS)
        automodel = TASKS.get(task or "") if automodel is None else automodel
        self._given_task = task
        self._parts = {"image_processor": image_processor, "feature_extractor": feature_extractor}
        super().__init__(
            repo_id,
            processor=processor,
            tokenizer=tokenizer,
            automodel=automodel,  # type: ignore[arg-type] # None: the class the config names
            **options,
        )

    @property
    def _task(self) -> str | None:
        return self._given_task or task_of(self._module)

    @classmethod
    def _of_key(cls, key: ModelKey, options: dict[str, Any]) -> Self:
        task = key.task if key.task in TASKS else None
        return super()._of_key(key, {"task": task, **options})

    @property
    def image_processor(self) -> Any:
        """What makes inputs of images; None if the model came without one."""
        return self._part("image_processor")

    @property
    def feature_extractor(self) -> Any:
        """What makes inputs of sound; None if the model came without one."""
        return self._part("feature_extractor")

    def _part(self, name: str) -> Any:
        """A part of the processor, or the processor where it is nothing but that part."""
        given = self._parts[name]
        if given is not None and not isinstance(given, (str, Path)):
            return given
        whole = self.processor if given is None else self._loader.processor(given)
        return getattr(whole, name, whole)

    @property
    def _format(self) -> Format:
        if self._known_format is None or self._known_format.module is not self._module:
            self._known_format = format_of(self._module, self._tokenizer)
        return self._known_format

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        args, kwargs = self._named(args, kwargs)
        if "text" not in kwargs and not args:
            for name in ("images", "audio"):
                if kwargs.get(name) is not None:
                    return len(_listed(name, kwargs[name]))
        return super()._batch_size(*args, **{n: v for n, v in kwargs.items() if n not in _SOUND})

    def _batch(self, inputs: list[Inputs], fn: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return super()._batch([self._made(one) for one in inputs], fn)

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict]:
        """The inputs, with what is known by its kind under its name."""
        kwargs = dict(kwargs)
        if len(args) == 1 and (name := self._name_of(args[0])) is not None:
            if kwargs.get(name) is not None:
                raise errors.given_twice(name)
            return (), {name: args[0], **kwargs}
        return args, kwargs

    def _name_of(self, value: Any) -> str | None:
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if hasattr(first, "getbands"):  # an image of Pillow
            return "images"
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return getattr(self._module, "main_input_name", "inputs_embeds")
        return None

    def _made(self, given: Inputs) -> Inputs:
        """One invoke, with what it shows or plays made into tensors."""
        args, kwargs = self._named(given.args, given.kwargs)
        options = kwargs.get("processor_kwargs") or {}
        if (sound := kwargs.pop("audio", None)) is not None:
            rate = {n: kwargs.pop(n) for n in ("sampling_rate",) if n in kwargs}
            made = self._through("feature_extractor", sound, {**rate, **options})
            taken = self._format.of("__call__").taken
            kwargs |= {name: tensor for name, tensor in made.items() if taken.takes(name)}
        silent = not args and "text" not in kwargs and "input_ids" not in kwargs
        if kwargs.get("images") is not None and silent:
            shown = [images.loaded(image) for image in _listed("images", kwargs.pop("images"))]
            kwargs |= self._through("image_processor", shown, options)
            kwargs.pop("processor_kwargs", None)
        return Inputs(args, kwargs)

    def _through(self, name: str, value: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        part = self._part(name)
        if part is None:
            raise errors.no_part(name)
        return dict(part(value, return_tensors="pt", **options))


_SOUND = ("audio", "sampling_rate")


def _listed(name: str, value: Any) -> list[Any]:
    """One image or sound, or several, as a list."""
    if name == "images":
        return images.listed(value)
    several = isinstance(value, (list, tuple)) and not isinstance(value[0], (int, float))
    return list(value) if several else [value]
