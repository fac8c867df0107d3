"""Which format a server speaks: what it says under `/env` decides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nnsight.remote import environment, errors, wire
from nnsight.remote.deadline import PATIENCE, Deadline
from nnsight.remote.service_errors import NotReached, ServiceError

_LATER = (429, 502, 503, 504)
_REFUSED = (401, 403)
_OLDER = ("0.4.", "0.5.", "0.6.", "0.7.")


def speaks_ndif(host: str, deadline: Deadline, notice: Callable[[str], None]) -> bool:
    """Whether a server speaks NDIF 0.8, and not our own format.

    Args:
        host: its address.
        deadline: when to stop waiting for one that is busy.
        notice: told what is waited for.

    Raises:
        RemoteError: it speaks an older one, or is no server of nnsight.
    """
    about = _about(host, deadline, notice)
    if about is None or wire.PROTOCOL in (about.get("protocols") or ()):
        return False
    release = str(about["packages"].get("nnsight", ""))
    if release.startswith(_OLDER):
        raise errors.older_server(host, release)
    return True


def _about(host: str, deadline: Deadline, notice: Callable[[str], None]) -> dict[str, Any] | None:
    """What it says of itself; None where the connection says better what is wrong."""
    failing, pause, why = Deadline.after(PATIENCE), 0.1, ""
    while True:
        try:
            return environment.remote_env(host, deadline=deadline)
        except NotReached as error:
            if deadline.left <= 0:
                raise errors.timed_out(host, "", why or str(error)) from None
            return None
        except ServiceError as error:
            why, status = str(error), error.status
        if status in _REFUSED:
            return None
        if status not in _LATER:
            raise errors.no_server_of_nnsight(why)
        if failing.left <= 0:
            raise errors.RemoteError(why)
        if deadline.left <= 0:
            raise errors.timed_out(host, "", why)
        notice("the server is busy, or starting; it is asked again")
        time.sleep(min(pause, deadline.left))
        pause = min(pause * 2, 4.0)
