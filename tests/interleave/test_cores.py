"""A turn wakes where the other side ran; whoever runs may use every core that the caller may."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from nnsight import NNsight

if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
    pytest.skip("there is no core to choose", allow_module_level=True)


class Observed(torch.nn.Linear):
    """A layer that notes on which cores it may run."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.seen: list[set[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(os.sched_getaffinity(0))
        return super().forward(x)


@pytest.fixture
def cores() -> Iterator[set[int]]:
    cores = os.sched_getaffinity(0)
    yield cores
    os.sched_setaffinity(0, cores)


def make() -> NNsight:
    return NNsight(torch.nn.Sequential(Observed(), Observed(), Observed()))


X = torch.ones(1, 4)


def test_both_sides_may_use_every_core_while_they_run(cores: set[int]) -> None:
    model = make()
    with model.trace(X):
        seen = [os.sched_getaffinity(0)].save()
        _ = model[0].output
        seen.append(os.sched_getaffinity(0))
        _ = model[1].output
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
    assert seen == [cores] * 3
    assert [layer.seen for layer in model._module] == [[cores]] * 3
    assert os.sched_getaffinity(0) == cores


def test_a_caller_on_one_core_stays_there(cores: set[int]) -> None:
    model, one = make(), {min(cores)}
    os.sched_setaffinity(0, one)
    with model.trace(X):
        model[1].output.save()
    assert os.sched_getaffinity(0) == one
    assert model._module[2].seen == [one]


def test_errors_on_either_side_put_the_cores_back(cores: set[int]) -> None:
    model = make()
    with pytest.raises(ZeroDivisionError):
        with model.trace(X):
            _ = model[0].output
            raise ZeroDivisionError
    assert os.sched_getaffinity(0) == cores
    with pytest.raises(RuntimeError):
        with model.trace(torch.ones(1, 5)):
            model[2].output.save()
    assert os.sched_getaffinity(0) == cores


def test_a_ctrl_c_puts_the_cores_back(cores: set[int]) -> None:
    model = make()
    with pytest.raises(KeyboardInterrupt):
        with model.trace(X):
            _ = model[0].output
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
    assert os.sched_getaffinity(0) == cores
