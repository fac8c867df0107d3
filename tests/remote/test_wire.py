"""Messages: what is packed comes out, and no more than a message may unfold to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnsight.remote import wire
from nnsight.remote.errors import PayloadError

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
BUFFERS = st.lists(
    st.binary(max_size=200)
    | st.integers(0, 5000).map(bytes)
    | st.integers(1, 300).map(lambda n: bytes(range(256)) * n),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, BUFFERS, st.booleans(), st.booleans())
def test_what_is_packed_comes_out(
    document: Any, buffers: list[bytes], compress: bool, writable: bool
):
    content = wire.join(wire.pack(document, buffers, compress))
    found = wire.unpack(content if writable else bytes(content))
    assert found.document == document
    assert [bytes(buffer) for buffer in found.buffers] == buffers


def test_what_is_not_compressed_is_used_where_it_lies():
    numbers = bytes(range(256)) * 8
    content = wire.join(wire.pack(None, [numbers, numbers], compress=False))
    first, second = wire.unpack(content).buffers
    first[0] = 99
    assert b"\x63\x01\x02" in content
    assert second[0] == 0
    start = len(content) - len(numbers)
    assert content[start : start + 3] == b"\0\1\2" and start % 64 == 0


def test_what_shrinks_is_shrunk_and_what_does_not_is_left():
    zeros, noise = bytes(100_000), bytes(range(256)) * 3
    small = wire.join(wire.pack(None, [zeros]))
    assert len(small) < 2000
    assert len(wire.join(wire.pack(None, [zeros], compress=False))) > 100_000
    assert noise in wire.join(wire.pack(None, [noise], compress=False))


def test_a_message_unfolds_to_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch):
    content = wire.join(wire.pack(None, [bytes(100_000)]))
    assert len(wire.unpack(content, 200_000).buffers[0]) == 100_000
    with pytest.raises(PayloadError, match="it unfolds to more than 0 MiB"):
        wire.unpack(content, 50_000)
    assert len(wire.unpack(content).buffers[0]) == 100_000
    monkeypatch.setattr(wire, "_UNFOLDS", 1000)  # and it is small for what it unfolds to
    with pytest.raises(PayloadError, match="unfolds to more"):
        wire.unpack(content)
    plain = wire.join(wire.pack(None, [bytes(100_000)], compress=False))
    assert len(wire.unpack(plain).buffers[0]) == 100_000  # a larger one may unfold to more


@pytest.mark.parametrize("at", [0, 3, 5, 8, 20, 63, 64, 70, -1])
def test_a_message_that_is_cut_off_is_told_so(at: int):
    content = wire.join(wire.pack({"a": [1] * 40}, [b"x" * 90]))
    with pytest.raises(PayloadError, match="This message cannot be read"):
        wire.unpack(content[: at if at >= 0 else len(content) - 100])
