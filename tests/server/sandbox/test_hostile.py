"""What the code of a user who is not trusted tries, as that user would write it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight.modeling.language import LanguageModel
from nnsight.remote.errors import RemoteError
from nnsight.server.sandbox import landlock, namespaces, seccomp
from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.conftest import MAKE

ONE = "The cat sat"
confined = pytest.mark.skipif(
    not landlock.version() or not seccomp.available(), reason="needs Landlock and seccomp"
)


def healthy(sandbox: Sandbox) -> None:
    """The next job gives what it should."""
    model = sandbox.model
    with model.trace(ONE, backend=sandbox):
        there = model.lm_head.output.save()
    with model.trace(ONE):
        here = model.lm_head.output.save()
    assert torch.equal(here, there)


@confined
def test_files_are_not_there(sandbox: Sandbox, tmp_path: Path, gpt2_folder: Path) -> None:
    secret = tmp_path / "server.db"
    secret.write_text("a key")
    paths = [str(secret), "/etc/passwd", str(gpt2_folder / "config.json"), "/proc/self/environ"]
    paths += [f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/mem", "/proc/self/maps"]
    model = sandbox.model
    with model.trace(ONE, backend=sandbox):
        said = [].save()
        for path in paths:
            try:
                with open(path, "rb") as file:
                    said.append(file.read(10))
            except OSError as error:
                said.append(type(error).__name__)
    assert said == ["PermissionError"] * len(paths)


@confined
def test_nothing_is_written_removed_started_or_reached(sandbox: Sandbox, tmp_path: Path) -> None:
    kept, new, parent = tmp_path / "kept", tmp_path / "new", os.getpid()
    kept.write_text("kept")
    model, gone, made = sandbox.model, str(kept), str(new)
    with model.trace(ONE, backend=sandbox):
        import os as there
        import signal
        import socket
        import subprocess

        tries = [
            lambda: open(made, "w"),
            lambda: there.unlink(gone),
            lambda: there.truncate(gone, 0),
            lambda: there.rename(gone, made),
            lambda: there.mkdir(made),
            lambda: there.chmod(gone, 0),
            lambda: there.fork(),
            lambda: subprocess.run(["/bin/true"]),
            lambda: there.execv("/bin/true", ["true"]),
            lambda: there.kill(parent, signal.SIGKILL),
            lambda: there.kill(there.getppid(), signal.SIGKILL),
            lambda: there.setsid(),
            lambda: socket.socket(),
            lambda: socket.create_connection(("127.0.0.1", 80), 1),
            lambda: there.memfd_create("x"),
        ]
        said = [].save()
        for attempt in tries:
            try:
                attempt()
                said.append("done")
            except OSError as error:
                said.append(type(error).__name__)
    assert said == ["PermissionError"] * len(said) and len(said) == 15
    assert kept.read_text() == "kept" and not new.exists()


def test_the_environment_is_empty(sandbox: Sandbox) -> None:
    model = sandbox.model
    with model.trace(ONE, backend=sandbox):
        import os as there

        found = dict(there.environ).save()
        descriptors = [].save()
        for number in range(3, 64):
            try:
                there.fstat(number)
                descriptors.append(number)
            except OSError:
                pass
    assert found == {}
    assert len(descriptors) <= 5  # its socket, and those that threads wait with


@confined
def test_memory_of_others_is_out_of_reach(sandbox: Sandbox) -> None:
    model, parent = sandbox.model, os.getpid()
    with model.trace(ONE, backend=sandbox):
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        attached = libc.ptrace(16, parent, 0, 0)
        traced = [attached, ctypes.get_errno()].save()
        libc.prctl(1, 0, 0, 0, 0)
        left = [libc.prctl(1, 0, 0, 0, 0), libc.syscall(302, parent, 7, 0, 0)].save()
    assert traced == [-1, 1] and left == [-1, -1]


@pytest.mark.parametrize("how", ["in place", "through data", "set", "module"])
def test_the_weights_stay_as_they_are(sandbox: Sandbox, how: str) -> None:
    model = sandbox.model
    before = model.lm_head.weight.clone()
    with pytest.raises(
        (RemoteError, RuntimeError), match=r"belongs to the model|changes the model"
    ):
        with model.trace(ONE, backend=sandbox):
            if how == "in place":
                with torch.no_grad():
                    model.lm_head.weight.zero_()
            elif how == "through data":
                model.lm_head.weight.data[:] = 0
            elif how == "set":
                model.lm_head.weight = torch.nn.Parameter(torch.zeros(400, 48))
            else:
                model.transformer.h[0].mlp = torch.nn.Identity()
            model.lm_head.output.save()
    assert torch.equal(before, model.lm_head.weight)
    healthy(sandbox)


def test_a_guest_that_leaves(sandbox: Sandbox) -> None:
    model = sandbox.model
    with pytest.raises(RemoteError, match="ended before the block did"):
        with model.trace(ONE, backend=sandbox):
            import os as there

            model.transformer.h[1].output.save()
            there._exit(0)
    healthy(sandbox)


def test_memory_has_an_end(sandbox: Sandbox) -> None:
    model = sandbox.model
    with pytest.raises(RemoteError, match=r"(?i)alloc|memory"):
        with model.trace(ONE, backend=sandbox):
            much = torch.ones(10 * 2**30 // 4)
            (much.sum() + model.lm_head.output.sum()).save()
    healthy(sandbox)


def test_recursion_has_an_end(sandbox: Sandbox) -> None:
    model = sandbox.model

    def deep(n: int) -> int:
        return deep(n + 1)

    with pytest.raises(RecursionError):
        with model.trace(ONE, backend=sandbox):
            deep(0).save()
    healthy(sandbox)


@confined
def test_a_fork_bomb_of_many_threads(sandbox: Sandbox) -> None:
    model = sandbox.model
    with model.trace(ONE, backend=sandbox):
        import ctypes
        import os as there
        import platform
        import threading

        libc = ctypes.CDLL(None, use_errno=True)
        numbers = (56, 57, 58, 435) if platform.machine() == "x86_64" else (220, 435)
        born = [0, 0, 8 * 50 * len(numbers)].save()

        def bomb() -> None:
            for _ in range(50):
                for number in numbers:  # as a process, with no flags
                    made = libc.syscall(number, 17, 0, 0, 0, 0)
                    if made == 0:
                        there._exit(0)
                    born[0] += made > 0
                    born[1] += 1

        threads = [threading.Thread(target=bomb) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert born == [0, born[2], born[2]]
    healthy(sandbox)


def test_threads_have_an_end(gpt2_folder: Path) -> None:
    """They are made of memory, and of that there is so much."""
    from nnsight.modeling.language import LanguageModel
    from tests.server.sandbox.conftest import MAKE

    model = LanguageModel(gpt2_folder, dispatch=True)
    small = Sandbox(model, MAKE, gpt2_folder, memory=512 * 2**20, seconds=20.0)
    try:
        with pytest.raises(RemoteError, match=r"start new thread|ended before the block did"):
            with model.trace(ONE, backend=small):
                import threading

                wait = threading.Event()
                for _ in range(100_000):
                    threading.Thread(target=wait.wait, daemon=True).start()
                model.lm_head.output.save()
        healthy(small)
    finally:
        small.close()


@pytest.mark.skipif(not namespaces.available(), reason="needs namespaces")
def test_a_process_enters_namespaces_of_its_own() -> None:
    here = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc", "mnt", "uts")}
    code = (
        "import json, os, runpy\n"
        f"names = runpy.run_path({namespaces.__file__!r})['enter']()\n"
        "there = {n: os.readlink(f'/proc/self/ns/{n}') for n in ('net', 'ipc', 'mnt', 'uts')}\n"
        "print(json.dumps([names, there, open('/proc/self/net/dev').read()]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, there, cards = json.loads(told.stdout)
    kinds = {"network": "net", "IPC": "ipc", "mounts": "mnt", "host name": "uts"}
    assert set(names) - {"user"} <= set(kinds) and names == namespaces.available()
    for name, kind in kinds.items():
        assert (here[kind] != there[kind]) == (name in names), name
    if "network" in names:
        assert {line.split(":")[0].strip() for line in cards.splitlines()[2:]} <= {"lo"}


@pytest.mark.parametrize("how", ["noise", "huge", "closed", "half"])
def test_a_guest_that_speaks_to_the_model_by_itself(sandbox: Sandbox, how: str) -> None:
    model = sandbox.model
    with pytest.raises(RemoteError, match=r"sent nonsense|ended before the block did"):
        with model.trace(ONE, backend=sandbox):
            import os as there
            import stat
            import time as clock

            model.transformer.h[1].mlp.output.sum()
            ends = []
            for number in range(3, 64):
                try:
                    if stat.S_ISSOCK(there.fstat(number).st_mode):
                        ends.append(number)
                except OSError:
                    pass
            for end in ends:
                if how == "noise":
                    there.write(end, (100).to_bytes(8, "little") + bytes(range(100)))
                elif how == "huge":
                    there.write(end, (2**60).to_bytes(8, "little"))
                elif how == "half":
                    there.write(end, (1000).to_bytes(8, "little") + b"123")
                    there._exit(0)
                else:
                    there.close(end)
            clock.sleep(0.1)
            model.lm_head.output.sum().save()
    healthy(sandbox)


@pytest.fixture(scope="module")
def short(gpt2_folder: Path) -> Iterator[Sandbox]:
    """Sandboxes whose time is over soon."""
    model = LanguageModel(gpt2_folder, dispatch=True)
    sandbox = Sandbox(model, MAKE, gpt2_folder, seconds=1.0)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("what", ["loop", "sleep", "call", "c", "prints"])
def test_time_has_an_end(short: Sandbox, what: str) -> None:
    model, began = short.model, time.monotonic()
    with pytest.raises(RemoteError, match="longer than the 1 s"):
        with model.trace(ONE, backend=short):
            hidden = model.transformer.h[1].mlp.output
            if what == "loop":
                while True:
                    pass
            if what == "sleep":
                import time as there

                there.sleep(1e9)
            if what == "c":  # one call that never gives Python back its turn
                import itertools

                sum(itertools.repeat(0))
            while what == "prints":
                print("x" * 100_000)
            huge = torch.ones(20000, 20000)
            for _ in range(1000):
                huge = huge @ huge
            (hidden.sum() + huge.sum()).save()
    assert time.monotonic() - began < 10


def test_a_flood_of_prints(sandbox: Sandbox) -> None:
    model = sandbox.model
    sandbox.said.clear()
    with model.trace(ONE, backend=sandbox):
        for number in range(20_000):
            print(number)
        logits = model.lm_head.output.save()
    assert "".join(sandbox.said).split()[-1] == "19999" and logits.shape[0] == 1


def test_options_that_run_code_are_not_taken(sandbox: Sandbox) -> None:
    model: Any = sandbox.model
    with pytest.raises(RemoteError, match="custom_generate"):
        with model.generate(ONE, custom_generate="someone/repo", max_new_tokens=1, backend=sandbox):
            model.lm_head.output.save()
    with pytest.raises(RemoteError, match="forward or a method"):
        with model.transformer.trace(torch.zeros(1, 3), fn="save_pretrained", backend=sandbox):
            model.lm_head.output.save()
    healthy(sandbox)


def test_code_does_not_go_to_the_model(sandbox: Sandbox) -> None:
    model = sandbox.model

    class Evil:
        def __reduce__(self):
            return print, ("reached",)

    with pytest.raises(RemoteError, match="cannot go from a sandbox to the model"):
        with model.trace(ONE, backend=sandbox):
            model.transformer.h[1].output = Evil()
            model.lm_head.output.save()
    healthy(sandbox)
