"""`python -m tests.behaviour.fuzz --seeds N [--first SEED] [--kind KIND]`: run seeds.

`blocks` are programs of blocks beside one forward of random models, right and wrong; `verbs` are
programs of every verb; `wire` are both, here and over the wire. A hang ends the process.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import threading
import time
from collections import Counter

import torch
from tests.behaviour.fuzz import check as blocks
from tests.behaviour.fuzz import wire
from tests.behaviour.fuzz.after import Wrong
from tests.behaviour.fuzz.verbs import check as verbs

LIMIT = 20  # seconds for one seed
CHECKS = {"blocks": blocks.check, "verbs": verbs.check, "wire": wire.check}


def _watch(now: list[float]) -> None:
    """End the process when a seed takes too long."""
    while True:
        time.sleep(0.5)
        seed, since = now
        if time.monotonic() - since > LIMIT:
            print(f"seed {seed:.0f} hangs", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(3)


def main(first: int, count: int, kind: str = "blocks") -> int:
    torch.set_num_threads(1)
    check = CHECKS[kind]
    if kind != "blocks":
        verbs.warm_up()
    now = [float(first), time.monotonic()]
    threading.Thread(target=_watch, args=(now,), daemon=True).start()
    ends: Counter[str] = Counter()
    wrong = 0
    for seed in range(first, first + count):
        now[:] = seed, time.monotonic()
        faulthandler.dump_traceback_later(3 * LIMIT, exit=True)  # needs no GIL
        try:
            ends.update(check(seed).split())
        except Wrong as error:
            wrong += 1
            if wrong < 4:
                print(error, repr(error.__cause__), file=sys.stderr, flush=True)
        except Exception as error:
            raise RuntimeError(f"seed {seed}") from error
    summary = dict(ends.most_common())
    print(f"{count} seeds from {first} on: {wrong} wrong; the programs ended so: {summary}")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.behaviour.fuzz")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", choices=list(CHECKS), default="verbs")
    given = parser.parse_args()
    sys.exit(main(given.first, given.seeds, given.kind))
