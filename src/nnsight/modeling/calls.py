"""Which calls a module's forward makes: in its own text, else in the functions that it calls."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from nnsight.envoy.decorated import innermost
from nnsight.envoy.operations import Operation, Source
from nnsight.envoy.places import Inside, prepare
from nnsight.envoy.probes import listing_of


def calls_of(node: Any, names: Sequence[str]) -> dict[str, list[Operation]]:
    """All calls of functions of these names, by name, in the order in which the forward makes them.

    What the text of the forward does not call, a method of the module may, or a function that is
    looked up in a table of kernels.
    """
    found = _named(node.source, names)
    for inner in _inner(node) if not found else ():
        found = _named(inner, names)
        if found:
            break
    return found


def _named(source: Source, names: Sequence[str]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for operation in source:
        callee = operation.op.callee if operation.op is not None else ()
        if callee and callee[-1] in names:
            found.setdefault(callee[-1], []).append(operation)
    return found


def _inner(node: Any) -> Iterator[Source]:
    """The functions of the model's own that a forward calls."""
    kind = type(node._module)
    known = vars(sys.modules[kind.__module__])
    for operation in node.source:
        first, *rest = operation.op.callee or ("",)
        if first == "self" and len(rest) == 1:
            if inspect.isfunction(getattr(kind, rest[0], None)):
                yield operation.source
        elif not first and isinstance(table := known.get(operation.name.rpartition("_")[0]), dict):
            listing = listing_of(innermost(table.get(implementation(node._module))))
            if not isinstance(listing, str):  # `KERNELS[self.config._attn_implementation](...)`
                place = Inside(operation)
                prepare(place)
                yield Source(place, listing)


def implementation(module: Any) -> str:
    """The kernel that a module's config asks for."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None) or "eager"
