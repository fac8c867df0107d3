"""The standard names: one set of addresses for every family, as objects that users walk.

`model.layers[3]` is the envoy of the fourth block under whichever name the family has for it, seen
through a class that knows further names: `resid_post`, `attn`, `mlp`. It is the same node, with the
same children and values, so whatever takes an envoy takes it. Where a module has a child of one of
those names (GPT-2's `mlp.act` is a module), the child is reached on the original path, or as
`E_act`.

Nothing of this is done for a model until one of the names is used on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import Module

from nnsight.interleave.location import INPUT, OUTPUT
from nnsight.modeling import errors
from nnsight.modeling.attention import Attention
from nnsight.modeling.family import at, chosen
from nnsight.modeling.named import Named, below, seen_as
from nnsight.modeling.points import Point, Spot, by_row
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
    stack = next((stack for stack in stacks if stack.family.stack == name), None)
    return None if stack is None else seen_as(below(model, stack.path(name)), Half, stack)


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
    try:
        module = method() if method is not None else None
    except NotImplementedError:  # transformers cannot tell which
        module = None
    if module is None:
        raise errors.no_such_name(f"{model._path}.{name}", "this model was opened without one")
    return model._node_of(module)


def _layers(model: Any, stack: Stack) -> Layers:
    return seen_as(below(model, stack.path(stack.family.layers)), Layers, stack)


_MODULES = frozenset({"ln_final", "lm_head", "embed_tokens"})
NAMES = _MODULES | {"layers", "encoder", "decoder", "text_model", "vision_model"}
"""What `lookup` knows."""


# --- what a model has -----------------------------------------------------------------------------


class Half(Named):
    """The encoder or the decoder of a model that has both, or its part for texts or images."""

    @property
    def layers(self) -> Layers:
        """The layers of this stack."""
        stack = self._stack
        return seen_as(below(self, stack.family.layers.partition(".")[2]), Layers, stack)

    @property
    def ln_final(self) -> Any:
        """The norm after the last layer."""
        own = self._stack.family.norm.partition(".")[2]
        if not own or at(self._module, own) is None:
            raise errors.no_such_name(f"{self._path}.ln_final", "this stack ends without a norm")
        return below(self, own)


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
        path = chosen(self._module, family.mlp)
        if path is not None:
            return seen_as(below(self, path), MLP, self._stack)
        if chosen(self._module, family.down) is None:
            raise self._lacks("mlp", family.mlp)
        return LooseMLP(self)

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
        places = [one.rpartition(".") for one in mid.split("|")]
        path, _, kind = next((p for p in places if at(self._module, p[0]) is not None), places[0])
        if kind == INPUT:  # the stream goes past the module too, as the same tensor
            return self._value(name, path, INPUT, look=by_row, in_place=True)
        return self._value(name, path, OUTPUT)


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
        kind, down = type(layer._module).__name__, chosen(layer._module, layer._stack.family.down)
        reason = f"{kind} has no module for its MLP: it keeps `{down}` and the rest on itself"
        raise errors.no_such_name(f"{layer._called('mlp')}.{name}", reason)


class Router(Named):
    """What chooses among the experts of a layer, under its standard names."""

    probs = Point("rows, tokens, experts", "With which probabilities experts are chosen.")

    def _spot(self, name: str) -> Spot:
        called = self._called("router.probs")
        if (why := self._stack.family.lacks.get("router.probs")) is not None:
            raise errors.no_such_name(called, why)
        return probabilities_of(self, self.parent, called)
