"""`model.trace(...)`: one forward of a model with blocks of the user's beside it."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from nnsight.capture import traceback
from nnsight.capture.errors import NestedTraceError
from nnsight.capture.saving import save
from nnsight.capture.scope import Scope
from nnsight.capture.tracer import Backend, Tracer
from nnsight.config import CONFIG
from nnsight.interleave import ambient, errors
from nnsight.interleave.gradients import GradientWorker
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT, RESULT, Location
from nnsight.interleave.request import here
from nnsight.interleave.rows import Rows
from nnsight.interleave.run import run
from nnsight.interleave.value import Value
from nnsight.interleave.worker import Worker
from nnsight.traces import edits
from nnsight.traces.barrier import Barrier
from nnsight.traces.cache import Cache, Opening, open_cache
from nnsight.traces.errors import (
    invoke_beside_input,
    invoke_without_trace,
    no_cache_backward,
    no_report,
    no_rows,
    nothing_to_run,
    same_model,
)
from nnsight.traces.invoke import Invoke, refuse_inside_run
from nnsight.traces.journal import Journal
from nnsight.traces.model import Inputs, Model
from nnsight.traces.recording import Keeping
from nnsight.traces.report import Report, wants_report
from nnsight.traces.sharing import Names
from nnsight.traces.steps import Iter, Steps, advance
from nnsight.traces.stopping import warn_of_the_rest


def _of_the_model(name: str) -> Any:
    """A value of the traced model, read and assigned through the trace."""

    def get(trace: Trace) -> Any:
        return getattr(trace.model, name)

    def put(trace: Trace, value: Any) -> None:
        setattr(trace.model, name, value)

    return property(get, put)


class Trace(Tracer):
    """What `model.trace(...)` returns: enter it with `with`.

    With an input the whole block runs beside one forward on it. Without one the block opens
    `tracer.invoke(...)` blocks, and one forward runs over the batch of all their inputs.

    Names that a trace does not have are those of the traced model, so
    `with model.trace(x) as m: m.layer.output` reads like the model itself.
    """

    path = ""
    apart: Callable[..., Any] | None = None
    """What `run_workers` does where the model is in another process (`server/sandbox/guest.py`)."""
    _ended = False
    result = Value(
        RESULT,
        doc="""What the traced call returned (for a module: its output). Read it last.

        Assigning replaces it for whoever reads it afterwards, and for the caller.
        """,
    )

    def __init__(
        self,
        model: Model,
        given: Inputs,
        fn: str | Callable[..., Any] | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(backend)
        # for good: after `with model.trace(x) as model:` only the tracer knows the model
        self.model = model
        self.given = given
        self.fn = fn
        self.invokes: list[Invoke] = []
        self.openings: list[Opening] = []  # of caches in the body around the invokes
        self.reporting = False  # whether to take down what happens, whatever the code says
        self.reported: Report | None = None  # of a run elsewhere
        self.journal: Journal | None = None

    # --- in the block -----------------------------------------------------------------------------

    def invoke(self, *args: Any, **kwargs: Any) -> Invoke:
        """A block for one more input: `with tracer.invoke(prompt):`.

        Every kind of input that `trace` takes. Blocks run side by side in one forward, each on its
        own rows; without an input a block sees all rows.

        Raises:
            ValueError: called inside a block that already has its input.
        """
        if self._size():
            raise invoke_beside_input()
        if self.scope is None:
            raise invoke_without_trace()
        refuse_inside_run()
        return Invoke(self.take, Inputs(args, kwargs)).offered("tracer.invoke(...)")

    @property
    def iter(self) -> Iter:
        """Steps of the run: `for step in tracer.iter[:]`, `[2]`, `[1:4]`, `[[0, 3]]`.

        While the body runs, what the block asks for is of that step: the n-th time that the model
        (or a module that runs several times in one forward) is called, counted from 0. The loop
        ends when the run does; `with tracer.iter[...] as step:` is the same.
        """
        return Iter("tracer.iter")

    def all(self) -> Steps:
        """All steps of the run: the same as `tracer.iter[:]`."""
        return Iter("tracer.iter").all("tracer.all()")

    def next(self, step: int = 1) -> Trace:
        """From here on the block asks for values of the next step (or the `step`-th from here)."""
        return advance(self, step, "tracer.next()")

    def barrier(self, n: int) -> Barrier:
        """A point at which `n` blocks wait for one another; call it in each of them."""
        return Barrier(n)

    def cache(
        self,
        modules: Any = None,
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | None = None,
        detach: bool = True,
        include_output: bool = True,
        include_inputs: bool = False,
        non_blocking: bool = False,
    ) -> Cache:
        """Keep copies of the values of many modules, from this line on: no line for each.

        Values are those that the model goes on with, after all edits. The cache needs no `save()`.
        In an invoke it holds the rows of that invoke; in the body of a trace that opens invokes,
        those of the whole batch.

        Args:
            modules: which ones: an envoy, a path (`"transformer.h.0"`), a pattern in which `*`
                stands for any text (`"*.mlp"`), or a list of these. All by default.
            device: where the copies are kept; None leaves them where the values are.
            dtype: of the copies of floating point values.
            detach: False keeps the values in their graph, so that gradients can be taken.
            include_output: keep what the modules return.
            include_inputs: keep what they are given.
            non_blocking: copy from a GPU while the model goes on.

        Raises:
            ValueError: `modules` names something that this model does not have.
        """
        if not isinstance(device, torch.device) and device is not None:
            device = torch.device(device)
        keeping = Keeping(device, dtype, detach, non_blocking)
        kinds = (OUTPUT,) * include_output + (INPUT,) * include_inputs
        opening = open_cache(self.model, modules, kinds, keeping)
        worker = here.worker
        if here.outside_invokes:
            self.openings.append(opening)
        elif isinstance(worker, GradientWorker):
            raise no_cache_backward()
        elif worker is None or worker.tree is not self.tree:
            raise errors.nothing_runs("tracer.cache()")
        else:
            opening.begin(worker.run, worker)
        return save(opening.cache)

    def report(self) -> Report:
        """What the blocks did in this run: read, write, skip, in order, with the changes.

        Call it in the block or after it; `print(tracer)` prints it. It is taken down only where
        the code around the `with` calls it by the name after `as`, or with `report=True`.

        Raises:
            ValueError: this run was not taken down.
        """
        if self.reported is not None:
            return self.reported
        if self.journal is None:
            raise no_report()
        journal, over = self.journal, self._ended
        if here.worker is not None:  # what this block did since its last read
            journal.turned(here.worker)
        title = f"run of `{self.model.path}`, {len(journal.blocks)} block(s)"
        return Report(title, tuple(journal.events), journal.stopped, over, journal.error)

    def local(self) -> AbstractContextManager[None]:
        """Mark a part of a block that is to run here: of a block that runs here, any part."""
        return nullcontext()

    def stop(self) -> None:
        """End the run here: the rest of this block and of the forward does not happen.

        What was bound before is kept. Blocks of other invokes that still wait for values end with
        a warning; so does a block with a statement behind the `stop()`.

        Raises:
            ValueError: called outside a block that runs beside the model.
        """
        if here.worker is None or here.outside_invokes:
            raise errors.nothing_runs("tracer.stop()")
        if self.scope is not None:
            warn_of_the_rest(self.scope.block, 1)
        raise errors.Stop

    # --- the owner of `result` --------------------------------------------------------------------

    @property
    def tree(self) -> Any:
        return self.model.tree

    def watch(self, kind: str, run: Interleaver) -> None:
        """Nothing to do: the run offers its result by itself."""

    # --- running ----------------------------------------------------------------------------------

    def _size(self) -> int:
        """How many rows the trace's own input has; 0 without one."""
        return _rows_in(self.model, self.given)

    def take(self, invoke: Invoke) -> None:
        """One more invoke, captured and yet to run."""
        scope = invoke.block_scope
        assert scope is not None and self.scope is not None
        self.invokes.append(invoke)
        if scope.frame is not None and scope.frame.f_code is self.scope.block.code:
            self.inner.append(scope)

    def execute(self) -> Any:
        """Run the blocks beside the model."""
        if self._ended:
            raise NestedTraceError(
                "this trace has run already, and a trace runs once: call `model.trace(...)` again"
            )
        refuse_same_model(self.model)
        known = len(vars(self))
        if size := self._size():
            result = self._run_block(size)
        else:
            self._run_outer_block()
            result = self._run_invokes()
        if len(vars(self)) > known:
            self._warn_misspelt(list(vars(self))[known:])
        return result

    def _warn_misspelt(self, names: list[str]) -> None:
        """Warn of attributes that a block gave the tracer in place of a value of the model."""
        for name in names:
            if near := difflib.get_close_matches(name, [OUTPUT, "inputs", RESULT], n=1):
                traceback.warn(
                    f"`.{name} = ...` on the tracer changed nothing in the model. Did you mean "
                    f"`.{near[0]}`?"
                )

    def _run_block(self, size: int) -> Any:
        scope = self.scope
        assert scope is not None
        workers = []
        if not scope.block.trivial:
            workers = [_worker(scope, scope.function(self, save))]
        args, kwargs = self.model._batch([self.given], self._fn_name())
        return self.run_workers(workers, args, kwargs, size, split=False)

    def _run_outer_block(self) -> None:
        """Run the body that opens the invokes, as the ordinary Python that it is."""
        assert self.scope is not None
        with _outside_invokes():
            self.scope.function(self, save)()

    def _run_invokes(self) -> Any:
        sizes = [_rows_in(self.model, invoke.given) for invoke in self.invokes]
        given = [i.given for i, size in zip(self.invokes, sizes, strict=True) if size]
        if not given:
            raise nothing_to_run()
        rowless = [i.given.kwargs for i, size in zip(self.invokes, sizes, strict=True) if not size]
        args, kwargs = self.model._combined(given, [self.given.kwargs, *rowless], self._fn_name())
        workers = self._workers(sizes)
        return self.run_workers(workers, args, kwargs, sum(sizes), split=len(given) > 1)

    def _workers(self, sizes: list[int]) -> list[Worker]:
        scopes = [invoke.block_scope for invoke in self.invokes if invoke.block_scope is not None]
        names = Names(scopes if CONFIG.APP.CROSS_INVOKER else [])
        workers: list[Worker] = []
        start = 0
        for index, (invoke, size) in enumerate(zip(self.invokes, sizes, strict=True)):
            scope = scopes[index]
            reader = names.reader(index) if CONFIG.APP.CROSS_INVOKER else None
            body = scope.function(invoke, save, reader)
            rows = Rows(start, size) if size else None
            start += size
            worker = _worker(scope, body, rows, invoke.state)
            if reader is not None:
                names.siblings[index].worker = worker
            workers.append(worker)
        return workers

    def _fn_name(self) -> str:
        return self.fn if isinstance(self.fn, str) else "__call__"

    def run_workers(
        self,
        workers: list[Worker],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        total: int,
        split: bool,
    ) -> Any:
        """Run the traced call on a combined input with `workers` beside it."""
        if self.apart is not None:
            return self.apart(workers, args, kwargs, total, split)
        model = self.model
        stored = edits.workers(self) if model._edits() else []
        if self.wants_report():
            self.journal = Journal(["edit"] * len(stored) + [str(n) for n in range(len(workers))])
        workers = [*stored, *workers]
        args, kwargs = self._prepare(args, kwargs)
        call = functools.partial(model._callable(self.fn), *args, **kwargs)
        given = [invoke.given for invoke in self.invokes]
        batch = model._batch_of(total, split, call, given)

        def enter(run: Interleaver) -> None:
            if stored:
                run.at_close(edits.tell_steps, self, run)
            # a function of the user's may call any module any number of times
            model._enter(run, "" if callable(self.fn) else self._fn_name(), call)
            if self.journal is not None:
                self.journal.begin(run)
            for opening in self.openings:
                opening.begin(run, None)

        try:
            return run(model.tree, workers, batch, call, Location(self, RESULT), enter)
        except BaseException as error:
            if self.journal is not None:
                self.journal.error = type(error).__name__
            if (text := errors.advice(error)) is not None:
                traceback.note(error, text)
            raise

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Get the model ready to run, and the input as the model takes it."""
        self.model._before_run()
        return self.model._place((args, kwargs))

    def release(self) -> None:
        super().release()
        self._ended = True
        for invoke in self.invokes:
            invoke.let_go()
        self.invokes, self.openings = [], []
        self.given = Inputs()

    def wants_report(self) -> bool:
        """Whether what happens in the run is to be taken down."""
        return self.reporting or (self.scope is not None and wants_report(self.scope.block))

    # --- as the model -----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in self.__dict__:
            raise AttributeError(name)
        try:
            return getattr(self.model, name)
        except AttributeError as error:
            own = [n for n in dir(type(self)) if not n.startswith("_")]
            if near := difflib.get_close_matches(name, own, n=1):
                traceback.note(error, f"The tracer has `.{near[0]}`.")
            raise

    def __repr__(self) -> str:
        if self.journal is None and self.reported is None:
            return f"<trace of `{self.model.path}`; {no_report()}>"
        return str(self.report())

    def _repr_html_(self) -> str | None:
        kept = self.journal is not None or self.reported is not None
        return self.report()._repr_html_() if kept else None

    output, input, inputs = map(_of_the_model, (OUTPUT, "input", "inputs"))


def _worker(
    scope: Scope,
    body: Callable[[], Any],
    rows: Rows | None = None,
    state: ambient.Ambient | None = None,
) -> Worker:
    block = scope.block
    return Worker(body, rows, block.where, state, scope if block.only_asks else None)


@contextmanager
def _outside_invokes() -> Generator[None]:
    before = here.outside_invokes
    here.outside_invokes = True
    try:
        yield
    finally:
        here.outside_invokes = before


def refuse_same_model(model: Model) -> None:
    """A block cannot run the model that it runs beside.

    Raises:
        ValueError: this line is in a block of the same model.
    """
    worker = here.worker
    if worker is not None and worker.tree is model.tree:
        raise same_model(model.path)


def _rows_in(model: Model, given: Inputs) -> int:
    """How many rows an input has; 0 where there is none.

    Raises:
        ValueError: there is an input, of no rows.
    """
    size = model._batch_size(*given.args, **given.kwargs)
    if not size and given.args:
        raise no_rows()
    return size
