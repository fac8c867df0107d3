"""`tracer.invoke(...)`: one input of a trace, and the block that sees its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nnsight.capture.tracer import Tracer
from nnsight.interleave import ambient
from nnsight.interleave.request import here
from nnsight.traces.model import Inputs

if TYPE_CHECKING:
    from nnsight.capture.scope import Scope

__all__ = ["Inputs", "Invoke"]


class Invoke(Tracer):
    """One block of a trace. It runs when the trace ends, beside the combined forward.

    Without an input it contributes no rows and sees the whole batch.
    """

    deferred = True

    def __init__(self, take: Callable[[Invoke], None], given: Inputs) -> None:
        super().__init__()
        self.given = given
        self.block_scope: Scope | None = None  # its variables, once the block has been captured
        self.state: ambient.Ambient | None = None  # the torch state where it was written
        self._take: Callable[[Invoke], None] | None = take

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What this invoke was given: `(args, kwargs)`."""
        return self.given.args, self.given.kwargs

    def execute(self) -> None:
        """Take the block into the trace; it runs later."""
        take, self._take = self._take, None
        self.block_scope, self.state = self.scope, ambient.current()
        if take is not None:
            take(self)

    def let_go(self) -> None:
        """The trace is over: the names of the block, this one after `as` among them, live no more.

        `inputs` stay: they are what the user gave.
        """
        self.block_scope = self.state = None

    def hand_back(self, outermost: bool) -> None:
        """Nothing yet: the block has not run."""


def refuse_inside_run() -> None:
    """A new invoke cannot join a forward that is already running.

    Raises:
        ValueError: this line is in a block that runs beside a model.
    """
    if here.worker is not None and not here.outside_invokes:
        raise ValueError(
            "Cannot invoke while the model is already running (during an active model execution / "
            "interleaving): this line is inside a block that has its input. Open "
            "`with model.trace() as tracer:` without an input, and the invokes directly in it."
        )
