"""Lines that only keep values: in any order, in one turn, and as right as one at a time."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, deque

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import nnsight
from nnsight import NNsight
from nnsight.interleave.errors import MissedProviderError, OutOfOrderError
from nnsight.interleave.turns import TurnThread


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(4)])
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def model(net):
    return NNsight(net)


@pytest.fixture
def x():
    return torch.randn(2, 4)


@pytest.fixture
def outputs(net, x):
    """The outputs of the layers, by hooks."""
    found: list[torch.Tensor] = []
    hooks = [m.register_forward_hook(lambda m, a, out: found.append(out)) for m in net.layers]
    net(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def turns(monkeypatch):
    """How often a block was given its turn."""
    counted: list[int] = []
    plain = TurnThread._hand_over
    monkeypatch.setattr(TurnThread, "_hand_over", lambda t: (counted.append(1), plain(t))[1])
    return counted


def same(ones, others):
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


def test_any_order_in_one_turn(model, x, outputs, turns):
    with model.trace(x):
        last = model.layers[3].output.save()
        first = model.layers[0].output[0].save()
        a, b = model.layers[2].output.save(), model.layers[1].output.save()
    assert same([last, first, a, b], [outputs[3], outputs[0][0], outputs[2], outputs[1]])
    assert not turns  # a block that only asks needs no thread


def test_lists_dicts_and_comprehensions(model, x, outputs, turns):
    mine, by_hand = [], {}
    with model.trace(x):
        for layer in model.layers:
            mine.append(layer.output)
        for index, layer in enumerate(model.layers):
            if index % 2:
                by_hand[index] = layer.output.detach()
        made = [layer.output.save() for layer in model.layers if layer].save()
        table = {i: layer.output for i, layer in enumerate(model.layers)}.save()
        pair = [model.layers[0].output, model.layers[3].output].save()
    assert same(mine, outputs) and same(made, outputs) and same([*table.values()], outputs)
    assert same(by_hand.values(), [outputs[1], outputs[3]]) and same(pair, [outputs[0], outputs[3]])
    assert list(table) == [0, 1, 2, 3] and not by_hand[1].requires_grad
    assert not turns


def test_a_line_that_does_more_sees_what_was_asked_for(model, x, outputs, turns):
    with model.trace(x):
        late = model.layers[2].output
        early = model.layers[0].output
        seen = (late - early).norm().item().save()
        after = model.layers[3].output.save()
    assert seen == (outputs[2] - outputs[0]).norm().item() and torch.equal(after, outputs[3])
    assert len(turns) == 2


def test_what_a_line_does_to_the_model_comes_after_what_was_asked_for(net, model, x, outputs):
    with model.trace(x):
        a = model.layers[0].output.save()
        b = model.layers[1].output.save()
        net.layers[1].fc.weight.data.zero_()
        net.layers[2].fc.weight.data.zero_()
        c = model.layers[2].output.save()
    assert same([a, b], outputs[:2]) and not torch.equal(c, outputs[2])


def test_an_edit_afterwards_and_before(model, x, outputs):
    with model.trace(x):
        a = model.layers[0].output.clone().save()
        b = model.layers[1].output.clone().save()
        model.layers[1].output[:] = 0
        c = model.layers[1].output.save()
        d = model.layers[2].fc.input.save()
    assert same([a, b], outputs[:2]) and not c.any() and not d.any()


def test_other_containers_get_the_value_itself(model, x, outputs):
    held, buffer, ordered = deque(), torch.zeros(2, 2, 4), OrderedDict()
    with model.trace(x):
        held.append(model.layers[0].output)
        buffer[0] = model.layers[1].output
        ordered["c"] = model.layers[2].output
        held.append(model.layers[3].output)
    assert same(held, [outputs[0], outputs[3]]) and torch.equal(buffer[0], outputs[1])
    assert torch.equal(ordered["c"], outputs[2])


def test_a_cache_is_looked_into_when_it_is_filled(model, x, outputs):
    with model.trace(x) as tracer:
        cache = tracer.cache()
        out = model.head.output.save()
        kept = [cache[name].output for name in cache if "layers" in name].save()
        first = cache.model.layers[0].output.save()
    assert torch.equal(first, outputs[0]) and len(kept) > 3 and out.shape == (2, 3)


def test_what_a_loop_runs_over_is_looked_at_in_time(model, x, outputs):
    names = []
    handle = model._module.layers[2].register_forward_hook(lambda *_: names.append(3))
    with model.trace(x):
        a = model.layers[2].output.save()
        b = model.layers[0].output.save()
        late = []
        for index in names:
            late.append(model.layers[index].output)
        late.save()
    handle.remove()
    assert same([a, b, *late], [outputs[2], outputs[0], outputs[3]])


def test_a_read_that_must_wait_may_stand_among_them(model, x, outputs):
    with model.trace(x) as tracer:
        cache = tracer.cache(modules=[model.layers[1]])
        a = model.layers[2].output.save()
        b = cache.model.layers[1].output.save()
    assert torch.equal(a, outputs[2]) and torch.equal(b, outputs[1])


@pytest.mark.parametrize("end", ["", "_ = a.sum()"])
def test_a_value_that_never_comes_is_told_at_its_line(model, x, end, tmp_path, monkeypatch):
    (tmp_path / "asks.py").write_text(
        "def run(model, x):\n"
        "    with model.trace(x):\n"
        "        a = model.layers[0].output.save()\n"
        "        b = model.unused.output.save()\n"
        f"        {end}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import asks  # pyright: ignore[reportMissingImports]

    with pytest.raises(MissedProviderError, match=r"model\.unused\.output") as caught:
        asks.run(model, x)
    monkeypatch.delitem(__import__("sys").modules, "asks")
    frame = caught.traceback[-1]
    assert frame.path.name == "asks.py" and frame.lineno == 3
    assert list(caught.value.saved) == ["a"]  # type: ignore[attr-defined]


def test_an_index_that_fails_is_told_at_its_line(model, x):
    with pytest.raises(IndexError) as caught:
        with model.trace(x):
            a = model.layers[0].output.save()  # noqa: F841
            b = model.layers[1].output[9].save()  # noqa: F841
    assert "output[9]" in str(caught.traceback[-1].statement)
    assert list(caught.value.saved) == ["a"]  # type: ignore[attr-defined]


def test_what_was_asked_for_is_saved_with_a_later_error(model, x, outputs):
    kept = []
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace(x):
            kept.append(model.layers[3].output)
            a = model.layers[1].output.save()  # noqa: F841
            1 / 0  # noqa: B018
    assert torch.equal(caught.value.saved["a"], outputs[1])  # type: ignore[attr-defined]
    assert same(kept, [outputs[3]])


def test_an_error_of_the_model_leaves_no_stand_ins(net, model, x, outputs):
    kept, table = [], {}
    handle = net.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace(x):
            kept.append(model.layers[3].output)
            kept.append(model.layers[0].output)
            table["late"] = model.layers[3].output
            a = model.layers[1].output.save()
            b = model.layers[3].output.save()  # noqa: F841
    handle.remove()
    assert same(kept, [outputs[0]]) and not table
    assert list(caught.value.saved) == ["a"]  # type: ignore[attr-defined]
    with model.trace(x):
        a = model.layers[1].output.save()
    assert torch.equal(a, outputs[1])


def test_a_stop_of_another_block_tells_of_what_was_due(model, x):
    with pytest.warns(UserWarning, match="before the block"):
        with model.trace() as tracer:
            with tracer.invoke(x):
                late = model.layers[3].output.save()
            with tracer.invoke(x):
                model.layers[1].output.sum()
                tracer.stop()
    with pytest.raises(NameError):
        late  # noqa: B018


def test_rows_of_invokes(model, x, outputs):
    with model.trace() as tracer:
        with tracer.invoke(x[:1]):
            one, first = model.layers[3].output.save(), model.layers[0].output.save()
        with tracer.invoke(x[1:]):
            model.layers[1].output[:] = 0
            zero, two = model.layers[2].fc.input.save(), model.layers[1].output.save()
    torch.testing.assert_close([one, first], [outputs[3][:1], outputs[0][:1]])
    assert zero.shape == two.shape == (1, 4) and not zero.any() and not two.any()


def test_blocks_that_share_a_name_wait_for_it(model, x, outputs):
    with model.trace() as tracer:
        with tracer.invoke(x):
            other = model.layers[0].output.save()
            clean = model.layers[1].output.save()
        with tracer.invoke(x * 2):
            model.layers[1].output = clean
            after = model.layers[2].output.save()
    torch.testing.assert_close(after, outputs[2])
    torch.testing.assert_close(other, outputs[0])


def test_a_list_of_several_blocks_is_filled_as_the_model_goes(model, x):
    seen: list[torch.Tensor] = []
    with model.trace() as tracer:
        for _ in range(2):
            with tracer.invoke(x):
                seen.append(model.layers[0].output)
                seen.append(model.layers[1].output)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


def test_the_grad_mode_of_the_line_is_that_of_its_parts(model, x):
    with model.trace(x):
        with torch.no_grad():
            a = model.layers[0].output.clone().save()
            b = model.layers[1].output.clone().save()
        c = model.layers[2].output.clone().save()
    assert not a.requires_grad and not b.requires_grad and c.requires_grad


def test_gradients_reach_what_was_kept(model, x):
    with model.trace() as tracer:
        with tracer.invoke(x[:1]):
            hidden = model.layers[0].output
            out = model.output
            with out.sum().backward():
                one = hidden.grad.save()
        with tracer.invoke(x[1:]):
            hidden_2 = model.layers[0].output
            out_2 = model.output
            with out_2.sum().backward():
                two = hidden_2.grad.save()
    solo = []
    for row in (x[:1], x[1:]):
        with model.trace(row):
            hidden = model.layers[0].output
            with model.output.sum().backward():
                solo.append(hidden.grad)
    torch.testing.assert_close([one, two], solo)


def test_a_saved_value_that_is_changed_by_its_own_block_is_told(model, x):
    with pytest.warns(UserWarning, match="`a` was changed in place"):
        with model.trace(x):
            a = model.layers[0].output.save()
            b = model.layers[1].output.save()  # noqa: F841
            a += 1


def test_a_function_named_save_of_ones_own(model, x, outputs):
    written = []

    def save(value):
        written.append(value.sum().item())
        return value

    with model.trace(x):
        a = save(model.layers[0].output)
        b = nnsight.save(model.layers[1].output)
        a.save()
    assert written == [outputs[0].sum().item()] and torch.equal(b, outputs[1])


def test_small_values_return_under_the_name_that_saved_them(model, x, outputs):
    with model.trace(x):
        size = model.layers[0].output.shape.save()
        number = model.layers[0].output[0, 0].item().save()
        other = model.layers[0].output[0, 0].item()  # noqa: F841
    assert size == (2, 4) and number == outputs[0][0, 0].item()


def test_a_module_call_before_is_still_out_of_order(model, x):
    with pytest.raises(OutOfOrderError):
        with model.trace(x):
            model.layers[2].output.sum()
            a = model.layers[1].output.save()  # noqa: F841
            b = model.layers[3].output.save()  # noqa: F841


def test_what_changes_as_the_model_runs_is_looked_into_in_time(net, model, x):
    model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)))
    with model.trace(x):
        hidden = model[0].output
        _ = hidden.sum()
        relu = model[1].output.save()
        after = (hidden + 0).save()
        _ = model[2].output.save()
    assert torch.equal(after, relu)

    norm = nn.BatchNorm1d(4)
    mean = norm.running_mean
    assert mean is not None
    model = NNsight(nn.Sequential(norm, nn.Linear(4, 4)))
    with model.trace(x):
        kept = [].save()
        kept.append(model[0].output)
        now = (mean + 0).save()
        kept.append(model[1].output)
    assert now.any() and torch.equal(now, mean)


def test_what_is_due_is_in_no_copy(model, x, outputs):
    mine, table = [], {}
    with model.trace(x):
        mine.append(model.layers[0].output)
        table["a"] = model.layers[1].output
        more = (mine * 2).save()
        text = f"{mine}".save()
        both = {**table}.save()
        _ = model.layers[2].output.save()
    assert same(more, outputs[:1] * 2) and same([both["a"]], outputs[1:2])
    assert "tensor" in text


def test_a_count_of_somebody_else_is_read_in_time(net, model, x):
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    handle = net.layers[0].register_forward_hook(count)
    with model.trace(x):
        a = model.layers[0].output.save()  # noqa: F841
        seen = calls.save()  # pyright: ignore[reportAttributeAccessIssue]
        b = model.layers[1].output.save()  # noqa: F841
    handle.remove()
    assert seen == 1


def test_what_a_generator_does_comes_in_its_turn(net, model, x, outputs):
    def layers():
        for index, layer in enumerate(model.layers):
            yield layer
            net.layers[index].fc.weight.data.zero_()

    with model.trace(x):
        mine = [].save()
        for layer in layers():
            mine.append(layer.output)
    assert same(mine, outputs)


def test_a_generator_by_name_comes_in_its_turn(net, model, x, outputs):
    def layers():
        for index, layer in enumerate(model.layers):
            yield layer
            net.layers[index].fc.weight.data.zero_()

    rest = layers()
    with model.trace(x):
        mine = [].save()
        for layer in rest:
            mine.append(layer.output)
    assert same(mine, outputs)


class Doubles(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.Tensor.sum else result


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.doubled, self.closed = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        with Doubles():
            self.doubled(x)
        with torch.inference_mode():
            return self.closed(x)


def test_parts_are_made_in_the_state_of_the_block(x):
    net = Moody()
    model = NNsight(net)
    with model.trace(x):
        doubled = model.doubled.output.sum().save()
        closed = model.closed.output.clone().save()
    assert torch.equal(doubled, net.doubled(x).sum()) and not closed.is_inference()
    with Doubles():
        assert torch.equal(doubled * 2, net.doubled(x).sum())  # the model is not left changed
    with model.trace(x):
        with Doubles():
            first = model.doubled.output.sum().save()
            second = model.closed.output.sum().save()
    assert torch.equal(first, doubled * 2)
    assert torch.equal(second, closed.sum() * 2)


def test_nothing_after_a_line_that_fails_in_a_try(model, x, outputs):
    mine = []
    with model.trace(x):
        try:
            mine.append(model.layers[0].output)
            mine.append(model.layers[1].output.missing)
            mine.append(model.layers[2].output)
        except AttributeError:
            mine.append(None)
    assert torch.equal(mine[0], outputs[0]) and mine[1:] == [None]


def test_what_was_there_before_is_there_after_an_error(model, x, outputs):
    mine, table = [1, 2, 3], {"a": 1}
    with pytest.raises(MissedProviderError):
        with model.trace(x):
            mine[1] = model.unused.output
            table["a"] = model.unused.output
            table["b"] = model.unused.output
            mine[0] = model.layers[0].output
    assert torch.equal(mine[0], outputs[0]) and mine[1:] == [2, 3] and table == {"a": 1}


def test_places_that_do_not_take_a_value_are_told_at_once(model, x, outputs):
    table, mine, part = {}, [1, 2], slice(0, 1)
    with pytest.raises(TypeError, match="unhashable") as caught:
        with model.trace(x):
            a = model.layers[0].output.save()  # noqa: F841
            table[[1]] = model.layers[1].output
            _ = model.layers[2].output.save()
    assert list(caught.value.saved) == ["a"]  # type: ignore[attr-defined]
    with model.trace(x):
        mine[part] = model.layers[1].output
        _ = model.layers[2].output.save()
    assert same(mine[:2], outputs[1]) and mine[2:] == [2]


def test_nothing_stays(net, x):
    model = NNsight(net)

    def run():
        with model.trace(x):
            a = model.layers[3].output.save()
            b = [layer.output for layer in model.layers].save()
        return weakref.ref(a), weakref.ref(b[0])

    run()
    gc.collect()
    gc.disable()
    try:
        assert [ref() for ref in run()] == [None, None]
        with pytest.raises(MissedProviderError):
            with model.trace(x):
                gone = model.layers[1].output.save()
                _ = model.unused.output.save()
        with pytest.raises(NameError):
            gone  # noqa: B018
    finally:
        gc.enable()


def test_nothing_stays_after_an_error(model, x):
    def missed():
        mine = []
        try:
            with model.trace(x):
                mine.append(model.layers[0].output)
                mine.append(model.unused.output)
        except MissedProviderError:
            return weakref.ref(mine[0])

    def failed(waits):
        mine = []
        try:
            with model.trace(x):
                mine.append(model.layers[0].output)
                mine.append(model.layers[1].output[99])
                if waits:
                    mine.clear()
        except IndexError:
            return weakref.ref(mine[0])

    missed()
    gc.collect()
    gc.disable()
    try:
        kept = [missed(), failed(False), failed(True)]
        assert [ref and ref() for ref in kept] == [None] * 3 and None not in kept
    finally:
        gc.enable()


def test_a_block_that_needs_a_turn_after_all_begins_again(model, x, outputs, turns):
    names, table, n = [0], {"old": 1}, 1
    for run in range(2):
        held = deque()
        with model.trace(x):
            n = n + 1
            names.append(model.layers[0].output)
            table["old"] = model.layers[1].output
            held.append(model.layers[2].output)
            after = model.layers[3].output.save()
        assert n == 1 and len(names) == 2 + run and same(names[1:], [outputs[0]] * (run + 1))
        assert same([table["old"], held[0], after], outputs[1:])
    assert len(turns) == 4


def test_an_error_in_a_block_that_only_asks(model, x):
    kept, table = [], {"old": 1}
    with pytest.raises(AttributeError, match="no module or attribute 'layer'") as caught:
        with model.trace(x):
            kept.append(model.layers[3].output)
            a = model.layers[0].output.save()  # noqa: F841
            table["old"] = model.layer[1].output
    assert list(caught.value.saved) == ["a"] and len(kept) == 1  # type: ignore[attr-defined]
    assert table == {"old": 1} and "table" in str(caught.traceback[-1].statement)


def test_what_stood_there_stays_where_no_value_comes(model, x):
    table, values = {"k": 1}, [2]
    for _ in range(2):
        with pytest.raises(MissedProviderError):
            with model.trace(x):
                table["k"] = model.unused.output
                values[0] = model.unused.input
                values.append(model.unused.input)
        assert table == {"k": 1} and values == [2]


def test_the_state_of_the_caller_is_that_of_a_block_that_only_asks(model, x):
    with torch.no_grad():
        with model.trace() as tracer:
            with tracer.invoke(x):
                a = model.layers[0].output.clone().save()
            with torch.enable_grad(), tracer.invoke(x):
                b = model.layers[0].output.clone().save()
    assert not a.requires_grad and not b.requires_grad  # the model ran without gradients


def test_a_trace_beside_a_trace(model, net, x):
    other = NNsight(net.head)
    with model.trace(x):
        hidden = model.layers[3].output
        with other.trace(hidden):
            inside = other.output.save()
        outside = model.head.output.save()
    assert torch.equal(inside, outside)
