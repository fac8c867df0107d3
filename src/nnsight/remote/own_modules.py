"""Modules of the user's own that came as source: importable while their block runs."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nnsight.remote.shown import Show


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules in texts.

    Args:
        texts: by name: file name, source, whether it is a package.
        show: told each text that is compiled.
    """

    def __init__(self, texts: Mapping[str, Sequence[Any]], show: Show) -> None:
        self._texts, self._show = texts, show

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in self._texts:
            return None
        filename, _, package, *_ = self._texts[name]
        return importlib.util.spec_from_loader(name, self, origin=filename, is_package=package)

    def exec_module(self, module: ModuleType) -> None:
        filename, text, *_ = self._texts[module.__name__]
        self._show(filename, 1, text)
        module.__file__ = filename
        exec(compile(text, filename, "exec", dont_inherit=True), vars(module))


@contextlib.contextmanager
def own_modules(texts: Mapping[str, Sequence[Any]], show: Show) -> Iterator[None]:
    """Let `import` find the modules of `texts`, before any of the same name that are here."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_of(name, texts)}
    finder = _Finder(texts, show)
    if texts:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if texts:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if _is_of(name, texts)]:
                del sys.modules[name]
            sys.modules.update(hidden)


def _is_of(name: str, texts: Mapping[str, Any]) -> bool:
    return bool(texts) and (name in texts or name.partition(".")[0] in texts)
