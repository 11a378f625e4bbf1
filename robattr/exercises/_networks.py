"""The network that exercises use."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import nn

from robattr import data, models

__all__ = ["trained"]


def trained(seed: int = 0) -> nn.Module:
    """A small network for the 8 x 8 digits, trained in a second: 100 steps of Adam on all training images at once.

    Args:
        seed: of its first weights.

    Returns:
        images [N, 1, 8, 8] in [0, 1] to logits [N, 10], in evaluation mode; a copy of one's own.
    """
    return copy.deepcopy(_trained(seed))


@cache
def _trained(seed: int) -> nn.Module:
    train = data.load("digits", "train")
    model = models.build("digits-mlp", seed=seed).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss: Any = torch.nn.functional.cross_entropy(model(train.images), train.labels)
        loss.backward()
        optimizer.step()
    return model.eval()
