"""Certificates by votes: bounds by hand, the worst case by trying all corners, and an attack that attains them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from robattr import models, smoothing
from robattr.smoothing import Ball, Gaussian


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    counts = np.array([0, 1, 7, 99, 100])
    lower, upper = smoothing.vote_bounds(counts, 100, 0.01)
    for count, low, high in zip(counts, lower, upper, strict=True):
        by_scipy = stats.binomtest(int(count), 100).proportion_ci(0.98, method="exact")
        assert low == pytest.approx(by_scipy.low, abs=1e-12)
        assert high == pytest.approx(by_scipy.high, abs=1e-12)
    # All of n votes: the largest p with p^n = alpha.
    assert lower[-1] == pytest.approx(0.01 ** (1 / 100), rel=1e-12)
    assert (lower[0], upper[-1]) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_overlap_is_the_worst_of_all_corners(seed: int) -> None:
    """Every pixel at its least or its largest share, in all 2^6 ways; equal ones are counted as those that enter."""
    rng = np.random.default_rng(seed)
    lower = np.round(rng.uniform(0, 0.8, (1, 6)), 1)  # rounded, so that some are equal
    upper = np.minimum(lower + np.round(rng.uniform(0, 0.4, (1, 6)), 1), 1.0)
    top = np.zeros((1, 6), dtype=bool)
    top[0, rng.permutation(6)[:3]] = True
    z = float(rng.uniform(0, 0.5))
    low, high = (special.ndtr(special.ndtri(p) + s)[0] for p, s in ((lower, -z), (upper, z)))
    worst = 1.0
    for corner in itertools.product((False, True), repeat=6):
        value = np.where(corner, high, low)
        stay = sum(
            np.sum((value > v) & (np.arange(6) != i)) + np.sum((value == v) & ~top[0]) < 3
            for i, v in enumerate(value)
            if top[0, i]
        )
        worst = min(worst, stay / 3)
    assert smoothing.certified_overlap(lower, upper, top, z) == pytest.approx([worst])


class Edge(nn.Module):
    """A model of one pixel that matters: its map is at the first pixel where w.x > t, else at the second."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = t

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def edge(model: nn.Module, x: Tensor, target: Tensor, *, create_graph: bool = False) -> Tensor:
    """The map of :class:`Edge`, whose share of votes is known: Phi((w.x - t) / sigma)."""
    over = x.flatten(1).sum(1) / x[0].numel() ** 0.5 > model.t
    found = torch.zeros(len(x), 1, 2, 2)
    found[over, 0, 0, 0] = 1.0
    found[~over, 0, 0, 1] = 1.0
    return found


def test_votes_have_the_share_that_is_known_and_the_worst_change_attains_the_bound() -> None:
    """x is 0.5 everywhere, w is constant and of length 1: w.x = 1, and a change along w is the worst one."""
    sigma, t, samples = 0.3, 0.75, 20_000
    x = torch.full((1, 1, 2, 2), 0.5)
    p = special.ndtr((1.0 - t) / sigma)
    found = smoothing.certify_votes(
        Edge(t).eval(),
        x,
        0,
        noise=Gaussian(sigma),
        epsilon=[0.0, 0.1, 0.2, 0.3],
        k=1,
        samples=samples,
        attribution=edge,
    )
    assert found.votes.sum().item() == pytest.approx(1.0)
    # Six standard errors of a share.
    assert abs(found.votes[0, 0, 0].item() - p) < 6 * np.sqrt(p * (1 - p) / samples)
    assert found.lower[0, 0, 0] <= p <= found.upper[0, 0, 0]
    # At a distance of w.x - t = 0.25 along w the votes are even, so nothing may be certified beyond, and the pixel
    # stays up to the distance at which the bound on its share allows it.
    reach = sigma * special.ndtri(found.lower[0, 0, 0].item())
    assert 0.2 < reach <= 0.25
    assert found.stays[0, :, 0, 0].tolist() == [True, True, True, False]
    assert found.stays_out[0, :, 0, 1].tolist() == [True, True, True, False]
    assert found.stays_out[0, 0, 1].all(), "pixels without a vote"
    assert found.overlap[0].tolist() == [1.0, 1.0, 1.0, 0.0]
    # And there it really leaves: at 0.3 along -w the second pixel has most of the votes.
    moved = smoothing.certify_votes(
        Edge(t).eval(), x - 0.3 / 2, 0, noise=Gaussian(sigma), epsilon=0, k=1, samples=samples, attribution=edge
    )
    assert moved.top[0, 0].tolist() == [False, True]


def test_certificates_hold_for_a_network_under_changes_of_their_length() -> None:
    """Random changes and one along the gradient, each with fresh noise: pixels that stay have most of the votes."""
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    common: dict[str, Any] = {"noise": Gaussian(0.3), "k": 12}
    found = smoothing.certify_votes(model, x, y, epsilon=[0.02, 0.05], samples=4000, **common)
    assert found.stays.any()
    assert (found.overlap[:, 0] >= found.overlap[:, 1]).all()
    assert found.overlap[:, 0].max() > 0
    for seed in range(4):
        delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).flatten(1)
        moved = (x + 0.05 * (delta / delta.norm(dim=1, keepdim=True)).view_as(x)).clamp(0, 1)
        there = smoothing.certify_votes(model, moved, y, epsilon=0, samples=4000, seed=seed + 1, **common)
        # Both fail with probability at most 0.001 an image.
        assert (there.upper[found.stays[:, 1]] > 0.5).all()
        assert (there.lower[found.stays_out[:, 1]] < 0.5).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"k": 0}, "k is 0; accepted is a whole number of pixels from 1 to 63"),
        ({"k": 64}, "k is 64"),
        ({"k": 2.5}, "k is 2.5"),
        ({"noise": Ball(1.0)}, "accepted is Gaussian noise"),
        ({"samples": 0}, "samples is 0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"epsilon": -0.1}, "epsilon"),
    ],
)
def test_what_is_not_accepted_is_refused(changed: dict[str, Any], said: str) -> None:
    model = models.build("digits-cnn", seed=1)
    with pytest.raises(ValueError, match=said):
        smoothing.certify_votes(
            model, torch.rand(1, 1, 8, 8), 0, **({"noise": Gaussian(0.1), "epsilon": 0.1, "k": 3} | changed)
        )
