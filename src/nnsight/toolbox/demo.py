"""What `python -m nnsight demo` does, written as a user of nnsight would write it."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import nnsight
from nnsight import LanguageModel
from nnsight.toolbox.facts import Pair, fact_pairs, facts_folder


def demo(model_name: str | None, clean: str | None, corrupted: str | None, plot: str) -> None:
    """Open a model: its tree, its hidden states, a logit lens and a patching sweep."""
    start = time.perf_counter()
    console = Console()
    model = LanguageModel(model_name or facts_folder(), dispatch=True)
    pair = _pair(model, clean, corrupted, embedded=model_name is None)
    console.rule("the model")
    console.print(repr(model), highlight=False)
    _show_hidden_states(console, model, pair.clean)
    _show_lens(console, model, pair.clean)
    results = _sweep(console, model, pair)
    _show_sweep(console, model, pair, results)
    _plot(console, model, pair, results, plot)
    console.print(f"\n[dim]{time.perf_counter() - start:.1f} seconds[/dim]")


# --- the prompts ----------------------------------------------------------------------------------


def _tokens(model: Any, prompt: str) -> list[str]:
    return [token.text for token in model.tokens(prompt).tokens]


def _pair(model: Any, clean: str | None, corrupted: str | None, embedded: bool) -> Pair:
    """The prompts to compare, and what the model says to each."""
    if embedded and clean is None and corrupted is None:
        return fact_pairs()[0]
    clean = clean or "The Eiffel Tower is in the city of"
    corrupted = corrupted or "The Colosseum is in the city of"
    return Pair(clean, corrupted, _answer(model, clean), _answer(model, corrupted))


def _answer(model: Any, prompt: str) -> str:
    with model.trace(prompt):
        best = nnsight.save(model.output.logits[0, -1].argmax().item())
    return model.tokenizer.decode([best])


# --- the four parts -------------------------------------------------------------------------------


def _show_hidden_states(console: Console, model: Any, prompt: str) -> None:
    with model.trace(prompt):
        states = nnsight.save([layer.resid_post for layer in model.layers])
    table = Table(title=f"hidden states of {prompt!r}")
    for column in ("layer", "shape", "mean norm of a token"):
        table.add_column(column, justify="right")
    for index, state in enumerate(states):
        table.add_row(str(index), str(list(state.shape)), f"{state.norm(dim=-1).mean():.2f}")
    console.print(table)


def _show_lens(console: Console, model: Any, prompt: str) -> None:
    """What each layer would say next, read through the last norm and the unembedding.

    The logit lens of nostalgebraist, 2020.
    """
    norm, head = model.ln_final, model.lm_head
    with model.trace(prompt):
        states = [layer.resid_post[:, -1] for layer in model.layers[:-1]]
        lens = [head(norm(state)).softmax(-1)[0] for state in states]
        lens.append(model.output.logits[0, -1].softmax(-1))
        nnsight.save(lens)
    table = Table(title=f"logit lens at the last token of {prompt!r}")
    for column in ("layer", "first guess", "second", "third"):
        table.add_column(column)
    for index, probabilities in enumerate(lens):
        best = probabilities.topk(3)
        words = [model.tokenizer.decode([token]) for token in best.indices.tolist()]
        cells = [f"{w!r} {p:.2f}" for w, p in zip(words, best.values.tolist(), strict=True)]
        table.add_row(str(index), *cells)
    console.print(table)


def _sweep(console: Console, model: Any, pair: Pair) -> torch.Tensor:
    """For each layer and position: how likely the clean answer is once that state is patched in.

    Activation patching (causal tracing): Vig et al., 2020; Meng et al., 2022.
    """
    layers = model.layers
    answer = model.tokenizer(pair.clean_answer, add_special_tokens=False)["input_ids"][0]
    positions = min(len(_tokens(model, pair.clean)), len(_tokens(model, pair.corrupted)))
    with model.trace(pair.clean):
        clean = nnsight.save([layer.resid_post.clone() for layer in layers])
    results = torch.zeros(len(layers), positions)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("patching", total=results.numel())
        for index, layer in enumerate(layers):
            for position in range(-positions, 0):
                with torch.no_grad(), model.trace(pair.corrupted):
                    layer.resid_post[:, position] = clean[index][:, position]
                    probability = model.output.logits[0, -1].softmax(-1)[answer].save()
                results[index, position] = probability
                progress.advance(task)
    return results


def _show_sweep(console: Console, model: Any, pair: Pair, results: torch.Tensor) -> None:
    console.print(f"\nclean     {pair.clean!r} → {pair.clean_answer!r}")
    console.print(f"corrupted {pair.corrupted!r} → {pair.corrupted_answer!r}")
    table = Table(title=f"P({pair.clean_answer!r}) after patching one state of the clean run")
    table.add_column("layer", justify="right")
    for token in _tokens(model, pair.corrupted)[-results.shape[1] :]:
        table.add_column(repr(token), justify="right")
    for index, row in enumerate(results.tolist()):
        table.add_row(str(index), *[_shaded(value) for value in row])
    console.print(table)


def _shaded(value: float) -> str:
    style = "bold green" if value > 0.5 else "yellow" if value > 0.1 else "dim"
    return f"[{style}]{value:.2f}[/{style}]"


def _plot(console: Console, model: Any, pair: Pair, results: torch.Tensor, path: str) -> None:
    """Write the sweep as a picture, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        console.print("[dim]pip install 'nnsight\\[plots]' to get this table as a picture[/dim]")
        return
    from matplotlib.figure import Figure

    tokens = _tokens(model, pair.corrupted)[-results.shape[1] :]
    figure = Figure(figsize=(1.2 + 0.7 * len(tokens), 1.5 + 0.4 * len(results)), dpi=150)
    axes = figure.subplots()
    image = axes.imshow(results, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(tokens)), [repr(token) for token in tokens], rotation=45, ha="right")
    axes.set_yticks(range(len(results)))
    axes.set_xlabel("token of the corrupted prompt")
    axes.set_ylabel("layer")
    axes.set_title(f"P({pair.clean_answer!r}) after patching")
    figure.colorbar(image, ax=axes)
    figure.savefig(path, bbox_inches="tight")
    console.print(f"the same as a picture: {path}")
