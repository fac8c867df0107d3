"""One server: its jobs from the moment that they are whole on the disk to their one end."""

from __future__ import annotations

import asyncio
import base64
import functools
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnsight.remote.messages import COMPLETED, ENDS, ERROR, LOG, QUEUED, RUNNING
from nnsight.server import errors, keys
from nnsight.server.engine import Ended, Engine, Hearer, Task
from nnsight.server.errors import End
from nnsight.server.events import DEPLOYING, DISPATCHED, STARTED
from nnsight.server.fair import FairQueue
from nnsight.server.files import Folder
from nnsight.server.limits import INLINE, Limits
from nnsight.server.naming import Served, find
from nnsight.server.store import Job, Store

log = logging.getLogger("nnsight.server")
RECEIVED_TEXT = "Your job has been received and is waiting to be queued."
PAUSE = 1.0
"""Seconds between tries to write to a full disk."""
SWEEP = 60.0
"""Seconds between looks for jobs that are past their time."""


class Serving:
    """The jobs of one server. All of it runs on one event loop."""

    def __init__(
        self,
        folder: Folder,
        store: Store,
        engine: Engine,
        served: list[Served],
        limits: Limits,
        public: bool = False,
    ) -> None:
        self.folder, self.store, self.engine = folder, store, engine
        self.served, self.limits = served, limits
        self.queues = {one.name: FairQueue() for one in served}
        self.began = time.time()
        self._needs_key = public  # whether others than this machine reach it
        self.closing = False
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._jobs: dict[str, Job] = {}  # that have not ended
        self._arrived = {one.name: asyncio.Event() for one in served}
        self._positions: dict[str, int] = {}  # as last told to who waits
        self._telling: set[str] = set()  # models whose queue is about to be told
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- life ------------------------------------------------------------------------------------

    def open(self) -> None:
        """End what a dead server left running, queue what it left waiting, and begin."""
        end = errors.interrupted_by_restart()
        ended = self.store.end_started(STARTED, end.text, {"error": end.failure})
        for job in ended:
            self.folder.drop(job)
        for job in self.store.open_jobs():
            self._jobs[job.id] = job
            path = self.folder.request(job.id)
            if job.model not in self.queues:
                self.end(job.id, errors.not_served(job.model))
            elif not path.exists() or path.stat().st_size != job.size:
                self.end(job.id, errors.request_lost())
            else:
                self._enqueue(job)
        self.folder.sweep(self.store.all_ids(), set(self._jobs))
        self.engine.open()
        for one in self.served:
            self._start(self._work(one.name))
        self._start(self._sweep())

    def leave(self) -> None:
        """Take no more jobs, and end the streams: their readers come back to the next server."""
        self.closing = True
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    async def close(self) -> None:
        """Stop: what runs ends as interrupted, what waits is there at the next start."""
        self.leave()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in list(self._jobs):
            if (found := self.store.job(job)) is not None and found.status in STARTED:
                self.end(job, errors.interrupted_by_restart())
        await self.engine.close()

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the log of a job ------------------------------------------------------------------------

    def note(
        self, job: str, status: str, description: str, data: Any = None, meta: Any = None
    ) -> bool:
        """Write an event and wake who reads. False: the job has ended."""
        added = self.store.append(job, status, description, data, meta)
        self._ring(job)
        return added

    def end(self, job: str, end: End) -> bool:
        """End a job with an ERROR of the server's."""
        return self._ended(job, ERROR, end.text, None, {"error": end.failure})

    def _ended(self, job: str, status: str, description: str, data: Any, meta: Any) -> bool:
        added = self.note(job, status, description, data, meta)
        self._jobs.pop(job, None)
        self._positions.pop(job, None)
        self.folder.request(job).unlink(missing_ok=True)
        return added

    @contextmanager
    def listen(self, name: str) -> Iterator[asyncio.Event]:
        """An event that is set when the log of this job, or of this session, grows."""
        bell = asyncio.Event()
        self._bells.setdefault(name, set()).add(bell)
        try:
            yield bell
        finally:
            self._bells[name].discard(bell)
            if not self._bells[name]:
                del self._bells[name]

    def _ring(self, job: str) -> None:
        session = self._jobs[job].session if job in self._jobs else ""
        for name in (job, session):
            for bell in self._bells.get(name, ()):
                bell.set()

    # --- what clients do -------------------------------------------------------------------------

    def needs_key(self) -> bool:
        """Whether who asks must have a key: once it is so, it stays so, if all keys are removed."""
        self._needs_key = self._needs_key or keys.are_needed(self.store)
        return self._needs_key

    def find(self, key: str) -> Served:
        """The model that a client names; raises `Refused` if there is none."""
        known = [self.engine.state(one.name).facts.get("model_key") for one in self.served]
        return find(key, list(zip(self.served, known, strict=True)))

    def admit(self, key: str, model: str) -> None:
        """Raise `Refused` unless one more job of this key may come for this model."""
        if self.closing:
            raise errors.closing()
        state = self.engine.state(model)
        if state.state == "broken":
            raise errors.not_loading(model, state.reason)
        if self.store.open_count(key) >= self.limits.jobs_per_key:
            raise errors.too_many_jobs(self.limits.jobs_per_key)
        if len(self.queues[model]) >= self.limits.queue:
            raise errors.queue_full(model, self.limits.queue)

    def submit(self, job: Job) -> Job:
        """Take a job whose request is on the disk; the earlier one if it was sent before."""
        self.admit(job.key, job.model)
        position = len(self.queues[job.model]) + 1
        if not self.store.add(job, RECEIVED_TEXT, f"Added to queue at position {position}."):
            assert job.token is not None, "ids are drawn at random"
            earlier = self.store.sent_as(job.key, job.token)
            assert earlier is not None
            return earlier
        self._jobs[job.id] = job
        self._ring(job.id)
        self._enqueue(job)
        return job

    def cancel(self, job: Job) -> bool:
        """End a job now; False if it has ended already."""
        self.queues[job.model].remove(job.id) if job.model in self.queues else None
        ended = self.end(job.id, errors.cancelled())
        self.engine.stop(job.id, errors.cancelled())
        return ended

    def _enqueue(self, job: Job) -> None:
        self.queues[job.model].add(job.key, job.id)
        self._positions[job.id] = len(self.queues[job.model])
        self._arrived[job.model].set()

    # --- running ---------------------------------------------------------------------------------

    async def _work(self, model: str) -> None:
        """Run the jobs of a model, one after the other, for as long as the server lives."""
        while True:
            try:
                await self._next(model)
            except (sqlite3.Error, OSError) as error:  # the disk is full: nothing can be noted
                log.error("cannot write to %s: %s", self.folder.path, error)
                await asyncio.sleep(PAUSE)
            except Exception:
                log.exception("a fault of the server")
                await asyncio.sleep(PAUSE)

    async def _next(self, model: str) -> None:
        queue = self.queues[model]
        if not len(queue):
            self._arrived[model].clear()
            await self._arrived[model].wait()
        self._say_loading(model)
        key = queue.next_key()
        if key is None:
            return
        if not await self.engine.ready(model, key):
            self._give_up(model)
        elif queue.next_key() == key:
            job = queue.take()
            self._tell_soon(model)
            await self._run(job)

    async def _run(self, id: str) -> None:
        job = self._jobs.get(id)
        if job is None or not await self._written(id, DISPATCHED, "Your job goes to the model."):
            return
        self._positions.pop(id, None)
        task = Task(
            *(id, job.model, job.key, job.format),
            *(self.folder.request(id), self.folder.result(id)),
            keys.is_trusted(self.store, job.key),
        )
        began = functools.partial(self._try_note, id, RUNNING, "Your job is running.")
        hear = Hearer(began, functools.partial(self._said, id))
        try:
            ended = await self.engine.run(task, hear)
        except Exception:
            log.exception("a fault of the server, at job %s", id)
            ended = Ended(end=errors.fault())
        await self._finish(id, ended)

    def _said(self, job: str, text: str, end: str) -> None:
        self._try_note(job, LOG, text, None if end == "\n" else {"end": end})

    def _try_note(self, job: str, status: str, description: str, meta: Any = None) -> None:
        """Write an event that may be lost when the disk is full."""
        try:
            self.note(job, status, description, meta=meta)
        except sqlite3.Error as error:
            log.error("%s of job %s is lost (%s): %s", status, job, error, description)

    async def _finish(self, job: str, ended: Ended) -> None:
        meta: dict[str, Any] = {"runtime": ended.seconds, "max_memory_usage": ended.memory}
        data = None
        if ended.size is not None:
            data = {"size": ended.size, "url": f"/result/{job}"}
            if ended.size <= INLINE:
                data["inline"] = base64.b64encode(self.folder.result(job).read_bytes()).decode()
        if ended.end is not None:
            description, meta["error"] = ended.end.text, ended.end.failure
        elif ended.failure is not None:
            description, meta["error"] = ended.failure.as_text(), ended.failure
        else:
            await self._written(job, COMPLETED, "Your job has been completed.", data, meta)
            return
        await self._written(job, ERROR, description, data, meta)

    async def _written(
        self, job: str, status: str, description: str, data: Any = None, meta: Any = None
    ) -> bool:
        """Write an event that must not be lost, however long the disk is full."""
        write = self._ended if status in ENDS else self.note
        while True:
            try:
                return write(job, status, description, data, meta)
            except sqlite3.Error as error:
                log.error("cannot write to %s: %s", self.folder.path, error)
                await asyncio.sleep(PAUSE)

    def _say_loading(self, model: str) -> None:
        """Tell the next job that it waits for the model."""
        job = next(iter(self.queues[model]), None)
        if job is not None and self.engine.state(model).state == "loading":
            latest = self.store.latest(job)
            if latest is not None and latest.status != DEPLOYING:
                self.note(job, DEPLOYING, f"{model} is being loaded.")

    def _give_up(self, model: str) -> None:
        """End what waits for a model that cannot be loaded."""
        for job in list(self.queues[model]):
            self.queues[model].remove(job)
            self.end(job, errors.cannot_load(model, self.engine.state(model).reason))

    def _tell_soon(self, model: str) -> None:
        """Tell those who wait where they are, once for many jobs that take milliseconds."""
        if model not in self._telling and len(self.queues[model]):
            self._telling.add(model)
            asyncio.get_running_loop().call_later(0.2, self._tell_positions, model)

    def _tell_positions(self, model: str) -> None:
        self._telling.discard(model)
        if self.closing:
            return
        moved = []
        for position, job in enumerate(self.queues[model], 1):
            if self._positions.get(job) != position:
                self._positions[job] = position
                moved.append((job, QUEUED, f"Moved to position {position} in queue."))
        try:
            self.store.append_all(moved)
        except sqlite3.Error as error:
            log.error("cannot write to %s: %s", self.folder.path, error)
        for job, _, _ in moved:
            self._ring(job)

    async def _sweep(self) -> None:
        """Forget what has ended long ago."""
        while True:
            try:
                for job in self.store.forget(time.time() - self.limits.ttl):
                    self.folder.drop(job)
            except (sqlite3.Error, OSError) as error:
                log.error("cannot tidy %s: %s", self.folder.path, error)
            await asyncio.sleep(SWEEP)
