"""What is asked of a server beside running blocks, and what is said where it does not answer."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest

import nnsight
from nnsight import CONFIG, __main__
from nnsight.ndif import EnvComparison, NdifStatus
from nnsight.remote import service
from nnsight.remote.ask import ask
from nnsight.remote.environment import remote_env
from nnsight.remote.service_errors import ServiceError
from tests.remote.double import ENV, OLDER_STATUS, STATUS, Double, replica

KEY = "5a3c0ffe-1111-2222-3333-444455556666"
OTHER = "a-key-that-is-not-known"


# --- status --------------------------------------------------------------------------------------


def test_the_models_of_a_server(double: Double):
    found = nnsight.status()
    assert isinstance(found, NdifStatus) and list(found) == ["openai-community/gpt2"]
    assert found["openai-community/gpt2"] == {
        "model_class": "TransformersModel",
        "repo_id": "openai-community/gpt2",
        "task": "text-generation",
        "trust_remote_code": False,
        "revision": "main",
        "level": "HOT",
        "state": "RUNNING",
        "hot_replicas": 1,
        "n_params": 124439808,
        "pinned": True,
        "until": None,
    }
    assert nnsight.status(raw=True) == STATUS


def test_a_server_of_an_older_release(double: Double):
    double.answers["/status"] = (200, OLDER_STATUS)
    found = nnsight.status()["meta-llama/Llama-3.1-8B"]
    assert found["model_class"] == "LanguageModel" and found["task"] == "text-generation"
    assert (found["level"], found["state"], found["hot_replicas"]) == ("WARM", "DEPLOYING", 0)
    assert found["pinned"] and found["until"] == "2026-11-22T10:00:00+00:00"


def test_it_prints_as_a_table(double: Double):
    lines = str(nnsight.status()).splitlines()
    assert lines[0] == f"{double.host}: up, 1 model"
    assert lines[1].split() == ["Model", "Revision", "Task", "Level", "State", "Replicas"]
    row = ["openai-community/gpt2", "main", "text-generation", "HOT", "RUNNING", "1"]
    assert lines[2].split() == row and len(lines) == 3
    page = nnsight.status()._repr_html_()
    assert "<td style='text-align:left'>openai-community/gpt2</td>" in page and "RUNNING" in page


def test_two_tasks_of_one_model_are_two_rows():
    def spelt(task: str, revision: str = "null") -> str:
        return f'a.TransformersModel:{{"repo_id": "a/b", "revision": {revision}, "task": "{task}"}}'

    found = NdifStatus(
        {
            "0:M:" + spelt("fill-mask"): replica(0, model_key=spelt("fill-mask")),
            "1:M:" + spelt("translation"): replica(0, model_key=spelt("translation")),
            "2:M:" + spelt("fill-mask", '"x"'): replica(0, model_key=spelt("fill-mask", '"x"')),
            "3:M:" + spelt("fill-mask", '"main"'): replica(0, model_key=None),
        }
    )
    assert list(found) == ["a/b", "a/b@main", "a/b@x"]
    assert [model["task"] for model in found.values()] == ["fill-mask", "translation", "fill-mask"]
    assert [model["hot_replicas"] for model in found.values()] == [2, 1, 1]


def test_what_is_no_deployment_is_passed_over():
    found = NdifStatus({"x": None, "y": {}, "z": {"model_key": 3}, "w:{": {}, "v": ["model_key"]})
    assert len(found) == 0 and not found


def test_a_page_shows_text_as_text():
    name = 'a.B:{"repo_id": "<script>alert(1)</script>[red]"}'
    found = NdifStatus({name: {}})
    assert "<script>" not in found._repr_html_() and "&lt;script&gt;" in found._repr_html_()
    assert "<script>alert(1)</script>[red]" in str(found)


def test_the_older_name(double: Double):
    with pytest.warns(DeprecationWarning, match=r"`nnsight\.ndif_status` is an older name"):
        assert nnsight.ndif_status() == nnsight.status()


@pytest.mark.parametrize(
    ("repo_id", "revision", "running"),
    [
        ("openai-community/gpt2", "main", True),
        ("openai-community/gpt2", None, True),
        ("OpenAI-Community/GPT2", "main", True),
        ("openai-community/gpt2", "abc", False),
        ("EleutherAI/gpt-j-6b", "main", False),
        ("meta-llama/Llama-3.1-8B", "main", False),
    ],
)
def test_whether_a_model_runs(double: Double, repo_id: str, revision: str, running: bool):
    double.answers["/status"] = (
        200,
        {"deployments": {**STATUS["deployments"], **OLDER_STATUS["deployments"]}},
    )
    assert nnsight.is_model_running(repo_id, revision=revision) is running


def test_a_short_id_is_what_the_hub_says(double: Double, monkeypatch: pytest.MonkeyPatch):
    assert not nnsight.is_model_running("gpt2")
    known = {"gpt2": "openai-community/gpt2"}
    monkeypatch.setattr(service.keys, "canonical", lambda repo_id: known[repo_id])
    assert nnsight.is_model_running("gpt2")


# --- environments --------------------------------------------------------------------------------


def test_the_packages_of_a_server_are_asked_for_once(double: Double):
    assert nnsight.get_remote_env() == ENV == nnsight.get_remote_env()
    assert double.asked == [("/env", None)]
    nnsight.get_remote_env(force_refresh=True)
    assert len(double.asked) == 2


def test_what_differs(double: Double):
    here = {"python_version": "3.12.9 (x)", "packages": {"torch": "2.13.0", "rich": "1.0.0"}}
    both = EnvComparison(here, ENV)
    assert both.python_matches
    torch = {"local": "2.13.0", "remote": "2.9.0", "match": False, "critical": True}
    assert both.mismatches == {"torch": torch} == both.critical_mismatches
    lines = str(both).splitlines()
    assert lines[0] == "Here and on the server: 1 package(s) differ."
    assert lines[2].split() == ["Python", "3.12.9", "3.12.3", "alike"]
    assert lines[3].startswith("torch") and lines[3].endswith("differs: numbers may, too")
    assert "differs: numbers may" in both._repr_html_()
    assert not EnvComparison({**here, "python_version": "3.11.2"}, ENV).python_matches


def test_compare_asks_the_server(double: Double):
    found = nnsight.compare()
    assert found.remote_env == ENV and found.critical_mismatches["nnsight"]["remote"] == "0.8.0"
    assert list(found.mismatches)[:2] == ["nnsight", "torch"]
    assert not found.mismatches["rich"]["critical"] and "only_there" not in found.mismatches


# --- who I am ------------------------------------------------------------------------------------


def test_whoami_sends_the_key(double: Double):
    CONFIG.API_KEY = KEY
    assert nnsight.whoami() == {"email": "someone@example.org", "tags": []}
    nnsight.whoami(OTHER)
    assert double.asked == [("/whoami", KEY), ("/whoami", OTHER)]


def test_login_keeps_a_key_that_is_good(
    double: Double, settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(getpass, "getpass", lambda prompt: f" {KEY}\n")
    assert nnsight.login() is True
    assert json.loads(settings.read_text()) == {"API": {"APIKEY": KEY}} and KEY == CONFIG.API.APIKEY
    said = capsys.readouterr()
    assert str(settings) in said.out and "someone@example.org" in said.out
    assert KEY not in said.out + said.err


def test_login_keeps_no_other(
    double: Double, settings: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    double.answers["/whoami"] = (403, {"detail": "This key is not known."})
    assert nnsight.login(OTHER) is False
    assert "answers 403: This key is not known." in capsys.readouterr().err
    double.hangs_up = True
    assert nnsight.login(OTHER) is False
    assert "keeps it unchecked" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)

    def nobody(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", nobody)
    assert nnsight.login() is False
    assert "No key was given" in capsys.readouterr().err
    assert not settings.exists() and CONFIG.API.APIKEY is None


def test_a_key_that_cannot_be_kept_is_in_force(
    double: Double, settings: Path, capsys: pytest.CaptureFixture
):
    settings.parent.write_text("a file where the folder should be")
    assert nnsight.login(KEY) is True and KEY == CONFIG.API.APIKEY
    said = capsys.readouterr().err
    assert "cannot be kept" in said and KEY not in said


# --- a server that does not answer ---------------------------------------------------------------


def unreachable() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_nothing_raises_where_there_is_no_server(settings: Path, capsys: pytest.CaptureFixture):
    CONFIG.API.HOST = unreachable()
    CONFIG.API_KEY = KEY
    found = nnsight.status()
    assert len(found) == 0 and not found
    assert "cannot be reached: nothing listens there" in str(found) and "down" in str(found)
    assert nnsight.is_model_running("openai-community/gpt2") is False
    compared = nnsight.compare()
    assert "cannot be reached" in str(compared) and compared.mismatches == {}
    assert not compared.python_matches
    assert "cannot be reached" in compared._repr_html_() and capsys.readouterr().err == ""
    for ask_it in (nnsight.whoami, nnsight.get_remote_env, lambda: nnsight.status(raw=True)):
        assert not ask_it()
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "NDIF_HOST" in said and KEY not in said


def test_a_server_that_wants_a_key_is_not_down(double: Double):
    double.answers["/status"] = (401, {"detail": "No key."})
    shown = str(nnsight.status())
    assert "its models are not known" in shown and "No key." in shown and "down" not in shown


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("api.ndif.us", "is no address of a server"),
        ("ftp://api.ndif.us", "is no address of a server"),
        ("http://[::1", "is no address of a server"),
        ("http://localhost:x", "is no address of a server"),
        ("http://no-such-machine.invalid", "cannot be reached"),
    ],
)
def test_other_addresses(settings: Path, host: str, text: str):
    with pytest.raises(ServiceError, match=text) as error:
        ask("/env", host=host)
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_answers_that_are_none(double: Double):
    def said() -> str:
        with pytest.raises(ServiceError) as error:
            remote_env(force_refresh=True)
        return str(error.value)

    double.answers["/env"] = (200, b"<html>a page</html>")
    assert "does not answer as a server of nnsight does" in said()
    double.answers["/env"] = (200, [1])
    assert "does not answer as a server of nnsight does" in said()
    double.answers["/env"] = (503, {"detail": "Ray is down"})
    assert said() == f"{double.host}/env answers 503: Ray is down."
    double.answers["/env"] = (422, {"detail": [{"loc": ["body"]}]})
    assert "answers 422: Unprocessable" in said()
    double.answers["/env"] = (401, {"detail": "No key."})
    assert "answers 401: No key. `nnsight.login()` asks for a key" in said()
    double.hangs_up = True
    assert "it hung up before it answered" in said()


def test_slow_answers(double: Double, monkeypatch: pytest.MonkeyPatch):
    from nnsight.remote import ask as asking

    monkeypatch.setattr(asking, "SECONDS", 0.05)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(ServiceError, match=r"no answer within 0\.05 seconds"):
            ask("/env", host=f"http://127.0.0.1:{deaf.getsockname()[1]}")


def test_the_key_goes_to_no_other_address(double: Double):
    CONFIG.API_KEY = KEY
    double.sends_on_to = "http://elsewhere.example/env"
    with pytest.raises(ServiceError, match="sends on to 'http://elsewhere"):
        ask("/env")
    assert double.asked == [("/env", KEY)]


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"“{KEY}”", f"{KEY}\x7f"])
def test_a_key_that_cannot_be_one_is_told_of_but_not_shown(double: Double, key: str):
    CONFIG.API_KEY = key
    with pytest.raises(ServiceError, match="characters that no key has") as error:
        ask("/env")
    assert KEY not in str(error.value) and double.asked == []


def test_the_console_script_is_there():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '\nnnsight = "nnsight.__main__:main"\n' in text and callable(__main__.main)


# --- from a shell --------------------------------------------------------------------------------


def test_commands(double: Double, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert __main__.main(["status"]) == 0
    assert "openai-community/gpt2" in capsys.readouterr().out
    assert __main__.main(["whoami"]) == 0
    assert "someone@example.org" in capsys.readouterr().out
    assert __main__.main(["compare"]) == 0
    monkeypatch.setattr(getpass, "getpass", lambda prompt: KEY)
    assert __main__.main(["login"]) == 0 and KEY == CONFIG.API.APIKEY
    double.hangs_up = True
    assert [__main__.main([name]) for name in ("status", "whoami", "compare", "login")] == [1] * 4
