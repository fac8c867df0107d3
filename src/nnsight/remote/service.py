"""What a server tells of itself, and who you are to it: `status`, `compare`, `whoami`, `login`.

A server that cannot be reached is no reason to stop: these say so in a sentence, and raise nothing.
"""

from __future__ import annotations

import getpass
import sys
import warnings
from typing import Any

from nnsight import config_file
from nnsight.config import CONFIG, Secret
from nnsight.remote import model_key as keys
from nnsight.remote import service_errors as errors
from nnsight.remote.ask import ask
from nnsight.remote.comparison import EnvComparison
from nnsight.remote.deployments import NdifStatus, is_running
from nnsight.remote.environment import get_local_env, remote_env


def status(raw: bool = False) -> Any:
    """The models that the server has deployed; `CONFIG.API.HOST` says which server.

    Args:
        raw: return the server's answer as it is.

    Returns:
        A mapping of hub ids that prints as a table. If the server cannot be reached it is empty and
        prints the reason; with `raw`, it is an empty dict, and the reason goes to stderr.
    """
    try:
        found = _deployments()
    except errors.ServiceError as error:
        if raw:
            _say(error)
            return {}
        return NdifStatus({}, problem=str(error), answers=error.status is not None)
    return found if raw else NdifStatus(found["deployments"])


def ndif_status(raw: bool = False) -> Any:
    """An older name of `status`."""
    warnings.warn(errors.old_name("ndif_status", "status"), DeprecationWarning, stacklevel=2)
    return status(raw)


def is_model_running(repo_id: str, revision: str | None = "main") -> bool:
    """Whether the server takes requests for a model now; False if it cannot be reached.

    Args:
        repo_id: the hub id, in any spelling that the hub knows.
        revision: `"main"` is the same as None.
    """
    try:
        models = NdifStatus(_deployments()["deployments"]).values()
    except errors.ServiceError:
        return False
    running = [
        keys.ModelKey(model["repo_id"], model["revision"]) for model in models if is_running(model)
    ]
    if any(keys.ModelKey(repo_id, revision).is_same_model(key) for key in running):
        return True
    wanted = keys.ModelKey(keys.canonical(repo_id), revision)
    return any(wanted.is_same_model(key) for key in running)


def compare() -> EnvComparison:
    """The packages here beside those of the server; prints as a table of what differs."""
    try:
        return EnvComparison(get_local_env(), remote_env(force_refresh=True))
    except errors.ServiceError as error:
        return EnvComparison(get_local_env(), {}, problem=str(error))


def whoami(api_key: str | None = None) -> dict[str, Any] | None:
    """Whom the server knows by this key: a dict with `email` and `tags`.

    Args:
        api_key: the key of this process (`CONFIG.API.APIKEY`) if left out.

    Returns:
        None if the server does not take the key or cannot be reached; stderr says why.
    """
    try:
        return _whoami(api_key)
    except errors.ServiceError as error:
        _say(error)
        return None


def login(api_key: str | None = None) -> bool:
    """Try a key, use it from now on, and keep it for later processes (`CONFIG` says where).

    Args:
        api_key: asked for, without showing it, if left out.

    Returns:
        Whether the server takes it. One that it does not take is not kept.
    """
    key = _asked_for() if api_key is None else Secret(api_key.strip())
    if not key:
        _say(errors.no_key_given())
        return False
    try:
        known = _whoami(key)
    except errors.ServiceError as error:
        unknown = error.status is None or error.status >= 500
        _say(errors.key_unchecked(error) if unknown else errors.key_refused(error))
        return False
    who = f" It is of {known['email']}." if known.get("email") else ""
    try:
        CONFIG.set_default_api_key(key)
    except (OSError, ValueError) as error:
        _say(errors.not_kept(error))
        return True
    print(f"The key is good, and kept in {config_file.path()}.{who}")
    return True


def _deployments() -> dict[str, Any]:
    found = ask("/status")
    if not isinstance(found, dict) or not isinstance(found.get("deployments"), dict):
        raise errors.not_understood(CONFIG.API.HOST, "/status")
    return found


def _whoami(api_key: str | None) -> dict[str, Any]:
    found = ask("/whoami", api_key=api_key)
    if not isinstance(found, dict):
        raise errors.not_understood(CONFIG.API.HOST, "/whoami")
    return found


def _asked_for() -> str:
    print(f"A key for {CONFIG.API.HOST} (for NDIF, from https://login.ndif.us).")
    try:
        return Secret(getpass.getpass("Key: ").strip())
    except (EOFError, OSError):  # nobody to ask
        return Secret("")


def _say(what: object) -> None:
    print(what, file=sys.stderr)
