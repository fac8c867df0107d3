"""The user's own snippets, word for word apart from the name of the model.

They were written for GPT-2 as it was when its blocks returned tuples, so that `.output[0]` is the
hidden state. Each runs twice: on that model, and on the one of the transformers that is installed
under the old-script switch. Snippets of later features have tests of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import transformers

from tests.conftest import make_gpt2_folder

import nnsight
from nnsight import CONFIG, LanguageModel, NeverCalledError, NNsight, OutOfOrderError


def _tuple_blocks(network: torch.nn.Module) -> torch.nn.Module:
    """Let the blocks of a GPT-2 return tuples, as they did when the snippets were written."""

    for block in network.transformer.h:
        kind = type(block)

        def forward(self, hidden_states, *args, _kind=kind, **kwargs):
            if isinstance(hidden_states, tuple):
                hidden_states = hidden_states[0]
            result = _kind.forward(self, hidden_states, *args, **kwargs)
            return result if isinstance(result, tuple) else (result,)

        block.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    norm = network.transformer.ln_f

    def unpack(self, value):
        return torch.nn.LayerNorm.forward(self, value[0] if isinstance(value, tuple) else value)

    norm.__class__ = type("LayerNorm", (torch.nn.LayerNorm,), {"forward": unpack})
    return network


@pytest.fixture(scope="module", params=["tuples", "switch"])
def model(gpt2_folder: Path, request: pytest.FixtureRequest) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    if request.param == "tuples":
        _tuple_blocks(network)
    return LanguageModel(network, tokenizer=AutoTokenizer.from_pretrained(gpt2_folder))


@pytest.fixture(autouse=True)
def switch(request: pytest.FixtureRequest):
    parameters = getattr(request.node, "callspec", None)
    CONFIG.APP.LEGACY = parameters is not None and parameters.params.get("model") == "switch"
    yield
    CONFIG.APP.LEGACY = False


without_switch = pytest.mark.parametrize("model", ["tuples"], indirect=True)
under_switch = pytest.mark.parametrize("model", ["switch"], indirect=True)


# --- quick start --------------------------------------------------------------------------------


def test_first_trace(model, capsys):
    with model.trace('The Eiffel Tower is in the city of'):
        # Access hidden states from the last layer
        hidden_states = model.transformer.h[-1].output[0].save()
        # Get the model's output
        output = model.output.save()

    # After exiting the context, saved values are available
    print(hidden_states.shape)
    print(model.tokenizer.decode(output.logits.argmax(dim=-1)[0]))
    ids = model.tokenizer('The Eiffel Tower is in the city of', return_tensors="pt")
    with torch.no_grad():
        expected = model._module(**ids)
    assert hidden_states.shape == (1, ids["input_ids"].shape[1], 48)
    assert torch.equal(output.logits, expected.logits)
    assert "torch.Size" in capsys.readouterr().out


def test_accessing_activations(model):
    with model.trace("The Eiffel Tower is in the city of"):
        attn_output = model.transformer.h[0].attn.output[0].save() # (1)!
        mlp_output = model.transformer.h[0].mlp.output.save() # (2)!
        # Access the full layer output
        layer_output = model.transformer.h[5].output[0].save()
        # Access the final logits
        logits = model.lm_head.output.save()
    assert attn_output.shape == mlp_output.shape == layer_output.shape
    assert logits.shape[-1] == 400


def test_modifying_in_place(model):
    with model.trace("Hello"):
        # Zero out all activations at layer 0
        model.transformer.h[0].output[0][:] = 0
        # Modify only the last token position
        model.transformer.h[1].output[0][:, -1, :] = 0
        output = model.output.save()
    with model.trace("Hello"):
        untouched = model.output.save()
    assert not torch.allclose(output.logits, untouched.logits)


def test_modifying_one_layer_twice(model):
    with model.trace("Hello"):
        # Zero out all activations
        model.transformer.h[0].output[0][:] = 0

        # Modify specific positions
        model.transformer.h[0].output[0][:, -1, :] = 0  # Last token only
        zeroed = model.transformer.h[0].output[0].save()
    assert not zeroed.any()


def test_replacing(model):
    with model.trace("Hello"):
        # Add noise to MLP output
        hs = model.transformer.h[-1].mlp.output.clone()
        noise = 0.01 * torch.randn(hs.shape)
        model.transformer.h[-1].mlp.output = hs + noise
        result = model.transformer.h[-1].mlp.output.save()
    assert result.shape[-1] == 48


def test_the_hierarchy_prints(model, capsys):
    print(model)
    text = capsys.readouterr().out
    assert "(0-11): 12 x GPT2Block(" in text
    assert "(lm_head): Linear(" in text


def test_any_pytorch_model():
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 10),
        torch.nn.Linear(10, 2)
    )
    model = NNsight(net)
    with model.trace(torch.rand(1, 5)):
        layer1_out = model[0].output.save()
        output = model.output.save()

    print(layer1_out.shape)  # torch.Size([1, 10])
    assert layer1_out.shape == (1, 10)
    assert output.shape == (1, 2)


# --- the README -----------------------------------------------------------------------------------


def test_the_first_readme_example_is_out_of_order(model):
    """It reads the last layer and then writes the first: the error names both."""
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace('The Eiffel Tower is in the city of'):
            # Access and save hidden states
            hidden_states = model.transformer.h[-1].output[0].save()

            # Intervene on activations
            model.transformer.h[0].output[0][:] = 0

            # Get model output
            output = model.output.save()
    assert "model.transformer.h.0.output" in str(caught.value)
    assert "model.transformer.h.11.output" in str(caught.value)
    assert "hidden_states" in caught.value.saved
    assert "output" not in caught.value.saved


def test_quick_start_loading(gpt2_folder):
    folder = str(gpt2_folder)
    model = LanguageModel(folder, device_map='auto', dispatch=True)
    with model.trace('The Eiffel Tower is in the city of'):
        output = model.output.save()
    print(model.tokenizer.decode(output.logits.argmax(dim=-1)[0]))
    lazy = LanguageModel(folder, device_map="auto")
    assert model.dispatched and not lazy.dispatched
    with lazy.trace('The Eiffel Tower is in the city of'):
        same = lazy.output.save()
    assert torch.equal(same.logits, output.logits)


def test_embeddings_from_one_prompt_in_another(model):
    with model.trace() as tracer:
        # First invoke: worker thread 1
        with tracer.invoke("The Eiffel Tower is in"):
            embeddings = model.transformer.wte.output  # Thread waits here
            output1 = model.lm_head.output.save()

        # Second invoke: worker thread 2 (runs after thread 1 completes)
        with tracer.invoke("_ _ _ _ _ _"):
            model.transformer.wte.output = embeddings  # Uses value from thread 1
            output2 = model.lm_head.output.save()
    expected = _hooked(model, ["The Eiffel Tower is in", "_ _ _ _ _ _"], model.transformer.wte)
    assert torch.allclose(torch.cat([output1, output2]), expected, atol=1e-6)
    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            embeddings = model.transformer.wte.output
            output1 = model.lm_head.output.save()
        with tracer.invoke(_same_length(model, "The Eiffel Tower is in")):
            model.transformer.wte.output = embeddings
            output2 = model.lm_head.output.save()
    assert torch.allclose(output1, output2, atol=1e-6)


def _hooked(model, prompts, envoy):
    """The logits of a padded batch with the first row's value at a module in every row."""
    model.tokenizer.padding_side, model.tokenizer.pad_token = "left", "<|endoftext|>"
    encoded = model.tokenizer(prompts, return_tensors="pt", padding=True)
    mask = encoded["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def first_row(module, args, out):
        if isinstance(out, tuple):
            return (out[0][:1].expand_as(out[0]).clone(), *out[1:])
        return out[:1].expand_as(out).clone()

    handle = envoy._module.register_forward_hook(first_row)
    with torch.no_grad():
        logits = model._module(**encoded, position_ids=positions).logits
    handle.remove()
    return logits


def _same_length(model, prompt):
    """The seed writes `"_ _ _ _ _ _"`, which is as long in GPT-2's own tokens."""
    length = len(model.tokenizer(prompt)["input_ids"])
    return model.tokenizer("_ " * 40)["input_ids"][:length]


def test_prompt_less_invokers(model):
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            out1 = model.lm_head.output[:, -1].save()

        with tracer.invoke(["World", "Test"]):
            out2 = model.lm_head.output[:, -1].save()

        # No-arg invoke: operates on ALL 3 inputs
        with tracer.invoke():
            out_all = model.lm_head.output[:, -1].save()  # Shape: [3, vocab]
    assert out_all.shape == (3, 400)
    assert torch.equal(out_all, torch.cat([out1, out2]))


def test_ad_hoc_module_application(model):
    with model.trace("The Eiffel Tower is in the city of"):
        # Get intermediate hidden states
        hidden_states = model.transformer.h[-1].output[0]

        # Apply lm_head to get "logit lens" view
        logits = model.lm_head(model.transformer.ln_f(hidden_states))
        tokens = logits.argmax(dim=-1).save()

    print(model.tokenizer.decode(tokens[0]))
    ids = model.tokenizer("The Eiffel Tower is in the city of", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(tokens, model._module(**ids).logits.argmax(-1))


def test_real_tensors_after_a_wait(model):
    with model.trace("Hello"):
        # Code runs in a worker thread
        # Thread WAITS here until layer output is available
        hs = model.transformer.h[-1].output[0]

        # .save() marks the value to persist after the context exits
        hs = hs.save()

    # After exiting, hs contains the actual tensor
    print(hs.shape)
    assert hs.shape[-1] == 48


# --- the page of the oldest interface ---------------------------------------------------------------


def _network() -> torch.nn.Module:
    input_size, hidden_dims, output_size = 5, 10, 2
    return torch.nn.Sequential(OrderedDict([
        ('layer1', torch.nn.Linear(input_size, hidden_dims)),
        ('sigma1', torch.nn.Sigmoid()),
        ('layer2', torch.nn.Linear(hidden_dims, output_size)),
        ('sigma2', torch.nn.Sigmoid()),
    ]))


def test_the_tracer_reads_like_the_model():
    model, example_input = _network(), torch.rand((1, 5))
    network = model
    with NNsight(model).trace(example_input) as model:

        l2_input = model.layer2.input.save()
        l2_output = model.layer2.output.save()

        output = model.output.save()

    print(l2_input)
    print(l2_output)
    print(output)
    assert l2_input.shape == (1, 10)
    assert torch.equal(output, network(example_input))
    assert l2_output.shape == (1, 2)


def test_two_inputs_of_a_plain_module():
    model, example_input, input_size = _network(), torch.rand((1, 5)), 5
    network = model
    example_input2 = torch.rand((1, input_size))

    with NNsight(model).trace() as model:

        with model.invoke(example_input):

            output1 = model.output.save()

        with model.invoke(example_input2):

            output2 = model.output.save()

    print(output1)
    print(output2)
    assert torch.allclose(output1, network(example_input))
    assert torch.allclose(output2, network(example_input2))


@without_switch
def test_runner_is_a_tracer(model):
    with model.trace("The Eiffel Tower is in the city of") as runner:
        logits = model.lm_head.output.save()
    assert logits.shape[-1] == 400
    assert runner is not None

    with pytest.raises(AttributeError):  # what is saved is the tensor: `print(logits)`
        print(logits.value)


@under_switch
def test_values_by_a_word_of_their_own(model):
    with model.trace("The Eiffel Tower is in the city of") as runner:
        logits = model.lm_head.output.save()
    print(logits.value)
    assert logits.value is logits and runner is not None


@under_switch
def test_tokens_by_a_word_of_their_own_under_the_switch(model):
    with model.trace() as runner:
        with runner.invoke('The Eiffel Tower is in the city of') as invoker:
            logits = model.lm_head.output.t[0].save()
    with model.trace('The Eiffel Tower is in the city of'):
        expected = model.lm_head.output[:, 0].save()
    assert torch.equal(logits, expected)
    with model.trace('The Eiffel Tower is in the city of'):
        hidden = model.transformer.h[0].mlp.output.token[0].save()
        whole = model.transformer.h[0].mlp.output.save()
    assert torch.equal(hidden, whole[:, -whole.shape[1]])


@without_switch
def test_tokens_by_a_word_of_their_own(model):
    """`.t` is of tensors themselves now, so `.t[0]` cannot be the first token: the error says so."""
    with pytest.raises(TypeError) as caught:
        with model.trace() as runner:
            with runner.invoke('The Eiffel Tower is in the city of') as invoker:
                logits = model.lm_head.output.t[0].save()
    assert "`.output[:, 0]`" in "".join(caught.value.__notes__)
    with model.trace() as runner:
        with runner.invoke('The Eiffel Tower is in the city of') as invoker:
            logits = model.lm_head.output[:, 0].save()
    assert logits.shape == (1, 400)


def test_dispatching(gpt2_folder):
    model = LanguageModel(gpt2_folder)
    model.dispatch_model()
    assert model.dispatched and model.lm_head.weight.device.type == "cpu"
    assert model.to("cpu") is model


# --- getting --------------------------------------------------------------------------------------


def test_getting(model):
    k, input = 2, "The Eiffel Tower is in the city of"
    # capturing interventions
    with model.trace(input): # enter the tracing context
        k_layer_output = model.transformer.h[k].output[0].save() # access the output of layer[k]
    with model.trace("The Eiffel Tower is in the city of") as tracer:
        hidden_states = model.transformer.h[-1].output[0].save()
    print(hidden_states)
    assert k_layer_output.shape == hidden_states.shape


def test_getting_by_a_name_of_your_own(model):
    k, input, expected = 2, "The Eiffel Tower is in the city of", model
    model = LanguageModel(model._module, tokenizer=model.tokenizer, rename={"transformer.h": "layer"})
    # capturing interventions
    with model.trace(input): # enter the tracing context
        k_layer_output = model.layer[k].output[0].save() # access the output of layer[k] and save for later use
    with expected.trace(input):
        wanted = expected.transformer.h[k].output[0].save()
    assert torch.equal(k_layer_output, wanted)


def test_input_is_the_first_of_inputs(model):
    with model.trace("Hello"):
        inputs = model.transformer.h[3].inputs.save()
    with model.trace("Hello"):
        first = model.transformer.h[3].input.save()
    args, kwargs = inputs
    expected = args[0] if args else next(iter(kwargs.values()))
    got, expected = (v[0] if isinstance(v, tuple) else v for v in (first, expected))
    assert torch.equal(got, expected)


# --- the workflows --------------------------------------------------------------------------------


def test_the_same_code_here_and_there(model):
    with model.trace("Hello world"):
        hidden = model.transformer.h[5].output[0].save()
    assert hidden.ndim == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_patterns_at_a_module_that_no_longer_runs(gpt2_folder, attention):
    """In transformers 5 attention drops out by a function; the error says where the weights are."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(gpt2_folder, attn_implementation=attention)
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    model = LanguageModel(_tuple_blocks(network.eval()), tokenizer=tokenizer)

    def snippet():
        with model.trace("The Eiffel Tower is in") as tracer:
            # Access any module's output
            hidden_states = model.transformer.h[5].output[0].save()
            # Access attention patterns
            attn = model.transformer.h[5].attn.attn_dropout.input[0][0].save()
            # Modify activations
            model.transformer.h[8].output[0][:] = 0 # Zero out layer 8
            # Get final output
            logits = model.output.save()
        return hidden_states, attn, logits

    def patterns():
        with model.trace("The Eiffel Tower is in"):
            attn = model.transformer.h[5].attn.output[1].save()
        return attn

    if attention == "eager" and transformers.__version__ < "5":  # there the module still runs
        hidden_states, attn, logits = snippet()
        assert hidden_states.ndim == 3 and torch.equal(attn, patterns()[0][0])
        with torch.no_grad():
            plain = network(**tokenizer("The Eiffel Tower is in", return_tensors="pt")).logits
        assert not torch.allclose(logits.logits, plain)
        return
    with pytest.raises(NeverCalledError) as caught:
        snippet()
    assert "model.transformer.h.5.attn.attn_dropout.input" in str(caught.value)
    assert set(caught.value.saved) == {"hidden_states"}
    assert "`attn_implementation='eager'`" in str(caught.value)
    assert "`attn.output[1]`" in str(caught.value)
    if attention == "eager":
        attn = patterns()
        assert torch.allclose(attn.sum(-1), torch.ones(()), atol=1e-6)
        assert torch.equal(attn, attn.tril())


def test_values_computed_in_the_block(model):
    with model.trace("Hello"):
        # These are all Proxy objects - operations are deferred
        h5_out = model.transformer.h[5].output[0] # Proxy
        h5_mean = h5_out.mean(dim=-1) # Proxy
        h5_saved = h5_mean.save() # Save for later access
        kept = h5_out.save()
    assert torch.equal(h5_saved, kept.mean(dim=-1))


def test_activation_analysis(model):
    prompt = "The capital of France is"
    with model.trace(prompt) as tracer:
        # 1. Collect activations from multiple layers
        layer_outputs = []
        for i in range(12): # GPT-2 has 12 layers
            layer_out = model.transformer.h[i].output[0].save()
            layer_outputs.append(layer_out)

        # 3. Get final logits
        logits = model.output.save()
        layer_outputs.save()

    # 4. Analyze outside context
    for i, layer_out in enumerate(layer_outputs):
        print(f"Layer {i} output shape: {layer_out.shape}")
        print(f"Layer {i} norm: {layer_out.norm().item():.3f}")
    # 5. Find top predictions
    with pytest.raises(TypeError):  # the output of a transformers model holds the logits
        probs = torch.softmax(logits[0, -1], dim=-1)
    logits = logits.logits
    probs = torch.softmax(logits[0, -1], dim=-1)
    top_tokens = probs.topk(5)
    for token, prob in zip(top_tokens.indices, top_tokens.values):
        print(f"{model.tokenizer.decode(token)}: {prob.item():.3f}")
    assert len(layer_outputs) == 12


def test_activation_analysis_whole(model):
    """Its second part goes back to the first layer, to a module that no longer runs: one is told."""
    prompt = "The capital of France is"
    with pytest.raises((NeverCalledError, OutOfOrderError), match=r"h\.0\.attn\.attn_dropout\.input"):
        with model.trace(prompt) as tracer:
            # 1. Collect activations from multiple layers
            layer_outputs = []
            for i in range(12): # GPT-2 has 12 layers
                layer_out = model.transformer.h[i].output[0].save()
                layer_outputs.append(layer_out)

            # 2. Get attention patterns
            attn_patterns = []
            for i in range(12):
                # Access attention weights (after softmax)
                attn = model.transformer.h[i].attn.attn_dropout.input[0][0].save()
                attn_patterns.append(attn)

            # 3. Get final logits
            logits = model.output.save()


def test_activation_patching(model):
    tokenizer = model.tokenizer.train_new_from_iterator(
        ["The Eiffel Tower is in Col", "osseum Rome Paris"] * 4, 400
    )
    model = LanguageModel(model._module, tokenizer=tokenizer)
    clean_prompt = "The Eiffel Tower is in"
    corrupted_prompt = "The Colosseum is in"  # as long in tokens as the other, as in GPT-2's own
    # 1. Get clean activations
    with model.trace(clean_prompt) as tracer:
        clean_hidden = model.transformer.h[8].output[0].save()
    # 2. Patch clean into corrupted run
    with model.trace(corrupted_prompt) as tracer:
        # Replace layer 8 output with clean activations
        model.transformer.h[8].output[0][:] = clean_hidden
        patched_logits = model.output.save()
    with model.trace(clean_prompt):
        clean_logits = model.output.save()
    assert torch.allclose(patched_logits.logits, clean_logits.logits, atol=1e-5)
    # 3. Compare predictions
    paris_token = model.tokenizer.encode(" Paris")[0]
    rome_token = model.tokenizer.encode(" Rome")[0]
    patched_logits = patched_logits.logits  # which an output of transformers holds
    patched_probs = torch.softmax(patched_logits[0, -1], dim=-1)
    print(f"Paris prob: {patched_probs[paris_token].item():.3f}")
    print(f"Rome prob: {patched_probs[rome_token].item():.3f}")
    assert paris_token != rome_token


def test_systematic_patching_sweep(model):
    def patch_layer_position(layer, position, clean_cache, corrupted_prompt):
        """Patch single layer/position from clean to corrupted."""
        with model.trace(corrupted_prompt) as tracer:
            # Get current activation
            current = model.transformer.h[layer].output[0]
            # Patch only specific position
            current[:, position, :] = clean_cache[layer][:, position, :]
            logits = model.output.save()
        return logits

    with model.trace("The cat sat on the"):
        clean_hidden = [layer.output[0].clone() for layer in model.transformer.h].save()
    seq_len, corrupted = 3, "The dog ran through the"

    def compute_metric(logits):
        return logits.logits[0, -1, 5]

    # Sweep over all layers and positions
    results = torch.zeros(12, seq_len)
    for layer in range(12):
        for pos in range(seq_len):
            logits = patch_layer_position(layer, pos, clean_hidden, corrupted)
            results[layer, pos] = compute_metric(logits)
    assert results.std() > 0


def test_sharing_between_prompts(model):
    with model.trace() as tracer:
        # First prompt
        with tracer.invoke("The cat sat on the"):
            cat_hidden = model.transformer.h[6].output[0].save()

        # Second prompt - inject cat's activations
        with tracer.invoke("The dog ran through the"):
            # Replace with cat's activations at layer 6
            model.transformer.h[6].output[0][:] = cat_hidden
            dog_with_cat = model.output.save()
    prompts = ["The cat sat on the", "The dog ran through the"]
    expected = _hooked(model, prompts, model.transformer.h[6])
    assert torch.allclose(dog_with_cat.logits, expected[1:], atol=1e-5)


def test_multi_token_generation(model, capsys):
    with model.generate("The Eiffel Tower is in", max_new_tokens=3) as tracer:
        output = model.generator.output.save()

    print(model.tokenizer.decode(output[0]))
    # "The Eiffel Tower is in the city of Paris"
    ids = model.tokenizer("The Eiffel Tower is in", return_tensors="pt")
    assert torch.equal(output, model._module.generate(**ids, max_new_tokens=3, pad_token_id=0))
    assert "The Eiffel Tower is in" in capsys.readouterr().out


def test_iterating_over_generation_steps(model):
    with model.generate("Hello", max_new_tokens=5) as tracer:
        logits = list().save()

        # Iterate over all generation steps
        with tracer.iter[:]:
            logits.append(model.lm_head.output[0][-1].argmax(dim=-1))

    print(model.tokenizer.batch_decode(logits))
    ids = model.generate("Hello", max_new_tokens=5)
    assert 1 <= len(logits) <= 5
    assert torch.stack(logits).tolist() == ids[0, -len(logits):].tolist()


def test_conditional_interventions_per_step(model):
    with model.generate("Hello", max_new_tokens=5) as tracer:
        outputs = list().save()

        with tracer.iter[:] as step_idx:
            if step_idx == 2:
                model.transformer.h[0].output[0][:] = 0  # Only on step 2

            outputs.append(model.transformer.h[-1].output[0])
    with model.generate("Hello", max_new_tokens=5) as tracer:
        plain = [model.transformer.h[-1].output[0] for _ in tracer.iter[:]].save()
    assert len(outputs) == 5
    assert torch.equal(outputs[1], plain[1])
    assert not torch.equal(outputs[2], plain[2])


def test_caching_activations(model):
    with model.trace("Hello") as tracer:
        cache = tracer.cache()

    # Access cached values
    layer0_out = cache['model.transformer.h.0'].output
    print(cache.model.transformer.h[0].output[0].shape)
    with model.trace("Hello"):
        expected = model.transformer.h[0].output[0].save()
    assert torch.equal(layer0_out[0], expected)


def test_gradients(model):
    with model.trace("Hello"):
        hs = model.transformer.h[-1].output[0]
        hs.requires_grad_(True)

        logits = model.lm_head.output
        loss = logits.sum()

        with loss.backward():
            grad = hs.grad.save()

    print(grad.shape)
    assert grad.shape == (1, *hs_shape(model, "Hello")) and grad.abs().sum() > 0


def hs_shape(model, text):
    with model.trace(text):
        shape = nnsight.save(model.transformer.h[-1].output[0].shape[1:])
    return shape


@pytest.mark.skipif(transformers.__version__ < "5", reason="the blocks of GPT-2 return tuples there")
@pytest.mark.filterwarnings("ignore:.*is row 0 of the batch")
def test_gradients_where_blocks_return_tensors(gpt2):
    """On transformers 5 `[0]` is the first row: its gradient is that of its elements."""
    model = gpt2
    with model.trace("Hello"):
        hs = model.transformer.h[-1].output[0]
        hs.requires_grad_(True)

        logits = model.lm_head.output
        loss = logits.sum()

        with loss.backward():
            grad = hs.grad.save()

    with model.trace("Hello"):
        whole = model.transformer.h[-1].output
        with model.lm_head.output.sum().backward():
            expected = whole.grad.save()
    assert torch.equal(grad, expected[0]) and grad.abs().sum() > 0


def test_gradient_based_analysis(model):
    """Its `logits` are an output that holds logits: the error says what to write."""
    with pytest.raises(TypeError) as caught:
        with model.trace("The quick brown fox") as tracer:
            # Save activations and enable gradient
            hidden = model.transformer.h[5].output[0].save()
            hidden.retain_grad()
            logits = model.output
            # Compute loss on specific token
            target_token = model.tokenizer.encode(" jumps")[0]
            loss = -logits[0, -1, target_token]
            # Backward pass
            loss.backward()
    assert "`model.output.logits[0, -1]`" in "".join(caught.value.__notes__)
    with model.trace("The quick brown fox") as tracer:
        # Save activations and enable gradient
        hidden = model.transformer.h[5].output[0].save()
        hidden.retain_grad()
        logits = model.output.logits  # as it said
        # Compute loss on specific token
        target_token = model.tokenizer.encode(" jumps")[0]
        loss = -logits[0, -1, target_token]
        # Backward pass
        loss.backward()
    # Access gradients
    grad = hidden.grad
    print(f"Gradient shape: {grad.shape}")
    print(f"Gradient norm: {grad.norm().item():.3f}")
    assert grad.shape == hidden.shape and grad.norm() > 0


def test_generating_inside_an_invoke(model):
    """A trace that is open cannot be made to generate: the error says how to open one that does."""
    with pytest.raises(ValueError, match=r"with model\.generate\(prompt, max_new_tokens=\.\.\.\)"):
        with model.trace() as tracer:
            with tracer.invoke("What is 2+2?"):
                # Intervene during generation
                model.transformer.h[2].output[0][:, -1, :] *= 1.5
                output = model.generate(max_new_tokens=50)


def test_the_underlying_model(model, capsys):
    print(model._model) # See actual module names
    assert "GPT2LMHeadModel(" in capsys.readouterr().out


def test_forgetting_to_save(model):
    def wrong():
        with model.trace("Hello"):
            hidden = model.transformer.h[5].output[0] # Not saved!
        print(hidden)

    with pytest.warns(UserWarning, match="`hidden` will not exist after it"):
        with pytest.raises(UnboundLocalError):
            wrong()
    # RIGHT: Call .save()
    with model.trace("Hello"):
        hidden = model.transformer.h[5].output[0].save()
    print(hidden) # Works!
    assert hidden.ndim == 3


def test_saving_specific_layers(model, tmp_path):
    from transformers import AutoModelForCausalLM

    shallow, tokenizer = model, model.tokenizer
    folder = make_gpt2_folder(tmp_path, layers=100, width=8)
    deep = _tuple_blocks(AutoModelForCausalLM.from_pretrained(folder).eval())
    model = LanguageModel(deep, tokenizer=tokenizer)
    # it has the wrong way and the right one in one block: the second begins at a layer that is over
    with pytest.raises(OutOfOrderError, match=r"`model\.transformer\.h\.0\.output`"):
        with model.trace("prompt"):
            # Don't save everything
            for i in range(100):
                model.transformer.h[i].output[0].save() # Memory heavy!
            # Better: save specific layers
            key_layers = [0, 5, 11]
            for i in key_layers:
                model.transformer.h[i].output[0].save()
    model = shallow
    with model.trace("prompt"):
        # Better: save specific layers
        key_layers = [0, 5, 11]
        kept = []
        for i in key_layers:
            kept.append(model.transformer.h[i].output[0].save())
        kept.save()
    assert len(kept) == 3


# --- edits, scans, sessions ----------------------------------------------------------------------


def test_model_editing(model):
    # Create edited model (non-destructive)
    with model.edit() as model_edited:
        model.transformer.h[0].output[0][:] = 0

    # Original model unchanged
    with model.trace("Hello"):
        out1 = model.transformer.h[0].output[0].save()

    # Edited model has modification
    with model_edited.trace("Hello"):
        out2 = model_edited.transformer.h[0].output[0].save()

    assert not torch.all(out1 == 0)
    assert torch.all(out2 == 0)


def test_scanning(model, capsys):
    with model.scan("Hello"):
        dim = model.transformer.h[0].output[0].shape[-1]

    print(dim)  # 768
    assert dim == 48 and capsys.readouterr().out == "48\n"


def test_sessions(model):
    with model.session() as session:
        with model.trace("Hello"):
            hs1 = model.transformer.h[0].output[0].save()
        
        with model.trace("World"):
            model.transformer.h[0].output[0][:] = hs1  # Use value from first trace
            hs2 = model.transformer.h[0].output[0].save()
    assert session is not None and torch.equal(hs1, hs2) and hs1.any()


# --- source tracing -------------------------------------------------------------------------------


def test_source_shows_the_operations(model, capsys):
    # Discover available operations
    print(model.transformer.h[0].attn.source)
    # Shows forward method with operation names like:
    #   attention_interface_0 -> 66  attn_output, attn_weights = attention_interface(...)
    #   self_c_proj_0         -> 79  attn_output = self.c_proj(attn_output)

    printed = " ".join(capsys.readouterr().out.split())
    assert "attn_output = self.c_proj(attn_output)" in printed
    assert "self_c_proj_0 ->" in printed and "attention_interface_0 ->" in printed


def test_source_of_attention(model):
    # Access operation values
    with model.trace("Hello"):
        attn_out = model.transformer.h[0].attn.source.attention_interface_0.output.save()

    given = []
    c_proj = model._module.transformer.h[0].attn.c_proj
    handle = c_proj.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with model.trace("Hello"):
        pass
    handle.remove()
    assert torch.equal(attn_out[0].flatten(2), given[0])
