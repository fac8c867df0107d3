"""`model.trace(...)`: what a block may be given, what it runs, what it reads and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import nnsight
from nnsight import NeverCalledError, NNsight, OutOfOrderError
from nnsight.traces.trace import Trace
from tests.behaviour.small import Network
from tests.conftest import hooks_on

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Counted(Network):
    """Counts its forwards, and has a second way to be run."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.forwards += 1
        return super().forward(x) * scale

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return self(x) + self(x)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x).tanh()


class Nest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x))


@pytest.fixture
def module() -> Counted:
    return Counted()


@pytest.fixture
def model(module: Counted) -> Iterator[NNsight]:
    yield NNsight(module)
    assert hooks_on(module) == []


# --- what is run -------------------------------------------------------------------------------


def test_an_input_given_to_the_trace_runs_one_forward(model, module):
    with model.trace(X):
        hidden = model.first.output.save()
        out = model.output.save()
    assert module.forwards == 1
    assert torch.equal(hidden, module.first(X))
    assert torch.equal(out, module(X))


def test_inputs_by_keyword(model, module):
    with model.trace(x=X, scale=3.0):
        inputs = model.inputs.save()
        out = model.output.save()
    args, kwargs = inputs
    assert args == () and list(kwargs) == ["x", "scale"]
    assert torch.equal(out, module(X, scale=3.0))


def test_invokes_share_one_forward(model, module):
    with model.trace() as tracer:
        with tracer.invoke(X):
            first = model.output.save()
        with tracer.invoke(-X):
            second = model.output.save()
    assert module.forwards == 1
    assert torch.allclose(first, module(X), atol=1e-6)
    assert torch.allclose(second, module(-X), atol=1e-6)


@pytest.mark.parametrize("body", ["pass", "...", "'only words'"])
def test_a_body_without_code_runs_the_forward(model, module, body):
    if body == "pass":
        with model.trace(X):
            pass
    elif body == "...":
        with model.trace(X):
            ...
    else:
        with model.trace(X):
            "only words"
    assert module.forwards == 1


def test_trivial_invokes_run_the_forward(model, module):
    with model.trace() as tracer:
        with tracer.invoke(X):
            pass
        with tracer.invoke(X):
            ...
    assert module.forwards == 1


def test_a_block_that_reads_nothing_runs_the_forward(model, module):
    with model.trace(X):
        three = nnsight.save(1 + 2)
    assert module.forwards == 1 and three == 3


def test_fn_names_a_method(model, module):
    with model.trace(X, fn="encode") as tracer:
        hidden = model.first.output.save()
        result = tracer.result.save()
    assert module.forwards == 0
    assert torch.equal(result, hidden.tanh())


def test_fn_may_run_the_model_several_times(model, module):
    with model.trace(X, fn="twice") as tracer:
        out = model.output.save()
        result = tracer.result.save()
    assert module.forwards == 2
    assert torch.equal(result, out * 2)


def test_fn_is_any_callable(model, module):
    def halves(x, factor):
        return module(x[:1]) * factor

    with model.trace(X, fn=halves, factor=4) as tracer:
        hidden = model.first.output.save()
        result = tracer.result.save()
    assert hidden.shape == (1, 4)
    assert torch.equal(result, module(X[:1]) * 4)


def test_fn_that_is_not_there(model):
    with pytest.raises(AttributeError, match="encoed"), model.trace(X, fn="encoed"):
        model.output.save()


def test_a_part_of_a_model_runs_alone():
    module = Nest()
    model = NNsight(module)
    with model.inner.trace(X) as tracer:
        hidden = model.inner[0].output.save()
        out = model.inner.output.save()
        result = tracer.result.save()
    assert torch.equal(hidden, module.inner[0](X))
    assert torch.equal(out, module.inner(X)) and torch.equal(result, out)


def test_a_part_keeps_its_full_path_and_runs_nothing_else():
    model = NNsight(Nest())
    with pytest.raises(ValueError, match=r"`model\.head\.output`"), model.inner.trace(X):
        model.head.output.save()
    with pytest.raises(OutOfOrderError, match=r"`model\.inner\.0\.output`"):
        with model.inner.trace(X):
            model.inner[1].output.save()
            model.inner[0].output.save()
    assert hooks_on(model._module) == []


def test_trace_false_runs_at_once(model, module):
    out = model.trace(X, trace=False, scale=2.0)
    assert torch.equal(out, module(X, scale=2.0))
    assert torch.equal(model.trace(X, fn="encode", trace=False), module.encode(X))
    with pytest.raises(ValueError, match="needs an input"):
        model.trace(trace=False)


def test_a_trace_without_any_input(model, module):
    with pytest.raises(ValueError, match="needs an input"), model.trace():
        pass
    with pytest.raises(ValueError, match="needs an input"), model.trace() as tracer:
        with tracer.invoke():
            model.output.save()
    assert module.forwards == 0


class Parameters(NNsight):
    """Keywords alone are parameters, and no input."""

    def _batch_size(self, *args, **kwargs):
        return super()._batch_size(*args, **kwargs) if args else 0


def test_keyword_inputs_of_the_trace_are_laid_over_those_of_its_invokes(module):
    model = Parameters(module)
    with model.trace(scale=5.0) as tracer:
        with tracer.invoke(X, scale=2.0):
            one = model.output.save()
    assert torch.equal(one, module(X, scale=5.0))


# --- the result --------------------------------------------------------------------------------


def test_the_result_is_what_the_call_returned(model):
    with model.trace(X) as tracer:
        out = model.output.save()
        result = tracer.result.save()
    assert torch.equal(result, out)


def test_a_result_assigned_is_read_afterwards(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            tracer.result = tracer.result * 0 + 7
        with tracer.invoke(X):
            other = tracer.result.save()
        with tracer.invoke():
            everything = tracer.result.save()
    assert (everything[:2] == 7).all()
    assert torch.equal(everything[2:], other)


def test_the_result_is_the_last_value(model):
    with pytest.raises(OutOfOrderError, match=r"model\.output"), model.trace(X) as tracer:
        tracer.result.save()
        model.output.save()


# --- the end of a run --------------------------------------------------------------------------


def test_stop_ends_the_forward_and_keeps_what_was_bound(model, module):
    seen = []
    module.second.register_forward_pre_hook(lambda *_: seen.append("second"))
    with pytest.warns(UserWarning, match=r"line \d+ comes after `stop\(\)`"):
        with model.trace(X) as tracer:
            hidden = model.first.output.save()
            tracer.stop()
            seen.append("after")
    module.second._forward_pre_hooks.clear()
    assert seen == []
    assert torch.equal(hidden, module.first(X))


def test_stop_before_any_read_runs_no_model(model, module):
    with model.trace(X) as tracer:
        three = nnsight.save(3)
        tracer.stop()
    assert module.forwards == 0 and three == 3


def test_stop_cuts_the_siblings_short_with_a_warning(model):
    with pytest.warns(UserWarning, match=r"tracer\.stop\(\) ended the run before the block at"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                hidden = model.first.output.save()
                tracer.stop()
            with tracer.invoke(X):
                early = model.first.output.save()
                model.output.save()
    assert hidden.shape == early.shape == (2, 4)


def test_stop_where_nothing_runs(model):
    with model.trace(X) as tracer:
        y = model.output.save()
    with pytest.raises(ValueError, match=r"tracer\.stop\(\)"):
        tracer.stop()
    assert torch.equal(y, model._module(X))
    with pytest.raises(ValueError, match=r"tracer\.stop\(\)"), model.trace() as tracer:
        tracer.stop()


def test_a_trace_that_no_with_enters_says_so(model):
    makers = [
        lambda: model.trace(X),
        lambda: model.scan(X),
        lambda: model.session(),
        lambda: nnsight.session(),
        lambda: model.edit(),
    ]
    for make in makers:
        line = make.__code__.co_firstlineno
        with pytest.warns(UserWarning, match="no `with` entered it, so nothing ran") as given:
            make()
        assert [(w.filename, w.lineno) for w in given] == [(__file__, line)]


def test_an_invoke_that_no_with_enters_says_so(model):
    with pytest.warns(UserWarning, match=r"`tracer\.invoke\(\.\.\.\)` was made here") as given:
        with model.trace() as tracer:
            tracer.invoke(X)
            with tracer.invoke(X):
                y = model.output.save()
    assert torch.equal(y, model._module(X)) and len(given) == 1


def test_a_tracer_that_could_not_be_made_says_nothing_more(model):
    class Picky(Trace):
        def __init__(self, *given: object) -> None:
            raise TypeError("not so")

    with pytest.raises(TypeError, match="not so"):  # what is ignored in `__del__` fails a test
        model.trace(X, tracer_cls=Picky)


def test_a_trace_that_is_entered_or_run_says_nothing(model):
    tracer = model.trace(X)
    with tracer:
        y = model.output.save()
    del tracer
    assert torch.equal(model.run(X, lambda tracer, model: model.output.save()), y)
    assert torch.equal(model.trace(X, trace=False), y)


def test_a_tracer_runs_once(model, module):
    tracer = model.trace(X)
    with tracer:
        out = model.output.save()
    with pytest.raises(ValueError, match="runs once"), tracer:
        model.output.save()
    assert module.forwards == 1 and out.shape == (2, 2)


def test_an_invoke_has_no_place_in_a_block_with_an_input(model):
    with pytest.raises(ValueError, match="input of its own"), model.trace(X) as tracer:
        with tracer.invoke(X):
            pass
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.output.save()
    with pytest.raises(ValueError, match="not open"):
        tracer.invoke(X)
    with pytest.raises(ValueError, match="already running"), model.trace() as tracer:
        with tracer.invoke(X):
            with tracer.invoke(X):
                pass


# --- traces in traces --------------------------------------------------------------------------


def test_a_trace_of_another_model_stands_in_a_block(model, module):
    other_module = Network()
    other = NNsight(other_module)
    with model.trace(X):
        hidden = model.first.output
        with other.trace(hidden):
            inner = other.first.output
            out = other.output
        model.second.input = inner  # it flows out although nobody saved it
        final = model.output.save()
        kept = out.save()
    expected = other_module.first(module.first(X))
    assert torch.equal(final, module.last(module.second(expected).relu()))
    assert torch.equal(kept, other_module(module.first(X)))
    assert hooks_on(other_module) == []


def test_a_trace_of_another_model_in_an_invoke(model, module):
    other_module = Network()
    other = NNsight(other_module)
    with model.trace() as tracer:
        with tracer.invoke(X):
            hidden = model.first.output
            with other.trace(hidden):
                moved = other.first.output
            one = moved.save()
        with tracer.invoke(-X):
            two = model.output.save()
    assert torch.allclose(one, other_module.first(module.first(X)), atol=1e-6)
    assert torch.allclose(two, module(-X), atol=1e-6)


def test_a_block_cannot_run_the_model_it_runs_beside(model, module):
    with pytest.raises(ValueError, match="during an active model execution"):
        with model.trace(X):
            hidden = model.first.output
            with model.trace(hidden):
                model.output.save()
    with pytest.raises(ValueError, match="during an active model execution"):
        with model.trace(X):
            with model.first.trace(X):
                pass


# --- the tracer as the model -------------------------------------------------------------------


def test_the_tracer_reads_like_the_model(model, module):
    with model.trace(X) as m:
        given = m.input.save()
        hidden = m.first.output.save()
        out = m.output.save()
    assert given is X or torch.equal(given, X)
    assert torch.equal(hidden, module.first(X)) and torch.equal(out, module(X))


def test_the_output_is_assigned_through_the_tracer(model):
    with model.trace(X) as m:
        m.first.output = m.first.output * 0
        m.output = m.output * 0 + 3
        result = m.result.save()
    assert (result == 3).all()


def test_the_input_is_assigned_through_the_tracer(model, module):
    with model.trace(X) as m:
        m.input = -X
        out = m.output.save()
    assert torch.equal(out, module(-X))


def test_names_that_neither_has(model):
    with pytest.raises(AttributeError, match="frist"), model.trace(X) as m:
        m.frist.output.save()
    with pytest.raises(AttributeError) as caught, model.trace(X) as m:
        m.reslut.save()
    assert "The tracer has `.result`." in "".join(caught.value.__notes__)


# --- the callable form -------------------------------------------------------------------------


def test_run_returns_what_the_function_returned(model, module):
    def block(tracer, model):
        hidden = model.first.output
        model.second.output = model.second.output * 2
        return hidden, tracer.result

    hidden, result = model.run(X, block)
    x = module.second(module.first(X).relu()) * 2
    assert torch.equal(hidden, module.first(X))
    assert torch.equal(result, module.last(x.relu()))
    assert module.forwards == 1


def test_run_takes_its_function_by_keyword(model, module):
    out = model.run(X, scale=2.0, fn=lambda tracer, model: model.output)
    assert torch.equal(out, module(X, scale=2.0))


def test_run_refuses_what_it_cannot_run(model):
    with pytest.raises(TypeError, match="needs a function"):
        model.run(X)
    with pytest.raises(ValueError, match="needs an input"):
        model.run(fn=lambda tracer, model: None)
    with pytest.raises(ValueError, match="during an active model execution"), model.trace(X):
        model.run(X, lambda tracer, model: None)


def test_run_stopped_returns_nothing(model, module):
    assert model.run(X, lambda tracer, model: tracer.stop()) is None
    assert module.forwards == 0


def test_run_raises_what_the_function_raised(model, module):
    with pytest.raises(ZeroDivisionError):
        model.run(X, lambda tracer, model: 1 / 0)
    assert torch.equal(model.run(X, lambda t, m: m.output), module(X))


# --- errors leave nothing ----------------------------------------------------------------------


def test_the_model_can_be_traced_again_after_an_error(model, module):
    module.fails = True
    with pytest.raises(RuntimeError, match="the model fails"), model.trace(X):
        hidden = model.first.output.save()
        model.last.output.save()
    module.fails = False
    assert hooks_on(module) == []
    with model.trace(X):
        hidden = model.first.output.save()
    assert torch.equal(hidden, module.first(X))


def test_a_module_that_does_not_run(module):
    module.spare = nn.Linear(2, 2)
    model = NNsight(module)
    with pytest.raises((NeverCalledError, OutOfOrderError), match=r"`model\.spare\.output`"):
        with model.trace(X):
            model.spare.output.save()


def test_a_misspelt_value_of_the_tracer_is_told(model):
    with pytest.warns(
        UserWarning, match=r"`.outptu = ...` on the tracer changed nothing.*`.output`"
    ):
        with model.trace(X) as tracer:
            tracer.outptu = model.output * 0


@pytest.mark.parametrize("lines", [1, 30, 300])
def test_a_body_of_any_length(lines: int):
    """Python 3.10 writes a long jump as two instructions, and stands on the first of them."""
    import linecache

    steps = "".join(f"        total = total + {n}\n" for n in range(lines))
    code = f"def run(model, x, total):\n    with model.trace(x):\n{steps}"
    code += "        out = (model.output * 0 + total).save()\n    return out\n"
    name = f"<{lines} lines>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    names = {}
    exec(compile(code, name, "exec"), names)
    out = names["run"](NNsight(nn.Linear(2, 2)), torch.ones(1, 2), 1)
    assert out.tolist() == [[1 + sum(range(lines))] * 2]
