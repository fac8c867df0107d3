"""Every refusal of a server and every end that it gives a job: one sentence each, in this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from nnsight.remote.messages import Failure
from nnsight.remote.model_key import ModelKey
from nnsight.server.limits import MIB, Limits


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class FolderInUse(Exception):
    """Another server works in this folder."""


class CannotServe(Exception):
    """The server does not start, or a model cannot be loaded."""


class End(msgspec.Struct, frozen=True):
    """Why a job ended without its block being at fault."""

    type: str
    text: str

    @property
    def failure(self) -> Failure:
        """The error as a client reads it: no line of the block is in it."""
        return Failure(self.type, self.text, "nnsight.server", phase="server")


# --- starting --------------------------------------------------------------------------------


def folder_in_use(path: Path) -> FolderInUse:
    return FolderInUse(
        f"another server works in {path}; give this one a folder of its own with --data"
    )


def open_to_all(host: str) -> CannotServe:
    return CannotServe(
        f"a server on {host} can be reached from other machines, and has no keys: whoever reaches "
        "it could run code here; make a key with `python -m nnsight serve keys add NAME`, or leave "
        "out --host"
    )


def port_taken(host: str, port: int, reason: str) -> CannotServe:
    return CannotServe(f"cannot listen on {host}:{port}: {reason}; choose another --port")


def twice(name: str) -> CannotServe:
    return CannotServe(f"{name} is given twice; a server has each model once")


def no_such_folder(name: str) -> CannotServe:
    return CannotServe(f"{name} is no folder here, and no hub id; a model is one or the other")


def needs_extra(missing: str | None) -> CannotServe:
    return CannotServe(
        f"a server needs the package {missing}; install it with `pip install 'nnsight[server]'`"
    )


# --- who asks --------------------------------------------------------------------------------


def no_key() -> Refused:
    return Refused(401, "This server needs a key: send it in the header ndif-api-key.")


def unknown_key() -> Refused:
    return Refused(403, "This server does not know this key; ask whoever runs it for one.")


def foreign_page(origin: str) -> Refused:
    return Refused(403, f"This server does not answer pages of other sites ({origin}).")


def foreign_host(host: str) -> Refused:
    return Refused(
        403, f"Without keys this server answers only to localhost; it was asked as {host!r}."
    )


# --- what is asked ---------------------------------------------------------------------------


def no_such_path(path: str) -> Refused:
    return Refused(404, f"This server has no {path}; GET /docs lists what it has.")


def no_such_job(job: str) -> Refused:
    return Refused(
        404, f"This server has no job {job} of this key; ended jobs are kept for a while only."
    )


def no_result(job: str, status: str) -> Refused:
    return Refused(404, f"Job {job} has no result: it is {status}.")


def result_gone(job: str) -> Refused:
    return Refused(404, f"The result of job {job} is no longer kept.")


def bad_token() -> Refused:
    return Refused(403, "This link to a result is not valid, or no longer; ask for a new one.")


def no_model_key() -> Refused:
    return Refused(422, "The request does not say which model it is for (nnsight-model-key).")


def bad_model_key(reason: str) -> Refused:
    return Refused(422, _sentence(reason))


def no_such_model(asked: str, served: Sequence[str]) -> Refused:
    shown = asked if len(asked) <= 200 else f"{asked[:197]}..."
    return Refused(404, f"This server has no model {shown}; it has {', '.join(served)}.")


def other_form(asked: ModelKey, here: ModelKey) -> Refused:
    return Refused(
        404, f"This server has {here.repo_id} {_form(here)}, and was asked for it {_form(asked)}."
    )


def _form(key: ModelKey) -> str:
    revision = key.revision or "main"
    return f"in revision {revision}" + (f" for {key.task}" if key.task else "")


def bad_envelope(reason: str) -> Refused:
    return Refused(422, f"The form of the request cannot be read: {reason}.")


def unknown_format(content_type: str) -> Refused:
    return Refused(
        415,
        f"This server reads requests of nnsight/1 and of NDIF 0.8, and {content_type or 'this'!r} "
        "is neither; the client may be older than nnsight 0.8.",
    )


def bad_cursor(text: str) -> Refused:
    return Refused(422, f"`after` is the number of an event, not {text[:50]!r}.")


def bad_token_name(token: str) -> Refused:
    return Refused(422, f"An Idempotency-Key is at most 200 characters; this one has {len(token)}.")


def empty_body() -> Refused:
    return Refused(422, "The request is empty.")


# --- limits ----------------------------------------------------------------------------------


def too_slow_a_sender(seconds: float) -> Refused:
    return Refused(408, f"Nothing more of the request came for {seconds:g} seconds.")


def body_too_large(limit: int) -> Refused:
    return Refused(
        413,
        f"The request is larger than the {size(limit)} that this server takes; "
        "send less with the block, or compute it there.",
    )


def too_many_jobs(limit: int) -> Refused:
    return Refused(
        429, f"{limit} jobs of this key wait or run already, which is the limit; try again.", 5
    )


def queue_full(model: str, limit: int) -> Refused:
    return Refused(503, f"{limit} jobs wait for {model} already, which is the limit.", 10)


def not_loading(model: str, reason: str) -> Refused:
    return Refused(503, f"{model} cannot be loaded at the moment: {reason}", 30)


def closing() -> Refused:
    return Refused(503, "The server is shutting down.", 5)


def disk_full() -> Refused:
    return Refused(507, "The disk of the server is full; whoever runs it must make room.", 60)


# --- ends of jobs ----------------------------------------------------------------------------


def interrupted_by_restart() -> End:
    return End(
        "Interrupted",
        "interrupted: the server stopped while this job was running; it has not been run again, "
        "because what it had done is not known. Send it again.",
    )


def worker_died(how: str) -> End:
    return End(
        "Interrupted",
        f"interrupted: the process of the model {how} while this job was running. Send it again; "
        "if it happens again, the block itself ends the process or needs too much memory.",
    )


def worker_silent(seconds: float) -> End:
    return End(
        "Interrupted",
        f"interrupted: the process of the model gave no sign of life for {seconds:g} seconds while "
        "this job was running, and was ended. Send it again.",
    )


def too_slow(seconds: float) -> End:
    return End(
        "TimeLimit",
        f"the job ran for {seconds:g} seconds, which is the limit of this server, and was ended.",
    )


def cancelled() -> End:
    return End("Cancelled", "the job was cancelled.")


def result_too_large(bytes: int, limit: int) -> End:
    return End(
        "ResultTooLarge",
        f"what the block saved is {size(bytes)}, and this server gives back at most "
        f"{size(limit)}; save less, e.g. the rows that are needed, or in a smaller dtype.",
    )


def result_not_written(reason: str) -> End:
    return End("ResultLost", f"the job ran, but its result could not be written: {reason}.")


def cannot_load(model: str, reason: str) -> End:
    return End("NotLoaded", f"{model} could not be loaded on the server: {reason}")


def not_served(model: str) -> End:
    return End("NotServed", f"the server was started again without {model}.")


def request_lost() -> End:
    return End(
        "Interrupted", "interrupted: the request of this job is not whole on the server's disk."
    )


def fault() -> End:
    return End("ServerFault", "the server is at fault; its log says more. Send the job again.")


def no_sandbox() -> End:
    return End(
        "Untrusted",
        "this key is not trusted, and this model has no sandbox; ask for a trusted key.",
    )


def prints_full(limits: Limits) -> str:
    return (
        f"[the block printed more than {limits.prints} lines or {size(limits.print_bytes)}; "
        "the rest is left out]"
    )


def left_otherwise(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"[after the block this is not as it was: {shown}; the model is loaded again]"


def size(bytes: int) -> str:
    """Bytes for people."""
    return f"{bytes / MIB:.4g} MiB" if bytes >= MIB // 10 else f"{bytes} bytes"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
