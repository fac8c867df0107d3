"""The small model that comes with the package and knows where some landmarks are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Pair:
    """Two prompts of one length that differ in their subject, and so in their answer."""

    clean: str
    corrupted: str
    clean_answer: str
    corrupted_answer: str


def facts_folder() -> Path:
    """The folder of the embedded model: `LanguageModel(facts_folder())` opens it.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    for folder in (_PACKAGE / "_facts", _PACKAGE.parents[1] / "examples" / "facts" / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        "the embedded model is not part of this installation; clone the repository and install it "
        "with `pip install -e .`, or name a model: `python -m nnsight demo MODEL`"
    )


def fact_pairs() -> list[Pair]:
    """Prompt pairs for activation patching on the embedded model."""
    known = json.loads((facts_folder() / "facts.json").read_text(encoding="utf-8"))
    fields = Pair.__dataclass_fields__
    return [Pair(**{name: pair[name] for name in fields}) for pair in known["pairs"]]
