"""Which parts matter: leave out each attention and each MLP in turn and see what it costs.

python examples/ablation.py
"""

import torch

from nnsight import LanguageModel
from nnsight.toolbox.facts import facts_folder

model = LanguageModel(facts_folder())
prompt, answer = "The Eiffel Tower is in the city of", " Paris"
token = model.tokenizer(answer)["input_ids"][0]


def probability_without(part):
    """P(answer) when `part` of the model adds nothing."""
    with torch.no_grad(), model.trace(prompt):
        output = part.output
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:] = 0
        probability = model.output.logits[0, -1].softmax(-1)[token].save()
    return probability.item()


for index, block in enumerate(model.transformer.h):
    attention, mlp = probability_without(block.attn), probability_without(block.mlp)
    print(f"layer {index}: without attention {attention:.2f}, without MLP {mlp:.2f}")
