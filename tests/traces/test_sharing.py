"""Names that the blocks of one trace share."""

from __future__ import annotations

import itertools
import linecache
import textwrap
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nnsight
from nnsight import NNsight
from tests.behaviour.small import Network
from tests.conftest import hooks_on

X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def model():
    model = NNsight(Network())
    yield model
    assert hooks_on(model._module) == []


# --- where a value comes from ------------------------------------------------------------------


def test_a_block_waits_for_a_name_of_an_earlier_one(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            late = model.last.output
        with tracer.invoke(-X):
            model.last.output = late + 1
            moved = model.output.save()
    assert torch.allclose(moved, model._module(X) + 1, atol=1e-6)


def test_a_name_goes_along_a_chain_of_blocks(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            a = model.first.output.sum()
        with tracer.invoke(X):
            b = a + 1
        with tracer.invoke(X):
            c = (b + 1).save()
    assert torch.allclose(c, model._module.first(X).sum() + 2, atol=1e-4)


def test_a_block_waits_for_a_name_of_a_later_one(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            model.last.output = later * 1  # noqa: F821  (the block below binds it)
            one = model.output.save()
        with tracer.invoke(-X):
            later = model.first.output[:, :2]  # noqa: F841  (the block above reads it)
    assert torch.allclose(one, model._module.first(-X)[:, :2], atol=1e-6)


def test_the_nearest_earlier_block_comes_first(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            value = 1
        with tracer.invoke(X):
            value = 2
        with tracer.invoke(X):
            seen = nnsight.save(value)
        with tracer.invoke(X):
            value = 4
    assert seen == 2


def test_a_blocks_own_value_comes_before_all_others(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            h = "first"
            model.first.output.save()
            one = nnsight.save([h])
        with tracer.invoke(X):
            h = "second"
            model.last.output.save()
            two = nnsight.save([h])
    assert one == ["first"] and two == ["second"]


def test_the_value_where_the_block_was_written(model):
    value = "before"
    with model.trace() as tracer:
        with tracer.invoke(X):
            seen = nnsight.save([value])
        value = "between"
        with tracer.invoke(X):
            again = nnsight.save([value])
        with tracer.invoke(X):
            value = "after"
    assert seen == ["before"] and again == ["between"]


def test_a_name_read_before_the_block_binds_it(model):
    value = "outer"
    with model.trace() as tracer:
        with tracer.invoke(X):
            seen = nnsight.save([value])
            value = "own"
            seen.append(value)
        with tracer.invoke(X):
            model.first.output.save()
            other = nnsight.save([value])
    assert seen == ["outer", "own"] and other == ["own"]


def test_loop_variables_keep_their_value(model):
    seen = []
    with model.trace() as tracer:
        for number in range(3):
            doubled = number * 2
            with tracer.invoke(X):
                model.last.output.save()
                seen.append((number, doubled))
    assert seen == [(0, 0), (1, 2), (2, 4)]


def test_a_name_bound_on_one_path_only(model):
    for wanted in (True, False):
        value = "outer"
        with model.trace() as tracer:
            with tracer.invoke(X):
                if wanted:
                    value = "inner"
                model.first.output.save()
            with tracer.invoke(X):
                seen = nnsight.save([value])
        assert seen == (["inner"] if wanted else ["outer"])


def test_a_name_that_no_path_binds(model):
    with pytest.raises(NameError, match=r"'missing'.*ended without binding it") as caught:
        with model.trace() as tracer:
            with tracer.invoke(X):
                if model.first.output is None:
                    missing = 1
            with tracer.invoke(X):
                nnsight.save(missing)
    assert __file__ in str(caught.value) and caught.value.name == "missing"


def test_blocks_that_wait_for_each_other(model):
    with pytest.raises(NameError, match="can never be defined") as caught:
        with model.trace() as tracer:
            with tracer.invoke(X):
                left = right + 1  # noqa: F821  (the circle)
            with tracer.invoke(X):
                right = left + 1  # noqa: F841
    text = str(caught.value)
    assert text.count(__file__) == 2
    lines = {int(part.split()[0].rstrip(",.")) for part in text.split(", line ")[1:]}
    assert len(lines) == 2


def test_a_block_that_fails_frees_those_that_wait_for_it(model):
    ended = []
    with pytest.raises(ZeroDivisionError), model.trace() as tracer:
        with tracer.invoke(X):
            value = model.first.output.shape[0] / 0
        with tracer.invoke(X):
            try:
                nnsight.save(value)
            finally:
                ended.append("second")
    assert ended == ["second"]


# --- sums --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["+=", "x = x + y"])
def test_a_name_that_blocks_only_update_is_one_for_all(model, form):
    xs = [X, -X, X * 2]
    total = 0
    with model.trace() as tracer:
        for x in xs:
            with tracer.invoke(x):
                if form == "+=":
                    total += model.first.output.sum()
                    total.save()
    if form != "+=":
        total = 0
        with model.trace() as tracer:
            for x in xs:
                with tracer.invoke(x):
                    total = total + model.first.output.sum()
                    total.save()
    expected = sum(model._module.first(x).sum() for x in xs)
    assert torch.allclose(total, expected, atol=1e-4)


SUM = 0


def test_what_blocks_add_up_in_other_places_than_names(model):
    global SUM
    SUM = 0
    sums, holder, table = {"k": 0}, types.SimpleNamespace(n=0), [torch.zeros(2), 0]
    with model.trace() as tracer:
        for factor in (1, 2, 3):
            with tracer.invoke(X * factor):
                sums["k"] += model.first.output.sum()
                holder.n += model.second.output.sum()
                table[0][:1] += 1
                table[len(sums)] += model.second.output.sum()
                SUM += model.second.output.sum()
    layers = model._module.first, model._module.second
    first = sum(layers[0](X * n).sum() for n in (1, 2, 3))
    with model.trace(torch.cat([X * n for n in (1, 2, 3)])):
        second = model.second.output.sum().save()
    assert torch.allclose(sums["k"], first, atol=1e-4)
    for added in (holder.n, table[1], SUM):
        assert torch.allclose(added, second, atol=1e-4)
    assert table[0].tolist() == [3, 0]


def test_a_class_in_a_block_keeps_its_own_names(model):
    holder = types.SimpleNamespace(n=0)
    with model.trace() as tracer:
        for factor in (1, 2):
            with tracer.invoke(X * factor):

                class Sums:
                    count = 1
                    count += 2
                    holder.n += 1

                names = [n for n in vars(Sums) if not n.endswith("__")]
                nnsight.save(names)
                _ = model.first.output
    assert names == ["count"]
    assert holder.n == 2


def test_a_count_over_blocks(model):
    count, names = 0, ()
    with model.trace() as tracer:
        for name in "abcd":
            with tracer.invoke(X):
                count += 1
                names += (name,)
                nnsight.save(count)
                nnsight.save(names)
    assert count == 4 and names == ("a", "b", "c", "d")


def test_a_list_that_blocks_fill(model):
    found: list[torch.Tensor] = []
    with model.trace() as tracer:
        for factor in (1, 2):
            with tracer.invoke(X * factor):
                found.append(model.first.output)
                found += [model.second.output]
    assert len(found) == 4


# --- scopes in a block -------------------------------------------------------------------------


def test_comprehensions_lambdas_and_functions_read_shared_names(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            scale = float(model.first.output.shape[1])
        with tracer.invoke(X):
            listed = nnsight.save([scale * n for n in range(3)])
            lazy = lambda n: scale * n  # noqa: E731
            called = nnsight.save([lazy(2)])

            def named(n):
                return scale + n

            named_too = nnsight.save([named(1)])
    assert listed == [0.0, 4.0, 8.0] and called == [8.0] and named_too == [5.0]


def test_the_variable_of_a_comprehension_belongs_to_nobody_else(model):
    n = "outer"
    with model.trace() as tracer:
        with tracer.invoke(X):
            squares = nnsight.save([n * n for n in range(3)])
            mine = nnsight.save([n])
        with tracer.invoke(X):
            other = nnsight.save([n])
    assert squares == [0, 1, 4] and mine == ["outer"] and other == ["outer"]


def test_globals_and_builtins_are_still_there(model):
    with model.trace() as tracer:
        with tracer.invoke(X):
            size = len(model.first.output)
            kept = nnsight.save([size, X.shape[0]])
        with tracer.invoke(X):
            other = nnsight.save([max(size, 1), X.shape[1]])
    assert kept == [2, 2] and other == [2, 4]


# --- a notebook --------------------------------------------------------------------------------

_cells = itertools.count()


def run_cell(text: str, namespace: dict[str, Any]) -> None:
    """Run a cell as a notebook does: at module level, in a namespace that stays."""
    text, name = textwrap.dedent(text), f"<cell {next(_cells)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), namespace)


CELL = """
    with model.trace() as tracer:
        with tracer.invoke(x):
            hidden = model.last.output
        with tracer.invoke(-x):
            model.last.output = hidden.clone()
            patched = model.output.save()
"""


def test_a_cell_run_twice_reads_nothing_of_its_first_run(model):
    cells = {"model": model, "x": X}
    run_cell(CELL, cells)
    assert torch.allclose(cells["patched"], model._module(X), atol=1e-6)
    cells["x"] = X * 3 + 1
    run_cell(CELL, cells)
    assert torch.allclose(cells["patched"], model._module(X * 3 + 1), atol=1e-6)


def test_a_cell_run_twice_with_saved_names(model):
    cells = {"model": model, "x": X}
    cell = CELL.replace("hidden = model.last.output", "hidden = model.last.output.save()")
    for factor in (1, 5):
        cells["x"] = X * factor
        run_cell(cell, cells)
        expected = model._module(X * factor)
        assert torch.allclose(cells["hidden"], expected, atol=1e-6)
        assert torch.allclose(cells["patched"], expected, atol=1e-6)


def test_names_are_shared_at_module_level_too(model):
    cells: dict[str, Any] = {"model": model, "x": X, "total": 0}
    run_cell(
        """
        with model.trace() as tracer:
            for factor in (1, 2, 3):
                with tracer.invoke(x * factor):
                    total += model.input.sum()
                    total.save()
        """,
        cells,
    )
    assert torch.allclose(cells["total"], X.sum() * 6, atol=1e-5)


# --- any order ---------------------------------------------------------------------------------

LAYERS = 6


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


torch.manual_seed(1)
DEEP = NNsight(Deep().double())
NAMES = ("a", "b", "h")
lines = st.tuples(st.integers(0, LAYERS - 1), st.sampled_from(NAMES), st.sampled_from(NAMES))
bodies = st.lists(lines, min_size=1, max_size=6).map(sorted)


def body(lines: list[tuple[int, str, str]], kept: int) -> list[str]:
    """A block that binds the names first, then binds them anew and uses them as it goes."""
    text = ["a = b = h = 0"]
    for layer, target, other in lines:
        text.append(f"{target} = layers[{layer}].output * 1 + {other}")
        text.append(f"layers[{layer}].output = layers[{layer}].output + {target} * 0.5")
    return [*text, f"kept[{kept}] = (a, b, h, model.output)"]


def indent(lines: list[str], by: int) -> str:
    return "".join(" " * by + line + "\n" for line in lines)


@settings(max_examples=40, deadline=None)
@given(st.lists(bodies, min_size=3, max_size=3), st.integers(0, 1000))
def test_names_used_in_three_blocks_never_disturb_one_another(blocks, seed):
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.rand(n + 1, 4, generator=generator, dtype=torch.double) for n in range(3)]
    together = "with model.trace() as tracer:\n"
    alone = ""
    for number, lines in enumerate(blocks):
        text = body(lines, number)
        together += f"    with tracer.invoke(xs[{number}]):\n" + indent(text, 8)
        alone += f"with model.trace(xs[{number}]):\n" + indent(text, 4)
    found: list[dict[int, Any]] = []
    for text in (together, alone):
        cells: dict[str, Any] = {"model": DEEP, "layers": DEEP.layers, "xs": xs, "kept": {}}
        run_cell(text, cells)
        found.append(cells["kept"])
    assert found[0].keys() == found[1].keys() == {0, 1, 2}
    for number in range(3):
        for mine, solo in zip(found[0][number], found[1][number], strict=True):
            assert torch.allclose(torch.as_tensor(mine), torch.as_tensor(solo))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(LAYERS)), st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_reads_in_three_blocks_meet_in_any_order(order, sources):
    """Each block reads two layers; values that have passed between blocks are the solo ones."""
    xs = [torch.full((1, 4), float(n), dtype=torch.double) for n in range(3)]
    pairs = [sorted(order[n * 2 : n * 2 + 2]) for n in range(3)]
    text = "with model.trace() as tracer:\n"
    for n, (low, high) in enumerate(pairs):
        reads = [f"t = layers[{low}].output", f"v{n} = t + layers[{high}].output"]
        text += f"    with tracer.invoke(xs[{n}]):\n" + indent([*reads, f"kept[{n}] = t, v{n}"], 8)
    for n, source in enumerate(sources):
        text += f"    with tracer.invoke(xs[{n}]):\n        kept['v', {n}] = v{source}\n"
    cells: dict[str, Any] = {"model": DEEP, "layers": DEEP.layers, "xs": xs, "kept": {}}
    run_cell(text, cells)
    solo = {}
    for n, (low, high) in enumerate(pairs):
        with DEEP.trace(xs[n]):
            t = DEEP.layers[low].output
            solo[n] = (t, t + DEEP.layers[high].output)
    for n in range(3):
        for mine, expected in zip(cells["kept"][n], solo[n], strict=True):
            assert torch.allclose(mine, expected)
        assert torch.allclose(cells["kept"]["v", n], solo[sources[n]][1])


# --- names that loops over steps bind ----------------------------------------------------------


class Counter(nn.Module):
    """Two places on the way, and a method that goes by them at each of three steps."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.late(self.early(x))

    def roll(self, x: torch.Tensor) -> torch.Tensor:
        outs: list[torch.Tensor] = []
        for _ in range(3):
            x = self(x) + 1
            outs.append(x)
        return torch.cat(outs, 1)


ZERO, HUNDRED = torch.zeros(1, 1), torch.full((1, 1), 100.0)


@pytest.fixture(params=["first run", "later run"])
def counter(request):
    model = NNsight(Counter())
    if request.param == "later run":
        with model.trace(ZERO, fn="roll"):
            model.early.output.sum()
    yield model
    assert hooks_on(model._module) == []


def test_a_block_at_a_step_gets_the_value_of_that_step(counter):
    with counter.trace(fn="roll") as tracer:
        with tracer.invoke(ZERO):
            for _ in tracer.iter[:]:
                moved = counter.early.output
        with tracer.invoke(HUNDRED):
            for _ in tracer.iter[:]:
                counter.late.output = moved
            changed = tracer.result.save()
    assert changed.tolist() == [[1, 2, 3]]


def test_so_does_a_block_before_the_one_that_binds_it(counter):
    with counter.trace(fn="roll") as tracer:
        with tracer.invoke(HUNDRED):
            with tracer.all():
                counter.late.output = doubled  # noqa: F821  (the block below binds it)
            changed = tracer.result.save()
        with tracer.invoke(ZERO):
            with tracer.all():
                doubled = counter.early.output * 2  # noqa: F841
    assert changed.tolist() == [[1, 3, 5]]


def test_from_step_to_step_along_three_blocks(counter):
    with counter.trace(fn="roll") as tracer:
        with tracer.invoke(HUNDRED):
            for _ in tracer.iter[:]:
                counter.late.output = second  # noqa: F821  (the block below binds it)
            changed = tracer.result.save()
        with tracer.invoke(HUNDRED):
            for _ in tracer.iter[:]:
                second = first * 10  # noqa: F821, F841  (the block below binds it)
        with tracer.invoke(ZERO):
            for _ in tracer.iter[:]:
                first = counter.early.output  # noqa: F841
    assert changed.tolist() == [[1, 11, 21]]


def test_a_value_stays_where_the_loop_does_not_bind_it_again(counter):
    with counter.trace(fn="roll") as tracer:
        with tracer.invoke(ZERO):
            for _ in tracer.iter[:2]:
                short = counter.early.output
        with tracer.invoke(ZERO):
            for _ in tracer.iter[::2]:
                other = counter.early.output
        with tracer.invoke(ZERO):
            for step in tracer.iter[:]:
                if step != 1:
                    some = counter.early.output
        with tracer.invoke(HUNDRED):
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append([short.item(), other.item(), some.item()])
                counter.late.output.sum()
    assert seen == [[0, 0, 0], [1, 0, 0], [1, 2, 2]]


def test_a_block_that_is_at_no_step_takes_what_there_is(counter):
    with counter.trace(fn="roll") as tracer:
        with tracer.invoke(ZERO):
            for _ in tracer.iter[:]:
                value = counter.early.output
        with tracer.invoke(HUNDRED):
            first = value.save()
            result = tracer.result.save()
            last = value.save()
    assert first.item() == 0 and last.item() == 2 and result[0, 0] == 101


def test_blocks_that_wait_for_each_other_at_a_later_step(counter):
    with pytest.raises(NameError, match="Break the circle"):
        with counter.trace(fn="roll") as tracer:
            with tracer.invoke(ZERO):
                for step in tracer.iter[:]:
                    if step:
                        counter.late.output = two  # noqa: F821  (the block below binds it)
                    one = counter.early.output
            with tracer.invoke(HUNDRED):
                for step in tracer.iter[:]:
                    if step:
                        counter.late.output = one
                    two = counter.early.output  # noqa: F841


def test_blocks_that_go_on_by_next_wait_for_the_value_of_their_step(counter):
    with counter.trace(fn="roll") as tracer:
        with tracer.invoke(ZERO):
            value = counter.early.output.clone()
            once = value + 10
            value = counter.early.next().output.clone()
            tracer.next()
            value = counter.early.output.clone()
        with tracer.invoke(HUNDRED):
            seen = [value.item()].save()
            counter.late.output.sum()
            counter.next()
            seen.append(value.item())
            counter.late.output.sum()
            seen.append(once.item())
            counter.next()
            seen.append(value.item())
    assert seen == [0, 1, 10, 2]
