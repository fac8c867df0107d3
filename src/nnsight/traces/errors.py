"""What can go wrong with the verbs of this room, and the texts that say so."""

from __future__ import annotations

from nnsight import nested


def edit_without_effect(name: str, where: str, reason: BaseException) -> str:
    return (
        f"the edit {name!r} ({where}) did not come to its end in this run, and what it does from "
        f"there on had no effect. {reason} Let an edit ask for what every run brings, or take it "
        "out: `model.edits.remove(edit)`, `model.clear_edits()`."
    )


def save_in_edit(where: str) -> str:
    return (
        f"the edit at {where} saves a value, which nobody will see: its block runs in later "
        "traces, and gives no names to them. Save in the trace itself, or append to a list that "
        "you made before the edit."
    )


def not_an_edit(given: object) -> str:
    return (
        f"`edits` holds edits, not {nested.describe(given)}. Make one with `with model.edit():`, "
        "or take it from another model's `edits`."
    )


def edit_elsewhere(path: str, here: str) -> str:
    return (
        f"this edit was made on `{path or 'the whole model'}`, which does not run in a run of "
        f"`{here}` alone. Add it to the edits of the whole model: `model.edits.append(edit)`."
    )


def edit_target(target: str) -> str:
    return (
        f"`as {target}` does not fit an edit. Write `with model.edit() as edited:` for the edited "
        "model, or `as (tracer, edited):` for the tracer too."
    )
