"""Which values have rows: told by what the model does with other rows, not by their length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnsight import NNsight


class Mixture(nn.Module):
    """Ids go to experts by what they are; `sorted` has all tokens, the first expert's first."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(50, 8), nn.Dropout(dropout)
        self.low, self.high = nn.Linear(8, 8), nn.Linear(8, 8)
        self.flat, self.sorted, self.pooled = nn.Identity(), nn.Identity(), nn.Identity()
        self.masked = nn.Identity()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        tokens = self.flat(self.drop(self.words(ids)).flatten(0, 1))
        low = ids.flatten() < 25
        out = torch.empty_like(tokens)
        out[low], out[~low] = self.low(tokens[low]), self.high(tokens[~low])
        order = torch.argsort((~low).int(), stable=True)
        self.sorted(tokens[order])
        self.masked(tokens.masked_fill(low[:, None], -torch.inf))
        return self.pooled(out.view(*ids.shape, 8).mean(1))


def ids(*low: int, tokens: int = 7) -> torch.Tensor:
    """Rows of which so many tokens go to the expert `low`."""
    rows = [torch.arange(tokens) + (number * 7) % 18 for number in range(len(low))]
    return torch.stack(
        [
            torch.where(torch.arange(tokens) < n, row, row + 25)
            for n, row in zip(low, rows, strict=True)
        ]
    )


def read(model: NNsight, rows: torch.Tensor, *names: str) -> list[list[torch.Tensor]]:
    """What an invoke for each row sees."""
    seen = []
    with torch.no_grad(), model.trace() as tracer:
        for row in rows:
            with tracer.invoke(row[None]):
                seen.append([getattr(model, name).output for name in names])
    return seen


@pytest.mark.parametrize(
    "low",
    [(1, 2, 3), (2, 1, 3), (2, 3, 1), (2, 0, 4), (0, 1, 2), (1, 0, 2), (3, 3, 0), (1, 2, 3, 2)],
    ids=str,
)
def test_the_tokens_of_an_expert_are_everybodys_however_many_they_are(low):
    """Six tokens of three rows, but not two of each: they would be cut at the wrong places."""
    model = NNsight(Mixture())
    whole = ids(*low)
    module = model._module
    expected = module.low(module.words(whole)[whole < 25]).detach()
    assert len(expected) % len(low) == 0
    for [seen] in read(model, whole, "low"):
        assert torch.equal(seen, expected)


def test_tokens_that_are_sorted_by_expert_are_everybodys():
    model = NNsight(Mixture())
    whole = ids(1, 5, 2)
    for flat, by_expert in read(model, whole, "flat", "sorted"):
        assert flat.shape == (7, 8) and by_expert.shape == (21, 8)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_tokens_in_the_order_of_rows_are_of_rows_also_where_chance_is_at_work(dropout):
    model = NNsight(Mixture(dropout).train())
    whole = ids(1, 5, 2)
    seen = read(model, whole, "flat", "masked", "pooled")
    for number, [flat, masked, pooled] in enumerate(seen):
        assert flat.shape == masked.shape == (7, 8) and pooled.shape == (1, 8)
        if not dropout:
            assert torch.equal(flat, model._module.words(whole[number]))


class Pairs(nn.Module):
    """Each row is compared to each other, as images are to texts."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.scores = nn.Embedding(50, 8), nn.Identity()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found = self.words(ids).mean(1)
        return self.scores(found @ found.T + found[:, :1])


def test_scores_of_each_row_against_each_other_are_of_rows():
    model = NNsight(Pairs())
    whole = ids(1, 5, 2)
    expected = model._module(whole)
    for number, [scores] in enumerate(read(model, whole, "scores")):
        assert torch.allclose(scores, expected[number : number + 1])


def test_another_batch_of_the_same_shape_is_not_taken_for_the_first():
    """What is kept is how the model treats rows, not how many tokens an expert once had."""
    model = NNsight(Mixture())
    for low in [(2, 2, 2), (1, 2, 3)]:
        whole = ids(*low)
        expected = model._module.low(model._module.words(whole)[whole < 25]).detach()
        for [seen] in read(model, whole, "low"):
            assert torch.equal(seen, expected)


def test_rows_of_equal_content_are_rows():
    model = NNsight(Mixture())
    whole = ids(3, 3, 3)[:1].expand(3, -1)
    for flat, pooled in read(model, whole, "flat", "pooled"):
        assert flat.shape == (7, 8) and pooled.shape == (1, 8)
