"""Rows of a batch: the passes cover each image once, and results of passes are one result."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from robattr._rows import joined, parts_of


@dataclass(frozen=True, eq=False)
class Inner:
    value: Tensor


@dataclass(frozen=True, eq=False)
class Outer:
    images: Tensor
    trace: Tensor
    inner: Inner
    epsilon: float


@pytest.mark.parametrize(("n", "size", "expected"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 9, [2]), (4, None, [4])])
def test_passes_cover_each_row_once(n: int, size: int | None, expected: list[int]) -> None:
    rows = list(range(n))
    parts = [rows[part] for part in parts_of(n, size)]
    assert [row for part in parts for row in part] == rows
    assert [len(part) for part in parts] == expected


def test_a_pass_of_nothing_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="max_batch is 0; a pass takes at least 1 image"):
        parts_of(3, 0)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_results_of_passes_are_one(size: int) -> None:
    whole = Outer(torch.rand(5, 2), torch.rand(3, 5), Inner(torch.rand(5)), 0.5)
    parts = [
        Outer(whole.images[rows], whole.trace[:, rows], Inner(whole.inner.value[rows]), whole.epsilon)
        for rows in parts_of(5, size)
    ]
    found = joined(parts, trace=1)
    assert torch.equal(found.images, whole.images)
    assert torch.equal(found.trace, whole.trace)
    assert torch.equal(found.inner.value, whole.inner.value)
    assert found.epsilon == whole.epsilon
