"""One question to a server: `GET` an address, get JSON. Whatever goes wrong is one sentence."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

from nnsight.config import CONFIG
from nnsight.remote import service_errors as errors
from nnsight.remote.deadline import Deadline
from nnsight.remote.progress import one_line

SECONDS = 10.0  # to wait for an answer, and all of it


def ask(
    path: str,
    *,
    host: str | None = None,
    api_key: str | None = None,
    deadline: Deadline | None = None,
) -> Any:
    """What a server answers to `GET path`, as Python values.

    Args:
        host: its address; `CONFIG.API.HOST` if left out.
        api_key: the key to send; `CONFIG.API.APIKEY` if left out.
        deadline: when to stop waiting, if that is sooner than usual.

    Raises:
        ServiceError: there is no such answer; its text says why, in words for the user.
    """
    from nnsight.remote import line  # not at import: `requests` takes a tenth of a second

    host = (CONFIG.API.HOST if host is None else host).rstrip("/")
    if not is_address(host):
        raise errors.no_address(host)
    headers = {"Accept": "application/json", **key_header(api_key)}
    left, told = (SECONDS, SECONDS) if deadline is None else (deadline.left, None)
    end = Deadline.after(min(SECONDS, left))
    try:
        answer = line.exchange(
            *(host, "GET", host + path, lambda: end.left),
            connect=SECONDS,
            silence=SECONDS,
            headers=headers,
        )
        if answer.is_redirect:
            answer.close()
            raise errors.moved(host, answer.headers.get("Location", ""))
        found = _decoded(line.whole(answer))
    except line.TooMuch:
        raise errors.not_understood(host, path) from None
    except errors.ServiceError:
        raise
    except (*line.BROKEN, UnicodeError) as error:
        raise errors.not_reached(host, reason(error, told)) from None
    if answer.status_code != 200:
        detail = found.get("detail") if isinstance(found, dict) else None
        detail = one_line(detail if isinstance(detail, str) else answer.reason or "")
        raise errors.refused(
            host, path, answer.status_code, (detail or "no reason is given").rstrip(".") + "."
        )
    if found is _NOTHING:
        raise errors.not_understood(host, path)
    return found


def is_address(host: str) -> bool:
    """Whether this is an address that a server can have."""
    try:
        parts = urlsplit(host)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        return False


_NOTHING = object()


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return _NOTHING


def key_header(api_key: str | None) -> dict[str, str]:
    """The header with this key, or with the one of `CONFIG` if it is None; none without a key.

    Raises:
        ServiceError: it cannot be a key. (`requests` would show it in its own error.)
    """
    key = CONFIG.API.APIKEY if api_key is None else api_key
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise errors.no_such_key()
    return {"ndif-api-key": str(key)}


def reason(error: BaseException, seconds: float | None = None) -> str:
    """Why a connection failed, in a few words.

    Args:
        seconds: how long was waited for an answer, to be told where there was none.
    """
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy of the environment does not lead there"
    late = (requests.exceptions.Timeout, TimeoutError)
    if any(isinstance(inner, late) for inner in _chain(error)):
        return f"no answer within {seconds:g} seconds" if seconds else "no answer in time"
    for inner in _chain(error):
        if isinstance(inner, socket.gaierror):
            return "no machine of that name is known here"
        if isinstance(inner, ConnectionRefusedError):
            return "nothing listens there"
        if isinstance(inner, ConnectionResetError) or type(inner).__name__ == "RemoteDisconnected":
            return "it hung up before it answered"
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror.lower()
    return type(error).__name__


def _chain(error: BaseException) -> list[BaseException]:
    """An error and all that it wraps: as a cause, as context, or, in urllib3, as a value of it."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, BaseException) and inner not in found:
            found.append(inner)
            inside = (inner.__cause__, inner.__context__, getattr(inner, "reason", None))
            waiting += [*inside, *inner.args]
    return found
