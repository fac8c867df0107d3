"""`remote=`: where a block of a model runs, and what must be known of the model there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnsight.capture.tracer import Backend, run_here
from nnsight.remote.context import RETURNED, is_serving
from nnsight.traces.function import run_function
from nnsight.traces.model import Inputs
from nnsight.traces.trace import Trace


@dataclass(frozen=True)
class Remote:
    """What a user says of where a block runs."""

    remote: bool | str
    blocking: bool = True
    job_id: str | None = None
    verbose: bool = False
    timeout: float | None = None

    def backend(self, model: Any) -> Backend:
        """What takes the captured block.

        Raises:
            ValueError: `remote` is neither True, "local" nor an address.
        """
        if is_serving():  # this code came over the wire: where it runs is where it was sent
            return run_here
        if self.job_id is None:
            model._before_remote()
        if self.remote == "local":
            from nnsight.remote.simulate import LocalSimulationBackend

            return LocalSimulationBackend(model, opening(model), timeout=self.timeout)
        from nnsight.remote.ask import is_address
        from nnsight.remote.client import RemoteBackend
        from nnsight.remote.errors import no_place

        host = self.remote if isinstance(self.remote, str) else None
        if host is not None and not is_address(host):
            raise no_place(host)
        return RemoteBackend(
            model,
            host,
            blocking=self.blocking,
            job_id=self.job_id,
            verbose=self.verbose,
            timeout=self.timeout,
        )


def run_there(model: Any, inputs: Inputs, fn: Any, function: Any, remote: Remote) -> Any:
    """What `function(tracer, model)` gives beside a run of the model, where `remote` says.

    Args:
        model: the model.
        inputs: of the run.
        fn: what of the model runs.
        function: what runs beside it.
        remote: where.
    """
    trace, backend = Trace(model, inputs, fn), remote.backend(model)
    if backend is run_here:
        return run_function(trace, function)
    try:
        backend(trace, function)  # type: ignore[call-arg]
        return (trace.received or {}).get(RETURNED)
    finally:
        trace.release()


def opening(model: Any) -> dict[str, Any]:
    """How another process on this machine opens the same model."""
    key = model.to_model_key()  # first: a module that no name leads to has no loader either
    kind, options = type(model), dict(getattr(model._loader, "given", {}))
    return {
        "class": [kind.__module__, kind.__qualname__],
        "key": key,
        "options": options,
    }


def settings(model: Any) -> dict[str, Any]:
    """How a model is seen: other names, classes of envoys, the form of outputs."""
    tree = model._tree
    return {
        "aliases": {place: dict(names) for place, names in tree.aliases.items()},
        "classes": tree.classes,
        "tuples": tree.tuple_outputs,
        "path": model._path.partition(".")[0],
    }


def with_settings(model: Any, given: Mapping[str, Any]) -> Any:
    """A model over the same weights that is seen so, without edits."""
    known = settings(model)
    if all(given[name] == known[name] for name in known):
        seen = model
    elif given["classes"] != known["classes"]:
        return _seen_anew(model, given)
    else:
        names = sorted((place, *sorted(to.items())) for place, to in given["aliases"].items())
        kept = model._tree.memory.setdefault("<seen>", {})
        key = given["path"], given["tuples"], tuple(names)
        seen = kept.pop(key, None) or _seen_anew(model, given)
        kept[key] = seen
        for oldest in list(kept)[:-_KEPT]:
            del kept[oldest]
    twin = seen._twin()  # what was found out about the model is kept
    twin._edits().clear()
    return twin


_KEPT = 8  # ways to see one model


def _seen_anew(model: Any, given: Mapping[str, Any]) -> Any:
    seen = copy.copy(model)
    seen._tree.aliases = given["aliases"]
    seen._tree.classes = given["classes"]
    seen._tree.tuple_outputs = given["tuples"]
    seen.__dict__["_path"] = given["path"]
    seen._edits().clear()
    return seen


def parts(model: Any) -> dict[str, Any]:
    """What belongs to a model beside its modules, by name: of it only what is there already."""
    module = model._module
    found = {name: getattr(module, name, None) for name in ("config", "generation_config")}
    lazy = {name: vars(model).get(f"_{name}") for name in ("tokenizer", "processor")}
    found.update({name: getattr(holder, "known", None) for name, holder in lazy.items()})
    return {name: value for name, value in found.items() if value is not None}
