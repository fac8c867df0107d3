"""`Envoy`: stands for one module of a model, and gives access to its values while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch.nn import Module

from nnsight import nested
from nnsight.capture.tracer import Backend
from nnsight.envoy import aliases, classes, editing, handoff, older, show
from nnsight.envoy.arguments import checked_inputs, first_input, with_first_input
from nnsight.envoy.classes import Envoys
from nnsight.envoy.keywords import signature_names, without_retired
from nnsight.envoy.method import Method, called, is_traceable
from nnsight.envoy.operations import source_of
from nnsight.envoy.traced import Traced
from nnsight.envoy.tree import Node, Tree, first_parameter, row_zero
from nnsight.interleave import request
from nnsight.interleave.eproperty import described
from nnsight.interleave.location import INPUT, OUTPUT, Location
from nnsight.interleave.request import here
from nnsight.interleave.value import Value
from nnsight.traces.function import run_function, run_now
from nnsight.traces.model import Inputs
from nnsight.traces.scan import Scan
from nnsight.traces.steps import Iter, Steps, advance
from nnsight.traces.trace import Trace

Rename = Mapping["str | type", "str | Sequence[str]"]


def _not_a_module(given: object) -> str:
    if isinstance(given, type):
        return f"NNsight wraps a module, not a class: make one first, `{given.__name__}(...)`."
    if isinstance(given, Envoy):
        return f"`{given.path}` is wrapped already: use it as it is, or wrap its `._module`."
    return (
        f"NNsight wraps a torch.nn.Module, not {nested.describe(given)}. To load a language model "
        "by its name, use `LanguageModel(...)`."
    )


class Envoy(Traced):
    """A module of a wrapped model.

    Children are reached as on the module itself (`model.transformer.h[0].attn`), and so is every
    other attribute of the module. Inside `with model.trace(...):` an envoy gives the values of its
    module:

    - `.output` is what the module returns, `.input` its first argument, `.inputs` all of them as
      `(args, kwargs)`. Reading waits until the model has computed the value and gives the real
      tensors; assigning replaces the value for the rest of the model.
    - `.skip(value)` leaves the module out: `value` is its output.
    - `.source` has the same for every call and assignment in the module's forward.
    - `envoy(x)` runs the module on a value of your own, beside the model.

    A child whose name is one of these words is reached as `E_<name>`.

    Args:
        module: the module to wrap.
        path: the name of the root in messages and paths.
        rename: other names for modules, e.g. `{"transformer.h": "layers", "mlp": "ff"}`.
        envoys: subclasses of Envoy to stand for modules: one, or by module class or path,
            `{GPT2Attention: Attention, "h.*.mlp": MLP}`.
        *more: what earlier releases took by its place, in either of their orders.
    """

    output = Value(
        OUTPUT, doc="What the module returns. Read or assign it inside a trace.", doubt=row_zero
    )
    nns_output = Value(OUTPUT, doc="The same as `output` (an older spelling).", doubt=row_zero)
    inputs = Value(
        INPUT, pack=checked_inputs, doc="All arguments of the module, as `(args, kwargs)`."
    )
    input = Value(
        INPUT,
        view=first_input,
        pack=with_first_input,
        doc="The first argument of the module: positional, else the first keyword.",
    )

    _was_tuple: Callable[[Module], bool] = staticmethod(lambda module: False)
    """Whether a module returns a bare tensor that code of earlier times knows as a tuple."""

    envoys: Envoys | None = None
    """What a subclass gives for `envoys=`, where nobody does."""

    def __init__(
        self,
        module: Module,
        path: str = "model",
        *more: Any,
        rename: Rename | None = None,
        envoys: Envoys | None = None,
    ) -> None:
        if not isinstance(module, Module):
            raise TypeError(_not_a_module(module))
        if more or not isinstance(path, str):
            path, rename, envoys = older.by_position(path, more, rename, envoys)
        table = aliases.resolve(module, rename, frozenset(dir(Envoy))) if rename else {}
        tree = Tree(module, table)
        tree.was_tuple = type(self)._was_tuple
        own = type(self).envoys  # for any model, so not each path is in this one
        tree.classes = classes.resolve(module, envoys or own, Envoy, strict=envoys is not None)
        self._mount(module, path, tree, None)

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        older.adapt(cls)

    def _make_child(self, module: Module, path: str) -> Node:
        known = self._tree.classes
        kind = Envoy if known is None else known.of(module, path.partition(".")[2])
        child = kind.__new__(kind)
        child._mount(module, path, self._tree, self)
        return child

    # --- tracing ----------------------------------------------------------------------------------

    def trace(
        self,
        *args: Any,
        fn: str | Callable[..., Any] | None = None,
        backend: Backend | None = None,
        tracer_cls: type[Trace] = Trace,
        trace: bool = True,
        report: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run the module with the block under this `with` beside it.

        With an input, the block sees one forward on it. Without one, the block opens
        `tracer.invoke(...)` blocks whose inputs run as one batch.

        Args:
            *args: the input, as the module takes it.
            fn: what to run instead of the module's forward: the name of a method, or a callable.
            backend: where the block runs; here by default.
            tracer_cls: the kind of trace.
            trace: False runs the module at once, without a block, and returns its output.
            report: True takes down what the blocks do, for `tracer.report()` and `print(tracer)`
                from wherever they are called; code around the `with` needs no such word.
            **kwargs: keyword inputs, as the module takes them.

        Returns:
            A context manager; `as tracer` gives `tracer.result`, `.stop()`, `.barrier(n)`,
            `.invoke(...)`.
        """
        if kwargs:
            kwargs = without_retired(kwargs, signature_names(self._module))
        given = Inputs(args, kwargs)
        if not trace:
            return self._plain(given, fn)
        tracer = tracer_cls(self, given, fn, backend)
        tracer.reporting = report
        return tracer.offered("model.trace(...)")

    def scan(self, *args: Any, **kwargs: Any) -> Any:
        """Find shapes and dtypes: a `trace` whose tensors have no numbers.

            with model.scan(x):
                width = model.layer.output.shape[-1]

        It reads no weights and computes nothing, so it is for models that are not loaded yet or
        are too large to run. All verbs of a trace work. Numbers and shapes that the block binds
        are there after it without a save; tensors that are saved stay without numbers.

        Args:
            *args: the input, as for `trace`.
            **kwargs: what `trace` takes.

        Raises:
            RuntimeError: (when the block ends) a tensor's numbers were asked for.
        """
        return self.trace(*args, tracer_cls=Scan, **kwargs)

    @property
    def _known_as(self) -> str | None:
        """What edits of this model are called where they are kept, if it has a name of its own."""
        return None

    def run(self, *args: Any, fn: Callable[[Any, Any], Any] | None = None, **kwargs: Any) -> Any:
        """`model.run(x, fn)`: run the module with the function `fn(tracer, model)` beside it.

        The callable form of `trace`, for code without source (standard input, a bare `exec`) and
        for blocks that are kept in functions.

        Returns:
            What `fn` returned.
        """
        if fn is None:
            if not args or not callable(args[-1]):
                raise TypeError("run() needs a function: `model.run(x, fn)`, `fn(tracer, model)`")
            return run_function(Trace(self, Inputs(args[:-1], kwargs)), args[-1])
        return run_function(Trace(self, Inputs(args, kwargs)), fn)

    source = property(source_of)

    def wait_for_output(self) -> None:
        """Wait until the module has returned (an older spelling of reading `.output`)."""
        request.read(Location(self, OUTPUT))

    def wait_for_input(self) -> None:
        """Wait until the module is called (an older spelling of reading `.input`)."""
        request.read(Location(self, INPUT))

    edit = editing.edit
    edits = property(editing.edits, doc="The edits in force in this module: a list to change.")
    clear_edits = editing.clear_edits
    export_edits = editing.export_edits
    import_edits = editing.import_edits
    session = editing.session
    _edits = editing.stored
    _holds = editing.holds

    def _plain(self, given: Inputs, fn: str | Callable[..., Any] | None) -> Any:
        if not self._batch_size(*given.args, **given.kwargs):
            raise ValueError("trace(trace=False) runs the model at once, so it needs an input")
        if self._edits():
            return run_now(Trace(self, given, fn), [])
        name = fn if isinstance(fn, str) else "__call__"
        args, kwargs = self._batch([given], name)
        self._before_run()
        args, kwargs = self._place((args, kwargs))
        return self._callable(fn)(*args, **kwargs)

    def skip(self, value: Any) -> None:
        """Leave this module out of the run: `value` is its output.

        `value` may be computed from this module's own `.input`. With several invokes, only the
        rows of the blocks that skip are replaced.

        Raises:
            OutOfOrderError: the module has already started.
        """
        request.skip(self, value)

    @property
    def iter(self) -> Iter:
        """Steps of the run that this block belongs to: the same as `tracer.iter`."""
        return Iter(f"{self._path}.iter")

    def all(self) -> Steps:
        """All steps of the run: the same as `tracer.all()`."""
        return self.iter.all(f"{self._path}.all()")

    def next(self, step: int = 1) -> Envoy:
        """Go on to the next step: what the block asks for from here on is of that step.

        `model.lm_head.next().output` is the value of the step after the one the block is at.
        """
        return advance(self, step, f"{self._path}.next()")

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Run this module on values of your own.

        Inside a trace the call is not part of the run: no block sees it. With `hook=True` it is,
        so that other blocks (not this one) can read what happens in it.
        """
        worker = here.worker
        if worker is None or not hook:
            if worker is None:
                self._before_run()
            return self._called(args, kwargs)
        with worker.observed() as run:
            handoff.count_inside(self._module, run)
            return self._called(args, kwargs)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._module(*args, **kwargs)
        return handoff.as_tuple(result) if self._tree.shows_tuple(self._module) else result

    # --- as the module ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_module" not in self.__dict__:
            raise AttributeError(name)
        if hasattr(type(self), name):  # it is there, and failed with an `AttributeError`
            return super().__getattribute__(name)
        child = self._child(name[2:] if name.startswith("E_") else name)
        if child is not None:
            return child
        aliased = self._alias(name)
        if aliased is not None:
            return aliased
        try:
            value = getattr(self._module, name)
        except AttributeError as error:
            own = getattr(type(self._module), name, None)
            if own is not None:
                if isinstance(own, property) and own.fget is not None:
                    own.fget(self._module)  # it failed, and PyTorch hides why: fail as it did
                raise
            raise self._no_such(name) from error.__cause__
        if isinstance(value, Module):  # `model.base_model`: a module under another name
            return self._node_of(value) or value
        if is_traceable(self._module, name, value):
            return Method(self, value)
        if isinstance(value, torch.Tensor) and value.is_meta:
            self._before_change()
            return getattr(self._module, name)
        if isinstance(value, MethodType) and value.__self__ is self._module:
            return called(self, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or hasattr(type(self), name)
        if own and not isinstance(value, Module):
            super().__setattr__(name, value)
            return
        if isinstance(value, Envoy):
            value = value._module
        target = name[2:] if name.startswith("E_") else name
        if isinstance(value, Module) or hasattr(self._module, name):
            self._before_change()
        if isinstance(value, Module):
            setattr(self._module, target, value)
            self._tree.forget()
            for view in self._tree.views:
                node = view.nodes.get(id(self._module))
                if node is not None and (node is self or target in node._children):
                    node._child(target)
        elif hasattr(self._module, name):
            setattr(self._module, name, value)
        elif self._runs_beside() and name not in vars(self):
            raise self._no_such(name)  # most likely a misspelt `.output = ...`: it would do nothing
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            super().__delattr__(name)
        else:
            self._before_change()
            delattr(self._module, name[2:] if name.startswith("E_") else name)
            self._tree.forget()

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._names(), *self._aliases(), *dir(self._module)})

    def to(self, *args: Any, **kwargs: Any) -> Envoy:
        """Move the module as `torch.nn.Module.to` does; returns this envoy.

        As everything that is done to a module, it loads weights that are not there yet.
        """
        self._before_change()
        self._module.to(*args, **kwargs)
        return self

    def cpu(self) -> Envoy:
        """Move the module to the CPU; returns this envoy."""
        return self.to("cpu")

    def cuda(self, device: int | torch.device | None = None) -> Envoy:
        """Move the module to a GPU; returns this envoy."""
        self._before_change()
        self._module.cuda(device)
        return self

    @property
    def device(self) -> torch.device | None:
        """The device of the first parameter; None for a module without parameters."""
        parameter = first_parameter(self._module)
        return None if parameter is None else parameter.device

    @property
    def devices(self) -> set[torch.device]:
        """The devices of all parameters."""
        return {parameter.device for parameter in self._module.parameters()}

    # --- printing ---------------------------------------------------------------------------------

    def _shown(self) -> dict[str, Any]:
        relative = self._path.partition(".")[2]
        shown = {"aliases": self._tree.aliases, "path": relative, "collisions": _RESERVED}
        return {**shown, "own": self._own_values}

    def _own_values(self, module: Module, path: str) -> list[str]:
        """The values that the class of an envoy adds to its module, for printing."""
        known = self._tree.classes
        kind = type(self) if module is self._module else known.of(module, path) if known else Envoy
        return described(kind)

    def __repr__(self) -> str:
        return show.text(self._module, **self._shown())

    def _repr_html_(self) -> str:
        return show.html(self._module, title=self._path, **self._shown())


_RESERVED = frozenset(name for name in dir(Envoy) if not name.startswith("_"))
"""Names that an envoy keeps for itself; a child called so is reached as `E_<name>`."""
