"""`DiffusionModel`: a whole pipeline of diffusers, its denoiser step by step."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import torch

from nnsight import nested
from nnsight.capture.callsite import is_entered
from nnsight.envoy.batch_axis import BatchAxis
from nnsight.envoy.handoff import Hook, new_key
from nnsight.interleave.batching import Batch
from nnsight.interleave.interleaver import Interleaver
from nnsight.modeling import captions, errors
from nnsight.modeling.guidance import Denoising, Guided
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.loading import Loader
from nnsight.modeling.pipeline import LoadedPipeline, Pipeline, PipelineCheckpoint
from nnsight.remote.model_key import DIFFUSION
from nnsight.traces.model import Inputs


class DiffusionModel(HuggingFaceModel):
    """A pipeline of diffusers: all of its modules, under the names that it has for them.

        model = DiffusionModel("stabilityai/stable-diffusion-2-1", device_map="auto")
        with model.generate("a cat", num_inference_steps=20, seed=0) as tracer:
            for step in tracer.iter[:]:
                noise = model.unet.output[0].save()

    A prompt is a string or a list of them, or goes in by name, as the pipeline takes it:
    `prompt=`, `negative_prompt=`, `prompt_embeds=`, `class_labels=`, ... What belongs to a prompt
    each invoke gives for its own; everything else is shared by all.

    A step is one call of the denoiser. With guidance the denoiser has two rows for an image: the
    first without the prompt, the second with it. Of several invokes each sees its own.

    Args:
        repo_id: a hub id, a folder (string or `Path`), or a loaded pipeline.
        automodel: the pipeline class of diffusers, or its name; the one that was saved if left out.
        **options: as for `HuggingFaceModel`; also parts of the pipeline, `scheduler=`, `vae=`, ...
    """

    _kind_on_servers = DIFFUSION

    def __init__(
        self,
        repo_id: str | Path | Any = None,
        *,
        automodel: str | type | None = None,
        **options: Any,
    ) -> None:
        super().__init__(repo_id, automodel=automodel, **options)  # type: ignore[arg-type] # None
        self._opened()

    @staticmethod
    def _open(source: Any, automodel: Any, config: Any, *place: Any, **options: Any) -> Loader:
        if isinstance(source, (str, Path)):
            return PipelineCheckpoint(source, automodel, place[0], **options)
        if isinstance(source, Pipeline) or hasattr(source, "components"):
            return LoadedPipeline(source)
        raise errors.not_a_pipeline(source)

    @property
    def pipeline(self) -> Any:
        """The pipeline of diffusers, with its scheduler and tokenizers; loads the weights."""
        self.dispatch()
        return self._module.pipeline

    @property
    def _denoiser(self) -> Any:
        return getattr(self._module, self._module.denoiser)  # type: ignore[arg-type] # a name

    def trace(self, *inputs: Any, fn: Any = None, trace: bool = True, **kwargs: Any) -> Any:
        """Run the pipeline with the block under this `with` beside it, for one step.

        Args:
            *inputs: a prompt, or a list of them; without one the block opens invokes.
            fn: what to run instead: the name of a method, or a callable.
            trace: False runs the pipeline at once and returns what it returns.
            **kwargs: what the pipeline takes, such as `guidance_scale=`; `num_inference_steps=` is
                1 if left out. `seed=` says from what noise the images of an invoke are made.

        Raises:
            ValueError: (when the block ends) the inputs of the invokes do not fit together.
        """
        return super().trace(*inputs, fn=fn, trace=trace, **kwargs)

    def generate(self, *inputs: Any, trace: bool | None = None, **kwargs: Any) -> Any:
        """Make images: at once, or beside a block under `with`.

            images = model.generate("a cat", num_inference_steps=20, seed=0).images

        Args:
            *inputs: a prompt, or a list of them; without one the block opens invokes.
            trace: whether to open a trace; left out, that is told from the `with`.
            **kwargs: what the pipeline takes; `num_inference_steps=` is the pipeline's own if left
                out. `seed=` says from what noise the images of an invoke are made.

        Returns:
            What the pipeline returns, with `.images`; in a `with` statement a context manager.
        """
        traced = is_entered() if trace is None else trace
        if not traced and not self._batch_size(*inputs, **kwargs):
            raise errors.nothing_to_draw()
        return super().trace(*inputs, fn="generate", trace=traced, **kwargs)

    # --- what a trace sees ------------------------------------------------------------------------

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The inputs by name: text is the prompt, anything else what the pipeline takes first."""
        given, *others = [*args, None]
        if len(others) > 1:
            raise errors.many_positional(len(args))
        if given is None:
            return kwargs
        first = given[0] if isinstance(given, (list, tuple)) and given else given
        name = "prompt" if isinstance(first, str) else self._first()
        if kwargs.get(name) is not None:
            raise errors.given_twice(name)
        return {name: given, **kwargs}

    def _first(self) -> str:
        """The name of the first input of the pipeline."""
        return next(iter(inspect.signature(self.pipeline.__call__).parameters), "prompt")

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        return captions.count(self._named(args, kwargs))

    def _batch(self, inputs: list[Inputs], fn: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs, generators = captions.batch([self._named(i.args, i.kwargs) for i in inputs])
        if any(generator is not None for generator in generators):
            kwargs["generator"] = captions.OfPrompts(generators)
        if fn == "__call__":
            kwargs.setdefault("num_inference_steps", 1)
        return (), kwargs

    def _clock(self, fn: str) -> torch.nn.Module | None:
        return self._denoiser

    def _enter(self, run: Interleaver, fn: str, call: functools.partial[Any]) -> None:
        if isinstance(run.batch, Guided):
            self._watch_denoiser(run, run.batch)
        # how often each module is called is another for each number of steps: count in every run
        super()._enter(run, "", call)

    def _batch_of(
        self, total: int, split: bool, call: functools.partial[Any], given: list[Inputs]
    ) -> Batch:
        if not split:
            return Batch(total)
        images = call.keywords.get("num_images_per_prompt") or 1
        path = f"{self._path}.{self._module.denoiser}"
        return Guided(total, split, path=self._path, images=images, denoising=Denoising(path))

    def _watch_denoiser(self, run: Interleaver, batch: Guided) -> None:
        """Take note of how many rows the denoiser is called with, before a block sees them."""
        module, key = self._denoiser, new_key()
        hooks, with_kwargs = module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs
        images = batch.total * batch.images

        def before(_: Any, args: Any, kwargs: Any) -> None:
            first = nested.first_tensor((args, kwargs))
            if run.holds() and first is not None and first.shape[0] % images == 0:
                known = batch.denoising
                known.copies = first.shape[0] // images
                memory = self._tree.memory.setdefault(known.path, {})
                trial = functools.partial(module, *args, **kwargs)
                known.axis = BatchAxis(module, known.path, memory, first.shape[0], trial)

        run.at_close(with_kwargs.pop, key, None)
        run.at_close(hooks.pop, key, None)
        with_kwargs[key] = True
        hooks[key] = Hook(before)
