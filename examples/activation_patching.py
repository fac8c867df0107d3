"""Where a fact is: patch each state of one run into another (Vig et al., 2020; Meng et al., 2022).

Both prompts run in one forward: the second block reads what the first has bound, by name.

    python examples/activation_patching.py
"""

import torch

from nnsight import LanguageModel
from nnsight.toolbox.facts import fact_pairs, facts_folder

model = LanguageModel(facts_folder())
pair = fact_pairs()[0]
answer = model.tokenizer(pair.clean_answer)["input_ids"][0]
positions = len(model.tokenizer(pair.clean)["input_ids"])

print(f"{pair.clean!r} → {pair.corrupted!r}: P({pair.clean_answer!r})")
for index, layer in enumerate(model.layers):
    row = []
    for position in range(positions):
        with torch.no_grad(), model.trace() as tracer:
            with tracer.invoke(pair.clean):
                state = layer.resid_post[:, position]
            with tracer.invoke(pair.corrupted):
                layer.resid_post[:, position] = state
                probability = model.output.logits[0, -1].softmax(-1)[answer].save()
        row.append(f"{probability.item():.2f}")
    print(f"layer {index}:", *row)
