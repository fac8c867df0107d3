"""Every code block of the README and of `docs/` runs, and says what the page says it says."""

from __future__ import annotations

import builtins
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import nnsight
from tests.pages import ROOT, blocks_of, pages, run


@pytest.fixture(autouse=True)
def switch_off():
    """A page that fails while the old-script switch is on leaves it off."""
    yield
    nnsight.CONFIG.APP.LEGACY = False


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks_of(page):
        if block.info.get("test") == "skip":
            continue
        expected = block.info.get("raises")
        with warnings.catch_warnings():
            if "warns" in block.info or expected:
                warnings.simplefilter("ignore")
            if expected is None:
                run(block, names)
            else:
                kind = getattr(nnsight, expected, None) or getattr(builtins, expected)
                with pytest.raises(kind):
                    run(block, names)


def test_blocks_that_do_not_run_say_why():
    """A block is left out only where it needs a network: its line says so."""
    for page in pages():
        for block in blocks_of(page):
            if block.info.get("test") == "skip":
                assert re.search(r"# (needs|on a)", block.code), (block.page, block.lineno)


def test_links_between_pages_lead_somewhere():
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto:")):
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_changelog_is_at_the_version_of_the_package():
    text = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert newest is not None and newest.group(1) == nnsight.__version__
