"""Connections that are cut, slow, or many: a job is one job, and nobody is held up."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

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
