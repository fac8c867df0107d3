"""Each limit, and the sentence that tells of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.running import MODEL, SEND, SLEEP, Server, the_next_job_runs

Serve = Callable[..., Server]
A_SENTENCE = re.compile(r"[A-Z0-9'/].*\.$")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    sizes = {"body": 1000, "result": 1000, "prints": 5, "print_bytes": 200}
    data = tmp_path_factory.mktemp("small") / "data"
    server = Server(data, **sizes, queue=4, jobs_per_key=3)
    yield server
    server.kill()


def test_a_request_too_large(small: Server):
    for body in (b" " * 1001, iter([b" " * 600, b" " * 600]), b" " * 5_000_000):
        answer = small.call("POST", "/request", data=body, headers=SEND)
        assert answer.status_code == 413 and "1000 bytes" in answer.json()["detail"]
    assert not list((small.data / "requests").iterdir())


def test_a_form_too_large(small: Server):
    files = {"blob": ("request", b" " * 200_000), "data": (None, '{"model_key": "x"}')}
    answer = small.call("POST", "/request", files=files)
    assert answer.status_code == 413


def test_a_result_too_large(small: Server):
    last = small.run("result = b' ' * 1001")
    assert last["status"] == "ERROR" and "data" not in last
    assert last["meta"]["error"]["type"] == "ResultTooLarge"
    assert "1001 bytes" in last["description"]


def test_too_many_lines(small: Server):
    events = small.events(small.send("for i in range(100): say(f'{i}\\n')"))
    lines = [e["description"] for e in events if e["status"] == "LOG"]
    assert lines[:5] == list("01234") and len(lines) == 6 and "more than 5 lines" in lines[5]
    assert events[-1]["status"] == "COMPLETED"


def test_too_long_lines(small: Server):
    events = small.events(small.send("say('x' * 10**7); say('y\\n')"))
    lines = [e["description"] for e in events if e["status"] == "LOG"]
    assert len(lines) == 1 and "left out" in lines[0]


def test_too_many_jobs_of_a_key(small: Server):
    jobs = [small.send(SLEEP) for _ in range(3)]
    answer = small.post("result = b'1'")
    assert answer.status_code == 429 and answer.headers["retry-after"] == "5"
    for job in jobs:
        small.call("DELETE", f"/job/{job}")
    the_next_job_runs(small)


def test_a_full_queue(serve: Serve):
    server = serve(queue=2)
    first = server.send(SLEEP)
    server.reach(first, "RUNNING")
    waiting = [server.send("result = b'1'") for _ in range(2)]
    answer = server.post("result = b'1'")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "10"
    server.call("DELETE", f"/job/{first}")
    assert [server.events(job)[-1]["status"] for job in waiting] == ["COMPLETED"] * 2


@pytest.mark.parametrize(
    "status, headers, body",
    [
        (415, {"Content-Type": "application/octet-stream"}, b"1"),
        (415, {"Content-Type": ""}, b"1"),
        (422, {"nnsight-model-key": "nothing"}, b"1"),
        (422, {"nnsight-model-key": "a:[1]"}, b"1"),
        (422, {"nnsight-model-key": 'a:{"repo_id": 3}'}, b"1"),
        (422, {"nnsight-model-key": r'a:{"repo_id": "\ud800"}'}, b"1"),
        (404, {"nnsight-model-key": 'a:{"repo_id": "other/model"}'}, b"1"),
        (404, {"nnsight-model-key": MODEL.replace("}", ', "revision": "v2"}')}, b"1"),
        (422, {"Idempotency-Key": "x" * 201}, b"1"),
        (422, {}, b""),
    ],
)
def test_what_cannot_be_read_is_answered(small: Server, status: int, headers: dict, body: bytes):
    answer = small.call("POST", "/request", data=body, headers={**SEND, **headers})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"detail"} and A_SENTENCE.match(answer.json()["detail"])


def test_the_default_revision_has_two_names(small: Server):
    for revision in ("null", '"main"'):
        named = f'{{"repo_id": "fake/model", "revision": {revision}}}'
        key = f"nnsight.modeling.language.LanguageModel:{named}"
        assert small.run("result = b'1'", nnsight_model_key=key)["status"] == "COMPLETED"


@pytest.mark.parametrize(
    "status, path",
    [
        (404, "/response/0123"),
        (404, "/events/0123"),
        (404, "/result/0123"),
        (404, "/nothing"),
        (403, "/result/0123?token=1.2"),
        (403, "/result/0123?token=99999999999.%C3%A9"),
        (403, f"/result/0123?token={'9' * 5000}.1"),
        (405, "/request"),
    ],
)
def test_what_is_not_there_is_answered(small: Server, status: int, path: str):
    answer = small.get(path)
    assert answer.status_code == status and set(answer.json()) == {"detail"}


def test_a_cursor_that_is_no_number(small: Server):
    job = small.send("result = b'1'")
    assert small.get(f"/events/{job}?after=-1").status_code == 422


def test_ended_jobs_are_forgotten(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    server = serve(ttl=0.5)
    job = server.send("result = b'1'")
    server.events(job)
    server.kill()
    server.start()  # it looks at once
    import time

    time.sleep(0.6)
    server.kill()
    server.start()
    assert server.get(f"/response/{job}").status_code == 404
    assert not list((server.data / "results").iterdir())


def test_a_full_disk(serve: Serve):
    server = serve("--largest-file", "3000000")
    answer = server.post(b"#" * 4_000_000)
    assert answer.status_code == 507 and answer.headers["retry-after"]
    last = server.run("result = b' ' * 4_000_000")
    assert last["status"] == "ERROR" and last["meta"]["error"]["type"] == "ResultLost"
    the_next_job_runs(server)
    assert not list((server.data / "requests").iterdir())


def keys_of(server: Server, *names: str) -> list[str]:
    from nnsight.server import keys
    from nnsight.server.store import Store

    store = Store(server.data / "server.db")
    made = [keys.add(store, name, trusted=True) for name in names]
    store.close()
    return made


def test_one_key_does_not_hold_up_another(serve: Serve, tmp_path: Path):
    """Twenty jobs of one key wait; a job of another key is among the first to run."""
    all_sent = tmp_path / "all-sent"
    server = serve()
    many, one = keys_of(server, "many", "one")
    server.headers = {"ndif-api-key": many}
    code = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)"
    server.reach(server.send(code.format(str(all_sent))), "RUNNING")
    jobs = [server.send("result = b'1'") for _ in range(20)]
    server.headers = {"ndif-api-key": one}
    quick_one = server.send("result = b'1'")
    all_sent.touch()
    quick = server.events(quick_one)[-1]
    server.headers = {"ndif-api-key": many}
    ends = sorted(server.events(job)[-1]["ts"] for job in jobs)
    assert quick["ts"] < ends[2]


def test_a_quota_of_one_key_is_not_that_of_another(serve: Serve):
    server = serve(jobs_per_key=2)
    many, one = keys_of(server, "many", "one")
    server.headers = {"ndif-api-key": many}
    running = server.send(SLEEP)
    server.send("result = b'1'")
    assert server.post("result = b'1'").status_code == 429
    server.headers = {"ndif-api-key": one}
    job = server.send("result = b'1'")
    server.headers = {"ndif-api-key": many}
    server.call("DELETE", f"/job/{running}")
    server.headers = {"ndif-api-key": one}
    assert server.events(job)[-1]["status"] == "COMPLETED"


def test_what_torch_does_not_note_is_put_back_before_another_user(serve: Serve):
    server = serve()
    mine, other = keys_of(server, "mine", "other")
    look = "result = str(model._hidden).encode()"
    server.headers = {"ndif-api-key": mine}
    server.run("model._hidden = ['h.0.weight']")
    server.headers = {"ndif-api-key": other}
    assert server.run(look)["data"]["inline"] == "W10="
    assert server.model()["starts"] == 2
