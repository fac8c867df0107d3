"""Hooks on a module for as long as a run needs them.

The only file that touches a module's hooks or its `forward`. Outside a run nothing of ours is on
any module. During a run there is a hook on each module that a block asked for, and one without
effect on its parents: PyTorch decides when a module is called whether it has hooks at all, and a
parent may be asked for while it is already running.

A hook acts only for the run that set it, so two threads can trace one model. Entries go into
PyTorch's hook dictionaries under keys of our own: its handles take their keys from a counter that
two threads can read at once.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch.nn import Module

from nnsight.envoy.layout import is_container
from nnsight.envoy.passage import Passage, Survey, eager, is_compiled
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, SKIP, Location
from nnsight.interleave.visit import outcome

_numbers = itertools.count()


def new_key() -> tuple[str, int]:
    """A key for the hook dictionaries that nobody else has."""
    return "nnsight", next(_numbers)


class Hook:
    """A hook of ours. A copy of its module that is made during the run does not have it.

    (A copy of PyTorch's dictionaries cannot leave an entry out, so what stands there takes itself
    off when the copy is called for the first time.)
    """

    __slots__ = ("_act",)

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act

    def __call__(self, *arguments: Any) -> Any:
        return self._act(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _stray

    def __reduce__(self) -> Any:
        return _a_stray, ()


class LastHook(Hook):
    """A hook that stays behind all that come later: what it makes is for the model alone."""


def _stray(module: Module, *_: Any) -> None:
    """What is left of our hooks in a copy: takes them off."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if hook is _stray]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _a_stray() -> Callable[..., None]:
    return _stray


def _hook(module: Module, hook: Callable[..., Any], run: Interleaver) -> None:
    """Call `hook(module, args, result)` after the module, and after the user's own hooks."""
    key: Any = new_key()
    hooks: Any = module._forward_hooks
    run.at_close(hooks.pop, key, None)
    if behind := [known for known, other in hooks.items() if _stays_behind(other)]:
        run.at_close(_in_order, hooks, list(hooks))
    hooks[key] = Hook(hook)
    for known in behind:
        hooks.move_to_end(known)


def _stays_behind(hook: Any) -> bool:
    return isinstance(hook, LastHook) or collects(hook)


def collects(hook: Any) -> bool:
    """Whether `hook` is one that transformers collects `hidden_states` by, when they are wanted.

    What it collects the model goes on with, so it is to see what blocks assign.
    """
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def keep_last(hooks: Any) -> None:
    """Put those behind all others again that are to stay there, after one was added."""
    for key in [key for key, hook in hooks.items() if isinstance(hook, LastHook)]:
        hooks.move_to_end(key)


def _in_order(hooks: Any, order: list[Any]) -> None:
    for key in filter(hooks.__contains__, order):
        hooks.move_to_end(key)


def _pre_hook(module: Module, hook: Callable[..., Any], run: Interleaver) -> None:
    """Call `hook(module, args, kwargs)` before the module, and after the user's own hooks."""
    key = new_key()
    hooks: Any = module._forward_pre_hooks
    with_kwargs: Any = module._forward_pre_hooks_with_kwargs
    run.at_close(with_kwargs.pop, key, None)
    run.at_close(hooks.pop, key, None)
    with_kwargs[key] = True
    hooks[key] = Hook(hook)


def _no_effect(*_: Any) -> None:
    """On what may be running then: makes PyTorch look at its hooks again when it ends."""


_NOTHING = Hook(_no_effect)


# --- the three kinds of location ------------------------------------------------------------------


def _watch_output(module: Module, location: Location, run: Interleaver, tupled: bool) -> None:
    def hook(_: Module, args: Any, result: Any) -> Any:
        if not run.holds():
            return None
        value = run.offer(location, result)
        return None if value is result else value

    def tuple_hook(_: Module, args: Any, result: Any) -> Any:
        if not run.holds():
            return None
        seen = as_tuple(result)
        value = run.offer(location, seen)
        return None if value is seen else _bare(value)

    _hook(module, tuple_hook if tupled else hook, run)


def as_tuple(result: Any) -> Any:
    """What a module returned, as blocks see it that want tuples."""
    return (result,) if isinstance(result, torch.Tensor) else result


def _bare(value: Any) -> Any:
    """The tensor that a module returns, of the tuple that blocks see."""
    return value[0] if isinstance(value, tuple) and value else value


def _watch_input(module: Module, location: Location, run: Interleaver) -> None:
    def hook(_: Module, args: Any, kwargs: Any = None) -> Any:
        # another thread's call may find this hook after the run has ended, and without `kwargs`
        if not run.holds():
            return None
        inputs = (args, kwargs)
        value = run.offer(location, inputs)
        return None if value is inputs else value

    _pre_hook(module, hook, run)


class Around(Protocol):
    """What calls a `forward` for a run: with its operations probed."""

    def through(self, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def passed_over(self) -> None:
        """Blocks skip this call."""
        ...


class _Pass:
    """What one run asks of a gate."""

    def __init__(self, run: Interleaver) -> None:
        self.run = run
        self.skip: Location | None = None  # where blocks are asked whether to run at all
        self.around: Around | None = None
        self.tupled = False  # blocks see the tensor that the module returns as a tuple


class _Gate:
    """A `forward` that stands on a module while runs ask for more than its input and output.

    Args:
        name: of the attribute; `forward`, but for a module whose own one is kept elsewhere.
    """

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        self.passes: list[_Pass] = []
        self.displaced = module.__dict__.get(name)
        self.original = getattr(module, name)
        functools.update_wrapper(self, self.original)  # the signature, for who looks at it
        module.__dict__[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for one in self.passes:
            if one.run.holds():
                return self._pass(one, args, kwargs)
        return self.original(*args, **kwargs)

    def _pass(self, one: _Pass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        skips = one.run.gate(one.skip, (args, kwargs)) if one.skip is not None else None
        if one.around is not None:  # asked for no earlier than at the gate, perhaps
            call = functools.partial(one.around.through, self.original, args, kwargs)
        else:
            call = functools.partial(self.original, *args, **kwargs)
        return self._skip(one, skips, call) if skips else call()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """In a copy made during a run stands the copy's own forward."""
        twin, own = memo.get(id(self.module)), getattr(type(self.module), self.name, None)
        if self.displaced is None and twin is not None and own is not None:
            return own.__get__(twin)
        return copy.deepcopy(self.displaced or self.original, memo)

    def __reduce__(self) -> Any:
        if self.displaced is None:
            return getattr, (self.module, self.name)
        return _itself, (self.displaced,)

    def _skip(self, one: _Pass, skips: Any, call: Any) -> Any:
        """What the module gives when blocks skip it."""
        run, location, ran = one.run, one.skip, False
        assert location is not None

        def observed() -> Any:
            nonlocal ran
            ran = True
            return call()

        run.written.append(location)
        if one.tupled:
            skips = {rows: _bare(value) for rows, value in skips.items()}
        result = outcome(run.batch, location, skips, run.away, observed)
        if not ran and one.around is not None:
            one.around.passed_over()
        if not ran and isinstance(run.passage, Passage):
            run.passage.skipped.add(self.module)
            run.typical = False
        return result

    def leave(self, run: Interleaver) -> None:
        self.passes = [one for one in self.passes if one.run is not run]
        if not self.passes and _gates.pop((id(self.module), self.name), None) is self:
            if self.displaced is None:
                del self.module.__dict__[self.name]
            else:
                self.module.__dict__[self.name] = self.displaced


def _itself(value: Any) -> Any:
    return value


_gates: dict[tuple[int, str], _Gate] = {}  # by module and attribute, while a run needs one
_gates_lock = threading.Lock()


def _gate(module: Module, run: Interleaver, name: str = "forward") -> _Pass:
    """What `run` asks of the gate on a module, put there if it is not."""
    key = (id(module), name)

    def undo() -> None:
        with _gates_lock:
            gate = _gates.get(key)
            if gate is not None:
                gate.leave(run)

    with _gates_lock:
        gate = _gates.get(key)
        known = next((one for one in gate.passes if one.run is run), None) if gate else None
        if known is not None:
            return known
    run.at_close(undo)
    with _gates_lock:
        gate = _gates.get(key)
        if gate is None:
            gate = _gates[key] = _Gate(module, name)
        one = _Pass(run)
        gate.passes = [*gate.passes, one]
        return one


def _watch_gate(module: Module, location: Location, run: Interleaver, tupled: bool) -> None:
    one = _gate(module, run)
    one.skip, one.tupled = location, tupled


def around(module: Module, run: Interleaver, name: str, make: Callable[[], Around]) -> Any:
    """What calls a module's forward for `run`; made and put there by the first who asks.

    Args:
        name: of the attribute that the forward is kept in.
    """
    one = _gate(module, run, name)
    if one.around is None:
        one.around = make()
    return one.around


def own_forward(module: Module, name: str = "forward") -> Any:
    """A module's forward, as it is outside a run."""
    with _gates_lock:
        gate = _gates.get((id(module), name))
    return getattr(module, name) if gate is None else gate.original


# --- what an envoy asks for -----------------------------------------------------------------------


def touch(modules: Iterable[Module], run: Interleaver) -> None:
    """See that PyTorch looks at the hooks of modules that may be running when asked for more."""
    new = [module for module in modules if id(module) not in run.touched]
    if not new:
        return
    run.touched.update(map(id, new))
    key: Any = new_key()
    run.at_close(_untouch, new, key)
    for module in new:
        if not is_container(module):  # which never runs
            module._forward_hooks[key] = _NOTHING


def _untouch(modules: list[Module], key: Any) -> None:
    for module in modules:
        module._forward_hooks.pop(key, None)


def watch(
    location: Location,
    module: Module,
    parents: Iterable[Module],
    run: Interleaver,
    tupled: bool = False,
) -> None:
    """Offer the value at `location` to the run whenever the module comes by there.

    Args:
        tupled: blocks see a tensor that the module returns as a tuple of it.
    """
    run.offered.add((id(module), location.kind))
    if run.last is None and isinstance(run.passage, Passage):
        run.passage.early.add(location)
    touch([*parents, module] if location.kind == SKIP else parents, run)
    if location.kind == OUTPUT:
        _watch_output(module, location, run, tupled)
    elif location.kind == INPUT:
        run.touched.add(id(module))
        _watch_input(module, location, run)
        # a block that has read the input may skip the module next: too late for a gate by then
        run.watch(Location(location.owner, SKIP))
    elif location.kind == SKIP:
        _watch_gate(module, location, run, tupled)


def _count(passage: Passage, modules: Iterable[Module], run: Interleaver) -> None:
    modules = tuple(modules)
    if not modules:
        return

    def before(module: Module, args: Any) -> None:
        if run.holds() and passage.start(module):
            run.release()  # a loop may wait for the next step of what is now known to make steps

    def after(module: Module, args: Any, result: Any) -> None:
        if run.holds():
            passage.finish(module)

    key: Any = new_key()

    def undo() -> None:
        for module in modules:
            module._forward_pre_hooks.pop(key, None)
            module._forward_hooks.pop(key, None)

    run.at_close(undo)
    starts, ends = Hook(before), Hook(after)
    for module in modules:
        module._forward_pre_hooks[key] = starts
        module._forward_hooks[key] = ends


def count_inside(module: Module, run: Interleaver) -> None:
    """A block is about to call `module` as part of the run: count what happens in it."""
    passage = run.passage
    if isinstance(passage, Passage):
        _count(passage, filter(passage.count_from_here, module.modules()), run)


def enter(
    root: Module, passage: Passage, run: Interleaver, keep: Callable[[Survey | None], None]
) -> None:
    """Prepare a module for one run.

    Args:
        passage: of this run; it counts every module if no earlier run was surveyed.
        keep: called with the survey of this run, if it counted and came to its end; with None
            if this run did not go as surveyed.
    """
    run.passage, survey = passage, passage.survey
    modules = [] if survey is not None else list(root.modules())
    often = survey.repeated if survey is not None else modules
    passage.counted.update(often)
    _count(passage, often, run)
    if survey.compiled if survey is not None else any(map(is_compiled, modules)):
        run.at_close(eager())
    if survey is None:
        run.at_close(
            lambda: keep(passage.conclude(modules)) if run.completed and run.typical else None
        )
    else:
        run.at_close(lambda: keep(None) if passage.doubtful else None)
