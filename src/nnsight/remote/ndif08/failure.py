"""What NDIF says of an error: a traceback, through the code of the server and that of the user."""

from __future__ import annotations

import builtins
import re

from nnsight.remote.messages import Failure, Line

_HEAD = "Traceback (most recent call last):\n"
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"
_FRAME = re.compile(r'  File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)')
_TYPE = re.compile(r"(?P<type>[\w.<>]+)(?:: (?P<message>.*))?", re.DOTALL)
_OWN_NAME = re.compile(r"\[[^\]]*:\d+\] ")
"""What that server puts before the file of a function that came with the block."""
_OF_SERVER = re.compile(r"(site|dist)-packages[/\\]|[/\\]lib[/\\]python3\.\d+[/\\]|^<frozen ")


def failure_of(text: str) -> Failure:
    """An error as data: its type, its text, and the user's lines that it came through.

    Args:
        text: of the state that ended the job: a traceback, or a sentence.
    """
    before, head, traceback = text.rpartition(_HEAD)
    told = before.strip() and not before.rstrip().endswith((_CAUSE, _CONTEXT))
    if not head or told:  # it is a sentence, whatever follows
        return Failure("RemoteError", text or "the job failed", "nnsight.remote.errors")
    frames, rest = _frames(traceback)
    found = _TYPE.fullmatch(rest.strip("\n"))
    if found is None:
        return Failure("RemoteError", text, "nnsight.remote.errors", frames)
    address, message = found["type"], found["message"] or ""
    module, _, name = address.rpartition(".")
    if not module:
        module = "builtins"
    elif module.startswith("nnsight."):
        module = "nnsight"  # ours are in other places
    if module not in ("builtins", "nnsight") or (module == "builtins" and name not in _BUILTINS):
        message = f"{name}: {message}"  # it cannot be raised as what it was
    # without a line of the user's, those of the server are all there is to go by
    notes = [] if frames else [f"On the server:\n{text.rstrip()}"]
    cause = failure_of(before.partition(_CAUSE)[0]) if before.rstrip().endswith(_CAUSE) else None
    return Failure(name, message, module, frames, notes, cause=cause)


_BUILTINS = frozenset(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, Exception)
)


def _frames(traceback: str) -> tuple[list[Line], str]:
    """The user's lines of a traceback, and what follows all lines."""
    frames: list[Line] = []
    lines = traceback.split("\n")
    at = 0
    while at < len(lines) and lines[at].startswith("  "):
        found = _FRAME.fullmatch(lines[at])
        at += 1
        if found is None:
            continue
        text = lines[at].strip() if at < len(lines) and lines[at].startswith("    ") else ""
        file = _OWN_NAME.sub("", found["file"], count=1)
        if not _OF_SERVER.search(file):
            frames.append(Line(file, int(found["line"]), found["function"], text))
    return frames, "\n".join(lines[at:])
