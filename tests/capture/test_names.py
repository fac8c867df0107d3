"""Which names a body binds, and how."""

from __future__ import annotations

import ast
import sys

import pytest
from record import Captured  # noqa: F401  (makes the next line importable)

from nnsight.capture.names import leftmost, mangled, names_of, set_first, updates, words

BINDS = [
    ("x = 1", "x", ""),
    ("x = y = z", "x y", ""),
    ("x, (y, *z) = v", "x y z", ""),
    ("x.a = 1", "", ""),
    ("x[0] = 1", "", ""),
    ("x: int = 1", "x", ""),
    ("x: int", "x", ""),
    ("x += 1", "x", "x"),
    ("x.a += 1", "", ""),
    ("x = x + 1", "x", "x"),
    ("x = f(x)", "x", "x"),
    ("x = y + x.z", "x", "x"),
    ("x = 1; x += 1", "x", ""),
    ("x = y = x", "x y", ""),
    ("(x := 1)", "x", ""),
    ("[x := i for i in y]", "x", ""),
    ("[i for i in y]", "", ""),
    ("{i: j for i, j in y}", "", ""),
    ("lambda a: (b := a)", "", ""),
    ("lambda a=(b := 1): a", "b", ""),
    ("del x", "x", ""),
    ("for x in y: z = 1", "x z", ""),
    ("while (x := 1): pass", "x", ""),
    ("with a as x, b as (y, z.w): pass", "x y", ""),
    ("import a", "a", ""),
    ("import a.b.c", "a", ""),
    ("import a.b as c", "c", ""),
    ("from a import b, c as d", "b d", ""),
    ("def f(a, b=1): c = 1", "f", ""),
    ("@d\ndef f(a: t) -> r: c = 1", "f", ""),
    ("async def f(): x = 1", "f", ""),
    ("class A(B, metaclass=M):\n  x = 1\n  def f(self): y = 1", "A", ""),
    ("try: pass\nexcept E as e: x = 1\nfinally: y = 1", "e x y", ""),
    ("match v:\n  case [a, *b]: pass\n  case {'k': c, **d}: pass", "a b c d", ""),
    ("match v:\n  case P(x=e) | Q(e): pass\n  case int() as f: pass\n  case _: pass", "e f", ""),
    ("global x\nx = y = 1", "y", ""),
    ("nonlocal x\nx = 1", "x", ""),
    ("def f():\n  nonlocal x\n  x = 1", "f", ""),
    ("return x", "", ""),
    ("f'{(x := 1)}'", "x", ""),
]


@pytest.mark.parametrize(("text", "bound", "updated"), BINDS)
def test_what_is_bound_and_what_is_only_updated(text: str, bound: str, updated: str):
    names = names_of(ast.parse(text).body)
    assert names.bound == set(bound.split())
    assert names.updated == set(updated.split())


def test_star_except_binds():
    if sys.version_info >= (3, 11):
        names = names_of(ast.parse("try: pass\nexcept* E as e: x = 1").body)
        assert names.bound == {"e", "x"}


MENTIONS = [
    ("x = y", "x y"),
    ("f(a, *b, k=c)[d].e", "f a b c d"),
    ("lambda x: x + y", "x y"),
    ("def f(a: t = u): return a + y", "f t u a y"),
    ("[i + n for i in s if c]", "i n s c"),
    ("class A(B):\n  x = y", "A B x y"),
    ("def f():\n  nonlocal n", "f n"),
    ("def f():\n  def g():\n    return deep", "f g deep"),
    ("super().f()", "super __class__"),
    ("f'{x:{w}} {y!r}'", "x w y"),
    ("import a.b", "a"),
    ("x += y", "x y"),
    ("del x", "x"),
    ("global x", ""),
]


@pytest.mark.parametrize(("text", "mentioned"), MENTIONS)
def test_every_name_is_mentioned(text: str, mentioned: str):
    assert names_of(ast.parse(text).body).mentioned == set(mentioned.split())


def test_declarations():
    names = names_of(ast.parse("global a, b\nnonlocal c\na = c = 1").body)
    assert (names.declared_global, names.declared_nonlocal) == ({"a", "b"}, {"c"})
    assert names.bound == {"c"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("x += 1", "x"),
        ("x.y += 1", None),
        ("x = x", "x"),
        ("x = [x]", "x"),
        ("x = y", None),
        ("x = y = x", None),
        ("x, y = x", None),
        ("x: int = x", None),
        ("x", None),
    ],
)
def test_statements_that_update_a_name(text: str, name: str | None):
    assert updates(ast.parse(text).body[0]) == name


def test_the_operand_that_is_evaluated_first():
    value = ast.parse("a + b * c - d", mode="eval").body
    assert ast.unparse(leftmost(value)) == "a"


@pytest.mark.parametrize(
    ("name", "cls", "spelled"),
    [
        ("__x", "A", "_A__x"),
        ("__x", "_A", "_A__x"),
        ("__x", "__A_", "_A___x"),
        ("__x", "__", "__x"),
        ("__x", None, "__x"),
        ("__x__", "A", "__x__"),
        ("_x", "A", "_x"),
        ("x", "A", "x"),
    ],
)
def test_private_names_are_spelled_as_python_does(name: str, cls: str | None, spelled: str):
    assert mangled(name, cls) == spelled
    if cls is not None:
        namespace: dict[str, object] = {}
        exec(f"class {cls}:\n  def f(self): self.{name}", namespace)
        method = vars(namespace[cls])["f"]  # type: ignore[arg-type]
        assert method.__code__.co_names == (spelled,)


def test_the_words_of_a_node():
    (statement,) = ast.parse("from m import __a as __b").body
    assert {w for node in ast.walk(statement) for w in words(node)} == {"m", "__a", "__b"}


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("x = 1; y = x", "x y"),
        ("y = x; x = 1", "y"),
        ("def f(): return x\nx = 1", "f"),
        ("with m.trace(a) as t: x = t.b\ny = x", "t x y"),
        ("with m.trace(t) as t: pass", ""),
        ("with m.trace(a) as t, t.invoke(b) as u: pass", "t u"),
        ("with m.trace(a) as t: x = t.b; t.stop()\nx", "t"),
        ("with suppress(E) as s: x = f()\nx", "s"),
        ("with m.trace(a):\n    for x in y: z = x", ""),
    ],
)
def test_names_that_are_set_before_they_are_looked_at(text, first):
    assert set_first(ast.parse(text).body) == set(first.split())
