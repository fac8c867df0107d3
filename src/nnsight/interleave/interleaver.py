"""`Interleaver`: who waits for what, while a model runs.

The model's side offers a value at a location; every worker parked there is answered, in the order
in which the blocks were written, until none is left; the value, with what they did to it, goes
back into the model. An `Interleaver` lives for one run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch

from nnsight.capture import saving
from nnsight.interleave import ambient, errors
from nnsight.interleave.ahead import asks_here
from nnsight.interleave.batching import Batch
from nnsight.interleave.checkpoint import Script, fingerprint, region_at
from nnsight.interleave.cuts import Cut
from nnsight.interleave.due import Due, Dues
from nnsight.interleave.journal import Journal
from nnsight.interleave.location import Location, Passage
from nnsight.interleave.request import READ, WAIT, WRITE, Request
from nnsight.interleave.rows import Rows
from nnsight.interleave.visit import Visit
from nnsight.interleave.worker import Worker

Observer = Callable[[Location, Any], None]


class Interleaver:
    """One run: its workers, the batch they share, and how often each location was visited."""

    def __init__(
        self, tree: Any, workers: list[Worker], batch: Batch, result: Location | None = None
    ) -> None:
        self.tree = tree
        self.result = result  # where the value that the call returns is offered
        self.workers = workers
        self.sources = any(worker.sources for worker in workers)  # asks for operations, perhaps
        self.batch = batch
        self.copies = 1  # how many rows the model makes of each: its beams
        # places between the steps of a run, which keep their last value: its visit, and it
        self.between: dict[Location, tuple[int, Any]] = {}
        self.visits: dict[Location, int] = {}
        # rows whose blocks skip what is running: it runs for the others, and is nothing to them
        self.away: list[Rows] = []
        self._unseen: dict[Location, set[Rows]] = {}  # those that were away at every visit
        self.outcome: Any = None  # what the call returned, with what blocks did to it
        self.last: Location | None = None  # the last location where somebody was answered
        self.written: list[Location] = []
        self.failure: tuple[BaseException, TracebackType | None] | None = None  # a block's error
        self.stopping = False
        self.returned = False  # the call has: no further step begins
        self.over = False
        self.completed = False  # the call came to its end and every block to its own
        self.typical = True  # no block skipped a module or called one as part of the run
        self.passage: Passage | None = None  # what the run has passed, as the model tells it
        self.touched: set[int] = set()  # modules that PyTorch looks at because of this run, by id
        self.offered: set[tuple[int, str]] = set()  # modules by id, and kinds, that are offered
        # how long the rows of the input are, and of each how much comes before its first token
        self.padding: tuple[int, list[int]] | None = None
        self.journal: Journal | None = None  # for a run whose report is asked for
        self.observers: list[Observer] = []  # see each value as the model goes on with it
        self.grad = torch.is_grad_enabled()
        self.replay: Callable[[Batch, Script], Interleaver] | None = None
        self.thread = threading.get_ident()
        self.threads = {self.thread}  # whose module calls belong to this run
        self._undo: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._visit: Visit | None = None
        self._cuts: list[Cut] = []  # tensors of which a block replaced its rows
        self._watched: set[Location] = set()
        self._dues = Dues()

    # --- the model's side -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers one after the other, each until it parks or ends."""
        if not self.workers:
            return
        state = ambient.current()
        for worker in self.workers:
            if worker.state in (None, state) and asks_here(worker, self):
                continue
            self._turn(worker, partial(worker.start, self, worker.state or state))
            if self.stopping:
                break
        while self._release():
            pass

    def offer(self, location: Location, value: Any) -> Any:
        """The run is at `location`: answer whoever waits there. Returns the value to go on with."""
        visit = self._visit_at(location, value)
        return visit.value

    def gate(self, location: Location, inputs: Any) -> dict[Rows | None, Any]:
        """The run is about to run a module: what blocks want as its output instead."""
        return self._visit_at(location, inputs).skips

    def refuse(self, location: Location, error: BaseException) -> None:
        """Raise `error` in every worker that waits for `location`: it cannot be had."""
        for worker in self.workers:
            if worker.request is not None and worker.request.location == location:
                self._turn(worker, partial(worker.refuse, error))
        if self.stopping:
            raise errors.Stop

    def _visit_at(self, location: Location, value: Any) -> Visit:
        passed = number = self.visits.get(location, 0)
        if self.passage is not None:  # a module that some step left out is counted as if it had run
            number = max(number, self.passage.step())
        region = region_at(self, self.grad)
        visit = Visit(location, number, not passed, value, self.batch, self._cuts, region)
        before = [] if region is None else fingerprint(value)
        outer, self._visit = self._visit, visit
        if self.passage is not None and threading.get_ident() == self.thread:
            self.passage.at(location, number)
        try:
            while self._answer_all(visit) or self._release():
                pass
            if visit.pieces is not None:
                visit.pieces.bridge()
            if region is not None:
                changed = bool(visit.skips) or fingerprint(visit.value) != before
                region.visit(location, changed, visit.value, visit.skips)
        finally:
            self._visit = outer
            self.visits[location] = number + 1
            if self.away or self._unseen:
                away = set(self.away)
                earlier = self._unseen.get(location, set()) if passed else away
                self._unseen[location] = away & earlier
        for observe in self.observers:
            observe(location, visit.value)
        if self.stopping:
            raise errors.Stop
        return visit

    def _answer_all(self, visit: Visit) -> bool:
        """Answer every worker parked at this visit; whether there was one."""
        found = False
        due = self._dues.at(visit.location)
        for worker in self.workers:
            if self._is_away(worker):
                continue
            if due:
                found |= self._fill(worker, visit)
            while (request := worker.request) is not None and visit.is_for(request):
                found = True
                self.last = visit.location
                self._answer(worker, request, visit)
        return found

    def _fill(self, worker: Worker, visit: Visit) -> bool:
        """Give a worker what it has gone on without, as far as it is here.

        Returns:
            Whether that was what it was waiting for, so that it had a turn.
        """
        dues = self._dues.take(worker, visit)
        if not dues:
            return False
        self.last = visit.location
        for due in dues:
            try:
                due.fill(visit.act(worker, due.request))
            except Exception as error:
                due.fail(error)
            if due.error is not None and worker.ended:
                self._fail_at(due, due.error)
        if visit.pieces is not None:
            visit.value = visit.pieces.with_leaves(visit.value)
        request = worker.request
        waited = request is not None and request.ready is not None and request.ready()
        if waited:
            self._turn(worker, worker.resume)  # now, before blocks that were written after it
        return waited

    def _fail_at(self, due: Due, error: BaseException) -> None:
        """Raise an error of a block that has ended, at the line that asked."""
        try:
            due.raise_there(error)
        except BaseException as raised:
            self.failure = (raised, raised.__traceback__)
            raise
        finally:
            del error

    def _is_away(self, worker: Worker) -> bool:
        """Whether `worker` skips what is running: the value at hand is none of its own."""
        return bool(self.away) and worker.rows in self.away

    def _never_met(self, worker: Worker, location: Location) -> bool:
        """Whether the run came by `location` for other rows only than those of `worker`."""
        return worker.rows in self._unseen.get(location, ())

    def _answer(self, worker: Worker, request: Request, visit: Visit) -> None:
        try:
            answer = self._serve(worker, request, visit)
        except Exception as error:  # a replacement that does not fit: raised at the block's line
            self._turn(worker, partial(worker.refuse, error))
        else:
            self._turn(worker, partial(worker.resume, answer))

    def _serve(self, worker: Worker, request: Request, visit: Visit) -> Any:
        """Do what a request asks for, at the visit it asks for."""
        before = visit.value
        answer = visit.act(worker, request)
        if request.action == WRITE:
            self.written.append(visit.location)
        if self.journal is not None:
            self.journal.served(worker, request, visit.number, before, answer)
        return answer

    def _turn(self, worker: Worker, give: Callable[[], None]) -> None:
        """Give a worker its turn, and take note of how it ended."""
        self._cuts[:] = [cut for cut in self._cuts if not cut.over]
        cuts = [(cut, cut.versions()) for cut in self._cuts]
        saves = saving.saves.get() if self.batch.split else None
        before = saves.versions() if saves else {}
        if self.journal is not None:
            self.journal.turning(worker)
        give()
        if self.journal is not None:
            self.journal.turned(worker)
        if saves is not None and before:  # rows of one tensor count their changes together
            saves.tolerate(before, worker.author)
        self.batch.gathered.settle()
        for cut, versions in cuts:
            cut.mend(worker.rows, versions)
        if worker.error is not None:
            error, worker.error = worker.error, None
            if self.over and worker.unmet and isinstance(error, errors.MissedProviderError):
                worker.unmet(error)
                return
            self.failure = (error, error.__traceback__)
            try:
                raise error
            finally:
                del error
        if worker.stopped:
            self.stopping = True
        visit = self._visit
        if visit is not None and visit.handed:
            try:
                visit.take_changes(worker)
            except errors.BatchError as error:
                if not worker.alive:
                    raise
                self._turn(worker, partial(worker.refuse, error))
        if visit is not None and visit.pieces is not None:
            visit.value = visit.pieces.with_leaves(visit.value)

    def release(self) -> None:
        """Let workers go on that waited for something else than a value, if that has come."""
        while self._release():
            pass
        if self.stopping:
            raise errors.Stop

    def end_steps(self) -> None:
        """The call has returned: loops over steps end, and what follows them goes on."""
        self.returned = True
        self.release()

    def _release(self) -> bool:
        """Let workers go on that waited for another block; whether there was one."""
        found = False
        for worker in self.workers:
            request = worker.request
            if request is not None and request.ready is not None and request.ready():
                found = True
                self._turn(worker, worker.resume)
        return found

    def finish(self) -> None:
        """The call is over: whoever still waits is told so, where it waits."""
        self.over = True
        if self.failure is not None:  # the model's own code caught a block's error on its way
            raise self.failure[0]
        while (waiting := self._next_waiting()) is not None:
            worker, request = waiting
            self._turn(worker, partial(worker.refuse, self.missed(worker, request)))
            while self._release():
                pass
        for due in self._dues:
            self._fail_at(due, self.missed(due.worker, due.request))
        self.completed = True

    def _next_waiting(self) -> tuple[Worker, Request] | None:
        """The first that waits for the model; else the first that waits for another block."""
        waiting = [(w, w.request) for w in self.workers if w.request is not None]
        return min(waiting, key=lambda pair: pair[1].action == WAIT, default=None)

    def missed(self, worker: Worker, request: Request) -> BaseException:
        if request.missed is not None:
            return request.missed()
        location = request.location
        assert location is not None
        if self._never_met(worker, location):
            return errors.never(location)
        visits = self.visits.get(location, 0)
        if request.pinned and (request.visit or visits):
            return errors.beyond(location, request.visit, visits)
        story = self.passage.story(location) if self.passage is not None else ""
        if story == "passed":
            return errors.passed(location, self.last)
        if story == "unreached":
            return errors.unreached(location, self.last)
        return errors.never(location) if story == "never" else errors.missed(location, self.last)

    def cancel(self) -> list[Worker]:
        """End every worker that is still parked, so that its `finally` clauses run.

        Returns:
            The workers that were still waiting for a value, or had yet to begin.
        """
        self.over = True
        short = self._dues.drop()
        cut = [w for w in self.workers if w.alive or not w.begun or w in short]
        for worker in cut:
            while worker.alive:
                try:
                    worker.refuse(errors.Cancelled())
                except BaseException:  # a Ctrl-C: do not wait for this block's `finally`
                    worker.give_up()
            worker.error = None
        return cut

    def blame(self, error: BaseException) -> None:
        """Give a block's error the traceback it had in the block, without the model's frames."""
        if self.failure is not None and error is self.failure[0]:
            error.__traceback__ = self.failure[1]

    def close(self) -> None:
        """Take everything off the model, and let go of what the run held."""
        trouble: BaseException | None = None
        while self._undo or any(worker.alive for worker in self.workers):
            try:
                self.cancel()
                while self._undo:
                    undo, args = self._undo[-1]
                    undo(*args)
                    self._undo.pop()
            except KeyboardInterrupt as error:  # first everything is taken off
                trouble = error
            except Exception as error:  # one that fails must not keep the others
                self._undo.pop()
                trouble = error
        self._let_go()
        if trouble is not None:
            raise trouble

    def _let_go(self) -> None:
        self._watched.clear()
        self._cuts.clear()
        self._dues.clear()
        self.observers.clear()
        self.between.clear()
        self.threads.clear()  # a hook that outlives the run, in a copy of the model, does nothing
        self.workers = []
        self._visit = self.tree = self.failure = self.passage = self.result = None
        self.journal = self.outcome = None

    def at_close(self, undo: Callable[..., Any], *args: Any) -> None:
        """Call `undo(*args)` when the run is over."""
        self._undo.append((undo, args))

    @property
    def at(self) -> Location | None:
        """Where the run is, while blocks are answered there."""
        return None if self._visit is None else self._visit.location

    @property
    def lone(self) -> bool:
        """Whether there is one block only."""
        return len(self.workers) == 1

    @property
    def told(self) -> bool:
        """Whether it is taken down who asks for what, and when."""
        return self.journal is not None

    def holds(self) -> bool:
        """Whether a module call on this thread belongs to this run."""
        return threading.get_ident() in self.threads

    # --- the worker's side, in its turn -----------------------------------------------------------

    def expect(self, worker: Worker, request: Request) -> tuple[bool, Any]:
        """Take in what a worker is about to park for.

        Returns:
            Whether the answer is at hand already, and the answer.

        Raises:
            OutsideTraceError: the location belongs to another model.
            OutOfOrderError: the run has passed it.
        """
        location = request.location
        if self.journal is not None:
            self.journal.asked(worker, request)
        if location is None:
            return False, None
        if location.owner.tree is not self.tree:
            raise errors.other_tree(location, self.tree)
        visit = self._visit
        if visit is not None and visit.is_for(request) and not self._is_away(worker):
            if visit.state is not None and visit.state != ambient.brief():
                return False, None  # cut and join rows as the model would, not as this block
            return True, self._serve(worker, request, visit)
        if not self.over:
            self.watch(location)
        if self.returned and visit is None and not self.over and location != self.result:
            raise errors.looped(location)
        if self.visits.get(location, 0) > request.visit and not self._never_met(worker, location):
            number, value = self.between.get(location, (-1, None))
            if number == request.visit:
                return True, self.batch.narrow(value, worker.rows, location)
            if self.over and location == self.result and request.action == READ:
                return True, self.batch.narrow(self.outcome, worker.rows, location)
            if self.over:
                raise errors.ended(location)
            raise self._passed(worker, request, location)
        return False, None

    def expect_ahead(self, due: Due) -> tuple[bool, Any]:
        """The same for what a worker goes on without."""
        answered, answer = self.expect(due.worker, due.request)
        if not answered:
            self._dues.add(due)
        return answered, answer

    def take_back(self, worker: Worker) -> None:
        """`worker` has asked for nothing after all."""
        self._dues.take_back(worker)

    def comes_by(self, location: Location) -> int:
        """How often the run has come by `location`, with the visit that it is at."""
        visit = self._visit
        if visit is not None and visit.location == location:
            return visit.number + 1
        return self.visits.get(location, 0)

    def watches(self, location: Location) -> bool:
        """Whether somebody has asked for values at `location`."""
        return location in self._watched

    def _passed(self, worker: Worker, request: Request, location: Location) -> BaseException:
        if not request.pinned:
            return errors.passed(location, self.last, worker.waited, line=worker.line)
        often = self.passage is not None and self.passage.runs_often(location)
        return errors.passed(location, self.last, worker.waited, request.visit, often, worker.line)

    def watch(self, location: Location) -> None:
        """See that the run offers the value at `location` when it comes by."""
        if location not in self._watched:
            if self.passage is not None and (before := self.passage.before(location)):
                self.visits.setdefault(location, before)
            location.owner.watch(location.kind, self)
            self._watched.add(location)
