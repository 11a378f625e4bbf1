"""A walk uphill in an l-infinity ball, whatever is climbed: it keeps the highest iterate with the same prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robattr import metrics
from robattr.data import check_images


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
    begin: Tensor | None = None,
) -> Climb:
    """Walk uphill from each image within an l-infinity ball; of the iterates that keep the prediction, the highest.

    ``look(x, p, climbs)`` sees the iterate p; a slope is asked for where ``climbs``. Where it is zero or not finite the
    step has random signs. Without a ``step`` every iterate is the clean image with random signs of epsilon. The walk
    sets out from ``begin``, put into the ball, where it is given; what it returns was reached by a step.
    """
    lower, upper = linf_ball(start, epsilon)
    signs = RandomSigns(start, seed)
    x = start if begin is None else begin.clamp(lower, upper)
    seen = look(x, 0, step is not None)
    trace, kept = [seen.value], [seen.same]
    best_d = torch.full_like(seen.value, -torch.inf)
    best_x, best = start.clone(), torch.zeros(len(start), dtype=torch.int64, device=start.device)
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


def slope_of(value: Tensor, x: Tensor) -> Tensor:
    """The gradient of each row's value with respect to its image; zeros where no image is behind it.

    The map of a linear model, for one, is no function of its image at all.
    """
    if not value.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(value.sum(), x, materialize_grads=True)[0]


def linf_ball(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The corners of the ball within [0, 1]: what lies between them differs from x by epsilon or less, *exactly*.

    The sums are formed in float64; where rounding has put one outside of the ball, the number next to it is inside.
    """
    wide = x.double()
    low, high = (wide - epsilon).clamp(0, 1).to(x.dtype), (wide + epsilon).clamp(0, 1).to(x.dtype)
    low = torch.where(wide - low.double() > epsilon, torch.nextafter(low, torch.ones_like(low)), low)
    high = torch.where(high.double() - wide > epsilon, torch.nextafter(high, torch.zeros_like(high)), high)
    return low, high


def _check_batch(images: Tensor, batch_size: int) -> None:
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; accepted is at least 1 image")


def check_attack(images: Tensor, epsilon: float, batch_size: int) -> None:
    _check_batch(images, batch_size)
    metrics.check_epsilon(epsilon)


def check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; an attack takes at least 1 step")


def check_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws is {draws}; the baseline takes at least 1")
