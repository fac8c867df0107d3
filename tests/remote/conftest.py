"""A server's double, and settings that lead to it."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnsight import CONFIG
from nnsight.config import Config
from nnsight.remote import environment, model_key
from tests.remote.double import Double, server


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of settings of the test's own; what it sets is gone afterwards."""
    file = tmp_path / "settings" / "config.json"
    monkeypatch.setenv("NNSIGHT_CONFIG", str(file))
    for name in ("NDIF_API_KEY", "NDIF_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(CONFIG.API.__dict__, "_own", {})
    Config.load()
    yield file
    monkeypatch.undo()
    Config.load()


@pytest.fixture
def double(settings: Path) -> Iterator[Double]:
    """A server that `CONFIG.API.HOST` names."""
    environment._asked.clear()
    model_key.canonical.cache_clear()
    with server() as running:
        CONFIG.API.HOST = running.host
        yield running
    environment._asked.clear()


@pytest.fixture
def linecache_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python keeps of the lines of files, without what the test makes it keep."""
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))
