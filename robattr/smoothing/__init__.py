"""Smoothed attributions, and how far a perturbation of the image can turn them: a bound that is proven.

The map ``h(x) = E[g(x + noise)]`` is the mean of an attribution over a neighbourhood (Wang & Kong 2024 take the uniform
law on an l2 ball; Gaussian noise certifies more). When no g is longer than a bound M, the length of h(x) alone bounds
the angle between h(x) and h(x + delta) for all ``||delta||_2 <= epsilon``. Divided by its own length, every gradient is
at most 1 long: then M = 1 exactly, and the length of h(x) says how aligned the gradients around x are.

- :class:`Ball` and :class:`Gaussian` are the noise and what it certifies.
- :func:`smooth` takes the mean over any number of samples in bounded memory; :func:`smoothed` is the same as an
  attribution method, for attacks.
- :func:`certify` turns samples into certificates with a stated probability of failure, or abstains.
- :func:`worst_field` and :func:`worst_field_gaussian` are the adversaries that attain the tight certificates.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import optimize, special
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from robattr.smoothing import certificates
from robattr.smoothing.certificates import (
    Method,
    certified_cosine,
    certified_cosine_gaussian,
    mean_lower_bound,
    overlap,
    sampling_error,
)
from robattr._files import write_text
from robattr.attributions import Attribution, Target, check_target, frozen, gradient, parts_of

__all__ = [
    "Ball",
    "Certificate",
    "Field",
    "Gaussian",
    "Noise",
    "Smoothed",
    "certified_cosine",
    "certified_cosine_gaussian",
    "certify",
    "max_epsilon",
    "mean_lower_bound",
    "min_radius",
    "overlap",
    "sample_ball",
    "sampling_error",
    "smooth",
    "smoothed",
    "worst_field",
    "worst_field_gaussian",
]

# Samples whose noise is drawn together, whatever the size of a pass: the noise depends on the seed and on the shape.
_BLOCK = 32


# --------------------------------------------------------------------------------------------------------------------
# Noise


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
    ) -> np.ndarray:
        """A lower bound on cos(h(x), h(x + delta)) for all ``||delta||_2 <= epsilon``; -1 where there is none."""
        ...

    def reach(self, dimension: int) -> float:
        """An epsilon from which nothing is ever certified."""
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
    ) -> np.ndarray:
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
        return np.asarray(special.erf(certificates.shift_in_sigmas(dimension, self.sigma, epsilon) / np.sqrt(8)))

    def certified_cosine(
        self,
        mean_norm: ArrayLike,
        dimension: ArrayLike,
        epsilon: ArrayLike,
        *,
        bound: float = 1.0,
        method: Method = "tight",
    ) -> np.ndarray:
        shift = certificates.shift_in_sigmas(dimension, self.sigma, epsilon)
        return certified_cosine_gaussian(mean_norm, shift, bound=bound, method=method)

    def reach(self, dimension: int) -> float:
        return 10 * self.sigma


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


def _draws(noise: Noise, samples: int, x: Tensor, seed: int, size: int) -> Iterator[Tensor]:
    """The noise, at most ``size`` at a time: [<= size, C, H, W]. Its values depend on seed, shape and device alone."""
    generator = torch.Generator(x.device).manual_seed(seed)
    held: list[Tensor] = []
    for start in range(0, samples, _BLOCK):
        held.append(noise.sample((min(_BLOCK, samples - start), *x.shape[1:]), generator).to(x.dtype))
        ready, last = sum(map(len, held)), start + _BLOCK >= samples
        if ready >= size or last:
            block = torch.cat(held)
            whole = ready if last else ready - ready % size
            yield from torch.split(block[:whole], size)
            held = [block[whole:]]


# --------------------------------------------------------------------------------------------------------------------
# The smoothed map


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The mean of an attribution over noise, a row an image.

    Attributes:
        mean: [N, C, H, W] float64; the estimate of h(x).
        norm: [N] float64; its l2 length. On average above that of h(x): see :attr:`norm_squared`.
        samples: how many were averaged.
        longest: [N] float64; the length of the longest sample, 1 for normalized maps. A maximum that was seen, which
            bounds nothing.
        norm_squared: [N] float64; an unbiased estimate of ||h(x)||^2, which may be negative. NaN for one sample.
        along: [N, samples] float64; each sample's projection on the direction that was given, or None.
    """

    mean: Tensor
    norm: Tensor
    samples: int
    longest: Tensor
    norm_squared: Tensor
    along: Tensor | None


def smooth(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    noise: Noise,
    samples: int,
    attribution: Attribution = gradient,
    normalize: bool = True,
    direction: Tensor | None = None,
    seed: int = 0,
    max_batch: int = 128,
) -> Smoothed:
    """The mean of ``attribution(x + noise)``: any number of samples, and memory for one pass.

    All images share the noise, which depends on the seed, on the image's shape and on the device: a batch equals its
    single images, and the size of a pass changes rounding only. Images plus noise may leave [0, 1]; clipping them
    would make the law of the noise depend on the image, and no certificate would hold.

    Args:
        model: images to logits, in evaluation mode.
        x: images [N, C, H, W].
        target: class explained of each image, int64 [N], or one int for all.
        noise: :class:`Ball` or :class:`Gaussian`.
        samples: how many, >= 1.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        normalize: divide each sample's map by its l2 length (a map of zeros stays), so that no map is longer than 1.
        direction: [N, C, H, W]; the samples' projections on it are kept. What it was made from has to be independent
            of these samples (another seed) for the projections to be independent draws.
        seed: of the noise.
        max_batch: largest number of images in one pass.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    labels = check_target(x, target)
    _check_samples(samples)
    if direction is not None and direction.shape != x.shape:
        raise ValueError(
            f"direction has shape {list(direction.shape)}; accepted is that of the images, {list(x.shape)}"
        )
    # Channels last is the faster layout of convolutions; the copy is ours.
    model, x = frozen(model).to(memory_format=torch.channels_last), x.detach()
    dimension = x[0].numel()
    total = torch.zeros(len(x), dimension, dtype=torch.float64, device=x.device)
    squares, longest = (torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in range(2))
    along = None if direction is None else torch.empty(len(x), samples, dtype=torch.float64)
    for rows in parts_of(len(x), max_batch):
        images, classes = x[rows], labels[rows]
        together = max(1, max_batch // len(images))
        done = 0
        for z in _draws(noise, samples, x, seed, together):
            maps = attribution(model, _moved(images, z), classes.repeat_interleave(len(z)))
            maps = maps.detach().reshape(len(images), len(z), dimension)
            factor, length = _lengths(maps, normalize)
            # The mean without a normalized copy of the maps.
            total[rows] += torch.bmm(factor[:, None], maps)[:, 0]
            squares[rows] += length.square().sum(1)
            longest[rows] = torch.maximum(longest[rows], length.amax(1))
            if along is not None:
                assert direction is not None
                towards = direction[rows].to(maps).flatten(1)[:, :, None]
                along[rows, done : done + len(z)] = (torch.bmm(maps, towards)[..., 0] * factor).double().cpu()
            done += len(z)
    mean = total / samples
    norm = torch.linalg.vector_norm(mean, dim=1)
    # E||mean||^2 = ||h||^2 + (E||g||^2 - ||h||^2) / n
    n = samples
    unbiased = (n * norm.square() - squares / n) / (n - 1) if n > 1 else torch.full_like(norm, torch.nan)
    return Smoothed(mean.view_as(x), norm, samples, longest, unbiased, along)


def _moved(images: Tensor, noise: Tensor) -> Tensor:
    """Every image with every noise, an image's copies in order: [n * k, C, H, W]."""
    return (images[:, None] + noise).flatten(0, 1)


def _lengths(maps: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """(factor, length in float64) [n, k]: what a sample is multiplied by, and how long it is then."""
    norm = torch.linalg.vector_norm(maps, dim=2)
    if not normalize:
        return torch.ones_like(norm), norm.double()
    _check_lengths(norm, maps)
    return torch.where(norm > 0, 1 / norm, 0), (norm > 0).double()


def _check_lengths(norm: Tensor, maps: Tensor) -> None:
    """Refuse maps without a direction in their type: infinite, or so small that their squares underflow."""
    least = 1e4 * torch.finfo(norm.dtype).tiny ** 0.5
    fine = (norm >= least) & norm.isfinite()
    if bool(fine.all()):
        return
    wrong = ~fine & (maps != 0).any(-1)  # zeros are fine: there the gradient has no direction
    if bool(wrong.any()):
        length = torch.linalg.vector_norm(maps[wrong][0], dtype=torch.float64)
        raise ValueError(
            f"a map has the l2 length {length:g}, too short or too long for {norm.dtype}; scale the model's logits, or "
            "take float64"
        )


def smoothed(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    noise: Noise,
    samples: int = 32,
    attribution: Attribution = gradient,
    normalize: bool = True,
    create_graph: bool = False,
    seed: int = 0,
    max_batch: int = 128,
) -> Tensor:
    """:func:`smooth` as an attribution method, with its noise held fixed: what an attack differentiates.

    With ``create_graph`` the result is a differentiable function of x (and of parameters that require a gradient: the
    model is taken as it is, in whatever mode); what does not fit a pass is computed again in the backward pass. Other
    arguments and errors as there; the result has the shape and the type of x.
    """
    if not create_graph:
        found = smooth(
            model,
            x,
            target,
            noise=noise,
            samples=samples,
            attribution=attribution,
            normalize=normalize,
            seed=seed,
            max_batch=max_batch,
        )
        return found.mean.to(x.dtype)
    labels = check_target(x, target)
    _check_samples(samples)
    parts = []
    one_pass = len(x) * samples <= max_batch
    for rows in parts_of(len(x), max_batch):
        images, classes = x[rows], labels[rows]
        together = max(1, max_batch // len(images))
        total: Tensor | None = None
        for z in _draws(noise, samples, x, seed, together):
            run = partial(_sum_of_maps, model, attribution, normalize, z, classes)
            # Otherwise the graphs of all passes would be held until the backward pass.
            new = run(images) if one_pass else checkpoint(run, images, use_reentrant=False, preserve_rng_state=False)
            total = new if total is None else total + new
        assert total is not None
        parts.append(total / samples)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _sum_of_maps(
    model: nn.Module, attribution: Attribution, normalize: bool, noise: Tensor, labels: Tensor, images: Tensor
) -> Tensor:
    maps = attribution(model, _moved(images, noise), labels.repeat_interleave(len(noise)), create_graph=True)
    if normalize:
        square = maps.square().sum((1, 2, 3), keepdim=True)
        _check_lengths(square.detach().flatten().sqrt(), maps.detach().flatten(1))
        maps = maps / torch.where(square > 0, square, 1).sqrt()
    return maps.reshape(len(images), len(noise), *images.shape[1:]).sum(1)


# --------------------------------------------------------------------------------------------------------------------
# Inverse forms


def max_epsilon(
    mean_norm: ArrayLike,
    cosine: float,
    *,
    dimension: int,
    noise: Noise,
    bound: float = 1.0,
    method: Method = "tight",
) -> np.ndarray:
    """The largest l2 epsilon for which a cosine is certified, for each mean length; 0 where H = 0.

    The inverse of ``noise.certified_cosine``: at the result it returns ``cosine``.

    Args:
        mean_norm: H = ||h(x)||, any shape, from 0 to bound.
        cosine: the wanted bound T, in (0, 1].
        dimension: number of values of an image.
        noise: :class:`Ball` or :class:`Gaussian`.
        bound: M with ||g|| <= M everywhere.
        method: of the certificate.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    _check_cosine(cosine)
    lengths = np.asarray(mean_norm, dtype=np.float64)
    noise.certified_cosine(lengths, dimension, 0.0, bound=bound, method=method)  # refuses what it does not accept
    limit = noise.reach(dimension)
    found = np.zeros(lengths.shape)
    for place in zip(*np.nonzero(lengths), strict=True) if lengths.ndim else [()]:
        if lengths[place] == 0:
            continue
        certified = partial(_at_epsilon, noise, float(lengths[place]), dimension, bound, method)
        found[place] = certificates.largest(certified, cosine, limit)
    return found


def _at_epsilon(noise: Noise, h: float, dimension: int, bound: float, method: Method, epsilon: float) -> float:
    return float(noise.certified_cosine(h, dimension, epsilon, bound=bound, method=method))


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
) -> float:
    """The smallest radius (or sigma) at which a cosine is certified for epsilon; NaN where none of the range does.

    H falls as the radius grows, and so does p: between them there may be a best radius, or none. H is known where it
    was measured, and interpolated linearly between: what is returned has to be measured before it is a certificate.

    Args:
        radii: increasing, at least 2, > 0.
        mean_norms: H at each of them.
        cosine: the wanted bound T, in (0, 1].
        dimension: number of values of an image.
        epsilon: l2 length of the shift, >= 0.
        law: :class:`Ball`, or :class:`Gaussian` for sigmas.
        bound: M with ||g|| <= M everywhere.
        method: of the certificate.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    _check_cosine(cosine)
    r, h = np.asarray(radii, dtype=np.float64), np.asarray(mean_norms, dtype=np.float64)
    if r.ndim != 1 or len(r) < 2 or not np.isfinite(r).all() or not (np.diff(r) > 0).all() or r[0] <= 0:
        raise ValueError(f"radii are {r.tolist()}; accepted are at least 2 increasing radii > 0")
    if h.shape != r.shape:
        raise ValueError(f"mean_norms have shape {list(h.shape)}; accepted is one for each radius, {list(r.shape)}")

    def excess(radius: float) -> float:
        at = float(np.interp(radius, r, h))
        return float(law(radius).certified_cosine(at, dimension, epsilon, bound=bound, method=method)) - cosine

    grid = np.unique(np.concatenate([np.linspace(a, b, 17) for a, b in itertools.pairwise(r)]))
    values = np.array([excess(float(v)) for v in grid])
    enough = np.nonzero(values >= 0)[0]
    if len(enough) == 0:
        return float("nan")
    first = int(enough[0])
    if first == 0:
        return float(grid[0])
    return float(optimize.brentq(excess, grid[first - 1], grid[first], xtol=1e-14, rtol=1e-13))


# --------------------------------------------------------------------------------------------------------------------
# Certificates from samples


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is certified of each image, with probability at least 1 - alpha for each.

    Attributes:
        epsilon: [E]; l2 lengths of the perturbation, in units of a [0, 1] image.
        norm: [N] float64; length of the estimate of h(x). 0 where all maps that choose a direction were zero.
        norm_lower: [N] float64; what the length of h(x) is at least.
        expectation: [N, E] float64; lower bound on cos(h(x), h(x + delta)); -1 where it abstains.
        estimates: [N, E] float64; lower bound on the cosine of two estimates of ``samples`` samples each, for a delta
            that was chosen without their noise: what a reader sees. -1 where it abstains.
        samples: of each estimate.
        alpha: probability of failure.
        noise: the law.
        labels: int64 [N]; the class explained.
    """

    epsilon: tuple[float, ...]
    norm: Tensor
    norm_lower: Tensor
    expectation: Tensor
    estimates: Tensor
    samples: int
    alpha: float
    noise: Noise
    labels: Tensor

    @property
    def abstains(self) -> Tensor:
        """bool [N, E]; where nothing can be said of the expectation."""
        return self.expectation <= certificates.NONE


def certify(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    noise: Noise,
    epsilon: float | Sequence[float],
    samples: int = 10_000,
    choose: int = 1000,
    alpha: float = 0.001,
    attribution: Attribution = gradient,
    method: Method = "tight",
    seed: int = 0,
    max_batch: int = 128,
    path: Path | str | None = None,
    progress: bool = False,
) -> Certificate:
    """Certify the normalized, smoothed attribution of each image from samples, or abstain.

    Three statements, each wrong with probability at most alpha / 3:

    1. ``choose`` samples give a direction u. The projections on u of other, independent ``samples`` lie in [-1, 1],
       and their mean is at most ||h(x)||: a lower confidence bound on it (:func:`mean_lower_bound`) is one on the
       length of h(x). It enters the certificate, at every epsilon alike.
    2. and 3. The estimates at x and at x + delta are within :func:`sampling_error` of h, which is an angle.

    Args:
        model: images to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1].
        target: class explained of each image, int64 [N], or one int for all.
        noise: :class:`Ball` or :class:`Gaussian`.
        epsilon: one or several l2 lengths, >= 0.
        samples: of the estimate, and for the certificate; >= 2.
        choose: further samples that choose the direction; >= 1.
        alpha: probability of failure for an image, between 0 and 1.
        attribution: a method of :mod:`robattr.attributions`; its maps are normalized.
        method: of the certificate.
        seed: of the noise.
        max_batch: largest number of images in one pass.
        path: a JSON-lines file that gets a row as soon as an image is done. Rows of the same request that are there
            already are taken from it, so that a stopped run goes on.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted, or the file is of another request; before any work starts.
    """
    labels = check_target(x, target)
    lengths = tuple(np.ravel(np.asarray(epsilon, dtype=np.float64)).tolist())
    if not lengths or any(not e >= 0 for e in lengths):
        raise ValueError(f"epsilon is {epsilon}; accepted are l2 lengths >= 0 in units of a [0, 1] image")
    if samples < 2 or choose < 1:
        raise ValueError(f"samples is {samples} and choose {choose}; accepted are at least 2 and 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; accepted is a probability between 0 and 1, for example 0.001")
    noise.certified_cosine(0.0, x[0].numel(), lengths, method=method)  # refuses what it does not accept
    parts_of(len(x), max_batch)
    model = frozen(model)
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    request = {
        "noise": {"law": type(noise).__name__, "scale": noise.scale}, "epsilon": list(lengths), "samples": samples,
        "choose": choose, "alpha": alpha, "method": method, "seed": seed, "attribution": _described(attribution),
    }  # fmt: skip
    rows = _Rows(path, request, model, x, labels)
    for i in tqdm(range(len(x)), desc="certify", disable=None if progress else True):
        if i in rows.found:
            continue
        take = partial(
            smooth, model, x[i : i + 1], labels[i : i + 1], noise=noise, attribution=attribution, max_batch=max_batch
        )
        chosen = take(samples=choose, seed=seeds[0])
        if chosen.norm.item() == 0:  # a gradient that is zero everywhere has no direction, and no certificate
            rows.add(i, 0.0, 0.0)
            continue
        found = take(samples=samples, seed=seeds[1], direction=chosen.mean / chosen.norm)
        assert found.along is not None
        along = float(mean_lower_bound(found.along[0].numpy(), alpha / 3))
        rows.add(i, found.norm.item(), min(max(along, 0.0), 1.0))
    norm = torch.tensor([rows.found[i][0] for i in range(len(x))], dtype=torch.float64)
    lower = torch.tensor([rows.found[i][1] for i in range(len(x))], dtype=torch.float64)
    expectation, estimates = _certified(noise, norm, lower, x[0].numel(), lengths, samples, alpha, method)
    return Certificate(lengths, norm, lower, expectation, estimates, samples, alpha, noise, labels.cpu())


def _certified(
    noise: Noise,
    norm: Tensor,
    lower: Tensor,
    d: int,
    epsilon: Sequence[float],
    samples: int,
    alpha: float,
    method: Method,
) -> tuple[Tensor, Tensor]:
    """Bounds for the expectations and for the estimates, [N, E] each."""
    h, e = lower.numpy()[:, None], np.asarray(epsilon)[None]
    expectation = np.asarray(noise.certified_cosine(h, d, e, method=method))
    # The estimate at x: seen, so its own length or that of h, whichever is longer, bounds the angle.
    here = sampling_error(samples, alpha / 3, mean_norm=h)
    angle = _angle(here, np.maximum(h, norm.numpy()[:, None]))
    # At x + delta: h is at most 2 p shorter there.
    there = np.maximum(h - 2 * noise.displaced(d, e), 0.0)
    angle_there = _angle(sampling_error(samples, alpha / 3, mean_norm=there), there)
    total = np.arccos(expectation) + angle + angle_there
    estimates = np.where((expectation > certificates.NONE) & (total < np.pi), np.cos(total), certificates.NONE)
    return torch.from_numpy(expectation), torch.from_numpy(estimates)


def _angle(error: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The largest angle between a vector of the given length and one within the error of it."""
    fine = length > error
    return np.where(fine, np.arcsin(np.where(fine, error / np.where(fine, length, 1), 1)), np.pi)


class _Rows:
    """The rows of a certification, in memory and, with a path, on disk as they come."""

    def __init__(
        self, path: Path | str | None, request: dict[str, object], model: nn.Module, x: Tensor, labels: Tensor
    ) -> None:
        self.found: dict[int, tuple[float, float]] = {}
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        # Two models may differ in what is no parameter: the sharpness of an activation.
        digests = {"images": _digest(x, labels), "model": _digest(repr(model), *model.state_dict().values())}
        head = json.dumps({**request, **digests}, sort_keys=True)
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        if lines and lines[0] != head:
            raise ValueError(f"path is {self._path}, which holds another request; name a new file or delete that one")
        for line in lines[1:]:
            try:
                row = json.loads(line)
                self.found[int(row["image"])] = (float(row["norm"]), float(row["norm_lower"]))
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a process that was killed
        kept = [json.dumps({"image": i, "norm": a, "norm_lower": b}) for i, (a, b) in self.found.items()]
        write_text(self._path, "\n".join([head, *kept]) + "\n")

    def add(self, image: int, norm: float, norm_lower: float) -> None:
        self.found[image] = (norm, norm_lower)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"image": image, "norm": norm, "norm_lower": norm_lower}) + "\n")
                file.flush()
                os.fsync(file.fileno())


# --------------------------------------------------------------------------------------------------------------------
# The adversaries that attain the certificates


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
    if a > certificates.FARTHEST:
        raise ValueError(
            f"epsilon is {epsilon}, which is {a:g} sigma; accepted is at most {certificates.FARTHEST:g} sigma"
        )

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
    if not epsilon > 0 or cosine <= certificates.NONE:
        raise ValueError(
            f"epsilon is {epsilon}; accepted is one > 0 for which a mean length of {mean_norm:g} certifies something"
        )
    return p, cosine


# --------------------------------------------------------------------------------------------------------------------


def _digest(*parts: Tensor | str) -> str:
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(f"{part.dtype} {list(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _described(value: object) -> str:
    """A method of attribution and its options, in words that are the same in every process."""
    if isinstance(value, partial):
        options = [f"{k}={_described(v)}" for k, v in sorted(value.keywords.items())]
        return f"{_described(value.func)}({', '.join([*map(_described, value.args), *options])})"
    if isinstance(value, Tensor):
        return _digest(value)
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return repr(value)


def _check_scale(name: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name} is {value}; accepted is a finite number > 0, in units of a [0, 1] image")


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples is {samples}; accepted is at least 1")


def _check_cosine(cosine: float) -> None:
    if not 0 < cosine <= 1:
        raise ValueError(f"cosine is {cosine}; accepted is a wanted cosine in (0, 1]")
