"""Walking a wrapped model: names, numbers, paths, aliases, and a model that changes under it."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from nnsight import NNsight
from nnsight.envoy.envoy import Envoy

X = torch.ones(2, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(4))
        self.depth = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x)) * self.scale


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block() for _ in range(3))
        self.absent = None
        self.register_module("empty", None)
        self.register_buffer("mask", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = block(x)
        return x * self.mask


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.trunk(x)
        return self.heads["a"](x) + self.heads["b"](x)

    @property
    def backbone(self) -> nn.Module:
        return self.trunk

    @property
    def elsewhere(self) -> nn.Module:
        return _ELSEWHERE

    @property
    def broken(self) -> int:
        return self.nothing_of_the_sort

    def double(self, x: torch.Tensor) -> torch.Tensor:
        return self(self.trunk(x))


_ELSEWHERE = nn.Linear(1, 1)


@pytest.fixture
def model() -> NNsight:
    return NNsight(Model())


# --- by name --------------------------------------------------------------------------------------


def test_children_are_envoys_of_the_modules(model: NNsight):
    block = model.trunk.h[0]
    assert isinstance(block, Envoy) and block._module is model._module.trunk.h[0]
    assert block is model.trunk.h[0], "the same module has the same envoy as long as it is in use"
    assert block.path == "model.trunk.h.0" and model.path == "model"
    assert NNsight(Model(), "net").trunk.h[1].path == "net.trunk.h.1"


def test_parents_are_known(model: NNsight):
    block = model.trunk.h[0]
    assert block.parent is model.trunk.h and model.parent is None


def test_get_walks_a_path(model: NNsight):
    assert model.get("trunk.h.0.mlp.1") is model.trunk.h[0].mlp[1]
    assert model.trunk.get("h.-1") is model.trunk.h[2]
    assert model.get("") is model
    assert model.get("trunk.h.0.depth") == 3
    with model.trace(X):
        norm = model.get("trunk.h.0.norm.output").save()
    assert torch.equal(norm, model._module.trunk.h[0].norm(X))
    with pytest.raises(AttributeError, match=r"`model\.trunk` \(Trunk\) has no .*'k'"):
        model.get("trunk.k.0")
    with pytest.raises(IndexError, match=r"`model\.trunk\.h` has 3 modules"):
        model.get("trunk.h.9")


# --- by number ------------------------------------------------------------------------------------


def test_lists_of_modules_are_indexed(model: NNsight):
    h = model.trunk.h
    assert [h[i].path for i in (0, 2, -1, -3)] == [
        f"model.trunk.h.{i}" for i in (0, 2, 2, 0)
    ]  # fmt: skip
    assert h[1:] == [h[1], h[2]] and h[::-1] == [h[2], h[1], h[0]] and h[5:] == []
    assert len(h) == 3 and list(h) == [h[0], h[1], h[2]]
    assert [block for block, _ in zip(h, "ab", strict=False)] == [h[0], h[1]]
    for key in (3, -4):
        with pytest.raises(IndexError, match=rf"no element {key}"):
            h[key]


def test_sequences_and_dictionaries_are_indexed(model: NNsight):
    assert model.trunk.h[0].mlp[0] is model.get("trunk.h.0.mlp.0")
    assert model.heads["a"] is model.heads.a and model.heads["b"]._module.out_features == 2
    assert [child.path for child in model.heads] == ["model.heads.a", "model.heads.b"]
    with pytest.raises(AttributeError, match=r"`model\.heads` .*no .*'c'"):
        model.heads["c"]


def test_any_module_is_indexed_by_position(model: NNsight):
    assert model[0] is model.trunk and model[-1] is model.heads
    assert model["trunk.h"] is model.trunk.h


def test_a_module_without_children(model: NNsight):
    leaf = model.trunk.h[0].norm
    assert len(leaf) == 0 and list(leaf) == [] and bool(leaf)
    with pytest.raises(TypeError, match=r"`model\.trunk\.h\.0\.norm\.output\[0\]`"):
        leaf[0]


def test_numbers_with_gaps_are_names():
    model = nn.Module()
    model.add_module("0", nn.Linear(1, 1))
    model.add_module("4", nn.Linear(1, 1))
    wrapped = NNsight(model)
    assert (
        wrapped[4].path == "model.4" and wrapped[0].path == "model.0" and wrapped[1] is wrapped[4]
    )


# --- all of them ----------------------------------------------------------------------------------


def test_modules_lists_children_before_parents(model: NNsight):
    paths = [path for path, _ in model.named_modules()]
    assert paths[-1] == "model" and paths.index("model.trunk.h.0.norm") < paths.index("model.trunk")
    assert sorted(e._module._get_name() for e in model.modules()) == sorted(
        m._get_name() for m in model._module.modules()
    )
    linear = model.modules(lambda envoy: isinstance(envoy._module, nn.Linear))
    assert len(linear) == 5
    assert model.modules(lambda e: e.path == "model.trunk.h", names=True) == [
        ("model.trunk.h", model.trunk.h)
    ]
    assert [path for path, _ in model.trunk.h[0].named_modules()][-1] == "model.trunk.h.0"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.steps = nn.ModuleList([self.first, nn.ReLU(), self.first])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


def test_a_shared_module_has_one_envoy_under_all_its_names():
    model = NNsight(Tied())
    assert model.first is model.second is model.steps[0] is model.steps[2]
    assert len(model.modules()) == 4
    with model.trace(X):
        by_one = model.first.output.save()
        again = model.steps[2].output.save()
    assert by_one is again
    for name in ("first", "second"):
        with model.trace(X):
            value = model.get(f"{name}.output").save()
        assert torch.equal(value, model._module.first(X))


# --- other names ----------------------------------------------------------------------------------

RENAMES: list[tuple[dict[Any, Any], str, str]] = [
    ({"trunk": "transformer"}, "transformer.h.0", "trunk.h.0"),
    ({"trunk.h": "layers"}, "layers.0", "trunk.h.0"),
    ({".trunk.h": "layers"}, "layers.2", "trunk.h.2"),
    ({"mlp": "ff"}, "trunk.h.1.ff.0", "trunk.h.1.mlp.0"),
    ({"h.*.mlp": "ff"}, "trunk.h.1.ff", "trunk.h.1.mlp"),
    ({"mlp": ["ff", "feed_forward"]}, "trunk.h.1.feed_forward", "trunk.h.1.mlp"),
    ({nn.LayerNorm: "ln"}, "trunk.h.0.ln", "trunk.h.0.norm"),
    ({"trunk": "body", "trunk.h": "layers", "mlp": "ff"}, "layers.1.ff", "trunk.h.1.mlp"),
    ({"trunk.h": "heads.layers"}, "heads.layers.0", "trunk.h.0"),
]


@pytest.mark.parametrize(("rename", "alias", "real"), RENAMES, ids=[str(r[0]) for r in RENAMES])
def test_other_names_lead_to_the_same_envoy(rename: dict[Any, Any], alias: str, real: str):
    model = NNsight(Model(), rename=rename)
    assert model.get(alias) is model.get(real)
    with model.trace(X):
        value = model.get(f"{alias}.output" if not alias.endswith("layers") else real).save()
    assert isinstance(value, torch.Tensor)
    assert model.get(real).path == f"model.{real}"


def test_other_names_show():
    model = NNsight(Model(), rename={"trunk.h": "layers", "mlp": "ff"})
    assert "(layers/h)" in repr(model) and "(ff/mlp)" in repr(model.layers[0])
    assert "layers/h" in model._repr_html_()
    assert "layers" in dir(model)
    with pytest.raises(AttributeError, match=r"Did you mean `layers`"):
        print(model.layer)


def test_a_rename_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'layerz' of `rename` matches nothing"):
        NNsight(Model(), rename={"layerz": "layers"})
    with pytest.raises(ValueError, match=r"has a `\.output` of its own"):
        NNsight(Model(), rename={"trunk": "output"})


class Colliding(nn.Module):
    NAMES = ("output", "input", "inputs", "skip", "trace", "get", "path", "run", "tree", "parent")

    def __init__(self) -> None:
        super().__init__()
        for name in (*self.NAMES, "save", "source", "next"):
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self._modules.values():
            x = module(x)
        return x


@pytest.mark.parametrize("name", [*Colliding.NAMES, "save", "source", "next"])
def test_a_child_called_like_a_word_of_ours(name: str):
    model = NNsight(Colliding())
    child = getattr(model, f"E_{name}")
    assert child._module is model._module._modules[name]
    assert child.path == f"model.{name}" and model.get(f"E_{name}") is child
    with model.trace(X):
        value = child.output.save()
        whole = model.output.save()
    assert torch.equal(whole, model._module(X)) and value.shape == (2, 4)
    assert child in list(model)


def test_the_words_of_ours_keep_their_meaning():
    model = NNsight(Colliding())
    assert model.path == "model" and model.get("E_path").path == "model.path"
    assert len(model.modules()) == len(Colliding.NAMES) + 4
    assert "(output -> .E_output)" in repr(model) and "(save): " in repr(model)
    with model.trace(X):
        model.E_output.output = torch.zeros(2, 4)
        zeroed = model.E_input.input.save()
    assert not zeroed.any()


# --- everything else is the module's --------------------------------------------------------------


def test_attributes_are_those_of_the_module(model: NNsight):
    block = model.trunk.h[0]
    assert block.scale is block._module.scale and block.depth == 3 and block.training
    assert model.trunk.mask is model._module.trunk.mask
    assert torch.equal(model.double(X), model._module.double(X))
    assert [n for n, _ in model.named_parameters()] == [
        n for n, _ in model._module.named_parameters()
    ]
    assert model.trunk.absent is None and model.trunk.empty is None
    assert hasattr(block, "depth") and not hasattr(block, "width")
    assert getattr(block, "width", 7) == 7


def test_a_module_under_another_name_is_its_envoy(model: NNsight):
    assert model.backbone is model.trunk
    assert model.elsewhere is _ELSEWHERE


def test_a_property_that_fails_tells_its_own_reason(model: NNsight):
    with pytest.raises(AttributeError, match="nothing_of_the_sort"):
        print(model.broken)


def test_setting_reaches_the_module(model: NNsight):
    block = model.trunk.h[0]
    scale = nn.Parameter(torch.zeros(4))
    block.scale = scale
    block.depth = 5
    block.training = False
    model.trunk.mask = torch.zeros(4)
    assert block._module.scale is scale and block._module.depth == 5 and not block._module.training
    assert not model._module(X).equal(torch.zeros(2, 2)) and not model._module.trunk(X).any()
    assert dict(block._module.named_parameters())["scale"] is scale


def test_what_the_module_does_not_have_stays_on_the_envoy(model: NNsight):
    model.note = "mine"
    assert model.note == "mine" and not hasattr(model._module, "note")
    with model.trace(X):
        model.note = "changed in a block"
    assert model.note == "changed in a block"


def test_dir_lists_children_attributes_and_words_of_ours(model: NNsight):
    assert {"trunk", "heads", "output", "trace", "named_parameters", "double"} <= set(dir(model))
    assert {"scale", "norm", "depth"} <= set(dir(model.trunk.h[0]))


def test_moving_returns_the_envoy(model: NNsight):
    assert model.to(torch.float64) is model and model.trunk.h[0].scale.dtype == torch.float64
    assert model.cpu() is model and model.device == torch.device("cpu")
    assert model.devices == {torch.device("cpu")}
    assert model.eval() is model and not model.training
    assert model.half().trunk.train() is model.trunk and model.trunk.training
    assert (
        model.float().requires_grad_(False) is model
        and model.trunk.h[0].scale.dtype == torch.float32
    )
    assert NNsight(nn.ReLU()).device is None and NNsight(nn.ReLU()).devices == set()


def test_it_prints_as_the_module_does(model: NNsight):
    assert repr(model) == str(model) == repr(model._module)
    assert repr(model.trunk.h[0]) == repr(model._module.trunk.h[0])
    assert "<details" in model._repr_html_() and "Trunk" in model._repr_html_()
    assert model.trunk.h[0].path in model.trunk.h[0]._repr_html_()


# --- a model that changes -------------------------------------------------------------------------


def traced(model: NNsight, path: str, x: torch.Tensor = X) -> Any:
    with model.trace(x):
        value = model.get(f"{path}.output").save()
    return value


def test_a_module_set_on_an_envoy_joins_the_model(model: NNsight):
    traced(model, "trunk")
    model.trunk.h[0].probe = nn.Linear(4, 1)
    probe = model.trunk.h[0].probe
    assert isinstance(probe, Envoy) and probe.path == "model.trunk.h.0.probe"
    assert "probe.weight" in model._module.trunk.h[0].state_dict()
    assert "(probe): Linear" in repr(model.trunk.h[0])
    with model.trace(X):
        value = probe(model.trunk.h[0].output).save()
    assert value.shape == (2, 1)


def test_an_envoy_set_on_an_envoy_gives_its_module(model: NNsight):
    other = NNsight(nn.Linear(4, 4))
    model.trunk.h[0].norm = other
    assert model._module.trunk.h[0].norm is other._module
    assert torch.equal(traced(model, "trunk.h.0.norm"), other._module(X))


def test_a_module_added_behind_our_back(model: NNsight):
    before = traced(model, "trunk")
    model._module.trunk.h.append(Block())
    assert len(model.trunk.h) == 4 and model.trunk.h[3].path == "model.trunk.h.3"
    assert not torch.equal(traced(model, "trunk"), before)
    assert torch.equal(traced(model, "trunk.h.3"), traced(model, "trunk"))
    assert torch.equal(traced(model, "trunk.h.3.norm"), model._module.trunk.h[3].norm(before))


def test_a_module_replaced_behind_our_back(model: NNsight):
    block = model.trunk.h[0]
    traced(model, "trunk.h.0.norm")
    model._module.trunk.h[0] = new = Block()
    assert model.trunk.h[0] is block and block._module is new
    assert block.norm._module is new.norm
    with model.trace(X):
        value = block.norm.output.save()
    assert torch.equal(value, new.norm(X))
    block.norm = nn.Identity()
    assert torch.equal(traced(model, "trunk.h.0.norm"), X)


def test_a_module_taken_away(model: NNsight):
    model.trunk.h[0].probe = nn.Linear(4, 1)
    del model.trunk.h[0].probe
    assert "probe" not in dict(model._module.trunk.h[0].named_children())
    with pytest.raises(AttributeError, match="probe"):
        print(model.trunk.h[0].probe)
    del model._module.trunk.h[2]
    assert len(model.trunk.h) == 2
    model.note = 1
    del model.note
    with pytest.raises(AttributeError, match="note"):
        print(model.note)


def test_the_whole_model_replaced(model: NNsight):
    block = model.trunk.h[1]
    traced(model, "trunk")
    new = Model()
    model._update(new)
    assert model._module is model._model is model.local_model is new
    assert block._module is new.trunk.h[1] and model.trunk.h[1] is block
    assert torch.equal(traced(model, "trunk.h.1"), new.trunk.h[1](new.trunk.h[0](X)))


def test_wrapping_twice_gives_two_trees_over_one_module(model: NNsight):
    twin = NNsight(model._module)
    assert torch.equal(traced(model, "trunk"), traced(twin, "trunk"))
    twin.trunk.h[0].norm = nn.Identity()
    assert torch.equal(traced(model, "trunk.h.0.norm"), X)


# --- copies ---------------------------------------------------------------------------------------


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def by_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch])
def test_a_copy_has_a_model_of_its_own(duplicate: Any):
    model = NNsight(Model(), "net", rename={"trunk.h": "layers"})
    model.note = "mine"
    expected = traced(model, "trunk")
    twin = duplicate(model)
    assert type(twin) is NNsight and twin._module is not model._module and twin.note == "mine"
    assert twin.layers[1] is twin.trunk.h[1] and twin.layers[1].path == "net.trunk.h.1"
    assert torch.equal(traced(twin, "trunk"), expected)
    twin.trunk.mask.zero_()
    assert torch.equal(traced(model, "trunk"), expected) and not traced(twin, "trunk").any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
def test_a_copy_of_a_part_is_a_model_of_its_own(duplicate: Any):
    model = NNsight(Model(), rename={"mlp": "ff"})
    part = duplicate(model.trunk.h[1])
    assert part.path == "model" and part.ff is part.mlp and part.parent is None
    assert part.get("ff.0").path == "model.mlp.0"
    with part.trace(X):
        value = part.ff.output.save()
    assert torch.equal(value, part._module.mlp(part._module.norm(X)))


def test_a_shallow_copy_shares_the_module(model: NNsight):
    twin = copy.copy(model)
    assert twin._module is model._module and twin.tree is not model.tree
    assert torch.equal(traced(twin, "trunk"), traced(model, "trunk"))
