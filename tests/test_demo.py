"""`python -m nnsight demo` on the embedded model, and on a folder of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_demo(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "nnsight", "demo", *arguments]
    environment = {"COLUMNS": "160", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(120)
def test_the_embedded_model_is_opened_up(tmp_path: Path):
    text = run_demo(tmp_path)
    assert "GPT2LMHeadModel(" in text
    assert "logit lens" in text
    assert "' Paris'" in text
    picture = (tmp_path / "demo_patching.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 10_000


@pytest.mark.timeout(120)
def test_a_folder_can_be_given(tmp_path: Path, gpt2_folder: Path):
    prompts = ["--clean", "The cat sat on the", "--corrupted", "The dog sat on the"]
    text = run_demo(tmp_path, str(gpt2_folder), *prompts, "--plot", "sweep.png")
    assert "12 x GPT2Block" in text
    assert (tmp_path / "sweep.png").is_file()
