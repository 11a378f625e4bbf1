"""Fields whose smoothed map turns as far as the tight certificates allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from robattr.smoothing.certificates import FARTHEST, NONE
from robattr.smoothing.noise import Ball, Noise, _check_scale


@dataclass(frozen=True, eq=False)
class Field:
    """A field g with ``||g|| <= 1`` whose smoothed map turns as far as the tight certificate allows.

    Call it with points [n, d], relative to x, to get g [n, d]. The perturbation is ``(epsilon, 0, ..., 0)``.

    Attributes:
        mean_norm: ||h(x)||.
        cosine: cos(h(x), h(x + delta)); like mean_norm without sampling, to about 12 digits.
        epsilon: l2 length of the perturbation.
    """

    mean_norm: float
    cosine: float
    epsilon: float
    at: Callable[[Tensor], Tensor]

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
