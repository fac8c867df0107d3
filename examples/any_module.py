"""Any PyTorch module, not only language models: read, change and batch a small network.

python examples/any_module.py
"""

import torch

from nnsight import NNsight

network = torch.nn.Sequential(
    torch.nn.Linear(4, 8),
    torch.nn.ReLU(),
    torch.nn.Linear(8, 2),
)
model = NNsight(network)

with model.trace() as tracer:
    with tracer.invoke(torch.ones(1, 4)):
        activations = model[1].output.save()
    with tracer.invoke(torch.zeros(2, 4)):
        model[1].output = activations.expand(2, -1)  # from the first input into the second
        patched = model.output.save()
    with tracer.invoke():
        everything = model.output.save()

print("active units:", int((activations > 0).sum()))
print("all outputs agree:", bool(torch.allclose(everything, patched[:1].expand(3, -1))))
