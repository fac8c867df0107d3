"""`NdifStatus`: the models that a server has, as a mapping that prints as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nnsight.config import CONFIG
from nnsight.remote import model_key as keys
from nnsight.remote.table import Cell, Table

_STATES = ("RUNNING", "DEPLOYING", "PROVISIONING", "UNHEALTHY")  # the best one first
_LEVELS = ("HOT", "WARM", "COLD")
_COLOURS = {"RUNNING": "green", "DEPLOYING": "yellow", "PROVISIONING": "yellow", "UNHEALTHY": "red"}
_HEAD = ("Model", "Revision", "Task", "Level", "State", "Replicas")


class NdifStatus(Mapping[str, dict[str, Any]]):
    """The models that a server has deployed, by hub id; it prints as a table.

    Each is a dict: `model_class`, `repo_id`, `task`, `revision`, `trust_remote_code`, `level`
    (`"HOT"`: on the GPU), `state` (`"RUNNING"`: it takes requests), `hot_replicas`, `n_params`,
    `pinned`, `until` (when it makes room for another; None where nothing says so). A model of which
    several revisions or tasks are deployed is under `repo_id@revision`, too.

    Args:
        deployments: as a server has them in its answer to `/status`.
        problem: why nothing is known, if that is so.
        answers: whether the server answered nevertheless, such as that it wants a key.
    """

    def __init__(
        self,
        deployments: Mapping[str, Any],
        problem: str | None = None,
        *,
        answers: bool = False,
    ) -> None:
        self.problem, self._answers = problem, answers
        self._models: dict[str, dict[str, Any]] = {}
        seen: dict[Any, dict[str, Any]] = {}
        for name, deployment in deployments.items():
            model = read(name, deployment)
            if model is None:
                continue
            same = model["repo_id"].casefold(), model["revision"], model["task"]
            if same in seen:
                _add_replica(seen[same], model)
            else:
                seen[same] = self._models[self._free_name(model)] = model

    def _free_name(self, model: Mapping[str, Any]) -> str:
        revision = f"{model['repo_id']}@{model['revision']}"
        names = (model["repo_id"], revision, f"{revision} {model['task']}")
        return next((name for name in names if name not in self._models), names[-1])

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        rows = [_cells(name, model) for name, model in self.items()]
        count = f"up, {len(rows)} model{'s' if len(rows) != 1 else ''}"
        wrong = "its models are not known" if self._answers else "down"
        title = f"{CONFIG.API.HOST}: {wrong if self.problem else count}"
        return Table(title, _HEAD, rows, self.problem)


def read(name: str, deployment: Any) -> dict[str, Any] | None:
    """One deployment, as any release of the server tells of it.

    None for what is no deployment: a model that only lies on the server's disk has no key.
    """
    if not isinstance(deployment, Mapping):
        return None
    spelt = deployment.get("model_key") or name
    try:
        key = keys.parse(spelt)
    except (ValueError, AttributeError):
        return None
    level = str(deployment.get("deployment_level") or "")
    state = str(deployment.get("application_state") or "")
    schedule = deployment.get("schedule")
    return {
        "model_class": spelt.partition("{")[0].rstrip(":").rpartition(".")[2],
        "repo_id": key.repo_id,
        "task": key.task,
        "trust_remote_code": key.trust_remote_code,
        "revision": key.revision or "main",
        "level": level,
        "state": state,
        "hot_replicas": int(level == "HOT" and state == "RUNNING"),
        "n_params": deployment.get("n_params"),
        "pinned": bool(deployment.get("pinned", deployment.get("dedicated"))),
        "until": schedule.get("end_time") if isinstance(schedule, Mapping) else None,
    }


def is_running(model: Mapping[str, Any]) -> bool:
    """Whether it takes requests now."""
    return model["state"] == "RUNNING" and model["level"] in ("HOT", "")


def _add_replica(model: dict[str, Any], other: Mapping[str, Any]) -> None:
    """The same model once more: what counts is the best of both."""
    for name, order in (("state", _STATES), ("level", _LEVELS)):
        model[name] = next((word for word in order if word in (model[name], other[name])), "")
    model["hot_replicas"] += other["hot_replicas"]
    model["pinned"] = model["pinned"] or other["pinned"]


def _cells(name: str, model: Mapping[str, Any]) -> tuple[Cell, ...]:
    state = model["state"] or "-"
    return (
        Cell(name),
        Cell(model["revision"]),
        Cell(model["task"] or "-"),
        Cell(model["level"] or "-"),
        Cell(state, _COLOURS.get(state, "")),
        Cell(str(model["hot_replicas"])),
    )
