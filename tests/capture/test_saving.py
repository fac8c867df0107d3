"""What outlives the outermost block, and what is said of the rest."""

# ruff: noqa: B007, B018, E701, E702, F841
# Blocks bind names that nobody reads, on one line too: that is what is tested.

from __future__ import annotations

import enum
import subprocess
import sys
import threading
import types
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from record import Captured as Trace
from record import OnThread

from nnsight.capture import saving
from nnsight.capture.saving import Saves, save

UNBOUND = object()
COLUMNS = sys.version_info >= (3, 11)  # the interpreter says where in a line it is


class Tensor:
    """As much of one as saving looks at."""

    def __init__(self) -> None:
        self._version = 0

    def change(self) -> None:
        self._version += 1


# --- what returns ---------------------------------------------------------------------------------


def test_only_saved_names_return():
    a = b = c = UNBOUND
    with Trace():
        a = save([1])
        b = [2]
        c = save(b)
    assert (a, b, c) == ([1], [2], [2])


def test_an_unsaved_name_keeps_what_it_had():
    kept = "before"
    with Trace():
        kept = "in the block"
        seen = save([kept])
    assert (kept, seen) == ("before", ["in the block"])


def test_a_name_that_was_not_there_is_not_there_afterwards():
    with Trace():
        loose = [1]
        kept = save([loose])
    assert kept == [[1]]
    with pytest.raises(UnboundLocalError):
        loose


@pytest.mark.parametrize("manager", [Trace, OnThread])
def test_every_kind_of_value_can_be_saved(manager: type[Trace]):
    with manager():
        a = save(None)
        b = save(True)
        c = save("text")
        d = save((1, 2))
        e = save(())
        f = save(5)
        g = save(len)
        h = save(Tensor)
        i = save(...)
        j = save(b"")
        k = save(1.5)
    assert (a, b, c, d, e, f) == (None, True, "text", (1, 2), (), 5)
    assert (g, h, i, j, k) == (len, Tensor, ..., b"", 1.5)


Color = enum.Enum("Color", "RED GREEN")


@pytest.mark.parametrize(
    "value", [5, "a", None, True, (), (1,), Color.RED, len, int, ..., b"a", sys]
)
def test_a_value_that_python_shares_does_not_leak_into_other_names(value: Any):
    a = b = UNBOUND
    with Trace():
        a = save(value)
        b = value
    assert a is value
    assert b is UNBOUND


@pytest.mark.skipif(not COLUMNS, reason="Python 3.10 keeps no columns: one line is one place")
def test_not_on_one_line_either():
    a = b = UNBOUND
    with Trace(): a = save(5); b = 5  # fmt: skip
    assert (a, b) == (5, UNBOUND)


def test_the_same_object_under_two_names_returns_under_both():
    a = b = UNBOUND
    with Trace():
        a = save([1])
        b = a
    assert a is b


def test_a_freed_object_gives_its_place_to_no_other():
    names: dict[str, Any] = {}

    def fill() -> None:
        for n in range(200):
            save([n])

    with Trace():
        fill()
        b = [[n] for n in range(200)]
        last = b[-1]
    with pytest.raises(UnboundLocalError):
        names["last"] = last
    assert not names


def test_a_named_tuple_is_an_object_of_its_own():
    pair = namedtuple("pair", "a b")
    with Trace():
        a = pair(1, 2).save()
        b = a
    assert a is b


@pytest.mark.parametrize("kind", [tuple, list])
def test_names_that_a_saved_container_is_unpacked_into(kind):
    a = b = c = UNBOUND
    with Trace():
        one, two = [1], [2]
        a, b = save(kind((one, two)))
        c = one
    assert (a, b) == ([1], [2])
    assert c is UNBOUND


def test_names_of_a_saved_container_that_is_unpacked_in_depth():
    a = b = c = rest = UNBOUND
    with Trace():
        a, (b, c), *rest = save(([1], ([2], [3]), [4], [5]))
    assert (a, b, c, rest) == ([1], [2], [3], [[4], [5]])


def test_rebinding_unsaves():
    a = UNBOUND
    with Trace():
        a = save([1])
        a = [*a, 2]
    assert a is UNBOUND


def test_saving_the_new_value_saves_it():
    with Trace():
        a = save([1])
        a = save([*a, 2])
    assert a == [1, 2]


def test_saving_a_name_later():
    with Trace():
        a, b = [1], 5
        save(a)
        save(value=b)
    assert (a, b) == ([1], 5)


def test_saving_a_part_does_not_save_the_whole():
    whole = UNBOUND
    with Trace():
        part = save([1])
        whole = [part, 2]
    assert part == [1]
    assert whole is UNBOUND


def test_saving_the_whole_keeps_its_parts_but_not_their_names():
    part = UNBOUND
    with Trace():
        part = [1]
        whole = save({"part": part})
    assert whole == {"part": [1]}
    assert part is UNBOUND


def test_a_saved_list_that_is_filled_later():
    with Trace():
        found = save([])
        for n in range(3):
            found.append(n)
    assert found == [0, 1, 2]


def test_an_outer_list_needs_no_save():
    found: list[int] = []
    with Trace():
        found.append(1)
    assert found == [1]


def keep(value: Any, where: dict[str, Any] | None = None) -> Any:
    kept = save(value)
    if where is not None:
        where["kept"] = kept
    return kept


@pytest.mark.parametrize("manager", [Trace, OnThread])
def test_saving_in_a_helper(manager: type[Trace]):
    b = UNBOUND
    with manager():
        a = keep(5)
        b = 5
        c = keep([1])
        d = [keep(n) for n in (7, 8)]
        e = keep(keep(5) + 1)
    assert (a, b, c, e) == (5, UNBOUND, [1], 6)
    assert "d" not in locals()


def test_saving_in_a_function_of_the_block():
    with Trace():

        def inner(n: int) -> int:
            doubled = n * 2
            return save(doubled)

        a = inner(5)
        b = (lambda: save(6))()
    assert (a, b) == (10, 6)


@pytest.mark.parametrize("value", [5, [5]])
def test_saving_in_any_statement(value: Any):
    with Trace():
        if (a := save(value)) and True:
            pass
        for b in (save(value),):
            pass
        c: Any = save(value)
        d = e = save(value)
        f, *g = save(value), 2
        try:
            h = save(value)
        finally:
            i = save(value)
        with Trace():
            j = save(value)
        while (k := save(value)) is None:
            pass
    assert [a, b, c, d, e, f, h, i, j, k] == [value] * 10
    assert "g" not in locals()


def test_inner_blocks_hand_everything_to_the_outer_one():
    loose = UNBOUND
    with Trace():
        with Trace():
            loose = [1]
            kept = save([2])
        seen = save([loose, kept])
    assert (loose, kept, seen) == (UNBOUND, [2], [[1], [2]])


def test_a_name_bound_outside_and_saved_in_an_inner_block():
    with Trace():
        a = [1]
        with Trace():
            save(a)
    assert a == [1]


def test_names_that_are_declared_return_without_a_save():
    n = 1

    def run() -> None:
        with Trace():
            nonlocal n
            global counter_of_test_saving
            n = counter_of_test_saving = 5

    run()
    assert n == globals().pop("counter_of_test_saving") == 5


def test_the_target_is_always_there():
    with Trace(3) as tracer:
        kept = save([tracer.value])
    assert tracer.value == kept[0] == 3


# --- x.save() -------------------------------------------------------------------------------------


def test_save_as_a_method_of_anything():
    with Trace():
        a = [1].save()
        b = (5).save()
        c = {"k": [2].save()}.save()
        d = None.save()
        e = (lambda v: v.save())([3])
    assert (a, b, c, d, e) == ([1], 5, {"k": [2]}, None, [3])


def test_nothing_is_mounted_on_object():
    assert hasattr(object(), "save") is False
    with Trace():
        kept = save([hasattr(object(), "save"), hasattr([], "save")])
    assert kept == [False, False]


class Picture:
    """Has a `save` of its own that needs a place."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def save(self, place: str, quality: int = 1) -> str:
        self.places.append(place)
        return f"{place} at {quality}"


class Document(Picture):
    """Has a `save` of its own that needs nothing."""

    def save(self, place: str = "here", quality: int = 1) -> str:
        return super().save(place, quality)


def test_an_objects_own_save():
    with Trace():
        picture = Picture().save()
        saved_as = save([picture.save("a"), picture.save(place="b", quality=2)])
        document = save(Document())
        returned = save([document.save(), document.save("c")])
    assert picture.places == ["a", "b"]
    assert saved_as == ["a at 1", "b at 2"]
    assert document.places == ["here", "c"]
    assert returned == ["here at 1", "c at 1"]


def test_a_save_that_an_object_was_given():
    with Trace():
        made = types.SimpleNamespace(save=lambda: "own")
        a = save([made.save()])
    assert a == ["own"]


# --- outside --------------------------------------------------------------------------------------


def test_save_outside_a_trace_says_so():
    with pytest.raises(ValueError, match=r"save\(\) was called outside a trace.*plain assignment"):
        save([1])


def test_save_after_a_trace_is_outside_again():
    with Trace():
        save([1])
    with pytest.raises(ValueError, match="outside a trace"):
        save([1])
    with pytest.raises(KeyError), Trace():
        raise KeyError
    with pytest.raises(ValueError, match="outside a trace"):
        save([1])


def test_two_threads_do_not_see_each_others_saves():
    found: dict[int, Any] = {}
    barrier = threading.Barrier(2)

    def work(n: int) -> None:
        with Trace():
            mine = save([n])
            barrier.wait(10)
        found[n] = mine
        with pytest.raises(ValueError, match="outside a trace"):
            save([n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {0: [0], 1: [1]}


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("manager", [Trace, OnThread])
def test_what_was_saved_before_an_error_is_on_the_error(manager: type[Trace]):
    a = loose = UNBOUND
    with pytest.raises(ZeroDivisionError) as caught, manager():
        a = save([1])
        loose = [2]
        1 / 0
    assert caught.value.saved == {"a": [1]}  # type: ignore[attr-defined]
    assert (a, loose) == (UNBOUND, UNBOUND)


def test_an_error_in_an_inner_block_has_what_both_saved():
    with pytest.raises(KeyError) as caught, Trace():
        a = save([1])
        with Trace():
            b = save([2])
            loose = [a, b]
            raise KeyError(loose)
    assert caught.value.saved == {"a": [1], "b": [2]}  # type: ignore[attr-defined]


def test_an_error_that_refuses_attributes_leaves_as_it_is():
    class Frozen(Exception):
        def __setattr__(self, name: str, value: Any) -> None:
            raise TypeError(name)

    with pytest.raises(Frozen), Trace():
        a = save([1])
        raise Frozen(a)


def test_an_error_that_is_caught_in_the_block_has_nothing():
    with Trace():
        a = save([1])
        try:
            raise KeyError(a)
        except KeyError as error:
            b = save([hasattr(error, "saved")])
    assert (a, b) == ([1], [False])


# --- warnings -------------------------------------------------------------------------------------


def test_names_that_are_bound_for_nothing_are_named():
    with pytest.warns(UserWarning, match=r"saved nothing, so `first`, `second` will not") as caught:
        with Trace():
            first = [1]
            second = [2]
    here = next(w for w in caught if "saved nothing" in str(w.message))
    assert here.filename == __file__
    assert "with Trace()" in Path(__file__).read_text().splitlines()[here.lineno - 1]


@pytest.mark.parametrize("times", [1, 3])
def test_the_warning_of_one_place_is_given_once(times: int):
    vars(sys.modules[__name__]).pop("__warningregistry__", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(times):
            with Trace():
                loose = [1]
    assert len(caught) == 1


def test_names_that_are_read_again_are_not_named():
    found: list[Any] = []
    with Trace():
        a = [1]
        found.append(a)
        _ignored = [2]
    assert found == [[1]]


def test_nothing_is_said_where_something_was_saved():
    with Trace():
        a = save([1])
        b = [2]
    assert a == [1]


def test_nothing_is_said_of_declared_names_and_targets():
    n = 1

    def run() -> None:
        with Trace() as tracer:
            nonlocal n
            n = 5

    run()
    assert n == 5


def test_a_change_in_place_after_the_save_is_told():
    with pytest.warns(UserWarning, match=r"`a` was changed in place after it was saved.*clone"):
        with Trace():
            a = save(Tensor())
            a.change()
    assert a._version == 1


def test_a_change_before_the_save_is_none():
    with Trace():
        a = Tensor()
        a.change()
        save(a)
    assert a._version == 1


def test_a_version_that_is_no_count_is_none():
    class Package:
        _version = "1.0"

    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return object()

    class Awkward:
        @property
        def _version(self) -> int:
            raise RuntimeError("inference tensors do not track version counter")

    with Trace():
        a, b, c = Package(), Proxy(), Awkward()
        save(a)
        save(b)
        save(c)
        a._version = "1.1"
    assert a._version == "1.1"


# --- Saves ----------------------------------------------------------------------------------------


def test_saves_holds_what_it_marks():
    saves = Saves()
    for n in range(100):
        saves.add([n])
    assert len(saves) == 100
    assert [0] not in saves


def test_the_saves_of_a_trace_end_with_it():
    with Trace():
        inside = save([saving.saves.get() is not None])
    assert inside == [True]
    assert saving.saves.get() is None


def test_importing_mounts_nothing(tmp_path: Path):
    text = "import record; assert not hasattr(object(), 'save'); assert not hasattr([], 'save')"
    subprocess.run([sys.executable, "-c", text], cwd=Path(__file__).parent, check=True, timeout=60)
