"""What an envoy gives inside a trace: read, write, skip, and calls of one's own."""

from __future__ import annotations

import threading
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.conftest import hooks_on
from torch import nn

from nnsight import NeverCalledError, NNsight, OutOfOrderError, OutsideTraceError

X = torch.linspace(-1, 1, 8).reshape(2, 4)

Pair = namedtuple("Pair", "left right")


@dataclass
class Record:
    state: torch.Tensor
    label: str


class Shapes(nn.Module):
    """Returns its input in whatever container it was made for."""

    MAKE = {  # noqa: RUF012 # never changed
        "tensor": lambda x: x * 2,
        "tuple": lambda x: (x, x + 1),
        "list": lambda x: [x, x + 1],
        "dict": lambda x: {"a": x, "b": x + 1},
        "ordered": lambda x: OrderedDict(a=x, b=x + 1),
        "named": lambda x: Pair(x, x + 1),
        "record": lambda x: Record(x, "label"),
        "nested": lambda x: ((x, {"deep": [x + 1]}), None),
    }

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        return self.MAKE[self.kind](x)


class Box(nn.Module):
    """A module between two others, whose value goes on as a tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.shapes = Shapes(kind)
        self.after = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(total(self.shapes(self.before(x))))


def total(value: Any) -> Any:
    """The sum of all tensors in a value."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Record):
        return value.state
    members = value.values() if isinstance(value, dict) else value
    return sum(total(member) for member in members if member is not None)


class Calls(nn.Module):
    """Takes arguments in every way."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, *, scale: float = 1.0) -> Any:
        return (x if y is None else x + y) * scale


class Caller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional, self.mixed, self.named, self.nothing = (Calls() for _ in range(4))
        self.nothing.forward = lambda: torch.ones(2, 4)  # type: ignore[method-assign]
        self.never = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.positional(x, x)
        x = self.mixed(x, scale=2.0)
        x = self.named(scale=3.0, x=x)
        return x + self.nothing()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(self.norm(x))


class Stack(nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return self(x) + self(2 * x)

    def halfway(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x))


@pytest.fixture
def model() -> Iterator[NNsight]:
    """A model on which nothing is left after the test."""
    wrapped = NNsight(Stack())
    yield wrapped
    assert hooks_on(wrapped._module) == []


def recorded(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, tuple[Any, Any, Any]]:
    """What PyTorch's own hooks see: arguments, keywords and output of every module."""
    seen: dict[str, tuple[Any, Any, Any]] = {}

    def keep(path: str, *values: Any) -> None:
        seen.setdefault(path, values)

    handles = [
        inner.register_forward_hook(
            lambda m, a, k, out, path=path: keep(path, a, k, out), with_kwargs=True
        )
        for path, inner in module.named_modules()
    ]
    module(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return seen


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, container for container."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Record):
        return type(b) is Record and torch.equal(a.state, b.state)
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and all(map(same, a, b)) and len(a) == len(b)
    return a == b


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Stack, Caller, *(lambda k=k: Box(k) for k in Shapes.MAKE)])
def test_values_are_those_that_pytorch_hooks_see(make: Any):
    module = make()
    seen, model = recorded(module, X), NNsight(module)
    for path, (args, kwargs, out) in seen.items():
        with model.trace(X) as tracer:
            envoy = model.get(path)
            inputs = envoy.inputs.save()
            output = envoy.output.save()
            result = tracer.result.save()
        assert same(inputs, (args, kwargs)) and same(output, out), path
        assert torch.equal(result, module(X)), "looking changes nothing"
    assert set(hooks_on(module)) <= {"nothing: forward"}, "that one is the model's own"


def test_all_values_in_one_block(model: NNsight):
    seen = recorded(model._module, X)
    with model.trace(X):
        values = {}
        for index, layer in enumerate(model.layers):
            values[f"layers.{index}.norm"] = layer.norm.output
            values[f"layers.{index}.fc"] = layer.fc.output
            values[f"layers.{index}"] = layer.output
        values["head"] = model.head.output
        values[""] = model.output
        values.save()
    assert all(torch.equal(value, seen[path][2]) for path, value in values.items())
    assert len(values) == 14


def test_input_is_the_first_argument_whichever_way_it_came():
    model = NNsight(Caller())
    with model.trace(X):
        positional = model.positional.input.save()
        pair = model.positional.inputs.save()
        mixed = model.mixed.inputs.save()
        named = model.named.inputs.save()
        first_named = model.named.input.save()
        nothing = model.nothing.inputs.save()
    assert torch.equal(positional, X) and same(pair, ((X, X), {}))
    assert same(mixed, ((2 * X,), {"scale": 2.0})) and same(named[1], {"scale": 3.0, "x": 4 * X})
    assert first_named == 3.0 and nothing == ((), {})


def test_a_value_is_the_very_object(model: NNsight):
    with model.trace(X):
        once, again = model.layers[0].output, model.layers[0].output
        same_object = (once is again).save()
        older_name = (model.layers[1].nns_output is model.layers[1].output).save()
        parts = (model.head.input is model.head.inputs[0][0]).save()
    assert same_object and older_name and parts


def test_reading_needs_a_run(model: NNsight):
    for ask in (lambda: model.output, lambda: model.head.input, lambda: model.head.inputs):
        with pytest.raises(OutsideTraceError, match=r"`model(\.head)?\.(out|in)put` outside of"):
            ask()
    assert "Read or assign it" in type(model).output.__doc__


def test_a_thread_of_ones_own_runs_no_block(model: NNsight):
    with model.trace(X):
        told: list[Exception] = []

        def ask() -> None:
            try:
                told.append(model.head.output)
            except OutsideTraceError as error:
                told.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        told.save()
    assert len(told) == 1 and isinstance(told[0], OutsideTraceError)


# --- writing --------------------------------------------------------------------------------------


def test_an_assigned_output_goes_on(model: NNsight):
    module = model._module
    with model.trace(X):
        model.layers[0].fc.output = torch.zeros(2, 4)
        first = model.layers[0].output.save()
        last = model.layers[3].output.save()
        result = model.output.save()
    assert torch.equal(first, X)
    expected = X
    for layer in module.layers[1:]:
        expected = layer(expected)
    assert torch.equal(last, expected) and torch.equal(result, module.head(expected))


def test_what_was_assigned_is_what_is_read(model: NNsight):
    with model.trace(X):
        before = model.layers[0].output
        model.layers[0].output = new = before * 2
        after = (model.layers[0].output is new).save()
        model.layers[0].output = model.layers[0].output + 1
        twice = model.layers[0].output.save()
        downstream = model.layers[1].input.save()
    assert after and torch.equal(twice, model._module.layers[0](X) * 2 + 1)
    assert torch.equal(downstream, twice)


def test_a_change_in_place_goes_on(model: NNsight):
    with model.trace(X):
        model.layers[1].output[:, 0] = 0
        seen = model.layers[2].input.save()
        result = model.output.save()
    assert not seen[:, 0].any() and seen[:, 1:].any()
    assert not torch.equal(result, model._module(X))


def test_the_last_output_is_the_result(model: NNsight):
    with model.trace(X) as tracer:
        model.output = torch.zeros(2, 3)
        result = tracer.result.save()
        tracer.result = result + 1
        again = tracer.result.save()
    assert not result.any() and torch.equal(again, torch.ones(2, 3))


def test_an_assigned_input_goes_in(model: NNsight):
    with model.trace(X):
        model.layers[2].input = torch.ones(2, 4)
        seen = model.layers[2].norm.input.save()
        result = model.layers[2].output.save()
    assert torch.equal(seen, torch.ones(2, 4))
    assert torch.equal(result, model._module.layers[2](torch.ones(2, 4)))


def test_all_ways_to_assign_inputs():
    model = NNsight(Caller())
    ones = torch.ones(2, 4)
    with model.trace(X):
        model.positional.inputs = (ones, 2 * ones), {}
        a = model.positional.output.save()
        model.mixed.inputs = [ones], {"scale": 5.0}
        b = model.mixed.output.save()
        model.named.input = 7.0
        c = model.named.output.save()
        model.nothing.inputs = (), {}
    assert torch.equal(a, 3 * ones) and torch.equal(b, 5 * ones) and torch.equal(c, 35 * ones)
    with model.trace(X):
        model.positional.input = ones
        a = model.positional.output.clone().save()
        model.mixed.input[:] = 0
        b = model.mixed.output.save()
    assert torch.equal(a, ones + X) and not b.any()


@pytest.mark.parametrize("kind", Shapes.MAKE)
def test_any_container_is_assigned(kind: str):
    module = Box(kind)
    model = NNsight(module)
    new = Shapes.MAKE[kind](torch.ones(2, 4))
    with model.trace(X):
        model.shapes.output = new
        again = (model.shapes.output is new).save()
        result = model.output.save()
    assert again and torch.equal(result, module.after(total(new)))


@pytest.mark.parametrize("kind", ["list", "dict", "ordered"])
def test_members_of_a_container_are_assigned(kind: str):
    module = Box(kind)
    model = NNsight(module)
    with model.trace(X):
        first = next(iter(model.shapes.output)) if "d" in kind else 0
        model.shapes.output[first] = torch.zeros(2, 4)
        result = model.output.save()
    assert torch.equal(result, module.after(module.before(X) + 1))


# --- skipping -------------------------------------------------------------------------------------


def test_a_skipped_module_does_not_run(model: NNsight):
    with model.trace(X):
        model.layers[1].skip(torch.ones(2, 4))
        output = model.layers[1].output.save()
        result = model.output.save()
    module = model._module
    expected = module.head(module.layers[3](module.layers[2](torch.ones(2, 4))))
    assert torch.equal(output, torch.ones(2, 4)) and torch.equal(result, expected)


def test_skip_with_the_modules_own_input(model: NNsight):
    with model.trace(X):
        for layer in model.layers:
            layer.skip(layer.input)
        result = model.output.save()
    assert torch.equal(result, model._module.head(X))


def test_skip_of_the_inner_and_of_the_outer(model: NNsight):
    with model.trace(X):
        model.layers[0].norm.skip(X)
        model.layers[0].fc.skip(model.layers[0].fc.input * 2)
        model.layers[1].skip(model.layers[1].input)
        result = model.layers[1].output.save()
    assert torch.equal(result, 3 * X)
    with pytest.raises(NeverCalledError, match=r"`model\.layers\.0\.fc\.input`"):
        with model.trace(X):
            model.layers[0].skip(X)
            inner = model.layers[0].fc.input.save()  # noqa: F841 # never there


def test_skip_and_change_what_it_gives(model: NNsight):
    with model.trace(X):
        model.layers[0].skip(X)
        model.layers[0].output = model.layers[0].output * 3
        seen = model.layers[1].input.save()
    assert torch.equal(seen, 3 * X)


def test_skip_of_the_whole_model(model: NNsight):
    with model.trace(X) as tracer:
        model.skip(torch.ones(1))
        result = tracer.result.save()
    assert result.item() == 1


def test_skip_with_any_value():
    model = NNsight(Box("nested"))
    with model.trace(X):
        model.shapes.skip(((X, {"deep": [X]}), None))
        result = model.output.save()
    assert torch.equal(result, model._module.after(2 * X))


def test_skip_by_one_invoke_of_two(model: NNsight):
    module = model._module
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.layers[1].skip(model.layers[1].input)
            skipped = model.layers[1].output.save()
            one = model.output.save()
        with tracer.invoke(2 * X):
            ran = model.layers[1].output.save()
            two = model.output.save()
    assert torch.allclose(skipped, module.layers[0](X))
    assert torch.allclose(ran, module.layers[1](module.layers[0](2 * X)))
    assert torch.allclose(two, module(2 * X)) and not torch.allclose(one, module(X))


def test_skip_by_all_invokes(model: NNsight):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.layers[1].skip(torch.zeros(2, 4))
        with tracer.invoke(X[:1]):
            model.layers[1].skip(torch.ones(1, 4))
        with tracer.invoke():
            whole = model.layers[1].output.save()
            inner = []
            try:
                inner.append(model.layers[1].fc.output)
            except NeverCalledError:
                inner.append("never ran")
            inner.save()
    assert whole.tolist() == [[0.0] * 4, [0.0] * 4, [1.0] * 4] and inner == ["never ran"]


def test_a_skip_of_rows_of_another_number_is_refused(model: NNsight):
    with pytest.raises(ValueError, match=r"`model\.layers\.1\.skip` does not fit.*\[3, 4\]"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model.layers[1].skip(torch.zeros(3, 4))
            with tracer.invoke(X):
                pass


# --- calls of one's own ---------------------------------------------------------------------------


def test_a_module_called_in_a_block_is_not_part_of_the_run(model: NNsight):
    module = model._module
    with model.trace(X):
        early = model.head(model.layers[0].output).save()
        again = model.layers[3](X).save()
        last = model.layers[3].output.save()
        head = model.head.output.save()
    assert torch.equal(early, module.head(module.layers[0](X)))
    assert torch.equal(again, module.layers[3](X))
    assert torch.equal(head, module(X)) and torch.equal(last, recorded(module, X)["layers.3"][2])


def test_the_logit_lens(model: NNsight):
    with model.trace(X):
        guesses = [model.head(layer.output) for layer in model.layers].save()
        truth = model.output.save()
    assert len(guesses) == 4 and torch.equal(guesses[-1], truth)


def test_a_call_outside_a_trace_is_a_plain_call(model: NNsight):
    assert torch.equal(model(X), model._module(X))
    assert torch.equal(model.layers[0](X), model._module.layers[0](X))
    assert torch.equal(model.head(X, hook=True), model._module.head(X))


def test_the_raw_module_called_in_a_block_is_not_part_of_the_run(model: NNsight):
    with model.trace(X):
        model._module(3 * X)
        model.layers[0]._module(3 * X)
        model.halfway(3 * X)
        first = model.layers[0].output.save()
    assert torch.equal(first, model._module.layers[0](X))


def test_a_hooked_call_is_seen_by_other_blocks():
    module = Stack()
    model = NNsight(module)
    model.layers[0].probe = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with model.trace() as tracer:
        with tracer.invoke(X):
            state = model.layers[0].output
            model.layers[0].output = model.layers[0].probe(state, hook=True)
            result = model.output.save()
        with tracer.invoke():
            inner = model.layers[0].probe[0].output.save()
            probed = model.layers[0].probe.output.save()
    state = module.layers[0](X)
    assert torch.equal(inner, module.layers[0].probe[0](state))
    assert torch.equal(probed, module.layers[0].probe(state))
    expected = probed
    for layer in module.layers[1:]:
        expected = layer(expected)
    assert torch.equal(result, module.head(expected))
    assert hooks_on(module) == []


def test_the_block_that_makes_a_hooked_call_cannot_read_it():
    model = NNsight(Stack())
    model.probe = nn.Linear(4, 4)
    with pytest.raises(OutOfOrderError, match=r"`model\.probe\.output`"):
        with model.trace(X):
            model.probe(model.layers[0].output, hook=True)
            value = model.probe.output.save()  # noqa: F841 # never there


# --- what is run ----------------------------------------------------------------------------------


def test_a_part_of_a_model_is_traced_alone(model: NNsight):
    layer = model.layers[2]
    with layer.trace(X):
        norm = layer.norm.output.save()
        output = layer.output.save()
    module = model._module.layers[2]
    assert torch.equal(norm, module.norm(X)) and torch.equal(output, module(X))
    with pytest.raises(NeverCalledError, match=r"`model\.head\.output`"):
        with layer.trace(X):
            value = model.head.output.save()  # never there
    with model.trace(X):
        pass  # a run of the whole model says nothing of a run of a part
    with pytest.raises(NeverCalledError, match=r"`model\.head\.output`"):
        with layer.trace(X):
            value = model.head.output.save()  # noqa: F841 # never there


def test_a_method_is_run_by_name(model: NNsight):
    with model.trace(X, fn="halfway") as tracer:
        first = model.layers[0].output.save()
        result = tracer.result.save()
    assert torch.equal(result, model._module.halfway(X))
    assert torch.equal(first, model._module.layers[0](X))


def test_any_callable_is_run(model: NNsight):
    module = model._module
    for fn in (module.halfway, lambda x: module.layers[1](module.layers[0](x))):
        with model.trace(X, fn=fn) as tracer:
            model.layers[0].output = 2 * X
            result = tracer.result.save()
        assert torch.equal(result, module.layers[1](2 * X))


def test_a_method_that_runs_the_model_twice_gives_the_first_values(model: NNsight):
    for _ in range(2):
        with model.trace(X, fn="twice") as tracer:
            head = model.head.output.save()
            result = tracer.result.save()
        assert torch.equal(head, model._module(X))
        assert torch.equal(result, model._module.twice(X))
        with pytest.raises(OutOfOrderError):
            with model.trace(X, fn="twice"):
                model.output.sum()
                late = model.head.output.save()  # noqa: F841 # the second is not given for it


def test_a_trace_without_a_block(model: NNsight):
    assert torch.equal(model.trace(X, trace=False), model._module(X))
    assert torch.equal(model.trace(X, trace=False, fn="halfway"), model._module.halfway(X))
    with pytest.raises(ValueError, match="needs an input"):
        model.trace(trace=False)


def test_the_callable_form(model: NNsight):
    def block(tracer: Any, traced: Any) -> Any:
        model.layers[0].output = X
        return traced.layers[1].output.save(), tracer.result

    inner, result = model.run(X, block)
    assert torch.equal(inner, model._module.layers[1](X))
    again = model.run(X, fn=block)
    assert torch.equal(again[1], result) and not torch.equal(result, model._module(X))


def test_the_tracer_reads_like_the_model(model: NNsight):
    with model.trace(X) as m:
        first = m.layers[0].output.save()
        m.output = torch.zeros(2, 3)
        result = m.result.save()
    assert torch.equal(first, model._module.layers[0](X)) and not result.any()


def test_keywords_go_to_the_module():
    model = NNsight(Calls())
    with model.trace(X, y=X, scale=3.0) as tracer:
        inputs = model.inputs.save()
        result = tracer.result.save()
    assert torch.equal(result, 6 * X) and same(inputs, ((X,), {"y": X, "scale": 3.0}))
    with model.trace(x=X) as tracer:
        result = tracer.result.save()
    assert torch.equal(result, X)


@pytest.mark.parametrize("name", ["scan", "validate", "invoker_args", "inference"])
def test_keywords_of_old_releases_are_told_of(model: NNsight, name: str):
    with pytest.warns(DeprecationWarning, match=f"`{name}=`"):
        with model.trace(X, **{name: False}):
            result = model.output.save()
    assert torch.equal(result, model._module(X))
