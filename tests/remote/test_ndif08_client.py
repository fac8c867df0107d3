"""What a server of NDIF 0.8 sends, as our client reads it."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight.remote import environment, ndif08_result
from nnsight.remote.client import RemoteBackend
from nnsight.remote.deadline import Deadline
from nnsight.remote.errors import PayloadError, RemoteError, RemoteTimeoutError
from nnsight.remote.ndif08_connection import NdifConnection, _event
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


# --- a server that speaks NDIF 0.8, and what can go wrong with it ---------------------------------


class Ndif:
    """The channels of NDIF: what the socket says and what `/response` says are a test's."""

    def __init__(self, said: list[Any], states: list[dict[str, Any]]) -> None:
        import asyncio
        import threading

        import uvicorn
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route, WebSocketRoute

        self.sent = 0

        async def subscribe(socket: Any) -> None:
            await socket.accept()
            await socket.send_json({"session_id": "s" * 32})
            while not self.sent:
                await asyncio.sleep(0.01)
            for frame in said:
                await (socket.send_bytes if isinstance(frame, bytes) else socket.send_text)(frame)
            await socket.close()

        async def post(request: Any) -> Any:
            self.sent += 1
            return JSONResponse({"id": "job", "status": "RECEIVED", "description": ""})

        async def response(request: Any) -> Any:
            return JSONResponse(states.pop(0) if len(states) > 1 else states[0])

        routes = [
            WebSocketRoute("/subscribe", subscribe),
            Route("/request", post, methods=["POST"]),
            Route("/response/job", response),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="critical")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.host = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(5)


def state(status: str, description: str = "") -> dict[str, Any]:
    return {"id": "job", "status": status, "description": description, "data": None, "meta": None}


def test_a_socket_that_breaks_leads_to_the_state_of_the_job():
    done = {**state("COMPLETED"), "data": "http://127.0.0.1:9/never"}
    heard = [json.dumps(state("RUNNING")), json.dumps(state("LOG", "printed")), "no json"]
    ndif = Ndif(heard, [state("RUNNING"), done])
    try:
        line = NdifConnection(ndif.host)
        events = list(line.events(line.submit("key", [b"x"], stream=True)))
        assert [event.status for event in events][:3] == ["RECEIVED", "RUNNING", "LOG"]
        assert events[-1].ends and ndif.sent == 1
    finally:
        ndif.stop()


def test_a_binary_frame_ends_the_job():
    frame = saved({"id": "job", "status": "COMPLETED", "data": b"12", "meta": None})
    ndif = Ndif([json.dumps(state("RUNNING")), frame], [state("RUNNING")])
    try:
        line = NdifConnection(ndif.host)
        *_, last = line.events(line.submit("key", [b"x"], stream=True))
        assert last.ends and line.result(last.data) == b"12"
    finally:
        ndif.stop()


def test_a_limit_of_time_ends_the_waiting():
    ndif = Ndif([], [state("RUNNING")])
    try:
        line = NdifConnection(ndif.host, deadline=Deadline.after(1.0))
        with pytest.raises(RemoteTimeoutError, match="job"):
            list(line.events(line.submit("key", [b"x"], stream=True)))
    finally:
        ndif.stop()


def test_a_server_that_is_not_there():
    with pytest.raises(RemoteError, match="lost"):
        NdifConnection("http://127.0.0.1:9").submit("key", [b"x"], stream=True)
