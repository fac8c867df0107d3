# ruff: noqa: B018 -- a value is read by naming it
"""`tracer.cache(...)`: what it keeps, of whom and from when on, and how it is read and stored."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import nnsight
from nnsight import Cache, NNsight
from nnsight.traces.errors import NotCachedError
from tests.conftest import hooks_on


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> tuple[torch.Tensor, None]:
        return x + self.mlp(self.attn(x)) * scale, None


class Net(nn.Module):
    """A list of layers, a module in two places, one that runs twice and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.again = self.embed
        self.act = nn.ReLU(inplace=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.embed(x))
        for layer in self.layers:
            x, _ = layer(x, scale=2.0)
        return self.act(x)


X = torch.linspace(-1, 1, 8).reshape(2, 4)
TWICE = {"model.act"}


@pytest.fixture
def module() -> Net:
    return Net().eval()


@pytest.fixture
def model(module: Net) -> Iterator[NNsight]:
    yield NNsight(module)
    assert hooks_on(module) == []


def raw(module: nn.Module, x: torch.Tensor) -> dict[str, list[tuple[list, list]]]:
    """Of every module that runs the leaves of its input and its output, at each visit."""
    seen: dict[str, list[tuple[list, list]]] = {}

    def leaves(value) -> list[torch.Tensor]:
        return [leaf.detach().clone() for leaf in nnsight.nested.leaves(value)]

    def before(path):
        def hook(m, args, kwargs):
            seen.setdefault(path, []).append((leaves((args, kwargs)), []))

        return hook

    def after(path):
        def hook(m, args, output):
            seen[path][-1][1].extend(leaves(output))

        return hook

    handles = []
    for path, inner in module.named_modules():
        name = f"model.{path}" if path else "model"
        handles.append(inner.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(inner.register_forward_hook(after(name)))
    module(x)
    for handle in handles:
        handle.remove()
    return seen


# --- what it keeps --------------------------------------------------------------------------------


def test_every_module_that_runs_is_kept_with_what_raw_hooks_see(model, module):
    expected = raw(module, X)
    with model.trace(X) as tracer:
        cache = tracer.cache(include_inputs=True)
    assert set(cache) == set(expected) and len(cache) == len(expected)
    for path, visits in expected.items():
        assert len(cache[path].visits) == len(visits) == (2 if path in TWICE else 1)
        for entry, (inputs, output) in zip(cache[path].visits, visits, strict=True):
            torch.testing.assert_close(list(nnsight.nested.leaves(entry.inputs)), inputs)
            torch.testing.assert_close(list(nnsight.nested.leaves(entry.output)), output)


def test_values_are_those_before_later_changes_in_place(model, module):
    before = module.embed(X).detach()
    assert before.min() < 0
    met = []
    with model.trace(X) as tracer:  # the activation changes its input, which is embed's output
        cache = tracer.cache()
        met.append(model.embed.output)
        assert met[0].min() < 0
    assert met[0].min() == 0
    torch.testing.assert_close(cache.model.embed.output, before)


def test_a_change_by_the_block_after_the_model_went_on_is_not_in_it(model):
    with model.trace(X) as tracer:
        cache = tracer.cache(modules=[model.layers[0], "layers.1.attn"])
        first = model.layers[0].output[0]
        model.layers[1].attn.output
        first[:] = 7
        model.layers[2].output
    assert (cache["model.layers.0"].output[0] != 7).all()


def test_edits_by_the_block_are_in_it(model):
    with model.trace(X) as tracer:
        cache = tracer.cache(include_inputs=True)
        model.embed.output[:] = 1
        model.layers[0].attn.output = torch.full((2, 4), 2.0)
        model.layers[1].attn.input = torch.full((2, 4), 3.0)
        model.layers[2].mlp.skip(torch.full((2, 4), 5.0))
    assert (cache.embed.output == 1).all()
    assert (cache.layers[0].attn.output == 2).all()
    assert (cache.layers[1].attn.input == 3).all()
    assert (cache.layers[2].mlp.output == 5).all()


def test_two_blocks_that_edit_one_place_are_both_in_it(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            mine = tracer.cache(modules=model.embed)
            model.embed.output[:] = 1
        with tracer.invoke(X):
            yours = tracer.cache(modules=model.embed)
            model.embed.output = torch.full((2, 4), 2.0)
        with tracer.invoke():
            everybodys = tracer.cache(modules=model.embed)
    assert (mine.embed.output == 1).all() and (yours.embed.output == 2).all()
    expected = torch.cat([mine.embed.output, yours.embed.output])
    torch.testing.assert_close(everybodys.embed.output, expected)


def test_an_invoke_has_its_own_rows(model, module):
    other = X.flip(1) * 3
    with model.trace() as tracer:
        whole = tracer.cache()
        with tracer.invoke(X):
            first = tracer.cache(include_inputs=True)
        with tracer.invoke(other):
            second = tracer.cache(include_inputs=True)
    for rows, x in ((first, X), (second, other)):
        for path, visits in raw(module, x).items():
            for entry, (inputs, output) in zip(rows[path].visits, visits, strict=True):
                torch.testing.assert_close(list(nnsight.nested.leaves(entry.inputs)), inputs)
                torch.testing.assert_close(list(nnsight.nested.leaves(entry.output)), output)
    for path in first:
        for one, two, both in zip(
            *[[list(nnsight.nested.leaves(e.output)) for e in c[path].visits]
              for c in (first, second, whole)], strict=True
        ):  # fmt: skip
            joined = [torch.cat(pair) for pair in zip(one, two, strict=True)]
            torch.testing.assert_close(joined, both)


def test_it_wakes_no_block(model, monkeypatch):
    turns = []
    from nnsight.interleave.worker import Worker

    take = Worker._turn
    monkeypatch.setattr(Worker, "_turn", lambda self, drive: turns.append(1) or take(self, drive))
    with model.trace(X) as tracer:
        tracer.cache(include_inputs=True)
    assert len(turns) == 1  # its start


def test_a_cache_opened_late_has_what_comes_later(model):
    with model.trace(X) as tracer:
        model.layers[1].attn.output
        cache = tracer.cache()
    assert cache.keys() == [
        "model.layers.1.attn",
        "model.layers.1.mlp",
        "model.layers.1",
        "model.layers.2.attn",
        "model.layers.2.mlp",
        "model.layers.2",
        "model.act",
        "model",
    ]
    assert len(cache["act"].visits) == 1
    with pytest.raises(NotCachedError, match=r"did not come by .* first line of the block"):
        cache["model.layers.0"].output


def test_a_visit_that_had_begun_is_not_mixed_with_the_next(model, tmp_path):
    def roll(x):
        return model._module(model._module(x))

    with model.trace(X, fn=roll) as tracer:
        model.layers[1].attn.output
        cache = tracer.cache(include_inputs=True)
        tracer.next()
        before, after = model.layers[1].input.save(), model.layers[1].output.save()
    whole, part = cache["layers.1"].visits[::-1]
    assert torch.equal(whole.input, before)
    assert torch.equal(whole.output[0], after[0])
    with pytest.raises(NotCachedError, match=r"no input: the cache was opened while the module"):
        part.input
    assert torch.equal(cache["layers.1"].input, before) and len(cache["layers.1"].output) == 2
    cache.save(tmp_path / "cache.safetensors")
    loaded = nnsight.Cache.load(tmp_path / "cache.safetensors")["layers.1"]
    assert [set(visit.values) for visit in loaded.visits] == [{"output"}, {"input", "output"}]
    assert torch.equal(loaded.visits[1].input, before)


def test_several_caches_are_independent(model):
    with model.trace(X) as tracer:
        one = tracer.cache(modules="*.mlp")
        two = tracer.cache(modules=model.embed, include_output=False, include_inputs=True)
    assert one.keys() == [f"model.layers.{n}.mlp" for n in range(3)]
    assert two.keys() == ["model.embed"] and torch.equal(two.embed.input, X)


def test_a_stop_keeps_what_was_met(model):
    with model.trace(X) as tracer:
        cache = tracer.cache()
        model.layers[0].output
        tracer.stop()
    assert cache.keys()[-1] == "model.layers.0" and "model.layers.1" not in cache


def test_an_error_of_the_block_keeps_what_was_met(model):
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace(X) as tracer:
            tracer.cache().save()
            kept = tracer.cache()
            model.layers[0].output
            1 / len(kept["unused"])
    assert "model.layers.0.mlp" in caught.value.saved["kept"]


def test_the_traced_part_of_a_model(model, module):
    with model.layers[1].trace(X) as tracer:
        cache = tracer.cache()
    assert cache.keys() == ["model.layers.1.attn", "model.layers.1.mlp", "model.layers.1"]
    torch.testing.assert_close(cache.layers[1].output[0], module.layers[1](X)[0])


def test_a_module_added_after_a_first_cache_is_there(model, module):
    with model.trace(X) as tracer:
        tracer.cache()
    module.layers.append(Layer())
    with model.trace(X) as tracer:
        cache = tracer.cache(modules="layers.3")
    assert cache.layers[3].output[0].shape == (2, 4)


def test_calls_beside_the_model_are_not_kept(model):
    with model.trace(X) as tracer:
        cache = tracer.cache()
        model.unused(model.embed.output)
        model.layers[0].attn(X)
    assert "unused" not in cache and len(cache["layers.0.attn"].visits) == 1


def test_two_threads_keep_their_own(model, module):
    found: dict[int, Cache] = {}
    both = threading.Barrier(2)

    def run(number: int) -> None:
        for _ in range(20):
            both.wait()
            with model.trace(X * number) as tracer:
                cache = tracer.cache()
            found[number] = cache

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, cache in found.items():
        for path, visits in raw(module, X * number).items():
            assert len(cache[path].visits) == len(visits)
            for entry, (_, output) in zip(cache[path].visits, visits, strict=True):
                torch.testing.assert_close(list(nnsight.nested.leaves(entry.output)), output)


# --- how it keeps them ----------------------------------------------------------------------------


def test_copies_are_detached_and_on_the_cpu(model):
    with model.trace(X) as tracer:
        cache = tracer.cache(include_inputs=True)
    for entry in cache.values():
        for tensor in nnsight.nested.leaves([e.values for e in entry.visits]):
            assert not tensor.requires_grad and tensor.device.type == "cpu"


def test_the_dtype_is_for_floating_point_values_only():
    words = NNsight(nn.Embedding(5, 4))
    with words.trace(torch.tensor([1, 2])) as tracer:
        cache = tracer.cache(dtype=torch.float16, include_inputs=True)
    assert cache.model.output.dtype == torch.float16
    assert cache.model.input.dtype == torch.int64


def test_without_detaching_gradients_can_be_taken(model, module):
    with model.trace(X) as tracer:
        cache = tracer.cache(modules=[model.layers[0].attn, model], detach=False)
    (found,) = torch.autograd.grad(cache.model.output.sum(), cache.layers[0].attn.output)
    seen: list[torch.Tensor] = []
    handle = module.layers[0].attn.register_forward_hook(lambda m, a, o: seen.append(o))
    loss = module(X).sum()
    (expected,) = torch.autograd.grad(loss, seen[0])
    handle.remove()
    torch.testing.assert_close(found, expected)


def test_without_detaching_gradients_of_the_rows_of_an_invoke_can_be_taken(model):
    def gradients(*others: torch.Tensor) -> list[torch.Tensor]:
        with model.trace() as tracer:
            with tracer.invoke(X):
                cache = tracer.cache(modules=model.layers[0].attn, detach=False)
                loss = model.output.sum().save()
                attn = cache.layers[0].attn.output
                (asked,) = torch.autograd.grad(loss, attn, retain_graph=True)
                with loss.backward(retain_graph=True):
                    read = attn.grad.save()
                asked = asked.save()
            for other in others:
                with tracer.invoke(other):
                    pass
        rows = cache.layers[0].attn.output
        rows.retain_grad()
        loss.backward()
        return [asked, read, rows.grad]

    alone, beside = gradients(), gradients(X + 1)
    assert alone[0].any()
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(other, one)
    for one in alone[1:]:
        torch.testing.assert_close(one, alone[0])


def test_without_detaching_a_later_change_in_place_still_does_not_reach_it(model, module):
    before = module.embed(X).detach()
    with model.trace(X) as tracer:
        cache = tracer.cache(modules=model.embed, detach=False)
        model.layers[0].attn.input  # after the activation, which works in place
        torch.testing.assert_close(cache.embed.output.detach(), before)
    torch.testing.assert_close(cache.embed.output.detach(), before)
    assert cache.embed.output.requires_grad


def test_a_container_that_the_model_fills_later_is_kept_as_it_was():
    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Adds(), Adds()

        def forward(self, x):
            kept: list[torch.Tensor] = []
            self.one(x, kept)
            self.two(x, kept)
            return kept[-1]

    class Adds(nn.Module):
        def forward(self, x, kept):
            kept.append(x)
            return kept

    model = NNsight(Fills())
    with model.trace(X) as tracer:
        cache = tracer.cache(include_inputs=True)
    assert len(cache.one.inputs[0][1]) == 0
    assert len(cache.one.output) == 1 and len(cache.two.output) == 2


# --- whom it keeps --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("*.mlp", ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]),
        ("model.layers.*.attn", ["layers.0.attn", "layers.1.attn", "layers.2.attn"]),
        (["layers.0", "model.embed"], ["embed", "layers.0"]),
        (["layers.2.*", "layers.2.attn"], ["layers.2.attn", "layers.2.mlp"]),
        ("again", ["embed"]),
        ([], []),
    ],
)
def test_paths_and_patterns(model, asked, kept):
    with model.trace(X) as tracer:
        cache = tracer.cache(modules=asked)
    assert cache.keys() == [f"model.{path}" for path in kept]


def test_envoys_alone_and_in_lists(model):
    with model.trace(X) as tracer:
        one = tracer.cache(modules=model.layers[0])
        some = tracer.cache(modules=[model.embed, model.layers[:2]])
        every = tracer.cache(modules=model)
    assert one.keys() == ["model.layers.0"]
    assert some.keys() == ["model.embed", "model.layers.0", "model.layers.1"]
    assert every.keys() == ["model"]


# --- how it is read -------------------------------------------------------------------------------


def test_the_views_of_one_module_are_the_same(model):
    with model.trace(X) as tracer:
        cache = tracer.cache()
    views = [
        cache["model.layers.1.mlp"],
        cache["layers.1.mlp"],
        cache.model.layers[1].mlp,
        cache.layers[1].mlp,
        cache.layers[-2].mlp,
        cache.layers[0:2][1].mlp,
        cache.model.layers["1"]["mlp"],
        cache["model.layers"]["1.mlp"],
    ]
    assert all(view.output is views[0].output for view in views)


def test_several_visits_are_a_list(model):
    with model.trace(X) as tracer:
        cache = tracer.cache(include_inputs=True)
    view = cache.model.act
    assert [len(view), len(view.output), len(view.input), len(view.inputs)] == [2] * 4
    assert torch.equal(view[0].output, view.output[0]) and torch.equal(
        view[-1].input, view.input[1]
    )
    assert [entry.output is kept for entry, kept in zip(view, view.output, strict=True)] == [
        True
    ] * 2


def test_it_is_a_mapping(model):
    with model.trace(X) as tracer:
        cache = tracer.cache()
    assert list(cache) == cache.keys() and len(cache) == len(cache.values()) == len(cache.items())
    assert dict(cache.items()).keys() == set(cache)
    assert "layers.0" in cache and "model.layers.0" in cache and "layers" not in cache
    assert [view.output[0] is cache[f"layers.{n}"].output[0] for n, view in enumerate(cache.layers)]
    assert len(cache.layers) == 3
    assert cache.layers[0].keys() == [f"model.layers.0{end}" for end in (".attn", ".mlp", "")]
    assert "layers" in dir(cache.model) and "attn" in dir(cache.layers[0])
    assert "model.embed: output a tensor of shape [2, 4]" in repr(cache)


def test_aliases_are_known(module):
    model = NNsight(module, rename={"layers": "h", "mlp": "ff"})
    with model.trace(X) as tracer:
        cache = tracer.cache()
        few = tracer.cache(modules=["h.0.ff", model.h[1].ff])
        some = tracer.cache(modules="*.ff")
    assert cache.h[0].ff.output is cache["model.layers.0.mlp"].output
    assert cache["h.0.ff"].output is cache["layers.0.mlp"].output
    assert few.keys() == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert some.keys(alias=True) == [f"model.h.{n}.ff" for n in range(3)]
    assert cache.keys(alias=True)[0] == "model.embed" and "h.0.ff" in cache


def test_a_child_that_is_called_like_the_model():
    inner = nn.Sequential(nn.Linear(4, 4))
    outer = nn.Module()
    outer.model = inner
    outer.forward = lambda x: inner(x)
    model = NNsight(outer)
    with model.trace(X) as tracer:
        cache = tracer.cache()
    assert cache["model.model"].output is cache.model.model.output
    torch.testing.assert_close(cache["model.0"].output, cache.model.output)
    assert cache.keys() == ["model.model.0", "model.model", "model"]


def test_children_with_the_names_of_the_view():
    inner = nn.Sequential()
    for name in ("output", "input", "save", "keys", "values"):
        inner.add_module(name, nn.Linear(4, 4))
    model = NNsight(inner)
    with model.trace(X) as tracer:
        cache = tracer.cache()
    assert torch.equal(cache.model.E_output.output, inner.output(X).detach())
    assert torch.equal(cache.E_values.output, cache.model.output)
    assert cache["model.save"].output.shape == (2, 4)


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("layers.0.mpl", r"no module 'layers.0.mpl'.*Did you mean `model.layers.0.mlp`"),
        ("*.mpl", r"no module of this model matches '\*\.mpl'.*`\*` stands for any text"),
        ("layers", r"'layers' only holds modules.*modules=list\(model.layers\).*model.layers.\*"),
        (3, r"3 is no module of a wrapped model"),
    ],
)
def test_what_is_not_there_is_refused(model, asked, says):
    with pytest.raises(ValueError, match=says):
        with model.trace(X) as tracer:
            tracer.cache(modules=asked)


def test_a_module_of_another_model_is_refused(model):
    other = NNsight(Net())
    with pytest.raises(ValueError, match=r"`model.embed` is part of another model"):
        with model.trace(X) as tracer:
            tracer.cache(modules=other.embed)


def test_nothing_to_keep_is_refused(model):
    with pytest.raises(ValueError, match="nothing to keep"):
        with model.trace(X) as tracer:
            tracer.cache(include_output=False)


def test_outside_a_block_is_refused(model):
    with model.trace(X) as tracer:
        model.output.save()
    with pytest.raises(ValueError, match=r"tracer\.cache\(\).*outside of interleaving"):
        tracer.cache()


def test_what_was_not_kept_is_told_by_reason(model):
    with model.trace(X) as tracer:
        cache = tracer.cache(modules=["embed", "layers.0.mlp", "unused"])
    with pytest.raises(KeyError, match="include_inputs=True"):
        cache.embed.input
    with pytest.raises(KeyError, match=r"no output of `model.unused`: the run did not come by it"):
        cache.unused.output
    with pytest.raises(KeyError, match=r"It has `model.layers.0.mlp` and others below it"):
        cache.layers[0].output
    with pytest.raises(KeyError, match=r"no module 'layers.0.mpl'.*Did you mean"):
        cache["layers.0.mpl"]
    with pytest.raises(AttributeError, match=r"no module 'model.embd'.*`model.embed`"):
        cache.model.embd
    with pytest.raises(IndexError, match=r"`model.layers` has 3 modules"):
        cache.layers[3]
    assert not hasattr(cache, "nothing_like_it")


# --- what becomes of it ---------------------------------------------------------------------------


def test_it_round_trips_through_safetensors(model, tmp_path):
    with model.trace(X) as tracer:
        cache = tracer.cache(include_inputs=True)
    cache.save(tmp_path / "cache.safetensors")
    loaded = Cache.load(tmp_path / "cache.safetensors")
    assert loaded.keys() == cache.keys()
    for path in cache:
        for one, two in zip(cache[path].visits, loaded[path].visits, strict=True):
            torch.testing.assert_close(two.output, one.output)
            torch.testing.assert_close(two.inputs, one.inputs)
    assert loaded.layers[-1].output[1] is None and loaded.layers[0].inputs[1] == {"scale": 2.0}
    from safetensors.torch import load_file

    plain = load_file(tmp_path / "cache.safetensors")
    assert torch.equal(plain["model.layers.0.output.0"], cache.layers[0].output[0])
    assert torch.equal(plain["model.act.output#1"], cache.act.output[1])


def test_a_part_of_it_can_be_saved(model, tmp_path):
    with model.trace(X) as tracer:
        cache = tracer.cache()
    cache.layers[1].save(tmp_path / "part.safetensors")
    loaded = Cache.load(tmp_path / "part.safetensors")
    assert loaded.keys() == [f"model.layers.1{end}" for end in (".attn", ".mlp", "")]


def test_another_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no cache"):
        Cache.load(tmp_path / "other.safetensors")


def test_a_language_models_outputs_round_trip(gpt2, tmp_path):
    with gpt2.trace("Hello World") as tracer:
        cache = tracer.cache(include_inputs=True)
        logits = gpt2.output.logits.clone().save()
    assert torch.equal(cache.model.output.logits, logits)
    cache.save(tmp_path / "cache.safetensors")
    loaded = Cache.load(tmp_path / "cache.safetensors")
    assert torch.equal(loaded.model.output.logits, logits)
    assert torch.equal(loaded.model.output["logits"], logits)
    assert torch.equal(
        loaded.transformer.h[3].attn.output[0], cache.transformer.h[3].attn.output[0]
    )


def test_it_pickles_and_outlives_the_model(tmp_path):
    module = Net()
    model = NNsight(module, rename={"layers": "h"})
    with model.trace(X) as tracer:
        cache = tracer.cache()
    gone = weakref.ref(module)
    gc.collect()
    gc.disable()
    try:
        del model, module, tracer
        assert gone() is None
    finally:
        gc.enable()
    twin = pickle.loads(pickle.dumps(cache))
    assert torch.equal(twin.h[0].mlp.output, cache.layers[0].mlp.output)


def test_it_comes_back_without_a_save_and_with_one(model):
    def opens():
        with model.trace(X) as tracer:
            cache = tracer.cache()
            kept = tracer.cache(modules="embed").save()
        return cache, kept

    cache, kept = opens()
    assert "embed" in cache and "embed" in kept


def test_a_function_can_return_it(model):
    cache = model.run(X, lambda tracer, model: tracer.cache(modules="*.mlp"))
    assert len(cache) == 3


def test_each_step_of_a_generation_is_a_visit(gpt2):
    settings = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    with gpt2.generate("Hello World", **settings) as tracer:
        cache = tracer.cache(modules=["lm_head", "*.mlp"])
        logits = [].save()
        for _ in tracer.iter[:]:
            logits.append(gpt2.lm_head.output.clone())
        ids = tracer.result.save()
    assert len(cache.lm_head) == len(logits) == 3
    for kept, read in zip(cache.lm_head.output, logits, strict=True):
        assert torch.equal(kept, read)
    chosen = torch.cat([step[:, -1].argmax(-1) for step in cache.lm_head.output])
    assert torch.equal(chosen, ids[0, -3:])
    assert [len(layer.mlp) for layer in cache.transformer.h] == [3] * 12
