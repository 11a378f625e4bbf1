"""Certified cosines of smoothed attributions: functions of a few numbers, no network and no randomness.

h(x) = E[g(x + noise)] with ``||g|| <= bound`` everywhere. From the length of h(x) and the size of the shift alone
follows how far h can turn. All functions take numbers or arrays that broadcast. Certified cosines are -1 where nothing
can be said: -1 is a bound on every cosine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Method = Literal["tight", "ball"]
Array = NDArray[np.float64]

# No certificate has an angle above 90 degrees, so 0 never stands for one.
NONE = -1.0


def overlap(dimension: ArrayLike, radius: ArrayLike, epsilon: ArrayLike) -> Array:
    """p, the share of an l2 ball that lies outside the same ball moved by epsilon: what their overlap misses.

    ``p = I_{(epsilon / 2 radius)^2}(1/2, (dimension + 1)/2)``, the regularized incomplete beta function: the total
    variation distance of the two uniform laws. This form keeps its digits where p is small; 1 from epsilon = 2 radius.

    Args:
        dimension: d >= 1, the number of values of an image (channels x height x width).
        radius: of the ball, > 0, in units of a [0, 1] image.
        epsilon: l2 length of the shift, >= 0, in the same units.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    d, r, e = _numbers(dimension=dimension, radius=radius, epsilon=epsilon)
    _check(d >= 1, "dimension", d, "a whole number >= 1, for example 3072")
    _check(d == np.floor(d), "dimension", d, "a whole number >= 1, for example 3072")
    _check(r > 0, "radius", r, "an l2 radius > 0 in units of a [0, 1] image")
    _check(e >= 0, "epsilon", e, "an l2 length >= 0 in units of a [0, 1] image")
    half = np.minimum(e / (2 * r), 1.0)
    return np.asarray(special.betainc(0.5, (d + 1) / 2, half * half))


def certified_cosine(mean_norm: ArrayLike, p: ArrayLike, *, bound: ArrayLike = 1.0, method: Method = "tight") -> Array:
    """A lower bound on cos(h(x), h(x + delta)) when the two noise laws are at total variation distance p.

    Write c, a and b for the means of g on the overlap, on what x has alone and on what x + delta has alone. Then
    ``h(x) = (1 - p) c + p a`` and ``h(x + delta) = (1 - p) c + p b``.

    - ``ball``: the two differ by at most ``2 p bound``, so the sine of the angle is at most ``2 p bound / mean_norm``.
    - ``tight``: c is no longer than ``bound`` either. With ``q = p bound`` and ``s = min(sqrt(H^2 - 3 q^2),
      (1 - p) bound)`` the largest angle is ``arccos((H^2 + s^2 - q^2) / (2 H s)) + arcsin(q / s)``; a piecewise
      constant g attains it. It equals ``ball`` unless H is near the bound.

    Args:
        mean_norm: H = ||h(x)||, from 0 to bound.
        p: from 0 to 1, see :func:`overlap`.
        bound: M with ||g|| <= M everywhere; exactly 1 for normalized gradients.
        method: which of the two.

    Returns:
        The cosine; -1 where H <= 2 p bound, and nothing can be said.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    _check_method(method)
    h, p_, _ = _mean(mean_norm, bound, p=p)
    _check((p_ >= 0) & (p_ <= 1), "p", p_, "a share from 0 to 1, see overlap")
    fine = h > 2 * p_
    return np.asarray(np.where(fine, _uniform(np.where(fine, h, 1), np.where(fine, p_, 0), method), NONE))


def _uniform(h: Array, p: Array, method: Method) -> Array:
    """For bound 1 and h > 2 p."""
    if method == "ball":
        sine = 2 * p / h
        return np.asarray(np.sqrt((1 - sine) * (1 + sine)))
    s = np.minimum(np.sqrt((h - np.sqrt(3) * p) * (h + np.sqrt(3) * p)), 1 - p)
    # The angle at the origin of the triangle with sides h, s and p, opposite to p (half-angle form).
    part = np.maximum((p - h + s) * (p + h - s), 0) / ((h + s - p) * (h + s + p))
    angle = 2 * np.arctan(np.sqrt(part)) + np.arcsin(np.minimum(p / s, 1))
    return np.asarray(np.cos(angle))


def certified_cosine_gaussian(
    mean_norm: ArrayLike, shift: ArrayLike, *, bound: ArrayLike = 1.0, method: Method = "tight"
) -> Array:
    """A lower bound on cos(h(x), h(x + delta)) for Gaussian noise and all ||delta|| <= shift x sigma.

    Unlike two balls, two Gaussian laws have a likelihood ratio L that is finite everywhere, so the adversary has no
    region of its own; that is worth much where h is nearly as long as the bound. For a direction q at angle 90 degrees
    + phi from h and any vector lambda

        ``<h(x + delta), q> = E[<g, L q - lambda>] + <lambda, h(x)> <= bound E|L q - lambda| + <lambda, h(x)>``,

    and where the right side is not positive, the angle between h(x) and h(x + delta) is at most phi. The smallest such
    phi is attained by ``g = bound (L q - lambda) / |L q - lambda|``. Here lambda comes from the stationarity of the
    maximizer, a one-parameter curve for each shift, and the expectation is bounded from above (E f(L) of a convex f, by
    its chords over bins whose mass and mean are known in closed form): what is returned is a bound however well lambda
    was found. Nothing can be certified, exactly, where ``H <= bound (2 Phi(shift) - 1)``.

    ``ball`` is :func:`certified_cosine` with the total variation distance ``p = 2 Phi(shift / 2) - 1``.

    Args:
        mean_norm: H = ||h(x)||, from 0 to bound.
        shift: epsilon / sigma, >= 0.
        bound: M with ||g|| <= M everywhere; exactly 1 for normalized gradients.
        method: which of the two.

    Returns:
        The cosine; -1 where nothing can be said.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    _check_method(method)
    h, a, _ = _mean(mean_norm, bound, shift=shift)
    _check(a >= 0, "shift", a, "epsilon / sigma >= 0")
    if method == "ball":
        return np.asarray(certified_cosine(h, special.erf(a / np.sqrt(8)), method="ball"))
    found = np.full(h.shape, NONE)
    found[(a == 0) & (h > 0)] = 1.0
    for value in np.unique(a[(a > 0) & (a <= _FARTHEST)]):
        rows = (a == value) & (h > special.erf(value / np.sqrt(2)))
        if rows.any():
            found[rows] = _gaussian(h[rows], float(value))
    return found


# Nodes to find lambda, and bins for the bound itself: what the chords give away is below 2e-5 of the cosine.
_COARSE, _FINE = 257, 4097
_FARTHEST = 6.0  # a larger shift asks for an H within 2e-9 of the bound, beyond what rounding leaves
_REACH = 9.0  # standard deviations; what lies outside is in the two outer bins, not left out


def _gaussian(h: Array, a: float) -> Array:
    """For bound 1 and one shift a > 0, where h > erf(a / sqrt 2)."""
    mean, alpha, beta = _stationary(a)
    ratio, mass = _chords(a, _FINE)

    def angle(h: Array, alpha: Array, beta: Array) -> Array:
        """What each lambda certifies, for h that broadcasts against them; infinite where that is nothing."""
        value = np.concatenate([np.hypot(ratio - alpha[i, None], beta[i, None]) @ mass for i in _blocks(len(alpha))])
        needed = value / (h * np.hypot(alpha, beta))
        phi = np.arctan2(alpha, beta) - np.arccos(np.minimum(needed, 1))
        return np.asarray(np.where((needed <= 1) & (phi < np.pi / 2), np.maximum(phi, 0), np.inf))

    # The curve's own points, and one between them for each h: any of them may certify, the best one does. In the
    # logarithm of 1 - H the curve is nearly straight where H is near 1.
    order = np.argsort(mean)
    at, knots = -np.log1p(-np.minimum(h, 1 - 1e-15)), -np.log1p(-mean[order])
    between = [np.exp(np.interp(at, knots, np.log(v[order]))) for v in (alpha, beta)]
    best = np.minimum(angle(h[:, None], alpha, beta).min(1), angle(h, *between))
    return np.where(best < np.inf, np.cos(np.minimum(best, np.pi / 2)), NONE)


def _blocks(n: int, size: int = 128) -> list[slice]:
    return [slice(i, i + size) for i in range(0, n, size)]


def _stationary(a: float) -> tuple[Array, Array, Array]:
    """The adversaries of one shift: mean length H, and lambda = alpha q - beta q' of each, H from its least to 1.

    With r = |L q - lambda| the field (L q - lambda) / r has E[g L] orthogonal to q, which is what the largest angle
    asks for, when ``E[L (L - alpha) / r] = 0``. Given beta there is one such alpha, between the mean of L^2 (beta
    large) and its median under the shifted law (beta small), both at least 1.
    """
    # The trapezoidal rule: for smooth functions that vanish at the ends its error falls exponentially.
    t, width = np.linspace(-_REACH, _REACH + 2 * a, _COARSE, retstep=True)
    ratio, mass = np.exp(a * t - a * a / 2), np.exp(-t * t / 2) * (width / np.sqrt(2 * np.pi))
    beta = np.exp(a * a / 2) * np.logspace(-4, 6, 121)[:, None]
    low, high = np.zeros_like(beta), np.full_like(beta, a * a + 1e-6)  # of the logarithm of alpha
    for _ in range(30):
        distance = ratio - np.exp((low + high) / 2)
        above = (distance / np.hypot(distance, beta)) @ (ratio * mass)[:, None] > 0
        low, high = np.where(above, (low + high) / 2, low), np.where(above, high, (low + high) / 2)
    alpha = np.exp((low + high) / 2)
    distance = ratio - alpha
    r = np.hypot(distance, beta)
    mean = np.hypot((distance / r) @ mass, beta[:, 0] * ((1 / r) @ mass))
    return np.minimum(mean, 1 - 1e-16), alpha[:, 0], beta[:, 0]


def _chords(a: float, nodes: int) -> tuple[Array, Array]:
    """Points and weights with ``sum w f(L) >= E f(L)`` for every convex f with slope at most 1; equal if f is affine.

    t is standard normal and ``L = exp(a t - a^2 / 2)``. In a bin f is below its chord, whose mean follows from the
    bin's mass under t and, with the weight L, under t - a.
    """
    t = np.linspace(-_REACH, _REACH + a, nodes)
    ratio = np.concatenate([[0.0], np.exp(a * t - a * a / 2)])
    edges = np.concatenate([[-np.inf], t, [np.inf]])
    mass = _between(edges[:-1], edges[1:])
    moment = _between(edges[:-1] - a, edges[1:] - a)  # of L
    weights = np.zeros_like(ratio)
    inner_mass, inner_moment, width = mass[:-1], moment[:-1], np.diff(ratio)
    right = np.clip((inner_moment - ratio[:-1] * inner_mass) / width, 0, inner_mass)
    weights[1:] += right
    weights[:-1] += inner_mass - right
    # Beyond the last node: f(L) <= f(last) + (L - last), as a chord to a point far away.
    excess = max(moment[-1] - ratio[-1] * mass[-1], 0.0)
    far = ratio[-1] * 1e6
    weights[-1] += mass[-1] - excess / far
    return np.append(ratio, ratio[-1] + far), np.append(weights, excess / far)


def _between(low: Array, high: Array) -> Array:
    """The standard normal mass of intervals, with its digits in both tails."""
    flip = low > 0
    return np.asarray(np.where(flip, special.ndtr(-low) - special.ndtr(-high), special.ndtr(high) - special.ndtr(low)))


# --------------------------------------------------------------------------------------------------------------------
# Finite samples


def sampling_error(
    samples: ArrayLike, alpha: ArrayLike, *, bound: ArrayLike = 1.0, mean_norm: ArrayLike = 0.0
) -> Array:
    """How far the mean of n independent maps is from h, in l2, with probability at least 1 - alpha.

    ``bound (sqrt(1 - (H / bound)^2) + sqrt(2 ln(1 / alpha))) / sqrt(n)``, whatever the dimension: the first term bounds
    the expectation of the distance (the variance is at most bound^2 - H^2), the second is McDiarmid's inequality, as
    one sample moves the mean by at most 2 bound / n.

    Args:
        samples: n >= 1.
        alpha: probability of failure, between 0 and 1.
        bound: M with ||g|| <= M everywhere.
        mean_norm: a *lower* bound on H = ||h||; 0 is always one.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    h, n, risk, m = _mean(mean_norm, bound, samples=samples, alpha=alpha)
    _check(n >= 1, "samples", n, "a whole number >= 1")
    _check((risk > 0) & (risk < 1), "alpha", risk, "a probability between 0 and 1, for example 0.001")
    return np.asarray(m * (np.sqrt((1 - h) * (1 + h)) + np.sqrt(-2 * np.log(risk))) / np.sqrt(n))


def mean_lower_bound(values: ArrayLike, alpha: float, *, low: float = -1.0, high: float = 1.0) -> Array:
    """A lower confidence bound on the mean of bounded independent draws, by betting; failure probability alpha.

    Against the hypothesis "the mean is at most m" one bets, on each draw X in [0, 1] (rescaled), a share lambda that
    depends on earlier draws only. The capital ``prod (1 + lambda_i (X_i - m))`` is not negative and, under the
    hypothesis, does not grow in expectation; so it reaches 1 / alpha with probability at most alpha (Markov's
    inequality), and where it does, m is rejected. The bound is the smallest m that is not. The shares are the
    predictable plug-in of Waudby-Smith and Ramdas (2024), which adapts to the variance: for projections near 1 it is
    many times closer than Hoeffding's inequality.

    Args:
        values: draws [..., n] in [low, high], independent along the last axis.
        alpha: probability of failure, between 0 and 1.

    Returns:
        [...]; at least ``low``.

    Raises:
        ValueError: no draws, a draw outside of [low, high], or alpha is not what is accepted.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"values have shape {list(x.shape)}; accepted are draws [..., n] with n >= 1")
    _check((np.asarray(alpha) > 0) & (np.asarray(alpha) < 1), "alpha", np.asarray(alpha), "between 0 and 1")
    slack = 1e-6 * (high - low)  # rounding of maps in float32
    outside = ~((x >= low - slack) & (x <= high + slack))
    if outside.any():
        raise ValueError(f"values have {x[outside][0]:.6g}; accepted are draws from {low} to {high}")
    x = np.clip((x - low) / (high - low), 0, 1)
    n = x.shape[-1]
    count = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x, -1)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, -1)) / (count + 1)
    known = np.concatenate([np.full((*x.shape[:-1], 1), 0.25), variance[..., :-1]], -1)  # before each draw
    share = np.sqrt(2 * np.log(1 / alpha) / (n * known))
    below, above = np.zeros(x.shape[:-1]), x.mean(-1)
    for _ in range(50):
        m = (below + above) / 2
        # At most 0.9 / m, so that no draw can ruin the capital; it falls as m grows.
        stake = np.minimum(share, 0.9 / np.maximum(m, 1e-300)[..., None])
        rejected = np.log1p(stake * (x - m[..., None])).sum(-1) >= np.log(1 / alpha)
        below, above = np.where(rejected, m, below), np.where(rejected, above, m)
    return np.asarray(low + (high - low) * below)


# --------------------------------------------------------------------------------------------------------------------
# Inverse forms


def largest(certified: Callable[[float], float], cosine: float, limit: float) -> float:
    """The largest value in [0, limit] with ``certified(value) >= cosine``, for a function that falls from 1."""
    if certified(limit) >= cosine:
        return limit
    return float(optimize.brentq(lambda v: certified(v) - cosine, 0.0, limit, xtol=1e-14 * limit, rtol=1e-13))


def _mean(mean_norm: ArrayLike, bound: ArrayLike, **others: ArrayLike) -> tuple[Array, ...]:
    """H / M and the others, broadcast, with M last."""
    h, *rest, m = _numbers(mean_norm=mean_norm, **others, bound=bound)
    _check((m > 0) & np.isfinite(m), "bound", m, "a finite bound > 0 on the length of g")
    _check(h >= 0, "mean_norm", h, "a length from 0 to bound")
    _check(h <= m * (1 + 1e-6), "mean_norm", h, f"a length from 0 to bound, {np.min(m):g}")
    return np.minimum(h / m, 1.0), *rest, m


def _numbers(**values: ArrayLike) -> tuple[Array, ...]:
    arrays = []
    for name, value in values.items():
        array = np.asarray(value, dtype=np.float64)
        _check(~np.isnan(array), name, array, "a number")
        arrays.append(array)
    try:
        return tuple(np.array(a) for a in np.broadcast_arrays(*arrays))
    except ValueError:
        shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in zip(values, arrays, strict=True))
        raise ValueError(f"shapes do not broadcast: {shapes}") from None


def _check(fine: Any, name: str, value: Array, accepted: str) -> None:
    if not np.all(fine):
        wrong = np.broadcast_to(value, np.shape(fine))[~np.asarray(fine)] if np.ndim(fine) else value
        raise ValueError(f"{name} is {np.ravel(wrong)[0]:g}; accepted is {accepted}")


def _check_method(method: str) -> None:
    if method not in ("tight", "ball"):
        raise ValueError(f"method is {method!r}; accepted are 'tight' and 'ball'")
