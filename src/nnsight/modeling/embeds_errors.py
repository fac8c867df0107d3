"""What can be wrong with embeddings that are batched with token ids, and the texts that say so."""

from __future__ import annotations

import torch

from nnsight.modeling.errors import first_sentence, show

_APART = "Use a trace for each of these invokes, or give all of them as embeddings: "
_EMBED = "`inputs_embeds=model.get_input_embeddings()(ids)`."


def beside_setting(name: str) -> ValueError:
    return ValueError(
        f"Can't batch these invokes: some go in as embeddings and others as ids, and `{name}=` "
        f"looks at the ids of every prompt. {_APART}{_EMBED}"
    )


def beside_images() -> ValueError:
    return ValueError(
        "Can't batch these invokes: some go in as ids, and one as embeddings with images beside "
        "them, whose places in the text are marked by ids. Use a trace for it."
    )


def model_reads_ids(model: str, why: str) -> ValueError:
    return ValueError(
        f"Can't batch these invokes: some go in as embeddings and others as ids, and {model} does "
        f"not give the same numbers for embeddings that are put in the place of ids: {why}. "
        f"{_APART}{_EMBED}"
    )


def differs(by: float) -> str:
    return f"what it returns is off by {by:.1e}, so it must read more from the ids"


def not_measured(model: str, form: str, error: Exception) -> ValueError:
    why = first_sentence(error).rstrip(".")
    return ValueError(
        "Can't batch these invokes: some go in as embeddings and others as ids, and whether "
        f"{model} has the same numbers for embeddings in the place of ids cannot be measured: run "
        f"alone on the first row of embeddings, as {form}, it fails ({why}). "
        f"{_APART}{_EMBED}"
    )


NEVER_LOOKED_UP = "it does not look its ids up in what `get_input_embeddings()` returns"


def unlike_embeddings(given: torch.Tensor, expected: torch.Tensor) -> ValueError:
    return ValueError(
        f"The `inputs_embeds` of an invoke are {show(given)}, and what this model looks up for the "
        f"invokes of ids is {show(expected)}: they must agree in width and dtype."
    )


def unlike_lookup(given: str, rows: int) -> ValueError:
    return ValueError(
        f"The layer that looks ids up was made to give {given}, and it has {rows} row(s) here, one "
        "for each prompt of ids: the invokes with `inputs_embeds=` have none there."
    )


def placeholders(location: object) -> ValueError:
    return ValueError(
        f"`{location}` holds token ids, and this invoke has none: it went in as `inputs_embeds=`, "
        "beside invokes of ids, which are looked up first. Read or change its embeddings before "
        f"the trace, or at the input of the first layer; `{location}` holds them in a trace where "
        "no invoke has ids."
    )


def ids_replaced() -> ValueError:
    return ValueError(
        "A block replaced ids in rows that have none: their invoke went in as `inputs_embeds=`, "
        "and until the others are looked up placeholders stand there. Change the rows of ids only, "
        "each in its own invoke."
    )


def read_again(model: str) -> ValueError:
    return ValueError(
        "Can't generate for these invokes together: some go in as embeddings and others as ids, "
        f"and {model} reads all of them again for each new token. {_APART}{_EMBED}"
    )
