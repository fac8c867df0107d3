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

from nnsight.server import confine, errors
from nnsight.server.engine import Ended, Hearer, Plan, State, Task
from nnsight.server.errors import End
from nnsight.server.files import part_of
from nnsight.server.limits import Limits
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
        self._why: End | None = None  # of a kill of ours
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
            if isinstance(answer, Checked) and not answer.changed:
                self._user = key
                return True
            if isinstance(answer, Checked):
                self._start_over(answer.changed)

    async def run(self, task: Task, hear: Hearer) -> Ended:
        """As `Engine.run`."""
        for _ in range(TRIES):
            if not await self.ready(task.key):
                return Ended(end=errors.cannot_load(task.model, self.state.reason))
            try:
                answer = await self._try(task, hear)
            except OSError as error:
                return Ended(end=errors.result_not_written(str(error)))
            if self._begun or not isinstance(answer, End) or answer.type != "Interrupted":
                break
        return self._ended(task, answer)

    async def _try(self, task: Task, hear: Hearer) -> Any:
        self._user, self._hearer, self._begun = task.key, hear, False
        self.state.state, self.state.job = "busy", task.job
        part = part_of(task.result)
        try:
            with task.request.open("rb") as request, part.open("wb") as result:
                files = [request.fileno(), result.fileno()]
                return await self._within_the_limit(self._ask(Run(task.job, task.format), files))
        finally:
            self._hearer, self.state.job = None, None
            if self.state.state == "busy":
                self.state.state = "ready"

    async def _within_the_limit(self, asking: Any) -> Any:
        seconds = self._limits.seconds
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(seconds, self._kill, errors.too_slow(seconds))
        try:
            return await asking
        finally:
            alarm.cancel()

    def _ended(self, task: Task, answer: Done | Checked | End) -> Ended:
        part = part_of(task.result)
        if not isinstance(answer, Done):
            part.unlink(missing_ok=True)
            assert isinstance(answer, End)
            return Ended(end=answer)
        if answer.changed:
            self._start_over(answer.changed)
        if answer.size is None or part.stat().st_size != answer.size:
            part.unlink(missing_ok=True)
        else:
            part.rename(task.result)
        return Ended(answer.size, answer.failure, answer.seconds, answer.memory)

    def stop(self, job: str, why: End) -> None:
        """As `Engine.stop`."""
        if self.state.job == job:
            self._kill(why)

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
        self._why, self._pipe, self._user = None, ours, ""
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
                message = await asyncio.wait_for(from_worker(reader), silence)
            except asyncio.TimeoutError:
                self._why = self._why or errors.worker_silent(silence)
                return None if self._answer else self._why.text
            except (EOFError, OSError, ValueError) as error:
                if self._answer is None and self._why is None:
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
            self._hearer.said(message.text)
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
        self._why = self._why or why
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
