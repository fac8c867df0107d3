"""Local equals remote: the same block here, through bytes in this process, and in a fresh one."""

from __future__ import annotations

import linecache
import traceback
import types
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nnsight
from nnsight import LanguageModel
from nnsight.remote.errors import NotSendableError, RemoteError
from tests.conftest import make_gpt2_folder
from tests.remote import helpers_of_law as helpers
from tests.remote.through import ELSEWHERE, ThroughBytes


class Accumulator:
    def __init__(self) -> None:
        self.values: list[Any] = []


class Odd(ValueError):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2_folder(tmp_path_factory.mktemp("law"), layers=3)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return LanguageModel(folder, dispatch=True)


@pytest.fixture(scope="module")
def through_bytes(folder: Path, model: Any) -> dict[str, Any]:
    return {"backend": ThroughBytes(model, LanguageModel(folder, dispatch=True))}


# --- blocks ---------------------------------------------------------------------------------------

BLOCKS: list[Callable[[Any, dict[str, Any]], Any]] = []


def block(function: Callable[[Any, dict[str, Any]], Any]) -> Callable[..., Any]:
    BLOCKS.append(function)
    return function


@block
def reads_and_writes(model: Any, at: dict[str, Any]) -> Any:
    layers = [model.transformer.h[i] for i in (0, 2)]
    with model.trace("Hello", **at):
        layers[0].mlp.output[:] = 0
        outs = nnsight.save([layer.mlp.output for layer in layers])
        logits = model.lm_head.output.save()
        out = model.output.save()
    return outs, logits, type(out).__name__, out.logits


@block
def state_of_own_modules(model: Any, at: dict[str, Any]) -> Any:
    helpers.SCALE, helpers.STATE["n"] = 7.0, 3
    try:
        config = helpers.Config(3)
        scale = helpers.scale
        with model.trace("Hello", **at):
            twice = scale(helpers.scale(model.transformer.h[0].mlp.output)).save()
            count = nnsight.save(helpers.count())
            own = nnsight.save(isinstance(config, helpers.Config))
    finally:
        helpers.SCALE, helpers.STATE["n"] = 2.0, 0
    return twice, count, own


@block
def what_was_sent_and_is_saved(model: Any, at: dict[str, Any]) -> Any:
    values: list[Any] = [1]
    nested, queue, held = {"a": []}, deque([1], 4), Accumulator()
    numbers, space = torch.zeros(3), types.SimpleNamespace(a=1)
    with model.trace("Hello", **at):
        held.values.append(model.transformer.h[0].mlp.output)
        values.append(model.lm_head.output.sum())
        nested["a"].append(2)
        queue.append(3)
        numbers[0] = 5.0
        space.b = values
        nnsight.save([values, nested, queue, held, numbers, space])
    return values, nested, queue, held.values, numbers, space.b is values


@block
def an_output_that_was_sent(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello"):
        out = model.output.save()
    with model.trace("Hello there", **at):
        out.logits = out.logits[:, -1] + model.lm_head.output[:, -1]
        out.save()
    return out.logits, out["logits"], type(out).__name__


@block
def names_of_the_function(model: Any, at: dict[str, Any]) -> Any:
    total, ring = 1, [1]
    ring.append(ring)
    with model.trace("Hello", **at):
        total = total + 3
        first = nnsight.save(ring[1][1][0])
        same = nnsight.save(ring is ring[1])
        nnsight.save(total)
    return total, first, same


@block
def a_session(model: Any, at: dict[str, Any]) -> Any:
    with model.session(**at):
        with model.trace("Hello"):
            first = model.transformer.h[0].mlp.output.save()
        with model.trace("Hello there"):
            model.transformer.h[0].mlp.output[:, :1] = first[:, :1]
            logits = model.lm_head.output.save()
    return first, logits


@block
def a_session_after_a_trace(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at) as tracer:
        first = model.lm_head.output.save()
    with model.session(**at):
        with model.trace("Hello there") as tracer:  # a name of the trace before
            second = tracer.result.logits.save()
    return first, second


@block
def invokes_and_a_barrier(model: Any, at: dict[str, Any]) -> Any:
    with model.trace(**at) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("Hello"):
            last = model.transformer.h[0].mlp.output[:, -1]
            barrier()
            one = model.lm_head.output.save()
        with tracer.invoke("The cat"):
            barrier()
            model.transformer.h[0].mlp.output[:, -1] = last
            two = model.lm_head.output.save()
        with tracer.invoke():
            shape = nnsight.save(model.lm_head.output.shape)
    return one, two, shape


@block
def generation_and_prints(model: Any, at: dict[str, Any]) -> Any:
    with model.generate("Hello", max_new_tokens=3, **at) as tracer:
        tokens = nnsight.save([])
        for step in tracer.iter[:]:
            tokens.append(model.lm_head.output[0, -1].argmax())
            print("step", step, end=";\n")
        whole = model.generator.output.save()
    return tokens, whole


@block
def gradients(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at):
        hidden = model.transformer.h[0].mlp.output
        hidden.requires_grad_(True)
        with model.lm_head.output.sum().backward():
            gradient = hidden.grad.save()
    return gradient


@block
def a_gradient_that_is_retained(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at):
        hidden = model.transformer.h[0].mlp.output.save()
        hidden.retain_grad()
        model.lm_head.output.sum().backward()
    return hidden.grad


@block
def a_cache(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at) as tracer:
        cache = tracer.cache(modules=[model.transformer.h[0], model.transformer.h[1]])
    return cache["model.transformer.h.0"].output, cache["model.transformer.h.1"].output


@block
def an_edited_model(model: Any, at: dict[str, Any]) -> Any:
    with model.edit() as edited:
        model.transformer.h[1].mlp.output[:] = 0
    with edited.trace("Hello", **at):
        logits = edited.lm_head.output.save()
    return logits


@block
def skips_stops_and_operations(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at) as tracer:
        model.transformer.h[1].mlp.skip(model.transformer.h[0].mlp.output)
        attention = model.transformer.h[2].attn.source.attention_interface_0.output[0].save()
        tracer.stop()
    return attention


@block
def a_report(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at) as tracer:
        model.transformer.h[0].mlp.output[:] = 0
        inside = nnsight.save(len(tracer.report()))
    return str(tracer), tracer.report().changes, tracer._repr_html_(), inside


@block
def a_scan(model: Any, at: dict[str, Any]) -> Any:
    with model.scan("Hello", **at):
        logits = model.lm_head.output.save()
        shape = nnsight.save(model.transformer.h[0].mlp.output.shape)
    return logits.shape, shape


@block
def modules_and_warnings(model: Any, at: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    own = torch.nn.Sequential(torch.nn.Linear(48, 48), torch.nn.ReLU())
    with model.trace("Hello", **at):
        model.transformer.h[0].mlp.output = own(model.transformer.h[0].mlp.output)
        warnings.warn("careful", DeprecationWarning, stacklevel=1)
        logits = model.lm_head.output.save()
        tokens = nnsight.save(model.tokenizer("Hello")["input_ids"])
    return logits, tokens


@block
def an_error_of_torch(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at):
        logits = model.lm_head.output.save()
        logits.reshape(3, 1, 999)


@block
def an_error_in_a_helper(model: Any, at: dict[str, Any]) -> Any:
    def helper(value: Any) -> Any:
        raise KeyError("my key")

    with model.trace("Hello", **at):
        helper(model.lm_head.output)


@block
def an_error_of_an_own_class(model: Any, at: dict[str, Any]) -> Any:
    try:
        with model.trace("Hello", **at):
            kept = model.lm_head.output.save()  # noqa: F841 # on the error
            raise Odd("late")
    except ValueError as error:
        return str(error), error.saved["kept"]  # type: ignore[attr-defined]


@block
def an_order_that_cannot_be(model: Any, at: dict[str, Any]) -> Any:
    with model.trace("Hello", **at):
        model.transformer.h[2].mlp.output.save()
        model.transformer.h[0].mlp.output.save()


WRONG = an_error_of_torch, an_error_in_a_helper, an_order_that_cannot_be


# --- the law --------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.detach(), other.detach())
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    return one == other


def outcome(function: Any, model: Any, at: dict[str, Any], capsys: Any) -> Any:
    """What a block gives, prints and warns of; of an error its text and the lines of its block."""
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = function(model, at)
        except Exception as error:
            lines = traceback.extract_tb(error.__traceback__)
            code = function.__code__
            own = [(f.lineno, f.line) for f in lines if f.filename == code.co_filename]
            own = [line for line in own if line[0] >= code.co_firstlineno]
            builtin = [c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins"]
            found = ["error", builtin, str(error), own]
    said = [(str(w.message), w.category, w.lineno) for w in warned]
    said = [each for each in said if ELSEWHERE not in each[0]]  # it is only said where it is so
    return found, capsys.readouterr().out, said


@pytest.mark.parametrize("function", BLOCKS, ids=lambda f: f.__name__)
def test_a_block_does_through_bytes_what_it_does_here(
    function: Any, model: Any, through_bytes: dict[str, Any], capsys: Any
):
    here = outcome(function, model, {}, capsys)
    there = outcome(function, model, through_bytes, capsys)
    assert here[1:] == there[1:]
    assert same(here[0], there[0]), (here[0], there[0])
    failed = isinstance(here[0], list) and here[0][0] == "error"
    assert failed is (function in WRONG), here[0]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "function",
    [state_of_own_modules, generation_and_prints, an_error_in_a_helper],
    ids=lambda f: f.__name__,
)
def test_a_block_does_in_a_fresh_process_what_it_does_here(function: Any, model: Any, capsys: Any):
    here = outcome(function, model, {}, capsys)
    there = outcome(function, model, {"remote": "local"}, capsys)
    assert here[1:] == there[1:]
    assert same(here[0], there[0]), (here[0], there[0])


# --- refused before it is sent --------------------------------------------------------------------

COUNTER = 0


def appends(model: Any, at: dict[str, Any]) -> None:
    found = {"a": []}
    with model.trace("Hello", **at):
        found["a"].append(model.lm_head.output)


def sets_an_attribute(model: Any, at: dict[str, Any]) -> None:
    held = Accumulator()
    with model.trace("Hello", **at):
        held.last = model.lm_head.output


def writes_a_global(model: Any, at: dict[str, Any]) -> None:
    with model.trace("Hello", **at):
        global COUNTER
        COUNTER = model.lm_head.output.shape


def uses_a_file(model: Any, at: dict[str, Any]) -> None:
    with open(__file__) as file:
        with model.trace("Hello", **at):
            print(file.read())


def uses_a_tensor_without_numbers(model: Any, at: dict[str, Any]) -> None:
    empty = {"bias": torch.empty(3, device="meta")}
    with model.trace("Hello", **at):
        (model.lm_head.output[..., :3] + empty["bias"]).save()


def uses_an_operation(model: Any, at: dict[str, Any]) -> None:
    operation = model.transformer.h[0].attn.source.attention_interface_0
    with model.trace("Hello", **at):
        operation.output.save()


def uses_a_generator(model: Any, at: dict[str, Any]) -> None:
    scales = (float(n) for n in range(3))
    with model.trace("Hello", **at):
        (model.lm_head.output * next(scales)).save()


REFUSED = [
    (appends, 2, "`found` is a dict from outside of this block. The block runs in another process"),
    (sets_an_attribute, 2, "`held` is a Accumulator from outside of this block."),
    (writes_a_global, 1, "this block sets `COUNTER` as a variable of its module"),
    (uses_a_file, 2, "`file` is a `TextIOWrapper`, which cannot be sent: it is open in this proc"),
    (uses_a_tensor_without_numbers, 2, "`empty['bias']` is a `Tensor`, which cannot be sent: it "),
    (uses_an_operation, 2, "`operation` is an `Operation`, which cannot be sent: it is a place in"),
    (uses_a_generator, 2, "`scales` is a `generator`, which cannot be sent: it is half run, here."),
]


@pytest.mark.parametrize(("function", "after", "said"), REFUSED)
def test_what_cannot_be_sent_is_refused_with_its_name_and_line(
    function: Any, after: int, said: str, model: Any, through_bytes: dict[str, Any]
):
    lines = linecache.getlines(__file__)
    start = function.__code__.co_firstlineno
    entered = next(n for n in range(start, start + 9) if "with model.trace" in lines[n - 1])
    with pytest.raises(NotSendableError) as error:
        function(model, through_bytes)
    found = str(error.value)
    assert found.startswith(f"{__file__}, line "), found
    assert entered < int(found.partition("line ")[2].partition(":")[0]) <= entered + 2
    assert said in found
    assert isinstance(error.value, (RemoteError, TypeError))


def test_another_model_is_refused_by_the_name_that_it_has(
    folder: Path, model: Any, through_bytes: dict[str, Any]
):
    other = LanguageModel(folder)
    with pytest.raises(NotSendableError, match="this block uses `other`, a part of another model"):
        with model.trace("Hello", **through_bytes):
            nnsight.save(other.lm_head.output)
