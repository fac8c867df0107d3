"""docs/families.md is what `python -m tests.families` gives, and has every family in it."""

from __future__ import annotations

import pytest

from nnsight.modeling.architectures import FAMILIES
from nnsight.modeling.unmasked import UNMASKED
from tests.families import table, zoo

# one of each kind: positions, windows, experts, states, padding that is read, encoders, halves
SOME = ["gpt2", "gemma2", "bloom", "mixtral", "mamba2", "zamba", "rwkv", "bert", "t5", "vit"]


def test_the_page_shows_the_record():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(table.read())


@pytest.mark.parametrize("family", SOME)
def test_a_row_of_the_table_is_what_a_run_gives(family):
    recorded = table.read()[table.release()]["families"][family]
    marks = {column: mark for column, (mark, _) in recorded.items()}
    row = table.row_of(family)
    assert {column: mark for column, (mark, _) in row.items()} == marks, row


KNOWN = frozenset(FAMILIES) - zoo.PARTS  # before other tests add families of their own


def test_every_family_with_standard_names_is_in_the_table():
    for marks in table.read().values():
        types = {zoo.model_type_of(one) for one in marks["families"] if zoo.is_there(one)}
        lacking = KNOWN - types
        assert not lacking or table.release() == "4", lacking  # which has not all of them


def test_what_is_said_of_padding_is_what_the_table_has_measured():
    warned = {
        zoo.model_type_of(family)
        for marks in table.read().values()
        for family, row in marks["families"].items()
        if row["batch = solo"][0] == table.WARNS
    }
    assert warned == UNMASKED.keys()
