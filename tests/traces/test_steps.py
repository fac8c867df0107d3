# ruff: noqa: B007, B018, F841 -- a value is read by naming it; loops that use no number
"""Loops over steps: of modules that run several times in a forward, and of a method's calls."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from nnsight import MissedProviderError, NNsight, OutOfOrderError, OutsideTraceError
from tests.conftest import hooks_on

TIMES = 4


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.turn = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.turn(state).tanh() + self.read(x)


class Recurrent(nn.Module):
    """Calls its cell four times in one forward; `roll` calls the whole module again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(3, 3), Cell(), nn.Linear(3, 2)
        self.extra = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, extra: bool = False) -> torch.Tensor:
        state = self.embed(x)
        for _ in range(TIMES):
            state = self.cell(state, x)
        if extra:
            state = self.extra(state)
        return self.head(state)

    def roll(self, x: torch.Tensor, times: int, every: int = 1) -> torch.Tensor:
        outs = []
        for n in range(times):
            outs.append(self(x + n, extra=n % every == every - 1))
        return torch.stack(outs)


@pytest.fixture
def module() -> Recurrent:
    return Recurrent().requires_grad_(False)


@pytest.fixture
def model(module: Recurrent) -> NNsight:
    return NNsight(module)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3)


def seen(module: Recurrent, target: nn.Module, call) -> list[torch.Tensor]:
    """Every output of `target`, by a raw hook."""
    found: list[torch.Tensor] = []
    handle = target.register_forward_hook(lambda m, args, out: found.append(out))
    call()
    handle.remove()
    return found


def same(got, expected) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture(params=["first run", "later run"])
def again(request, model, x) -> None:
    """The first run of a model counts every module, a later one only what a survey names."""
    if request.param == "later run":
        with model.trace(x):
            model.head.output.save()
        with model.trace(x, 3, fn="roll"):
            model.head.output.save()


# --- a module that runs several times in one forward ----------------------------------------------


def test_every_visit_of_a_module(again, model, module, x):
    with model.trace(x) as tracer:
        states, numbers = [].save(), [].save()
        for step in tracer.iter[:]:
            states.append(model.cell.turn.output)
            numbers.append(step)
        after = tracer.result.save()
    same(states, seen(module, module.cell.turn, lambda: module(x)))
    assert numbers == [0, 1, 2, 3]
    assert torch.equal(after, module(x))
    assert hooks_on(module) == []


def test_the_body_is_entered_as_often_as_there_are_steps(again, model, x):
    entered = []
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            entered.append(step)
            model.cell.output
    assert entered == [0, 1, 2, 3]


def test_the_with_form_binds_the_number_of_the_step(again, model, module, x):
    with model.trace(x) as tracer:
        states, numbers = [].save(), [].save()
        with tracer.iter[:] as step:
            numbers.append(step)
            states.append(model.cell.output)
        last = step
        last.save()
    same(states, seen(module, module.cell, lambda: module(x)))
    assert numbers == [0, 1, 2, 3] and last == 3


def test_the_with_form_without_a_name_and_among_other_managers(model, module, x):
    with model.trace(x) as tracer:
        first, second = [].save(), [].save()
        with tracer.iter[:2]:
            first.append(model.cell.output)
        with torch.no_grad(), tracer.iter[2:] as step, torch.enable_grad():
            second.append((step, torch.is_grad_enabled(), model.cell.output))
    expected = seen(module, module.cell, lambda: module(x))
    same([*first, *(state for _, _, state in second)], expected)
    assert [entry[:2] for entry in second] == [(2, True), (3, True)]


@pytest.mark.parametrize(
    ("chosen", "steps"),
    [
        (slice(None), [0, 1, 2, 3]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (slice(3, None), [3]),
        (slice(0, 0), []),
        (2, [2]),
        ([0, 3], [0, 3]),
        ([3, 1, 1], [1, 3]),
        ((0, 2), [0, 2]),
        (range(1, 3), [1, 2]),
        ([], []),
    ],
)
def test_what_can_be_chosen(again, model, module, x, chosen, steps):
    with model.trace(x) as tracer:
        states, numbers = [].save(), [].save()
        for step in tracer.iter[chosen]:
            numbers.append(step)
            states.append(model.cell.output)
        out = tracer.result.save()
    expected = seen(module, module.cell, lambda: module(x))
    assert numbers == steps
    same(states, [expected[step] for step in steps])
    assert torch.equal(out, module(x))


@pytest.mark.parametrize("spelling", ["all", "bare", "model", "model all", "child"])
def test_every_spelling_of_all_steps(model, module, x, spelling):
    with model.trace(x) as tracer:
        states = [].save()
        steps = {
            "all": tracer.all(),
            "bare": tracer.iter,
            "model": model.iter[:],
            "model all": model.all(),
            "child": model.cell.iter[:],
        }[spelling]
        for _ in steps:
            states.append(model.cell.output)
    same(states, seen(module, module.cell, lambda: module(x)))


def test_edits_of_single_steps(again, model, module, x):
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            if step == 1:
                model.cell.output[:] = 0
            if step == 2:
                model.cell.output = model.cell.output + 1
        out = tracer.result.save()
    count = 0

    def edit(m, args, result):
        nonlocal count
        count += 1
        return torch.zeros_like(result) if count == 2 else result + 1 if count == 3 else None

    handle = module.cell.register_forward_hook(edit)
    expected = module(x)
    handle.remove()
    assert torch.equal(out, expected)


def test_skips_of_single_steps(again, model, module, x):
    with model.trace(x) as tracer:
        inputs = [].save()
        for step in tracer.iter[:]:
            inputs.append(model.cell.input)
            if step in (1, 3):
                model.cell.skip(torch.zeros(2, 3))
        out = tracer.result.save()
    with model.trace(x) as tracer:
        for step in tracer.iter[1:4:2]:
            model.cell.skip(model.cell.input * 0)
        same_out = model.output.save()
    assert torch.equal(out, module.head(torch.zeros(2, 3)))
    assert torch.equal(same_out, out)
    assert not inputs[2].any()


def test_input_at_a_late_step(again, model, module, x):
    """The loop asks for the cell's input first when the cell is already being called."""
    with model.trace(x) as tracer:
        for _ in tracer.iter[2:]:
            given = model.cell.input.save()
            out = model.cell.output.save()
            break
        whole = model.output.save()
    expected = seen(module, module.cell, lambda: module(x))
    assert torch.equal(given, expected[1]) and torch.equal(out, expected[2])
    assert torch.equal(whole, module(x))


def test_a_loop_over_a_module_that_runs_once(again, model, module, x):
    with model.trace(x) as tracer:
        outs = [].save()
        for _ in tracer.iter[:]:
            outs.append(model.embed.output)
        out = tracer.result.save()
    same(outs, [module.embed(x)])
    assert torch.equal(out, module(x))


def test_break_continue_and_else(model, module, x):
    with model.trace(x) as tracer:
        states, ended = [].save(), [].save()
        for step in tracer.iter[:]:
            if step == 0:
                continue
            states.append(model.cell.output)
            if step == 2:
                break
        for step in tracer.iter[3:]:
            states.append(model.cell.output)
        else:
            ended.append(step)
    same(states, seen(module, module.cell, lambda: module(x))[1:])
    assert ended == [3]


def test_nested_loops_put_the_step_back(model, module, x):
    with model.trace(x) as tracer:
        states = [].save()
        for step in tracer.iter[0:3:2]:
            states.append(model.cell.output)
            for inner in tracer.iter[step + 1]:
                states.append(model.cell.output)
            states.append(inner)
    expected = seen(module, module.cell, lambda: module(x))
    same(states[::3], expected[0::2])
    same(states[1::3], expected[1::2])
    assert states[2::3] == [1, 3]


def test_next_goes_on_one_step(again, model, module, x):
    with model.trace(x) as tracer:
        first = model.cell.output.save()
        second = model.cell.next().output.save()
        turned = model.cell.turn.next().output.save()
        fourth = tracer.next().cell.output.save()
        out = tracer.result.save()
    expected = seen(module, module.cell, lambda: module(x))
    same([first, second, fourth], [expected[0], expected[1], expected[3]])
    assert torch.equal(turned, seen(module, module.cell.turn, lambda: module(x))[2])
    assert torch.equal(out, module(x))


def test_next_by_several_steps_and_inside_a_loop(model, module, x):
    with model.trace(x) as tracer:
        states = [].save()
        for _ in tracer.iter[0:3:2]:
            states.append(model.cell.output)
            states.append(model.cell.next().output)
    with model.trace(x):
        last = model.cell.next(3).output.save()
    expected = seen(module, module.cell, lambda: module(x))
    same(states, expected)
    assert torch.equal(last, expected[3])


def test_a_loop_in_a_helper(model, module, x):
    def collect(tracer, part):
        return [part.output for _ in tracer.iter[:]]

    with model.trace(x) as tracer:
        states = collect(tracer, model.cell).save()
        out = tracer.result.save()
    same(states, seen(module, module.cell, lambda: module(x)))
    assert torch.equal(out, module(x))


def test_a_loop_that_comes_late_goes_on_from_there(again, model, module, x):
    with model.trace(x) as tracer:
        first = model.cell.output.save()
        rest = [model.cell.output for _ in tracer.iter[1:]].save()
    same([first, *rest], seen(module, module.cell, lambda: module(x)))


def test_each_invoke_has_its_own_steps(again, model, module, x):
    other = torch.randn(1, 3)
    with model.trace() as tracer:
        with tracer.invoke(x):
            ones = [model.cell.output for _ in tracer.iter[:]].save()
        with tracer.invoke(other):
            twos = [model.cell.output for _ in tracer.iter[1:3]].save()
            late = model.head.output.save()
        with tracer.invoke():
            whole = [model.cell.output.shape[0] for _ in tracer.iter[::3]].save()
    expected = seen(module, module.cell, lambda: module(torch.cat([x, other])))
    same(ones, [state[:2] for state in expected])
    same(twos, [state[2:] for state in expected[1:3]])
    assert late.shape == (1, 2) and whole == [3, 3]


def test_a_barrier_in_a_loop(model, module, x):
    order = []
    with model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(x):
            for step in tracer.iter[:]:
                model.cell.turn.output
                meet()
                order.append(("one", step))
        with tracer.invoke(x):
            for step in tracer.iter[:]:
                model.cell.turn.output
                meet()
                order.append(("two", step))
    assert sorted(order, key=lambda entry: entry[1]) == order and len(order) == 2 * TIMES


def test_a_value_of_one_step_goes_to_another_invoke(model, module, x):
    other = torch.randn(2, 3)
    with model.trace() as tracer:
        with tracer.invoke(x):
            for _ in tracer.iter[1]:
                state = model.cell.output
        with tracer.invoke(other):
            for _ in tracer.iter[1]:
                model.cell.output = state
            out = model.output.save()
    count = 0
    donor = seen(module, module.cell, lambda: module(x))[1]

    def patch(m, args, result):
        nonlocal count
        count += 1
        return donor if count == 2 else None

    handle = module.cell.register_forward_hook(patch)
    expected = module(other)
    handle.remove()
    assert torch.allclose(out, expected, atol=1e-6)


# --- a method that calls the model again and again ------------------------------------------------


def test_each_call_of_the_model_is_a_step(again, model, module, x):
    with model.trace(x, 3, fn="roll") as tracer:
        outs, numbers = [].save(), [].save()
        for step in tracer.iter[:]:
            numbers.append(step)
            outs.append(model.head.output)
        whole = tracer.result.save()
    assert numbers == [0, 1, 2]
    same(outs, list(module.roll(x, 3)))
    assert torch.equal(whole, module.roll(x, 3))


def test_what_runs_more_often_than_the_model_has_its_own_count(again, model, module, x):
    with model.trace(x, 2, fn="roll") as tracer:
        states = [model.cell.output for _ in tracer.iter[:]].save()
    same(states, seen(module, module.cell, lambda: module.roll(x, 2)))


def test_what_runs_in_some_steps_is_of_the_step_asked_for(again, model, module, x):
    """`extra` runs in the second and the fourth call only."""
    with model.trace(x, 4, 2, fn="roll") as tracer:
        found = {}.save()
        for step in tracer.iter[:]:
            if step % 2:
                found[step] = model.extra.output
    expected = seen(module, module.extra, lambda: module.roll(x, 4, 2))
    assert list(found) == [1, 3]
    same(found.values(), expected)


def test_a_read_outside_of_steps_is_of_the_first_call(again, model, module, x):
    with model.trace(x, 4, 2, fn="roll"):
        head = model.head.output.save()
        extra = model.extra.output.save()
    assert torch.equal(head, module(x))
    assert torch.equal(extra, seen(module, module.extra, lambda: module.roll(x, 4, 2))[0])


def test_a_module_that_does_not_run_in_the_step_is_an_error(again, model, x):
    with pytest.raises(MissedProviderError, match=r"`model\.extra\.output` of step 0 was not prov"):
        with model.trace(x, 4, 2, fn="roll") as tracer:
            for _ in tracer.iter[:]:
                model.extra.output


@pytest.mark.parametrize("step", [1, 5, 11])
def test_a_loop_that_begins_late_at_what_runs_more_often_than_the_model(again, model, x, step):
    module = model._module
    with model.trace(x, 3, fn="roll") as tracer:
        for _ in tracer.iter[step]:
            state = model.cell.output.save()
    same([state], seen(module, module.cell, lambda: module.roll(x, 3))[step : step + 1])
    with model.trace(fn="roll") as tracer:
        with tracer.invoke(x, 3):
            states = [].save()
            for _ in tracer.iter[step:]:
                states.append(model.cell.output)
    same(states, seen(module, module.cell, lambda: module.roll(x, 3))[step:])


def test_a_late_skip_of_what_runs_more_often_than_the_model(again, model, module, x):
    with model.trace(x, 3, fn="roll") as tracer:
        for _ in tracer.iter[5]:
            model.cell.skip(x)
        out = tracer.result.save()
    runs: list[int] = []

    def patch(m, args, result):
        runs.append(0)
        return x if len(runs) == 6 else None

    handle = module.cell.register_forward_hook(patch)
    expected = module.roll(x, 3)
    handle.remove()
    assert torch.equal(out, expected)


# --- an operation that runs several times in one forward ------------------------------------------


class Waves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(TIMES):
            x = torch.sin(x)
        return x

    def roll(self, x: torch.Tensor) -> torch.Tensor:
        return self(self(x))


@pytest.mark.parametrize("chosen", [slice(1, None), slice(1, 3), 2, [1, 3]])
def test_a_loop_over_an_operation_that_begins_late(x, chosen):
    waves = NNsight(Waves())
    steps = list(range(TIMES))[chosen] if isinstance(chosen, slice) else chosen
    steps = steps if isinstance(steps, list) else [steps]
    for _ in range(2):
        with waves.trace(x) as tracer:
            entered, states = [].save(), [].save()
            for step in tracer.iter[chosen]:
                entered.append(step)
                states.append(waves.source.torch_sin_0.output)
                waves.source.torch_sin_0.output = x + step
            out = tracer.result.save()
        assert entered == steps
        state = x
        for step in range(TIMES):
            state = state.sin()
            if step in steps:
                assert torch.equal(states[steps.index(step)], state)
                state = x + step
        assert torch.equal(out, state)


def test_a_loop_that_names_operations_and_asks_for_none_ends(x):
    waves = NNsight(Waves())
    with waves.trace(x) as tracer:
        entered = [].save()
        for step in tracer.iter[:]:
            entered.append(step)
        waves.source.torch_sin_0 if not entered else None
    assert entered == [0]


def test_a_late_loop_over_an_operation_of_a_method_that_was_not_met_is_a_warning(x):
    waves = NNsight(Waves())
    with pytest.warns(UserWarning, match=r"iter\[5:\]` ended before step 5.* `if step >= 5:`"):
        with waves.trace(x, fn="roll") as tracer:
            for _ in tracer.iter[5:]:
                waves.source.torch_sin_0.output = x


# --- what is refused ------------------------------------------------------------------------------


def test_out_of_order_in_a_step_is_never_the_next_steps_value(again, model, x):
    with pytest.raises(OutOfOrderError, match=r"`model\.cell\.read\.output` of step 1 was reque"):
        with model.trace(x) as tracer:
            for _ in tracer.iter[1:]:
                model.cell.output
                model.cell.read.output


def test_a_loop_over_steps_that_have_passed_is_an_error(model, x):
    with pytest.raises(OutOfOrderError, match=r"`model\.cell\.output` of step 0 was requested"):
        with model.trace(x) as tracer:
            model.head.output
            for _ in tracer.iter[:]:
                model.cell.output


def test_after_an_open_loop_the_result_is_left(again, model, x):
    with pytest.raises(
        OutOfOrderError, match=r"`model\.output` .*Read it in the loop, or read `tra"
    ):
        with model.trace(x) as tracer:
            for _ in tracer.iter[:]:
                model.cell.output
            model.output


def test_a_bounded_loop_that_asks_for_more_ends_with_a_warning(model, module, x):
    with pytest.warns(UserWarning, match=r"`tracer\.iter\[1:9\]` ended before step 4") as caught:
        with model.trace(x) as tracer:
            states = [].save()
            for _ in tracer.iter[1:9]:
                states.append(model.cell.output)
            out = tracer.result.save()
    same(states, seen(module, module.cell, lambda: module(x))[1:])
    assert torch.equal(out, module(x))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("chosen", [7, [1, 7]])
def test_a_step_that_never_comes_is_a_warning(model, x, chosen):
    with pytest.warns(UserWarning, match=r"ended before step 7"):
        with model.trace(x) as tracer:
            numbers = [].save()
            for step in tracer.iter[chosen]:
                model.cell.output
                numbers.append(step)
    assert 7 not in numbers


def test_next_beyond_the_run_is_an_error(model, x):
    with pytest.raises(MissedProviderError, match=r"`model\.cell\.output` of step 9 .*4 time"):
        with model.trace(x):
            model.cell.next(9).output


def test_the_result_is_there_after_the_news_that_there_is_no_further_step(again, model, module, x):
    with model.trace(x, 3, fn="roll") as tracer:
        heads = [].save()
        try:
            heads.append(model.head.output)
            while True:
                heads.append(model.head.next().output)
        except MissedProviderError:
            pass
        out = tracer.result.save()
    same(heads, list(module.roll(x, 3)))
    assert torch.equal(out, module.roll(x, 3))


@pytest.mark.parametrize(
    ("chosen", "kind", "text"),
    [
        (slice(None, -1), ValueError, r"`tracer\.iter\[:-1\]`: steps count from 0"),
        (-1, ValueError, r"`tracer\.iter\[-1\]`: steps count from 0"),
        ([0, -2], ValueError, r"steps count from 0"),
        (slice(None, None, 0), ValueError, r"stride of a slice cannot be zero"),
        ("all", TypeError, r"`tracer\.iter\['all'\]`: steps are chosen by a number"),
        (1.5, TypeError, r"steps are chosen by a number"),
    ],
)
def test_what_cannot_be_chosen(model, x, chosen, kind, text):
    with pytest.raises(kind, match=text):
        with model.trace(x) as tracer:
            for _ in tracer.iter[chosen]:
                model.cell.output


@pytest.mark.parametrize("steps", [0, -1, "one"])
def test_next_goes_on_only(model, x, steps):
    with pytest.raises(ValueError, match=r"goes on by a whole number of steps"):
        with model.trace(x):
            model.cell.next(steps)


def test_outside_of_a_block_there_are_no_steps(model, x):
    with pytest.raises(OutsideTraceError, match=r"`model\.iter\[:\]` was called outside"):
        list(model.iter[:])
    with pytest.raises(OutsideTraceError, match=r"`model\.cell\.next\(\)` was called outside"):
        model.cell.next()
    with pytest.raises(OutsideTraceError, match=r"`tracer\.all\(\)` was called outside"):
        with model.trace() as tracer:
            for _ in tracer.all():
                pass
            with tracer.invoke(x):
                model.cell.output


def test_the_with_form_in_a_helper(again, model, module, x):
    def collect(tracer, first=0):
        states, total = [], torch.zeros(2, 3)
        with tracer.iter[first:] as step, torch.no_grad():
            states.append(model.cell.output)
            if step == 1:
                model.cell.output[:] = 0
            total = total + states[-1]
        return states, total, step

    def nothing(tracer):
        with tracer.iter[:2]:
            pass

    with model.trace(x) as tracer:
        nothing(tracer)
        found = collect(tracer, 1).save()
        out = tracer.result.save()
    states, total, last = found
    with model.trace(x) as tracer:
        expected = [].save()
        for step in tracer.iter[:]:
            expected.append(model.cell.output)
            if step == 1:
                model.cell.output[:] = 0
        result = tracer.result.save()
    same(states, expected[1:])
    assert last == 3 and torch.equal(total, sum(states))
    assert torch.equal(out, result)


def test_an_error_and_a_stop_in_the_with_form_of_a_helper(model, module, x):
    def fail(tracer):
        with tracer.all() as step:
            state = model.cell.output
            if step == 2:
                raise KeyError("in the middle")

    def stop(tracer, states):
        with tracer.all():
            states.append(model.cell.output)
            tracer.stop()

    with pytest.raises(KeyError, match="in the middle"):
        with model.trace(x) as tracer:
            fail(tracer)
    with model.trace(x) as tracer:
        states = [].save()
        stop(tracer, states)
    assert len(states) == 1 and hooks_on(module) == []
    with pytest.raises(OutsideTraceError, match=r"`model\.iter\[:\]` was called outside"):
        with model.iter[:]:
            model.cell.output


def test_break_in_the_with_form_is_refused():
    source = "for _ in y:\n with m.trace(x) as t:\n  for _ in z:\n   with t.iter[:]:\n    break\n"
    import linecache

    name = "<a block with a break>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    m = NNsight(nn.Linear(1, 1))
    with pytest.raises(SyntaxError, match=r"write it as `for step in tracer\.iter"):
        exec(compile(source, name, "exec"), {"m": m, "x": torch.ones(1, 1), "y": [1], "z": [1]})


# --- how a loop ends ------------------------------------------------------------------------------


def test_an_error_in_a_body_leaves_at_its_line_and_the_model_clean(model, module, x):
    with pytest.raises(KeyError) as caught:
        with model.trace(x) as tracer:
            states = [].save()
            for step in tracer.iter[:]:
                states.append(model.cell.output)
                if step == 2:
                    raise KeyError("in the middle")
    assert len(caught.value.saved["states"]) == 3
    assert hooks_on(module) == []


def test_an_error_caught_around_a_loop_puts_the_step_back(model, module, x):
    with model.trace(x) as tracer:
        try:
            for step in tracer.iter[1:]:
                model.cell.turn.output
                raise KeyError
        except KeyError:
            pass
        head = model.head.output.save()
    assert torch.equal(head, module(x))


def test_stop_in_a_loop_keeps_what_there_was(model, module, x):
    with model.trace(x) as tracer:
        states = [].save()
        for step in tracer.iter[:]:
            states.append(model.cell.output)
            if step == 1:
                tracer.stop()
    same(states, seen(module, module.cell, lambda: module(x))[:2])


def test_a_name_bound_in_the_body_is_saved(model, module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(x) as tracer:
            total = 0
            with tracer.iter[:] as step:
                total = total + model.cell.output
                last = model.cell.output.save()
            total.save()
    expected = seen(module, module.cell, lambda: module(x))
    assert torch.allclose(total, sum(expected)) and torch.equal(last, expected[-1])


def test_the_steps_of_a_function_that_calls_the_model_twice_after_plain_runs():
    """What a plain run was seen to do says nothing of a run of the user's own function."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    model, x, seen = NNsight(network), torch.randn(1, 4), []
    with model.trace(x):
        model[0].output.save()
    with model.trace(x, fn=lambda x: network(network[0](x))) as tracer:
        for _ in tracer.iter[:2]:
            seen.append(model[0].output)
    assert len(seen) == 2
