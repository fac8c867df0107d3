"""Both sides of every benchmark meet the same values. Nothing here looks at a clock."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from nnsight import CONFIG

from . import remote
from .harness import Case, Scenario, markdown, measure, store
from .scenarios import SCENARIOS, import_time, kept, stack, wrapped

TIMED = [scenario for scenario in SCENARIOS if scenario.make is not None]


@pytest.mark.parametrize("scenario", TIMED, ids=lambda scenario: scenario.name)
def test_both_sides_meet_the_same_values(scenario: Scenario) -> None:
    assert scenario.make is not None
    case: Case = scenario.make()
    for _ in range(2):
        ours, theirs = case.library(), case.raw()
        assert (ours is None) == (theirs is None)
        torch.testing.assert_close(ours or [], theirs or [])


def test_a_wrapped_model_carries_nothing_of_ours_outside_a_trace() -> None:
    model = wrapped(stack)
    with model.trace(torch.ones(1, 8)):
        model.blocks[3].output.save()
        model.blocks[5].skip(model.blocks[5].input)
    for module in stack().modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_what_is_no_time_beside_raw_hooks_is_measured() -> None:
    assert import_time(runs=1) > 0
    assert isinstance(kept(traces=2), float)


def test_a_figure_is_stored_beside_its_target(tmp_path: Path) -> None:
    case = Case(lambda: None, lambda: None)
    figure = measure(Scenario("nothing", 5, lambda: case), repeats=2, rounds=2)
    store([figure], tmp_path)
    kept = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert kept[0]["name"] == "nothing" and kept[0]["target"] == 5
    assert "| ≤ 5 " in markdown([figure]) == (tmp_path / "figures.md").read_text()


def test_the_figures_of_a_server_come_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    text = remote.table(repeats=1, mebibytes=1, jobs=2)
    assert "COMPLETED heard after" in text
    assert re.findall(r"(\d+) clients: \d+ jobs a second", text) == ["1", "16"]
