"""What a server of NDIF 0.8 sends, as our client reads it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight.remote import environment, ndif08_result
from nnsight.remote.client import RemoteBackend
from nnsight.remote.errors import PayloadError, RemoteError
from nnsight.remote.ndif08_connection import _event
from tests.remote.double import ENV, Double


def saved(values: Any) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def test_a_result_is_read_as_data():
    found = ndif08_result.read(saved({"x": torch.arange(3), "y": [1, {"z": (2.0, "a")}]}))
    assert torch.equal(found["x"], torch.arange(3)) and found["y"] == [1, {"z": (2.0, "a")}]


class Bad:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/never"),))


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x28\xb5\x2f\xfdxx", pickle.dumps({})])
def test_what_is_no_result_is_a_sentence(content: bytes):
    with pytest.raises(PayloadError):
        ndif08_result.read(content)


def test_code_from_a_server_does_not_run(tmp_path: Path):
    with pytest.raises(PayloadError, match="more than data"):
        ndif08_result.read(saved({"x": Bad()}))


def test_a_binary_frame_is_the_last_state():
    state = {"id": "a", "status": "COMPLETED", "description": "", "data": b"1", "meta": None}
    event = _event(saved(state))
    assert event is not None and event.ends and event.data == b"1"
    assert _event(b"\x80garbage") is None and _event("[]") is None


def test_an_older_server_is_named(double: Double):
    env = {**ENV, "packages": {"nnsight": "0.6.3"}}
    double.answers["/env"] = (200, env)
    environment._asked.clear()
    with pytest.raises(RemoteError, match=r"runs nnsight 0\.6\.3"):
        RemoteBackend("model", double.host, job_id="a").poll()
