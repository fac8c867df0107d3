"""The values in a request of NDIF 0.8, made from its graph (`pickle.py`)."""

from __future__ import annotations

import importlib
import io
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nnsight.capture.saving import save
from nnsight.remote.code_reading import objects
from nnsight.remote.errors import PayloadError, damaged
from nnsight.remote.model import Remotable
from nnsight.remote.ndif08 import classes
from nnsight.remote.ndif08.pickle import Made, Name, Pid
from nnsight.remote.shown import Show
from nnsight.traces.session import session

_KNOWN: Mapping[str, Any] = {
    "nnsight.tracing.tracer.save": save,
    "nnsight.save": save,
    "nnsight.session": session,
}
"""Functions of that client that mean one of ours."""

_PARTS = {
    "Tokenizer": "tokenizer",
    "Processor": "processor",
    "Config": "config",
    "GenerationConfig": "generation_config",
}
"""What both sides have of a model beside its modules, by what the message calls it."""


class Values:
    """Makes the parts of a graph; each once, so what is shared stays shared."""

    def __init__(self, model: Remotable, show: Show) -> None:
        self.model, self.show = model, show
        self.made: dict[int, Any] = {}
        self.kept: list[Any] = []  # nodes whose id is in `made`
        self.makers: dict[str, Callable[[Made], Any]] = {
            "nnsight.intervention.serialization._load_function": self._function,
            "torch.storage._load_from_bytes": _storage,
            **classes.makers(self),
        }

    def is_known(self, node: Made) -> bool:
        """Whether a part stands for something that is here already."""
        raise NotImplementedError

    def known(self, node: Made) -> Any:
        """What it stands for."""
        raise NotImplementedError

    # --- values -----------------------------------------------------------------------------------

    def value(self, node: Any) -> Any:
        """What a part of the graph stands for."""
        if isinstance(node, Name):
            return self._named(node)
        if isinstance(node, Pid):
            return self._part(node.id)
        if not isinstance(node, (list, tuple, dict, set, frozenset, Made)):
            return node
        key = id(node)
        if key not in self.made:
            self.kept.append(node)
            self._make(node, key)
        return self.made[key]

    def _make(self, node: Any, key: int) -> None:
        if isinstance(node, Made):
            self._make_called(node, key)
        elif isinstance(node, list):
            found = self.made[key] = []
            found.extend(self.value(item) for item in node)
        elif isinstance(node, dict):
            pairs = self.made[key] = {}
            for name, item in node.items():
                pairs[self.value(name)] = self.value(item)
        elif isinstance(node, set):
            members = self.made[key] = set()
            members.update(self.value(item) for item in node)
        else:
            parts = [self.value(item) for item in node]
            self.made.setdefault(key, type(node)(parts))

    def _make_called(self, node: Made, key: int) -> None:
        if self.is_known(node):
            self.made[key] = self.known(node)
            return
        maker = self.makers.get(str(node.maker)) if isinstance(node.maker, Name) else None
        if maker is not None:
            found = maker(node)
        else:
            function = self.value(node.maker)
            args, kwargs = self.value(node.args), self.value(node.kwargs)
            if key in self.made:  # a part of it refers to it
                return
            if node.new:
                found = function.__new__(function, *args, **kwargs)
            else:
                found = function(*args, **kwargs)
        self.made.setdefault(key, found)
        self.finish(node, found)

    def finish(self, node: Made, found: Any) -> None:
        """Do to something that was made what is done to it after."""
        for call in node.later:
            self.value(call)
        if node.items:
            add = found.extend if hasattr(found, "extend") else None
            for item in map(self.value, node.items):
                if add is None:
                    found.add(item) if hasattr(found, "add") else found.append(item)
                else:
                    add([item])
        for name, item in node.pairs:
            found[self.value(name)] = self.value(item)
        if node.has_state:
            _build(found, self.value(node.state))

    def _named(self, name: Name) -> Any:
        whole = str(name)
        if whole in _KNOWN:
            return _KNOWN[whole]
        top = name.module.partition(".")[0]
        if top == "nnsight":
            return _of_ours(name)
        if top == "cloudpickle":
            raise unknown(whole)
        return objects(name.module, name.qualname)

    def _part(self, name: str) -> Any:
        kind, _, path = name.partition(":")
        if kind == "Module":
            place = path.partition(".")[2]
            try:
                return self.model._whole().get_submodule(place)
            except AttributeError:
                raise damaged(f"it names a module `{path}`, which this model lacks") from None
        if kind in _PARTS:
            return getattr(self.model, _PARTS[kind])
        raise PayloadError(
            f"The block uses the {kind.lower()} of its model, which does not come along here. "
            "Name the modules, the tokenizer or the config."
        )

    # --- functions --------------------------------------------------------------------------------

    def _function(self, node: Made) -> Any:
        """A function from its source; its variables come in a call that is made after."""
        text, name, defaults, keywords, annotations, filename, lineno = node.args[:7]
        given = [dict(_pairs_of(call)) for call in node.later if _fills(call)]
        cell = any("__class__" in names for names in given)
        self.show(str(filename), int(lineno), str(text))
        function = classes.function_of(str(text), str(name), str(filename), int(lineno), cell)
        self.made[id(node)] = function
        function.__defaults__ = self.value(defaults)
        function.__kwdefaults__ = self.value(keywords)
        function.__annotations__ = dict(self.value(annotations) or {})
        return function

    def fill(self, node: Made) -> Any:
        """Give a function the variables that it looks up."""
        function = self.value(node.args[0])
        for name, value in _pairs_of(node):
            made = self.value(value)
            if name == "__class__" and function.__closure__:
                function.__closure__[0].cell_contents = made
            else:
                function.__globals__[name] = made
        return function


# --- small parts of it ----------------------------------------------------------------------------


def unknown(name: str) -> PayloadError:
    """A class of that client that has no counterpart here."""
    return PayloadError(
        f"This request holds a `{name}`, which this server does not know: it reads requests as "
        "nnsight 0.8 writes them. A client that speaks nnsight/1 can send it."
    )


def _fills(node: Made) -> bool:
    return node.is_of("nnsight.intervention.serialization._fill") and len(node.args) == 2


def _pairs_of(node: Made) -> Any:
    found = node.args[1]
    if not isinstance(found, dict):
        raise damaged("a function in it has no variables")
    return found.items()


def _storage(node: Made) -> Any:
    """The numbers of a tensor, which are a pickle of torch's own in this one."""
    content = node.args[0] if node.args else None
    if not isinstance(content, (bytes, bytearray)):
        raise damaged("a tensor in it has no numbers")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise damaged(f"a tensor in it cannot be read ({type(error).__name__})") from None


def _build(found: Any, state: Any) -> None:
    """Give a thing its state, as pickle does."""
    own = getattr(found, "__setstate__", None)
    if own is not None:
        own(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        vars(found).update(state)
    for name, value in (slots or {}).items():
        object.__setattr__(found, name, value)


def _of_ours(name: Name) -> Any:
    """What our own package has under the name of one of that client's, if users see it."""
    module = importlib.import_module("nnsight")
    found = getattr(module, name.qualname.rpartition(".")[2], None)
    if found is None or isinstance(found, types.ModuleType):
        raise unknown(str(name))
    return found
