"""The attention of a layer under its standard names: by head, whatever its projections hold."""

from __future__ import annotations

from typing import Any

from nnsight.interleave.location import INPUT, OUTPUT, Location
from nnsight.modeling import errors
from nnsight.modeling.calls import calls_of
from nnsight.modeling.family import BY_GROUP, BY_HEAD, GATED, OWN, chosen
from nnsight.modeling.kernel import meetable, pattern_of, turned_of
from nnsight.modeling.named import Named, below
from nnsight.modeling.points import (
    Look,
    Point,
    Spot,
    Value,
    block,
    each_row,
    first_of_two,
    heads,
    of_each_group,
    of_each_head,
)


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
        if (why := family.lacks.get(f"attn.{name}")) is not None:
            raise errors.no_such_name(called, why)
        if name in ("pattern", "q_rot", "k_rot"):
            if name == "pattern" and family.pattern:
                return self._told_pattern(family.pattern, called)
            if name == "pattern":
                return pattern_of(self._kernel(), called)
            return turned_of(self._kernel(), called, int(name == "k_rot"))
        if name in ("z", "out"):
            node = below(self, self._path_of(family.out, called))
            if name == "out":
                return Value(called, Location(node, OUTPUT))
            width = family.v_width or self._width(called)
            return Value(called, Location(node, INPUT), look=heads(width, self._stack.heads))
        path = self._path_of(getattr(family, name), called)
        meetable(self._kernel())  # the pattern may be asked for next
        look = self._look(name, path, called)
        return Value(called, Location(below(self, path), OUTPUT), look=look)

    _role = "attn"

    def _kernel(self) -> Any:
        """The module whose forward computes attention."""
        return below(self, chosen(self._module, self._stack.family.kernel) or "")

    def _in_order(self) -> list[str]:
        """`q`, `k` and `v` in the order in which the forward computes them."""
        family = self._stack.family
        paths = {each: chosen(self._module, getattr(family, each)) or "" for each in "qkv"}
        own = {each: path.rpartition(".")[2] for each, path in paths.items()}
        order = list(calls_of(self._kernel(), list(own.values())))
        return sorted(own, key=lambda each: order.index(own[each]) if own[each] in order else 0)

    def _told_pattern(self, told: str, called: str) -> Value:
        """A value of a module, or `source.<operation>.input` of the attention."""
        path, _, kind = told.rpartition(".")
        inside = path.startswith("source.")
        owner = self.source[path.partition(".")[2]] if inside else below(self, path)
        look = each_row(self._stack.heads) if inside else None
        return Value(called, Location(owner, kind), look=look, guarded=True)

    def _path_of(self, path: str, called: str) -> str:
        found = chosen(self._module, path)
        if found is None:
            raise errors.no_such_name(called, f"{type(self._module).__name__} has no such module")
        return found

    def _width(self, called: str) -> int:
        if not self._stack.width:
            raise errors.no_such_name(called, "the config does not say how many heads there are")
        return self._stack.width

    def _look(self, name: str, path: str, called: str) -> Look:
        """How `name` is seen in what the projection at `path` gives."""
        stack, family, width = self._stack, self._stack.family, self._width(called)
        held = [one for one in "qkv" if chosen(self._module, getattr(family, one)) == path]
        if family.joined == GATED and name == "q":
            return first_of_two(width, stack.heads)
        if family.joined in (OWN, GATED) or len(held) == 1:
            return heads(width, stack.heads if name == "q" else 0)
        which = held.index(name)
        if family.joined == BY_HEAD:
            return of_each_head(which, len(held), width)
        if family.joined == BY_GROUP:
            return of_each_group(which, stack.heads, stack.groups, width)
        return block(which, len(held), stack.heads if "q" in held else 0, width)
