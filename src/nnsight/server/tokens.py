"""Links to results that work without a key, for a while: signed with the server's secret."""

from __future__ import annotations

import hashlib
import hmac
import time

LIFE = 3600
"""Seconds for which a link works."""


class Tokens:
    """Signs and checks."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, job: str) -> str:
        until = int(time.time()) + LIFE
        return f"{until}.{self._sign(job, until)}"

    def holds(self, job: str, token: str) -> bool:
        """Whether the token is of this job and still valid."""
        until, _, sign = token.partition(".")
        if not (until.isascii() and until.isdigit() and len(until) < 16):
            return False
        good = self._sign(job, int(until))
        return hmac.compare_digest(good.encode(), sign.encode()) and int(until) > time.time()

    def _sign(self, job: str, until: int) -> str:
        return hmac.new(self._secret, f"{job}:{until}".encode(), hashlib.sha256).hexdigest()
