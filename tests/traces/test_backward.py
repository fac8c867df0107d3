# ruff: noqa: B018, F841 -- to read a gradient is a statement
"""`with loss.backward():`, against the same gradients taken with raw hooks."""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
import weakref

import pytest
import torch
from torch import nn

import nnsight
from nnsight import MissedProviderError, NNsight, OutOfOrderError, OutsideTraceError
from tests.conftest import hooks_on


class Net(nn.Module):
    """Three layers around a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        h = h + self.b(h).tanh()
        return self.c(h)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 4)


def raw(net: Net, x: torch.Tensor, change=None) -> dict[str, torch.Tensor]:
    """Gradients of the outputs of `a` and `b` for the squared sum, by raw tensor hooks.

    `change` is done to the gradient of `b`.
    """
    found: dict[str, torch.Tensor] = {}

    def hook(name):
        def keep(gradient):
            if name == "b" and change is not None:
                gradient = change(gradient)
            found[name] = gradient.clone()
            return gradient

        return lambda module, args, out: out.register_hook(keep) and None

    handles = [net.a.register_forward_hook(hook("a")), net.b.register_forward_hook(hook("b"))]
    net(x).square().sum().backward()
    for handle in handles:
        handle.remove()
    found["weight"] = net.a.weight.grad
    net.zero_grad()
    return found


def test_reading_gradients_in_reverse_order(net, x):
    expected, model = raw(net, x), NNsight(net)
    with model.trace(x):
        a, b = model.a.output, model.b.output
        loss = model.output.square().sum()
        with loss.backward():
            gb = b.grad.save()
            ga = a.grad.save()
    assert torch.equal(ga, expected["a"]) and torch.equal(gb, expected["b"])
    assert torch.equal(net.a.weight.grad, expected["weight"])
    assert not hooks_on(net) and not net.a.weight._post_accumulate_grad_hooks


@pytest.mark.parametrize("way", ["assign", "in place", "update", "after a read"])
def test_writing_a_gradient_changes_everything_before_it(net, x, way):
    expected, model = raw(net, x, lambda gradient: gradient * 3), NNsight(net)
    with model.trace(x):
        a, b = model.a.output, model.b.output
        with model.output.square().sum().backward():
            if way == "assign":
                b.grad = b.grad * 3
            elif way == "in place":
                b.grad[:] = b.grad * 3
            elif way == "update":
                b.grad *= 3
            else:
                before = b.grad.clone()
                b.grad = before * 3
            gb, ga = b.grad.save(), a.grad.save()
    assert torch.allclose(gb, expected["b"]) and torch.allclose(ga, expected["a"])
    assert torch.allclose(net.a.weight.grad, expected["weight"])


def test_a_gradient_changed_in_place_changes_no_other_branch():
    """Autograd gives both operands of an addition one and the same tensor."""
    one, two = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    left, right = one * 1, two * 1
    with (left + right).sum().backward():
        left.grad[:] = 0
    assert one.grad.tolist() == [0, 0, 0] and two.grad.tolist() == [1, 1, 1]


def test_a_gradient_read_is_a_copy_that_stays(net, x):
    weight = torch.ones(3, requires_grad=True)
    h = weight * 2
    with ((h * 3).sum() + (h * 4).sum()).backward():
        gradient = h.grad.save()
    assert gradient.tolist() == [7, 7, 7]
    gradient.zero_()
    assert weight.grad.tolist() == [14, 14, 14]


def test_several_backwards_in_one_trace(net, x):
    expected, model = raw(net, x), NNsight(net)
    with model.trace(x):
        a = model.a.output
        out = model.output
        with out.square().sum().backward(retain_graph=True):
            first = a.grad.save()
        with out.sum().backward(retain_graph=True):
            second = a.grad.save()
        with out.square().sum().backward():
            third = a.grad.save()
    assert torch.equal(first, expected["a"]) and torch.equal(third, first)
    assert not torch.equal(second, first)


def test_a_second_backward_needs_retain_graph_as_in_torch(net, x):
    model = NNsight(net)
    with pytest.raises(RuntimeError, match="second time"), model.trace(x):
        loss = model.output.square().sum()
        with loss.backward():
            pass
        with loss.backward():
            pass


def test_backward_of_a_vector_takes_its_gradient(net, x):
    model, weights = NNsight(net), torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    with model.trace(x):
        a, out = model.a.output, model.output
        with out.backward(gradient=weights, retain_graph=True):
            given = a.grad.save()
        with (out * weights).sum().backward():
            summed = a.grad.save()
    assert torch.allclose(given, summed)


def test_second_derivatives(net, x):
    model = NNsight(net)
    with model.trace(x):
        a, out = model.a.output, model.output
        with pytest.warns(UserWarning, match="create_graph"):  # of torch
            with out.square().sum().backward(create_graph=True):
                gradient = a.grad
        (second,) = torch.autograd.grad(gradient.sum(), a)
        second.save()
    h = net.a(x).detach().requires_grad_()
    loss = net.c(h + net.b(h).tanh()).square().sum()
    (first,) = torch.autograd.grad(loss, h, create_graph=True)
    assert torch.allclose(second, torch.autograd.grad(first.sum(), h)[0], atol=1e-6)
    net.zero_grad()  # breaks the circle that torch warns of


def test_the_gradient_of_a_parameter_is_torchs(net, x):
    expected, model = raw(net, x), NNsight(net)
    with model.trace(x):
        a = model.a.output
        with model.output.square().sum().backward():
            a.grad
            weight = net.a.weight.grad.save()
            late = net.c.weight.grad.save()  # of the last layer: it was ready first
    assert weight is net.a.weight.grad and torch.equal(weight, expected["weight"])
    assert late is net.c.weight.grad


def test_parameters_accumulate_and_can_be_written(net, x):
    expected, model = raw(net, x), NNsight(net)
    for times in (1, 2):
        with model.trace(x):
            with model.output.square().sum().backward():
                weight = net.a.weight.grad.clone().save()
        assert torch.allclose(weight, expected["weight"] * times)
    with model.trace(x):
        with model.output.square().sum().backward():
            net.a.weight.grad = torch.zeros(4, 4)
            net.c.weight.grad = torch.zeros(2, 4)  # after the fact
    assert not net.a.weight.grad.any() and not net.c.weight.grad.any()
    assert net.b.weight.grad.any()


def test_a_frozen_model_with_a_gradient_that_starts_inside(net, x):
    expected = raw(net, x)
    net.requires_grad_(False)
    model = NNsight(net)
    with model.trace(x):
        a = model.a.output.requires_grad_()
        b = model.b.output
        with model.output.square().sum().backward():
            gb, ga = b.grad.save(), a.grad.save()
    assert torch.equal(ga, expected["a"]) and torch.equal(gb, expected["b"])


def test_a_view_that_the_loss_does_not_go_through_has_the_gradient_of_its_elements(net, x):
    expected, model = raw(net, x), NNsight(net)
    with model.trace(x):
        first = model.a.output[0]
        column = model.b.output[:, 1]
        with model.output.square().sum().backward():
            gc = column.grad.clone().save()
            column.grad[0] = 7
            ga = first.grad.save()
    assert torch.equal(gc, expected["b"][:, 1])
    changed = raw(
        net,
        x,
        lambda gradient: gradient.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(7.0)),
    )
    assert torch.allclose(ga, changed["a"][0]) and not torch.allclose(ga, expected["a"][0])


def test_a_view_that_the_loss_goes_through_has_its_own_gradient():
    h = torch.arange(6.0, requires_grad=True) * 1
    view = h[:3]
    with (view.sum() + h.sum() * 10).backward():
        gradient = view.grad.save()
    assert gradient.tolist() == [1, 1, 1]


def test_a_view_whose_own_gradient_was_passed_is_not_given_the_gradient_of_its_elements():
    h = torch.arange(6.0, requires_grad=True) * 1
    view = h[:3]
    after = view * 2
    with pytest.raises(OutOfOrderError, match=r"`view\.grad`.*ran past"):
        with (after.sum() + h.sum()).backward():
            h.grad
            view.grad


def test_standalone_on_the_loss_of_an_earlier_trace(net, x):
    expected, model = raw(net, x), NNsight(net)
    with model.trace(x):
        a = model.a.output.save()
        loss = model.output.square().sum().save()
    with loss.backward() as block:
        ga = a.grad.save()
    assert torch.equal(ga, expected["a"])
    assert isinstance(block, nnsight.capture.tracer.Tracer)


def test_standalone_without_any_model():
    y = torch.ones(3, requires_grad=True) * 2
    with (y * y).sum().backward():
        gradient = y.grad.save()
    assert gradient.tolist() == [4, 4, 4]


def test_names_and_functions_in_the_block():
    y = torch.ones(3, requires_grad=True) * 2
    z = y * y

    def scaled(tensor):
        return tensor * 10

    with z.sum().backward():
        found = nnsight.save([h.grad for h in (z, y)])
        double = scaled(found[1]).save()
    assert [g[0].item() for g in found] == [1, 4] and double[0] == 40


@pytest.mark.parametrize("kind", ["plain", "in a function", "gradient"])
def test_backward_outside_a_with_runs_at_once(kind):
    y = torch.ones(3, requires_grad=True)
    loss = y * 2 if kind == "gradient" else (y * 2).sum()
    if kind == "plain":
        assert loss.backward() is None
    elif kind == "in a function":
        with contextlib.nullcontext((lambda: loss.backward())()):
            pass
    else:
        loss.backward(torch.ones(3))
    assert y.grad.tolist() == [2, 2, 2]


def test_the_method_looks_as_before():
    names = ["self", "gradient", "retain_graph", "create_graph", "inputs"]
    assert list(inspect.signature(torch.Tensor.backward).parameters) == names
    assert "graph" in torch.Tensor.backward.__doc__


def test_torch_autograd_backward_and_subclasses():
    seen = []

    class Loud(torch.Tensor):
        def backward(self, *args, **kwargs):
            seen.append("backward")
            return super().backward(*args, **kwargs)

    y = torch.ones(3, requires_grad=True)
    torch.autograd.backward((y * 2).sum())
    (y * 2).sum().as_subclass(Loud).backward()
    h = y * 2
    with h.sum().as_subclass(Loud).backward():
        gradient = h.grad.save()
    assert seen == ["backward"] * 2 and gradient.tolist() == [1, 1, 1]
    assert y.grad.tolist() == [6, 6, 6]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, without us too
def test_a_compiled_function_goes_backward_as_without_us():
    """The compiler does not stop at our method."""
    weight = torch.ones(3, requires_grad=True)

    def step(x):
        loss = (x * weight).sum()
        loss.backward()
        return loss

    torch.compile(step, backend="eager")(torch.ones(3))
    assert weight.grad.tolist() == [1, 1, 1]


def test_a_big_body_and_managers_after_ours():
    """A jump over a body of many lines is written with one instruction more."""
    lines = "\n".join(f"    n{i} = {i} + n" for i in range(200))
    code = f"n = 1\nwith torch.enable_grad(), loss.backward(), torch.no_grad():\n{lines}\n"
    code += (
        "    on = torch.is_grad_enabled()\n    nnsight.save([on, n199])\n    g = h.grad.save()\n"
    )
    h = torch.ones(3, requires_grad=True) * 2
    names = {"torch": torch, "loss": h.sum(), "h": h, "nnsight": nnsight}
    import linecache

    linecache.cache["<big>"] = (len(code), None, code.splitlines(keepends=True), "<big>")
    exec(compile(code, "<big>", "exec"), names)
    assert names["g"].tolist() == [1, 1, 1]


def test_out_of_order(net, x):
    model = NNsight(net)
    with pytest.raises(OutOfOrderError, match=r"`b\.grad`.*backward pass already") as caught:
        with model.trace(x):
            a, b = model.a.output, model.b.output
            with model.output.sum().backward():
                first = a.grad.save()
                b.grad
    assert "first" in caught.value.saved


def test_a_gradient_is_read_again_only_until_the_next(net, x):
    model = NNsight(net)
    with pytest.raises(OutOfOrderError, match=r"`b\.grad`.*keep the gradient under a name"):
        with model.trace(x):
            a, b = model.a.output, model.b.output
            with model.output.sum().backward():
                assert b.grad is b.grad
                a.grad
                b.grad


def test_a_tensor_that_is_not_upstream(net, x):
    model = NNsight(net)
    with pytest.raises(MissedProviderError, match=r"`copy\.grad`.*was not computed from"):
        with model.trace(x):
            copy = model.a.output * 1
            with model.output.sum().backward():
                copy.grad


def test_a_tensor_without_gradient(net, x):
    model = NNsight(net)
    with pytest.raises(MissedProviderError, match=r"`x\.grad` does not exist.*requires no"):
        with model.trace(x):
            with model.output.sum().backward():
                x.grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_loss_without_gradient(net, x, mode):
    model = NNsight(net)
    with pytest.raises(NotImplementedError, match="this loss has no gradient"), mode():
        with model.trace(x):
            with model.output.sum().backward():
                pass


def test_only_gradients_in_the_block(net, x):
    model = NNsight(net)
    with pytest.raises(OutsideTraceError, match=r"`model\.c\.output` in a backward block"):
        with model.trace(x):
            with model.a.output.sum().backward():
                model.c.output


def test_a_replacement_of_another_shape(net, x):
    model = NNsight(net)
    with pytest.raises(ValueError, match=r"`a\.grad` does not fit.*\[1, 4\].*\[2, 4\]"):
        with model.trace(x):
            a = model.a.output
            with model.output.sum().backward():
                a.grad = torch.zeros(1, 4)


def test_an_error_in_the_block_leaves_nothing(net, x):
    model = NNsight(net)
    with pytest.raises(ZeroDivisionError) as caught:
        with model.trace(x):
            b = model.b.output
            with model.output.sum().backward():
                kept = b.grad.save()
                1 / 0
    assert torch.is_tensor(caught.value.saved["kept"]) and not hooks_on(net)
    with model.trace(x):
        b = model.b.output
        with model.output.sum().backward():
            kept = b.grad.save()
    assert kept.shape == (2, 4)


def test_stop_in_a_backward_block_ends_the_trace(net, x):
    model, after = NNsight(net), []
    with model.trace(x) as tracer:
        a = model.a.output
        loss = a.square().sum()
        with loss.backward():
            gradient = a.grad.save()
            tracer.stop()
        after.append(1)
    assert gradient.shape == (2, 4) and not after
    assert net.a.weight.grad is None  # the backward pass went no further


def test_backward_on_two_threads(net, x):
    expected, results = raw(net, x), []

    def work():
        model = NNsight(net)
        for _ in range(10):
            with model.trace(x):
                a = model.a.output
                with model.output.square().sum().backward(inputs=[a]):
                    results.append(a.grad)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20 and all(torch.equal(r, expected["a"]) for r in results)


def test_nothing_stays_without_the_garbage_collector(net, x):
    model = NNsight(net)
    refs = []

    def once(way):
        with model.trace(x):
            a, b = model.a.output, model.b.output
            refs.extend(weakref.ref(t) for t in (a, b))
            with model.output.square().sum().backward():
                if way == "write":
                    b.grad = b.grad * 2
                    b.grad[:] = 0
                elif way == "error":
                    a.grad
                    b.grad
                elif way == "view":
                    a[0].grad
                g = a.grad.save()
        return g

    gc.collect()
    gc.disable()
    try:
        for way in ("read", "write", "view", "error") * 3:
            with contextlib.suppress(OutOfOrderError):
                refs.append(weakref.ref(once(way)))
        assert len(refs) > 12 and not [ref for ref in refs if ref() is not None]
    finally:
        gc.enable()


def test_a_gradient_that_was_read_keeps_its_numbers_when_it_is_replaced(net, x):
    model = NNsight(net)
    with model.trace(x):
        hidden = model.a.output
        rows = model.b.output[:1]
        with (model.output.sum() + rows.sum()).backward():
            part = rows.grad.save()
            rows.grad = part * 5
            read = hidden.grad.save()
            before = read.clone().save()
            hidden.grad = read * 3
            again = hidden.grad.save()
    assert torch.equal(part, torch.ones(1, 4))
    assert torch.equal(read, before) and torch.equal(again, read * 3)
    torch.testing.assert_close(net.a.bias.grad, again.sum(0))
