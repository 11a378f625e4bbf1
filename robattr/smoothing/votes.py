"""Certificates by votes a pixel: the overlap of Levine et al. 2019, and each pixel for itself as in Anani et al. 2025.

Each sample of the noise votes for the k largest pixels of its heatmap. The share of votes p that a pixel has is the
mean of a number that is 0 or 1, so at ``x + delta`` it is between ``Phi(Phi^-1(p) - z)`` and ``Phi(Phi^-1(p) + z)``,
with ``z = ||delta||_2 / sigma`` (Cohen, Rosenfeld & Kolter 2019). No bound on the map is needed, and no spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn
from tqdm import tqdm

from robattr._rows import parts_of
from robattr.attributions import Attribution, Target, check_target, differentiates, frozen, gradient, heatmap
from robattr.smoothing.certifying import check_alpha, check_pictures, check_units, l2_lengths
from robattr.smoothing.noise import Gaussian
from robattr.smoothing.sampling import _draws, _moved

__all__ = ["VoteCertificate", "certified_overlap", "certified_votes", "certify_votes", "vote_bounds"]

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VoteCertificate:
    """What is certified of each image's map of votes, with probability at least 1 - alpha for each image.

    Attributes:
        epsilon: [E] l2 lengths, in units of a [0, 1] image.
        k: number of pixels that a sample votes for.
        votes: [N, H, W] float64; the share of samples that vote for a pixel.
        lower: [N, H, W]; confidence bounds on the shares of all samples there could be, which hold together.
        upper: [N, H, W].
        top: bool [N, H, W]; the k pixels with the most votes that were seen.
        overlap: [N, E]; the share of ``top`` that is at least among the k pixels with the most votes at x + delta: the
            statement of Levine et al. 2019. 0 says nothing.
        stays: bool [N, E, H, W]; pixels that most samples vote for, here and at x + delta: the statement of Anani et
            al. 2025 that a pixel is important.
        stays_out: bool [N, E, H, W]; pixels that most samples do not vote for, here and at x + delta. Of pixels that
            are in neither nothing is said.
        samples: that vote.
        alpha: probability of failure for an image.
        noise: the law.
        labels: int64 [N]; the class explained.
    """

    epsilon: tuple[float, ...]
    k: int
    votes: Tensor
    lower: Tensor
    upper: Tensor
    top: Tensor
    overlap: Tensor
    stays: Tensor
    stays_out: Tensor
    samples: int
    alpha: float
    noise: Gaussian
    labels: Tensor


@differentiates
def certify_votes(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    noise: Gaussian,
    epsilon: float | Sequence[float],
    k: int = 1000,
    samples: int = 10_000,
    alpha: float = 0.001,
    attribution: Attribution = gradient,
    seed: int = 0,
    max_batch: int = 128,
    progress: bool = False,
) -> VoteCertificate:
    """Certify which pixels noisy heatmaps vote for.

    The bounds on the shares of votes are those of Clopper and Pearson, each at alpha over twice the number of pixels:
    all of them hold together. What the votes are about are maps of single samples: the smoothed map of
    :func:`certify_map` is another one.

    Args:
        model: images to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1].
        target: class explained of each image, int64 [N], or one int for all.
        noise: :class:`Gaussian`.
        epsilon: one or several l2 lengths, >= 0.
        k: number of pixels that a sample votes for, from 1 to H x W - 1. Of equal pixels some are taken, the same ones
            each time.
        samples: that vote; >= 1.
        alpha: probability of failure for an image, between 0 and 1.
        attribution: a method of :mod:`robattr.attributions`.
        seed: of the noise.
        max_batch: largest number of images in one pass.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_units(model, x)
    labels = check_target(x, target)
    height, width = check_pictures(x)
    lengths = l2_lengths(epsilon)
    if isinstance(k, bool) or int(k) != k or not 1 <= k < height * width:
        raise ValueError(f"k is {k}; accepted is a whole number of pixels from 1 to {height * width - 1}")
    if not isinstance(noise, Gaussian):
        raise ValueError(f"noise is {noise}; accepted is Gaussian noise, for which the bound on a share is known")
    if samples < 1:
        raise ValueError(f"samples is {samples}; accepted is at least 1")
    check_alpha(alpha)
    parts_of(len(x), max_batch)
    model = frozen(model)
    counts = torch.zeros(len(x), height * width, dtype=torch.int64, device=x.device)
    for i in tqdm(range(len(x)), desc="votes", disable=None if progress else True):
        for z in _draws(noise, samples, x[i : i + 1], seed, max_batch):
            maps = heatmap(attribution(model, _moved(x[i : i + 1], z), labels[i : i + 1].expand(len(z)))).flatten(1)
            chosen = maps.detach().topk(int(k), dim=1).indices.flatten()
            counts[i] += torch.bincount(chosen, minlength=height * width)
    seen = counts.cpu().numpy()
    lower, upper = vote_bounds(seen, samples, alpha / (2 * height * width))
    top = _most(seen.astype(np.float64), int(k))
    shifts = [length / noise.sigma for length in lengths]
    overlap = np.stack([certified_overlap(lower, upper, top, shift) for shift in shifts], axis=1)
    both = [certified_votes(lower, upper, shift) for shift in shifts]
    stays, out = (np.stack(each, axis=1) for each in zip(*both, strict=True))

    def pixels(value: NDArray[Any]) -> Tensor:
        return torch.from_numpy(value).view(*value.shape[:-1], height, width)

    return VoteCertificate(
        epsilon=lengths,
        k=int(k),
        votes=pixels(seen / samples),
        lower=pixels(lower),
        upper=pixels(upper),
        top=pixels(top),
        overlap=torch.from_numpy(overlap),
        stays=pixels(stays),
        stays_out=pixels(out),
        samples=samples,
        alpha=alpha,
        noise=noise,
        labels=labels.cpu(),
    )


def vote_bounds(counts: NDArray[np.int64], samples: int, alpha: float) -> tuple[Values, Values]:
    """Bounds of Clopper and Pearson on shares of votes, each of which fails with probability at most alpha.

    Args:
        counts: votes, of any shape.
        samples: that voted.
        alpha: for one side of one share.

    Returns:
        Lower and upper bounds of that shape.
    """
    lower = np.where(counts > 0, stats.beta.ppf(alpha, np.maximum(counts, 1), samples - counts + 1), 0.0)
    upper = np.where(counts < samples, stats.beta.isf(alpha, counts + 1, np.maximum(samples - counts, 1)), 1.0)
    return lower, upper


def certified_overlap(lower: Values, upper: Values, top: NDArray[np.bool_], z: float) -> Values:
    """The share of each image's top pixels that is at least among its top pixels after any change of length z sigma.

    With every top pixel at its least share of votes and every other at its largest, as many of the top pixels leave as
    can leave at all: raising one of the first or lowering one of the others brings no further one out. Pixels that are
    equal then are counted as those that enter.

    Args:
        lower: [N, P] bounds on the shares of votes, which hold together.
        upper: [N, P].
        top: bool [N, P]; k pixels of each image.
        z: l2 length of the change over sigma, >= 0.

    Returns:
        [N].
    """
    least = np.where(top, _moved_share(lower, -z), _moved_share(upper, z))
    found = np.empty(len(top))
    for i, (value, inside) in enumerate(zip(least, top, strict=True)):
        k = int(inside.sum())
        # Largest first; of equal ones those from outside.
        order = np.lexsort((inside, -value))
        found[i] = inside[order[:k]].sum() / k
    return found


def certified_votes(lower: Values, upper: Values, z: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels that more than half of all samples vote for after any change of length z sigma, and those they do not.

    Args:
        lower: bounds on the shares of votes, which hold together, of any shape.
        upper: of that shape.
        z: l2 length of the change over sigma, >= 0.
    """
    return _moved_share(lower, -z) > 0.5, _moved_share(upper, z) < 0.5


def _moved_share(p: Values, z: float) -> Values:
    """Where a share of votes is after the worst change of length |z| sigma: down for z < 0, else up."""
    return np.asarray(special.ndtr(special.ndtri(p) + z))


def _most(votes: Values, k: int) -> NDArray[np.bool_]:
    """The k pixels of each row with the most votes; of equal ones the first."""
    order = np.argsort(-votes, axis=1, kind="stable")
    found = np.zeros(votes.shape, dtype=bool)
    np.put_along_axis(found, order[:, :k], True, axis=1)
    return found
