"""The torch state of a thread: what a block starts with, and what it may not leak.

Grad mode, inference mode, autocast, default device, function and dispatch modes, the CUDA device
and stream are kept per thread by torch. A block starts with the caller's and keeps its own after
that: what it changes is never seen by the model, and the model's own changes (a `torch.no_grad()`
inside a forward) are never seen by the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import overrides
from torch.utils import _python_dispatch

# torch has no public names for these stacks; they have been there since 1.13
_c: Any = torch._C  # pyright: ignore[reportPrivateUsage]
_functions: Any = getattr(overrides, "_get_current_function_mode_stack")  # noqa: B009
_dispatch: Any = getattr(_python_dispatch, "_get_current_dispatch_mode_stack")  # noqa: B009


class Ambient(NamedTuple):
    """One thread's torch state at one moment."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, torch.dtype], ...]  # device types it is enabled for
    autocast_cache: bool
    functions: tuple[Any, ...]  # function modes, outermost first; a default device is one
    dispatch: tuple[Any, ...]  # dispatch modes, outermost first
    stream: Any  # the current CUDA stream, which has a device; None without CUDA


_AUTOCAST_KINDS = ("cpu", "cuda", "xpu", "mps", "hpu")


def _autocasts() -> tuple[tuple[str, torch.dtype], ...]:
    if not _c._is_any_autocast_enabled():
        return ()
    on = [kind for kind in _AUTOCAST_KINDS if torch.is_autocast_enabled(kind)]
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in on)


def current() -> Ambient:
    """The state of the calling thread."""
    functions = _c._len_torch_function_stack()
    dispatch = _c._len_torch_dispatch_stack()
    return Ambient(
        grad=torch.is_grad_enabled(),
        inference=torch.is_inference_mode_enabled(),
        autocast=_autocasts(),
        autocast_cache=torch.is_autocast_cache_enabled(),
        functions=tuple(_functions()) if functions else (),
        dispatch=tuple(_dispatch()) if dispatch else (),
        stream=torch.cuda.current_stream() if torch.cuda.is_initialized() else None,
    )


def transforming() -> bool:
    """Whether this thread computes inside a transform of torch.func (grad, vmap, jvp)."""
    return _c._functorch.maybe_current_level() is not None


def brief() -> tuple[Any, ...]:
    """What of the calling thread's state decides how tensors are cut and joined."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        _c._is_any_autocast_enabled(),
        _c._len_torch_function_stack(),
        _c._len_torch_dispatch_stack(),
    )


def run_with(state: Ambient, body: Callable[[], None]) -> None:
    """Run `body` on this thread with `state` in force, whatever was left behind by another."""
    if state.autocast or _c._is_any_autocast_enabled():
        _set_autocast(state)
    if state.functions or _c._len_torch_function_stack():
        pair = _c._pop_torch_function_stack, _c._push_on_torch_function_stack
        _set_stack(_c._len_torch_function_stack, *pair, state.functions)
    if state.dispatch or _c._len_torch_dispatch_stack():
        pop, push = lambda: _c._pop_torch_dispatch_stack(None), _c._push_on_torch_dispatch_stack
        _set_stack(_c._len_torch_dispatch_stack, pop, push, state.dispatch)
    if state.stream is not None:
        torch.cuda.set_stream(state.stream)
    if state.inference != torch.is_inference_mode_enabled():
        with torch.inference_mode(state.inference):  # this sets the grad mode too
            torch.set_grad_enabled(state.grad)
            body()
    else:
        torch.set_grad_enabled(state.grad)
        body()


def within(state: Ambient, compute: Callable[[], Any]) -> Any:
    """What `compute()` gives in `state`; afterwards this thread is as it was."""
    found: list[Any] = []
    before = current()
    try:
        run_with(state, lambda: found.append(compute()))
    finally:
        run_with(before, _nothing)
    return found[0]


def _nothing() -> None:
    pass


def _set_autocast(state: Ambient) -> None:
    enabled = dict(state.autocast)
    for kind in _AUTOCAST_KINDS:
        torch.set_autocast_enabled(kind, kind in enabled)
        if kind in enabled:
            torch.set_autocast_dtype(kind, enabled[kind])
    torch.set_autocast_cache_enabled(state.autocast_cache)


def _set_stack(
    length: Callable[[], int],
    pop: Callable[[], Any],
    push: Callable[[Any], None],
    modes: tuple[Any, ...],
) -> None:
    while length():
        pop()
    for mode in modes:
        push(mode)
