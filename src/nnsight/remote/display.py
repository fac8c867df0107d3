"""What a user sees of a remote job: for now, what its block prints."""

from __future__ import annotations

from typing import Any

from nnsight.remote.messages import Event


class Display:
    """Shows a job as it goes on."""

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def status(self, event: Event) -> None:
        """The job is in another state."""

    def notice(self, text: str) -> None:
        """Something else is waited for."""

    def print(self, text: str) -> None:
        """The block has printed this."""
        print(text, end="" if text.endswith("\n") else "\n", flush=True)

    def download(self, total: int) -> Any:
        """What is told how many more bytes are there."""
        return None

    def close(self) -> None:
        """The job is over."""
