"""The channels of NDIF 0.8: a form to send, a socket to listen, and the state to ask for."""

from __future__ import annotations

import json

import pytest
import requests
import websocket

from nnsight.remote.ndif08.result import binary_event
from tests.server.running import MODEL, PATIENCE, SLEEP, Server


def form(session: str, **changed: object) -> dict:
    data = {"model_key": MODEL, "session_id": session, "compress": False, "env": {}, **changed}
    blob = ("request", b"say('hello\\n'); result = b'1'", "application/octet-stream")
    return {"data": (None, json.dumps(data)), "blob": blob}


def listen(server: Server) -> tuple[websocket.WebSocket, str]:
    address = server.url.replace("http", "ws") + "/subscribe"
    socket = websocket.create_connection(address, timeout=PATIENCE)
    return socket, json.loads(socket.recv())["session_id"]


def said(socket: websocket.WebSocket) -> dict:
    """What a socket says; a small result comes as a file of torch."""
    frame = socket.recv()
    if isinstance(frame, str):
        return json.loads(frame)
    event = binary_event(frame)
    names = ("id", "status", "description", "data", "meta")
    return {name: getattr(event, name) for name in names}


def test_a_socket_hears_of_the_jobs_of_its_session(shared: Server):
    socket, session = listen(shared)
    assert len(session) == 32
    sent = shared.call("POST", "/request", files=form(session)).json()
    assert sent["status"] == "RECEIVED" and sent["data"] is None
    assert set(sent) == {"id", "status", "description", "data", "meta"}
    heard = []
    while not heard or heard[-1]["status"] not in ("COMPLETED", "ERROR"):
        heard.append(said(socket))
    socket.close()
    assert [event["status"] for event in heard if event["status"] != "DEPLOYING"] == [
        *("RECEIVED", "QUEUED", "DISPATCHED", "RUNNING", "LOG", "COMPLETED")
    ]
    assert {event["id"] for event in heard} == {sent["id"]}
    assert heard[-1]["data"] == b"1"


def test_prints_are_whole_lines(shared: Server):
    """Its clients end each text that comes with a newline."""
    socket, session = listen(shared)
    files = form(session)
    code = b"for text in ('a', 'b', '\\nc\\n\\n' + 'x' * 20_000, 'd'): say(text)"
    files["blob"] = ("request", code, "application/octet-stream")
    shared.call("POST", "/request", files=files)
    heard = [said(socket)]
    while heard[-1]["status"] not in ("COMPLETED", "ERROR"):
        heard.append(said(socket))
    socket.close()
    told = [(event["description"], event["meta"]) for event in heard if event["status"] == "LOG"]
    assert told == [("ab", None), ("c", None), ("", None), ("x" * 20_000 + "d", None)]


def test_a_large_result_is_a_link(shared: Server):
    socket, session = listen(shared)
    files = form(session)
    files["blob"] = ("request", b"result = b'12345678' * 10_000", "application/octet-stream")
    shared.call("POST", "/request", files=files)
    heard = said(socket)
    while heard["status"] not in ("COMPLETED", "ERROR"):
        heard = said(socket)
    socket.close()
    content = requests.get(heard["data"], timeout=PATIENCE).content  # without a key
    assert content == b"12345678" * 10_000


def test_sessions_do_not_hear_of_each_other(shared: Server):
    (one, mine), (other, theirs) = listen(shared), listen(shared)
    assert mine != theirs
    shared.call("POST", "/request", files=form(mine))
    shared.call("POST", "/request", files=form(""))
    sent = shared.call("POST", "/request", files=form(theirs)).json()["id"]
    assert json.loads(other.recv())["id"] == sent
    one.close()
    other.close()


def test_without_a_session_the_state_is_asked_for(shared: Server):
    job = shared.call("POST", "/request", files=form("")).json()["id"]
    shared.events(job)
    state = shared.get(f"/response/{job}").json()
    assert state["status"] == "COMPLETED"
    assert requests.get(state["data"], timeout=PATIENCE).content == b"1"


def test_a_socket_that_closes_does_not_end_the_job(shared: Server):
    socket, session = listen(shared)
    job = shared.call("POST", "/request", files=form(session)).json()["id"]
    socket.close()
    assert shared.events(job)[-1]["status"] == "COMPLETED"


def test_a_socket_ends_with_the_server(serve):
    server = serve()
    socket, _ = listen(server)
    server.reach(server.send(SLEEP), "RUNNING")
    server.stop()
    with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
        assert socket.recv() == ""
        socket.recv()


@pytest.mark.parametrize(
    "data",
    [
        *("no json", "[]", "{}", '{"model_key": 3}'),
        '{"model_key": "x", "env": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda data: data[:24],
)
def test_a_form_that_cannot_be_read(shared: Server, data: str):
    files = {**form(""), "data": (None, data)}
    answer = shared.call("POST", "/request", files=files)
    assert answer.status_code == 422 and "form" in answer.json()["detail"]


def test_a_form_without_a_payload(shared: Server):
    files = form("")
    del files["blob"]
    assert shared.call("POST", "/request", files=files).status_code == 422
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert shared.call("POST", "/request", data=b"--y\r\n", headers=broken).status_code == 422
    broken = {"Content-Type": "multipart/form-data"}
    assert shared.call("POST", "/request", data=b"--y\r\n", headers=broken).status_code == 422


def test_the_models_are_told_as_ndif_tells_them(shared: Server):
    shared.run("result = b'1'")
    told = shared.get("/status").json()
    (name, one), *_ = told["deployments"].items()
    assert name == f"0:ModelActor:{one['model_key']}" and one["application_state"] == "RUNNING"
    assert json.loads(one["model_key"].partition(":")[2]) == {
        "repo_id": "fake/model",
        "revision": None,
        "task": "text-generation",
    }
    assert isinstance(json.loads(one["config"]), dict)


def test_what_a_client_compares(shared: Server):
    env = shared.get("/env").json()
    assert env["protocols"] == ["nnsight/1", "ndif/8"]
    assert env["packages"]["starlette"] and env["limits"]["body"] == 256 * 2**20
    assert shared.get("/ping").json() == "pong"
    assert shared.get("/connected").json() == {"status": "connected"}
    assert shared.call("HEAD", "/connected").status_code == 200
    assert shared.get("/whoami").json()["email"] is None


def test_counts_and_pages(shared: Server):
    shared.run("result = b'1'")
    counts = shared.get("/metrics").text
    assert 'nnsight_jobs{model="fake/model",status="COMPLETED"}' in counts
    assert 'nnsight_model_up{model="fake/model"} 1' in counts
    page = shared.get("/")
    assert "http" not in page.text and "src=" not in page.text  # nothing from elsewhere
    assert "default-src 'none'" in page.headers["content-security-policy"]
    docs = shared.get("/docs").text
    assert "/subscribe" in docs and "Send a job" in docs
