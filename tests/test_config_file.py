"""Settings of the server: where they come from, what is written, and that the key is not shown."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import traceback
import types
from pathlib import Path

import pytest

from nnsight import CONFIG
from nnsight.config import Config, Secret
from nnsight.schema.config import ConfigModel
from tests.test_config import run_python

KEY = "5a3c0ffe-1111-2222-3333-444455556666"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's file would be; there is none yet."""
    where = tmp_path / "settings" / "config.json"
    monkeypatch.setenv("NNSIGHT_CONFIG", str(where))
    for name in ("NDIF_API_KEY", "NDIF_HOST", "NDIF_COMPRESS"):
        monkeypatch.delenv(name, raising=False)
    yield where
    monkeypatch.undo()
    Config.load()


def write(file: Path, **sections: dict) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(sections))


def test_the_defaults(file: Path):
    config = Config.load()
    assert config.API.HOST == "https://api.ndif.us"
    assert config.API.APIKEY is None and config.API_KEY is None
    assert config.API.COMPRESS is True and config.API.ZLIB is True
    assert config.APP.REMOTE_LOGGING is True and config.APP.CACHE_DIR is None
    assert not file.exists() and not file.parent.exists()


def test_code_goes_before_the_environment_and_that_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    write(file, API={"APIKEY": "of-file", "HOST": "http://file/"}, APP={"DEBUG": True})
    config = Config.load()
    assert (config.API.APIKEY, config.API.HOST, config.APP.DEBUG) == (
        "of-file",
        "http://file",
        True,
    )
    monkeypatch.setenv("NDIF_API_KEY", "of-environment")
    monkeypatch.setenv("NDIF_HOST", "http://environment")
    assert (config.API.APIKEY, config.API.HOST) == ("of-environment", "http://environment")
    config.API_KEY = "of-code"
    config.API.HOST = "http://code/"
    assert (config.API.APIKEY, config.API.HOST) == ("of-code", "http://code")
    monkeypatch.setenv("NNSIGHT_DEBUG", "0")
    assert Config.load().APP.DEBUG is False


def test_an_environment_that_is_set_after_the_import_counts(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    config = Config.load()
    monkeypatch.setenv("NDIF_API_KEY", " late \n")
    assert config.API.APIKEY == "late"


def test_a_key_is_kept_for_later_processes(file: Path):
    code = f"from nnsight import CONFIG; CONFIG.set_default_api_key({KEY!r})"
    run_python(code, NNSIGHT_CONFIG=str(file))
    assert json.loads(file.read_text()) == {"API": {"APIKEY": KEY}}
    read = "from nnsight import CONFIG; print(str(CONFIG.API.APIKEY))"
    assert run_python(read, NNSIGHT_CONFIG=str(file)) == KEY
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_a_file_that_others_may_read_becomes_the_users_own(file: Path):
    write(file, APP={"DEBUG": True})
    file.chmod(0o644)
    Config.load().set_default_api_key(KEY)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {"APP": {"DEBUG": True}, "API": {"APIKEY": KEY}}


def test_a_key_that_is_only_assigned_is_not_written(file: Path):
    Config.load().API_KEY = KEY
    assert not file.exists()


def test_save_writes_what_code_has_set_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NDIF_API_KEY", "of-environment")
    monkeypatch.setenv("NNSIGHT_DEBUG", "1")
    config = Config.load()
    config.API.ZLIB = False
    config.APP.REMOTE_LOGGING = False
    config.save()
    assert json.loads(file.read_text()) == {
        "API": {"COMPRESS": False},
        "APP": {"REMOTE_LOGGING": False},
    }
    config.set_default_app_debug(False)
    assert json.loads(file.read_text())["APP"] == {"REMOTE_LOGGING": False, "DEBUG": False}
    again = Config.load()
    assert again.API.COMPRESS is False and again.APP.REMOTE_LOGGING is False


def test_a_write_that_fails_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    Config.load().set_default_api_key("old")

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        Config.load().set_default_api_key("new")
    assert json.loads(file.read_text()) == {"API": {"APIKEY": "old"}}
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ['{"API": {"APIKEY": "' + KEY, "[1]", '{"API": 3}', "\x00"])
def test_a_broken_file_is_a_sentence_and_stays(file: Path, text: str):
    file.parent.mkdir()
    file.write_text(text)
    with pytest.warns(UserWarning, match="is no file of settings") as warned:
        config = Config.load()
    assert config.API.APIKEY is None
    with pytest.raises(ValueError, match="Correct it, or delete it") as refused:
        config.set_default_api_key("new")
    assert file.read_text() == text
    shown = "".join(traceback.format_exception(refused.value)) + str(warned[0].message)
    assert KEY not in shown


def test_values_of_another_kind_in_the_file_do_not_count(file: Path):
    write(file, APP={"DEBUG": "yes", "NEW": 1}, LATER={})
    assert Config.load().APP.DEBUG is False
    write(file, API={"HOST": 3})
    with pytest.raises(TypeError, match=r"CONFIG\.API\.HOST is a string, not a int"):
        Config.load().API.HOST  # noqa: B018


def test_a_file_of_another_release_is_read_for_its_key(file: Path):
    file.parent.mkdir()
    other = file.with_name("config.yaml")
    other.write_text(f"API:\n  APIKEY: {KEY}\n  HOST: https://elsewhere\nAPP:\n  DEBUG: true\n")
    config = Config.load()
    assert config.API.APIKEY == KEY and config.APP.DEBUG is False
    assert config.API.HOST == "https://api.ndif.us"
    other.write_text("- broken: [")
    assert Config.load().API.APIKEY is None


def test_a_yaml_file_can_be_named(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch):
    named = tmp_path / "mine.yaml"
    named.write_text("APP: {PYMOUNT: false, DEBUG: true}\n")
    monkeypatch.setenv("NNSIGHT_CONFIG", str(named))
    config = Config.load()
    assert config.APP.DEBUG is True
    config.set_default_api_key(KEY)
    assert Config.load().APP.DEBUG is True and Config.load().API.APIKEY == KEY


def test_without_a_name_the_file_is_in_the_users_folder(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    from nnsight import config_file

    monkeypatch.delenv("NNSIGHT_CONFIG")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_file.path() == tmp_path / "nnsight" / "config.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_file.path() == tmp_path / ".config" / "nnsight" / "config.json"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("APPDATA", str(tmp_path / "Roaming"))
    assert config_file.path() == tmp_path / "Roaming" / "nnsight" / "config.json"


# --- the key in Colab -------------------------------------------------------------------------


def colab(get: object) -> dict[str, types.ModuleType]:
    package, inner, userdata = map(types.ModuleType, ("google", "google.colab", "userdata"))
    userdata.get = get
    inner.userdata = userdata
    return {"google": package, "google.colab": inner, "google.colab.userdata": userdata}


def test_a_secret_of_colab_is_found(file: Path, monkeypatch: pytest.MonkeyPatch):
    for name, module in colab({"NDIF_API_KEY": KEY}.get).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert Config.load().API.APIKEY == KEY


def test_a_secret_that_colab_refuses_is_none(file: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str) -> str:
        raise PermissionError(name)

    for name, module in colab(refuse).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert Config.load().API.APIKEY is None


# --- the key is not shown ---------------------------------------------------------------------


def test_the_key_is_in_no_repr(file: Path, caplog: pytest.LogCaptureFixture):
    config = Config.load()
    config.API_KEY = KEY
    logging.getLogger("x").warning("%r %s", config.API.APIKEY, [config.API.APIKEY])
    shown = [repr(config), str(config), repr(config.API), f"{config.API}", repr(config.API.APIKEY)]
    assert all(KEY not in text for text in [*shown, caplog.text, repr({"key": config.API.APIKEY})])
    assert "APIKEY=<hidden>" in repr(config)
    assert config.API.APIKEY == KEY and isinstance(config.API.APIKEY, Secret)


def test_a_key_of_another_type_is_refused_without_it(file: Path):
    with pytest.raises(TypeError) as refused:
        Config.load().API.APIKEY = KEY.encode()
    assert str(refused.value) == "CONFIG.API.APIKEY is a string, not a bytes"


def test_unknown_names_are_refused(file: Path):
    config = Config.load()
    with pytest.raises(AttributeError, match=r"CONFIG\.API has no setting 'HOTS'; it has HOST"):
        config.API.HOTS = "x"
    with pytest.raises(AttributeError, match=r"CONFIG\.API has no setting 'HOTS'"):
        config.API.HOTS  # noqa: B018
    with pytest.raises(AttributeError, match=r"CONFIG\.APP has no switch 'DEBGU'"):
        config.APP.DEBGU  # noqa: B018
    with pytest.raises(AttributeError, match="and no 'APIKEY'"):
        config.APIKEY = "x"
    with pytest.raises(TypeError, match="COMPRESS is True or False"):
        config.API.COMPRESS = "yes"


def test_the_old_address(file: Path):
    assert ConfigModel is Config and ConfigModel.load("anywhere").API.COMPRESS is True
    CONFIG.APP.CACHE_DIR = file.parent
    try:
        assert CONFIG.APP.CACHE_DIR == str(file.parent)
    finally:
        del CONFIG.APP.__dict__["CACHE_DIR"]


def test_import_reads_no_package_for_it():
    code = (
        "import sys, nnsight; nnsight.CONFIG.API.HOST; "
        "print([m for m in ('yaml', 'msgspec', 'requests', 'google') if m in sys.modules])"
    )
    assert run_python(code) == "[]"
