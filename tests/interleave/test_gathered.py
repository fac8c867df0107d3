"""Rows of one block that lie apart: handed out, changed, put back."""

from __future__ import annotations

import gc
import weakref

import torch

from nnsight.interleave.gathered import Gathered
from nnsight.interleave.rows import Rows

APART = (Rows(1, 2), Rows(4, 2))


def test_one_row_of_each_half_is_a_view():
    full = torch.arange(12.0).view(6, 2)
    own = Gathered().take(full, (Rows(1, 1), Rows(4, 1)))
    own[:] = 0
    assert full[[1, 4]].abs().sum() == 0 and full[[0, 2, 3, 5]].all(dim=1).sum() == 3


def test_more_are_a_copy_that_is_put_back():
    full, gathered = torch.arange(12.0).view(6, 2), Gathered()
    own = gathered.take(full, APART)
    assert torch.equal(own, full[[1, 2, 4, 5]])
    assert gathered.is_of(own, full, APART) and not gathered.is_of(own.clone(), full, APART)
    before = full._version
    gathered.settle()
    assert full._version == before  # nothing was changed, so nothing is written
    own[:2] = 9
    own[2:] = 7
    gathered.settle()
    assert full[1:3].eq(9).all() and full[4:].eq(7).all()
    assert full[[0, 3]].tolist() == [[0, 1], [6, 7]]


def test_in_inference_mode_too():
    with torch.inference_mode():
        full, gathered = torch.zeros(6, 2), Gathered()
        own = gathered.take(full, APART)
        own += 1
        gathered.settle()
        assert full.sum(dim=1).tolist() == [0, 2, 2, 0, 2, 2]


def test_it_keeps_nothing_alive():
    full, gathered = torch.zeros(6, 2), Gathered()
    own = gathered.take(full, APART)
    known = weakref.ref(own), weakref.ref(full)
    gc.disable()
    try:
        del own, full
        assert known[0]() is None and known[1]() is None
    finally:
        gc.enable()
    gathered.settle()
