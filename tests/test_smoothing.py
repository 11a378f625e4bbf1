"""Certificates against exact numbers, convex programs and exact adversaries; estimates against the laws they estimate.

A certificate is a claim about every field, so it is tested from both sides: nothing that is built or searched may fall
below it, and the worst that is built has to reach it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import linecache
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import integrate, optimize, special, stats
from torch import Tensor, nn

from robattr import attributions, models, smoothing
from robattr.smoothing import (
    Ball,
    Field,
    Gaussian,
    Noise,
    certificates,
    certified_cosine,
    certified_cosine_gaussian,
    certify,
    certifying,
    max_epsilon,
    max_shift_spectral,
    mean_lower_bound,
    mean_lower_bound_of_moments,
    min_radius,
    overlap,
    sample_ball,
    sampling_error,
    smooth,
    smoothed,
    worst_field,
    worst_field_gaussian,
)
from robattr.smoothing.adversaries import _panels
from robattr.smoothing.certifying import _within
from robattr.smoothing.sampling import _draws

# Sums of a few hundred float64 products in another order, through a few layers.
CLOSE: dict[str, float] = {"rtol": 1e-11, "atol": 1e-12}
# A Monte Carlo mean leaves 5 standard errors once in two million times; the seeds are fixed.
ERRORS = 5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


# --- the overlap of two balls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dimension", "epsilon", "p"), [(3072, 1e-3, 0.0221106), (3072, 1e-2, 0.218337), (150528, 1e-3, 0.153816)]
)
def test_known_overlaps(dimension: int, epsilon: float, p: float) -> None:
    assert overlap(dimension, 1.0, epsilon) == pytest.approx(p, abs=5e-7)  # they are given to six digits
    assert overlap(dimension, 0.25, epsilon / 4) == pytest.approx(float(overlap(dimension, 1.0, epsilon)), rel=1e-14)


@pytest.mark.parametrize(("shift", "p"), [(0.25, 0.0995), (0.5, 0.1974), (1.0, 0.3828), (2.0, 0.6826)])
def test_overlap_at_shifts_of_the_matching_gaussian(shift: float, p: float) -> None:
    assert overlap(3072, 1.0, shift * Gaussian.matching(1.0, 3072).sigma) == pytest.approx(p, abs=5e-5)
    assert Gaussian(1.0).displaced(3072, shift) == pytest.approx(math.erf(shift / math.sqrt(8)), rel=1e-15)


def exact_overlap(dimension: int, epsilon: float) -> mpmath.mpf:
    """Of balls of radius 1, to 50 digits or, where its series is too long, as an integral over slabs to 30."""
    half, b = mpmath.mpf(epsilon) / 2, mpmath.mpf(dimension + 1) / 2
    if dimension < 1e5 or epsilon < 0.2:
        with mpmath.workdps(50):
            return mpmath.betainc(mpmath.mpf(1) / 2, b, 0, half * half, regularized=True)
    with mpmath.workdps(30):
        steps = [0, *(k / mpmath.sqrt(dimension) for k in (2, 6, 18)), half]
        slabs = mpmath.quad(lambda s: (1 - s * s) ** (b - 1), steps)
        return 2 / mpmath.beta(mpmath.mpf(1) / 2, b) * slabs


@pytest.mark.parametrize("dimension", [1, 2, 3, 10, 64, 784, 3072, 150528, 10**6])
def test_overlap_to_fifty_digits(dimension: int) -> None:
    for epsilon in (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.5, 1.999999, 2.0):
        exact = exact_overlap(dimension, epsilon)
        # One rounding of (epsilon / 2)^2 and those inside of the incomplete beta function.
        assert abs(float(overlap(dimension, 1.0, epsilon)) - exact) <= 4e-15 * exact


def test_overlap_in_closed_form() -> None:
    half = np.linspace(0, 1, 41)
    # Lengths of intervals, and volumes of two spherical caps; rounding only.
    np.testing.assert_allclose(overlap(1, 0.5, half), half, rtol=1e-14)
    np.testing.assert_allclose(overlap(3, 0.5, half), 1.5 * half - 0.5 * half**3, rtol=1e-14)


@pytest.mark.parametrize("dimension", [2, 3, 64])
@pytest.mark.parametrize("epsilon", [0.05, 0.4, 1.3])
def test_overlap_by_counting(dimension: int, epsilon: float) -> None:
    n, radius = 100_000, 0.7
    points = sample_ball((n, dimension), radius, generator(dimension)).double()
    points[:, 0] += epsilon
    share = float((points.norm(dim=1) > radius).double().mean())
    p = float(overlap(dimension, radius, epsilon))
    assert abs(share - p) <= ERRORS * math.sqrt(p * (1 - p) / n) + 1e-9


def test_balls_apart() -> None:
    assert (overlap([1, 2, 3072], 0.5, [[1.0], [1.5], [np.inf]]) == 1).all()
    assert overlap(3072, 0.5, 0.0) == 0


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 2, 64, 3072])
def test_lengths_in_a_ball(dimension: int) -> None:
    """The share of the ball's volume that lies closer to its center is uniform on [0, 1]."""
    radius = 0.3
    points = sample_ball((4000, dimension), radius, generator(1))
    assert points.dtype == torch.float32
    length = points.double().norm(dim=1) / radius
    assert float(length.max()) <= 1 + 1e-6  # float32
    assert stats.kstest((length**dimension).numpy(), "uniform").pvalue > 1e-4
    # A wrong exponent is seen: the length itself is not uniform, but for the interval.
    assert (stats.kstest(length.numpy(), "uniform").pvalue > 1e-4) == (dimension == 1)


@pytest.mark.parametrize("dimension", [1, 2, 5, 64])
def test_directions_in_a_ball(dimension: int) -> None:
    n, radius, d = 50_000, 1.7, dimension
    points = sample_ball((n, d), radius, generator(2)).double()
    variance = radius**2 / (d + 2)
    assert float(points.mean(0).abs().max()) <= ERRORS * math.sqrt(variance / n)
    # The fourth moments of the uniform law on the ball: E x_i^2 x_j^2, three times that for i = j.
    fourth = radius**4 / ((d + 2) * (d + 4))
    spread = torch.full((d, d), math.sqrt(fourth), dtype=torch.float64)
    spread.fill_diagonal_(math.sqrt(3 * fourth - variance**2))
    found = points.T @ points / n
    assert bool(((found - variance * torch.eye(d)).abs() <= ERRORS * spread / math.sqrt(n)).all())


def test_ball_of_images() -> None:
    images = sample_ball((3, 2, 4, 5), 0.5, generator(3))
    assert images.shape == (3, 2, 4, 5)
    assert torch.equal(images, sample_ball((3, 40), 0.5, generator(3)).view(3, 2, 4, 5))
    assert torch.equal(images, Ball(0.5).sample((3, 2, 4, 5), generator(3)))
    assert sample_ball((0, 5), 0.5, generator(3)).shape == (0, 5)


def test_a_draw_without_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(*shape))
    assert torch.equal(sample_ball((4, 1), 1.0, generator(0)), torch.zeros(4, 1))


def test_gaussian_noise() -> None:
    n, d = 100_000, 3
    values = Gaussian(0.2).sample((n, d), generator(4)).double()
    assert float(values.mean(0).abs().max()) <= ERRORS * 0.2 / math.sqrt(n)
    assert abs(float(values.square().mean()) - 0.04) <= ERRORS * 0.04 * math.sqrt(2 / (n * d))
    # As long as the points of the ball, in the mean of squares: d sigma^2 = r^2 d / (d + 2).
    assert 3072 * Gaussian.matching(2.0, 3072).sigma ** 2 == pytest.approx(4 * 3072 / 3074, rel=1e-14)


@pytest.mark.parametrize("size", [1, 7, 32, 45, 200])
@pytest.mark.parametrize("noise", [Ball(0.5), Gaussian(0.1)])
def test_noise_does_not_depend_on_the_size_of_a_pass(noise: Noise, size: int) -> None:
    x = torch.zeros(2, 1, 2, 3, dtype=torch.float64)
    whole = torch.cat(list(_draws(noise, 100, x, 5, 32)))
    parts = list(_draws(noise, 100, x, 5, size))
    assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == (100, 1, 2, 3)
    assert whole.dtype == torch.float64
    assert [len(z) for z in parts] == [size] * (100 // size) + [100 % size] * (100 % size > 0)
    assert len(whole.flatten(1).unique(dim=0)) == 100
    assert not torch.equal(whole, torch.cat(list(_draws(noise, 100, x, 6, 32))))


# --- certificates for uniform noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean_norm", "p", "ball", "tight"),
    [
        (0.30, 0.20, -1, -1),
        (0.50, 0.20, 0.6000, 0.6000),
        (0.80, 0.30, 0.6614, 0.6614),
        (0.95, 0.20, 0.9070, 0.9193),
        (0.99, 0.10, 0.9794, 0.9876),
        (0.99, 0.30, 0.7954, 0.8602),
    ],
)
def test_known_certificates(mean_norm: float, p: float, ball: float, tight: float) -> None:
    assert certified_cosine(mean_norm, p, method="ball") == pytest.approx(ball, abs=5e-5)
    assert certified_cosine(mean_norm, p) == pytest.approx(tight, abs=5e-5)


def searched_cosine(h: float, p: float, points: int = 20_001) -> float:
    """The worst angle over the length s of (1 - p) c: its largest angle with h(x), and p b at a right angle."""
    s = np.unique(np.clip([*np.linspace(h - p, h + p, points), p, 1 - p], max(h - p, 1e-12), min(h + p, 1 - p)))
    first = np.arccos(np.clip((h * h + s * s - p * p) / (2 * h * s), -1, 1))
    angle = np.where(s <= p, np.pi, first + np.arcsin(np.minimum(p / s, 1)))
    return float(np.cos(angle.max())) if angle.max() < np.pi / 2 else -1.0


def test_tight_certificate_against_search() -> None:
    lengths = [0.05, 0.2, 0.5, 0.7, 0.9, 0.97, 0.999, 1.0]
    shares = [1e-4, 0.01, 0.1, 0.3, 0.45, 0.49]
    certified = 0
    for h, p in itertools.product(lengths, shares):
        if abs(h - 2 * p) < 0.02 * h:
            continue  # the cosine is a square root of h - 2 p there, which a grid does not resolve
        found = float(certified_cosine(h, p))
        certified += found > -1
        # The maximum is flat or at an end of the grid, whose steps are 1e-4 p: 1e-8 and the curvature.
        assert found == pytest.approx(searched_cosine(h, p), abs=1e-6), (h, p)
    assert 20 < certified < len(lengths) * len(shares) - 5


@pytest.mark.parametrize(("h", "p"), [(0.5, 0.2), (0.95, 0.2), (0.99, 0.3), (0.7, 0.3)])
def test_no_random_adversary_is_worse(h: float, p: float) -> None:
    """Means c, a, b in the unit disk with ``(1 - p) c + p a = h``: none below, and some near."""
    rng = np.random.default_rng(0)
    n = 400_000
    a = np.exp(2j * np.pi * rng.random(n)) * rng.random(n) ** 0.1
    c = (h - p * a) / (1 - p)
    allowed = np.abs(c) <= 1
    b = np.exp(2j * np.pi * rng.random(n))
    after = ((1 - p) * c + p * b)[allowed]
    worst = (after.real / np.abs(after)).min()
    certified = float(certified_cosine(h, p))
    assert certified - 1e-12 <= worst <= certified + 0.01


def test_nothing_is_certified_from_half_the_length_on() -> None:
    for method in ("tight", "ball"):
        assert certified_cosine(0.5, [0.25, 0.26, 1.0], method=method).tolist() == [-1, -1, -1]
        # Just inside, the cosine is sqrt(1 - (2 p / H)^2), or above.
        assert certified_cosine(0.5, 0.25 * (1 - 5e-5), method=method) == pytest.approx(0.01, rel=1e-4)


# --- certificates for Gaussian noise --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean_norm", "shift", "tight", "ball", "uniform_tight", "uniform_ball"),
    [
        (0.500, 0.25, 0.9293, 0.9174, 0.9175, 0.9175),
        (0.800, 0.50, 0.9344, 0.8697, 0.8698, 0.8698),
        (0.800, 1.00, 0.6485, 0.2891, 0.2897, 0.2897),
        (0.950, 0.50, 0.9858, 0.9095, 0.9215, 0.9096),
        (0.950, 1.00, 0.9249, 0.5917, 0.6083, 0.5919),
        (0.974, 1.00, 0.9603, 0.6179, 0.6613, 0.6181),
        (0.974, 2.00, 0.5431, -1, -1, -1),
        (0.990, 2.00, 0.8062, -1, -1, -1),
    ],
)
def test_known_gaussian_certificates(
    mean_norm: float, shift: float, tight: float, ball: float, uniform_tight: float, uniform_ball: float
) -> None:
    uniform, gaussian = Ball(1.0), Gaussian.matching(1.0, 3072)
    epsilon = shift * gaussian.sigma
    certified = [
        float(noise.certified_cosine(mean_norm, 3072, epsilon, method=method))
        for noise in (gaussian, uniform)
        for method in ("tight", "ball")
    ]
    assert certified == pytest.approx([tight, ball, uniform_tight, uniform_ball], abs=6e-5)  # four digits


# In units of the smaller of the shift and 1, times exp(shift^2 / 2): mean lengths from the least to nearly 1.
BETAS = (0.01, 0.1, 0.5, 2.0, 10.0, 100.0)


@pytest.mark.parametrize("shift", [0.05, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0])
def test_gaussian_adversaries_attain_the_certificate(shift: float) -> None:
    """Strong duality: a field, whose numbers are integrals, and a bound on all fields are the same."""
    lengths = []
    for size in BETAS:
        field = worst_field_gaussian(size * min(shift, 1) * math.exp(shift**2 / 2), 2, 1.0, shift)
        certified = float(certified_cosine_gaussian(field.mean_norm, shift))
        # A bound, up to the rounding of the length where 1 - H is 1e-9; and one that gives nothing away.
        assert certified <= field.cosine + 1e-9
        if field.cosine > 0.1:
            assert certified >= field.cosine - 1e-4
        lengths.append(field.mean_norm)
    assert special.erf(shift / math.sqrt(2)) < lengths[0]
    assert (np.diff(lengths) > 0).all()
    assert lengths[-1] < 1


class Program:
    """max <E[g L], q> over |g| <= 1 with E[g] = h, on a grid of t: its dual, minimized by a general method."""

    def __init__(self, mean_norm: float, shift: float) -> None:
        t = np.linspace(-9, 9 + shift, 2001)
        self.mass = np.exp(-t * t / 2)
        self.mass /= self.mass.sum()
        self.ratio = np.exp(shift * t)
        self.ratio /= self.ratio @ self.mass
        self.h = np.array([mean_norm, 0.0])

    def solve(self, phi: float) -> tuple[float, np.ndarray]:
        """The value, and the maximizer [t, 2]."""
        q = np.array([-math.sin(phi), math.cos(phi)])

        def dual(multiplier: np.ndarray) -> tuple[float, np.ndarray]:
            v = self.ratio[:, None] * q - multiplier
            r = np.maximum(np.linalg.norm(v, axis=1), 1e-12)
            return float(r @ self.mass + multiplier @ self.h), self.h - (v / r[:, None]).T @ self.mass

        starts = [np.zeros(2), q, np.array([-1.0, 0.0])]
        runs = [optimize.minimize(dual, start, jac=True, method="BFGS", options={"gtol": 1e-9}) for start in starts]
        best = min(runs, key=lambda run: float(run.fun))
        v = self.ratio[:, None] * q - best.x
        return float(best.fun), v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.mark.parametrize(("mean_norm", "shift"), [(0.3, 0.25), (0.5, 0.25), (0.8, 1.0), (0.95, 0.5), (0.974, 2.0)])
def test_gaussian_certificate_against_a_convex_program(mean_norm: float, shift: float) -> None:
    program = Program(mean_norm, shift)
    phi = optimize.brentq(lambda v: program.solve(v)[0], 1e-3, np.pi / 2, xtol=1e-7)
    certified = float(certified_cosine_gaussian(mean_norm, shift))
    # The grid is exact to far more digits; the minimizer stops at 1e-9 or where its line search does, 1e-6 before.
    assert certified == pytest.approx(math.cos(phi), abs=1e-5)
    # The maximizer is an adversary, whatever one thinks of duality: it meets its constraints and turns that far.
    _, g = program.solve(phi)
    h, after = g.T @ program.mass, g.T @ (program.mass * program.ratio)
    np.testing.assert_allclose(h, program.h, atol=2e-5)
    assert h @ after / np.linalg.norm(h) / np.linalg.norm(after) == pytest.approx(certified, abs=2e-4)


@pytest.mark.parametrize("shift", [0.01, 0.1, 0.5, 1.0, 2.0, 3.0])
def test_where_gaussian_certificates_begin(shift: float) -> None:
    least = float(special.erf(shift / math.sqrt(2)))
    assert certified_cosine_gaussian([least, least * (1 - 1e-9), least / 2, 0.0], shift).tolist() == [-1] * 4
    above = certified_cosine_gaussian(least + (1 - least) * np.array([1e-3, 1e-2, 0.1]), shift)
    assert (above > 0.01).all()
    assert (np.diff(above) > 0).all()


def test_gaussian_certificates_of_all_sizes() -> None:
    """Shifts for which a general method of integration would lose its digits."""
    shifts = np.array([0.0, 1e-300, 1e-12, 1e-6, 1e-5, 1e-4, 1e-2, 6.0, 7.0, 50.0, np.inf])
    lengths = np.array([1e-3, 0.5, 0.999, 1 - 1e-13, 1.0])
    found = certified_cosine_gaussian(lengths[:, None], shifts)
    assert found.shape == (5, 11)
    assert (found[:, 0] == 1).all()
    assert (found[1:, :4] > 1 - 1e-10).all()
    # Chords give away less than 1e-6 for small shifts.
    assert (found[:, :-1] >= found[:, 1:] - 1e-6).all()
    assert (found[:, -3:] == -1).all()


@pytest.mark.parametrize("shift", [1e-5, 0.03, 1.0, 3.0, 4.5, 5.5, 6.0])
def test_gaussian_certificates_rise_up_to_the_bound(shift: float) -> None:
    """Lengths next to the bound, where 1 - H has few digits: what is certified rises to exactly 1."""
    lengths = np.sort(np.append(1 - np.logspace(-16, -3, 300), 1 - 6.68e-14))
    found = certified_cosine_gaussian(lengths, shift)
    assert (np.diff(found) >= 0).all()
    assert found[-1] > 0.99
    assert certified_cosine_gaussian(3.0, shift, bound=3.0) == 1


@pytest.mark.parametrize("shift", [0.05, 0.7, 2.0, 4.0])
def test_chords_are_above_convex_functions(shift: float) -> None:
    def expectation(f: Callable[[float], float], kink: float) -> float:
        ends = sorted({-11.0, 11.0 + shift, *(min(max(k, -11.0), 11.0 + shift) for k in (kink - 1, kink, kink + 1))})
        return sum(
            integrate.quad(
                lambda t: f(math.exp(shift * t - shift**2 / 2)) * math.exp(-t * t / 2) / math.sqrt(2 * math.pi),
                low,
                high,
                epsabs=1e-13,
                epsrel=1e-12,
                limit=400,
            )[0]
            for low, high in itertools.pairwise(ends)
        )

    for alpha, beta in ((1.0, 1e-3), (1.3, 0.2), (math.exp(shift**2), 5.0)):
        own = certificates._nodes(shift, np.array(alpha), np.array(beta), 2049)[0]
        kink = math.log(alpha) / shift + shift / 2
        exact = expectation(lambda ratio, a=alpha, b=beta: math.hypot(ratio - a, b), kink)
        for t, above in ((own, 1e-5), (np.linspace(-9, 9 + shift, 4001), 1e-3), (np.linspace(-1, 1, 4), 100.0)):
            ratio, weights, rest = certificates._chords(shift, t)
            assert (weights >= 0).all()
            assert rest >= 0
            # Affine functions exactly: sums of thousands of numbers that add up to 1, and their rounding.
            assert weights.sum() == pytest.approx(1, abs=1e-12)
            assert weights @ ratio + rest == pytest.approx(1, abs=1e-12)
            bound = np.hypot(ratio - alpha, beta) @ weights + rest
            assert -1e-11 * exact <= bound - exact <= above * exact
        # The crude nodes give a bound that is not the value.
        assert bound - exact > 1e-9 * exact
        assert rest > 1e-3 * min(shift, 1)


# --- properties -----------------------------------------------------------------------------------------------------

lengths = st.one_of(st.floats(0, 1), st.floats(1e-9, 0.1).map(lambda v: 1 - v))
dimensions = st.sampled_from([1, 2, 3, 64, 3072, 150528])
methods = st.sampled_from(["tight", "ball"])
# Where the cosine is near 0 it is the root of a difference, whose rounding of 1e-16 becomes 1e-8.
ROUNDING = 1e-7
# The chord rule; what is not certified counts as 0, which is where the cosines begin.
CHORDS = 5e-5


def pairs(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(values, min_size=2, max_size=2).map(sorted)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(h=pairs(lengths), e=pairs(st.floats(0, 2.2)), r=pairs(st.floats(0.1, 1)), d=dimensions, method=methods)
def test_uniform_certificates_are_monotone(
    h: list[float], e: list[float], r: list[float], d: int, method: smoothing.Method
) -> None:
    def at(h: float, r: float, e: float, bound: float = 1.0) -> float:
        return float(Ball(r).certified_cosine(h, d, e / math.sqrt(d), bound=bound, method=method))

    value = at(h[0], r[0], e[1])
    assert -1 <= value <= 1
    assert value <= at(h[0], r[0], e[0]) + ROUNDING
    assert value <= at(h[1], r[0], e[1]) + ROUNDING
    assert value <= at(h[0], r[1], e[1]) + ROUNDING
    assert at(h[0], r[0], e[1], 1.5) <= value + ROUNDING
    assert at(3 * h[0], r[0], e[1], 3.0) == pytest.approx(value, abs=ROUNDING)
    assert at(h[0], r[0], 0.0) == (1 if h[0] > 0 else -1)
    assert at(h[1], r[0], 2 * r[0] * math.sqrt(d) * (1 + 1e-15)) == -1
    assert at(0.0, r[0], e[1]) == -1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(h=lengths, p=st.floats(0, 1))
def test_tight_is_no_worse_than_ball(h: float, p: float) -> None:
    tight, ball = float(certified_cosine(h, p)), float(certified_cosine(h, p, method="ball"))
    assert tight >= ball - 1e-9 * (1 + 10 * (ball < 1e-3))  # as above, near 0
    assert (tight == -1) == (ball == -1)
    if p > 1e-3 and 2 * p < h < math.sqrt(min((1 - p) ** 2 + 3 * p * p, 1)) - 1e-3:
        assert tight == pytest.approx(ball, abs=ROUNDING)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(h=pairs(lengths.filter(lambda v: v < 1 - 1e-8)), a=pairs(st.floats(0, 3)))
def test_gaussian_certificates_are_monotone(h: list[float], a: list[float]) -> None:
    values = certified_cosine_gaussian(np.array(h)[:, None], np.array(a))
    assert ((values >= 0) & (values <= 1) | (values == -1)).all()
    low = np.maximum(values, 0)
    assert (low[0] <= low[1] + CHORDS).all()
    assert (low[:, 1] <= low[:, 0] + CHORDS).all()
    assert (values >= certified_cosine_gaussian(np.array(h)[:, None], a, method="ball") - 1e-9).all()
    scaled = certified_cosine_gaussian(3 * np.array(h)[:, None], a, bound=3.0)
    np.testing.assert_allclose(np.maximum(scaled, 0), low, atol=CHORDS)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(h=st.floats(0.01, 0.999), e=st.floats(0.01, 1), sigma=pairs(st.floats(0.2, 2)), d=dimensions)
def test_gaussian_laws_are_monotone(h: float, e: float, sigma: list[float], d: int) -> None:
    narrow, wide = (max(float(Gaussian(s).certified_cosine(h, d, e)), 0.0) for s in sigma)
    assert narrow <= wide + CHORDS
    assert max(float(Gaussian(sigma[0]).certified_cosine(h, d, e, bound=1.3)), 0.0) <= narrow + CHORDS
    # Of an epsilon in units of sigma the dimension says nothing.
    assert Gaussian(sigma[0]).certified_cosine(h, 7, e) == Gaussian(sigma[0]).certified_cosine(h, d, e)
    assert Gaussian(sigma[0]).certified_cosine(h, d, 0.0) == 1
    assert Gaussian(sigma[0]).certified_cosine(0.0, d, e) == -1
    assert Gaussian(sigma[0]).certified_cosine(h, d, Gaussian(sigma[0]).reach(d)) == -1


@pytest.mark.parametrize("noise", [Ball(0.5), Gaussian(0.05)])
def test_arrays_are_their_numbers(noise: Noise) -> None:
    h, d, e = np.array([[0.2], [0.9], [1.0]]), np.array([[[2]], [[3072]]]), np.array([0.0, 1e-3, 0.01, 0.06])
    for method in ("tight", "ball"):
        found = noise.certified_cosine(h, d, e, method=method)
        assert found.shape == (2, 3, 4)
        assert found.dtype == np.float64
        for k, i, j in itertools.product(range(2), range(3), range(4)):
            one = noise.certified_cosine(float(h[i, 0]), int(d[k, 0, 0]), float(e[j]), method=method)
            assert isinstance(one, np.ndarray)
            assert one.shape == ()
            assert one == pytest.approx(found[k, i, j], abs=1e-13)  # sums in blocks of another size
    assert noise.displaced(d, e).shape == (2, 1, 4)
    assert noise.displaced(3072, 0.01).shape == ()
    assert noise.certified_cosine(np.empty(0), 3072, 0.01).shape == (0,)
    assert noise.certified_cosine(torch.tensor([0.5, 0.9]), 3072, 0.001).shape == (2,)


# --- inverse forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tight", "ball"])
@pytest.mark.parametrize(("noise", "dimension"), [(Ball(0.5), 3072), (Ball(2.0), 2), (Gaussian(0.05), 3072)])
def test_largest_epsilon_and_back(noise: Noise, dimension: int, method: smoothing.Method) -> None:
    mean_norm = np.array([[1e-6, 0.3], [0.95, 0.9999]])
    for cosine in (0.05, 1 - 1e-6):
        epsilon = max_epsilon(mean_norm, cosine, dimension=dimension, noise=noise, method=method)
        assert epsilon.shape == mean_norm.shape
        found = noise.certified_cosine(mean_norm, dimension, epsilon, method=method)
        np.testing.assert_allclose(found, cosine, atol=1e-6)
        assert (found >= cosine).all()
        assert (np.diff(epsilon.ravel()) > 0).all()


@pytest.mark.parametrize("noise", [Ball(0.5), Gaussian(0.05)])
def test_largest_epsilon_at_the_ends(noise: Noise) -> None:
    largest = partial(max_epsilon, dimension=48, noise=noise)
    assert largest([0.0, 0.5], 0.9)[0] == 0
    assert largest(0.9, 1.0) == 0
    assert largest(0.9, 0.9).shape == ()
    assert largest(1.8, 0.9, bound=2.0) == pytest.approx(float(largest(0.9, 0.9)), rel=1e-9)
    assert largest(np.empty((0, 3)), 0.9).shape == (0, 3)


def test_largest_epsilon_is_certified_where_the_certificate_jumps() -> None:
    """A field as long as its bound is constant: what is certified ends with the method, beyond 6 sigma."""
    noise = Gaussian(0.1)
    epsilon = float(max_epsilon(1.0, 0.9, dimension=3, noise=noise))
    assert epsilon == pytest.approx(0.6, rel=1e-9)
    assert noise.certified_cosine(1.0, 3, epsilon) >= 0.9


@pytest.mark.parametrize("method", ["tight", "ball"])
@pytest.mark.parametrize(("law", "scale"), [(Ball, 1.0), (Gaussian, 1 / math.sqrt(3074))])
def test_smallest_radius_and_back(law: Callable[[float], Noise], scale: float, method: smoothing.Method) -> None:
    radii, mean_norms = np.array([0.25, 0.5, 1.0]) * scale, [0.99, 0.98, 0.95]
    smallest = partial(min_radius, radii, mean_norms, dimension=3072, epsilon=0.005, law=law, method=method)
    at_ends = [
        float(law(r).certified_cosine(h, 3072, 0.005, method=method))
        for r, h in zip(radii[:2], mean_norms[:2], strict=True)
    ]
    cosine = sum(at_ends) / 2
    assert at_ends[0] + 0.005 < cosine
    radius = smallest(cosine)
    assert radii[0] < radius < radii[1]
    mean_norm = np.interp(radius, radii, mean_norms)
    assert law(radius).certified_cosine(mean_norm, 3072, 0.005, method=method) == pytest.approx(cosine, abs=1e-6)
    # The smallest one: nothing smaller does.
    for smaller in np.linspace(radii[0], radius, 8)[:-1]:
        at = np.interp(smaller, radii, mean_norms)
        assert law(float(smaller)).certified_cosine(at, 3072, 0.005, method=method) < cosine
    assert smallest(at_ends[0] - 1e-3) == radii[0]
    assert math.isnan(smallest(0.9999))


def test_smallest_radius_where_the_length_falls_too_fast() -> None:
    """There is a best radius between one that displaces too much and one that aligns too little."""
    radii, mean_norms = [0.1, 0.4, 0.41, 2.0], [0.9, 0.9, 0.05, 0.01]
    found = min_radius(radii, mean_norms, 0.5, dimension=100, epsilon=0.02)
    assert 0.1 < found <= 0.4
    assert math.isnan(min_radius(radii[2:], mean_norms[2:], 0.5, dimension=100, epsilon=0.02))


def test_smallest_radius_between_those_that_were_measured() -> None:
    """Neither end certifies 0.78: one displaces too much, the other aligns too little."""
    radii, mean_norms = [0.2, 2.0], [0.95, 0.3]
    ends = [float(Ball(r).certified_cosine(h, 100, 0.05)) for r, h in zip(radii, mean_norms, strict=True)]
    assert max(ends) < 0.77
    radius = min_radius(radii, mean_norms, 0.78, dimension=100, epsilon=0.05)
    assert Ball(radius).certified_cosine(np.interp(radius, radii, mean_norms), 100, 0.05) == pytest.approx(0.78)


def test_smallest_radius_of_a_narrow_window() -> None:
    """A hill between two radii of a coarse grid, high enough for a short way, down to its top alone."""
    radii, mean_norms = [0.1, 10.0], [1.0, 0.0]

    def at(radius: float) -> float:
        return float(Ball(radius).certified_cosine(np.interp(radius, radii, mean_norms), 50, 0.3))

    smallest = partial(min_radius, radii, mean_norms, dimension=50, epsilon=0.3)
    grid = np.linspace(4.5, 5.5, 4001)
    values = np.array([at(float(v)) for v in grid])
    for wanted in (0.7434781614438482, values.max() - 1e-9, values.max()):
        first = int(np.nonzero(values >= wanted)[0][0])
        found = smallest(wanted)
        assert grid[first - 1] < found <= grid[first]
        assert at(found) >= wanted
        assert at(found * (1 - 1e-4)) < wanted
    assert math.isnan(smallest(values.max() + 1e-6))


def test_smallest_sigma_with_the_spread() -> None:
    """In closed form where neither number changes; the length alone takes several times as much."""
    radii, h, lam, cosine, epsilon = [0.02, 2.0], 0.5, 0.002, 0.9, 0.2
    smallest = partial(min_radius, radii, [h] * 2, cosine, dimension=100, epsilon=epsilon, law=Gaussian)
    found = smallest(spreads=[lam] * 2)
    assert found == pytest.approx(epsilon / float(max_shift_spectral(h, lam, cosine, bound=1.0)), rel=1e-9)
    # What the bound adds can only help.
    assert found <= epsilon / math.sqrt(math.log1p(h * h * (1 - cosine**2) / lam)) * (1 + 1e-9)
    assert smallest() > 3 * found
    assert smallest(spreads=[0.0] * 2) == radii[0]


def test_smallest_sigma_between_those_that_were_measured() -> None:
    """Larger noise has a shorter mean and a larger spread: a hill between two sigmas, down to its top alone."""
    radii, mean_norms, spreads, epsilon = [0.1, 10.0], [0.9, 0.0], [1e-190, 9e-181], 200.0

    def at(sigma: float) -> float:
        """By hand: beyond 12 sigma, where the bound does not help."""
        h, lam = (np.interp(sigma, radii, values) for values in (mean_norms, spreads))
        sine = math.sqrt(math.expm1((epsilon / sigma) ** 2) * lam) / h
        return math.sqrt(1 - sine**2) if sine < 1 else -1.0

    smallest = partial(min_radius, radii, mean_norms, dimension=50, epsilon=epsilon, law=Gaussian, spreads=spreads)
    grid = np.linspace(9.4, 9.9999, 20_001)
    values = np.array([at(float(v)) for v in grid])
    assert 0 < values.argmax() < len(grid) - 1
    for wanted in (0.3, 0.99 * values.max(), values.max() - 1e-9):
        first = int(np.nonzero(values >= wanted)[0][0])
        found = smallest(wanted)
        assert grid[first - 1] < found <= grid[first]
        assert at(found) >= wanted - 1e-12
        assert at(found * (1 - 1e-4)) < wanted
    assert math.isnan(smallest(values.max() + 1e-6))
    assert math.isnan(min_radius(radii, mean_norms, 0.5, dimension=50, epsilon=epsilon, law=Gaussian))


# --- finite samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimension", "n"), [(5, 40), (500, 40)])
def test_error_of_a_mean_of_unit_vectors(dimension: int, n: int) -> None:
    """Unit vectors whose first value is uniform on [0.5, 1]: their mean is 0.75 long."""
    repetitions = 2000
    errors = []
    draws = generator(6)
    for _ in range(20):
        shape = (repetitions // 20 * n, dimension)
        first = 0.5 + 0.5 * torch.rand(shape[0], 1, generator=draws)
        rest = nn.functional.normalize(torch.randn(shape[0], dimension - 1, generator=draws))
        vectors = torch.cat([first, (1 - first.square()).sqrt() * rest], 1)
        mean = vectors.view(-1, n, dimension).mean(1)
        mean[:, 0] -= 0.75
        errors.append(mean.norm(dim=1))
    error = torch.cat(errors).double().numpy()
    for known, alpha in itertools.product((0.0, 0.5, 0.75), (0.05, 0.9)):
        bound = float(sampling_error(n, alpha, mean_norm=known))
        assert (error > bound).mean() <= alpha
    # The first term is the mean error when there are many values: it cannot be left out. Nor could it above, where
    # alpha is large.
    first_term = math.sqrt(1 - 0.75**2) / math.sqrt(n)
    assert error.mean() <= first_term
    assert error.mean() >= (0.99 if dimension == 500 else 0.9) * first_term


def test_sampling_error_by_hand() -> None:
    # H = 1.2 of at most 2: sqrt(1 - 0.36) = 0.8; alpha = exp(-2), so that the second term is sqrt(4) = 2.
    assert sampling_error(100, math.exp(-2), bound=2.0, mean_norm=1.2) == pytest.approx(2 * (0.8 + 2) / 10, rel=1e-14)
    assert sampling_error(1, math.exp(-0.5)) == pytest.approx(2.0, rel=1e-14)
    assert sampling_error([1, 100], 0.1, mean_norm=[[0.0], [1.0]]).shape == (2, 2)


@pytest.mark.parametrize("law", ["bernoulli", "near 1", "constant", "skewed"])
def test_coverage_of_the_lower_bound(law: str) -> None:
    rng = np.random.default_rng(1)
    alpha, repetitions, n = 0.05, 2000, 100
    shape = (repetitions, n)
    draws, mean = {
        "bernoulli": (np.where(rng.random(shape) < 0.9, 1.0, -1.0), 0.8),
        "near 1": (2 * rng.beta(50, 1, shape) - 1, 2 * 50 / 51 - 1),
        "constant": (np.full(shape, 0.3), 0.3),
        "skewed": (np.where(rng.random(shape) < 0.01, -1.0, 0.99), 0.99 - 0.0199),
    }[law]
    bound = mean_lower_bound(draws, alpha)
    assert bound.shape == (repetitions,)
    failures = (bound > mean + 1e-12).mean()
    assert failures <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / repetitions)
    assert (bound <= draws.mean(1) + 1e-12).all()
    # It says something: its distance is that of a few standard errors and of the price of a range, 1 / n.
    spread = draws.std() / math.sqrt(n) + 2 / n
    assert np.median(mean - bound) <= 4 * spread


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_coverage_of_the_lower_bound_of_moments(share: float, low: float) -> None:
    """Draws that are 0.9 but rarely as low as can be: what a sample hides best. 2,000 draws, digits of a record."""
    alpha, repetitions, n = 0.05, 2000, 300
    rng = np.random.default_rng(0)
    draws = np.where(rng.random((repetitions, n)) < share, low, 0.9)
    mean = (1 - share) * 0.9 + share * low
    rounded = np.floor(draws.mean(1) * 1e7) / 1e7
    bound = mean_lower_bound_of_moments(rounded, draws.var(1) + 1e-9, draws.min(1), n, alpha, low=low)
    missed = float((bound > mean).mean())
    assert missed <= alpha + 5 * math.sqrt(alpha * (1 - alpha) / repetitions)
    # The sample's mean is no bound, and neither is this one for twenty times as many draws.
    assert (draws.mean(1) > mean).mean() > 5 * alpha
    wrong = mean_lower_bound_of_moments(rounded, draws.var(1), draws.min(1), 20 * n, alpha, low=low)
    assert (wrong > mean).mean() > alpha


def test_lower_bound_of_moments_by_the_capital() -> None:
    """At the bound, the capital of some stake, bet by bet, has grown by enough; a little above, none by these moments.

    And it is not much farther from the mean than the bound that needs all draws.
    """
    rng = np.random.default_rng(4)
    stakes, shares = 0.98 / 2.0 ** np.arange(16), 1 / ((np.arange(16) + 1) * (np.arange(16) + 2))
    assert shares.sum() < 1
    for mean, deviation, n in ((0.15, 0.03, 7500), (0.9, 0.05, 1000), (0.5, 0.2, 300), (0.02, 0.01, 20_000)):
        draws = np.clip(rng.normal(mean, deviation, n), 0, 1)
        moments = draws.mean(), draws.var(), draws.min()
        for alpha in (0.05, 1e-5):
            bound = float(mean_lower_bound_of_moments(*moments, n, alpha, low=0.0))
            capitals = np.log1p(stakes[:, None] / bound * (draws - bound)).sum(1) + np.log(shares)
            assert capitals.max() >= math.log(1 / alpha)
            above, reach = bound + 1e-9, stakes * (1 - moments[2] / moments[0]) + 1e-4
            u, w = stakes / above, (-np.log1p(-reach) - reach) / reach**2
            known = n * (u * (moments[0] - above) - w * u**2 * (moments[1] + (moments[0] - above) ** 2))
            assert (known + np.log(shares)).max() < math.log(1 / alpha)
            of_all = moments[0] - float(mean_lower_bound(draws, alpha, low=0.0))
            # Splitting the capital costs more where little is asked of it.
            assert moments[0] - bound <= (1.5 if alpha < 1e-3 else 2) * of_all
            twice = mean_lower_bound_of_moments(2 * moments[0] - 1, 4 * moments[1], 2 * moments[2] - 1, n, alpha)
            assert float(twice) == pytest.approx(2 * bound - 1, abs=1e-9)


def test_lower_bound_of_moments_at_the_ends() -> None:
    assert mean_lower_bound_of_moments(0.0, 0.0, 0.0, 100, 0.05, low=0.0) == 0
    assert mean_lower_bound_of_moments(-1.0, 0.0, -1.0, 100, 0.05) == -1
    assert mean_lower_bound_of_moments(0.5, 0.25, -1.0, 1, 0.05) == -1
    # Draws that are all 1: capital grows by 1 + c (1 / m - 1) with each.
    bound = float(mean_lower_bound_of_moments(1.0, 0.0, 1.0, 10_000, 0.001, low=0.0))
    assert 1 - 2 * math.log(2 / 0.001) / 10_000 < bound < 1
    # More draws, less variance and a larger least certify more.
    base = {"mean": 0.5, "variance": 0.04, "least": 0.1, "samples": 500, "alpha": 0.01}
    known = float(mean_lower_bound_of_moments(**base, low=0.0))  # type: ignore[arg-type]
    for change in ({"samples": 600}, {"variance": 0.03}, {"least": 0.2}, {"alpha": 0.02}, {"mean": 0.51}):
        assert float(mean_lower_bound_of_moments(**(base | change), low=0.0)) > known  # type: ignore[arg-type]


def test_lower_bound_adapts_to_the_variance() -> None:
    n, alpha = 10_000, 0.001
    draws = np.clip(np.random.default_rng(2).normal(0.985, 0.01, n), -1, 1)
    distance = draws.mean() - float(mean_lower_bound(draws, alpha))
    hoeffding = 2 * math.sqrt(math.log(1 / alpha) / (2 * n))
    assert 0 < distance < 0.003
    assert distance < hoeffding / 10


def test_lower_bound_against_its_definition() -> None:
    """The capital of each hypothesis, bet by bet; the bound is the largest mean that is rejected."""
    draws, alpha, n = [0.9, 0.2, 0.8, 0.95, 0.7, 0.85, 0.9, 0.6, 0.99, 0.92] * 3, 0.1, 30

    def capital(m: float) -> float:
        wealth, total, squares, variance = 1.0, 0.5, 0.25, 0.25
        for i, x in enumerate(draws, 1):
            stake = min(math.sqrt(2 * math.log(1 / alpha) / (n * variance)), 0.9 / m)
            wealth *= 1 + stake * (x - m)
            total += x
            squares += (x - total / (i + 1)) ** 2
            variance = squares / (i + 1)
        return wealth

    bound = float(mean_lower_bound(np.array(draws), alpha, low=0.0))
    assert capital(bound * (1 - 1e-9)) >= 1 / alpha
    assert capital(bound * (1 + 1e-9)) < 1 / alpha
    assert all(capital(m) >= 1 / alpha for m in np.linspace(0.01, bound - 1e-6, 20))
    assert mean_lower_bound(2 * np.array(draws) - 1, alpha) == pytest.approx(2 * bound - 1, abs=1e-12)


def test_lower_bound_of_batches_and_confidence() -> None:
    draws = np.random.default_rng(3).uniform(-1, 1, (2, 3, 200)) * 0.2 + 0.5
    found = mean_lower_bound(draws, 0.05)
    assert found.shape == (2, 3)
    assert found[1, 2] == mean_lower_bound(draws[1, 2], 0.05)
    by_alpha = [float(mean_lower_bound(draws[0, 0], alpha)) for alpha in (1e-6, 1e-3, 0.05, 0.5)]
    assert (np.diff(by_alpha) > 0).all()
    # One draw rejects next to nothing; float32 rounding above 1 is no error.
    assert -1 <= float(mean_lower_bound([1.0], 0.001)) < 0
    assert mean_lower_bound(np.full(50, 1 + 1e-7), 0.05) == mean_lower_bound(np.ones(50), 0.05)
    assert mean_lower_bound(-np.ones(50), 0.05) == -1


# --- the smoothed map -----------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Two logits, ``w x`` and its negative."""

    def __init__(self, values: int = 12, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(values, seed=7).to(dtype))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1) @ self.weight
        return torch.stack([value, -value], 1)


class Quadratic(nn.Module):
    """A logit ``x A x / 2 + b x`` of 12 values, and its negative."""

    def __init__(self) -> None:
        super().__init__()
        a = normal(12, 12, seed=8)
        self.a, self.b = nn.Parameter(a + a.T), nn.Parameter(normal(12, seed=9))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        value = ((x @ self.a) * x).sum(1) / 2 + x @ self.b
        return torch.stack([value, -value], 1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1)[:, :2]


class Distance(nn.Module):
    """The distance to a point: every gradient has the length 1 and points away from it."""

    def __init__(self, point: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("point", torch.tensor(point, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        value = (x.flatten(1) - self.point).norm(dim=1)
        return torch.stack([value, -value], 1)


class Calls(list[int]):
    """Sizes of passes; a copy of the model counts with it."""

    def __deepcopy__(self, memo: object) -> Calls:
        return self


class Counting(nn.Module):
    def __init__(self, model: nn.Module, stop: float = math.inf) -> None:
        super().__init__()
        self.model, self.calls, self.stop = model, Calls(), stop
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if sum(self.calls) + len(x) > self.stop:
            raise InterruptedError
        self.calls.append(len(x))
        result: Tensor = self.model(x)
        return result


@dataclass(frozen=True)
class Antithetic(Ball):
    """Each point of the ball and its negative."""

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        half = super().sample((shape[0] // 2, *shape[1:]), generator)
        return torch.cat([half, -half])


def network(dtype: torch.dtype = torch.float64, beta: float = 3.0) -> nn.Module:
    """A small one with curvature everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(10)
        layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, stride=2),
            nn.Softplus(beta),
            nn.Flatten(),
            nn.Linear(36, 8),
            nn.Softplus(beta),
            nn.Linear(8, 3),
        )
    with torch.no_grad():
        for p in layers.parameters():
            p.mul_(2)
    return layers.to(dtype).eval()


def images(n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, 1, 5, 5, dtype=torch.float64, generator=generator(11)).to(dtype)


TARGET = torch.tensor([0, 2, 1])


def one_by_one(model: nn.Module, x: Tensor, target: Tensor, noise: Noise, samples: int, normalize: bool) -> Tensor:
    """Every map [N, samples, ...] by itself."""
    draws = torch.cat(list(_draws(noise, samples, x, 3, 32)))
    rows = []
    for image, label in zip(x, target, strict=True):
        maps = []
        for z in draws:
            point = (image + z)[None].requires_grad_()
            (g,) = torch.autograd.grad(model(point)[0, label], point)
            maps.append(g[0] / g.norm() if normalize else g[0])
        rows.append(torch.stack(maps))
    return torch.stack(rows)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("max_batch", [1, 7, 64, 256])
@pytest.mark.parametrize("noise", [Ball(1.5), Gaussian(0.2)])
def test_smooth_against_a_loop(noise: Noise, max_batch: int, normalize: bool) -> None:
    model, x, samples = network(), images(), 40
    maps = one_by_one(model, x, TARGET, noise, samples, normalize)
    direction = normal(*x.shape, seed=12)
    found = smooth(
        model,
        x,
        TARGET,
        noise=noise,
        samples=samples,
        normalize=normalize,
        direction=direction,
        seed=3,
        max_batch=max_batch,
    )
    mean = maps.mean(1)
    torch.testing.assert_close(found.mean, mean, **CLOSE)
    torch.testing.assert_close(found.norm, mean.flatten(1).norm(dim=1), **CLOSE)
    torch.testing.assert_close(found.longest, maps.flatten(2).norm(dim=2).amax(1), **CLOSE)
    assert found.along is not None
    torch.testing.assert_close(found.along, torch.einsum("nschw,nchw->ns", maps, direction), **CLOSE)
    # ||h||^2 = E<g, g'> of two independent samples, without the pairs of a sample and itself.
    gram = torch.einsum("nschw,ntchw->nst", maps, maps)
    pairs = (gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)) / (samples * (samples - 1))
    torch.testing.assert_close(found.norm_squared, pairs, rtol=1e-9, atol=1e-10)
    assert found.samples == samples
    for value in (found.mean, found.norm, found.longest, found.norm_squared, found.along):
        assert value.dtype == torch.float64
        assert not value.requires_grad


def test_a_batch_is_its_images() -> None:
    model, x = network(), images()
    take = partial(smooth, model, noise=Ball(1.0), samples=50, seed=4)
    together = take(x, TARGET)
    for i in range(len(x)):
        alone = take(x[i : i + 1], TARGET[i : i + 1])
        torch.testing.assert_close(alone.mean[0], together.mean[i], **CLOSE)
        torch.testing.assert_close(alone.norm_squared[0], together.norm_squared[i], **CLOSE)
    assert torch.equal(take(x[:1], 0).mean, take(x[:1], TARGET[:1]).mean)
    assert not torch.equal(take(x, TARGET).mean, smooth(model, x, TARGET, noise=Ball(1.0), samples=50, seed=5).mean)


def test_float32_is_float64() -> None:
    x = images()
    exact = smooth(network(), x, TARGET, noise=Ball(1.0), samples=40, direction=torch.ones_like(x))
    found = smooth(network(torch.float32), x.float(), TARGET, noise=Ball(1.0), samples=40, direction=torch.ones_like(x))
    # Rounding of 1e-7 of images and weights, through three layers of weights that are a few units in size.
    torch.testing.assert_close(found.mean, exact.mean, rtol=0, atol=1e-5)
    assert found.mean.dtype == torch.float64
    assert found.along is not None
    assert exact.along is not None
    torch.testing.assert_close(found.along, exact.along, rtol=0, atol=1e-4)


def test_other_layouts_and_methods() -> None:
    model, x = network().to(memory_format=torch.channels_last), images()
    model[0] = nn.Conv2d(2, 4, 3, padding=1, stride=2, dtype=torch.float64).to(memory_format=torch.channels_last)
    x = torch.cat([x, x.flip(3)], 1).to(memory_format=torch.channels_last)
    plain = smooth(model, x.contiguous(), TARGET, noise=Ball(1.0), samples=9)
    torch.testing.assert_close(smooth(model, x, TARGET, noise=Ball(1.0), samples=9).mean, plain.mean, **CLOSE)
    method = partial(attributions.integrated_gradients, steps=3)
    found = smooth(model, x, TARGET, noise=Ball(1.0), samples=9, attribution=method, normalize=False)
    draws = next(_draws(Ball(1.0), 9, x, 0, 9))
    maps = torch.stack([method(model, x + z, TARGET) for z in draws])
    torch.testing.assert_close(found.mean, maps.mean(0), **CLOSE)


def test_linear_model() -> None:
    """Every map is the weight: nothing to average, and a length of 1."""
    model, x = Linear(), normal(2, 3, 2, 2, seed=13)
    found = smooth(model, x, torch.tensor([0, 1]), noise=Gaussian(0.3), samples=33)
    unit = (model.weight / model.weight.norm()).detach().view(3, 2, 2)
    torch.testing.assert_close(found.mean, torch.stack([unit, -unit]), **CLOSE)
    torch.testing.assert_close(found.norm, torch.ones(2, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(found.norm_squared, torch.ones(2, dtype=torch.float64), **CLOSE)
    assert torch.equal(found.longest, torch.ones(2, dtype=torch.float64))


def test_quadratic_model() -> None:
    """The mean gradient is the gradient at the mean: exactly, if the noise is symmetric draw by draw."""
    model, x, n = Quadratic(), normal(2, 3, 2, 2, seed=14), 4000
    exact = (x.flatten(1) @ model.a + model.b).detach().view_as(x)
    found = smooth(model, x, 0, noise=Antithetic(2.0), samples=64, normalize=False)
    torch.testing.assert_close(found.mean, exact, **CLOSE)
    found = smooth(model, x, 0, noise=Ball(2.0), samples=n, normalize=False)
    variance = model.a.square().sum(1).detach() * 4 / 14  # of A z, with the variance r^2 / (d + 2) of each value of z
    assert bool(((found.mean - exact).flatten(1).abs() <= ERRORS * (variance / n).sqrt()).all())
    # The longest that was seen is no longer than what is possible.
    possible = exact.flatten(1).norm(dim=1) + 2 * torch.linalg.matrix_norm(model.a.detach(), 2)
    assert bool((found.longest <= possible).all())
    assert bool((found.longest > exact.flatten(1).norm(dim=1)).all())


def test_zero_gradients() -> None:
    x = torch.rand(2, 3, 2, 2, generator=generator(15))
    direction = torch.ones_like(x)
    found = smooth(Constant().eval(), x, 0, noise=Ball(1.0), samples=40, direction=direction)
    for value in (found.mean, found.norm, found.longest, found.norm_squared, found.along):
        assert value is not None
        assert bool((value == 0).all())


@pytest.mark.parametrize("normalize", [True, False])
def test_norm_squared_is_unbiased(normalize: bool) -> None:
    model, x = network(), images(1)
    take = partial(smooth, model, x, 0, noise=Ball(3.0), normalize=normalize)
    few = torch.stack([torch.cat([s.norm_squared, s.norm**2]) for s in (take(samples=3, seed=i) for i in range(400))])
    # Independent seeds, so the reference is as good as what remains of its own bias, 1 / 20000.
    true = float(take(samples=20_000, seed=10**6).norm_squared)
    error = float(few[:, 0].std()) / math.sqrt(len(few))
    assert abs(float(few[:, 0].mean()) - true) <= ERRORS * error
    # The square of the length is not: it is far too large.
    assert float(few[:, 1].mean()) - true > ERRORS * error


def test_one_sample() -> None:
    found = smooth(network(), images(), TARGET, noise=Ball(1.0), samples=1)
    torch.testing.assert_close(found.norm, torch.ones(3, dtype=torch.float64), **CLOSE)
    assert bool(found.norm_squared.isnan().all())
    assert found.along is None


def test_memory_does_not_grow_with_samples() -> None:
    for max_batch, n in ((1, 3), (7, 3), (100, 3), (2, 1)):
        model = Counting(network())
        smooth(model, images(n), TARGET[:n], noise=Ball(1.0), samples=150, max_batch=max_batch)
        assert sum(model.calls) == 150 * n
        # Passes are full, as far as whole sets of images fit.
        assert max(model.calls) == (max_batch // n * n or max_batch)
        assert len(model.calls) <= math.ceil(150 * n / (max_batch // n * n or 1))


def test_the_model_is_left_alone() -> None:
    model, x = network(), images().requires_grad_()
    state = torch.get_rng_state()
    smooth(model, x, TARGET, noise=Gaussian(0.1), samples=3)
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("factor", "dtype"), [(1e-22, torch.float32), (1e-30, torch.float32), (1e-200, torch.float64)])
def test_maps_that_lose_their_direction(factor: float, dtype: torch.dtype) -> None:
    """Squares that underflow: an error, no map of zeros. Float64 has room where float32 has none."""
    model, x = network(dtype), images(dtype=dtype)
    with torch.no_grad():
        model[-1].weight.mul_(factor)
    for call in (smooth, partial(smoothed, create_graph=True)):
        with pytest.raises(ValueError, match="too short or too long for torch") as error:
            call(model, x, TARGET, noise=Ball(1.0), samples=4)
        assert "\n" not in str(error.value)
    # Without normalization nothing is lost but digits.
    smooth(model, x, TARGET, noise=Ball(1.0), samples=4, normalize=False)
    if dtype == torch.float32:
        found = smooth(model.double(), x.double(), TARGET, noise=Ball(1.0), samples=4)
        assert float(found.norm.min()) > 0.5


# --- the smoothed map as a method -----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("max_batch", [2, 10, 256])
def test_smoothed_is_smooth(max_batch: int, normalize: bool) -> None:
    """One pass, passes that are computed again, and images that do not fit one."""
    model, x = network(), images().requires_grad_()
    take = partial(smoothed, model, x, TARGET, noise=Ball(1.0), samples=40, normalize=normalize, seed=3)
    exact = smooth(model, x, TARGET, noise=Ball(1.0), samples=40, normalize=normalize, seed=3).mean
    torch.testing.assert_close(take(max_batch=max_batch), exact, **CLOSE)
    whole, parts = take(create_graph=True), take(create_graph=True, max_batch=max_batch)
    torch.testing.assert_close(parts, exact, **CLOSE)
    direction = normal(*x.shape, seed=16)
    for a, b in zip(
        torch.autograd.grad((whole * direction).sum(), [x, *model.parameters()], allow_unused=True),
        torch.autograd.grad((parts * direction).sum(), [x, *model.parameters()], allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("max_batch", [5, 256])
def test_derivative_of_the_smoothed_map(normalize: bool, max_batch: int) -> None:
    model, x, v = network(), images(), normal(3, 1, 5, 5, seed=17)
    take = partial(smoothed, model, noise=Ball(1.0), samples=12, normalize=normalize, max_batch=max_batch, seed=1)
    z = x.clone().requires_grad_()
    direction = normal(*x.shape, seed=18)
    (g,) = torch.autograd.grad((take(z, TARGET, create_graph=True) * v).sum(), z)
    step = 1e-5
    ahead, behind = ((take(x + s * direction, TARGET) * v).sum((1, 2, 3)) for s in (step, -step))
    # Central differences: step^2 times a third derivative, and rounding of 1e-15 / step.
    torch.testing.assert_close((g * direction).sum((1, 2, 3)), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def test_smoothed_keeps_type_and_zeros() -> None:
    x = images(dtype=torch.float32)
    assert smoothed(network(torch.float32), x, TARGET, noise=Ball(1.0)).dtype == torch.float32
    graph = smoothed(network(torch.float32), x.requires_grad_(), TARGET, noise=Ball(1.0), create_graph=True)
    assert graph.dtype == torch.float32
    assert graph.shape == x.shape
    zeros = smoothed(Constant().eval(), x, 0, noise=Ball(1.0), create_graph=True)
    assert torch.equal(zeros, torch.zeros_like(x))


def test_passes_with_a_graph_are_bounded() -> None:
    """Images that do not fit one pass are recomputed too, even if each has one sample only."""
    model, x = Counting(network()), images().requires_grad_()
    for max_batch in (2, 6):
        model.calls.clear()
        result = smoothed(model, x, TARGET, noise=Ball(1.0), samples=2, max_batch=max_batch, create_graph=True)
        before = sum(model.calls)
        torch.autograd.grad(result.sum(), x)
        assert max(model.calls) == max_batch
        # All of it once more, or nothing.
        assert sum(model.calls) - before == (6 if max_batch == 2 else 0)


# --- certificates from samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "said"), [(255.0, r"x must be in \[0, 1\]; got values up to"), (-1.0, "down to")])
def test_images_in_other_units_are_not_certified(scale: float, said: str) -> None:
    """A classifier takes [0, 1]: the noise of a certificate would be another on images of 0 to 255."""
    model, x = models.build("lenet", seed=1), scale * torch.rand(1, 3, 32, 32, generator=generator(3))
    read = models.Output(model, lambda f, v: f(v)[:, :2])
    for method in (certify, partial(smoothing.certify_map, k=10)):
        for each in (model, read, models.Output(read, lambda f, v: f(v))):
            with pytest.raises(ValueError, match=said):
                method(each, x, 1, noise=Gaussian(0.1), epsilon=0.1, samples=4, choose=2)  # type: ignore[operator]


def test_projections_beyond_one_by_rounding_are_one() -> None:
    """A sum over an image is off by its rounding, which grows with the image; what is beyond that is no unit vector."""
    x = torch.zeros(3, 32, 32)
    rounding = 2 * x.numel() * torch.finfo(torch.float32).eps
    along = torch.tensor([0.5, 1 + rounding / 2, -1 - rounding / 2, 1 + 2 * rounding], dtype=torch.float64)
    assert _within(along, x).tolist() == [0.5, 1.0, -1.0, 1 + 2 * rounding]

    def flat(model: nn.Module, x: Tensor, target: object, *, create_graph: bool = False) -> Tensor:
        return torch.full_like(x, 1.0)

    model = nn.Sequential(nn.Flatten(), nn.Linear(x.numel(), 2)).eval()
    found = certify(model, x[None], 1, noise=Gaussian(0.1), epsilon=[0.0], samples=20, choose=5, attribution=flat)
    assert 0 < float(found.norm_lower) <= 1


def test_certify_a_linear_model() -> None:
    model, x = Linear(), torch.rand(2, 3, 2, 2, dtype=torch.float64, generator=generator(19))
    found = certify(
        model, x, torch.tensor([0, 1]), noise=Ball(0.5), epsilon=[0.0, 0.01, 0.1, 1.0], samples=2000, choose=5
    )
    # What n equal draws leave open: of the order of ln(3 / alpha) / n.
    assert bool((found.norm_lower > 1 - 3 * math.log(3000) / 2000).all())
    assert bool((found.norm_lower <= 1).all())
    torch.testing.assert_close(found.norm, torch.ones(2, dtype=torch.float64), **CLOSE)
    assert found.expectation.shape == found.estimates.shape == found.abstains.shape == (2, 4)
    assert bool((found.expectation[:, 0] == 1).all())
    assert bool((found.expectation[:, 1] > 0.998).all())
    assert bool((found.estimates[:, 0] > 0.95).all())
    assert bool((found.estimates <= found.expectation).all())
    assert found.abstains.tolist() == [[False, False, False, True]] * 2
    assert found.epsilon == (0.0, 0.01, 0.1, 1.0)
    assert found.labels.tolist() == [0, 1]
    one = certify(model, x, 0, noise=Ball(0.5), epsilon=0.01, samples=2000, choose=5)
    assert torch.equal(one.expectation[:1, 0], found.expectation[:1, 1])
    for epsilons in (np.array([0.0, 0.01]), torch.tensor([0.0, 0.01]), (0, 0.01)):
        several = certify(model, x, 0, noise=Ball(0.5), epsilon=epsilons, samples=20, choose=5)
        assert several.epsilon == pytest.approx((0.0, 0.01))


@pytest.mark.parametrize("noise", [Ball(0.5), Gaussian(0.1)])
def test_certify_a_constant_model(noise: Noise) -> None:
    x = torch.rand(2, 3, 2, 2, generator=generator(20))
    found = certify(Constant().eval(), x, 0, noise=noise, epsilon=[0.0, 0.1], samples=50, choose=5)
    assert bool(found.abstains.all())
    assert bool((found.expectation == -1).all())
    assert bool((found.estimates == -1).all())
    assert bool((found.norm_lower == 0).all())
    assert bool((found.norm == 0).all())


def test_too_few_samples_abstain() -> None:
    """The expectations are certified, two estimates of 30 samples are not."""
    x = torch.rand(1, 3, 2, 2, dtype=torch.float64, generator=generator(21))
    certified = partial(certify, Linear(), x, 0, noise=Ball(0.5), epsilon=[0.0, 0.001], choose=5, alpha=1e-6)
    found = certified(samples=30)
    assert bool((found.expectation > 0).all())
    assert bool((found.estimates == -1).all())
    assert bool((certified(samples=3000).estimates > 0.5).all())


@pytest.mark.parametrize("noise", [Ball(0.5), Gaussian(0.15)])
def test_estimates_by_hand(noise: Noise) -> None:
    samples, alpha, epsilon = 5000, 0.03, [0.0, 0.004]
    asked: dict[str, Any] = {"epsilon": epsilon, "samples": samples, "choose": 50, "alpha": alpha, "spectral": False}
    found = certify(network(), images(1), 0, noise=noise, **asked)
    assert found.split == dict.fromkeys(("norm", "estimate", "estimate_moved"), 0.01)
    assert found.spread is found.spread_upper is None
    h, norm = float(found.norm_lower), float(found.norm)
    assert 0.9 < h < norm
    for k, e in enumerate(epsilon):
        between = math.acos(float(noise.certified_cosine(h, 25, e)))
        there = h - 2 * float(noise.displaced(25, e))
        log = math.sqrt(2 * math.log(100))  # alpha / 3 is 1 / 100
        here = math.asin((math.sqrt(1 - h * h) + log) / math.sqrt(samples) / norm)
        after = math.asin((math.sqrt(1 - there * there) + log) / math.sqrt(samples) / there)
        assert float(found.expectation[0, k]) == pytest.approx(math.cos(between), abs=1e-12)
        assert float(found.estimates[0, k]) == pytest.approx(math.cos(between + here + after), abs=1e-12)


def test_samples_that_choose_do_not_certify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent noise for the direction and for the projections, and a third of alpha for their mean."""
    made: list[tuple[dict[str, Any], smoothing.Smoothed]] = []

    def recorded(*args: Any, **options: Any) -> smoothing.Smoothed:
        made.append((options, smooth(*args, **options)))
        return made[-1][1]

    monkeypatch.setattr("robattr.smoothing.certifying.smooth", recorded)
    found = certify(network(), images(1), 0, noise=Ball(0.5), epsilon=0.01, samples=70, choose=40, alpha=0.06, seed=8)
    (first, chosen), (second, estimate) = made
    assert (first["samples"], second["samples"]) == (40, 70)
    assert first["seed"] != second["seed"]
    torch.testing.assert_close(second["direction"], chosen.mean / chosen.mean.norm(), **CLOSE)
    assert estimate.along is not None
    assert float(found.norm_lower) == pytest.approx(float(mean_lower_bound(estimate.along[0], 0.02)), abs=1e-12)
    assert float(found.norm) == pytest.approx(float(estimate.mean.norm()), abs=1e-12)


POINT = (-0.9, 0.1)


def exact_mean(x: Sequence[float], radius: float) -> np.ndarray:
    """E[unit vector from POINT to x + noise], noise uniform in a disk that does not hold POINT: rings and angles."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    rho, angle = radius * (nodes + 1) / 2, 2 * np.pi * np.arange(96) / 96
    away = rho[:, None] * np.exp(1j * angle) + complex(*x) - complex(*POINT)
    mean = (weights / 2 * radius * rho * 2 / radius**2) @ (away / np.abs(away)).mean(1)
    return np.array([mean.real, mean.imag])


def test_certified_lengths_hold() -> None:
    """Of a field whose mean is known: the lower bounds fail no more often than they say, and are near."""
    model, x, radius, alpha, samples = Distance(POINT).eval(), [0.3, 0.6], 0.8, 0.1, 300
    h = exact_mean(x, radius)
    length = float(np.linalg.norm(h))
    assert 0.8 < length < 0.99
    image = torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 2)
    lower = []
    for seed in range(200):
        found = certify(
            model,
            image,
            0,
            noise=Ball(radius),
            epsilon=0.05,
            samples=samples,
            choose=30,
            alpha=alpha,
            seed=seed,
            max_batch=1024,
        )
        lower.append(float(found.norm_lower))
        assert abs(float(found.norm) - length) <= float(sampling_error(samples, 1e-6))
    # The length is one of three statements that share alpha.
    assert np.mean(np.array(lower) > length) <= alpha / 3 + 3 * math.sqrt(alpha / 3 / 200)
    assert 0 < length - np.median(lower) < 0.04
    # What is certified of the exact length holds for this field, whose map at x + delta is known as well.
    for angle in np.linspace(0, 2 * np.pi, 16):
        after = exact_mean([x[0] + 0.05 * math.cos(angle), x[1] + 0.05 * math.sin(angle)], radius)
        cosine = h @ after / length / np.linalg.norm(after)
        assert cosine >= Ball(radius).certified_cosine(length, 2, 0.05) - 1e-12
        assert cosine >= float(found.expectation)


def test_certified_estimates_hold() -> None:
    """Two estimates with noise of their own are as close as was said, and the bound is a bound on something."""
    model, x, noise, samples = network(), images(1), Ball(0.5), 2000
    found = certify(model, x, 0, noise=noise, epsilon=0.02, samples=samples, choose=100, alpha=0.05)
    bound = float(found.estimates)
    assert bound > 0.5
    for seed in range(10):
        delta = normal(*x.shape, seed=seed)
        moved = x + 0.02 * delta / delta.norm()
        a, b = (
            smooth(model, z, 0, noise=noise, samples=samples, seed=s).mean for z, s in ((x, seed), (moved, 100 + seed))
        )
        assert float((a * b).sum() / a.norm() / b.norm()) >= bound


def rows_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def same(a: smoothing.Certificate, b: smoothing.Certificate) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("norm", "norm_lower", "expectation"))


def test_a_stopped_certification_goes_on(tmp_path: Path) -> None:
    path, x, each = tmp_path / "new" / "rows.jsonl", images(), 30 + 100
    ask = partial(certify, x=x, target=TARGET, noise=Ball(0.5), epsilon=[0.01, 0.02], samples=100, choose=30, path=path)
    whole = ask(Counting(network()), path=None)
    # Stopped by an error in the middle of the third image: two rows.
    with pytest.raises(InterruptedError):
        ask(Counting(network(), stop=2 * each + 10))
    assert [row["image"] for row in rows_of(path)] == [0, 1]
    # Killed while it wrote the second.
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex("norm_lower") + 15], encoding="utf-8")
    model = Counting(network())
    assert same(ask(model), whole)
    assert sum(model.calls) == 2 * each
    assert [row["image"] for row in rows_of(path)] == [0, 1, 2]
    # All there: nothing is computed, nothing changes.
    text = path.read_text(encoding="utf-8")
    model = Counting(network())
    assert same(ask(model), whole)
    assert sum(model.calls) == 0
    assert path.read_text(encoding="utf-8") == text
    # One digit of one number is another one: that image is certified again.
    altered = re.sub(r'("image": 1, "norm": 0\.)(\d)', lambda m: m[1] + str(int(m[2]) ^ 1), text)
    assert altered != text
    path.write_text(altered, encoding="utf-8")
    assert same(ask(model), whole)
    assert sum(model.calls) == each
    model = Counting(network())
    # The end of the last line is lost, its numbers are not.
    path.write_text(text.rstrip("\n"), encoding="utf-8")
    assert same(ask(model), whole)
    assert sum(model.calls) == 0


def test_a_flipped_bit_in_rows_changes_no_number(tmp_path: Path) -> None:
    path, x = tmp_path / "rows.jsonl", images()
    ask = partial(certify, network(), x, TARGET, noise=Ball(0.5), epsilon=[0.01], samples=20, choose=5, path=path)
    whole = ask()
    content = path.read_bytes()
    head = content.index(b"\n")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(8 * len(content), (40,), generator=generator).tolist()
    # The first line alone, its end, and the end of the file.
    for bit in [*drawn, 0, 7, *torch.randint(8 * head, (10,), generator=generator).tolist(), 8 * head + 2, -8]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert same(ask(), whole), bit
        assert sorted(path.read_bytes().splitlines()) == sorted(content.splitlines()), bit
    # Without a row that says whose it is, another first line is another request: one line.
    path.write_bytes(b"\xff" + content[1 : head + 1])
    with pytest.raises(ValueError, match=r"rows\.jsonl, which holds another request"):
        ask()


def test_rows_of_another_request_are_refused(tmp_path: Path) -> None:
    path, x = tmp_path / "rows.jsonl", images()
    given: dict[str, Any] = {
        "model": network(),
        "x": x,
        "target": TARGET,
        "noise": Ball(0.5),
        "epsilon": [0.01],
        "samples": 20,
        "choose": 5,
        "path": path,
    }
    certify(**given)
    text = path.read_text(encoding="utf-8")
    other = network()
    with torch.no_grad():
        other[-1].bias[0] += 1e-3
    changes: list[dict[str, Any]] = [
        {"noise": Gaussian(0.5)},
        {"noise": Ball(0.6)},
        {"epsilon": [0.02]},
        {"samples": 21},
        {"choose": 6},
        {"alpha": 0.01},
        {"seed": 1},
        {"method": "ball"},
        {"x": x + 1e-6},
        {"target": 0},
        {"model": other},
        {"model": network(beta=4.0)},  # no parameter, but another function
        {"attribution": attributions.input_x_gradient},
        {"attribution": partial(attributions.smoothgrad, sigma=0.1)},
    ]
    for change in changes:
        with pytest.raises(ValueError, match=r"rows\.jsonl, which holds another request") as error:
            certify(**{**given, **change})
        assert "\n" not in str(error.value)
        assert path.read_text(encoding="utf-8") == text
    certify(**{**given, "max_batch": 7, "attribution": attributions.gradient})  # what changes rounding only


def test_options_of_a_method_are_part_of_a_request(tmp_path: Path) -> None:
    given = {"noise": Ball(0.5), "epsilon": 0.01, "samples": 4, "choose": 2, "path": tmp_path / "rows.jsonl"}
    black, gray = torch.zeros(1, 5, 5, dtype=torch.float64), torch.full((1, 5, 5), 0.5, dtype=torch.float64)
    method = partial(attributions.integrated_gradients, steps=2)
    certify(network(), images(), TARGET, attribution=partial(method, baseline=black), **given)
    certify(network(), images(), TARGET, attribution=partial(method, baseline=black.clone()), **given)
    for changed in (method, partial(method, baseline=gray), partial(method, baseline=black, steps=3)):
        with pytest.raises(ValueError, match="another request"):
            certify(network(), images(), TARGET, attribution=changed, **given)


def state(model: nn.Module, x: Tensor, target: Tensor, create_graph: bool = False, scale: object = 1.0) -> Tensor:
    return torch.ones_like(x)


class Scaled:
    """An attribution with a state, which its type does not tell."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor, *, create_graph: bool = False) -> Tensor:
        return self.scale * x

    def method(self, model: nn.Module, x: Tensor, target: Tensor, *, create_graph: bool = False) -> Tensor:
        return self.scale * x


anonymous = lambda model, x, target, create_graph=False: x  # noqa: E731


@pytest.mark.parametrize(
    ("attribution", "name"),
    [
        (anonymous, "test_smoothing.<lambda>"),
        (Scaled(1.0), "test_smoothing.Scaled"),
        (Scaled(1.0).method, "test_smoothing.Scaled.method"),
        (partial(Scaled(1.0)), "test_smoothing.Scaled"),
        (partial(state, scale=object()), "builtins.object"),
        (partial(state, scale=[1, (anonymous,)]), "test_smoothing.<lambda>"),
        (partial(state, scale={"of": Scaled(2.0)}), "test_smoothing.Scaled"),
        (partial(state, scale=nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    ],
    ids=["lambda", "object", "method", "partial", "option", "in a list", "in a mapping", "layer"],
)
def test_rows_are_of_attributions_that_have_a_name(attribution: Any, name: str, tmp_path: Path) -> None:
    """Two lambdas, or two objects of a type, would be the same request."""
    model, path = Counting(network()), tmp_path / "rows.jsonl"
    asked = {"noise": Ball(0.5), "epsilon": 0.01, "samples": 4, "choose": 2, "attribution": attribution}
    with pytest.raises(ValueError, match=f"attribution is or has [^ ]*{re.escape(name)}, which a file") as error:
        certify(model, images(), TARGET, path=path, **asked)
    assert "\n" not in str(error.value)
    assert not path.exists()
    assert not model.calls
    certify(model, images(), TARGET, **asked)  # no file has to name it


def test_a_function_that_was_written_anew_is_another_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name, two sources, as of a cell that is run again."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "rows.jsonl"
    asked = {"noise": Ball(0.5), "epsilon": 0.01, "samples": 4, "choose": 2, "path": path}
    text = "def own_map(model, x, target, create_graph=False):\n    return x {} 1\n"
    (tmp_path / "own_maps.py").write_text(text.format("+"), encoding="utf-8")
    own_maps = importlib.import_module("own_maps")
    monkeypatch.setitem(sys.modules, "own_maps", own_maps)
    first = certify(network(), images(), TARGET, attribution=own_maps.own_map, **asked)
    assert same(certify(network(), images(), TARGET, attribution=own_maps.own_map, **asked), first)
    (tmp_path / "own_maps.py").write_text(text.format("-"), encoding="utf-8")
    linecache.clearcache()
    old = own_maps.own_map
    importlib.reload(own_maps)
    for changed in (own_maps.own_map, partial(own_maps.own_map)):
        with pytest.raises(ValueError, match="another request"):
            certify(network(), images(), TARGET, attribution=changed, **asked)
    with pytest.raises(ValueError, match=r"attribution is or has own_maps\.own_map, which a file cannot tell"):
        certify(network(), images(), TARGET, attribution=old, **asked)


def test_names_of_methods_stay(tmp_path: Path) -> None:
    """What is kept under them is found again."""
    path = tmp_path / "rows.jsonl"
    gradients = "robattr.attributions.gradients"
    known: list[tuple[Any, str]] = [
        (attributions.gradient, f"{gradients}.gradient"),
        (partial(attributions.smoothgrad, samples=2, sigma=0.1), f"{gradients}.smoothgrad(samples=2, sigma=0.1)"),
        (
            partial(attributions.integrated_gradients, steps=2, rule="midpoint", baseline=torch.zeros(1)),
            f"{gradients}.integrated_gradients(baseline="
            f"{certifying._digest(torch.zeros(1))}, rule='midpoint', steps=2)",
        ),
        (
            partial(attributions.lrp, rules={nn.Conv2d: "z+", "0": "flat"}, canonizers=()),
            "robattr.attributions.rules.lrp(canonizers=(), "
            "rules={<class 'torch.nn.modules.conv.Conv2d'>: 'z+', '0': 'flat'})",
        ),
        (
            partial(smoothed, noise=Gaussian(0.1), attribution=attributions.deep_taylor),
            "robattr.smoothing.sampling.smoothed("
            "attribution=robattr.attributions.rules.deep_taylor, noise=Gaussian(sigma=0.1))",
        ),
    ]
    for attribution, name in known:
        assert certifying._described(attribution) == name
    certify(network(), images(1), 0, noise=Ball(0.5), epsilon=0.01, samples=4, choose=2, path=path)
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["attribution"] == known[0][1]
    assert certifying._described(partial(state, scale=[1, (2.5,), None])).endswith("(scale=[1, (2.5,), None])")
    # Arrays whose repr is the same.
    one, two = (partial(state, scale=np.full(2000, v)) for v in (0.1, 0.1 + 1e-12))
    assert certifying._described(one) != certifying._described(two)


# --- numbers of half precision --------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Explained by (1, t) in one half-space and (1, -t) in the other, in the type that is asked for."""

    t = 0.3203125  # has an exact bfloat16; the length of (1, t) has none

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.eval()

    def maps(self, model: nn.Module, x: Tensor, target: Tensor, *, create_graph: bool = False) -> Tensor:
        side = torch.where(x[:, 0] >= 0.5, self.t, -self.t)
        return torch.stack([torch.ones_like(side), side], 1).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_maps_of_half_precision_have_unit_length(dtype: torch.dtype, whole: bool) -> None:
    """Their projections, lengths and means are those of float64, of the numbers that the maps have."""
    halves = Halves(dtype)
    x = torch.full((1, 2), 0.5, dtype=dtype if not whole else torch.float32)
    direction, seen = torch.tensor([[1.0, 0.0]], dtype=torch.float64), []
    take = partial(smooth, halves, x, 0, noise=Gaussian(0.1), samples=64, attribution=halves.maps)
    found = take(direction=direction, each=lambda _, maps: seen.append(maps[0]))
    along = 1 / math.hypot(1, Halves.t)
    assert found.along is not None
    torch.testing.assert_close(found.along, torch.full((1, 64), along, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat(seen).norm(dim=1), torch.ones(64), rtol=0, atol=1e-6)
    assert float(found.mean[0, 0]) == pytest.approx(along, abs=1e-6)
    assert float(take(normalize=False).longest) == pytest.approx(math.hypot(1, Halves.t), abs=1e-6)
    # As an attribution, with a graph or without: rounded once, to the type of x.
    for create_graph in (False, True):
        mean = smoothed(
            halves, x, 0, noise=Gaussian(0.1), samples=64, attribution=halves.maps, create_graph=create_graph
        )
        assert mean.dtype == x.dtype
        assert float(mean[0, 0]) == pytest.approx(along, rel=torch.finfo(x.dtype).eps / 2 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lengths_of_maps_of_half_precision_are_below_the_truth(dtype: torch.dtype) -> None:
    halves, x = Halves(dtype), torch.full((1, 2), 0.5)
    found = certify(
        halves, x, 0, noise=Gaussian(0.1), epsilon=0.01, samples=30_000, attribution=halves.maps, max_batch=1024
    )
    truth = 1 / math.hypot(1, Halves.t)
    assert truth - 5e-3 < float(found.norm_lower) < truth


# --- exact adversaries ----------------------------------------------------------------------------------------------


def measured(field: Field, points: Tensor) -> tuple[float, float, float, float]:
    """(||h(x)||, its standard error, cos(h(x), h(x + delta)), its standard error): the delta method."""
    shift = torch.zeros(points.shape[1], dtype=points.dtype)
    shift[0] = field.epsilon
    g, after = field(points), field(points + shift)
    # A field of length 1 everywhere, up to the rounding of a division and a root.
    assert float(torch.cat([g, after]).norm(dim=1).max()) <= 1 + 1e-12
    h, h2 = g.mean(0), after.mean(0)
    u, u2 = h / h.norm(), h2 / h2.norm()
    cosine = u @ u2
    change = (g - h) @ (u2 - cosine * u) / h.norm() + (after - h2) @ (u - cosine * u2) / h2.norm()
    root = math.sqrt(len(points))
    return float(h.norm()), float(((g - h) @ u).std()) / root, float(cosine), float(change.std()) / root


UNIFORM = [
    (0.9, 3, 1.0, 0.25),
    (0.6, 2, 0.5, 0.1),
    (0.97, 2, 1.0, 0.3),
    (0.99, 3, 2.0, 0.5),
    (1.0, 3, 1.0, 0.2),
]


@pytest.mark.parametrize(("mean_norm", "dimension", "radius", "epsilon"), UNIFORM)
def test_worst_field_of_uniform_noise(mean_norm: float, dimension: int, radius: float, epsilon: float) -> None:
    field = worst_field(mean_norm, dimension, radius, epsilon)
    p = float(overlap(dimension, radius, epsilon))
    assert field.cosine == pytest.approx(float(certified_cosine(mean_norm, p)), abs=1e-14)
    points = sample_ball((1_000_000, dimension), radius, generator(22)).double()
    length, length_error, cosine, cosine_error = measured(field, points)
    assert abs(length - mean_norm) <= ERRORS * length_error + 1e-5  # the square of the error of h: its bias
    assert abs(cosine - field.cosine) <= ERRORS * cosine_error + 1e-5
    assert cosine_error < 0.005
    # A certificate that takes p for half of what it is, is caught.
    weak = float(certified_cosine(mean_norm, p / 2))
    assert field.cosine < weak - 0.005
    assert cosine < weak - ERRORS * cosine_error


def test_where_the_quoted_formula_is_a_bound() -> None:
    """For H near M and moderate p it is below the attained certificate; elsewhere the field that attains goes below."""
    p = np.linspace(0.002, 0.5, 250)
    for h, first, last in ((0.97, 0.036, 0.244), (0.99, 0.012, 0.308)):
        bound = smoothing.quoted_cosine(h, p) <= certified_cosine(h, p)
        np.testing.assert_allclose([p[bound].min(), p[bound].max()], [first, last], atol=0.0021)
        assert bound[(p >= first + 0.002) & (p <= last - 0.002)].all()
    for h in (0.3, 0.6, 0.8):
        assert (smoothing.quoted_cosine(h, p) > certified_cosine(h, p)).all()
    field = worst_field(0.8, 3, 1.0, 0.2)
    share = float(overlap(3, 1.0, 0.2))
    assert field.cosine < float(smoothing.quoted_cosine(0.8, share)) - 0.005
    assert smoothing.quoted_cosine(0.8, 0.3) == pytest.approx(0.8)  # 0.8 / sqrt(0.64 + 0.36)
    assert smoothing.quoted_cosine(1.6, 0.3, bound=2.0) == pytest.approx(0.8)
    assert smoothing.quoted_cosine(0.0, 0.0) == 0


def test_a_quoted_bound_is_none() -> None:
    """``H / sqrt(H^2 + (2 p)^2)`` takes h(x + delta) - h(x) for orthogonal to h(x). The adversary is not so kind."""
    h, d, radius, epsilon = 0.9, 3, 1.0, 0.25
    field = worst_field(h, d, radius, epsilon)
    quoted = h / math.hypot(h, 2 * float(overlap(d, radius, epsilon)))
    assert field.cosine < quoted - 0.01
    _, _, cosine, error = measured(field, sample_ball((1_000_000, d), radius, generator(23)).double())
    assert cosine < quoted - ERRORS * error


@pytest.mark.parametrize(
    ("beta", "dimension", "sigma", "epsilon"), [(0.5, 2, 1.0, 0.5), (3.0, 3, 0.5, 0.5), (0.05, 2, 0.1, 0.05)]
)
def test_worst_field_of_gaussian_noise(beta: float, dimension: int, sigma: float, epsilon: float) -> None:
    field = worst_field_gaussian(beta, dimension, sigma, epsilon)
    noise = Gaussian(sigma)
    certified = float(noise.certified_cosine(field.mean_norm, dimension, epsilon))
    assert field.cosine - 1e-5 <= certified <= field.cosine + 1e-9
    points = noise.sample((1_000_000, dimension), generator(24)).double()
    length, length_error, cosine, cosine_error = measured(field, points)
    assert abs(length - field.mean_norm) <= ERRORS * length_error + 1e-5
    assert abs(cosine - field.cosine) <= ERRORS * cosine_error + 1e-5
    # The certificate of half the shift is caught.
    weak = float(noise.certified_cosine(field.mean_norm, dimension, epsilon / 2))
    assert field.cosine < weak - 0.005
    assert cosine < weak - ERRORS * cosine_error


def test_fields_take_float32_and_more_values() -> None:
    for field in (worst_field(0.9, 5, 1.0, 0.2), worst_field_gaussian(1.0, 5, 0.3, 0.2)):
        points = sample_ball((1000, 5), 1.0, generator(25))
        g = field(points)
        assert g.dtype == torch.float32
        assert g.shape == (1000, 5)
        assert bool((g[:, 2:] == 0).all())
        torch.testing.assert_close(g, field(points.double()).float(), rtol=0, atol=1e-5)


def test_integrals_of_a_function_with_a_sharp_bend() -> None:
    for width in (1e-6, 1e-3, 0.1, 30.0):
        t, weights = _panels(-3.0, 4.0, 0.3, width)
        assert (np.diff(t) > 0).all()
        exact = width * (math.asinh(3.7 / width) + math.asinh(3.3 / width))
        assert weights @ (width / np.hypot(t - 0.3, width)) == pytest.approx(exact, rel=1e-11)
        assert weights.sum() == pytest.approx(7, rel=1e-13)


# --- what is refused ------------------------------------------------------------------------------------------------

IMAGE = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
take = partial(smooth, network(), IMAGE, 0)
ask = partial(certify, network(), IMAGE, 0)
BALL = Ball(1.0)


def under_autocast(**asked: Any) -> object:
    with torch.autocast("cpu", torch.bfloat16):
        return ask(**asked)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: overlap(0, 1.0, 0.1), "dimension is 0;"),
    (lambda: overlap(2.5, 1.0, 0.1), "dimension is 2.5;"),
    (lambda: overlap(np.inf, 1.0, 0.1), "dimension is inf;"),
    (lambda: overlap(3, [1.0, -2.0], 0.1), "radius is -2;"),
    (lambda: overlap(3, np.inf, 0.1), "radius is inf;"),
    (lambda: overlap(3, 1.0, -0.1), "epsilon is -0.1;"),
    (lambda: overlap(3, 1.0, np.nan), "epsilon is nan;"),
    (lambda: overlap([3, 4], [1.0, 1.0, 1.0], 0.1), "dimension [2], radius [3], epsilon []"),
    (lambda: certified_cosine(1.1, 0.1), "mean_norm is 1.1;"),
    (lambda: certified_cosine(-0.1, 0.1), "mean_norm is -0.1;"),
    (lambda: certified_cosine(2.1, 0.1, bound=2.0), "mean_norm is 2.1; accepted is a length from 0 to bound, 2"),
    (lambda: certified_cosine(0.5, 1.5), "p is 1.5;"),
    (lambda: certified_cosine(0.5, -0.5), "p is -0.5;"),
    (lambda: certified_cosine(0.5, np.nan), "p is nan;"),
    (lambda: certified_cosine(0.5, 0.1, bound=0.0), "bound is 0;"),
    (lambda: certified_cosine(0.5, 0.1, bound=np.inf), "bound is inf;"),
    (lambda: certified_cosine(0.5, 0.1, method="best"), "method is 'best';"),  # type: ignore[arg-type]
    (lambda: certified_cosine_gaussian(0.5, -1.0), "shift is -1;"),
    (lambda: certified_cosine_gaussian(1.5, 1.0), "mean_norm is 1.5;"),
    (lambda: certified_cosine_gaussian(0.5, 1.0, method="best"), "method is 'best';"),  # type: ignore[arg-type]
    (lambda: sampling_error(0, 0.1), "samples is 0;"),
    (lambda: sampling_error(1.5, 0.1), "samples is 1.5;"),
    (lambda: sampling_error(10, 0.0), "alpha is 0;"),
    (lambda: sampling_error(10, [0.1, 1.0]), "alpha is 1;"),
    (lambda: sampling_error(10, 0.1, mean_norm=1.5), "mean_norm is 1.5;"),
    (lambda: mean_lower_bound([], 0.1), "shape [0];"),
    (lambda: mean_lower_bound(0.5, 0.1), "shape [];"),
    (lambda: mean_lower_bound([0.5, 1.1], 0.1), "values have 1.1; accepted are draws from -1.0 to 1.0"),
    (lambda: mean_lower_bound([0.5, -0.1], 0.1, low=0.0), "values have -0.1;"),
    (lambda: mean_lower_bound([0.5, np.nan], 0.1), "values have nan;"),
    (lambda: mean_lower_bound([0.5], 1.0), "alpha is 1.0;"),
    (lambda: mean_lower_bound_of_moments(1.1, 0.1, 0.0, 10, 0.1), "mean is 1.1; accepted is a mean of draws from -1"),
    (lambda: mean_lower_bound_of_moments(0.5, -0.1, 0.0, 10, 0.1), "variance is -0.1;"),
    (lambda: mean_lower_bound_of_moments(0.5, 0.1, 0.6, 10, 0.1), "least is 0.6;"),
    (lambda: mean_lower_bound_of_moments(0.5, 0.1, 0.0, 0, 0.1), "samples is 0;"),
    (lambda: mean_lower_bound_of_moments(0.5, 0.1, 0.0, 10, 0.0), "alpha is 0;"),
    (lambda: mean_lower_bound_of_moments(0.5, 0.1, 0.0, 10, 0.1, low=1.0), "low is 1.0 and high 1.0;"),
    (lambda: mean_lower_bound([0.5], 0.0), "alpha is 0.0;"),
    (lambda: mean_lower_bound([0.5], 0.1, low=1.0), "low is 1.0 and high 1.0;"),
    (lambda: Ball(0.0), "radius is 0.0;"),
    (lambda: Ball(math.nan), "radius is nan;"),
    (lambda: Gaussian(-1.0), "sigma is -1.0;"),
    (lambda: Gaussian(math.inf), "sigma is inf;"),
    (lambda: Gaussian(1.0).displaced(3, -0.1), "epsilon is -0.1;"),
    (lambda: Gaussian(1.0).certified_cosine(0.5, 3, -0.1), "epsilon is -0.1;"),
    (lambda: Gaussian(1.0).certified_cosine(0.5, 0, 0.1), "dimension is 0;"),
    (lambda: sample_ball((3, 2), 0.0, generator(0)), "radius is 0.0;"),
    (lambda: sample_ball((3,), 1.0, generator(0)), "shape is [3];"),
    (lambda: sample_ball((3, 0), 1.0, generator(0)), "shape is [3, 0];"),
    (lambda: take(noise=BALL, samples=0), "samples is 0;"),
    (lambda: take(noise=BALL, samples=2, direction=torch.zeros(1, 25)), "direction has shape [1, 25];"),
    (lambda: take(noise=BALL, samples=2, max_batch=0), "max_batch is 0;"),
    (lambda: smooth(network().train(), IMAGE, 0, noise=BALL, samples=2), "the model is in training mode"),
    (lambda: smooth(network(), IMAGE[0, 0, 0], 0, noise=BALL, samples=2), "x is torch.float64 of shape (5,);"),
    (lambda: smooth(network(), IMAGE, TARGET, noise=BALL, samples=2), "target is torch.int64 of shape (3,);"),
    (lambda: smoothed(network(), IMAGE, 0, noise=BALL, samples=0, create_graph=True), "samples is 0;"),
    (lambda: smoothed(network(), IMAGE, 0, noise=BALL, max_batch=0, create_graph=True), "max_batch is 0;"),
    (lambda: max_epsilon(0.5, 0.0, dimension=3, noise=BALL), "cosine is 0.0;"),
    (lambda: max_epsilon(0.5, 1.1, dimension=3, noise=BALL), "cosine is 1.1;"),
    (lambda: max_epsilon([0.5, 1.5], 0.5, dimension=3, noise=BALL), "mean_norm is 1.5;"),
    (lambda: max_epsilon(0.5, 0.5, dimension=0, noise=Gaussian(1.0)), "dimension is 0;"),
    (lambda: min_radius([1.0], [0.5], 0.5, dimension=3, epsilon=0.1), "radii are [1.0];"),
    (lambda: min_radius([1.0, 1.0], [0.5, 0.5], 0.5, dimension=3, epsilon=0.1), "radii are [1.0, 1.0];"),
    (lambda: min_radius([0.0, 1.0], [0.5, 0.5], 0.5, dimension=3, epsilon=0.1), "radii are [0.0, 1.0];"),
    (lambda: min_radius([1.0, np.inf], [0.5, 0.5], 0.5, dimension=3, epsilon=0.1), "radii are [1.0, inf];"),
    (lambda: min_radius([1.0, 2.0], [0.5], 0.5, dimension=3, epsilon=0.1), "mean_norms have shape [1];"),
    (lambda: min_radius([1.0, 2.0], [0.5, 1.5], 0.5, dimension=3, epsilon=0.1), "mean_norm is 1.0625;"),
    (lambda: min_radius([1.0, 2.0], [0.5, 0.5], 0.5, dimension=3, epsilon=-0.1), "epsilon is -0.1;"),
    (lambda: min_radius([1.0, 2.0], [0.5, 0.5], -0.5, dimension=3, epsilon=0.1), "cosine is -0.5;"),
    (
        lambda: min_radius([1.0, 2.0], [0.5, 0.5], 0.5, dimension=3, epsilon=0.1, spreads=[0.1]),
        "spreads have shape [1]; accepted is one for each radius, [2]",
    ),
    (lambda: min_radius([1.0, 2.0], [0.5, 0.5], 0.5, dimension=3, epsilon=0.1, spreads=[0.1, 0.1]), "spread is given;"),
    (
        lambda: min_radius([1.0, 2.0], [0.5, 0.5], 0.5, dimension=3, epsilon=0.1, law=Gaussian, spreads=[-0.1, 0.1]),
        "spread is -0.1;",
    ),
    (lambda: ask(noise=BALL, epsilon=[]), "epsilon is [];"),
    (lambda: certify(network(), IMAGE.half(), 0, noise=BALL, epsilon=0.1), "x is torch.float16, which rounds too much"),
    (lambda: certify(network(), IMAGE.bfloat16(), 0, noise=BALL, epsilon=0.1), "x is torch.bfloat16, which rounds"),
    (
        lambda: smoothing.certify_votes(network(), IMAGE.bfloat16(), 0, noise=Gaussian(1.0), epsilon=0.1, k=2),
        "x is torch.bfloat16, which rounds too much",
    ),
    (lambda: under_autocast(noise=BALL, epsilon=0.1), "torch.autocast is on, with torch.bfloat16, which rounds too"),
    (lambda: ask(noise=BALL, epsilon=[0.1, -0.1]), "epsilon is [0.1, -0.1];"),
    (lambda: ask(noise=BALL, epsilon=math.nan), "epsilon is nan;"),
    (lambda: ask(noise=BALL, epsilon=0.1, samples=1), "samples is 1 and choose 1000;"),
    (lambda: ask(noise=BALL, epsilon=0.1, choose=0), "samples is 10000 and choose 0;"),
    (lambda: ask(noise=BALL, epsilon=0.1, alpha=0.0), "alpha is 0.0;"),
    (lambda: ask(noise=BALL, epsilon=0.1, method="best"), "method is 'best';"),  # type: ignore[arg-type]
    (lambda: ask(noise=BALL, epsilon=0.1, max_batch=0), "max_batch is 0;"),
    (lambda: certify(network().train(), IMAGE, 0, noise=BALL, epsilon=0.1), "the model is in training mode"),
    (lambda: worst_field(0.9, 1, 1.0, 0.1), "dimension is 1;"),
    (lambda: worst_field(0.9, 3, 0.0, 0.1), "radius is 0.0;"),
    (lambda: worst_field(0.9, 3, 1.0, 0.0), "epsilon is 0.0;"),
    (lambda: worst_field(0.1, 3, 1.0, 1.0), "epsilon is 1.0;"),
    (lambda: worst_field(1.1, 3, 1.0, 0.1), "mean_norm is 1.1;"),
    (lambda: worst_field_gaussian(1.0, 1, 1.0, 0.1), "dimension is 1;"),
    (lambda: worst_field_gaussian(0.0, 2, 1.0, 0.1), "beta is 0.0;"),
    (lambda: worst_field_gaussian(1.0, 2, 0.0, 0.1), "sigma is 0.0;"),
    (lambda: worst_field_gaussian(1.0, 2, 1.0, 0.0), "epsilon is 0.0;"),
    (lambda: worst_field_gaussian(1.0, 2, 0.1, 0.7), "epsilon is 0.7, which is 7 sigma;"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_refusals_come_before_any_work(tmp_path: Path) -> None:
    model, path = Counting(network()), tmp_path / "rows.jsonl"
    for change in ({"method": "best"}, {"epsilon": -1.0}, {"max_batch": 0}, {"alpha": 2.0}, {"samples": 1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            certify(model, IMAGE, 0, **{"noise": BALL, "epsilon": 0.1, "path": path, **change})
    assert not model.calls
    assert not path.exists()
