"""A server's double: answers `GET` with what a test says, and remembers what it was asked."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TRANSFORMERS = "nnsight.modeling.transformers.TransformersModel"
GPT2 = f'{TRANSFORMERS}:{{"repo_id": "openai-community/gpt2", "revision": null, "task": "text-generation"}}'  # fmt: skip # noqa: E501
LLAMA = 'nnsight.modeling.language.LanguageModel:{"repo_id": "meta-llama/Llama-3.1-8B", "revision": "main"}'  # fmt: skip # noqa: E501


def replica(number: int, **changes: Any) -> dict[str, Any]:
    """A deployment as ndif 0.1.2 told of it (recorded)."""
    return {
        "application_state": "RUNNING",
        "deployment_level": "HOT",
        "pinned": False,
        "trusted": True,
        "dtype": "torch.float32",
        "execution_timeout_seconds": 3600,
        "model_key": GPT2,
        "replica_id": number,
        "repo_id": "openai-community/gpt2",
        "task": "text-generation",
        "revision": None,
        "config": '{"n_layer": 12}',
        "n_params": 124439808,
        "size_bytes": 497759232,
        "actor_class": "ModelActor",
        "gpus": [0],
        "schedule": {"end_time": None},
        **changes,
    }


STATUS = {
    "deployments": {
        f"0:ModelActor:{GPT2}": replica(0),
        f"1:ModelActor:{GPT2}": replica(1, application_state="DEPLOYING", pinned=True),
        "EleutherAI/gpt-j-6b": {"deployment_level": "COLD", "repo_id": "EleutherAI/gpt-j-6b"},
    },
    "cluster": {"nodes": {"a": {"resources": {"gpu_details": []}, "deployments": {}}}},
}
OLDER_STATUS = {
    "deployments": {
        f"ModelActor:{LLAMA}": {
            "application_state": "DEPLOYING",
            "deployment_level": "WARM",
            "dedicated": True,
            "model_key": LLAMA,
            "repo_id": "meta-llama/Llama-3.1-8B",
            "revision": "main",
            "config": "{}",
            "n_params": 8030261248,
            "schedule": {"end_time": "2026-11-22T10:00:00+00:00"},
        }
    },
    "cluster": {"nodes": {"a": {"resources": {"total_gpus": 8, "available_gpus": 1}}}},
}
ENV = {
    "python_version": "3.12.3 (main, Sep 11 2024) [GCC 13.2.0]",
    "packages": {"nnsight": "0.8.0", "torch": "2.9.0", "rich": "1.0.0", "only_there": "1.0"},
}


@dataclass
class Double:
    """The server; `answers` may be changed while it runs."""

    host: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)  # by path: status and JSON
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and key
    hangs_up: bool = False
    sends_on_to: str | None = None


@contextmanager
def server() -> Iterator[Double]:
    """A double on a free port of this machine."""
    double = Double()
    double.answers = {
        "/status": (200, STATUS),
        "/env": (200, ENV),
        "/whoami": (200, {"email": "someone@example.org", "tags": []}),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            double.asked.append((self.path, self.headers.get("ndif-api-key")))
            if double.hangs_up:
                return self.connection.close()
            status, body = double.answers.get(self.path, (404, {"detail": "Not Found"}))
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(307 if double.sends_on_to else status)
            if double.sends_on_to:
                self.send_header("Location", double.sends_on_to)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    double.host = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
