"""Warnings that were given where a block ran, given again where it was written."""

from __future__ import annotations

import builtins
import warnings
from collections.abc import Iterable

from nnsight.remote.messages import Warned
from nnsight.remote.shown import name_of


def give_again(warned: Iterable[Warned]) -> None:
    """Give each warning at the line that it is about."""
    for each in warned:
        category = getattr(builtins, each.category, UserWarning)
        if not (isinstance(category, type) and issubclass(category, Warning)):
            category = UserWarning
        warnings.warn_explicit(each.message, category, name_of(each.filename), each.lineno)
