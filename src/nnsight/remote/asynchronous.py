"""Waiting on a thread, so that an event loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody waits for this any more."""


async def in_thread(wait: Callable[[], T], left: Callable[[], None] = lambda: None) -> T:
    """What `wait()` gives, on a thread of its own that keeps no process alive.

    Args:
        wait: what to call.
        left: called when nobody waits for it any more: the task was cancelled.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def told(set_it: Callable[[Any], None], value: Any) -> None:
        if not found.done():
            set_it(value)

    def run() -> None:
        try:
            value = wait()
        except BaseException as error:
            _tell(loop, told, found.set_exception, error)
        else:
            _tell(loop, told, found.set_result, value)

    threading.Thread(target=run, name="nnsight-waiting", daemon=True).start()
    try:
        return await found
    except asyncio.CancelledError:
        left()
        raise


def _tell(loop: asyncio.AbstractEventLoop, *call: Any) -> None:
    try:
        loop.call_soon_threadsafe(*call)
    except RuntimeError:  # the loop has been closed
        pass


async def from_thread(give: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """What an iterator gives that waits, each as soon as it is there."""
    end = object()
    items = give()
    while (item := await in_thread(lambda: next(items, end))) is not end:
        yield item  # type: ignore[misc]
