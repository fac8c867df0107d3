"""Reading a request of NDIF 0.8, which is a pickle of its client's own objects.

The pickle is read as a graph (`pickle.py`), and from the graph is made what the block needs
and nothing else: of the client's model only the places that the block names, of its functions and
classes their source. Classes of that client are known here by their names, in one table. What is
not in the table and belongs to it is refused with a sentence; other names are those of packages,
which a block may import as well.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterator
from typing import Any

import zstandard

from nnsight.capture import portable
from nnsight.capture.block import Block
from nnsight.capture.keep import Kept
from nnsight.capture.portable import Taken
from nnsight.capture.tracer import Tracer
from nnsight.remote.errors import PayloadError, damaged, too_large
from nnsight.remote.model import Remotable
from nnsight.remote.ndif08.pickle import Made, Name, graph_of, parts_of
from nnsight.remote.ndif08.values import Values, unknown
from nnsight.remote.payload import Arrived
from nnsight.remote.shown import Show, shown_texts
from nnsight.traces.edit import MODEL, TRACER, BlockBody, Edit, Place
from nnsight.traces.model import Inputs
from nnsight.traces.session import Session
from nnsight.traces.trace import Trace

TRACE = ("nnsight.intervention.tracer.InterleavingTracer",)
SESSION = ("nnsight.tracing.tracer.Tracer",)
LARGEST = 8 << 30
_PIECE = 1 << 20


@contextlib.contextmanager
def arrived(
    content: Any, model: Remotable, largest: int = LARGEST, compressed: bool = True
) -> Iterator[Arrived]:
    """The block of a request, as `payload.arrived` gives that of ours.

    Args:
        content: the payload of the form.
        model: the one that it is for.
        largest: how many bytes it may unfold to.
        compressed: whether it is packed with zstd.

    Raises:
        PayloadError: it is damaged, or needs what this side does not have.
    """
    plain = unpacked(content, largest) if compressed else bytes(content)
    graph = graph_of(plain)
    with shown_texts() as show:
        try:
            found = _Reader(model, show).request(graph)
        except RecursionError:
            raise damaged("its parts stand too deep in each other") from None
        yield found


def unpacked(content: Any, largest: int = LARGEST) -> bytes:
    """What a frame of zstd holds; never more than `largest`.

    Raises:
        PayloadError: it is damaged, or larger.
    """
    found = bytearray()
    try:
        with zstandard.ZstdDecompressor().stream_reader(memoryview(content)) as reader:
            while piece := reader.read(_PIECE):  # it takes the memory for all that it may read
                found += piece
                if len(found) > largest:
                    raise too_large(largest)
    except zstandard.ZstdError as error:
        raise damaged(f"it does not unpack ({error})") from None
    return bytes(found)


class _Reader(Values):
    """Makes of a graph the block and what it needs."""

    def __init__(self, model: Remotable, show: Show) -> None:
        super().__init__(model, show)
        self.root = model._with_remote_settings(model._remote_settings())  # without our edits
        self.views: dict[int, Any] = {}  # by the root's node
        self.of_view: dict[int, int] = {}  # node of an envoy to that of its root
        self.tracer: Tracer | None = None
        self.tracer_node: Any = None

    def is_known(self, node: Made) -> bool:
        return node is self.tracer_node or self._is_envoy(node)

    def known(self, node: Made) -> Any:
        return self.tracer if node is self.tracer_node else self._envoy(node)

    # --- the request ------------------------------------------------------------------------------

    def request(self, graph: Any) -> Arrived:
        """The block, ready to run."""
        node, (text, globals_, locals_) = _shaped(graph)
        state = _state(node)
        frame = _state(_state(state["info"])["frame"])
        code = _state(frame["f_code"])
        self.tracer_node = node
        if node.is_of(*SESSION):
            self.tracer = Session()
        elif node.is_of(*TRACE):
            self._views(graph)
            at = self._envoy(state["envoy"])
            args, kwargs = self.value(state["args"]), self.value(state["kwargs"])
            self.tracer = Trace(at, Inputs(args, kwargs), self._called(state["fn"]))
        else:
            raise unknown(str(node.maker))
        if node.is_of(*SESSION):
            self._views(graph)
        block, names, values = self._block(
            text, globals_, locals_, str(code["co_filename"]), str(code["co_name"])
        )
        scope = portable.scope_of(block, Taken(values, names))
        for root in list(self.views):
            self._edits(root, str(code["co_filename"]), str(code["co_name"]))
        return Arrived(self.tracer, scope, None, True, {})

    def _block(
        self, text: Any, globals_: Any, locals_: Any, filename: str, function: str
    ) -> tuple[Block, dict[str, Any], dict[str, Any]]:
        """A block, the variables of its module, and those around it."""
        if not isinstance(text, str) or not isinstance(globals_, dict):
            raise damaged("it holds no block")
        named = [name for name, node in locals_.items() if self._is_tracer(node)]
        target = named[0] if named else None
        around = {name: node for name, node in locals_.items() if name != target}
        try:
            block = portable.block_of_body(text, filename, function, frozenset(around), target)
        except (SyntaxError, ValueError) as error:
            raise damaged(f"its block is not Python as this side knows it ({error})") from None
        start = block.lineno
        self.show(filename, start, "\n".join(text.split("\n")[start - 1 :]))
        names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        names.update(self.value(globals_))
        return block, names, {name: self.value(node) for name, node in around.items()}

    def _is_tracer(self, node: Any) -> bool:
        return node is self.tracer_node or (
            isinstance(node, Made)
            and isinstance(node.maker, Name)
            and node.maker.module.startswith("nnsight.")
            and node.maker.qualname.endswith("Tracer")
        )

    def _called(self, fn: Any) -> Any:
        """What runs: the model itself, a method of it, or a function."""
        if isinstance(fn, Made) and _builtin(fn) == "MethodType" and len(fn.args) == 2:
            method, owner = fn.args
            if isinstance(owner, Made) and self._is_envoy(owner):
                if isinstance(method, Made) and method.is_of("builtins.getattr"):
                    method = method.args[0]  # of a decorated one, what is decorated
                if isinstance(method, Name):
                    name = method.qualname.rpartition(".")[2]
                else:  # a decorated one: it came as its text, which is that client's
                    name = str(method.args[1])
                return None if name in ("_call", "__call__") else name
        return self.value(fn)

    # --- the model --------------------------------------------------------------------------------

    def _is_envoy(self, node: Made) -> bool:
        """Whether it stands for a part of the model."""
        return (
            node.new
            and isinstance(node.maker, Name)
            and node.maker.module.startswith("nnsight.")
            and isinstance(node.state, dict)
            and isinstance(node.state.get("path"), str)
            and "_children" in node.state
        )

    def _views(self, graph: Any) -> None:
        """Find the roots: each is a view of the model, with edits of its own."""
        for node in _reached(graph):
            if isinstance(node, Made) and self._is_envoy(node) and "repo_id" in node.state:
                if not self.views:
                    self._rename(node)
                view = self.root if not self.views else self.root._twin()
                view._edits().clear()
                self.views[id(node)] = view
                self.kept.append(node)
                below = [node]
                while below:
                    child = below.pop()
                    self.of_view[id(child)] = id(node)
                    below += [c for c in child.state["_children"] if isinstance(c, Made)]

    def _rename(self, root: Made) -> None:
        """See the model by the names that its client gave to modules."""
        aliases: dict[str, dict[str, str]] = {}
        below = [root]
        while below:
            node = below.pop()
            below += [c for c in node.state["_children"] if isinstance(c, Made)]
            if names := node.state.get("_aliases"):
                aliases[node.state["path"].partition(".")[2]] = dict(self.value(names))
        if aliases:
            settings = {**self.model._remote_settings(), "aliases": aliases}
            self.root = self.model._with_remote_settings(settings)

    def _envoy(self, node: Made) -> Any:
        view = self.views.get(self.of_view.get(id(node), 0), self.root)
        place = node.state["path"].partition(".")[2]
        try:
            return view._at(place)
        except (AttributeError, KeyError, IndexError) as error:
            raise PayloadError(
                f"The block names `{node.state['path']}`, which the model of this server does not "
                f"have ({error}). Use the same model and the same release of transformers."
            ) from None

    def _edits(self, root: int, filename: str, function: str) -> None:
        """Put the edits of a view in force."""
        view = self.views[root]
        node = next(node for node in self.kept if id(node) == root)
        below = [node]
        while below:
            envoy = below.pop()
            below += [c for c in envoy.state["_children"] if isinstance(c, Made)]
            for number, mediator in enumerate(envoy.state.get("_edits") or (), 1):
                text, globals_, locals_ = _state(mediator)["reduced"]
                block, names, values = self._block(text, globals_, locals_, filename, function)
                form = MODEL if block.site.node.items[0].optional_vars is None else TRACER
                held = {n: _place(v, view) for n, v in {**names, **values}.items()}
                path = envoy.state["path"].partition(".")[2]
                body = BlockBody(Kept(block, held, names), form)
                view._edits().append(Edit(f"edit_{number}", path, body))


# --- small parts of it ----------------------------------------------------------------------------


def _shaped(graph: Any) -> tuple[Made, tuple[Any, Any, Any]]:
    if isinstance(graph, tuple) and len(graph) == 2:
        node, body = graph
        if isinstance(node, Made) and isinstance(body, tuple) and len(body) == 3:
            if isinstance(body[1], dict) and isinstance(body[2], dict):
                return node, body
    raise damaged("it holds no block")


def _state(node: Any) -> Any:
    """The attributes of something, if it has any."""
    if isinstance(node, Made) and isinstance(node.state, dict):
        return _Fields(node.state)
    raise damaged("a part of it is missing")


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise damaged(f"it has no `{name}`")


def _builtin(node: Made) -> str | None:
    """The name of the type of Python's own that makes it, as cloudpickle writes those."""
    maker = node.maker
    if isinstance(maker, Made) and maker.is_of("cloudpickle.cloudpickle._builtin_type"):
        return str(maker.args[0]) if maker.args else None
    return None


def _reached(graph: Any) -> Iterator[Any]:
    """Every part of a graph, the first ones first."""
    seen: set[int] = set()
    pending = [graph]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        pending += reversed(list(parts_of(node)))


def _place(value: Any, view: Any) -> Any:
    """A part of the model as an edit keeps it."""
    place = view._place_of(value) if hasattr(type(value), "_place_of") else None
    return value if place is None else Place(place)
