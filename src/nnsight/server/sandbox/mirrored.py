"""The model's part of a backward pass in which a sandbox takes part (its own is in `graph.py`).

Each node that autograd has made over there is a node of the graph here, which asks for that one's
part when a pass comes to it. So there is one graph and one pass: what is added up, and in which
order, is what it would be if the block ran here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight.interleave.row_gradients import hook_on, piece_of
from nnsight.remote.tensors import dtype_of
from nnsight.server.sandbox.errors import Broken

Show = Callable[[str, int, Sequence[Any]], list[Any]]
_MOST = 1_000_000  # nodes of one run
_FIRST = 2**63 - 1  # what passes a gradient on does so at once


class _Mirror(torch.autograd.Function):
    """A node of the sandbox. Its outputs have a form and no content."""

    @staticmethod
    def forward(ctx: Any, ask: Show, number: int, forms: Any, anchor: Any, *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.ask, ctx.number = ask, number
        ctx.like = [(tensor.device, tensor.dtype) for tensor in inputs]
        return tuple(
            torch.empty((), dtype=dtype, device=anchor.device).expand(shape)
            for shape, dtype in forms
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        found = ctx.ask("node", ctx.number, gradients)
        if len(found) != len(ctx.like):
            raise Broken("a node with other inputs than it had")
        pairs = zip(found, ctx.like, strict=True)
        return None, None, None, None, *(g if g is None else g.to(*like) for g, like in pairs)


class _Same(torch.autograd.Function):
    """Where the gradient of a tensor arrives now, whatever is done to the tensor later."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        return torch.empty((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


class _Joined(torch.autograd.Function):
    """Numbers that the sandbox has computed, at the node there that they come from."""

    @staticmethod
    def forward(ctx: Any, content: list[torch.Tensor], edge: torch.Tensor) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        return content[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, *gradients


@dataclass
class _Lent:
    """A tensor whose gradient the sandbox may look at, and add to."""

    tensor: torch.Tensor
    same: torch.Tensor  # at the place in the graph where the tensor was then
    before: Any = None  # that place

    def edge(self) -> torch.Tensor:
        """To compute from: the tensor itself, as long as nothing was done to it."""
        return self.tensor if self.tensor.grad_fn is self.before else self.same


@dataclass
class Mirrored:
    """The graph that a sandbox and the model have together.

    Args:
        parameters: gives those of the model: what a pass adds up in them does not stay there.
    """

    parameters: Callable[[], Iterator[torch.nn.Parameter]]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _lent: dict[int, _Lent] = field(default_factory=dict[int, _Lent])
    _nodes: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict[int, Any])
    _anchor: torch.Tensor | None = None
    _gradients: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    _shown: dict[int, Any] = field(default_factory=dict[int, Any])  # handles, while a pass runs
    _ask: Show | None = None

    # --- what it is made of -----------------------------------------------------------------------

    def lend(self, tensor: torch.Tensor, number: int) -> None:
        """The sandbox knows `tensor` by `number`."""
        with torch.enable_grad():
            same = tensor if tensor.is_leaf else _Same.apply(tensor)
        self._lent[number] = _Lent(tensor, same, tensor.grad_fn)

    def moved(self, number: int) -> bool:
        """Whether a tensor is at another place in the graph than when it was lent."""
        lent = self._lent.get(number)
        return lent is not None and lent.tensor.grad_fn is not lent.before

    def add(self, nodes: Any, ask: Show) -> None:
        """Nodes that the sandbox tells of; raises what is wrong with them."""
        if len(self._nodes) + len(nodes) > _MOST:
            raise Broken("too many nodes")
        for number, forms, inputs, rank in nodes:
            if type(number) is not int or number >= 0 or number in self._nodes:
                raise Broken("a node that is known")
            if self._anchor is None:
                self._anchor = torch.empty(0, device=self.device, requires_grad=True)
            whole = [([int(n) for n in shape], dtype_of(name)) for shape, name in forms]
            edges = [self.edge(one) for one in inputs]
            with torch.enable_grad():
                found: Any = _Mirror.apply(ask, number, whole, self._anchor, *edges)
            _rank(found[0], int(rank))
            self._nodes[number] = found

    def edge(self, told: Any) -> torch.Tensor:
        """What the sandbox computes from."""
        number, output = told
        if number in self._lent and output == 0:
            return self._lent[number].edge()
        return self._output(number, output)

    def _output(self, number: int, output: int) -> torch.Tensor:
        if number not in self._nodes or not 0 <= output < len(self._nodes[number]):
            raise Broken("an edge that is not known")
        found = self._nodes[number][output]
        if not found.requires_grad:
            raise Broken("an edge without a gradient")
        return found

    def joined(self, content: torch.Tensor, told: Any) -> torch.Tensor:
        """`content`, as what the sandbox has computed."""
        edge = self.edge(told)
        if edge.shape != content.shape or edge.dtype != content.dtype:
            raise Broken("a tensor of another form than its edge")
        with torch.enable_grad():
            found: Any = _Joined.apply([content], edge)
        _rank(found, _FIRST)
        return found

    def begin(self) -> None:
        """A new run: the graphs of those before are let go of. Leaves stay what they are."""
        self._lent = {n: lent for n, lent in self._lent.items() if lent.tensor.is_leaf}
        self._nodes.clear()

    def clear(self) -> None:
        """Let go of all."""
        self._lent.clear()
        self._nodes.clear()
        self._gradients.clear()

    # --- a pass -----------------------------------------------------------------------------------

    def run(
        self, roots: Any, gradients: list[Any], retain: bool, wanted: Any, shown: Any, ask: Show
    ) -> list[Any]:
        """Go backward.

        Args:
            roots: edges that it starts from.
            gradients: of each.
            retain: whether the graph is needed again.
            wanted: edges whose gradients are given back; None: leaves take theirs.
            shown: tensors whose gradients the sandbox looks at.
            ask: asks the sandbox for its part.
        """
        starts = [self.edge(one) for one in roots]
        pairs = zip(gradients, starts, strict=True)
        given = [g.to(s.device, s.dtype) for g, s in pairs]
        outer, self._shown = self._shown, {}
        outer_ask, self._ask = self._ask, ask
        try:
            with ExitStack() as stack, torch.autograd.set_multithreading_enabled(False):
                stack.callback(lambda: [handle.remove() for handle in self._shown.values()])
                self.show(shown)
                if wanted is not None:
                    return self._gradients_at(starts, given, retain, wanted)
                stack.enter_context(self._nothing_left())
                self._show_leaves()
                torch.autograd.backward(starts, given, retain_graph=retain)
                return []
        finally:
            self._shown, self._ask = outer, outer_ask

    def _gradients_at(self, starts: Any, given: Any, retain: bool, wanted: Any) -> list[Any]:
        sources, pieces = list[Any](), list[Any]()
        for number, output in wanted:
            lent = self._lent.get(number)
            tensor = self._output(number, output) if lent is None else lent.tensor
            pieces.append(piece_of(tensor))
            sources.append(tensor if pieces[-1] is None else pieces[-1].whole)
        found = torch.autograd.grad(starts, sources, given, retain, allow_unused=True)
        pairs = zip(found, pieces, strict=True)
        return [g if g is None or piece is None else piece.rows(g) for g, piece in pairs]

    def show(self, numbers: Any) -> None:
        """Show the sandbox the gradients of tensors that it was lent, in the pass that runs."""
        for number in numbers:
            lent = self._lent.get(number)
            if lent is None:
                raise Broken("a tensor that was not lent")
            if number not in self._shown and not lent.tensor.is_leaf:
                self._shown[number] = self._hook(number, lent.tensor)

    def _hook(self, number: int, tensor: torch.Tensor) -> Any:
        piece, ask = piece_of(tensor), self._ask
        assert ask is not None, "a pass runs"

        def hook(gradient: Any) -> Any:
            part: Any = gradient if piece is None or gradient is None else piece.rows(gradient)
            (new,) = ask("show", number, [part])
            if new is None or gradient is None:
                return None
            new = new.to(part.device, part.dtype)
            return new if piece is None else piece.put(new, gradient)

        return hook_on(tensor if piece is None else piece.whole, hook)

    def _show_leaves(self) -> None:
        """What leaves get, the sandbox adds up in its own."""
        ask = self._ask
        assert ask is not None
        for number, lent in self._lent.items():
            leaf: Any = lent.tensor
            if leaf.is_leaf and leaf.requires_grad and number not in self._shown:

                def hook(leaf: Any, number: int = number) -> None:
                    gradient, leaf.grad = leaf.grad, None
                    ask("leaf", number, [gradient])

                self._shown[number] = leaf.register_post_accumulate_grad_hook(hook)

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """What a pass adds up in the model's parameters is this job's, and no other's."""
        before = [(p, p.grad) for p in self.parameters()]
        for parameter, _ in before:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, was in before:
                new, parameter.grad = parameter.grad, was
                if new is not None:
                    key = id(parameter)
                    old = self._gradients.get(key)
                    self._gradients[key] = new if old is None else old.add_(new)

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """What passes of this job have added up in a parameter that the sandbox had not then."""
        return self._gradients.pop(id(parameter), None)

    def forget(self) -> None:
        """`model.zero_grad()`"""
        self._gradients.clear()

    def reaches(self, root: Any, told: Any) -> bool:
        """Whether `root` was computed from an edge."""
        number, output = told
        lent = self._lent.get(number)
        tensor = self._output(number, output) if lent is None else lent.tensor
        piece = piece_of(tensor)
        wanted = tensor if piece is None else piece.whole
        start, end = self.edge(root), (wanted.grad_fn, wanted.output_nr)
        pending, seen = [(start.grad_fn, start.output_nr)], set[Any]()
        while pending:
            edge = pending.pop()
            if edge == end or (wanted.is_leaf and getattr(edge[0], "variable", None) is wanted):
                return True
            if edge[0] is not None and edge[0] not in seen:
                seen.add(edge[0])
                pending += edge[0].next_functions
        return False


def _rank(tensor: torch.Tensor, rank: int) -> None:
    """When a node has its turn among those that could have it: greater ones first."""
    node: Any = tensor.grad_fn
    node._set_sequence_nr(max(0, min(rank, _FIRST)))
