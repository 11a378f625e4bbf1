"""The sums of ``--reorder`` are those of another order: as near as arithmetic says, and exact where it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from arithmetic import gamma
from reordered import Reordered
from torch import Tensor
from torch.nn import functional as F


def draws(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def slopes(x: Tensor, w: Tensor) -> Tensor:
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    found = torch.autograd.grad(F.conv2d(x, w, torch.zeros(len(w)), stride=2, padding=1).square().sum(), [x, w])
    return torch.cat([v.flatten() for v in found])


Sum = Callable[..., Tensor]
IMAGES = ((2, 3, 8, 8), (5, 3, 3, 3))
SUMS: dict[str, tuple[Sum, tuple[tuple[int, ...], ...], int]] = {  # a sum, its shapes, and how many terms it has
    "convolution": (F.conv2d, IMAGES, 27),
    "linear": (F.linear, ((4, 100), (6, 100), (6,)), 101),
    "product": (torch.matmul, ((7, 100), (100, 3)), 100),
    "batches": (torch.matmul, ((2, 7, 100), (2, 100, 3)), 100),
    "sum": (lambda x: x.sum(1), ((4, 100),), 100),
    "mean": (lambda x: x.mean((1, 2)), ((4, 10, 10),), 101),
}


@pytest.mark.parametrize("name", SUMS)
def test_another_order_is_another_rounding_and_no_more(name: str) -> None:
    function, shapes, terms = SUMS[name]
    values = draws(*shapes)
    plain = function(*values)
    with Reordered(1):
        found, again = function(*values), function(*values)
    with Reordered(2):
        other = function(*values)
    assert torch.equal(found, again)
    assert not torch.equal(found, plain)
    assert not torch.equal(found, other)
    sizes = function(*(v.abs() for v in values))
    assert ((found - plain).abs() <= 2 * gamma(terms, torch.float32) * sizes).all()
    # Small whole numbers have one sum in every order.
    whole = [(3 * v).round() for v in values]
    with Reordered(1):
        exact = function(*whole)
    if name != "mean":
        assert torch.equal(exact, function(*whole))


def test_backward_passes_of_convolutions_are_reordered() -> None:
    values = draws(*IMAGES)
    plain = slopes(*values)
    with Reordered(1):
        found = slopes(*values)
    assert not torch.equal(found, plain)
    # Two sums of 27 and of 2 * 16 products, of sums of 27: slopes of size 100.
    torch.testing.assert_close(found, plain, rtol=0, atol=100 * gamma(27 + 2 * 16, torch.float32))
    whole = [(3 * v).round() for v in values]
    with Reordered(1):
        exact = slopes(*whole)
    assert torch.equal(exact, slopes(*whole))
