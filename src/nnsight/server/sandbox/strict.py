"""Reading what a sandbox sends: nothing in it is trusted. And what goes wrong here, as data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from nnsight.remote.errors import RemoteError
from nnsight.remote.reading import Reader
from nnsight.remote.tensors import dtype_of
from nnsight.server.sandbox.errors import Broken, Gone


def gradients(told: Any, reader: Reader) -> list[torch.Tensor | None]:
    """Gradients that a sandbox sends."""
    found = [None if one is None else reader.whole(one) for one in told]
    if not all(one is None or isinstance(one, torch.Tensor) for one in found):
        raise Broken("a gradient that is none")
    return found


def told(error: BaseException) -> list[Any]:
    """An error as data."""
    kind = type(error)
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    return [kind.__module__, kind.__qualname__, str(error), notes]


@contextlib.contextmanager
def parsed() -> Iterator[None]:
    """What is read under this `with` was sent by a sandbox: nothing in it is trusted."""
    try:
        yield
    except (Gone, Broken):
        raise
    except (RemoteError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None
    except (RecursionError, OverflowError, MemoryError, RuntimeError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None


@contextlib.contextmanager
def in_state(state: dict[str, Any]) -> Iterator[None]:
    """The torch state of the sandbox."""
    with contextlib.ExitStack() as stack:
        with parsed():
            if state["inference"]:
                stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.set_grad_enabled(bool(state["grad"])))
            for kind, name in state["autocast"]:
                if kind in ("cpu", "cuda"):
                    stack.enter_context(torch.autocast(kind, dtype_of(name)))
        yield


@contextlib.contextmanager
def warned(texts: list[str]) -> Iterator[None]:
    """Warnings are taken down, to be given where the block was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        def take(message: Any, *more: Any) -> None:
            texts.append(str(message))

        warnings.showwarning = take
        yield
