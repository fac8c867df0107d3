"""One model in a process of its own: started, listened to, killed, and started again."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio

from nnsight.remote.wire import PROTOCOL
from nnsight.server import confine, errors
from nnsight.server.engine import Ended, Hearer, Plan, State, Task
from nnsight.server.errors import End
from nnsight.server.files import part_of, place
from nnsight.server.limits import INLINE, Limits
from nnsight.server.messages import (
    Began,
    Broken,
    Check,
    Checked,
    Done,
    Ready,
    Run,
    Say,
    Start,
    ToServer,
    from_worker,
    packed,
)

log = logging.getLogger("nnsight.server")
TRIES = 3
"""Starts in a row that may fail before jobs are told so."""
MERCY = 2.0
"""Seconds that a block has to end by itself when it is interrupted."""
LONGEST_PAUSE = 30.0
"""Seconds between starts that fail."""


class Process:
    """Keeps a process for a model, whatever happens to it, and runs one task at a time in it."""

    def __init__(self, plan: Plan, limits: Limits, output: Path) -> None:
        self.state = State()
        self._plan, self._limits, self._output = plan, limits, output
        self._known = asyncio.Event()  # whether the model is loaded, or known not to load
        self._keeper: asyncio.Task[None] | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._pipe: socket.socket | None = None
        self._hearer: Hearer | None = None  # of the task that runs
        self._begun = False  # whether it has
        self._answer: asyncio.Future[Done | Checked | End] | None = None  # that is waited for
        self._why: End | None = None  # that we ended the task
        self._mercy: asyncio.TimerHandle | None = None  # what kills a block that goes on
        self._killed = False  # the process, by us
        self._user = ""  # the key of the last task
        self._failures = 0  # in a row

    def open(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    # --- tasks -----------------------------------------------------------------------------------

    async def ready(self, key: str) -> bool:
        """As `Engine.ready`. Between users every weight is compared with what was loaded."""
        while True:
            await self._known.wait()
            if self.state.state == "broken":
                return False
            if self._user in ("", key):
                return True
            answer = await self._ask(Check())
            if isinstance(answer, Checked) and answer.changed:
                self._start_over(answer.changed)
            elif isinstance(answer, Checked):
                self._user = key  # and once more: the process may have ended since

    async def run(self, task: Task, hear: Hearer) -> Ended:
        """As `Engine.run`."""
        self.state.job, self._why = task.job, None
        try:
            for _ in range(TRIES):
                loaded = await self.ready(task.key)
                if self._why is not None:  # it was stopped before it began
                    return Ended(end=self._why)
                if not loaded:
                    return Ended(end=errors.cannot_load(task.model, self.state.reason))
                answer = await self._try(task, hear)
                if self._begun or not isinstance(answer, End) or answer.type != "Interrupted":
                    break
                self._why = None
            return await self._ended(task, answer)
        except OSError as error:
            return Ended(end=errors.result_not_written(str(error)))
        finally:
            self.state.job = None

    async def _try(self, task: Task, hear: Hearer) -> Done | End:
        """Hand the task over and wait for its end, or for that of the process."""
        self._user, self._hearer, self._begun = task.key, hear, False
        seconds = self._limits.seconds
        alarm = asyncio.get_running_loop().call_later(seconds, self._end, errors.too_slow(seconds))
        try:
            with task.request.open("rb") as request, part_of(task.result).open("wb") as result:
                self.state.state = "busy"
                files = [request.fileno(), result.fileno()]
                lines = task.format != PROTOCOL  # NDIF's clients end each text that comes
                return await self._ask(Run(task.job, task.format, task.trusted, lines), files)
        finally:
            self._hearer = None
            for timer in (alarm, self._mercy):
                if timer is not None:
                    timer.cancel()
            if self.state.state == "busy":
                self.state.state = "ready"

    async def _ended(self, task: Task, answer: Done | End) -> Ended:
        part, why = part_of(task.result), self._why
        if isinstance(answer, End):
            part.unlink(missing_ok=True)
            return Ended(end=answer)
        if answer.changed:
            self._start_over(answer.changed)
        if why is not None and answer.failure is not None:  # it gave way when it was told to end
            part.unlink(missing_ok=True)
            return Ended(seconds=answer.seconds, memory=answer.memory, end=why)
        if answer.size is None or part.stat().st_size != answer.size:
            part.unlink(missing_ok=True)
        elif answer.size <= INLINE:
            part.rename(task.result)  # it stands in the log as well, which is synced
        else:
            await asyncio.to_thread(place, part, task.result)
        return Ended(answer.size, answer.failure, answer.seconds, answer.memory)

    def stop(self, job: str, why: End) -> None:
        """As `Engine.stop`."""
        if self.state.job == job:
            self._end(why)

    def _end(self, why: End) -> None:
        """Interrupt the task as Ctrl-C would, so that the model need not be loaded again; a block
        that goes on is killed with its process."""
        if self._why is None:
            self._why = why
        if self.state.state == "busy" and self._child is not None:
            self._child.send_signal(signal.SIGINT)
            self._mercy = asyncio.get_running_loop().call_later(MERCY, self._kill, why)

    async def _ask(self, message: Run | Check, files: list[int] | None = None) -> Any:
        """Send a message and wait for its answer; an `End` if the process ends before."""
        assert self._answer is None and self._pipe is not None, "one question at a time"
        self._answer = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._pipe, [packed(message)], files or [])
        except OSError:
            pass  # it has ended, which its reader will notice
        try:
            return await self._answer
        finally:
            self._answer = None

    # --- the process -----------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Keep a process alive until cancelled."""
        while True:
            self._set("loading")
            self.state.starts += 1
            reason = await self._live()
            if reason is not None:
                self._failures += 1
                log.error("%s: %s", self._plan.model, reason)
            if self._failures >= TRIES:
                self._set("broken", reason or "its process ends again and again")
            if self._failures:
                await asyncio.sleep(min(2.0 ** (self._failures - 1), LONGEST_PAUSE))

    async def _live(self) -> str | None:
        """One process from its start to its end; what went wrong, if it did not end in a task."""
        empty = Path(tempfile.mkdtemp(prefix="nnsight-"))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._pipe, self._user, self._killed = ours, "", False
        try:
            reader, writer = await asyncio.open_connection(sock=ours.dup())
            with theirs, self._output.open("wb") as output:
                self._child = await asyncio.create_subprocess_exec(
                    *(sys.executable, *self._plan.command, str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=empty,
                    env=confine.clean_environment(empty),
                    start_new_session=True,
                )
            writer.write(packed(self._start()))
            try:
                return await self._listen(reader)
            finally:
                writer.close()
        except OSError as error:
            return f"its process cannot be started: {error}"
        finally:
            await self._bury()
            ours.close()
            shutil.rmtree(empty, ignore_errors=True)

    async def _listen(self, reader: asyncio.StreamReader) -> str | None:
        """Take what the process says until it ends; what was wrong with it."""
        silence = self._limits.silence
        while True:
            try:
                with anyio.fail_after(silence):
                    message = await from_worker(reader)
            except TimeoutError:
                silent = errors.worker_silent(silence)
                self._why = self._why or silent
                return None if self._answer else silent.text
            except (EOFError, OSError, ValueError) as error:
                if self._answer is None and not self._killed:
                    return self._last_words(f"its process ended unasked ({error or 'EOF'})")
                return None
            if isinstance(message, Broken):
                return message.text
            self._take(message)

    def _take(self, message: ToServer) -> None:
        if isinstance(message, Ready):
            self.state.facts = message.facts
            self._set("ready")
            log.info("%s is ready", self._plan.model)
        elif isinstance(message, Began) and self._hearer is not None:
            self._begun = True
            self._hearer.began()
        elif isinstance(message, Say) and self._hearer is not None:
            self._hearer.said(message.text, message.end)
        elif isinstance(message, (Done, Checked)):
            self._failures = 0
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(message)

    async def _bury(self) -> None:
        """Make sure that the process and its children are gone, and say so to who waits."""
        child, self._child, self._pipe = self._child, None, None
        how = "could not be started"
        if self.state.state != "broken":
            self._set("loading")
        if child is not None:
            code = child.returncode
            _kill_group(child.pid)
            ended = await child.wait()
            how = _how(ended if code is None else code)
        if self._answer is not None and not self._answer.done():
            self._failures = 0
            self._answer.set_result(self._why or errors.worker_died(how))

    def _kill(self, why: End) -> None:
        self._why, self._killed = self._why or why, True
        self._set("loading")
        if self._child is not None:
            _kill_group(self._child.pid)

    def _start_over(self, changed: list[str]) -> None:
        log.warning("%s was changed by a job (%s): loading it again", self._plan.model, changed[0])
        self._kill(End("Interrupted", "the model is loaded again"))

    def _set(self, state: str, reason: str = "") -> None:
        self.state.state, self.state.reason = state, reason
        if state == "loading":
            self._known.clear()
        else:
            self._known.set()

    def _start(self) -> Start:
        limits = self._limits
        secrets = {name: os.environ[name] for name in confine.SECRETS if name in os.environ}
        return Start(
            model=self._plan.model,
            options=self._plan.options,
            load=self._plan.load,
            secrets=secrets,
            result=limits.result,
            prints=limits.prints,
            print_bytes=limits.print_bytes,
            memory=limits.memory,
        )

    def _last_words(self, otherwise: str) -> str:
        """The last line that the process wrote."""
        lines = self._output.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
        return f"{otherwise}: {lines[-1]}" if lines else otherwise


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _how(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"was killed by {name}"
    return f"ended with code {code}"
