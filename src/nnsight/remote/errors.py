"""What can go wrong on the way to a server and back, and the texts that say so."""

from __future__ import annotations


class RemoteError(Exception):
    """A block did not run on a server, or failed there.

    `job_id` is the id of its job, if there is one; `saved` holds what was saved before the error;
    `type` is the name of the error's class there, or of the end that the server gave the job.
    """

    job_id: str | None = None
    type: str = ""

    def __init__(self, message: str = "", *more: object) -> None:
        self.args = (message, *more)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


RemoteException = RemoteError
"""The older name."""


class RemoteTimeoutError(RemoteError, TimeoutError):
    """A job did not end within the time that was given to wait for it."""


class PayloadError(RemoteError):
    """What came over the wire cannot be read."""


class NotSendableError(RemoteError, TypeError):
    """A block uses something that cannot leave this process; `path` is what leads to it."""

    path: str = ""


def damaged(how: str) -> PayloadError:
    """Bytes that are no message, or not a whole one."""
    return PayloadError(f"This message cannot be read: {how}.")


def not_sendable(what: str, path: str, why: str, way_out: str) -> NotSendableError:
    """A value that cannot leave this process, and what leads to it."""
    which = f"`{path}` is {what}" if path else f"there is {what}"
    error = NotSendableError(f"{which}, which cannot be sent: {why}. {way_out}".strip())
    error.path = path
    return error


def too_large(largest: int) -> PayloadError:
    """More than whoever reads it takes."""
    return PayloadError(f"This message is too large: it unfolds to more than {largest >> 20} MiB.")


def other_model(path: str, traced: str) -> NotSendableError:
    """A block names a model that it does not run beside."""
    error = NotSendableError(
        f"this block uses `{path}`, a part of another model than the one that it runs on "
        f"(`{traced}`): a server runs one model for a request. Run two traces, and hand values "
        "from one to the other."
    )
    error.path = path
    return error


def only_changed_here(name: str, kind: str, filename: str, lineno: int) -> NotSendableError:
    """A container from outside that a block fills, and would fill a copy of."""
    return NotSendableError(
        f"{filename}, line {lineno}: `{name}` is a {kind} from outside of this block. The block "
        f"runs in another process, on a copy of it, so yours would stay as it is. Save it in the "
        f"block, `{name}.save()`, and it comes back; or make it in the block."
    )


def global_written(name: str, filename: str, lineno: int) -> NotSendableError:
    """A variable of a module that a block sets: here, that is, where it does not run."""
    return NotSendableError(
        f"{filename}, line {lineno}: this block sets `{name}` as a variable of its module (`global "
        f"{name}`), and it runs in another process, whose modules are not yours. Save the value "
        f"under a name of the block, and set `{name}` after it."
    )


def without_numbers() -> tuple[str, str]:
    """Why a tensor on the meta device is not sent, and what to do."""
    return "it has no numbers, for it is on the meta device", "Send one that has, or its shape."


def place_in_source() -> tuple[str, str]:
    """Why an operation of a forward is not sent, and what to do."""
    return (
        "it is a place in the text of a `forward`",
        "Write `model. ... .source. ...` in the block.",
    )


def not_a_trace(kind: str) -> NotSendableError:
    """A kind of block that has no meaning in another process."""
    return NotSendableError(
        f"a `{kind}` cannot be sent: `model.trace`, `generate`, `scan` and `session` can. A tracer "
        "of one's own (`tracer_cls=`) works here alone: leave it out of a trace for a server."
    )


class RefusedError(RemoteError):
    """A server does not take a request."""

    status = 0
    """The HTTP status of its answer."""


def _job(job: str, kept: bool = True) -> str:
    """How the result of a job can still be had."""
    if not job:
        return ""
    if not kept:
        return (
            f" The job {job} may go on there, but NDIF keeps no result for who listens as it runs: "
            "run the block again, with `blocking=False` if it is long."
        )
    return (
        f" The job {job} goes on there: its result can be had later, by "
        f"`model.trace(..., remote=True, job_id={job!r})` or `RemoteBackend(job_id={job!r})()`."
    )


def _of_job(error: RemoteError, job: str) -> RemoteError:
    error.job_id = job or None
    return error


def timed_out(host: str, job: str, why: str | None = None, kept: bool = True) -> RemoteError:
    """The user's own time limit, and what there was to wait for."""
    text = f"The server at {host} did not give a result within the time given (`timeout=`)."
    text += f" When it ended: {why}." if why else ""
    return _of_job(RemoteTimeoutError(text + _job(job, kept)), job)


def lost(host: str, why: str, job: str, kept: bool = True) -> RemoteError:
    """A line that stays broken."""
    return _of_job(RemoteError(f"The server at {host} is lost: {why}.{_job(job, kept)}"), job)


def end_not_read(host: str, why: str, job: str) -> RemoteError:
    """The last state of a job, which this side does not understand."""
    error = PayloadError(
        f"The job {job} has ended at {host}, and what it gave is not to be had. {why}"
    )
    return _of_job(error, job)


def refused(host: str, status: int, detail: str, job: str = "") -> RefusedError:
    """What the server says of a request."""
    way_out = ""
    if status in (401, 403):
        way_out = " `nnsight.login()` asks for a key and keeps it; `NDIF_API_KEY` holds one, too."
    error = RefusedError(f"{host} answers {status}: {detail.rstrip('.')}.{way_out}")
    error.status = status
    _of_job(error, job)
    return error


def unknown_job(host: str, job: str) -> RemoteError:
    """A job that was never there, or whose result is gone."""
    return _of_job(
        RemoteError(
            f"{host} knows no job {job!r}: it was never there, belongs to another key, or its "
            "result was kept for its time and is gone."
        ),
        job,
    )


def not_understood(host: str) -> RemoteError:
    """An answer that no server of ours gives."""
    return RemoteError(f"{host} does not answer as a server of nnsight does.")


def link_refused(status: int, why: str, job: str) -> RemoteError:
    """A link to a result that leads nowhere, or no longer."""
    return _of_job(
        RemoteError(
            f"The link to the result of the job {job} answers {status} ({why}). Links are good "
            "for a while only, an hour at NDIF. If the result is still kept, "
            f"`RemoteBackend(job_id={job!r})()` asks for a new one."
        ),
        job,
    )


def no_room(size: int, job: str) -> RemoteError:
    """A result that this machine cannot hold."""
    return _of_job(
        RemoteError(
            f"The result of the job {job} is said to be {size / 2**20:.0f} MiB, which is more than "
            "there is memory for here. Save less in the block, such as the rows that you need."
        ),
        job,
    )


def cancelled(job: str, ended: bool) -> str:
    """What became of a job that was to end."""
    if not ended:
        return (
            f"The job {job} could not be cancelled, and may go on there: the server does not "
            "answer, or has no way to end a job, as NDIF has none."
        )
    return f"The job {job} was cancelled."


def payload_too_large(size: int, limit: int) -> NotSendableError:
    """A block with more values than the server takes."""
    return NotSendableError(
        f"This block has {size / 2**20:.1f} MiB with the values that it uses, and the server takes "
        f"{limit / 2**20:.0f} MiB. Let it make or load large values there, or send fewer."
    )


def lacking(what: str, where: str) -> NotSendableError:
    """A package that a block needs and the server does not have."""
    used = f" (`{where}` needs it)" if where else ""
    error = NotSendableError(
        f"This block cannot run on the server: {what}{used}. If it is Python of your own, "
        "`nnsight.register(module)` sends its source along."
    )
    error.path = where
    return error


def no_job() -> RemoteError:
    """A question about a job where none was sent."""
    return RemoteError("No job was sent from here, and no `job_id` was given.")


def process_ended(status: int) -> RemoteError:
    """The process that ran a block is gone."""
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return RemoteError(f"The process that ran the block ended, {how}, before the block did.")


def no_place(remote: str) -> ValueError:
    """A word for `remote=` that is none."""
    return ValueError(
        f"`remote={remote!r}` says nowhere: write True for the server of `CONFIG.API.HOST`, the "
        'address of another one ("http://localhost:8001"), or "local" for a fresh process here.'
    )


def no_model() -> RemoteError:
    """A block, and nothing that says what it runs on."""
    return RemoteError(
        "This backend was made with the key of a model, which is enough to ask for a result. To "
        "run a block give it the model: `RemoteBackend(model)`, or `model.trace(remote=True)`."
    )


def older_server(host: str, release: str) -> RemoteError:
    """A server of a generation whose requests are other objects than ours can be."""
    return RemoteError(
        f"{host} runs nnsight {release}, and only a client of that release can talk to it: until "
        f"0.7, requests are its own objects. Install it (`pip install nnsight=={release}`) in an "
        "environment of its own, or use a server of nnsight 0.8 or of this package."
    )


def no_server_of_nnsight(why: str) -> RemoteError:
    """An address where something else answers, or a server of a time before `/env`."""
    return RemoteError(
        f"{why.rstrip('.')}. Servers of nnsight 0.8 and of this package say there what they run. "
        "An older one (0.5 to 0.7) needs a client of its own release, in an environment of its own."
    )
