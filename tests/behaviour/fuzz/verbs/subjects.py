"""The models: each as nnsight sees it, and once more with a tap around everything it does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.behaviour.fuzz.verbs.program import Place
from tests.pages import OLD
from torch import nn

from nnsight import LanguageModel, NNsight

ROWS, WIDTH, TOKENS, VOCABULARY = 2, 4, 3, 20

Around = Callable[..., Any]  # around(path, op, function, *args, **kwargs): the call, tapped


class Layer(nn.Module):
    """A layer with functions of torch and of its own in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x)
        hidden = torch.tanh(hidden)
        mixed = self.mix(hidden)
        return torch.add(x, self.down(mixed))

    def mix(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.sin(hidden) * 0.5


class TappedLayer(Layer):
    """The same layer, with its operations handed out as `source` names them."""

    tap: Around

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.tap("self_up_0", self.up, x)
        hidden = self.tap("torch_tanh_0", torch.tanh, hidden)
        mixed = self.tap("self_mix_0", self.mix, hidden)
        return self.tap("torch_add_0", torch.add, x, self.down(mixed))

    def mix(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.tap("self_mix_0.source.torch_sin_0", torch.sin, hidden) * 0.5


class Stack(nn.Module):
    """Layers; `roll` calls it again and again, each time with what the last call gave."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def roll(self, x: torch.Tensor, calls: int) -> torch.Tensor:
        for _ in range(calls):
            x = self(x).sin()
        return x


@dataclass(frozen=True)
class Subject:
    """A model for random programs."""

    envoy: Any
    tapped: nn.Module  # a copy, for `run` to put taps on
    modules: tuple[str, ...]  # paths that programs name
    stepped: str  # the verb of a call that makes several steps
    call: Callable[[nn.Module, torch.Tensor, int | None], Any]  # with plain PyTorch
    inputs: Callable[[torch.Generator], torch.Tensor]
    square: bool  # every value has one shape, so that any can take the place of any
    order: tuple[Place, ...] = ()  # places of one forward, in the order in which it comes by

    def run(self, x: torch.Tensor, steps: int | None, around: Around) -> Any:
        """One plain call with `around` in the place of everything that programs name."""
        modules = {path: self.tapped.get_submodule(path) for path in self.modules}
        for path, module in modules.items():
            if isinstance(module, TappedLayer):
                module.tap = functools.partial(around, path)
            module.forward = functools.partial(around, path, "", module.forward)
        try:
            return self.call(self.tapped, x, steps)
        finally:
            for module in modules.values():
                vars(module).pop("tap", None)
                del module.forward


def _with_order(subject: Subject) -> Subject:
    found: list[Place] = []

    def around(path: str, op: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        if args and args[0].is_floating_point():  # tokens and keywords are left alone
            found.append(Place(path, op, "input"))
        out = function(*args, **kwargs)
        found.append(Place(path, op, "output"))
        return out

    with torch.no_grad():
        subject.run(subject.inputs(torch.Generator()), None, around)
    return Subject(**{**vars(subject), "order": tuple(found)})


@functools.cache
def stack(layers: int) -> Subject:
    torch.manual_seed(layers)
    module = Stack(layers).double()
    tapped = copy.deepcopy(module)
    for layer in tapped.layers:
        layer.__class__ = TappedLayer
    paths = [path for path, m in module.named_modules() if not isinstance(m, nn.ModuleList)]
    return _with_order(
        Subject(
            NNsight(module),
            tapped,
            tuple(paths),
            "trace",
            lambda m, x, steps: m(x) if steps is None else m.roll(x, steps),
            lambda rng: torch.randn(ROWS, WIDTH, generator=rng, dtype=torch.double),
            square=True,
        )
    )


@functools.cache
def gpt2() -> Subject:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=2,
        n_embd=8,
        n_head=2,
        vocab_size=VOCABULARY,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(2)
    module = GPT2LMHeadModel(config).double().eval()

    def call(m: Any, x: torch.Tensor, steps: int | None) -> Any:
        return m(x).logits if steps is None else m.generate(x, max_new_tokens=steps)

    parts = (".ln_1", ".mlp") if OLD else ("", ".ln_1", ".mlp")  # a block of 4 gives a tuple
    layers = [f"transformer.h.{n}{part}" for n in range(2) for part in parts]
    return _with_order(
        Subject(
            LanguageModel(module),
            copy.deepcopy(module),
            ("transformer.wte", *layers, "transformer.ln_f", "lm_head"),
            "generate",
            call,
            lambda rng: torch.randint(1, VOCABULARY, (ROWS, TOKENS), generator=rng),
            square=False,
        )
    )
