"""Small models for the tests of this room, and what to ask of them afterwards."""

from __future__ import annotations

import faulthandler
import itertools
import linecache
import os
import signal
import sys
import tempfile
import textwrap
import traceback
import warnings
from typing import NoReturn

import torch
from torch import nn

from nnsight import NNsight
from nnsight.interleave import turns
from tests.conftest import hooks_on

WIDTH = 5


class Net(nn.Module):
    """Three layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = nn.Linear(WIDTH, WIDTH)
        self.c = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.tanh(self.a(x)))))


def net(seed: int = 0) -> NNsight:
    torch.manual_seed(seed)
    return NNsight(Net())


given_up: set[turns.TurnThread] = set()  # by earlier tests, each for a block that never ended


def at_work() -> list[turns.TurnThread]:
    """Threads that still run or hold a block of this test."""
    return [thread for thread in turns._all if not thread.resting and thread not in given_up]


def assert_clean(model: NNsight, x: torch.Tensor | None = None) -> None:
    """Nothing of a run is left: not on the model, not on a thread, and the next one is right."""
    x = torch.ones(2, WIDTH) if x is None else x
    assert hooks_on(model._module) == []
    assert at_work() == []
    expected = model._module(x)
    with model.trace(x):
        result = model.output.save()
    assert torch.equal(result, expected)


PRELUDE = """
import _thread, os, signal, sys, threading, time, torch, warnings
from nnsight import NNsight, save
from nnsight.interleave import turns
from tests.interleave.small import Net, WIDTH, assert_clean, at_work, net
model, x = net(), torch.ones(2, WIDTH)

def after(seconds, what, *args):
    timer = threading.Timer(seconds, what, args)
    timer.daemon = True
    timer.start()

def press(seconds=0.3):
    after(seconds, os.kill, os.getpid(), signal.SIGINT)
"""
_numbers = itertools.count()


def run_alone(code: str, timeout: int = 30) -> str:
    """Run a program in a process of its own, a fork of this one; it must end well and in time."""
    text, name = PRELUDE + textwrap.dedent(code), f"<alone {next(_numbers)}>"
    with tempfile.TemporaryFile("w+") as output, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork of a process with threads: that is what is tested
        pid = os.fork()
        if pid == 0:
            _be_alone(text, name, output.fileno(), timeout)
        status = os.waitpid(pid, 0)[1]
        output.seek(0)
        printed = output.read()
    assert status == 0, f"ended with {os.waitstatus_to_exitcode(status)}\n{printed}"
    return printed


def _be_alone(text: str, name: str, output: int, timeout: int) -> NoReturn:
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = open(output, "w", buffering=1, closefd=False)
    sys.settrace(None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, file=sys.stderr, all_threads=True, chain=True)
    signal.alarm(timeout)  # every stack, and the end
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    status = 1
    try:
        exec(compile(text, name, "exec"), {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
