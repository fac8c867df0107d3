"""The sandbox's part of the graph that a backward pass goes through.

The model's process runs every backward pass, over one graph: its own, and a node there for each
node that autograd has made here (`mirrored.py`). When the pass comes to such a node, this side is
asked for its part. So all is done once, in the order in which one process would do it.

What a tensor's gradient arrives at is an edge: a node of autograd, and which of its outputs. Over
there an edge is known by a number, and the output again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

import torch
from torch.autograd.graph import get_gradient_edge

from nnsight.remote.tensors import name_of

Edge = tuple[Any, int]
_FIRST = 2**63 - 1  # a leaf takes its gradient as soon as it is there


def edge_of(tensor: torch.Tensor) -> Edge:
    """Where the gradient of a tensor arrives, which requires one."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


class Graph:
    """What autograd has made here since the run began."""

    def __init__(self) -> None:
        self._count = 0
        self._lent: dict[Edge, int] = {}  # where a part of the model's own graph begins
        self._edges: dict[int, Edge] = {}
        self._numbers: dict[Any, int] = {}  # of nodes that are mirrored
        self._nodes: dict[int, Any] = {}
        self._untold: list[Any] = []  # nodes that the model's process is to be told of
        self._hooks: dict[Edge, dict[int, Callable[[Any], Any]]] = {}
        self._retained: dict[Edge, ref[torch.Tensor]] = {}
        self._asked_for: list[int] = []  # whose gradients are looked at here, as yet untold

    # --- what it is made of -----------------------------------------------------------------------

    def lend(self, tensor: torch.Tensor, number: int) -> Edge:
        """What comes before `tensor` is in the model's process, which knows it by `number`."""
        edge = edge_of(tensor)
        self._lent[edge], self._edges[number] = number, edge
        return edge

    def own_number(self) -> int:
        """A number that the model's process does not give."""
        self._count -= 1
        return self._count

    def reference(self, tensor: torch.Tensor) -> list[int]:
        """An edge as the model's process knows it, once it has read this message."""
        node, output = edge_of(tensor)
        self._mirror(node, output)
        return self._reference(node, output)

    def _reference(self, node: Any, output: int) -> list[int]:
        number = self._lent.get((node, output))
        return [self._numbers[node], output] if number is None else [number, 0]

    def _mirror(self, node: Any, output: int) -> None:
        """Have `node`, and what leads to it, known there."""
        pending = [(node, output, False)]
        while pending:
            node, output, ready = pending.pop()
            if (node, output) in self._lent or node in self._numbers:
                continue
            inputs = [(n, o) for n, o in node.next_functions if n is not None]
            if not ready:
                pending.append((node, output, True))
                pending += [(n, o, False) for n, o in inputs]
                continue
            number = self._numbers[node] = self.own_number()
            self._nodes[number] = node
            outputs = [[list(one.shape), name_of(one.dtype)] for one in node._input_metadata]
            told = [self._reference(*one) for one in inputs]
            first = min(node._sequence_nr(), _FIRST)
            self._untold.append([number, outputs, told, first])

    def told(self) -> list[Any]:
        """Nodes that the model's process does not know yet."""
        untold, self._untold = self._untold, []
        return untold

    def leads_to_model(self, tensors: Iterable[Any]) -> bool:
        """Whether what these were computed from is in part in the model's process."""
        pending = [edge_of(t) for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
        seen = set[Any]()
        while pending:
            edge = pending.pop()
            if edge in self._lent or edge[0] in self._numbers:
                return True
            if edge[0] not in seen:
                seen.add(edge[0])
                pending += [(n, o) for n, o in edge[0].next_functions if n is not None]
        return False

    def begin(self) -> None:
        """A new run: the graphs of those before are let go of. Leaves stay what they are."""
        self._lent = {edge: number for edge, number in self._lent.items() if _is_leaf(edge)}
        self._edges = {number: edge for edge, number in self._lent.items()}
        self._hooks = {edge: hooks for edge, hooks in self._hooks.items() if hooks}
        self._retained = {edge: kept for edge, kept in self._retained.items() if kept() is not None}
        self._numbers.clear()
        self._nodes.clear()
        self._untold, self._asked_for = [], []

    # --- who looks at gradients -------------------------------------------------------------------

    def hook(self, tensor: torch.Tensor, hook: Callable[[Any], Any]) -> _Hooked:
        """Call `hook` with the gradient of `tensor`, in passes that the model's process runs."""
        edge = edge_of(tensor)
        hooks = self._hooks.setdefault(edge, {})
        handle = _Hooked(hooks)
        hooks[handle.id] = hook
        self._look(edge)
        return handle

    def retain(self, tensor: torch.Tensor) -> None:
        """Keep the gradient of `tensor` as its `.grad`."""
        edge = edge_of(tensor)
        self._retained[edge] = ref(tensor)
        self._look(edge)

    def _look(self, edge: Edge) -> None:
        if edge in self._lent:
            self._asked_for.append(self._lent[edge])

    def looked_at(self) -> list[int]:
        """Edges whose gradients are to be shown here, and were not before."""
        asked, self._asked_for = self._asked_for, []
        return asked

    def all_looked_at(self) -> list[int]:
        """All of them, for a pass that begins."""
        self._asked_for = []
        edges = {*(edge for edge, hooks in self._hooks.items() if hooks), *self._retained}
        return [self._lent[edge] for edge in edges if edge in self._lent]

    def _shown(self, edge: Edge, gradient: Any) -> Any:
        """The gradient that arrives at an edge, after whoever looks at it."""
        for hook in list(self._hooks.get(edge, {}).values()):
            new = hook(gradient)
            gradient = gradient if new is None else new
        tensor = self._retained[edge]() if edge in self._retained else None
        if tensor is not None and gradient is not None:
            add_up(tensor, gradient)
        return gradient

    # --- a pass -----------------------------------------------------------------------------------

    def answer(self, order: dict[str, Any], gradients: list[Any]) -> list[Any]:
        """This side's part of a pass: what the model's process goes on with."""
        number = order["number"]
        with torch.no_grad():
            if order["do"] == "show":
                return [self._shown(self._edges[number], gradients[0])]
            if order["do"] == "leaf":
                edge = self._edges[number]
                edge[0](self._shown(edge, gradients[0]))
                return []
            node = self._nodes[number]
            shown = [
                value if (node, output) in self._lent else self._shown((node, output), value)
                for output, value in enumerate(gradients)
            ]
            found = _applied(node, shown)
        return [g for g, (n, _) in zip(found, node.next_functions, strict=False) if n is not None]


class _Hooked:
    """What takes a hook off again."""

    count = 2**32

    def __init__(self, hooks: dict[int, Any]) -> None:
        _Hooked.count += 1
        self.id = _Hooked.count
        self._hooks = hooks
        self.real: Any = None  # torch's own, for passes that are all here

    def remove(self) -> None:
        self._hooks.pop(self.id, None)
        if self.real is not None:
            self.real.remove()

    def __enter__(self) -> _Hooked:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def _is_leaf(edge: Edge) -> bool:
    return hasattr(edge[0], "variable")


def _applied(node: Any, gradients: list[Any]) -> list[Any]:
    """What a node makes of the gradients of its outputs: those of its inputs."""
    if callable(node):
        found = node(*gradients)
        return list(found) if isinstance(found, (tuple, list)) else [found]
    whole = [  # a function of the user's own
        torch.zeros(one.shape, dtype=one.dtype) if value is None else value
        for value, one in zip(gradients, node._input_metadata, strict=True)
    ]
    found = node.apply(*whole)
    found = list(found) if isinstance(found, (tuple, list)) else [found]
    needed = iter([g for g, needs in zip(found, node.needs_input_grad, strict=False) if needs])
    return [None if n is None else next(needed) for n, _ in node.next_functions]


def add_up(tensor: torch.Tensor, gradient: torch.Tensor) -> None:
    """As torch adds up what is in `.grad`."""
    before = tensor.grad
    tensor.grad = gradient.clone() if before is None else before + gradient
