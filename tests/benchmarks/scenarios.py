"""What is measured: each scenario once with the library and once with raw hooks.

Every block here is written as a user would write it. A model is frozen and runs on one thread;
each layer of the GPT-2 is tiny, so that what the library adds shows.
"""

from __future__ import annotations

import copy
import functools
import gc
import linecache
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch.nn import Module

import nnsight
from nnsight import NNsight, nested

from .harness import Case, Run, Scenario

# --- models ---------------------------------------------------------------------------------------


class Stack(Module):
    """`n` blocks of two modules each, one after the other."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(*[Block() for _ in range(n)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class Block(Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(8, 8)
        self.act = torch.nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.up(x))


def _ready(model: Module) -> Module:
    return model.eval().requires_grad_(False)


@functools.cache
def gpt2() -> Module:
    """A random GPT-2 of 12 layers, 64 wide."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size: dict[str, Any] = {"n_layer": 12, "n_embd": 64, "n_head": 4}
    words = {"vocab_size": 256, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    return _ready(GPT2LMHeadModel(GPT2Config(**size, **words)))


@functools.cache
def small() -> Module:
    """A root and its two layers."""
    torch.manual_seed(0)
    return _ready(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)))


@functools.cache
def stack() -> Module:
    """200 blocks: 602 modules."""
    torch.manual_seed(0)
    return _ready(Stack(200))


@functools.cache
def wrapped(make: Callable[[], Module]) -> Any:
    return NNsight(make())


TOKENS = torch.arange(8)[None]
OTHERS = [(TOKENS * (n + 3)) % 256 for n in range(16)]
POINT = torch.linspace(-1, 1, 8)[None]


# --- raw hooks ------------------------------------------------------------------------------------


def hooked(model: Module, x: torch.Tensor, hooks: Iterable[tuple[Module, Any]]) -> None:
    """One forward with `hooks` on, which come off again."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    model(x)
    for handle in handles:
        handle.remove()


def raw_reads(model: Module, x: torch.Tensor, modules: list[Module]) -> list[torch.Tensor]:
    """The outputs of `modules` in one forward."""
    seen: list[torch.Tensor] = []

    def keep(module: Module, args: Any, output: torch.Tensor) -> None:
        seen.append(output)

    hooked(model, x, [(module, keep) for module in modules])
    return seen


def raw_stored_edit(module: Module, target: Module) -> Any:
    """A forward in which the output of `target` is doubled."""

    def double(_: Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 2

    seen: list[Any] = []
    keep = (module, lambda m, args, output: seen.append(output.logits))
    hooked(module, TOKENS, [(target, double), keep])
    return seen


# --- traces that read -----------------------------------------------------------------------------


def empty(make: Callable[[], Module], x: torch.Tensor) -> Case:
    """A trace whose block does nothing."""
    model, module = wrapped(make), make()

    def library() -> None:
        with model.trace(x):
            pass

    def raw() -> None:
        module(x)

    return Case(library, raw)


def one_read_of_three() -> Case:
    model, module = wrapped(small), small()

    def library() -> Any:
        with model.trace(POINT):
            seen = model[0].output.save()
        return [seen]

    return Case(library, lambda: raw_reads(module, POINT, [module[0]]))


def one_read() -> Case:
    model, module = wrapped(gpt2), gpt2()

    def library() -> Any:
        with model.trace(TOKENS):
            seen = model.transformer.h[5].mlp.output.save()
        return [seen]

    return Case(library, lambda: raw_reads(module, TOKENS, [module.transformer.h[5].mlp]))


def one_operation() -> Case:
    """What the attention of one layer computes, before it is projected."""
    model, module = wrapped(gpt2), gpt2()
    attention = module.transformer.h[5].attn

    def library() -> Any:
        with model.trace(TOKENS):
            seen = model.transformer.h[5].attn.source.attention_interface_0.output[0].save()
        return [seen.flatten(2)]

    def raw() -> Any:
        seen: list[torch.Tensor] = []
        handle = attention.c_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        module(TOKENS)
        handle.remove()
        return seen

    return Case(library, raw)


def every_layer() -> Case:
    model, module = wrapped(gpt2), gpt2()

    def library() -> Any:
        with model.trace(TOKENS):
            seen = nnsight.save([layer.mlp.output for layer in model.transformer.h])
        return seen

    modules = [layer.mlp for layer in module.transformer.h]
    return Case(library, lambda: raw_reads(module, TOKENS, modules))


def every_part() -> Case:
    model, module = wrapped(gpt2), gpt2()

    def library() -> Any:
        with model.trace(TOKENS):
            seen = [].save()
            for layer in model.transformer.h:
                seen.append(layer.ln_1.output)
                seen.append(layer.mlp.output)
        return seen

    modules = [part for layer in module.transformer.h for part in (layer.ln_1, layer.mlp)]
    return Case(library, lambda: raw_reads(module, TOKENS, modules))


def reads_of_stack(count: int) -> Case:
    """`count` reads, spread evenly over 200 blocks."""
    model, module = wrapped(stack), stack()
    at = [index * 200 // count for index in range(count)]

    def library() -> Any:
        with model.trace(POINT):
            seen = nnsight.save([model.blocks[index].output for index in at])
        return seen

    modules = [module.blocks[index] for index in at]
    return Case(library, lambda: raw_reads(module, POINT, modules))


# --- traces that change ---------------------------------------------------------------------------


def one_edit() -> Case:
    model, module = wrapped(gpt2), gpt2()
    target = module.transformer.h[5].mlp

    def library() -> Any:
        with model.trace(TOKENS):
            mlp = model.transformer.h[5].mlp
            mlp.output = (doubled := mlp.output * 2).save()
        return [doubled]

    def raw() -> Any:
        seen: list[Any] = []

        def double(_: Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            seen.append(output * 2)
            return seen[0]

        hooked(module, TOKENS, [(target, double)])
        return seen

    return Case(library, raw)


def patching_sweep() -> Case:
    """One line of source, run for each layer: put a clean value in, read the logits."""
    model, module = wrapped(gpt2), gpt2()
    layers = [layer.mlp for layer in module.transformer.h]
    clean = raw_reads(module, OTHERS[0], layers)

    def library() -> Any:
        found = []
        for index in range(12):
            with model.trace(TOKENS):
                model.transformer.h[index].mlp.output[:, -1] = clean[index][:, -1]
                logits = model.lm_head.output[:, -1].save()
            found.append(logits)
        return found

    def raw() -> Any:
        found: list[torch.Tensor] = []
        for layer, value in zip(layers, clean, strict=True):
            patch, read = functools.partial(_patch, value), functools.partial(_read, found)
            hooked(module, TOKENS, [(layer, patch), (module.lm_head, read)])
        return found

    return Case(library, raw, share=12)


def _patch(value: torch.Tensor, _: Module, args: Any, output: torch.Tensor) -> None:
    output[:, -1] = value[:, -1]


def _read(found: list[torch.Tensor], _: Module, args: Any, output: torch.Tensor) -> None:
    found.append(output[:, -1])


# --- a cache --------------------------------------------------------------------------------------


def cache_of_everything() -> Case:
    """A copy of what every module returns; the models' key/value caches are copied too."""
    model, module = wrapped(gpt2), gpt2()
    modules = list(module.modules())

    def library() -> Any:
        with model.trace(TOKENS) as tracer:
            cache = tracer.cache()
        return [leaf for view in cache.values() for leaf in nested.leaves(view.output)]

    def raw() -> Any:
        seen: list[Any] = []

        def keep(_: Module, args: Any, output: Any) -> None:
            seen.append(nested.map_leaves(torch.Tensor.clone, output))

        hooked(module, TOKENS, [(inner, keep) for inner in modules])
        return [leaf for value in seen for leaf in nested.leaves(value)]

    return Case(library, raw)


# --- a new line of source -------------------------------------------------------------------------

_GO = (
    "def go(model, x):\n"
    "    with model.trace(x):\n"
    "        seen = model.transformer.h[5].mlp.output.save()\n"
    "    return [seen]\n"
)


def twelve_gradients() -> Case:
    """Every layer's gradient, from the last to the first, where it starts."""
    model, module = wrapped(gpt2), gpt2()

    def library() -> Any:
        with model.trace(TOKENS):
            hidden = [layer.mlp.output.requires_grad_() for layer in model.transformer.h]
            with model.output.logits.sum().backward():
                seen = nnsight.save([h.grad for h in reversed(hidden)])
        return seen

    def raw() -> Any:
        seen: list[torch.Tensor] = []

        def take(layer: Module, args: Any, output: torch.Tensor) -> None:
            output.requires_grad_()
            output.register_hook(seen.append)

        handles = [layer.mlp.register_forward_hook(take) for layer in module.transformer.h]
        module(TOKENS).logits.sum().backward()
        for handle in handles:
            handle.remove()
        return seen

    return Case(library, raw)


def new_line(before: int) -> Case:
    """The first run of a `with` that stands under `before` lines of other functions."""
    filler = "def other(a, b):\n    c = a + b\n    print(c, a)\n    return [c]\n\n"
    text = filler * (before // 5) + _GO + "\n" + filler * (before // 5)
    filename = f"<{before} lines>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    names: dict[str, Any] = {}
    exec(compile(text, filename, "exec"), names)
    model, module = wrapped(gpt2), gpt2()
    layer = module.transformer.h[5].mlp

    def fresh() -> Run:
        code = names["go"].__code__.replace()  # equal, but never seen before
        return functools.partial(FunctionType(code, names), model, TOKENS)

    return Case(lambda: fresh()(), lambda: raw_reads(module, TOKENS, [layer]), fresh)


# --- several inputs -------------------------------------------------------------------------------


def invokes(count: int) -> Case:
    """One forward over `count` inputs, each with a block that reads its rows."""
    model, module = wrapped(gpt2), gpt2()
    inputs = OTHERS[:count]
    layer = module.transformer.h[5].mlp

    def library() -> Any:
        seen: list[Any] = []
        with model.trace() as tracer:
            for tokens in inputs:
                with tracer.invoke(tokens):
                    seen.append(model.transformer.h[5].mlp.output)
        return seen

    def raw() -> Any:
        seen: list[Any] = []

        def split(_: Module, args: Any, output: torch.Tensor) -> None:
            seen.extend(output.narrow(0, row, 1) for row in range(count))

        hooked(module, torch.cat(inputs), [(layer, split)])
        return seen

    return Case(library, raw)


def barrier() -> Case:
    """Two inputs; the second continues from the first one's embeddings."""
    model, module = wrapped(gpt2), gpt2()
    first, second = OTHERS[:2]

    def library() -> Any:
        with model.trace() as tracer:
            ready = tracer.barrier(2)
            with tracer.invoke(first):
                embedded = model.transformer.wte.output
                ready()
            with tracer.invoke(second):
                ready()
                model.transformer.wte.output = embedded
                logits = model.lm_head.output.save()
        return [logits]

    def raw() -> Any:
        seen: list[Any] = []

        def move(_: Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            return torch.cat([output[:1], output[:1]])

        def read(_: Module, args: Any, output: torch.Tensor) -> None:
            seen.append(output.narrow(0, 1, 1))

        both = torch.cat([first, second])
        hooked(module, both, [(module.transformer.wte, move), (module.lm_head, read)])
        return seen

    return Case(library, raw)


def generation() -> Case:
    """Twenty tokens, and one layer's output at each step."""
    module = gpt2()
    model = nnsight.LanguageModel(module)
    settings: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    masked = {"attention_mask": torch.ones_like(TOKENS), "pad_token_id": 0}
    layer = module.transformer.h[5].mlp

    def library() -> Any:
        with model.generate(TOKENS, **settings, **masked) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(model.transformer.h[5].mlp.output)
        return seen

    def raw() -> Any:
        seen: list[Any] = []
        handle = layer.register_forward_hook(lambda m, args, output: seen.append(output))
        module.generate(TOKENS, **settings, **masked)
        handle.remove()
        return seen

    return Case(library, raw)


# --- around traces --------------------------------------------------------------------------------


def wrap(make: Callable[[], Module]) -> Case:
    module = make()

    def library() -> None:
        NNsight(module)

    return Case(library, lambda: None)


def plain_forward() -> Case:
    """The model's own forward outside a trace, beside a twin that was never wrapped."""
    module, twin = gpt2(), copy.deepcopy(gpt2())
    one_read().library()
    return Case(lambda: [module(TOKENS).logits], lambda: [twin(TOKENS).logits])


def import_time(runs: int = 7) -> float:
    """Milliseconds that `import nnsight` takes after torch, with byte code kept as usual."""
    code = (
        "import torch, time; start = time.perf_counter(); import nnsight; "
        "print(time.perf_counter() - start)"
    )
    source = os.path.dirname(os.path.dirname(nnsight.__file__))
    command = [sys.executable, "-c", code]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": source, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = [
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            for _ in range(runs + 1)
        ]
    return min(float(run.stdout) for run in done) * 1e3


def kept(traces: int = 1000) -> float:
    """Megabytes more than before, after many traces with the garbage collector off."""
    run = one_read().library
    for _ in range(traces // 10):
        run()
    gc.collect()
    gc.disable()
    try:
        before = _resident()
        for _ in range(traces):
            run()
        return (_resident() - before) / 2**20
    finally:
        gc.enable()


def _resident() -> float:
    """The memory that this process holds, where the system tells."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0


def stored_edit() -> Case:
    """A trace of a model with an edit that was made before, and one read."""
    model, module = wrapped(gpt2), gpt2()
    with model.edit() as edited:
        mlp = model.transformer.h[5].mlp
        mlp.output = mlp.output * 2

    def library() -> Any:
        with edited.trace(TOKENS):
            logits = edited.output.logits.save()
        return [logits]

    return Case(library, lambda: raw_stored_edit(module, module.transformer.h[5].mlp))


def scan() -> Case:
    """The shape of one MLP, beside the same with torch's own fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model, module = wrapped(gpt2), gpt2()

    def library() -> Any:
        with model.scan(TOKENS):
            shape = model.transformer.h[5].mlp.output.shape
        return [torch.tensor(shape)]

    def raw() -> Any:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            tokens = mode.from_tensor(TOKENS)
            [seen] = raw_reads(module, tokens, [module.transformer.h[5].mlp])
        return [torch.tensor(seen.shape)]

    return Case(library, raw)


def session_of_ten() -> Case:
    """Ten traces with a read each, whose values meet in one session."""
    model, module = wrapped(gpt2), gpt2()
    layer = module.transformer.h[5]

    def library() -> Any:
        with model.session():
            seen = nnsight.save([])
            for tokens in OTHERS[:10]:
                with model.trace(tokens):
                    hidden = model.transformer.h[5].output
                seen.append(hidden)
        return seen

    return Case(library, lambda: [raw_reads(module, t, [layer])[0] for t in OTHERS[:10]])


# --- standard names -------------------------------------------------------------------------------


@functools.cache
def named() -> Any:
    return nnsight.LanguageModel(gpt2())


def raw_states(model: Module, blocks: list[Module]) -> list[torch.Tensor]:
    """What `blocks` put out in one forward; in transformers 4 they put it in a tuple."""
    seen = raw_reads(model, TOKENS, blocks)
    return [output[0] for output in seen] if isinstance(seen[0], tuple) else seen


def every_resid_post() -> Case:
    model, module = named(), gpt2()

    def library() -> Any:
        with model.trace(TOKENS):
            seen = nnsight.save([layer.resid_post for layer in model.layers])
        return seen

    return Case(library, lambda: raw_states(module, list(module.transformer.h)))


def without_a_head() -> Case:
    model, module = named(), gpt2()

    def library() -> Any:
        with model.trace(TOKENS):
            model.layers[5].attn.z[:, :, 1] = 0
            seen = model.layers[11].resid_post.save()
        return [seen]

    def drop(_: Module, args: Any) -> None:
        args[0][..., 16:32] = 0

    def raw() -> Any:
        handle = module.transformer.h[5].attn.c_proj.register_forward_pre_hook(drop)
        seen = raw_states(module, [module.transformer.h[11]])
        handle.remove()
        return seen

    return Case(library, raw)


def one_pattern() -> Case:
    """The pattern of one layer, beside hooks that compute it from queries and keys."""
    model, module = named(), gpt2()

    def library() -> Any:
        with model.trace(TOKENS):
            seen = model.layers[5].attn.pattern.save()
        return [seen]

    mask = torch.full((8, 8), torch.finfo(torch.float32).min).triu(1)

    def raw() -> Any:
        (joined,) = raw_reads(module, TOKENS, [module.transformer.h[5].attn.c_attn])
        q, k, _ = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in joined.chunk(3, -1))
        return [(q @ k.transpose(-1, -2) / 4 + mask).softmax(-1)]

    return Case(library, raw)


SCENARIOS = [
    Scenario("empty trace", 100, lambda: empty(gpt2, TOKENS)),
    Scenario("empty trace, 3 modules", 60, lambda: empty(small, POINT)),
    Scenario("one read, 3 modules", 100, one_read_of_three),
    Scenario("one read", 200, one_read),
    Scenario("`source`, one operation", 400, one_operation),
    Scenario("12 reads", 600, every_layer),
    Scenario("24 reads", 1_200, every_part),
    Scenario("1 read of 600 modules", 200, lambda: reads_of_stack(1)),
    Scenario("10 reads of 600 modules", 600, lambda: reads_of_stack(10)),
    Scenario("50 reads of 600 modules", 1_268, lambda: reads_of_stack(50)),
    Scenario("200 reads of 600 modules", 1_568, lambda: reads_of_stack(200)),
    Scenario("one edit", 200, one_edit),
    Scenario("a patching sweep, per run", 250, patching_sweep),
    Scenario("cache of every module", 500, cache_of_everything),
    Scenario("20 steps of generation, a read each", 2_500, generation),
    Scenario("a stored edit", 250, stored_edit),
    Scenario("scan", 3_000, scan),
    Scenario("a session of ten traces", 2_500, session_of_ten),
    Scenario("backward with 12 gradients", 1_200, twelve_gradients),
    Scenario("first run of a new line", 600, lambda: new_line(0)),
    Scenario("the same in 5,000 lines", 700, lambda: new_line(2_500)),
    Scenario("2 invokes, a read each", 700, lambda: invokes(2)),
    Scenario("2 invokes with a barrier", 700, barrier),
    Scenario("16 invokes, a read each", 2_500, lambda: invokes(16)),
    Scenario("12 standard names", 800, every_resid_post),
    Scenario("without a head, by standard name", 450, without_a_head),
    Scenario("the pattern of one layer", 800, one_pattern),
    Scenario("wrap a model", 300, lambda: wrap(gpt2)),
    Scenario("wrap 600 modules", 600, lambda: wrap(stack)),
    Scenario("plain forward of a wrapped model", 0, plain_forward),
    Scenario("import, above torch", 30, measure=import_time, unit="ms"),
    Scenario("kept after 1,000 traces", 0, measure=kept, unit="MB"),
]
