"""`model.session()`: several traces as one block, whose values pass freely between them."""

from __future__ import annotations

from nnsight.capture.saving import save
from nnsight.capture.tracer import Tracer
from nnsight.interleave.request import here


class Session(Tracer):
    """What `model.session()` and `nnsight.session()` return: enter it with `with`.

    The body is ordinary Python, run once, when the `with` is left. Traces in it run where they
    stand, one after the other, of one model or several; what they bind is there for the rest of the
    body without a save. What is saved, anywhere in the body, is there after it.

    Raises:
        ValueError: the session was opened in the block of a trace that takes invokes.
    """

    def execute(self) -> None:
        """Run the body, as the ordinary Python that it is."""
        if here.outside_invokes:
            raise ValueError(
                "Cannot open a session here: this line is in a trace that was given no input of "
                "its own, which holds invokes and runs once. A session holds traces: write "
                "`with model.session():` around the trace."
            )
        assert self.scope is not None
        self.scope.function(self, save)()


def session() -> Session:
    """Run the traces under this `with` as one block: `with nnsight.session():`.

    For traces of several models; `model.session()` is the same.
    """
    return Session().offered("nnsight.session()")
