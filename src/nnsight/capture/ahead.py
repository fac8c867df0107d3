"""Statements that only keep values ask ahead: the block goes on without them.

`x = model.layer.output.save()` does nothing with the value but keep it. So the block need not stop
there: it asks, and the value is put in its place when the model comes by. A run of such statements

    for layer in model.layers:
        outputs.append(layer.output)
    logits = model.head.output[0].save()

takes one turn in place of one for each value, and may ask in any order. The block waits for what
is still due before any statement that could do more than ask: what such a statement changes must
not be seen by the model earlier than the values that were asked for before it. At the very end of
a block there is nothing left to wait for.

Only how a statement is written decides. What the names in it turn out to be is looked at when it
runs, and what cannot be asked for ahead is read there and then.
"""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field
from typing import Any, cast

from nnsight.capture.rewrite import AHEAD, SAVE, TRACER, load

ITEM, ATTRIBUTE, CALL = range(3)
"""What is done with a value on its way to its place: `[0]`, `.logits`, `.clone()`."""

_KINDS = frozenset(
    {"output", "nns_output", "input", "inputs", "result"}
    | {"resid_pre", "resid_post", "out"}  # the standard names that may be such a value
)
_METHODS = frozenset(
    {"bfloat16", "clone", "contiguous", "cpu", "detach", "double", "float", "half", "item", "mean"}
    | {"numpy", "squeeze", "sum", "tolist"}
)
_LOOPS = frozenset({"enumerate", "list", "reversed", "zip"})
_STILL = (
    *(ast.BinOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Dict, ast.FormattedValue, ast.IfExp),
    *(ast.JoinedStr, ast.List, ast.Name, ast.Slice, ast.Tuple, ast.UnaryOp),
    *(ast.expr_context, ast.operator, ast.boolop, ast.cmpop, ast.unaryop),
)
_HANDING = (ast.Attribute, ast.Dict, ast.List, ast.Slice, ast.Subscript, ast.Tuple)
Body = list[ast.stmt]


def _is_still(node: ast.AST) -> bool:
    """Whether `node` is nothing to the model, and the same however far it has come.

    That is so if the names that it looks into are `_fixed`.
    """
    if isinstance(node, ast.Call) and not node.keywords and len(node.args) < 2:
        saved = _is_save(node.func) or _is_our_save(node.func)
        empty = getattr(node.func, "id", None) in ("dict", "list", "range") and not node.args
        ranged = getattr(node.func, "id", None) == "range"
        return (saved or empty or ranged) and all(map(_is_still, node.args))
    return isinstance(node, _STILL) and all(map(_is_still, ast.iter_child_nodes(node)))


def _is_way(node: ast.AST) -> bool:
    """Whether `node` only leads somewhere: `model.layers[3].mlp`."""
    if isinstance(node, ast.Attribute):
        return _is_way(node.value)
    if isinstance(node, ast.Subscript):
        return _is_way(node.value) and (_is_way(node.slice) or _is_still(node.slice))
    return isinstance(node, ast.Name)


def _fixed(node: ast.expr, looks: bool = False) -> ast.expr:
    """`node` with `fixed(x)` for each name `x` that it looks into: it adds it, prints it, tests it.

    A tensor changes as the model runs, and a list may hold what is due.

    Args:
        looks: whether what `node` is a part of looks into it, rather than hands it on.
    """
    if isinstance(node, ast.Name):
        return _method(node, "fixed", [node]) if looks else node
    looks = looks or not isinstance(node, _HANDING) or None in getattr(node, "keys", ())  # `**x`
    new = copy.copy(node)
    fields: list[tuple[str, Any]] = list(ast.iter_fields(node))
    for name, value in fields:
        if isinstance(value, ast.expr) and name != "func":
            setattr(new, name, _fixed(value, looks))
        elif isinstance(value, list):
            parts = cast(list[Any], value)
            new_parts = [_fixed(p, looks) if isinstance(p, ast.expr) else p for p in parts]
            setattr(new, name, new_parts)
    return new


def _is_our_save(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "save"
        and isinstance(function.value, ast.Name)
        and function.value.id == "nnsight"
    )


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


@dataclass
class _Kept:
    """A statement that only keeps values, as it asks for them ahead."""

    plain: ast.stmt  # as it is written
    ahead: ast.stmt
    asking: Body = field(default_factory=Body)  # the statements in it that ask for values
    due: set[str] = field(default_factory=set[str])  # names that are bound to what is due
    once: bool = True  # it asks for one value at most

    @property
    def reads(self) -> set[str]:
        return _names(self.plain, ast.Load)


def ask_ahead(body: Body, bound: frozenset[str]) -> tuple[Body, bool]:
    """`body` with what only keeps values asking for them ahead; whether it does nothing else.

    Args:
        bound: names that belong to this block alone; only these may wait for what is due.
    """
    writer = _Writer(bound)
    found = writer.statements(body, last=True)
    return found, writer.groups == [len(body)]


class _Writer:
    def __init__(self, bound: frozenset[str]) -> None:
        self.bound = bound
        self.groups: list[int] = []  # how many statements each has, of the block itself

    # --- lists of statements ----------------------------------------------------------------------

    def statements(self, body: Body, last: bool) -> Body:
        """`body`, in groups that are waited for together.

        Args:
            last: whether the block ends with it.
        """
        found: Body = []
        group: list[_Kept] = []
        for statement in body:
            kept = self._kept(statement)
            if kept is None or not _fits(group, kept):
                found += _settled(group, last=False)
                self.groups.append(len(group))
                group = []
            if kept is None:
                found.append(self._inside(statement, last and statement is body[-1]))
            else:
                group.append(kept)
        self.groups.append(len(group))
        return found + _settled(group, last)

    def _inside(self, node: ast.stmt, last: bool) -> ast.stmt:
        """A statement that holds others, with these asking ahead."""
        if not isinstance(node, (ast.For, ast.While, ast.If)):
            return node  # in a `try` or a `with`, what fails or goes on ends or changes the rest
        new = copy.copy(node)
        last = last and isinstance(node, ast.If)  # a loop goes on
        for name in ("body", "orelse"):
            if inner := getattr(node, name, None):
                setattr(new, name, self.statements(inner, last))
        return new

    # --- statements -------------------------------------------------------------------------------

    def _kept(self, node: ast.stmt) -> _Kept | None:
        """`node` asking ahead; None if it does more than keep values."""
        kept = None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            kept = self._assignment(node, node.targets[0])
        elif isinstance(node, ast.Expr):
            kept = self._appending(node, node.value)
        elif isinstance(node, (ast.For, ast.If)):
            kept = self._compound(node)
        elif isinstance(node, ast.Pass):
            kept = _Kept(node, node)
        return kept if kept is None or kept.due.isdisjoint(kept.reads) else None

    def _assignment(self, node: ast.Assign, target: ast.expr) -> _Kept | None:
        values = [node.value]
        targets = [target]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            targets, values = target.elts, node.value.elts
        names = [t.id for t in targets if isinstance(t, ast.Name)]
        if isinstance(target, ast.Subscript):
            return self._item(node, target)
        if len(names) != len(targets) or len(values) != len(targets):
            return None
        if _is_still(node.value):
            new = _assign(node, target, _fixed(node.value))
            own = self.bound.issuperset(_names(node.value, ast.Load) - {SAVE, TRACER, "nnsight"})
            return _Kept(node, new) if own else None  # others may bind a name anew meanwhile
        if not self.bound.issuperset(names):
            return None
        if len(names) == 1 and (listed := self._listed(node, node.value)) is not None:
            return _Kept(node, _assign(node, node.targets[0], listed), [node], {*names}, once=False)
        asked = [self._asked(node, v, n) for v, n in zip(values, names, strict=True)]
        if not all(asked):
            return None
        value = asked[0] if values[0] is node.value else ast.Tuple(asked, ast.Load())  # type: ignore[arg-type]
        assert value is not None
        return _Kept(node, _assign(node, target, value), [node], {*names}, once=len(names) == 1)

    def _item(self, node: ast.Assign, target: ast.Subscript) -> _Kept | None:
        """`values[key] = model.layer.output`"""
        asked = self._asked(node, node.value)
        if asked is None or not _is_way(target.value) or not _is_still(target.slice):
            return None
        if any(isinstance(inner, ast.Slice) for inner in ast.walk(target.slice)):
            return None
        call = _method(node, "put", [_fixed(target.value), _fixed(target.slice), asked])
        return _Kept(node, _expression(node, call), [node])

    def _appending(self, node: ast.Expr, call: ast.expr) -> _Kept | None:
        """`values.append(model.layer.output)`"""
        if isinstance(call, ast.Constant):
            return _Kept(node, node)
        if not (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "append"
            and _is_way(call.func.value)
            and len(call.args) == 1
            and not call.keywords
        ):
            return None
        asked = self._asked(node, call.args[0])
        if asked is None:
            return None
        return _Kept(
            node,
            _expression(node, _method(node, "append", [_fixed(call.func.value), asked])),
            [node],
        )

    def _compound(self, node: ast.For | ast.If) -> _Kept | None:
        """A loop or a choice whose statements only keep values."""
        if isinstance(node, ast.If):
            head = _fixed(node.test, looks=True) if _is_still(node.test) else None
        else:
            head = None if node.orelse or not _is_plain(node.target) else self._looped(node.iter)
        if head is None:
            return None
        inner = [self._kept(statement) for statement in (*node.body, *node.orelse)]
        kept = [each for each in inner if each is not None]
        if len(kept) != len(inner):
            return None
        new = copy.copy(node)
        setattr(new, "iter" if isinstance(node, ast.For) else "test", head)
        new.body = [each.ahead for each in kept[: len(node.body)]]
        new.orelse = [each.ahead for each in kept[len(node.body) :]]
        asking = [statement for each in kept for statement in each.asking]
        due = {name for each in kept for name in each.due}
        once = isinstance(node, ast.If) and len(asking) < 2 and all(each.once for each in kept)
        return _Kept(node, new, asking, due, once or not asking)

    # --- values -----------------------------------------------------------------------------------

    def _looped(self, node: ast.expr) -> ast.expr | None:
        """What is looped over; what it leads to is looked at when it is reached."""
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in _LOOPS:
            inner = [self._looped(argument) for argument in node.args]
            if node.keywords or not all(inner):
                return None
            call = ast.Call(node.func, [each for each in inner if each is not None], [])
            return ast.copy_location(call, node)
        if _is_still(node) and not isinstance(node, ast.Name):
            return _fixed(node)
        return _method(node, "over", [_later(node)]) if _is_way(node) else None

    def _listed(self, node: ast.stmt, value: ast.expr) -> ast.expr | None:
        """`[layer.output for layer in layers]`, and the same saved."""
        if isinstance(value, ast.Call) and (_is_save(value.func) or _is_our_save(value.func)):
            inner = self._listed(node, value.args[0]) if len(value.args) == 1 else None
            return inner and ast.copy_location(ast.Call(value.func, [inner], []), value)
        new = copy.copy(value)
        if isinstance(new, (ast.ListComp, ast.DictComp)):
            loops = [self._generator(generator) for generator in new.generators]
            if not all(loops):
                return None
            new.generators = [loop for loop in loops if loop is not None]
            if isinstance(new, ast.DictComp):
                asked = self._asked(node, new.value) if _is_still(new.key) else None
                if asked is not None:
                    new.key, new.value = _fixed(new.key), asked
            else:
                asked = self._asked(node, new.elt)
                if asked is not None:
                    new.elt = asked
        elif isinstance(new, ast.List) and new.elts:
            elements = [self._asked(node, element) for element in new.elts]
            asked = elements[0] if all(elements) else None
            new.elts = [element for element in elements if element is not None]
        else:
            return None
        return None if asked is None else _method(node, "hold", [new])

    def _generator(self, node: ast.comprehension) -> ast.comprehension | None:
        over = self._looped(node.iter)
        if over is None or node.is_async or not all(map(_is_still, node.ifs)):
            return None
        return ast.comprehension(
            node.target, over, [_fixed(test, looks=True) for test in node.ifs], 0
        )

    def _asked(self, node: ast.stmt, value: ast.expr, name: str | None = None) -> ast.expr | None:
        """`value` asked for ahead, in the statement `node`; None if it is none of a model."""
        save: ast.expr = ast.Constant(None)
        if isinstance(value, ast.Call) and len(value.args) == 1 and not value.keywords:
            named = isinstance(value.func, ast.Name) and value.func.id == "save"
            if _is_save(value.func) or _is_our_save(value.func) or named:
                save, value = value.func, value.args[0]
        steps: list[ast.expr] = []
        while not _asks(value):
            step = _step(value)
            if step is None:
                return None
            kind, what, value = step
            steps.insert(0, ast.Tuple([ast.Constant(kind), what], ast.Load()))
        assert isinstance(value, ast.Attribute)
        if not _is_way(value.value):
            return None
        arguments = [
            *(_later(value.value), ast.Constant(value.attr), ast.Tuple(steps, ast.Load()), save),
            *(_span(node), ast.Constant(name)),
        ]
        call = ast.Call(load(AHEAD, value), arguments, [])
        return ast.fix_missing_locations(ast.copy_location(call, value))


def _asks(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in _KINDS


def _step(value: ast.expr) -> tuple[int, ast.expr, ast.expr] | None:
    """What `value` does with what it is made from: how, with what, and the latter."""
    if isinstance(value, ast.Subscript) and _is_still(value.slice):
        index = ast.Subscript(load(AHEAD, value), _fixed(value.slice), ast.Load())
        return ITEM, ast.copy_location(index, value), value.value
    if isinstance(value, ast.Attribute):
        return ATTRIBUTE, ast.Constant(value.attr), value.value
    bare = isinstance(value, ast.Call) and not value.args and not value.keywords
    if bare and isinstance(value.func, ast.Attribute) and value.func.attr in _METHODS:  # type: ignore[union-attr]
        return CALL, ast.Constant(value.func.attr), value.func.value  # type: ignore[union-attr]
    return None


def _later(node: ast.expr) -> ast.expr:
    """`node` as a function, to be asked again when more has happened."""
    nothing = ast.arguments([], [], None, [], [], None, [])
    return ast.copy_location(ast.Lambda(nothing, _fixed(node)), node)


def _is_save(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id == SAVE


def _is_plain(target: ast.expr) -> bool:
    """Whether a loop binds names, and nothing else."""
    if isinstance(target, ast.Tuple):
        return all(map(_is_plain, target.elts))
    return isinstance(target, ast.Name)


def _fits(group: list[_Kept], kept: _Kept) -> bool:
    """Whether a statement may come before what is due in `group` is there: it reads none of it."""
    return all(each.due.isdisjoint(kept.reads) for each in group)


def _settled(group: list[_Kept], last: bool) -> Body:
    """The statements of a group, and the lines at which the block waits for what is due.

    A group that asks for one value only gains nothing, unless the block ends with it.
    """
    asking = [statement for kept in group for statement in kept.asking]
    if not asking or (not last and len(asking) == 1 and all(kept.once for kept in group)):
        return [kept.plain for kept in group]
    found = [kept.ahead for kept in group]
    if last:
        return found
    return found + [_expression(statement, _settle(statement)) for statement in asking]


def _settle(node: ast.stmt) -> ast.expr:
    return _method(node, "settle", [_span(node)])


def _span(node: ast.stmt) -> ast.expr:
    """Where a statement is, as a constant."""
    span: Any = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
    return ast.Constant(span)


def _method(node: ast.AST, name: str, arguments: list[ast.expr]) -> ast.expr:
    method = ast.Attribute(load(AHEAD, node), name, ast.Load())
    call = ast.Call(method, arguments, [])
    return ast.fix_missing_locations(ast.copy_location(call, node))


def _expression(node: ast.stmt, value: ast.expr) -> ast.stmt:
    return ast.fix_missing_locations(ast.copy_location(ast.Expr(value), node))


def _assign(node: ast.stmt, target: ast.expr, value: ast.expr) -> ast.stmt:
    return ast.fix_missing_locations(ast.copy_location(ast.Assign([target], value), node))
