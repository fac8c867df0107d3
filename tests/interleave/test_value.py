"""The descriptor behind `.output` and its kin."""

from __future__ import annotations

import pytest

from nnsight.interleave import errors
from nnsight.interleave.location import OUTPUT
from nnsight.interleave.value import Value
from tests.interleave.scripted import Place, Script


class Seen(Place):
    plain = Value(OUTPUT, doc="The value itself.")
    half = Value(
        OUTPUT,
        view=lambda location, raw: raw / 2,
        pack=lambda location, raw, value: (raw, value),
        doc="Half of it.",
    )
    fails = Value(OUTPUT, view=lambda location, raw: 1 / 0)


@pytest.fixture
def script() -> Script:
    script = Script(a=8, b=6)
    script.places = {name: Seen(f"model.{name}", script) for name in "ab"}
    return script


def test_on_the_class_it_is_itself():
    assert isinstance(Seen.plain, Value)
    assert Seen.plain.__doc__ == "The value itself."


def test_reading_gives_the_value_as_it_is_seen(script):
    got = []
    script.run(lambda: got.extend([script.places["a"].plain, script.places["b"].half]))
    assert got == [8, 3]


def test_assigning_packs_what_was_given_with_the_raw_value(script):
    def block():
        script.places["a"].plain = 5
        script.places["b"].half = "new"

    script.run(block)
    assert script.passed == {"a": 5, "b": (6, "new")}


def test_a_view_that_fails_fails_in_the_block(script):
    caught = []

    def block():
        try:
            _ = script.places["a"].fails
        except ZeroDivisionError as error:
            caught.append(error)
        caught.append(script.places["a"].plain)

    script.run(block)
    assert caught[1] == 8


@pytest.mark.parametrize("name", ["plain", "half"])
def test_outside_of_a_run(script, name):
    with pytest.raises(errors.OutsideTraceError, match=r"`model\.a\.output`"):
        getattr(script.places["a"], name)
    with pytest.raises(errors.OutsideTraceError, match=r"`model\.a\.output`"):
        setattr(script.places["a"], name, 1)
