"""What each layer of a language model would say next: the logit lens (nostalgebraist, 2020).

python examples/logit_lens.py ["a prompt"]
"""

import sys

import nnsight
from nnsight import LanguageModel
from nnsight.toolbox.facts import facts_folder

prompt = sys.argv[1] if len(sys.argv) > 1 else "The Eiffel Tower is in the city of"
model = LanguageModel(facts_folder())

with model.trace(prompt):
    guesses = nnsight.save([])
    for layer in model.layers:
        last = layer.resid_post[:, -1]
        logits = model.lm_head(model.ln_final(last))
        guesses.append(logits.softmax(-1).max(-1))

for index, (probability, token) in enumerate(zip(*zip(*guesses, strict=True), strict=True)):
    print(f"layer {index}: {model.tokenizer.decode(token)!r} {probability.item():.2f}")
