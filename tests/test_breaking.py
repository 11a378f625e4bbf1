"""Attacks on what is certified of heatmaps: they break nothing, and find what is wrong."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robattr import models
from robattr.attributions import Attribution
from robattr.smoothing import Gaussian, HeatmapCertificate, certify_map
from robattr.studies.breaking import QUANTITIES, Broken, _cosine, attack_maps

SIDE, SIGMA = 6, 0.5


class Flat(nn.Module):
    """Explained by a function of the image, not by its logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def planted(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    create_graph: bool = False,
    *,
    threshold: float = 0.5 + SIGMA,
    width: float = 0.02,
) -> Tensor:
    """Mass that goes from one corner to the other with the first pixel alone: a bad direction among 36.

    If it goes at once, nearly a half-space, the worst field for a mean; if it goes slowly, nearly linear, the worst for
    a variance where shifts are small.
    """
    first = torch.sigmoid((threshold - x[:, 0, 0, 0]) / width)
    maps = torch.full((len(x), 1, SIDE, SIDE), 1e-3, dtype=x.dtype)
    maps[:, 0, 2, 3] += 0.4
    one, other = torch.zeros_like(maps), torch.zeros_like(maps)
    one[:, 0, 0, 0], other[:, 0, 5, 5] = 0.6, 0.6
    share = first[:, None, None, None]
    return maps + share * one + (1 - share) * other


def certified(
    epsilon: float, samples: int = 2000, attribution: Attribution = planted
) -> tuple[Flat, Tensor, HeatmapCertificate]:
    model, x = Flat().eval(), torch.full((2, 1, SIDE, SIDE), 0.5, dtype=torch.float64)
    found = certify_map(
        model, x, 0, noise=Gaussian(SIGMA), epsilon=epsilon, k=2, cosine=True, samples=samples, choose=300,
        attribution=attribution, max_batch=500,
    )  # fmt: skip
    return model, x, found


@pytest.mark.parametrize("weaken", [1.0, 0.4])
def test_a_planted_direction(weaken: float) -> None:
    """Bounds hold, and those of a smaller perturbation, as of a spread that is too small, are caught."""
    model, x, found = certified(0.25)
    labels = torch.zeros(2, dtype=torch.int64)
    broken = Broken.count(
        attack_maps(
            model, x, labels, found, attribution=planted, iterations=10, restarts=1, random=1, weaken=weaken, seed=1
        )
    )
    assert sum(broken.points.values()) + sum(broken.silent.values()) == len(QUANTITIES) * 5 * 2
    if weaken == 1:
        assert sum(broken.violations.values()) == 0
        # The attacks come near: what they reach of what is possible, of the median point.
        assert broken.used["center"] > 0.5
    else:
        assert all(broken.violations[name] > 0 for name in ("cosine", "mass", "center"))


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("quantity", ["center", "cosine"])
def test_a_spread_that_is_halved_is_caught(quantity: str, share: float) -> None:
    """What bounds the center, and the direction, with half of the variance that it has at most."""
    slowly = partial(planted, threshold=0.5, width=0.3)
    model, x, found = certified(0.3, 20_000, slowly)
    for name in {"center": ["center_spread"], "cosine": ["direction_spread", "direction_spread_upper"]}[quantity]:
        found.statistics[name] *= share
    labels = torch.zeros(2, dtype=torch.int64)
    broken = Broken.count(
        attack_maps(model, x, labels, found, attribution=slowly, iterations=10, restarts=1, random=0, seed=1)
    )
    assert broken.points[quantity] == 2 * 4
    assert (broken.violations[quantity] > 0) == (share < 1)
    # A variance of half moves a mean by the root of that: what is caught has to be nearer than this.
    assert 1 < broken.caught[quantity] < 2**0.5


@pytest.mark.parametrize("weaken", [1.0, 0.3])
def test_top_pixels_that_may_leave_are_caught(weaken: float) -> None:
    """The second of the top two pixels is the corner that has more, which one direction takes away."""
    slowly = partial(planted, threshold=0.7, width=0.3)
    model, x, found = certified(0.35, 20_000, slowly)
    labels = torch.zeros(2, dtype=torch.int64)
    broken = Broken.count(
        attack_maps(
            model, x, labels, found, attribution=slowly, iterations=10, restarts=1, random=0, weaken=weaken, seed=1
        )
    )
    assert broken.points["top"] == 2 * 4
    assert (broken.violations["top"] > 0) == (weaken < 1)


def blank(model: nn.Module, x: Tensor, target: Tensor, create_graph: bool = False) -> Tensor:
    """A map of two pixels where the first pixel of the image is bright, none where it is dark: half of all draws."""
    maps = torch.zeros(len(x), 1, SIDE, SIDE, dtype=x.dtype)
    maps[:, 0, 2, 3], maps[:, 0, 4, 4] = 3.0, 1.0
    return (x[:, 0, 0, 0] - 0.5).relu()[:, None, None, None] * maps


def test_maps_that_are_zero_are_judged_as_they_are_certified() -> None:
    """A map of zeros counts as uniform on both sides: half of the mass of 2 of 36 pixels, and half of all of it."""
    model, x, found = certified(0.1, attribution=blank)
    assert found.mass.flatten().tolist() == pytest.approx([0.5 + 0.5 * 2 / 36] * 2, abs=0.06)
    reached = list(
        attack_maps(
            model, x, torch.zeros(2, dtype=torch.int64), found, attribution=blank, iterations=5, restarts=1, random=1,
            seed=1,
        )
    )  # fmt: skip
    for one in reached:
        assert np.isfinite(one.room[one.said]).all()
        assert np.isfinite(one.used[one.said]).all()
    broken = Broken.count(reached)
    assert broken.points["mass"] == broken.points["center"] == 10
    assert sum(broken.violations.values()) == 0
    # The direction never turns, but for rounding: no noise of its own is taken for a turn.
    assert broken.used["cosine"] < 0.05


def test_the_cosine_of_two_means() -> None:
    """By hand: means of two samples each, products of a sample with itself left out; and its error by simulation."""
    one = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    other = torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    cosine, _ = _cosine(one, other)
    assert cosine == pytest.approx((0.0 + 0.6 * 0.8 + 0.8 * 0.6) / 2 / (0.6 * 0.6) ** 0.5)
    assert _cosine(one, one) == pytest.approx((1.0, 0.0))
    draw = torch.Generator().manual_seed(3)
    found = []
    for _ in range(400):
        z = torch.randn(200, 2, generator=draw, dtype=torch.float64)
        angle = torch.stack([0.4 * z[:, 0], 0.5 + 0.4 * z[:, 0] + 0.1 * z[:, 1]])
        found.append(_cosine(*torch.stack([angle.cos(), angle.sin()], 2)))
    values, errors = np.array(found).T
    # Both angles have the mean direction of their laws, 0.5 apart; 400 values of known spread.
    assert values.mean() == pytest.approx(np.cos(0.5), abs=5 * values.std() / 20)
    # The spread of 400 values is known to 1 / sqrt(800) of itself.
    assert errors.mean() == pytest.approx(values.std(), rel=5 / 800**0.5)


def test_a_network() -> None:
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    x = models.load_images(model, "digits", limit=2, seed=0).images
    labels = model(x).argmax(1)
    found = certify_map(
        model, x, labels, noise=Gaussian(0.2), epsilon=[0.05, 0.2], k=20, cosine=True, samples=300, choose=100
    )
    broken = Broken.count(attack_maps(model, x, labels, found, iterations=3, restarts=1, random=1))
    assert sum(broken.points.values()) + sum(broken.silent.values()) == 2 * 2 * 5 * 4
    assert broken.points["cosine"] == 20
    assert sum(broken.violations.values()) == 0
    same = Broken.count(attack_maps(model, x, labels, found, iterations=3, restarts=1, random=1))
    assert same == broken


def test_what_is_refused() -> None:
    model, x, found = certified(0.1)
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"weaken is 0\.0; accepted"):
        Broken.count(attack_maps(model, x, labels, found, weaken=0.0))
    without = certify_map(
        model, x, 0, noise=Gaussian(SIGMA), epsilon=0.1, k=2, samples=10, choose=5, attribution=planted
    )
    with pytest.raises(ValueError, match="found has no cosine"):
        Broken.count(attack_maps(model, x, labels, without))
