"""The folder of a server: its database, requests, results, logs, and the lock that is its own.

A file is written under a name of its own and renamed when it is whole. It is synced beside the job,
not before it: killing processes loses nothing either way, and a power cut in these milliseconds is
found by the size in the database.
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

    def sweep(self, jobs: set[str]) -> None:
        """Delete what a dead server left behind: files of no job, and files that are not whole."""
        for kind in ("requests", "results"):
            for path in (self.path / kind).iterdir():
                if path.name not in jobs:
                    path.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(path.name + ".part")


def sync(path: Path) -> None:
    """Wait until a file and its name are on the disk; a file that is gone needs none."""
    for one, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        try:
            handle = os.open(one, flags)
        except FileNotFoundError:
            return
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
