"""What a server of NDIF 0.8 sends, as our client reads it."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import nnsight
from nnsight.remote import environment
from nnsight.remote.client import RemoteBackend
from nnsight.remote.deadline import Deadline
from nnsight.remote.errors import PayloadError, RemoteError, RemoteTimeoutError
from nnsight.remote.failure import error_of
from nnsight.remote.ndif08 import connection as ndif08_connection
from nnsight.remote.ndif08 import result as ndif08_result
from nnsight.remote.ndif08.connection import NdifConnection, _event
from nnsight.remote.ndif08.failure import failure_of
from nnsight.remote.spoken import speaks_ndif
from tests.remote.double import ENV, Double


def saved(values: Any) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def test_a_result_is_read_as_data():
    found = ndif08_result.read(saved({"x": torch.arange(3), "y": [1, {"z": (2.0, "a")}]}))
    assert torch.equal(found["x"], torch.arange(3)) and found["y"] == [1, {"z": (2.0, "a")}]


ERRORS = json.loads((Path(__file__).parent / "golden/ndif-0.1.2/errors.json").read_text())
WORK = "/home/me/work.py"


def test_an_error_of_ndif_is_one_of_its_type_at_the_users_lines():
    failure = failure_of(ERRORS["helper"])
    assert (failure.type, failure.module) == ("ValueError", "builtins")
    assert failure.message == "this is mine\nand a second line" and not failure.notes
    assert [(line.filename, line.lineno, line.function) for line in failure.frames] == [
        (WORK, 24, "a"),
        (WORK, 15, "helper"),
    ]
    error = error_of(failure, "job")
    assert isinstance(error, ValueError) and isinstance(error, RemoteError)


def test_what_led_to_an_error_of_ndif_is_kept():
    failure = failure_of(ERRORS["session and cause"])
    assert (failure.type, failure.message) == ("RuntimeError", "chained")
    assert [line.lineno for line in failure.frames] == [32, 34, 19]
    assert failure.cause is not None
    assert (failure.cause.type, failure.cause.message) == ("KeyError", "'a'")


def test_an_error_of_that_nnsight_is_one_of_ours():
    error = error_of(failure_of(ERRORS["order"]))
    assert isinstance(error, nnsight.OutOfOrderError) and "already ran past it" in str(error)


def test_an_error_without_a_line_of_the_users_shows_the_servers():
    failure = failure_of(ERRORS["no line of the user's"])
    assert failure.type == "TypeError" and failure.message == "cannot pickle 'generator' object"
    assert not failure.frames and "pickler.dump(obj)" in failure.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Your request payload could not be read.", "Your request payload could not be read."),
        ("", "the job failed"),
        (f"Could not deploy.\n{ERRORS['order']}", f"Could not deploy.\n{ERRORS['order']}"),
        ("Traceback (most recent call last):\nmade.<locals>.Own: mine\n", "Own: mine"),
        ("Traceback (most recent call last):\nSystemExit: 3\n", "SystemExit: 3"),
        ("Traceback (most recent call last):\n", "Traceback (most recent call last):\n"),
    ],
)
def test_other_ends_are_told_in_the_servers_words(text: str, message: str):
    error = error_of(failure_of(text))
    assert type(error) is RemoteError and str(error) == message


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


RECORDED = Path(__file__).parent / "golden" / "ndif-0.1.2"


def test_the_last_state_that_ndif_sent_is_read():
    event = _event((RECORDED / "completed.bin").read_bytes())
    assert event is not None and (event.status, len(event.id)) == ("COMPLETED", 32) and event.ends
    assert event.description == "Your job has been completed."
    assert event.meta["max_memory_usage"] == 0 and event.meta["runtime"] > 0
    found = ndif08_result.read(event.data)
    assert found["out"].shape == (1, 3, 400) and found["out"].dtype == torch.float32


def last_state(data: Any) -> bytes:
    file = io.BytesIO()
    state = {"id": "job", "status": "COMPLETED", "description": "", "data": data, "meta": None}
    torch.save(state, file, pickle_protocol=4)
    return file.getvalue()


def test_a_binary_frame_is_the_last_state():
    event = _event(last_state(b"1"))
    assert event is not None and event.ends and event.data == b"1"
    assert _event(b"\x80garbage") is None and _event("[]") is None and _event("{}") is None


def test_a_state_with_nothing_in_its_fields_is_one():
    event = _event('{"id": "a", "status": "COMPLETED", "description": null, "data": 3}')
    assert event is not None and event.ends and event.description == ""


def packed(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "frame",
    [
        b"PK",
        b"PK\x03\x04",
        last_state(b"1")[:200],
        last_state(Bad()),
        saved([]),
        packed(b"\x80\x04N."),
    ],
)
def test_an_end_that_cannot_be_read_is_said_at_once(frame: bytes):
    ndif = Ndif([json.dumps(state("RUNNING")), frame], [state("RUNNING")])
    try:
        line = NdifConnection(ndif.host)
        with pytest.raises(PayloadError, match="The job job has ended") as caught:
            list(line.events(line.submit("key", [b"x"], stream=True)))
        assert caught.value.job_id == "job"
    finally:
        ndif.stop()


def test_an_older_server_is_named(double: Double):
    env = {**ENV, "packages": {"nnsight": "0.6.3"}}
    double.answers["/env"] = (200, env)
    environment._asked.clear()
    with pytest.raises(RemoteError, match=r"runs nnsight 0\.6\.3"):
        RemoteBackend("model", double.host, job_id="a").poll()


HTML = b"<html>a page</html>"


@pytest.mark.parametrize(
    "answer", [(404, {"detail": "Not Found"}), (404, HTML), (200, HTML), (200, []), (405, HTML)]
)
def test_a_server_without_env_is_said_at_once(double: Double, answer: tuple[int, Any]):
    double.answers["/env"] = answer
    environment._asked.clear()
    with pytest.raises(RemoteError, match=r"/env .*An older one \(0\.5 to 0\.7\) needs a client"):
        RemoteBackend("model", double.host, job_id="a").poll()
    assert [path for path, _ in double.asked] == ["/env"]


def test_a_server_that_starts_is_asked_again(double: Double):
    double.answers["/env"] = (503, {"detail": "compute backend is reconnecting."})
    environment._asked.clear()

    def notice(text: str) -> None:
        assert "starting" in text
        double.answers["/env"] = (200, ENV)

    assert speaks_ndif(double.host, Deadline.after(10.0), notice)
    environment._asked.clear()
    double.answers["/env"] = (503, {"detail": "compute backend is reconnecting."})
    with pytest.raises(RemoteTimeoutError, match="reconnecting"):
        speaks_ndif(double.host, Deadline.after(0.3), lambda text: None)


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
        self.asked = 0

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
            self.asked += 1
            if not states:
                return JSONResponse({"detail": "No response for request job."}, 404)
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
    ndif = Ndif([json.dumps(state("RUNNING")), last_state(b"12")], [state("RUNNING")])
    try:
        line = NdifConnection(ndif.host)
        *_, last = line.events(line.submit("key", [b"x"], stream=True))
        assert last.ends and line.result(last.data) == b"12"
    finally:
        ndif.stop()


def test_a_job_that_the_server_kept_nothing_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ndif08_connection, "UNKNOWN", 0.5)
    ndif = Ndif([json.dumps(state("RUNNING"))], [])  # the real one keeps nothing for listeners
    try:
        line = NdifConnection(ndif.host)
        with pytest.raises(RemoteError, match="keeps no result for who listens") as caught:
            list(line.events(line.submit("key", [b"x"], stream=True)))
        assert caught.value.job_id == "job" and ndif.asked > 1
        with pytest.raises(RemoteError, match="knows no job 'job'"):
            list(NdifConnection(ndif.host, job="job").events())
    finally:
        ndif.stop()


def test_a_job_that_cannot_be_ended():
    ndif = Ndif([], [])
    try:
        with pytest.raises(RemoteError, match="could not be cancelled"):
            backend = RemoteBackend("model", ndif.host, job_id="job")
            backend._connection = lambda *_: NdifConnection(ndif.host, job="job")  # type: ignore[method-assign]
            backend.cancel()
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


def test_an_answer_that_is_no_state_is_said():
    ndif = Ndif([], [{"hello": "you"}])
    try:
        with pytest.raises(RemoteError, match="does not answer as a server"):
            NdifConnection(ndif.host, job="job").latest()
    finally:
        ndif.stop()


def test_a_server_that_is_not_there():
    with pytest.raises(RemoteError, match="lost"):
        NdifConnection("http://127.0.0.1:9").submit("key", [b"x"], stream=True)
