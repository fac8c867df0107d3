"""Who is answered when: the order of turns, visits, ends, skips and changes to containers."""

from __future__ import annotations

import pytest
import torch

from nnsight.interleave import errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.location import SKIP
from nnsight.interleave.request import read, wait, write
from nnsight.interleave.rows import Rows
from nnsight.interleave.visit import outcome
from tests.interleave.scripted import Script
from tests.interleave.small import WIDTH, at_work, net

BATCH = Batch(total=4, split=True)
FIRST, SECOND = Rows(0, 2), Rows(2, 2)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor([float(value) for value in values])[:, None]


# --- order ----------------------------------------------------------------------------------------


def test_blocks_are_answered_in_the_order_in_which_they_were_written():
    script, log = Script(a=1, b=2), []

    def block(name):
        log.append(f"{name} starts")
        read(script.a)
        log.append(f"{name} a")
        read(script.b)
        log.append(f"{name} b")

    script.run(*[lambda name=name: block(name) for name in "xyz"])
    assert log == [f"{name} {what}" for what in ("starts", "a", "b") for name in "xyz"]


def test_one_visit_answers_a_block_as_often_as_it_asks():
    script = Script(a=1)

    def block():
        for _ in range(5):
            write(script.a, read(script.a) + 1)

    script.run(block)
    assert script.passed == {"a": 6}


def test_a_later_block_starts_from_what_an_earlier_one_wrote():
    script = Script(a=1)

    def block():
        write(script.a, read(script.a) * 10)

    script.run(block, block, block)
    assert script.passed == {"a": 1000}


def test_a_block_that_is_freed_at_a_visit_still_joins_it():
    script, done = Script(a=1, b=2), []

    def waits():
        wait(lambda: bool(done), ValueError)
        done.append(read(script.a))

    def frees():
        done.append(read(script.a))

    script.run(waits, frees)
    assert done == [1, 1]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_a_chain_of_waits_is_over_before_the_model_goes_on(order):
    script, bound = Script(a=1, b=2), set()

    def link(number):
        def block():
            if number:
                wait(lambda: number - 1 in bound, ValueError)
            bound.add(number)
            read(script.a)

        return block

    script.run(*[link(number) for number in order])
    assert bound == {0, 1, 2}


# --- visits ---------------------------------------------------------------------------------------


def test_a_place_that_comes_by_again_is_not_read_again():
    script, got = Script(a=1), []

    def forward():
        for value in (10, 20, 30):
            script.passed[value] = script.interleaver.offer(script.a, value)

    script.run(lambda: got.append(read(script.a)), call=forward)
    assert got == [10]
    assert script.passed == {10: 10, 20: 20, 30: 30}


def test_what_was_passed_is_refused_where_it_stands():
    script, got = Script(a=1, b=2, c=3), []

    def first():
        got.append(read(script.a))

    def second():
        read(script.b)
        with pytest.raises(errors.OutOfOrderError, match=r"at `model\.b\.output` now"):
            read(script.a)
        with pytest.raises(errors.OutOfOrderError):
            write(script.a, 0)
        got.append(read(script.c))

    script.run(first, second)
    assert got == [1, 3]


def test_only_places_that_are_asked_for_are_watched():
    script = Script(a=1, b=2)
    script.run(lambda: (read(script.b), read(script.b)))
    assert script.places["a"].watched == []
    assert script.places["b"].watched == ["output"]


class Counted:
    """A passage that knows how often each place was passed before anyone asked."""

    def __init__(self, **passed: int) -> None:
        self.passed, self.seen = passed, []

    def before(self, location):
        return self.passed.get(location.owner.path[-1], 0)

    def at(self, location, visit):
        self.seen.append((str(location), visit))

    def step(self):
        return 0

    def story(self, location):
        return {"n": "never", "p": "passed"}.get(location.owner.path[-1], "")


def test_visits_before_the_first_question_count():
    script = Script(a=1, b=2)
    passage = Counted(a=2)

    def block():
        with pytest.raises(errors.OutOfOrderError):
            read(script.a)
        read(script.b)

    script.run(block, enter=lambda run: setattr(run, "passage", passage))
    assert [place for place, _ in passage.seen] == ["model.a.output", "model.b.output", "result"]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("n", errors.NeverCalledError, "never called"),
        ("p", errors.OutOfOrderError, "already ran past it"),
        ("x", errors.OutOfOrderError, "or never called it"),
    ],
)
def test_three_ways_to_miss_a_value(name, kind, text):
    script, other = Script(a=1), Script(**{name: 0})
    missing = getattr(other, name)
    missing.owner.tree = script
    with pytest.raises(kind, match=text):
        script.run(lambda: read(missing), enter=lambda run: setattr(run, "passage", Counted()))


# --- rows -----------------------------------------------------------------------------------------


def run_rows(script, *blocks):
    script.run(*blocks, rows=[FIRST, SECOND][: len(blocks)], batch=BATCH)


def test_each_block_reads_and_writes_its_own_rows():
    script, got = Script(a=tensor(1, 2, 3, 4)), []

    def first():
        got.append(read(script.a).flatten().tolist())
        write(script.a, read(script.a) * 10)

    def second():
        got.append(read(script.a).flatten().tolist())
        read(script.a).add_(0.5)

    run_rows(script, first, second)
    assert got == [[1, 2], [3, 4]]
    assert script.passed["a"].flatten().tolist() == [10, 20, 3.5, 4.5]


@pytest.mark.parametrize("reads", [1, 2])
def test_changes_to_a_dict_made_for_one_block_are_put_back(reads):
    script = Script(a={"h": tensor(1, 2, 3, 4), "k": tensor(0, 0, 0, 0)})

    def block():
        h = read(script.a)["h"]
        value = read(script.a) if reads == 2 else None
        (value or read(script.a))["k"] = h * 2

    run_rows(script, lambda: None, block)
    assert script.passed["a"]["k"].flatten().tolist() == [0, 0, 6, 8]
    assert script.passed["a"]["h"].flatten().tolist() == [1, 2, 3, 4]


def test_changes_to_containers_inside_a_tuple_are_put_back():
    script = Script(a=(tensor(1, 2, 3, 4), {"k": [tensor(5, 6, 7, 8)]}))

    def block():
        read(script.a)[1]["k"][0] = torch.zeros(2, 1)

    run_rows(script, block, lambda: None)
    assert script.passed["a"][1]["k"][0].flatten().tolist() == [0, 0, 7, 8]


def test_one_object_for_one_visit():
    script, same = Script(a={"h": tensor(1, 2, 3, 4)}), []

    def block():
        same.append(read(script.a) is read(script.a))
        new = {"h": torch.ones(2, 1)}
        write(script.a, new)
        same.append(read(script.a) is new)
        new["h"] = new["h"] * 3

    run_rows(script, block, lambda: None)
    assert same == [True, True]
    assert script.passed["a"]["h"].flatten().tolist() == [3, 3, 3, 4]


@pytest.mark.parametrize("late", [False, True])
def test_a_change_that_does_not_fit_is_an_error(late):
    script = Script(a={"h": tensor(1, 2, 3, 4)}, b=1)

    def block():
        read(script.a)["h"] = torch.zeros(3, 1)
        if late:
            read(script.b)

    with pytest.raises(errors.BatchError, match=r"`model\.a\.output` does not fit"):
        run_rows(script, block, lambda: None)
    assert at_work() == []


def test_a_key_that_is_new_is_an_error_not_a_loss():
    script = Script(a={"h": tensor(1, 2, 3, 4)})

    def block():
        read(script.a)["new"] = torch.zeros(2, 1)

    with pytest.raises(errors.BatchError):
        run_rows(script, block, lambda: None)


def test_rows_are_cut_and_joined_in_the_torch_state_of_the_model():
    weight = torch.ones(4, 1, requires_grad=True)
    script = Script(a=weight * 2)

    def block():
        with torch.no_grad():
            write(script.a, read(script.a) * 3)

    run_rows(script, block, lambda: None)
    script.passed["a"].sum().backward()
    assert weight.grad.flatten().tolist() == [0, 0, 2, 2]


# --- skips ----------------------------------------------------------------------------------------


class TestOutcome:
    location = Script(a=0).a

    def outcome(self, skips, ran, batch=BATCH):
        def run():
            ran.append(1)
            return tensor(1, 2, 3, 4)

        location = self.location._replace(kind=SKIP)
        return outcome(batch, location, skips, [], run)

    def test_a_value_for_everybody(self):
        ran = []
        assert self.outcome({None: "whole"}, ran) == "whole"
        assert ran == []

    def test_a_lone_block_is_everybody(self):
        ran = []
        assert self.outcome({FIRST: "mine"}, ran, Batch(4, split=False)) == "mine"
        assert ran == []

    def test_values_for_all_rows_are_joined_in_their_order(self):
        ran = []
        joined = self.outcome({SECOND: tensor(7, 8), FIRST: tensor(5, 6)}, ran)
        assert joined.flatten().tolist() == [5, 6, 7, 8]
        assert ran == []

    def test_other_rows_run(self):
        ran = []
        mixed = self.outcome({SECOND: tensor(7, 8)}, ran)
        assert mixed.flatten().tolist() == [1, 2, 7, 8]
        assert ran == [1]

    @pytest.mark.parametrize(
        "skips", [{SECOND: tensor(7, 8, 9)}, {FIRST: tensor(7), SECOND: tensor(1, 2)}]
    )
    def test_another_number_of_rows(self, skips):
        with pytest.raises(errors.BatchError, match="row"):
            self.outcome(skips, [])


def test_a_chain_of_names_is_bound_before_the_first_module_runs():
    model, x = net(), torch.ones(1, WIDTH)
    with model.trace() as tracer:
        with tracer.invoke(x):
            third = second + 1  # noqa: F821 (a later block binds it)
            value = (model.a.output * third).save()
        with tracer.invoke(x):
            second = first + 1  # noqa: F821, F841 (as above, and an earlier one reads it)
            _ = model.c.output
        with tracer.invoke(x):
            first = 1  # noqa: F841 (an earlier block reads it)
            _ = model.c.output
    assert torch.allclose(value, model._module.a(x) * 3)
