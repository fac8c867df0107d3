"""A forward with probes computes what it computed without: bit for bit, gradients too."""

from __future__ import annotations

from threading import get_ident
from typing import Any

import pytest
import torch
from tests.envoy import zoo
from torch import nn

from nnsight import NNsight, nested
from nnsight.envoy.decorated import innermost
from nnsight.envoy.probes import Probes, listing_of
from nnsight.interleave.location import INPUT, OUTPUT, Location


class _Run:
    """A run that looks at everything and changes nothing."""

    def __init__(self) -> None:
        self.threads = {get_ident()}
        self.visits: dict[Location, int] = {}
        self.seen: list[str] = []

    def offer(self, location: Location, value: Any) -> Any:
        self.seen.append(f"{location} {self.visits[location]}")
        self.visits[location] += 1
        return value

    def refuse(self, location: Location, error: BaseException) -> None:
        raise error

    def at_close(self, undo: Any) -> None:
        """It stays open."""


class _Owner:
    def __init__(self, path: str) -> None:
        self.path = path


def probe(module: nn.Module, run: Any, watched: bool) -> int:
    """Probe one forward for good; `watched`, every operation in it is offered."""
    listing = listing_of(innermost(module.forward, "forward"))
    if isinstance(listing, str):
        return 0
    probes = Probes(run, "forward", "module")
    for op in listing.ops if watched else ():
        for kind in (OUTPUT, INPUT):
            probes.ask(op.name, Location(_Owner(op.name), kind))  # type: ignore[arg-type]
    forward = module.forward
    module.forward = lambda *args, **kwargs: probes.through(forward, args, kwargs)
    return len(listing.ops)


def outcome(module: nn.Module, args: Any, kwargs: Any = None) -> list[torch.Tensor]:
    """What a module computes, and every gradient."""
    torch.manual_seed(1)
    module.zero_grad()
    leaves = [a.clone().requires_grad_() if a.is_floating_point() else a for a in args]
    result = module(*leaves, **(kwargs or {}))
    if not isinstance(result, (torch.Tensor, tuple, dict)):
        result = list(result)
    outs = list(nested.leaves(result))
    loss = sum(o.float().sum() for o in outs)
    if loss.requires_grad:
        loss.backward()
    grads = [leaf.grad for leaf in [*leaves, *module.parameters()] if leaf.grad is not None]
    return [*outs, *grads]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("watched", [False, True], ids=["idle", "watched"])
@pytest.mark.parametrize("name", zoo.MODULES)
def test_the_zoo_computes_the_same(name: str, watched: bool):
    torch.manual_seed(0)
    module, x = zoo.MODULES[name](), torch.randn(2, 4)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    expected, before = outcome(module, [x]), zoo.calls
    assert expected
    run = _Run()
    assert probe(module, run, watched)
    assert same(outcome(module, [x]), expected)
    assert zoo.calls - before == (name == "Globals")
    assert bool(run.seen) == watched
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("watched", [False, True], ids=["idle", "watched"])
def test_arguments_of_every_kind(watched: bool):
    module, x = zoo.Arguments(), torch.randn(2, 4)
    probed = zoo.Arguments()
    probed.load_state_dict(module.state_dict())
    probe(probed, _Run(), watched)
    for args, kwargs in [
        ((x,), {}),
        ((x, 2.0, x, x), {"scale": x}),
        ((x,), {"bias": 1.0}),
    ]:
        one, other = module(*args, **kwargs), probed(*args, **kwargs)
        assert torch.equal(one[0], other[0]) and one[1] == other[1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        probed(x, wrong=1)
    with pytest.raises(TypeError, match="missing 1 required positional"):
        probed()


class _Told:
    """An object that tells what is done to it, in which order."""

    def __init__(self, log: list[str], value: Any = 0) -> None:
        vars(self).update(log=log, value=value)

    def __getitem__(self, key: Any) -> Any:
        self.log.append(f"get {key}")
        return self.value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.log.append(f"set {key} {value}")

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class _Augmented(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        log: list[str] = []
        told = _Told(log)

        def say(value: Any) -> Any:
            log.append(f"say {value}")
            return value

        say(told)[say(1)] += say(2)
        told[say(1) : say(2) :, ..., say(3)] -= 1
        told[(*map(say, "ab"), 0)] += 1
        say(told).z *= say(5)
        told.__private = 1
        told.__private |= 2
        for step in range(2):
            told[step] += step
        try:
            told[say(9)] += say(None)
        except TypeError:
            log.append("failed")
        y = x * 1
        y[0] += torch.sin(x[0])
        y[:, 1:] *= 2
        vars(self).setdefault("count", 0)
        self.count += 1
        log.append(str(sorted(name for name in locals() if name.isidentifier())))
        return y, [line.partition(" object at")[0] for line in log], self.count


@pytest.mark.parametrize("watched", [False, True], ids=["idle", "watched"])
def test_augmented_assignments_do_their_steps_in_their_order(watched: bool):
    x = torch.randn(2, 4)
    y, log, count = _Augmented()(x)
    module, run = _Augmented(), _Run()
    probe(module, run, watched)
    probed = module(x)
    assert torch.equal(probed[0], y)
    assert probed[1:] == (log, count)
    if watched:
        offered = {seen.partition(".output")[0] for seen in run.seen}
        assert {"told_item_0", "z_0", "y_item_0", "y_item_1", "self_count_0"} <= offered


def test_the_value_of_an_augmented_assignment_is_replaced():
    class Adds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 1
            y[0] += torch.sin(x[0])
            return y * 2

    model, x = NNsight(Adds()), torch.randn(2, 4)
    with model.trace(x):
        stored = model.source.y_item_0.output.clone().save()
        model.source.y_item_0.output = torch.ones(4)
        after = model.output.save()
    assert torch.equal(stored, x[0] + torch.sin(x[0]))
    assert torch.equal(after, torch.stack([torch.full((4,), 2.0), x[1] * 2]))


def test_functions_inside_keep_their_names():
    class Named(nn.Module):
        def forward(self) -> list[str]:
            class Inner:
                def method(self) -> None: ...

            def nested() -> None: ...

            return [Inner.__qualname__, Inner.method.__qualname__, nested.__qualname__]

    module = Named()
    expected = module()
    probe(module, _Run(), watched=True)
    assert module() == expected and expected[0].endswith("Named.forward.<locals>.Inner")


TORCH: dict[str, tuple[Any, list[torch.Tensor]]] = {}


def _of_torch(name: str, make: Any, *args: torch.Tensor) -> None:
    TORCH[name] = make, list(args)


_x, _seq, _img = torch.randn(3, 8), torch.randn(5, 3, 8), torch.randn(2, 3, 8, 8)
_of_torch("Linear", lambda: nn.Linear(8, 4), _x)
_of_torch("Bilinear", lambda: nn.Bilinear(8, 8, 4), _x, _x)
_of_torch("LayerNorm", lambda: nn.LayerNorm(8), _x)
_of_torch("RMSNorm", lambda: nn.RMSNorm(8), _x)
_of_torch("BatchNorm1d", lambda: nn.BatchNorm1d(8), _x)
_of_torch("GroupNorm", lambda: nn.GroupNorm(2, 8), _x)
_of_torch("Dropout", lambda: nn.Dropout(0.5), _x)
_of_torch("GELU", nn.GELU, _x)
_of_torch("Softmax", lambda: nn.Softmax(-1), _x)
_of_torch("Sequential", lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), _x)
_of_torch("Conv2d", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), _img)
_of_torch("ConvTranspose2d", lambda: nn.ConvTranspose2d(3, 4, 3), _img)
_of_torch("MaxPool2d", lambda: nn.MaxPool2d(2), _img)
_of_torch("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d(2), _img)
_of_torch("Upsample", lambda: nn.Upsample(scale_factor=2), _img)
_of_torch("Fold", lambda: nn.Unfold(2), _img)
_of_torch("RNN", lambda: nn.RNN(8, 6, 2, dropout=0.2), _seq)
_of_torch("GRU", lambda: nn.GRU(8, 6, bidirectional=True), _seq)
_of_torch("LSTM", lambda: nn.LSTM(8, 6, 2), _seq)
_of_torch("LSTMCell", lambda: nn.LSTMCell(8, 6), _x)
_of_torch("Embedding", lambda: nn.Embedding(10, 4), torch.arange(6).view(2, 3))
_of_torch("EmbeddingBag", lambda: nn.EmbeddingBag(10, 4), torch.arange(6).view(2, 3))
_of_torch("MultiheadAttention", lambda: nn.MultiheadAttention(8, 2), _seq, _seq, _seq)
_of_torch("TransformerEncoder", lambda: nn.TransformerEncoder(
    nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), _seq)  # fmt: skip
_of_torch("Transformer", lambda: nn.Transformer(8, 2, 1, 1, 16), _seq, _seq)
_of_torch("CrossEntropyLoss", nn.CrossEntropyLoss, _x, torch.tensor([0, 3, 7]))
_of_torch("AdaptiveLogSoftmaxWithLoss", lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10], 2.0),
          _x, torch.tensor([0, 7, 19]))  # fmt: skip
_of_torch("PairwiseDistance", nn.PairwiseDistance, _x, _x + 1)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:Initializing zero")
@pytest.mark.parametrize("name", TORCH)
def test_modules_of_torch_compute_the_same(name: str):
    make, args = TORCH[name]
    torch.manual_seed(0)
    module = make()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    expected = outcome(module, args)
    module.load_state_dict(state)
    found = sum(probe(inner, _Run(), watched=True) for inner in module.modules())
    assert found
    assert same(outcome(module, args), expected)


def _transformers(name: str) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    size: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    llama: dict[str, Any] = {
        **size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    kinds: dict[str, Any] = {
        "gpt2": ("GPT2", {**size, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 32}),
        "llama": ("Llama", llama),
        "qwen3_moe": ("Qwen3Moe", {
            **llama, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        }),
        "mistral": ("Mistral", llama),
        "gpt_neox": ("GPTNeoX", {**llama}),
    }  # fmt: skip
    kind, settings = kinds[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    return getattr(transformers, f"{kind}{head}")(config), {"labels": torch.arange(6)[None]}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3_moe", "mistral", "gpt_neox"])
def test_models_of_transformers_compute_the_same(name: str, attention: str):
    torch.manual_seed(0)
    model, labels = _transformers(name)
    model.set_attn_implementation(attention)  # type: ignore[operator]
    tokens = torch.arange(6)[None]
    expected = outcome(model, [tokens], labels)
    run = _Run()
    probed = [probe(inner, run, watched=True) for inner in model.modules()]
    assert sum(probed) > 50
    assert same(outcome(model, [tokens], labels), expected)
    assert any("attention_interface" in seen for seen in run.seen)
