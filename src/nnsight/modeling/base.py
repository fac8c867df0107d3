"""`NNsight`: any PyTorch module, opened up."""

from __future__ import annotations

from torch.nn import Module

from nnsight.envoy.envoy import Envoy
from nnsight.modeling import older_blocks


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
