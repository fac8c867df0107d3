"""`python -m tests.benchmarks --out FOLDER`: measure, print and store the table."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .harness import Figure, markdown, measure, store
from .scenarios import SCENARIOS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for figures.json and figures.md")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--repeats", type=int, default=100, help="runs of each side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for scenario in SCENARIOS:
        if options.only in scenario.name:
            figures.append(measure(scenario, options.repeats, options.rounds))
            print(".", end="", flush=True)
    print(f"\n{markdown(figures)}")
    if options.out is not None:
        store(figures, options.out)


if __name__ == "__main__":
    main()
