"""What the head of an answer says, and what a refusal does; and how a job is ended."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import requests

from nnsight.remote import errors, line, service_errors
from nnsight.remote.ask import is_address, key_header
from nnsight.remote.deadline import Deadline
from nnsight.remote.line import BROKEN, TooMuch
from nnsight.remote.progress import one_line

CONNECT = 10.0
"""Seconds for a connection."""
BUSY = (429, 503)
"""A request was not taken, and may be sent again."""
_LONGEST = 1 << 20  # bytes of what a server says when it does not take a request


def see_that_it_can_be_asked(host: str, api_key: str | None) -> None:
    """What no server could answer to is refused at once, not tried again and again.

    Raises:
        RemoteError: the address can be of no server, or the key cannot be one.
    """
    if not is_address(host):
        raise errors.RemoteError(str(service_errors.no_address(host)))
    try:
        key_header(api_key)
    except service_errors.ServiceError as error:
        raise errors.RemoteError(str(error)) from None


def begin_of(answer: requests.Response) -> int | None:
    """At which byte of a file an answer begins; None if it does not tell."""
    if answer.status_code != 206:
        return 0
    found = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def retry_after(answer: requests.Response) -> float:
    """The seconds that a server asks to wait, of a minute at most: so many, or until a date."""
    asked = answer.headers.get("Retry-After", "")
    try:
        if asked[:1].isalpha():
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        else:
            seconds = float(asked)
    except (ValueError, OverflowError):
        return 0.0
    return min(seconds, 60.0) if seconds > 0 else 0.0  # it may be no number, or any


def detail_of(answer: requests.Response) -> str:
    """What a server says of a request that it does not take, in one line."""
    try:
        found = json.loads(line.whole(answer, _LONGEST))
        detail = found.get("detail") if isinstance(found, dict) else None
    except (TooMuch, ValueError, RecursionError, *BROKEN):
        detail = None
    if isinstance(detail, list):  # NDIF's, of a form that it does not understand
        detail = "; ".join(str(one.get("msg", one)) for one in detail if isinstance(one, dict))
    return (
        one_line(detail if isinstance(detail, str) else answer.reason or "") or "no reason is given"
    )


def cancelled(host: str, job: str, headers: Mapping[str, str]) -> bool:
    """End a job, wherever it is; False if that cannot be done."""
    end = Deadline.after(5.0)
    try:
        answer = line.exchange(
            *(host, "DELETE", f"{host}/job/{job}", lambda: end.left),
            connect=CONNECT,
            silence=CONNECT,
            headers=headers,
        )
        answer.close()
    except BROKEN:
        return False
    return answer.status_code < 300
