"""Functions, classes and modules survive the wire by source, and do there what they do here."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import enum
import functools
import sys
import types
import typing
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar, Generic, TypeVar

import pytest
import torch

from nnsight.remote.errors import NotSendableError
from tests.remote.passing import packed, passed, read

K = 3


def add(a, b=K, *, c=[1]):  # noqa: B006 # a default of its own
    return a + b + sum(c)


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) + 100

    return wrapper


@decorated
def once(x):
    """Some words."""
    return x


@functools.lru_cache(maxsize=7)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@contextlib.contextmanager
def managed(x):
    yield x + 1


async def later(x):
    return x + 1


def counter():
    n = 0

    def step():
        nonlocal n
        n += 1
        return n

    return step, lambda: n


def counts():
    counted.n += 1
    return counted.n


def counted():
    return counted.n


counted.n = 4


class Base(abc.ABC):
    z = 1

    def __init__(self):
        self.a = 1

    @abc.abstractmethod
    def f(self): ...


class Child(Base):
    __p = 5
    count = 0

    def __init__(self):
        super().__init__()
        self.__q = 7

    def f(self):
        return self.__q + self.__p + super().z

    @classmethod
    def make(cls):
        return cls()

    @staticmethod
    def more(x):
        return x + K

    @property
    def twice(self):
        return 2 * self.a

    @functools.cached_property
    def kept(self):
        return self.a + 1

    def __call__(self, x):
        return x

    class Inner:
        def outer(self):
            return Child


class Meta(type):
    def __new__(cls, name, bases, names, tag="none"):
        return super().__new__(cls, name, bases, {**names, "tag": tag})

    def __init__(cls, name, bases, names, tag="none"):
        super().__init__(name, bases, names)


class Tagged(metaclass=Meta, tag="hey"):
    pass


T = TypeVar("T")


class Holder(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


@dataclass(order=True)
class Data:
    a: int = K
    more: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self.twice = 2 * self.a


@dataclass
class Special(Data):
    other: Data | None = None


@dataclass
class Counted:
    kind: typing.ClassVar[str] = "counted"
    short: ClassVar[int] = 3
    much: float = 2.0


class Triple(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 3


class Layer(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.inner = torch.nn.Linear(n, n)
        self.register_buffer("shift", torch.ones(n))
        self.inner.register_forward_hook(lambda module, args, out: out + 1)

    def forward(self, x):
        return self.inner(x).relu() + self.shift


def nearby(k):
    class Local:
        j = 5

        def m(self):
            return k + self.j

        def own(self):
            return Local

    return Local


Made = enum.Enum("Made", "A B")
Number = enum.IntEnum("Number", {"ONE": 1, "ALSO_ONE": 1, "TWO": 2})
Flags = enum.Flag("Flags", ["X", "Y"])
Record = make_dataclass(
    "Record",
    [("a", int), ("b", list, field(default_factory=list))],
    namespace={"total": lambda self: self.a + sum(self.b)},
    order=True,
)
Derived = make_dataclass("Derived", ["a"], bases=(Record,), slots=True)


class Row(typing.NamedTuple):
    a: int
    b: str


class Options(typing.TypedDict, total=False):
    a: int


UserId = typing.NewType("UserId", int)


@functools.singledispatch
def kind_of(value):
    return "other"


@kind_of.register
def _(value: int):
    return f"int {kind_of('')}"


@kind_of.register(Base)
def kind_of_base(value):
    return "base"


class Chooses:
    @functools.singledispatchmethod
    def of(self, value):
        return "other"

    @of.register
    def _(self, value: int):
        return "int"


class Named:
    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner):
        return self.name


class Uses:
    field = Named()

    def __init_subclass__(cls, tag=None):
        cls.tag = tag


class Tag(Uses, tag=3):
    pass


@dataclass(slots=True, kw_only=True)
class Slots:
    a: int
    b: list[Any] = field(default_factory=list)


LAMBDAS = [lambda x: x + 1, lambda x: x * 2, lambda x, y=K: x - y]


def uses(manager):
    with manager(1) as value:
        return value


TABLE: list[tuple[Any, Any]] = [
    (add, lambda f: (f(1), f(1, c=[2]), f.__defaults__) == (5, 6, (3,))),
    (factorial, lambda f: f(5) == 120),
    (even, lambda f: f(10) and not f(7)),
    (
        once,
        lambda f: (
            (f(1), f.__name__, f.__doc__, f.__wrapped__(1)) == (101, "once", "Some words.", 1)
        ),
    ),
    (fibonacci, lambda f: f(30) == 832040 and f.cache_parameters()["maxsize"] == 7),
    (managed, lambda f: uses(f) == 2),
    (later, lambda f: asyncio.run(f(1)) == 2),
    (counter(), lambda f: [f[0](), f[0](), f[1]()] == [1, 2, 2]),
    (counted, lambda f: f() == 4),
    (LAMBDAS, lambda f: [g(10) for g in f] == [11, 20, 7]),
    ([(lambda a: lambda b: a + b)(i) for i in range(3)], lambda f: [g(1) for g in f] == [1, 2, 3]),
    (
        Child(),
        lambda v: (v.f(), v.make().f(), v.more(1), v.twice, v.kept, v(3)) == (13, 13, 4, 2, 2, 3),
    ),
    (Child().f, lambda f: f() == 13),
    (Child.make, lambda f: f().f() == 13),
    (Child, lambda v: v is not Child and v.Inner().outer() is v and issubclass(v, v.__mro__[1])),
    (Child.Inner(), lambda v: type(v).__qualname__ == "Child.Inner"),
    (Tagged, lambda v: v.tag == "hey" and type(v).__name__ == "Meta"),
    (Holder[int](3), lambda v: v.value == 3),
    (Holder[int], lambda v: v.__origin__.__name__ == "Holder"),
    (Special(more=[Data(9)], other=Data(1)), lambda v: (v.a, v.twice, v.other.a) == (3, 6, 1)),
    (Triple, lambda v: v.apply(torch.ones(1)).item() == 2),
    (nearby(4)(), lambda v: v.m() == 9 and v.own() is type(v)),
    (typing.cast, lambda v: v is typing.cast),
    ([Made.B, Made], lambda v: v[0] is v[1].B and [m.name for m in v[1]] == ["A", "B"]),
    ([Number.TWO, Number], lambda v: v[0] == 2 and v[1].ALSO_ONE is v[1].ONE),
    (Flags.X | Flags.Y, lambda v: v.value == 3),
    ([Record(1, [2]), Record], lambda v: v[0] == v[1](1, [2]) and v[0].total() == 3 < v[1](4).a),
    (Derived(3), lambda v: v.total() == 3 and v.a == 3),
    (Row(1, "b"), lambda v: v.b == "b"),
    (Options, lambda v: v(a=1) == {"a": 1} and not v.__total__),
    (UserId, lambda v: v(3) == 3),
    (kind_of, lambda v: (v(1), v("")) == ("int other", "other")),
    ([kind_of, Child()], lambda v: v[0](v[1]) == "base"),
    (Chooses(), lambda v: (v.of(1), v.of("")) == ("int", "other")),
    (Tag(), lambda v: (v.tag, v.field) == (3, "field")),
    (Slots(a=1, b=[2]), lambda v: (v.a, v.b) == (1, [2])),
    (functools.partial(Slots, a=1), lambda v: v().a == 1),
]


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_code_survives(number: int):
    value, right = TABLE[number]
    if sys.version_info < (3, 11) and isinstance(value, list):
        pytest.skip("Python 3.10 keeps no columns, by which lambdas of one line are told apart")
    assert right(passed(value)), value


def test_what_a_class_holds_now_is_what_it_holds_there():
    Child.count = 50
    try:
        assert passed(Child).count == 50 and passed(Child()).count == 50
    finally:
        Child.count = 0


def test_a_module_of_ones_own_gives_the_same_numbers():
    layer, x = Layer(3), torch.randn(2, 3)
    found = passed(layer)
    assert torch.equal(found(x), layer(x)) and type(found) is not Layer
    assert isinstance(found.inner.weight, torch.nn.Parameter) and len(list(found.parameters())) == 2


def test_code_and_objects_that_go_together_are_of_one_class():
    def is_data(value):
        return isinstance(value, Data)

    function, value, cls = passed([is_data, Data(2), Data])
    assert function(value) and type(value) is cls
    again = passed([even, odd])
    assert again[0].__globals__["odd"] is again[1] and again[1].__globals__["even"] is again[0]


def test_what_has_no_source_is_refused_by_its_name():
    names: dict[str, Any] = {}
    exec("def gone(x): return x", names)

    def local(k):
        class Uses:
            j = k

        return Uses

    for value, said in (
        (names["gone"], "the function `gone`, which cannot be sent: its source is"),
        (
            type("Made", (), {}),
            "the class `Made`, which cannot be sent: its source is",
        ),
        (local(3), "the class `Uses`, which cannot be sent: its statement uses `k`"),
    ):
        with pytest.raises(NotSendableError, match=said):
            packed([value])


@pytest.mark.parametrize("there", [None, types.ModuleType("another of that name")])
def test_annotations_that_are_texts_mean_what_they_did(monkeypatch: pytest.MonkeyPatch, there: Any):
    """`dataclass` looks in the module of the class, which the other side does not have."""
    content = packed([Counted(3.0), Counted])
    monkeypatch.delitem(sys.modules, __name__)
    if there is not None:
        monkeypatch.setitem(sys.modules, __name__, there)
    one, cls = read(content)
    assert [each.name for each in dataclasses.fields(one)] == ["much"]
    assert one == cls(3.0) and (one.kind, one.short) == ("counted", 3)
    assert sys.modules.get(__name__) is there
