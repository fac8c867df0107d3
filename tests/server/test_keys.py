"""Who may ask what; and what a key never shows up in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import websocket

from nnsight.server import keys
from nnsight.server.store import Store
from nnsight.server.tokens import Tokens
from tests.server.running import MODEL, Server, until

JOB_PATHS = ("/events/{}", "/response/{}", "/result/{}")
CLOSED = ("/jobs", "/env", "/status", "/whoami", "/metrics")


class Locked(Server):
    """A server with three keys."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        store = Store(data / "server.db")
        self.mine, self.other = (
            keys.add(store, name, trusted=True, as_uuid=name == "other")
            for name in ("mine", "other")
        )
        self.untrusted = keys.add(store, "guest", trusted=False)
        store.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory):
    server = Locked(tmp_path_factory.mktemp("locked") / "data")
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def as_nobody(locked: Locked):
    locked.headers = {}


def as_(server: Locked, key: str) -> Locked:
    server.headers = {"ndif-api-key": key}
    return server


def test_every_path_needs_a_key(locked: Locked):
    job = as_(locked, locked.mine).send("result = b'1'")
    locked.events(job)
    closed = [*CLOSED, *(path.format(job) for path in JOB_PATHS), f"/result/{job}?token="]
    for path in closed:
        locked.headers = {}
        assert locked.get(path).status_code in (401, 403), path
        locked.headers = {"ndif-api-key": str(uuid.uuid4())}
        assert locked.get(path).status_code == 403, path
        locked.headers = {"Authorization": f"Bearer {locked.mine}"}
        if "token" not in path:
            assert locked.get(path).status_code == 200, path
    locked.headers = {}
    assert locked.call("DELETE", f"/job/{job}").status_code == 401
    assert locked.post("result = b'1'").status_code == 401
    for path in ("/", "/ping", "/connected", "/docs"):
        assert locked.get(path).status_code == 200


def test_a_path_that_is_added_needs_a_key_too(locked: Locked):
    table = locked.get("/docs").text
    paths = re.findall(r"<code>(GET|POST|DELETE)</code><td><code>(.*?)</code>", table)
    assert len(paths) >= 14 and ("GET", "/jobs") in paths
    opened = {path for method, path in paths if locked.call(method, path).status_code != 401}
    assert opened == {"/", "/ping", "/connected", "/docs"}


def test_jobs_of_another_key_are_not_there(locked: Locked):
    job = as_(locked, locked.mine).send("result = b'1'")
    as_(locked, locked.other)
    for path in JOB_PATHS:
        assert locked.get(path.format(job)).status_code == 404
    assert locked.call("DELETE", f"/job/{job}").status_code == 404
    assert job not in locked.get("/jobs").text


def test_two_keys_may_send_under_one_token(locked: Locked):
    first = as_(locked, locked.mine).send("result = b'1'", Idempotency_Key="same")
    assert as_(locked, locked.other).send("result = b'2'", Idempotency_Key="same") != first


def test_a_key_that_is_not_trusted(locked: Locked):
    ended = as_(locked, locked.untrusted).run("result = b'1'")
    assert ended["status"] == "COMPLETED" and ended["data"]["size"] == len(b"apart")
    assert locked.get("/whoami").json()["name"] == "guest"


def test_a_socket_needs_a_key(locked: Locked):
    address = locked.url.replace("http", "ws") + "/subscribe"
    with pytest.raises(websocket.WebSocketBadStatusException):
        websocket.create_connection(address, timeout=20)
    header = [f"ndif-api-key: {locked.other}"]
    socket = websocket.create_connection(address, timeout=20, header=header)
    assert "session_id" in socket.recv()
    socket.close()


def test_a_page_of_another_site_is_refused(locked: Locked, shared: Server):
    for server in (locked, shared):
        answer = server.get("/status", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403 and "evil.example" in answer.json()["detail"]
    own = shared.url
    assert shared.get("/status", headers={"Origin": own}).status_code == 200
    answer = shared.get("/status", headers={"Host": "evil.example:8001"})
    assert answer.status_code == 403 and "localhost" in answer.json()["detail"]
    assert shared.get("/status", headers={"Host": "localhost"}).status_code == 200


def test_a_key_is_in_no_file_and_no_log(locked: Locked):
    as_(locked, locked.mine).run("result = b'1'")
    files = [path for path in locked.data.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in [*files, locked.output]:
        assert locked.mine.encode() not in path.read_bytes(), path
    assert (locked.data.stat().st_mode & 0o077) == 0


def test_a_worker_has_no_secrets(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NDIF_API_KEY", "my_secret")
    server = serve()
    code = (
        "import os; said = open('/proc/self/environ').read() + str(dict(os.environ));"
        "result = repr(('secret' in said, os.listdir(), os.environ['HOME'] == os.getcwd(),"
        " sorted(os.listdir('/proc/self/fd'))[:9].__len__() < 9)).encode()"
    )
    last = server.run(code)
    assert server.get(last["data"]["url"]).content == b"(False, [], True, True)"


def test_a_link_to_a_result_works_for_a_while(monkeypatch: pytest.MonkeyPatch):
    tokens = Tokens(b"secret")
    token = tokens.make("job")
    assert tokens.holds("job", token)
    until_, _, sign = token.partition(".")
    for other in (f"{int(until_) + 1}.{sign}", f"{until_}.{sign[:-1]}0x", until_, "", ".", "x.y"):
        assert not tokens.holds("job", other)
    assert not tokens.holds("other", token) and not Tokens(b"another").holds("job", token)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    assert not tokens.holds("job", token)


def command(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, argparse; sys.argv[1:1] = []; import runpy;"
        "sys.path.insert(0, sys.argv.pop(1)); import tests.server.bare;"
        "from nnsight.server import cli; parser = argparse.ArgumentParser();"
        "cli.add_arguments(parser); cli.main(parser.parse_args())"
    )
    root = str(Path(__file__).resolve().parents[2])
    words = (sys.executable, "-c", code, root, *words, "--data", str(tmp_path / "data"))
    return subprocess.run(words, capture_output=True, text=True, timeout=30, env=dict(os.environ))


def test_keys_are_made_listed_and_removed(tmp_path: Path):
    made = command(tmp_path, "keys", "add", "alice").stdout.splitlines()[0]
    plain = command(tmp_path, "keys", "add", "bob", "--uuid", "--trusted").stdout.splitlines()[0]
    assert uuid.UUID(plain).version == 4 and "." in made
    listed = command(tmp_path, "keys", "list").stdout
    assert "alice" in listed and "untrusted" in listed and made not in listed
    id = listed.split()[0]
    assert made.startswith(id) and command(tmp_path, "keys", "remove", id).stdout == "removed\n"
    store = Store(tmp_path / "data" / "server.db")
    assert keys.known(store, made) is None and keys.known(store, plain).name == "bob"  # type: ignore
    store.close()


def test_what_cannot_be_served_is_said_in_a_sentence(tmp_path: Path):
    for words, said in (
        (("gpt2", "--host", "0.0.0.0"), "whoever reaches it could run code here"),
        (("gpt2", "gpt2"), "given twice"),
        (("./no-such-model",), "./no-such-model is no folder here"),
        (("/no/such/model",), "/no/such/model is no folder here"),
        ((), "which model?"),
        (("keys", "make"), "say `keys add NAME`"),
        (("gpt2", "--host", "192.0.2.1"), "keys"),
    ):
        done = command(tmp_path, *words)
        assert done.returncode == 1 and said in done.stderr, done
        assert done.stderr.count("\n") == 1


def test_the_doctor_names_each_layer(tmp_path: Path):
    said = command(tmp_path, "--doctor").stdout
    for layer in ("prlimit", "no_new_privs", "landlock", "seccomp", "sandbox"):
        assert layer in said


def test_removing_a_key_ends_its_use(serve):
    server = serve()
    store = Store(server.data / "server.db")
    first, second = keys.add(store, "first"), keys.add(store, "second")
    server.headers = {"ndif-api-key": first}
    assert server.get("/jobs").status_code == 200
    keys.remove(store, first.partition(".")[0])
    store.close()
    assert until(lambda: server.get("/jobs").status_code == 403)
    server.headers = {"ndif-api-key": second}
    assert server.post("result = b'1'", nnsight_model_key=MODEL).status_code == 200
    store = Store(server.data / "server.db")
    keys.remove(store, second.partition(".")[0])
    store.close()
    assert server.get("/jobs").status_code == 403  # without any key it does not open to all
    server.headers = {}
    assert server.get("/jobs").status_code == 401
