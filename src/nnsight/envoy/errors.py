"""What can go wrong with a wrapped module and the operations in it, and the texts that say so."""

from __future__ import annotations

from collections.abc import Iterable

from nnsight.capture.traceback import warn
from nnsight.envoy.listing import Listing
from nnsight.interleave.errors import OutOfOrderError


class SourceNotAvailable(ValueError):
    """A function has no source whose operations could be met."""


def no_source(path: str, why: str) -> SourceNotAvailable:
    return SourceNotAvailable(
        f"`{path}.source` is not available: {why}. Read the module's `.input` and `.output`, or "
        "the values of the modules in it."
    )


def not_python(kind: str) -> str:
    return f"what runs there is not a Python function ({kind}), so it has no operations to meet"


def scripted(kind: str) -> str:
    return f"this module is compiled by TorchScript ({kind}): use the module that it was made from"


def compiled() -> str:
    return "this is the wrapper of `torch.compile`: use the module inside it, `._orig_mod`"


def container(kind: str) -> str:
    return f"a {kind} without a `forward` only holds modules and is never called itself"


def hidden_by_decorator(name: str) -> str:
    return (
        f"a decorator holds `{name}` where it cannot be exchanged for the length of a run (in "
        "compiled code, or in an object that cannot be copied)"
    )


def is_a_module(path: str, module: str | None) -> SourceNotAvailable:
    return SourceNotAvailable(
        f"`{path}` calls a module, and a module's operations are met through its own envoy: write "
        f"`{module or '<the envoy of that module>'}.source`."
    )


def only_inside(path: str) -> SourceNotAvailable:
    return SourceNotAvailable(
        f"`{path}.source` is not available here: which function is called there is decided while "
        "the model runs (it is kept in a variable). Inside a trace it is known: put this line into "
        "`with model.trace(...):`."
    )


def no_such_operation(path: str, name: str, listing: Listing) -> str:
    near, names = listing.near(name), [op.name for op in listing.ops]
    hint = f" Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""
    some = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return (
        f"`{path}` has no operation {name!r}.{hint} Its operations: {some or 'none'}. "
        f"`print({path})` shows each beside its line."
    )


def no_such_call(path: str, kind: str) -> ValueError:
    return ValueError(
        f"`{path}` is an assignment, so it has no `.{kind}`: its value is `.output`, which can be "
        "read and assigned."
    )


def running(what: object, place: str) -> OutOfOrderError:
    return OutOfOrderError(
        f"`{what}` was requested while `{place}` is already running, and operations can be met "
        "only in a call that begins after they were asked for. Write `ops = "
        f"{place}.source` above the first value that this block reads, then use `ops.<operation>`."
    )


def uncounted(what: object, place: str) -> OutOfOrderError:
    return OutOfOrderError(
        f"`{what}` was requested after `{place}` had run, and the operation is in a loop: how "
        f"often the model has passed it was not counted. Write `ops = {place}.source` above the "
        "first value that this block reads (before its loop over steps), then use "
        "`ops.<operation>`."
    )


def warn_of_edits_left(path: str, edits: Iterable[object]) -> None:
    """Tell that a copy of a part of a model has none of the edits on that part."""
    if left := ", ".join(map(str, edits)):
        root, _, part = path.partition(".")
        warn(
            f"the copy of `{path}` is a model of its own, without the edits that are in force in "
            f"it here ({left}): they may name modules that it lacks. To keep them, copy the whole "
            f"model and take the part of the copy: `copy.deepcopy({root}).{part}`."
        )


def row_zero(kind: str) -> str:
    return (
        f"`.output[0]` is row 0 of the batch here: {kind} returns a tensor, where transformers 4 "
        "returned a tuple whose first was the hidden state. Write `.output` for the hidden state "
        "of all rows, and `.output[0, ...]` or `.output[0:1]` if row 0 is what you want. A script "
        "that was written for tuples runs as it is with `LanguageModel(..., tuple_outputs=True)`, "
        "`CONFIG.APP.LEGACY = True` or `NNSIGHT_LEGACY=1`."
    )
