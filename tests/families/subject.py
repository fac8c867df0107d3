"""One family under test: its model bare and wrapped, its prompts, and what bare PyTorch gives."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module, ModuleList

from nnsight import LanguageModel, nested
from tests.families import zoo
from tests.families.zoo import Prompt

Values = dict[str, list[list[torch.Tensor]]]  # by path: of each visit, the floating point tensors


class Subject:
    """A family.

    Attributes:
        module: the bare model.
        model: the same module, wrapped.
        prompts: three of unequal lengths.
    """

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.folder = folder
        self.module: Any = zoo.build(family)
        self.model = self.wrap(self.module)
        self.prompts = zoo.prompts(self.module)

    def wrap(self, source: Any) -> LanguageModel:
        return LanguageModel(source, tokenizer=zoo.tokenizer(), automodel=zoo.ZOO[self.family][2])

    @functools.cached_property
    def has_text(self) -> bool:
        return self.prompts[0].text is not None

    def bare(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """The keywords with which the bare model runs one prompt."""
        if prompt.embeds is not None:
            return {"inputs_embeds": prompt.embeds.clone(), **prompt.beside}
        ids = {"input_ids": torch.tensor([prompt.ids])} if self.has_text else {}
        return {**ids, **prompt.beside}

    def given(self, prompt: Prompt) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a trace of one prompt is opened with."""
        if prompt.embeds is not None:
            return (), self.bare(prompt)
        return ((prompt.text,) if self.has_text else ()), dict(prompt.beside)

    def with_embeddings(self, row: int) -> Subject:
        """The same, with one of the prompts as embeddings."""
        twin, prompt = copy.copy(self), self.prompts[row]
        embeds = self.module.get_input_embeddings()(torch.tensor([prompt.ids])).detach()
        twin.prompts = [*self.prompts]
        twin.prompts[row] = dataclasses.replace(prompt, embeds=embeds)
        return twin

    @property
    def side(self) -> str:
        return self.model._format.side

    @functools.cached_property
    def layer(self) -> str:
        """The path of a layer in the middle: the second of the last list of layers."""
        lists = [
            (path, inner)
            for path, inner in self.module.named_modules()
            if isinstance(inner, ModuleList) and any(child._modules for child in inner)
        ]
        path, inner = min(reversed(lists), key=lambda one: (one[0].count("."), -len(one[1])))
        return f"{path}.{min(1, len(inner) - 1)}"

    def raw(self, prompt: Prompt, edits: dict[str, Callable[[Any], Any]] | None = None) -> Raw:
        """One forward of the bare model, with every module's values; `edits` change some first."""
        return raw(self.module, self.bare(prompt), edits or {})

    def own_tokens(self, own: torch.Tensor, solo: torch.Tensor, row: int) -> torch.Tensor:
        """`own`, of one row of a padded batch, without what stands for padding.

        A dimension counts tokens, or several values for each, if it is as much longer than alone
        as the row was padded. Tokens of a decoder beside the prompt are padded on the right.
        """
        for lengths, side in ((zoo.LENGTHS, self.side), (zoo.DECODED, "right")):
            pad = max(lengths) - lengths[row]
            for dim in range(solo.ndim if own.ndim == solo.ndim else 0):
                each, rest = divmod(solo.shape[dim], lengths[row])
                each = 1 if rest else each  # a convolution looks over the end
                if pad and own.shape[dim] - solo.shape[dim] == each * pad:
                    start = each * pad if side == "left" else 0
                    own = own.narrow(dim, start, solo.shape[dim])
        return own


class Raw:
    """What a forward with raw hooks gave."""

    def __init__(self) -> None:
        self.values: Values = {}
        self.output: Any = None


def floating(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in nested.leaves(value) if leaf.is_floating_point()]


def scores(output: Any) -> torch.Tensor:
    """What a model finds in the end: logits, or the embedding of a text and an image."""
    if "logits" in output:
        return output.logits
    return torch.cat([output.text_embeds, output.image_embeds], -1)


def raw(module: Module, kwargs: dict[str, Any], edits: dict[str, Callable[[Any], Any]]) -> Raw:
    found = Raw()

    def hook(path: str) -> Callable[..., Any]:
        def see(_: Module, args: Any, output: Any) -> Any:
            visits = found.values.setdefault(path, [])
            output = edits[path](output) if path in edits and not visits else output
            visits.append([leaf.detach().clone() for leaf in floating(output)])
            return output

        return see

    handles = [
        inner.register_forward_hook(hook(path))
        for path, inner in module.named_modules(remove_duplicate=False)
        if path
    ]
    try:
        found.output = module(**kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found
