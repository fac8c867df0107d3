"""A job and its result over lines that break, to servers that are busy, slow or gone."""

from __future__ import annotations

import email.utils
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nnsight.remote import connection as lines
from nnsight.remote import line as line_of
from nnsight.remote.connection import Connection
from nnsight.remote.deadline import Deadline
from nnsight.remote.errors import RefusedError, RemoteError, RemoteTimeoutError
from nnsight.remote.messages import COMPLETED, ERROR, LOG, Event
from tests.remote.proxy import Line
from tests.server.running import MODEL, Server, until

LIMIT = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server") / "data", heartbeat=0.2, seconds=10.0)
    yield found
    found.kill()


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    found = Line(server.url)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_PAUSES", (0.02, 0.05))
    monkeypatch.setattr(lines, "SILENCE", 1.5)
    monkeypatch.setattr(lines, "PATIENCE", 5.0)


def connected(url: str, seconds: float = LIMIT, **more: Any) -> Connection:
    return Connection(url, deadline=Deadline.after(seconds), **more)


def run(there: Connection, code: str) -> list[Event]:
    answer = there.submit(MODEL, [code.encode()], stream=True)
    return list(there.events(answer))


def whole(events: list[Event]) -> None:
    """The log of one job, from its first event to its one end."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.ends for event in events] == [False] * (len(events) - 1) + [True]
    assert len({event.id for event in events}) == 1


PRINTS = (
    "import time\nfor n in range(5):\n    say(f'{n}\\n')\n    time.sleep(0.03)\nresult = b'values'"
)


def test_the_log_of_a_job_and_its_result(server: Server) -> None:
    there = connected(server.url)
    events = run(there, PRINTS)
    whole(events)
    assert [e.description for e in events if e.status == LOG] == list("01234")
    assert there.result(events[-1].data) == b"values"


@pytest.mark.parametrize("cut", [0, 1, 40, 150, 300, 400, 500, 700])
def test_a_stream_that_is_cut_goes_on_where_it_was(line: Line, server: Server, cut: int) -> None:
    jobs = len(server.get("/jobs").json())
    line.cuts = [cut]
    there = connected(line.url)
    events = run(there, PRINTS)
    whole(events)
    assert line.connections > 1
    assert [e.description for e in events if e.status == LOG] == list("01234")
    assert there.result(events[-1].data) == b"values"
    assert len(server.get("/jobs").json()) == jobs + 1  # sent twice, perhaps, and run once


def test_a_stream_that_is_cut_again_and_again(line: Line) -> None:
    line.cuts = [260, 300, 0, 320, 290, 0, 350]
    there = connected(line.url)
    events = run(there, PRINTS)
    whole(events)
    assert there.result(events[-1].data) == b"values"


def test_a_line_that_is_dead_and_looks_alive(line: Line) -> None:
    there = connected(line.url)
    answer = there.submit(MODEL, [PRINTS.encode()], stream=True)
    events = there.events(answer)
    first = next(events)
    line.hold()
    threading.Timer(2.0, line.let_go).start()
    rest = list(events)
    whole([first, *rest])


def test_a_large_block_tells_of_its_way_there(line: Line, server: Server) -> None:
    sizes: list[int] = []
    told: list[int] = []

    def upload(size: int) -> Any:
        sizes.append(size)
        return told.append

    there = connected(line.url, upload=upload)
    code = b"result = b'values'\n# " + b"x" * 3_000_000
    events = list(there.events(there.submit(MODEL, [code], stream=True)))
    whole(events)
    assert sizes == [len(code)]
    assert sum(told) == len(code) and len(told) > 2
    run(connected(line.url, upload=upload), "result = b''")
    assert sizes == [len(code)]  # a small one is there before anybody could look


def test_a_result_that_is_cut_off_is_fetched_on(line: Line) -> None:
    code = "result = bytes(range(256)) * 2000"
    there = connected(line.url)
    last = run(there, code)[-1]
    line.cuts = [200_000, 700, 0, 100_000]
    line_of._sessions.clear()
    progress: list[int] = []
    found = there.result(last.data, progress.append)
    assert found == bytes(range(256)) * 2000
    assert sum(progress) == len(found)
    assert line.connections >= 4


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    there = connected(url, 1.0)
    with pytest.raises(RemoteTimeoutError, match="nothing listens there"):
        run(there, "result = b''")


def test_a_server_that_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(RemoteError, match="is lost: nothing listens there"):
        run(connected(url), "result = b''")


def test_one_who_takes_calls_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(RemoteTimeoutError):
            run(connected(url, 1.0), "result = b''")
        assert time.monotonic() - began < 10


def test_a_job_that_says_nothing_until_the_time_is_over_is_no_broken_line() -> None:
    event, over = b'{"id": "a", "status": "RUNNING", "seq": 1}\n', threading.Event()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def serve(listening: socket.socket) -> None:
        line, _ = listening.accept()
        with line:
            line.recv(65536)
            line.sendall(head + f"{len(event):x}\r\n".encode() + event + b"\r\n")
            over.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(RemoteTimeoutError) as caught:
            list(connected(url, 0.5, job="a").events())
        over.set()
        thread.join()
    assert "When it ended" not in str(caught.value) and "'a'" in str(caught.value)


def test_the_users_time_limit_names_the_job_which_goes_on(server: Server) -> None:
    there = connected(server.url, 0.7)
    with pytest.raises(RemoteTimeoutError, match=r"job_id=") as caught:
        run(there, "import time\ntime.sleep(1.5)\nresult = b'late'")
    job = caught.value.job_id
    assert job
    again = connected(server.url, job=job)
    events = list(again.events())
    assert events[-1].status == COMPLETED
    assert again.result(events[-1].data) == b"late"


def test_a_job_that_is_cancelled(server: Server) -> None:
    there = connected(server.url)
    events = there.events(there.submit(MODEL, [b"while True: pass"], stream=True))
    for event in events:
        if event.status == "RUNNING":
            there.cancel()
            break
    last = list(events)[-1]
    assert last.status == ERROR
    assert last.meta["error"]["type"] == "Cancelled"
    whole_again = run(connected(server.url), "result = b'next'")
    assert whole_again[-1].status == COMPLETED


def test_a_key_with_too_many_jobs_waits_for_its_turn(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", jobs_per_key=1)
    try:
        slow = connected(server.url)
        slow.submit(MODEL, [b"import time\ntime.sleep(1)\nresult = b''"], stream=False)
        told: list[str] = []
        there = connected(server.url, notice=told.append)
        assert run(there, "result = b'second'")[-1].status == COMPLETED
    finally:
        server.kill()


def test_a_server_that_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 60.0)  # a busy machine takes a while to start one
    server = Server(tmp_path / "data")
    line = Line(server.url)
    try:
        first = connected(line.url)
        running = first.events(first.submit(MODEL, [b"while True: pass"], stream=True))
        while next(running).status != "RUNNING":
            pass
        second = connected(line.url)
        waiting = second.events(second.submit(MODEL, [b"result = b'waited'"], stream=True))
        next(waiting)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        server.start()
        line._server = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        ended = list(running)[-1]
        assert ended.status == ERROR
        assert ended.meta["error"]["type"] == "Interrupted"
        last = list(waiting)[-1]
        assert last.status == COMPLETED
        assert second.result(last.data) == b"waited"
    finally:
        line.close()
        server.kill()


@pytest.mark.parametrize(
    ("body", "key", "words"),
    [
        (b"", MODEL, "422: The request is empty"),
        (b"x", MODEL.replace("fake/model", "another/model"), "another/model"),
        (b"x" * 4096, MODEL, "413"),
    ],
)
def test_what_a_server_does_not_take_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, key: str, words: str
) -> None:
    server = Server(tmp_path_factory.mktemp("small") / "data", body=1024)
    try:
        with pytest.raises(RefusedError, match=words) as caught:
            connected(server.url).submit(key, [body], stream=True)
        assert "\n" not in str(caught.value)
    finally:
        server.kill()


def test_a_job_that_nobody_knows(server: Server) -> None:
    with pytest.raises(RemoteError, match="knows no job 'abc'"):
        connected(server.url, job="abc").latest()
    with pytest.raises(RemoteError, match="abc"):
        list(connected(server.url, job="abc").events())


@pytest.mark.parametrize(
    "data",
    [None, {}, {"size": -1, "url": "/x"}, {"size": 3, "url": "http://elsewhere/x"}, {"size": "3"}],
)
def test_a_result_that_no_server_of_ours_tells_of(server: Server, data: Any) -> None:
    with pytest.raises(RemoteError, match="does not answer as"):
        connected(server.url).result(data)


def test_one_connection_serves_many_jobs(line: Line) -> None:
    for _ in range(5):
        assert run(connected(line.url), "result = b''")[-1].status == COMPLETED
    assert line.connections == 1


def test_clients_side_by_side_are_not_mixed(line: Line) -> None:
    found: dict[int, bytes] = {}

    def one(number: int) -> None:
        there = connected(line.url)
        last = run(there, f"result = b'{number}' * 100_000")[-1]
        found[number] = bytes(there.result(last.data))

    line.cuts = [300, 400, 100_000]
    threads = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(found) == 8)
    assert all(value == str(n).encode() * 100_000 for n, value in found.items())


# --- a server that says what a test has it say ----------------------------------------------------


class Scripted:
    """Gives its answers one after the other: status, headers, and the bytes of the body.

    A body that is shorter than its `Content-Length` is a line that is cut.
    """

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listening.accept()
                with line, suppress(OSError):
                    self._answer(line)

    def _answer(self, line: socket.socket) -> None:
        headers = {}
        with line.makefile("rb") as file:
            method, path, _ = file.readline().decode().split()
            while (text := file.readline().decode().strip()) != "":
                name, _, value = text.partition(": ")
                headers[name.lower()] = value
            file.read(int(headers.get("content-length", 0)))
        self.asked.append((method, path, headers))
        status, more, body = self.answers.pop(0)
        more = {"Content-Length": str(len(body)), "Connection": "close", **more}
        head = "".join(f"{name}: {value}\r\n" for name, value in more.items())
        line.sendall(f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(lines.time, "sleep", found.append)
    return found


DONE = b'{"id": "j1", "seq": 1, "status": "COMPLETED", "data": {"size": 6, "url": "/result/j1"}}\n'
BUSY = b'{"detail": "too many jobs"}'


def test_a_server_that_is_busy_is_asked_again_when_it_says(slept: list[float]) -> None:
    server = Scripted(
        (429, {"Retry-After": "7"}, BUSY),
        (503, {"Retry-After": "3.5"}, b"no JSON"),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, BUSY),
        (503, {"Retry-After": email.utils.formatdate(time.time() + 15, usegmt=True)}, BUSY),
        (502, {}, b""),
        (200, {}, DONE),
    )
    there = connected(server.url)
    events = list(there.events(there.submit(MODEL, [b"block"], stream=True)))
    server.close()
    assert [event.status for event in events] == [COMPLETED]
    assert slept[:2] == [7.0, 3.5]
    assert len(slept) == 5 and 8 < slept[3] <= 15
    keys = {headers["idempotency-key"] for _, _, headers in server.asked}
    assert len(server.asked) == 6 and len(keys) == 1  # it may have taken each of them


def test_a_line_that_breaks_after_a_long_wait_is_not_given_up(monkeypatch) -> None:
    monkeypatch.setattr(lines, "PATIENCE", 0.3)
    server = Scripted((429, {"Retry-After": "0.5"}, BUSY), (502, {}, b""), (200, {}, DONE))
    there = connected(server.url)
    events = list(there.events(there.submit(MODEL, [b"block"], stream=True)))
    server.close()
    assert [event.status for event in events] == [COMPLETED]


def test_a_server_that_stays_busy_is_waited_for_until_the_users_limit() -> None:
    server = Scripted(*[(503, {"Retry-After": "60"}, BUSY)] * 3)
    there = connected(server.url, 0.5)
    with pytest.raises(RemoteTimeoutError, match="too many jobs"):
        there.submit(MODEL, [b"block"], stream=True)
    server.close()


def test_a_link_that_has_expired_says_so_with_the_job(slept: list[float]) -> None:
    server = Scripted((404, {}, b'{"detail": "This result was kept for its time and is gone."}'))
    there = connected(server.url, job="j1")
    with pytest.raises(RefusedError, match="404: This result was kept") as caught:
        there.result({"size": 6, "url": "/result/j1"})
    server.close()
    assert caught.value.job_id == "j1"
    assert not slept  # to ask again would not help


def test_a_server_that_knows_no_ranges_is_read_from_the_beginning(slept: list[float]) -> None:
    mib = 1 << 20
    values = bytes(range(256)) * (3 * mib // 256)
    length = {"Content-Length": str(len(values))}
    server = Scripted(
        (200, length, values[: mib + 9]),
        (200, length, values[: 2 * mib + 9]),
        (206, {"Content-Range": f"bytes {2 * mib}-{len(values) - 1}/*"}, values[2 * mib :]),
    )
    found = connected(server.url, job="j1").result({"size": len(values), "url": "/result/j1"})
    server.close()
    assert found == values
    ranges = [headers.get("range") for _, _, headers in server.asked]
    assert ranges == [None, f"bytes={mib}-", f"bytes={2 * mib}-"]


def test_a_result_longer_than_it_was_said_to_be_is_refused(slept: list[float]) -> None:
    server = Scripted((200, {}, b"values and more"))
    with pytest.raises(RemoteError, match="does not answer as"):
        connected(server.url, job="j1").result({"size": 6, "url": "/result/j1"})
    server.close()
