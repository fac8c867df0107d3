"""Which layer's view of an image decides: patch what one image is to the model into another prompt.

python examples/image_patching.py

The model is a LLaVA of a few thousand random weights, so what it answers means nothing. A model of
the hub, `VisionLanguageModel("llava-hf/llava-1.5-7b-hf")`, goes in the same way.
"""

import numpy
from PIL import Image

import nnsight
from nnsight import VisionLanguageModel
from nnsight.toolbox import tiny

module, processor = tiny.llava()
model = VisionLanguageModel(module, processor=processor)
red, blue = (
    Image.fromarray(numpy.full((40, 40, 3), color, dtype=numpy.uint8))
    for color in ((200, 30, 30), (30, 30, 200))
)
prompt = "<image> What is this?"
words = model.processor(text=prompt, images=[red]).input_ids[0]
places = [at for at, word in enumerate(words) if word == model.config.image_token_id]

layers = model.model.language_model.layers

with model.trace(prompt, images=[blue]):
    seen = model.model.multi_modal_projector.output.save()
    streams = nnsight.save([layer.output[:, places] for layer in layers])
    wanted = model.output.logits[0, -1].save()

patched = []
with model.trace() as tracer:
    with tracer.invoke(prompt, images=[red]):
        plain = model.output.logits[0, -1].save()
    with tracer.invoke(prompt, images=[red]):
        model.model.multi_modal_projector.output = seen
        swapped = model.output.logits[0, -1].save()
    for layer, stream in zip(layers, streams, strict=True):
        with tracer.invoke(prompt, images=[red]):
            layer.output[:, places] = stream
            patched.append(model.output.logits[0, -1])

whole = (wanted - plain).norm()
print(f"the projector: {1 - (wanted - swapped).norm() / whole:.2f} of the way to the other image")
for index, logits in enumerate(patched):
    print(f"layer {index}: {1 - (wanted - logits).norm() / whole:.2f} of the way")
