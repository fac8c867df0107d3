"""The real thing: a served GPT-2, and blocks that went over the wire to it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight import LanguageModel, NNsight
from nnsight.remote import environment, payload
from nnsight.remote.perform import perform
from nnsight.server.models import Loaded
from nnsight.server.surroundings import Surroundings
from nnsight.server.weights import Weights
from tests.server.running import Server, until


class Real(Server):
    """`python -m nnsight serve FOLDER`."""

    def __init__(self, data: Path, *words: str) -> None:
        self.data, self.words, self.headers = data, words, {}
        self.output = data.with_suffix(".output")
        with self.output.open("wb") as output:
            command = (sys.executable, "-m", "nnsight", "serve", *words)
            self.process = subprocess.Popen(
                (*command, "--port", "0", "--data", str(data)), stdout=output, stderr=output
            )
        self.url = until(lambda: self._listening(0), self.said, 60.0)


class Sent:
    """A backend that keeps a block as data."""

    def __call__(self, tracer: Any) -> None:
        self.request = payload.write(tracer, tracer.model, environment.is_local)
        tracer.received = {}


@pytest.fixture(scope="module")
def real(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    server = Real(tmp_path_factory.mktemp("real") / "data", str(gpt2_folder))
    yield server
    server.kill()


@pytest.fixture
def client(gpt2_folder: Path) -> LanguageModel:
    """The model on the side of who sends: without weights."""
    return LanguageModel(gpt2_folder)


def test_a_block_gives_the_values_that_it_gives_here(
    real: Server, client: Any, gpt2: Any, capsys: pytest.CaptureFixture[str]
):
    with client.trace("Hello world", remote=real.url):
        hidden = client.transformer.h[5].mlp.output.save()
        client.transformer.h[6].mlp.output[:] = 0
        logits = client.lm_head.output.save()
        print("in the block", hidden.shape[0])
    assert "in the block 1" in capsys.readouterr().out
    with gpt2.trace("Hello world"):
        hidden_here = gpt2.transformer.h[5].mlp.output.save()
        gpt2.transformer.h[6].mlp.output[:] = 0
        logits_here = gpt2.lm_head.output.save()
    assert torch.equal(hidden, hidden_here) and torch.equal(logits, logits_here)
    assert not client.dispatched


def test_an_error_names_the_line_of_the_user(real: Server, client: Any):
    with pytest.raises(KeyError, match="in the middle of it") as caught:
        with client.trace("Hello world", remote=real.url):
            first = client.transformer.h[0].mlp.output.save()  # noqa: F841 # saved
            raise KeyError("in the middle of it")
    assert caught.value.saved["first"].shape[-1] == 48  # type: ignore[attr-defined] # as any error
    assert caught.traceback[-1].path == Path(__file__)


def test_weights_that_a_block_changed_are_as_before_in_the_next(
    real: Server, client: Any, capsys: pytest.CaptureFixture[str]
):
    def norm() -> float:
        with client.trace("Hello world", remote=real.url):
            total = client.lm_head.output.norm().item().save()
        return total

    before = norm()
    with client.trace("Hello world", remote=real.url):
        with torch.no_grad():
            client.transformer.h[3].mlp.c_fc.weight.zero_()
        total = client.lm_head.output.norm().item().save()
    assert total != before
    assert "h.3.mlp.c_fc.weight" in capsys.readouterr().out
    assert norm() == before


def test_the_model_says_what_it_is(real: Server, client: Any):
    until(lambda: real.model()["application_state"] == "RUNNING", real.said, 60.0)
    told = real.model()
    assert told["model_key"] == client.to_model_key()
    assert told["n_params"] == sum(p.numel() for p in client.parameters())
    assert re.search(r"gpt2", told["config"])


def test_a_damaged_request_is_told(real: Server, client: Any):
    last = real.run(b"not a block", nnsight_model_key=client.to_model_key())
    assert last["status"] == "ERROR" and last["meta"]["error"]["phase"] == "read"


# --- putting back --------------------------------------------------------------------------------


@pytest.fixture
def module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).eval()


def test_gradients_modes_buffers_and_attributes_are_put_back(module: Any):
    weights = Weights(module)
    buffer = module[1].running_mean.clone()
    module.train()
    module(torch.randn(4, 3)).sum().backward()
    module[0].weight.requires_grad_(False)
    module[1].eps = 7.0
    module[1].running_var.data.mul_(2)
    assert weights.changed() == []
    assert not module.training and not module[1].training and module[1].eps == 1e-5
    assert module[0].weight.grad is None and module[0].weight.requires_grad
    assert torch.equal(module[1].running_mean, buffer)
    assert weights.compare() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.detach().zero_(),
        lambda m: m[0].weight.detach()[1].mul_(2),
        lambda m: setattr(m[0], "weight", torch.nn.Parameter(torch.ones(3, 3))),
        lambda m: setattr(m[0].weight, "data", torch.ones(3, 3)),
        lambda m: m.append(torch.nn.Linear(3, 3)),
        lambda m: setattr(m[0], "forward", lambda x: x),
        lambda m: m[0].register_forward_hook(lambda *a: None),
    ],
)
def test_what_torch_notes_is_seen_at_a_glance(module: Any, change: Any):
    weights = Weights(module)
    change(module)
    assert weights.changed()


def test_hooks_that_transformers_leaves_are_no_change(gpt2_folder: Path):
    model = LanguageModel(gpt2_folder, dispatch=True)
    weights = Weights(model._module)
    model._module(torch.tensor([[1, 2]]), output_hidden_states=True, output_attentions=True)
    hooks = [len(module._forward_hooks) for module in model._module.modules()]
    assert weights.changed() == []
    assert [len(module._forward_hooks) for module in model._module.modules()] == hooks


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.data.zero_(),
        lambda m: m[0].weight.detach().numpy().__setitem__((0, 0), 3.0),
        lambda m: m[0].weight.data.__setitem__(slice(0, 2), m[0].weight.data[[1, 0]].clone()),
    ],
)
def test_what_torch_does_not_note_is_seen_in_the_bytes(module: Any, change: Any):
    weights = Weights(module)
    change(module)
    assert weights.changed() == [] and len(weights.compare()) == 1


def test_values_that_change_places_are_seen():
    module = torch.nn.Linear(64, 64)
    weights = Weights(module)
    weight = module.weight.data
    for one, other in (((0, 0), (0, 2)), ((0, 0), (32, 0)), ((3, 5), (40, 8))):
        weight[one], weight[other] = weight[other].clone(), weight[one].clone()
        assert weights.compare() == ["weight"]
        weight[one], weight[other] = weight[other].clone(), weight[one].clone()
        assert weights.compare() == []


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_weights_of_any_type_are_compared(dtype: torch.dtype):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.ones(5, 700).to(dtype), requires_grad=False)
    module.scalar = torch.nn.Parameter(torch.tensor(1).to(dtype), requires_grad=False)
    module.empty = torch.nn.Parameter(torch.ones(0, 3).to(dtype), requires_grad=False)
    weights = Weights(module)
    module.weight.data[4, 699] = 0
    module.scalar.data.zero_()
    assert weights.compare() == ["scalar", "weight"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_quantised_weights_are_compared():
    quantization = pytest.importorskip("torchao.quantization")
    module = torch.nn.Sequential(torch.nn.Linear(64, 64))
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    weights = Weights(module)
    assert weights.compare() == []
    inner = module[0].weight.__tensor_flatten__()[0][0]  # type: ignore[operator] # torchao's own
    part = getattr(module[0].weight, inner)
    while hasattr(part, "__tensor_flatten__"):
        part = getattr(part, part.__tensor_flatten__()[0][0])
    part.data[3] = 0
    assert len(weights.compare()) == 1


def test_the_process_is_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import os
    import threading

    around = Surroundings()
    here, path = os.getcwd(), list(sys.path)
    os.chdir(tmp_path)
    sys.path.append("x")
    os.environ["X_OF_A_JOB"] = "1"
    assert around.put_back() == []
    assert (os.getcwd(), sys.path) == (here, path) and "X_OF_A_JOB" not in os.environ
    goes_on = threading.Event()
    thread = threading.Thread(target=goes_on.wait, name="left over")
    thread.start()
    child = subprocess.Popen(["sleep", "100"])
    assert around.put_back() == ["the thread left over", f"the process {child.pid}"]
    goes_on.set()
    thread.join()
    child.kill()
    child.wait()


def test_a_block_runs_in_a_loaded_model_here_too(gpt2_folder: Path):
    model = LanguageModel(gpt2_folder, dispatch=True)
    loaded = Loaded(model)
    with model.trace("Hello", backend=(sent := Sent())):
        out = model.lm_head.output.save()  # noqa: F841 # saved
    body = memoryview(bytearray(b"".join(map(bytes, sent.request.pieces))))
    outcome = loaded.perform("nnsight/1", body, print)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    assert outcome.failure is None and loaded.changed() == [] and loaded.compare() == []
    assert torch.get_default_dtype() is torch.float32 and torch.get_num_threads() != 3
    assert perform(body, model, print).result
    assert loaded.perform("ndif/8", body, print).failure is not None
    assert isinstance(model, NNsight)
