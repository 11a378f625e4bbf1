"""Fields whose smoothed map turns as far as the certificates allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from robattr.smoothing.certificates import FARTHEST, NONE
from robattr.smoothing.noise import Ball, Noise, _check_scale
from robattr.smoothing.spectral import certified_cosine_spectral

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Field:
    """A field g whose smoothed map turns as far as a certificate allows.

    Call it with points [n, d], relative to x, to get g [n, d]. The perturbation is ``(epsilon, 0, ..., 0)``.

    Attributes:
        mean_norm: ||h(x)||.
        cosine: cos(h(x), h(x + delta)); like mean_norm without sampling, to about 12 digits.
        epsilon: l2 length of the perturbation.
        bound: the most that ||g|| can be, at any point; infinite where there is no such number.
        spread: the largest eigenvalue of the covariance of g(x + noise), or None where nothing is said of it.
    """

    mean_norm: float
    cosine: float
    epsilon: float
    at: Callable[[Tensor], Tensor]
    bound: float = 1.0
    spread: float | None = None

    def __call__(self, points: Tensor) -> Tensor:
        return self.at(points)


def worst_field(mean_norm: float, dimension: int, radius: float, epsilon: float) -> Field:
    """The piecewise constant field that attains the tight certificate of the uniform law, d >= 2.

    On the overlap of the balls around x and x + delta, on what is x's alone and on what is x + delta's alone it is
    constant, with the values from the proof of :func:`certified_cosine`.

    Raises:
        ValueError: an argument is not what is accepted, or nothing is certified there.
    """
    p, cosine = _field_numbers(mean_norm, dimension, Ball(radius), epsilon)
    h = mean_norm
    s = min(np.sqrt(h * h - 3 * p * p), 1 - p)
    turn = np.arccos(np.clip((h * h + s * s - p * p) / (2 * h * s), -1, 1))
    v = s * np.array([np.cos(turn), np.sin(turn)])  # (1 - p) c, in the plane with h along the first axis
    a = (np.array([h, 0.0]) - v) / p
    further = turn + np.arcsin(min(p / s, 1.0))
    b = -np.array([-np.sin(further), np.cos(further)])  # orthogonal to h(x + delta) = v + p b
    b = -b if (v + p * b) @ (v + p * b) > (v - p * b) @ (v - p * b) else b
    values = torch.from_numpy(np.stack([v / (1 - p), a, b]))

    def at(points: Tensor) -> Tensor:
        shift = torch.zeros(dimension, dtype=points.dtype, device=points.device)
        shift[0] = epsilon
        here = torch.linalg.vector_norm(points, dim=1) <= radius
        there = torch.linalg.vector_norm(points - shift, dim=1) <= radius
        which = torch.where(here & there, 0, torch.where(here, 1, 2))
        return _in_plane(values.to(points)[which], dimension)

    return Field(mean_norm, cosine, epsilon, at)


def worst_field_gaussian(beta: float, dimension: int, sigma: float, epsilon: float) -> Field:
    """An adversary of the Gaussian certificate: ``g = (L q - lambda) / |L q - lambda|``, d >= 2.

    Args:
        beta: > 0; which of the one-parameter family. Its mean length grows with it, from 2 Phi(epsilon / sigma) - 1
            to 1.
        dimension: of the points.
        sigma: of the noise.
        epsilon: l2 length of the perturbation, > 0 and at most 6 sigma.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    if dimension < 2:
        raise ValueError(f"dimension is {dimension}; the field needs a plane, accepted is >= 2")
    if not (beta > 0 and np.isfinite(beta)):
        raise ValueError(f"beta is {beta}; accepted is a finite number > 0")
    for name, value in (("sigma", sigma), ("epsilon", epsilon)):
        _check_scale(name, value)
    a = epsilon / sigma
    if a > FARTHEST:
        raise ValueError(f"epsilon is {epsilon}, which is {a:g} sigma; accepted is at most {FARTHEST:g} sigma")

    def means(alpha: float) -> np.ndarray:
        """E[g] and E[g L] in the plane of q (first axis) and q': g = (L - alpha, beta) / r."""
        # r is zero where L = alpha + i beta.
        near, distance = np.log(np.hypot(alpha, beta)) / a + a / 2, np.arctan2(beta, alpha) / a
        t, weights = _panels(-10.0, 10.0 + 2 * a, near, distance)
        ratio = np.exp(a * t - a * a / 2)
        g = np.stack([ratio - alpha, np.full_like(ratio, beta)]) / np.hypot(ratio - alpha, beta)
        mass = weights * np.exp(-t * t / 2) / np.sqrt(2 * np.pi)
        return np.stack([g @ mass, g @ (mass * ratio)])

    alpha = optimize.brentq(lambda v: means(v)[1, 0], 0.0, 2 * np.exp(a * a))
    h, after = means(alpha)
    cosine = float(h @ after / np.linalg.norm(h) / np.linalg.norm(after))

    def at(points: Tensor) -> Tensor:
        ratio = torch.exp(points[:, 0] * epsilon / sigma**2 - a * a / 2) - alpha
        return _in_plane(torch.stack([ratio, torch.full_like(ratio, beta)], 1), dimension, unit=True)

    return Field(float(np.linalg.norm(h)), cosine, epsilon, at)


def worst_field_spectral(
    mean_norm: float, spread: float, dimension: int, sigma: float, epsilon: float, *, bound: float = np.inf
) -> Field:
    """The adversary of the spectral certificate: ``g = h + sqrt(Lambda) w (L - 1) / sd(L)``, d >= 2.

    Its covariance is ``Lambda w w'`` and ``h(x + delta) = h + sqrt(Lambda) sd(L) w``, as far as the certificate allows;
    the unit vector w is turned so that h(x + delta) touches the ball around h. Without a bound the cosine is exactly
    that of :func:`certified_cosine_spectral`.

    L is not bounded, and neither is this g. With a bound it is a line in L again, cut to that length where longer,
    with the mean length and the spread that are asked for, and turned to where the cosine is lowest. No certificate
    that knows mean_norm, spread and bound alone can promise more than that cosine, which is hardly above ours.

    Args:
        mean_norm: H = ||h(x)||.
        spread: Lambda.
        dimension: of the points.
        sigma: of the noise.
        epsilon: l2 length of the perturbation, > 0 and at most 6 sigma.
        bound: above mean_norm.

    Raises:
        ValueError: an argument is not what is accepted, nothing is certified there, or no such field is found, as where
            the spread is near its largest, ``bound^2 - mean_norm^2``.
    """
    if dimension < 2:
        raise ValueError(f"dimension is {dimension}; the field needs a plane, accepted is >= 2")
    for name, value in (("sigma", sigma), ("epsilon", epsilon), ("mean_norm", mean_norm)):
        _check_scale(name, value)
    if not (spread > 0 and np.isfinite(spread)):
        raise ValueError(f"spread is {spread}; accepted is a finite eigenvalue of a covariance, > 0")
    if not bound > mean_norm:
        raise ValueError(f"bound is {bound}; accepted is one above mean_norm, {mean_norm:g}")
    a = epsilon / sigma
    if a > FARTHEST:
        raise ValueError(f"epsilon is {epsilon}, which is {a:g} sigma; accepted is at most {FARTHEST:g} sigma")
    cosine = float(certified_cosine_spectral(mean_norm, spread, a, bound=bound))
    if cosine <= NONE:
        raise ValueError(
            f"epsilon is {epsilon}; accepted is one for which a mean length of {mean_norm:g} with a spread of "
            f"{spread:g} certifies something"
        )
    if np.isinf(bound):
        kappa = float(np.sqrt(np.expm1(a * a)))
        sine = kappa * np.sqrt(spread) / mean_norm
        line = np.array([mean_norm, 0.0]), np.sqrt(spread) / kappa * np.array([-sine, np.sqrt((1 - sine) * (1 + sine))])
    else:
        scaled, cosine = _lowest_line(mean_norm / bound, spread / bound**2, a)
        line = bound * scaled[0], bound * scaled[1]

    def at(points: Tensor) -> Tensor:
        excess = torch.expm1(points[:, 0] * (epsilon / sigma**2) - a * a / 2)  # L - 1
        first, step = (torch.from_numpy(v).to(excess) for v in line)
        g = first + excess[:, None] * step
        if np.isfinite(bound):
            g = g * (bound / torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)
        return torch.cat([g, points.new_zeros(len(points), dimension - 2)], 1)

    return Field(mean_norm, cosine, epsilon, at, bound, spread)


Line = tuple[Vector, Vector]


def _lowest_line(mean_norm: float, spread: float, a: float) -> tuple[Line, float]:
    """The line first + (L - 1) step, cut to length 1, with that mean length and spread, whose cosine is lowest.

    For each direction of the step three equations give first and the step's length; twelve directions are tried, then
    those around the best one.
    """

    def line(unknown: Vector, turn: float) -> Line:
        return unknown[:2], np.exp(unknown[2]) * np.array([-np.cos(turn), np.sin(turn)])

    def off(unknown: Vector, turn: float) -> Vector:
        mean, _, largest = _moments_of_line(*line(unknown, turn), a)
        return np.array([mean[0] - mean_norm, mean[1], (largest - spread) / np.sqrt(spread)])

    def solved(turn: float, start: Vector) -> tuple[float, Vector]:
        unknown = np.asarray(optimize.root(off, start, args=(turn,), tol=1e-13).x)
        if not np.abs(off(unknown, turn)).max() < 1e-9:
            return np.inf, start
        mean, moved, _ = _moments_of_line(*line(unknown, turn), a)
        return float(mean @ moved / np.linalg.norm(mean) / np.linalg.norm(moved)), unknown

    def begun(turn: float) -> Vector:
        """The line through the mean whose spread, once it is cut, is the one that is asked for."""
        mean = np.array([mean_norm, 0.0])
        least = np.log(spread / np.expm1(a * a)) / 2
        return np.array([*mean, optimize.brentq(lambda v: off(np.array([*mean, v]), turn)[2], least - 1, least + 20)])

    found = []
    for turn in np.linspace(0.02, np.pi / 2, 12):
        try:
            found.append((*solved(turn, begun(turn)), turn))
        except ValueError:  # no line through the mean has that spread
            continue
    cosine, start, middle = min(found, key=lambda each: each[0], default=(np.inf, np.zeros(3), 0.0))
    if not np.isfinite(cosine):
        raise ValueError(
            f"spread is {spread:g} and mean_norm {mean_norm:g} of their bound; no field that is a cut line has both: "
            "accepted is a smaller spread"
        )
    near = optimize.minimize_scalar(
        lambda turn: min(solved(turn, start)[0], 2.0), bounds=(middle - 0.15, middle + 0.15), method="bounded",
        options={"xatol": 1e-7},
    )  # fmt: skip
    nearest = float(near.x)
    cosine, unknown, turn = min((cosine, start, middle), (*solved(nearest, start), nearest), key=lambda each: each[0])
    return line(unknown, turn), cosine


def _moments_of_line(first: Vector, step: Vector, a: float) -> tuple[Vector, Vector, float]:
    """Means of the line that is cut to length 1, before and after the shift, and the covariance's top eigenvalue."""
    # Where the length is 1 the field has a corner; between corners a rule of Gauss and Legendre is exact to rounding.
    square, middle, rest = step @ step, first @ step, first @ first - 1
    root = np.sqrt(max(float(middle**2 - square * rest), 0.0))
    corners = [e for e in ((-middle - root) / square, (-middle + root) / square) if e > -1]
    low, high = -10.0, 10.0 + 2 * a
    kinks = [v for v in ((np.log1p(e) + a * a / 2) / a for e in corners) if low < v < high]
    edges = np.unique([*np.arange(low, high, 0.25), high, *kinks])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    t, mass = (edges[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()
    mass = mass * np.exp(-t * t / 2) / np.sqrt(2 * np.pi)
    g = first + np.outer(np.expm1(a * t - a * a / 2), step)
    g = g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1.0)
    mean, moved = mass @ g, (mass * np.exp(a * t - a * a / 2)) @ g
    covariance = (g - mean).T @ (mass[:, None] * (g - mean))
    return mean, moved, float(np.linalg.eigvalsh(covariance)[-1])


def _panels(low: float, high: float, near: float, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an integral of a smooth function that is singular at ``near +- i distance``.

    Gauss-Legendre in panels, which shrink towards ``near``: none is longer than its way to the singularity.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    steps = distance * 2.0 ** np.arange(max(1.0, np.log2((high - low) / distance) + 1))
    edges = np.unique(np.clip([*np.arange(low, high, 0.5), high, near, *(near - steps), *(near + steps)], low, high))
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()


def _in_plane(values: Tensor, dimension: int, *, unit: bool = False) -> Tensor:
    if unit:
        values = values / torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return torch.cat([values, values.new_zeros(len(values), dimension - 2)], 1)


def _field_numbers(mean_norm: float, dimension: int, noise: Noise, epsilon: float) -> tuple[float, float]:
    if dimension < 2:
        raise ValueError(f"dimension is {dimension}; the field needs a plane, accepted is >= 2")
    p = float(noise.displaced(dimension, epsilon))
    cosine = float(noise.certified_cosine(mean_norm, dimension, epsilon))
    if not epsilon > 0 or cosine <= NONE:
        raise ValueError(
            f"epsilon is {epsilon}; accepted is one > 0 for which a mean length of {mean_norm:g} certifies something"
        )
    return p, cosine
