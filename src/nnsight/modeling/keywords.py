"""What a model's forward takes by keyword, and what becomes of a keyword that it does not take.

A transformers forward that ends in `**kwargs` swallows a misspelt keyword without a word. Here the
keywords given to a trace are held against what the forward names, and one that would have no
effect is said so.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight.capture.traceback import warn
from nnsight.modeling import errors, generation_errors

_OUTPUT_SWITCHES = frozenset(
    "output_attentions output_hidden_states output_router_logits return_dict use_cache".split()
)
"""Read by decorators around a forward, so a signature need not name them."""

_OF_THE_TOKENIZER = frozenset(
    "padding return_attention_mask return_tensors return_token_type_ids".split()
)

_OF_THE_CONSTRUCTOR = frozenset(
    "attn_implementation automodel device_map dispatch dtype rename tokenizer_kwargs "
    "torch_dtype".split()
)


@dataclass(frozen=True)
class Accepts:
    """The keywords that one method of a model takes."""

    names: frozenset[str]  # those that it, or a forward that it hands its keywords on to, names
    switches: frozenset[str]  # others that change what it does
    open: bool  # it takes any keyword at all, and drops what it does not know
    first: str | None  # its first parameter

    def takes(self, name: str) -> bool:
        """Whether `name` may be passed: by its own name or because anything may."""
        return self.open or name in self.names

    def swallows(self, name: str) -> bool:
        """Whether `name` would be taken without having any effect, as far as can be told."""
        known = name in self.names or name in self.switches
        return self.open and bool(self.names) and not known


def accepts(module: torch.nn.Module, method: str) -> Accepts:
    """What `method` of `module` takes; keywords handed on by a forward are followed inwards.

    `"__call__"` and `"generate"` mean the forward, which is where their tensors end up.
    """
    name = "forward" if method in ("__call__", "generate") else method
    names: set[str] = set()
    switches = set(_OUTPUT_SWITCHES)
    first, opened = None, False
    for link in _chain(module):
        parameters = _parameters(getattr(link, name, None))
        rest = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        first = first or next(iter(named), None)
        names.update(named)
        opened = rest is not None
        if rest is None or name != "forward":
            break
        switches |= _typed(rest)
    return Accepts(frozenset(names), frozenset(switches), opened, first)


def _chain(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """`module` without its wrappers, then the inner models that its forward calls."""
    seen: list[torch.nn.Module] = []
    link: Any = module
    while isinstance(link, torch.nn.Module) and not any(link is other for other in seen):
        seen.append(link)
        compiled = getattr(link, "_orig_mod", None)  # torch.compile
        if compiled is not None:
            link = compiled
            continue
        yield link
        adapted = getattr(link, "get_base_model", None)  # PEFT
        link = getattr(link, "base_model", None) if adapted is None else adapted()


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # not a Python function: nothing is known about it
        return []


def _typed(rest: inspect.Parameter) -> set[str]:
    """The names in `**kwargs: Unpack[SomeTypedDict]`."""
    typed = getattr(rest.annotation, "__args__", ())
    return {name for kind in typed for name in getattr(kind, "__annotations__", ())}


def warn_swallowed(kwargs: Mapping[str, Any], taken: Accepts, method: str) -> None:
    """Warn of each keyword that `method` would take and drop."""
    for name in kwargs:
        if taken.swallows(name):
            warn(f"`{name}=` has no effect: {method} does not know it. {_hint(name, taken)}")


def refuse_misspelt(kwargs: Mapping[str, Any], taken: Accepts) -> None:
    """Refuse a keyword of a generation that is nearly that of a setting; others transformers does.

    Raises:
        ValueError: the text has the name that is meant.
    """
    settings = _settings_of_generation()
    known = settings | taken.names | taken.switches
    for name in kwargs.keys() - known:
        if near := difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.85):
            raise generation_errors.misspelt(name, near[0])


@functools.cache
def _settings_of_generation() -> frozenset[str]:
    """What every `generate` takes."""
    from transformers import GenerationConfig, GenerationMixin

    taken = {p.name for p in _parameters(vars(GenerationMixin)["generate"])}
    return frozenset({*vars(GenerationConfig()), *taken} - {"self", "kwargs"})


def _hint(name: str, taken: Accepts) -> str:
    if name in _OF_THE_TOKENIZER:
        return "Prompts are made into padded tensors here; remove it."
    if name in _OF_THE_CONSTRUCTOR:
        return f"It goes where the model is made: `LanguageModel(..., {name}=...)`."
    near = difflib.get_close_matches(name, sorted(taken.names | taken.switches), n=1)
    settings = _settings_of_generation() if "transformers" in sys.modules else frozenset()
    if name not in settings and near:
        return f"Did you mean `{near[0]}=`?"
    meant = difflib.get_close_matches(name, sorted(settings), n=1, cutoff=0.85)
    if not meant:
        return "Remove it."
    return f"A trace is one forward pass; to generate, use `.generate(..., {meant[0]}=...)`."


def merged(given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keywords of all invokes as those of the one call that they share.

    Raises:
        ValueError: two invokes give one keyword different values.
    """
    together: dict[str, Any] = {}
    for kwargs in given:
        for name, value in kwargs.items():
            if name in together and not _same(together[name], value):
                raise errors.conflicting_keyword(name, together[name], value)
            together[name] = value
    return together


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    try:
        return type(first) is type(second) and bool(first == second)
    except (RuntimeError, ValueError):  # arrays and containers of tensors have no one truth
        return False
