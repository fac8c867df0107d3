from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that are gone after the test."""
    started: list[Server] = []

    def start(*words: str, data: str = "data", **limits: Any) -> Server:
        started.append(Server(tmp_path / data, *words, **limits))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a file that leave it as it was."""
    server = Server(tmp_path_factory.mktemp("server") / "data", seconds=2.0, silence=3.0)
    yield server
    server.kill()
