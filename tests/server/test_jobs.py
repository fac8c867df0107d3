"""A job from the request to the result, over each of the channels."""

from __future__ import annotations

import base64
import uuid

from tests.server.running import Server


def test_a_job_runs_and_gives_its_result(shared: Server):
    events = shared.events(shared.send("say('hello\\nthere\\n'); result = b'42'"))
    told = [(e["status"], e["description"]) for e in events if e["status"] == "LOG"]
    assert told == [("LOG", "hello"), ("LOG", "there")]
    assert [e["status"] for e in events if e["status"] not in ("LOG", "DEPLOYING")] == [
        *("RECEIVED", "QUEUED", "DISPATCHED", "RUNNING", "COMPLETED")
    ]
    last = events[-1]
    assert base64.b64decode(last["data"]["inline"]) == b"42" and last["data"]["size"] == 2
    assert last["meta"]["runtime"] > 0 and last["meta"]["max_memory_usage"] == 7
    answer = shared.get(last["data"]["url"])
    assert answer.content == b"42"


def test_the_answer_to_a_request_may_be_its_events(shared: Server):
    answer = shared.post("result = b'1'", nnsight_stream="1")
    lines = [line for line in answer.text.split("\n") if line]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert '"RECEIVED"' in lines[0] and '"COMPLETED"' in lines[-1]


def test_a_large_result_is_read_in_parts(shared: Server):
    last = shared.run("result = bytes(range(256)) * 4096")
    assert last["data"] == {"size": 2**20, "url": f"/result/{last['id']}"}
    whole = shared.get(last["data"]["url"])
    assert whole.content == bytes(range(256)) * 4096
    assert whole.headers["content-length"] == str(2**20) and whole.headers["etag"]
    part = shared.get(last["data"]["url"], headers={"Range": "bytes=1000000-"})
    assert part.status_code == 206 and part.content == whole.content[1000000:]


def test_a_client_that_comes_back_misses_nothing(shared: Server):
    job = shared.send("for i in range(50): say(f'{i}\\n')")
    first = []
    for event in shared.follow(job):
        first.append(event)
        if event["status"] == "LOG":
            break
    rest = list(shared.follow(job, after=first[-1]["seq"]))
    assert [e["seq"] for e in first + rest] == list(range(1, len(first) + len(rest) + 1))
    assert [e["description"] for e in first + rest if e["status"] == "LOG"] == [
        str(i) for i in range(50)
    ]
    assert list(shared.follow(job, after=rest[-1]["seq"])) == []


def test_the_newest_state_is_never_a_printed_line(shared: Server):
    job = shared.send("say('x\\n')")
    assert shared.events(job)[-2]["status"] == "LOG"
    answer = shared.get(f"/response/{job}").json()
    assert answer["status"] == "COMPLETED"
    assert set(answer) == {"id", "status", "description", "data", "meta"}


def test_an_error_of_the_block_reaches_the_client_with_what_was_saved(shared: Server):
    code = "result = b'so far'; failure = Failure('ValueError', 'no')"
    last = shared.run(code)
    assert last["status"] == "ERROR" and last["description"] == "ValueError: no"
    assert last["meta"]["error"]["type"] == "ValueError"
    assert shared.get(last["data"]["url"]).content == b"so far"


def test_an_error_that_is_ours_is_told_and_the_next_job_runs(shared: Server):
    last = shared.run("1 / 0")
    assert last["status"] == "ERROR" and "ZeroDivisionError" in last["description"]
    assert last["meta"]["error"]["phase"] == "server"
    assert shared.run("result = b'1'")["status"] == "COMPLETED"


def test_a_request_sent_twice_is_one_job(shared: Server):
    token = str(uuid.uuid4())
    ran = {shared.send("result = b'1'", Idempotency_Key=token) for _ in range(3)}
    assert len(ran) == 1
    assert shared.send("result = b'1'", Idempotency_Key=str(uuid.uuid4())) not in ran


def test_jobs_of_the_key_are_listed(shared: Server):
    job = shared.send("result = b'1'")
    newest = shared.get("/jobs").json()[0]
    assert newest["id"] == job and newest["model"] == "fake/model"


def test_a_line_without_an_end_is_told_too(shared: Server):
    events = shared.events(shared.send("say('a'); say('b\\nc'); say(' \\ud800')"))
    told = [(e.get("description"), e.get("meta")) for e in events if e["status"] == "LOG"]
    goes_on = {"end": ""}
    assert told == [("a", goes_on), ("b", None), ("c", goes_on), (" ?", goes_on)]


def test_a_result_of_nothing_is_a_result(shared: Server):
    assert "data" not in shared.run("result = None")
    last = shared.run("result = b''")
    assert last["data"]["size"] == 0 and shared.get(last["data"]["url"]).content == b""
