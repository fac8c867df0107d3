"""What there is around a server, in one place: the names that code for earlier releases imports.

The same functions are on the root: `nnsight.status()`, `nnsight.compare()`, ...
"""

from __future__ import annotations

from nnsight.remote.environment import get_local_env, get_remote_env, register

__all__ = ["get_local_env", "get_remote_env", "pull_env", "register"]


def pull_env() -> None:
    """Does nothing: modules of the user's own folder travel without (for older code)."""
