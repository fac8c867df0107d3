"""How a tree of modules prints: in a terminal as PyTorch prints it, in a notebook to be unfolded.

Both say the same about the same rows: a module's class, its `extra_repr` and its children, where
repeated blocks of a `ModuleList` are one row. What an Envoy adds stands in the parentheses of a
row: `(layers/h)` is the child `h`, also called `layers`; `(output -> .E_output)` is the child
`output`, to be read as `.E_output`. Without either, `text(module)` is `repr(module)`.
"""

from __future__ import annotations

import html as markup
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from torch.nn import Module, ModuleList
from torch.nn.parameter import is_lazy

ESCAPE = "E_"
"""What goes before the name of a child that the Envoy's own API hides."""

Aliases = Mapping[str, Mapping[str, str]]
Own = Callable[[Module, str], "list[str]"]


def text(
    module: Module,
    aliases: Aliases | None = None,
    path: str = "",
    collisions: Container[str] = frozenset(),
    own: Own | None = None,
) -> str:
    """The tree under `module`, as `repr(module)` with the names that an Envoy adds.

    Args:
        aliases: What `aliases.resolve` returned for the whole model.
        path: Where `module` is in the whole model.
        collisions: Child names that an Envoy keeps for itself.
        own: What the Envoy of a module has of its own, a line each.
    """
    return _text(_item(module, path, _Names(_by_target(aliases), collisions, False, own)))


def html(
    module: Module,
    aliases: Aliases | None = None,
    path: str = "",
    collisions: Container[str] = frozenset(),
    own: Own | None = None,
    title: str = "",
) -> str:
    """The tree under `module` as HTML that folds, with the number of parameters of each module.

    It brings its style along, takes its colours from the page, and has no scripts and no ids.
    `title` names the module in the first line; the other arguments are those of `text`.
    """
    item = _item(module, path, _Names(_by_target(aliases), collisions, True, own))
    head = f"{title}: " if title else ""
    return f'<div style="{_FRAME}">{_html(head, item, opened=True)}</div>'


# --- what there is to show ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """A module, as far as it shows. Equal ones can be folded."""

    name: str  # of its class; or the whole text, for a class that prints itself
    lines: tuple[str, ...] = ()  # its `extra_repr`
    rows: tuple[_Row, ...] = ()  # its children
    verbatim: bool = False  # whether `name` is the whole text
    parameters: int = 0


@dataclass(frozen=True)
class _Row:
    """A child, or several equal ones in a `ModuleList`."""

    label: str
    item: _Item
    times: int = 1

    @property
    def head(self) -> str:
        return f"({self.label}): " + (f"{self.times} x " if self.times > 1 else "")


@dataclass(frozen=True)
class _Names:
    """What is the same all over one tree."""

    by_target: dict[str, dict[str, None]]  # the aliases of each path, wherever they are mounted
    collisions: Container[str]
    counted: bool  # whether to count parameters
    own: Own | None  # further lines of a module

    def of(self, path: str, name: str) -> str:
        """What the child `name` at `path` is called."""
        label = "/".join([*self.by_target.get(path, ()), name])
        return f"{label} -> .{ESCAPE}{name}" if name in self.collisions else label


def _by_target(aliases: Aliases | None) -> dict[str, dict[str, None]]:
    names: dict[str, dict[str, None]] = {}
    for mounted in (aliases or {}).values():
        for alias, target in mounted.items():
            names.setdefault(target, {})[alias] = None
    return names


def _item(module: Module | None, path: str, names: _Names) -> _Item:
    prints = type(module).__repr__
    count = _count(module) if names.counted and module is not None else 0
    if module is None or prints not in (Module.__repr__, ModuleList.__repr__):
        return _Item(repr(module), verbatim=True, parameters=count)
    if prints is ModuleList.__repr__:
        lines, rows = [], _folded(module, path, names)
    else:
        extra = module.extra_repr()
        lines, rows = extra.split("\n") if extra else [], _rows(module, path, names)
    if names.own is not None:
        lines += names.own(module, path)
    return _Item(module._get_name(), tuple(lines), tuple(rows), parameters=count)


def _rows(module: Module, path: str, names: _Names) -> Iterator[_Row]:
    for name, child in module._modules.items():
        below = f"{path}.{name}" if path else name
        yield _Row(names.of(below, name), _item(child, below, names))


def _folded(module: Module, path: str, names: _Names) -> Iterator[_Row]:
    """Equal neighbours as one row, under their positions; one with an alias keeps its own."""

    def key(entry: tuple[int, tuple[str, _Row]]) -> object:
        position, (name, row) = entry
        return (None if row.label == name else position), row.item

    entries = enumerate(zip(module._modules, _rows(module, path, names), strict=True))
    for _, group in groupby(entries, key):
        (first, (name, row)), *more = group
        if more:
            yield _Row(f"{first}-{first + len(more)}", row.item, 1 + len(more))
        else:  # the position for the name, as PyTorch prints it
            yield row if row.label != name else _Row(str(first), row.item)


def _count(module: Module) -> int:
    """The parameters in `module`, as far as they have a size yet."""
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


# --- in a terminal --------------------------------------------------------------------------------


def _text(item: _Item) -> str:
    if item.verbatim:
        return item.name
    if len(item.lines) == 1 and not item.rows:
        return f"{item.name}({item.lines[0]})"
    body = [*item.lines, *(row.head + _indented(_text(row.item)) for row in item.rows)]
    return "\n  ".join([f"{item.name}(", *body]) + "\n)" if body else f"{item.name}()"


def _indented(lines: str) -> str:
    first, *rest = lines.split("\n")
    return "\n".join([first, *("  " + line if line.strip() else "" for line in rest)])


# --- in a notebook --------------------------------------------------------------------------------

_FRAME = "font-family:monospace;line-height:1.5;text-align:left"
_LEAF = "padding-left:1.1em;white-space:pre-wrap"  # as far in as the text beside a triangle
_BODY = "padding-left:1.4em"
_GREY = "opacity:.55;white-space:nowrap"  # grey on a light page as on a dark one


def _html(head: str, item: _Item, times: int = 1, opened: bool = False) -> str:
    """One line for a module without children, otherwise one to unfold."""
    count = _counted(item.parameters, times)
    if not item.rows:
        return _line(markup.escape(head + _text(item)) + count)
    inside = [_line(markup.escape(line)) for line in item.lines]
    inside += [_html(row.head, row.item, row.times) for row in item.rows]
    return (
        f"<details{' open' * opened}>"
        f'<summary style="cursor:pointer">{markup.escape(head + item.name)}{count}</summary>'
        f'<div style="{_BODY}">{"".join(inside)}</div></details>'
    )


def _line(content: str) -> str:
    return f'<div style="{_LEAF}">{content}</div>'


def _counted(parameters: int, times: int) -> str:
    if not parameters:
        return ""
    noun = "parameter" if parameters == 1 else "parameters"
    each = " each" if times > 1 else ""
    return f' <span style="{_GREY}">{parameters:,} {noun}{each}</span>'
