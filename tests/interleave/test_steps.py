"""Steps as the engine sees them: visits that are asked for by number, and loops that wait."""

from __future__ import annotations

from typing import Any

import pytest

from nnsight.interleave.beginning import beginning
from nnsight.interleave.errors import MissedProviderError, OutOfOrderError
from nnsight.interleave.location import Location
from nnsight.interleave.request import Pin, here, read, wait
from tests.interleave.scripted import Script


class Beats:
    """A passage of a model that is called step by step: each comes by some places."""

    def __init__(self, script: Script, *steps: str) -> None:
        self.script, self.steps, self.now = script, steps, -1
        self.often: set[str] = set()

    def enter(self, run: Any) -> None:
        run.passage = self

    def forward(self) -> str:
        run = self.script.interleaver
        assert run is not None
        for number, places in enumerate(self.steps):
            self.now = number
            run.offer(self.script.a, number)  # the beat
            for name in places:
                run.offer(getattr(self.script, name), f"{name}{number}")
        return "returned"

    def before(self, location: Location) -> int:
        return 0

    def at(self, location: Location, visit: int) -> None:
        pass

    def story(self, location: Location) -> str:
        return "passed"

    def step(self) -> int:
        return max(self.now, 0)

    def runs_often(self, location: Location) -> bool:
        return str(location) in self.often

    stepwise = True

    def marks(self, asked: Any, named: Any) -> list[Location]:
        return []

    @property
    def beat(self) -> Location:
        return self.script.a


def loop(steps: Any, body: Any) -> None:
    """What `for step in tracer.iter[...]` does."""
    worker = here.worker
    pin = Pin(0)
    for step in steps:
        run = worker.run
        if run.returned:
            return
        wait(beginning(run, step, pin.asked, worker, False), AssertionError)
        if run.returned:
            return
        worker.pin, pin.step = pin, step
        body(step)
    worker.pin = None


def run(script: Script, beats: Beats, *blocks: Any) -> Any:
    return script.run(*blocks, enter=beats.enter, call=beats.forward)


@pytest.fixture
def script() -> Script:
    return Script(a=0, b=0, c=0)


def test_a_step_is_that_of_the_run_whatever_a_place_has_missed(script):
    found: list[Any] = []
    beats = Beats(script, "bc", "c", "bc")
    run(script, beats, lambda: loop([0, 2], lambda step: found.append(read(script.b))))
    assert found == ["b0", "b2"]


def test_outside_of_steps_the_first_visit_is_meant_whenever_it_comes(script):
    found: list[Any] = []
    run(script, Beats(script, "c", "c", "bc"), lambda: found.append(read(script.b)))
    assert found == ["b2"]


def test_a_place_that_the_step_leaves_out_is_an_error_at_the_end(script):
    beats = Beats(script, "bc", "c", "bc")
    with pytest.raises(MissedProviderError, match=r"`model\.b\.output` of step 1 was not provided"):
        run(script, beats, lambda: loop([1], lambda step: read(script.b)))


def test_a_body_is_entered_when_its_step_begins_and_not_without(script):
    entered: list[Any] = []
    beats = Beats(script, "b", "b", "b")
    run(script, beats, lambda: loop(range(9), lambda step: entered.append((step, beats.now))))
    assert entered == [(0, -1), (1, 1), (2, 2)]


def test_two_blocks_are_at_steps_of_their_own(script):
    one: list[Any] = []
    two: list[Any] = []
    run(
        script,
        Beats(script, "bc", "bc", "bc"),
        lambda: loop([0, 1, 2], lambda step: one.append(read(script.c))),
        lambda: loop([2], lambda step: two.append(read(script.b))),
    )
    assert one == ["c0", "c1", "c2"] and two == ["b2"]


def test_what_a_step_has_passed_is_an_error_that_names_the_step(script):
    def body(step: int) -> None:
        read(script.c)
        read(script.b)

    with pytest.raises(OutOfOrderError, match=r"`model\.b\.output` of step 1 was requested"):
        run(script, Beats(script, "bc", "bc", "bc"), lambda: loop([1], body))


def test_what_runs_several_times_in_a_step_is_told_of(script):
    def body(step: int) -> None:
        read(script.b)
        read(script.c)

    beats = Beats(script, "bbc", "bbc")
    beats.often.add("model.b.output")
    with pytest.raises(OutOfOrderError, match=r"of step 1 .*its own run number 1"):
        run(script, beats, lambda: loop([0, 1], body))


def test_the_code_after_a_loop_has_the_result_and_nothing_else(script):
    found: list[Any] = []

    def block() -> None:
        loop(range(9), lambda step: read(script.b))
        found.append(read(Location(script.result, "result")))
        read(script.c)

    with pytest.raises(OutOfOrderError):
        run(script, Beats(script, "bc", "bc"), block)
    assert found == ["returned"]


def test_a_value_between_steps_stays_for_the_whole_step(script):
    found: list[Any] = []
    beats = Beats(script, "b", "b")

    def body(step: int) -> None:
        read(script.b)
        script.interleaver.between[script.c] = step, f"kept{step}"
        script.interleaver.visits[script.c] = step + 1
        found.append(read(script.c))

    run(script, beats, lambda: loop([0, 1], body))
    assert found == ["kept0", "kept1"]
