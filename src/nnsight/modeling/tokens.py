"""`model.tokens(...)`: the tokens that a prompt becomes, and where its words are among them.

What the tokenizer adds (a BOS, `[CLS]`), what padding adds, and how words fall apart into tokens is
said rather than left to be guessed at. The tokens are those of the very call that a trace of the
same inputs makes, padding included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight.modeling import errors

Span = tuple[int, int]


@dataclass(frozen=True)
class Token:
    """One position of one row."""

    position: int
    id: int
    text: str  # what it stands for; of padding and of what was added, its name
    span: Span  # where in the row's text it is
    kind: str  # "text", "added" by the tokenizer, or "padding"
    word: str = ""  # the word that it is (a part of)


@dataclass(frozen=True)
class Row:
    """The tokens of one prompt, with its padding."""

    text: str
    tokens: tuple[Token, ...]
    padded_left: bool  # how the model pads, whether this row is padded or not

    @property
    def ids(self) -> list[int]:
        """The ids, padding included."""
        return [token.id for token in self.tokens]

    @property
    def padding(self) -> list[int]:
        """The positions of padding."""
        return [token.position for token in self.tokens if token.kind == "padding"]

    @property
    def added(self) -> list[int]:
        """The positions that the tokenizer added: a BOS, `[CLS]`, `[SEP]`."""
        return [token.position for token in self.tokens if token.kind == "added"]

    @property
    def bos(self) -> int | None:
        """The position of a token that the tokenizer put in front; None if it put none."""
        real = [token for token in self.tokens if token.kind != "padding"]
        return real[0].position if real and real[0].kind == "added" else None

    def find(self, part: str, which: int | None = None) -> slice:
        """The positions of a word or any other part of the text, as `Tokens.find` gives them."""
        found = self._places(part)
        if which is None and len(found) > 1:
            raise errors.found_often(part, [self._listed(place) for place in found])
        try:
            return self._slice(found[which or 0])
        except IndexError:
            raise errors.found_less(part, which or 0, len(found)) from None

    def positions(self, part: str, which: int | None = None) -> list[int]:
        """The same as numbers, from 0 on."""
        return list(range(*self.find(part, which).indices(len(self.tokens))))

    def _places(self, part: str) -> list[list[int]]:
        core = part.strip() or part
        wanted = part if part in self.text else core  # " is" is no part of "This"
        places: list[list[int]] = []
        start = self.text.find(wanted) if wanted else -1
        while start >= 0:
            begin = start + wanted.index(core)
            span = (begin, begin + len(core))
            places.append([t.position for t in self.tokens if _overlap(t.span, span)])
            start = self.text.find(wanted, start + 1)
        if not places:
            raise errors.not_found(part, self.text)
        if not all(places):
            raise errors.cut_off(part)
        return places

    def _slice(self, places: list[int]) -> slice:
        start, stop, length = places[0], places[-1] + 1, len(self.tokens)
        if not self.padded_left:
            return slice(start, stop)
        return slice(start - length, stop - length if stop < length else None)

    def _listed(self, places: list[int]) -> str:
        return f"{places[0]}-{places[-1]}" if len(places) > 1 else str(places[0])

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Token]:
        return iter(self.tokens)

    def __str__(self) -> str:
        heads = ("position", "from the end", "id", "token", "word", "")
        rows = [heads, *(self._cells(token) for token in self.tokens if token.kind != "padding")]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        table = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self._title(), *(line.rstrip() for line in table)])

    __repr__ = __str__

    def _cells(self, token: Token) -> tuple[str, ...]:
        said = "added by the tokenizer" if token.kind == "added" else ""
        end = str(token.position - len(self.tokens))
        return (str(token.position), end, str(token.id), repr(token.text), token.word, said)

    def _title(self) -> str:
        padding, count = self.padding, len(self.tokens)
        said = [f"{count - len(padding)} tokens"]
        said.append("no BOS added" if self.bos is None else f"{self._first()} added in front")
        if self.bos is not None and self.text.startswith(self._first()):
            said.append("where the text begins with one already")
        if padding:
            side = "left" if padding[0] == 0 else "right"
            said.append(f"{len(padding)} of padding on the {side} ({self._listed(padding)})")
        shown = self.text if len(self.text) < 60 else self.text[:57] + "..."
        return f"{shown!r}: {', '.join(said)}"

    def _first(self) -> str:
        return next(token.text for token in self.tokens if token.kind != "padding")


@dataclass(frozen=True)
class Tokens:
    """The tokens of one call: a row for each prompt, as many positions in each.

    It prints as a table. `tokens[i]` is a `Row`; what a row has, a single prompt's tokens have too.
    """

    rows: tuple[Row, ...]

    @property
    def ids(self) -> torch.Tensor:
        """The ids, int64 `(rows, positions)`, padding included."""
        return torch.tensor([row.ids for row in self.rows])

    def find(self, part: str, which: int | None = None, row: int | None = None) -> slice:
        """The positions of a word or any other part of a prompt, to index values with.

            where = model.tokens(prompt).find("Eiffel Tower")
            model.layers[3].resid_post[:, where] = 0

        Tokens that hold a piece of it count. Where the model pads on the left, positions count from
        the end, so that they hold in any batch that the prompt is part of.

        Args:
            part: what to look for; a blank in front of it tells ` is` from a part of `This`.
            which: which of several, from 0.
            row: of several prompts, which one.

        Raises:
            ValueError: it is not there; or it is there more than once and `which` is left out.
        """
        return self._row(row).find(part, which)

    def positions(self, part: str, which: int | None = None, row: int | None = None) -> list[int]:
        """The positions of a part of a prompt as numbers, from 0 on. As for `find`."""
        return self._row(row).positions(part, which)

    def _row(self, row: int | None) -> Row:
        if row is None and len(self.rows) > 1:
            raise errors.which_row(len(self.rows))
        return self.rows[row or 0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in ("text", "tokens", "padding", "added", "bos"):
            raise AttributeError(name)
        return getattr(self._row(None), name)

    def __getitem__(self, row: int) -> Row:
        return self.rows[row]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.rows))

    __repr__ = __str__


def read(fields: Mapping[str, Any], texts: Sequence[Any], tokenizer: Any, left: bool) -> Tokens:
    """The tokens of a call.

    Args:
        fields: its keywords, with `input_ids`, and `attention_mask` if rows are padded.
        texts: for each row the text that it was made from, or None.
        tokenizer: the one that made it.
        left: whether the model pads on the left.
    """
    ids = fields["input_ids"]
    mask = fields.get("attention_mask")
    shown = torch.ones_like(ids) if mask is None or mask.shape != ids.shape else mask
    rows = zip(ids.tolist(), shown.tolist(), texts, strict=True)
    return Tokens(tuple(_row(*row, tokenizer, left) for row in rows))


def _row(ids: list[int], mask: list[int], text: Any, tokenizer: Any, left: bool) -> Row:
    real = [position for position, there in enumerate(mask) if there]
    own = [ids[position] for position in real]
    text, spans, added = _aligned(own, text, tokenizer)
    words = [match.span() for match in re.finditer(r"\S+", text)]
    tokens = {
        position: Token(position, id, _name(tokenizer, id), (0, 0), "padding")
        for position, id in enumerate(ids)
    }
    end = 0
    for position, id, span, extra in zip(real, own, spans, added, strict=True):
        if extra:
            tokens[position] = Token(position, id, _name(tokenizer, id), span, "added")
            continue
        shown = text[end : span[1]] or _name(tokenizer, id)  # a piece of a character has no text
        end = span[1]
        tokens[position] = Token(position, id, shown, span, "text", _word_of(span, words, text))
    return Row(text, tuple(tokens.values()), left)


def _name(tokenizer: Any, id: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(id))


def _word_of(span: Span, words: list[Span], text: str) -> str:
    return " ".join(text[slice(*word)] for word in words if _overlap(span, word))


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _aligned(ids: list[int], text: Any, tokenizer: Any) -> tuple[str, list[Span], list[bool]]:
    """The text of a row, where in it each token is, and which tokens were added to it."""
    if text is not None and getattr(tokenizer, "is_fast", False):
        for add in (True, False):
            given = tokenizer(text, add_special_tokens=add, return_offsets_mapping=True)
            if given["input_ids"][: len(ids)] == ids:  # perhaps truncated
                spans = [(start, end) for start, end in given["offset_mapping"]][: len(ids)]
                special_ids = set(tokenizer.all_special_ids)
                empty = zip(ids, spans, strict=True)
                return (
                    text,
                    spans,
                    [start == end and id in special_ids for id, (start, end) in empty],
                )
    return _decoded(ids, tokenizer)


def _decoded(ids: list[int], tokenizer: Any) -> tuple[str, list[Span], list[bool]]:
    """The same from the ids alone: special tokens stand in the text."""
    text, spans = "", list[Span]()
    for count in range(1, len(ids) + 1):
        longer = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        whole = longer.rstrip("\ufffd")  # bytes of a character that is not complete yet
        start = min(len(text), len(whole))
        spans.append((start, max(len(whole), start)))
        text = whole
    for index in range(len(spans) - 1, 0, -1):  # the first bytes of a character belong to it
        start, end = spans[index - 1]
        if start == end:
            spans[index - 1] = (start, spans[index][1])
    return text, spans, [False] * len(ids)
