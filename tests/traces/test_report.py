"""`tracer.report()`: what it says of a run, and when one is kept."""

# ruff: noqa: B018 -- a value is read by naming it
from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from nnsight import Envoy, NNsight, OutOfOrderError, eproperty
from tests.behaviour.small import Network
from tests.conftest import hooks_on

X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def module() -> Network:
    return Network().eval().requires_grad_(False)


@pytest.fixture
def model(module: Network) -> Iterator[NNsight]:
    yield NNsight(module)
    assert hooks_on(module) == []


def told(report) -> list[tuple[str, str, str]]:
    """Which block did what, and where."""
    return [(event.block, event.action, event.where) for event in report]


# --- what it says ---------------------------------------------------------------------------------


def test_a_run_that_an_error_ended():
    model = NNsight(nn.Linear(4, 4))
    with pytest.raises(ZeroDivisionError):
        with model.trace(torch.ones(1, 4)) as tracer:
            model.input
            1 / 0
    assert tracer.report().error == "ZeroDivisionError"
    assert tracer.report().summary == [
        "An error ended the run (ZeroDivisionError): what comes after is not here."
    ]


def test_everything_that_blocks_do_in_the_order_in_which_it_happens(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.first.output
            model.last.output
        with tracer.invoke(X):
            model.first.output = torch.ones(2, 4)
            model.second.skip(model.second.input)
            tracer.result
    assert told(tracer.report()) == [
        ("0", "read", "model.first.output"),
        ("1", "write", "model.first.output"),
        ("1", "read", "model.second.input"),
        ("1", "skip", "model.second"),
        ("0", "read", "model.last.output"),
        ("1", "read", "result"),
    ]


def test_shapes_visits_and_lines(model):
    with model.trace(X) as tracer:
        model.first.output
        model.last.output[:, 0] = 1
    first, last, change = tracer.report()
    assert [first.value, last.value, first.visit] == ["[2, 4]", "[2, 2]", 0]
    line = int(first.line.removeprefix("test_report.py:"))
    assert last.line == change.line == f"test_report.py:{line + 1}"
    assert "model.first.output" in linecache.getline(__file__, line)


def test_a_line_of_a_function_that_a_block_calls_is_that_functions(model):
    def reads():
        return model.first.output

    with model.trace(X) as tracer:
        reads()
    (event,) = tracer.report()
    line = int(event.line.removeprefix("test_report.py:"))
    assert linecache.getline(__file__, line).strip() == "return model.first.output"


def test_norms_of_changes(model, module):
    first = module.first(X)
    with model.trace(X) as tracer:
        model.first.output = model.first.output + 3
        model.second.output[0] = 5
        before = model.last.output.clone().save()
        model.last.output[:, 1] *= 2
    write, read, in_place, *_, last = tracer.report()
    assert (write.action, read.action, in_place.action) == ("write", "read", "in place")
    assert write.change == pytest.approx(float(torch.full((2, 4), 3.0).norm()))
    assert write.size == pytest.approx(float(first.norm()))
    second = module.second((first + 3).relu())
    expected = float((torch.full((4,), 5.0) - second[0]).norm())
    assert in_place.change == pytest.approx(expected, rel=1e-5)
    assert last.change == pytest.approx(float(before[:, 1].norm()), rel=1e-5)
    assert len(tracer.report().changes) == 3


def test_the_norm_of_an_invokes_change_is_that_of_its_rows(model, module):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.first.output[:] = 0
        with tracer.invoke(X * 2):
            model.first.output
    changes = tracer.report().changes
    assert [event.block for event in changes] == ["0"]
    assert changes[0].change == pytest.approx(float(module.first(X).norm()), rel=1e-5)


def test_blocks_that_only_read_are_told_how_to_change(model):
    with model.trace(X) as tracer:
        hidden = model.first.output
        hidden = hidden * 0
    report = tracer.report()
    assert not report.changes
    assert "the blocks only read" in str(report) and "`module.output = new`" in str(report)


def test_a_change_in_a_copy_is_none(model):
    with model.trace(X) as tracer:
        model.first.output.clone()[:] = 0
    assert not tracer.report().changes


def test_a_change_after_the_model_went_on_is_told_as_late(model):
    with model.trace(X) as tracer:
        hidden = model.first.output
        model.second.output
        hidden[:] = 0
    report = tracer.report()
    late = report.events[-1]
    assert (late.action, late.where, late.late) == (
        "in place",
        "model.first.output",
        "model.second.output",
    )
    assert not report.changes
    assert "Nothing changed in the model." in str(report)
    assert "Change a value right after reading it" in str(report)


def test_a_change_of_a_value_that_was_replaced_is_told(model):
    with model.trace(X) as tracer:
        hidden = model.first.output
        model.first.output = torch.ones(2, 4)
        hidden[:] = 7
    report = tracer.report()
    assert "changed in place after it had been replaced" in str(report)
    assert [event.action for event in report.changes] == ["write"]


def test_a_replacement_by_the_same_is_told(model):
    with model.trace(X) as tracer:
        model.first.output = model.first.output
    assert "was replaced by a value that is the same" in str(tracer.report())


def test_what_the_model_changes_in_place_is_not_the_blocks_doing():
    model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)))
    with torch.no_grad(), model.trace(X) as tracer:
        model[0].output
        model[2].output
    report = tracer.report()
    assert told(report) == [("0", "read", "model.0.output"), ("0", "read", "model.2.output")]


def test_one_tensor_at_two_places_is_told_once():
    model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 2)))
    with torch.no_grad(), model.trace(X) as tracer:
        model[0].output
        model[1].output[:] = 0
    assert told(tracer.report())[2:] == [("0", "in place", "model.1.output")]
    assert len(tracer.report().changes) == 1


def test_what_the_run_did_not_bring_is_told(model):
    with model.trace(X) as tracer:
        model.second.output
        try:
            model.first.output
        except OutOfOrderError:
            pass
    event = tracer.report().events[-1]
    assert (event.action, event.where, event.value) == ("not met", "model.first.output", "(read)")
    assert "the run did not bring it" in str(tracer.report())


def test_a_stop_is_told(model):
    with model.trace(X) as tracer:
        model.first.output
        tracer.stop()
    assert "`tracer.stop()` ended the run." in str(tracer.report())


def test_inference_mode_has_changes_too(model):
    with torch.inference_mode(), model.trace(X) as tracer:
        model.first.output[:] = 0
    assert [event.action for event in tracer.report().changes] == ["in place"]


def test_a_scan_has_changes_without_norms(model):
    with model.scan(X) as tracer:
        model.first.output[:] = 0
    print(tracer)
    assert [event.action for event in tracer.report()] == ["read", "in place"]
    assert str(tracer.report()).splitlines()[4].endswith("yes") and "nan" not in str(tracer)


def test_an_operation_in_a_forward_is_told(model):
    with model.trace(X) as tracer:
        model.source.self_first_0.output[:] = 0
    assert told(tracer.report())[1] == ("0", "in place", "model.source.self_first_0.output")


def test_an_edit_of_the_model_is_told_as_one(model):
    with model.edit() as edited:
        edited.first.output[:] = 0
    with edited.trace(X) as tracer:
        edited.first.output
    assert told(tracer.report()) == [
        ("edit", "read", "model.first.output"),
        ("edit", "in place", "model.first.output"),
        ("0", "read", "model.first.output"),
    ]


# --- when it is kept ------------------------------------------------------------------------------


def test_in_the_block_it_tells_what_happened_until_then(model):
    with model.trace(X) as tracer:
        model.first.output
        early = tracer.report().save()
        model.second.output[:] = 0
    assert told(early) == [("0", "read", "model.first.output")]
    assert "The run goes on" in str(early) and len(tracer.report()) == 3


def test_printing_the_tracer_after_the_trace(model, capsys):
    with model.trace(X) as tracer:
        model.first.output[:] = 0
    print(tracer)
    assert "model.first.output" in capsys.readouterr().out


def test_printing_the_tracer_in_the_trace(model, capsys):
    with model.trace(X) as tracer:
        model.first.output[:] = 0
        print(tracer)
    out = capsys.readouterr().out
    assert "model.first.output" in out and "in place" in out


def test_the_end_of_a_notebook_cell(model):
    code = "with model.trace(X) as tracer:\n    model.first.output\n\ntracer\n"
    linecache.cache["<cell>"] = (len(code), None, code.splitlines(True), "<cell>")
    names: dict[str, Any] = {"model": model, "X": X}
    exec(compile(code, "<cell>", "exec"), names)
    assert len(names["tracer"].report()) == 1


def shown(tracer) -> str:
    return repr(tracer)


def test_without_being_asked_for_it_is_not_kept(model):
    with model.trace(X) as quiet:
        model.first.output
    assert "no report was kept of this run" in shown(quiet)
    assert quiet._repr_html_() is None
    with pytest.raises(ValueError, match="report=True"):
        type(quiet).report(quiet)


def test_a_report_of_one_trace_is_not_kept_for_another(model):
    with model.trace(X) as quiet:
        model.first.output
    with model.trace(X) as asked:
        model.first.output
    print(asked)
    assert "no report was kept" in shown(quiet)


def test_it_can_be_asked_for_by_keyword(model):
    with model.trace(X, report=True) as quiet:
        model.first.output
    assert "model.first.output" in shown(quiet)


def test_a_function_can_ask_for_it(model):
    def block(tracer, model):
        model.first.output[:] = 0
        return tracer.report()

    assert len(model.run(X, block).changes) == 1


# --- what it leaves alone -------------------------------------------------------------------------


def test_it_changes_nothing_in_the_run(model):
    def once(report: bool) -> list[torch.Tensor]:
        with model.trace(report=report) as tracer:
            with tracer.invoke(X):
                model.first.output[:, 0] = 2
                one = model.last.output.save()
            with tracer.invoke(X * 2):
                model.second.output = model.second.input + 1
                two = tracer.result.save()
        return [one, two]

    for plain, reported in zip(once(False), once(True), strict=True):
        assert torch.equal(plain, reported)


def test_it_shows_in_a_notebook(model):
    with model.trace(X) as tracer:
        model.first.output[:] = 0
    html = tracer.report()._repr_html_()
    assert html == tracer._repr_html_()
    assert "model.first.output" in html and html.count("<tr>") == 3 and "width:80px" in html


# --- views of a user's own ------------------------------------------------------------------------


class Halves(Envoy):
    @eproperty(key="output")
    def halves(self, value):
        return value.unflatten(-1, (2, 2)).clone()

    @halves.postprocess
    def halves(self, halves):
        return halves.flatten(-2)

    @halves.transform
    def halves(self, halves):
        return halves.flatten(-2)


@pytest.fixture
def halved(module) -> NNsight:
    return NNsight(module, envoys={"first": Halves})


def test_an_assigned_view_is_one_read_and_one_write(halved):
    with halved.trace(X) as tracer:
        halved.first.halves = halved.first.halves * 0
    report = tracer.report()
    read = ("0", "read", "model.first.output")
    assert told(report) == [read, ("0", "write", "model.first.output")]
    assert "(100%)" in str(report) and report.summary == []


def test_a_view_that_is_only_read_changes_nothing(halved):
    with halved.trace(X) as tracer:
        halved.first.halves
    report = tracer.report()
    assert told(report) == [("0", "read", "model.first.output")]
    assert "the blocks only read" in report.summary[0]


def test_a_view_changed_in_place_has_the_line_of_its_read(halved):
    with halved.edit() as edited:
        halved.first.halves[:] = 0
    with edited.trace(X) as tracer:
        pass
    report = tracer.report()
    assert told(report) == [
        ("edit", "read", "model.first.output"),
        ("edit", "in place", "model.first.output"),
    ]
    read, change = report
    assert read.line == change.line and read.line.startswith("test_report.py:")


# --- gradients ------------------------------------------------------------------------------------


def test_what_a_backward_block_does_is_told():
    model = NNsight(Network())
    with model.trace(X) as tracer:
        hidden = model.second.output
        loss = model.output.sum()
        with loss.backward():
            hidden.grad = hidden.grad * 0
            weight = model.first.weight.grad.save()
    report = tracer.report()
    assert not weight.any()
    assert told(report)[2:] == [
        ("0", "write", "hidden.grad"),
        ("0", "read", "model.first.weight.grad"),
    ]
    assert "(100%)" in str(report) and report.summary == []


def test_a_backward_block_that_only_reads_changes_nothing():
    model = NNsight(Network())
    with model.trace(X) as tracer:
        hidden = model.second.output
        with model.output.sum().backward():
            hidden.grad
    report = tracer.report()
    assert told(report)[2:] == [("0", "read", "hidden.grad")]
    assert "the blocks only read" in report.summary[0]
