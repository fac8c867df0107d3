"""A method of a module, as an envoy gives it: called, or traced by a `with`."""

from __future__ import annotations

import functools
import inspect
from types import MethodType
from typing import Any

from torch.nn import Module

from nnsight.capture.callsite import is_entered


class Method:
    """A method of the user's own model class.

    `model.encode(x)` calls it. `with model.encode(x) as tracer:` is
    `with model.trace(x, fn="encode") as tracer:`.
    """

    def __init__(self, envoy: Any, method: MethodType) -> None:
        functools.update_wrapper(self, method)  # its name, its text and its signature
        self._envoy, self._method = envoy, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_entered():
            return self._envoy.trace(*args, fn=self._method.__name__, **kwargs)
        return called(self._envoy, self._method)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_method" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._method, name)

    def __repr__(self) -> str:
        return repr(self._method)


def called(envoy: Any, method: MethodType) -> MethodType:
    """`method` of a module as its envoy has it.

    Of a module that awaits its weights a call loads them, and is made on the loaded: what a method
    did to the module before would be lost with it. A method that returns the module, as `eval()`
    and `half()` do, returns the envoy, so that `model = model.eval()` is what it says.
    """

    @functools.wraps(method.__func__)
    def call(_: Any, *args: Any, **kwargs: Any) -> Any:
        own = method
        if envoy._awaits_weights():
            envoy._before_change()
            own = getattr(envoy._module, method.__name__)
        value = own(*args, **kwargs)
        return envoy if value is envoy._module else value

    return MethodType(call, method.__self__)


def is_traceable(module: Module, name: str, value: Any) -> bool:
    """Whether a `with` around a call of `value` would trace it.

    It would for what the model's own class defines, unless that makes a context manager itself.
    """
    own = isinstance(value, MethodType) and value.__self__ is module and not hasattr(Module, name)
    return own and not inspect.isgeneratorfunction(inspect.unwrap(value.__func__))
