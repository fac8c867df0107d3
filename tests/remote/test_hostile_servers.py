"""Servers that mean harm, or are broken: no key goes elsewhere, nobody waits past the limit."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from nnsight.remote import answers, ask, connection, environment
from nnsight.remote.client import RemoteBackend
from nnsight.remote.connection import Connection
from nnsight.remote.deadline import Deadline
from nnsight.remote.errors import PayloadError, RefusedError, RemoteError, RemoteTimeoutError
from nnsight.remote.ndif08 import connection as ndif08_connection
from nnsight.remote.ndif08.connection import NdifConnection
from nnsight.remote.service_errors import ServiceError
from nnsight.remote.spoken import speaks_ndif

KEY = "the-key-of-the-user"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20

Answer = Callable[["Raw", socket.socket, str, str], None]


class Raw:
    """A server that says whatever a test has it say, byte by byte."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self.over.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listening.accept()
                self._threads.append(threading.Thread(target=self._one, args=(line,), daemon=True))
                self._threads[-1].start()

    def _one(self, line: socket.socket) -> None:
        with line, suppress(OSError):
            told = b""
            while b"\r\n\r\n" not in told:
                told += (piece := line.recv(65536))
                if not piece:
                    return
            first, *rest = told.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            method, path, _ = first.split()
            headers = {name.lower(): value for name, _, value in (h.partition(": ") for h in rest)}
            self.asked.append((method, path, headers))
            self.answer(self, line, method, path)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Raw]]:
    made: list[Raw] = []

    def start(answer: Answer) -> Raw:
        made.append(Raw(answer))
        return made[-1]

    yield start
    for raw in made:
        raw.close()


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    """An answer that is whole."""

    def answer(raw: Raw, line: socket.socket, method: str, path: str) -> None:
        lines = {"Content-Length": str(len(body)), "Connection": "close"}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        line.sendall(f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body)

    return answer


def event(**about: Any) -> bytes:
    return json.dumps({"id": "j", "seq": 1, **about}).encode() + b"\n"


def one_of(*answers: Answer) -> Answer:
    """One answer after the other."""
    left = list(answers)
    return lambda *about: (left.pop(0) if len(left) > 1 else left[0])(*about)


def drips(head: bytes, piece: bytes = b" ") -> Answer:
    """A server that goes on and on, and is never silent for long."""

    def answer(raw: Raw, line: socket.socket, method: str, path: str) -> None:
        line.sendall(head)
        while not raw.over.wait(0.05):
            line.sendall(piece)

    return answer


def pours(head: bytes, piece: bytes) -> Answer:
    """A server that says as much as anybody takes."""

    def answer(raw: Raw, line: socket.socket, method: str, path: str) -> None:
        line.sendall(head)
        while not raw.over.is_set():
            line.sendall(piece)

    return answer


def ours(raw: Raw, seconds: float = 10.0, **about: Any) -> Connection:
    return Connection(raw.url, KEY, Deadline.after(seconds), **{"job": "j", **about})


def ndif(raw: Raw, seconds: float = 10.0, **about: Any) -> NdifConnection:
    return NdifConnection(raw.url, KEY, Deadline.after(seconds), **{"job": "j", **about})


# --- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda raw: ours(raw).cancel(),
        lambda raw: ours(raw).latest(),
        lambda raw: ours(raw).result({"size": 3, "url": "/result/j"}),
        lambda raw: ours(raw).submit("model", [b"block"], stream=True),
        lambda raw: list(ours(raw).events()),
        lambda raw: ndif(raw).cancel(),
        lambda raw: ndif(raw).latest(),
        lambda raw: ndif(raw).submit("model", [b"block"], stream=False),
        lambda raw: ndif(raw).submit("model", [b"block"], stream=True),
        lambda raw: ask.ask("/whoami", host=raw.url, api_key=KEY),
    ],
)
def test_a_key_goes_to_no_address_that_the_user_has_not_named(serve: Any, use: Any) -> None:
    other = serve(says(b"{}"))
    server = serve(says(b"", 307, Location=f"{other.url}/taken"))
    with suppress(RemoteError, ServiceError):
        use(server)
    assert server.asked[0][2]["ndif-api-key"] == KEY
    assert other.asked == []


def test_a_link_to_a_result_is_followed_without_the_key(serve: Any) -> None:
    other = serve(says(b"values"))
    server = serve(says(b"", 307, Location=f"{other.url}/stored"))
    assert ndif(server).result(f"{server.url}/result") == b"values"
    assert [path for _, path, _ in other.asked] == ["/stored"]
    assert all("ndif-api-key" not in headers for _, _, headers in other.asked + server.asked)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://[", ""])
def test_a_link_leads_to_no_file(serve: Any, target: str) -> None:
    server = serve(says(b"", 302, Location=target))
    with pytest.raises(RemoteError, match="does not answer as"):
        ndif(server).result(f"{server.url}/result")


def test_a_link_that_leads_in_a_circle(serve: Any) -> None:
    server = serve(says(b"", 302, Location="/result"))
    with pytest.raises(RemoteError, match="does not answer as"):
        ndif(server).result(f"{server.url}/result")


def test_a_key_is_in_the_repr_of_nothing() -> None:
    backend = RemoteBackend("model", "http://127.0.0.1:9", KEY)
    held = (
        backend,
        vars(backend),
        Connection(backend.host, KEY),
        NdifConnection(backend.host, KEY),
    )
    assert KEY not in "".join(map(repr, held))
    assert backend.api_key == KEY


@pytest.mark.parametrize("kind", [Connection, NdifConnection])
def test_a_key_that_would_add_a_header_is_refused_unseen(kind: Any) -> None:
    with pytest.raises(RemoteError, match="characters that no key has") as caught:
        kind("http://127.0.0.1:9", "stolen\r\nx-more: 1")
    assert "stolen" not in str(caught.value)


# --- the time -------------------------------------------------------------------------------------

WAYS = {
    "headers": drips(b"HTTP/1.1 200 OK\r\nX: "),
    "continue": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": drips(HEAD + b"Content-Length: 100000\r\n\r\n"),
    "chunk": drips(CHUNKS + b"fffff\r\n"),
    "heartbeats": drips(CHUNKS, b"1\r\n\n\r\n"),
    "without chunks": drips(HEAD + b"\r\n", b"\n"),
    "refusal": drips(b"HTTP/1.1 503 No\r\nContent-Length: 100000\r\n\r\n"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "use",
    [
        lambda raw: list(ours(raw, 0.5).events()),
        lambda raw: ours(raw, 0.5).result({"size": 1000, "url": "/result"}),
        lambda raw: ndif(raw, 0.5).result(f"{raw.url}/result"),
        lambda raw: speaks_ndif(raw.url, Deadline.after(0.5), lambda text: None),
        lambda raw: RemoteBackend("model", raw.url, timeout=0.5, job_id="j").wait(),
    ],
)
def test_nobody_is_listened_to_past_the_limit(serve: Any, way: str, use: Any) -> None:
    server = serve(WAYS[way])
    began = time.monotonic()
    with pytest.raises((RemoteTimeoutError, RefusedError)):
        use(server)
    assert time.monotonic() - began < 3.0


def test_a_question_has_a_limit_of_its_own(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "SECONDS", 0.3)
    server = serve(WAYS["body"])
    with pytest.raises(ServiceError, match=r"no answer within 0\.3 seconds"):
        ask.ask("/status", host=server.url)


def test_a_server_that_does_not_hang_up_after_the_end(serve: Any) -> None:
    end = event(status="COMPLETED", data={"size": 1, "inline": "MQ=="})
    server = serve(drips(CHUNKS + b"%x\r\n%b\r\n" % (len(end), end), b"1\r\n\n\r\n"))
    began = time.monotonic()
    assert [each.status for each in ours(server, 30.0).events()] == ["COMPLETED"]
    assert time.monotonic() - began < 3.0


def test_a_second_end_is_not_heard(serve: Any) -> None:
    end = event(status="COMPLETED", data={"size": 1, "inline": "MQ=="})
    server = serve(says(end + event(status="ERROR", seq=2)))
    assert [each.status for each in ours(server).events()] == ["COMPLETED"]


def test_a_slow_line_has_time_for_a_large_block(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (answers, connection, ndif08_connection):
        monkeypatch.setattr(module, "CONNECT", 0.5)

    def slow(raw: Raw, line: socket.socket, method: str, path: str) -> None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        length = int(raw.asked[-1][2]["content-length"])
        taken = 0
        while taken < length - 65536:
            taken += len(line.recv(1 << 18))
            time.sleep(0.03)
        says(b'{"id": "j", "status": "RECEIVED", "seq": 1}')(raw, line, method, path)

    block = bytes(6 * MIB)
    began = time.monotonic()
    there = ndif(serve(slow), 60.0)
    assert there.receipt(there.submit("model", [block], stream=False)).id == "j"
    assert time.monotonic() - began > 1.0  # longer than a connection may take


def test_a_server_that_takes_a_block_too_slowly(serve: Any) -> None:
    def slow(raw: Raw, line: socket.socket, method: str, path: str) -> None:
        while not raw.over.wait(0.05):
            line.recv(1024)

    began = time.monotonic()
    with pytest.raises(RemoteTimeoutError):
        ours(serve(slow), 1.0).submit("model", [bytes(16 * MIB)], stream=True)
    assert time.monotonic() - began < 4.0


@pytest.mark.parametrize("asked", ["0", "-9", "nan", "inf", "1e400", "soon", ""])
def test_a_busy_server_is_not_asked_without_a_pause(serve: Any, asked: str) -> None:
    server = serve(says(b'{"detail": "busy"}', 503, Retry_After=asked))
    with pytest.raises(RemoteTimeoutError, match="busy"):
        ours(server, 0.5).latest()
    assert len(server.asked) <= 4


# --- what is said ---------------------------------------------------------------------------------


def test_an_answer_without_an_end_is_not_kept(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.line, "LARGEST", MIB)
    monkeypatch.setattr(connection.line.whole, "__defaults__", (MIB,))
    server = serve(pours(HEAD + b"\r\n", bytes(MIB)))
    for use in (ours(server).latest, lambda: list(ours(server).events()), ndif(server).latest):
        with pytest.raises(RemoteError, match="does not answer as"):
            use()
    with pytest.raises(ServiceError, match="does not answer as"):
        ask.ask("/env", host=server.url)
    server = serve(pours(b"HTTP/1.1 403 No\r\n\r\n", bytes(MIB)))
    with pytest.raises(RefusedError, match="403: No"):
        ours(server).latest()


@pytest.mark.parametrize("target", ["/elsewhere", "http://[", "//\x00"])
def test_a_redirect_is_not_read(serve: Any, target: str) -> None:
    head = f"HTTP/1.1 307 Go\r\nLocation: {target}\r\n\r\n".encode()
    server = serve(pours(head, bytes(MIB)))
    with pytest.raises(RefusedError, match="307: Go"):
        ours(server).latest()
    with pytest.raises(ServiceError, match="sends on to"):
        ask.ask("/env", host=server.url)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"size": 1 << 62, "url": "/x"}, "more than there is memory"),
        ({"size": 1 << 63, "url": "/x"}, "more than there is memory"),
        ({"size": True, "url": "/x"}, "does not answer as"),
        ({"size": 4, "inline": "abc"}, "does not answer as"),
        ({"size": 4, "inline": "\u00e9"}, "does not answer as"),
    ],
)
def test_a_result_of_an_impossible_size(serve: Any, data: Any, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        ours(serve(says(b""))).result(data)


DEEP = b"[" * 100_000 + b"]" * 100_000


def test_values_within_values_without_end(serve: Any) -> None:
    server = serve(says(b'{"id": "j", "seq": 1, "status": "COMPLETED", "data": ' + DEEP + b"}"))
    for there in (ours(server), ndif(server)):
        with pytest.raises(RemoteError, match="does not answer as"):
            there.latest()
    with pytest.raises(ServiceError, match="does not answer as"):
        environment.remote_env(serve(says(DEEP)).url)


@pytest.mark.parametrize(
    "told",
    [
        {"packages": {"torch": [1]}},
        {"packages": {}, "protocols": 5},
        {"packages": {}, "limits": [1]},
        {"packages": {}, "python_version": 3},
    ],
)
def test_a_server_that_tells_of_itself_in_no_known_way(serve: Any, told: Any) -> None:
    with pytest.raises(ServiceError, match="does not answer as"):
        environment.remote_env(serve(says(json.dumps(told).encode())).url)


def test_what_a_terminal_would_obey_is_not_in_a_refusal(serve: Any) -> None:
    body = json.dumps({"detail": "no\x1b]0;title\x07\x1b[2J\nreally"}).encode()
    server = serve(says(body, 403))
    for use in (ours(server).latest, ndif(server).latest, lambda: ask.ask("/", host=server.url)):
        with pytest.raises((RefusedError, ServiceError)) as caught:
            use()
        assert str(caught.value).isprintable() and "really" in str(caught.value)


@pytest.mark.parametrize("told", ["bytes 7-/9", "", "bytes x", "bytes -5"])
@pytest.mark.parametrize("of", ["ours", "ndif"])
def test_the_rest_of_a_result_is_of_the_place_that_was_asked_for(
    serve: Any, told: str, of: str
) -> None:
    """Else it would be put together wrongly, and nobody would know."""
    cut = says(b"A" * (MIB + 1), Content_Length=str(3 * MIB))
    other = says(b"B" * (2 * MIB), 206, **({"Content_Range": told} if told else {}))
    server = serve(one_of(cut, other))
    with pytest.raises(RemoteError, match="does not answer as"):
        if of == "ours":
            ours(server, 1.0).result({"size": 3 * MIB, "url": "/result"})
        else:
            ndif(server, 1.0).result(f"{server.url}/result")


def test_a_download_that_never_gets_further_is_given_up(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.5)
    monkeypatch.setattr(connection, "_PAUSES", (0.05,))
    server = serve(says(b"A" * (MIB + 1), Content_Length=str(3 * MIB)))  # each time from its begin
    with pytest.raises(RemoteError, match="is lost"):
        ours(server, 20.0).result({"size": 3 * MIB, "url": "/result"})


def test_an_end_without_a_result_is_no_empty_result(serve: Any) -> None:
    server = serve(says(event(status="COMPLETED")))
    environment._asked[server.url] = (
        time.monotonic(),
        {"protocols": ["nnsight/1"], "packages": {}},
    )
    with pytest.raises(PayloadError, match="tells of no result") as caught:
        RemoteBackend("model", server.url, job_id="j", timeout=5.0).wait()
    assert caught.value.job_id == "j"


# --- links and sockets of NDIF --------------------------------------------------------------------


def test_a_link_that_has_expired_does_not_ask_for_a_key(serve: Any) -> None:
    server = serve(says(b"<xml/>", 403))
    with pytest.raises(RemoteError, match=r"link to the result of the job j answers 403") as caught:
        ndif(server).result(f"{server.url}/result")
    assert "login" not in str(caught.value) and caught.value.job_id == "j"


def test_a_store_that_is_busy_is_asked_again(serve: Any) -> None:
    server = serve(one_of(says(b"", 503), says(b"", 500), says(b"values")))
    assert ndif(server).result(f"{server.url}/result") == b"values"


def test_a_block_that_was_not_taken_is_sent_again(serve: Any) -> None:
    taken = says(b'{"id": "j", "status": "RECEIVED"}')
    server = serve(one_of(says(b'{"detail": "starting"}', 503), says(b"", 429), taken))
    assert ndif(server).submit("model", [b"block"], stream=False).id == "j"
    assert [method for method, _, _ in server.asked] == ["POST"] * 3


def frame(content: bytes, kind: int = 1) -> bytes:
    assert len(content) < 126
    return bytes([0x80 | kind, len(content)]) + content


def greets(then: Callable[[Raw, socket.socket], None]) -> Answer:
    """A server of NDIF that takes a block, and says the rest on the socket."""

    def answer(raw: Raw, line: socket.socket, method: str, path: str) -> None:
        if method == "POST":
            return says(b'{"id": "j", "status": "RECEIVED"}')(raw, line, method, path)
        key = raw.asked[-1][2]["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        told = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        head = "HTTP/1.1 101 Said\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        line.sendall(f"{head}Sec-WebSocket-Accept: {told}\r\n\r\n".encode())
        line.sendall(frame(b'{"session_id": "s"}'))
        return then(raw, line)

    return answer


def dripped(head: bytes, piece: bytes) -> Answer:
    return greets(lambda raw, line: drips(head, piece)(raw, line, "", ""))


@pytest.mark.parametrize(
    "answer",
    [
        drips(b"HTTP/1.1 101 Said\r\nX: "),
        dripped(b"\x81\x7e\xff\xff", b"x"),
        dripped(b"", frame(b"", 9)),  # asks whether we are there, and again
        dripped(b"", frame(b"no state")),
        dripped(b"", frame(b'{"id": "of another", "status": "COMPLETED"}')),
    ],
)
def test_a_socket_is_not_listened_to_past_the_limit(serve: Any, answer: Answer) -> None:
    there = ndif(serve(answer), 0.7)
    began = time.monotonic()
    with pytest.raises(RemoteTimeoutError):
        list(there.events(there.submit("model", [b"block"], stream=True)))
    assert time.monotonic() - began < 4.0


def test_a_state_that_comes_in_place_of_the_answer_to_a_ping_is_heard(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndif08_connection, "PING", 0.3)
    states = [b'{"id": "j", "status": "LOG", "description": "one"}']
    states += [b'{"id": "j", "status": "COMPLETED", "data": "http://127.0.0.1:9/"}']

    def then(raw: Raw, line: socket.socket) -> None:
        for state in states:
            assert line.recv(100)[0] == 0x89  # we are asked whether we are there
            line.sendall(frame(state) + frame(b"", 10))
        raw.over.wait(10)

    there = ndif(serve(greets(then)), 10.0)
    found = list(there.events(there.submit("model", [b"block"], stream=True)))
    assert [each.status for each in found] == ["RECEIVED", "LOG", "COMPLETED"]
