"""The standard names: one set of addresses for every family, as objects that users walk.

`model.layers[3]` is the envoy of the fourth block under whichever name the family has for it, seen
through a class that knows further names: `resid_post`, `attn`, `mlp`. It is the same node, with the
same children and values, so whatever takes an envoy takes it. Where a module has a child of one of
those names (GPT-2's `mlp.act` is a module), the child is reached on the original path, or as
`E_act`.

Nothing of this is done for a model until one of the names is used on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.nn import Module

from nnsight.envoy.envoy import Envoy
from nnsight.interleave.location import INPUT, OUTPUT, Location
from nnsight.modeling import errors
from nnsight.modeling.family import BLOCKS, BY_GROUP, BY_HEAD, at, chosen
from nnsight.modeling.kernel import meetable, pattern_of, turned_of
from nnsight.modeling.points import (
    Look,
    Point,
    Spot,
    Value,
    block,
    by_row,
    heads,
    of_each_group,
    of_each_head,
)
from nnsight.modeling.router import probabilities_of
from nnsight.modeling.stacks import Stack, stacks_of


def lookup(model: Any, name: str) -> Any:
    """What the standard name `name` of a whole model is, or None if it is none there.

    A child of that name that is no list of layers, and an alias of the user's own, come first.
    """
    if name in _MODULES and name in model._module._modules:
        return None
    alias = model._aliases().get(name)
    stacks = stacks_of(model)
    if not stacks or (alias is not None and alias != stacks[0].path(stacks[0].family.layers)):
        return None
    if name in _MODULES:
        return _single(model, stacks[-1], name)
    if len(stacks) == 1:
        return None if name != "layers" else _layers(model, stacks[0])
    if name == "layers":
        raise errors.several_stacks(model._path, [stack.name for stack in stacks])
    stack = next(stack for stack in stacks if stack.family.stack == name)
    return seen_as(below(model, stack.path(stack.family.layers.rpartition(".")[0])), Half, stack)


def has(model: Any, name: str) -> bool:
    """Whether a whole model has the standard name `name`."""
    try:
        return lookup(model, name) is not None
    except errors.NoSuchName:
        return False


def _single(model: Any, stack: Stack, name: str) -> Any:
    if name == "ln_final":
        path = chosen(model._module.get_submodule(stack.base), stack.family.norm)
        if path is None:
            raise errors.no_such_name(f"{model._path}.ln_final", "this model ends without a norm")
        return below(model, stack.path(path))
    getter = {"embed_tokens": "get_input_embeddings", "lm_head": "get_output_embeddings"}[name]
    method: Callable[[], Module | None] | None = getattr(model._module, getter, None)
    module = method() if method is not None else None
    if module is None:
        raise errors.no_such_name(f"{model._path}.{name}", "this model was opened without one")
    return model._node_of(module)


def _layers(model: Any, stack: Stack) -> Layers:
    return seen_as(below(model, stack.path(stack.family.layers)), Layers, stack)


_MODULES = frozenset({"ln_final", "lm_head", "embed_tokens"})
NAMES = _MODULES | {"layers", "encoder", "decoder"}
"""What `lookup` knows."""


# --- nodes with further names ---------------------------------------------------------------------


def below(node: Any, path: str) -> Any:
    """The node at a path of modules' own names; a standard name would lead here again."""
    for name in path.split(".") if path else ():
        node = node._child(name)
    return node


def seen_as(node: Any, kind: type, stack: Stack, role: str = "") -> Any:
    """`node` as an object of class `kind`: it has the same state, and is equal to it."""
    other = object.__new__(_with(kind, type(node)))
    fields = node.__dict__
    fields["_stack"] = stack
    if role:
        fields["_role"] = role
    object.__setattr__(other, "__dict__", fields)
    return other


@functools.lru_cache(maxsize=256)
def _with(kind: type, own: type) -> type:
    """`kind`, with what the class that a user gave to the node adds."""
    if issubclass(kind, own):
        return kind
    return own if issubclass(own, kind) else type(kind.__name__, (kind, own), {})


class Named(Envoy):
    """An envoy with standard names."""

    _stack: Stack

    def _spot(self, name: str) -> Spot:
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        ours = isinstance(getattr(type(self), name, None), property)
        if ours and isinstance(value, Module | Envoy) and name not in self._module._modules:
            raise errors.not_replaced(self._called(name), self._path)
        super().__setattr__(name, value)

    def _value(self, name: str, path: str, kind: str, **options: Any) -> Value:
        return Value(self._called(name), Location(below(self, path), kind), **options)

    def _called(self, name: str) -> str:
        """How a value of this node is called by standard names."""
        stack = self._stack
        start = f"{self._path.partition('.')[0]}.{stack.path(stack.family.layers)}."
        index, _, _ = self._path.removeprefix(start).partition(".")
        return f"{stack.name}[{index}].{name}"


class Half(Named):
    """The encoder or the decoder of a model that has both."""

    @property
    def layers(self) -> Layers:
        """The layers of this stack."""
        stack = self._stack
        return seen_as(below(self, stack.family.layers.rpartition(".")[2]), Layers, stack)

    @property
    def ln_final(self) -> Any:
        """The norm after the last layer."""
        own = self._stack.family.norm.rpartition(".")[2]
        if own not in self._module._modules:
            raise errors.no_such_name(f"{self._path}.ln_final", "this stack ends without a norm")
        return self._child(own)


class Layers(Named):
    """The layers of a stack."""

    def _child(self, name: str) -> Any:
        node = super()._child(name)
        return None if node is None else seen_as(node, Layer, self._stack)


class Layer(Named):
    """A layer under its standard names. What it has under its own is there too.

    The values are read and assigned inside a trace. Rows are those of the block, tokens those of
    the forward: in a generation the new ones.
    """

    resid_pre = Point("rows, tokens, width", "The residual stream that the layer is given.")
    resid_mid = Point("rows, tokens, width", "The stream between attention and MLP.")
    resid_post = Point("rows, tokens, width", "The residual stream that the layer gives on.")

    @property
    def attn(self) -> Attention:
        """The attention of the layer."""
        return self._part(self._stack.family.attn, "attn")

    self_attn = attn

    @property
    def cross_attn(self) -> Attention:
        """The attention of a decoder's layer to what the encoder gives."""
        return self._part(self._stack.family.cross, "cross_attn")

    @property
    def mlp(self) -> Any:
        """The MLP of the layer, or its mixture of experts."""
        family = self._stack.family
        if not family.mlp and not family.down:
            raise self._lacks("mlp", family.mlp)
        if not family.mlp:
            return LooseMLP(self)
        path = chosen(self._module, family.mlp)
        if path is None:
            raise self._lacks("mlp", family.mlp)
        return seen_as(below(self, path), MLP, self._stack)

    @property
    def router(self) -> Router:
        """What chooses among the experts of the layer."""
        path = chosen(self._module, self._stack.family.router)
        if path is None:
            raise self._lacks("router", self._stack.family.router)
        return seen_as(below(self, path), Router, self._stack)

    def _part(self, path: str, name: str) -> Attention:
        found = chosen(self._module, path)
        if found is None:
            raise self._lacks(name, path)
        return seen_as(below(self, found), Attention, self._stack, name)

    def _lacks(self, name: str, path: str) -> AttributeError:
        stack = self._stack
        layers = at(self._tree.root, stack.path(stack.family.layers)) if path else None
        others = (
            []
            if layers is None
            else [i for i, m in enumerate(layers.children()) if chosen(m, path)]
        )
        kind = type(self._module).__name__
        return errors.lacking(self._called(name), kind, stack.name, others)

    def _spot(self, name: str) -> Spot:
        if name == "resid_pre":
            return self._value(name, "", INPUT)
        if name == "resid_post":
            return self._value(name, "", OUTPUT)
        mid = self._stack.family.mid
        if not mid:
            raise errors.no_mid(self._called(name), self._stack.family.order, self._stack.known)
        path, _, kind = mid.rpartition(".")
        if kind == INPUT:  # the stream goes past the module too, as the same tensor
            return self._value(name, path, INPUT, look=by_row, in_place=True)
        return self._value(name, path, OUTPUT)


class Attention(Named):
    """The attention of a layer under its standard names."""

    q = Point("rows, tokens, heads, width of a head", "What the query projection gives.")
    k = Point("rows, tokens, key heads, width of a head", "What the key projection gives.")
    v = Point("rows, tokens, key heads, width of a head", "What the value projection gives.")
    q_rot = Point("rows, tokens, heads, width of a head", "The queries as they are compared.")
    k_rot = Point("rows, seen tokens, key heads, width of a head", "The keys as they are compared.")
    pattern = Point("rows, heads, tokens, seen tokens", "How much each token looks at each.")
    z = Point("rows, tokens, heads, width of a head", "What each head gives to the projection.")
    out = Point("rows, tokens, width", "What the output projection gives.")

    def _spot(self, name: str) -> Spot:
        family, called = self._stack.family, self._called(f"{self._role}.{name}")
        if name in ("pattern", "q_rot", "k_rot"):
            if name == "pattern" and family.pattern:
                path, _, kind = family.pattern.rpartition(".")
                return Value(called, Location(below(self, path), kind), guarded=True)
            node = below(self, family.kernel)
            if name == "pattern":
                return pattern_of(node, called)
            return turned_of(node, called, int(name == "k_rot"))
        if name in ("z", "out"):
            path = self._path_of(family.out, called)
            if name == "out":
                return Value(called, Location(below(self, path), OUTPUT))
            return Value(
                called, Location(below(self, path), INPUT), look=heads(self._width(called))
            )
        path = self._path_of(getattr(family, name), called)
        meetable(below(self, family.kernel))  # the pattern may be asked for next
        return Value(called, Location(below(self, path), OUTPUT), look=self._look(name, called))

    _role = "attn"

    def _path_of(self, path: str, called: str) -> str:
        found = chosen(self._module, path)
        if found is None:
            raise errors.no_such_name(called, f"{type(self._module).__name__} has no such module")
        return found

    def _width(self, called: str) -> int:
        if not self._stack.width:
            raise errors.no_such_name(called, "the config does not say how many heads there are")
        return self._stack.width

    def _look(self, name: str, called: str) -> Look:
        stack, which, width = self._stack, "qkv".index(name), self._width(called)
        if stack.family.joined == BLOCKS:
            return block(which, stack.heads, width)
        if stack.family.joined == BY_HEAD:
            return of_each_head(which, width)
        if stack.family.joined == BY_GROUP:
            return of_each_group(which, stack.heads, stack.groups, width)
        return heads(width)


class MLP(Named):
    """The MLP of a layer under its standard names."""

    act = Point("rows, tokens, width of the MLP", "The activations, as they go into the last step.")
    out = Point("rows, tokens, width", "What the MLP gives.")

    def _spot(self, name: str) -> Spot:
        path = chosen(self._module, self._stack.family.down)
        if path is None and name == "out":  # experts give it together
            return self._value("mlp.out", "", OUTPUT)
        if path is None:
            kind = type(self._module).__name__
            raise errors.no_such_name(self._called("mlp.act"), f"{kind} has one for each expert")
        if name == "out":
            return self._value("mlp.out", path, OUTPUT, look=by_row)
        return self._value("mlp.act", path, INPUT, look=by_row)


class LooseMLP:
    """The MLP of a layer that keeps its parts on itself: the standard names alone."""

    act, out = MLP.act, MLP.out

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def _spot(self, name: str) -> Spot:
        return MLP._spot(self._layer, name)  # type: ignore[arg-type] # a `Named` is all it needs

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("act", "out", "_layer"):
            getattr(self, name)  # says that there is no such thing
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        layer = vars(self).get("_layer")
        if layer is None or name.startswith("__"):
            raise AttributeError(name)
        kind, down = type(layer._module).__name__, layer._stack.family.down
        reason = f"{kind} has no module for its MLP: it keeps `{down}` and the rest on itself"
        raise errors.no_such_name(f"{layer._called('mlp')}.{name}", reason)


class Router(Named):
    """What chooses among the experts of a layer, under its standard names."""

    probs = Point("rows, tokens, experts", "With which probabilities experts are chosen.")

    def _spot(self, name: str) -> Spot:
        above = self.parent
        return probabilities_of(self, above, self._called("router.probs"))
