"""Code written for earlier releases imports from here. Old addresses lead to what there is now."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

import nnsight

ADDRESSES = {
    "nnsight.intervention.Envoy": "nnsight.Envoy",
    "nnsight.intervention.envoy.Envoy": "nnsight.Envoy",
    "nnsight.intervention.eproperty.eproperty": "nnsight.eproperty",
    "nnsight.intervention.interleaver.eproperty": "nnsight.eproperty",
    "nnsight.intervention.interleaver.Interleaver": "nnsight.interleave.interleaver.Interleaver",
    "nnsight.intervention.interleaver.Mediator.OutOfOrderError": "nnsight.OutOfOrderError",
    "nnsight.intervention.interleaver.Mediator.MissedProviderError": "nnsight.MissedProviderError",
    "nnsight.intervention.tracing.globals.Object": "nnsight.Object",
    "nnsight.intervention.tracing.globals.save": "nnsight.save",
    "nnsight.intervention.tracing.base.WithBlockNotFoundError": "nnsight.WithBlockNotFoundError",
    "nnsight.intervention.tracing.base.Tracer": "nnsight.Tracer",
    "nnsight.intervention.tracing.tracer.Barrier": "nnsight.traces.barrier.Barrier",
    "nnsight.intervention.tracing.tracer.InterleavingTracer": "nnsight.Trace",
    "nnsight.intervention.tracing.tracer.Tracer": "nnsight.Trace",
    "nnsight.intervention.tracing.tracer.Cache": "nnsight.Cache",
    "nnsight.intervention.tracing.invoker.Invoker": "nnsight.traces.invoke.Invoke",
    "nnsight.intervention.tracing.editing.EditingTracer": "nnsight.traces.edit.Editing",
    "nnsight.intervention.tracing.iterator.IteratorProxy": "nnsight.traces.steps.Iter",
    "nnsight.intervention.tracing.util.ExceptionWrapper": "builtins.Exception",
    "nnsight.intervention.tracer.InterleavingTracer": "nnsight.Trace",
    "nnsight.intervention.tracer.Invoker": "nnsight.traces.invoke.Invoke",
    "nnsight.intervention.tracer.ScanningTracer": "nnsight.traces.scan.Scan",
    "nnsight.intervention.editing.EditingTracer": "nnsight.traces.edit.Editing",
    "nnsight.intervention.barrier.Barrier": "nnsight.traces.barrier.Barrier",
    "nnsight.intervention.cache.Cache": "nnsight.Cache",
    "nnsight.intervention.cache.CacheView": "nnsight.Cache",
    "nnsight.intervention.iterator.Iterations": "nnsight.traces.steps.Steps",
    "nnsight.intervention.backends.Backend": "nnsight.capture.tracer.Backend",
    "nnsight.intervention.backends.base.Backend": "nnsight.capture.tracer.Backend",
    "nnsight.tracing.tracer.Tracer": "nnsight.Tracer",
    "nnsight.tracing.tracer.save": "nnsight.save",
    "nnsight.tracing.tracer.WithBlockNotFoundError": "nnsight.WithBlockNotFoundError",
    "nnsight.tracing.backend.Backend": "nnsight.capture.tracer.Backend",
    "nnsight.tracing.hint.Object": "nnsight.Object",
    "nnsight.modeling.language.LanguageModel": "nnsight.LanguageModel",
    "nnsight.modeling.base.NNsight": "nnsight.NNsight",
    "nnsight.ndif.NdifStatus": "nnsight.remote.deployments.NdifStatus",
    "nnsight.ndif.EnvComparison": "nnsight.remote.comparison.EnvComparison",
    "nnsight.ndif.compare": "nnsight.compare",
    "nnsight.ndif.get_local_env": "nnsight.get_local_env",
    "nnsight.ndif.get_remote_env": "nnsight.get_remote_env",
    "nnsight.ndif.is_model_running": "nnsight.is_model_running",
    "nnsight.ndif.login": "nnsight.login",
    "nnsight.ndif.main": "nnsight.__main__.main",
    "nnsight.ndif.ndif_status": "nnsight.ndif_status",
    "nnsight.ndif.register": "nnsight.register",
    "nnsight.ndif.status": "nnsight.status",
    "nnsight.ndif.whoami": "nnsight.whoami",
    "nnsight.schema.config.CONFIG": "nnsight.CONFIG",
    "nnsight.util.WrapperModule": "nnsight.WrapperModule",
}
HELPERS = ["apply", "fetch_attr", "from_import_path", "to_import_path", "Patch", "Patcher"]
DECORATORS = ["input", "output", "operation_input", "operation_output"]


def found(address: str) -> object:
    """What an address leads to: the longest part of it that can be imported, and names in it."""
    parts = address.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            thing = getattr(thing, name)
        return thing
    raise ModuleNotFoundError(address)


@pytest.mark.parametrize(("old", "new"), ADDRESSES.items(), ids=ADDRESSES)
def test_an_old_address_leads_to_what_there_is(old: str, new: str):
    assert found(old) is found(new)


@pytest.mark.parametrize("old", [address for address in ADDRESSES if address.count(".") > 1])
def test_it_can_be_imported_first(old: str):
    module = importlib.import_module(old.rpartition(".")[0].removesuffix(".Mediator"))
    names = getattr(module, "__all__", None)
    assert names is None or all(hasattr(module, name) for name in names)


def test_the_root_has_them_as_attributes():
    assert nnsight.util.fetch_attr is found("nnsight.util.fetch_attr")
    assert nnsight.intervention.Envoy is nnsight.Envoy
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        nnsight.nowhere  # noqa: B018


def test_importing_nnsight_imports_none_of_them():
    old = (
        "nnsight.intervention",
        "nnsight.ndif",
        "nnsight.schema",
        "nnsight.tracing.",
        "nnsight.util",
    )
    code = f"import sys, nnsight; print([m for m in sys.modules if m.startswith({old})])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


# --- what they are good for -----------------------------------------------------------------------


def test_old_excepts_catch():
    from nnsight.intervention.interleaver import Mediator
    from nnsight.intervention.tracing.util import ExceptionWrapper

    model = nnsight.NNsight(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)))
    for kind in (Mediator.OutOfOrderError, Mediator.MissedProviderError, ExceptionWrapper):
        with pytest.raises(kind):
            with model.trace(torch.ones(1, 4)):
                late = (model[1].output * 2).save()
                early = (model[0].output * 2).save()
    assert "late" not in locals() and "early" not in locals()


def test_the_decorators_do_nothing():
    for word in DECORATORS:
        decorator = found(f"nnsight.intervention.hooks.requires_{word}")
        assert decorator(test_old_excepts_catch) is test_old_excepts_catch


def test_apply_reaches_into_containers():
    data = {"a": [torch.zeros(1), 2], "b": (torch.ones(1), slice(torch.ones(1), None))}
    doubled = nnsight.util.apply(data, lambda t: t + 1, torch.Tensor)
    assert doubled["a"][0].item() == 1 and doubled["b"][1].start.item() == 2
    assert data["a"][0].item() == 0
    assert nnsight.util.apply([1, "x"], str, int) == ["1", "x"]
    kept = [1, [2]]
    assert nnsight.util.apply(kept, str, int, inplace=True) is kept == ["1", ["2"]]


def test_fetch_attr_walks():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert nnsight.util.fetch_attr(network, "0.weight") is network[0].weight
    assert nnsight.util.fetch_attr({"x": [5]}["x"], "0") == 5
    with pytest.raises(AttributeError):
        nnsight.util.fetch_attr(network, "0.nothing")


def test_import_paths_go_there_and_back():
    path = nnsight.util.to_import_path(torch.nn.Linear)
    assert nnsight.util.from_import_path(path) is torch.nn.Linear


def test_patches_are_in_force_for_a_time():
    class Thing:
        name = "old"

    table = {"key": 1}
    patches = [nnsight.util.Patch(Thing, "new", "name")]
    with nnsight.util.Patcher(patches) as patcher:
        patcher.add(nnsight.util.Patch(table, 2, "key", as_dict=True))
        assert Thing.name == "new" and table == {"key": 2}
    assert Thing.name == "old" and table == {"key": 1}


def test_object_stands_in_annotations():
    def steer(hidden: nnsight.Object | torch.Tensor) -> nnsight.Object:
        return hidden

    assert steer(torch.ones(1)).item() == 1 and issubclass(nnsight.Object, torch.Tensor)
