"""`NNsight`: any PyTorch module, opened up."""

from __future__ import annotations

import sys
from typing import Any

from torch.nn import Module

from nnsight.capture.tracer import Backend
from nnsight.envoy.envoy import Envoy
from nnsight.modeling import load_errors, older_blocks, remoting
from nnsight.modeling.older_masks import know_scans
from nnsight.modeling.remoting import Remote
from nnsight.traces.function import result_of
from nnsight.traces.model import Inputs
from nnsight.traces.session import Session


class NNsight(Envoy):
    """Wraps any `torch.nn.Module`; nothing is loaded and nothing in the module changes.

    Inputs are passed on as they are, moved to the device of the first parameter. Several invokes
    become one batch by concatenating their tensors; a subclass changes that by overriding
    `_batch_size` and `_batch`.

    Args:
        module: the module to wrap.
        path: the name of the root in messages and paths.
        rename: other names for modules, e.g. `{"transformer.h": "layers", "mlp": "ff"}`.
        envoys: subclasses of Envoy to stand for modules: one, or by module class or path.
    """

    _was_tuple = staticmethod(older_blocks.was_tuple)

    def _before_scan(self) -> None:
        if "transformers" in sys.modules:
            know_scans()

    def trace(
        self,
        *args: Any,
        remote: bool | str = False,
        blocking: bool = True,
        job_id: str | None = None,
        verbose: bool = False,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the module with the block under this `with` beside it, here or on a server.

        Args:
            *args: the input, as the module takes it.
            remote: True runs the block on the server of `CONFIG.API.HOST`, an address on that one;
                "local" sends it to a fresh process on this machine, to try whether it can be sent.
            blocking: False sends the block and goes on: `tracer.backend()` gives the values.
            job_id: of a block that was sent before: its values are asked for, nothing is sent.
            verbose: show every state of the remote job.
            timeout: seconds to wait for the values of a remote job.
            **kwargs: `fn`, `backend`, `tracer_cls`, `trace` and `report`, as `Envoy.trace` takes
                them, and keyword inputs, as the module takes them.

        Returns:
            A context manager; `as tracer` gives `tracer.result`, `.stop()`, `.barrier(n)`,
            `.invoke(...)`.

        Raises:
            NotSendableError: (when the block ends) it uses what cannot leave this process.
            RemoteError: (when the block ends) the server cannot be reached, or the block failed.
        """
        if remote or job_id is not None:
            given = Remote(remote, blocking, job_id, verbose, timeout)
            if kwargs.pop("trace", True) is False:
                inputs = Inputs(args, kwargs)
                return remoting.run_there(self, inputs, kwargs.pop("fn", None), result_of, given)
            kwargs.setdefault("backend", given.backend(self))
        return super().trace(*args, **kwargs)

    def session(
        self,
        backend: Backend | None = None,
        *,
        remote: bool | str = False,
        blocking: bool = True,
        job_id: str | None = None,
        verbose: bool = False,
        timeout: float | None = None,
    ) -> Session:
        """Run the traces under this `with` as one block: values pass between them without a save.

        Here the traces may be of any model, as under `nnsight.session()`; with `remote`, which is
        as for `trace`, they are of this one, and go to the server as one request.
        """
        if remote or job_id is not None:
            backend = backend or Remote(remote, blocking, job_id, verbose, timeout).backend(self)
        return super().session(backend)

    def to_model_key(self) -> str:
        """What servers call this model: nothing, for a module that no name leads to.

        Raises:
            ValueError: always; a model that is loaded by its name has a key.
        """
        raise load_errors.no_key(type(self._module).__name__)

    def _before_remote(self) -> None:
        """Warn of what a server does otherwise, before a block is sent to it."""

    _remote_settings = remoting.settings
    _with_remote_settings = remoting.with_settings
    _remote_parts = remoting.parts

    @property
    def _model(self) -> Module:
        """The wrapped module (an older name of `_module`)."""
        return self._module

    local_model = meta_model = _model

    def _update(self, module: Module) -> None:
        """Point the whole tree at another module of the same structure; envoys stay themselves."""
        for view in list(self._tree.views):
            view.repoint(module)
        self._tree.root = module  # last, as other threads find the root's node by it
        self._tree.forget()
