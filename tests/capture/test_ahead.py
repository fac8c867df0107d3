"""Which statements ask ahead, as they are rewritten."""

from __future__ import annotations

import ast
import textwrap

import pytest

from nnsight.capture.ahead import ask_ahead
from nnsight.capture.rewrite import AHEAD, Rewrite

NAMES = frozenset("abcdxyz") | {"first", "last", "values", "layer", "i"}


def written(text: str, bound: frozenset[str] = NAMES) -> str:
    body = [Rewrite(None).visit(node) for node in ast.parse(textwrap.dedent(text)).body]
    return "\n".join(map(ast.unparse, ask_ahead(body, bound)[0])).replace(AHEAD, "A")


KEPT = [
    "x = m.output",
    "x = m.layers[3].mlp.output.save()",
    "x = nnsight.save(m.output)",
    "x = m.output[0, :, -1].detach().cpu().save()",
    "x = m.output.logits",
    "a, b = m.a.output, m.b.output",
    "values.append(m.input)",
    "self.values.append(m.output[0])",
    "d['a'] = m.inputs",
    "x = [layer.output for layer in m.layers].save()",
    "x = {i: layer.output for i, layer in enumerate(m.layers) if i % 2}",
    "x = [m.a.output, m.b.output]",
    "for layer in m.layers:\n    values.append(layer.output)",
    "for i in range(3):\n    if i > 1:\n        values.append(m.layers[i].output)",
]


@pytest.mark.parametrize("text", KEPT)
def test_a_block_that_ends_with_it_does_not_wait(text):
    found = written(text)
    assert "A(" in found and "settle" not in found


@pytest.mark.parametrize("text", KEPT)
def test_another_statement_waits_for_it(text):
    found = written(f"{text}\ny = m.b.output\nprint()").splitlines()
    assert found[-1] == "print()" and found[-2].startswith("A.settle((")


@pytest.mark.parametrize(
    "text",
    [
        "x = m.output * 2",
        "x = m(m.output)",
        "x = f().output",
        "x = m.output.sum(0)",
        "x = m.output[f(0)]",
        "x = m.output[state.at]",
        "x += m.output",
        "m.output[0] = 1",
        "m.output = m.a.output",
        "m.x = m.output",
        "values.append(f(m.output))",
        "values.extend([m.output])",
        "x = [f(layer) for layer in m.layers]",
        "x = [layer.output for layer in f(m)]",
        "x = [layer.output async for layer in m.layers]",
        "while i:\n    x = m.output",
        "for layer in m.layers:\n    layer.output[:] = 0",
        "for m.x in m.layers:\n    values.append(m.x.output)",
        "x = m.output.grad",
        "unknown = m.output",
    ],
)
def test_what_does_more_is_left_as_it_is(text):
    plain = [Rewrite(None).visit(node) for node in ast.parse(text).body]
    assert written(text) == "\n".join(map(ast.unparse, plain))


def test_one_value_in_the_middle_gains_nothing():
    assert written("x = m.output\nprint(x)") == "x = m.output\nprint(x)"


def test_what_reads_a_name_waits_for_it():
    found = written("x = m.a.output\ny = m.b.output\nz = x.output\n").splitlines()
    assert [line.partition("(")[0] for line in found] == [
        *("x = A", "y = A", "A.settle", "A.settle", "z = A"),
    ]
    assert "settle" in written("for i in r:\n    x = m.a.output\nfor i in r:\n    y = x.output\n")


def test_a_loop_that_reads_what_it_binds_is_left_as_it_is():
    text = "for i in range(3):\n    x = x.output"
    assert written(text) == text


@pytest.mark.parametrize("around", ["with f():\n{}", "try:\n{}\nfinally:\n    pass"])
def test_managers_and_tries_wait_line_by_line(around):
    text = around.format("    x = m.a.output\n    y = m.b.output")
    assert written(text) == text


def test_names_that_are_looked_into_are_asked_for():
    found = written("x = m.a.output\nz = y + 1\nd[f'{z}'] = m.b.output")
    assert found.splitlines()[1] == "z = A.fixed(y) + 1"
    assert "A.fixed(z)" in found.splitlines()[2]


def test_names_of_others_are_read_in_their_turn():
    found = written("x = m.a.output\ny = other\nz = m.b.output").splitlines()
    assert found[:2] == ["x = m.a.output", "y = other"]


@pytest.mark.parametrize(
    "text, only",
    [
        ("x = m.output", True),
        ("for i in r:\n    values.append(m.output)\nx = m.output", True),
        ("x = 1", True),
        ("x = m.output\nprint(x)", False),
        ("print()\nx = m.output", False),
        ("x = m.output\ny = x.output", False),
    ],
)
def test_whether_a_block_only_asks(text, only):
    body = [Rewrite(None).visit(node) for node in ast.parse(text).body]
    assert ask_ahead(body, NAMES)[1] is only


def test_only_names_of_the_block_itself():
    assert written("x = m.output", bound=frozenset()) == "x = m.output"


def test_lines_are_the_users():
    text = "x = m.a.output\ny = (m.b\n     .output)\nprint()"
    body = [Rewrite(None).visit(node) for node in ast.parse(text).body]
    found, _ = ask_ahead(body, NAMES)
    assert [node.lineno for node in found] == [1, 2, 1, 2, 4]
