"""Errors of a block elsewhere: of their own type, at the user's lines."""

from __future__ import annotations

import builtins
import traceback
from pathlib import Path
from typing import Any

import pytest

from nnsight import LanguageModel
from nnsight.remote.errors import RemoteError
from nnsight.remote.failure import error_of
from nnsight.remote.messages import Failure
from tests.conftest import make_gpt2_folder
from tests.remote.through import ThroughBytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_gpt2_folder(tmp_path_factory.mktemp("failures"), layers=2)
    return LanguageModel(folder, dispatch=True)


@pytest.fixture(scope="module")
def at(model: Any) -> dict[str, Any]:
    return {"backend": ThroughBytes(model, LanguageModel(Path(model.repo_id), dispatch=True))}


KINDS = [
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
]


@pytest.mark.parametrize("name", KINDS)
def test_an_error_of_any_of_pythons_types_is_made_from_its_text(name: str):
    error = error_of(Failure(name, "the text"))
    assert isinstance(error, RemoteError) and "the text" in str(error)
    if "Group" not in name:
        assert isinstance(error, getattr(builtins, name))


@pytest.mark.skipif(not hasattr(builtins, "ExceptionGroup"), reason="of Python 3.11")
def test_a_group_of_errors_says_which_they_are(model: Any, at: dict[str, Any]):
    group: Any = vars(builtins)["ExceptionGroup"]
    with pytest.raises(RemoteError, match="both") as caught:
        with model.trace("Hello", **at):
            raise group("both", [ValueError("one"), KeyError("two")])
    said = "".join(traceback.format_exception(caught.value))
    assert "(ValueError: one)" in said and "(KeyError: 'two')" in said
    assert 'raise group("both"' in said


def deeper(n: int) -> int:
    return deeper(n + 1)


def test_the_line_of_the_block_is_shown_however_deep_the_error_is(model: Any, at: dict[str, Any]):
    with pytest.raises(RecursionError) as caught:
        with model.trace("Hello", **at):
            deeper(0)
    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "deeper(0)" in lines and lines[-1] == "return deeper(n + 1)"
