"""Connections that are cut, slow, or many: a job is one job, and nobody is held up."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import websocket

from tests.server.running import MODEL, Server, the_next_job_runs, until

Serve = Callable[..., Server]


def request_bytes(server: Server, code: bytes, token: str, *lines: str) -> bytes:
    head = [
        "POST /request HTTP/1.1",
        f"Host: {urlsplit(server.url).netloc}",
        "Content-Type: application/vnd.nnsight.request",
        f"nnsight-model-key: {MODEL}",
        f"Idempotency-Key: {token}",
        f"Content-Length: {len(code)}",
        *lines,
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + code


def connected(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    assert address.hostname and address.port
    return socket.create_connection((address.hostname, address.port), timeout=20)


def test_a_request_that_is_cut_anywhere_is_no_job_or_one_job(shared: Server):
    code = b"result = b'cut'" + b" " * 5000
    token = str(uuid.uuid4())
    whole = request_bytes(shared, code, token)
    before = len(shared.get("/jobs").json())
    for cut in (10, 150, len(whole) - 5000, len(whole) - 1):
        with connected(shared) as line:
            line.sendall(whole[:cut])
    with connected(shared) as line:  # whole, but nobody waits for the answer
        line.sendall(whole)
        until(lambda: len(shared.get("/jobs").json()) == before + 1)
    job = shared.send(code, Idempotency_Key=token)
    assert shared.events(job)[-1]["status"] == "COMPLETED"
    assert len(shared.get("/jobs").json()) == before + 1
    until(lambda: not list((shared.data / "requests").iterdir()))


def test_a_stream_that_is_cut_does_not_end_the_job(shared: Server):
    code = b"import time; say('one\\n'); time.sleep(0.3); result = b'whole'"
    token = str(uuid.uuid4())
    with connected(shared) as line:
        line.sendall(request_bytes(shared, code, token, "nnsight-stream: 1"))
        line.recv(100)
    job = shared.send(code, Idempotency_Key=token)
    assert shared.events(job)[-1]["status"] == "COMPLETED"
    assert shared.get(f"/result/{job}").content == b"whole"


def test_a_reader_that_does_not_read_stops_nobody(serve: Serve):
    server = serve(stall=1.0, print_bytes=2**30, prints=10**6)
    flood = "for i in range(3000): say('x' * 8000 + '\\n')"
    job = server.send(flood)
    with connected(server) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(f"GET /events/{job} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        line.recv(10)
        the_next_job_runs(server)
        assert len(server.events(job)) > 3000
        time.sleep(1.5)
        the_next_job_runs(server)


def test_fifty_clients_at_once(serve: Serve):
    server = serve(jobs_per_key=1000)
    with ThreadPoolExecutor(50) as pool:
        jobs = list(pool.map(lambda i: server.send(f"result = b'{i}'"), range(50)))
        ends = list(pool.map(lambda job: server.events(job)[-1], jobs))
    assert {end["status"] for end in ends} == {"COMPLETED"}
    for i, end in enumerate(ends):
        assert server.get(end["data"]["url"]).content == str(i).encode()


def test_many_send_one_request_at_once(shared: Server):
    token = str(uuid.uuid4())
    ready = threading.Barrier(8)

    def send(_: int) -> str:
        ready.wait(20)
        return shared.send("result = b'1'", Idempotency_Key=token)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send, range(8)))) == 1


def test_a_sender_that_stops_sending(serve: Serve):
    server = serve(stall=0.5)
    whole = request_bytes(server, b"#" * 5000, "t")
    with connected(server) as line:
        line.sendall(whole[:-100])
        assert b" 408 " in line.recv(4000)
    assert not list((server.data / "requests").iterdir())


@pytest.mark.parametrize("said", [b"", b"GET /ping HTTP/1.1\r\nX: ", b"\r\n" * 5])
def test_who_asks_for_nothing_is_hung_up_on(serve: Serve, said: bytes):
    server = serve(stall=0.4)
    with connected(server) as line:
        line.sendall(said)
        line.settimeout(0.1)
        end = time.monotonic() + 10
        while True:  # a byte now and then keeps nothing open
            with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                line.sendall(b"x" if b"X" in said else b"")
                if not line.recv(100):
                    break
            assert time.monotonic() < end


def test_who_says_little_after_an_answer_is_hung_up_on(serve: Serve):
    server = serve(stall=0.4)
    with connected(server) as line:
        line.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b""
        while b'"pong"' not in said:
            said += line.recv(1000)
        line.sendall(b"GET /ping HTTP/1.1\r\nX: ")
        line.settimeout(10)
        assert line.recv(100) == b""


def test_connections_in_use_stay(serve: Serve):
    server = serve(stall=0.3, heartbeat=0.2)
    job = server.send("import time; time.sleep(1.5); result = b'1'")
    with requests.Session() as session, connected(server) as line:
        address = server.url.replace("http", "ws") + "/subscribe"
        hearing = websocket.create_connection(address, timeout=20)
        line.sendall(f"GET /events/{job} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for _ in range(8):
            assert session.get(f"{server.url}/ping", timeout=20).json() == "pong"
            time.sleep(0.15)
        assert server.events(job)[-1]["status"] == "COMPLETED"
        said = b""
        while b"COMPLETED" not in said:
            piece = line.recv(65536)
            assert piece
            said += piece
        assert "session_id" in hearing.recv()
        hearing.ping()
        assert hearing.recv_data(control_frame=True)[0] == 10  # it is still answered
        hearing.close()


def test_more_come_in_than_ask_for_something(serve: Serve):
    server = serve(stall=60.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] >= min(hard, 4096)
    assert soft <= hard
    the_next_job_runs(server)


def sockets(server: Server) -> int:
    """How many a server has open."""
    found = 0
    for handle in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found += os.readlink(handle).startswith("socket:")
    return found


def test_a_result_that_nobody_reads_holds_no_connection(serve: Serve):
    server = serve(stall=0.5)
    job = server.send("result = bytes(30_000_000)")
    server.events(job)
    time.sleep(1.0)  # those of the requests before are gone
    before = sockets(server)
    with connected(server) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(f"GET /result/{job} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        line.recv(10)
        assert sockets(server) == before + 1
        until(lambda: sockets(server) == before, lambda: sockets(server))
    assert len(server.get(f"/result/{job}").content) == 30_000_000


def test_what_is_no_request_does_not_stop_the_server(shared: Server):
    dice = random.Random(0)
    code = b"result = b'1'"
    whole = request_bytes(shared, code, "garbage")
    pieces = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        whole.replace(b"Content-Length: 13", b"Content-Length: -1"),
        whole.replace(b"Content-Length: 13", b"Content-Length: 9" + b"9" * 30),
        whole.replace(b"Content-Length: 13", b"Transfer-Encoding: chunked"),
        whole.replace(b"Content-Length: 13", b"Content-Length: 13\r\nContent-Length: 5"),
        whole.replace(b"localhost", b"\xff\xfe\x00"),
        b"\x16\x03\x01" + dice.randbytes(200),
    ]
    for _ in range(100):
        spot = dice.randrange(len(whole))
        pieces.append(whole[:spot] + dice.randbytes(3) + whole[spot + dice.randrange(4) :])
    for piece in pieces:
        with connected(shared) as line, contextlib.suppress(OSError):
            line.sendall(piece)
            line.shutdown(socket.SHUT_WR)
            line.settimeout(5)
            line.recv(1000)
    the_next_job_runs(shared)


def test_paths_and_names_that_lead_elsewhere(shared: Server):
    for path in ("/result/../server.db", "/result/%2e%2e%2fsecret", "/events/x'--", "/job/%00"):
        assert shared.get(path).status_code in (404, 405)
    named = '{"repo_id": "../../etc"}'
    key = f"nnsight.modeling.transformers.TransformersModel:{named}"
    assert shared.post("result = b'1'", nnsight_model_key=key).status_code == 404
