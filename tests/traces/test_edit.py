# ruff: noqa: B018, RUF059 -- a bare read parks the block, and targets are there to be bound
"""Edits: blocks that are kept with a model."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from nnsight import NNsight, OutOfOrderError
from nnsight.traces.edit import Edit
from tests.behaviour.small import Network

X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def model() -> NNsight:
    return NNsight(Network())


def first_of(model, x=X):
    with model.trace(x):
        value = model.first.output.save()
    return value


def raw(model, scale=1.0):
    return model._module.first(X) * scale


# --- where an edit is in force ------------------------------------------------------------------


def test_the_original_is_as_it_was(model):
    with model.edit() as edited:
        model.first.output[:] = 0
    assert torch.equal(first_of(model), raw(model))
    assert not first_of(edited).any()
    with edited.trace(X):
        through_original = model.first.output.save()
        out = edited.output.save()
    assert not through_original.any()
    module = model._module
    assert torch.equal(out, module.last(module.second(torch.zeros(2, 4)).relu()))
    assert edited.first is not model.first and edited.first == model.first
    assert type(edited) is type(model)


def test_in_place(model):
    with model.edit(inplace=True):
        model.first.output = model.first.output * 2
    assert torch.equal(first_of(model), raw(model, 2))
    model.clear_edits()
    assert torch.equal(first_of(model), raw(model))


def test_both_spellings_of_the_target(model):
    with model.edit() as (tracer, edited):
        hidden = edited.first.output
        edited.first.output = hidden * 2
        tracer.result
    assert torch.equal(first_of(edited), raw(model, 2))
    with model.edit(inplace=True) as both:
        both.first.output = both.first.output * 3
        assert both.result.shape == (2, 2)
    assert torch.equal(first_of(model), raw(model, 3))
    assert torch.equal(both.first._module.weight, model._module.first.weight)
    model.clear_edits()
    with model.edit(inplace=True) as (tracer, same):
        same.first.output = same.first.output * 4
    assert same is model
    assert torch.equal(first_of(model), raw(model, 4))


def test_a_target_that_does_not_fit(model):
    with pytest.raises(ValueError, match=r"`as \(a, b, c\)` does not fit an edit"):
        with model.edit() as (a, b, c):
            model.first.output


def test_an_empty_edit_is_another_view(model):
    with model.edit() as edited:
        pass
    assert edited is not model and len(edited.edits) == 0
    with edited.edit(inplace=True):
        model.first.output[:] = 0
    assert len(edited.edits) == 1 and len(model.edits) == 0


def test_edits_stack_in_the_order_of_writing(model):
    with model.edit() as once:
        model.first.output = model.first.output + 1
    with once.edit() as twice:
        once.first.output = once.first.output * 2
    assert torch.equal(first_of(once), raw(model) + 1)
    assert torch.equal(first_of(twice), (raw(model) + 1) * 2)
    with once.edit(inplace=True):
        model.first.output = model.first.output * 0
    assert torch.equal(first_of(twice), (raw(model) + 1) * 2)


def test_an_edit_on_a_child_takes_part_in_the_whole(model):
    with model.first.edit(inplace=True) as (tracer, layer):
        layer.output = layer.output * 2
    assert torch.equal(first_of(model), raw(model, 2))
    with model.first.trace(X) as alone:
        value = alone.result.save()
    assert torch.equal(value, raw(model, 2))
    with model.second.trace(X) as alone:  # which the edit has nothing to do with
        value = alone.result.save()
    assert torch.equal(value, model._module.second(X))
    assert len(model.edits) == len(model.first.edits) == 1 and len(model.second.edits) == 0


def test_an_edited_child_leaves_the_model_alone(model):
    with model.first.edit() as layer:
        layer.output = layer.output * 2
    with layer.trace(X) as tracer:
        value = tracer.result.save()
    assert torch.equal(value, raw(model, 2))
    assert torch.equal(first_of(model), raw(model))


def test_an_edit_of_the_whole_stays_out_of_a_part(model):
    with model.edit(inplace=True):
        model.second.output = model.second.output * 0
    with model.first.trace(X) as tracer:
        value = tracer.result.save()
    assert torch.equal(value, raw(model))


def test_a_module_in_two_places():
    shared = nn.Linear(4, 4)
    model = NNsight(nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)}))
    with model.a[0].edit(inplace=True) as (_, layer):
        layer.output = layer.output * 2
    with model.b.trace(X) as tracer:
        value = tracer.result.save()
    assert torch.equal(value, shared(X) * 2)


def test_the_whole_batch_before_the_invokes(model):
    with model.edit() as edited:
        assert model.first.output.shape == (3, 4)
        model.first.output = model.first.output * 2
    with edited.trace() as tracer:
        with tracer.invoke(X):
            two = model.first.output.save()
        with tracer.invoke(X[:1]):
            one = model.first.output.save()
    torch.testing.assert_close(two, raw(model, 2))
    torch.testing.assert_close(one, raw(model, 2)[:1])


def test_without_a_block(model):
    with model.edit() as edited:
        model.second.output = model.second.output * 0
    expected = model._module.last(torch.zeros(2, 4))
    assert torch.equal(edited.trace(X, trace=False), expected)
    assert torch.equal(edited.run(X, lambda tracer, model: model.output), expected)
    with edited.trace(X):
        pass
    assert torch.equal(model.trace(X, trace=False), model._module(X))
    assert torch.equal(edited(X), model._module(X))  # the module itself: no trace, no edits


def test_skip_and_stop_in_an_edit(model):
    with model.edit() as edited:
        model.second.skip(model.second.input)
    with edited.trace(X):
        out = edited.output.save()
    module = model._module
    assert torch.equal(out, module.last(module.first(X).relu().relu()))
    with model.edit() as (tracer, short):
        model.second.input
        tracer.stop()
    with pytest.warns(UserWarning, match="ended the run before the block"):
        with short.trace(X):
            hidden = model.first.output.save()
            model.output.save()
    assert torch.equal(hidden, raw(model))


@pytest.mark.parametrize("every_step", [True, None])
@pytest.mark.parametrize("written", ["block", "function"])
def test_an_operation_after_a_value_in_the_same_module(model, every_step, written):
    def halve(tracer, model):
        model.first.output = model.first.output * 2
        model.source.relu_0.output = model.source.relu_0.output / 2

    if written == "function":
        model.edit(halve, inplace=True, every_step=every_step)
    else:
        with model.edit(inplace=True, every_step=every_step):
            model.first.output = model.first.output * 2
            model.source.relu_0.output = model.source.relu_0.output / 2
    with model.trace(X):
        given = model.second.input.save()
    assert torch.equal(given, model._module.first(X).relu())


def test_an_invoke_skips_what_an_edit_skips(model):
    """The later one has the say, for its rows: as where the invoke is traced alone."""
    with model.edit() as edited:
        model.second.skip(model.second.input * 2)
    with edited.trace() as tracer:
        with tracer.invoke(X):
            others = model.second.output.save()
        with tracer.invoke(X):
            model.second.skip(model.second.input * 3)
            own = model.second.output.save()
    given = model._module.first(X).relu()
    assert torch.equal(others, given * 2) and torch.equal(own, given * 3)


def test_a_function_for_a_block(model):
    def double(tracer, model):
        model.first.output = model.first.output * 2

    edited = model.edit(double, name="double")
    assert torch.equal(first_of(edited), raw(model, 2))
    assert edited.edits[0].name == "double"


# --- the names of an edit -----------------------------------------------------------------------


def test_each_run_begins_with_the_values_of_the_writing(model):
    scale, factor = 1, 2
    with model.edit() as edited:
        scale += 1
        model.first.output = model.first.output * scale * factor
    scale, factor = 100, 100
    for _ in range(3):
        assert torch.equal(first_of(edited), raw(model, 4))


def test_names_of_the_module_are_kept_too(model):
    code = (
        "scale = 2\n"
        "with model.edit(inplace=True):\n"
        "    model.first.output = model.first.output * scale * later()\n"
        "scale = 100\n"
        "def later():\n"
        "    return 3\n"
        "kept, model = model, None\n"
    )
    import linecache

    linecache.cache["<cell>"] = (len(code), None, code.splitlines(keepends=True), "<cell>")
    exec(compile(code, "<cell>", "exec"), {"model": model})
    assert torch.equal(first_of(model), raw(model, 6))


def test_lists_collect_what_an_edit_sees(model):
    seen = []
    with model.edit() as edited:
        seen.append(model.first.output.shape)
    for _ in range(2):
        first_of(edited)
    assert seen == [(2, 4)] * 2


def test_a_save_in_an_edit_is_said(model):
    with pytest.warns(UserWarning, match="saves a value, which nobody will see"):
        with model.edit() as edited:
            hidden = model.first.output.save()
    first_of(edited)
    assert edited.trace(X, trace=False).shape == (2, 2)
    assert "hidden" not in locals()


def test_nonlocal_is_refused(model):
    count = 0

    def make():
        nonlocal count
        with model.edit():
            nonlocal count
            count += model.first.output.sum()

    with pytest.raises(SyntaxError, match="'nonlocal count' inside an edit"):
        make()
    assert count == 0


# --- edits as objects ---------------------------------------------------------------------------


def test_edits_are_listed_and_removed(model):
    with model.edit(inplace=True, name="zero"):
        model.first.output[:] = 0
    with model.second.edit(inplace=True):
        model.second.output = model.second.output + 1
    zero, other = model.edits
    assert (zero.name, zero.path) == ("zero", "") and other.path == "second"
    assert repr(model.edits).splitlines()[1].startswith("  [0] <edit 'zero', ")
    assert " on second, " in repr(other) and zero in model.edits
    model.edits.remove(zero)
    assert list(model.edits) == [other] and torch.equal(first_of(model), raw(model))
    model.edits.insert(0, zero)
    assert list(model.edits) == [zero, other]
    model.second.clear_edits()
    assert list(model.edits) == [zero]
    model.edits[0] = other
    assert list(model.edits) == [other]
    del model.edits[0]
    assert "none" in repr(model.edits)


def test_edits_pass_to_another_model(model):
    other = NNsight(Network())
    with model.edit() as doubled:
        layer = model.first
        layer.output = layer.output * 2
    with model.edit() as shifted:
        model.first.output = model.first.output + 1
    other.edits.extend([*doubled.edits, *shifted.edits])
    assert torch.equal(first_of(other), raw(other) * 2 + 1)
    assert torch.equal(first_of(model), raw(model))


def test_what_is_no_edit_here_is_refused(model):
    with pytest.raises(TypeError, match="`edits` holds edits, not str"):
        model.edits.append("zero")
    with model.edit(inplace=True):
        model.first.output
    with pytest.raises(ValueError, match=r"which does not run in a run of `model\.second` alone"):
        model.second.edits.append(model.edits[0])
    with model.second.edit() as (_, layer):
        layer.output
    with pytest.raises(AttributeError, match="second"):
        NNsight(nn.Linear(4, 4)).edits.append(layer.edits[0])
    assert isinstance(layer.edits[0], Edit)


def test_copies_have_their_own(model):
    with model.edit(inplace=True):
        model.first.output = model.first.output * 2
    twin = copy.deepcopy(model)
    twin._module.first.weight.data.zero_()
    model.clear_edits()
    assert torch.equal(first_of(twin), twin._module.first.bias.expand(2, 4) * 2)
    assert torch.equal(first_of(model), raw(model))


def test_a_copy_of_a_part_says_which_edits_it_leaves(model):
    with model.second.edit(inplace=True, name="double"):
        model.second.output = model.second.output * 2
    copy.deepcopy(model.first)
    expected = r"'double' on second.*copy\.deepcopy\(model\)\.second`"
    with pytest.warns(UserWarning, match=expected) as told:
        part = copy.deepcopy(model.second)
    assert told[0].filename == __file__ and not part.edits
    kept = copy.deepcopy(model).second
    assert torch.equal(kept.trace(X, trace=False), model._module.second(X) * 2)


def test_a_module_that_is_replaced_is_so_in_every_view(model):
    with model.edit() as edited:
        model.first.output = model.first.output * 2
    held, other = edited.last, edited.second
    model.last = nn.Linear(4, 3)
    assert held._module is model.last._module and edited.last is held
    assert other._module is model.second._module
    with edited.trace(X):
        first, last = held.input.save(), held.output.save()
    assert last.shape == (2, 3) and torch.equal(last, model._module.last(first))


def test_a_child_that_is_replaced_through_a_view(model):
    with model.edit() as edited:
        pass
    held = model.last
    edited.last = nn.Linear(4, 5)
    assert held._module is edited.last._module
    with model.trace(X):
        out = held.output.save()
    assert out.shape == (2, 5)


# --- mistakes -----------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, both: bool = True) -> torch.Tensor:
        x = self.first(x)
        return self.second(x) if both else x


def test_an_edit_without_effect_says_so():
    model = NNsight(Branching())
    with model.edit(inplace=True, name="quiet"):
        model.second.output[:] = 0
    for _ in range(2):  # counted, and as surveyed
        with pytest.warns(UserWarning, match=r"the edit 'quiet' .* `model.second.output`"):
            with model.trace(X, both=False):
                out = model.output.save()
        assert torch.equal(out, model._module.first(X))
        with model.trace(X):
            out = model.output.save()
        assert not out.any()


def test_an_error_in_an_edit_names_its_line(model):
    with model.edit(inplace=True):
        model.first.output / [][0]
    with pytest.raises(IndexError) as caught:
        first_of(model)
    assert caught.traceback[-1].lineno == model.edits[0].body.kept.block.lineno  # from 0, from 1
    model.clear_edits()
    assert torch.equal(first_of(model), raw(model))


def test_another_model_in_an_edit_is_refused(model):
    other = NNsight(Network())
    with model.edit(inplace=True):
        other.first.output
    with pytest.raises(ValueError, match="belongs to another model"):
        first_of(model)


def test_out_of_order_in_an_edit(model):
    with model.edit(inplace=True):
        model.second.output
        model.first.output
    with pytest.raises(OutOfOrderError, match=r"`model.first.output` was requested but"):
        first_of(model)
    with pytest.raises(OutOfOrderError, match=r"`model.first.output` was requested but"):
        model.trace(X, trace=False)


def test_an_edit_holds_no_model():
    gc.collect()
    gc.disable()
    try:
        model = NNsight(Network())
        with model.edit(inplace=True):
            model.first.output[:] = 0
        with model.edit() as edited:
            model.second.output[:] = 0
        first_of(edited)
        alive = weakref.ref(model._module)
        edits = list(edited.edits)
        del model, edited
        assert alive() is None and len(edits) == 2
    finally:
        gc.enable()
