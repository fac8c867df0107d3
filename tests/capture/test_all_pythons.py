"""The table on every Python that the library supports and this machine has.

In a process of each, without torch and without any other package: both ways of skipping a body
(opcode tracing up to 3.11, `sys.monitoring` from 3.12 on) behind one table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jobs
import pytest
import pythons
import verdict

pytestmark = pytest.mark.timeout(180)  # the processes may have to wait for one another

OTHERS = [version for version in pythons.SUPPORTED if version != pythons.RUNNING]


def _jobs() -> Iterator[Any]:
    for version in OTHERS:
        name = jobs.name_of(version)
        absent = pytest.mark.skipif(version not in pythons.found(), reason=f"no Python {name} here")
        for place in (*jobs.BARE, "command"):
            kind = "command" if place == "command" else "bare"
            yield pytest.param(f"{kind} {name}", place, marks=absent, id=f"{name}-{place}")


@pytest.mark.parametrize(("job", "place"), list(_jobs()))
def test_the_table(reports: Any, job: str, place: str):
    wrong = verdict.wrong_in(place, reports[job])
    assert not wrong, "\n".join([f"{len(wrong)} constructs", *wrong])
