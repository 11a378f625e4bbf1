"""The smoothed map: a mean of maps over noise, for any number of samples in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robattr._rows import parts_of
from robattr.attributions import Attribution, Target, check_target, differentiates, frozen, gradient
from robattr.smoothing.noise import Noise

# Samples whose noise is drawn together, whatever the size of a pass: the noise depends on the seed and on the shape.
_BLOCK = 32


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


@differentiates
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
    each: Callable[[slice, Tensor], None] | None = None,
    seed: int = 0,
    max_batch: int = 128,
) -> Smoothed:
    """The mean of ``attribution(x + noise)``: any number of samples, and memory for one pass.

    All images share the noise, which depends on the seed, on the image's shape and on the device: a batch equals its
    single images, and the size of a pass changes rounding only. Images plus noise may leave [0, 1]; clipping them
    would make the law of the noise depend on the image, and no certificate would hold.

    Args:
        model: images to logits, in evaluation mode.
        x: images [N, C, H, W], or any other batch [N, ...].
        target: class explained of each image, int64 [N], or one int for all.
        noise: :class:`Ball` or :class:`Gaussian`.
        samples: how many, >= 1.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        normalize: divide each sample's map by its l2 length (a map of zeros stays), so that no map is longer than 1.
        direction: [N, C, H, W]; the samples' projections on it are kept. What it was made from has to be independent
            of these samples (another seed) for the projections to be independent draws.
        each: is given what is averaged, as it comes: rows of the batch and their maps [rows, k, C x H x W].
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
    model, x = frozen(model), x.detach()
    if x.ndim == 4 and all(p.ndim < 5 for p in model.parameters()):
        # Channels last is the faster layout of convolutions; the copy is ours.
        model = model.to(memory_format=torch.channels_last)
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
            maps = _wide(maps.detach()).reshape(len(images), len(z), dimension)
            factor, length = _lengths(maps, normalize)
            # The mean without a normalized copy of the maps.
            total[rows] += torch.bmm(factor[:, None], maps)[:, 0]
            if each is not None:
                each(rows, maps * factor[..., None])
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


def _wide(maps: Tensor) -> Tensor:
    """Maps in float32 at least: in half types a unit map has a length up to half a percent above 1."""
    return maps.float() if torch.finfo(maps.dtype).bits < 32 else maps


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


@differentiates
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
        parts.append((total / samples).to(x.dtype))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _sum_of_maps(
    model: nn.Module, attribution: Attribution, normalize: bool, noise: Tensor, labels: Tensor, images: Tensor
) -> Tensor:
    maps = _wide(attribution(model, _moved(images, noise), labels.repeat_interleave(len(noise)), create_graph=True))
    if normalize:
        square = maps.square().flatten(1).sum(1).view(-1, *[1] * (maps.ndim - 1))
        _check_lengths(square.detach().flatten().sqrt(), maps.detach().flatten(1))
        maps = maps / torch.where(square > 0, square, 1).sqrt()
    return maps.reshape(len(images), len(noise), *images.shape[1:]).sum(1)


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples is {samples}; accepted is at least 1")
