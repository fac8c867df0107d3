"""`model.scan(...)`: a trace that computes shapes and dtypes, without weights and without work."""

from __future__ import annotations

import enum
from typing import Any

import torch

from nnsight import nested
from nnsight.interleave.worker import Worker
from nnsight.traces.fakes import Fakes, fake_world
from nnsight.traces.trace import Trace

_PLAIN = (int, float, complex, str, bytes, type(None), slice, range, enum.Enum)
_DESCRIPTIONS = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class Scan(Trace):
    """What `model.scan(...)` returns: enter it with `with`.

    The block runs as in a trace, beside a forward whose tensors have a shape, a dtype and a device
    but no numbers. Weights that are not there yet are not read. What the block binds to something
    without tensors in it (a number, a shape, a dtype) is there after it, without a save.

    Raises:
        RuntimeError: the block or the model asks for the numbers of a tensor.
    """

    apart = None  # it needs no weights, so it runs anywhere
    _fakes: Fakes | None = None

    def run_workers(
        self,
        workers: list[Worker],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        total: int,
        split: bool,
    ) -> Any:
        self.model._before_scan()
        with fake_world(self.model._whole()) as fakes:
            self._fakes = fakes
            for state, worker in ((worker.state, worker) for worker in workers):
                if state is not None:  # that of its invoke, which was written outside of this mode
                    worker.state = state._replace(dispatch=(*state.dispatch, fakes))
            try:
                return super().run_workers(workers, args, kwargs, total, split)
            finally:
                self._fakes = None

    def _prepare(self, args: Any, kwargs: Any) -> Any:
        """The input as fakes; nothing is loaded."""
        fakes = self._fakes
        assert fakes is not None
        return self.model._place(nested.map_leaves(fakes.fake, (args, kwargs)))

    def results(self, only_saved: bool) -> dict[str, Any]:
        scopes = [scope for scope in (self.scope, *self.inner) if scope is not None]
        plain = {n: v for scope in scopes for n, v in scope.bound().items() if _is_plain(v)}
        return {**plain, **super().results(only_saved)}


def _is_plain(value: Any) -> bool:
    """Whether `value` has nothing of a scan in it: numbers, words, shapes, and lists of such."""
    if isinstance(value, (*_PLAIN, *_DESCRIPTIONS)):
        return True
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(map(_is_plain, [*value, *value.values()]))
