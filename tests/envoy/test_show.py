"""How a tree of modules prints: PyTorch's own text, with aliases, with collisions, and as HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from nnsight.envoy.aliases import resolve
from nnsight.envoy.show import html, text

torch.set_num_threads(1)


class Wordy(nn.Module):
    """An `extra_repr` of several lines, beside children."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_module("absent", None)

    def extra_repr(self) -> str:
        return "first=1\nsecond=<2>"


class OwnText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def __repr__(self) -> str:
        return "own\n  text"


class OtherName(nn.Module):
    def _get_name(self) -> str:
        return "Quantized"


def blocks(*widths: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(nn.Linear(n, n), nn.ReLU()) for n in widths)


def shared() -> nn.Module:
    linear = nn.Linear(2, 2)
    return nn.Sequential(linear, nn.ModuleList([linear, linear]))


def appended() -> nn.Module:
    """Names of a `ModuleList` that are not its positions."""
    several = blocks(2, 2)
    several.add_module("sae", nn.Linear(2, 1))
    several.add_module("9", nn.Linear(2, 9))
    return several


def with_a_gap() -> nn.Module:
    several = blocks(2, 2)
    several.add_module("2", None)
    return several


def gpt2(layers: int = 3) -> nn.Module:
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=8, n_head=2, vocab_size=11))


def bert() -> nn.Module:
    config = BertConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=11,
    )
    with torch.device("meta"):
        return BertModel(config)


MODELS = {
    "gpt2": gpt2,
    "bert": bert,
    "a leaf": lambda: nn.Linear(2, 3, bias=False),
    "no children, no extra": lambda: nn.Sequential(),
    "an empty list": lambda: nn.ModuleList(),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())),
    "a dict": lambda: nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.ModuleDict({"c": nn.GELU()})}),
    "equal blocks": lambda: blocks(2, 2, 2),
    "unequal blocks": lambda: blocks(2, 2, 3, 2, 2, 2),
    "lists in lists": lambda: nn.ModuleList([blocks(2, 2), blocks(2, 2), blocks(3)]),
    "a list with None": with_a_gap,
    "a list with names": appended,
    "several lines of extra": lambda: nn.Sequential(Wordy(), nn.ModuleList([Wordy(), Wordy()])),
    "a text of its own": lambda: nn.ModuleList([OwnText(), OwnText(), nn.Sequential(OwnText())]),
    "a name of its own": lambda: nn.Sequential(OtherName()),
    "shared": shared,
    "parameters in containers": lambda: nn.Sequential(
        nn.ParameterList([torch.ones(2)]), nn.ParameterDict({"a": torch.ones(2)})
    ),
    "parametrized": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3)),
    "a transformer": lambda: nn.Transformer(8, 2, 2, 2, 8, batch_first=True),
}


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def model(request) -> nn.Module:
    return request.param()


def test_without_aliases_it_is_the_text_of_torch(model):
    assert text(model) == repr(model)


def test_so_it_is_for_every_module_in_it(model):
    for path, module in model.named_modules():
        assert text(module, path=path) == repr(module)


def test_blank_lines_stay_blank():
    """Their spaces are not PyTorch's everywhere: it has two ways to indent one."""

    class Blank(nn.Module):
        def extra_repr(self) -> str:
            return "a\n\nb"

    model = nn.ModuleList([Blank(), nn.Sequential(Blank())])
    stripped = [re.sub(r" +$", "", shown, flags=re.M) for shown in (text(model), repr(model))]
    assert stripped[0] == stripped[1]


# --- aliases and collisions -----------------------------------------------------------------------


def lines(shown: str) -> list[str]:
    return [line.strip() for line in shown.split("\n")]


ROWS = {
    "a child": ({"transformer": "model"}, "(model/transformer): GPT2Model("),
    "two aliases": ({"lm_head": ["head", "unembed"]}, "(head/unembed/lm_head): Linear("),
    "inside of folded blocks": ({"mlp": "ff"}, "(ff/mlp): GPT2MLP("),
    "from further up": ({"transformer.h": "layers"}, "(layers/h): ModuleList("),
    "from two places": ({"transformer.h": "layers", "h": "layers"}, "(layers/h): ModuleList("),
    "mounted elsewhere": ({"lm_head": "transformer.out"}, "(out/lm_head): Linear("),
}


@pytest.mark.parametrize(("rename", "row"), ROWS.values(), ids=list(ROWS))
def test_an_alias_stands_before_the_name(rename, row):
    model = gpt2()
    table = resolve(model, rename, ())
    shown = text(model, aliases=table)
    assert sum(line.startswith(row) for line in lines(shown)) == 1
    assert re.sub(r"\((?:\w+/)+", "(", shown) == repr(model)  # and nothing else is different


def test_blocks_with_the_same_aliases_inside_are_folded():
    model = gpt2(12)
    shown = text(model, aliases=resolve(model, {"attn": "self_attn"}, ()))
    assert "(0-11): 12 x GPT2Block(" in lines(shown)


def test_a_block_with_an_alias_has_a_row_of_its_own():
    model = nn.Sequential(blocks(2, 2, 2, 2))
    shown = text(model, aliases={"": {"second": "0.1"}})
    assert [line for line in lines(shown) if "Sequential(" in line] == [
        "Sequential(",
        "(0): Sequential(",
        "(second/1): Sequential(",
        "(2-3): 2 x Sequential(",
    ]


def test_blocks_that_differ_in_an_alias_are_not_folded():
    model = blocks(2, 2, 2)
    assert text(model, aliases={"1": {"act": "1.1"}}) == (
        "ModuleList(\n"
        "  (0): Sequential(\n"
        "    (0): Linear(in_features=2, out_features=2, bias=True)\n"
        "    (1): ReLU()\n"
        "  )\n"
        "  (1): Sequential(\n"
        "    (0): Linear(in_features=2, out_features=2, bias=True)\n"
        "    (act/1): ReLU()\n"
        "  )\n"
        "  (2): Sequential(\n"
        "    (0): Linear(in_features=2, out_features=2, bias=True)\n"
        "    (1): ReLU()\n"
        "  )\n"
        ")"
    )


def test_a_part_of_a_model_is_shown_with_the_table_of_the_whole():
    model = gpt2()
    table = resolve(model, {"transformer.h": "layers", "wte": "embed"}, ())
    shown = text(model.get_submodule("transformer"), aliases=table, path="transformer")
    assert shown.startswith("GPT2Model(\n  (embed/wte): Embedding(")
    assert "\n  (layers/h): ModuleList(" in shown


def test_a_child_that_the_envoy_hides_says_how_to_read_it():
    model = bert()
    shown = text(model, collisions=frozenset({"output"}))
    assert lines(shown).count("(output -> .E_output): BertSelfOutput(") == 1  # blocks are folded
    assert lines(shown).count("(output -> .E_output): BertOutput(") == 1
    assert shown.replace("output -> .E_output", "output") == repr(model)


def test_a_hidden_child_with_an_alias_says_both():
    model = nn.ModuleDict({"output": nn.ReLU()})
    shown = text(model, aliases={"": {"out": "output"}}, collisions={"output"})
    assert shown == "ModuleDict(\n  (out/output -> .E_output): ReLU()\n)"


# --- HTML -----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Reads a fragment strictly: the tags that are open, and what was seen."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.content = ""
        self.feed(fragment)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append((tag, dict(attrs)))
        self.content += "\n" if tag in ("div", "summary") else ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.content += data


def rows(fragment: str) -> list[str]:
    """The lines that a reader sees with everything unfolded."""
    return [line.strip() for line in Reader(fragment).content.split("\n") if line.strip()]


def test_html_has_the_rows_of_the_text(model):
    def bare(line: str) -> str:
        return re.sub(r" [\d,]+ parameters?( each)?$", "", line.strip()).removesuffix("(")

    told = [bare(line) for line in text(model).split("\n") if line.strip() not in ("", ")")]
    assert [bare(line) for line in rows(html(model))] == told


def test_html_is_self_contained(model):
    reader = Reader(html(model, title="model"))
    assert {tag for tag, _ in reader.seen} <= {"div", "details", "summary", "span"}
    assert {name for _, attributes in reader.seen for name in attributes} <= {"style", "open"}


def test_only_the_root_is_open():
    details = [attributes for tag, attributes in Reader(html(gpt2())).seen if tag == "details"]
    assert len(details) > 3
    assert ["open" in attributes for attributes in details] == [True] + [False] * (len(details) - 1)


def test_html_counts_parameters():
    model = nn.Sequential(nn.Linear(100, 100), nn.ModuleList([nn.PReLU(), nn.PReLU()]), nn.ReLU())
    assert rows(html(model)) == [
        "Sequential 10,102 parameters",
        "(0): Linear(in_features=100, out_features=100, bias=True) 10,100 parameters",
        "(1): ModuleList 2 parameters",
        "(0-1): 2 x PReLU(num_parameters=1) 1 parameter each",
        "(2): ReLU()",
    ]


def test_a_parameter_without_a_size_is_not_counted():
    assert rows(html(nn.LazyLinear(3))) == [text(nn.LazyLinear(3))]


def test_blocks_of_another_size_are_not_one_row_of_html():
    class Silent(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(size))

    model = nn.ModuleList([Silent(2), Silent(3)])
    assert text(model) == repr(model) == "ModuleList(\n  (0-1): 2 x Silent()\n)"
    assert rows(html(model))[1:] == ["(0): Silent() 2 parameters", "(1): Silent() 3 parameters"]


def test_html_shows_aliases_collisions_and_a_title():
    model = bert()
    table = resolve(model, {"encoder.layer": "layers"}, ())
    shown = rows(html(model, aliases=table, collisions={"output"}, title="my <bert>"))
    assert shown[0].startswith("my <bert>: BertModel ")
    assert any(row.startswith("(layers/layer): ModuleList ") for row in shown)
    assert any(row.startswith("(output -> .E_output): BertOutput ") for row in shown)


def test_what_a_module_says_is_escaped():
    fragment = html(nn.Sequential(Wordy()), title="<script>")
    assert "<script>" not in fragment and "&lt;script&gt;" in fragment
    assert "second=&lt;2&gt;" in fragment
