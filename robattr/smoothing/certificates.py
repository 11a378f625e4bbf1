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
from scipy import interpolate, optimize, special

from robattr._rows import parts_of

Method = Literal["tight", "ball"]
Array = NDArray[np.float64]

# No certificate has an angle above 90 degrees, so 0 never stands for one.
NONE = -1.0


def overlap(dimension: ArrayLike, radius: ArrayLike, epsilon: ArrayLike) -> Array:
    """p, the share of an l2 ball that lies outside the same ball moved by epsilon: what their overlap misses.

    ``p = F((epsilon / 2 radius)^2)``, F the beta law with parameters 1/2 and (dimension + 1)/2: the total
    variation distance of the two uniform laws. This form keeps its digits where p is small; 1 from epsilon = 2 radius.

    Args:
        dimension: d >= 1, the number of values of an image (channels x height x width).
        radius: of the ball, > 0, in units of a [0, 1] image.
        epsilon: l2 length of the shift, >= 0, in the same units.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    d, r, e = _numbers(dimension=dimension, radius=radius, epsilon=epsilon)
    _check_dimension(d)
    _check((r > 0) & np.isfinite(r), "radius", r, "a finite l2 radius > 0 in units of a [0, 1] image")
    _check(e >= 0, "epsilon", e, "an l2 length >= 0 in units of a [0, 1] image")
    half = np.minimum(e / (2 * r), 1.0)
    return np.asarray(special.betainc(0.5, (d + 1) / 2, half * half))


def shift_in_sigmas(dimension: ArrayLike, sigma: float, epsilon: ArrayLike) -> Array:
    """epsilon / sigma, checked, in the shape in which it broadcasts against a dimension that does not matter."""
    d, e = _numbers(dimension=dimension, epsilon=epsilon)
    _check_dimension(d)
    _check(e >= 0, "epsilon", e, "an l2 length >= 0 in units of a [0, 1] image")
    return np.asarray(e / sigma)


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


def quoted_cosine(mean_norm: ArrayLike, p: ArrayLike, *, bound: ArrayLike = 1.0) -> Array:
    """What secondary sources quote as the certified cosine of uniform noise. It is *not* a bound everywhere.

    ``T = H / sqrt(H^2 + (M V_U / V_S)^2)`` with ``V_U / V_S = 2 p``, what exactly one of the two balls has: the only
    reading in which T tends to 1 as epsilon falls to 0. T is the cosine of vectors that differ by ``2 p M`` at right
    angles to the first, and no field needs to keep to right angles. As :func:`certified_cosine` is attained, T is a
    bound exactly where it is not above that: for H near the bound and moderate p. Elsewhere :func:`worst_field` has the
    same H and the same p and turns below T; and where ``H <= 2 p M``, where T is positive, nothing can be said.

    Args:
        mean_norm: H = ||h(x)||, from 0 to bound.
        p: from 0 to 1, see :func:`overlap`.
        bound: M with ||g|| <= M everywhere.

    Returns:
        From 0 to 1; 0 where H = 0.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    h, p_, _ = _mean(mean_norm, bound, p=p)
    _check((p_ >= 0) & (p_ <= 1), "p", p_, "a share from 0 to 1, see overlap")
    return np.asarray(np.where(h > 0, h / np.maximum(np.hypot(h, 2 * p_), 1e-300), 0.0))


def _uniform(h: Array, p: Array, method: Method) -> Array:
    """For bound 1 and h > 2 p."""
    q = p / h
    if method == "ball":
        return np.asarray(np.sqrt((1 - 2 * q) * (1 + 2 * q)))
    # In units of h, whose square may underflow.
    s = np.minimum(h * np.sqrt((1 - np.sqrt(3) * q) * (1 + np.sqrt(3) * q)), 1 - p) / h
    # The angle at the origin of the triangle with sides 1, s and q, opposite to q (half-angle form).
    part = np.maximum((q - 1 + s) * (q + 1 - s), 0) / ((1 + s - q) * (1 + s + q))
    angle = 2 * np.arctan(np.sqrt(part)) + np.arcsin(np.minimum(q / s, 1))
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
        The cosine; -1 where nothing can be said, as for all shifts above 6. With ``tight`` it rises with mean_norm, and
        is 1 where H is exactly the bound.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    _check_method(method)
    h, a, _ = _mean(mean_norm, bound, shift=shift)
    _check(a >= 0, "shift", a, "epsilon / sigma >= 0")
    found = certified_cosine(h, special.erf(a / np.sqrt(8)), method="ball")
    if method == "ball":
        return found
    for value in np.unique(a[(a >= _NEAREST) & (a <= FARTHEST)]):
        rows = (a == value) & (h > special.erf(value / np.sqrt(2)))
        if rows.any():
            found[rows] = np.maximum(found[rows], _gaussian(h[rows], float(value)))
    found[(h == 1) & (a <= FARTHEST)] = 1.0  # a mean as long as the bound is that of a constant
    return found


FARTHEST = 6.0  # a larger shift asks for an H within 2e-9 of the bound, beyond what rounding leaves
_NEAREST = 1e-5  # for a smaller shift the ball's angle is as good
_REACH = 9.0  # standard deviations; what lies outside is in the two outer bins, not left out
# Nodes to find v, and bins for the bound itself. What the chords give away of the cosine is below 1e-6 for shifts
# up to 3, and below 1e-4 up to 4 where the cosine is above 0.05.
_COARSE, _FINE = 257, 2049
_ROOM = np.array([0.0, 1e-4, 1e-3, 1e-2])
_LONGEST = 1 - 1e-10  # H / bound up to which each gets vectors v of its own


def _gaussian(h: Array, a: float) -> Array:
    """For bound 1 and one shift a > 0, where h > erf(a / sqrt 2)."""
    # Interpolated in the logarithm of 1 - H, where the curve is nearly straight when H is near 1. Each h gets its own
    # v and those of slightly smaller lengths, for which the inequality has room for what the chords add.
    knots, values = _stationary(a)
    at = np.clip(-np.log1p(-np.minimum(h, _LONGEST))[:, None] - np.log1p(_ROOM), knots[0], knots[-1])
    alpha, beta = np.exp(np.moveaxis(interpolate.PchipInterpolator(knots, values)(at), -1, 0))
    angle = np.concatenate(
        [_angle(h[i, None], alpha[i], beta[i], _needed(a, alpha[i], beta[i])) for i in parts_of(len(h), 32)]
    )
    # And those of the curve's knots: what one lambda certifies of a length, it certifies of every longer one. Next to
    # the bound, where a lambda for each h would differ by rounding, there are no others: the result rises with h.
    alpha, beta = np.exp(values.T)
    angle = np.minimum(angle, _angle(h[:, None], alpha, beta, _needed(a, alpha, beta)))
    return np.where(angle < np.inf, np.cos(np.minimum(angle, np.pi / 2)), NONE)


def _needed(a: float, alpha: Array, beta: Array) -> Array:
    """E|L q - lambda| in units of |lambda|, from above: by the chords, and by what sums in float64 leave."""
    ratio, mass, beyond = _chords(a, _nodes(a, alpha, beta, _FINE)[0])
    value = (np.hypot(ratio - alpha[..., None], beta[..., None]) * mass).sum(-1) + beyond
    return np.asarray(value / np.hypot(alpha, beta) * (1 + 4e-15))


def _angle(h: Array, alpha: Array, beta: Array, needed: Array) -> Array:
    """The smallest angle that h [n, 1] certifies with one of its lambdas [n, k] or [k]; infinite where none does."""
    needed = needed / h
    phi = np.arctan2(alpha, beta) - np.arccos(np.minimum(needed, 1))
    return np.asarray(np.where((needed <= 1) & (phi < np.pi / 2), np.maximum(phi, 0), np.inf).min(-1))


def _stationary(a: float) -> tuple[Array, Array]:
    """The adversaries of one shift: -ln(1 - H), increasing, and the logarithms [n, 2] of alpha and beta of each.

    v = alpha q - beta q'. With r = |L q - v| the field (L q - v) / r has E[g L] orthogonal to q, which
    is what the largest angle asks for, when ``E[L (L - alpha) / r] = 0``. Given beta there is one such alpha, between
    the mean of L^2 (beta large) and its median under the shifted law (beta small), both at least 1.
    """
    beta = min(a, 1.0) * np.exp(a * a / 2) * np.logspace(-4, 6, 81)
    low, high = np.zeros_like(beta), np.full_like(beta, a * a + 1e-6)  # of the logarithm of alpha
    middle = (low + high) / 2
    for _ in range(40):  # Newton's method within a bracket that halves where a step leaves it
        alpha = np.exp(middle)
        ratio, distance, r, mass = _expectation(a, alpha, beta)
        mass *= ratio / r
        value, slope = (distance * mass).sum(-1), -alpha * beta**2 * (mass / (r * r)).sum(-1)
        low, high = np.where(value > 0, middle, low), np.where(value > 0, high, middle)
        step = middle - value / slope
        inside = (step >= low) & (step <= high)
        last, middle = middle, np.where(inside, step, (low + high) / 2)
        if (np.abs(middle - last) <= 1e-10).all():
            break
    alpha = np.exp(middle)
    _, distance, r, mass = _expectation(a, alpha, beta)
    # 1 - H of a field of unit vectors is its variance / (1 + H), which keeps its digits where H is near 1.
    field = np.stack([distance / r, beta[:, None] / r])
    mean = (field * mass).sum(-1)
    variance = ((field - mean[..., None]) ** 2 * mass).sum((0, -1))
    lacking = variance / (1 + np.hypot(*mean))
    knots, first = np.unique(-np.log(np.clip(lacking, 1e-15, 1)), return_index=True)
    return knots, np.log(np.stack([alpha, beta], 1))[first]


def _expectation(a: float, alpha: Array, beta: Array) -> tuple[Array, Array, Array, Array]:
    """L, L - alpha, r and the weights of an expectation, [n, nodes]: the trapezoidal rule, whose error for smooth
    functions that vanish at the ends falls exponentially."""
    t, width = _nodes(a, alpha, beta, _COARSE)
    ratio = np.exp(a * t - a * a / 2)
    distance = ratio - alpha[:, None]
    return ratio, distance, np.hypot(distance, beta[:, None]), np.exp(-t * t / 2) * width / np.sqrt(2 * np.pi)


def _nodes(a: float, alpha: Array, beta: Array, n: int) -> tuple[Array, Array]:
    """Points t and their distances [..., n]: closer where L is near alpha, as r = 0 at L = alpha +- i beta."""
    near = np.log(np.hypot(alpha, beta)) / a + a / 2
    scale = np.minimum(np.arctan2(beta, alpha) / a, 1.0)
    low, high = np.arcsinh((-_REACH - near) / scale), np.arcsinh((_REACH + 2 * a - near) / scale)
    s = low[..., None] + (high - low)[..., None] * np.linspace(0, 1, n)
    return near[..., None] + scale[..., None] * np.sinh(s), (scale * (high - low) / (n - 1))[..., None] * np.cosh(s)


def _chords(a: float, t: Array) -> tuple[Array, Array, Array]:
    """Points, weights and a rest with ``sum w f(L) + rest >= E f(L)`` for every convex f whose slope is at most 1.

    A standard normal variable has ``L = exp(a t - a^2 / 2)``; the bins lie between the given t [..., n], increasing. In
    a bin f is below its chord, whose mean follows from the bin's mass under t and, with the weight L, under t - a.
    Beyond the last of them f(L) is at most f(last) + L - last, which is the rest: next to nothing if t reaches far.
    """
    ratio = np.exp(a * t - a * a / 2)
    ratio = np.concatenate([np.zeros_like(ratio[..., :1]), ratio], -1)
    end = np.full_like(ratio[..., :1], np.inf)
    edges = np.concatenate([-end, t, end], -1)
    mass = _between(edges[..., :-1], edges[..., 1:])
    moment = _between(edges[..., :-1] - a, edges[..., 1:] - a)  # of L
    rest = np.maximum(moment[..., -1] - ratio[..., -1] * mass[..., -1], 0)
    right = np.clip((moment[..., :-1] - ratio[..., :-1] * mass[..., :-1]) / np.diff(ratio), 0, mass[..., :-1])
    none = np.zeros_like(end)
    return ratio, mass - np.concatenate([right, none], -1) + np.concatenate([none, right], -1), rest


def _between(low: Array, high: Array) -> Array:
    """The standard normal mass of intervals, with its digits in both tails."""
    flip = low > 0
    return np.asarray(np.where(flip, special.ndtr(-low) - special.ndtr(-high), special.ndtr(high) - special.ndtr(low)))


# --------------------------------------------------------------------------------------------------------------------
# Finite samples


def sampling_error(
    samples: ArrayLike,
    alpha: ArrayLike,
    *,
    bound: ArrayLike = 1.0,
    mean_norm: ArrayLike = 0.0,
    spread: ArrayLike | None = None,
) -> Array:
    """How far the mean of n independent maps is from h, in l2, with probability at least 1 - alpha.

    ``E + bound sqrt(2 ln(1 / alpha) / n)`` with ``E = bound sqrt((1 - (H / bound)^2) / n)``, whatever the dimension: E
    bounds the expectation of the distance (the variance is at most bound^2 - H^2), the rest is McDiarmid's inequality,
    as one sample moves the mean by at most 2 bound / n.

    The distance is also the largest, over unit vectors q, of a mean of numbers ``<g - h, q>``, which are at most 2
    bound and have a variance of at most the spread Lambda. By Bousquet's inequality for such a supremum (2002; with
    ``f <= b``, ``P(Z >= E Z + sqrt(2 t (n Lambda + 2 b E Z)) + b t / 3) <= exp(-t)``, Z being n times the distance) it
    is at most ``E + sqrt(2 t (Lambda + 4 bound E) / n) + 2 bound t / (3 n)``, ``t = ln(1 / alpha)``. The smaller of the
    two is returned: which one it is follows from H and Lambda, not from the samples, so that nothing is added to alpha.

    Args:
        samples: n >= 1.
        alpha: probability of failure, between 0 and 1.
        bound: M with ||g|| <= M everywhere.
        mean_norm: a *lower* bound on H = ||h||; 0 is always one.
        spread: an *upper* bound on Lambda, the largest eigenvalue of the covariance of one map; None where none is
            known.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    given = {} if spread is None else {"spread": spread}
    h, n, risk, *known, m = _mean(mean_norm, bound, samples=samples, alpha=alpha, **given)
    _check((n >= 1) & (n == np.floor(n)), "samples", n, "a whole number >= 1")
    _check((risk > 0) & (risk < 1), "alpha", risk, "a probability between 0 and 1, for example 0.001")
    mean = np.sqrt((1 - h) * (1 + h)) / np.sqrt(n)
    log = -np.log(risk)
    away = np.sqrt(2 * log / n)
    for lam in known:
        _check(lam >= 0, "spread", lam, "an eigenvalue of a covariance, >= 0")
        share = np.minimum(lam / (m * m), (1 - h) * (1 + h))
        away = np.minimum(away, np.sqrt(2 * log * (share + 4 * mean) / n) + 2 * log / (3 * n))
    return np.asarray(m * (mean + away))


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
        low: of what a draw can be.
        high: of what a draw can be, above low.

    Returns:
        [...]; at least ``low``.

    Raises:
        ValueError: no draws, a draw outside of [low, high], or alpha or the range is not what is accepted.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"values have shape {list(x.shape)}; accepted are draws [..., n] with n >= 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; accepted is a probability between 0 and 1, for example 0.001")
    if not (low < high and np.isfinite(high - low)):
        raise ValueError(f"low is {low} and high {high}; accepted are finite numbers, low below high")
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


# Stakes as shares of the hypothesis, each half the one before; what of the capital starts with each sums to 1.
_STAKES = 0.98 / 2.0 ** np.arange(16)
_SHARES = 1 / ((np.arange(16) + 1.0) * (np.arange(16) + 2.0))
_FEWER_DIGITS = 1e-6  # what rounding may take from a mean


def mean_lower_bound_of_moments(
    mean: ArrayLike,
    variance: ArrayLike,
    least: ArrayLike,
    samples: ArrayLike,
    alpha: ArrayLike,
    *,
    low: float = -1.0,
    high: float = 1.0,
) -> Array:
    """A lower confidence bound on the mean of bounded independent draws, from three numbers about them.

    :func:`mean_lower_bound` needs all draws, in their order; this says nearly as much, and anybody can compute it
    again. Against the hypothesis "the mean is at most m" of draws X in [0, 1] (rescaled) one bets the share ``c / m``
    on each, with a c below 1 that was chosen before. The capital is the product of all ``1 + u``, ``u = (c / m)
    (X - m)``; it stays positive, and by Markov's inequality reaches 1 / alpha with probability at most alpha. Since
    ``(ln(1 + u) - u) / u^2`` rises with u, all u that are at least -r have ``ln(1 + u) >= u - w u^2``, ``w = (-ln(1 -
    r) - r) / r^2``. For draws that are not less than ``least`` one may take ``r = c (1 - least / mean)``. The sum over
    n draws is a function of their mean and variance:

        ``n ((c / m) (mean - m) - w (c / m)^2 (variance + (mean - m)^2))``.

    Where this is at least ``ln(1 / alpha)``, m is rejected, and with it every smaller mean, whose capital is larger.
    The largest such m solves a quadratic equation in 1 / m. Capital is split over 16 stakes c = 0.98, 0.49, ... in
    shares of 1/2, 1/6, 1/12, ..., so that no variance has to be known beforehand; the best of the 16 results counts.

    The mean may have been rounded down, by at most 1e-6 of its size, as well as the least, and the variance up.

    Args:
        mean: of the draws.
        variance: the mean of their squared distances from that (the divisor is n), or more, >= 0.
        least: of the draws, or less; ``low`` where it is not known.
        samples: n >= 1.
        alpha: probability of failure, between 0 and 1.
        low: of what a draw can be.
        high: of what a draw can be, above low.

    Returns:
        In the shape of what was given; at least ``low``.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    if not (low < high and np.isfinite(high - low)):
        raise ValueError(f"low is {low} and high {high}; accepted are finite numbers, low below high")
    x, v, first, n, risk = _numbers(mean=mean, variance=variance, least=least, samples=samples, alpha=alpha)
    slack = 1e-6 * (high - low)  # rounding of maps in float32
    _check((x >= low - slack) & (x <= high + slack), "mean", x, f"a mean of draws from {low:g} to {high:g}")
    _check((v >= 0) & np.isfinite(v), "variance", v, "a finite number >= 0")
    _check(first <= x + slack, "least", first, "a number that is not above the mean")
    _check(n >= 1, "samples", n, "a number >= 1")
    _check((risk > 0) & (risk < 1), "alpha", risk, "a probability between 0 and 1, for example 0.001")
    size = np.abs(x) / (high - low)
    x, v = np.clip((x - low) / (high - low), 0, 1)[..., None], v[..., None] / (high - low) ** 2
    first = np.clip((first - low) / (high - low), 0, None)[..., None]
    # Draws that fit a mean which was rounded down are smaller by that: u may be a little below.
    reach = _STAKES * (1 - first / np.maximum(x, first + 1e-300)) + 1e-4
    weight = (-np.log1p(-reach) - reach) / reach**2
    log = (np.log(1 / risk)[..., None] - np.log(_SHARES)) / n[..., None]
    # a z^2 - b z + c <= 0 for z = 1 / m
    a, b = _STAKES**2 * weight * (v + x * x), _STAKES * x * (1 + 2 * _STAKES * weight)
    c = _STAKES + _STAKES**2 * weight + log
    root = b * b - 4 * a * c
    found = np.where(root >= 0, (b + np.sqrt(np.maximum(root, 0))) / (2 * c), 0.0).max(-1)
    found = np.where(found >= 0.01 * np.maximum(size, x[..., 0]), found * (1 - 1e-12), 0.0)
    return np.asarray(low + (high - low) * found)


# --------------------------------------------------------------------------------------------------------------------
# Inverse forms


def largest(certified: Callable[[float], float], cosine: float, limit: float) -> float:
    """The largest value in [0, limit] with ``certified(value) >= cosine``, for a function that falls from 1."""
    if certified(limit) >= cosine:
        return limit
    # The result may be many orders below the limit: its digits count, not those of the limit.
    found = float(optimize.brentq(lambda v: certified(v) - cosine, 0.0, limit, xtol=1e-300, rtol=1e-13, maxiter=2000))
    # Where the function jumps, to -1, only one side of the jump is certified.
    back = 2e-13
    while certified(found) < cosine:
        found, back = found * (1 - back), 2 * back
    return found


def _mean(mean_norm: ArrayLike, bound: ArrayLike, **others: ArrayLike) -> tuple[Array, ...]:
    """H / M and the others, broadcast, with M last."""
    h, *rest, m = _numbers(mean_norm=mean_norm, **others, bound=bound)
    _check((m > 0) & np.isfinite(m), "bound", m, "a finite bound > 0 on the length of g")
    _check(h >= 0, "mean_norm", h, "a length from 0 to bound")
    long = h > m * (1 + 1e-6)  # rounding of maps in float32
    _check(~long, "mean_norm", h, f"a length from 0 to bound, {m[long][0] if long.any() else 0:g}")
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


def _check_dimension(d: Array) -> None:
    _check((d >= 1) & (d == np.floor(d)) & np.isfinite(d), "dimension", d, "a whole number >= 1, for example 3072")


def _check(fine: Any, name: str, value: Array, accepted: str) -> None:
    if not np.all(fine):
        wrong = np.broadcast_to(value, np.shape(fine))[~np.asarray(fine)] if np.ndim(fine) else value
        raise ValueError(f"{name} is {np.ravel(wrong)[0]:g}; accepted is {accepted}")


def _check_method(method: str) -> None:
    if method not in ("tight", "ball"):
        raise ValueError(f"method is {method!r}; accepted are 'tight' and 'ball'")
