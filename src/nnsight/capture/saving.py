"""`save`: which values outlive the outermost block.

A save keeps the object that it marks, so its identity cannot be taken over by another. What
returns to the caller is decided by name: a name that the block bound and that now holds a saved
object. Python shares small values (`5`, `"a"`, `None`) between unrelated names; for those the name
must also stand in the statement that saved it.
"""

from __future__ import annotations

import ast
import enum
import types
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nnsight.capture.block import Block
from nnsight.capture.frames import Span, frame_at, span_of
from nnsight.capture.rewrite import HELPER
from nnsight.capture.scope import Scope, running
from nnsight.capture.traceback import warn

T = TypeVar("T")

_SHARED = (
    *(int, float, complex, str, bytes, tuple, frozenset, type(None), type(...), range, slice),
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, enum.Enum),
)


Place = tuple["Block | None", Span]


@dataclass
class _Saved:
    value: Any
    version: int | None  # a tensor's count of changes in place, when it was saved
    author: object  # the block that saved it
    places: list[Place] = field(default_factory=list[Place])


class Saves:
    """The values saved in one outermost block and everything inside it."""

    def __init__(self) -> None:
        self._kept: dict[int, _Saved] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, value: object) -> bool:
        return id(value) in self._kept

    def __iter__(self) -> Iterator[Any]:
        return iter([entry.value for entry in self._kept.values()])

    def add(self, value: Any, place: Place | None = None, by: object = None) -> None:
        """Keep `value`.

        Args:
            place: where it is saved; by default, where the block is.
            by: who saves it; by default, the block that is running.
        """
        entry = self._kept.setdefault(id(value), _Saved(value, _version(value), by or author.get()))
        if _is_shared(value) or isinstance(value, list):
            entry.places.append(place or _saving_place())

    def of(self, scope: Scope) -> dict[str, Any]:
        """The names of a block that return to the caller, with their values."""
        return {n: v for n, v in scope.bound().items() if self._returns(n, v, scope.block)}

    def _returns(self, name: str, value: Any, block: Block) -> bool:
        entry = self._kept.get(id(value)) or self._container_of(value)
        if entry is None:
            return False
        if entry.value is value and not _is_shared(value):
            return True
        return any(name in _names_at(b or block, span) for b, span in entry.places)

    def _container_of(self, value: Any) -> _Saved | None:
        """The saved tuple or list that a statement unpacked `value` from: `a, *b = save(x)`."""
        for entry in self._kept.values():
            held = _elements(entry.value)
            if id(value) in held or (_elements(value) and _elements(value) <= held):
                return entry
        return None

    def versions(self) -> dict[int, int | None]:
        """How often each saved tensor has been changed in place by now."""
        return {key: _version(entry.value) for key, entry in self._kept.items()}

    def tolerate(self, before: Mapping[int, int | None], by: object) -> None:
        """Forgive what the block `by` has changed since `before` in tensors of others.

        The rows of a batch are views of one tensor and share one count of changes, but each block
        changes its own rows only.
        """
        for key, old in before.items():
            entry = self._kept[key]
            now = _version(entry.value)
            if entry.author is not by and None not in (now, old, entry.version):
                entry.version += now - old  # type: ignore[operator]

    def warn_changed(self, values: Mapping[str, Any]) -> None:
        """Warn of saved tensors that were changed in place afterwards."""
        changed = [
            name
            for name, value in values.items()
            if (entry := self._kept.get(id(value))) is not None and entry.version != _version(value)
        ]
        for name in changed:
            warn(
                f"`{name}` was changed in place after it was saved, so it holds the values after "
                "the change. To keep the values of the moment, save a copy: `.clone().save()`."
            )


author: ContextVar[object] = ContextVar("nnsight_author", default=None)
"""The block that is running, as one among those of a run."""

saves: ContextVar[Saves | None] = ContextVar("nnsight_saves", default=None)
"""The saves of the outermost block that this thread is running, if any."""


def save(value: T) -> T:
    """Keep `value` beyond the end of the trace, and return it.

    Write `x = value.save()` or `x = nnsight.save(value)` inside a trace; after the trace `x` holds
    the value. The value is not copied: save `value.clone()` to keep it as it is at this moment.

    Raises:
        ValueError: called outside a trace, where there is nothing to outlive.
    """
    current = saves.get()
    if current is None:
        raise ValueError(
            "save() was called outside a trace. It marks a value, inside `with model.trace(...):`, "
            "that is to outlive the block; outside, a plain assignment keeps it."
        )
    current.add(value)
    return value


def _listed(value: Any) -> list[Any]:
    return list(value)


def _elements(value: Any) -> set[int]:
    """The elements of a tuple or a list, by id, and of those in it."""
    found: set[int] = set()
    pending: list[Any] = [value]
    while pending:
        current = pending.pop()
        if issubclass(type(current), (tuple, list)):
            inside = [element for element in _listed(current) if id(element) not in found]
            found.update(map(id, inside))
            pending += inside
    return found


def _version(value: Any) -> int | None:
    try:
        version = value._version
        return version if isinstance(version, int) else None
    except Exception:  # not a tensor; or one of inference mode, which counts no changes
        return None


def _is_shared(value: Any) -> bool:
    """Whether Python may hand this very object to names that have nothing to do with it."""
    if issubclass(type(value), tuple) and type(value) is not tuple and len(value) > 0:
        return False  # a named tuple or torch.Size is made anew each time
    return isinstance(value, _SHARED) or (type(value).__module__ == "torch" and _is_constant(value))


def _is_constant(value: Any) -> bool:
    return type(value).__name__ in ("dtype", "device", "layout", "memory_format")


def _saving_place() -> Place:
    """The block that is running, and where in it this save comes from."""
    scope = running.get()
    frame = frame_at(1)
    while scope is not None and frame.f_back is not None:
        codes = [scope.block.code, *(variant.code for variant in scope.block.variants.values())]
        if any(frame.f_code is code for code in codes):
            return scope.block, span_of(frame)
        frame = frame.f_back
    return None, (0, 0, 0, 0)


def _names_at(block: Block, span: Span) -> set[str]:
    """Names that the statement at `span` binds, or hands to a call: `x = f()`, `save(x)`."""
    covering = [
        node
        for statement in block.body
        for node in ast.walk(statement)
        if isinstance(node, ast.stmt) and _covers(node, span)
    ]
    outer = {id(n) for node in covering for n in _around(node, covering)}
    return {name for node in covering if id(node) not in outer for name in _bound_or_handed(node)}


def _around(node: ast.stmt, others: list[ast.stmt]) -> list[ast.stmt]:
    """Those of `others` that `node` stands in."""
    return [o for o in others if o is not node and any(inner is node for inner in ast.walk(o))]


def _covers(node: ast.stmt, span: Span) -> bool:
    """Whether `node` stands around `span`."""
    line, _, start, end = span
    if not node.lineno <= line <= (node.end_lineno or line):
        return False
    if end == 0:  # the line is all that is known
        return True
    last = node.end_lineno or line, node.end_col_offset or end
    return (node.lineno, node.col_offset) <= (line, start) < last


def _bound_or_handed(statement: ast.stmt) -> set[str]:
    """The same for `statement` itself, without the statements in it."""
    found: set[str] = set()
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        pending += [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.stmt)]
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Call):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            found |= {value.id for value in given if isinstance(value, ast.Name)}
    return {name for name in found if not name.startswith(HELPER)}


def unsaved(scopes: Iterable[Scope]) -> list[str]:
    """Names that blocks bound and nobody read again: what a forgotten save looks like."""
    scopes = list(scopes)
    read = {name for scope in scopes for name in _read(scope.block)}
    return sorted(
        {
            name
            for scope in scopes
            for statement in _straight(scope.block.body)
            if isinstance(statement, (ast.Assign, ast.AnnAssign))
            for name in _bound_or_handed(statement) & set(scope.bound())
            if name not in read | scope.block.target | scope.block.names.declared_nonlocal
            and not name.startswith("_")
        }
    )


def _straight(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run once: those of `body`, and of each `with` in it (the traces)."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.With):
            yield from _straight(statement.body)


def _read(block: Block) -> set[str]:
    return {
        node.id
        for statement in block.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def warn_unsaved(names: list[str]) -> None:
    """Warn that names bound in a block will not be there after it."""
    listed = ", ".join(f"`{name}`" for name in names)
    warn(
        f"this trace saved nothing, so {listed} will not exist after it. Mark what you want to "
        "keep with `.save()`: `x = model.layer.output.save()`."
    )
