from __future__ import annotations

import pytest

from nnsight.interleave import turns
from tests.interleave.small import given_up


@pytest.fixture(autouse=True)
def threads_of_others() -> None:
    """A block that never ends has its thread given up; that is no leak of a later test."""
    given_up.clear()
    given_up.update(thread for thread in turns._all if thread.abandoned)
