"""What the spread of an attribution along single directions certifies of its Gaussian mean.

Section by section: the certificate and its inverse, functions of a few numbers; then the spread from samples.

Let eta be Gaussian noise, g an attribution, ``h(x) = E g(x + eta)``, S the covariance of ``g(x + eta)`` and Lambda, the
*spread*, the largest eigenvalue of S. Shifting the image by delta is the same as weighting the noise with the
likelihood ratio ``L = exp(<eta, delta> / sigma^2 - a^2 / 2)``, ``a = ||delta|| / sigma``: ``h(x + delta) = E[g L]``.
Since ``E L = 1`` and ``Var L = exp(a^2) - 1``, for every unit vector q

    ``<h(x + delta) - h(x), q> = E[<g - h, q> (L - 1)] <= sqrt(q' S q) sqrt(Var L) <= sqrt(Lambda (exp(a^2) - 1))``

by the inequality of Cauchy and Schwarz (known as that of Hammersley, Chapman and Robbins; here for all directions at
once). So h moves by at most this radius R, and the sine of its angle is at most R / ||h||. The trace of S, which is all
that a bound M on ||g|| speaks of, may be thousands of times as large as Lambda. No bound on g is needed.

With a bound ``||g|| <= M`` one may weigh with any other function A of L and pay for the difference:

    ``|| h(x + delta) - E[A] h(x) || = || E[(g - h) A] + E[g (L - A)] || <= sqrt(Lambda) sd(A) + M E|L - A|``

and a vector this close to ``E[A] h`` has an angle whose sine is at most that radius divided by ``E[A] ||h||``. ``A =
L`` is the statement above, ``A = 1`` the one of two laws at a total variation distance. The best A is L, cut off at two
heights (set the derivative to zero: where A is not L it takes one value above and one below). It falls with the shift:
a smaller shift is a garbling of a larger one, the conditional expectation of a larger shift's A is an A of the smaller
one, and neither its sd nor its distance from L grows on the way. So all of this holds for every ``||delta|| <= a
sigma``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from robattr._rows import parts_of
from robattr.smoothing.certificates import NONE, Array, _check, _numbers

__all__ = ["certified_cosine_spectral", "max_shift_spectral", "shifted_spread", "spread_upper_bound"]


def certified_cosine_spectral(
    mean_norm: ArrayLike, spread: ArrayLike, shift: ArrayLike, *, bound: ArrayLike = np.inf
) -> Array:
    """A lower bound on cos(h(x), h(x + delta)) for Gaussian noise and all ||delta|| <= shift x sigma.

    ``sqrt(1 - (exp(shift^2) - 1) spread / mean_norm^2)``, attained by :func:`worst_field_spectral`; with a bound on
    ||g||, the better of it and of what cutting off the likelihood ratio gives, which matters for large shifts. See
    :mod:`robattr.smoothing.spectral` for the proof. It rises with mean_norm, and falls with the three others.

    Args:
        mean_norm: H = ||h(x)|| or less, >= 0, at most ``bound``.
        spread: Lambda, the largest eigenvalue of the covariance of g(x + noise), or more, >= 0. Taken as at most
            ``bound^2 - mean_norm^2``, the largest trace there is.
        shift: epsilon / sigma, >= 0.
        bound: M with ||g|| <= M everywhere; infinite where none is known, which still certifies.

    Returns:
        The cosine; -1 where nothing can be said, as where H = 0. 1 where H > 0 and shift or spread is 0.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    h, lam, a, m = _accepted(mean_norm, spread, shift, bound)
    shape = h.shape
    h, lam, a, m = (v.ravel() for v in (np.minimum(h, m), lam, a, m))
    finite = np.isfinite(m)
    scale = np.where(finite, m, 1.0)
    lam = np.minimum(lam / scale / scale, np.where(finite, (1 - h / scale) * (1 + h / scale), np.inf))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        sine = np.sqrt(np.expm1(a * a)) * np.sqrt(lam) / (h / scale)
    # 0 times infinity: a field without spread moves nowhere, and neither does any without a shift.
    sine = np.where((h > 0) & (((lam == 0) & (a < np.inf)) | (a == 0)), 0.0, sine)
    sine = np.where(h > 0, sine, np.inf)
    # What is certified of a larger shift is certified of a smaller one: below _NEAREST rounding would count.
    rows = np.nonzero(finite & (h > 0) & (a <= _FARTHEST) & (sine > 0))[0]
    for part in parts_of(len(rows), 4096):
        where = rows[part]
        cut = _cut_off((h / scale)[where], lam[where], np.maximum(a[where], _NEAREST))
        sine[where] = np.minimum(sine[where], cut)
    with np.errstate(invalid="ignore"):
        return np.where(sine < 1, np.sqrt((1 - sine) * (1 + sine)), NONE).reshape(shape)


def max_shift_spectral(
    mean_norm: ArrayLike, spread: ArrayLike, cosine: ArrayLike, *, bound: ArrayLike = np.inf
) -> Array:
    """The largest shift epsilon / sigma for which a cosine is certified: the inverse of the certificate.

    For a noise of sigma the largest epsilon is this times sigma. For an epsilon, epsilon divided by this is the
    smallest sigma *with the same mean_norm and spread*; both change with sigma, and where they were measured at
    several, :func:`min_radius` with ``spreads`` finds the smallest.

    Args:
        mean_norm: H, as for :func:`certified_cosine_spectral`.
        spread: Lambda, as there.
        cosine: the wanted bound T, in (0, 1].
        bound: M, as there.

    Returns:
        The shift; 0 where H = 0 or, with a spread, T = 1; infinite where the spread is 0.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    h, lam, t, m = _numbers(mean_norm=mean_norm, spread=spread, cosine=cosine, bound=bound)
    _check((t > 0) & (t <= 1), "cosine", t, "a wanted cosine in (0, 1]")
    h, lam, _, m = _accepted(h, lam, np.zeros_like(t), m)
    h = np.minimum(h, m)
    trace = np.where(np.isfinite(m), (np.where(np.isfinite(m), m, 0) - h) * (m + h), np.inf)
    least = np.minimum(lam, np.where(np.isnan(trace), 0.0, trace))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        kappa = h * np.sqrt((1 - t) * (1 + t)) / np.sqrt(least)
        below = np.sqrt(np.log1p(kappa * kappa))
        below = np.where((h > 0) & (least == 0), np.inf, np.where((h > 0) & (t < 1), below, 0.0))
    rows = np.isfinite(m) & (h > 0) & (t < 1) & (below < _FARTHEST)
    if not rows.any():
        return np.asarray(below)
    low, high = below[rows], np.full(int(rows.sum()), _FARTHEST)
    wanted = (1 - t[rows]) * (1 + t[rows])  # the square of the sine

    def excess(shift: Array) -> Array:
        found = certified_cosine_spectral(h[rows], lam[rows], shift, bound=m[rows])
        # Beyond what is certified, only the sign counts.
        return np.where(found > NONE, (1 - found) * (1 + found), 4.0) - wanted

    # Certified at low, not at high: the method of false position, in turn with halving.
    left, right = excess(low), excess(high)
    low = np.where(right <= 0, high, low)
    for k in range(80):
        with np.errstate(divide="ignore", invalid="ignore"):
            guess = low - left * (high - low) / (right - left)
        middle = np.where((k % 3 == 2) | ~((guess > low) & (guess < high)), (low + high) / 2, guess)
        new = excess(middle)
        fine = new <= 0
        low, left = np.where(fine, middle, low), np.where(fine, new, left)
        high, right = np.where(fine, high, middle), np.where(fine, right, new)
        if ((high - low) <= 1e-14 * high).all():
            break
    below[rows] = low
    return np.asarray(below)


def _accepted(mean_norm: ArrayLike, spread: ArrayLike, shift: ArrayLike, bound: ArrayLike) -> tuple[Array, ...]:
    h, lam, a, m = _numbers(mean_norm=mean_norm, spread=spread, shift=shift, bound=bound)
    _check(m > 0, "bound", m, "a bound > 0 on the length of g, infinite for none")
    _check((h >= 0) & np.isfinite(h), "mean_norm", h, "a length from 0 to bound")
    long = h > m * (1 + 1e-6)  # rounding of maps in float32
    _check(~long, "mean_norm", h, f"a length from 0 to bound, {m[long][0] if long.any() else 0:g}")
    _check(lam >= 0, "spread", lam, "an eigenvalue of a covariance, >= 0")
    _check(a >= 0, "shift", a, "epsilon / sigma >= 0")
    return h, lam, a, m


_NEAREST = 0.125
_FARTHEST = 12.0  # a cut-off certifies nothing beyond, in float64
_ROUNDING = 2e-13  # relative, of a tail of the normal law in float64, with room
_TAILS = 10.0  # standard deviations between which L is cut off; A = L itself is the formula


def _cut_off(h: Array, lam: Array, a: Array) -> Array:
    """The least sine that a cut-off of L gives, for bound 1: [n] from [n] each.

    Any cut-off is valid. A good one comes from a grid; from its best points steps to where the derivative would vanish
    if the mean and the deviation stayed; and steps around the best that shrink.
    """
    lam, a = lam[:, None], a[:, None]
    top = 2 * a + _TAILS
    around = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)])

    def least(low: Array, high: Array, groups: int = 1) -> tuple[Array, Array, Array]:
        """The best of the points [n, k x groups] of each group: [n, groups] each."""
        radius = _relative_radius(lam, a, low, high)[0].reshape(len(lam), -1, groups)
        i = np.argmin(radius, 1)[:, None]
        found, low, high = (np.take_along_axis(v.reshape(radius.shape), i, 1)[:, 0] for v in (radius, low, high))
        return found, low, high

    def shrinking(low: Array, high: Array, steps: int, first: float) -> tuple[Array, Array, Array]:
        groups = low.shape[1]
        best = low, low, high
        for k in range(steps):
            moved = around * (first * 0.6**k)
            low, high = (
                np.clip(v[:, None] + moved[:, i, None], -_TAILS, top[:, None]).reshape(len(lam), -1)
                for i, v in enumerate(best[1:])
            )
            best = least(np.minimum(low, high), high, groups)
        return best

    first, second = np.meshgrid(np.linspace(0, 1, 25), np.linspace(0, 1, 13) ** 2, indexing="ij")
    low = first.reshape(1, -1) * (top + _TAILS) - _TAILS
    high = low + second.reshape(1, -1) * (top - low)
    radius, low, high = least(low, high, groups=13)  # there may be several valleys
    order = np.argpartition(radius, 5, axis=1)[:, :5]
    low, high = (np.take_along_axis(v, order, 1) for v in (low, high))
    best = least(*shrinking(low, high, 8, 0.5)[1:])
    low, high = best[1:]
    for _ in range(25):
        radius, mean, deviation = _relative_radius(lam, a, low, high)
        width = deviation / np.sqrt(lam)
        ends = mean - (1 - radius) * width, mean + (1 + radius) * width
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = (np.clip(np.nan_to_num(np.log(v) / a + a / 2, nan=-_TAILS), -_TAILS, top) for v in ends)
        low = np.minimum(low, high)
        new = least(low, high)
        better = new[0] < best[0]
        best = np.minimum(new[0], best[0]), np.where(better, new[1], best[1]), np.where(better, new[2], best[2])
    return np.asarray(shrinking(best[1], best[2], 40, 0.25)[0][:, 0] / h)


def _relative_radius(lam: Array, a: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """``(sqrt(Lambda) sd(A) + E|L - A|) / E[A]``, rounded up, for A = L cut off at the two t; E[A], and sd(A)."""
    mean, deviation, below, above, slack = moments(a, low, high)
    rest = mean - slack
    fine = rest > 0
    radius = (np.sqrt(lam) * deviation + below + above + slack) / np.where(fine, rest, 1)
    return np.asarray(np.where(fine, radius, np.inf)), mean, deviation


def moments(a: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Of A, the likelihood ratio L cut off at two heights, given by the t with ``L = exp(a t - a^2 / 2)``.

    Returns E[A]; sd(A), rounded up; E(A - L)+ and E(L - A)+; and by how much rounding may be off in these.

    t is standard normal; with weight L it is normal around a, with L^2 around 2 a.
    """
    bottom, top = np.exp(a * low - a * a / 2), np.exp(a * high - a * a / 2)
    p, q = special.ndtr(low), special.ndtr(-high)
    p1, q1 = special.ndtr(low - a), special.ndtr(a - high)
    below, above = bottom * p - p1, q1 - top * q
    slack = _ROUNDING * (bottom * p + p1 + q1 + top * q)
    mean = 1 + below - above
    # Of (A - 1)^2, whose mean is as small as the shift's square: not of A^2.
    variance = (bottom - 1) ** 2 * p + (top - 1) ** 2 * q
    size = variance
    for weight, k in ((1.0, 0), (-2.0, 1), (np.exp(a * a), 2)):
        mass, larger = _mass(low - k * a, high - k * a)
        variance, size = variance + weight * mass, size + abs(weight) * larger
    variance = variance - (mean - 1) ** 2 + 3 * _ROUNDING * (size + slack)
    return mean, np.sqrt(np.maximum(variance, 0)), below, above, slack


def _mass(low: Array, high: Array) -> tuple[Any, Any]:
    """The standard normal mass of intervals, and the larger of the two tails that it is a difference of."""
    flip = low > 0
    larger = special.ndtr(np.where(flip, -low, high))
    return larger - special.ndtr(np.where(flip, -high, low)), larger


# --------------------------------------------------------------------------------------------------------------------
# The spread from samples


def spread_upper_bound(estimate: ArrayLike, samples: ArrayLike, alpha: ArrayLike, *, limit: ArrayLike) -> Array:
    """An upper confidence bound on the spread Lambda, whatever the dimension: Lambda <= it with probability >= 1 -
    alpha.

    Let v be the top eigenvector of the *true* covariance C: unknown, but fixed. Let the estimate be the largest
    eigenvalue of a mean of matrices ``u u'`` of n independent vectors u with ``E u u' >= C``. It is at least
    ``v' (mean of u u') v``, the mean of n independent numbers ``Y = <u, v>^2`` in [0, limit] with ``E Y >= Lambda``. So
    a bound for the mean of numbers is enough, without a union over directions: by Chernoff's inequality a Lambda above
    the estimate has ``n kl(estimate / limit, Lambda / limit) <= ln(1 / alpha)`` with probability 1 - alpha, where kl is
    the divergence of two coins. The largest such Lambda is returned.

    Three choices of u, for ``||g|| <= M``:

    - ``u = g - m`` with a center m that these samples did not choose: n samples, ``E u u' = C + (h - m)(h - m)'``,
      ``limit = (M + ||m||)^2``. This is what :func:`certify` takes; m = 0 is allowed;
    - pairs, ``u = (g - g') / sqrt(2)``: half as many, ``E u u' = C``, ``limit = 2 M^2``;
    - the samples' covariance with the divisor n - 1 is the mean over all pairs, for which the bound of the n / 2
      disjoint ones holds too (Hoeffding 1963, section 5): the same numbers as for pairs, with a smaller estimate.

    Args:
        estimate: the largest eigenvalue, or more, >= 0.
        samples: n, the number of independent u, >= 1.
        alpha: probability of failure, between 0 and 1.
        limit: of ||u||^2, > 0.

    Returns:
        At least the estimate, at most ``limit``; an estimate above limit (rounding) is taken as limit.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    q, n, risk, top = _numbers(estimate=estimate, samples=samples, alpha=alpha, limit=limit)
    _check(q >= 0, "estimate", q, "an eigenvalue >= 0")
    _check(n >= 1, "samples", n, "a number >= 1")
    _check((risk > 0) & (risk < 1), "alpha", risk, "a probability between 0 and 1, for example 0.001")
    _check((top > 0) & np.isfinite(top), "limit", top, "a finite number > 0")
    q = np.minimum(q / top, 1.0)
    allowed = np.log(1 / risk) / n
    low, high = q.copy(), np.ones_like(q)
    for _ in range(1100):  # until no number lies between: the bound may be many orders below 1
        middle = np.where(low > 0, np.sqrt(low) * np.sqrt(high), high / 2)
        middle = np.where(high < 2 * low, low + (high - low) / 2, middle)
        if ((middle <= low) | (middle >= high)).all():
            break
        fine = _divergence(q, middle) <= allowed
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    return np.asarray(high * top)  # the first that is refused, not the last that is accepted


def _divergence(q: Array, p: Array) -> Array:
    """kl(q, p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)) for 0 <= q <= p."""
    with np.errstate(divide="ignore"):
        return np.asarray(special.xlogy(q, q / p) + special.xlog1py(1 - q, -q) - special.xlog1py(1 - q, -p))


def shifted_spread(spread: ArrayLike, shift: ArrayLike, *, bound: ArrayLike = 1.0) -> Array:
    """The most that the spread can be at x + delta, given that at x, for all ||delta|| <= shift x sigma.

    For a unit v the variance of <g, v> at x + delta is at most ``E[Y L]`` with ``Y = <g - h(x), v>^2``, a number in
    [0, 4 M^2] with mean at most Lambda at x. Under all such laws the most is reached where Y is 0 or 4 M^2, the latter
    where L is largest (Neyman and Pearson): ``4 M^2 Phi(Phi^-1(Lambda / 4 M^2) + shift)``.

    Args:
        spread: Lambda at x or more, >= 0.
        shift: epsilon / sigma, >= 0.
        bound: M with ||g|| <= M everywhere, finite.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    lam, a, m = _numbers(spread=spread, shift=shift, bound=bound)
    _check((m > 0) & np.isfinite(m), "bound", m, "a finite bound > 0 on the length of g")
    _check(lam >= 0, "spread", lam, "an eigenvalue of a covariance, >= 0")
    _check(a >= 0, "shift", a, "epsilon / sigma >= 0")
    limit = 4 * m * m
    share = np.minimum(lam / limit, 1.0)
    with np.errstate(invalid="ignore"):
        moved = special.ndtr(special.ndtri(share) + a)
    return np.asarray(limit * np.where(a == 0, share, np.where(share == 0, 0.0, np.where(share == 1, 1.0, moved))))
