"""`python -m tests.families [FAMILY ...]`: what works with which model, as a table.

Without a family all are run, and docs/families.md is written anew: what it says of this release of
transformers. With another release first on the path, what it says of that.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from tests.families import table, zoo
from tests.families.checks import CHECKS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="only these; writes nothing")
    chosen = parser.parse_args().families
    if unknown := set(chosen) - zoo.ZOO.keys():
        parser.error(f"no such family: {', '.join(unknown)}. There are {', '.join(zoo.ZOO)}")
    torch.set_num_threads(1)
    print(f"| | {' | '.join(CHECKS)} |")
    rows = {}
    for family in chosen or zoo.ZOO:
        rows[family] = row = table.row_of(family)
        print(table.line(family, [row]), flush=True)
        for column, (mark, why) in row.items():
            if why:
                print(f"    {mark} {column}: {why}")
    if not chosen:
        table.write(rows)


main()
