"""A result of NDIF, by the link that its last state gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urljoin

import requests

from nnsight.remote import errors
from nnsight.remote.answers import begin_of, retry_after
from nnsight.remote.ask import is_address, reason
from nnsight.remote.deadline import PATIENCE, Deadline
from nnsight.remote.line import BROKEN, Left
from nnsight.remote.progress import one_line

_LATER = (429, 500, 502, 503, 504)
_STEPS = 4  # links that a link may lead on to

Open = Callable[[str, dict[str, str]], requests.Response]
Progress = Callable[[int], None]


def fetched(
    link: str,
    opened: Open,
    left: Left,
    host: str,
    job: str,
    progress: Progress | None,
) -> bytearray:
    """The bytes that a link leads to.

    Args:
        link: where to.
        opened: sends a request there, with these headers.
        left: the seconds that are left; raises when there are none.
        host: the server, for errors.
        job: whose result it is, for errors.
        progress: told how many more bytes are there.

    Raises:
        RemoteError: they are there no longer, or the line is lost.
    """
    found = bytearray()
    failing, attempt, furthest = Deadline.after(PATIENCE), 0, 0
    while True:
        why, answer = "the download was cut off", None
        try:
            answer = _followed(link, opened, len(found), host)
            if answer.status_code in _LATER:
                why = f"its link answers {answer.status_code}"
            elif answer.status_code >= 300:
                why = one_line(answer.reason or "without a reason")
                raise errors.link_refused(answer.status_code, why, job)
            elif _read_on(answer, found, left, host, progress):
                return found
        except errors.RemoteError:
            raise  # the deadline, which is an OSError too
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
            raise errors.not_understood(host) from None
        except BROKEN as error:
            why = reason(error)
        finally:
            if answer is not None:
                answer.close()
        if len(found) > furthest:
            failing, attempt, furthest = Deadline.after(PATIENCE), 0, len(found)
        if failing.left <= 0:
            raise errors.lost(host, why, job)
        attempt += 1
        time.sleep(min(left(), pause(attempt, answer)))


def _followed(url: str, opened: Open, at: int, host: str) -> requests.Response:
    """What a link leads to, from a byte on."""
    for _ in range(_STEPS):
        answer = opened(url, {"Range": f"bytes={at}-"} if at else {})
        if not answer.is_redirect:
            return answer
        answer.close()
        with suppress(ValueError):
            url = urljoin(url, answer.headers["Location"])
        if not is_address(url):
            break
    raise errors.not_understood(host)


def _read_on(
    answer: requests.Response,
    found: bytearray,
    left: Left,
    host: str,
    progress: Progress | None,
) -> bool:
    """Put an answer to what is there; whether that is all now."""
    begin = begin_of(answer)
    if begin is None or begin not in (0, len(found)):  # what follows is of another place
        raise errors.not_understood(host)
    del found[begin:]
    for chunk in answer.iter_content(1 << 20):
        left()
        found += chunk
        if progress is not None:
            progress(len(chunk))
    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    size = size or answer.headers.get("Content-Length", "")
    return not size.isdigit() or len(found) >= int(size)


def pause(attempt: int, answer: requests.Response | None) -> float:
    """The seconds before something is asked for again."""
    asked = 0.0 if answer is None else retry_after(answer)
    return max(min(0.2 * attempt, 2.0), asked)
