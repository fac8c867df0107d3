"""What a remote run needs to know of a model: the part of it that this room sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nnsight.traces.model import Model


class Remotable(Model, Protocol):
    """A model that another process can have too."""

    def to_model_key(self) -> str:
        """What the model is called between processes.

        Raises:
            ValueError: it has no name that another process could load it by.
        """
        ...

    def _remote_settings(self) -> dict[str, Any]:
        """How this model is seen: other names, classes of envoys, the form of outputs."""
        ...

    def _with_remote_settings(self, settings: Mapping[str, Any]) -> Remotable:
        """The same model, seen as `settings` say, and without the edits that this one has."""
        ...

    def _remote_parts(self) -> dict[str, Any]:
        """What belongs to the model beside its modules and is there already, by name."""
        ...
