"""Laws of noise: how to draw from them, what smoothing with them certifies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special
from torch import Tensor

from robattr.smoothing.certificates import Method, certified_cosine, certified_cosine_gaussian, overlap, shift_in_sigmas
from robattr.smoothing.spectral import certified_cosine_spectral


class Noise(Protocol):
    """A law of noise: how to draw it and what smoothing with it certifies."""

    @property
    def scale(self) -> float:
        """Its l2 radius or standard deviation, in units of a [0, 1] image."""
        ...

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Independent draws [n, ...], float32, on the generator's device."""
        ...

    def displaced(self, dimension: ArrayLike, epsilon: ArrayLike) -> np.ndarray:
        """p: the total variation distance between the noise and the noise shifted by ``||delta||_2 = epsilon``."""
        ...

    def certified_cosine(
        self,
        mean_norm: ArrayLike,
        dimension: ArrayLike,
        epsilon: ArrayLike,
        *,
        bound: float = 1.0,
        method: Method = "tight",
        spread: ArrayLike | None = None,
    ) -> np.ndarray:
        """A lower bound on cos(h(x), h(x + delta)) for all ``||delta||_2 <= epsilon``; -1 where there is none.

        With a spread, an upper bound on the largest eigenvalue of the covariance of a map, the best of all
        certificates.
        """
        ...

    def reach(self, dimension: int) -> float:
        """An epsilon from which nothing is certified by the length of h(x) alone.

        From four times that on, nothing is by a spread either, unless it is 0.
        """
        ...


@dataclass(frozen=True)
class Ball:
    """Uniform noise in the l2 ball of a radius, in units of a [0, 1] image.

    Raises:
        ValueError: the radius is not > 0.
    """

    radius: float

    def __post_init__(self) -> None:
        _check_scale("radius", self.radius)

    @property
    def scale(self) -> float:
        return self.radius

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return sample_ball(shape, self.radius, generator)

    def displaced(self, dimension: ArrayLike, epsilon: ArrayLike) -> np.ndarray:
        return overlap(dimension, self.radius, epsilon)

    def certified_cosine(
        self,
        mean_norm: ArrayLike,
        dimension: ArrayLike,
        epsilon: ArrayLike,
        *,
        bound: float = 1.0,
        method: Method = "tight",
        spread: ArrayLike | None = None,
    ) -> np.ndarray:
        if spread is not None:
            raise ValueError(
                "spread is given; accepted is None for uniform noise, whose likelihood ratio has no variance: "
                "take Gaussian noise"
            )
        return certified_cosine(mean_norm, self.displaced(dimension, epsilon), bound=bound, method=method)

    def reach(self, dimension: int) -> float:
        return 2 * self.radius


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise of a standard deviation in every value, in units of a [0, 1] image.

    Raises:
        ValueError: sigma is not > 0.
    """

    sigma: float

    def __post_init__(self) -> None:
        _check_scale("sigma", self.sigma)

    @classmethod
    def matching(cls, radius: float, dimension: int) -> Gaussian:
        """The Gaussian with the variance of the uniform law on the ball: sigma = radius / sqrt(dimension + 2)."""
        return cls(radius / float(np.sqrt(dimension + 2)))

    @property
    def scale(self) -> float:
        return self.sigma

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return self.sigma * torch.randn(tuple(shape), generator=generator, device=generator.device)

    def displaced(self, dimension: ArrayLike, epsilon: ArrayLike) -> np.ndarray:
        return np.asarray(special.erf(shift_in_sigmas(dimension, self.sigma, epsilon) / np.sqrt(8)))

    def certified_cosine(
        self,
        mean_norm: ArrayLike,
        dimension: ArrayLike,
        epsilon: ArrayLike,
        *,
        bound: float = 1.0,
        method: Method = "tight",
        spread: ArrayLike | None = None,
    ) -> np.ndarray:
        shift = shift_in_sigmas(dimension, self.sigma, epsilon)
        found = certified_cosine_gaussian(mean_norm, shift, bound=bound, method=method)
        if spread is None:
            return found
        return np.asarray(np.maximum(found, certified_cosine_spectral(mean_norm, spread, shift, bound=bound)))

    def reach(self, dimension: int) -> float:
        return 10 * self.sigma  # and exp(40^2) is beyond float64


def sample_ball(shape: Sequence[int], radius: float, generator: torch.Generator) -> Tensor:
    """Independent points, exactly uniform in an l2 ball of any dimension: a direction times radius x U^(1 / d).

    Args:
        shape: [n, ...]; n points of d = product of the others.
        radius: of the ball, > 0.
        generator: its device is that of the result.

    Returns:
        float32, of the given shape.

    Raises:
        ValueError: the radius is not > 0, or the shape has no dimension beside the number of points.
    """
    _check_scale("radius", radius)
    if len(shape) < 2 or 0 in shape[1:]:
        raise ValueError(f"shape is {list(shape)}; accepted is [n, ...], n points of at least one value")
    points = torch.randn(tuple(shape), generator=generator, device=generator.device)
    flat = points.flatten(1)
    # In float64: U^(1 / d) is within 1 / d of 1, where float32 has few values left.
    share = torch.rand(len(flat), generator=generator, device=generator.device, dtype=torch.float64)
    length = radius * share.pow(1 / flat.shape[1])
    norm = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    # A single value can be drawn as exactly 0, which has no direction.
    flat.copy_(flat * torch.where(norm > 0, length / norm, 0)[:, None])
    return points


def _check_scale(name: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name} is {value}; accepted is a finite number > 0, in units of a [0, 1] image")
