"""The examples run, and show what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT

SHOWS = {
    "logit_lens.py": "layer 5: ' Paris'",
    "activation_patching.py": "layer 5:",
    "ablation.py": "layer 0: without attention",
    "standard_names.py": "without head 1.0: P(answer) = 0.7",
    "remote_block.py": "next: ' Paris'",
    "any_module.py": "all outputs agree: True",
    "image_patching.py": "the projector: 1.00 of the way to the other image",
    "diffusion_steps.py": "step 2: the prompt pulls by 0.",
}


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(SHOWS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "shown"), SHOWS.items())
def test_an_example_runs(name: str, shown: str, tmp_path: Path):
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    for picture in tmp_path.glob("docs/pictures/*"):  # the pages show what the command draws
        assert (ROOT / "docs" / "pictures" / picture.name).exists()
        assert picture.read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.timeout(120)
def test_the_example_of_a_remote_block_gives_the_same_in_a_process_of_its_own(tmp_path: Path):
    said = []
    for place in ((), ("local",)):
        command = [sys.executable, str(ROOT / "examples" / "remote_block.py"), *place]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and "printed where the block runs\n" in said[1]
