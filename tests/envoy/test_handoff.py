"""What a run puts on a module, what it takes away again, and modules that PyTorch treats oddly."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import hooks_on
from torch import nn
from torch.utils.checkpoint import checkpoint

import nnsight
from nnsight import NeverCalledError, NNsight, OutOfOrderError

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = nn.Tanh()

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x + self.act(self.fc(x)) * scale


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def module() -> Stack:
    return Stack()


def surroundings(module: nn.Module) -> list[tuple[Any, ...]]:
    """All that a run could leave on a model."""
    names = [name for name, value in vars(module).items() if "_hooks" in name and value is not None]
    return [
        (path, sorted(vars(inner)), *(list(getattr(inner, name)) for name in names))
        for path, inner in module.named_modules()
    ]


# --- nothing stays --------------------------------------------------------------------------------


def read(model: NNsight) -> None:
    with model.trace(X):
        value = model.layers[1].fc.output.save()
    assert value.shape == (2, 4)


def read_inputs(model: NNsight) -> None:
    with model.trace(X):
        value = model.layers[1].fc.input.save()
    assert value.shape == (2, 4)


def write(model: NNsight) -> None:
    with model.trace(X):
        model.layers[1].output = X


def skip(model: NNsight) -> None:
    with model.trace(X):
        model.layers[1].skip(X)


def call_hooked(model: NNsight) -> None:
    with model.trace(X):
        model.head(model.layers[1].output, hook=True)


def fail_in_the_block(model: NNsight) -> None:
    with pytest.raises(KeyError):
        with model.trace(X):
            model.layers[1].skip(model.layers[1].input)
            raise KeyError


def fail_in_the_model(model: NNsight) -> None:
    with pytest.raises(RuntimeError):
        with model.trace(X):
            model.layers[1].skip(model.layers[1].input[:, :2])


def ask_too_late(model: NNsight) -> None:
    with pytest.raises(OutOfOrderError):
        with model.trace(X):
            model.head.output.save()
            model.layers[0].input.save()


def stop(model: NNsight) -> None:
    with model.trace(X) as tracer:
        model.layers[1].skip(model.layers[1].input)
        model.layers[1].output.save()
        tracer.stop()


def ask_for_nothing(model: NNsight) -> None:
    with model.trace(X):
        pass


WAYS = [
    *(read, read_inputs, write, skip, call_hooked, stop, ask_for_nothing),
    *(fail_in_the_block, fail_in_the_model, ask_too_late),
]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_leaves_a_model_as_it_was(module: Stack, way: Callable[[NNsight], None], times: int):
    mine = module.layers[1].register_forward_hook(lambda *_: None)
    module.head.register_forward_pre_hook(lambda *_: None)
    before, expected = surroundings(module), module(X)
    model = NNsight(module)
    assert surroundings(module) == before, "wrapping changes nothing"
    for _ in range(times):
        way(model)
        assert surroundings(module) == before
    assert torch.equal(module(X), expected)
    mine.remove()
    assert hooks_on(module) == ["head: hook"]


def test_only_what_is_asked_for_has_hooks_in_later_runs(module: Stack):
    model = NNsight(module)
    read(model)
    with model.trace(X):
        model.layers[1].fc.output.sum()
        during = hooks_on(module).save()
    hooked = {place.partition(":")[0] for place in during}
    assert hooked == {"", "layers.1", "layers.1.fc"}, "the one asked for and the parents that run"


def test_a_forward_is_replaced_only_for_a_skip_and_only_meanwhile(module: Stack):
    model = NNsight(module)
    with model.trace(X):
        fresh = ("forward" in vars(module.layers[1])).save()
        model.layers[1].skip(model.layers[1].input)
        during = ("forward" in vars(module.layers[1])).save()
    assert not fresh and during and "forward" not in vars(module.layers[1])


def test_a_forward_of_the_users_own_stays(module: Stack):
    def forward(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    module.layers[1].forward = forward  # type: ignore[method-assign]
    model = NNsight(module)
    with model.trace(X):
        value = model.layers[1].output.save()
    assert torch.equal(value, 2 * module.layers[0](X))
    skip(model)
    assert module.layers[1].forward is forward


def test_a_signature_is_the_same_during_a_run(module: Stack):
    model = NNsight(module)
    before = inspect.signature(module.layers[1].forward)
    with model.trace(X):
        model.layers[1].skip(model.layers[1].input)
        seen = [inspect.signature(module.layers[1].forward), module.layers[1].forward.__name__]
        seen.save()
    assert seen == [before, "forward"] and str(before) == str(seen[0])
    assert inspect.signature(module.layers[1].forward) == before


# --- copies and files -----------------------------------------------------------------------------


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def state(module: nn.Module) -> nn.Module:
    twin = Stack()
    assert list(module.state_dict()) == list(twin.state_dict())
    twin.load_state_dict(module.state_dict())
    return twin


COPIES = [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded, state]


@pytest.mark.parametrize("duplicate", COPIES, ids=["deepcopy", "pickle", "torch.save", "state"])
def test_a_wrapped_module_is_copied_as_ever(module: Stack, duplicate: Any):
    model = NNsight(module)
    for way in WAYS:
        way(model)
    twin = duplicate(module)
    assert hooks_on(twin) == [] and torch.equal(twin(X), module(X))
    read(NNsight(twin))


def test_a_copy_made_during_a_run_is_a_model_of_its_own(module: Stack):
    model = NNsight(module)
    with model.trace(X):
        model.layers[1].skip(model.layers[1].input)
        twins = [copy.deepcopy(module), copy.deepcopy(model)].save()
        result = model.output.save()
    twin = twins[0]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(X).any(), "it runs its own weights"
    assert torch.equal(module.head(module.layers[2](module.layers[0](X))), result)
    read(NNsight(twin))
    read(twins[1])
    assert torch.equal(twins[1]._module(X), module(X))


# --- hooks of the user's --------------------------------------------------------------------------


def test_output_is_after_the_users_hooks_and_input_after_the_users_pre_hooks(module: Stack):
    layer = module.layers[1]
    layer.register_forward_hook(lambda m, args, out: out * 10)
    layer.register_forward_hook(lambda m, args, kwargs, out: out + 1, with_kwargs=True)
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 3,))
    expected = module(X)
    before = module.layers[0](X)
    model = NNsight(module)
    with model.trace(X):
        given = model.layers[1].input.save()
        output = model.layers[1].output.save()
        result = model.output.save()
    assert torch.equal(given, 3 * before)
    assert torch.equal(output, layer.forward(3 * before) * 10 + 1)
    assert torch.equal(result, expected)


def test_a_users_hook_sees_what_a_skip_gives_and_not_what_is_assigned(module: Stack):
    seen: list[torch.Tensor] = []
    handle = module.layers[1].register_forward_hook(lambda m, args, out: seen.append(out))
    model = NNsight(module)
    with model.trace(X):
        model.layers[1].skip(torch.ones(2, 4))
    with model.trace(X):
        model.layers[1].output = torch.zeros(2, 4)
    assert torch.equal(seen[0], torch.ones(2, 4)) and seen[1].any()
    handle.remove()


def test_hooks_that_come_and_go_during_a_run(module: Stack):
    calls: list[str] = []
    once = module.head.register_forward_hook(lambda *_: (calls.append("once"), once.remove())[0])
    model = NNsight(module)
    with model.trace(X):
        handle = module.head.register_forward_hook(lambda *_: calls.append("from the block"))
        result = model.head.output.save()
    handle = next(iter(module.head._forward_hooks))
    assert calls == ["once", "from the block"] and torch.equal(result, module(X))
    del module.head._forward_hooks[handle]
    assert hooks_on(module) == []


def test_backward_hooks_of_the_user_still_run(module: Stack):
    seen: list[int] = []
    handle = module.layers[1].register_full_backward_hook(lambda *_: seen.append(1))
    model = NNsight(module)
    with model.trace(X.clone().requires_grad_()):
        model.layers[1].output = model.layers[1].output * 2
        result = model.output.save()
    result.sum().backward()
    handle.remove()
    assert seen == [1] and module.layers[0].fc.weight.grad is not None


# --- forwards that go their own way ---------------------------------------------------------------


class Direct(nn.Module):
    """Calls one module by its `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Layer()
        self.second = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first.forward(x))


def test_a_module_called_by_its_forward_is_told_apart():
    model = NNsight(Direct())
    for _ in range(2):
        with pytest.raises(NeverCalledError, match=r"`model\.first\.output`.*run as `\.forward"):
            with model.trace(X):
                value = model.first.output.save()  # noqa: F841 # PyTorch's hooks do not see it
        with model.trace(X):
            inner = model.first.fc.output.save()
            after = model.second.input.save()
    assert torch.equal(inner, model._module.first.fc(X))
    assert torch.equal(after, model._module.first(X))


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.free = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        return self.free(x)


def test_a_block_keeps_its_own_grad_mode_in_a_guarded_forward():
    model = NNsight(Guarded())
    with model.trace(X):
        state = model.frozen.output
        modes = [state.requires_grad, torch.is_grad_enabled(), (state * model.frozen.weight.sum())]
        modes[2] = modes[2].requires_grad
        with torch.no_grad():
            free = model.free.output
            modes.append(free.requires_grad)
        modes.save()
    assert modes == [False, True, True, True]
    assert model._module(X).requires_grad


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool):
    module = Checkpointed(reentrant)
    x = X.clone().requires_grad_()
    plain = copy.deepcopy(module)
    plain(x).sum().backward()
    model = NNsight(module)
    for _ in range(2):
        module.zero_grad()
        with model.trace(x):
            inner = model.layers[1].fc.output.save()
            result = model.output.save()
        result.sum().backward()
        assert torch.equal(inner, module.layers[1].fc(module.layers[0](x)))
        for own, other in zip(module.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(own.grad, other.grad)
    module.zero_grad()
    with model.trace(x):
        model.output.sum().backward()
        done = "in the block".save()
    assert done and torch.allclose(module.layers[0].fc.weight.grad, plain.layers[0].fc.weight.grad)
    assert hooks_on(module) == []


class Loop(nn.Module):
    """Runs one cell several times, and another module after each."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.mark = Layer(), nn.Identity()

    def forward(self, x: torch.Tensor, times: int = 3) -> torch.Tensor:
        for _ in range(times):
            x = self.mark(self.cell(x))
        return x


@pytest.mark.parametrize("earlier", [None, 1, 3, 5])
def test_the_first_visit_is_read_and_never_the_second(earlier: int | None):
    module = Loop()
    model = NNsight(module)
    if earlier:
        with model.trace(X, times=earlier):
            pass
    for _ in range(2):
        with model.trace(X):
            given = model.cell.input.save()
            first = model.cell.output.save()
            mark = model.mark.output.save()
        assert torch.equal(given, X) and torch.equal(first, module.cell(X)) and first is mark
        for late in (lambda: model.cell.output, lambda: model.cell.fc.input):
            with pytest.raises(OutOfOrderError, match=r"`model\.cell\."):
                with model.trace(X):
                    model.mark.output.sum()
                    late()


def test_a_module_that_calls_itself():
    class Nest(nn.Module):
        def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
            return self(x + 1, depth - 1) * 2 if depth else x

    model = NNsight(Nest())
    with model.trace(X):
        outermost = model.input.save()
        innermost = model.output.save()
    assert torch.equal(outermost, X) and torch.equal(innermost, X + 2)


# --- compiled and scripted modules ----------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def whole(module: Stack) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def child(module: Stack) -> nn.Module:
    module.layers[1] = torch.compile(module.layers[1], backend="eager")  # type: ignore[assignment]
    return module


def in_place(module: Stack) -> nn.Module:
    module.compile(backend="eager")
    return module


def child_in_place(module: Stack) -> nn.Module:
    module.layers[1].compile(backend="eager")
    return module


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of dynamo
@pytest.mark.parametrize("compiled", [whole, child, in_place, child_in_place])
@pytest.mark.parametrize("warm", [False, True])
def test_compiled_modules(module: Stack, compiled: Any, warm: bool, fresh_compiler: None):
    plain = copy.deepcopy(module)
    wrapped = compiled(module)
    expected = plain(X)
    if warm:
        assert torch.allclose(wrapped(X), expected)
    before_runs = surroundings(wrapped)
    model = NNsight(wrapped)
    top = model._orig_mod if compiled is whole else model
    for _ in range(2):
        layer = top.layers[1]._orig_mod if compiled is child else top.layers[1]
        with model.trace(X):
            inner = layer.fc.output.save()
            outer = layer.output.save()
            result = model.output.save()
        before = plain.layers[0](X)
        assert torch.equal(inner, plain.layers[1].fc(before))
        assert torch.equal(outer, plain.layers[1](before)) and torch.equal(result, expected)
        with model.trace(X):
            layer.fc.output = torch.zeros(2, 4)
            changed = model.output.save()
        assert torch.equal(changed, plain.head(plain.layers[2](before)))
        with model.trace(X):
            layer.skip(layer.input)
            skipped = model.output.save()
        assert torch.equal(skipped, plain.head(plain.layers[2](before)))
        assert torch.allclose(wrapped(X), expected), "compiled again, after the run"
    assert surroundings(wrapped) == before_runs


def test_a_wrapped_module_compiles(module: Stack, fresh_compiler: None):
    model = NNsight(module)
    read(model)
    skip(model)
    counter = torch._dynamo.testing.CompileCounter()  # type: ignore[attr-defined]
    fast = torch.compile(module, backend=counter, fullgraph=True)
    assert torch.allclose(fast(X), module(X))
    assert counter.frame_count == 1
    read(model)
    assert torch.allclose(fast(X), module(X)) and counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripting(module: Stack):
    model = NNsight(module)
    read(model)
    scripted = torch.jit.script(module.layers[1])
    assert torch.allclose(scripted(X), module.layers[1](X))
    module.layers[1] = scripted
    before = surroundings(module)
    with model.trace(X):
        given = model.layers[1].input.save()
        output = model.layers[1].output.save()
        model.layers[1].output = output * 0
        result = model.output.save()
    assert torch.equal(given, module.layers[0](X)) and torch.allclose(output, scripted(given))
    assert torch.allclose(result, module.head(module.layers[2](torch.zeros(2, 4))))
    with model.trace(X):
        model.layers[1].skip(X)
        result = model.output.save()
    assert torch.allclose(result, module.head(module.layers[2](X)))
    assert surroundings(module) == before


# --- and nothing is kept --------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_no_run_keeps_a_model(way: Callable[[NNsight], None]):
    def run() -> list[weakref.ref[Any]]:
        module = Stack()
        model = NNsight(module)
        way(model)
        way(model)
        return [weakref.ref(module), weakref.ref(model.layers[1]._module)]

    run()
    gc.collect()
    gc.disable()
    try:
        assert [ref() for ref in run()] == [None, None]
    finally:
        gc.enable()


def test_a_module_that_is_copied_in_the_forward_is_not_taken_for_its_copy():
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return copy.deepcopy(self.inner)(-x) + self.inner(x)

    module = Copies()
    model = NNsight(module)
    for _ in range(2):
        with model.trace(X):
            seen = model.inner.output.save()
        assert torch.equal(seen, module.inner(X))
    with model.trace(X):
        model.inner.output = model.inner.output * 0
        out = model.output.save()
    assert torch.equal(out, module.inner(-X))


def test_a_copy_or_a_pickle_made_in_a_block_is_rid_of_our_hooks_when_it_is_used(module):
    model, file = NNsight(module), io.BytesIO()
    expected = module(X)
    for _ in range(2):
        with model.trace(X):
            _ = model.layers[0].output
            _ = model.layers[1].fc.output
            twin = nnsight.save(copy.deepcopy(module))
            file.seek(0)
            pickle.dump(module, file)
    file.seek(0)
    for other in (twin, pickle.load(file)):
        assert torch.equal(other(X), expected)
        assert hooks_on(other) == []
    with model.trace(X):
        _ = model.layers[0].input  # with a gate
        dumped = nnsight.save(pickle.dumps(module))
    assert torch.equal(pickle.loads(dumped)(X), expected)


def test_hooks_of_the_users_are_called_by_no_probe():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    module, calls = Sums(), []
    module.inner.register_forward_hook(lambda m, args, out: calls.append(1))
    model = NNsight(module)
    with pytest.warns(UserWarning, match="hooks of its own, which would be called once more"):
        with model.trace() as tracer:
            with tracer.invoke(torch.ones(2, 4)):
                first = model.inner.output.save()
            with tracer.invoke(torch.ones(2, 4)):
                pass
    assert first.shape == (2, 4)
    assert len(calls) == 1


def test_a_forward_that_the_user_replaced_is_part_of_the_model_for_a_probe():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.same(x) + x

    module = Sums()
    forward = module.same.forward
    module.same.forward = functools.wraps(forward)(lambda x: forward(x).sum(0))
    model = NNsight(module)
    with model.trace() as tracer:
        with tracer.invoke(torch.ones(2, 4)):
            vector = model.same.output.save()
        with tracer.invoke(torch.ones(2, 4)):
            pass
    assert vector.shape == (4,)
