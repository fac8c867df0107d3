"""The standard names of every family: values of raw hooks, and writes that do what theirs do."""

# ruff: noqa: B018 -- a value is read by naming it
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from nnsight import LanguageModel, OutOfOrderError, OutsideTraceError
from tests.conftest import hooks_on
from tests.modeling.named import DECODERS, NAMED, ONE_STACK, config_of, given, ids, module_of

LLAMA = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo", "olmo2", "stablelm",
    "stablelm-parallel", "phi3",
]  # fmt: skip
# of the second layer: the projection behind the heads, that behind the MLP, the norm or MLP that
# reads the stream in between
RAW: dict[str, tuple[str, str, str]] = {
    **{
        family: ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj", norm)
        for family in LLAMA
        for norm in [
            {
                "gemma2": "model.layers.1.pre_feedforward_layernorm",
                "gemma3": "model.layers.1.pre_feedforward_layernorm",
                "olmo2": "model.layers.1.mlp",
                "stablelm-parallel": "",
            }.get(family, "model.layers.1.post_attention_layernorm")
        ]
    },
    "gpt2": (
        "transformer.h.1.attn.c_proj",
        "transformer.h.1.mlp.c_proj",
        "transformer.h.1.ln_2",
    ),
    "gptj": ("transformer.h.1.attn.out_proj", "transformer.h.1.mlp.fc_out", ""),
    "phi": ("model.layers.1.self_attn.dense", "model.layers.1.mlp.fc2", ""),
    "opt": (
        "model.decoder.layers.1.self_attn.out_proj",
        "model.decoder.layers.1.fc2",
        "model.decoder.layers.1.final_layer_norm",
    ),
    "bloom": (
        "transformer.h.1.self_attention.dense",
        "transformer.h.1.mlp.dense_4h_to_h",
        "transformer.h.1.post_attention_layernorm",
    ),
    "falcon": (
        "transformer.h.1.self_attention.dense",
        "transformer.h.1.mlp.dense_4h_to_h",
        "",
    ),
    "gpt_neox": (
        "gpt_neox.layers.1.attention.dense",
        "gpt_neox.layers.1.mlp.dense_4h_to_h",
        "",
    ),
    "gpt_neox-sequential": (
        "gpt_neox.layers.1.attention.dense",
        "gpt_neox.layers.1.mlp.dense_4h_to_h",
        "gpt_neox.layers.1.post_attention_layernorm",
    ),
    "bert": (
        "bert.encoder.layer.1.attention.output.dense",
        "bert.encoder.layer.1.output.dense",
        "",
    ),
    "modernbert": ("model.layers.1.attn.Wo", "model.layers.1.mlp.Wo", "model.layers.1.mlp_norm"),
}


WITHOUT_KERNEL = {
    *("mamba", "gpt_oss", "gemma2", "bloom", "gptj"),  # transformers has no fast kernel for them
    "falcon-alibi",  # its two kernels differ in transformers: it scales ALiBi in one only
}
OLD = transformers.__version__.startswith("4.")
PATTERNED = [f for f in ONE_STACK if f != "mamba"]
EXPERTS = ("gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "jamba")


def model_of(family: str, attention: str | None = None) -> LanguageModel:
    return LanguageModel(module_of(family, attention))


def hooked(module: torch.nn.Module, path: str, hook: Callable[..., Any], before: bool) -> Any:
    """The logits with a raw hook on one module."""
    inner = module.get_submodule(path)
    handle = inner.register_forward_pre_hook(hook) if before else inner.register_forward_hook(hook)
    try:
        return module(**given(module)).logits
    finally:
        handle.remove()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMED)
def test_the_self_check_of_every_family_passes(family):
    model = model_of(family)
    own = hooks_on(model._module)  # transformers leaves some of its own
    report = model.check_names()
    found = {finding.name: finding for finding in report.findings}
    assert found["resid_post"].layers == found["resid_pre"].layers >= 3
    if family != "mamba":
        assert found["attn.z"].checks and found["attn.out"].layers
        assert found["attn.q"].checks == ("heads and width", "a head of it is that head's")
        assert not found["attn.pattern"].layers or "mixed" in str(found["attn.v"].checks)
        assert bool(found["attn.pattern"].layers) == (
            family in PATTERNED or "encoder" in str(report)
        )
    assert hooks_on(model._module) == own


@pytest.mark.parametrize("family", ["Granite", "GraniteMoe"])
def test_branches_that_are_scaled_add_up_too(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        residual_multiplier=0.3,
    )
    module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    report = LanguageModel(module).check_names()
    checks = {finding.name: finding.checks for finding in report.findings}
    assert "pre + 0.3 * attn.out" in checks["resid_mid"]
    assert "mid + 0.3 * mlp.out" in str(checks["resid_post"])


@pytest.mark.parametrize("family", [f for f in ONE_STACK if f != "mamba"])  # counts otherwise
def test_the_stream_is_the_hidden_states_of_transformers(family):
    module = module_of(family)
    expected = module(**given(module), output_hidden_states=True).hidden_states
    model = LanguageModel(module)
    count = len(expected) - 1
    with model.trace(**given(module)):
        read = [(layer.resid_pre, layer.resid_post) for layer in model.layers].save()
    assert len(read) == count
    for index, (pre, post) in enumerate(read):
        assert torch.equal(pre, expected[index])
        if index < count - 1 or family in ("bert", "roberta", "distilbert"):  # then comes a norm
            assert torch.equal(post, expected[index + 1])


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        (f, a)
        for f in PATTERNED
        for a in ("eager", "sdpa")
        if f not in {"eager": {"mamba"}, "sdpa": WITHOUT_KERNEL}[a]
    ],
)
def test_the_pattern_is_the_attentions_of_transformers(family, attention):
    eager = module_of(family, "eager")
    expected = eager(**given(eager), output_attentions=True).attentions
    model = model_of(family, attention)
    plain = model._module(**given(eager)).logits
    layers = [i for i, layer in enumerate(model.layers) if hasattr(layer, "attn")]
    with model.trace(**given(eager)):
        patterns = [model.layers[i].attn.pattern for i in layers].save()
        logits = model.output.logits.save()
    assert torch.equal(logits, plain)  # no kernel is switched for reading alone
    assert len(patterns) == len(expected)
    for found, wanted in zip(patterns, expected, strict=True):
        torch.testing.assert_close(
            found,
            wanted,
            atol=0 if attention == "eager" else 2e-6,
            rtol=0 if attention == "eager" else 1e-5,
        )


@pytest.mark.parametrize("family", RAW)
def test_heads_and_activations_are_those_of_raw_hooks(family):
    module = module_of(family)
    behind_heads, behind_mlp, _ = RAW[family]
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module.get_submodule(path).register_forward_hook(
            lambda m, args, output, path=path: seen.update(
                {f"{path} in": args[0], path: output.clone()}
            )
        )
        for path in (behind_heads, behind_mlp)
    ]
    module(**given(module))
    for handle in handles:
        handle.remove()
    model = LanguageModel(module)
    with model.trace(**given(module)):
        z = model.layers[1].attn.z.save()
        out = model.layers[1].self_attn.out.save()
        act = model.layers[1].mlp.act.save()
        mlp = model.layers[1].mlp.out.clone().save()  # Falcon adds to it in place
    assert z.shape[:3] == (2, 7, 4)
    assert torch.equal(z.flatten(2), seen[f"{behind_heads} in"])
    assert torch.equal(out, seen[behind_heads])
    assert act.ndim == 3 and torch.equal(act, seen[f"{behind_mlp} in"].view(act.shape))
    assert torch.equal(mlp, seen[behind_mlp].view(mlp.shape))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"])
def test_the_probabilities_of_a_router_are_made_from_its_logits(family):
    module = module_of(family)
    kept: list[torch.Tensor] = []
    mlp = module.model.layers[1].mlp if hasattr(module.model.layers[1], "mlp") else None
    mlp = mlp if mlp is not None else module.model.layers[1].block_sparse_moe
    gate = mlp.gate if hasattr(mlp, "gate") else mlp.router
    handle = gate.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    module(**given(module))
    handle.remove()
    bias = getattr(gate, "bias", None)
    logits = torch.nn.functional.linear(kept[0].flatten(0, -2), gate.weight, bias)
    expected = logits.softmax(-1)
    if family == "gpt_oss":  # the softmax is over the chosen two
        best = logits.topk(2)
        expected = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))
    model = LanguageModel(module)
    with model.trace(**given(module)):
        probs = model.layers[1].router.probs.save()
    assert probs.shape == (2, 7, 4)
    torch.testing.assert_close(probs, expected.view(2, 7, 4))


# --- writes ---------------------------------------------------------------------------------------


def test_a_name_that_is_asked_for_too_late_is_named():
    module = module_of("llama")
    model = LanguageModel(module)
    with pytest.raises(OutOfOrderError) as caught, model.trace(**given(module)):
        model.output.logits.sum()
        model.layers[1].attn.pattern.sum().save()
    assert caught.value.__notes__ == ["(That is where `model.layers[1].attn.pattern` is read.)"]
    with pytest.raises(OutOfOrderError) as caught, model.trace(**given(module)):
        model.output.logits.sum()
        model.layers[1].resid_post = 0
    assert caught.value.__notes__ == ["(That is where `model.layers[1].resid_post` is written.)"]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_probabilities_that_were_read_can_be_assigned(family):
    module = module_of(family)
    model = LanguageModel(module)
    turned = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(2, 7, 4)
    with model.trace(**given(module)):
        model.layers[1].router.probs = turned
        alone = model.output.logits.save()
    for flows in (False, True):  # a value through which gradients flow is put back in any case
        module.requires_grad_(flows)
        with model.trace(**given(module)):
            before = model.layers[1].router.probs
            before *= 2
            model.layers[1].router.probs = before * 0 + turned
            behind_a_read = model.output.logits.save()
        module.requires_grad_(False)
        torch.testing.assert_close(behind_a_read, alone)


@pytest.mark.parametrize("family", ONE_STACK)
def test_a_write_to_the_stream_is_that_of_a_raw_hook(family):
    module = module_of(family)
    model = LanguageModel(module)
    path = model.layers[1].path.partition(".")[2]
    steering = torch.randn(32)

    def steer(m: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        hidden[:, -1] += steering
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    expected = hooked(module, path, steer, before=False)
    with model.trace(**given(module)):
        model.layers[1].resid_post[:, -1] += steering
        in_place = model.output.logits.save()
    with model.trace(**given(module)):
        hidden = model.layers[1].resid_post.clone()
        hidden[:, -1] += steering
        model.layers[1].resid_post = hidden
        assigned = model.output.logits.save()
    assert not torch.equal(expected, module(**given(module)).logits)
    assert torch.equal(in_place, expected)
    assert torch.equal(assigned, expected)


@pytest.mark.parametrize("family", RAW)
def test_without_a_head_and_without_neurons_as_by_raw_hooks(family):
    module = module_of(family)
    model = LanguageModel(module)
    behind_heads, behind_mlp, _ = RAW[family]

    def head(m: Any, args: Any) -> Any:
        merged = args[0].clone()
        width = merged.shape[-1] // 4
        merged[..., 2 * width : 3 * width] = 0
        return (merged,)

    def neurons(m: Any, args: Any) -> Any:
        hidden = args[0].clone()
        hidden[..., 3:9] = 0.5
        return (hidden,)

    with model.trace(**given(module)):
        model.layers[1].attn.z[:, :, 2] = 0
        without_head = model.output.logits.save()
    with model.trace(**given(module)):
        model.layers[1].mlp.act[..., 3:9] = 0.5
        without_neurons = model.output.logits.save()
    assert torch.equal(without_head, hooked(module, behind_heads, head, before=True))
    assert torch.equal(without_neurons, hooked(module, behind_mlp, neurons, before=True))


@pytest.mark.parametrize("family", [family for family, (_, _, mid) in RAW.items() if mid])
def test_the_stream_between_attention_and_mlp(family):
    module = module_of(family)
    model = LanguageModel(module)
    shift = torch.randn(32)

    def change(m: Any, args: Any) -> None:
        args[0].add_(shift)  # the residual is the same tensor

    expected = hooked(module, RAW[family][2], change, before=True)
    with model.trace(**given(module)):
        before = model.layers[1].resid_mid.save()
        model.layers[1].resid_mid = before + shift
        assigned = model.output.logits.save()
    with model.trace(**given(module)):
        model.layers[1].resid_mid += shift
        added = model.output.logits.save()
    with model.trace(**given(module)):
        layer = model.layers[1]
        reads = (layer.resid_pre + layer.attn.out).save()
    assert torch.equal(assigned, expected)
    assert torch.equal(added, expected)
    assert not torch.equal(expected, module(**given(module)).logits)
    if family not in ("gemma2", "gemma3", "olmo2"):  # a norm stands before the sum
        torch.testing.assert_close(before, reads)  # what was kept is of before the write


@pytest.mark.parametrize("family", PATTERNED)
def test_a_changed_pattern_mixes_the_values_anew(family):
    module = module_of(family)
    model = LanguageModel(module)
    index = next(i for i, layer in enumerate(model.layers) if hasattr(layer, "attn"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with model.trace(**given(module)):
            attention = model.layers[index].attn
            v = attention.v.save()
            pattern = attention.pattern
            pattern[:, 1] = 0
            pattern[:, 1, :, 0] = 1  # all look at the first token
            z = attention.z.save()
    first = v[:, :1].repeat_interleave(4 // v.shape[2], 2)[:, :, 1]
    torch.testing.assert_close(z[:, :, 1], first.expand_as(z[:, :, 1]))
    kernels = [str(w.message) for w in told if "never has these probabilities" in str(w.message)]
    fast = getattr(model._module.config, "_attn_implementation", None) == "sdpa"
    assert len(kernels) <= int(fast)


# --- what they are part of ------------------------------------------------------------------------


ASKS_FOR_NUMBERS = ("gpt2", "opt", "opt-post-norm", "bart-decoder", *EXPERTS) if OLD else ()


@pytest.mark.parametrize("family", [f for f in DECODERS if f not in ASKS_FOR_NUMBERS])
def test_a_model_without_weights_has_them_too(family):
    options = {"dtype": torch.bfloat16} if family in EXPERTS else {}  # fake grouped products
    model = LanguageModel(config_of(family), **options)
    assert model.layers[0] == model.layers[0]
    shapes: dict[str, Any] = {}
    with model.scan(ids()):
        layer = model.layers[1]
        shapes["pre"] = layer.resid_pre.shape
        if family != "mamba":
            shapes["z"] = layer.attn.z.shape
        shapes["post"] = layer.resid_post.shape
    assert shapes["pre"] == shapes["post"] == (2, 7, 32)
    assert family == "mamba" or shapes["z"][:3] == (2, 7, 4)
    assert not model.dispatched


def test_the_originals_stay():
    model = model_of("gpt2")
    with model.trace(ids()):
        act = model.transformer.h[0].mlp.act.output.save()
        block = model.layers[1].output.save()
        same = model.layers[1].resid_post.save()
    assert act.shape == (2, 7, 128)
    assert torch.equal(block[0] if isinstance(block, tuple) else block, same)
    assert model.layers[1] == model.transformer.h[1]
    assert model.layers[1].mlp.E_act._module is model._module.transformer.h[1].mlp.act
    assert model.layers[-1] == model.transformer.h[2] and len(model.layers) == 3
    assert [layer.path for layer in model.layers[:2]] == [
        "model.transformer.h.0",
        "model.transformer.h.1",
    ]
    assert {"layers", "ln_final", "lm_head", "embed_tokens"} <= set(dir(model))
    assert "encoder" not in dir(model) and "resid_post" in dir(model.layers[0])
    assert model.ln_final == model.transformer.ln_f and model.embed_tokens == model.transformer.wte


def test_names_of_the_users_own_come_first():
    module = module_of("gpt2")
    same = LanguageModel(module, rename={"transformer.h": "layers", "mlp": "ff"})
    with same.trace(ids()):
        hidden = same.layers[1].resid_post.save()
        other = same.layers[2].ff.output.save()
    assert hidden.shape == other.shape == (2, 7, 32)
    own = LanguageModel(module, rename={"transformer.wte": "layers", "transformer.wpe": "ln_final"})
    assert own.layers == own.transformer.wte and own.ln_final == own.transformer.wpe


def test_a_name_that_a_model_lacks_says_why():
    jamba = model_of("jamba")
    with pytest.raises(
        AttributeError, match=r"no `model.layers\[0\].attn`.*Layers that have one: 1, 3"
    ):
        jamba.layers[0].attn
    assert hasattr(jamba.layers[1], "attn") and not hasattr(jamba.layers[0], "attn")
    with pytest.raises(AttributeError, match="attention and MLP of this model read the same"):
        with (phi := model_of("phi")).trace(ids()):
            phi.layers[0].resid_mid
    with pytest.raises(AttributeError, match=r"`model.encoder.layers` or `model.decoder.layers`"):
        model_of("t5").layers
    with pytest.raises(AttributeError, match=r"fc2"):
        model_of("opt").layers[0].mlp.output
    with pytest.raises(AttributeError, match="has one for each expert"):
        with (moe := model_of("mixtral")).trace(ids()):
            moe.layers[0].mlp.act
    with pytest.raises(AttributeError, match="no module or attribute 'encoder'"):
        model_of("gpt2").encoder
    with pytest.raises(OutsideTraceError):
        model_of("gpt2").layers[0].resid_post


OFTEN_LACKED = ["resid_mid", "attn", "cross_attn", "mlp", "router"]


@pytest.mark.parametrize("family", ["gpt2", "phi", "mixtral", "jamba", "bloom", "opt"])
def test_dir_has_what_can_be_asked_for_and_no_more(family):
    model = model_of(family)
    parts = [(layer, OFTEN_LACKED) for layer in model.layers]
    parts += [(s.attn, ["k", "q", "q_rot", "z"]) for s in model.layers if "attn" in dir(s)]
    parts += [(layer.mlp, ["act", "out"]) for layer in model.layers if "mlp" in dir(layer)]
    parts += [(layer.router, ["probs"]) for layer in model.layers if "router" in dir(layer)]
    told = lacked = 0
    for part, names in parts:
        for name in names:
            listed = name in dir(part)
            try:
                getattr(part, name)
                there = True
            except OutsideTraceError:  # it is a value
                there = True
            except AttributeError:
                there = False
            assert listed == there, (part, name)
            told, lacked = told + there, lacked + (not there)
    assert told and lacked


def test_a_misspelt_or_misplaced_assignment_is_refused():
    model = model_of("opt")
    with pytest.raises(AttributeError, match="resid_pst"):
        with model.trace(ids()):
            model.layers[0].resid_pst = torch.zeros(2, 7, 32)
    with pytest.raises(AttributeError, match="actt"):
        with model.trace(ids()):
            model.layers[0].mlp.actt = 0
    with pytest.raises(AttributeError, match="own name"):
        model_of("gpt2").layers[0].self_attn = torch.nn.Identity()


def test_a_value_of_another_shape_is_refused():
    model = model_of("llama")
    with pytest.raises(
        ValueError, match=r"`model.layers\[1\].attn.z` is a tensor of shape \(2, 7, 4, 8\)"
    ):
        with model.trace(ids()):
            model.layers[1].attn.z = torch.zeros(2, 7, 32)
    with model.trace(ids()):
        model.layers[1].attn.z = 0
        out = model.layers[1].attn.out.save()
    assert not out.any()


# --- rows -----------------------------------------------------------------------------------------

PROMPTS = ([5, 9, 31, 8, 40, 12], [7, 60, 22, 13])


def read_layer(model: LanguageModel, family: str) -> dict[str, torch.Tensor]:
    """A value of every shape that the second layer with attention has."""
    index = next((i for i, layer in enumerate(model.layers) if hasattr(layer, "attn")), 1)
    layer = model.layers[index]
    found = {"resid_pre": layer.resid_pre}
    if family != "mamba":
        found |= {"q": layer.attn.q, "k": layer.attn.k}
        if family in PATTERNED:
            found["pattern"] = layer.attn.pattern
        found |= {"z": layer.attn.z, "out": layer.attn.out}
    if hasattr(layer, "router") and family != "jamba":
        found["probs"] = layer.router.probs
    found["resid_post"] = layer.resid_post
    return found


@pytest.mark.parametrize("family", ONE_STACK)
def test_each_invoke_sees_what_its_prompt_has_alone(family):
    model = LanguageModel(module_of(family, copy="rows"))
    alone = []
    for prompt in PROMPTS:
        with model.trace(prompt):
            values = read_layer(model, family).save()
        alone.append(values)
    rows = []
    with model.trace() as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                rows.append(read_layer(model, family))
    left = model._format.side == "left"
    for prompt, values, wanted in zip(PROMPTS, rows, alone, strict=True):
        real = slice(-len(prompt), None) if left else slice(len(prompt))
        for name, value in values.items():
            own = value[:, :, real, real] if name == "pattern" else value[:, real]
            torch.testing.assert_close(own, wanted[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ONE_STACK)
def test_a_change_in_one_invoke_is_that_of_its_prompt_alone(family):
    model = LanguageModel(module_of(family, copy="rows"))
    index = next((i for i, layer in enumerate(model.layers) if hasattr(layer, "attn")), 1)

    def change(layer: Any) -> None:
        if family != "mamba":
            layer.attn.z[:, :, 1] = 0
        if hasattr(layer, "router") and family != "jamba":
            layer.router.probs = layer.router.probs.flip(-1)
        elif family != "mamba":
            layer.mlp.act[..., :7] = 0.3
        layer.resid_post = layer.resid_post * 1.5

    with model.trace(PROMPTS[1]):
        change(model.layers[index])
        solo = model.output.logits.save()
    with model.trace(PROMPTS[0]):
        plain = model.output.logits.save()
    with model.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            untouched = model.output.logits.save()
        with tracer.invoke(PROMPTS[1]):
            change(model.layers[index])
            changed = model.output.logits.save()
    left = model._format.side == "left"
    real = slice(-4, None) if left else slice(4)
    torch.testing.assert_close(changed[:, real], solo, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(untouched, plain, atol=1e-4, rtol=1e-4)


class TestTooLate:
    """What a block changes in a value that the model has gone on from is said, not lost."""

    @pytest.mark.parametrize("name", ["z", "pattern", "q"])
    def test_a_change_after_the_next_value(self, name):
        model = LanguageModel(module_of("gpt2").requires_grad_())
        with pytest.warns(UserWarning, match="came too late") as told:
            with torch.enable_grad(), model.trace(ids()):
                early = getattr(model.layers[0].attn, name)
                last = model.lm_head.output.save()
                early[:] = 0
        assert told[-1].filename == __file__
        with model.trace(ids()):
            plain = model.lm_head.output.save()
        torch.testing.assert_close(last, plain)

    def test_a_change_in_time_says_nothing(self):
        model = LanguageModel(module_of("gpt2").requires_grad_())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with torch.enable_grad(), model.trace(ids()):
                early = model.layers[0].attn.z
                early[:] = 0
                last = model.lm_head.output.save()
        assert last.shape[:2] == ids().shape
