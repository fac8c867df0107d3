"""A model's tokenizer, read when a text first needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnsight.modeling import errors, load_errors
from nnsight.modeling.files import read_tokenizer
from nnsight.modeling.options import check_tokenizer


class LazyTokenizer:
    """The tokenizer that the user passed, or else the one that belongs to the model.

    One that was passed is used as it is and left as it was. One that is read here gets a padding
    token and a padding side; if the user changes that side, padding follows.

    Args:
        given: a tokenizer, or the hub id or folder of one; None for the model's own.
        load: reads the model's own with some options; answers None if there is none.
        options: what to read it with, as the user asked.
        usual_side: the padding side to read it with, if the user did not ask for one.
    """

    def __init__(
        self,
        given: Any = None,
        load: Callable[[Mapping[str, Any]], Any] | None = None,
        options: Mapping[str, Any] | None = None,
        usual_side: str = "right",
    ) -> None:
        check_tokenizer(options, None if isinstance(given, (str, Path)) else given)
        self._load = load
        self._options = dict(options or {})
        self._usual_side = usual_side
        self.set(given)

    def set(self, given: Any) -> None:
        """Use this one from now on; None for the model's own.

        Raises:
            TypeError: it is no tokenizer.
        """
        by_name = isinstance(given, (str, Path))
        if given is not None and not by_name and (isinstance(given, type) or not callable(given)):
            raise load_errors.not_a_tokenizer(given)
        self._place = given if by_name else None
        self._tokenizer = None if by_name else given
        self._read_here = False
        self._failure: errors.LoadError | None = None

    @property
    def known(self) -> Any:
        """The tokenizer, if it is there already."""
        return self._tokenizer

    def get(self) -> Any:
        """The tokenizer, or None if the model has none.

        Raises:
            LoadError: there should be one, and it cannot be read.
        """
        if self._failure is not None:  # asked for again and again while only ids are used
            raise self._failure
        if self._tokenizer is None and not self._read_here:
            try:
                self._tokenizer = self._read()
            except errors.LoadError as failure:
                self._failure = failure
                raise
            self._read_here = True
        return self._tokenizer

    def _read(self) -> Any:
        options = {"padding_side": self._usual_side, **self._options}
        if self._place is not None:
            return read_tokenizer(self._place, options)
        return None if self._load is None else self._load(options)

    @property
    def side(self) -> str | None:
        """The padding side that the user asked for; None where the model's kind decides."""
        asked = self._options.get("padding_side")
        if not self._read_here or self._tokenizer is None:
            return asked
        now = self._tokenizer.padding_side
        return asked if now == self._usual_side else now

    @property
    def pad_ids(self) -> list[Any]:
        """What it would pad with, best first; nothing if it is not there or cannot be read."""
        try:
            tokenizer = self.get()
        except errors.LoadError:
            return []
        return [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
