"""What a wanted cosine takes: certificates solved for the perturbation or for the noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from robattr.smoothing.certificates import Method, largest
from robattr.smoothing.noise import Ball, Noise


def max_epsilon(
    mean_norm: ArrayLike,
    cosine: float,
    *,
    dimension: int,
    noise: Noise,
    bound: float = 1.0,
    method: Method = "tight",
    spread: ArrayLike | None = None,
) -> np.ndarray:
    """The largest l2 epsilon for which a cosine is certified, for each mean length; 0 where H = 0.

    The inverse of ``noise.certified_cosine``: at the result it returns ``cosine``. Infinite where the spread is 0, or
    one is given and H is the bound: such a field is the same everywhere.

    Args:
        mean_norm: H = ||h(x)||, any shape, from 0 to bound.
        cosine: the wanted bound T, in (0, 1].
        dimension: number of values of an image.
        noise: :class:`Ball` or :class:`Gaussian`.
        bound: M with ||g|| <= M everywhere.
        method: of the certificate.
        spread: Lambda of each, for the best of all certificates of Gaussian noise; broadcasts to mean_norm.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    _check_cosine(cosine)
    lengths = np.asarray(mean_norm, dtype=np.float64)
    spreads = None if spread is None else np.broadcast_to(np.asarray(spread, dtype=np.float64), lengths.shape)
    # Refuses what it does not accept.
    noise.certified_cosine(lengths, dimension, 0.0, bound=bound, method=method, spread=spreads)
    limit = noise.reach(dimension)
    found = np.zeros(lengths.shape)
    for place in zip(*np.nonzero(lengths), strict=True) if lengths.ndim else [()]:
        if lengths[place] == 0:
            continue
        lam = None if spreads is None else float(spreads[place])
        certified = partial(_at_epsilon, noise, float(lengths[place]), dimension, bound, method, lam)
        found[place] = _largest(certified, cosine, limit)
    return found


def _largest(certified: Callable[[float], float], cosine: float, reach: float) -> float:
    """The largest epsilon with a cosine: a very small spread certifies beyond the reach of a length, and 0 all."""
    for limit in (reach, 2 * reach, 4 * reach):
        if certified(limit) < cosine:
            return largest(certified, cosine, limit)
    return np.inf


def _at_epsilon(
    noise: Noise, h: float, dimension: int, bound: float, method: Method, spread: float | None, epsilon: float
) -> float:
    return float(noise.certified_cosine(h, dimension, epsilon, bound=bound, method=method, spread=spread))


def min_radius(
    radii: ArrayLike,
    mean_norms: ArrayLike,
    cosine: float,
    *,
    dimension: int,
    epsilon: float,
    law: Callable[[float], Noise] = Ball,
    bound: float = 1.0,
    method: Method = "tight",
    spreads: ArrayLike | None = None,
) -> float:
    """The smallest radius (or sigma) at which a cosine is certified for epsilon; NaN where none of the range does.

    H falls as the radius grows, and so does p: between them there may be a best radius, or none. H is known where it
    was measured, and so is the spread; both are interpolated linearly between: what is returned has to be measured
    before it is a certificate.

    Args:
        radii: increasing, at least 2, > 0.
        mean_norms: H at each of them.
        cosine: the wanted bound T, in (0, 1].
        dimension: number of values of an image.
        epsilon: l2 length of the shift, >= 0.
        law: :class:`Ball`, or :class:`Gaussian` for sigmas.
        bound: M with ||g|| <= M everywhere.
        method: of the certificate.
        spreads: Lambda at each of the sigmas, for the best of all certificates of Gaussian noise.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    _check_cosine(cosine)
    r, h = np.asarray(radii, dtype=np.float64), np.asarray(mean_norms, dtype=np.float64)
    if r.ndim != 1 or len(r) < 2 or not np.isfinite(r).all() or not (np.diff(r) > 0).all() or r[0] <= 0:
        raise ValueError(f"radii are {r.tolist()}; accepted are at least 2 increasing radii > 0")
    if h.shape != r.shape:
        raise ValueError(f"mean_norms have shape {list(h.shape)}; accepted is one for each radius, {list(r.shape)}")
    lam = None if spreads is None else np.asarray(spreads, dtype=np.float64)
    if lam is not None and lam.shape != r.shape:
        raise ValueError(f"spreads have shape {list(lam.shape)}; accepted is one for each radius, {list(r.shape)}")

    def certified(radius: float, length: float, spread: float | None) -> float:
        noise = law(radius)
        return float(noise.certified_cosine(length, dimension, epsilon, bound=bound, method=method, spread=spread))

    def excess(radius: float) -> float:
        spread = None if lam is None else float(np.interp(radius, r, lam))
        return certified(radius, float(np.interp(radius, r, h)), spread) - cosine

    def most(low: float, high: float) -> float:
        """No radius between has more: certificates rise with length and radius, and fall with the spread."""
        inside = (r > low) & (r < high)
        length = max(*np.interp([low, high], r, h), *h[inside])
        spread = None if lam is None else float(min(*np.interp([low, high], r, lam), *lam[inside]))
        return certified(high, float(length), spread) - cosine

    grid = np.unique(np.concatenate([np.linspace(a, b, 17) for a, b in itertools.pairwise(r)]))
    values = np.array([excess(float(v)) for v in grid])
    last = len(grid) - 1
    for i, value in enumerate(values):
        good = float(grid[i])
        if value < 0:
            # A hill of the grid: its top lies between its neighbors, and may be high enough.
            left, right = max(i - 1, 0), min(i + 1, last)
            if value < max(values[left], values[right]) or most(float(grid[left]), float(grid[right])) < 0:
                continue
            good = _top(excess, float(grid[left]), float(grid[right]))
            if excess(good) < 0:
                continue
        below = float(grid[i - 1]) if i else good
        if excess(below) >= 0:
            return below
        found = float(optimize.brentq(excess, below, good, xtol=1e-14, rtol=1e-13))
        back = 2e-13
        while excess(found) < 0:  # of the two sides of the crossing, the certified one
            found, back = min(found * (1 + back), good), 2 * back
        return found
    return float("nan")


def _top(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is largest that rises, then falls; it may be flat, at -1, far from there.

    In rounds of 33 points, until they are so near that the values differ by rounding only.
    """
    for _ in range(12):
        points = np.linspace(low, high, 33)
        values = np.array([function(float(v)) for v in points])
        i = int(np.argmax(values))
        low, high = float(points[max(i - 1, 0)]), float(points[min(i + 1, 32)])
        if high - low <= 1e-7 * high:
            break
    return float(points[i])


def _check_cosine(cosine: float) -> None:
    if not 0 < cosine <= 1:
        raise ValueError(f"cosine is {cosine}; accepted is a wanted cosine in (0, 1]")
