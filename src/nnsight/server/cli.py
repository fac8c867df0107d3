"""`python -m nnsight serve MODEL [MODEL...]`, `serve keys ...` and `serve --doctor`."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import socket
import sys
from pathlib import Path

from nnsight.server import confine, errors, keys
from nnsight.server.engine import LocalEngine, Plan
from nnsight.server.errors import CannotServe, FolderInUse
from nnsight.server.files import Folder
from nnsight.server.limits import MIB, Limits
from nnsight.server.naming import Served
from nnsight.server.sandbox.confine import layers as sandbox_layers
from nnsight.server.store import Store

_PACKAGES = ("starlette", "uvicorn", "python_multipart", "websockets")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    usual = Limits()
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="hub ids (ID@REVISION) or folders; or `keys`"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--data", type=Path, default=None, help="the server's folder")
    parser.add_argument("--dtype", help="of the weights, e.g. bfloat16")
    parser.add_argument("--device-map", help="e.g. auto, cuda:0, cpu")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="that a job may run")
    parser.add_argument("--body", type=int, default=usual.body // MIB, help="MiB of a request")
    parser.add_argument("--result", type=int, default=usual.result // MIB, help="MiB of a result")
    parser.add_argument("--prints", type=int, default=usual.prints, help="lines of a job")
    parser.add_argument("--print-bytes", type=int, default=usual.print_bytes, help="of all lines")
    parser.add_argument("--queue", type=int, default=usual.queue, help="waiting jobs per model")
    parser.add_argument("--jobs-per-key", type=int, default=usual.jobs_per_key)
    parser.add_argument("--ttl", type=float, default=usual.ttl, help="seconds that results stay")
    parser.add_argument("--memory", type=int, help="MiB of address space of a model's process")
    parser.add_argument(
        "--silence", type=float, default=usual.silence, help="seconds until a process is stopped"
    )
    parser.add_argument("--doctor", action="store_true", help="say what protects this machine")
    parser.add_argument("--uuid", action="store_true", help="keys add: a UUID, for NDIF's client")
    parser.add_argument(
        "--trusted", action="store_true", help="keys add: code that needs no sandbox"
    )


def main(options: argparse.Namespace) -> None:
    """Serve until stopped, or do the one thing that was asked."""
    try:
        if options.doctor:
            print(doctor())
        elif options.models[:1] == ["keys"]:
            print(manage_keys(options))
        elif not options.models:
            raise CannotServe("which model? `python -m nnsight serve MODEL`")
        else:
            serve(options)
    except (CannotServe, FolderInUse) as error:
        sys.exit(f"nnsight serve: {error}")


def default_folder() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "nnsight" / "serve"


# --- serving ---------------------------------------------------------------------------------


def serve(options: argparse.Namespace) -> None:
    """Serve the models until SIGINT or SIGTERM.

    Raises:
        CannotServe: not from this address, no such folder, not this model twice, not without these
            packages.
        FolderInUse: another server has the folder.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise errors.needs_extra(package)
    served = [Served(_full(name)) for name in options.models]
    for one in served:
        if served.count(one) > 1:
            raise errors.twice(one.name)
    given = {"dtype": options.dtype, "device_map": options.device_map}
    plans = [Plan(one.name, {n: v for n, v in given.items() if v is not None}) for one in served]
    run(
        plans,
        limits_of(options),
        options.data or default_folder(),
        options.host,
        options.port,
    )


def run(plans: list[Plan], limits: Limits, data: Path, host: str, port: int) -> None:
    """Serve these plans until SIGINT or SIGTERM."""
    import uvicorn

    class Listener(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            server.leave()  # or it would wait for readers who wait for events
            await super().shutdown(sockets)

    from nnsight.server.app import app
    from nnsight.server.patient import as_many_as_may_be, patient
    from nnsight.server.serving import Serving

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = Folder(data)
    folder.take()
    as_many_as_may_be()
    store = Store(folder.database)
    try:
        if host not in _LOOPBACK and not keys.are_needed(store):
            raise errors.open_to_all(host)
        listening = _listen(host, port)
        engine = LocalEngine(plans, limits, folder.log)
        served = [Served(plan.model) for plan in plans]
        server = Serving(folder, store, engine, served, limits, host not in _LOOPBACK)
        config = uvicorn.Config(
            app(server),
            log_level="warning",
            access_log=False,  # it would show the tokens of links
            http=patient(limits.stall),
            ws="websockets-sansio",
            timeout_graceful_shutdown=3,
            server_header=False,
        )
        shown = listening.getsockname()[1]
        logging.getLogger("nnsight.server").info("listening on http://%s:%d", host, shown)
        Listener(config).run(sockets=[listening])
    finally:
        store.close()
        folder.release()


def limits_of(options: argparse.Namespace) -> Limits:
    return Limits(
        body=options.body * MIB,
        result=options.result * MIB,
        seconds=options.seconds,
        prints=options.prints,
        print_bytes=options.print_bytes,
        queue=options.queue,
        jobs_per_key=options.jobs_per_key,
        ttl=options.ttl,
        silence=options.silence,
        memory=None if options.memory is None else options.memory * MIB,
    )


def _full(name: str) -> str:
    """A folder by its whole path: the worker runs in another one."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:  # no hub id is written so
        raise errors.no_such_folder(name)
    return name


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with its protocol, by which asyncio knows that small answers must not wait (TCP_NODELAY)
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise errors.port_taken(host, port, error.strerror or str(error)) from None
    return listening


# --- keys ------------------------------------------------------------------------------------


def manage_keys(options: argparse.Namespace) -> str:
    """`keys add NAME`, `keys list` or `keys remove ID`; what to print."""
    folder = Folder(options.data or default_folder())
    store = Store(folder.database)
    try:
        match options.models[1:]:
            case ["add", name]:
                text = keys.add(store, name, trusted=options.trusted, as_uuid=options.uuid)
                return f"{text}\nThis is the only time that the key is shown."
            case ["remove", id]:
                return "removed" if keys.remove(store, id) else f"there is no key of id {id}"
            case ["list"]:
                rows = [
                    f"{key.id}  {'trusted' if key.trusted else 'untrusted':9}  {key.name}"
                    for key in keys.every(store)
                ]
                return "\n".join(rows) or "there are no keys"
            case _:
                raise CannotServe("say `keys add NAME`, `keys list` or `keys remove ID`")
    finally:
        store.close()


# --- doctor ----------------------------------------------------------------------------------

_USED = {
    "prlimit": "on the process of each model: no core files, few open files, --memory",
    "no_new_privs": "on the process of each model: no setuid program gains rights",
    "landlock": "on each sandbox: no files but those of Python, no TCP",
    "seccomp": "on each sandbox: no sockets, processes, signals, no file is written",
}


def doctor() -> str:
    """Which layers between a job and this machine there are, one per line."""
    lines = []
    for name, found in confine.available().items():
        has = f"this machine has it ({found})" if found else "this machine does not have it"
        lines.append(f"{name:13} {has}; {_USED[name] if found else 'nothing is done'}")
    lines.append("environment   the process of a model gets no variable but those it needs")
    lines.append("folder        it starts in an empty one; the server's own is given by open files")
    lines.append("sandbox       keys that are not trusted: a process for each job, and in it")
    for name, what in sandbox_layers().items():
        lines.append(f"  {name:11} {what or 'nothing: this machine does not have it'}")
    return "\n".join(lines)
