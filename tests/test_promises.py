"""The page of promises names tests that there are."""

from __future__ import annotations

import re

from tests.pages import ROOT

NAMED = re.findall(r"`((?:\w+/)?test_\w+\.py)::(\w+)`", (ROOT / "docs/promises.md").read_text())


def test_each_promise_names_a_test_that_there_is():
    assert len(NAMED) >= 55
    for file, name in NAMED:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", text, re.M), f"{file}::{name}"


def test_each_promise_is_made_once():
    assert len(set(NAMED)) == len(NAMED)


def test_each_line_of_a_table_names_one():
    text = (ROOT / "docs/promises.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    told = [line for line in lines if not line.startswith("| promise")]
    assert len(told) == len(NAMED)
