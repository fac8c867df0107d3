"""`backward()` and its kin in a sandbox: passes in which the model has a part run over there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nnsight.interleave.gradients import Backward
from nnsight.remote.values import Writer
from nnsight.server.sandbox.errors import no_second_gradients
from nnsight.server.sandbox.graph import Graph, add_up, edge_of

Ask = Callable[[str, Callable[[Writer], dict[str, Any]]], Any]
_backward, _grad = torch.autograd.backward, torch.autograd.grad
_register, _retain = torch.Tensor.register_hook, torch.Tensor.retain_grad
_reaches = Backward.reaches


class Passes:
    """`backward()` and its kin, for what the model has a part in; all else is torch's own.

    Args:
        graph: of this sandbox.
        run_pass: has the model's process run a pass, and gives what that found.
        ask: asks it for something at once.
    """

    def __init__(self, graph: Graph, run_pass: Callable[..., list[Any]], ask: Ask) -> None:
        self._graph, self._run_pass, self._ask = graph, run_pass, ask

    def install(self) -> None:
        """From now on this process computes gradients so."""
        torch.autograd.backward = self.backward
        torch.autograd.grad = self.grad
        graph = self._graph

        def register_hook(tensor: torch.Tensor, hook: Any) -> Any:
            real = _register(tensor, hook)
            handle = graph.hook(tensor, hook)
            handle.real = real
            return handle

        def retain_grad(tensor: torch.Tensor) -> None:
            _retain(tensor)
            if not tensor.is_leaf:
                graph.retain(tensor)

        reaches: Any = lambda backward, tensor: self.reaches(backward, tensor)  # noqa: E731

        torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]
        torch.Tensor.retain_grad = retain_grad  # type: ignore[method-assign]
        Backward.reaches = reaches  # type: ignore[method-assign]

    def backward(
        self,
        tensors: Any,
        grad_tensors: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        grad_variables: Any = None,
        inputs: Any = None,
    ) -> None:
        """`torch.autograd.backward`"""
        roots = _many(tensors)
        if not self._graph.leads_to_model(roots):
            _backward(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
            return
        given = grad_variables if grad_tensors is None else grad_tensors
        wanted = None if inputs is None else _many(inputs)
        if wanted is not None and not wanted:
            raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
        found = self._pass(roots, given, retain_graph, create_graph, wanted)
        with torch.no_grad():
            for tensor, gradient in zip(wanted or (), found, strict=True):
                if gradient is not None and tensor.is_leaf:
                    edge_of(tensor)[0](gradient)
                elif gradient is not None:
                    _retain(tensor)  # torch says so of an input that is no leaf
                    add_up(tensor, gradient)

    def grad(
        self,
        outputs: Any,
        inputs: Any,
        grad_outputs: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        only_inputs: bool = True,
        allow_unused: bool | None = None,
        is_grads_batched: bool = False,
        materialize_grads: bool = False,
    ) -> tuple[Any, ...]:
        """`torch.autograd.grad`"""
        roots, wanted = _many(outputs), _many(inputs)
        if not self._graph.leads_to_model(roots):
            return _grad(
                outputs,
                inputs,
                grad_outputs,
                retain_graph,
                create_graph,
                only_inputs,
                allow_unused,
                is_grads_batched,
                materialize_grads,
            )
        if is_grads_batched:
            raise no_second_gradients("is_grads_batched=True")
        found = self._pass(roots, grad_outputs, retain_graph, create_graph, wanted)
        if materialize_grads:
            pairs = zip(found, wanted, strict=True)
            return tuple(torch.zeros_like(t) if g is None else g for g, t in pairs)
        missing = (
            None if allow_unused else next((n for n, g in enumerate(found) if g is None), None)
        )
        if missing is not None:
            raise RuntimeError(
                f"The differentiated Tensor at index {missing} appears to not have been used in "
                "the graph. Set allow_unused=True if this is the desired behavior."
            )
        return tuple(found)

    def _pass(
        self, roots: list[Any], given: Any, retain: bool | None, create: bool, wanted: Any
    ) -> list[Any]:
        if create:
            raise no_second_gradients("create_graph=True")
        for tensor in (*roots, *(wanted or ())):
            if not tensor.requires_grad:
                which = "One of the differentiated Tensors" if wanted else "element 0 of tensors"
                raise RuntimeError(f"{which} does not require grad")
        gradients = [None] * len(roots) if given is None else _many(given)
        pairs = list(zip(roots, gradients, strict=True))
        for root, gradient in pairs:
            if gradient is None and root.numel() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
        whole = [torch.ones_like(t) if g is None else g for t, g in pairs]
        return self._run_pass(roots, [g.detach() for g in whole], bool(retain), wanted)

    def reaches(self, backward: Backward, tensor: torch.Tensor) -> bool:
        """Whether a loss was computed from `tensor`, whichever way it went."""
        if not tensor.requires_grad or not self._graph.leads_to_model([backward.loss]):
            return _reaches(backward, tensor)
        graph = self._graph

        def about(writer: Writer) -> dict[str, Any]:
            return {"root": graph.reference(backward.loss), "edge": graph.reference(tensor)}

        return bool(self._ask("reaches", about))


def _many(tensors: Any) -> list[Any]:
    return [tensors] if isinstance(tensors, torch.Tensor) or tensors is None else list(tensors)
