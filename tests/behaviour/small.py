"""A network small enough for thousands of traces, that can fail on demand."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """Three layers; `fails` makes it raise after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu()
        if self.fails:
            raise RuntimeError("the model fails")
        return self.last(x)
