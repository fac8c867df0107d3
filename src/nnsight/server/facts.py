"""What a server tells of itself: its environment, its models, and counts of what it did."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from nnsight.remote import model_key
from nnsight.remote.environment import get_local_env
from nnsight.server.intake import NDIF, OURS
from nnsight.server.limits import Limits
from nnsight.server.serving import Serving

PROTOCOLS = (OURS, NDIF)
_LEVEL = {"ready": "RUNNING", "busy": "RUNNING", "loading": "DEPLOYING", "broken": "UNHEALTHY"}


async def environment(limits: Limits) -> dict[str, Any]:
    """What a client compares with its own before it sends."""
    local = await asyncio.to_thread(get_local_env)  # the first time takes a moment
    return {**local, "protocols": list(PROTOCOLS), "limits": limits.public()}


def status(server: Serving) -> dict[str, Any]:
    """The models as NDIF lists its deployments; `state`, `queue` and `starts` are ours."""
    deployments = {}
    for one in server.served:
        now = server.engine.state(one.name)
        key = now.facts.get("model_key") or str(one.key)
        named = model_key.parse(key)
        deployments[f"0:ModelActor:{key}"] = {
            "application_state": _LEVEL[now.state],
            "deployment_level": "HOT",
            "pinned": True,
            "trusted": True,
            "dtype": now.facts.get("dtype"),
            "execution_timeout_seconds": server.limits.seconds,
            "model_key": key,
            "replica_id": 0,
            "repo_id": named.repo_id,
            "task": named.task,
            "revision": named.revision,
            "config": now.facts.get("config", "{}"),
            "n_params": now.facts.get("n_params"),
            "size_bytes": now.facts.get("size_bytes"),
            "actor_class": now.facts.get("kind"),
            "gpus": now.facts.get("devices", []),
            "schedule": {"end_time": None},
            "state": now.state,
            "reason": now.reason,
            "queue": len(server.queues[one.name]),
            "starts": now.starts,
        }
    return {"deployments": deployments, "cluster": {"nodes": {}}}


def metrics(server: Serving) -> str:
    """The counts in the text form of Prometheus."""
    lines = []

    def metric(name: str, kind: str, help: str, rows: list[tuple[str, float]]) -> None:
        lines.append(f"# HELP nnsight_{name} {help}")
        lines.append(f"# TYPE nnsight_{name} {kind}")
        lines.extend(f"nnsight_{name}{labels} {value:g}" for labels, value in rows)

    names = [one.name for one in server.served]
    states = {name: server.engine.state(name) for name in names}
    metric("up_seconds", "gauge", "Seconds since the start.", [("", time.time() - server.began)])
    rows = [
        (f'{{model="{_text(model)}",status="{status}"}}', float(count))
        for model, status, count in server.store.counts()
    ]
    metric("jobs", "gauge", "Jobs that are kept, by their state.", rows)
    rows = [(_of(name), float(len(server.queues[name]))) for name in names]
    metric("queue", "gauge", "Jobs that wait.", rows)
    rows = [(_of(name), float(states[name].state in ("ready", "busy"))) for name in names]
    metric("model_up", "gauge", "Whether the model takes jobs.", rows)
    rows = [(_of(name), float(states[name].starts)) for name in names]
    metric("model_starts_total", "counter", "Starts of the model's process.", rows)
    return "\n".join(lines) + "\n"


def _of(model: str) -> str:
    return f'{{model="{_text(model)}"}}'


def _text(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
