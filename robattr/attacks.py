"""Perturb an image so that its explanation changes and its prediction does not (Ghorbani, Abid & Zou 2019).

One loop, :func:`iterative_attack`, climbs any objective of any attribution method's heatmap; :func:`random_sign` is the
baseline without a gradient. Both return an :class:`AttackResult` in which a failed attack is a row like every other.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robattr import metrics
from robattr.attributions import Attribution, gradient, heatmap
from robattr.data import check_images
from robattr.models import set_beta, softplus_surrogate

__all__ = ["AttackResult", "MassCenter", "Objective", "Targeted", "TopK", "iterative_attack", "random_sign"]

Score = Callable[[Tensor], Tensor]
"""Heatmaps [N, H, W] that sum to 1 -> what the attack maximizes, [N]; differentiable."""


class Objective(Protocol):
    """What an attack does to a heatmap. ``prepare`` is called once with the clean images' heatmaps."""

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        """The score D of heatmaps against ``reference`` [N, H, W], the given rows of the whole batch."""
        ...


@dataclass(frozen=True)
class TopK:
    """Take the mass from the k pixels that were largest: D = - sum of the heatmap over them."""

    k: int = 1000

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        pixels = reference[0].numel()
        if not 1 <= self.k <= pixels:
            raise ValueError(f"k is {self.k}; the map has {pixels} pixels and k is between 1 and that")
        top = reference.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        return lambda h: -h.flatten(1).gather(1, top).sum(1)


@dataclass(frozen=True)
class MassCenter:
    """Move the center of mass: D = its Euclidean distance, in pixels, from where it was."""

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        start = metrics.center_of_mass(reference)
        # At distance zero the derivative of the norm is taken as zero, not NaN.
        return lambda h: torch.linalg.vector_norm(metrics.center_of_mass(h) - start, dim=1)


@dataclass(frozen=True, eq=False)
class Targeted:
    """Move mass into a region: D = sum of the heatmap over ``mask``, bool [H, W] or one for each image [N, H, W]."""

    mask: Tensor

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        mask = self.mask[rows] if self.mask.ndim == 3 else self.mask[None]
        if mask.shape[-2:] != reference.shape[1:] or len(mask) not in (1, len(reference)):
            raise ValueError(
                f"mask has shape {tuple(self.mask.shape)}; accepted is one [H, W] = {tuple(reference.shape[1:])} "
                "for all images, or one for each"
            )
        inside = mask.to(reference.device, reference.dtype)
        return lambda h: (h * inside).sum((1, 2))


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found, a row an image, in the order of the batch.

    Attributes:
        images: [N, C, H, W]; exactly within epsilon of the clean images and within [0, 1]. Where the attack failed it
            is the clean image: an attack that would have been noticed has changed nothing.
        success: bool [N]; False where no perturbed iterate kept the prediction.
        prediction: int64 [N]; the class predicted for the clean image, which is the class explained.
        objective: [N]; D of the returned image, on the attacked model.
        trace: [iterations + 1, N]; D of every iterate on the attacked model, the clean image first.
        kept: bool [iterations + 1, N]; whether the iterate has the prediction of the clean image.
        best: int64 [N]; the iterate that is returned, 0 where the attack failed.
        epsilon: largest change of a value, in units of a [0, 1] image.
    """

    images: Tensor
    success: Tensor
    prediction: Tensor
    objective: Tensor
    trace: Tensor
    kept: Tensor
    best: Tensor
    epsilon: float


def iterative_attack(
    model: nn.Module,
    images: Tensor,
    *,
    objective: Objective,
    epsilon: float,
    attribution: Attribution = gradient,
    step: float = 0.5 / 255,
    iterations: int = 300,
    beta: float | tuple[float, float] | None = (3.0, 30.0),
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> AttackResult:
    """Iterated sign ascent on the explanation within an l-infinity ball (Ghorbani et al. 2019, Algorithm 1).

    ``x <- clip(x + step * sign(grad D(x)))`` to the ball of radius epsilon around the image and to [0, 1]. A piecewise
    linear network gives no direction, so a smooth copy of the model does; D, the prediction and with them the choice of
    the best iterate come from the model itself. Where the gradient is zero or not finite the step has random signs.
    Images do not influence one another.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        images: [N, C, H, W] in [0, 1]. The class that is explained, and has to be kept, is the model's prediction.
        objective: :class:`TopK`, :class:`MassCenter`, :class:`Targeted` or one of your own.
        epsilon: largest change of a value in units of a [0, 1] image, for example ``8 / 255``; > 0.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        step: alpha, in the same units as epsilon, > 0.
        iterations: number of steps, >= 1.
        beta: sharpness of the smooth copy; a pair is a geometric schedule from the first to the last step; None
            differentiates the model itself (for one that is smooth already).
        seed: of the random signs.
        batch_size: images attacked at once; bounds the memory.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    _check(images, epsilon, batch_size)
    if not step > 0:
        raise ValueError(f"step is {step}; accepted is a step > 0 in units of a [0, 1] image, for example 0.5 / 255")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; an attack takes at least 1 step")
    schedule = _schedule(beta, iterations)
    _prepare_all(objective, images)
    model = _constant(model)
    smooth = model if beta is None else softplus_surrogate(model, schedule[0])

    def next_iterate(start: Tensor, x: Tensor, labels: Tensor, score: Score, p: int, signs: _Signs) -> Tensor:
        if beta is not None:
            set_beta(smooth, schedule[p])
        z = x.requires_grad_()
        d = score(heatmap(attribution(smooth, z, labels, create_graph=True)))
        # The gradient of a linear model is no function of its image at all.
        g = torch.autograd.grad(d.sum(), z)[0] if d.requires_grad else torch.zeros_like(z)
        direction = torch.nan_to_num(g, nan=0.0).sign()
        for i in (direction == 0).flatten(1).all(1).nonzero().flatten().tolist():
            direction[i] = signs.draw(i)
        return x.detach() + step * direction

    return _search(model, images, objective, attribution, epsilon, iterations, next_iterate, seed, batch_size, progress)


def random_sign(
    model: nn.Module,
    images: Tensor,
    *,
    objective: Objective,
    epsilon: float,
    attribution: Attribution = gradient,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> AttackResult:
    """The baseline: +epsilon or -epsilon at random for every pixel and channel, clipped to [0, 1].

    One draw is the baseline of Ghorbani et al. 2019. With more, the one with the largest D that keeps the prediction is
    returned: a search with as many evaluations as an attack of that many steps. Other arguments, errors and the result
    are those of :func:`iterative_attack`.
    """
    _check(images, epsilon, batch_size)
    if draws < 1:
        raise ValueError(f"draws is {draws}; the baseline takes at least 1")
    _prepare_all(objective, images)

    def next_iterate(start: Tensor, x: Tensor, labels: Tensor, score: Score, p: int, signs: _Signs) -> Tensor:
        return start + epsilon * signs.draw_all()

    return _search(
        _constant(model), images, objective, attribution, epsilon, draws, next_iterate, seed, batch_size, progress
    )


class _Signs:
    """Random signs that depend on the seed and on the image, not on its place in a batch or on the device."""

    def __init__(self, images: Tensor, seed: int) -> None:
        self._like = images
        self._generators = [
            torch.Generator().manual_seed(zlib.crc32(image.cpu().contiguous().numpy().tobytes(), seed))
            for image in images
        ]

    def draw(self, index: int) -> Tensor:
        """+-1 for every value of the image at ``index`` of the batch."""
        shape = self._like.shape[1:]
        signs = torch.randint(0, 2, shape, generator=self._generators[index], dtype=torch.int8)
        return signs.mul_(2).sub_(1).to(self._like)

    def draw_all(self) -> Tensor:
        return torch.stack([self.draw(i) for i in range(len(self._generators))])


_Step = Callable[[Tensor, Tensor, Tensor, Score, int, _Signs], Tensor]


def _search(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    attribution: Attribution,
    epsilon: float,
    iterations: int,
    next_iterate: _Step,
    seed: int,
    batch_size: int,
    progress: bool,
) -> AttackResult:
    """Walk from each image and keep, of the iterates with the same prediction, the one with the largest D."""
    parts = []
    bar = tqdm(total=-(-len(images) // batch_size) * iterations, desc="attack", disable=None if progress else True)
    with bar:
        for rows in (slice(i, i + batch_size) for i in range(0, len(images), batch_size)):
            start = images[rows].detach()
            lower, upper = _ball(start, epsilon)
            with torch.no_grad():
                labels = model(start).argmax(1)
            reference = heatmap(attribution(model, start, labels))
            score = objective.prepare(reference, rows)
            signs = _Signs(start, seed)
            x = start.clone()
            trace, kept = [score(reference)], [torch.ones_like(labels, dtype=torch.bool)]
            best_d = torch.full_like(trace[0], -torch.inf)
            best_x, best = start.clone(), torch.zeros_like(labels)
            for p in range(iterations):
                x = next_iterate(start, x, labels, score, p, signs).clamp_(lower, upper)
                with torch.no_grad():
                    same = model(x).argmax(1) == labels
                d = score(heatmap(attribution(model, x, labels)))
                better = same & (d > best_d)
                best_d = torch.where(better, d, best_d)
                best_x = torch.where(better[:, None, None, None], x, best_x)
                best = torch.where(better, p + 1, best)
                trace.append(d)
                kept.append(same)
                bar.update()
            d = torch.stack(trace)
            parts.append(
                AttackResult(
                    images=best_x,
                    success=best > 0,
                    prediction=labels,
                    objective=d.gather(0, best[None]).squeeze(0),
                    trace=d,
                    kept=torch.stack(kept),
                    best=best,
                    epsilon=epsilon,
                )
            )
    return _joined(parts)


def _joined(parts: list[AttackResult]) -> AttackResult:
    def cat(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim)

    return AttackResult(
        images=cat("images"),
        success=cat("success"),
        prediction=cat("prediction"),
        objective=cat("objective"),
        trace=cat("trace", 1),
        kept=cat("kept", 1),
        best=cat("best"),
        epsilon=parts[0].epsilon,
    )


def _ball(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The corners of the ball within [0, 1]: what lies between them differs from x by epsilon or less, *exactly*.

    The sums are formed in float64; where rounding has put one outside of the ball, the number next to it is inside.
    """
    wide = x.double()
    low, high = (wide - epsilon).clamp(0, 1).to(x.dtype), (wide + epsilon).clamp(0, 1).to(x.dtype)
    low = torch.where(wide - low.double() > epsilon, torch.nextafter(low, torch.ones_like(low)), low)
    high = torch.where(high.double() - wide > epsilon, torch.nextafter(high, torch.zeros_like(high)), high)
    return low, high


def _constant(model: nn.Module) -> nn.Module:
    """A copy whose parameters are constants: attacks differentiate with respect to images only."""
    if model.training:
        raise ValueError(
            "the model is in training mode, where images of a batch influence one another; call model.eval()"
        )
    return copy.deepcopy(model).requires_grad_(False)


def _schedule(beta: float | tuple[float, float] | None, iterations: int) -> list[float]:
    if beta is None:
        return []
    first, last = beta if isinstance(beta, tuple) else (beta, beta)
    if not (first > 0 and last > 0):
        raise ValueError(f"beta is {beta}; accepted are a number > 0, a pair of them, or None for a smooth model")
    ratio = (last / first) ** (1 / max(1, iterations - 1))
    return [first * ratio**p for p in range(iterations)]


def _prepare_all(objective: Objective, images: Tensor) -> None:
    """Let the objective refuse the images' size before any work starts."""
    n, _, height, width = images.shape
    objective.prepare(images.new_full((1, 1, 1), 1.0).expand(n, height, width), slice(0, n))


def _check(images: Tensor, epsilon: float, batch_size: int) -> None:
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; accepted is at least 1 image")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; accepted is 0 < epsilon <= 1 in units of a [0, 1] image, e.g. 8 / 255")
