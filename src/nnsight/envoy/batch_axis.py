"""Which values of a model have one row per input, where their length alone cannot tell.

A tensor with as many rows as the batch is almost always batched. It may also be a sequence, the
heads, a table of positions that is as long by chance, or the tokens that a router sent to one
expert; and a tensor that is several times as long may be all rows' tokens in one dimension, or
tokens sorted by expert. Where that is open, a twin of the model, which shares its weights, is run
once with other rows: some like the batch's, then the same in reverse (`mirror.py`). What does not
grow as the batch does is not batched. What grows, but whose parts do not come back in reverse, is
not made of rows one after the other. The answer is kept with the model. Of a method that calls the
model step by step, the first step and the second are told apart: the first reads a prompt.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import random
import sys
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn import Module
from torch.utils._python_dispatch import _disable_current_modes

from nnsight import nested
from nnsight.capture.traceback import warn
from nnsight.envoy.handoff import collects
from nnsight.envoy.mirror import Mirror
from nnsight.envoy.operations import Operation, watch_twin
from nnsight.interleave.location import INPUT, OUTPUT, RESULT, SKIP, Location
from nnsight.interleave.request import here

T = TypeVar("T")
# Something of every leaf at a module path and a kind, at the first visit or a later one.
Told = dict[tuple[str, str, bool], list[T]]


class Seen(NamedTuple):
    """What another batch says of a leaf."""

    shape: tuple[int, ...]  # that it has there
    of_rows: bool  # whether that is made of rows
    lies: int | None  # the other dimension that counts the rows, if one does


def sizes_of(module: Module) -> frozenset[int]:
    """Every size there is in a model: of its weights, and the plain numbers its modules keep."""
    tensors = [*module.parameters(), *module.buffers()]
    found = {size for tensor in tensors for size in tensor.shape}
    for inner in module.modules():
        found |= {value for value in vars(inner).values() if type(value) is int}
    return frozenset(found)


def _input_sizes(values: Any) -> set[int]:
    """The sizes of inputs besides their rows, and what models commonly make of them."""
    sizes = {size for leaf in nested.leaves(values) for size in leaf.shape[1:]}
    return {near for size in sizes for near in (size - 1, size, size + 1, 2 * size, size // 2)}


def signature(value: Any) -> Any:
    """What decides how a model treats an input: shapes and plain values, in their containers."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    members = nested.parts(value)
    if members is not None:
        return type(value), tuple((key, signature(member)) for key, member in members.items())
    plain = (bool, int, float, str, type(None))
    return value if isinstance(value, plain) else type(value)


def _twin(module: Module) -> Module:
    """A copy of `module` that shares its weights and has a state and no hook of ours.

    Raises:
        TypeError: the user has hooks on it. They may be part of what the model computes, and they
            may only collect values: with them and without them the twin would be wrong.
    """
    for inner in module.modules():
        for key, hook in (*inner._forward_hooks.items(), *inner._forward_pre_hooks.items()):
            if not isinstance(key, tuple) and not collects(hook):
                raise TypeError("it has hooks of its own, which would be called once more")
    with _disable_current_modes():  # in a scan a copy would not be of the kind of the original
        return copy.deepcopy(module, {id(weight): weight for weight in module.parameters()})


def _cuda_devices(module: Module) -> list[int]:
    return sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})


def _random_states(devices: Sequence[int]) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


@contextmanager
def _same_randomness(module: Module) -> Generator[None]:
    """Put back every random generator that the model may draw from."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=_cuda_devices(module)):
            yield
    finally:
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])


def _keep(
    told: Told[T], tell: Callable[[torch.Tensor], T], path: str, kind: str, value: Any
) -> None:
    later = (path, kind, False) in told
    if (path, kind, later) not in told:
        told[path, kind, later] = [tell(leaf) for leaf in nested.leaves(value)]


@contextmanager
def _outside_the_run() -> Generator[None]:
    """What the twin's own code offers (`eproperty.provide`) is not for the blocks of the run."""
    run, here.run = here.run, None
    try:
        yield
    finally:
        here.run = run


def _record(twin: Module, keep: Callable[[str, str, Any], None]) -> Callable[[], None]:
    for path, inner in twin.named_modules(remove_duplicate=False):
        inner.register_forward_pre_hook(
            lambda m, args, kwargs, path=path: keep(path, INPUT, (args, kwargs)), with_kwargs=True
        )
        inner.register_forward_hook(lambda m, args, out, path=path: keep(path, OUTPUT, out))
    return lambda: None  # the hooks go with the twin


Recorder = Callable[[Module, Callable[[str, str, Any], None]], Callable[[], None]]


def recorder_of(operation: Operation, root: str) -> Recorder:
    """Has the values of an operation in the model at `root` kept, in place of the modules'."""
    path, within = (owner.path[len(root) + 1 :] for owner in (operation, operation.within))

    def record(twin: Module, keep: Callable[[str, str, Any], None]) -> Callable[[], None]:
        return watch_twin(operation, twin.get_submodule(within), functools.partial(keep, path))

    return record


def measure(
    module: Module,
    call: functools.partial[Any],
    tell: Callable[[torch.Tensor], T],
    record: Recorder = _record,
) -> Told[T]:
    """What `tell` says of the values of `module` in a call like `call`, made of a twin.

    Args:
        record: has the values that it is about kept when the twin runs, and returns what ends
            that; by default those of every module.
    """
    told: Told[T] = {}
    keep = functools.partial(_keep, told, tell)
    with _same_randomness(module), _outside_the_run(), torch.no_grad():
        twin = _twin(module)
        done = record(twin, keep)
        method = twin if call.func is module else getattr(twin, call.func.__name__)
        args, kwargs = nested.unshared((call.args, call.keywords))
        try:
            # in no context: what the model's own call collects is not to get the twin's values
            keep("", RESULT, contextvars.Context().run(method, *args, **kwargs))
        finally:
            done()
    return told


class BatchAxis:
    """Answers, for one run, whether the first dimension of a leaf follows the batch size.

    Args:
        module: the module that is traced.
        path: where it is in its tree.
        memory: what earlier runs of it found out, kept with the tree.
        total: the rows of the batch.
        call: what to run on the twin: the call of the run, with its arguments, or a shorter one.
        also: further sizes that a value may have.
    """

    def __init__(
        self,
        module: Module,
        path: str,
        memory: dict[Any, Any],
        total: int,
        call: functools.partial[Any],
        also: Collection[int] = (),
    ) -> None:
        self._module, self._path, self._memory = module, path, memory
        self._total, self._call, self._also = total, call, also
        self.step: Callable[[], int] = lambda: 0  # which step the run is at

    def __call__(self, location: Location, leaf: int, shape: Sequence[int]) -> bool | None:
        length = shape[0]
        if length == self._total and not self.doubtful and not self._may_be_routed(shape):
            return True
        if getattr(type(location.owner), "between_steps", False):
            return True
        seen = self._seen(location, leaf, shape)
        if seen is None:
            return None
        rows = self._mirror.rows * (length // self._total)
        return seen.of_rows and seen.shape[:1] == (rows,)

    def lies(self, location: Location, leaf: int, shape: Sequence[int]) -> int | None:
        """Which dimension of a leaf behind the first follows the batch size; None if none does."""
        if getattr(type(location.owner), "between_steps", False):
            return None
        seen = self._seen(location, leaf, shape)
        if seen is not None:
            dim = seen.lies
            return dim if dim and dim < len(shape) and shape[dim] == self._total else None
        dims = [dim for dim in range(1, len(shape)) if shape[dim] == self._total]
        return dims[0] if len(dims) == 1 and not self.doubtful else None

    def _seen(self, location: Location, leaf: int, shape: Sequence[int]) -> Seen | None:
        path, kind = self.key(location)
        if isinstance(location.owner, Operation):
            self._look_at(location.owner, path, kind)
        later = self.step() > 0
        visits = [self._told.get((path, kind, visit)) for visit in (later, not later)]
        told = [leaves[leaf] for leaves in visits if leaves is not None and leaf < len(leaves)]
        # of a module that runs twice in one forward, the run with values of such a shape
        alike = (seen for seen in told if self._call.func is self._module)
        return next((s for s in alike if self._fits(s, shape)), told[0] if told else None)

    def _fits(self, seen: Seen, shape: Sequence[int]) -> bool:
        """Whether a value is like one of the mirror in all but how many rows there are."""
        dim = seen.lies or 0
        if len(shape) != len(seen.shape) or not shape:
            return False
        pairs = list(zip(shape, seen.shape, strict=True))
        own, there = pairs.pop(dim)
        return own * self._mirror.rows == there * self._total and all(o == t for o, t in pairs)

    def key(self, location: Location) -> tuple[str, str]:
        """Under which path and kind the lengths at `location` are kept."""
        path = location.owner.path
        if not path:
            return "", RESULT
        kind = OUTPUT if location.kind == SKIP else location.kind
        return path[len(self._path) + 1 :], kind

    @functools.cached_property
    def _sizes(self) -> frozenset[int]:
        if "sizes" not in self._memory:
            self._memory["sizes"] = sizes_of(self._module)
        return self._memory["sizes"] | _input_sizes((self._call.args, self._call.keywords))

    @functools.cached_property
    def doubtful(self) -> bool:
        """Whether a length may be that of the batch by chance."""
        return self._total in self._sizes or self._total in self._also

    @functools.cached_property
    def _tokens(self) -> frozenset[int]:
        """How many ids the model reads for each row; none for a model that reads no ids."""
        leaves = nested.leaves((self._call.args, self._call.keywords))
        ids = (leaf for leaf in leaves if leaf.ndim == 2 and not leaf.is_floating_point())
        return frozenset(leaf.shape[1] for leaf in ids)

    def _may_be_routed(self, shape: Sequence[int]) -> bool:
        """Whether a value may be as many of the batch's tokens by chance.

        Models that read ids have a dimension for tokens beside that for rows almost everywhere. A
        value that has none may be the tokens that one expert was sent.
        """
        return bool(self._tokens) and len(shape) <= 2 and not self._tokens.issuperset(shape[1:2])

    @functools.cached_property
    def _mirror(self) -> Mirror:
        return Mirror.of(self._total, self._sizes)

    @functools.cached_property
    def _told(self) -> Told[Seen]:
        """What the mirror says of each leaf."""
        args, kwargs = self._call.args, self._call.keywords
        method = getattr(self._call.func, "__name__", None)  # none of a module
        key = (method, self._total, self._module.training, signature((args, kwargs)))
        if key not in self._memory:
            self._memory[key] = self._mirror, self._measure()
        self.__dict__["_mirror"], told = self._memory[key]
        return told

    def _look_at(self, operation: Operation, path: str, kind: str) -> None:
        """Measure the values of an operation too, the first time that one is asked about."""
        if (path, kind, False) not in self._told:
            self._told.update(self._measure(recorder_of(operation, self._path)))
            self._told.setdefault((path, kind, False), [])

    def _measure(self, record: Recorder = _record) -> Told[Seen]:
        method, mirror = self._call.func, self._mirror
        devices = _cuda_devices(self._module)  # once: a large model has thousands of parameters
        start = _random_states(devices)

        def tell(leaf: torch.Tensor) -> Seen:
            # behind a dropout rows of equal content differ: only their length says something
            drawn = not all(map(torch.equal, start, _random_states(devices)))
            return Seen(tuple(leaf.shape), drawn or mirror.holds(leaf), mirror.lies(leaf, drawn))

        def run(varied: bool) -> Told[Seen]:
            args, kwargs = mirror.given((self._call.args, self._call.keywords), varied)
            return measure(self._module, functools.partial(method, *args, **kwargs), tell, record)

        try:
            if method is not self._module and getattr(method, "__self__", None) is not self._module:
                raise TypeError("a function cannot be run on a twin")
            try:
                return run(varied=True)
            except Exception:  # it may count its ends of texts, which others need not have
                return run(varied=False)
        except Exception as error:
            if self.doubtful:
                warn(
                    f"this batch has {self._total} rows, which is also a size of the model or of "
                    f"an input, and the model cannot be run again to tell them apart ({error}). "
                    "Values of that length are taken for batched; use another number of rows if "
                    "that is wrong."
                )
            return {}
