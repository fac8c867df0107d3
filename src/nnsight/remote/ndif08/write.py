"""Writing a request of NDIF 0.8: the pickle that its own client would send for the same block.

The counterpart of `read.py`. What that client's objects look like in a message was seen in
messages of the published 0.8.1; our own classes do not look like them, they are described as such.
A class of the user's travels as a function that makes it, so no bytecode is sent, and client and
server may have different releases of Python.
"""

from __future__ import annotations
import __future__

import ast
import io
import json
import re
import sys
import textwrap
from collections.abc import Callable
from types import FunctionType, GeneratorType, ModuleType
from typing import Any

import torch
import zstandard

from nnsight.capture import portable, portable_code
from nnsight.capture.block import Block
from nnsight.capture.portable import globals_named
from nnsight.capture.portable_code import CodeText
from nnsight.capture.saving import save
from nnsight.capture.source import FUTURES, read_again
from nnsight.capture.tracer import Tracer
from nnsight.remote.errors import NotSendableError, not_a_trace, other_model
from nnsight.remote.model import Remotable
from nnsight.remote.ndif08.pickle import Made, Name, Pid
from nnsight.remote.ndif08.pickler import pickler_with
from nnsight.remote.payload import Request
from nnsight.remote.refuse import refuse_block
from nnsight.traces.edit import MODEL, TRACER, BlockBody, Edit, Place
from nnsight.traces.session import Session
from nnsight.traces.trace import Trace

_SERIAL, _ENVOY = "nnsight.intervention.serialization", "nnsight.intervention.envoy"
_MODEL, _CP = "nnsight.modeling.transformers", "cloudpickle.cloudpickle"
LEVEL = 6
_MEANING = re.compile("ClassVar|InitVar|KW_ONLY")
"""Words in the annotation of a field that `dataclass` goes by."""


def write(
    tracer: Tracer,
    model: Remotable,
    is_local: Callable[[ModuleType], bool],
    compress: bool = True,
    function: Any = None,
) -> Request:
    """A captured block as NDIF 0.8 takes it. The arguments are those of `payload.write`.

    Raises:
        NotSendableError: something in it cannot leave this process, or that format has no words
            for it; the error says what.
    """
    if function is not None:
        raise _no_words("a function that runs beside the model (`trace=False`)")
    if type(tracer) not in (Trace, Session) or tracer.scope is None:
        raise not_a_trace(type(tracer).__name__)
    refuse_block(tracer.scope, saved_come_back=False)
    writer = _Writer(tracer, model, is_local)
    graph = writer.request(tracer)
    file = io.BytesIO()
    try:
        pickler_with(writer.stand_in)(file, 4).dump(graph)
    except NotSendableError:
        raise
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise NotSendableError(f"This block uses what cannot be sent: {error}.") from None
    content: Any = file.getbuffer()
    if compress:
        content = zstandard.compress(content, LEVEL)
    return Request(model.to_model_key(), [content], {}, writer.imported)


class _Writer:
    """Says what stands in a message for each object."""

    def __init__(
        self, tracer: Tracer, model: Remotable, is_local: Callable[[ModuleType], bool]
    ) -> None:
        self.tracer, self.model, self.is_local = tracer, model, is_local
        self.imported: dict[str, str] = {}
        self.trees: dict[int, dict[str, Made]] = {}  # by the id of a view's root: nodes by place
        self.known: dict[int, Made] = {}  # by the id of a function or class
        self.tracer_node = Made(Name(*_class_of(tracer)), (), new=True)
        self.about = json.loads(model.to_model_key().partition(":")[2])

    # --- the request ----------------------------------------------------------------------------

    def request(self, tracer: Tracer) -> Any:
        scope = tracer.scope
        assert scope is not None
        outer = scope.block.outer
        code = _object(
            Made(Made(Name(_CP, "_builtin_type"), ("SimpleNamespace",)), ()),
            co_filename=scope.block.site.filename,
            co_firstlineno=max(scope.block.lineno - 1, 1),
            co_name=outer.name,
        )
        frame = _object(
            "nnsight.tracing.util.SerializedFrame", f_locals={}, f_globals={}, f_code=code
        )
        state: dict[str, Any] = {"info": _object("nnsight.tracing.tracer.Tracer.Info", frame=frame)}
        if isinstance(tracer, Trace):
            root = self.tree(tracer.model)[""]
            if tracer.model._place_of(tracer.model):
                raise _no_words("a trace of a part of the model: trace the model itself")
            state["envoy"] = root
            state["fn"] = self._fn(tracer, root)
            state["args"], state["kwargs"] = tracer.given.args, tracer.given.kwargs
        self.tracer_node.state, self.tracer_node.has_state = state, True
        taken = portable.taken_by(scope)
        around = dict(taken.cells)
        around |= dict.fromkeys(scope.block.target, tracer)
        return self.tracer_node, (body_text(scope.block), taken.globals, around)

    def _fn(self, tracer: Trace, root: Made) -> Made:
        fn = tracer.fn
        if fn is None or fn == "__call__":
            method: Any = Name(_MODEL, "TransformersModel._call")
        elif fn == "generate":
            named = Name(_MODEL, "TransformersModel.generate")
            method = Made(Name("builtins", "getattr"), (named, "__wrapped__"))
        else:
            raise _no_words(f"a trace of `{getattr(fn, '__name__', fn)}`")
        return Made(Made(Name(_CP, "_builtin_type"), ("MethodType",)), (method, root))

    # --- the model ------------------------------------------------------------------------------

    def tree(self, envoy: Any) -> dict[str, Made]:
        """What stands for each part of the view that an envoy belongs to."""
        view = envoy._at("")
        if id(view) not in self.trees:
            nodes = self.trees[id(view)] = {}
            self._grow(nodes, "", self.model._whole())
            self._root(nodes)
            for edit in view._edits():
                nodes[edit.path].state["_edits"].append(self._edit(edit, view))
        return self.trees[id(view)]

    def _grow(self, nodes: dict[str, Made], place: str, module: torch.nn.Module) -> Made:
        nodes[place] = node = _envoy("Envoy" if place else f"{_MODEL}.TransformersModel", place)
        for name, child in module._modules.items():
            if child is not None:
                below = self._grow(nodes, f"{place}.{name}".lstrip("."), child)
                _adopt(node, name, below)
        return node

    def _root(self, nodes: dict[str, Made]) -> None:
        """What only the root has."""
        generator = _envoy(f"{_MODEL}.GeneratorEnvoy", "generator")
        nodes["generator"] = generator
        nodes["generator.streamer"] = streamer = _envoy("Envoy", "generator.streamer")
        _adopt(generator, "streamer", streamer)
        parts = self.model._remote_parts()
        root, repo = nodes[""], self.about["repo_id"]
        own = {
            "task": self.about.get("task"),
            "pipeline": Pid("Pipeline"),
            "tokenizer": Pid("Tokenizer"),
            "processor": Pid("Processor") if "processor" in parts else None,
            "image_processor": None,
            "feature_extractor": None,
            "peft": None,
            "repo_id": repo,
            "revision": self.about.get("revision"),
            "dispatched": False,
        }
        aliases = self.model._remote_settings()["aliases"]
        for place, names in aliases.items():
            nodes[place].state["_aliases"].update(names)
        root.state["_children"].append(generator)
        root.state = {**own, **root.state, "args": (repo,), "kwargs": {}, "generator": generator}

    def _edit(self, edit: Edit, view: Any) -> Made:
        body = edit.body
        if not isinstance(body, BlockBody):
            raise _no_words("an edit by a function")
        names = body.targets
        if body.form != MODEL and names and names[0] in _read(body.kept.block):
            raise _no_words(f"an edit that uses its tracer (`{names[0]}`)")
        used = {
            name: view._at(value.path) if isinstance(value, Place) else value
            for name, value in body.kept.used().items()
        }
        if body.form != TRACER:
            used |= {name: view._at(edit.path) for name in names[-1:]}
        reduced = (body_text(body.kept.block), {}, used)
        return _object(
            "nnsight.intervention.interleaver.Mediator", reduced=reduced, copy=True, presaved=set()
        )

    # --- values ---------------------------------------------------------------------------------

    def stand_in(self, value: Any) -> Any:
        """What is written in place of an object; itself, where pickle knows what to do."""
        if value is self.tracer:
            return self.tracer_node
        if hasattr(type(value), "_place_of"):
            return self._part(value)
        for part, pid in (("tokenizer", "Tokenizer"), ("processor", "Processor")):
            if value is self.model._remote_parts().get(part):
                return Pid(pid)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, torch.nn.Module):
            return self._submodule(value)
        if isinstance(value, torch.Tensor) and value.is_meta:
            raise NotSendableError("This block uses a tensor on `meta`, which holds no numbers.")
        if isinstance(value, (GeneratorType, io.IOBase)):
            raise NotSendableError(
                f"This block uses a {type(value).__name__}, which cannot leave this process. Read "
                "what is needed of it first."
            )
        return value

    def _part(self, envoy: Any) -> Made:
        place = self.model._place_of(envoy)
        if place is None:
            raise other_model(envoy.path, self.model.path)
        found = self.tree(envoy).get(place)
        if found is None:
            raise _no_words(f"`{envoy.path}`")
        return found

    def _submodule(self, module: torch.nn.Module) -> Any:
        for path, found in self.model._whole().named_modules():
            if found is module:
                return Pid(f"Module:model.{path}".rstrip("."))
        return module

    def _module(self, module: ModuleType) -> Made:
        name = module.__name__
        if name == "__main__" or self.is_local(module):
            raise NotSendableError(
                f"This block uses the module `{name}`, which is your own, and NDIF 0.8 has no "
                f"words for that. Name what you need of it: `from {name} import ...`."
            )
        self.imported.setdefault(name.partition(".")[0], name)
        return Made(Name(_CP, "subimport"), (name,))

    def _by_name(self, value: Any) -> Any:
        module = value.__module__ or ""
        if value is save:
            return Name("nnsight.tracing.tracer", "save")
        if module.startswith("nnsight."):
            raise _no_words(f"`{value.__qualname__}` of this package")
        self.imported.setdefault(module.partition(".")[0], value.__qualname__)
        return Name(module, value.__qualname__)

    def _is_own(self, value: Any) -> bool:
        module = sys.modules.get(value.__module__ or "")
        if module is None or "<locals>" in value.__qualname__ or value.__name__ == "<lambda>":
            return True
        return module.__name__ == "__main__" or self.is_local(module)

    def _function(self, function: FunctionType) -> Any:
        if not self._is_own(function):
            return self._by_name(function)
        if id(function) in self.known:
            return self.known[id(function)]
        text = portable_code.text_of_function(function)
        if text is None:
            raise NotSendableError(
                f"The source of `{function.__qualname__}` is kept nowhere. Define it in a file or "
                "a notebook cell, with a `def` of its own."
            )
        seen, notes = function.__globals__, dict(function.__annotations__)
        names = {n: seen[n] for n in sorted(set(globals_named(function.__code__))) if n in seen}
        cells = zip(text.free, function.__closure__ or (), strict=True)
        for name, cell in cells:
            names[name] = cell.cell_contents
        return self._loaded(
            function,
            textwrap.dedent(text.text),
            (function.__name__, function.__defaults__, function.__kwdefaults__, notes),
            (text.filename, text.lineno),
            names,
        )

    def _loaded(
        self, value: Any, text: str, about: tuple[Any, ...], at: tuple[str, int], names: Any
    ) -> Made:
        """A function from its text, and then its variables, which may lead back to it."""
        name, defaults, keywords, given = about
        notes = {n: v if isinstance(v, str) else None for n, v in given.items()}
        node = Made(Name(_SERIAL, "_load_function"), (text, name, defaults, keywords, notes, *at))
        self.known[id(value)] = node
        node.later.append(Made(Name(_SERIAL, "_fill"), (node, names)))
        return node

    def _class(self, cls: type) -> Any:
        if not self._is_own(cls):
            return self._by_name(cls)
        if id(cls) in self.known:
            return self.known[id(cls)]
        text = portable_code.text_of_class(cls)
        functions = portable_code.functions_of(cls)
        if text is not None and not text.free:
            module = sys.modules.get(cls.__module__)
            seen = functions[0].__globals__ if functions else vars(module) if module else {}
            head = {*portable_code.needed_at_once(text), *_head_names(text)}
            names = {base.__name__: base for base in cls.__bases__ if base is not object}
            names |= {n: seen[n] for n in sorted(head) if n in seen}
            rest = {n: seen[n] for n in portable_code.names_of_class(text) if n in seen}
            rest = {n: v for n, v in rest.items() if n not in names and n != cls.__name__}
            body = _class_text(text)
            lines = f"def made():\n{textwrap.indent(body, ' ')}\n return {cls.__name__}\n"
            at = (text.filename, max(text.lineno - 1, 1))
        elif hasattr(cls, "_fields") and issubclass(cls, tuple):
            fields = list(cls._fields)  # type: ignore[attr-defined]
            lines = (
                "def made():\n import collections\n"
                f" return collections.namedtuple({cls.__name__!r}, {fields!r})\n"
            )
            names, rest, at = {}, {}, ("<named tuple>", 1)
        else:
            raise NotSendableError(
                f"The class `{cls.__qualname__}` cannot be sent: its source is kept nowhere, or it "
                "uses variables of a function around it. Move it to the top of a file."
            )
        maker = self._loaded(_Key(), lines, ("made", None, None, {}), at, names)
        self.known[id(cls)] = node = Made(maker, ())
        if rest:  # what methods look up may lead back to the class
            node.later.append(Made(Name(_SERIAL, "_fill"), (maker, rest)))
        return node


def _class_text(text: CodeText) -> str:
    """A class statement on its own; where annotations are not evaluated, as strings."""
    own = textwrap.dedent(text.text)
    if not text.flags & __future__.annotations.compiler_flag:
        return own
    tree = ast.parse(own)
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            found = getattr(node, name, None)
            if isinstance(found, ast.expr):
                said = ast.unparse(found)
                # `dataclass` looks a type that is a string up in a module, unless it need not
                plain = isinstance(node, ast.AnnAssign) and not _MEANING.search(said)
                setattr(node, name, ast.Name("object") if plain else ast.Constant(said))
    return ast.unparse(ast.fix_missing_locations(tree))


def _head_names(text: CodeText) -> set[str]:
    """The names in the head of a class statement: bases and what stands beside them."""
    node = ast.parse(textwrap.dedent(text.text)).body[0]
    assert isinstance(node, ast.ClassDef)
    parts = [*node.bases, *node.keywords]
    return {n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name)}


def _read(block: Block) -> set[str]:
    """The names that a block reads."""
    nodes = (node for statement in block.body for node in ast.walk(statement))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


class _Key:
    """Something with an id."""


# --- the text of a block --------------------------------------------------------------------------


def body_text(block: Block) -> str:
    """The body under a `with`, not indented, at its own line numbers as far as that can be."""
    site = block.site
    node = read_again(site, block.outer.flags & FUTURES)
    body: list[ast.stmt] = node.body
    if node.items[site.item + 1 :]:
        body = [ast.copy_location(ast.With(node.items[site.item + 1 :], body), node)]
    start = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", ()))])
    written = "".join(site.lines[start - 1 : body[-1].end_lineno])
    padding, wanted = "\n" * (start - 1), ast.dump(ast.Module(body, []))
    for text in (textwrap.dedent(written), ast.unparse(ast.Module(body, []))):
        try:
            if ast.dump(ast.parse(padding + text)) == wanted:
                return padding + text
        except SyntaxError:
            continue
    return padding + ast.unparse(ast.Module(body, []))


# --- objects of that client -----------------------------------------------------------------------


def _object(kind: Any, **state: Any) -> Made:
    if isinstance(kind, Made):
        kind.state, kind.has_state = state, True
        return kind
    named = Name("nnsight.tracing.tracer", "Tracer.Info") if kind.endswith(".Info") else None
    return Made(
        named or Name(*kind.rpartition(".")[::2]), (), new=True, state=state, has_state=True
    )


def _envoy(kind: str, place: str) -> Made:
    path = f"model.{place}".rstrip(".")
    return _object(
        f"{_ENVOY}.Envoy" if kind == "Envoy" else kind,
        _module=Pid(f"Module:{path}"),
        path=path,
        interleaver=Pid("Interleaver"),
        _edits=[],
        _rename=None,
        _aliases={},
        _envoys=None,
        _children=[],
        _child_map={},
    )


def _adopt(node: Made, name: str, child: Made) -> None:
    node.state["_children"].append(child)
    node.state["_child_map"][name] = child
    node.state[name] = child


def _class_of(tracer: Tracer) -> tuple[str, str]:
    if isinstance(tracer, Session):
        return "nnsight.tracing.tracer", "Tracer"
    return "nnsight.intervention.tracer", "InterleavingTracer"


def _no_words(what: str) -> NotSendableError:
    return NotSendableError(
        f"This block cannot be sent to a server that speaks NDIF 0.8: its format has no words for "
        f"{what}."
    )
