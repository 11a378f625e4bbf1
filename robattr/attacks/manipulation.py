"""Drawing a map of one's choice into the explanation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robattr import metrics
from robattr._rows import joined, parts_of
from robattr.attacks.climbing import check_attack, check_iterations, linf_ball, slope_of
from robattr.attacks.objectives import _check_map
from robattr.attacks.views import _map_and_logits, _schedule
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
from robattr.models import set_beta, softplus_surrogate


@dataclass(frozen=True, eq=False)
class ManipulationResult:
    """What a manipulation found, a row an image, in the order of the batch.

    Attributes:
        images: [N, C, H, W]; the iterate with the lowest loss, exactly within epsilon of the clean image and within
            [0, 1]. Where no iterate has a lower loss than the clean image, it is the clean image.
        labels: int64 [N]; the class explained.
        prediction: int64 [N]; the class predicted for the clean image.
        kept: bool [N]; whether that class is predicted for the returned image. Images that lost it are returned too.
        loss: [iterations + 1, N]; of every iterate on the attacked model, the clean image first.
        best: int64 [N]; the iterate that is returned, 0 for the clean image.
        original: how alike the heatmaps of the returned and of the clean image are; low is a strong attack.
        target: how alike the heatmap of the returned image and the target map are; high is a strong attack.
        epsilon: largest change of a value, in units of a [0, 1] image.
    """

    images: Tensor
    labels: Tensor
    prediction: Tensor
    kept: Tensor
    loss: Tensor
    best: Tensor
    original: metrics.Similarity
    target: metrics.Similarity
    epsilon: float


def frame(height: int, width: int, border: int) -> Tensor:
    """A target map [H, W]: 1 on the border, 0 inside (Joo et al. 2023: 5 pixels of 32, 35 of 224).

    Raises:
        ValueError: border is not from 1 pixel to what leaves an inside.
    """
    widest = (min(height, width) - 1) // 2
    if not 1 <= border <= widest:
        raise ValueError(f"border is {border} pixels; accepted is from 1 to {widest} in a map of {height} x {width}")
    map_ = torch.ones(height, width)
    map_[border:-border, border:-border] = 0
    return map_


@differentiates
def manipulate(
    model: nn.Module,
    images: Tensor,
    *,
    target_map: Tensor,
    epsilon: float,
    attribution: Attribution = gradient,
    gamma: float = 0.5,
    learning_rate: float = 1 / 255,
    iterations: int = 100,
    iterate: Literal["best", "last"] = "best",
    beta: float | tuple[float, float] | None = None,
    labels: Target | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> ManipulationResult:
    """Adversarial attribution manipulation (AAM, Joo et al. 2023): make the heatmap look like a given map.

    Adam minimizes, for each image by itself,

        ``gamma * ||h - target_map||^2 + (1 - gamma) * ||logits - logits of the clean image||^2``

    where h is the heatmap divided by its maximum and norms are sums over pixels and classes. Each step is followed by
    the projection to the l-infinity ball of radius epsilon and to [0, 1]. The iterate with the lowest loss is returned
    by default, which is not always the last one. The maximum is part of what is differentiated: with it held constant
    the loss of a LeNet with Softplus(3) falls less far at every learning rate.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        images: [N, C, H, W] in [0, 1], at least 7 x 7 pixels.
        target_map: what the heatmap should be, in [0, 1]: [H, W], or one for each image [N, H, W]; see :func:`frame`.
        epsilon: largest change of a value in units of a [0, 1] image, for example ``4 / 255``; > 0.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        gamma: weight of the map against the logits, from 0 to 1.
        learning_rate: Adam's, about the largest change of a value in a step, in the same units as epsilon; > 0.
        iterations: number of steps, >= 1.
        iterate: the one that is returned: that with the lowest loss, or the last one, as in the authors' code.
        beta: None differentiates the model itself, which has to be smooth. A piecewise linear model takes the sharpness
            of a smooth copy that gives the direction, as in :func:`iterative_attack`; loss, best iterate and
            similarities come from the model itself.
        labels: class to explain of each image, int64 [N], or one int for all; by default the model's prediction.
        batch_size: images attacked at once; bounds the memory.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_attack(images, epsilon, batch_size)
    metrics.check_maps_size(images)
    classes = None if labels is None else check_target(images, labels)
    _check_map("target_map", target_map, len(images), *images.shape[2:])
    wanted = target_map.detach().to(images).expand(len(images), -1, -1)
    low, high = (float(v) for v in torch.aminmax(wanted))
    if not (low >= 0 and high <= 1):  # NaN included
        raise ValueError(
            f"target_map has values from {low:.4g} to {high:.4g}; accepted are values in [0, 1], as of a heatmap "
            "divided by its maximum"
        )
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; accepted is a weight from 0 (logits only) to 1 (map only)")
    if not 0 < learning_rate < math.inf:
        raise ValueError(
            f"learning_rate is {learning_rate}; accepted is a rate > 0 in units of a [0, 1] image, for example 1 / 255"
        )
    check_iterations(iterations)
    if iterate not in ("best", "last"):
        raise ValueError(f"iterate is {iterate!r}; accepted are 'best' and 'last'")
    schedule = _schedule(beta, iterations)
    model = frozen(model)
    smooth = model if beta is None else softplus_surrogate(model, schedule[0], images[:1].detach())

    def loss_of(network: nn.Module, x: Tensor, y: Tensor, goal: Tensor, logits: Tensor, graph: bool) -> Tensor:
        h, now = _map_and_logits(network, attribution, x, y, graph)
        return gamma * (h - goal).square().sum((1, 2)) + (1 - gamma) * (now - logits).square().sum(1)

    parts = []
    bar = tqdm(total=-(-len(images) // batch_size) * iterations, desc="attack", disable=None if progress else True)
    with bar:
        for rows in parts_of(len(images), batch_size):
            start, goal = images[rows].detach(), wanted[rows]
            lower, upper = linf_ball(start, epsilon)
            with torch.no_grad():
                logits = model(start)
            prediction = logits.argmax(1)
            y = prediction if classes is None else classes[rows]
            target_logits(logits, y)  # refuses a class that the model does not have
            adam = _Adam(start, learning_rate)
            x, best_x, best = start.clone(), start.clone(), torch.zeros_like(y)
            trace: list[Tensor] = []
            least = start.new_full((len(start),), torch.inf)
            smooth_logits, sharpness = logits, None
            for p in range(iterations + 1):
                more = p < iterations
                z = x.detach().requires_grad_(more)
                loss = loss_of(model, z, y, goal, logits, graph=more and beta is None)
                better = loss.detach() < least if iterate == "best" else torch.ones_like(least, dtype=torch.bool)
                least = torch.where(better, loss.detach(), least)
                best_x = torch.where(better[:, None, None, None], x, best_x)
                best = torch.where(better, p, best)
                trace.append(loss.detach())
                if not more:
                    break
                if beta is not None:
                    if schedule[p] != sharpness:
                        sharpness = schedule[p]
                        set_beta(smooth, sharpness)
                        with torch.no_grad():
                            smooth_logits = smooth(start)
                    loss = loss_of(smooth, z, y, goal, smooth_logits, graph=True)
                x = adam.step(x, torch.nan_to_num(slope_of(loss, z), nan=0.0)).clamp_(lower, upper)
                bar.update()
            with torch.no_grad():
                kept = model(best_x).argmax(1) == prediction
            before, after = (heatmap(attribution(model, v, y), "max") for v in (start, best_x))
            parts.append(
                ManipulationResult(
                    images=best_x,
                    labels=y,
                    prediction=prediction,
                    kept=kept,
                    loss=torch.stack(trace),
                    best=best,
                    original=metrics.similarity(after, before),
                    target=metrics.similarity(after, goal),
                    epsilon=epsilon,
                )
            )
    return joined(parts, loss=1)


class _Adam:
    """Adam (Kingma & Ba 2015) with its usual constants; every value has its own state, so images do not interact."""

    def __init__(self, like: Tensor, rate: float) -> None:
        self._rate, self._steps = rate, 0
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        self._steps += 1
        self._mean.lerp_(g, 0.1)
        self._square.mul_(0.999).addcmul_(g, g, value=0.001)
        below = (self._square / (1 - 0.999**self._steps)).sqrt_().add_(1e-8)
        return torch.addcdiv(x, self._mean, below, value=-self._rate / (1 - 0.9**self._steps))
