"""`HuggingFaceModel`: a transformers model, seen before its weights are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnsight.modeling import load_errors, standard
from nnsight.modeling.adapters import Adapted, put, remove
from nnsight.modeling.base import NNsight
from nnsight.modeling.loading import Loaded, Loader, loader
from nnsight.modeling.meta import is_meta
from nnsight.modeling.names_report import NamesReport
from nnsight.modeling.own_weights import AsRead
from nnsight.modeling.self_check import check_names
from nnsight.modeling.tasks import task_of
from nnsight.remote import model_key as keys
from nnsight.remote.model_key import ModelKey

if TYPE_CHECKING:
    from typing_extensions import Self


class HuggingFaceModel(NNsight):
    """A transformers model by its hub id or folder, a loaded one, or one made from a config.

    The tree is there at once; weights are read when the model first runs, or by `dispatch()`.
    Until then the parameters are on the meta device. `model.layer` stays the same object when the
    weights come.

    Args:
        repo_id: a hub id, a folder that `save_pretrained` wrote (string or `Path`), a loaded
            module, or a config, for random weights.
        automodel: the transformers class that builds the model, or its name.
        config: used instead of the model's own: a config, or where to read one.
        revision: of a hub id: a branch, a tag or a commit.
        dispatch: read the weights now.
        rename: other names for modules, e.g. `{"transformer.h": "layers"}`.
        envoys: subclasses of Envoy to stand for modules: one, or by module class or path.
        path: the name of the root in messages and paths.
        meta_buffers: whether buffers are on the meta device too until the weights come.
        model_key: an older name of `repo_id`.
        config_model: an older name of `config`.
        import_edits: put the edits in force that were exported under the model's name, or under
            this one.
        check_names: run `check_names()` when the weights are there.
        tuple_outputs: True shows the tensor that a block of layers returns as a tuple of it, as in
            transformers 4.x, so that old scripts run; False says that `.output[0]` is meant as row
            0. Left out, `CONFIG.APP.LEGACY` decides.
        peft: an adapter that is put into the model: a hub id, or a folder that PEFT wrote.
        **options: passed to `from_pretrained`: `device_map`, `dtype` (or `torch_dtype`),
            `attn_implementation`, `quantization_config`, `trust_remote_code`, `token`, ...

    Raises:
        LoadError: there is no such folder, or the config cannot be read.
        ValueError: `automodel` does not know this kind of model, or the adapter is of another one.
        ImportError: there is an adapter, and no package peft.
    """

    _loader: Loader
    _dispatched: bool
    _as_read: AsRead
    _checks_names: bool
    _usual_task: str | None = None  # what its models are for where their class serves several tasks
    _kind_on_servers = keys.TRANSFORMERS

    def __init__(
        self,
        repo_id: str | Path | torch.nn.Module | Any = None,
        *,
        automodel: str | type = "AutoModel",
        config: Any = None,
        revision: str | None = None,
        dispatch: bool = False,
        rename: Any = None,
        envoys: Any = None,
        path: str = "model",
        meta_buffers: bool = True,
        model_key: str | Path | None = None,
        config_model: Any = None,
        import_edits: bool | str = False,
        check_names: bool = False,
        tuple_outputs: bool | None = None,
        peft: str | Path | None = None,
        **options: Any,
    ) -> None:
        source = model_key if repo_id is None else repo_id
        config = config_model if config is None else config
        self._loader = self._open(source, automodel, config, revision, meta_buffers, **options)
        if peft is not None:
            self._loader = Adapted(self._loader, peft)
        module = self._loader.weights() if dispatch else self._loader.skeleton()
        self._dispatched = not is_meta(module)
        self._checks_names = check_names
        super().__init__(module, path, rename=rename, envoys=envoys)
        self._tree.tuple_outputs = tuple_outputs
        if type(self) is HuggingFaceModel:
            self._opened()
        if import_edits:
            self.import_edits(None if import_edits is True else import_edits)

    @staticmethod
    def _open(source: Any, automodel: Any, config: Any, *place: Any, **options: Any) -> Loader:
        """What the skeleton and the weights come from; `place` is a revision and `meta_buffers`."""
        return loader(source, automodel, config, *place, **options)

    def __getattr__(self, name: str) -> Any:
        found = standard.lookup(self, name) if name in standard.NAMES else None
        return super().__getattr__(name) if found is None else found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(n for n in standard.NAMES if standard.has(self, n))})

    def _opened(self) -> None:
        """What is left to do when all of `__init__` is done; a subclass calls it at its end."""
        self._as_read = AsRead(self._module, isinstance(self._loader, Loaded))
        if self._checks_names and self._dispatched:
            self.check_names()

    def load_adapter(self, adapter: str | Path | None, **options: Any) -> None:
        """Put an adapter of PEFT into the model, whose weights are read first; None: without any.

        Args:
            adapter: a hub id, or a folder that PEFT wrote. None takes all out; what was a layer
                of the model stays at `.base_layer` of the layer that the adapter made.
            **options: as for the `load_adapter` of transformers, such as `adapter_name`.

        Raises:
            ImportError: the package peft is not installed.
            LoadError: there is no such adapter.
            ValueError: it is of another model, or of a kind that has no layers.
        """
        self.dispatch()
        if adapter is None:
            remove(self._module)
        else:
            put(adapter, self._module, **options)

    def check_names(self) -> NamesReport:
        """Hold the standard names to what must be true of them, on a few tokens.

        Patterns sum to one, `z` through the output projection is `attn.out`, the branches add up
        to the stream, values assigned to themselves change nothing, and so on.

        Returns:
            Each name with its shape and what was checked; it prints as a table.

        Raises:
            NamesError: a name is not what it says; the error says which, in which layer.
        """
        return check_names(self)

    @property
    def config(self) -> Any:
        """The config of the model; what is changed on it before the weights come is in force then.

        None for a module that has none.
        """
        return getattr(self._module, "config", None)

    @property
    def repo_id(self) -> str | None:
        """The hub id or folder that the model comes from, as far as is known."""
        return self._loader.source or getattr(self.config, "name_or_path", None) or None

    @property
    def _known_as(self) -> str | None:
        return self.repo_id

    @property
    def revision(self) -> str | None:
        """The revision that was asked for; None for the default one."""
        return self._loader.revision

    @property
    def _task(self) -> str | None:
        return task_of(self._module, self._usual_task)

    def to_model_key(self) -> str:
        """The key by which servers know this model: the address of a class, and JSON.

        The hub id is written as the hub spells it where the hub is reached, and as it was given
        elsewhere.

        Raises:
            ValueError: the model comes from no hub id and no folder.
        """
        if self.repo_id is None:
            raise load_errors.no_key(type(self._module).__name__)
        to_come = not self._dispatched and isinstance(self._loader, Adapted)
        if to_come or getattr(self._module, "peft_config", None):
            raise load_errors.key_of_adapted(type(self._module).__name__)
        repo_id, task = keys.canonical(str(self.repo_id)), keys.usual_task(self._task)
        remote_code = self._loader.remote_code
        return str(ModelKey(repo_id, self.revision, task, remote_code, self._kind_on_servers))

    def _before_remote(self) -> None:
        """Warn if what a server has is not what is here."""
        if self.repo_id is not None:  # otherwise it is refused
            self._as_read.warn_if_others_run(self._module, self.repo_id)

    @classmethod
    def from_model_key(cls, model_key: str, **options: Any) -> Self:
        """The model that a key names, opened with the options that are given beside it.

        The key alone does not let a model run code of its own: pass `trust_remote_code=True`.

        Raises:
            ValueError: it is no key, or one of a model of another kind.
            LoadError: the model cannot be opened.
        """
        key = keys.parse(model_key)
        if (key.kind == keys.DIFFUSION) != (cls._kind_on_servers == keys.DIFFUSION):
            raise load_errors.key_of_another_kind(key.kind, cls.__name__)
        return cls._of_key(key, options)

    @classmethod
    def _of_key(cls, key: ModelKey, options: dict[str, Any]) -> Self:
        return cls(key.repo_id, **{"revision": key.revision, **options})

    @property
    def dispatched(self) -> bool:
        """Whether the weights are there."""
        return self._dispatched

    def dispatch(self) -> None:
        """Read the weights now, if they are not there yet. Threads that ask at once read them once.

        Raises:
            LoadError: they cannot be read.
        """
        if self._dispatched:
            return
        with self._tree.loading:
            if self._dispatched:
                return
            self._update(self._loader.weights())
        self._opened()

    def _repoint(self, module: torch.nn.Module) -> None:
        super()._repoint(module)
        self._dispatched = not is_meta(module)

    def dispatch_model(self) -> None:
        """The same as `dispatch()` (an older name)."""
        self.dispatch()

    def _awaits_weights(self) -> bool:
        return not self._dispatched and not isinstance(self._loader, Loaded)

    def _before_run(self) -> None:
        self.dispatch()
