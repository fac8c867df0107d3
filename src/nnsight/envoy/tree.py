"""`Node`: a wrapped module and its children, as the user walks them.

Children are made when they are first asked for, so wrapping costs the same for every model. A
node follows its module: a child that is replaced in the model is replaced behind its node, and one
that is added later is there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import RLock
from typing import Any
from weakref import WeakSet, WeakValueDictionary, ref

from torch.nn import Module, Parameter

from nnsight.config import CONFIG
from nnsight.envoy import errors, layout
from nnsight.envoy.passage import Lineage, Survey
from nnsight.traces.edits import concerns
from nnsight.traces.layout import Layout

Aliases = Mapping[str, Mapping[str, str]]


class Tree:
    """What all nodes of one wrapped model have in common. It knows no node, so none is kept."""

    def __init__(self, root: Module, aliases: Aliases) -> None:
        self.root = root
        self.aliases = aliases  # for each path the other names mounted there, and their targets
        self.views: WeakSet[View] = WeakSet()
        self.surveys: dict[tuple[str, str], Survey] = {}  # by path and method that was traced
        self.memory: dict[str, dict[Any, Any]] = {}  # what was found out of each traced module
        self._lineage: Lineage | None = None
        self._layout: layout.Survey | None = None
        self.loading = RLock()  # held by the thread that reads the weights
        self.classes: Any = None  # `classes.Classes`: of which class the nodes are
        self.was_tuple: Callable[[Module], bool] = _never  # returns a tensor, and once a tuple
        self.tuple_outputs: bool | None = None  # whether blocks see it as one; None: as switched

    def __repr__(self) -> str:
        return f"the wrapped {type(self.root).__name__}"

    def shows_tuple(self, module: Module) -> bool:
        """Whether blocks see the tensor that `module` returns as a tuple of it."""
        wanted = CONFIG.APP.LEGACY if self.tuple_outputs is None else self.tuple_outputs
        return wanted and self.was_tuple(module)

    def forget(self) -> None:
        """The model has changed: what was learned of it no longer holds."""
        self.surveys.clear()
        self.memory.clear()
        self._lineage = self._layout = None

    def layout(self, name: str) -> Layout:
        """Every module by path; `name` is that of the root."""
        if self._layout is None or not self._layout.holds(self.root):
            self._layout = layout.survey(self.root, name, self.aliases)
        return self._layout.layout

    def above(self, module: Module) -> list[Module]:
        """Every module that may be running when `module` is called."""
        found = self._lineage.above(module) if self._lineage is not None else None
        if found is None:  # not asked for yet, or added since
            if self._lineage is not None:
                self.forget()
            self._lineage = Lineage(self.root)
            found = self._lineage.above(module)
        return found or []


def row_zero(node: Node, value: Any) -> str | None:
    """What to say of a `[0]` of the output of a block that returned a tuple once, if anything."""
    tree, module = node._tree, node._module
    if not tree.was_tuple(module) or isinstance(value, tuple):
        return None
    if tree.tuple_outputs is not None or CONFIG.APP.LEGACY:
        return None
    return errors.row_zero(type(module).__name__)


def _never(module: Module) -> bool:
    return False


class View:
    """One set of nodes of a tree, and the edits that are in force in what is traced through them.

    The nodes of another view are other objects that stand for the same places: a location asked for
    through the one is the location of the other.

    Args:
        tree: the model.
        edits: those in force from the start.
        origin: the root of the view that was there first; None for that one itself.
    """

    def __init__(self, tree: Tree, edits: Iterable[Any] = (), origin: Node | None = None) -> None:
        self.nodes: WeakValueDictionary[int, Node] = WeakValueDictionary()  # by module
        self.edits = list(edits)
        self.origin = origin
        tree.views.add(self)

    def repoint(self, root: Module) -> None:
        """Follow a model whose root has been replaced."""
        for node in [node for node in self.nodes.values() if node.parent is None]:
            node._repoint(root.get_submodule(node._path.partition(".")[2]))


def first_parameter(module: Module) -> Parameter | None:
    """`next(module.parameters())`, at a tenth of its price; None if there is none."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (found := first_parameter(child)) is not None:
            return found
    return None


class Node:
    """One module of a wrapped model.

    `node.child` is a child, `node[0]` an element of a list of modules, `node.get("a.b.0")` walks.
    """

    _module: Module
    _tree: Tree
    _view: View
    _twin_of: Node | None  # in a later view: the node of the first that stands for the same place
    _key: int  # the same for all nodes of one place
    _path: str
    _name: str
    _children: dict[str, Node]
    _parent_ref: Callable[[], Node | None]

    def _mount(
        self,
        module: Module,
        path: str,
        tree: Tree,
        parent: Node | None,
        view: View | None = None,
    ) -> None:
        """Become the node of `module` at `path`, in the view of its parent."""
        view = view or (parent._view if parent is not None else View(tree))
        twin_of = view.origin
        if twin_of is not None and parent is not None and parent._twin_of is not None:
            twin_of = parent._twin_of._child(path.rpartition(".")[2])
        fields = {
            "_module": module,
            "_tree": tree,
            "_view": view,
            "_twin_of": twin_of,
            "_key": id(self if twin_of is None else twin_of),
            "_path": path,
            "_children": {},
            "_parent_ref": ref(parent) if parent is not None else (lambda: None),
        }
        self.__dict__.update(fields)
        view.nodes[id(module)] = self

    def __eq__(self, other: object) -> bool:
        """Whether `other` stands for the same place of the same model."""
        return isinstance(other, Node) and self._key == other._key

    def __hash__(self) -> int:
        return self._key

    def __getstate__(self) -> dict[str, Any]:
        """For `copy` and `pickle`: a copy, of a part too, is the root of a tree of its own."""
        left = ("_tree", "_view", "_twin_of", "_key", "_children", "_parent_ref")
        kept = {name: value for name, value in self.__dict__.items() if name not in left}
        root, _, relative = self._path.partition(".")
        edits = self._view.edits
        if relative and edits:  # they may name what the part lacks
            part: Any = self
            errors.warn_of_edits_left(self._path, [e for e in edits if concerns(e, part)])
            edits = []
        aliases = _below(self._tree.aliases, relative)
        tree = self._tree
        seen = {"_classes": tree.classes, "_tuples": (tree.was_tuple, tree.tuple_outputs)}
        return {**kept, "_path": root, "_aliases": aliases, "_edits": edits, **seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        aliases, edits = state.pop("_aliases"), state.pop("_edits")
        classes, (was_tuple, tuple_outputs) = state.pop("_classes"), state.pop("_tuples")
        self.__dict__.update(state)
        tree = Tree(self._module, aliases)
        tree.classes, tree.was_tuple, tree.tuple_outputs = classes, was_tuple, tuple_outputs
        self._mount(self._module, self._path, tree, None, View(tree, edits))

    def _twin(self) -> Any:
        """This node in a new view, with the edits of this one: what is added there is not here."""
        root = self._root()
        twin = type(root).__new__(type(root))
        twin.__dict__.update(root.__dict__)
        view = View(self._tree, self._view.edits, self._view.origin or root)
        twin._mount(root._module, root._path, self._tree, None, view)
        return twin.get(self._path.partition(".")[2])

    def _make_child(self, module: Module, path: str) -> Node:
        """A new node under this one; a subclass decides of which class."""
        raise NotImplementedError

    def _child(self, name: str) -> Node | None:
        """The node of a child module by its own name, or None."""
        module = _part(self._module, name)
        if module is None:
            return None
        child = self._children.get(name)
        if child is None:
            child = self._view.nodes.get(id(module))  # shared: one node, whichever way one comes
            if child is None or child._module is not module:
                child = self._make_child(module, f"{self._path}.{name}")
            self._children[name] = child
        elif child._module is not module:
            child._repoint(module)
        return child

    def _repoint(self, module: Module) -> None:
        """Follow a module that took the place of another."""
        self._tree.forget()
        self.__dict__["_module"] = module
        self._view.nodes[id(module)] = self
        for name in list(self._children):
            if _part(module, name) is None:
                del self._children[name]
            else:
                self._child(name)

    # --- walking ----------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """How this module is reached: `model.transformer.h.0`."""
        return self._path

    @property
    def tree(self) -> Tree:
        """What all modules of one wrapped model share."""
        return self._tree

    def _place_of(self, value: object) -> str | None:
        """Where below the root `value` stands, if it is a node of this tree; "" is the root."""
        if not isinstance(value, Node) or value._tree is not self._tree:
            return None
        return value._path.partition(".")[2]

    def _at(self, place: str) -> Any:
        """The node of this view at `place`.

        Raises:
            AttributeError: there is no such place.
        """
        return self._root().get(place)

    @property
    def parent(self) -> Node | None:
        """The node above, as long as it is in use; None at the root."""
        return self._parent_ref()

    def _names(self) -> list[str]:
        return [name for name, module in self._module._modules.items() if module is not None]

    def _walk(self, names: list[str]) -> Any:
        """The child, the child's child, ... by their own names or aliases."""
        node: Any = self
        for index, name in enumerate(names):
            last = index == len(names) - 1
            child = node._child(name) if isinstance(node, Node) and not last else None
            node = child if child is not None else _step(node, name)
        return node

    def get(self, path: str) -> Any:
        """What `path` leads to: `model.get("transformer.h.0.attn")`.

        Inside a trace the path may end in a value: `model.get("lm_head.output")`.

        Raises:
            AttributeError: a part of the path does not exist.
        """
        return self._walk(path.split(".")) if path else self

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            return self.get(key)
        first = next(iter(self._module._modules), "")
        if first.lstrip("-").isdigit() and (child := self._child(str(key))) is not None:
            return child  # a list, perhaps with gaps: its own number
        names = self._names()
        if isinstance(key, slice):
            return [self._child(name) for name in names[key]]
        if not names:
            raise TypeError(
                f"`{self.path}` is a {type(self._module).__name__} without children, so it has no "
                f"element {key}. To index its value, write `{self.path}.output[{key}]`."
            )
        if not -len(names) <= key < len(names):
            raise IndexError(
                f"`{self.path}` has {len(names)} modules, so there is no element {key}: the last "
                f"one is `[{len(names) - 1}]`, or `[-1]`."
            )
        return self._child(names[key])

    def __len__(self) -> int:
        return len(self._names())

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter([self._child(name) for name in self._names()])

    def modules(
        self, include_fn: Callable[[Any], bool] | None = None, names: bool = False
    ) -> list[Any]:
        """This module and all below it, children before parents.

        Args:
            include_fn: keeps an envoy if it returns true for it.
            names: give `(path, envoy)` pairs.
        """
        found: dict[int, tuple[str, Any]] = {}
        self._collect(found)
        kept = [pair for pair in found.values() if include_fn is None or include_fn(pair[1])]
        return kept if names else [envoy for _, envoy in kept]

    def _collect(self, found: dict[int, tuple[str, Any]]) -> None:
        for name in self._names():
            child = self._child(name)
            if child is not None and id(child) not in found:
                child._collect(found)
        found[id(self)] = (self.path, self)

    def named_modules(self, include_fn: Callable[[Any], bool] | None = None) -> list[Any]:
        """`(path, envoy)` of this module and all below it, children before parents."""
        return self.modules(include_fn, names=True)

    def _node_of(self, module: Module) -> Node | None:
        """The node of a module somewhere in this tree."""
        node = self._view.nodes.get(id(module))
        if node is not None and node._module is module:
            return node
        for path, candidate in self._module.named_modules():
            if candidate is module:
                found = self
                for name in path.split("."):
                    found = found._child(name) if found is not None else None  # type: ignore[assignment]
                return found
        return None

    def _root(self) -> Node:
        """The node of the whole model, made again if only a part of the tree is in use."""
        root = self._view.nodes.get(id(self._tree.root)) or self._view.origin
        return root or self._make_child(self._tree.root, self._path.partition(".")[0])

    def _aliases(self) -> Mapping[str, str]:
        """The other names mounted here, and where in the model they lead."""
        return self._tree.aliases.get(self._path.partition(".")[2], {})

    def _alias(self, name: str) -> Any:
        """The node that `name` is another name of here, or None."""
        if not self._tree.aliases:
            return None
        target = self._aliases().get(name)
        return None if target is None else self._root()._walk(target.split("."))

    def _no_such(self, name: str) -> AttributeError:
        """The error for a name that is nowhere, with what was probably meant."""
        names = [*self._names(), *self._aliases(), *dir(type(self)), *dir(type(self._module))]
        public = {n: None for n in names if not n.startswith(("_", "nns_"))}
        near = difflib.get_close_matches(name, public, n=3)
        hint = f" Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""
        children = ", ".join(self._names()[:12]) or "none"
        return AttributeError(
            f"`{self.path}` ({type(self._module).__name__}) has no module or attribute {name!r}."
            f"{hint} Its modules: {children}.",
            name=name,
            obj=None,
        )


def _part(module: Module, name: str) -> Module | None:
    """The child of a module by its name. (A scripted module keeps its own in no dictionary.)"""
    modules = module._modules
    return modules[name] if name in modules else None


def _below(aliases: Aliases, path: str) -> Aliases:
    """The aliases of the part at `path`, with places and targets as seen from there."""
    if not path:
        return aliases
    start, found = f"{path}.", dict[str, dict[str, str]]()
    for place, names in aliases.items():
        if f"{place}.".startswith(start):
            inside = {name: target for name, target in names.items() if target.startswith(start)}
            found[place[len(start) :]] = {n: t[len(start) :] for n, t in inside.items()}
    return found


def _step(node: Any, name: str) -> Any:
    if isinstance(node, Node) and name.lstrip("-").isdigit() and node._child(name) is None:
        return node[int(name)]
    return getattr(node, name)
