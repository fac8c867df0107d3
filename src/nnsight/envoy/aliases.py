"""The other names that `NNsight(model, rename={"real": "alias"})` gives to modules.

`resolve` expands the argument once into a table: on which modules an alias is mounted, and which
module it names there. Whoever looks a module up or prints one reads the table. Real names stay
valid, and an alias never stands for two modules or hides anything: what would is refused here,
with a text that says what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from keyword import iskeyword

from torch.nn import Module

Modules = Mapping[str, Module]


@dataclass(frozen=True)
class _Mount:
    """One alias at one place."""

    key: str | type  # as it stands in `rename`
    alias: str  # as it stands in `rename`, perhaps dotted
    place: str  # the path of the module that the alias is relative to
    target: str  # the path of the module that it names


_Mounted = dict[str, dict[str, _Mount]]


def resolve(
    root: Module, rename: Mapping[str | type, str | Sequence[str]] | None, reserved: Container[str]
) -> dict[str, dict[str, str]]:
    """The aliases of each module, as `{place: {alias: target}}`, in paths relative to `root`.

    Args:
        root: The module whose path is `""`.
        rename: `{"real": "alias"}` or `{"real": ["alias", ...]}`. A key is a child name (`"mlp"`)
            or a path (`"transformer.h"`), wherever it can be walked; the same with a leading dot,
            from the root only; a path in which `*` stands for any one name
            (`"transformer.h.*.attn"`, mounted on what the last `*` matches); or a class, for
            modules with one direct child of it. A dotted alias is mounted deeper: `"head.unembed"`
            is `unembed` on what `head` leads to, a child or another alias.
        reserved: Names that an Envoy keeps for itself.

    Raises:
        ValueError: a key matches nothing or too much, or an alias cannot be had.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    waiting = [
        _Mount(key, alias, place, target)
        for key, value in (rename or {}).items()
        for aliases in [_aliases(key, value)]
        for place, target in _matches(key, aliases, modules)
        for alias in aliases
    ]
    mounted: _Mounted = {}
    while waiting:  # once more for each dotted alias that leads through another one
        left = _settle(waiting, mounted, modules, reserved)
        if len(left) == len(waiting):
            raise _impossible(left[0], mounted, modules)
        waiting = left
    return {
        place: {name: mount.target for name, mount in mounts.items()}
        for place, mounts in mounted.items()
    }


def _aliases(key: object, value: str | Sequence[str]) -> list[str]:
    """`value` as a list of what can be written after a dot."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    aliases: list[str] = list(value) if listed else [value]  # type: ignore[list-item] # checked next
    for alias in aliases:
        if not isinstance(alias, str) or not _writable(alias):
            raise _not_a_name(key, alias)
    return aliases


def _writable(alias: str) -> bool:
    *way, name = alias.split(".")
    return all(way) and name.isidentifier() and not iskeyword(name)


# --- which modules a key stands for ---------------------------------------------------------------


def _matches(key: str | type, aliases: list[str], modules: Modules) -> list[tuple[str, str]]:
    """The places where the aliases of `key` belong, each with what they name there."""
    if not isinstance(key, str | type):
        raise ValueError(f"`rename` has the key {key!r}. {_FORMS}")
    found = list(_by_class(key, modules) if isinstance(key, type) else _by_path(key, modules))
    if not found:
        raise _unmatched(key, aliases, modules)
    return found


def _by_class(key: type, modules: Modules) -> Iterator[tuple[str, str]]:
    for place, module in modules.items():
        names = [name for name, child in module._modules.items() if isinstance(child, key)]
        if len(names) > 1:
            raise _ambiguous(key, place, names)
        if names:
            yield place, _join(place, names[0])


def _by_path(key: str, modules: Modules) -> Iterator[tuple[str, str]]:
    parts = key.removeprefix(".").split(".")
    if parts[-1] == "*":
        raise _open_ended(key)
    if "" in parts:
        return
    places = [""] if key.startswith(".") else list(modules)
    while "*" in parts:
        places = [path for place in places for path in _step(place, parts[0], modules)]
        parts = parts[1:]
    for place in places:
        target = _walk(place, parts, modules, {})
        if target is not None:
            yield place, target


def _step(place: str, part: str, modules: Modules) -> list[str]:
    names = modules[place]._modules if part == "*" else [part]
    return [path for name in names if (path := _join(place, name)) in modules]


def _walk(path: str, parts: Sequence[str], modules: Modules, mounted: _Mounted) -> str | None:
    """Where `parts` lead to from `path`, by real names and by aliases; None if nowhere."""
    for part in parts:
        alias = mounted.get(path, {}).get(part)
        path = alias.target if alias else _join(path, part)
        if path not in modules:
            return None
    return path


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- mounting -------------------------------------------------------------------------------------


def _settle(
    waiting: list[_Mount], mounted: _Mounted, modules: Modules, reserved: Container[str]
) -> list[_Mount]:
    """Mount what belongs on a module that can be reached by now; the others are returned."""
    left: list[_Mount] = []
    for mount in waiting:
        *way, name = mount.alias.split(".")
        place = _walk(mount.place, way, modules, mounted)
        if place is None:
            left.append(mount)
        elif name in reserved:
            raise _reserved(mount, name)
        elif _join(place, name) != mount.target:  # its own name needs no alias
            _check(mount, place, name, mounted, modules)
            mounted.setdefault(place, {})[name] = mount
    return left


def _check(mount: _Mount, place: str, name: str, mounted: _Mounted, modules: Modules) -> None:
    """Refuse an alias that is taken. Not by `hasattr`: it runs properties and `__getattr__`s."""
    module = modules[place]
    if name in module._modules:
        raise _shadows(mount, place, name, "a child")
    held = (module._parameters, module._buffers, vars(module), *map(vars, type(module).__mro__))
    if any(name in names for names in held):
        raise _shadows(mount, place, name, "an attribute")
    other = mounted.get(place, {}).get(name, mount)
    if other.target != mount.target:
        raise _two_targets(mount, other, place, name)


# --- what is said of a rename that cannot be done -------------------------------------------------

_FORMS = (
    "A key is the name of a child ('mlp'), a path ('transformer.h', or '.transformer.h' from the "
    "root only), a path with `*` in it ('h.*.attn') or a module class."
)


def _at(place: str) -> str:
    return f"`{place}`" if place else "the root"


def _show(key: object) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)


def _not_a_name(key: object, alias: object) -> ValueError:
    way_out = "Give a string, or a list of strings."
    if isinstance(alias, str):
        name = re.sub(r"\W|^(?=\d)|^$", "_", alias.rpartition(".")[2])
        way_out = f"Write for instance {name + '_' * iskeyword(name)!r}."
    return ValueError(
        f"`rename` gives {_show(key)} the alias {alias!r}, which is no name that Python lets you "
        f"write after a dot. {way_out}"
    )


def _open_ended(key: str) -> ValueError:
    return ValueError(
        f"The key {key!r} of `rename` ends in `*`: its alias would name many modules at once. "
        f"Leave the `*` out to name what holds them, or go on to a child of each: {key + '.mlp'!r}."
    )


def _ambiguous(key: type, place: str, names: list[str]) -> ValueError:
    listed = ", ".join(names if len(names) < 7 else [*names[:5], "...", names[-1]])
    return ValueError(
        f"The key {_show(key)} of `rename` is ambiguous: {_at(place)} has {len(names)} direct "
        f"children of that class ({listed}). Name the one you mean, with the key "
        f"{_join(place.rpartition('.')[2], names[0])!r} for instance, or name what holds them."
    )


def _unmatched(key: str | type, aliases: list[str], modules: Modules) -> ValueError:
    if isinstance(key, type):
        what = "is a direct child of that class"
        near = get_close_matches(key.__name__, {type(m).__name__ for m in modules.values()})
    else:
        what = f"can be reached by it from {'the root' if key[:1] == '.' else 'any module'}"
        near = list(map(repr, _near(key, modules)))
    way_out = f"Did you mean {' or '.join(near[:3])}?" if near else _FORMS
    if not isinstance(key, type) and any(_by_path(aliases[0], modules) if aliases else ()):
        way_out = f"`rename` is {{real: alias}}: write {{{aliases[0]!r}: {key!r}}}."
    return ValueError(
        f"The key {_show(key)} of `rename` matches nothing in {type(modules['']).__name__}: no "
        f"module {what}. {way_out} The children of the root: {_children('', modules)}."
    )


def _near(key: str, modules: Modules) -> list[str]:
    """Keys much like `key`. Numbers count as `*`, which leaves few of them in any model."""
    lead = "." if key.startswith(".") else ""
    known: dict[str, None] = {}  # in the order of the model
    for path in filter(None, modules):
        parts = ["*" if part.isdigit() else part for part in path.split(".")]
        if parts[-1] != "*":
            for start in range(1 if lead else len(parts)):
                known[lead + ".".join(parts[start:])] = None
    return [path for path in known if lead and path.endswith(key)] or get_close_matches(key, known)


def _impossible(mount: _Mount, mounted: _Mounted, modules: Modules) -> ValueError:
    *way, name = mount.alias.split(".")
    reach = [_walk(mount.place, way[:end], modules, mounted) for end in range(len(way))]
    passed = [path for path in reach if path is not None]
    stuck = way[len(passed) - 1]
    return ValueError(
        f"The impossible dotted alias {mount.alias!r} for {_show(mount.key)} in `rename`: `{name}` "
        f"cannot be mounted below {_at(mount.place)}, as {_at(passed[-1])} has no child and no "
        f"alias `{stuck}`. Write one of its children ({_children(passed[-1], modules)}), or give "
        f"one the alias {stuck!r} in the same `rename`."
    )


def _children(place: str, modules: Modules) -> str:
    return ", ".join(modules[place]._modules) or "none"


def _reserved(mount: _Mount, name: str) -> ValueError:
    return ValueError(
        f"`rename` gives {_show(mount.key)} the alias {mount.alias!r}, but every Envoy has a "
        f"`.{name}` of its own. Write another alias, such as {name + '_module'!r}."
    )


def _shadows(mount: _Mount, place: str, name: str, what: str) -> ValueError:
    return ValueError(
        f"`rename` gives {_show(mount.key)} the alias {mount.alias!r}, which would shadow {what} "
        f"`{name}` of {_at(place)}. Write another alias; or, to leave that place alone, a longer "
        "path as the key, with a leading dot if it starts at the root."
    )


def _two_targets(mount: _Mount, other: _Mount, place: str, name: str) -> ValueError:
    return ValueError(
        f"`rename` gives the alias {name!r} at {_at(place)} to two modules: `{other.target}` (key "
        f"{_show(other.key)}) and `{mount.target}` (key {_show(mount.key)}). Give each an alias of "
        "its own."
    )
