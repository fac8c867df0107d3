"""What can go wrong between a block and the model that it runs beside.

Every text says what happened and where, what was expected, and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterable

from nnsight import nested


class Stop(BaseException):
    """`tracer.stop()`: unwinds the block and the model. Never reaches the user."""


class Cancelled(BaseException):
    """Ends a block whose run is over, so that its `finally` clauses run. Never reaches the user."""


class MissedProviderError(ValueError):
    """A block waited for a value that the run did not bring."""


class OutOfOrderError(MissedProviderError):
    """A block asked for a value after the model had passed it."""


class NeverCalledError(MissedProviderError):
    """A block asked for a value of a module that did not run."""


class OutsideTraceError(ValueError):
    """A value was asked for where no block runs beside a model."""


class BatchError(ValueError):
    """A replacement does not fit the rows that it replaces."""


class InternalError(RuntimeError):
    """Our bug: the turns between a block and the model got mixed up. Please report it."""


def outside(what: object) -> OutsideTraceError:
    return OutsideTraceError(
        f"Cannot access `{what}` outside of interleaving: values exist only while the model runs. "
        "Put this line inside `with model.trace(...):`, and mark what you want to keep with "
        "`.save()`."
    )


def nothing_runs(what: object) -> OutsideTraceError:
    return OutsideTraceError(
        f"`{what}` was called outside of interleaving: it acts on a block that runs beside the "
        "model, and none runs here. Call it inside `with model.trace(...):`, or inside a "
        "`with tracer.invoke(...):` where there are invokes."
    )


def between_invokes(what: object) -> OutsideTraceError:
    return OutsideTraceError(
        f"Cannot access `{what}` outside of interleaving: this trace was given no input of its own "
        "and this line is in none of its invokes, so it belongs to no input. Give the trace its "
        "input, `with model.trace(x):`, or move the line into a `with tracer.invoke(x):`; an empty "
        "`tracer.invoke()` sees the whole batch."
    )


def other_tree(what: object, running: object) -> OutsideTraceError:
    return OutsideTraceError(
        f"Cannot access `{what}` here: it belongs to another model than the one that this block "
        f"runs beside (`{running}`). Trace that model in a `with` block of its own."
    )


def passed(
    what: object,
    at: object | None,
    waited: str = "",
    step: int | None = None,
    often: bool = False,
    line: int = 0,
) -> OutOfOrderError:
    where = f" (it is at `{at}` now)" if at is not None else ""
    when = "" if step is None else f" of step {step}"
    text = f"`{what}`{when} was requested but the model already ran past it{where}."
    if waited:
        return OutOfOrderError(
            f"{text} This block had waited for {waited}, and meanwhile the model went on. Read "
            "the value before the line that needs that name."
        )
    if often:
        return OutOfOrderError(
            f"{text} The model runs it several times in each call, and step {step} is its own run "
            f"number {step}, whatever call that is in: read it in a loop of its own."
        )
    return OutOfOrderError(
        f"{text} Did you call an Envoy out of order? A block reads values in the order in which "
        "the model computes them: move this line up, or put it into an invoke or a trace of its "
        "own." + (f" (The model is where line {line} of this block let it go on to.)" * bool(line))
    )


def looped(what: object) -> OutOfOrderError:
    return OutOfOrderError(
        f"`{what}` was requested but the model already ran past it: the loop over steps before "
        "this line ended because the run did. Read it in the loop, or read `tracer.result`, which "
        "is still to come; a loop with an end, `tracer.iter[:3]`, goes on while the model runs."
    )


def ended(what: object) -> OutOfOrderError:
    return OutOfOrderError(
        f"`{what}` was requested but the model already ran past it: the run is over. Did you call "
        "an Envoy out of order? Read it earlier in the block."
    )


def never(what: object) -> NeverCalledError:
    return NeverCalledError(
        f"Execution complete but `{what}` was not provided: this module was never called in this "
        "run. It may be on a branch that was not taken, be skipped or inside a module that is, be "
        "run as `.forward(...)`, which PyTorch's hooks do not see, or be done by a function in its "
        "place (attention dropout, in most models: load with `attn_implementation='eager'`, and "
        "the weights are `attn.output[1]`). `print(model)` shows the modules; read one that runs."
    )


def unreached(what: object, last: object | None) -> OutOfOrderError:
    where = f" The last value it met was `{last}`." if last is not None else ""
    return OutOfOrderError(
        f"Execution complete but `{what}` was not provided: its module ran, but the operation was "
        "on a branch that was not taken, or the model already ran past it when it was requested."
        f"{where} Read operations in the order in which they run; `print(...source)` shows them."
    )


def container(what: object, kind: str, element: str) -> NeverCalledError:
    return NeverCalledError(
        f"`{what}` is not there to be had: a {kind} without a `forward` only holds modules and is "
        f"never called itself. Ask for one of its modules: `{element}`."
    )


def missed(what: object, last: object | None) -> MissedProviderError:
    where = f" The last value it met was `{last}`." if last is not None else ""
    return OutOfOrderError(
        f"Execution complete but `{what}` was not provided: the model already ran past it when it "
        f"was requested, or never called it.{where} Did you call an Envoy out of order? Move the "
        "line up to where the model computes the value, or read a module that runs."
    )


def beyond(what: object, step: int, visits: int) -> MissedProviderError:
    return MissedProviderError(
        f"Execution complete but `{what}` of step {step} was not provided: the run came by there "
        f"{visits} time(s) before, and not at that step (steps count from 0). Ask for it at a step "
        "in which it runs; a loop `for step in tracer.iter[:]` ends with the run."
    )


def swallowed(where: str) -> MissedProviderError:
    return MissedProviderError(
        f"the block at {where} went on asking for values after its run was over and caught every "
        "error that said so. Let `nnsight` errors pass: catch the exception you expect instead of "
        "`BaseException`, or leave the loop when it comes. (Its thread has been abandoned.)"
    )


def wrong_rows(what: object, got: str, expected: str) -> BatchError:
    return BatchError(
        f"the replacement for `{what}` does not fit: it is {got}, and {expected}. A replacement "
        "keeps the batch size of what it replaces, and beside other invokes its whole shape."
    )


def spreads(what: object, got: str, expected: str) -> BatchError:
    return BatchError(
        f"the replacement for `{what}` does not fit: it is {got}, and the value there is "
        f"{expected}. PyTorch would spread it over the last dimension. If that is meant, write "
        "`new.expand_as(value)`; a mean of all tokens is one over the other dimension, "
        "`value.mean(1, keepdim=True)`."
    )


def wrong_structure(what: object, got: str, expected: str) -> BatchError:
    if expected.startswith("torch."):
        way_out = "keeps the dtype of what it replaces: `new.to(value.dtype)`."
    elif expected.startswith("a tensor"):
        way_out = "for a tensor is a tensor: take it out of its container (`new[0]`)."
    else:
        way_out = (
            "keeps the structure of what it replaces: build the same container around the new "
            "tensors, `layer.output = (new, *layer.output[1:])`, or change a tensor in place, "
            "`layer.output[0][:] = new`."
        )
    return BatchError(
        f"the replacement for `{what}` is {got}, but the value there is {expected}. A replacement "
        + way_out
    )


def none_value(what: object) -> ValueError:
    return ValueError(
        f"cannot replace `{what}` with None: PyTorch reads a None from a hook as 'unchanged'. "
        "Assign a tensor (or the same container of tensors), or use `.skip(...)`."
    )


def no_token_index(name: str, index: object, shape: list[int]) -> TypeError:
    return TypeError(
        f"`.{name}[{index!r}]` counts tokens, along the second dimension of a value: an integer, a "
        f"slice or a list of integers, for a tensor of shape (rows, tokens, ...). This one has the "
        f"shape {shape}. For anything else, index the tensor itself: `x[:, i, j]`."
    )


def no_postprocess(what: object, name: str) -> AttributeError:
    return AttributeError(
        f"cannot assign `{what}`: it is a view of another value, and its class does not say how to "
        f"make that value again. Write a function under `@{name}.postprocess`."
    )


def transformed(what: object) -> NotImplementedError:
    return NotImplementedError(
        f"`{what}` is computed inside a transform of torch.func (grad, vmap, jvp), which a block "
        "cannot take part in: its values would lose the transform. Trace the module itself, and "
        "use `.backward()` for gradients."
    )


def barrier_short(arrived: int, expected: int) -> ValueError:
    return ValueError(
        f"A barrier was never reached by every block: {arrived} of {expected} blocks arrived. Call "
        "the barrier once in each invoke that takes part, or make it with "
        f"`tracer.barrier({arrived})`."
    )


def unbound(name: str, blocks: Iterable[str]) -> NameError:
    listed = " and ".join(blocks)
    return NameError(
        f"name {name!r} is not defined: it was to come from the block at {listed}, which ended "
        "without binding it. Bind it there on every path, or before the trace.",
        name=name,
    )


def name_cycle(name: str, first: str, second: str) -> NameError:
    return NameError(
        f"name {name!r} can never be defined: the block at {first} waits for a name of the block "
        f"at {second}, which waits for a name of the first. Break the circle: bind one of the two "
        "values before it is needed.",
        name=name,
    )


def only_gradients(what: object) -> OutsideTraceError:
    return OutsideTraceError(
        f"Cannot access `{what}` in a backward block: it runs beside the backward pass, which "
        "brings gradients only (`h.grad`). Read the value above the `with loss.backward():`, while "
        "the model runs forward."
    )


def no_gradient() -> NotImplementedError:
    return NotImplementedError(
        "this loss has no gradient, so there is nothing to go backward through: nothing that it "
        "was computed from requires one. Either the model ran under `torch.no_grad()` or "
        "`inference_mode()` (`model.generate` always does: use `model.trace`), or all its "
        "parameters are frozen: call `h.requires_grad_()` on the value where the gradient is to "
        "start, `h = model.layer.output`, before the model goes on."
    )


def no_gradient_of(what: object) -> MissedProviderError:
    return MissedProviderError(
        f"`{what}` does not exist: this tensor requires no gradient. It was computed under "
        "`torch.no_grad()`, detached, or comes before everything that requires one: call "
        "`.requires_grad_()` on it before the model goes on."
    )


def gradient_passed(what: object) -> OutOfOrderError:
    return OutOfOrderError(
        f"`{what}` was requested but the backward pass already ran past it. A backward block reads "
        "gradients in the order in which they are computed, which is the reverse of the forward: "
        "later layers first, and each once. Move this line up, or keep the gradient under a name "
        "where it is first read."
    )


def not_upstream(what: object) -> MissedProviderError:
    return MissedProviderError(
        f"`{what}` was not provided: the loss was not computed from this tensor, so no gradient "
        "ever reaches it. Read the gradient of the tensor that the model itself goes on with, as "
        "`model.layer.output` gives it, not of a copy (`.clone()`, `.to(...)`, `h * 1`), and of a "
        "value that comes before the loss; `backward(inputs=...)` leaves out other tensors too."
    )


def wrong_gradient(what: object, value: object, tensor: object) -> BatchError:
    return BatchError(
        f"the replacement for `{what}` does not fit: it is {nested.describe(value)}, and the "
        f"gradient there is {nested.describe(tensor)}. Assign a tensor of that shape: `h.grad = "
        "h.grad * 2`, or change it in place, `h.grad[:] = 0`."
    )


def checkpointed(what: object) -> NotImplementedError:
    return NotImplementedError(
        f"cannot change `{what}`: it lies in a region under activation checkpointing that is "
        "reentrant, or stands in another. The backward pass will run that region once more without "
        "this block, so that all gradients would be those of the unchanged model. Use "
        "`use_reentrant=False` (`model.gradient_checkpointing_enable({'use_reentrant': False})`) "
        "or no checkpointing (`model.eval()`)."
    )


def changed_rows() -> RuntimeError:
    return RuntimeError(
        "cannot give the gradient of an invoke's rows that was asked for by `.retain_grad()` or "
        "`.register_hook(...)`: the value was changed in place after the model had gone on with "
        "it. Read it in a backward block, `with loss.backward(): g = h.grad`, or make the change "
        "by assigning (`layer.output = new`)."
    )


def hooked_rows() -> RuntimeError:
    return RuntimeError(
        "cannot run a hook on the gradient of an invoke's rows (`.register_hook(...)`): the loss "
        "uses this tensor both itself and through the model, and PyTorch has run the hook on the "
        "first part only. Use a backward block, `with loss.backward(): h.grad = f(h.grad)`."
    )


_ADVICE = {
    "'tuple' object does not support item assignment": (
        "A module that returns several values returns a tuple, and no tuple can be changed in "
        "place. Assign a new one, `layer.output = (new, *layer.output[1:])`, or change a tensor in "
        "it, `layer.output[0][:] = new`."
    ),
    "tuple indices must be integers or slices, not tuple": (
        "This value holds several tensors, so pick one before indexing it: "
        "`model.output.logits[0, -1]` for the output of a transformers model, "
        "`layer.output[0][:, -1]` for a tuple."
    ),
    "'builtin_function_or_method' object is not subscriptable": (
        "A value is the tensor itself: where old code has `.output.t[0]`, for the tokens of a "
        "prompt, write `.output[:, 0]`, or count from the end, as prompts are padded on the left."
    ),
}

_ROWS_UNUSED = (
    "The value of an invoke is its rows of one batch, which PyTorch does not know the loss to come "
    "from. Call `torch.autograd.grad(loss, h)` by this name in the block itself, or read the "
    "gradient in a backward block: `with loss.backward(): g = h.grad`."
)


def advice(error: BaseException) -> str | None:
    """What to write instead, for errors of Python's own that a block often meets."""
    if type(error) is RuntimeError and "to not have been used in the graph" in str(error):
        return _ROWS_UNUSED
    return _ADVICE.get(str(error)) if type(error) is TypeError else None
