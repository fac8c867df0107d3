"""Whatever is killed when: one end per job, no job lost, and the next job runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.running import MODEL, SLEEP, Server, alive, the_next_job_runs, until

Serve = Callable[..., Server]


def error_of(event: dict) -> str:
    assert event["status"] == "ERROR", event
    assert event["meta"]["error"]["message"] == event["description"]
    return event["meta"]["error"]["type"]


@pytest.mark.parametrize(
    "code", ["while True: pass", "import time; time.sleep(1e9)", "sum(range(10**12))"]
)
def test_the_time_limit_ends_what_does_not_end(shared: Server, code: str):
    last = shared.run(code)
    assert error_of(last) == "TimeLimit" and "2 seconds" in last["description"]
    the_next_job_runs(shared)


@pytest.mark.parametrize(
    "code, how",
    [
        ("import os; os._exit(3)", "ended with code 3"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV"),
        ("import os; os.closerange(3, 100); import time; time.sleep(1e9)", "SIGKILL"),
    ],
)
def test_a_job_that_ends_the_process(shared: Server, code: str, how: str):
    last = shared.run(code)
    assert error_of(last) == "Interrupted" and how in last["description"]
    the_next_job_runs(shared)


def test_what_a_job_leaves_running_ends_with_it(shared: Server, tmp_path: Path):
    note = tmp_path / "pid"
    code = (
        "import subprocess; p = subprocess.Popen(['sleep', '1000']);"
        f"open({str(note)!r}, 'w').write(str(p.pid)); import time; time.sleep(1e9)"
    )
    assert error_of(shared.run(code)) == "TimeLimit"
    until(lambda: not alive(int(note.read_text())))


def test_a_stopped_process_is_found(shared: Server):
    job = shared.send("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    last = shared.events(job)[-1]
    assert error_of(last) in ("Interrupted", "TimeLimit")
    the_next_job_runs(shared)


def test_a_process_that_is_stopped_while_it_waits_is_found(serve: Serve):
    server = serve(silence=1.5)
    the_next_job_runs(server)
    os.kill(server.worker(), signal.SIGSTOP)
    the_next_job_runs(server)
    assert server.model()["starts"] == 2


def test_a_process_that_is_stopped_in_a_job_is_found(serve: Serve):
    server = serve(silence=1.5)
    job = server.send(SLEEP)
    server.reach(job, "RUNNING")
    os.kill(server.worker(), signal.SIGSTOP)
    last = server.events(job)[-1]
    assert error_of(last) == "Interrupted" and "no sign of life" in last["description"]
    the_next_job_runs(server)


def test_a_process_that_is_killed_while_it_loads_or_waits(serve: Serve):
    server = serve()
    os.kill(server.worker(), signal.SIGKILL)
    the_next_job_runs(server)
    os.kill(server.worker(), signal.SIGKILL)
    the_next_job_runs(server)


def test_a_running_job_is_cancelled(shared: Server):
    job = shared.send(SLEEP)
    waiting = shared.send("result = b'1'")
    shared.reach(job, "RUNNING")
    assert shared.call("DELETE", f"/job/{job}").json()["cancelled"] is True
    assert error_of(shared.events(job)[-1]) == "Cancelled"
    assert shared.call("DELETE", f"/job/{job}").json()["cancelled"] is False
    assert shared.events(waiting)[-1]["status"] == "COMPLETED"


def test_a_waiting_job_is_cancelled(shared: Server):
    running = shared.send(SLEEP)
    shared.reach(running, "RUNNING")
    waiting = shared.send("result = b'1'")
    assert shared.call("DELETE", f"/job/{waiting}").json()["cancelled"] is True
    assert [e["status"] for e in shared.events(waiting)][-2:] == ["QUEUED", "ERROR"]
    shared.call("DELETE", f"/job/{running}")
    the_next_job_runs(shared)


def test_weights_that_a_job_changed_are_put_back(shared: Server):
    starts = shared.model()["starts"]
    events = shared.events(shared.send("model._changed = ['h.0.weight']; result = b'1'"))
    assert events[-1]["status"] == "COMPLETED"
    assert "h.0.weight" in events[-2]["description"]
    assert shared.run("result = str(model._changed).encode()")["data"]["inline"] == "W10="
    assert shared.model()["starts"] == starts + 1


def test_a_model_that_cannot_be_loaded(serve: Serve):
    server = serve("--models", "fake/model,fake/broken")
    key = MODEL.replace("fake/model", "fake/broken")
    last = server.run("result = b'1'", nnsight_model_key=key)
    assert error_of(last) == "NotLoaded" and "the files are not whole" in last["description"]
    answer = server.post("result = b'1'", nnsight_model_key=key)
    assert answer.status_code == 503 and answer.headers["retry-after"]
    the_next_job_runs(server)


# --- the server ----------------------------------------------------------------------------------


def test_jobs_outlive_the_server(serve: Serve):
    """Killed with one job done, one running and two waiting."""
    server = serve()
    done = server.send("result = b'done'")
    server.events(done)
    running = server.send(SLEEP)
    server.reach(running, "RUNNING")
    waiting = [server.send(f"result = b'{i}'") for i in range(2)]
    worker = server.worker()
    server.kill()
    until(lambda: not alive(worker))
    server.start()
    last = server.events(running)[-1]
    assert error_of(last) == "Interrupted" and "server stopped" in last["description"]
    assert [server.events(job)[-1]["status"] for job in waiting] == ["COMPLETED"] * 2
    assert server.get(f"/result/{done}").content == b"done"
    assert not list((server.data / "requests").iterdir())


def test_a_server_that_is_asked_to_stop(serve: Serve):
    server = serve()
    running = server.send(SLEEP)
    server.reach(running, "RUNNING")
    waiting = server.send("result = b'1'")
    with server.get(f"/events/{running}", stream=True) as following:
        lines = following.iter_lines()
        while b"RUNNING" not in next(lines):
            pass
        worker = server.worker()
        server.stop()
        assert b"ERROR" not in b"".join(lines)  # it ends, so that the client may come back
    assert not alive(worker)
    server.start()
    assert error_of(server.events(running)[-1]) == "Interrupted"
    assert server.events(waiting)[-1]["status"] == "COMPLETED"


def test_a_request_that_is_not_whole_after_a_power_cut(serve: Serve):
    server = serve()
    server.reach(server.send(SLEEP), "RUNNING")
    torn, gone = server.send("result = b'1'"), server.send("result = b'1'")
    server.kill()
    (server.data / "requests" / torn).write_bytes(b"")
    (server.data / "requests" / gone).unlink()
    (server.data / "requests" / "stray.part").write_bytes(b"...")
    server.start()
    for job in (torn, gone):
        assert "not whole" in server.events(job)[-1]["description"]
    assert not (server.data / "requests" / "stray.part").exists()


def test_a_folder_belongs_to_one_server(serve: Serve):
    serve()
    with pytest.raises(AssertionError, match=r"another server works in .*--data"):
        serve()


def test_a_model_that_is_no_longer_served(serve: Serve):
    server = serve()
    server.reach(server.send(SLEEP), "RUNNING")
    job = server.send("result = b'1'")
    server.kill()
    server.words = ("--models", "fake/other")
    server.start()
    assert error_of(server.events(job)[-1]) == "NotServed"


def test_random_kills_lose_nothing():
    """A short run of `killloop.py`, which can run for longer by hand."""
    from tests.server.killloop import loop

    count = loop(jobs=20, seconds=6.0, seed=1)
    assert count["COMPLETED"] + count["ERROR"] == 20


def test_a_block_that_gives_way_does_not_cost_the_model(shared: Server):
    """Time and cancelling interrupt as Ctrl-C does; only what goes on is killed."""
    the_next_job_runs(shared)
    starts = shared.model()["starts"]
    assert error_of(shared.run("while True: pass")) == "TimeLimit"
    job = shared.send(SLEEP)
    shared.reach(job, "RUNNING")
    shared.call("DELETE", f"/job/{job}")
    the_next_job_runs(shared)
    assert shared.model()["starts"] == starts
    stubborn = (
        "import time\nwhile True:\n  try:\n    time.sleep(1e9)\n  except BaseException: pass\n"
    )
    assert error_of(shared.run(stubborn)) == "TimeLimit"
    the_next_job_runs(shared)
    assert shared.model()["starts"] == starts + 1


def test_what_ends_just_in_time_is_complete(shared: Server):
    code = "import time\ntry:\n  time.sleep(1e9)\nexcept KeyboardInterrupt:\n  result = b'done'"
    last = shared.run(code)
    assert last["status"] == "COMPLETED" and shared.get(last["data"]["url"]).content == b"done"


@pytest.mark.parametrize(
    "code, type",
    [
        ("x = bytearray(10 * 2**30)", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import sys; sys.stdout = None; sys.stderr.close(); 1 / 0", "ZeroDivisionError"),
        ("class E(Exception):\n  def __str__(self): 1 / 0\nraise E", "E"),
        ("import re; re.match(r'(a+)+$', 'a' * 40 + 'b')", "TimeLimit"),
        ("import os\nwhile True:\n  if not os.fork(): os._exit(0)", "TimeLimit"),
    ],
)
def test_what_a_block_may_do_to_itself(serve: Serve, code: str, type: str):
    server = serve(memory=4 * 2**30, seconds=1.0)
    assert server.run(code)["meta"]["error"]["type"] == type
    the_next_job_runs(server)
