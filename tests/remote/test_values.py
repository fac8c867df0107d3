"""Values survive the wire, with their kinds, their identity and what they share."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import math
import operator
import pathlib
import random
import re
import types
import typing
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnsight.remote.errors import NotSendableError
from tests.remote.passing import packed, passed, read_data

Pair = collections.namedtuple("Pair", "x y", defaults=[3])


class Point(typing.NamedTuple):
    a: int
    b: str = "b"

    def twice(self) -> int:
        return 2 * self.a


@dataclass
class Data:
    a: int
    b: list[Any] = field(default_factory=list)

    def total(self) -> int:
        return self.a + sum(self.b)


@dataclass(frozen=True)
class Frozen:
    a: int


class Slotted:
    __slots__ = ("__b", "a")

    def __init__(self, a: int) -> None:
        self.a, self.__b = a, 2 * a

    def total(self) -> int:
        return self.a + self.__b


def five() -> int:
    return 5


def minus(a: int, b: int) -> int:
    return a - b


class Color(enum.Enum):
    RED = 1
    GREEN = "g"

    @property
    def low(self) -> str:
        return self.name.lower()


class Bits(enum.IntFlag):
    A = 1
    B = 2


class Many(list):
    pass


class Box(dict):
    pass


class Keyed:
    def __init__(self, key: Any) -> None:
        self.key = key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and self.key == other.key


class ExceptionWithMore(Exception):
    def __init__(self, text: Any, more: int) -> None:
        super().__init__(text)
        self.more = more


class Failed(ValueError):
    def __init__(self, text: str, *, place: int) -> None:
        super().__init__(text)
        self.place = place


# --- atoms and containers -------------------------------------------------------------------------

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary(max_size=40)
    | st.sampled_from([..., NotImplemented, 10**4000, -(2**63), 2**64 - 1, 2**64, int, torch.relu])
    | st.sampled_from([torch.bfloat16, torch.device("cpu"), torch.Size([2, 3]), torch.strided])
    | st.builds(range, st.integers(-5, 5), st.integers(-5, 5))
    | st.datetimes()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.sampled_from([pathlib.PurePosixPath("a/b"), Color.RED, Color.GREEN])
)
KEYS = st.integers() | st.text(max_size=3) | st.tuples(st.integers(), st.text(max_size=2))


def _containers(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inside, max_size=4)
    return (
        some
        | st.builds(tuple, some)
        | st.dictionaries(KEYS, inside, max_size=4)
        | st.dictionaries(KEYS, inside, max_size=3).map(collections.OrderedDict)
        | st.builds(collections.deque, some)
        | st.sets(KEYS, max_size=3)
        | st.frozensets(KEYS, max_size=3)
        | st.builds(lambda m: types.SimpleNamespace(members=m), some)
        | st.builds(slice, inside, inside, inside)
        | st.builds(Pair, inside)
    )


VALUES = st.recursive(ATOMS, _containers, max_leaves=12)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same to a user; classes are those of the same name."""
    if isinstance(one, enum.Enum):
        return other is one or other.name == one.name
    if isinstance(one, tuple) and hasattr(one, "_fields"):
        return one._fields == other._fields and all(map(alike, one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(alike, one.values(), other.values()))
    if isinstance(one, types.SimpleNamespace):
        return alike(vars(one), vars(other))
    if isinstance(one, slice):
        return alike((one.start, one.stop, one.step), (other.start, other.stop, other.step))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_any_value_survives(value: Any):
    assert alike(value, passed(value))


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3), st.data())
def test_aliases_and_cycles_survive(values: list[Any], data: Any):
    shared: list[Any] = [*values]
    ring: dict[Any, Any] = {"shared": shared, "again": (shared, [shared])}
    shared.append(ring)
    ring["itself"] = ring
    found = passed([shared, ring, ring["again"]])
    assert found[1]["itself"] is found[1]
    assert found[0][-1] is found[1] and found[1]["shared"] is found[0]
    assert found[2] is found[1]["again"] and found[2][0] is found[0] and found[2][1][0] is found[0]
    assert all(map(alike, values, found[0]))


def test_nan_and_what_is_nested_without_end():
    assert math.isnan(passed([math.nan])[0])
    nested: Any = functools.reduce(lambda inner, _: [inner], range(20_000), [])
    found = passed(nested)
    for _ in range(20_000):
        (found,) = found
    assert found == []


def test_a_long_chain_of_objects_survives():
    first = last = types.SimpleNamespace(n=0)
    for n in range(3000):
        last.next = types.SimpleNamespace(n=n)
        last = last.next
    found, count = passed(first), 0
    while hasattr(found, "next"):
        found, count = found.next, count + 1
    assert count == 3000


# --- objects --------------------------------------------------------------------------------------

OBJECTS: list[tuple[Any, Any]] = [
    (collections.defaultdict(list, {1: [2]}), lambda v: v.default_factory is list and v[1] == [2]),
    (collections.defaultdict(five), lambda v: v["missing"] == 5),
    (collections.deque([1, 2], maxlen=3), lambda v: list(v) == [1, 2] and v.maxlen == 3),
    (collections.Counter("hello"), lambda v: v["l"] == 2),
    (collections.ChainMap({1: 2}, {3: 4}), lambda v: v[3] == 4),
    (types.MappingProxyType({1: 2}), lambda v: v[1] == 2),
    (Point(2), lambda v: v.twice() == 4 and v.b == "b"),
    (Data(1, [3]), lambda v: v.total() == 4 and type(v) is not Data),
    ([Frozen(1), {Frozen(2): 3}], lambda v: v[1][type(v[0])(2)] == 3),
    (Slotted(2), lambda v: v.total() == 6),
    ([Color.RED, Color], lambda v: v[0] is v[1].RED and v[0].low == "red"),
    (Bits.A | Bits.B, lambda v: v == 3 and type(v).__name__ == "Bits"),
    (datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc), lambda v: v.year == 2020),
    (decimal.Decimal("1.50"), lambda v: str(v) == "1.50"),
    (fractions.Fraction(1, 3), lambda v: v.denominator == 3),
    (uuid.UUID(int=7), lambda v: v.int == 7),
    (pathlib.Path("/a/b"), lambda v: v.name == "b"),
    (re.compile("a+"), lambda v: v.match("aa")),
    (functools.partial(max, 3, key=abs), lambda v: v(-5) == -5),
    (functools.partial(minus, 3), lambda v: v(1) == 2),
    (operator.attrgetter("x"), lambda v: v(Pair(4)) == 4),
    (operator.itemgetter(1), lambda v: v([1, 2]) == 2),
    ([1, 2].append, lambda v: v.__self__ == [1, 2]),
    (Data(1, [3]).total, lambda v: v() == 4),
    (str.upper, lambda v: v("a") == "A"),
    (dict.fromkeys, lambda v: v([1]) == {1: None}),
    (ValueError("x", 2), lambda v: v.args == ("x", 2)),
    (Failed("x", place=3), lambda v: v.place == 3 and str(v) == "x"),
    (list[int], lambda v: v == list[int]),
    (int | None, lambda v: v == int | None),
    (typing.Union[int, None], lambda v: v == typing.Union[int, None]),  # noqa: UP007
    (torch.nn.functional.gelu, lambda v: v is torch.nn.functional.gelu),
    (torch.ops.aten.add.Tensor, lambda v: v is torch.ops.aten.add.Tensor),
    (torch.nn.functional, lambda v: v is torch.nn.functional),
    (np.random.default_rng(3), lambda v: v.integers(99) == np.random.default_rng(3).integers(99)),
    (torch.Generator().manual_seed(3), lambda v: v.initial_seed() == 3),
    (random.Random(3), lambda v: v.random() == random.Random(3).random()),
    (itertools.count(3), lambda v: next(v) == 3),
    (iter([1, 2]), lambda v: list(v) == [1, 2]),
    (collections.defaultdict(lambda: 5), lambda v: v[1] == 5),
    (collections.UserDict(a=1), lambda v: v["a"] == 1),
    (ExceptionWithMore(1, 2), lambda v: v.more == 2 and v.args == (1,)),
    (typing.Annotated[int, 3], lambda v: v == typing.Annotated[int, 3]),
    (torch.distributions.Normal(0.0, 1.0), lambda v: v.loc == 0),
    (
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5),
        lambda v: v.defaults["lr"] == 0.5,
    ),
    (torch.nn.Linear(2, 2).forward, lambda v: v(torch.ones(1, 2)).shape == (1, 2)),
]


@pytest.mark.parametrize("number", range(len(OBJECTS)))
def test_an_object_survives(number: int):
    value, right = OBJECTS[number]
    assert right(passed(value)), value


def test_what_holds_itself_survives():
    many, box, key = Many([1]), Box(a=1), Keyed(3)
    many.append(many)
    many.me = box["me"] = box
    key.all = {key: many}
    found = passed([key, many])
    assert found[1][1] is found[1] and found[1].me["me"] is found[1].me
    assert type(found[1]).__name__ == "Many" and type(found[1].me).__name__ == "Box"


@pytest.mark.parametrize(
    "value",
    [
        {Keyed(3): 1},
        {Keyed((1, "a"))},
        [Keyed(3), {"d": {Keyed(4): 1}, "k": [Keyed(4)]}],
        {(Keyed(1), (Keyed(2),)): 1},
        frozenset([Keyed(3)]),
    ],
)
def test_keys_that_are_equal_by_what_they_hold_are_found_again(value: Any):
    found = passed([value, Keyed])
    texts = str(value).count("Keyed object")
    assert str(found[0]).count("Keyed object") == texts


def test_a_key_that_is_shared_is_whole_before_it_is_looked_up():
    key = Keyed(7)
    found = passed({"inner": {key: 1}, "tuple": {(key, 2): 3}, "key": key})
    assert found["inner"][found["key"]] == 1
    assert found["tuple"][(found["key"], 2)] == 3


# --- any graph of objects -------------------------------------------------------------------------


class Linked:
    pass


@dataclass
class Node:
    one: Any = None
    other: Any = None


class Slots:
    __slots__ = ("one", "other")


KINDS = ("list", "dict", "deque", "namespace", "Linked", "Node", "Slots", "Many", "Box", "default")
KINDS += ("tuple", "pair", "partial", "method", "cell", "array")  # made when their parts are


def _made(kind: str) -> Any:
    found: dict[str, Any] = {"namespace": types.SimpleNamespace, "deque": collections.deque}
    found |= {"list": list, "dict": dict, "Linked": Linked, "Node": Node, "Slots": Slots}
    found |= {"Many": Many, "Box": Box, "default": functools.partial(collections.defaultdict, list)}
    return found[kind]()


def _of_parts(kind: str, one: Any, other: Any) -> Any:
    if kind == "tuple":
        return one, other
    if kind == "pair":
        return Pair(one, other)
    if kind == "partial":
        return functools.partial(minus, one, b=other)
    if kind == "method":
        return Node(one, other).__repr__
    if kind == "array":
        found = np.empty(2, dtype=object)
        found[0], found[1] = one, other
        return found
    return types.CellType((one, other))


def _parts(value: Any) -> list[Any]:
    """What a value of a graph holds."""
    if isinstance(value, functools.partial):
        return [value.args, value.keywords]
    if isinstance(value, types.CellType):
        return [value.cell_contents]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, np.ndarray):
        return list(value)
    found: list[Any] = list(value) if isinstance(value, (list, tuple, collections.deque)) else []
    if isinstance(value, dict):
        found += [*value.values()]
    names = ("one", "other") if type(value).__name__ == "Slots" else vars_of(value)
    return found + [getattr(value, name) for name in names]


def vars_of(value: Any) -> list[str]:
    return sorted(getattr(value, "__dict__", ()))


@st.composite
def graphs(draw: Any) -> Any:
    """Values of many kinds that hold each other in any way: aliases, rings, chains."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=9))
    nodes: list[Any] = []
    for kind in kinds:
        if kind in KINDS[-6:]:
            one, other = (draw(st.sampled_from([*nodes, 7])) for _ in range(2))
            nodes.append(_of_parts(kind, one, other))
        else:
            nodes.append(_made(kind))
    for node in nodes:
        one, other = (draw(st.sampled_from([*nodes, "x"])) for _ in range(2))
        if isinstance(node, (list, collections.deque)):
            node.extend([one, other])
        elif isinstance(node, dict):
            node.update(one=one, other=other)
        elif type(node) in (types.SimpleNamespace, Linked, Node, Slots):
            node.one, node.other = one, other
    return draw(st.sampled_from(nodes))


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_any_graph_of_objects_keeps_its_form(root: Any):
    partners: dict[int, Any] = {}
    taken: dict[int, Any] = {}
    pending = [(root, passed([root, 0])[0])]
    while pending:
        one, other = pending.pop()
        assert type(one).__name__ == type(other).__name__
        if isinstance(one, (int, str)) or (type(one) is tuple and not one):
            assert one == other
            continue
        if isinstance(one, types.MethodType):  # made anew each time that it is looked up
            pending.append((one.__self__, other.__self__))
            continue
        if id(one) in partners:
            assert partners[id(one)] is other
            continue
        assert id(other) not in taken, "two values have become one"
        partners[id(one)], taken[id(other)] = other, one
        mine, theirs = _parts(one), _parts(other)
        assert len(mine) == len(theirs)
        pending += zip(mine, theirs, strict=True)


# --- what cannot leave ----------------------------------------------------------------------------


def test_what_is_tied_to_this_process_is_refused(tmp_path: pathlib.Path):
    import socket
    import threading

    with open(tmp_path / "x", "w") as file, socket.socket() as line:
        table: list[tuple[Any, str]] = [
            (file, "is a `TextIOWrapper`, which cannot be sent: it is open in this process. Send"),
            ((x for x in [1]), "is a `generator`, which cannot be sent: it is half run, here. S"),
            (threading.Lock(), "is a `lock`, which cannot be sent: it belongs to this process."),
            (
                threading.Thread(),
                "is a `Thread`, which cannot be sent: it belongs to this process.",
            ),
            (line, "is a `socket`, which cannot be sent: it belongs to this process. Make it in"),
            (torch.ones(2).untyped_storage(), "it is memory, of which nothing says what lies in"),
            (memoryview(b"x"), "is a `memoryview`, which cannot be sent: nothing says how to make"),
            (types.ModuleType("__main__"), "is the module `__main__`, which cannot be sent: it is"),
        ]
        for value, said in table:
            with pytest.raises(NotSendableError) as error:
                packed({"config": [1, types.SimpleNamespace(part=value)]})
            assert str(error.value).startswith("`['config'][1].part")
            assert said in str(error.value)


def test_a_client_reads_data_and_no_code():
    for value in (Data, Data(1), len, torch.relu, lambda: 1, re.compile("a"), [].append):
        with pytest.raises(Exception, match="cannot be read"):
            read_data(packed([value]))
    value = [{"a": (1, 2)}, collections.OrderedDict(a=torch.ones(2)), pathlib.PurePosixPath("a")]
    assert repr(read_data(packed(value))) == repr(value)
