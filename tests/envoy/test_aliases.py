"""`rename=`: which modules get which other names, and what is said of one that cannot be done."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnsight.envoy.aliases import resolve

torch.set_num_threads(1)

RESERVED = frozenset({"output", "input", "trace"})


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.dropout = 0.1
        self.scale = nn.Parameter(torch.ones(2))

    @property
    def device(self) -> torch.device:
        raise RuntimeError("no property of the model runs while it is renamed")


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(3, 2)
        self.h = nn.ModuleList(Block() for _ in range(2))
        self.absent = None
        self.register_module("empty", None)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = Transformer()
        self.lm_head = nn.Linear(2, 3)
        self.head = nn.Sequential()
        self.register_buffer("mask", torch.ones(1))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


def each(alias: str, target: str) -> dict[str, dict[str, str]]:
    """The table of an alias on both blocks, for a path below each."""
    blocks = ["transformer.h.0", "transformer.h.1"]
    return {block: {alias: f"{block}.{target}"} for block in blocks}


TABLES = [
    # nothing
    (None, {}),
    ({}, {}),
    ({"mlp": []}, {}),
    # a child name: wherever there is one
    ({"transformer": "model"}, {"": {"model": "transformer"}}),
    ({"h": "layers"}, {"transformer": {"layers": "transformer.h"}}),
    ({"mlp": "ff"}, each("ff", "mlp")),
    # several aliases, several keys at one place
    (
        {"h": ["layers", "blocks"]},
        {"transformer": {"layers": "transformer.h", "blocks": "transformer.h"}},
    ),
    (
        {"wte": "embed", "h": ("layers",)},
        {"transformer": {"embed": "transformer.wte", "layers": "transformer.h"}},
    ),
    # a path, relative to any module
    ({"transformer.h": "layers"}, {"": {"layers": "transformer.h"}}),
    ({"attn.proj": "out"}, each("out", "attn.proj")),
    ({"transformer.h.1.mlp": "last"}, {"": {"last": "transformer.h.1.mlp"}}),
    ({"h.0": "first"}, {"transformer": {"first": "transformer.h.0"}}),
    # from the root only
    ({".transformer.h": "layers"}, {"": {"layers": "transformer.h"}}),
    ({".lm_head": "unembed"}, {"": {"unembed": "lm_head"}}),
    # `*` stands for one component; the alias is mounted on what the last one matches
    ({"transformer.h.*.attn": "self_attn"}, each("self_attn", "attn")),
    ({".transformer.h.*.attn.proj": "out"}, each("out", "attn.proj")),
    ({"h.*.attn": "self_attn"}, each("self_attn", "attn")),
    ({"*.h": "layers"}, {"transformer": {"layers": "transformer.h"}}),
    (
        {"h.*.*.proj": "out"},
        {f"transformer.h.{i}.attn": {"out": f"transformer.h.{i}.attn.proj"} for i in range(2)},
    ),
    # a class: modules with exactly one direct child of it
    ({Attention: "self_attn"}, each("self_attn", "attn")),
    ({Transformer: "model"}, {"": {"model": "transformer"}}),
    ({nn.ModuleList: "layers"}, {"transformer": {"layers": "transformer.h"}}),
    # a dotted alias is mounted deeper: on a child, or on another alias, in any order
    ({"lm_head": "head.unembed"}, {"head": {"unembed": "lm_head"}}),
    (
        {"transformer.h": "model.layers", "transformer": "model"},
        {"": {"model": "transformer"}, "transformer": {"layers": "transformer.h"}},
    ),
    (
        {"lm_head": "a.b.c", "transformer.h": "a.b", "transformer": "a"},
        {
            "": {"a": "transformer"},
            "transformer": {"b": "transformer.h"},
            "transformer.h": {"c": "lm_head"},
        },
    ),
    (
        {"mlp": "attn.ff"},
        {f"transformer.h.{i}.attn": {"ff": f"transformer.h.{i}.mlp"} for i in (0, 1)},
    ),
    ({"lm_head": "transformer.h.0.lens"}, {"transformer.h.0": {"lens": "lm_head"}}),
    # one target twice, and a module's own name
    (
        {"h": "layers", "transformer.h": "transformer.layers"},
        {"transformer": {"layers": "transformer.h"}},
    ),
    ({"mlp": "mlp", "lm_head": ["lm_head", "unembed"]}, {"": {"unembed": "lm_head"}}),
]


@pytest.mark.parametrize(("rename", "table"), TABLES, ids=[str(rename) for rename, _ in TABLES])
def test_the_table_says_what_is_mounted_where(model, rename, table):
    assert resolve(model, rename, RESERVED) == table


@pytest.mark.parametrize("rename", [rename for rename, _ in TABLES], ids=str)
def test_every_place_and_every_target_is_a_module(model, rename):
    for place, aliases in resolve(model, rename, RESERVED).items():
        model.get_submodule(place)
        for target in aliases.values():
            model.get_submodule(target)


def test_a_subclass_is_of_its_class():
    class Special(Attention):
        pass

    block = Block()
    block.attn = Special()
    assert resolve(block, {Attention: "self_attn"}, ()) == {"": {"self_attn": "attn"}}


def test_a_shared_module_has_its_alias_on_each_path():
    block = Block()
    model = nn.ModuleDict({"a": block, "b": block})
    table = resolve(model, {"mlp": "ff"}, ())
    assert table == {"a": {"ff": "a.mlp"}, "b": {"ff": "b.mlp"}}


def test_an_alias_may_have_the_name_of_a_child_elsewhere(model):
    assert resolve(model, {"transformer.h.0.mlp": "mlp"}, ()) == {
        "": {"mlp": "transformer.h.0.mlp"}
    }


def test_a_module_on_meta_is_renamed_like_any_other():
    with torch.device("meta"):
        model = Model()
    assert resolve(model, {"mlp": "ff"}, ()) == each("ff", "mlp")


ERRORS = {
    "no such child, a near one": (
        {"transfomer": "model"},
        "The key 'transfomer' of `rename` matches nothing in Model: no module can be reached by it "
        "from any module. Did you mean 'transformer' or ",
    ),
    "no such path, a near one": ({"h.0.atn": "a"}, "Did you mean 'h.*.attn'"),
    "a number left out": ({"h.attn": "a"}, "Did you mean 'h.*.attn'"),
    "not at the root": (
        {".h": "layers"},
        "no module can be reached by it from the root. Did you mean '.transformer.h'?",
    ),
    "nothing near": (
        {"zzzzzz": "a"},
        "matches nothing in Model: no module can be reached by it from any module. A key is the "
        "name of a child ('mlp'), a path ('transformer.h', or '.transformer.h' from the root "
        "only), a path with `*` in it ('h.*.attn') or a module class. The children of the root: "
        "transformer, lm_head, head.",
    ),
    "the empty name": ({"": "a"}, "The key '' of `rename` matches nothing"),
    "the root": ({".": "a"}, "The key '.' of `rename` matches nothing"),
    "two dots": ({"transformer..h": "a"}, "Did you mean 'transformer.h'"),
    "not a module": ({"empty": "a"}, "The key 'empty' of `rename` matches nothing"),
    "a parameter": ({"scale": "a"}, "The key 'scale' of `rename` matches nothing"),
    "no alias, and no match": ({"zzzzzz": []}, "The key 'zzzzzz' of `rename` matches nothing"),
    "the wrong way round": (
        {"layers": "transformer.h"},
        "`rename` is {real: alias}: write {'transformer.h': 'layers'}.",
    ),
    "no child of a class": (
        {nn.Conv1d: "conv"},
        "The key Conv1d of `rename` matches nothing in Model: no module is a direct child of that "
        "class. A key is",
    ),
    "a class with a near one": (
        {nn.TransformerEncoder: "a"},
        "no module is a direct child of that class. Did you mean Transformer?",
    ),
    "neither name nor class": ({3: "a"}, "`rename` has the key 3. A key is the name of a child"),
    "several children of a class": (
        {Block: "block"},
        "The key Block of `rename` is ambiguous: `transformer.h` has 2 direct children of that "
        "class (0, 1). Name the one you mean, with the key 'h.0' for instance, or name what holds "
        "them.",
    ),
    "a star at the end": (
        {"transformer.h.*": "block"},
        "The key 'transformer.h.*' of `rename` ends in `*`: its alias would name many modules at "
        "once. Leave the `*` out to name what holds them, or go on to a child of each: "
        "'transformer.h.*.mlp'.",
    ),
    "a star alone": ({"*": "a"}, "The key '*' of `rename` ends in `*`"),
    "a child in the way": (
        {"mlp": "attn"},
        "`rename` gives 'mlp' the alias 'attn', which would shadow a child `attn` of "
        "`transformer.h.0`. Write another alias; or, to leave that place alone, a longer path as "
        "the key, with a leading dot if it starts at the root.",
    ),
    "an absent child in the way": ({"h": "empty"}, "would shadow a child `empty` of `transformer`"),
    "an attribute in the way": ({"mlp": "dropout"}, "would shadow an attribute `dropout` of"),
    "a parameter in the way": ({"mlp": "scale"}, "would shadow an attribute `scale` of"),
    "a buffer in the way": ({"lm_head": "mask"}, "would shadow an attribute `mask` of the root"),
    "a property in the way": ({"mlp": "device"}, "would shadow an attribute `device` of"),
    "a method in the way": ({"lm_head": "forward"}, "would shadow an attribute `forward` of"),
    "in the way further down": (
        {"lm_head": "transformer.wte"},
        "`rename` gives 'lm_head' the alias 'transformer.wte', which would shadow a child `wte` of "
        "`transformer`.",
    ),
    "a name of the Envoy": (
        {"mlp": "output"},
        "`rename` gives 'mlp' the alias 'output', but every Envoy has a `.output` of its own. "
        "Write another alias, such as 'output_module'.",
    ),
    "a name of the Envoy, further down": ({"lm_head": "head.trace"}, "has a `.trace` of its own"),
    "not an identifier": (
        {"mlp": "feed-forward"},
        "`rename` gives 'mlp' the alias 'feed-forward', which is no name that Python lets you "
        "write after a dot. Write for instance 'feed_forward'.",
    ),
    "a number": ({"mlp": "2nd"}, "Write for instance '_2nd'."),
    "a keyword": ({"mlp": "lambda"}, "Write for instance 'lambda_'."),
    "an empty alias": ({"mlp": ""}, "the alias '', which is no name"),
    "a leading dot in an alias": ({"lm_head": ".unembed"}, "Write for instance 'unembed'."),
    "not a string": ({"mlp": 3}, "Give a string, or a list of strings."),
    "a list of something else": ({"mlp": ["ff", None]}, "the alias None, which is no name"),
    "two targets": (
        {"wte": "x", "h": "x"},
        "`rename` gives the alias 'x' at `transformer` to two modules: `transformer.wte` (key "
        "'wte') and `transformer.h` (key 'h'). Give each an alias of its own.",
    ),
    "two targets, one by class": (
        {Transformer: "x", "lm_head": "x"},
        "the alias 'x' at the root to two modules: `transformer` (key Transformer) and `lm_head`",
    ),
    "a dotted alias that leads nowhere": (
        {"lm_head": "tail.unembed"},
        "The impossible dotted alias 'tail.unembed' for 'lm_head' in `rename`: `unembed` cannot be "
        "mounted below the root, as the root has no child and no alias `tail`. Write one of its "
        "children (transformer, lm_head, head), or give one the alias 'tail' in the same `rename`.",
    ),
    "a dotted alias that stops on the way": (
        {"lm_head": "model.layers.lens", "transformer": "model"},
        "as `transformer` has no child and no alias `layers`. Write one of its children (wte, h",
    ),
    "dotted aliases in a circle": (
        {"lm_head": "a.b", "transformer": "b.a"},
        "The impossible dotted alias 'a.b' for 'lm_head'",
    ),
    "a dotted alias that leads nowhere at one place": (
        {"proj": "Linear.x"},
        "below `transformer.h.0.attn`, as `transformer.h.0.attn` has no child and no alias "
        "`Linear`.",
    ),
}


@pytest.mark.parametrize(("rename", "message"), ERRORS.values(), ids=list(ERRORS))
def test_a_rename_that_cannot_be_done_says_what_to_write(model, rename, message):
    with pytest.raises(ValueError) as caught:
        resolve(model, rename, RESERVED)
    assert message in str(caught.value)
    assert type(caught.value) is ValueError


def test_many_children_of_a_class_are_not_all_listed():
    model = nn.ModuleList(nn.ReLU() for _ in range(40))
    with pytest.raises(ValueError, match=r"has 40 direct children .*\(0, 1, 2, 3, 4, \.\.\., 39\)"):
        resolve(model, {nn.ReLU: "act"}, ())


def test_a_large_model_is_renamed_at_once():
    """The price is one walk over the names per key, whatever the number of experts."""
    experts = nn.ModuleList(nn.ModuleDict({"mlp": nn.Identity()}) for _ in range(5000))
    table = resolve(experts, {"mlp": ["ff", "feed"], "*.mlp": "again"}, ())
    assert len(table) == 5000
    with pytest.raises(ValueError, match="Did you mean 'mlp'"):
        resolve(experts, {"mpl": "ff"}, ())
