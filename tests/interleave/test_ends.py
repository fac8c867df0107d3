"""How a run ends: well, with values that never came, with errors, stopped; what it takes off."""

from __future__ import annotations

import pytest

from nnsight.interleave import errors
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.request import read, wait, write
from tests.interleave.scripted import Script
from tests.interleave.small import at_work


def lost(script: Script):
    place = Script(z=0).z
    place.owner.tree = script
    return place


def test_a_block_may_catch_that_its_value_never_came():
    script, got = Script(a=1), []

    def block():
        with pytest.raises(errors.MissedProviderError):
            read(lost(script))
        got.append("went on")

    script.run(block)
    assert got == ["went on"]


def test_who_waits_for_the_model_is_told_before_who_waits_for_a_block():
    script, got = Script(a=1), []

    def waits():
        wait(lambda: bool(got), lambda: ValueError("never"))
        got.append("freed")

    def catches():
        with pytest.raises(errors.MissedProviderError):
            read(lost(script))
        got.append("caught")

    script.run(waits, catches)
    assert got == ["caught", "freed"]


def test_a_wait_that_nobody_ends_raises_what_it_brought():
    script = Script(a=1)
    with pytest.raises(LookupError, match="nobody came"):
        script.run(lambda: wait(lambda: False, lambda: LookupError("nobody came")))


def test_the_first_error_wins_and_the_others_are_ended():
    script, ended = Script(a=1, b=2), []

    def fails():
        read(script.a)
        raise KeyError("first")

    def waits():
        try:
            read(script.b)
        finally:
            ended.append("waits")
            raise KeyError("second")

    with pytest.raises(KeyError, match="first"):
        script.run(waits, fails, waits)
    assert ended == ["waits", "waits"]
    assert at_work() == []


def test_an_error_at_the_start_keeps_the_model_from_running():
    script, ran = Script(a=1), []

    def fails():
        raise KeyError("at once")

    with pytest.raises(KeyError, match="at once"):
        script.run(lambda: read(script.a), fails, lambda: ran.append(1))
    assert script.passed == {}
    assert ran == []


def test_an_error_that_the_model_catches_is_raised_at_the_end():
    script = Script(a=1, b=2)

    def fails():
        read(script.a)
        raise KeyError("swallowed")

    def forward():
        try:
            script.interleaver.offer(script.a, 1)
        except KeyError:
            script.passed["caught"] = True
        script.interleaver.offer(script.b, 2)

    with pytest.raises(KeyError, match="swallowed"):
        script.run(fails, call=forward)
    assert script.passed == {"caught": True}


def test_an_error_of_the_model_ends_the_blocks_and_names_what_was_replaced():
    script, ended = Script(a=1, b=2), []

    def block():
        write(script.a, 5)
        try:
            read(script.b)
        except Exception as error:  # what is wrong with the model is not the block's to catch
            ended.append(error)
        finally:
            ended.append("finally")

    def forward():
        script.interleaver.offer(script.a, 1)
        raise ZeroDivisionError("in the model")

    with pytest.raises(ZeroDivisionError, match="in the model") as caught:
        script.run(block, call=forward)
    assert ended == ["finally"]
    assert any("`model.a.output`" in note for note in caught.value.__notes__)


def test_stop_ends_everybody_with_a_warning_for_those_cut_short():
    script, log = Script(a=1, b=2), []

    def stops():
        log.append(read(script.a))
        raise errors.Stop

    def same_place():
        log.append(read(script.a))

    def later():
        try:
            read(script.b)
        finally:
            log.append("ended")

    with pytest.warns(UserWarning, match="the block at block 2 had"):
        assert script.run(stops, same_place, later) is None
    assert log == [1, 1, "ended"]
    assert script.passed == {}


def test_stop_at_the_start_tells_of_blocks_that_never_began():
    script, ran = Script(a=1), []

    def stops():
        raise errors.Stop

    with pytest.warns(UserWarning, match="the block at block 1 had"):
        script.run(stops, lambda: ran.append(1))
    assert ran == []
    assert script.passed == {}


@pytest.mark.parametrize("ends", ["well", "with an error", "stopped"])
def test_what_was_put_on_the_model_is_taken_off_last_first(ends):
    script, undone = Script(a=1), []

    def enter(run: Interleaver):
        for number in range(3):
            run.at_close(lambda number=number: undone.append(number))

    def block():
        read(script.a)
        if ends == "with an error":
            raise KeyError
        if ends == "stopped":
            raise errors.Stop

    if ends == "with an error":
        with pytest.raises(KeyError):
            script.run(block, enter=enter)
    else:
        script.run(block, enter=enter)
    assert undone == [2, 1, 0]


def test_one_undo_that_fails_keeps_no_other_from_its_work():
    script, undone = Script(a=1), []

    def enter(run: Interleaver):
        run.at_close(lambda: undone.append("first"))
        run.at_close(lambda: 1 / 0)
        run.at_close(lambda: undone.append("last"))

    with pytest.raises(ZeroDivisionError):
        script.run(lambda: read(script.a), enter=enter)
    assert undone == ["last", "first"]


def test_an_enter_that_fails_is_undone():
    script, undone = Script(a=1), []

    def enter(run: Interleaver):
        run.at_close(lambda: undone.append(1))
        raise KeyError("half-way")

    with pytest.raises(KeyError, match="half-way"):
        script.run(lambda: None, enter=enter)
    assert undone == [1]


def test_a_hook_that_outlives_its_run_holds_no_thread():
    script = Script(a=1)
    script.run(lambda: read(script.a))
    assert not script.interleaver.holds()
    assert script.interleaver.workers == []
