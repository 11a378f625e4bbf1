"""The attack that climbs an objective of heatmaps, with its baseline of random signs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robattr._rows import joined, parts_of
from robattr.attacks.climbing import Seen, check_attack, check_draws, check_iterations, climb, slope_of
from robattr.attacks.objectives import Objective, Score, _check_objective
from robattr.attacks.views import _map_and_logits, _schedule
from robattr.attributions import Attribution, differentiates, frozen, gradient, heatmap
from robattr.models import is_smooth, set_beta, softplus_surrogate


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


@differentiates
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
    starts: Tensor | None = None,
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
        step: tau, in the same units as epsilon, > 0.
        iterations: number of steps, >= 1.
        beta: sharpness of the smooth copy; a pair is a geometric schedule from the first to the last step; None
            differentiates the model itself. By default a network of smooth activations leads itself, and any other has
            a copy that goes from 3 to 30.
        starts: deltas [N, C, H, W], put into the ball, at which the walk begins, for another restart; by default it
            begins at the clean image. The first row of the traces is that of the start.
        seed: of the random signs.
        batch_size: images attacked at once; bounds the memory.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_attack(images, epsilon, batch_size)
    if not 0 < step < math.inf:
        raise ValueError(f"step is {step}; accepted is a step > 0 in units of a [0, 1] image, for example 0.5 / 255")
    check_iterations(iterations)
    schedule = _schedule((3.0, 30.0) if beta == "auto" else beta, iterations)
    _check_objective(objective, images)
    if starts is not None and (starts.shape != images.shape or not bool(starts.isfinite().all())):
        raise ValueError(
            f"starts has shape {tuple(starts.shape)}; accepted is one finite delta an image, {tuple(images.shape)}"
        )
    model = frozen(model)
    example = images[:1].detach()
    if beta == "auto" and is_smooth(model, example):
        beta = None
    smooth = None if beta is None else softplus_surrogate(model, schedule[0], example)

    def slope(x: Tensor, labels: Tensor, score: Score, p: int) -> Tensor:
        assert smooth is not None
        set_beta(smooth, schedule[p])
        x = x.detach().requires_grad_()
        return slope_of(score(heatmap(attribution(smooth, x, labels, create_graph=True))), x)

    return _search(
        model, images, objective, attribution, epsilon, iterations, step, seed, batch_size, progress,
        None if smooth is None else slope, starts,
    )  # fmt: skip


@differentiates
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
    check_draws(draws)
    _check_objective(objective, images)

    return _search(frozen(model), images, objective, attribution, epsilon, draws, None, seed, batch_size, progress)


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
    starts: Tensor | None = None,
) -> AttackResult:
    """Climb an objective of heatmaps, a batch at a time; without a ``slope`` of its own, along that of the model."""
    parts = []
    bar = tqdm(total=-(-len(images) // batch_size) * iterations, desc="attack", disable=None if progress else True)
    with bar:
        for rows in parts_of(len(images), batch_size):
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
                    return Seen(d.detach(), logits.argmax(1) == labels, slope_of(d, x))
                seen = clean
                if p > 0 or starts is not None:
                    h, logits = _map_and_logits(model, attribution, x.detach(), labels, False, "sum")
                    seen = Seen(score(h), logits.argmax(1) == labels, None)
                return replace(seen, slope=slope(x, labels, score, p)) if climbs and slope else seen

            begin = None if starts is None else start + starts[rows].to(start)
            found = climb(
                start, look, epsilon=epsilon, step=step, iterations=iterations, seed=seed, advance=bar.update,
                begin=begin,
            )  # fmt: skip
            parts.append(AttackResult(prediction=labels, epsilon=epsilon, **vars(found)))
    return joined(parts, trace=1, kept=1)
