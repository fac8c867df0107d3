"""What one client may ask of a server, and for how long things are kept."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
INLINE = 64 * 1024
"""Results up to this many bytes travel inside the COMPLETED event."""


@dataclass(frozen=True)
class Limits:
    """Each limit has an answer of one sentence of its own (`errors.py`)."""

    body: int = 256 * MIB  # bytes of a request
    result: int = 1024 * MIB  # bytes of what a job saves
    seconds: float = 3600.0  # that a job may run
    prints: int = 10_000  # lines that a job may print
    print_bytes: int = MIB  # bytes of them
    queue: int = 256  # jobs that wait for one model
    jobs_per_key: int = 32  # jobs of one key that wait or run
    ttl: float = 24 * 3600.0  # seconds for which an ended job and its result are kept
    silence: float = 30.0  # seconds without a sign of life, then a worker is taken for dead
    heartbeat: float = 10.0  # seconds between empty lines of an event stream
    stall: float = 60.0  # seconds that a reader may leave a stream unread
    memory: int | None = None  # bytes of address space of a worker; None: what the machine has

    def public(self) -> dict[str, float]:
        """What a client should know before it sends."""
        return {
            "body": self.body,
            "result": self.result,
            "seconds": self.seconds,
            "prints": self.prints,
            "print_bytes": self.print_bytes,
            "queue": self.queue,
            "jobs_per_key": self.jobs_per_key,
            "ttl": self.ttl,
        }
