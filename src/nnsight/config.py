"""CONFIG: how the library behaves here. Shipped defaults < the environment < your own code."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def _switch(name: str, default: bool) -> bool:
    value = os.environ.get(name)
    if value is None:
        return default
    return value.strip().lower() not in ("", "0", "false", "no", "off")


class AppConfig:
    """Switches, each True or False. They can be set at any time.

    - `DEBUG` (`NNSIGHT_DEBUG`): show every frame of a traceback, those of this library and of torch
      too.
    - `TENSOR_SAVE` (`NNSIGHT_TENSOR_SAVE`, on by default): tensors have `save()`, for helper
      functions that a block calls. Read at import.
    - `TENSOR_BACKWARD` (`NNSIGHT_TENSOR_BACKWARD`, on by default): `with loss.backward():` opens a
      block. Read at import.
    - `PYMOUNT` (`NNSIGHT_PYMOUNT`): every object has `save()`, as in older releases. It makes
      `hasattr(x, "save")` true in the whole process.
    - `CROSS_INVOKER` (`NNSIGHT_CROSS_INVOKER`, on by default): the blocks of one trace share names.
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
    TRACE_CACHING: bool
    DISABLE_CPP_BACKTRACE: bool
    LEGACY: bool

    def __init__(self) -> None:
        self.__dict__["_watchers"] = {}
        self.DEBUG = _switch("NNSIGHT_DEBUG", False)
        self.TENSOR_SAVE = _switch("NNSIGHT_TENSOR_SAVE", True)
        self.TENSOR_BACKWARD = _switch("NNSIGHT_TENSOR_BACKWARD", True)
        self.PYMOUNT = _switch("NNSIGHT_PYMOUNT", False)
        self.CROSS_INVOKER = _switch("NNSIGHT_CROSS_INVOKER", True)
        self.TRACE_CACHING = self.DISABLE_CPP_BACKTRACE = True
        self.LEGACY = _switch("NNSIGHT_LEGACY", False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__annotations__:
            known = ", ".join(type(self).__annotations__)
            raise AttributeError(f"CONFIG.APP has no switch {name!r}; it has {known}")
        if not isinstance(value, bool):
            raise TypeError(f"CONFIG.APP.{name} is True or False, not {value!r}")
        self.__dict__[name] = value
        for act in self.__dict__["_watchers"].get(name, ()):
            act()

    def watch(self, names: tuple[str, ...], act: Callable[[], None]) -> None:
        """Call `act` now, and whenever one of the switches `names` is set."""
        for name in names:
            self.__dict__["_watchers"].setdefault(name, []).append(act)
        act()


class Config:
    """Settings of this process."""

    def __init__(self) -> None:
        self.APP = AppConfig()


CONFIG = Config()
