"""What there is around a server, in one place: the names that code for earlier releases imports.

The same functions are on the root: `nnsight.status()`, `nnsight.compare()`, ...
"""

from __future__ import annotations

from nnsight.__main__ import main
from nnsight.remote.comparison import EnvComparison
from nnsight.remote.deployments import NdifStatus
from nnsight.remote.environment import get_local_env, get_remote_env, register
from nnsight.remote.service import compare, is_model_running, login, ndif_status, status, whoami

__all__ = [
    "EnvComparison",
    "NdifStatus",
    "compare",
    "get_local_env",
    "get_remote_env",
    "is_model_running",
    "login",
    "main",
    "ndif_status",
    "pull_env",
    "register",
    "status",
    "whoami",
]


def pull_env() -> None:
    """Does nothing: modules of the user's own folder travel without it (for older code)."""
