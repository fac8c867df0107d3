"""In which step is a picture decided: leave the middle of the denoiser out, one step at a time.

python examples/diffusion_steps.py

The pipeline is a Stable Diffusion of some random weights, so its pictures show noise. With
`DiffusionModel("stabilityai/stable-diffusion-2-1")` the same lines show what each step is for.
"""

from nnsight import DiffusionModel
from nnsight.toolbox import tiny

STEPS = 3
model = DiffusionModel(tiny.stable_diffusion())
settings = {"num_inference_steps": STEPS, "seed": 0, "output_type": "pt"}

pulls = []
with model.generate("a cat", **settings) as tracer:
    for _ in tracer.iter[:STEPS]:
        without, with_it = model.unet.output[0].chunk(2)
        pulls.append((with_it - without).norm().item())  # what the prompt changes in this step
    plain = tracer.result.images.save()

for left_out, pull in enumerate(pulls):
    with model.generate("a cat", **settings) as tracer:
        for _ in tracer.iter[left_out : left_out + 1]:
            model.unet.mid_block.output[:] = 0
        changed = tracer.result.images.save()
    moved = (changed - plain).abs().mean().item()
    print(f"step {left_out}: the prompt pulls by {pull:.3f}; without the middle {moved:.4f} change")
