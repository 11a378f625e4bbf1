"""How alike two attribution maps are, and how a network's maps hold: one number per sample, batched, on their device.

Functions of maps take two batches ``a`` and ``b`` of the same shape, sample first, and return a tensor ``[N]``.
Common to all of them:

- maps are finite floating point; float16 and bfloat16 are computed in float32, float64 stays float64;
- identical maps get exactly the perfect value (1, or 0 for the shift), maps of zeros and constant maps included;
- swapping ``a`` and ``b`` gives exactly the same number, but for `nearby_intersection`;
- a batch gives what its samples give one at a time, up to rounding;
- an argument that cannot be used raises a one-line ``ValueError``.

Written here rather than taken from a library where the library's per-sample answer is not this one.
``torch.nn.functional.cosine_similarity`` floors the norms at 1e-8, so maps of tiny gradients lose their scale
invariance; torchmetrics' Pearson gives NaN or noise for a constant map, its Spearman loops over the samples in Python,
and its SSIM ignores the Gaussian window asked for (11 pixels at sigma 1.5, where 7 are wanted) and averages over
padding; SciPy and scikit-image work on the CPU, one sample at a time. The tests compare with each of them.

Functions of a network take a model in evaluation mode and images in [0, 1], put at most ``max_batch`` images into one
pass, and return a frozen dataclass of tensors with a row an image: `random_perturbation_similarity`, `insertion`,
`deletion` and `curvature`, the evaluation of Joo et al. 2023. A batch is its single images there too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robattr._rows import parts_of
from robattr.attributions import (
    Attribution,
    Target,
    check_target,
    differentiates,
    frozen,
    gradient,
    heatmap,
    target_logits,
)
from robattr.data import check_images

__all__ = [
    "Attrition",
    "Curvature",
    "Curve",
    "Similarity",
    "attrition",
    "center_of_mass",
    "center_shift",
    "cosine",
    "curvature",
    "deletion",
    "insertion",
    "nearby_intersection",
    "pearson",
    "random_perturbation_similarity",
    "similarity",
    "spearman",
    "ssim",
    "topk_intersection",
]


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike maps are, in the three measures of Joo et al. 2023; each [N], 1 for identical maps.

    Attributes:
        cosine: cosine similarity.
        pearson: Pearson correlation over the pixels.
        ssim: structural similarity with a Gaussian window of 7 x 7 pixels and sigma 1.5.
    """

    cosine: Tensor
    pearson: Tensor
    ssim: Tensor


@dataclass(frozen=True)
class Attrition:
    """A mean similarity under attack, by what is made of attacks that failed.

    Attributes:
        kept: share of the attacks that kept the prediction.
        unchanged: mean with 1 where the attack failed, whose image is the clean one: what an attacker reaches.
        left_out: mean over those that kept it; NaN where none did. Who fails more often looks more fragile by it.
        floor: mean with 0 where it failed: no less could have been reached there by any attack.
    """

    kept: float
    unchanged: float
    left_out: float
    floor: float


@dataclass(frozen=True, eq=False)
class Curve:
    """A class's probability while pixels are put in or taken out, the most important ones first.

    Attributes:
        fractions: [F]; the fraction of pixels kept (insertion) or taken out (deletion): whole numbers of pixels, the
            nearest to 1/F, 2/F, ..., 1.
        probability: [N, F]; of the given class, at each fraction.
        area: [N]; the mean of the probabilities over the F fractions.
    """

    fractions: Tensor
    probability: Tensor
    area: Tensor


@dataclass(frozen=True, eq=False)
class Curvature:
    """What bounds the change of a gradient's direction, and that change; each float64 [N].

    With g the gradient of the logit at x, g' at x + delta, and H its Hessian at x:

    Attributes:
        hessian_product: ``||Hess delta||``.
        gradient_norm: ``||g||``.
        ratio: ``||Hess delta|| / ||g||``; 0 where both are zero, infinite where only g is.
        l2_distance: ``||g - g'||``.
        cosine_distance: ``(1 - cos(g, g')) / 2``; 0 where both are zero, 1/2 where one is.
        cosine_bound: ``||g - g'||^2 / (4 ||g|| ||g'||)``, at least the cosine distance, and equal to it where the norms
            are; 0 where both gradients are zero, infinite where one is.
    """

    hessian_product: Tensor
    gradient_norm: Tensor
    ratio: Tensor
    l2_distance: Tensor
    cosine_distance: Tensor
    cosine_bound: Tensor


# --------------------------------------------------------------------------------------------------------------------
# Two batches of maps


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of two batches of maps, in [-1, 1].

    Maps are scaled to a largest value near 1 before anything is squared, so the result does not depend on a positive
    scale of either map, however small. Differentiable.

    Zero norm: two zero maps give 1; a zero map and another give 0, with gradient 0.

    Args:
        a: Maps ``[N, ...]``, any unit.
        b: Maps of the same shape.

    Returns:
        ``[N]``.

    Raises:
        ValueError: shapes, devices or types differ from what is accepted, or a value is not finite.
    """
    a, b = _flat_pair(a, b)
    return _cosine(_rescaled(a), _rescaled(b))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the pixels of two batches of maps, in [-1, 1]. Differentiable.

    Zero variance: two constant maps give 1 (whatever their values); a constant map and another give 0, with gradient 0.

    Args, returns and errors as for `cosine`.
    """
    a, b = _flat_pair(a, b)
    return _cosine(_centred(a), _centred(b))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman rank correlation over the pixels of two batches of maps, in [-1, 1]: Pearson's of the ranks.

    Ties share the average of the ranks that they span. Not differentiable: the result carries no gradient.

    Zero variance: two constant maps give 1; a constant map and another give 0.

    Args, returns and errors as for `cosine`.
    """
    a, b = _flat_pair(a, b)
    return _cosine(_rescaled(_centred_ranks(a)), _rescaled(_centred_ranks(b)))


def topk_intersection(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Fraction of the ``k`` largest pixels that two batches of maps share, in [0, 1].

    Ties are broken by position: of equal pixels the one with the lower flat index counts as larger. So a constant map,
    zeros included, has its first ``k`` pixels on top. Not differentiable.

    Args:
        a: Maps ``[N, ...]``; values are compared as they are, with their sign.
        b: Maps of the same shape.
        k: How many pixels, from 1 to the number of values per map.

    Returns:
        ``[N]``.

    Raises:
        ValueError: as for `cosine`, or ``k`` is out of range.
    """
    a, b = _flat_pair(a, b)
    pixels = a.shape[1]
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= pixels:
        raise ValueError(f"k must be from 1 to {pixels}, an integer up to the number of pixels of a map; got {k}")
    return _divided((_top_mask(a, k) & _top_mask(b, k)).sum(1).to(a.dtype), k)


def nearby_intersection(a: Tensor, b: Tensor, k: int, *, reach: int = 1, beyond_chance: bool = False) -> Tensor:
    """Fraction of the ``k`` largest pixels of ``a`` that have one of ``b`` in their neighborhood, in [0, 1].

    The intersection counts a map that has moved by a pixel as another one. This allows for it (Kamath et al. 2024,
    where it is a recall, and a precision with ``a`` and ``b`` swapped): with ``reach`` 0 it is `topk_intersection`,
    and it never falls with ``reach``. It also allows for chance: scattered pixels have most of a map in their
    neighborhoods, and then any map does well. ``beyond_chance`` takes that off.

    Ties are broken as for `topk_intersection`. Not differentiable.

    Args:
        a: Maps ``[N, H, W]``; values are compared as they are, with their sign.
        b: Maps of the same shape.
        k: How many pixels, from 1 to the number of values per map.
        reach: Pixels to each side that count as near, >= 0: a square of ``2 reach + 1`` pixels.
        beyond_chance: Give ``(r - c) / (1 - c)``, with ``c`` the share of the map that is near the largest of ``b``:
            0 is what pixels drawn at random reach on average, 1 is all. 1 where all of the map is near, which says
            nothing.

    Returns:
        ``[N]``.

    Raises:
        ValueError: as for `topk_intersection`, maps are not ``[N, H, W]``, or ``reach`` is negative.
    """
    a, b = _pair(a, b)
    _require_planes(a)
    pixels = a.shape[1] * a.shape[2]
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= pixels:
        raise ValueError(f"k must be from 1 to {pixels}, an integer up to the number of pixels of a map; got {k}")
    if not isinstance(reach, (int, np.integer)) or reach < 0:
        raise ValueError(f"reach must be a whole number of pixels >= 0; got {reach}")
    top = _top_mask(a.flatten(1), k)
    near = _top_mask(b.flatten(1), k).view_as(b).to(a.dtype)[:, None]
    near = torch.nn.functional.max_pool2d(near, 2 * reach + 1, stride=1, padding=reach).flatten(1) > 0
    found = _divided((top & near).sum(1).to(a.dtype), k)
    if not beyond_chance:
        return found
    covered = _divided(near.sum(1).to(a.dtype), pixels)
    return torch.where(covered < 1, (found - covered) / (1 - covered).clamp(min=1 / (2 * pixels)), 1)


def attrition(similarity: Tensor, success: Tensor) -> Attrition:
    """Means of a similarity under attack, by what is made of attacks that never kept the prediction.

    Args:
        similarity: [N]; of the maps before and after, 1 for equal ones.
        success: bool [N]; whether the attack kept the prediction.

    Raises:
        ValueError: shapes differ, or there is nothing.
    """
    if similarity.ndim != 1 or success.shape != similarity.shape or not len(similarity):
        raise ValueError(
            f"similarity has shape {list(similarity.shape)} and success {list(success.shape)}; accepted is one number "
            "each an image"
        )
    kept = success.bool()
    value = similarity.double()
    return Attrition(
        kept=float(kept.double().mean()),
        unchanged=float(torch.where(kept, value, 1.0).mean()),
        left_out=float(value[kept].mean()),
        floor=float(torch.where(kept, value, 0.0).mean()),
    )


def center_of_mass(a: Tensor) -> Tensor:
    """Center of mass of each map in pixel units: ``(row, column)`` of the first pixel is ``(0, 0)``. Differentiable.

    Each map is normalized to sum 1 and taken as the weights of its pixels' positions (Ghorbani, Abid & Zou 2019).

    Zero mass: the geometric center ``((H - 1) / 2, (W - 1) / 2)``, with gradient 0.

    Args:
        a: Maps ``[N, H, W]`` without negative values, any unit.

    Returns:
        ``[N, 2]``.

    Raises:
        ValueError: not ``[N, H, W]``, not floating point, a value is not finite or is negative.
    """
    a = _checked(a, "a")
    _require_planes(a)
    if bool(a.amin() < 0):
        raise ValueError(f"a must not have negative values to have a center of mass (take abs()?); min {a.min():.4g}")
    _, height, width = a.shape
    mass = _rescaled(a.flatten(1)).view_as(a)
    total = mass.sum((1, 2))
    total = torch.where(total > 0, total, torch.ones_like(total))
    # Moments about the geometric center: symmetric maps balance exactly, and an empty one falls on it by itself.
    middle = a.new_tensor([(height - 1) / 2, (width - 1) / 2])
    rows = torch.arange(height, dtype=a.dtype, device=a.device) - middle[0]
    columns = torch.arange(width, dtype=a.dtype, device=a.device) - middle[1]
    moments = torch.stack([(mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)], dim=1)
    return middle + moments / total[:, None]


def center_shift(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance in pixels between the centers of mass of two batches of maps; 0 is perfect.

    Differentiable, with gradient 0 where the centers coincide. A map of zero mass has its center in the middle of the
    map, see `center_of_mass`.

    Args:
        a: Maps ``[N, H, W]`` without negative values.
        b: Maps of the same shape.

    Returns:
        ``[N]``, from 0 to the map's diagonal.

    Raises:
        ValueError: as for `cosine` and `center_of_mass`.
    """
    a, b = _pair(a, b)
    shift: Tensor = torch.linalg.vector_norm(center_of_mass(a) - center_of_mass(b), dim=1)
    return shift


def ssim(a: Tensor, b: Tensor, *, window: int = 7, sigma: float = 1.5, data_range: float = 1.0) -> Tensor:
    """Structural similarity (Wang, Bovik, Sheikh & Simoncelli 2004) of two batches of maps, in [-1, 1].

    Means, variances and the covariance are weighted by a ``window`` x ``window`` Gaussian that sums to 1, with
    K1 = 0.01 and K2 = 0.03, and the index is averaged over the windows that lie inside the map. Differentiable.

    Zero variance: the formula's constants keep it defined. Two equal constant maps give 1, two unequal ones the
    luminance term alone, a constant map and another a value below 1 that is small where the other has contrast.

    Args:
        a: Maps ``[N, H, W]``, in the unit of ``data_range``.
        b: Maps of the same shape.
        window: Side of the Gaussian window in pixels, odd, at most the smaller side of the map.
        sigma: Standard deviation of the Gaussian in pixels.
        data_range: Largest minus smallest value that a map can have: 1 for heatmaps divided by their maximum.

    Returns:
        ``[N]``.

    Raises:
        ValueError: as for `cosine`, maps are not ``[N, H, W]``, or an option is out of range.
    """
    a, b = _pair(a, b)
    _require_planes(a)
    side = min(a.shape[1:])
    if window % 2 == 0 or not 1 <= window <= side:
        raise ValueError(f"window must be odd and from 1 to {side}, the smaller side of a map; got {window}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be positive and finite; got {sigma}")
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ValueError(f"data_range must be positive and finite; got {data_range}")
    offsets = [(i - window // 2) / sigma for i in range(window)]
    bell = [math.exp(-z * z / 2) for z in offsets]
    taps = [value / sum(bell) for value in bell]
    mean_a, mean_b = _filtered(a, taps), _filtered(b, taps)
    var_a = _filtered(a * a, taps) - mean_a * mean_a
    var_b = _filtered(b * b, taps) - mean_b * mean_b
    cov = _filtered(a * b, taps) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * (mean_a * mean_b) + c1) * (2 * cov + c2)
    below = (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    index = (above / below).flatten(1)
    return _divided(index.sum(1), index.shape[1])


def similarity(a: Tensor, b: Tensor) -> Similarity:
    """The three measures of Joo et al. 2023 of two batches of maps.

    Args:
        a: Maps ``[N, H, W]`` divided by their maximum (``heatmap(..., "max")``), at least 7 x 7 pixels.
        b: Maps of the same shape.

    Raises:
        ValueError: as for `cosine` and `ssim`.
    """
    return Similarity(cosine(a, b), pearson(a, b), ssim(a, b, window=_WINDOW, sigma=1.5))


# --------------------------------------------------------------------------------------------------------------------
# A network's maps

_WINDOW = 7


def random_perturbation_similarity(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    epsilon: float,
    attribution: Attribution = gradient,
    draws: int = 10,
    seed: int = 0,
    max_batch: int = 64,
) -> Similarity:
    """How alike the heatmaps of an image and of randomly perturbed copies are (RPS, Joo et al. 2023).

    Heatmaps are sums over channels of absolute values, divided by their maximum. A copy adds to each value its own draw
    from the uniform distribution on [-epsilon, epsilon], and is clipped to [0, 1]; the authors' code clips to the
    smallest and largest value of the batch instead, which lets the images of a batch influence one another. The noise
    depends on the seed and the image, not on its place in a batch, on ``max_batch`` or on the device.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1], at least 7 x 7 pixels.
        target: class to explain of each image, int64 [N], or one int for all.
        epsilon: largest change of a value in units of a [0, 1] image, for example ``8 / 255``; > 0.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        draws: perturbed copies of each image, >= 1.
        seed: of the noise.
        max_batch: largest number of images in one pass; several draws share one.

    Returns:
        The mean over the draws of each measure.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_images(x)
    check_maps_size(x)
    labels = check_target(x, target)
    check_epsilon(epsilon)
    if draws < 1:
        raise ValueError(f"draws is {draws}; a mean takes at least 1 perturbed copy of each image")
    # Not as a decorator: what one decorates counts with everything here in the digests of results.
    return differentiates(_under_noise)(model, x, labels, attribution, epsilon, draws, seed, max_batch)


def _under_noise(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    attribution: Attribution,
    epsilon: float,
    draws: int,
    seed: int,
    max_batch: int,
) -> Similarity:
    x, model = x.detach(), frozen(model)

    def maps(images: Tensor, classes: Tensor) -> Tensor:
        return heatmap(attribution(model, images, classes), "max")

    clean = torch.cat([maps(x[rows], labels[rows]) for rows in parts_of(len(x), max_batch)])
    total = torch.zeros(len(x), 3, dtype=torch.promote_types(clean.dtype, torch.float32), device=x.device)
    generators: list[torch.Generator] = []
    for rows, copies in _passes(len(x), draws, max_batch):
        images, count = x[rows], copies.stop - copies.start
        if copies.start == 0:  # a later pass over the same images goes on with their generators
            generators = generators_of(images, seed)
        # Drawn on the CPU: the same noise on every device.
        noise = torch.stack([torch.rand(count, *x.shape[1:], generator=g, dtype=x.dtype) for g in generators])
        noise = noise.mul_(2).sub_(1).to(x.device)
        noisy = (images[:, None] + epsilon * noise).clamp_(0, 1).flatten(0, 1)
        found = similarity(clean[rows].repeat_interleave(count, 0), maps(noisy, labels[rows].repeat_interleave(count)))
        each = torch.stack([found.cosine, found.pearson, found.ssim], 1)
        total[rows] += each.view(-1, count, 3).sum(1)
    return Similarity(*_divided(total, draws).unbind(1))


def insertion(
    model: nn.Module,
    x: Tensor,
    target: Target,
    heatmaps: Tensor,
    *,
    fractions: int = 20,
    fill: Tensor | float | None = None,
    max_batch: int = 64,
) -> Curve:
    """A class's probability when only the top pixels of a heatmap are kept; a large area speaks for the heatmap.

    The probability (softmax) is taken with 1/F, 2/F, ..., 1 of the pixels kept, each rounded to the nearest number of
    pixels, halves up; at 1 it is that of the image. All channels of a pixel go together. Of equal pixels the one with
    the lower flat index is more important, as in `topk_intersection`.

    Adv-Insertion (Joo et al. 2023) is this with the clean image for ``x`` and the attacked image's heatmap.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1].
        target: class of each image, int64 [N], or one int for all.
        heatmaps: [N, H, W]; values are compared as they are, with their sign.
        fractions: F, how many; from 1 to the number of pixels.
        fill: what the other pixels become: a number, or a tensor that broadcasts to x. None takes each image's own mean
            color: black would favor maps made with a black baseline and draw an edge around each pixel that is kept,
            and a data set's mean is not known here.
        max_batch: largest number of images in one pass; several fractions share one.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    return _curve(model, x, target, heatmaps, fractions, fill, max_batch, keep=True)


def deletion(
    model: nn.Module,
    x: Tensor,
    target: Target,
    heatmaps: Tensor,
    *,
    fractions: int = 20,
    fill: Tensor | float | None = None,
    max_batch: int = 64,
) -> Curve:
    """A class's probability when the top pixels of a heatmap are taken out; a small area speaks for the heatmap.

    The probability is taken with 1/F, 2/F, ..., 1 of the pixels replaced by ``fill``. Everything else is as for
    `insertion`.
    """
    return _curve(model, x, target, heatmaps, fractions, fill, max_batch, keep=False)


def _curve(
    model: nn.Module,
    x: Tensor,
    target: Target,
    heatmaps: Tensor,
    fractions: int,
    fill: Tensor | float | None,
    max_batch: int,
    *,
    keep: bool,
) -> Curve:
    check_images(x)
    labels = check_target(x, target)
    heatmaps = _checked(heatmaps, "heatmaps")
    if heatmaps.shape != (len(x), *x.shape[2:]):
        raise ValueError(
            f"heatmaps have shape {list(heatmaps.shape)}; accepted is one map an image, {[len(x), *x.shape[2:]]}"
        )
    pixels = heatmaps[0].numel()
    if not 1 <= fractions <= pixels:
        raise ValueError(f"fractions is {fractions}; accepted is from 1 to {pixels}, the number of pixels of a map")
    x, model = x.detach(), frozen(model)
    other = _fill(x, fill)
    # The nearest to i * pixels / fractions, halves up, in whole numbers.
    counts = torch.tensor([(2 * i * pixels + fractions) // (2 * fractions) for i in range(1, fractions + 1)])
    order = heatmaps.detach().flatten(1).sort(dim=1, descending=True, stable=True).indices
    place = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=order.device).expand_as(order))
    place = place.view_as(heatmaps).to(x.device)
    probability = x.new_empty(len(x), fractions)
    for rows, steps in _passes(len(x), fractions, max_batch):
        top = place[rows, None] < counts[steps].to(x.device).view(1, -1, 1, 1)  # [n, f, H, W]
        shown = (top if keep else ~top)[:, :, None]
        images = torch.where(shown, x[rows, None], other[rows, None]).flatten(0, 1)
        with torch.no_grad():
            logits = model(images)
            chosen = target_logits(logits, labels[rows].repeat_interleave(top.shape[1]))
            probability[rows, steps] = (chosen - logits.logsumexp(1)).exp().view(-1, top.shape[1])
    area = _divided(probability.sum(1), fractions)
    return Curve(_divided(counts.to(probability), pixels), probability, area)


def _fill(x: Tensor, fill: Tensor | float | None) -> Tensor:
    if fill is None:
        return x.mean((2, 3), keepdim=True).expand_as(x)
    other = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
    if not bool(other.isfinite().all()):
        raise ValueError("fill has NaN or infinite values; accepted is a finite number or finite pixels")
    try:
        return other.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"fill has shape {list(other.shape)}; accepted is a number or what broadcasts to {list(x.shape)}"
        ) from None


@differentiates
def curvature(model: nn.Module, x: Tensor, target: Target, delta: Tensor, *, max_batch: int = 64) -> Curvature:
    """Why a gradient turns: ``||Hess delta||`` against ``||g||``, and what it did between x and x + delta.

    For every model and every pair of points (Joo et al. 2023, local gradient alignment)

        ``||g - g'||^2 = (||g|| - ||g'||)^2 + 2 ||g|| ||g'|| (1 - cos(g, g'))``,

    so a small difference of gradients bounds the angle between them only in relation to their norms: scaling the last
    layer scales ``||Hess delta||``, ``||g||`` and ``||g - g'||`` together, and changes neither the ratio nor the angle
    nor its bound.

    ``Hess delta`` is exact, the derivative of ``<g, delta>`` in a double backward pass; it is zero almost everywhere
    for a piecewise linear model. Norms and distances are accumulated in float64, and the cosine distance is the square
    of half the distance between unit vectors, which keeps its digits where the gradients are nearly parallel.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1].
        target: class of each image, int64 [N], or one int for all.
        delta: the change of the images, in the same units: a tensor that broadcasts to x. ``x + delta`` may leave
            [0, 1] and is rounded in the type of x.
        max_batch: largest number of images in one pass.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_images(x)
    labels = check_target(x, target)
    try:
        delta = delta.detach().to(x.device, x.dtype).expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"delta has shape {list(delta.shape)}; accepted is what broadcasts to {list(x.shape)}"
        ) from None
    if not bool(delta.isfinite().all()):
        raise ValueError("delta has NaN or infinite values; accepted is a finite change of the images")
    x, model = x.detach(), frozen(model)
    columns = []
    for rows in parts_of(len(x), max_batch):
        z, y, d = x[rows].requires_grad_(), labels[rows], delta[rows]
        g = gradient(model, z, y, create_graph=True)
        product = torch.zeros_like(z)
        if g.requires_grad:  # the gradient of a linear model is no function of its image at all
            (product,) = torch.autograd.grad((g * d).sum(), z, materialize_grads=True)
        columns.append(_turn(product, g.detach(), gradient(model, x[rows] + d, y)))
    return Curvature(*torch.cat(columns, 1).unbind(0))


def _turn(product: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The rows of a `Curvature`, [6, n]."""
    hd, a, b = (v.double().flatten(1) for v in (product, before, after))
    norm_hd, norm_a, norm_b, distance = (torch.linalg.vector_norm(v, dim=1) for v in (hd, a, b, a - b))
    zero_a, zero_b = norm_a == 0, norm_b == 0
    unit_a, unit_b = (
        v / torch.where(zero, 1, norm)[:, None] for v, zero, norm in ((a, zero_a, norm_a), (b, zero_b, norm_b))
    )
    cosine_distance = (unit_a - unit_b).square().sum(1) / 4
    cosine_distance = torch.where(zero_a ^ zero_b, 0.5, cosine_distance)

    def over(above: Tensor, below: Tensor) -> Tensor:
        return torch.where(above == 0, 0, above / below)

    return torch.stack(
        [
            norm_hd,
            norm_a,
            over(norm_hd, norm_a),
            distance,
            cosine_distance,
            over(distance, norm_a) * over(distance, norm_b) / 4,
        ]
    )


def generators_of(images: Tensor, seed: int) -> list[torch.Generator]:
    """A random generator for each image, which depends on the seed and on the image alone."""
    pixels = images.detach().cpu().contiguous().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(image, seed)) for image in pixels]


def check_epsilon(epsilon: float) -> None:
    """Refuse an l-infinity radius that is none in units of a [0, 1] image, with a ValueError of one line."""
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; accepted is 0 < epsilon <= 1 in units of a [0, 1] image, e.g. 8 / 255")


def check_maps_size(x: Tensor) -> None:
    """Refuse images too small for `similarity`, with a ValueError of one line."""
    if min(x.shape[2:]) < _WINDOW:
        raise ValueError(
            f"images are {x.shape[2]} x {x.shape[3]} pixels; SSIM's window takes at least {_WINDOW} x {_WINDOW}"
        )


def _passes(images: int, copies: int, max_batch: int) -> Iterator[tuple[slice, slice]]:
    """(images, copies of each) that share a pass of at most ``max_batch``; the copies of an image in order."""
    for rows in parts_of(images, max(1, max_batch // copies) if max_batch >= 1 else max_batch):
        for part in parts_of(copies, max_batch):
            yield rows, slice(part.start, min(part.stop, copies))


# --------------------------------------------------------------------------------------------------------------------


def _checked(x: Tensor, name: str) -> Tensor:
    """The maps in float32 at least, or a one-line error."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor of maps; got {type(x).__name__}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must be a non-empty batch of maps, [N, H, W] or [N, ...]; got shape {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point; got {x.dtype} (call .float()?)")
    if not bool(torch.stack(torch.aminmax(x.detach())).isfinite().all()):  # several times faster than x.isfinite()
        sample = int(x.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
        raise ValueError(f"{name} has a NaN or infinite value in sample {sample}; maps must be finite")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches, checked and in their common type."""
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have the same shape; got {list(a.shape)} and {list(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"a and b must be on the same device; got {a.device} and {b.device}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _pair(a, b)
    return a.flatten(1), b.flatten(1)


def _require_planes(a: Tensor) -> None:
    if a.ndim != 3:
        raise ValueError(f"maps must be [N, H, W]; got shape {list(a.shape)} (sum over the channels first?)")


def _rescaled(x: Tensor) -> Tensor:
    """Rows of ``[N, P]`` over a power of two each, so that the largest magnitude is in [1, 2); zero rows stay.

    Dividing by a power of two is exact. It is constant in the gradient: what is computed from the result does not
    depend on it.
    """
    peak = x.detach().abs().amax(1, keepdim=True)
    # peak = mantissa * 2**exponent, and 2**(exponent - 1) is a float even for the smallest and the largest peak.
    power = peak / (2 * torch.frexp(peak).mantissa)
    return x / torch.where(peak > 0, power, torch.ones_like(peak))


def _centred(x: Tensor) -> Tensor:
    """Rows minus their mean. Subtracting the minimum first makes a constant row exactly zero, and keeps digits."""
    x = _rescaled(x)
    x = _rescaled(x - x.detach().amin(1, keepdim=True))
    return x - x.mean(1, keepdim=True)


def _centred_ranks(x: Tensor) -> Tensor:
    """Twice the average ranks minus twice their mean: integers, so exact."""
    ordered, index = x.detach().sort(dim=1)
    pixels = x.shape[1]
    place = torch.arange(pixels, device=x.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)  # of a run of equal values
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = starts.roll(-1, dims=1)
    below = torch.where(starts, place, 0).cummax(1).values
    up_to = torch.where(ends, place + 1, pixels).flip(1).cummin(1).values.flip(1)
    # A run has the ranks below+1 .. up_to, on average (below + up_to + 1)/2; the mean of all P ranks is (P + 1)/2.
    return torch.empty_like(ordered).scatter_(1, index, (below + up_to - pixels).to(x.dtype))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of rows whose largest magnitude is near 1, or which are zero."""
    aa, bb = (a * a).sum(1), (b * b).sum(1)
    zero_a, zero_b = aa == 0, bb == 0
    either = zero_a | zero_b
    # One root of the product, not the product of two roots: sqrt(s * s) is exactly s, so equal maps give exactly 1.
    norms = torch.where(either, torch.ones_like(aa), aa * bb).sqrt()
    value = ((a * b).sum(1) / norms).clamp(-1, 1)
    return torch.where(either, (zero_a & zero_b).to(value.dtype), value)


def _top_mask(x: Tensor, k: int) -> Tensor:
    # topk's choice among ties is unspecified and differs between devices; a stable sort's is not.
    index = x.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(x, dtype=torch.bool).scatter_(1, index, True)


def _filtered(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Rows and columns of ``[N, H, W]`` correlated with ``taps``, windows inside the map only.

    Written tap by tap: conv2d may round to TF32 on a GPU, which the differences of squares in `ssim` do not survive.
    """
    for dim in (1, 2):
        size = x.shape[dim] - len(taps) + 1
        total = torch.zeros_like(x.narrow(dim, 0, size))
        for i, tap in enumerate(taps):
            total = torch.add(total, x.narrow(dim, i, size), alpha=tap)
        x = total
    return x


def _divided(total: Tensor, count: int) -> Tensor:
    """``total / count``, correctly rounded: for a Python divisor CUDA multiplies by the reciprocal, and 49/49 < 1."""
    return total / total.new_tensor(count)
