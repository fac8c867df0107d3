"""The formats that a request may be written in, by the names that the server has for them."""

from __future__ import annotations

from nnsight.remote.ndif08.format import FORMAT, Ndif08
from nnsight.remote.perform import Format, Ours


def format_of(name: str, compress: bool = True) -> Format:
    """How a request of this name is read, and its result written.

    Args:
        name: `nnsight/1`, `ndif/8` or `ndif/8+zstd`.
        compress: whether a result of our own format is shrunk.
    """
    if name.startswith(FORMAT):
        return Ndif08(name.endswith("+zstd"))
    return Ours(compress)
