"""Things from outside that a block fills: what was saved comes back to where it was put."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import nnsight
from nnsight import LanguageModel
from nnsight.remote.environment import is_local
from nnsight.remote.errors import NotSendableError
from nnsight.remote.ndif08.write import write
from tests.conftest import make_gpt2_folder
from tests.remote.through import ThroughBytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_gpt2_folder(tmp_path_factory.mktemp("filled"), layers=2)
    return LanguageModel(folder, dispatch=True)


@pytest.fixture(scope="module")
def at(model: Any) -> dict[str, Any]:
    return {"backend": ThroughBytes(model, LanguageModel(Path(model.repo_id), dispatch=True))}


class Experiment:
    """As people write them: the model, the settings and what was found on one object."""

    def __init__(self, model: Any) -> None:
        self.model, self.layer = model, 1
        self.big = torch.zeros(3)
        self.hidden: Any = None
        self.by_layer: dict[Any, Any] = {}
        self.log: list[Any] = []

    def sets(self, at: dict[str, Any]) -> Any:
        with self.model.trace("Hello", **at):
            self.hidden = self.model.transformer.h[self.layer].mlp.output.save()
        return self.hidden

    def fills(self, at: dict[str, Any]) -> Any:
        with self.model.trace("Hello", **at):
            for i, layer in enumerate(self.model.transformer.h):
                self.by_layer.setdefault("all", []).append(layer.mlp.output.save())
                self.by_layer[i] = self.by_layer["all"][-1]
        return self.by_layer

    def fills_in_a_method(self, at: dict[str, Any]) -> Any:
        with self.model.trace("Hello", **at):
            self._keep(self.model.lm_head.output)
        return self.log

    def _keep(self, value: Any) -> None:
        self.log.append(value.save())

    def writes_to_the_model(self, at: dict[str, Any]) -> Any:
        with self.model.trace("Hello", **at):
            self.model.transformer.h[0].mlp.output[:] = 0
            self.model.transformer.h[1].mlp.output.add_(1.0)
            logits = self.model.lm_head.output.save()
        return logits

    def forgets(self, at: dict[str, Any]) -> None:
        with self.model.trace("Hello", **at):
            self.log.append(self.model.lm_head.output)

    def forgets_to_save(self, at: dict[str, Any]) -> None:
        with self.model.trace("Hello", **at):
            self.hidden = self.model.lm_head.output


def reads_it_too(model: Any, at: dict[str, Any]) -> Any:
    found: dict[int, Any] = defaultdict(list)
    with model.trace("Hello", **at):
        for i in range(2):
            found[i].append(model.transformer.h[i].mlp.output.save())
        print(len(found))
    return found


def in_a_function(model: Any, at: dict[str, Any]) -> Any:
    found: list[Any] = []

    def keep(value: Any) -> None:
        found.append(value.save())

    also = found.append
    with model.trace("Hello", **at):
        keep(model.transformer.h[0].mlp.output)
        also(model.lm_head.output.save())
    return found


def in_a_list_as_it_grows(model: Any, at: dict[str, Any]) -> Any:
    found: list[Any] = []
    with model.trace("Hello", **at):
        nnsight.save(found)
        found += [model.lm_head.output]
    return found


@pytest.mark.parametrize(
    "run",
    [
        *(reads_it_too, in_a_function, in_a_list_as_it_grows),
        lambda model, at: Experiment(model).sets(at),
        lambda model, at: Experiment(model).fills(at),
        lambda model, at: Experiment(model).fills_in_a_method(at),
        lambda model, at: Experiment(model).writes_to_the_model(at),
    ],
)
def test_what_was_saved_is_where_it_was_put(run: Callable[..., Any], model: Any, at: Any):
    here, there = run(model, {}), run(model, at)
    assert type(here) is type(there)
    torch.testing.assert_close(there, here)


def test_an_object_comes_back_without_what_only_stands_beside(model: Any, at: dict[str, Any]):
    experiment = Experiment(model)
    big, log = experiment.big, experiment.log
    with pytest.warns(UserWarning, match="big"):
        with model.trace("Hello", **at):
            experiment.big[:] = 5.0
            experiment.hidden = model.lm_head.output.save()
            nnsight.save(experiment.big.sum())
    assert experiment.big is big and experiment.log is log and experiment.model is model
    assert experiment.hidden.shape[-1] == model.config.vocab_size
    assert not big.any()  # it was not saved


def grows(model: Any, at: dict[str, Any]) -> None:
    found: list[Any] = []
    with model.trace("Hello", **at):
        found += [model.lm_head.output]


def adds_up(model: Any, at: dict[str, Any]) -> None:
    total = torch.zeros(1)
    with model.trace("Hello", **at):
        total += model.lm_head.output.sum()


def adds_in_place(model: Any, at: dict[str, Any]) -> None:
    total = torch.zeros(1)
    with model.trace("Hello", **at):
        total.add_(model.lm_head.output.sum())


def fills_an_array(model: Any, at: dict[str, Any]) -> None:
    table = numpy.zeros(2)
    with model.trace("Hello", **at):
        table[0] = model.lm_head.output.sum().item()


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (grows, "`found` is a list from outside"),
        (adds_up, "`total` is a Tensor from outside"),
        (adds_in_place, "`total` is a Tensor from outside"),
        (fills_an_array, "`table` is a ndarray from outside"),
        (lambda model, at: Experiment(model).forgets(at), "`self.log` is a list from outside"),
        (lambda model, at: Experiment(model).forgets_to_save(at), "`self` is a Experiment from"),
    ],
)
def test_what_was_not_saved_is_refused(run: Any, said: str, model: Any, at: dict[str, Any]):
    with pytest.raises(NotSendableError, match=said):
        run(model, at)


def test_a_server_of_ndif_cannot_send_it_to_where_it_was_put(model: Any):
    def send(tracer: Any, function: Any = None) -> None:
        write(tracer, model, is_local)

    with pytest.raises(NotSendableError, match="`self` is a Experiment from outside"):
        Experiment(model).sets({"backend": send})
