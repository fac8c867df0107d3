"""What can go wrong around a server: each error is a sentence that says what to do about it."""

from __future__ import annotations


class ServiceError(ConnectionError):
    """A server gave no answer, or none that can be used."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        """The HTTP status of the answer; None if there was none."""


class NotReached(ServiceError):
    """There was no answer at all."""


_WHERE = "`CONFIG.API.HOST` and the environment's `NDIF_HOST` say which server is meant."
_GET_A_KEY = "`nnsight.login()` asks for a key and keeps it; `NDIF_API_KEY` holds one, too."


def no_address(host: str) -> ServiceError:
    return NotReached(
        f"{host!r} is no address of a server: it should be one such as 'http://localhost:8001'. "
        f"{_WHERE}"
    )


def not_reached(host: str, reason: str) -> ServiceError:
    return NotReached(f"The server at {host} cannot be reached: {reason}. {_WHERE}")


def refused(host: str, path: str, status: int, detail: str) -> ServiceError:
    way_out = f" {_GET_A_KEY}" if status in (401, 403) else ""
    return ServiceError(f"{host}{path} answers {status}: {detail}{way_out}", status)


def moved(host: str, target: str) -> ServiceError:
    return ServiceError(
        f"The server at {host} sends on to {target!r}, and the key is not sent to an address that "
        "you have not named. If that is the server you mean, set `CONFIG.API.HOST` to it."
    )


def not_understood(host: str, path: str) -> ServiceError:
    return ServiceError(f"{host}{path} does not answer as a server of nnsight does. {_WHERE}")


def no_such_key() -> ServiceError:
    return ServiceError(
        "The key has characters that no key has, such as line breaks or quotes. Copy it anew: "
        "`CONFIG.set_default_api_key(key)`."
    )


def no_key_given() -> str:
    return "No key was given, so none is kept. `nnsight.login(key)` takes one without asking."


def not_kept(reason: Exception) -> str:
    return (
        f"The key is good, and is in force in this process, but cannot be kept: {reason} Set "
        "`NDIF_API_KEY` instead."
    )


def key_unchecked(reason: ServiceError) -> str:
    return (
        f"{reason} So the key cannot be checked and is not kept; "
        "`CONFIG.set_default_api_key(key)` keeps it unchecked."
    )


def key_refused(reason: ServiceError) -> str:
    return f"The key is not kept, as the server does not take it. {reason}"


def old_name(old: str, new: str) -> str:
    return f"`nnsight.{old}` is an older name of `nnsight.{new}`."


# --- modules that travel by source --------------------------------------------------------------


def not_a_module(given: object) -> TypeError:
    return TypeError(
        f"register() takes a module or its name, not a {type(given).__name__}: "
        "`nnsight.register(my_package)`. A function or class travels with its module."
    )


def no_such_module(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"There is no module {name!r} here to register.", name=name)


def of_python(name: str) -> ValueError:
    return ValueError(f"`{name}` comes with Python, so it is on the server: do not register it.")


def no_source(name: str) -> ValueError:
    return ValueError(
        f"`{name}` has no Python source that could be sent: a server needs it installed. Compute "
        "what you need of it here, and let the block use the result."
    )


# --- keys of models -----------------------------------------------------------------------------


def not_a_model_key(text: str) -> ValueError:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return ValueError(
        f"{shown!r} is no key of a model. `model.to_model_key()` makes one: "
        'nnsight.modeling.transformers.TransformersModel:{"repo_id": "...", "revision": null}'
    )
