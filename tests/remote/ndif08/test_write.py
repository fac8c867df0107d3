"""What our client writes for a server of NDIF 0.8, read again by our reader."""

from __future__ import annotations

from typing import Any

import pytest

from nnsight import LanguageModel
from nnsight.remote import environment
from nnsight.remote.errors import NotSendableError
from nnsight.remote.ndif08 import write as ndif08_write
from nnsight.remote.ndif08.format import Ndif08
from nnsight.remote.perform import perform
from tests.ndif import cases
from tests.ndif.client import difference
from tests.remote.ndif08.test_read import model, read

__all__ = ["model"]


class Written:
    """Writes a block, reads it again and runs that."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, tracer: Any) -> None:
        request = ndif08_write.write(tracer, self.model, environment.is_local)
        content = b"".join(request.pieces)
        outcome = perform(content, self.model, [].append, Ndif08())
        assert outcome.failure is None, outcome.failure.as_text()
        tracer.received = read(outcome.result)


@pytest.mark.parametrize("name", cases.CASES)
def test_a_block_that_was_written_gives_what_it_gives(name: str, model: Any):
    case = cases.CASES[name]
    most = 1e-4 if name == "gradient" else 0.0
    assert difference(case(model, {}), case(model, {"backend": Written(model)})) <= most


def test_a_part_of_another_model_is_refused(model: Any):
    from nnsight import NNsight

    other = NNsight(model._module)
    with pytest.raises(NotSendableError, match="another model"):
        with model.trace("a", backend=Written(model)):
            _ = other.transformer.output.save()
    with pytest.raises(NotSendableError, match="no words for a trace of a part"):
        with model.lm_head.trace("a", backend=Written(model)):
            _ = model.lm_head.output.save()


def test_lines_stay_where_they_are(model: Any):
    with pytest.raises(AssertionError, match=f"line {line()}, in"):
        with model.trace("a", backend=Written(model)):
            # a comment, and a text over several lines
            text = """
            one"""
            assert text
            model.nothing.output.save()


def line() -> int:
    import sys

    return sys._getframe(1).f_lineno + 5


def test_names_of_the_users_own_travel(model: Any):
    names = {"transformer.h": "layers", "attn": "attention"}
    renamed = LanguageModel(model.repo_id, rename=names, dispatch=True)
    with renamed.trace("a b c"):
        here = renamed.layers[1].attention.output[0].save()
    with renamed.trace("a b c", backend=As(renamed, model)):
        there = renamed.layers[1].attention.output[0].save()
    assert difference(here, there) == 0


class As:
    """Writes for one model, and runs on another of the same weights."""

    def __init__(self, ours: Any, theirs: Any) -> None:
        self.ours, self.theirs = ours, theirs

    def __call__(self, tracer: Any) -> None:
        written = ndif08_write.write(tracer, self.ours, environment.is_local)
        outcome = perform(b"".join(written.pieces), self.theirs, [].append, Ndif08())
        assert outcome.failure is None, outcome.failure.as_text()
        tracer.received = read(outcome.result)
