"""`python -m tests.benchmarks.remote`: what a block on a server costs, with the server beside it.

Starts `python -m nnsight serve` on a tiny model in a folder of its own, on this machine.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from nnsight import CONFIG, LanguageModel
from nnsight.remote.client import RemoteBackend

MIB = 2**20
IDS = torch.arange(8)[None]


def tiny(folder: Path) -> None:
    """A GPT-2 of three layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=100, **ids)
    GPT2LMHeadModel(config).save_pretrained(folder)


@contextmanager
def serving(folder: Path, python: str = sys.executable) -> Iterator[str]:
    """The address of a server of the model in `folder`, under an interpreter."""
    words = [python, "-m", "nnsight", "serve", str(folder), "--port", "0"]
    words += ["--data", str(folder / "data"), "--jobs-per-key", "64", "--body", "512"]
    words += ["--result", "512"]
    said = folder.with_suffix(".log")
    with said.open("wb") as log, subprocess.Popen(words, stderr=log) as process:
        try:
            while "is ready" not in said.read_text():
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended: {said.read_text()[-2000:]}")
                time.sleep(0.05)
            yield re.findall(r"listening on (http://\S+)", said.read_text())[0]
        finally:
            process.kill()


def median(run: Callable[[], object], repeats: int) -> float:
    """Milliseconds that `run` takes."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def parts(model: LanguageModel, host: str, repeats: int) -> dict[str, float]:
    """When, after the block was left, a job was heard to be in each state; in milliseconds."""
    heard: dict[str, list[float]] = {}

    class Timed(RemoteBackend):
        def __call__(self, *given: object) -> object:
            self.left = time.perf_counter()
            return super().__call__(*given)  # type: ignore[arg-type]

        def _follow(self, events, connection, display):  # type: ignore[no-untyped-def]
            def told() -> Iterator[object]:
                for event in events:
                    ago = (time.perf_counter() - self.left) * 1e3
                    heard.setdefault(event.status, []).append(ago)
                    yield event

            return super()._follow(told(), connection, display)  # type: ignore[arg-type]

    for _ in range(repeats):
        with model.trace(IDS, backend=Timed(model, host)):
            model.transformer.h[1].output.save()
    return {status: statistics.median(times) for status, times in heard.items()}


def transfers(model: LanguageModel, host: str, mebibytes: int, repeats: int) -> dict[str, float]:
    """Milliseconds to send and to get so much, and to copy it in memory."""
    numbers = torch.zeros(mebibytes * MIB // 4)
    length = numbers.numel()

    def up() -> None:
        with model.trace(IDS, remote=host):
            numbers.shape[0].save()  # type: ignore[attr-defined]

    def down() -> None:
        with model.trace(IDS, remote=host):
            found = torch.rand(length).save()  # type: ignore[attr-defined]
        assert found.numel() == length

    random = torch.rand(length)
    numbers.copy_(random)
    return {
        "copy": median(numbers.clone, 5),
        "up": median(up, repeats),
        "down": median(down, repeats),
    }


def per_second(model: LanguageModel, host: str, clients: int, jobs: int) -> float:
    """Jobs that so many clients get done in a second."""

    def one(_: int) -> None:
        with model.trace(IDS, remote=host):
            model.transformer.h[1].output.save()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
        start = time.perf_counter()
        list(pool.map(one, range(jobs)))
        return jobs / (time.perf_counter() - start)


def table(repeats: int, mebibytes: int, jobs: int) -> str:
    """All figures, as text."""
    CONFIG.APP.REMOTE_LOGGING = False
    with tempfile.TemporaryDirectory() as folder:
        tiny(Path(folder, "model"))
        model = LanguageModel(str(Path(folder, "model")), dispatch=True)

        def here() -> None:
            with model.trace(IDS):
                model.transformer.h[1].output.save()

        with serving(Path(folder, "model")) as host:

            def there() -> None:
                with model.trace(IDS, remote=host):
                    model.transformer.h[1].output.save()

            median(there, 3)
            local, remote = median(here, repeats), median(there, repeats)
            lines = [f"a small trace: {remote:.1f} ms, {remote - local:.1f} ms above the local one"]
            for status, after in parts(model, host, repeats).items():
                lines.append(f"  {status} heard after {after:.1f} ms")
            for name, took in transfers(model, host, mebibytes, 3).items():
                lines.append(f"{mebibytes} MiB {name}: {took:.0f} ms")
            for clients in (1, 16):
                rate = per_second(model, host, clients, jobs)
                lines.append(f"{clients} clients: {rate:.0f} jobs a second")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.remote", description=__doc__)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--mebibytes", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=100)
    options = parser.parse_args()
    print(table(options.repeats, options.mebibytes, options.jobs))


if __name__ == "__main__":
    main()
