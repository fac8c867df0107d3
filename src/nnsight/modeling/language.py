"""`LanguageModel`: a transformers model that reads text."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnsight import nested
from nnsight.capture.callsite import is_entered
from nnsight.config import CONFIG
from nnsight.envoy.envoy import Envoy
from nnsight.envoy.keywords import without_retired
from nnsight.interleave.batching import Batch
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.rows import Rows
from nnsight.modeling import (
    alone,
    embeds,
    errors,
    generation,
    generation_errors,
    lookup,
    padding,
    tokens,
)
from nnsight.modeling import inputs as reading
from nnsight.modeling.format import Format, format_of, is_causal
from nnsight.modeling.generation import Generator
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.keywords import warn_swallowed
from nnsight.modeling.tokenizer import LazyTokenizer
from nnsight.modeling.tokens import Tokens
from nnsight.traces.invoke import Inputs


class LanguageModel(HuggingFaceModel):
    """A language model whose inputs are prompts in any form.

        model = LanguageModel("openai-community/gpt2", device_map="auto")
        with model.trace("The Eiffel Tower is in the city of"):
            hidden = model.transformer.h[5].output.save()

    A prompt is a string, token ids (a list, a 1-d or 2-d tensor or array), a chat (a list of dicts
    with `role` and `content`), named inputs (a dict, as a tokenizer returns it), or a list of
    those. Named inputs also go in by keyword: `trace(input_ids=..., attention_mask=...)`.

    Prompts of one batch may differ in form and length. Decoders are padded on the left and the
    rest on the right, with a mask and, where needed, positions, so that each prompt gives the
    numbers that it gives alone.

    Args:
        repo_id: a hub id, a folder (string or `Path`), a loaded module, or a config.
        tokenizer: the tokenizer, or the hub id or folder of one; the model's own if left out. A
            loaded module brings none along, so text needs one here.
        automodel: the transformers class that builds the model, or its name.
        tokenizer_kwargs: passed on when the tokenizer is read.
        **options: as for `HuggingFaceModel`: `config`, `revision`, `dispatch`, `rename`, and what
            `from_pretrained` takes.
    """

    _stepwise = frozenset({generation.METHOD})
    _usual_task = "text-generation"
    _tokenizer: LazyTokenizer
    _known_format: Format | None

    def __init__(
        self,
        repo_id: str | Path | torch.nn.Module | Any = None,
        *,
        tokenizer: Any = None,
        automodel: str | type = "AutoModelForCausalLM",
        tokenizer_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(repo_id, automodel=automodel, **options)
        side = "left" if is_causal(self._module) else "right"
        own = self._loader.tokenizer
        self._tokenizer = LazyTokenizer(tokenizer, own, tokenizer_kwargs, usual_side=side)
        self._known_format = None
        self._opened()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, read when first asked for; None if the model came without one.

        Raises:
            LoadError: it cannot be read.
        """
        return self._tokenizer.get()

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer.set(tokenizer)

    def trace(
        self,
        *inputs: Any,
        fn: str | Callable[..., Any] | None = None,
        trace: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run one forward pass with the block under this `with` beside it.

        Args:
            *inputs: a prompt in any form; without one the block opens `tracer.invoke(...)` blocks.
            fn: what to run instead of the forward: the name of a method, or a callable.
            trace: False runs the model at once, without a block, and returns its output.
            **kwargs: named inputs and settings of the forward, such as `output_attentions=True`;
                beside text also `add_special_tokens`, `truncation` and `max_length`. One that the
                forward would take and ignore is a warning.

        Returns:
            A context manager, or the output of the model if `trace` is False.

        Raises:
            ValueError: an input is empty or no prompt; or, when the block ends, it holds ids that
                the model does not have, is too long, or cannot be batched with the others.
        """
        format = self._format.of(fn if isinstance(fn, str) else "__call__")
        kwargs = without_retired(kwargs, format.taken.names)
        settings = {name: kwargs[name] for name in kwargs if name not in _TRACE_KEYWORDS}
        if not format.generates and not self._batch_size(*inputs, **settings):
            misplaced = {n: settings[n] for n in settings if n not in reading.FOR_READING}
            warn_swallowed(misplaced, format.taken, format.method_name)
        return super().trace(*inputs, fn=fn, trace=trace, **kwargs)

    def generate(self, *inputs: Any, trace: bool | None = None, **kwargs: Any) -> Any:
        """Continue prompts: at once, or beside a block under `with`.

            ids = model.generate("Hello", max_new_tokens=5)

            with model.generate("Hello", max_new_tokens=5) as tracer:
                for step in tracer.iter[:]:
                    ...

        The model runs once for each new token: step 0 reads the prompt and chooses the first
        token, each later step reads the token before. Outside of a loop over steps a block is at
        step 0. `tracer.result` is what `generate` returns.

        Args:
            *inputs: a prompt in any form that `trace` takes; without one the block opens
                `tracer.invoke(...)` blocks.
            trace: whether to open a trace; left out, that is told from the `with`.
            **kwargs: named inputs and settings of generation, such as `max_new_tokens=20`.

        Returns:
            Token ids, int64 `(rows, prompt + new tokens)`, unless the settings ask for more; in a
            `with` statement a context manager.

        Raises:
            ValueError: called at once without a prompt; or as for `trace`.
        """
        traced = is_entered() if trace is None else trace
        if not traced and not self._batch_size(*inputs, **kwargs):
            raise generation_errors.nothing_to_generate()
        return self.trace(*inputs, fn=generation.METHOD, trace=traced, **kwargs)

    def tokens(self, *inputs: Any, **kwargs: Any) -> Tokens:
        """The tokens that a prompt becomes, and where its words are among them.

            where = model.tokens(prompt).find("Eiffel Tower")

        Args:
            *inputs: a prompt in any form that `trace` takes; several are padded as in a trace.
            **kwargs: as for `trace`: `add_special_tokens`, `attention_mask`, ...

        Returns:
            What prints as a table: of each position the id, the token, its word, and whether the
            tokenizer or padding added it. `find` and `positions` look for a part of the text.

        Raises:
            ValueError: there is no prompt; or as for `trace`.
        """
        format = self._format.of("__call__")
        args, fields = reading.batch([Inputs(inputs, kwargs)], format)
        fields = {"input_ids": args[0], **fields} if args else fields
        if "input_ids" not in fields:
            raise errors.no_ids()
        if (tokenizer := self.tokenizer) is None:
            raise errors.no_tokenizer()
        texts = reading.texts(inputs, kwargs, format)
        return tokens.read(fields, texts, tokenizer, format.side == "left")

    @property
    def generator(self) -> Generator:
        """Inside `with model.generate(...)`: `.output` is the result, `.streamer` the tokens."""
        return Generator(self)

    @property
    def _format(self) -> Format:
        if self._known_format is None or self._known_format.module is not self._module:
            self._known_format = format_of(self._module, self._tokenizer)
        return self._known_format

    def _enter(self, run: Interleaver, fn: str, call: functools.partial[Any]) -> None:
        super()._enter(run, fn, call)
        if CONFIG.APP.LEGACY:
            run.padding = padding.lengths(call.keywords.get("attention_mask"))
        if fn == generation.METHOD:
            generation.prepare(self, run, call)
        lookup.enter(run, self._module)

    def _batch_of(
        self, total: int, split: bool, call: functools.partial[Any], given: list[Inputs]
    ) -> Batch:
        found = embeds.taken(call.keywords)
        batch = self._rows_of(total, split, call, given)
        if found is None:
            return batch
        memory = self._tree.memory.setdefault(self._path, {})
        return lookup.mixed(self._module, batch, found, call, memory)

    def _rows_of(
        self, total: int, split: bool, call: functools.partial[Any], given: list[Inputs]
    ) -> Batch:
        """How rows belong to the invokes, whatever form these have."""
        if not split or call.func != getattr(self._module, generation.METHOD, None):
            batch = super()._batch_of(total, split, call, given)
        else:
            lengths = generation.lengths(self, call.keywords)
            batch = self._split_over(total, generation.two_steps(call), lengths)
        if not split or not self._sees(given):
            return batch
        invokes, start = [], 0
        for one in given:
            if size := self._batch_size(*one.args, **one.kwargs):
                invokes.append((Rows(start, size), functools.partial(self._alone, one, call)))
                start += size
        return alone.seeing(self._module, self._path, batch, invokes)

    def _sees(self, inputs: list[Inputs]) -> bool:
        """Whether invokes have images that are no rows."""
        return reading.sees(inputs, self._format.of("__call__"))

    def _alone(self, given: Inputs, call: functools.partial[Any]) -> functools.partial[Any]:
        """The call that `call` would be, were there no other invoke than this one."""
        generates = call.func == getattr(self._module, generation.METHOD, None)
        args, own = self._batch([given], generation.METHOD if generates else "__call__")
        shared = {n: v for n, v in call.keywords.items() if nested.first_tensor(v) is None}
        args, own = self._place((args, own))
        found = functools.partial(call.func, *args, **{**shared, **own})
        return generation.two_steps(found) if generates else found

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        return reading.count_rows(args, kwargs)

    def _combined(
        self, inputs: list[Inputs], shared: list[dict[str, Any]], fn: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        format = self._format.of(fn)
        spread, whole = reading.spread(inputs, shared, format)
        args, kwargs = self._batch(
            [Inputs(i.args, kw) for i, kw in zip(inputs, spread, strict=True)], fn
        )
        return args, {**kwargs, **whole}

    def _batch(self, inputs: list[Inputs], fn: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return reading.batch(inputs, self._format.of(fn))


_TRACE_KEYWORDS = frozenset(
    name
    for trace in (HuggingFaceModel.trace, Envoy.trace)
    for name in inspect.signature(trace).parameters
)
"""What a trace itself takes; the other keywords are for the model."""
