"""A traceback that shows the user's frames only."""

from __future__ import annotations

import functools
import os
import warnings
from types import FrameType, TracebackType

from nnsight.capture.frames import frame_at
from nnsight.capture.skip import SkipBody
from nnsight.config import CONFIG

_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_LIKE_A_USERS = os.path.join(_OURS, "toolbox", "")  # written against the façade, shown like it
_hidden: list[str] = [_OURS]


def hide(folder: str) -> None:
    """Leave frames from `folder` out of tracebacks (a framework that calls between our frames)."""
    _hidden.append(os.path.join(os.path.abspath(folder), ""))
    is_hidden.cache_clear()


@functools.lru_cache(maxsize=1024)
def is_hidden(filename: str) -> bool:
    return filename.startswith(tuple(_hidden)) and not filename.startswith(_LIKE_A_USERS)


def clean(error: BaseException) -> BaseException:
    """`error` without the frames of this library and of torch, in it and in what led to it.

    All frames stay when `CONFIG.APP.DEBUG` is set.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending and not CONFIG.APP.DEBUG:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.with_traceback(_without_hidden(current.__traceback__))
        if isinstance(current.__context__, SkipBody):  # how the body was passed over: no cause
            set_context(current, current.__context__.__context__)
        pending += [current.__cause__, current.__context__, *getattr(current, "exceptions", ())]
    return error


def set_context(error: BaseException, context: BaseException | None) -> None:
    """Set `__context__`, of an error too that refuses to be changed."""
    BaseException.__setattr__(error, "__context__", context)


def _without_hidden(traceback: TracebackType | None) -> TracebackType | None:
    kept: list[TracebackType] = []
    while traceback is not None:
        if not is_hidden(traceback.tb_frame.f_code.co_filename):
            kept.append(traceback)
        traceback = traceback.tb_next
    rebuilt: TracebackType | None = None
    for entry in reversed(kept):
        rebuilt = TracebackType(rebuilt, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return rebuilt


def users_place() -> tuple[str, int]:
    """The file and line of the user's code that led here; no file and line 0 if there is none."""
    frame: FrameType | None = frame_at(1)
    while frame is not None and is_hidden(frame.f_code.co_filename):
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def note(error: BaseException, text: str) -> None:
    """Add a line that is printed under the error (kept in `__notes__` on 3.10 too)."""
    notes: list[str] = list(getattr(error, "__notes__", ()))
    if text not in notes:
        BaseException.__setattr__(error, "__notes__", [*notes, text])


_BETWEEN = {__package__, "copy", "copyreg", "pickle"}  # ours at the user's line; and who calls us


def _is_ours(frame: FrameType) -> bool:
    between = frame.f_globals.get("__name__") in _BETWEEN
    return between or is_hidden(frame.f_code.co_filename)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's own code that led here."""
    level, frame = 1, frame_at(0)
    while frame.f_back is not None and _is_ours(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
