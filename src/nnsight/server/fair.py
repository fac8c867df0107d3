"""The jobs that wait for one model, in an order that is fair between keys."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator


class FairQueue:
    """Keys take turns; the jobs of one key stay in the order of their arrival."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[str]] = OrderedDict()  # key -> jobs; next key first

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, key: str, job: str) -> None:
        self._waiting.setdefault(key, deque()).append(job)

    def next_key(self) -> str | None:
        """Whose turn it is."""
        return next(iter(self._waiting), None)

    def take(self) -> str:
        """The next job; its key goes to the end."""
        key, jobs = self._waiting.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._waiting[key] = jobs
        return job

    def remove(self, job: str) -> bool:
        """Whether the job was waiting; it no longer is."""
        for key, jobs in self._waiting.items():
            if job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._waiting[key]
                return True
        return False

    def __iter__(self) -> Iterator[str]:
        """The jobs in the order in which they will run if no more come."""
        rounds = [list(jobs) for jobs in self._waiting.values()]
        for turn in range(max(map(len, rounds), default=0)):
            for jobs in rounds:
                if turn < len(jobs):
                    yield jobs[turn]
