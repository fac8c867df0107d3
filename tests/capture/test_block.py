"""A body compiled: its names, its code, and what is refused."""

# ruff: noqa: F841  (blocks bind names that nobody reads)

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from typing import Any

import pytest
from record import Captured as Trace

from nnsight.capture.block import Block
from nnsight.capture.refuse import refuse
from nnsight.capture.rewrite import AWAIT, HELPER, SAVE, Rewrite, Sharing
from nnsight.capture.saving import save
from nnsight.capture.source import Site


class Keeps(Trace):
    """Keeps its block for a look at it."""

    block: Block

    def execute(self) -> None:
        assert self.scope is not None
        Keeps.block = self.scope.block
        super().execute()


def _block(case: Callable[[], Any]) -> Block:
    case()
    return Keeps.block


# --- names ----------------------------------------------------------------------------------------


def test_bound_names_are_those_of_the_frame():
    outer, n = [1], 1

    def case():
        inner = 2
        with Keeps() as t:
            x = inner + len(outer)
            y = x
            n  # noqa: B018  (a name that is only read)
            save(y)

    block = _block(case)
    assert block.bound == {"x", "y", "t"}
    assert block.target == {"t"}
    free = {name for name in block.code.co_freevars if not name.startswith(HELPER)}
    assert free == {"inner", "outer", "n", "x", "y", "t"}
    assert n == 1


def test_names_that_are_declared_global():
    def case():
        with Keeps():
            global made_by_test_block
            made_by_test_block = 1
            loose = [made_by_test_block]
            loose.clear()

    assert _block(case).bound == {"loose"}
    assert globals().pop("made_by_test_block") == 1


def test_only_what_is_mentioned_is_taken():
    def case():
        a, b = [1], [2]
        with Keeps():
            a.append(3)
        return b

    assert "b" not in _block(case).code.co_freevars


def test_who_looks_around_sees_everything():
    def case() -> Any:
        a, b = [1], [2]
        with Keeps():
            seen = save(sorted(n for n in locals() if not n.startswith("__")))
        return seen, a, b

    assert case()[0] == ["a", "b"]
    assert {"a", "b", "seen"} <= set(Keeps.block.code.co_freevars)


# --- code -----------------------------------------------------------------------------------------


def test_the_code_looks_like_that_of_the_function_around():
    def case():
        with Keeps():
            x = [1]
            x.clear()

    code = _block(case).code
    assert (code.co_name, code.co_filename) == ("case", __file__)
    assert getattr(code, "co_qualname", case.__qualname__) == case.__qualname__
    first = case.__code__.co_firstlineno
    lines = {line - first for _, _, line in code.co_lines() if line}
    assert lines <= {1, 2, 3}


def test_a_block_is_compiled_once():
    def case():
        with Keeps():
            pass
        return Keeps.block

    assert case() is case()


@pytest.mark.parametrize(
    ("body", "trivial"),
    [
        ("pass", True),
        ("...", True),
        ("'text'", True),
        ("pass\n'text'\n...", True),
        ("global x", True),
        ("x", False),
        ("f'{x}'", False),
        ("pass\n_x = 1", False),
    ],
)
@pytest.mark.parametrize(
    ("head", "may_be"),
    [("Keeps()", True), ("Keeps() as t", True), ("Keeps() as d[0]", False), ("Keeps(), m", False)],
)
def test_bodies_with_nothing_to_run(body: str, trivial: bool, head: str, may_be: bool):
    import linecache
    from contextlib import nullcontext

    text = f"with {head}:\n" + "\n".join(f"    {line}" for line in body.split("\n")) + "\n"
    linecache.cache["<trivial>"] = (len(text), None, text.splitlines(True), "<trivial>")
    names = {"Keeps": Keeps, "x": 1, "d": {}, "m": nullcontext()}
    exec(compile(text, "<trivial>", "exec"), names)
    assert Keeps.block.trivial is (trivial and may_be)


# --- rewrites -------------------------------------------------------------------------------------


def _rewritten(text: str, transformer: ast.NodeTransformer) -> str:
    return ast.unparse(transformer.visit(ast.parse(text)))


REWRITES = [
    ("x.save()", f"{SAVE}(x)"),
    ("x.y.save().z", f"{SAVE}(x.y).z"),
    ("x.save().save()", f"{SAVE}({SAVE}(x))"),
    ("x.save(1)", "x.save(1)"),
    ("x.save(k=1)", "x.save(k=1)"),
    ("x.save(*a)", "x.save(*a)"),
    ("x.save", "x.save"),
    ("save()", "save()"),
    ("super().save()", "super(__class__, me).save()"),
    ("super()", "super(__class__, me)"),
    ("super(A, b)", "super(A, b)"),
    ("def f(a):\n    return super().g()", "def f(a):\n    return super().g()"),
    ("lambda: x.save()", f"lambda: {SAVE}(x)"),
    ("x: int = 1", "x = 1"),
    ("x: int", "pass"),
    ("x.y: int = 1", "x.y: int = 1"),
    ("def f():\n    x: int = 1", "def f():\n    x: int = 1"),
    ("global x\nx = 1", "pass\nx = 1"),
    ("nonlocal x", "pass"),
    ("def f():\n    global x", "def f():\n    global x"),
]


@pytest.mark.parametrize(("text", "wanted"), REWRITES)
def test_rewrites(text: str, wanted: str):
    if text == "super().save()":  # the receiver stays, and is given its arguments
        wanted = "super(__class__, me).save()"
    assert _rewritten(text, Rewrite("me")) == wanted


def test_rewriting_twice_changes_nothing_more():
    for text, wanted in REWRITES:
        once = Rewrite("me").visit(ast.parse(text))
        assert ast.unparse(Rewrite("me").visit(once)) == wanted


SHARED = [
    ("y = x", f"y = {AWAIT}('x')"),
    ("y = z", "y = z"),
    ("x = 1", "x = 1"),
    ("f(x)[x].x", f"f({AWAIT}('x'))[{AWAIT}('x')].x"),
    ("lambda: x", f"lambda: {AWAIT}('x')"),
    ("lambda x: x", "lambda x: x"),
    ("[x for x in s]", "[x for x in s]"),
    ("[x for i in s]", f"[{AWAIT}('x') for i in s]"),
    ("def f(x):\n    return x", "def f(x):\n    return x"),
    ("def f():\n    return x", f"def f():\n    return {AWAIT}('x')"),
    ("def f():\n    x = 1\n    return x", "def f():\n    x = 1\n    return x"),
    (
        "x += f()",
        f"{HELPER}operand_0__ = f()\nx = {AWAIT}('x')\nx += {HELPER}operand_0__",
    ),
    (
        "x = x + f() * 2",
        f"{HELPER}operand_0__ = f() * 2\nx = {AWAIT}('x') + {HELPER}operand_0__",
    ),
    (
        "x = x - f() + g()",
        f"{HELPER}operand_0__ = f()\n{HELPER}operand_1__ = g()\n"
        f"x = {AWAIT}('x') - {HELPER}operand_0__ + {HELPER}operand_1__",
    ),
    ("x = f(x)", f"x = f({AWAIT}('x'))"),
]


@pytest.mark.parametrize(("text", "wanted"), SHARED)
def test_names_that_blocks_share(text: str, wanted: str):
    assert _rewritten(text, Sharing(frozenset({"x"}))) == wanted


def test_a_variant_for_each_set_of_shared_names():
    def case():
        with Keeps():
            x = [1]
            x.append(2)

    block = _block(case)
    assert block.sharing(frozenset()) is block
    variant = block.sharing(frozenset({"x"}))
    assert variant is block.sharing(frozenset({"x"})) is not block
    assert AWAIT in variant.code.co_freevars
    assert AWAIT not in block.code.co_freevars
    assert variant.bound == block.bound


# --- what is refused ------------------------------------------------------------------------------

REFUSED = [
    ("return", "return"),
    ("if x:\n    return 1", "return"),
    ("yield", "yield"),
    ("x = yield 1", "yield"),
    ("yield from x", "yield"),
    ("await x", "await"),
    ("async for i in x: pass", "await"),
    ("async with x: pass", "await"),
    ("[i async for i in x]", "await"),
    ("[await i for i in x]", "await"),
    ("break", "break"),
    ("continue", "continue"),
    ("for i in x:\n    pass\nelse:\n    break", "break"),
    ("while x:\n    for i in x: pass\n    else: break", ""),
    ("for i in x:\n    if i: break\n    continue", ""),
    ("for i in x:\n    try: break\n    finally: continue", ""),
    ("while x:\n    with y: break", ""),
    ("def f():\n    return 1", ""),
    ("def f():\n    yield 1", ""),
    ("async def f():\n    await x\n    async for i in x: pass", ""),
    ("def f(a=(yield)): pass", "yield"),
    ("@(yield)\ndef f(): pass", "yield"),
    ("class A((yield)): pass", "yield"),
    ("lambda: (yield)", ""),
    ("lambda a=(yield): a", "yield"),
    ("class A:\n    def f(self): return 1", ""),
    ("for i in x:\n    def f():\n        return 1", ""),
    ("from m import *", "import *"),
    ("import m", ""),
]


@pytest.mark.parametrize(("text", "word"), REFUSED)
def test_what_would_leave_a_block(text: str, word: str):
    tree = ast.parse(text)
    site = Site(ast.With([], [], lineno=1, end_lineno=9), 0, "file.py", text.splitlines(True), 0)
    if not word:
        refuse(tree.body, site)
        return
    with pytest.raises(SyntaxError) as caught:
        refuse(tree.body, site)
    assert f"'{word}' inside a trace block: the block runs beside the model" in caught.value.msg
    assert caught.value.filename == "file.py"
    assert (caught.value.text or "").strip() in text


def test_every_refusal_says_what_to_write_instead():
    advice = {
        "return": "after the block",
        "yield": "after the block",
        "await": "await before the block",
        "break": "`break` after the block",
        "continue": "guard the rest",
        "import *": "import the names you need",
    }
    for text, word in REFUSED:
        if word:
            site = Site(
                ast.With([], [], lineno=1, end_lineno=9), 0, "file.py", text.splitlines(True), 0
            )
            with pytest.raises(SyntaxError, match=advice[word].replace("*", r"\*")):
                refuse(ast.parse(text).body, site)


def test_code_of_ours_has_no_name_that_a_user_sees():
    def case() -> Any:
        with Keeps():

            def inner(a: int) -> int:
                class Deep: ...

                return a + len(Deep.__qualname__)

            kept = save([inner])
        return kept[0]

    def strings(code: types.CodeType) -> list[str]:
        inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
        return [
            *(c for c in code.co_consts if isinstance(c, str)),
            *(s for c in inner for s in strings(c)),
        ]

    function = case()
    assert function.__qualname__ == f"{case.__qualname__}.<locals>.inner"
    assert not any(HELPER in text for text in strings(Keeps.block.code))
    with pytest.raises(TypeError, match=r"case\.<locals>\.inner\(\) missing 1 required"):
        function()
