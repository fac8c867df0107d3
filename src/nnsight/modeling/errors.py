"""What can go wrong while a model is loaded or fed, and the texts that say so."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

FORMS = (
    "A prompt is a string, token ids (a list, a 1-d or 2-d integer tensor or array), a chat (a "
    "list of dicts with 'role' and 'content'), a dict of named inputs such as a tokenizer "
    "returns, or a list of those; anything else goes in by name, as in `trace(inputs_embeds=...)`."
)


class LoadError(OSError):
    """A model, its config or its tokenizer could not be read from where it was said to be."""


def show(value: Any) -> str:
    """`value` as a message shows it: tensors by shape and dtype, anything long cut short."""
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return reprlib.repr(value)


def first_sentence(reason: BaseException | str) -> str:
    """The first sentence of what somebody else's code has to say."""
    if isinstance(reason, KeyError):  # its text is the key
        reason = f"there is no {reason}"
    lines = (str(reason).strip() or type(reason).__name__).splitlines()
    line = " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])
    sentence = line.partition(". ")[0].rstrip(".,;: ")
    return f"{sentence[:200]}."


# --- reading an input ------------------------------------------------------------------------


def empty_input(value: Any) -> ValueError:
    return ValueError(
        f"The input is empty ({show(value)}): a forward pass needs at least one token. To start "
        "from nothing but the beginning-of-sequence token, pass its id: "
        "`[model.tokenizer.bos_token_id]`."
    )


def unreadable_input(value: Any) -> ValueError:
    return ValueError(f"{show(value)} of type {type(value).__name__} is not a prompt. {FORMS}")


def no_data(value: Any) -> ValueError:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    if isinstance(value, dict) and value:
        names = ", ".join(repr(name) for name in value)
        return ValueError(
            f"Nothing in this input is a prompt: its names are {names}. Named inputs hold "
            "'input_ids', 'text' or what else the model reads; a message of a chat 'role' and "
            "'content'."
        )
    return ValueError(
        f"The input is {show(value)}, which holds no prompt. {FORMS} An empty `tracer.invoke()` "
        "sees the whole batch."
    )


def not_ids(value: torch.Tensor) -> ValueError:
    if value.is_floating_point():
        way_out = "Pass embeddings by name: `inputs_embeds=`."
    else:
        way_out = "Token ids are integers, in one dimension or in two (rows, tokens)."
    return ValueError(f"{show(value)} is not token ids. {way_out}")


def many_positional(count: int) -> ValueError:
    return ValueError(
        f"{count} unnamed inputs were given where one is expected. Put several prompts into one "
        "list, `trace([a, b])`, or into an invoke each; name anything else, as in "
        "`trace(ids, attention_mask=mask)`."
    )


def given_twice(name: str) -> ValueError:
    return ValueError(f"`{name}` was given twice: once in the input and once by name. Keep one.")


def no_tokenizer() -> ValueError:
    return ValueError(
        "This prompt is text, and the model has no tokenizer to read it with. Pass one when the "
        "model is made, `LanguageModel(module, tokenizer=tokenizer)`, or pass token ids."
    )


def no_chat_template() -> ValueError:
    return ValueError(
        "This prompt is a chat, and the tokenizer has no chat template to write it out with. Set "
        "`model.tokenizer.chat_template`, or pass the conversation as one string."
    )


def wrong_rows(name: str, value: torch.Tensor, rows: int) -> ValueError:
    return ValueError(
        f"`{name}` is {show(value)}, but the input that it goes with has {rows} row(s): its first "
        "dimension must be the same."
    )


def wrong_length(name: str, value: torch.Tensor, length: int) -> ValueError:
    return ValueError(
        f"`{name}` is {show(value)}, but the input that it goes with is {length} token(s) long: "
        "its second dimension must be the same."
    )


def ragged_values(name: str) -> ValueError:
    return ValueError(
        f"`{name}` is a list that cannot be made into a tensor: its rows must hold numbers, and "
        "as many as the input has tokens."
    )


def unlike_labels() -> ValueError:
    return ValueError(
        "The text in `labels` does not come to as many tokens as the prompt, row for row, so there "
        "is not one target for each token. Pass the prompt itself, or ids with -100 where there is "
        "no target."
    )


# --- joining inputs --------------------------------------------------------------------------


def missing_field(name: str, noun: str, have: Sequence[int], lack: Sequence[int]) -> ValueError:
    """Some invokes name a per-row input, others do not, and there is nothing to put there."""
    text = (
        f"Can't batch these {noun}s: `{name}` is given by {_listed(noun, have)} but not by "
        f"{_listed(noun, lack)}, and it has no default. Give it in every {noun}."
    )
    if name in ("input_ids", "inputs_embeds"):
        text += (
            " Token ids and embeddings do not mix in one batch: embed the ids first with "
            "`model.get_input_embeddings()(ids)`."
        )
    return ValueError(text)


def unequal_shapes(name: str, noun: str, shapes: Iterable[Sequence[int]]) -> ValueError:
    return ValueError(
        f"Can't batch these {noun}s: `{name}` has the shapes "
        f"{', '.join(str(tuple(shape)) for shape in shapes)}, which differ beyond the first "
        f"dimension. Pad it yourself to one shape, or use a trace for each {noun}."
    )


def conflicting_keyword(name: str, first: Any, second: Any) -> ValueError:
    return ValueError(
        f"Can't batch these invokes: they share one call, and `{name}` is {show(first)} in one and "
        f"{show(second)} in another. Give it once, in `trace({name}=...)`, or use two traces."
    )


def no_mask(method: str) -> ValueError:
    return ValueError(
        f"These prompts differ in length, so they must be padded, but {method} takes no "
        "`attention_mask` that would keep the padding out of the result. Use one trace for each "
        "length."
    )


# --- what the model can take -----------------------------------------------------------------


def unknown_token(token: int, row: int, vocab_size: int) -> ValueError:
    return ValueError(
        f"Token id {token} (row {row}) is outside the model's vocabulary of {vocab_size} ids, 0 to "
        f"{vocab_size - 1}. Does the tokenizer belong to this model? After adding tokens to it, "
        "call `resize_token_embeddings` on the model."
    )


def too_long(length: int, limit: int) -> ValueError:
    return ValueError(
        f"The input is {length} tokens long, and this model has positions for {limit}. Shorten it, "
        f"or pass `truncation=True, max_length={limit}` along with the text."
    )


def _listed(noun: str, places: Sequence[int]) -> str:
    return f"{noun} {', '.join(str(place) for place in places)}"


# --- standard names --------------------------------------------------------------------------


class NoSuchName(AttributeError):
    """A standard name that this model, or this layer of it, does not have."""


def no_such_name(name: str, reason: str) -> NoSuchName:
    return NoSuchName(
        f"There is no `{name}` here: {reason}. `print(model)` shows the modules that there are."
    )


def other_heads(found: int, count: int, width: int) -> NoSuchName:
    return NoSuchName(
        f"What should be {count} heads of width {width}, by the config, is {found} wide: there is "
        "something else in it. docs/standard-names.md says how to add a family."
    )


def lacking(name: str, kind: str, stack: str, others: Sequence[int]) -> NoSuchName:
    """A part that this layer does not have, and perhaps others do."""
    if others:
        listed = ", ".join(map(str, others[:8])) + (", ..." if len(others) > 8 else "")
        way_out = f"Layers that have one: {listed}; `hasattr` tells for a layer of `{stack}`."
    else:
        way_out = "No layer of this model has one."
    return NoSuchName(f"There is no `{name}`: that layer is a {kind} without one. {way_out}")


def no_mid(name: str, order: str, known: bool) -> NoSuchName:
    if not known:
        reason = (
            "this family is not in the table, and names alone do not tell where its stream is "
            "between attention and MLP. docs/standard-names.md says how to add a family"
        )
    elif order == "parallel":
        reason = "attention and MLP of this model read the same stream, so there is none in between"
    else:
        reason = "nothing in this model is the plain stream between attention and MLP"
    return NoSuchName(f"There is no `{name}`: {reason}. `resid_pre` and `resid_post` are there.")


def not_replaced(name: str, path: str) -> AttributeError:
    return AttributeError(
        f"`{name}` is another name for a module of `{path}`, so a module cannot be put there. "
        f"Assign it under its own name; `print` of `{path}` shows it."
    )


def several_stacks(model: str, names: Sequence[str]) -> NoSuchName:
    return NoSuchName(
        f"`{model}.layers` is ambiguous: this model has several stacks. Write "
        f"{' or '.join(f'`{name}`' for name in names)}."
    )


def no_kernel(name: str, kind: str) -> NoSuchName:
    return NoSuchName(
        f"There is no `{name}`: no call in the forward of {kind} is known to compute it. Its "
        "operations are in `.source` of the module; docs/standard-names.md says how to add a "
        "family."
    )


def unfit(name: str, value: Any, seen: torch.Tensor) -> ValueError:
    return ValueError(
        f"`{name}` is a tensor of shape {tuple(seen.shape)}, so it cannot be set to {show(value)}. "
        "Assign a tensor of that shape, or a number for all of it; a part is set by indexing, as "
        f"in `{name}[:, -1] = ...`."
    )


def unreadable_mask(name: str, mask: Any) -> ValueError:
    kind = f"{mask.ndim}-d tensor" if isinstance(mask, torch.Tensor) else type(mask).__name__
    return ValueError(
        f"`{name}` cannot be computed beside this kernel: its mask is a {kind}, which only the "
        "kernel understands. Open the model with `attn_implementation='sdpa'`."
    )


def kernel_switched(name: str, kernel: str) -> str:
    return (
        f"`{name}` is changed or has a gradient, and {kernel!r} never has these probabilities. So "
        "in this run this layer's attention is computed from them, as 'eager' does; all other "
        f"layers keep {kernel!r}, and reading alone changes nothing. The two agree to rounding."
    )


class NamesError(RuntimeError):
    """A standard name of this model is not what it says: the table of families does not fit it."""


_TABLE = (
    "What is known of this family does not fit this model; docs/standard-names.md says how to tell "
    "where its values are."
)


def names_wrong(name: str, what: str, off: float, model: str) -> NamesError:
    return NamesError(
        f"`{name}` of {model} is not what it says: it fails {what!r} (off by {off:.2g} of the "
        f"value). {_TABLE}"
    )


def names_missing(name: str, kind: str) -> NamesError:
    return NamesError(f"`{name}` leads nowhere: {kind} has no module for it. {_TABLE}")


def names_unreadable(layer: str, name: str, before: str, error: Exception) -> NamesError:
    after = f" after `{before}`" if before else ""
    return NamesError(f"`{layer}.{name}` cannot be read{after}: {first_sentence(error)} {_TABLE}")


def no_layers(model: str) -> NoSuchName:
    return NoSuchName(f"`{model}` has no list of layers, so it has no standard names.")


# --- tokens ----------------------------------------------------------------------------------


def not_found(part: str, text: str) -> ValueError:
    return ValueError(
        f"{part!r} is not in {show(text)}. Upper and lower case count; `print(model.tokens(...))` "
        "shows what the prompt becomes."
    )


def cut_off(part: str) -> ValueError:
    return ValueError(f"{part!r} is in the text but not among the tokens: they were truncated.")


def found_often(part: str, places: Sequence[str]) -> ValueError:
    return ValueError(
        f"{part!r} is in the text {len(places)} times, at positions {', '.join(places)}. Say "
        "which, from 0: `find(part, which=0)`."
    )


def found_less(part: str, which: int, count: int) -> ValueError:
    return ValueError(f"{part!r} is in the text {count} time(s), so there is no `which={which}`.")


def which_row(count: int) -> ValueError:
    return ValueError(
        f"These are the tokens of {count} prompts. Say which is meant: `tokens[0].find(part)`, or "
        "`tokens.find(part, row=0)`."
    )


def no_ids() -> ValueError:
    return ValueError("These inputs hold no tokens: `tokens()` takes a prompt or token ids.")


# --- images ----------------------------------------------------------------------------------


def no_processor() -> ValueError:
    return ValueError(
        "There are images, and the model has no processor to read them with. Pass one when the "
        "model is made, `VisionLanguageModel(module, processor=processor)`, or pass what a "
        "processor returned."
    )


def no_such_task(task: str, known: Iterable[str]) -> ValueError:
    near = difflib.get_close_matches(task, list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(
        f"There is no task {task!r}.{hint} The class that builds the model says the same: "
        "`automodel='AutoModelFor...'`."
    )


def no_part(name: str) -> ValueError:
    return ValueError(
        f"The model has no {name.replace('_', ' ')} to read this input with. Pass one when the "
        f"model is made, `{name}=...`, or pass tensors by name, such as `trace(pixel_values=...)`."
    )


def images_without_text() -> ValueError:
    return ValueError(
        "There are images without a text that says where they are. Pass the prompt too: "
        "`trace(prompt, images=[...])`; token ids go with what the processor made of the images, "
        "`trace(input_ids=..., pixel_values=...)`."
    )


def images_beside_ids() -> ValueError:
    return ValueError(
        "A prompt with images is text or a chat, and this one mixes text with token ids. Give "
        "each an invoke of its own."
    )


def image_places(number: int, places: int, count: int, token: str) -> ValueError:
    return ValueError(
        f"Prompt {number} has {places} place(s) for an image ({token!r}), and {count} image(s) "
        f"came with it. Write {token!r} once for each image, or pass a chat, whose template does."
    )


def images_for_prompts(count: int, prompts: int) -> ValueError:
    return ValueError(
        f"It cannot be told which of {prompts} prompts each of {count} image(s) or lists of images "
        "belongs to. Pass a list of images for each prompt: `images=[[a], [], [b, c]]`."
    )


def unequal_images(name: str, shapes: Iterable[Sequence[int]]) -> ValueError:
    listed = ", ".join(str(tuple(shape)) for shape in shapes)
    return ValueError(
        f"Can't batch these invokes: their images differ in size (`{name}` has the shapes "
        f"{listed}), and this model takes one size in a batch. Resize the images to one size, or "
        "use a trace for each."
    )


# --- pipelines -------------------------------------------------------------------------------


def no_package(package: str, what: str) -> ImportError:
    return ImportError(
        f"{what} needs the package {package!r}, which is not installed: `pip install "
        f"'nnsight[diffusion]'`, or `pip install {package}`."
    )


def no_pipeline(source: str, reason: BaseException) -> LoadError:
    return LoadError(
        f"The pipeline of {source!r} could not be loaded: {first_sentence(reason)} Pass the "
        "folder that `save_pretrained` of a pipeline wrote, a hub id, or a loaded pipeline."
    )


def not_a_pipeline(source: Any) -> TypeError:
    return TypeError(
        f"DiffusionModel opens a pipeline of diffusers, by hub id, by folder or as it is, not "
        f"{show(source)}. One module of a pipeline goes into `NNsight(module)`."
    )


def pipeline_without_weights() -> RuntimeError:
    return RuntimeError(
        "A pipeline cannot be scanned: it looks at numbers on its way. Scan one of its modules, as "
        "in `with model.unet.scan(latents, 0, encoder_hidden_states):`, or run it for one step."
    )


def nothing_to_draw() -> ValueError:
    return ValueError(
        "generate() needs a prompt: `model.generate(prompt)` runs at once and returns the images. "
        "To see and change what happens meanwhile, write `with model.generate(prompt) as tracer:`."
    )


def missing_beside(name: str, have: Sequence[int], lack: Sequence[int]) -> ValueError:
    return ValueError(
        f"Can't batch these invokes: `{name}` is given by {_listed('invoke', have)} but not by "
        f"{_listed('invoke', lack)}. Give it in every invoke (prompts and embeddings do not mix in "
        "one batch), or use a trace for each."
    )


def seeds_for_prompts(count: int, prompts: int) -> ValueError:
    return ValueError(
        f"{count} seed(s) or generator(s) were given for {prompts} prompt(s). Give one for all "
        "prompts of the invoke, or a list with one for each."
    )


def read_there(name: str) -> str:
    return f"(That is where `{name}` is read.)"


def written_there(name: str) -> str:
    return f"(That is where `{name}` is written.)"


def changed_late(where: str) -> str:
    """A copy of a value that a block changed when it was no longer the model's."""
    return (
        f"A value that this block has under a standard name (it lies at `{where}`) was changed in "
        "place after the block had asked for another value. The model had gone on by then: the "
        "change came too late. Change it before the next line that asks for a value."
    )


def padding_in_window(model: str, window: int, rows: list[int]) -> str:
    return (
        f"{model} has layers that look back at {window} tokens, and of those is the padding "
        f"between the cache and a shorter prompt: row {', '.join(map(str, rows))} of the batch may "
        "have other numbers than alone. Give it prompts of equal length, or one at a time."
    )
