"""Perturb an image so that its explanation changes and its prediction does not.

One loop, :func:`iterative_attack`, climbs any objective of any attribution method's heatmap (Ghorbani, Abid & Zou
2019); :func:`random_sign` is the baseline without a gradient. Both return an :class:`AttackResult` in which a failed
attack is a row like every other. :func:`manipulate` draws a map of one's choice into the explanation (Dombrowski et al.
2019, in the form of Joo et al. 2023). :func:`cosine_attack` turns the signed attribution as far as an l2 ball allows,
with :func:`random_directions` as its baseline: what a certificate of the cosine has to stay below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robattr import metrics
from robattr.attributions import (
    Attribution,
    Normalization,
    Target,
    check_target,
    frozen,
    gradient,
    guided_backpropagation,
    heatmap,
    input_x_gradient,
    parts_of,
    target_logits,
)
from robattr.data import check_images
from robattr.models import is_smooth, set_beta, softplus_surrogate

__all__ = [
    "AttackResult",
    "CosineAttackResult",
    "ManipulationResult",
    "MassCenter",
    "Objective",
    "Targeted",
    "TopK",
    "cosine_attack",
    "frame",
    "iterative_attack",
    "manipulate",
    "random_directions",
    "random_sign",
]

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
    """Take the mass from the k pixels that were largest: D = - sum of the heatmap over them."""

    k: int = 1000

    def check(self, n: int, height: int, width: int) -> None:
        pixels = height * width
        if not 1 <= self.k <= pixels:
            raise ValueError(f"k is {self.k}; the map has {pixels} pixels and k is between 1 and that")

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
    """Move mass into a region: D = sum of the heatmap over ``mask``, bool [H, W] or one for each image [N, H, W]."""

    mask: Tensor

    def check(self, n: int, height: int, width: int) -> None:
        _check_map("mask", self.mask, n, height, width)

    def prepare(self, reference: Tensor, rows: slice) -> Score:
        mask = self.mask[rows] if self.mask.ndim == 3 else self.mask
        _check_map("mask", mask, *reference.shape)
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
    beta: float | tuple[float, float] | Literal["auto"] | None = "auto",
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
            differentiates the model itself. By default a network of smooth activations leads itself, and any other has
            a copy that goes from 3 to 30.
        seed: of the random signs.
        batch_size: images attacked at once; bounds the memory.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_attack(images, epsilon, batch_size)
    if not step > 0:
        raise ValueError(f"step is {step}; accepted is a step > 0 in units of a [0, 1] image, for example 0.5 / 255")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; an attack takes at least 1 step")
    if beta == "auto":
        beta = None if is_smooth(model) else (3.0, 30.0)
    schedule = _schedule(beta, iterations)
    _check_objective(objective, images)
    model = frozen(model)
    smooth = None if beta is None else softplus_surrogate(model, schedule[0])

    def slope(x: Tensor, labels: Tensor, score: Score, p: int) -> Tensor:
        assert smooth is not None
        set_beta(smooth, schedule[p])
        x = x.detach().requires_grad_()
        return _slope(score(heatmap(attribution(smooth, x, labels, create_graph=True))), x)

    return _search(
        model, images, objective, attribution, epsilon, iterations, step, seed, batch_size, progress,
        None if smooth is None else slope,
    )  # fmt: skip


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
    check_attack(images, epsilon, batch_size)
    if draws < 1:
        raise ValueError(f"draws is {draws}; the baseline takes at least 1")
    _check_objective(objective, images)

    return _search(frozen(model), images, objective, attribution, epsilon, draws, None, seed, batch_size, progress)


# --------------------------------------------------------------------------------------------------------------------
# Drawing a map into the explanation


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
    beta: float | tuple[float, float] | None = None,
    labels: Target | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> ManipulationResult:
    """Adversarial attribution manipulation (AAM, Joo et al. 2023): make the heatmap look like a given map.

    Adam minimizes, for each image by itself,

        ``gamma * ||h - target_map||^2 + (1 - gamma) * ||logits - logits of the clean image||^2``

    where h is the heatmap divided by its maximum and norms are sums over pixels and classes. Each step is followed by
    the projection to the l-infinity ball of radius epsilon and to [0, 1]. The iterate with the lowest loss is returned,
    which is not always the last one. The maximum is part of what is differentiated: with it held constant the loss of a
    LeNet with Softplus(3) falls less far at every learning rate.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        images: [N, C, H, W] in [0, 1], at least 7 x 7 pixels.
        target_map: what the heatmap should be, in [0, 1]: [H, W], or one for each image [N, H, W]; see :func:`frame`.
        epsilon: largest change of a value in units of a [0, 1] image, for example ``4 / 255``; > 0.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        gamma: weight of the map against the logits, from 0 to 1.
        learning_rate: Adam's, about the largest change of a value in a step, in the same units as epsilon; > 0.
        iterations: number of steps, >= 1.
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
    if not learning_rate > 0:
        raise ValueError(
            f"learning_rate is {learning_rate}; accepted is a rate > 0 in units of a [0, 1] image, for example 1 / 255"
        )
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; an attack takes at least 1 step")
    schedule = _schedule(beta, iterations)
    model = frozen(model)
    smooth = model if beta is None else softplus_surrogate(model, schedule[0])

    def loss_of(network: nn.Module, x: Tensor, y: Tensor, goal: Tensor, logits: Tensor, graph: bool) -> Tensor:
        h, now = _map_and_logits(network, attribution, x, y, graph)
        return gamma * (h - goal).square().sum((1, 2)) + (1 - gamma) * (now - logits).square().sum(1)

    parts = []
    bar = tqdm(total=-(-len(images) // batch_size) * iterations, desc="attack", disable=None if progress else True)
    with bar:
        for rows in (slice(i, i + batch_size) for i in range(0, len(images), batch_size)):
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
                better = loss.detach() < least
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
                # The map of a linear model is no function of its image at all.
                g = torch.autograd.grad(loss.sum(), z)[0] if loss.requires_grad else torch.zeros_like(z)
                x = adam.step(x, torch.nan_to_num(g, nan=0.0)).clamp_(lower, upper)
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
    return ManipulationResult(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        prediction=torch.cat([part.prediction for part in parts]),
        kept=torch.cat([part.kept for part in parts]),
        loss=torch.cat([part.loss for part in parts], 1),
        best=torch.cat([part.best for part in parts]),
        original=_joined_similarity([part.original for part in parts]),
        target=_joined_similarity([part.target for part in parts]),
        epsilon=epsilon,
    )


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


# Their one pass over the images is an ordinary one, so its logits are the images' logits, graph included.
_ONE_PASS = (gradient, input_x_gradient, guided_backpropagation)


def _map_and_logits(
    model: nn.Module,
    attribution: Attribution,
    x: Tensor,
    labels: Tensor,
    graph: bool,
    normalize: Normalization = "max",
    logits_graph: bool = True,
) -> tuple[Tensor, Tensor]:
    """Normalized heatmaps, and the logits; with ``graph`` both can be differentiated, or the heatmaps alone."""
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        h = heatmap(attribution(model, x, labels, create_graph=graph), normalize)
    finally:
        handle.remove()
    if attribution in _ONE_PASS:
        (logits,) = seen
    else:
        with torch.set_grad_enabled(graph and logits_graph):
            logits = model(x)
    return h, logits if graph and logits_graph else logits.detach()


def _joined_similarity(parts: list[metrics.Similarity]) -> metrics.Similarity:
    return metrics.Similarity(
        cosine=torch.cat([part.cosine for part in parts]),
        pearson=torch.cat([part.pearson for part in parts]),
        ssim=torch.cat([part.ssim for part in parts]),
    )


# --------------------------------------------------------------------------------------------------------------------
# The lowest cosine in an l2 ball


@dataclass(frozen=True, eq=False)
class CosineAttackResult:
    """The lowest cosine that was found around each image, a row an image, in the order of the batch.

    Attributes:
        images: [N, C, H, W]; the iterate with the lowest cosine of all restarts, within epsilon of the clean image in
            l2 (the distance formed in float64) and, with ``clip``, within [0, 1].
        labels: int64 [N]; the class explained, the same at both points.
        prediction: int64 [N]; the class predicted for the clean image.
        kept: bool [N]; whether that class is predicted for the returned image. Images that lost it are returned too: a
            certificate speaks of a fixed class.
        cosine: float64 [N]; of the returned image, ``trace[restart, iterate]``.
        trace: float64 [restarts, iterations + 1, N]; of every iterate on the attacked model, each restart's start
            first. ``starts`` are the last restart. Random directions are [draws, 1, N].
        restart: int64 [N]; the restart, or the draw, whose iterate is returned.
        iterate: int64 [N]; the iterate of that restart, 0 for its start.
        epsilon: l2 radius, in units of a [0, 1] image.
    """

    images: Tensor
    labels: Tensor
    prediction: Tensor
    kept: Tensor
    cosine: Tensor
    trace: Tensor
    restart: Tensor
    iterate: Tensor
    epsilon: float


def cosine_attack(
    model: nn.Module,
    images: Tensor,
    *,
    epsilon: float,
    attribution: Attribution = gradient,
    step: float | None = None,
    iterations: int = 20,
    restarts: int = 3,
    momentum: float = 0.75,
    clip: bool = True,
    beta: float | tuple[float, float] | None = None,
    labels: Target | None = None,
    starts: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> CosineAttackResult:
    """Turn the attribution as far as an l2 ball allows: an upper bound of what a certificate bounds from below.

    Projected gradient descent on ``cos(a(x), a(x + delta))`` over ``||delta||_2 <= epsilon``, for each image by itself,
    where a is the attribution of a fixed class, flattened with its signs and not a heatmap:

        ``m <- momentum * m + g / ||g||``,  ``delta <- project(delta - step * m / ||m||)``

    the l2 form of Dong et al. 2018. At delta = 0 the cosine is largest and has no gradient, so restarts begin in random
    directions, the first at a distance of epsilon / 2 and the others on the sphere. Where the gradient is zero or not
    finite a random direction takes its place. An attribution that is zero has the cosine of :func:`metrics.cosine`: 1
    with another zero, 0 otherwise. Images do not influence one another.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        images: [N, C, H, W] in [0, 1].
        epsilon: l2 radius in units of a [0, 1] image, > 0 and finite.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``. Called with a
            graph ``iterations`` times a restart.
        step: l2 length of a step, > 0; by default epsilon / 2, as near the sphere the projection takes most of it back.
        iterations: number of steps of a restart, >= 1.
        restarts: number of random starts, >= 1; 0 is accepted with ``starts``.
        momentum: weight of the former steps, from 0 to below 1.
        clip: keep the images in [0, 1] (after the projection, which only shortens delta). Without it the adversary is
            the stronger one that a certificate has to withstand.
        beta: None differentiates the model itself, which has to be smooth. A piecewise linear model takes the sharpness
            of a smooth copy that gives the direction, as in :func:`manipulate`; cosines come from the model itself.
        labels: class to explain of each image, int64 [N], or one int for all; by default the model's prediction.
        starts: deltas [N, C, H, W], projected to the ball, at which one more restart begins: what a transfer found.
        seed: of the random directions, which depend on it and on the image.
        batch_size: images attacked at once; bounds the memory.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted, before any work starts; or an attribution is not finite.
    """
    _check_batch(images, batch_size)
    _check_radius(epsilon)
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; an attack takes at least 1 step")
    if step is None:
        step = epsilon / 2
    elif not 0 < step < math.inf:
        raise ValueError(f"step is {step}; accepted is an l2 length > 0 in units of a [0, 1] image, or None")
    if starts is None and restarts < 1:
        raise ValueError(f"restarts is {restarts}; an attack takes at least 1, or starts to begin at")
    if restarts < 0:
        raise ValueError(f"restarts is {restarts}; accepted with starts is 0 or more")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; accepted is a weight from 0 (none) to below 1")
    if starts is not None:
        if starts.shape != images.shape:
            raise ValueError(
                f"starts has shape {tuple(starts.shape)}; accepted is one delta an image, {tuple(images.shape)}"
            )
        if not bool(starts.isfinite().all()):
            raise ValueError("starts has NaN or infinite values; accepted is a finite change of the images")
        starts = starts.detach().to(images.device, torch.float64)
    classes = None if labels is None else check_target(images, labels)
    schedule = _schedule(beta, iterations)
    model = frozen(model)
    smooth = model if beta is None else softplus_surrogate(model, schedule[0])

    def cosine_and_gradient(x: Tensor, y: Tensor, reference: Tensor, p: int) -> tuple[Tensor, Tensor]:
        """Of iterate p on the model, and what to descend: the smooth copy's."""
        z = x.detach().requires_grad_()
        if beta is not None:
            set_beta(smooth, schedule[p])
        value = metrics.cosine(reference, attribution(smooth, z, y, create_graph=True).double())
        # The map of a linear model is no function of its image at all.
        g = torch.autograd.grad(value.sum(), z, materialize_grads=True)[0] if value.requires_grad else z.new_zeros(())
        value = value.detach() if beta is None else _cosine_to(reference, model, attribution, x, y)
        return value, g.double().expand_as(z)

    return _lowest_cosine(
        model,
        images,
        classes,
        attribution,
        epsilon,
        lengths=[epsilon / 2, *[epsilon] * (restarts - 1)][:restarts],
        starts=starts,
        descent=_Descent(cosine_and_gradient, iterations, step, momentum),
        clip=clip,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )


def random_directions(
    model: nn.Module,
    images: Tensor,
    *,
    epsilon: float,
    draws: int,
    attribution: Attribution = gradient,
    clip: bool = True,
    labels: Target | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> CosineAttackResult:
    """The baseline without a gradient: the lowest cosine at points drawn uniformly on the sphere of radius epsilon.

    With ``clip`` the points are clipped to [0, 1], which takes those of a dark or bright image inside the ball.
    ``draws``, >= 1, compare with ``restarts * (iterations + 1)`` points of :func:`cosine_attack`. Other arguments,
    errors and the result are those of it.
    """
    _check_batch(images, batch_size)
    _check_radius(epsilon)
    if draws < 1:
        raise ValueError(f"draws is {draws}; the baseline takes at least 1")
    return _lowest_cosine(
        frozen(model),
        images,
        None if labels is None else check_target(images, labels),
        attribution,
        epsilon,
        lengths=[epsilon] * draws,
        starts=None,
        descent=None,
        clip=clip,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )


@dataclass(frozen=True)
class _Descent:
    """How to leave a start: ``oracle(x, labels, reference, p)`` is an iterate's cosine and float64 gradient."""

    oracle: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    iterations: int
    step: float
    momentum: float


def _lowest_cosine(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | None,
    attribution: Attribution,
    epsilon: float,
    *,
    lengths: list[float],
    starts: Tensor | None,
    descent: _Descent | None,
    clip: bool,
    seed: int,
    batch_size: int,
    progress: bool,
) -> CosineAttackResult:
    """Begin at random directions of the given lengths, and at ``starts``; descend; keep the lowest cosine.

    Deltas, and what is computed from them, are float64: float32 images are too coarse to carry small steps.
    """
    restarts = len(lengths) + (starts is not None)
    iterations = 0 if descent is None else descent.iterations
    parts = []
    total = -(-len(images) // batch_size) * restarts * (iterations + 1)
    with tqdm(total=total, desc="attack", disable=None if progress else True) as bar:
        for rows in parts_of(len(images), batch_size):
            clean = images[rows].detach()
            with torch.no_grad():
                logits = model(clean)
            prediction = logits.argmax(1)
            y = prediction if classes is None else classes[rows]
            target_logits(logits, y)  # refuses a class that the model does not have
            reference = attribution(model, clean, y).detach().double()
            directions = _Directions(clean, seed)
            best_x, restart, iterate = clean.clone(), torch.zeros_like(y), torch.zeros_like(y)
            least = torch.full_like(y, torch.inf, dtype=torch.float64)
            trace: list[Tensor] = []
            for r in range(restarts):
                if r < len(lengths):
                    delta = lengths[r] * directions.draw_all()
                else:
                    assert starts is not None
                    delta = starts[rows]
                m = torch.zeros_like(delta)
                for p in range(iterations + 1):
                    delta, x = _into_l2_ball(clean, delta, epsilon, clip)
                    if descent is not None and p < iterations:
                        value, g = descent.oracle(x, y, reference, p)
                        m = descent.momentum * m + directions.unit(g)
                        delta = delta - descent.step * _unit(m)[0]
                    else:
                        value = _cosine_to(reference, model, attribution, x, y)
                    better = value < least
                    least = torch.where(better, value, least)
                    best_x = torch.where(better[:, None, None, None], x, best_x)
                    restart = torch.where(better, r, restart)
                    iterate = torch.where(better, p, iterate)
                    trace.append(value)
                    bar.update()
            with torch.no_grad():
                kept = model(best_x).argmax(1) == prediction
            parts.append(
                CosineAttackResult(
                    images=best_x,
                    labels=y,
                    prediction=prediction,
                    kept=kept,
                    cosine=least,
                    trace=torch.stack(trace).view(restarts, iterations + 1, -1),
                    restart=restart,
                    iterate=iterate,
                    epsilon=epsilon,
                )
            )
    return CosineAttackResult(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        prediction=torch.cat([part.prediction for part in parts]),
        kept=torch.cat([part.kept for part in parts]),
        cosine=torch.cat([part.cosine for part in parts]),
        trace=torch.cat([part.trace for part in parts], 2),
        restart=torch.cat([part.restart for part in parts]),
        iterate=torch.cat([part.iterate for part in parts]),
        epsilon=epsilon,
    )


def _cosine_to(reference: Tensor, model: nn.Module, attribution: Attribution, x: Tensor, labels: Tensor) -> Tensor:
    """The cosines of maps with ``reference``, in its float64: those near 1 keep their digits."""
    return metrics.cosine(reference, attribution(model, x.detach(), labels).detach().double())


def _into_l2_ball(clean: Tensor, delta: Tensor, epsilon: float, clip: bool) -> tuple[Tensor, Tensor]:
    """Float64 deltas inside the ball and, with ``clip``, inside [0, 1]; and the images there, *exactly* within epsilon.

    Images are rounded towards the clean ones, so that none of their values is further away than delta says.
    """
    wide = clean.double()
    norm = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    # A little less than the radius: the sum of a million squares has an error too.
    delta = delta * (epsilon * (1 - 1e-10) / norm).clamp(max=1)[:, None, None, None]
    if clip:  # x + (1 - x) is never rounded to more than 1
        delta = delta.clamp(-wide, 1 - wide)
    x = (wide + delta).to(clean.dtype)
    return delta, torch.where((x.double() - wide).abs() > delta.abs(), torch.nextafter(x, clean), x)


def _unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's v over its l2 norm, and bool [N], whether it has a direction; zeros where it has none."""
    norm = torch.linalg.vector_norm(v.flatten(1), dim=1)
    good = norm.isfinite() & (norm > 0)
    mask = good[:, None, None, None]
    return torch.where(mask, v, 0) / torch.where(mask, norm[:, None, None, None], 1), good


# --------------------------------------------------------------------------------------------------------------------


class RandomSigns:
    """Random signs that depend on the seed and on the image, not on its place in a batch or on the device."""

    def __init__(self, images: Tensor, seed: int) -> None:
        self._like = images
        self._generators = metrics.generators_of(images, seed)

    def draw(self, index: int) -> Tensor:
        """+-1 for every value of the image at ``index`` of the batch."""
        shape = self._like.shape[1:]
        signs = torch.randint(0, 2, shape, generator=self._generators[index], dtype=torch.int8)
        return signs.mul_(2).sub_(1).to(self._like)

    def draw_all(self) -> Tensor:
        return torch.stack([self.draw(i) for i in range(len(self._generators))])


class _Directions(RandomSigns):
    """Float64 directions of length 1, uniform on the sphere; like the signs, they depend on the seed and the image."""

    def draw(self, index: int) -> Tensor:
        v = torch.randn(self._like.shape[1:], generator=self._generators[index], dtype=torch.float64)
        direction: Tensor = v / torch.linalg.vector_norm(v)
        return direction.to(self._like.device)

    def unit(self, v: Tensor) -> Tensor:
        """Each image's v over its l2 norm; a random direction where it is zero or not finite."""
        u, good = _unit(v)
        for i in good.logical_not().nonzero().flatten().tolist():
            u[i] = self.draw(i)
        return u


@dataclass(frozen=True, eq=False)
class Seen:
    """An iterate of a climb, a row an image.

    Attributes:
        value: [N]; what is climbed.
        same: bool [N]; whether the prediction is still that of the clean image.
        slope: like the images; which way the value rises, or None where nobody asked.
    """

    value: Tensor
    same: Tensor
    slope: Tensor | None


@dataclass(frozen=True, eq=False)
class Climb:
    """Where a climb led; attributes as in :class:`AttackResult`."""

    images: Tensor
    success: Tensor
    objective: Tensor
    trace: Tensor
    kept: Tensor
    best: Tensor


def climb(
    start: Tensor,
    look: Callable[[Tensor, int, bool], Seen],
    *,
    epsilon: float,
    step: float | None,
    iterations: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> Climb:
    """Walk uphill from each image within an l-infinity ball; of the iterates that keep the prediction, the highest.

    ``look(x, p, climbs)`` sees the iterate p; a slope is asked for where ``climbs``. Where it is zero or not finite the
    step has random signs. Without a ``step`` every iterate is the clean image with random signs of epsilon.
    """
    lower, upper = linf_ball(start, epsilon)
    signs = RandomSigns(start, seed)
    seen = look(start, 0, step is not None)
    trace, kept = [seen.value], [seen.same]
    best_d = torch.full_like(seen.value, -torch.inf)
    best_x, best = start.clone(), torch.zeros(len(start), dtype=torch.int64, device=start.device)
    x = start
    for p in range(1, iterations + 1):
        if step is None:
            x = start + epsilon * signs.draw_all()
        else:
            assert seen.slope is not None
            uphill = torch.nan_to_num(seen.slope, nan=0.0).sign()
            for i in (uphill == 0).flatten(1).all(1).nonzero().flatten().tolist():
                uphill[i] = signs.draw(i)
            x = x.detach() + step * uphill
        x = x.clamp_(lower, upper)
        seen = look(x, p, step is not None and p < iterations)
        better = seen.same & (seen.value > best_d)
        best_d = torch.where(better, seen.value, best_d)
        best_x = torch.where(better[:, None, None, None], x.detach(), best_x)
        best = torch.where(better, p, best)
        trace.append(seen.value)
        kept.append(seen.same)
        advance()
    d = torch.stack(trace)
    return Climb(best_x, best > 0, d.gather(0, best[None]).squeeze(0), d, torch.stack(kept), best)


def _slope(d: Tensor, x: Tensor) -> Tensor:
    # The gradient of a linear model is no function of its image at all.
    return torch.autograd.grad(d.sum(), x)[0] if d.requires_grad else torch.zeros_like(x)


def _search(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    attribution: Attribution,
    epsilon: float,
    iterations: int,
    step: float | None,
    seed: int,
    batch_size: int,
    progress: bool,
    slope: Callable[[Tensor, Tensor, Score, int], Tensor] | None = None,
) -> AttackResult:
    """Climb an objective of heatmaps, a batch at a time; without a ``slope`` of its own, along that of the model."""
    parts = []
    bar = tqdm(total=-(-len(images) // batch_size) * iterations, desc="attack", disable=None if progress else True)
    with bar:
        for rows in (slice(i, i + batch_size) for i in range(0, len(images), batch_size)):
            start = images[rows].detach()
            with torch.no_grad():
                labels = model(start).argmax(1)
            reference = heatmap(attribution(model, start, labels))
            score = objective.prepare(reference, rows)
            clean = Seen(score(reference), torch.ones_like(labels, dtype=torch.bool), None)

            def look(
                x: Tensor, p: int, climbs: bool, labels: Tensor = labels, score: Score = score, clean: Seen = clean
            ) -> Seen:
                if climbs and slope is None:
                    # One pass has it all: the logits, the score and what the score is differentiated from.
                    x = x.detach().requires_grad_()
                    h, logits = _map_and_logits(model, attribution, x, labels, True, "sum", logits_graph=False)
                    d = score(h)
                    return Seen(d.detach(), logits.argmax(1) == labels, _slope(d, x))
                seen = clean
                if p > 0:
                    h, logits = _map_and_logits(model, attribution, x.detach(), labels, False, "sum")
                    seen = Seen(score(h), logits.argmax(1) == labels, None)
                return replace(seen, slope=slope(x, labels, score, p)) if climbs and slope else seen

            found = climb(start, look, epsilon=epsilon, step=step, iterations=iterations, seed=seed, advance=bar.update)
            parts.append(AttackResult(prediction=labels, epsilon=epsilon, **vars(found)))
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


def linf_ball(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The corners of the ball within [0, 1]: what lies between them differs from x by epsilon or less, *exactly*.

    The sums are formed in float64; where rounding has put one outside of the ball, the number next to it is inside.
    """
    wide = x.double()
    low, high = (wide - epsilon).clamp(0, 1).to(x.dtype), (wide + epsilon).clamp(0, 1).to(x.dtype)
    low = torch.where(wide - low.double() > epsilon, torch.nextafter(low, torch.ones_like(low)), low)
    high = torch.where(high.double() - wide > epsilon, torch.nextafter(high, torch.zeros_like(high)), high)
    return low, high


def _schedule(beta: float | tuple[float, float] | None, iterations: int) -> list[float]:
    if beta is None:
        return []
    first, last = beta if isinstance(beta, tuple) else (beta, beta)
    if not (first > 0 and last > 0):
        raise ValueError(f"beta is {beta}; accepted are a number > 0, a pair of them, or None for a smooth model")
    ratio = (last / first) ** (1 / max(1, iterations - 1))
    return [first * ratio**p for p in range(iterations)]


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


def _check_batch(images: Tensor, batch_size: int) -> None:
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; accepted is at least 1 image")


def _check_radius(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(
            f"epsilon is {epsilon}; accepted is a finite l2 radius > 0 in units of a [0, 1] image, for example 0.5"
        )


def check_attack(images: Tensor, epsilon: float, batch_size: int) -> None:
    _check_batch(images, batch_size)
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; accepted is 0 < epsilon <= 1 in units of a [0, 1] image, e.g. 8 / 255")
