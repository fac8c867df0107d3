"""The layout of a tree: every module by path, found once and looked through before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn import Module

from nnsight.traces.layout import Layout, join, layout_of


@dataclass(frozen=True)
class Survey:
    """A layout, and what tells whether it still holds."""

    layout: Layout
    root: Module
    children: list[tuple[Module, list[Module | None]]]

    def holds(self, root: Module) -> bool:
        """Whether the model is made of the same modules as then."""
        return root is self.root and all(
            list(module._modules.values()) == children for module, children in self.children
        )


def survey(root: Module, name: str, aliases: Mapping[str, Mapping[str, str]]) -> Survey:
    """Walk through a model. A module in several places is at the first of them."""
    found: dict[str, Module] = {}
    first: dict[Module, str] = {}
    twins: dict[str, str] = {}
    for relative, module in root.named_modules(remove_duplicate=False):
        path = join(name, relative)
        if first.setdefault(module, path) == path:
            found[path] = module
        else:
            twins[path] = first[module]
    described = {p: (m, not is_container(m), _numbered(m)) for p, m in found.items()}
    children = [(m, list(m._modules.values())) for m in found.values()]
    return Survey(layout_of(name, described, twins, aliases), root, children)


def is_container(module: Module) -> bool:
    """Whether `module` only holds others and has no forward of its own."""
    own = getattr(type(module), "forward", None)  # a scripted module's class has none
    return own is Module.forward and "forward" not in vars(module)


def _numbered(module: Module) -> int:
    """How many children a module has, where they are numbered from 0 on; else 0."""
    names = list(module._modules)
    return len(names) if names == [str(n) for n in range(len(names))] else 0
