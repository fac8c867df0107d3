"""`Traced`: what a trace sees of a wrapped model (the `Model` of `traces/model.py`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from torch.nn import Module

from nnsight import nested
from nnsight.envoy import handoff
from nnsight.envoy.batch_axis import BatchAxis
from nnsight.envoy.keywords import warn_dropped
from nnsight.envoy.layout import is_container
from nnsight.envoy.observe import See, Targets, observe
from nnsight.envoy.passage import Passage, Survey
from nnsight.envoy.places import prepare_from
from nnsight.envoy.tree import Node, first_parameter
from nnsight.interleave import errors
from nnsight.interleave.batching import Batch, combine, count_rows
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, SKIP, Location
from nnsight.interleave.request import here
from nnsight.traces.layout import Layout
from nnsight.traces.model import Inputs


class Traced(Node):
    """A module that a trace can run, and offer the values of."""

    _stepwise: frozenset[str] = frozenset()
    """Methods that call the module once for each step, and nothing else of it in between."""

    def _whole(self) -> Module:
        return self._tree.root

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        """How many rows inputs contribute; 0 for none. Override it together with `_batch`."""
        return count_rows(args, kwargs)

    def _batch(self, inputs: list[Inputs], fn: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The one call for several inputs: here, tensors concatenated along their first dimension.

        Raises:
            BatchError: the inputs do not fit together.
        """
        args, kwargs = combine([(given.args, given.kwargs) for given in inputs])
        if kwargs:
            warn_dropped(self._module, fn, kwargs)
        return args, kwargs

    def _combined(
        self, inputs: list[Inputs], shared: list[dict[str, Any]], fn: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The one call for all `inputs` with the settings that they share: the trace's come first.

        The others are of the invokes without an input.
        """
        args, kwargs = self._batch(inputs, fn)
        for settings in reversed(shared):
            kwargs = {**kwargs, **settings}
        return args, kwargs

    def _part_of(self) -> Traced | None:
        """What stands for the whole model; None if this does, or nothing is left of it."""
        root = self._view.nodes.get(id(self._tree.root)) or self._view.origin
        return root if isinstance(root, Traced) and root is not self else None

    def _before_run(self) -> None:
        """Called before the module runs; a subclass loads its weights here."""
        if (whole := self._part_of()) is not None:
            whole._before_run()

    def _before_scan(self) -> None:
        """Called before the module runs without numbers; nothing is loaded."""
        if (whole := self._part_of()) is not None:
            whole._before_scan()

    def _awaits_weights(self) -> bool:
        """Whether the modules are stand-ins, and others take their place before the model runs."""
        whole = self._part_of()
        return whole is not None and whole._awaits_weights()

    def _before_change(self) -> None:
        """Called before something is done to the module itself: not to a stand-in, which goes."""
        if self._awaits_weights() and not self._runs_beside():  # a block of a scan loads nothing
            self._before_run()

    def _place(self, value: Any) -> Any:
        parameter = first_parameter(self._module)
        if parameter is None or parameter.device.type == "meta":
            return value
        device = parameter.device
        return nested.map_leaves(lambda t: t if t.device == device else t.to(device), value)

    def _callable(self, fn: str | Callable[..., Any] | None) -> Callable[..., Any]:
        if fn is None or fn == "__call__":
            return self._module
        if not isinstance(fn, str):
            return fn
        if not callable(method := getattr(self._module, fn, None)):
            raise self._no_such(fn)
        return method

    def _enter(self, run: Interleaver, fn: str, call: functools.partial[Any]) -> None:
        key = (self._path, fn)
        # another method may call any module any number of times: count everything in all its runs
        regular = fn == "__call__" or fn in self._stepwise
        survey = self._tree.surveys.get(key) if regular else None

        def keep(survey: Survey | None) -> None:
            if survey is None:
                self._tree.surveys.pop(key, None)
            elif regular:
                self._tree.surveys[key] = survey

        clock = self._clock(fn)
        if survey is not None and survey.clock is not None:
            clock = survey.clock()
        stepwise = fn in self._stepwise
        passage = Passage(survey, self._tree.above, self._node_of, clock, stepwise)
        if isinstance(run.batch.varies, BatchAxis):
            run.batch.varies.step = passage.step
        handoff.enter(self._module, passage, run, keep)

    def _clock(self, fn: str) -> Module | None:
        """The module whose calls are the steps of a run of `fn`; None if that is one call."""
        return None if fn == "__call__" else self._module

    def _batch_of(self, total: int, split: bool, call: Any, given: list[Inputs]) -> Batch:
        return self._split_over(total, call) if split else Batch(total)

    def _split_over(self, total: int, trial: Any, also: Collection[int] = ()) -> Batch:
        """A batch that several blocks share. `trial` and `also` are as for `BatchAxis`."""
        memory = self._tree.memory.setdefault(self._path, {})
        axis = BatchAxis(self._module, self._path, memory, total, trial, also)
        return Batch(total, True, axis, axis.lies)

    def watch(self, kind: str, run: Interleaver) -> None:
        """From now on in `run`, offer the value at `kind` whenever this module comes by there.

        Raises:
            NeverCalledError: the module is a container without a forward.
        """
        if kind not in (INPUT, OUTPUT, SKIP):  # the model's own code offers it
            return
        module = self._module
        if is_container(module):
            inside = next(iter(self._names()), "0")
            element = f"{self._path}[{inside}]" if inside.isdigit() else f"{self._path}.{inside}"
            example = f"{element}.{kind}"
            raise errors.container(Location(self, kind), type(module).__name__, example)
        if run.sources:
            prepare_from(self, run)
        tupled = kind != INPUT and self._tree.shows_tuple(module)
        handoff.watch(Location(self, kind), module, self._tree.above(module), run, tupled)

    def _layout(self) -> Layout:
        return self._tree.layout(self._path.partition(".")[0])

    def _observe(self, run: Interleaver, outputs: Targets, inputs: Targets, see: See) -> None:
        observe(outputs, inputs, see, run, self._tree.shows_tuple)

    def _runs_beside(self) -> bool:
        """Whether this line is in a block that runs beside this very model."""
        return here.worker is not None and here.worker.tree is self._tree
