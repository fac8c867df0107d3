"""What no server could answer to is refused before anything is sent, or waited for."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

import pytest
import torch

from nnsight import CONFIG, NNsight
from nnsight.remote.errors import NotSendableError, RemoteError, RemoteTimeoutError
from nnsight.traces.trace import Trace
from tests.remote.double import ENV, Double
from tests.remote.test_service import KEY, unreachable


def refused(gpt2: Any, kind: type = RemoteError, **options: Any) -> str:
    """The error of a small remote trace, as it is printed."""
    with pytest.raises(kind) as error:
        with gpt2.trace("Hello", remote=True, **options):
            gpt2.lm_head.output.save()
    return "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"“{KEY}”", f"{KEY}\x7f"])
def test_a_key_that_cannot_be_one_is_not_shown(double: Double, gpt2: Any, key: str):
    CONFIG.API_KEY = key
    began = time.monotonic()
    said = refused(gpt2)
    assert "characters that no key has" in said and KEY not in said
    assert double.asked == [] and time.monotonic() - began < 5


@pytest.mark.parametrize("host", ["api.ndif.us", "ftp://api.ndif.us", "http://[::1"])
def test_a_host_that_cannot_be_one_is_told_of_at_once(settings: Any, gpt2: Any, host: str):
    CONFIG.API.HOST = host
    assert "is no address of a server" in refused(gpt2)


def test_a_time_limit_says_what_was_waited_for(settings: Any, gpt2: Any, capsys: Any):
    CONFIG.API.HOST = unreachable()
    said = refused(gpt2, RemoteTimeoutError, timeout=0.6)
    assert "within the time given (`timeout=`). When it ended: nothing listens there." in said
    assert "RemoteTimeoutError" not in capsys.readouterr().err


@pytest.mark.parametrize("protocols", [["nnsight/1"], []])  # ours, and NDIF's
def test_a_module_that_the_server_lacks(double: Double, gpt2: Any, protocols: list[str]):
    packages = {**ENV["packages"], "torch": torch.__version__}
    double.answers["/env"] = (200, {"packages": packages, "protocols": protocols})
    began = sys._getframe().f_lineno
    with pytest.raises(NotSendableError) as error:
        with gpt2.trace("Hello", remote=True):
            gpt2.lm_head.output.save()
            print(pytest.Cache)
    line = f"{__file__}, line {began + 4}: This block cannot run on the server: `pytest` is not on"
    assert str(error.value).startswith(line) and "nnsight.register(module)" in str(error.value)
    assert {path for path, _ in double.asked} == {"/env"}  # nothing was sent


@pytest.mark.parametrize("protocols", [["nnsight/1"], []])
def test_a_block_above_the_limit_of_the_server(double: Double, gpt2: Any, protocols: list[str]):
    packages = dict.fromkeys(("torch", "numpy"), "1.0")
    about = {"packages": packages, "protocols": protocols, "limits": {"body": 2**20}}
    double.answers["/env"] = (200, about)
    values = torch.rand(2**20)
    began = sys._getframe().f_lineno
    with pytest.raises(NotSendableError) as error:
        with gpt2.trace("Hello", remote=True):
            (gpt2.lm_head.output.sum() + values.sum()).save()
    line = f"{__file__}, line {began + 2}: This block has "
    assert str(error.value).startswith(line) and "the server takes 1 MiB" in str(error.value)
    assert {path for path, _ in double.asked} == {"/env"}


@pytest.mark.parametrize("remote", [True, "local", "http://localhost:1"])
@pytest.mark.parametrize("verb", ["trace", "session"])
def test_a_module_that_no_name_leads_to(settings: Any, verb: str, remote: Any):
    model = NNsight(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="comes from no hub id and no folder"):
        given = (torch.ones(1, 2),) if verb == "trace" else ()
        with getattr(model, verb)(*given, remote=remote):
            pass


class Own(Trace):
    pass


def test_a_tracer_of_ones_own(settings: Any, gpt2: Any):
    CONFIG.API.HOST = unreachable()
    with pytest.raises(NotSendableError, match=r"a `Own` cannot be sent.*leave it out"):
        with gpt2.trace("Hello", remote=True, tracer_cls=Own):
            gpt2.lm_head.output.save()
