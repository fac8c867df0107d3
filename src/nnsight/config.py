"""CONFIG: how the library behaves here. Defaults < the user's file < the environment < code.

The file (see `config_file`) is read when a setting in it is first needed, and written only by
`CONFIG.save()`, `set_default_api_key` and `set_default_app_debug`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from nnsight import config_file

_NO = ("", "0", "false", "no", "off")


class Secret(str):
    """Text that no repr shows: neither its own, nor that of what holds it."""

    def __repr__(self) -> str:
        return "<hidden>" if self else "''"


def _is_on(text: str) -> bool:
    return text.strip().lower() not in _NO


@functools.lru_cache(maxsize=1)
def _in_file() -> config_file.Sections:
    return config_file.read()


def _from_file(section: str, name: str, kind: type) -> Any:
    """A value of the file; None if there is none of that kind."""
    found = _in_file().get(section, {}).get(name)
    return found if isinstance(found, kind) else None


class AppConfig:
    """Switches, each True or False, and a folder. They can be set at any time.

    - `DEBUG` (`NNSIGHT_DEBUG`): show every frame of a traceback, those of this library and of torch
      too.
    - `TENSOR_SAVE` (`NNSIGHT_TENSOR_SAVE`, on by default): tensors have `save()`, for helper
      functions that a block calls. Read at import.
    - `TENSOR_BACKWARD` (`NNSIGHT_TENSOR_BACKWARD`, on by default): `with loss.backward():` opens a
      block. Read at import.
    - `PYMOUNT` (`NNSIGHT_PYMOUNT`): every object has `save()`, as in older releases. It makes
      `hasattr(x, "save")` true in the whole process.
    - `CROSS_INVOKER` (`NNSIGHT_CROSS_INVOKER`, on by default): the blocks of one trace share names.
    - `REMOTE_LOGGING` (`NNSIGHT_REMOTE_LOGGING`, on by default): show the state of a remote job
      while it is waited for. What the block prints is shown either way.
    - `CACHE_DIR` (`NNSIGHT_CACHE_DIR`): the folder of exported edits; None for the usual one.
    - `TRACE_CACHING`, `DISABLE_CPP_BACKTRACE`: taken for older code, without effect. Blocks are
      always compiled once, and no backtrace of C++ is touched.
    - `LEGACY` (`NNSIGHT_LEGACY`): old scripts run. Blocks of layers that returned tuples in
      transformers 4.x show a tuple, so that `.output[0]` is the hidden state; tensors have `value`,
      `token[...]` and `t[...]`; includes `PYMOUNT`.
    """

    DEBUG: bool
    TENSOR_SAVE: bool
    TENSOR_BACKWARD: bool
    PYMOUNT: bool
    CROSS_INVOKER: bool
    REMOTE_LOGGING: bool
    TRACE_CACHING: bool
    DISABLE_CPP_BACKTRACE: bool
    LEGACY: bool
    CACHE_DIR: str | None

    _ON = frozenset(
        "TENSOR_SAVE TENSOR_BACKWARD CROSS_INVOKER REMOTE_LOGGING TRACE_CACHING "
        "DISABLE_CPP_BACKTRACE".split()
    )
    _WITHOUT_EFFECT = frozenset({"TRACE_CACHING", "DISABLE_CPP_BACKTRACE"})
    # `_own`: the names that code has set, which `CONFIG.save()` writes
    # `_watchers`: what to call when a switch is set

    def __init__(self) -> None:
        own: set[str] = set()
        self.__dict__.update(_watchers={}, _own=own)
        for name in self._switches():
            inherited = _from_file("APP", name, bool)
            value = name in self._ON if inherited is None else inherited
            text = None if name in self._WITHOUT_EFFECT else os.environ.get(f"NNSIGHT_{name}")
            self.__dict__[name] = value if text is None else _is_on(text)

    def __getattr__(self, name: str) -> Any:
        if name == "CACHE_DIR":
            return os.environ.get("NNSIGHT_CACHE_DIR") or _from_file("APP", "CACHE_DIR", str)
        raise AttributeError(self._unknown(name))

    @classmethod
    def _switches(cls) -> list[str]:
        return [name for name in cls.__annotations__ if name != "CACHE_DIR"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__annotations__:
            raise AttributeError(self._unknown(name))
        if name == "CACHE_DIR":
            value = None if value is None else os.fspath(value)
        elif not isinstance(value, bool):
            raise TypeError(f"CONFIG.APP.{name} is True or False, not {value!r}")
        self.__dict__[name] = value
        self.__dict__["_own"].add(name)
        for act in self.__dict__["_watchers"].get(name, ()):
            act()

    def _unknown(self, name: str) -> str:
        return f"CONFIG.APP has no switch {name!r}; it has {', '.join(type(self).__annotations__)}"

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in type(self).__annotations__)
        return f"AppConfig({', '.join(fields)})"

    def watch(self, names: tuple[str, ...], act: Callable[[], None]) -> None:
        """Call `act` now, and whenever one of the switches `names` is set."""
        for name in names:
            self.__dict__["_watchers"].setdefault(name, []).append(act)
        act()

    def _set_by_code(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in sorted(self.__dict__["_own"])}


class ApiConfig:
    """Which server `remote=True` means, and how to speak to it.

    Each is looked up when it is needed: what code has set, else the environment, else the user's
    file, else the default.

    - `HOST` (`NDIF_HOST`): the address of the server, `https://api.ndif.us` by default.
    - `APIKEY` (`NDIF_API_KEY`): the key; in Colab also the secret of that name. No repr shows it.
    - `COMPRESS` (`NDIF_COMPRESS`, on by default): compress what is sent where that helps. `ZLIB`
      is an older name of it.
    - `TRUST_SERVER` (`NDIF_TRUST_SERVER`, off): whether a result in NDIF's format may hold more
      than data, which can run as code here when it is read.
    """

    _own: dict[str, Any]  # what code has set

    _DEFAULTS: ClassVar = {
        "HOST": "https://api.ndif.us",
        "APIKEY": None,
        "COMPRESS": True,
        "TRUST_SERVER": False,
    }
    _VARIABLES: ClassVar = {
        "HOST": "NDIF_HOST",
        "APIKEY": "NDIF_API_KEY",
        "COMPRESS": "NDIF_COMPRESS",
        "TRUST_SERVER": "NDIF_TRUST_SERVER",
    }
    _SWITCHES: ClassVar = ("COMPRESS", "TRUST_SERVER")
    _OLDER: ClassVar = {"ZLIB": "COMPRESS", "API_KEY": "APIKEY"}

    HOST: str
    APIKEY: str | None
    COMPRESS: bool
    TRUST_SERVER: bool

    def __init__(self) -> None:
        self.__dict__["_own"] = {}

    def __getattr__(self, name: str) -> Any:
        name = self._OLDER.get(name, name)
        if name not in self._DEFAULTS:
            raise AttributeError(self._unknown(name))
        if name in self._own:
            return self._own[name]
        return self._checked(name, self._inherited(name))

    def __setattr__(self, name: str, value: Any) -> None:
        name = self._OLDER.get(name, name)
        if name not in self._DEFAULTS:
            raise AttributeError(self._unknown(name))
        self._own[name] = self._checked(name, value)

    def __repr__(self) -> str:
        return (
            f"ApiConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in self._DEFAULTS)})"
        )

    def _unknown(self, name: str) -> str:
        return f"CONFIG.API has no setting {name!r}; it has {', '.join(self._DEFAULTS)}"

    def _inherited(self, name: str) -> Any:
        """What holds where code has set nothing."""
        if text := os.environ.get(self._VARIABLES[name]):
            return _is_on(text) if name in self._SWITCHES else text.strip()
        found = _in_file().get("API", {}).get(name)
        if found is None and name == "APIKEY":
            found = config_file.read_other().get("API", {}).get(name) or _colab_secret()
        return self._DEFAULTS[name] if found is None else found

    def _checked(self, name: str, value: Any) -> Any:
        if name in self._SWITCHES:
            if not isinstance(value, bool):
                raise TypeError(f"CONFIG.API.{name} is True or False, not {value!r}")
            return value
        if value is None or (name == "APIKEY" and value == ""):
            return self._DEFAULTS[name]
        if not isinstance(value, str):
            raise TypeError(f"CONFIG.API.{name} is a string, not a {type(value).__name__}")
        return Secret(value.strip()) if name == "APIKEY" else value.strip().rstrip("/")


class Config:
    """Settings of this process: `APP`, how blocks run here, and `API`, the server of `remote=`."""

    def __init__(self) -> None:
        self.APP = AppConfig()
        self.API = ApiConfig()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("APP", "API", "API_KEY"):
            raise AttributeError(f"CONFIG has APP, API and API_KEY, and no {name!r}")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Config(API={self.API!r}, APP={self.APP!r})"

    @property
    def API_KEY(self) -> str | None:
        """The key for this process (the same as `API.APIKEY`)."""
        return self.API.APIKEY

    @API_KEY.setter
    def API_KEY(self, key: str | None) -> None:
        self.API.APIKEY = key

    def set_default_api_key(self, api_key: str | None = None, *, apikey: str | None = None) -> None:
        """Use this key now and in every later process: it is written into the user's file.

        Raises:
            ValueError: the file that is there is not one of settings.
            OSError: it cannot be written; the key is in force in this process.
        """
        self.API.APIKEY = apikey if api_key is None else api_key
        self._write({"API": {"APIKEY": self.API.APIKEY}})

    def set_default_app_debug(self, debug: bool) -> None:
        """Set `APP.DEBUG` now and for every later process.

        Raises:
            ValueError: the file that is there is not one of settings.
            OSError: it cannot be written.
        """
        self.APP.DEBUG = debug
        self._write({"APP": {"DEBUG": debug}})

    def save(self) -> None:
        """Write what code has set here into the user's file, for every later process.

        Values that come from the environment are not written.

        Raises:
            ValueError: the file that is there is not one of settings.
            OSError: it cannot be written.
        """
        self._write({"API": dict(self.API._own), "APP": self.APP._set_by_code()})

    @classmethod
    def load(cls, path: Any = None) -> Config:
        """Settings as a new process would have them; the file is read anew."""
        _in_file.cache_clear()
        return cls()

    @staticmethod
    def _write(changes: config_file.Sections) -> None:
        config_file.write({section: values for section, values in changes.items() if values})
        _in_file.cache_clear()


def _colab_secret() -> str | None:
    """The secret of a Colab notebook; None elsewhere, or where the notebook may not read it."""
    if "google.colab" not in sys.modules:  # which Colab imports before the first cell
        return None
    try:
        from google.colab import userdata  # type: ignore[import-not-found] # is there in Colab

        return userdata.get("NDIF_API_KEY")
    except Exception:  # no such secret, no permission, no browser: each has a class of its own
        return None


CONFIG = Config()
