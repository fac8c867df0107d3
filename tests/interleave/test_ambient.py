"""The torch state of a thread: taken, put on another, and whatever was left there undone."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nnsight.interleave import ambient


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


MODES = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast without a cache": lambda: torch.autocast(
        "cpu", dtype=torch.float16, cache_enabled=False
    ),
    "device": lambda: torch.device("meta"),
    "functions": Functions,
    "dispatch": Dispatch,
}


def elsewhere(work):
    """Run `work` on a thread of its own and return what it returns."""
    done, failed = [], []

    def body():
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(10)
    if failed:
        raise failed[0]
    return done[0]


def state_under(state: ambient.Ambient) -> ambient.Ambient:
    seen = []
    ambient.run_with(state, lambda: seen.append(ambient.current()))
    return seen[0]


@pytest.mark.parametrize("name", MODES)
def test_a_state_goes_over_to_another_thread(name):
    with MODES[name]():
        state = ambient.current()
    assert elsewhere(lambda: state_under(state)) == state


@pytest.mark.parametrize("left", MODES)
@pytest.mark.parametrize("name", MODES)
def test_whatever_was_left_on_the_thread(name, left):
    with MODES[name]():
        state = ambient.current()

    def work():
        MODES[left]().__enter__()  # never left
        return state_under(state)

    assert elsewhere(work) == state


def test_modes_inside_one_another_keep_their_order():
    with Functions() as one, torch.device("meta"), Functions() as two, torch.no_grad(), Dispatch():
        state = ambient.current()
        made = torch.empty(1).device.type
    assert [state.functions[0], state.functions[-1]] == [one, two]
    assert len(state.dispatch) == 1
    assert not state.grad

    def work():
        seen = []
        ambient.run_with(
            state, lambda: seen.extend([ambient.current(), torch.empty(1).device.type])
        )
        return seen

    assert elsewhere(work) == [state, made]


def test_grad_mode_set_inside_inference_mode():
    with torch.inference_mode(), torch.enable_grad():
        state = ambient.current()
    assert state.inference
    assert state.grad
    assert elsewhere(lambda: state_under(state)) == state


def test_the_caller_s_own_state_is_untouched():
    before = ambient.current()
    with torch.no_grad(), torch.device("meta"):
        state = ambient.current()
    elsewhere(lambda: state_under(state))
    assert ambient.current() == before


@pytest.mark.parametrize("name", sorted(set(MODES) - {"nothing", "enable_grad"}))
def test_the_brief_state_tells_modes_apart(name):
    plain = ambient.brief()
    with MODES[name]():
        inside = ambient.brief()
    assert inside != plain
    assert ambient.brief() == plain


def test_threads_of_torch_are_as_many_in_a_block():
    state = ambient.current()
    expected = torch.get_num_threads()
    seen = []
    elsewhere(lambda: ambient.run_with(state, lambda: seen.append(torch.get_num_threads())))
    assert seen == [expected]
