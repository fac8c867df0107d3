"""Patching, head ablation and steering by standard names, as pictures.

Nothing here names a part of GPT-2: with another model and its prompts it is the same code.

    python examples/standard_names.py [folder]     # writes SVGs there, or to docs/pictures
"""

import json
import sys
from pathlib import Path

import torch

from nnsight import LanguageModel
from nnsight.toolbox.facts import fact_pairs, facts_folder

model = LanguageModel(facts_folder())
model.check_names()
pair = fact_pairs()[0]
PARIS, ROME = (model.tokenizer(city)["input_ids"][0] for city in (" Paris", " Rome"))


@torch.no_grad()
def patched():
    """P(" Rome") about the Eiffel Tower, with one state of the run about the Colosseum in it."""
    rows = []
    for index in range(len(model.layers)):
        row = []
        for position in range(len(model.tokens(pair.clean).tokens)):
            with model.trace() as tracer:
                with tracer.invoke(pair.corrupted):
                    state = model.layers[index].resid_post[:, position]
                with tracer.invoke(pair.clean):
                    model.layers[index].resid_post[:, position] = state
                    rome = model.lm_head.output[0, -1].softmax(-1)[ROME].item().save()
            row.append(rome)
        rows.append(row)
    return rows


@torch.no_grad()
def without_heads():
    """P(answer) over a few prompts, without one head."""
    rows = []
    prompts = [(each.clean, model.tokenizer(each.clean_answer)["input_ids"][0]) for each in
               fact_pairs()[:8]]  # fmt: skip
    for index in range(len(model.layers)):
        row = []
        for head in range(model.config.num_attention_heads):
            with model.trace() as tracer:
                found = [].save()
                for prompt, answer in prompts:
                    with tracer.invoke(prompt):
                        model.layers[index].attn.z[:, :, head] = 0
                        found.append(model.lm_head.output[0, -1].softmax(-1)[answer].item())
            row.append(sum(found) / len(found))
        rows.append(row)
    return rows


@torch.no_grad()
def steered(layer=3, strengths=(0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)):
    """P(" Paris") and P(" Rome") about the Eiffel Tower, on the way from Paris to Rome."""
    facts = json.loads((facts_folder() / "facts.json").read_text(encoding="utf-8"))["facts"]
    known = [fact for fact in facts if fact["relation"] == "landmark_city"]

    def mean(city):  # of the last token, over prompts about other places
        prompts = [fact["prompts"][0] for fact in known if fact["answer"] == city]
        prompts = [prompt for prompt in prompts if "Eiffel" not in prompt]
        with model.trace(prompts):
            state = model.layers[layer].resid_post[:, -1].mean(0).save()
        return state

    direction = mean(" Rome") - mean(" Paris")
    with model.trace() as tracer:
        curve = [].save()
        for strength in strengths:
            with tracer.invoke(pair.clean):
                model.layers[layer].resid_post[:, -1] += strength * direction
                curve.append(model.lm_head.output[0, -1].softmax(-1)[[PARIS, ROME]].tolist())
    return strengths, curve


# --- pictures -------------------------------------------------------------------------------------


def svg(width, height, parts):
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {style}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def words(x, y, text, anchor="middle", light=False):
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    colour = ' fill="white"' if light else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{colour}>{text}</text>'


def grid(rows, columns, title, across):
    """A heat map: layers upwards, from 0 (white) to 1 (blue)."""
    cell, left, top = 54, 60, 34
    parts = [words(left, 20, title, "start")]
    for index, row in enumerate(rows):
        y = top + 26 * (len(rows) - 1 - index)
        parts.append(words(left - 8, y + 17, f"layer {index}", "end"))
        for column, value in enumerate(row):
            x, colour = left + cell * column, [round(244 - part * value) for part in (174, 124, 59)]
            parts.append(f'<rect x="{x}" y="{y}" width="{cell - 2}" height="24" '
                         f'fill="rgb({colour[0]},{colour[1]},{colour[2]})"/>')  # fmt: skip
            parts.append(words(x + cell / 2 - 1, y + 16, f"{value:.2f}", light=value > 0.5))
    bottom = top + 26 * len(rows) + 14
    parts += [words(left + cell * (i + 0.5), bottom, name) for i, name in enumerate(columns)]
    parts.append(words(left, bottom + 18, across, "start"))
    return svg(left + cell * len(columns) + 10, bottom + 28, parts)


def lines(across, curve, names, title, label):
    left, top, width, height = 46, 34, 360, 150
    parts = [words(left, 20, title, "start")]
    for value in (0, 0.5, 1):
        y = top + height * (1 - value)
        parts.append(f'<path d="M{left} {y}H{left + width}" stroke="#ddd"/>')
        parts.append(words(left - 8, y + 4, f"{value:g}", "end"))
    xs = [left + width * (x - across[0]) / (across[-1] - across[0]) for x in across]
    parts += [words(x, top + height + 16, f"{v:g}") for x, v in zip(xs, across, strict=True)]
    for index, (name, colour) in enumerate(zip(names, ("#4c78a8", "#d95f02"), strict=True)):
        ys = [top + height * (1 - values[index]) for values in curve]
        points = " ".join(f"{x:.0f},{y:.0f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                     'stroke-width="2"/>')  # fmt: skip
        parts.append(words(left + width + 8, ys[-1] + 4 - 8 * (index == 0), name, "start"))
    parts.append(words(left, top + height + 34, label, "start"))
    return svg(left + width + 90, top + height + 44, parts)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    states, heads, (strengths, curve) = patched(), without_heads(), steered()
    tokens = [token.text.strip() for token in model.tokens(pair.clean).tokens]
    title = "P(Rome) about the Eiffel Tower, one state from the Colosseum patched in"
    (folder / "names_patching.svg").write_text(grid(states, tokens, title, "token"))
    title = "P(answer), mean of 8 prompts, without one head"
    columns = [f"head {head}" for head in range(len(heads[0]))]
    (folder / "names_ablation.svg").write_text(grid(heads, columns, title, ""))
    title = "The Eiffel Tower is in the city of ..., steered at layer 3"
    picture = lines(strengths, curve, ("P(Paris)", "P(Rome)"), title, "strength of Rome - Paris")
    (folder / "names_steering.svg").write_text(picture)
    subject = model.tokens(pair.clean).positions("Tower")[0]
    print(f"patching ' Tower' at layer 1: P(' Rome') = {states[1][subject]:.2f}")
    worst = min((value, f"{i}.{j}") for i, row in enumerate(heads) for j, value in enumerate(row))
    print(f"without head {worst[1]}: P(answer) = {worst[0]:.2f}")
    print(f"steered by 1: P(' Rome') = {curve[4][1]:.2f}")


main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
