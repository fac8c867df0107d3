"""Scripts of earlier times under the old-script switch, on whatever transformers is installed.

Blocks of GPT-2 returned tuples until transformers 5, those of Llama until 4.54. With the switch a
script sees tuples either way, and the numbers are those of raw PyTorch hooks.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tests.behaviour.leaks import keeps_nothing
from tests.conftest import hooks_on
from tests.remote.through import ThroughBytes

import nnsight
from nnsight import CONFIG, BatchError, LanguageModel, NNsight

IDS = [1, 2, 3]
LONG = [4, 5, 6, 7, 8]


def _gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=50, **ends))


def _llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, vocab_size=50, **sizes))


def _mamba() -> torch.nn.Module:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=50))


@pytest.fixture(params=[_gpt2, _llama])
def network(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(3)
    return request.param().eval()


@pytest.fixture
def model(network: torch.nn.Module) -> LanguageModel:
    return LanguageModel(network, tuple_outputs=True)


@pytest.fixture
def legacy():
    CONFIG.APP.LEGACY = True
    try:
        yield
    finally:
        CONFIG.APP.LEGACY = False


def blocks(model):
    """The blocks of layers, of the model or of what stands for it."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def raw(network, ids, index, act):
    """The logits when `act(hidden)` takes the place of the hidden state after a block."""

    def hook(module, args, out):
        return (act(out[0]), *out[1:]) if isinstance(out, tuple) else act(out)

    handle = blocks(network)[index].register_forward_hook(hook)
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits
    handle.remove()
    return logits


def hidden_of(network, ids, index):
    """The hidden state after a block."""
    kept = []

    def look(hidden):
        kept.append(hidden)
        return hidden

    raw(network, ids, index, look)
    return kept[0]


# --- blocks that return a tensor show a tuple -----------------------------------------------------


def test_the_hidden_state_is_the_first_of_a_tuple(model, network):
    with model.trace(IDS):
        whole = nnsight.save(blocks(model)[1].output)
        hidden = blocks(model)[1].output[0].save()
    assert isinstance(whole, tuple) and whole[0] is hidden
    assert torch.equal(hidden, hidden_of(network, IDS, 1))
    assert hooks_on(network) == []


def test_changes_in_place_reach_the_model(model, network):
    with model.trace(IDS):
        blocks(model)[2].output[0][:, -1] = 0
        logits = model.lm_head.output.save()

    def zeroed(hidden):
        hidden = hidden.clone()
        hidden[:, -1] = 0
        return hidden

    assert torch.equal(logits, raw(network, IDS, 2, zeroed))


def test_a_tuple_takes_its_place(model, network):
    with model.trace(IDS):
        block = blocks(model)[1]
        block.output = (block.output[0] * 2, *block.output[1:])
        again = block.output[0].save()
        logits = model.output.logits.save()
    assert torch.equal(logits, raw(network, IDS, 1, lambda hidden: hidden * 2))
    assert torch.equal(again, hidden_of(network, IDS, 1) * 2)


def test_a_tensor_for_a_tuple_is_refused(model):
    with pytest.raises(BatchError, match="tuple"):
        with model.trace(IDS):
            blocks(model)[1].output = blocks(model)[1].output[0] * 2


def test_item_assignment_is_an_error_as_in_any_tuple(model):
    with pytest.raises(TypeError, match="item assignment"):
        with model.trace(IDS):
            blocks(model)[1].output[0] = blocks(model)[1].output[0] * 2


def test_invokes_have_their_rows(model, network):
    with model.trace() as tracer:
        with tracer.invoke(IDS):
            source = blocks(model)[1].output[0].save()
            blocks(model)[2].output[0][:] += 1
            one = model.lm_head.output.save()
        with tracer.invoke([9, 8, 7]):
            blocks(model)[2].output = (blocks(model)[2].output[0] * 3,)
            two = model.lm_head.output.save()
        with tracer.invoke([5, 5, 5]):
            blocks(model)[2].skip((source,))
            three = model.lm_head.output.save()
        with tracer.invoke():
            everybody = blocks(model)[3].output[0].save()
    torch.testing.assert_close(one, raw(network, IDS, 2, lambda hidden: hidden + 1))
    torch.testing.assert_close(two, raw(network, [9, 8, 7], 2, lambda hidden: hidden * 3))
    torch.testing.assert_close(three, raw(network, [5, 5, 5], 2, lambda hidden: source))
    assert everybody.shape == (3, 3, 16)


def test_a_block_that_is_skipped_gives_a_tuple(model, network):
    with model.trace(IDS):
        blocks(model)[2].skip(blocks(model)[1].output)
        shown = nnsight.save(blocks(model)[2].output)
        logits = model.lm_head.output.save()
    before = hidden_of(network, IDS, 1)
    assert isinstance(shown, tuple) and torch.equal(shown[0], before)
    assert torch.equal(logits, raw(network, IDS, 2, lambda hidden: before))


def test_gradients_reach_the_hidden_state(model, network):
    with model.trace(IDS):
        hidden = blocks(model)[2].output[0]
        with model.lm_head.output[:, -1].sum().backward():
            grad = hidden.grad.save()
    kept = []

    def hook(module, args, out):
        kept.append(out[0] if isinstance(out, tuple) else out)
        kept[0].retain_grad()

    handle = blocks(network)[2].register_forward_hook(hook)
    network(torch.tensor([IDS])).logits[:, -1].sum().backward()
    handle.remove()
    torch.testing.assert_close(grad, kept[0].grad)


def test_caches_hold_tuples(model, network):
    with model.trace(IDS) as tracer:
        cache = tracer.cache(modules=[blocks(model)[1], blocks(model)[2]])
        blocks(model)[2].output[0][:] = 0
    found = {path: entry.output for path, entry in cache.items()}
    assert all(isinstance(value, tuple) for value in found.values())
    first, second = found.values()
    assert torch.equal(first[0], hidden_of(network, IDS, 1)) and not second[0].any()


def test_steps_of_a_generation(model, network):
    with model.generate(IDS, max_new_tokens=3, do_sample=False) as tracer:
        lengths = [blocks(model)[1].output[0].shape[1] for _ in tracer.iter[:]].save()
    with model.generate(IDS, max_new_tokens=3, do_sample=False):
        blocks(model)[3].next().output[0][:] = 0
        zeroed = blocks(model)[3].output[0].save()
    assert lengths == [3, 1, 1] and zeroed.shape[1] == 1 and not zeroed.any()


def test_stored_edits_and_scans(model, network):
    with model.edit() as edited:
        blocks(edited)[0].output[0][:] = 0
    with edited.trace(IDS):
        logits = model.lm_head.output.save()
    with model.scan(IDS):
        width = blocks(model)[0].output[0].shape[-1]
    assert torch.equal(logits, raw(network, IDS, 0, torch.zeros_like)) and width == 16


def test_a_block_called_beside_the_model(model):
    with model.trace(IDS):
        hidden = blocks(model)[2].output[0]
        logits = model.lm_head(hidden).save()
    assert logits.shape == (1, 3, 50)
    value = torch.ones(1, 2, 16)
    if hasattr(model, "transformer"):
        assert torch.is_tensor(blocks(model)[2](value)[0]) and len(blocks(model)[2](value)) >= 1


def test_standard_names_are_the_same(model, network):
    with model.trace(IDS):
        resid = model.layers[1].resid_post.save()
        model.layers[1].resid_post = resid * 2
        logits = model.lm_head.output.save()
    assert torch.equal(resid, hidden_of(network, IDS, 1))
    assert torch.equal(logits, raw(network, IDS, 1, lambda hidden: hidden * 2))
    model.check_names()


def test_gradient_checkpointing(model, network):
    def grads():
        network.zero_grad()
        with model.trace(IDS):
            blocks(model)[1].output[0][:] *= 2
            with model.lm_head.output.sum().backward():
                pass
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain = grads()
    network.train()
    for part in network.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    with warnings.catch_warnings():  # it has another name in later releases
        warnings.simplefilter("ignore", FutureWarning)
        network.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(grads(), plain)


def test_nothing_stays(model, network):
    def once():
        with model.trace(IDS):
            blocks(model)[2].output[0][:] = 0
            blocks(model)[3].skip(blocks(model)[2].output)

    keeps_nothing(once, network, runs=30)


def test_blocks_that_never_were_tuples_are_left_alone(legacy):
    network = _mamba().eval()
    model = LanguageModel(network)
    with model.trace(IDS):
        hidden = model.backbone.layers[1].output.save()
    assert torch.is_tensor(hidden) and hidden.shape == (1, 3, 16)


def test_other_modules_are_left_alone(model):
    with model.trace(IDS):
        mlp = blocks(model)[1].mlp.output.save()
        logits = model.lm_head.output.save()
    assert torch.is_tensor(mlp) and torch.is_tensor(logits)


# --- the switch -----------------------------------------------------------------------------------


def test_the_switch_is_for_every_model(network, legacy):
    for model in (LanguageModel(network), NNsight(network)):
        with model.trace(torch.tensor([IDS])):
            whole = nnsight.save(blocks(model)[1].output)
        assert isinstance(whole, tuple)
    plain = LanguageModel(network, tuple_outputs=False)
    with plain.trace(IDS):
        whole = nnsight.save(blocks(plain)[3].output)
    assert torch.is_tensor(whole) or not _is_bare(network)
    CONFIG.APP.LEGACY = False
    with model.trace(torch.tensor([IDS])):
        whole = nnsight.save(blocks(model)[1].output)
    assert torch.is_tensor(whole) or not _is_bare(network)


def _is_bare(network) -> bool:
    """Whether blocks return tensors in the transformers that is installed."""
    block = blocks(network)[0]
    kept = []
    handle = block.register_forward_hook(lambda module, args, out: kept.append(out))
    with torch.no_grad():
        network(torch.tensor([IDS]))
    handle.remove()
    return torch.is_tensor(kept[0])


def test_value_and_token_and_save(network, legacy):
    model = LanguageModel(network)

    def helper(values):
        return values.save()

    with model.trace(IDS):
        logits = model.lm_head.output.save()
        first = model.lm_head.output.t[0].save()
        last = model.lm_head.output.token[-1].save()
        both = model.lm_head.output.token[1:].save()
        listed = helper([1, 2])
    assert logits.value is logits and listed == [1, 2]
    assert torch.equal(first, logits[:, 0]) and torch.equal(last, logits[:, -1])
    assert torch.equal(both, logits[:, 1:])
    assert torch.equal(logits[0].t(), logits[0].transpose(0, 1))
    assert torch.equal(torch.Tensor.t(logits[0]), logits[0].transpose(0, 1))


def test_tokens_are_counted_from_the_first_of_the_own_prompt(network, legacy):
    model = LanguageModel(network)
    with model.trace() as tracer:
        with tracer.invoke(IDS):
            hidden = blocks(model)[1].output[0]
            mine = hidden.t[0].save()
            range_ = hidden.token[1:3].save()
            chosen = hidden.token[[0, -1]].save()
            blocks(model)[2].output[0].t[0] = 0
            after = blocks(model)[2].output[0].save()
        with tracer.invoke(LONG):
            theirs = blocks(model)[1].output[0].t[0].save()
    alone = hidden_of(network, IDS, 1)
    torch.testing.assert_close(mine, alone[:, 0])
    torch.testing.assert_close(range_, alone[:, 1:3])
    torch.testing.assert_close(chosen, alone[:, [0, -1]])
    torch.testing.assert_close(theirs, hidden_of(network, LONG, 1)[:, 0])
    assert not after[:, 2].any() and after[:, 3].any()


def test_what_is_no_token_is_refused(legacy):
    model = NNsight(torch.nn.Linear(4, 4))
    with pytest.raises(TypeError, match="counts tokens"):
        with model.trace(torch.ones(2, 4)):
            model.output.t[0, 1].save()
    with pytest.raises(TypeError, match=r"has the shape \[4\]"):
        torch.ones(4).token[0]


def test_off_again_leaves_nothing():
    before = {name: getattr(torch.Tensor, name, None) for name in ("t", "token", "value")}
    held = (dict(vars(torch.Tensor)), dict(vars(object)))
    CONFIG.APP.LEGACY = True
    assert torch.ones(2, 3).value.token[0].shape == (2,) and hasattr(object(), "save")
    CONFIG.APP.LEGACY = False
    assert (dict(vars(torch.Tensor)), dict(vars(object))) == held
    assert {name: getattr(torch.Tensor, name, None) for name in before} == before
    assert not hasattr(torch.ones(1), "value") and not hasattr(object(), "save")


def test_a_compiler_knows_transposing():
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))  # read before the switch is on
    CONFIG.APP.LEGACY = True
    try:
        _compile_transposing()
    finally:
        CONFIG.APP.LEGACY = False


def _compile_transposing():
    @torch.compile(backend="eager", fullgraph=True)
    def function(x):
        return x.t() @ x

    x = torch.randn(3, 2)
    torch.testing.assert_close(function(x), x.mT @ x)


# --- without the switch: a warning at the line ----------------------------------------------------


def _lines(caught) -> list[str]:
    """The lines of this file that were warned of."""
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert all(w.filename == __file__ and "row 0 of the batch" in str(w.message) for w in caught)
    return [text[w.lineno - 1].strip() for w in caught]


def _first_of(layer):
    """A helper, which is not compiled by us."""
    return layer.output[0] * 2


@pytest.fixture
def bare() -> LanguageModel:
    """A model whose blocks return tensors, on either release."""
    torch.manual_seed(3)
    return LanguageModel(_llama().eval())


def test_row_zero_is_warned_of_at_its_line(bare):
    layers = bare.model.layers
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with bare.trace(IDS):
            layers[0].output[0][:, -1] += 1
            doubled = (layers[1].output[0] * 2).save()
            kept = layers[2].output[0].save()
            helped = _first_of(layers[3]).save()
    assert doubled.shape == kept.shape == helped.shape == (3, 16)
    assert _lines(caught) == [
        "layers[0].output[0][:, -1] += 1",
        "doubled = (layers[1].output[0] * 2).save()",
        "kept = layers[2].output[0].save()",
        "return layer.output[0] * 2",
    ]


def test_a_line_is_warned_of_once(bare):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            with bare.trace(IDS):
                states = [layer.output[0] for layer in bare.model.layers].save()
    assert len(states) == 4
    assert _lines(caught) == ["states = [layer.output[0] for layer in bare.model.layers].save()"]


def test_row_zero_can_be_meant(bare):
    layers = bare.model.layers
    with bare.trace([IDS, IDS]):
        one = layers[0].output[0, ...].save()
        two = layers[0].output[0:1].save()
        three = layers[0].output.select(0, 0).save()
        whole = layers[1].output.save()
        first = whole[0].save()
    assert one.shape == three.shape == first.shape == (3, 16) and two.shape == (1, 3, 16)
    meant = LanguageModel(bare._module, tuple_outputs=False)
    with meant.trace([IDS, IDS]):
        row = meant.model.layers[0].output[0].save()
    assert torch.equal(row, one)


def test_nothing_is_said_of_tuples_and_other_modules(bare, model):
    with bare.trace(IDS):
        attention = bare.model.layers[0].self_attn.output[0].save()
        mlp = bare.model.layers[0].mlp.output[0].save()
    with model.trace(IDS):
        hidden = blocks(model)[0].output[0].save()
    assert attention.shape == hidden.shape == (1, 3, 16) and mlp.shape == (3, 16)


OLD_SCRIPT = """
import torch
from nnsight import LanguageModel
from nnsight.toolbox.facts import facts_folder

model = LanguageModel(facts_folder())
with model.trace("The Eiffel Tower"):
    hidden = model.transformer.h[0].output[0].save()
    length = len(hidden[0]).save()
print(tuple(hidden.shape)[::2], length)
"""


def test_a_script_that_begins_under_the_switch():
    """What is imported after `save` is on every object can be imported, such as the hub's anyio."""
    done = subprocess.run(
        [sys.executable, "-c", OLD_SCRIPT],
        env={**os.environ, "NNSIGHT_LEGACY": "1"},
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[0] == "(1, 88) 3"


@pytest.mark.parametrize("copied", [copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_shows_tuples_too(model, copied):
    other = copied(model)
    with other.trace(IDS):
        whole = nnsight.save(blocks(other)[1].output)
    with model.trace(IDS):
        expected = nnsight.save(blocks(model)[1].output)
    assert isinstance(whole, tuple) and torch.equal(whole[0], expected[0])


def test_a_server_shows_tuples_too(network, tmp_path):
    """Its own model shows none: how blocks are seen travels with the block."""
    network.save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path), tuple_outputs=True, dispatch=True)
    there = LanguageModel(str(tmp_path), dispatch=True)
    with model.trace(IDS, backend=ThroughBytes(model, there)):
        whole = nnsight.save(blocks(model)[1].output)
        blocks(model)[2].output[0][:, -1] = 0
        hidden = blocks(model)[2].output[0].save()
    with model.trace(IDS):
        expected = nnsight.save(blocks(model)[1].output)
    assert isinstance(whole, tuple) and torch.equal(whole[0], expected[0])
    assert hidden.ndim == 3 and not hidden[:, -1].any()
