"""What subclasses and callers of `Envoy` wrote for earlier releases: two orders of arguments, and
`_prepare_input` with `_batch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnsight.interleave.batching import combine
from nnsight.traces.model import Inputs

_SINCE_0_8: tuple[str, ...] = ("path", "interleaver", "rename", "envoys", "parent")
_BEFORE: tuple[str, ...] = ("interleaver", "path", "rename", "envoys")


def by_position(path: Any, more: tuple[Any, ...], rename: Any, envoys: Any) -> tuple[Any, Any, Any]:
    """The path, the renames and the classes, where some were given by their place.

    The first of them tells the order: a path is a string. An interleaver or a parent is of no use.

    Raises:
        TypeError: there are too many, or one was given twice.
    """
    order = _SINCE_0_8 if isinstance(path, str) else _BEFORE
    if len(more) >= len(order):
        raise TypeError(f"an envoy takes a module and up to {len(order)} arguments: {order}")
    placed: dict[str, Any] = dict(zip(order, (path, *more), strict=False))
    for name, given in (("rename", rename), ("envoys", envoys)):
        if given is not None and placed.get(name) is not None:
            raise TypeError(f"got two values for `{name}`, one by its place and one by its name")
        placed[name] = placed.get(name) if given is None else given
    return placed.get("path", "model"), placed["rename"], placed["envoys"]


def adapt(cls: Any) -> None:
    """Let a class that overrides `_prepare_input` (and `_batch`) have `_batch_size` and `_batch`.

    `_prepare_input(*args, **kwargs)` returns `((args, kwargs), rows)`; `_batch(so_far, *args,
    **kwargs)` joins the inputs of one more invoke to those so far, and returns the same. Without it
    tensors are concatenated.
    """
    own = vars(cls)
    prepare, join = own.get("_prepare_input"), own.get("_batch")
    if prepare is None or "_batch_size" in own:
        return

    def _batch_size(self: Any, *args: Any, **kwargs: Any) -> int:
        """How many rows inputs contribute, as `_prepare_input` says."""
        return prepare(self, *args, **kwargs)[1] if args or kwargs else 0

    def _batch(self: Any, inputs: list[Inputs], fn: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The one call for several inputs."""
        prepared = [prepare(self, *given.args, **given.kwargs)[0] for given in inputs]
        return _joined(self, join, prepared)

    cls._batch_size, cls._batch = _batch_size, _batch


def _joined(envoy: Any, join: Callable[..., Any] | None, prepared: list[Any]) -> Any:
    if join is None:
        return combine(prepared)
    so_far, *others = prepared
    for args, kwargs in others:
        so_far, _ = join(envoy, so_far, *args, **kwargs)
    return so_far
