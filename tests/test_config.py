"""The switches of `CONFIG.APP`, and what they change in the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from nnsight import CONFIG, NNsight


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MOUNTED = """
import nnsight
from nnsight import CONFIG
print(hasattr(object(), "save"), hasattr(5, "save"))
CONFIG.APP.PYMOUNT = True
print(hasattr(object(), "save"), hasattr(5, "save"))
CONFIG.APP.PYMOUNT = False
print(hasattr(object(), "save"), hasattr(5, "save"))
"""


def test_save_is_on_objects_only_while_the_switch_is_on():
    lines = run_python(MOUNTED).splitlines()
    assert lines == ["False False", "True True", "False False"]


@pytest.mark.parametrize("name", ["NNSIGHT_PYMOUNT", "NNSIGHT_LEGACY"])
def test_the_environment_turns_it_on(name: str):
    code = "import nnsight; print(hasattr(object(), 'save'))"
    assert run_python(code, **{name: "1"}) == "True"
    assert run_python(code, **{name: "0"}) == "False"


def test_a_helper_may_save_any_object_with_the_switch():
    model = NNsight(torch.nn.Linear(2, 2))

    def helper(value):
        return [value.sum().item()].save()

    CONFIG.APP.PYMOUNT = True
    try:
        with model.trace(torch.ones(1, 2)):
            total = helper(model.output)
    finally:
        CONFIG.APP.PYMOUNT = False
    assert len(total) == 1


def test_a_helper_may_save_a_tensor_without_it():
    model = NNsight(torch.nn.Linear(2, 2))

    def helper(value):
        return value.sum().save()

    with model.trace(torch.ones(1, 2)):
        total = helper(model.output)
    assert total.shape == ()


def test_unknown_switches_and_values_are_refused():
    with pytest.raises(AttributeError, match="no switch 'DEBGU'; it has DEBUG"):
        CONFIG.APP.DEBGU = True
    with pytest.raises(TypeError, match="is True or False"):
        CONFIG.APP.DEBUG = "yes"
