"""What can be wrong with what a generation is asked for, and the texts that say so."""

from __future__ import annotations

from collections.abc import Sequence


def misspelt(name: str, near: str) -> ValueError:
    return ValueError(f"`generate` takes no `{name}=`. Did you mean `{near}=`?")


def some_limits(numbers: Sequence[int]) -> ValueError:
    return ValueError(
        f"Some invokes ask for different `max_new_tokens` ({_distinct(numbers)}) and others do not "
        "say. Give it to each, or to the trace for those that do not: "
        "`generate(max_new_tokens=...)`."
    )


def limits_of_beams(numbers: Sequence[int]) -> ValueError:
    return ValueError(
        f"These invokes ask for different `max_new_tokens` ({_distinct(numbers)}), and a beam "
        "search cannot end one prompt before the others without changing what it finds. Use a "
        "trace for each, or one beam."
    )


def _distinct(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(numbers))))


def may_outgrow(length: int, new: int, limit: int) -> str:
    return (
        f"`max_new_tokens={new}` after {length} tokens goes beyond the {limit} positions that this "
        "model has: the generation fails if it has not ended by then."
    )


def nothing_to_generate() -> ValueError:
    return ValueError(
        "generate() needs a prompt: `model.generate(prompt, max_new_tokens=...)` runs at once and "
        "returns the ids. To see and change what happens meanwhile, write `with "
        "model.generate(prompt, max_new_tokens=...) as tracer:`; a trace that is open already "
        "cannot be made to generate from inside."
    )


def read_in_chunks() -> ValueError:
    return ValueError(
        "`prefill_chunk_size=` reads the prompt in several forwards, which transformers 4 makes "
        "past the model's own call: a block cannot tell its steps there. Leave it out, or use "
        "transformers 5; `model.generate(...)` without a block takes it."
    )
