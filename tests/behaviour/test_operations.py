"""Operations inside a forward, as users meet them."""

from __future__ import annotations

import functools
import gc
import threading
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import hooks_on
from torch import Tensor, nn

from nnsight import NNsight, OutOfOrderError, OutsideTraceError, SourceNotAvailable
from nnsight.interleave.errors import BatchError, MissedProviderError, NeverCalledError


def scaled(x: Tensor, by: float = 2.0) -> Tensor:
    y = x * by
    return torch.tanh(y)


def no_grad_and_double(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(self: Any, x: Tensor) -> Tensor:
        return forward(self, x) * 2

    return wrapper


class Block(nn.Module):
    """Two operations on each side of a module, a call of a function, and a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.gate = nn.Linear(4, 4)
        self.rounds = 2

    def mix(self, a: Tensor, b: Tensor) -> Tensor:
        total = a + b
        return torch.relu(total)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(x)
        h = self.fc(h)
        left, right = torch.chunk(h, 2, dim=-1)
        h = torch.cat([right, left], dim=-1)
        function = scaled
        h = function(h, by=3.0)
        for _ in range(self.rounds):
            h = torch.cos(h)
        return self.mix(h, self.gate(x))


class Doubled(Block):
    @no_grad_and_double
    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(x)
        return self.fc(h)


class Net(nn.Module):
    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([block() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return torch.softmax(x, dim=-1)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def model(net: Net) -> NNsight:
    return NNsight(net)


X = torch.linspace(-1, 1, 12).view(3, 4)


def steps_of(block: Block, x: Tensor) -> dict[str, Tensor]:
    """What the operations of a block compute, by hand."""
    found = {"sin": torch.sin(x)}
    found["fc"] = block.fc(found["sin"])
    left, right = found["fc"].chunk(2, dim=-1)
    found |= {"left": left, "right": right, "cat": torch.cat([right, left], dim=-1)}
    found["y"] = found["cat"] * 3.0
    found["scaled"] = torch.tanh(found["y"])
    found["cos"] = torch.cos(found["scaled"])
    found["cos2"] = torch.cos(found["cos"])
    found["total"] = found["cos2"] + block.gate(x)
    found["mix"] = torch.relu(found["total"])
    return found


def raw(net: Net, place: str, change: Any) -> Tensor:
    """The output of `net` where the first block computes `change(value)` at `place`."""

    class Changed(Block):
        def forward(self, x: Tensor) -> Tensor:
            put = lambda name, v: change(v) if name == place else v  # noqa: E731
            h = put("fc", self.fc(put("sin", torch.sin(x))))
            left, right = h.chunk(2, dim=-1)
            h = put("cat", torch.cat([put("right", right), put("left", left)], dim=-1))
            h = put("scaled", torch.tanh(put("y", h * 3.0)))
            h = put("cos2", torch.cos(put("cos", torch.cos(h))))
            return put("mix", torch.relu(put("total", h + self.gate(x))))

    first = net.blocks[0]
    first.__class__ = Changed
    try:
        return net(X)
    finally:
        first.__class__ = Block


# --- reading --------------------------------------------------------------------------------------


def test_calls_and_assignments_are_read(net: Net, model: NNsight):
    expected = steps_of(net.blocks[0], net.embed(X))
    with model.trace(X):
        ops = model.blocks[0].source
        sin = ops.torch_sin_0.output.save()
        bound = ops.h_0.output.save()
        fc_in = ops.self_fc_0.input.save()
        fc = ops.self_fc_0.output.save()
        chunks = ops.torch_chunk_0.output.save()
        left = ops.left_0.output.save()
        right = ops.right_0.output.save()
        inputs = ops.torch_cat_0.inputs.save()
        cat = ops.torch_cat_0.output.save()
        mixed = ops.self_mix_0.inputs.save()
        out = model.blocks[0].output.save()
    assert sin is bound and sin is fc_in
    for value, name in [(sin, "sin"), (fc, "fc"), (left, "left"), (right, "right"), (cat, "cat")]:
        assert torch.equal(value, expected[name])
    assert isinstance(chunks, tuple) and chunks[0] is left
    (parts,), kwargs = inputs
    assert parts[0] is right and kwargs == {"dim": -1}
    assert len(mixed[0]) == 2 and torch.equal(out, expected["mix"])
    assert hooks_on(net) == []


def test_a_forward_is_the_same_with_and_without(net: Net, model: NNsight):
    plain = net(X)
    with model.trace(X):
        for op in model.blocks[1].source:
            if op.name.startswith("torch_"):
                op.output  # noqa: B018
        out = model.output.save()
    assert torch.equal(out, plain)


def test_both_numberings_are_understood(gpt2):
    """The name is bound once before its call, and twice in transformers 4."""
    attn = gpt2.transformer.h[0].attn
    bindings = 2 if transformers.__version__.startswith("4.") else 1
    with gpt2.trace("Hello"):
        called = attn.source.attention_interface_0.output.save()
    with gpt2.trace("Hello"):
        merged = getattr(attn.source, f"attention_interface_{bindings}").output.save()
    assert torch.equal(called[0], merged[0]) and isinstance(called, tuple)
    for number in range(bindings):
        with gpt2.trace("Hello"):
            bound = getattr(attn.source, f"attention_interface_bound_{number}").output.save()
        assert callable(bound)
    assert not any(f"attention_interface_bound_{bindings}" == op.name for op in attn.source)


def test_attention_of_gpt2_equals_what_a_hook_on_its_projection_sees(gpt2):
    seen = []
    c_proj = gpt2._module.transformer.h[3].attn.c_proj
    handle = c_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with gpt2.trace("The Eiffel Tower"):
        ops = gpt2.transformer.h[3].attn.source
        heads = ops.attention_interface_0.output[0].save()
        given = ops.self_c_proj_0.input.save()
    handle.remove()
    assert torch.equal(given, seen[0]) and torch.equal(heads.flatten(2), seen[0])


def test_a_value_after_one_of_a_module_inside_it(gpt2):
    """By then the module is running: it was prepared since the block names `source`."""
    block = gpt2.transformer.h[2]
    with gpt2.trace("Hello"):
        qkv = block.attn.c_attn.output.save()
        split = block.attn.source.split_1.output.save()
        heads = block.attn.source.attention_interface_0.output[0].save()
        residual = block.source.hidden_states_1.output.save()
    assert split[0]._base is qkv or split[0].data_ptr() == qkv.data_ptr()
    assert heads.shape[:2] == qkv.shape[:2] and residual.shape[:2] == qkv.shape[:2]


# --- changing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["torch_sin_0", "self_fc_0", "right_0", "torch_cat_0"])
def test_replacing_an_operation(net: Net, model: NNsight, place: str):
    change = lambda v: v * 0.5 + 1  # noqa: E731
    with model.trace(X):
        op = model.blocks[0].source[place]
        op.output = change(op.output)
        out = model.output.save()
    name = place.removeprefix("torch_").removeprefix("self_").removesuffix("_0")
    assert torch.equal(out, raw(net, name, change))
    assert not torch.equal(out, net(X))


def test_changing_an_operation_in_place(net: Net, model: NNsight):
    with model.trace(X):
        model.blocks[0].source.torch_cat_0.output[:, 1] = 7
        out = model.output.save()

    def change(v: Tensor) -> Tensor:
        v = v.clone()
        v[:, 1] = 7
        return v

    assert torch.equal(out, raw(net, "cat", change))


def test_replacing_the_arguments(net: Net, model: NNsight):
    with model.trace(X):
        op = model.blocks[0].source.function_0
        (h,), kwargs = op.inputs
        op.inputs = (h * 2,), {**kwargs, "by": 1.0}
        given = op.inputs.save()
        value = op.output.save()
    assert given[1] == {"by": 1.0}
    assert torch.equal(value, torch.tanh(given[0][0]))
    with model.trace(X):
        model.blocks[0].source.self_fc_0.input = torch.zeros(3, 4)
        fc = model.blocks[0].fc.output.save()
    assert torch.equal(fc, net.blocks[0].fc(torch.zeros(3, 4)))


def test_skipping_an_operation(net: Net, model: NNsight):
    with model.trace(X):
        op = model.blocks[0].source.torch_sin_0
        op.skip(op.input)
        out = model.output.save()
    assert torch.equal(out, raw(net, "sin", lambda v: net.embed(X)))
    with model.trace(X):
        model.blocks[0].source.self_fc_0.skip(torch.ones(3, 4))
        fc = model.blocks[0].source.self_fc_0.output.save()
        out = model.output.save()
    assert torch.equal(fc, torch.ones(3, 4))
    assert torch.equal(out, raw(net, "fc", lambda v: torch.ones(3, 4)))


def test_inside_an_operation_after_it_was_skipped(net: Net, model: NNsight):
    def twice(x: Tensor) -> Tensor:
        return net(net(x))

    with model.trace(X, fn=twice) as tracer:
        mix = model.blocks[0].source.self_mix_0
        mix.skip(mix.input * 0)
        tracer.next()
        given = mix.source.torch_relu_0.input.save()
        out = mix.source.torch_relu_0.output.save()
    assert given.min() < 0 and torch.equal(out, given.relu())


def test_gradients_pass_through_a_changed_operation(net: Net, model: NNsight):
    with model.trace(X):
        op = model.blocks[0].source.torch_cat_0
        op.output = op.output * 3
        loss = model.output.pow(2).sum().save()
    loss.backward()
    got = net.embed.weight.grad.clone()
    net.zero_grad()
    raw(net, "cat", lambda v: v * 3).pow(2).sum().backward()
    assert torch.equal(got, net.embed.weight.grad)


# --- functions that operations call ---------------------------------------------------------------


def test_inside_a_function_kept_in_a_variable(net: Net, model: NNsight):
    expected = steps_of(net.blocks[0], net.embed(X))
    with model.trace(X):
        inside = model.blocks[0].source.function_0.source
        y = inside.y_0.output.save()
        tanh = inside.torch_tanh_0.output.save()
    assert torch.equal(y, expected["y"]) and torch.equal(tanh, expected["scaled"])
    with model.trace(X):
        model.blocks[0].source.function_0.source.y_0.output = torch.zeros(3, 4)
        out = model.output.save()
    assert torch.equal(out, raw(net, "y", lambda v: torch.zeros(3, 4)))


def test_inside_a_method(net: Net, model: NNsight):
    expected = steps_of(net.blocks[0], net.embed(X))
    inside = model.blocks[0].source.self_mix_0.source
    assert inside.names == ["total_0", "torch_relu_0"]
    with model.trace(X):
        total = inside.total_0.output.save()
    assert torch.equal(total, expected["total"])


def test_attention_weights_of_gpt2(gpt2_folder):
    from nnsight import LanguageModel

    model = LanguageModel(gpt2_folder, dispatch=True, attn_implementation="eager")
    with model.trace("The Eiffel Tower"):
        inside = model.transformer.h[1].attn.source.attention_interface_0.source
        weights = inside.nn_functional_softmax_0.output.save()
    assert weights.shape[1] == 4 and torch.allclose(weights.sum(-1), torch.ones(()))
    assert torch.equal(weights, weights.tril())


def test_the_names_in_a_function_show_inside_a_trace(model: NNsight):
    with model.trace(X):
        names = model.blocks[0].source.function_0.source.names.save()
    assert names == ["y_0", "torch_tanh_0"]
    with pytest.raises(
        SourceNotAvailable, match=r"decided while the model runs.*with model\.trace"
    ):
        _ = model.blocks[0].source.function_0.source


def test_a_submodule_has_its_own_source(model: NNsight):
    with pytest.raises(SourceNotAvailable, match=r"write `model\.blocks\.0\.fc\.source`"):
        _ = model.blocks[0].source.self_fc_0.source
    with (
        pytest.raises(SourceNotAvailable, match="its own envoy"),
        model.trace(X),
    ):
        _ = model.source.block_0.source.names


# --- loops and order ------------------------------------------------------------------------------


def test_an_operation_in_a_loop_is_visited_each_time(net: Net, model: NNsight):
    """Without a step the first visit is meant."""
    with model.trace(X):
        first = model.blocks[0].source.torch_cos_0.output.save()
    assert torch.equal(first, steps_of(net.blocks[0], net.embed(X))["cos"])


def test_a_value_that_was_passed(model: NNsight):
    with (
        pytest.raises(OutOfOrderError, match=r"source\.torch_sin_0\.output` was requested but"),
        model.trace(X),
    ):
        model.blocks[0].source.torch_cat_0.output  # noqa: B018
        model.blocks[0].source.torch_sin_0.output  # noqa: B018


def late(model: Any) -> Any:
    """A helper: its names are not those of the block."""
    return model.blocks[0].source.torch_cat_0.output


def test_a_module_that_is_already_running(net: Net, model: NNsight):
    with pytest.raises(OutOfOrderError, match=r"already running.*`ops = model\.blocks\.0\.source`"):
        with model.trace(X):
            model.blocks[0].fc.output  # noqa: B018
            late(model)
    assert hooks_on(net) == []


def test_an_operation_that_does_not_run(model: NNsight, net: Net):
    class Branch(nn.Module):
        def forward(self, x: Tensor, take: bool = False) -> Tensor:
            return torch.sin(x) if take else torch.cos(x)

    branch = NNsight(Branch())
    with branch.trace(X, take=True):
        sin = branch.source.torch_sin_0.output.save()
    assert torch.equal(sin, torch.sin(X))
    with pytest.raises(MissedProviderError, match=r"torch_sin_0.*branch"), branch.trace(X):
        branch.source.torch_sin_0.output  # noqa: B018


# --- several invokes ------------------------------------------------------------------------------


def test_each_invoke_has_its_rows(net: Net, model: NNsight):
    one, two = X[:1], X[1:] * 2
    alone = [steps_of(net.blocks[0], net.embed(x)) for x in (one, two)]
    with model.trace() as tracer:
        with tracer.invoke(one):
            first = model.blocks[0].source.torch_cat_0.output.save()
        with tracer.invoke(two):
            op = model.blocks[0].source.torch_cat_0
            (parts,), _ = op.inputs
            shape = parts[0].shape.save()
            second = op.output.clone().save()
            op.output = torch.zeros_like(op.output)
            out = model.output.save()
        with tracer.invoke():
            whole = model.blocks[0].source.torch_cat_0.output.save()
    assert torch.allclose(first, alone[0]["cat"]) and torch.allclose(second, alone[1]["cat"])
    assert shape[0] == 2 and whole.shape[0] == 3
    assert torch.equal(whole[1:], torch.zeros(2, 4)) and torch.equal(whole[:1], first)
    assert out.shape == (2, 4)


def test_one_invoke_skips_and_one_does_not(net: Net, model: NNsight):
    with model.trace() as tracer:
        with tracer.invoke(X[:1]):
            model.blocks[0].source.torch_sin_0.skip(torch.zeros(1, 4))
            first = model.blocks[0].fc.output.save()
        with tracer.invoke(X[1:]):
            second = model.blocks[0].fc.output.save()
    assert torch.allclose(first, net.blocks[0].fc(torch.zeros(1, 4)))
    assert torch.allclose(second, net.blocks[0].fc(torch.sin(net.embed(X[1:]))))


def test_a_replacement_of_another_size_is_refused(model: NNsight):
    with pytest.raises(BatchError, match=r"torch_cat_0\.output` does not fit"), model.trace(X):
        model.blocks[0].source.torch_cat_0.output = torch.zeros(2, 4)


class Flat(nn.Module):
    """Works on all heads of all rows in one dimension, and on a table that is as long as that."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        heads = x.reshape(-1, 3)  # two of each row, one row's after the other's
        mixed = torch.sin(heads)
        table = torch.tanh(self.table)
        return (mixed.view(x.shape[0], 2, 3) @ table.T).sum(1)


def test_rows_that_are_flattened_belong_to_their_invokes():
    model = NNsight(Flat())
    x = torch.randn(4, 6)
    with model.trace() as tracer:
        with tracer.invoke(x[:1]):
            mixed = model.source.torch_sin_0.output.save()
            table = model.source.torch_tanh_0.output.save()
        with tracer.invoke(x[1:]):
            model.source.torch_sin_0.output[:] = 0
            after = model.source.mixed_0.output.save()
    assert torch.equal(mixed, torch.sin(x[:1].reshape(-1, 3)))
    assert table.shape == (4, 3)  # as long as the batch, but everybody's
    assert after.shape == (6, 3) and not after.any()


# --- decorators, and forwards in odd places -------------------------------------------------------


def test_a_decorator_stays():
    net = Net(Doubled)
    model = NNsight(net)
    plain = net(X)
    with model.trace(X):
        inner = model.blocks[0].source.self_fc_0.output.save()
        outer = model.blocks[0].output.save()
        out = model.output.save()
    assert torch.equal(outer, inner * 2) and torch.equal(out, plain)


def test_a_forward_that_was_put_on_the_instance(net: Net, model: NNsight):
    def forward(x: Tensor) -> Tensor:
        return torch.exp(x)

    net.blocks[0].forward = forward
    with model.trace(X):
        value = model.blocks[0].source.torch_exp_0.output.save()
    assert torch.equal(value, net.embed(X).exp())
    assert net.blocks[0].forward is forward


def test_a_forward_that_accelerate_has_wrapped(net: Net, model: NNsight):
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(net.blocks[0], hooks.ModelHook())
    kept = dict(vars(net.blocks[0]))
    plain = net(X)
    with model.trace(X):
        model.blocks[0].input  # noqa: B018
        sin = model.blocks[0].source.torch_sin_0.output.save()
        out = model.output.save()
    assert torch.equal(sin, torch.sin(net.embed(X))) and torch.equal(out, plain)
    assert dict(vars(net.blocks[0])) == kept


def test_a_gate_and_operations_on_one_module(net: Net, model: NNsight):
    with model.trace() as tracer:
        with tracer.invoke(X[:1]):
            model.blocks[0].skip(torch.zeros(1, 4))
            one = model.blocks[0].output.save()
        with tracer.invoke(X[1:]):
            sin = model.blocks[0].source.torch_sin_0.output.save()
            two = model.blocks[0].output.save()
    assert not one.any() and sin.shape == (2, 4)
    assert torch.allclose(two, steps_of(net.blocks[0], net.embed(X[1:]))["mix"])
    assert hooks_on(net) == []
    with model.trace(X):
        given = model.blocks[0].input
        model.blocks[0].skip(given)
        mixed = model.blocks[1].source.self_mix_0.output.save()
    assert torch.allclose(mixed, steps_of(net.blocks[1], net.embed(X) * 2)["mix"])


NOT_AVAILABLE = {
    "exec": "kept nowhere",
    "lambda": "lambda",
    "scripted": "TorchScript",
    "compiled": "_orig_mod",
    "list": "only holds modules",
    "builtin": "not a Python function",
    "hidden": "decorator",
}


def _module_without_source(kind: str) -> nn.Module:
    inner = nn.Linear(4, 4)
    if kind == "exec":
        names: dict[str, Any] = {"torch": torch, "nn": nn}
        exec("class M(nn.Module):\n    def forward(self, x):\n        return x.sin()", names)
        return names["M"]()
    if kind == "lambda":
        return type("M", (nn.Module,), {"forward": lambda self, x: x.sin()})()
    if kind == "scripted":
        return torch.jit.trace(inner, X)  # type: ignore[return-value]
    if kind == "compiled":
        return torch.compile(inner, backend="eager")  # type: ignore[return-value]
    if kind == "list":
        return nn.ModuleList([inner])
    if kind == "hidden":
        cached = functools.lru_cache(Block.forward)
        return type("M", (nn.Module,), {"forward": lambda self, x: 0, "f": cached})()
    inner.forward = torch.sin
    return inner


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [k for k in NOT_AVAILABLE if k != "hidden"])
def test_forwards_without_source(kind: str):
    holder = nn.Module()
    holder.inner = _module_without_source(kind)
    model = NNsight(holder)
    with pytest.raises(SourceNotAvailable, match=rf"`model\.inner.*{NOT_AVAILABLE[kind]}"):
        _ = model.inner.source


def test_a_decorator_out_of_reach():
    class Cached(nn.Module):
        @functools.lru_cache  # noqa: B019
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    with pytest.raises(SourceNotAvailable, match="a decorator holds"):
        _ = NNsight(Cached()).source


def test_a_name_that_is_not_there(model: NNsight):
    with pytest.raises(AttributeError, match=r"no operation 'torch_sim_0'.*`torch_sin_0`.*print"):
        _ = model.blocks[0].source.torch_sim_0
    with pytest.raises(AttributeError, match=r"'y_3'.*`y_0`"), model.trace(X):
        model.blocks[0].source.function_0.source.y_3.output  # noqa: B018


def test_outside_a_trace(model: NNsight):
    with pytest.raises(OutsideTraceError, match=r"source\.torch_sin_0\.output` outside"):
        _ = model.blocks[0].source.torch_sin_0.output


def test_an_assignment_has_no_input(model: NNsight):
    with pytest.raises(ValueError, match=r"h_0` is an assignment.*`\.output`"), model.trace(X):
        model.blocks[0].source.h_0.input  # noqa: B018


def test_of_a_module_that_is_not_called(net: Net, model: NNsight):
    net.extra = Block()
    with pytest.raises(NeverCalledError, match="extra"), model.trace(X):
        model.extra.source.torch_sin_0.output  # noqa: B018


# --- looking at it --------------------------------------------------------------------------------


def test_the_listing_has_the_names_beside_the_lines(model: NNsight):
    lines = str(model.blocks[0].source).split("\n")
    assert lines[0].endswith("0  def forward(self, x: Tensor) -> Tensor:")
    assert any(line.startswith("torch_sin_0") and "h = torch.sin(x)" in line for line in lines)
    assert any(line.split() == ["h_0", "->", "+"] for line in lines)
    assert len(lines) == 10 + str(lines).count("+'")


def test_one_operation_shows_in_its_context(model: NNsight):
    shown = str(model.blocks[0].source.torch_chunk_0)
    assert shown.startswith("model.blocks.0.source.torch_chunk_0:")
    [arrow] = [line for line in shown.split("\n") if "-->" in line]
    assert "left, right = torch.chunk(h, 2, dim=-1)" in arrow
    assert "h = self.fc(h)" in shown


def test_it_shows_in_a_notebook(model: NNsight):
    source = model.blocks[0].source
    page = source._repr_html_()
    assert "torch_sin_0" in page and "<script" not in page and "-&gt; Tensor" in page
    assert "--&gt;" in source.torch_sin_0._repr_html_()


def test_source_is_a_collection_of_operations(model: NNsight):
    source = model.blocks[0].source
    assert source.names[:2] == ["torch_sin_0", "h_0"]
    assert [op.name for op in source] == source.names and len(source) == len(source.names)
    assert "h_0" in source and "h_99" not in source and "torch_sin_0" in dir(source)
    assert source.node("h_0") == source["h_0"] == source.h_0 != source.h_1


# --- nothing stays --------------------------------------------------------------------------------


def test_two_threads_meet_their_own_values(net: Net, model: NNsight):
    results: dict[int, list[bool]] = {0: [], 1: []}

    def work(n: int) -> None:
        x = X + n
        expected = net.embed(x).sin()
        for _ in range(20):
            with model.trace(x):
                value = model.blocks[0].source.torch_sin_0.output.save()
            results[n].append(torch.equal(value, expected))

    threads = [threading.Thread(target=work, args=(n,)) for n in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: [True] * 20, 1: [True] * 20}
    assert hooks_on(net) == []


def test_nothing_stays_with_the_garbage_collector_off(net: Net, model: NNsight):
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
        for _ in range(5):
            with model.trace(X):
                model.blocks[0].source.function_0.source.y_0.output  # noqa: B018
            with pytest.raises(OutOfOrderError), model.trace(X):
                model.blocks[0].source.torch_cat_0.output  # noqa: B018
                model.blocks[0].source.torch_sin_0.output  # noqa: B018
        assert sum(issubclass(type(o), Tensor) for o in gc.get_objects()) == before
    finally:
        gc.enable()
    assert hooks_on(net) == []


# --- steps ----------------------------------------------------------------------------------------


def tokens_and_heads(gpt2: Any, steps: int) -> tuple[Tensor, list[Tensor]]:
    """What a bare generation gives, and what its attention hands to the projection in each step."""
    network = gpt2._module
    seen: list[Tensor] = []
    c_proj = network.transformer.h[1].attn.c_proj
    handle = c_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    ids = gpt2.tokenizer("Hello", return_tensors="pt")
    tokens = network.generate(**ids, max_new_tokens=steps, min_new_tokens=steps, do_sample=False)
    handle.remove()
    return tokens, seen


def generation(gpt2: Any, steps: int) -> Any:
    return gpt2.generate("Hello", max_new_tokens=steps, min_new_tokens=steps, do_sample=False)


def test_an_operation_at_every_step(gpt2):
    tokens, expected = tokens_and_heads(gpt2, 4)
    with generation(gpt2, 4) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(gpt2.transformer.h[1].attn.source.attention_interface_0.output[0])
        result = tracer.result.save()
    assert [torch.equal(s.flatten(2), e) for s, e in zip(seen, expected, strict=True)] == [True] * 4
    assert torch.equal(result, tokens)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_an_operation_first_asked_for_at_a_later_step(gpt2, first: int):
    _, expected = tokens_and_heads(gpt2, 4)
    attn = gpt2.transformer.h[1].attn
    for _ in range(2):  # without and with a survey of earlier runs
        with generation(gpt2, 4) as tracer:
            seen = {}.save()
            for step in tracer.iter[:]:
                if step >= first:
                    seen[step] = attn.source.attention_interface_0.output[0].flatten(2)
        assert list(seen) == list(range(first, 4))
        assert all(torch.equal(seen[n], expected[n]) for n in seen)
        with generation(gpt2, 4) as tracer:
            for _ in tracer.iter[first]:
                late = attn.source.self_c_proj_0.input.save()
        assert torch.equal(late, expected[first])


def test_inside_a_called_function_at_every_step(gpt2):
    _, expected = tokens_and_heads(gpt2, 3)
    attn = gpt2.transformer.h[1].attn
    with generation(gpt2, 3) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            inside = attn.source.attention_interface_0.source
            seen.append(inside[inside.names[-1]].output)  # what it returns
    assert [torch.equal(s.flatten(2), e) for s, e in zip(seen, expected, strict=True)] == [True] * 3


def test_skipping_an_operation_at_one_step(gpt2):
    with generation(gpt2, 3) as tracer:
        norms = [].save()
        for step in tracer.iter[:]:
            mlp = gpt2.transformer.h[1].mlp
            if step == 1:
                op = mlp.source.self_act_0
                op.skip(torch.zeros_like(op.input))
            norms.append(mlp.source.self_c_proj_0.input.norm().item())
    assert [n == 0 for n in norms] == [False, True, False]


class Recurrent(nn.Module):
    """Its cell runs three times in a forward; each time it goes through a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.cell(x)
        return x


class Cell(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(x)
        for n in range(2):
            x = torch.add(x, n + 1)
        return x * 0.5


def recurrent_values() -> tuple[list[Tensor], list[Tensor]]:
    x, sines, sums = X, [], []
    for _ in range(3):
        sines.append(x.sin())
        sums += [sines[-1] + 1, sines[-1] + 1 + 2]
        x = sums[-1] * 0.5
    return sines, sums


def test_operations_of_a_module_that_runs_several_times():
    model = NNsight(Recurrent())
    sines, sums = recurrent_values()
    with model.trace(X) as tracer:
        seen = [].save()
        for _ in tracer.iter[:3]:
            seen.append(model.cell.source.torch_sin_0.output)
    assert all(map(torch.equal, seen, sines)) and len(seen) == 3
    with model.trace(X) as tracer:
        seen = [].save()
        for _ in tracer.iter[:6]:
            seen.append(model.cell.source.torch_add_0.output)
    assert all(map(torch.equal, seen, sums)) and len(seen) == 6


def late_sum(model: Any) -> Any:
    return model.cell.source.torch_add_0.output


def test_a_loop_that_was_not_counted():
    model = NNsight(Recurrent())
    with pytest.raises(OutOfOrderError, match=r"is in a loop.*`ops = model\.cell\.source`"):
        with model.trace(X) as tracer:
            for step in tracer.iter[:3]:
                model.cell.input  # noqa: B018
                if step == 1:
                    late_sum(model)


def late_sine(model: Any) -> Any:
    return model.cell.source.torch_sin_0.output


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_helper_that_asks_before_the_forward_begins(first: int):
    """The module has been called: its input is at hand. It is not running yet."""
    model = NNsight(Recurrent())
    sines, _ = recurrent_values()
    for _ in range(2):
        with model.trace(X) as tracer:
            seen = {}.save()
            for step in tracer.iter[:3]:
                model.cell.input  # noqa: B018
                if step >= first:
                    seen[step] = late_sine(model)
        assert (
            all(torch.equal(seen[n], sines[n]) for n in range(first, 3)) and len(seen) == 3 - first
        )


# --- with the other verbs -------------------------------------------------------------------------


def test_an_edit_of_an_operation(net: Net, model: NNsight):
    with model.edit() as edited:
        op = model.blocks[0].source.torch_cat_0
        op.output = op.output * 3
    with edited.trace(X):
        out = model.output.save()
    assert torch.equal(out, raw(net, "cat", lambda v: v * 3))
    with edited.trace(X):
        cat = edited.blocks[0].source.torch_cat_0.output.save()
    with model.trace(X):
        plain = model.blocks[0].source.torch_cat_0.output.save()
    assert torch.equal(cat, plain * 3)


def test_shapes_of_operations_in_a_scan(model: NNsight):
    with model.scan(X):
        shape = model.blocks[0].source.left_0.output.shape.save()
    assert shape == (3, 2)


def test_a_gradient_at_an_operation(net: Net, model: NNsight):
    with model.trace(X):
        cat = model.blocks[0].source.torch_cat_0.output
        with model.output.pow(2).sum().backward():
            grad = cat.grad.save()
    kept: list[Tensor] = []

    def keep(v: Tensor) -> Tensor:
        v.retain_grad()
        kept.append(v)
        return v

    raw(net, "cat", keep).pow(2).sum().backward()
    assert torch.equal(grad, kept[0].grad)


def test_operations_are_in_the_report(model: NNsight):
    with model.trace(X) as tracer:
        op = model.blocks[0].source.torch_cat_0
        op.output = op.output * 3
        print(tracer)
    assert "blocks.0.source.torch_cat_0.output" in str(tracer.report())


def test_stopping_in_an_operation(net: Net, model: NNsight):
    with model.trace(X) as tracer:
        cat = model.blocks[0].source.torch_cat_0.output.save()
        tracer.stop()
    assert cat.shape == (3, 4) and hooks_on(net) == []


def test_operations_of_a_call_that_is_part_of_the_run(net: Net, model: NNsight):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.embed.output  # noqa: B018
            model.blocks[1](X, hook=True)
        with tracer.invoke():
            for _ in tracer.iter[:1]:
                sin = model.blocks[1].source.torch_sin_0.output.save()
    assert torch.equal(sin, X.sin())


def test_a_child_called_source():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.source(x)

    model = NNsight(Named())
    with model.trace(X):
        own = model.E_source.output.save()
        called = model.source.self_source_0.output.save()
    assert called is own
