"""`envoys=`: which class of Envoy stands for which module of a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch.nn import Module

Key = str | type
Envoys = type | Mapping[Key, type]


@dataclass(frozen=True)
class Classes:
    """The classes that a model was given, by path and by class of module."""

    usual: type  # for every module that is not named
    by_path: Mapping[str, type]
    by_class: Mapping[type, type]

    def of(self, module: Module, path: str) -> type:
        """The class for `module` at `path` (from the root, without it).

        The longest path that fits, else the nearest class of the module, else the usual one.
        """
        fitting = [key for key in self.by_path if _fits(key, path)]
        if fitting:
            return self.by_path[max(fitting, key=lambda key: (key.count("."), len(key)))]
        for kind in type(module).__mro__:
            if kind in self.by_class:
                return self.by_class[kind]
        return self.usual


def resolve(root: Module, envoys: Envoys | None, base: type, strict: bool = True) -> Classes | None:
    """What `envoys=` says: a class for every module, or `{module class or path: class}`.

    A path is that of `rename=`: the name of a child (`"attn"`), several (`"h.0.attn"`), the same
    with a leading dot from the root only, `*` for any one name. None where nothing is said.

    Raises:
        TypeError: something is no class of Envoy.
        ValueError: `strict`, and a path matches no module.
    """
    if envoys is None:
        return None
    table: Mapping[Any, Any] = envoys if isinstance(envoys, Mapping) else {Module: envoys}
    for key, kind in table.items():
        if not inspect.isclass(kind) or not issubclass(kind, base):
            raise TypeError(
                f"`envoys` gives {_shown(key)} {kind!r}, which is no class of Envoy. Write "
                "`class Mine(Envoy): ...` and give the class itself."
            )
        if not isinstance(key, str) and not (inspect.isclass(key) and issubclass(key, Module)):
            raise TypeError(
                f"`envoys` has the key {key!r}. A key is a module class, or a path: 'attn', "
                "'transformer.h.0', 'h.*.mlp'."
            )
    by_path = {key: kind for key, kind in table.items() if isinstance(key, str)}
    for key in by_path if strict else ():
        _refuse_unmatched(key, root)
    by_class = {key: kind for key, kind in table.items() if not isinstance(key, str)}
    return Classes(base, by_path, by_class)


def _fits(key: str, path: str) -> bool:
    wanted, names = key.removeprefix(".").split("."), path.split(".") if path else []
    if len(wanted) > len(names) or (key.startswith(".") and len(wanted) != len(names)):
        return False
    pairs = zip(wanted, names[-len(wanted) :], strict=True)
    return all(part in ("*", name) for part, name in pairs)


def _refuse_unmatched(key: str, root: Module) -> None:
    paths = [path for path, _ in root.named_modules(remove_duplicate=False) if path]
    if any(_fits(key, path) for path in paths):
        return
    near = get_close_matches(key, {*paths, *(path.rpartition(".")[2] for path in paths)}, n=2)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"the key {key!r} of `envoys` matches no module of {type(root).__name__}.{hint} A key is a "
        "module class, the name of a child, or a path; `print(model)` shows them."
    )


def _shown(key: object) -> str:
    return key.__name__ if inspect.isclass(key) else repr(key)
