"""`tracer.cache(...)`: the values of many modules of one run, without a line for each.

The object that it returns is a mapping by path, can be walked like the model, and holds nothing but
values: no module, so it outlives the model and can be pickled, or saved as safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nnsight import nested
from nnsight.capture.saving import save as keep
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import INPUT, OUTPUT
from nnsight.interleave.worker import Worker
from nnsight.traces import cache_file, errors
from nnsight.traces.layout import Layout, join
from nnsight.traces.model import Model
from nnsight.traces.recording import Keeping, Recorder, Store


@dataclass(frozen=True)
class Entry:
    """The values of one visit of a module."""

    path: str
    values: Mapping[str, Any] = field(repr=False)  # by kind
    kinds: tuple[str, ...] = field(repr=False, default=())  # that the cache keeps

    def _of(self, kind: str) -> Any:
        if kind not in self.values:
            raise (errors.not_kept if kind not in self.kinds else errors.not_whole)(self.path, kind)
        return self.values[kind]

    @property
    def output(self) -> Any:
        """What the module returned."""
        return self._of(OUTPUT)

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the module, as `(args, kwargs)`."""
        return self._of(INPUT)

    @property
    def input(self) -> Any:
        """The first argument of the module: positional, else the first keyword."""
        args, kwargs = self.inputs
        return args[0] if args else next(iter(kwargs.values()), None)


class Cache:
    """What `tracer.cache()` returns: the values of modules, by path and by attribute.

    - `cache["model.transformer.h.0"].output` is `cache.model.transformer.h[0].output`; the root
      may be left out, and aliases work as on the model.
    - `.output`, `.input`, `.inputs` give the value; a list of values, one for each visit, where the
      module ran several times. `.visits` is always a list.
    - The cache as a whole is a mapping: `keys()`, `values()`, `items()`, `in`, `len`, iteration.
      A list of modules counts and gives its elements, and a module its visits.

    Raises:
        KeyError: (on access) there are no values of that module, with the reason.
    """

    def __init__(self, store: Store, path: str = "") -> None:
        self._store, self._path = store, path

    # --- values -----------------------------------------------------------------------------------

    def _values(self, kind: str) -> Any:
        values = self._store.of(kind, self._path)
        if not values:
            raise self._nothing(kind)
        return values[0] if len(values) == 1 else values

    def _nothing(self, kind: str) -> errors.NotCachedError:
        if kind not in self._store.kinds:
            return errors.not_kept(self._path, kind)
        if self._path in self._store.asked:
            return errors.not_met(self._path, kind)
        return errors.not_asked(self._path, kind, self._store.recorded)

    @property
    def output(self) -> Any:
        """What the module returned; a list of it, where the module ran several times."""
        return self._values(OUTPUT)

    @property
    def inputs(self) -> Any:
        """`(args, kwargs)` of the module; a list of such pairs, where it ran several times."""
        return self._values(INPUT)

    @property
    def input(self) -> Any:
        """The first argument of the module; a list of it, where the module ran several times."""
        self._values(INPUT)
        found = [entry.input for entry in self.visits if INPUT in entry.values]
        return found[0] if len(found) == 1 else found

    @property
    def visits(self) -> list[Entry]:
        """An `Entry` for each time that the module ran."""
        store = self._store
        return [Entry(self._path, v, store.kinds) for v in store.of_visits(self._path)]

    # --- walking ----------------------------------------------------------------------------------

    def _at(self, path: str) -> Cache | None:
        """The view at a path, from here or from the root; None if nothing of it was asked for."""
        known = self._store.walkable
        found = self._store.names.find(join(self._path, path), known)
        if found is None and self._path:
            found = self._store.names.find(path, known)
        return None if found is None else Cache(self._store, found)

    def _no_path(self, name: str) -> str:
        path = join(self._path, name)
        return errors.no_path(path, self._store.walkable, self._store.recorded)

    def __getattr__(self, name: str) -> Cache:
        if name.startswith("_"):
            raise AttributeError(name)
        found = self._at(name.removeprefix("E_"))
        if found is None:
            raise AttributeError(self._no_path(name))
        return found

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            found = self._at(key)
            if found is None:
                raise errors.NotCachedError(self._no_path(key))
            return found
        length = self._store.names.lengths.get(self._path)
        if length is None:
            return self.visits[key]
        if isinstance(key, slice):
            return [self[index] for index in range(length)[key]]
        if not -length <= key < length:
            raise IndexError(f"`{self._path}` has {length} modules, so there is no element {key}")
        return self[str(key % length)]

    # --- as a mapping -----------------------------------------------------------------------------

    def keys(self, alias: bool = False) -> list[str]:
        """Paths of the modules here and below that have values.

        Args:
            alias: spell them with the aliases of the model (`rename=`).
        """
        under = [
            path
            for path in self._store.recorded
            if not self._path or path == self._path or path.startswith(f"{self._path}.")
        ]
        return [self._store.names.alias(path) for path in under] if alias else under

    def values(self) -> list[Cache]:
        """The views of the modules here and below that have values."""
        return [Cache(self._store, path) for path in self.keys()]

    def items(self) -> list[tuple[str, Cache]]:
        """`(path, view)` of the modules here and below that have values."""
        return [(path, Cache(self._store, path)) for path in self.keys()]

    def _sequence(self) -> list[Any]:
        """What iteration gives: elements of a list, visits of a module, keys of anything else."""
        length = self._store.names.lengths.get(self._path)
        if length is not None:
            return [view for n in range(length) if (view := self._at(str(n))) is not None]
        return self.visits if self._path in self._store.recorded else self.keys()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._sequence())

    def __len__(self) -> int:
        return len(self._sequence())

    def __bool__(self) -> bool:
        return bool(self.keys())

    def __contains__(self, path: object) -> bool:
        found = self._at(path) if isinstance(path, str) else None
        return found is not None and found._path in self._store.recorded

    def __dir__(self) -> list[str]:
        start = len(self._path) + 1 if self._path else 0
        inside = [p for p in self._store.walkable if not start or p.startswith(f"{self._path}.")]
        return sorted({*super().__dir__(), *(p[start:].partition(".")[0] for p in inside)})

    def __repr__(self) -> str:
        lines = [f"  {path}: {_summary(view)}" for path, view in self.items()]
        shown = lines if len(lines) <= 20 else [*lines[:10], "  ...", *lines[-5:]]
        where = f" at {self._path}" if self._path else ""
        return "\n".join([f"Cache{where} of {len(lines)} modules", *shown])

    # --- keeping ----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str] | None = None) -> Cache:
        """Write the values here and below to a safetensors file; without a path, keep this cache
        beyond the trace (which `tracer.cache()` has done already).

        Tensors, numbers, text and None, and lists, tuples and dicts of them come back from
        `Cache.load` as they were. Other containers come back as dicts with their fields as
        attributes too, and objects of any other kind as None.
        """
        if path is None:
            return keep(self)
        cache_file.write(path, self._store, self.keys())
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "cpu") -> Cache:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds no cache.
        """
        return cls(cache_file.read(path, device))


# --- opening one ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opening:
    """A cache that is yet to see its run."""

    cache: Cache
    keeping: Keeping
    model: Model
    layout: Layout

    def begin(self, run: Any, worker: Worker | None) -> None:
        """See the values of `run` from now on: the rows of `worker`, or the whole batch."""
        if not isinstance(run, Interleaver):  # one in another process, where the values are
            run.open_cache(self, worker)
            return
        rows = None if worker is None else worker.rows
        store, layout = self.cache._store, self.layout
        recorder = Recorder(store, self.keeping, run.batch, rows, run.away, worker)
        outputs, inputs = (
            {layout.modules[p]: layout.places[p, kind] for p in store.asked if kind in store.kinds}
            for kind in (OUTPUT, INPUT)
        )
        self.model._observe(run, outputs, inputs, recorder.see)
        run.at_close(store.finish)


def open_cache(model: Model, asked: Any, kinds: tuple[str, ...], keeping: Keeping) -> Opening:
    """A cache of the modules that `asked` names: envoys, paths, patterns, or a list of these.

    Raises:
        ValueError: one of them is not in this model, or there is nothing to keep.
    """
    if not kinds:
        raise errors.nothing_to_keep()
    layout = model._layout()
    if asked is None:
        paths = layout.under(model.path)
    else:
        paths = layout.select(_spelled(asked, model))
    store = Store(layout.names, frozenset(paths), kinds, {})
    return Opening(Cache(store), keeping, model, layout)


def _spelled(asked: Any, model: Model) -> Iterator[str]:
    """Paths and patterns for what a user writes as `modules=`."""
    if isinstance(asked, str):
        yield asked
    elif isinstance(getattr(asked, "path", None), str):
        if asked.tree is not model.tree:
            raise errors.module_of_another(asked.path)
        yield asked.path
    elif isinstance(asked, Iterable):
        for one in asked:
            yield from _spelled(one, model)
    else:
        raise errors.no_name(asked)


def _summary(view: Cache) -> str:
    """What a module has, in one line: `output tensor of shape [1, 8, 64]`."""
    first = view.visits[0].values
    told = ", ".join(f"{kind} {nested.describe(value)}" for kind, value in first.items())
    times = len(view.visits)
    return told if times == 1 else f"{times} visits, {told}"
