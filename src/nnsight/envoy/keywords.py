"""Keywords that a forward takes and drops: a misspelt one would have no effect, without a word.

A forward that ends in `**kwargs` and never looks at them swallows any keyword. One that hands them
on, or reads a single one, is not judged: who else may know the keyword cannot be told from here.
"""

from __future__ import annotations

import difflib
import dis
import inspect
from collections.abc import Container, Iterable, Mapping
from types import CodeType
from typing import Any

from torch.nn import Module

from nnsight.capture.traceback import warn

_RETIRED = {
    "scan": "use `model.scan(...)`",
    "validate": "use `model.scan(...)`",
    "invoker_args": "give them to `tracer.invoke`",
    "inference": "use `torch.no_grad()`",
}
"""What `trace` and `invoke` took in releases before 0.5, and what to write instead."""


def signature_names(module: Module) -> Container[str]:
    """The parameters that the forward of `module` names."""
    code = getattr(inspect.unwrap(module.forward), "__code__", None)
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ()


def without_retired(kwargs: Mapping[str, Any], taken: Container[str]) -> dict[str, Any]:
    """`kwargs` without the trace keywords of old releases, each with a `DeprecationWarning`.

    Keywords in `taken` stay: the model has parameters of that name.
    """
    retired = [name for name in _RETIRED if name in kwargs and name not in taken]
    for name in retired:
        text = f"`{name}=` is no longer a keyword of `trace` and is ignored: {_RETIRED[name]}."
        warn(text, DeprecationWarning)
    return {name: value for name, value in kwargs.items() if name not in retired}


def warn_dropped(module: Module, method: str, names: Iterable[str]) -> None:
    """Warn of each keyword in `names` that `method` of `module` takes and never looks at."""
    function = getattr(module, "forward" if method == "__call__" else method, None)
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    if code is None or not code.co_flags & inspect.CO_VARKEYWORDS:
        return
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    unknown = [name for name in names if name not in named]
    if unknown and _drops(code, len(named)):
        for name in unknown:
            near = difflib.get_close_matches(name, named, n=1)
            hint = f"Did you mean `{near[0]}=`?" if near else "Remove it."
            what = f"the forward of {type(module).__name__} takes it and drops it"
            warn(f"`{name}=` has no effect: {what}. {hint}")


def _drops(code: CodeType, named: int) -> bool:
    """Whether a function never looks at what its `**kwargs` hold."""
    rest = code.co_varnames[named + bool(code.co_flags & inspect.CO_VARARGS)]
    if rest in code.co_cellvars or "locals" in code.co_names:
        return False
    return all(step.argval != rest for step in dis.get_instructions(code))
