"""Every construct of the table, in every place where people write code."""

from __future__ import annotations

from typing import Any

import jobs
import pytest
import pythons
import verdict
from constructs import CONSTRUCTS

pytestmark = pytest.mark.timeout(180)  # the processes may have to wait for one another

HERE = jobs.name_of(pythons.RUNNING)


def test_the_table_is_large_and_its_names_are_unique():
    assert len({construct.name for construct in CONSTRUCTS}) == len(CONSTRUCTS) > 400


def _check(report: dict[str, Any], place: str) -> None:
    wrong = verdict.wrong_in(place, report)
    assert not wrong, "\n".join([f"{len(wrong)} constructs", *wrong])


@pytest.mark.parametrize("job", [f"bare {HERE}"])
@pytest.mark.parametrize("place", jobs.BARE)
def test_in_a_plain_interpreter(reports: Any, job: str, place: str):
    _check(reports[job], place)


@pytest.mark.parametrize("job", ["ipython", "pytest", "kernel", "script", "stdin"])
def test_in_a_program(reports: Any, job: str):
    pytest.importorskip({"kernel": "ipykernel", "ipython": "IPython"}.get(job, "pytest"))
    _check(reports[job], job)


@pytest.mark.parametrize("job", [f"command {HERE}"])
def test_on_the_command_line(reports: Any, job: str):
    _check(reports[job], "command")


@pytest.mark.skipif((3, 13) not in pythons.found(), reason="no Python 3.13 on this machine")
@pytest.mark.parametrize("job", ["prompt"])
def test_at_the_prompt(reports: Any, job: str):
    pytest.importorskip("pexpect")
    _check(reports[job], "prompt")


def _with_monitoring() -> str:
    version = max(pythons.found())
    return jobs.name_of(version if version >= (3, 12) else (3, 12))


@pytest.mark.parametrize(
    ("job", "core"),
    [
        pytest.param("coverage ctrace", "CTracer"),
        pytest.param("coverage pytrace", "PyTracer"),
        pytest.param(
            f"coverage sysmon {_with_monitoring()}",
            "SysMonitor",
            marks=pytest.mark.skipif(
                pythons.with_monitoring() is None, reason="no Python 3.12 or newer here"
            ),
        ),
    ],
)
def test_under_coverage(reports: Any, job: str, core: str):
    pytest.importorskip("coverage")
    report = reports[job]
    measured = report["coverage"].pop("coverage")
    assert measured["core"] == core
    _check(report, "coverage")
    for name in OTHER_WAYS:
        assert measured["unseen"].pop(name)
        measured["more"].pop(name)
    assert not any(measured["more"].values()), measured["more"]
    unseen = {line for lines in measured["unseen"].values() for line in lines}
    assert unseen == (set() if core == "SysMonitor" or pythons.RUNNING >= (3, 12) else EXITS)


OTHER_WAYS = ("wrapper_error", "star_import")  # which take another way than plain Python
EXITS = {  # up to 3.11 nothing is traced from the skipped body to the trace's own exit
    "self.log.append('exit')",
    "return super().__exit__(*exception)",
    "done = self.inner.__exit__(*exception)",
}
