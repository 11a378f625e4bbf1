"""What an attack does to a heatmap: scores that it makes as large as it can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robattr import metrics

Score = Callable[[Tensor], Tensor]
"""Heatmaps [N, H, W] that sum to 1 -> what the attack maximizes, [N]; differentiable."""


class Objective(Protocol):
    """What an attack does to a heatmap. ``prepare`` is called once for each batch, with the clean images' heatmaps.

    It may refuse them with a ValueError. Before any work starts it is called with uniform maps of all images; an
    objective with a method ``check(n, height, width)`` is asked that way instead.
    """

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        """The score D of heatmaps against ``reference`` [N, H, W], the given rows of the whole batch."""
        ...


@dataclass(frozen=True)
class TopK:
    """Take the mass from the k pixels that were largest: D = - sum of the heatmap over them.

    Raises:
        ValueError: k is no integer >= 1.
    """

    k: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.k, (int, np.integer)) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"k is {self.k!r}; accepted is an integer >= 1, of pixels")

    def check(self, n: int, height: int, width: int) -> None:
        pixels = height * width
        if self.k > pixels:
            raise ValueError(f"k is {self.k}; the map has {pixels} pixels and k is an integer between 1 and that")

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        n, height, width = reference.shape
        self.check(n, height, width)
        top = reference.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        return lambda h: -h.flatten(1).gather(1, top).sum(1)


@dataclass(frozen=True)
class MassCenter:
    """Move the center of mass: D = its Euclidean distance, in pixels, from where it was."""

    def check(self, n: int, height: int, width: int) -> None:
        """Every map has a center."""

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        start = metrics.center_of_mass(reference)
        # At distance zero the derivative of the norm is taken as zero, not NaN.
        return lambda h: torch.linalg.vector_norm(metrics.center_of_mass(h) - start, dim=1)


@dataclass(frozen=True, eq=False)
class Targeted:
    """Move mass into a region: D = sum of the heatmap over ``mask``, bool [H, W] or one for each image [N, H, W].

    Raises:
        ValueError: a mask has no pixel, or values that are not finite.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        if self.mask.ndim not in (2, 3):
            raise ValueError(f"mask has shape {tuple(self.mask.shape)}; accepted is [H, W], or [N, H, W]")
        planes = self.mask if self.mask.ndim == 3 else self.mask[None]
        if not bool(planes.isfinite().all()):
            raise ValueError("mask has a NaN or infinite value; accepted are true and false")
        inside = (planes != 0).flatten(1).any(1)
        if not bool(inside.all()):
            which = f" of image {int((~inside).nonzero()[0])}" if self.mask.ndim == 3 else ""
            raise ValueError(f"mask{which} has 0 of {planes[0].numel()} pixels; a target is at least one")

    def check(self, n: int, height: int, width: int) -> None:
        _check_map("mask", self.mask, n, height, width)

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        mask = self.mask[rows] if self.mask.ndim == 3 else self.mask
        _check_map("mask", mask, *reference.shape)
        inside = mask.to(reference.device, reference.dtype)
        return lambda h: (h * inside).sum((1, 2))


def _check_objective(objective: Objective, images: Tensor) -> None:
    """Let the objective refuse the images' size before any work starts."""
    n, _, height, width = images.shape
    check: Callable[[int, int, int], None] | None = getattr(objective, "check", None)
    if check is not None:
        check(n, height, width)
    else:
        objective.prepare(images.new_full((1, 1, 1), 1.0).expand(n, height, width), slice(0, n))


def _check_map(name: str, value: Tensor, n: int, height: int, width: int) -> None:
    if value.shape not in ((height, width), (n, height, width)):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; accepted is one [H, W] = {(height, width)} for all images, or one "
            "for each"
        )
