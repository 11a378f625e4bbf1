"""The lowest cosine in an l2 ball: turning the signed attribution, with random directions as the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robattr import metrics
from robattr._rows import joined, parts_of
from robattr.attacks.climbing import RandomSigns, _check_batch, check_draws, check_iterations, slope_of
from robattr.attacks.views import _schedule
from robattr.attributions import Attribution, Target, check_target, differentiates, frozen, gradient, target_logits
from robattr.models import set_beta, softplus_surrogate


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


@differentiates
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
    check_iterations(iterations)
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
    smooth = model if beta is None else softplus_surrogate(model, schedule[0], images[:1].detach())

    def cosine_and_gradient(x: Tensor, y: Tensor, reference: Tensor, p: int) -> tuple[Tensor, Tensor]:
        """Of iterate p on the model, and what to descend: the smooth copy's."""
        z = x.detach().requires_grad_()
        if beta is not None:
            set_beta(smooth, schedule[p])
        value = metrics.cosine(reference, attribution(smooth, z, y, create_graph=True).double())
        g = slope_of(value, z)
        value = value.detach() if beta is None else _cosine_to(reference, model, attribution, x, y)
        return value, g.double()

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


@differentiates
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
    check_draws(draws)
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
    return joined(parts, trace=2)


def _cosine_to(reference: Tensor, model: nn.Module, attribution: Attribution, x: Tensor, labels: Tensor) -> Tensor:
    """The cosines of maps with ``reference``, in its float64: those near 1 keep their digits."""
    return metrics.cosine(reference, attribution(model, x.detach(), labels).detach().double())


def _into_l2_ball(clean: Tensor, delta: Tensor, epsilon: float, clip: bool) -> tuple[Tensor, Tensor]:
    """Float64 deltas inside the ball and, with ``clip``, inside [0, 1]; and the images there, *exactly* within epsilon.

    Images are rounded toward the clean ones, so that none of their values is further away than delta says.
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


def _check_radius(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(
            f"epsilon is {epsilon}; accepted is a finite l2 radius > 0 in units of a [0, 1] image, for example 0.5"
        )
