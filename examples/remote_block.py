"""One block, here, in a process of its own, or on a server: only the place differs.

python examples/remote_block.py                               # here
python examples/remote_block.py local                         # in a fresh process
python examples/remote_block.py http://localhost:8001 MODEL   # python -m nnsight serve MODEL
"""

import sys

import nnsight
from nnsight import LanguageModel
from nnsight.toolbox.facts import facts_folder

place = sys.argv[1] if len(sys.argv) > 1 else None
model = LanguageModel(sys.argv[2] if len(sys.argv) > 2 else facts_folder())


def best(logits):
    """The most probable next token and its probability."""
    return logits.softmax(-1).max(-1)


with model.trace("The Eiffel Tower is in the city of", remote=place or False):
    norms = nnsight.save([layer.mlp.output.norm().item() for layer in model.transformer.h])
    probability, token = best(model.lm_head.output[0, -1])
    probability.save(), token.save()
    print("this line is printed where the block runs")

print(f"next: {model.tokenizer.decode(token)!r} {probability.item():.2f}, {len(norms)} layers")
