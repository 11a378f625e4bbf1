"""What a shift of Gaussian noise can do to the mean of a number or of a few, and to the order of a mean map's pixels.

Functions of a few numbers, no network and no randomness. As in :mod:`robattr.smoothing.spectral`, L is the likelihood
ratio of the noise shifted by delta, and shift = ||delta|| / sigma; everything holds for all shifts up to the given one.

For a number s(x + noise) in [0, 1] there are three bounds on the mean at x + delta, each attained:

- from the mean alone: ``Phi(Phi^-1(E s) - shift)``, by s = 1 in a half-space (Cohen et al. 2019);
- from the mean and the standard deviation: for every function A of L, ``E[s L] = E[A] E[s] + E[(s - E s) A] + E[s (L -
  A)] >= E[A] E[s] - sd(s) sd(A) - E(A - L)+``. The best A is L, cut off at two heights b < t; s = (t - L) / (t - b),
  cut off at 0 and 1, attains it;
- from the whole law: s and L are at worst in opposite order, so the mean is at least the integral of the quantiles of s
  times those of L, in reverse (Hardy and Littlewood).

Upper bounds are those of 1 - s.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from robattr.smoothing.certificates import Array, _check, _numbers
from robattr.smoothing.spectral import _NEAREST, _TAILS, moments

__all__ = ["certified_displacement", "certified_intersection", "certified_mean", "certified_mean_of_values"]

_FARTHEST = 12.0  # as for the cosine: a cut-off says nothing beyond, in float64


def certified_mean(mean: ArrayLike, shift: ArrayLike, *, deviation: ArrayLike = np.inf) -> Array:
    """The least that the mean of a number in [0, 1] can be at x + delta, for all ||delta|| <= shift x sigma.

    From the mean at x alone, or with the standard deviation too; see :mod:`robattr.smoothing.functionals`. The most is
    ``1 - certified_mean(1 - mean, ...)``. Arguments broadcast.

    Args:
        mean: at x, or less; from 0 to 1.
        shift: epsilon / sigma, >= 0.
        deviation: the standard deviation of the number at x, or more, >= 0; infinite where it is not known.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    m, a, sd = _numbers(mean=mean, shift=shift, deviation=deviation)
    _check((m >= 0) & (m <= 1), "mean", m, "a mean from 0 to 1")
    _check(a >= 0, "shift", a, "epsilon / sigma >= 0")
    _check(sd >= 0, "deviation", sd, "a standard deviation >= 0, infinite where it is not known")
    shape = m.shape
    m, a, sd = (v.ravel() for v in (m, a, sd))
    with np.errstate(invalid="ignore", over="ignore"):
        found = special.ndtr(special.ndtri(m) - a)
        found = np.where(a == np.inf, 0.0, np.where(m == 1, 1.0, np.where(a == 0, m, found)))
        moved = np.sqrt(np.expm1(a * a)) * sd
        found = np.maximum(found, m - np.where((a == 0) | ((sd == 0) & (a < np.inf)), 0.0, moved))
    rows = np.nonzero((sd < 0.5) & (sd > 0) & (a > 0) & (a <= _FARTHEST))[0]
    if len(rows):
        value, room = m[rows, None], sd[rows, None]

        def lacking(mean: Array, spread: Array, below: Array, _: Array, slack: Array) -> Array:
            return spread * room + below + slack - (mean - slack) * value

        found[rows] = np.maximum(found[rows], -_least(np.maximum(a[rows], _NEAREST), lacking))
    return np.asarray(np.clip(found, 0, 1).reshape(shape))


def certified_mean_of_values(values: ArrayLike, shift: ArrayLike, *, alpha: float) -> Array:
    """The same from independent draws of the number, with probability at least 1 - alpha.

    By the inequality of Dvoretzky, Kiefer and Wolfowitz with Massart's constant, their law lies at most
    ``sqrt(ln(1 / alpha) / 2 n)`` below the true one with probability 1 - alpha, at all values at once, for alpha up to
    1/2: so that share of the largest draws counts as 0 (Kumar et al. 2020).

    Args:
        values: draws [n] in [0, 1].
        shift: epsilon / sigma, >= 0; any shape.
        alpha: probability of failure, above 0 and at most 1/2. It holds for all shifts at once.

    Returns:
        In the shape of shift.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    s, (a,) = np.asarray(values, dtype=np.float64), _numbers(shift=shift)
    if s.ndim != 1 or not len(s):
        raise ValueError(f"values have shape {list(s.shape)}; accepted are draws [n] with n >= 1")
    _check((s >= -1e-6) & (s <= 1 + 1e-6), "values", s, "draws from 0 to 1")  # rounding of maps in float32
    _check(a >= 0, "shift", a, "epsilon / sigma >= 0")
    if not 0 < alpha <= 0.5:
        raise ValueError(f"alpha is {alpha}; accepted is a probability above 0, at most 0.5, for example 0.001")
    n = len(s)
    lost = np.sqrt(np.log(1 / alpha) / (2 * n))
    edges = special.ndtri(np.minimum(lost + np.arange(n + 1) / n, 1.0))
    with np.errstate(invalid="ignore"):
        # Of the u-th quantile from below: the mass under the law in which the largest L goes to the smallest s.
        beyond = np.where(edges == np.inf, 0.0, special.ndtr(-edges - a[..., None]))
    mass = beyond[..., :-1] - beyond[..., 1:]
    return np.asarray(np.minimum((mass * np.clip(np.sort(s), 0, 1)).sum(-1), 1.0))


def certified_displacement(spread: ArrayLike, shift: ArrayLike, *, bound: ArrayLike = np.inf) -> Array:
    """The most that the mean of a vector moves, in l2, for all ||delta|| <= shift x sigma.

    ``sqrt((exp(shift^2) - 1) spread)``, see :mod:`robattr.smoothing.spectral`; with a bound on how far a sample can be
    from the mean, the better of it and of what cutting off the likelihood ratio gives, ``sqrt(spread) sd(A) + bound
    E|L - A|``. In the unit of the vector: pixels for a center of mass.

    Args:
        spread: the largest eigenvalue of the vector's covariance, or more, >= 0.
        shift: epsilon / sigma, >= 0.
        bound: on the distance of a sample from the mean, > 0; infinite where there is none.

    Returns:
        The distance, at most twice the bound; infinite where nothing can be said.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    lam, a, r = _numbers(spread=spread, shift=shift, bound=bound)
    _check(lam >= 0, "spread", lam, "an eigenvalue of a covariance, >= 0")
    _check(a >= 0, "shift", a, "epsilon / sigma >= 0")
    _check(r > 0, "bound", r, "a distance > 0, infinite for none")
    shape = lam.shape
    lam, a, r = (v.ravel() for v in (lam, a, r))
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.sqrt(np.expm1(a * a)) * np.sqrt(lam)
    found = np.where((a == 0) | ((lam == 0) & (a < np.inf)), 0.0, np.where(a == np.inf, np.inf, found))
    rows = np.nonzero(np.isfinite(r) & (lam > 0) & (a > 0) & (a <= _FARTHEST))[0]
    if len(rows):
        root, far = np.sqrt(lam[rows, None]), r[rows, None]

        def moved(_: Array, spread: Array, below: Array, above: Array, slack: Array) -> Array:
            return root * spread + far * (below + above + slack)

        found[rows] = np.minimum(found[rows], _least(np.maximum(a[rows], _NEAREST), moved))
    return np.asarray(np.minimum(found, 2 * r).reshape(shape))


def _least(a: Array, cost: Callable[[Array, Array, Array, Array, Array], Array]) -> Array:
    """The least cost [n] of a cut-off, a function of its :func:`moments` [n, k]; any cut-off gives a valid bound."""
    a = a[:, None]
    top = 2 * a + _TAILS
    first, second = np.meshgrid(np.linspace(0, 1, 33), np.linspace(0, 1, 17) ** 2, indexing="ij")
    low = first.reshape(1, -1) * (top + _TAILS) - _TAILS
    high = low + second.reshape(1, -1) * (top - low)
    around = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])

    def lowest(low: Array, high: Array, groups: int) -> tuple[Array, Array, Array]:
        """The best of the points [n, k x groups] of each group: [n, groups] each."""
        value = cost(*moments(a, low, high)).reshape(len(a), -1, groups)
        i = np.argmin(value, 1)[:, None]
        value, low, high = (np.take_along_axis(v.reshape(value.shape), i, 1)[:, 0] for v in (value, low, high))
        return value, low, high

    value, low, high = lowest(low, high, 17)  # there may be several valleys
    order = np.argpartition(value, 4, axis=1)[:, :5]
    low, high = (np.take_along_axis(v, order, 1) for v in (low, high))
    for k in range(40):
        step = around * (0.8 * 0.8**k)
        low = np.clip(low[:, None] + step[:, 0, None], -_TAILS, top[:, None]).reshape(len(a), -1)
        high = np.clip(high[:, None] + step[:, 1, None], -_TAILS, top[:, None]).reshape(len(a), -1)
        value, low, high = lowest(low, np.maximum(low, high), 5)
    return np.asarray(value.min(1))


def certified_intersection(heatmap: ArrayLike, displacement: ArrayLike, k: int, *, steps: int = 200) -> Array:
    """The share of a map's k largest values that stay among the k largest of every map within an l2 distance.

    Suppose m of them leave (A) and m others enter (B). The new map's mean over B is then at least that over A, while in
    the old one it is less by the mean of the m smallest of the k minus the mean of the m largest of the others, or
    more: ``gap_m``. The vector ``1_B / m - 1_A / m`` has length ``sqrt(2 / m)``, so the maps are at least ``gap_m
    sqrt(m / 2)`` apart. This grows with m: where it is above the displacement, at most m - 1 leave.

    Args:
        heatmap: finite values [...], one map.
        displacement: l2 distance, >= 0, in the unit of the map; any shape.
        k: how many, from 1 to the number of values.
        steps: at most so many m are looked at, evenly spread, which gives away up to 1 / steps.

    Returns:
        From 0, where nothing is certified, to 1; in the shape of displacement.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    (r,) = _numbers(displacement=displacement)
    _check(r >= 0, "displacement", r, "an l2 distance >= 0")
    leaving, reach = tolerances(heatmap, k, steps)
    return intersection_of(leaving, reach, r, k)


def tolerances(heatmap: ArrayLike, k: int, steps: int = 200, *, top: ArrayLike | None = None) -> tuple[Array, Array]:
    """Numbers m of pixels, increasing, and the l2 distances up to which fewer than m of the top k leave.

    With ``top``, a mask of k values, these are in question whether they are the largest or not. Infinite where m
    cannot leave at any distance, since there are not as many others.
    """
    values = np.asarray(heatmap, dtype=np.float64).ravel()
    n = len(values)
    _check(np.isfinite(values), "heatmap", values, "a map of finite values")
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; the map has {n} values and k is an integer between 1 and that")
    if steps < 1:
        raise ValueError(f"steps is {steps}; accepted is a number >= 1")
    if top is None:
        values = np.sort(values)[::-1]
        lowest, highest = values[:k][::-1], values[k:]
    else:
        inside = np.asarray(top, dtype=bool).ravel()
        lowest, highest = np.sort(values[inside]), np.sort(values[~inside])[::-1]
    m = np.unique(np.ceil(np.linspace(0, k, min(steps, k) + 1)[1:]).astype(int))
    low, high = np.cumsum(lowest), np.cumsum(highest)
    gap = (low[m - 1] - high[np.minimum(m, max(n - k, 1)) - 1]) / m if n > k else np.zeros(len(m))
    # More than n - k cannot leave.
    return m.astype(np.float64), np.where(m <= n - k, np.maximum(gap, 0) * np.sqrt(m / 2), np.inf)


def intersection_of(leaving: Array, reach: Array, displacement: Array, k: int) -> Array:
    """What :func:`tolerances` certify at a displacement: the first m that cannot leave, so m - 1 can."""
    held = (reach > np.asarray(displacement)[..., None]) | (reach == np.inf)
    first = np.argmax(held, -1)
    return np.asarray(np.where(held.any(-1), (k - leaving[first] + 1) / k, 0.0))
