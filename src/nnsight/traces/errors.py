"""What can go wrong with the verbs of a trace.

Every text says what happened and where, what was expected, and what to write instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from nnsight import nested
from nnsight.interleave.errors import OutsideTraceError
from nnsight.interleave.location import OUTPUT


class NotCachedError(KeyError):
    """A cache does not have the value that was asked for."""

    def __str__(self) -> str:  # a `KeyError` shows its text in quotes, on one line
        return str(self.args[0])


def nearest(path: str, known: Iterable[str]) -> str:
    """A sentence that offers what `path` probably means; empty if nothing is near."""
    found = list(known)
    near = difflib.get_close_matches(path, found, n=2, cutoff=0.6)
    near = near or [p for p in found if p.endswith("." + path.rpartition(".")[2])][:2]
    return f" Did you mean {' or '.join(f'`{p}`' for p in near)}?" if near else ""


# --- modules that a cache is asked for -----------------------------------------------------------


def no_module(asked: str, known: Collection[str]) -> ValueError:
    return ValueError(
        f"cache(): there is no module {asked!r} in this model.{nearest(asked, known)} {_FORMS}"
    )


def no_match(pattern: str, known: Collection[str]) -> ValueError:
    return ValueError(
        f"cache(): no module of this model matches {pattern!r}.{nearest(pattern, known)} In a "
        "pattern `*` stands for any text, dots included: '*.mlp', 'transformer.h.*.attn'. "
        "`print(model)` shows the modules."
    )


def only_holds(asked: str, path: str) -> ValueError:
    return ValueError(
        f"cache(): {asked!r} only holds modules and is never called itself, so it has no values. "
        f"Ask for the modules in it: `modules=list({path})`, or the pattern {path + '.*'!r}."
    )


def no_name(asked: object) -> ValueError:
    return ValueError(f"cache(): {asked!r} is no module of a wrapped model. {_FORMS}")


def module_of_another(path: str) -> ValueError:
    return ValueError(
        f"cache(): `{path}` is part of another model than the one that is traced. Open a cache in "
        "a trace of that model."
    )


def nothing_to_keep() -> ValueError:
    return ValueError(
        "cache(): with include_output=False and include_inputs=False there is nothing to keep. "
        "Leave one of them True."
    )


_FORMS = (
    "Give modules (`model.transformer.h[0]`), paths ('transformer.h.0') or patterns ('*.mlp'); "
    "`print(model)` shows them all."
)


# --- values that a cache does not have -----------------------------------------------------------


def no_path(path: str, walkable: Collection[str], recorded: list[str]) -> str:
    few = ", ".join(recorded[:3]) or "nothing"
    return (
        f"this cache has no module {path!r}.{nearest(path, walkable)} It holds {len(recorded)} "
        f"modules ({few}, ...); `cache.keys()` lists them, and `tracer.cache(modules=[...])` says "
        "which are kept."
    )


def not_kept(path: str, kind: str) -> NotCachedError:
    word = "output" if kind == OUTPUT else "inputs"
    return NotCachedError(
        f"this cache has no {word} of `{path}`: it was opened without them. Write "
        f"`tracer.cache(include_{word}=True)`."
    )


def not_whole(path: str, kind: str) -> NotCachedError:
    return NotCachedError(
        f"this visit of `{path}` has no {kind}: the cache was opened while the module ran, or the "
        "module failed. Open the cache in the first line of the block."
    )


def not_met(path: str, kind: str) -> NotCachedError:
    return NotCachedError(
        f"this cache has no {kind} of `{path}`: the run did not come by it while the cache was "
        "open. The module was not called, or it had been passed: open the cache in the first line "
        "of the block."
    )


def not_asked(path: str, kind: str, recorded: Iterable[str]) -> NotCachedError:
    inside = next((p for p in recorded if p.startswith(f"{path}.")), None)
    way_out = f" It has `{inside}` and others below it." if inside else ""
    return NotCachedError(
        f"this cache has no {kind} of `{path}`: a value belongs to a module that is called and "
        f"that the cache was asked for.{way_out}"
    )


# --- edits --------------------------------------------------------------------------------------


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


def unwritable(name: str, value: object, where: str) -> str:
    kind = type(value).__name__
    return (
        f"the edit at {where} cannot be written to a file: it uses `{name}`, a {kind}. What can be "
        "written: numbers, strings, lists, tuples and dicts of such, tensors, NumPy arrays, parts "
        "of the model, and functions that can be imported or stand in a file as a plain `def` or a "
        "lambda. Put what the edit needs of it into a tensor or a number before the edit."
    )


def unwritable_block(where: str) -> str:
    return (
        f"the edit at {where} cannot be written to a file: it declares a `global` name, uses a "
        "private `__name` of a class, or saves a value, which means nothing elsewhere. Write it "
        "with plain names and without a save."
    )


def two_values(name: str, where: str) -> str:
    return (
        f"the edit at {where} cannot be written to a file: it and a function that it calls mean "
        f"different things by `{name}`. Give one of the two another name."
    )


def reserved_names(names: list[str], where: str) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return (
        f"the edit at {where} cannot be written to a file: it calls a function or a Python module "
        f"{listed}, which is what a written edit is given. Give it another name."
    )


def no_edits_at(path: object) -> str:
    return (
        f"there are no edits at {path}. Write them with `model.export_edits(name, export_dir)`, "
        "and read them with the same name, folder and variant."
    )


def not_edits(path: str) -> str:
    return f"{path} holds no `EDITS`: it is no file that `model.export_edits(...)` wrote."


def nothing_to_export(path: str) -> str:
    return (
        f"`{path}` has no edits to write. Make some with `with {path}.edit(inplace=True):`, or "
        "write those of the edited model: `edited.export_edits(...)`."
    )


def unnamed_export() -> str:
    return 'this model has no name of its own: write `export_edits("name")`.'


def first_step_only(name: str, where: str, steps: int) -> str:
    return (
        f"the edit {name!r} ({where}) was in force in the first of {steps} steps only. Write "
        "`model.edit(every_step=True)` for all of them, `every_step=False` if the first is what "
        "you mean, or a loop over `tracer.iter[...]` in the edit."
    )


def needs_numbers(operation: str) -> str:
    return (
        f"a scan cannot go on here: `{operation}` needs the numbers in a tensor, and a scan knows "
        "only shapes, dtypes and devices. In a block, decide by `.shape` and the like, or write "
        "`model.trace(...)`, which computes; if it is the model that asks, scan a part of it: "
        "`model.layer.scan(x)`."
    )


# --- reports --------------------------------------------------------------------------------------


def no_report() -> ValueError:
    return ValueError(
        "no report was kept of this run, as nothing asked for one before it began. Write "
        "`tracer.report()` or `print(tracer)` in the function (or the cell) of the `with`, or "
        "`with model.trace(x, report=True) as tracer:`."
    )


def same_model(path: str) -> ValueError:
    return ValueError(
        f"Cannot invoke during an active model execution / interleaving: `{path}` is in the model "
        "that runs beside this block. Give the second input to an invoke of the same trace, or "
        "open the second trace after the first has ended. (A trace of another model may stand "
        "here, and `model.layer(x)` runs one module.)"
    )


def no_rows() -> ValueError:
    return ValueError(
        "this input has no rows: its first dimension is 0, so there is nothing to run the model "
        "on. Give at least one row, or no input at all (an empty `tracer.invoke()` sees the whole "
        "batch)."
    )


def nothing_to_run() -> ValueError:
    return ValueError(
        "trace() needs an input, or at least one `with tracer.invoke(...)` block with an input: "
        "the model did not execute. Write `with model.trace(x):`, or `with model.trace() as "
        "tracer:` and `with tracer.invoke(x):` in it."
    )


def invoke_beside_input() -> ValueError:
    return ValueError(
        "Cannot invoke: this trace was given an input of its own, so its block is the only one. "
        "Give the inputs to the invokes: `with model.trace() as tracer:`."
    )


def invoke_without_trace() -> ValueError:
    return ValueError(
        "Cannot invoke: this trace is not open, so no forward is to come that the input could "
        "join. Write the invoke inside `with model.trace() as tracer:`."
    )


def no_cache_backward() -> OutsideTraceError:
    return OutsideTraceError(
        "`tracer.cache()` was called in a backward block: it runs beside the backward pass, which "
        "brings gradients only, and a cache keeps values of the forward. Call it above the `with "
        "loss.backward():`; read gradients one by one (`h.grad`)."
    )


def no_steps_backward(what: str) -> OutsideTraceError:
    return OutsideTraceError(
        f"`{what}` was called in a backward block: a backward pass has no steps, and goes through "
        "all steps of the forward at once. Put the `with loss.backward():` into the loop, or loop "
        "over a list of the values that you have read, later ones first: `for h in hidden: h.grad`."
    )
