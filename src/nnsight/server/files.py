"""The folder of a server: its database, requests, results, logs, and the lock that is its own.

A file is written under a name of its own, synced, and renamed when it is whole: a request is on the
disk before its sender hears of a job, and a result before the log says that there is one. (One that
is so small that it stands in the log is on the disk with it.)
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from pathlib import Path

from nnsight.server import errors

WAIT = 2.0
"""Seconds in which a server that was just killed gives up its folder: a process that it was about
to start has it until that begins."""


class Folder:
    """Where one server keeps what it must not lose. Only its user can read it.

    Raises:
        FolderInUse: another server has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for part in (path, path / "requests", path / "results", path / "logs"):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
        self._lock: int | None = None

    @property
    def database(self) -> Path:
        return self.path / "server.db"

    def take(self) -> None:
        """Make it this process's own until it ends."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                os.close(lock)
                raise errors.folder_in_use(self.path) from None
            self._lock = lock
            return

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def request(self, job: str) -> Path:
        return self.path / "requests" / job

    def result(self, job: str) -> Path:
        return self.path / "results" / job

    def log(self, model: str) -> Path:
        """What the worker of a model writes to its standard output and error."""
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in model)
        return self.path / "logs" / f"{safe}.log"

    def secret(self) -> bytes:
        """What the links to results are signed with."""
        path = self.path / "secret"
        if not path.exists():
            part = part_of(path)
            part.touch(mode=0o600)
            part.write_bytes(secrets.token_bytes(32))
            part.rename(path)
        return path.read_bytes()

    def drop(self, job: str) -> None:
        """Delete the files of a job."""
        for path in (self.request(job), self.result(job), part_of(self.result(job))):
            path.unlink(missing_ok=True)

    def sweep(self, jobs: set[str], open_jobs: set[str]) -> None:
        """Delete what a dead server left behind: requests that nobody will run, results of no job,
        and files that are not whole."""
        for kind, wanted in (("requests", open_jobs), ("results", jobs)):
            for path in (self.path / kind).iterdir():
                if path.name not in wanted:
                    path.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(path.name + ".part")


def place(part: Path, path: Path) -> None:
    """Give a file that is whole its name, when its bytes are on the disk; and the name too.

    Raises:
        OSError: the disk is full or broken, which it may say only now.
    """
    _sync(part, os.O_RDONLY)
    part.rename(path)
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
