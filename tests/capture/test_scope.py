"""The names that a block sees, and how they come back."""

# ruff: noqa: F841  (blocks bind names that nobody reads)

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from record import Captured as Trace
from record import OnThread

from nnsight.capture.frames import frame_at
from nnsight.capture.saving import save
from nnsight.capture.scope import Scope, running, write


class Keeps(Trace):
    """Keeps its scope for a look at it."""

    kept: Scope

    def execute(self) -> None:
        assert self.scope is not None
        Keeps.kept = self.scope
        super().execute()


class Later(Trace):
    """Runs its block after the `with` has been left, as an invoke does."""

    deferred = True
    waiting: list[Callable[[], None]] = []  # noqa: RUF012  (one for all is wanted)

    def execute(self) -> None:
        assert self.scope is not None
        self.waiting.append(self.scope.function(self, save))

    @classmethod
    def run(cls) -> None:
        while cls.waiting:
            cls.waiting.pop(0)()


# --- writing into a running frame -----------------------------------------------------------------


def test_a_local_name():
    x = 1
    write(frame_at(0), {"x": 2})
    assert x == 2


def test_a_name_that_is_not_bound_yet():
    write(frame_at(0), {"x": 2})
    if len(sys.argv) < 0:
        x = 1
    assert x == 2


def test_a_name_that_functions_close_over():
    x = 1

    def look() -> int:
        return x

    write(frame_at(0), {"x": 2})
    assert (x, look()) == (2, 2)


def test_a_name_of_a_function_around():
    x = 1

    def inner() -> int:
        write(frame_at(0), {"x": 2})
        return x

    assert (inner(), x) == (2, 2)


def test_a_name_of_a_class_and_of_a_module():
    class Home:
        x = 1
        write(frame_at(0), {"x": 2})
        y = x

    namespace: dict[str, Any] = {"write": write, "frame_at": frame_at}
    exec("x = 1\nwrite(frame_at(0), {'x': 2})\ny = x", namespace)
    assert Home.y == namespace["y"] == 2


def test_a_name_in_a_generator():
    def gen() -> Any:
        x = 1
        yield frame_at(0)
        yield x

    running_generator = gen()
    write(next(running_generator), {"x": 2})
    assert next(running_generator) == 2


def test_other_names_stay():
    x, y = [1], [2]
    same = y
    write(frame_at(0), {"x": 3})
    assert y is same
    del y
    write(frame_at(0), {"x": 4})
    with pytest.raises(UnboundLocalError):
        y  # noqa: B018, F821  (that it is unbound is the point)
    assert x == 4


# --- what a block sees ----------------------------------------------------------------------------


@pytest.mark.parametrize("manager", [Trace, OnThread])
def test_names_of_every_kind(manager: type[Trace]):
    free = [1]

    def case(argument: int, *more: int, key: int = 4, **others: int) -> Any:
        local = [2]
        with manager():
            seen = save([free, argument, more, key, others, local, len, Trace, __name__])
        return seen

    assert case(5, 6, z=7) == [[1], 5, (6,), 4, {"z": 7}, [2], len, Trace, __name__]


def test_a_name_without_a_value_is_a_name_error():
    def case(bound: bool) -> Any:
        if bound:
            late = 1
        with Trace():
            seen = save([late])
        return seen

    assert case(True) == [1]
    with pytest.raises(NameError, match="late"):
        case(False)


def test_a_deferred_block_keeps_the_values_of_its_time():
    found: list[Any] = []
    for n in range(3):
        with Later():
            found.append(n)
    Later.run()
    assert found == [0, 1, 2]


def test_a_deferred_block_keeps_them_from_functions_too():
    n, found = 0, list[int]()

    def look() -> int:
        return n

    for n in range(3):
        with Later():
            found.append(n)
    Later.run()
    assert (found, look()) == ([0, 1, 2], 2)


def test_a_block_shares_the_variable_of_a_function_beside_it():
    n = 1

    def bump() -> int:
        nonlocal n
        n += 1
        return n

    with Trace():
        seen = save([n, bump(), n, bump(), n])
    assert seen == [1, 2, 2, 3, 3]
    assert n == 3


def test_a_block_in_a_block_shares_its_variables():
    with Trace():
        n = [1]
        with Trace():
            n.append(2)
            m = [*n, 3]
        with OnThread():
            n = [*n, 4]
        seen = save([n, m])
    assert seen == [[1, 2, 4], [1, 2, 3]]


def test_names_bound_by_one_block_are_seen_by_the_next():
    with Trace():
        with Trace():
            x = [1]
        with Trace():
            y = [*x, 2]
        z = save([x, y])
    assert z == [[1], [1, 2]]


def test_names_in_a_loop_over_blocks():
    with Trace():
        total = 0
        for n in range(4):
            with Trace():
                total = total + n
        kept = save([total, n])
    assert kept == [6, 3]


def test_a_function_of_the_block_that_outlives_it():
    with Trace():
        n = 1

        def bump() -> int:
            nonlocal n
            n += 1
            return n

        kept = save([bump])
    assert [kept[0](), kept[0]()] == [2, 3]


def test_two_runs_share_nothing():
    def case(add: bool) -> Any:
        with Trace():
            if add:
                found = [1]
            kept = save([found])
        return kept

    assert case(True) == [[1]]
    with pytest.raises(NameError):
        case(False)


def test_recursion_has_variables_of_its_own():
    def case(n: int) -> Any:
        with Trace():
            mine = [n]
            below = case(n - 1) if n else []
            kept = save([*mine, *below])
        return kept

    assert case(3) == [3, 2, 1, 0]


def test_a_frame_with_two_dictionaries():
    import linecache

    text = "with Trace():\n    x = save([a, b, (lambda: a)()])\n"
    linecache.cache["<two>"] = (len(text), None, text.splitlines(True), "<two>")
    global_names: dict[str, Any] = {"Trace": Trace, "save": save, "b": 2}
    local_names: dict[str, Any] = {"a": 1}
    exec(compile(text, "<two>", "exec"), global_names, local_names)
    assert local_names["x"] == [1, 2, 1]
    assert "x" not in global_names


# --- looking at a scope ---------------------------------------------------------------------------


def test_what_the_names_hold_now():
    outer = [1]
    with Keeps():
        x = [2]
        if len(x) > 1:
            never = [x]
        kept = save([outer, x])
    scope = Keeps.kept
    assert scope.bound() == {"x": [2], "kept": [[1], [2]]}
    assert scope.get("x") == [2]
    assert scope.get("never") is None
    assert scope.get("nothing of that name", 5) == 5
    assert scope.frame is None
    assert kept == [[1], [2]]


def test_which_block_is_running():
    assert running.get() is None
    with Keeps():
        seen = save([running.get()])
    assert seen == [Keeps.kept]
    assert running.get() is None
    with pytest.raises(KeyError), Keeps():
        raise KeyError
    assert running.get() is None


def test_a_scope_that_has_been_released_writes_nothing():
    x = 1
    with Keeps():
        x = [2]
        x.append(3)
    Keeps.kept.push({"x": 5})
    assert x == 1


def test_locals_of_a_debugger_do_not_disturb():
    """Who has asked for `locals()` before, keeps what he was given."""

    def case() -> Any:
        x, y = [1], [2]
        before = locals()
        with Trace():
            x = save([3])
        return before["y"], x, y, types.SimpleNamespace(**locals()).x

    assert case() == ([2], [3], [2], [3])
