"""Fields whose smoothed map turns as far as the certificates allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from robattr.smoothing.certificates import FARTHEST, NONE
from robattr.smoothing.noise import Ball, Noise, _check_scale
from robattr.smoothing.spectral import certified_cosine_spectral


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

    L is not bounded, and neither is this g. With a bound, g is cut to that length where it is longer. What that
    costs is in the result: ``mean_norm``, ``spread`` and ``cosine`` are those of the field that is returned.

    Args:
        mean_norm: H = ||h(x)|| of the field that is not cut.
        spread: Lambda, of the same.
        dimension: of the points.
        sigma: of the noise.
        epsilon: l2 length of the perturbation, > 0 and at most 6 sigma.
        bound: above mean_norm.

    Raises:
        ValueError: an argument is not what is accepted, or nothing is certified there.
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
    cosine = float(certified_cosine_spectral(mean_norm, spread, a))
    if cosine <= NONE:
        raise ValueError(
            f"epsilon is {epsilon}; accepted is one for which a mean length of {mean_norm:g} with a spread of "
            f"{spread:g} certifies something"
        )
    kappa = float(np.sqrt(np.expm1(a * a)))
    sine = kappa * np.sqrt(spread) / mean_norm
    step = np.sqrt(spread) / kappa * np.array([-sine, np.sqrt((1 - sine) * (1 + sine))])  # for L - 1 = 1

    def values(excess: Tensor) -> Tensor:
        g = excess[:, None] * torch.from_numpy(step).to(excess)
        g[:, 0] += mean_norm
        if np.isfinite(bound):
            g = g * (bound / torch.linalg.vector_norm(g, dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1.0)
        return g

    def at(points: Tensor) -> Tensor:
        excess = torch.expm1(points[:, 0] * (epsilon / sigma**2) - a * a / 2)
        return torch.cat([values(excess), points.new_zeros(len(points), dimension - 2)], 1)

    if np.isinf(bound):
        return Field(mean_norm, cosine, epsilon, at, bound, spread)
    # Where |h + excess step| = bound g has a corner; between corners a rule of Gauss and Legendre is exact to rounding.
    first, second, third = step @ step, mean_norm * step[0], mean_norm**2 - bound**2
    root = np.sqrt(second**2 - first * third)
    corners = [e for e in ((-second - root) / first, (-second + root) / first) if e > -1]
    low, high = -10.0, 10.0 + 2 * a
    kinks = [v for v in ((np.log1p(e) + a * a / 2) / a for e in corners) if low < v < high]
    edges = np.unique([*np.arange(low, high, 0.25), high, *kinks])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    t, mass = (edges[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()
    mass = mass * np.exp(-t * t / 2) / np.sqrt(2 * np.pi)
    g = values(torch.from_numpy(np.expm1(a * t - a * a / 2))).numpy()
    h, after = mass @ g, (mass * np.exp(a * t - a * a / 2)) @ g
    covariance = (g - h).T @ (mass[:, None] * (g - h))
    cosine = float(h @ after / np.linalg.norm(h) / np.linalg.norm(after))
    largest = float(np.linalg.eigvalsh(covariance)[-1])
    return Field(float(np.linalg.norm(h)), cosine, epsilon, at, bound, largest)


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
