"""From an attribution to a heatmap: one number a pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._rows import parts_of
from robattr.attributions.protocol import Attribution, Normalization


def heatmap(attribution: Tensor, normalize: Normalization | None = "sum") -> Tensor:
    """One number a pixel: the sum over channels of absolute values, divided by its sum, maximum or l2 norm.

    Args:
        attribution: [N, C, H, W].
        normalize: ``sum`` (Ghorbani et al. 2019), ``max`` (Joo et al. 2023), ``l2`` or None.

    Returns:
        [N, H, W], not negative; a map that is zero everywhere stays zero.

    Raises:
        ValueError: another shape, a NaN or an infinite value, another ``normalize``.
    """
    if attribution.ndim != 4:
        raise ValueError(f"attribution has shape {tuple(attribution.shape)}; a heatmap takes [N, C, H, W]")
    h = attribution.abs().sum(1)
    finite = h.detach().isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise ValueError(
            f"attribution has a NaN or infinite value in sample {int((~finite).nonzero()[0])}; a heatmap is of finite "
            "ones: look at the network's weights"
        )
    if normalize is None:
        return h
    peak = h.amax((1, 2), keepdim=True)
    peak = torch.where(peak > 0, peak, 1)
    if normalize == "max":
        return h / peak
    # First by the maximum, as a constant: sums and squares of very small or very large values stay in range.
    h = h / peak.detach()
    if normalize == "sum":
        scale = h.sum((1, 2), keepdim=True)
    elif normalize == "l2":
        scale = (h * h).sum((1, 2), keepdim=True).clamp_min(torch.finfo(h.dtype).tiny).sqrt()
    else:
        raise ValueError(f"normalize is {normalize!r}; accepted are 'sum', 'max', 'l2' and None")
    return h / torch.where(scale > 0, scale, 1)


def heatmaps(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    attribution: Attribution,
    normalize: Normalization | None = "sum",
    *,
    max_batch: int | None,
) -> Tensor:
    """The heatmap of each image, outside of any graph, so many images in a pass.

    Args:
        model: see the attribution method.
        x: images [N, C, H, W], N >= 1.
        labels: class explained of each image, int64 [N].
        attribution: a method of :mod:`robattr.attributions`.
        normalize: see :func:`heatmap`.
        max_batch: largest number of images in one pass; None for all at once.

    Returns:
        [N, H, W].
    """
    return torch.cat(
        [heatmap(attribution(model, x[rows], labels[rows]), normalize).detach() for rows in parts_of(len(x), max_batch)]
    )


def on_pixels(places: Tensor, x: Tensor) -> Tensor:
    """One number a place [N, h, w], or [N, l], as an attribution shaped like x.

    It is drawn at the size of the image, between the places bilinearly. All channels of a pixel have an equal share of
    its number, so the heatmap of the result is the map itself, and cosines and norms of what is shaped like x are
    those of the map.
    """
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[places.ndim - 1]
    wide = F.interpolate(places[:, None], size=x.shape[2:], mode=mode, align_corners=False)
    return (wide / x.shape[1]).repeat(1, x.shape[1], *[1] * (places.ndim - 1))
