"""Old address of `Cache`, which is its own view."""

from nnsight.traces.cache import Cache, Entry

CacheView = Cache

__all__ = ["Cache", "CacheView", "Entry"]
