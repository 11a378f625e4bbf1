"""The attack on influences, with its baseline of random signs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robattr._rows import joined, parts_of
from robattr.attacks.climbing import Seen, check_attack, check_draws, check_iterations, climb, slope_of
from robattr.attributions import differentiates
from robattr.influence.last_layer import LastLayer
from robattr.influence.values import Influence, Which, _check_top


@dataclass(frozen=True, eq=False)
class InfluenceAttackResult:
    """What an attack on influences found, a row an image, in the order of the batch.

    Attributes:
        images: [N, C, H, W]; exactly within epsilon of the clean images and within [0, 1]. Where the attack failed it
            is the clean image.
        success: bool [N]; False where no perturbed iterate kept the prediction.
        prediction: int64 [N]; the class predicted for the clean image, which is the label of the test loss throughout.
        points: int64 [N, top]; the training points under attack, the most influential ones of the clean image.
        before: influences on the clean images.
        after: influences on the returned images.
        objective: float64 [N]; D of the returned image.
        trace: float64 [iterations + 1, N]; D of every iterate, the clean image first.
        kept: bool [iterations + 1, N]; whether the iterate has the prediction of the clean image.
        best: int64 [N]; the iterate that is returned, 0 where the attack failed.
        epsilon: largest change of a value, in units of a [0, 1] image.
    """

    images: Tensor
    success: Tensor
    prediction: Tensor
    points: Tensor
    before: Influence
    after: Influence
    objective: Tensor
    trace: Tensor
    kept: Tensor
    best: Tensor
    epsilon: float


@differentiates
def influence_attack(
    layer: LastLayer,
    images: Tensor,
    *,
    epsilon: float,
    top: int = 3,
    which: Which = "helpful",
    normalize: bool = False,
    step: float | None = None,
    iterations: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> InfluenceAttackResult:
    """Take the influence from a test image's most influential training points (Ghorbani et al. 2019).

    ``x <- clip(x + step * sign(grad D(x)))`` to the ball of radius epsilon around the image and to [0, 1], with

        ``D(x) = sum over the top points of the influence of x_i on (x, y)``

    and y the class predicted for the clean image: D rises as helpful points lose their help. (For harmful points D is
    minus the sum.) D is linear in the test gradient, so one linear system for each image is solved before the first
    step and D is a function of features and logits from then on. The published attack takes one step of epsilon.

    D also rises where the prediction becomes more certain: then the whole test gradient shrinks, all influences with
    it, and their ranks stay. With ``normalize`` D takes the test gradient divided by its length, on which ranks do not
    depend, and steps go into its direction alone.

    As in :func:`robattr.attacks.iterative_attack`, the iterate with the largest D that keeps the prediction is
    returned, a step where the gradient is zero or not finite has random signs, and images do not influence one another.

    Args:
        layer: training points, model and Hessian; with cross-entropy.
        images: test images [N, C, H, W] in [0, 1].
        epsilon: largest change of a value in units of a [0, 1] image, for example ``8 / 255``; > 0.
        top: number of training points under attack, from 1 to n.
        which: ``helpful`` or ``harmful`` points, see :meth:`Influence.top`.
        normalize: divide the test gradient in D by its length.
        step: in the same units as epsilon, > 0; by default 2.5 * epsilon / iterations, or epsilon where that is less.
        iterations: number of steps, >= 1.
        seed: of the random signs.
        batch_size: images attacked at once; bounds the memory.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
        SolverError: a linear system was not solved.
    """
    _check_attack(layer, images, epsilon, top, which, batch_size)
    check_iterations(iterations)
    if step is None:
        step = min(2.5 / iterations, 1) * epsilon
    elif not 0 < step < math.inf:
        raise ValueError(f"step is {step}; accepted is a step > 0 in units of a [0, 1] image, or None")
    return _search(layer, images, epsilon, top, which, normalize, step, iterations, seed, batch_size)


@differentiates
def influence_random_sign(
    layer: LastLayer,
    images: Tensor,
    *,
    epsilon: float,
    top: int = 3,
    which: Which = "helpful",
    normalize: bool = False,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> InfluenceAttackResult:
    """The baseline without a gradient: +epsilon or -epsilon at random for every value, clipped to [0, 1].

    With more ``draws`` than one, the one with the largest D that keeps the prediction is returned. Other arguments,
    errors and the result are those of :func:`influence_attack`.
    """
    _check_attack(layer, images, epsilon, top, which, batch_size)
    check_draws(draws)
    return _search(layer, images, epsilon, top, which, normalize, None, draws, seed, batch_size)


def _search(
    layer: LastLayer,
    images: Tensor,
    epsilon: float,
    top: int,
    which: Which,
    normalize: bool,
    step: float | None,
    iterations: int,
    seed: int,
    batch_size: int,
) -> InfluenceAttackResult:
    """Climb D in steps, or draw random signs where ``step`` is None; keep the best iterate with the same prediction."""
    parts = []
    for rows in parts_of(len(images), batch_size):
        start = images[rows].detach()
        before = layer.influence(start)
        labels, points = before.labels, before.top(top, which)
        direction = layer._direction(points) * (1 if which == "helpful" else -1)

        def look(x: Tensor, p: int, climbs: bool, labels: Tensor = labels, direction: Tensor = direction) -> Seen:
            z = x.detach().requires_grad_(climbs)
            with torch.set_grad_enabled(climbs):
                d, scale, now = layer._along(z, labels, direction, normalize)
            return Seen(d.detach(), now == labels, slope_of(d / scale, z) if climbs else None)

        found = climb(start, look, epsilon=epsilon, step=step, iterations=iterations, seed=seed)
        parts.append(
            InfluenceAttackResult(
                prediction=labels,
                points=points,
                before=before,
                after=layer.influence(found.images, labels),
                epsilon=epsilon,
                **vars(found),
            )
        )
    return joined(parts, trace=1, kept=1)


def _check_attack(layer: LastLayer, images: Tensor, epsilon: float, top: int, which: Which, batch_size: int) -> None:
    check_attack(images, epsilon, batch_size)
    _check_top(top, len(layer), which, "top")
    if layer.loss != "cross-entropy":
        raise ValueError(f"the layer's loss is {layer.loss!r}; an attack keeps a predicted class, of 'cross-entropy'")
