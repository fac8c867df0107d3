"""`Family`: where one kind of transformer keeps what all of them have; and how one is guessed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.nn import Module, ModuleList

PRE, POST, BETWEEN, PARALLEL, ODD = "pre", "post", "between", "parallel", "odd"
ORDERS = (PRE, POST, BETWEEN, PARALLEL, ODD)
OWN, BLOCKS, BY_HEAD, BY_GROUP = "own", "blocks", "by head", "by group"
GATED = "gated"  # each of its own, and a head's queries have a gate of its output behind them


@dataclass(frozen=True)
class Family:
    """One stack of layers. A path with nothing at its end means that there is no such thing.

    The paths of `layers` and `norm` start at the base model (or at the model), those of the
    attention's parts at the attention, `down` at the MLP, all others at a layer. A path may list
    alternatives, `"mlp.router|mlp.gate"`: the first that is there counts, layer by layer.
    """

    layers: str = "layers"  # the list of layers
    norm: str = "norm"  # after the last layer
    stack: str = ""  # "encoder", "decoder": where a model has several, as the path starts
    attn: str = "self_attn"
    cross: str = ""  # the attention to another stack
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    joined: str = OWN  # q, k, v: of a projection each, or how one projection holds several
    out: str = "o_proj"  # the projection behind the heads
    kernel: str = ""  # the module whose forward computes attention, where it is not `attn`
    pattern: str = ""  # a value that is the pattern, where no call in that forward gives it
    mlp: str = "mlp"  # its parts are on the layer itself if it is not there
    down: str = "down_proj"  # the projection that ends the MLP: what goes in is its activation
    router: str = "mlp.router|mlp.gate|block_sparse_moe.gate"
    mid: str = "post_attention_layernorm.input"  # the stream between attention and MLP
    # PRE: a branch's sum is plain; POST: the sum is normed; BETWEEN: what a branch gives is normed;
    # PARALLEL: attention and MLP read the same; ODD: none of these
    order: str = PRE
    attn_norm: str = ""  # what a branch goes through, for `POST` and `BETWEEN`
    cross_norm: str = ""
    mlp_norm: str = ""
    scale: float = 1.0  # what a branch gives is multiplied by this before it is added
    heads: str = "num_attention_heads"  # how many heads, as the config calls it
    width: int = 0  # of a head's queries and keys, where no config says it as others do
    v_width: int = 0  # of its values, where that is another
    # why it has none of a name, "attn.k"
    lacks: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"`order` is {self.order!r}, not one of {', '.join(ORDERS)}")


def alone(family: Family) -> Family:
    """A stack of a model that has only this one: there is nothing else for it to look at."""
    if not family.cross or family.stack != "decoder":
        return family
    mid = f"{family.attn_norm}.output" if family.attn_norm else family.mid
    return replace(family, cross="", mid=mid)


def at(module: Module, path: str) -> Module | None:
    """The module at `path` below `module`; None if there is none."""
    for name in path.split(".") if path else ():
        children = module._modules
        if name not in children or children[name] is None:
            return None
        module = children[name]  # type: ignore[assignment] # not None
    return module


def chosen(module: Module, path: str) -> str | None:
    """The first alternative of `path` that leads to a module below this one."""
    return next((one for one in path.split("|") if one and at(module, one) is not None), None)


# --- a family that nobody has told of -------------------------------------------------------------

_NORMS = "norm|final_norm|ln_f|final_layer_norm|final_layernorm|norm_f|layer_norm"
_ATTN = "self_attn|attn|attention|self_attention|mixer.self_attn"
_PARTS = {
    "q": "q_proj|query|q_lin|wq|q",
    "k": "k_proj|key|k_lin|wk|k",
    "v": "v_proj|value|v_lin|wv|v",
    "out": "o_proj|out_proj|dense|c_proj|out_lin|wo|Wo|o",
}
_MLPS = "mlp|feed_forward|ffn|ff|block_sparse_moe"
_DOWNS = "down_proj|c_proj|fc2|dense_4h_to_h|fc_out|lin2|w2|wo|Wo"


def guessed(root: Module) -> tuple[str, Family] | None:
    """What can be told of a model from the names of its modules: its base, and a family.

    What names cannot tell (`resid_mid`, the parts of a fused projection) is left out rather than
    guessed. None if there is no list of layers.
    """
    lists: dict[str, Module] = {}
    for path, module in root.named_modules():  # from the outside in
        if _is_layers(module) and not any(path.startswith(f"{outer}.") for outer in lists):
            lists[path] = module  # a list in a layer holds experts or parts
    if not lists:
        return None
    # those of images or sound are further from the words; those of experts are deeper
    near = functools.partial(_in_common, _words(root))
    path = max(lists, key=lambda path: (near(path), -path.count("."), len(lists[path]._modules)))
    layers = list(lists[path].children())
    base, _, name = path.rpartition(".")
    layer = next((one for one in layers if chosen(one, _ATTN)), layers[0])
    attn, mlp = chosen(layer, _ATTN) or "", chosen(layer, _MLPS) or ""
    attention = at(layer, attn) if attn else None
    parts: dict[str, Any] = (
        {part: chosen(attention, names) or "" for part, names in _PARTS.items()}
        if attention
        else {}
    )
    above = root.get_submodule(base)
    family = Family(
        layers=name,
        norm=chosen(above, _NORMS) or "",
        attn=attn,
        **parts,
        mlp=mlp,
        down=_DOWNS if mlp else "",
        router="|".join(f"{mlp}.{name}" for name in ("router", "gate")) if mlp else "",
        mid="",
    )
    return base, family


def _words(root: Module) -> str:
    """The path of the embeddings of words; empty if there are none."""
    method: Any = getattr(root, "get_input_embeddings", None)
    try:
        words = None if method is None else method()
    except NotImplementedError:  # transformers cannot tell which
        words = None
    return next((path for path, module in root.named_modules() if module is words), "")


def _in_common(one: str, other: str) -> int:
    """How many names two paths begin with alike."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_layers(module: Module) -> bool:
    if not isinstance(module, ModuleList) or not len(module):
        return False
    children = list(module.children())
    return len(set(map(type, children))) <= 2 and bool(children[0]._modules)
