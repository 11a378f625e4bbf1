"""Attacks that try to break the certificates of smoothed heatmaps: every quantity that is certified, point by point.

A *point* is one certified quantity of one image at one perturbation. Perturbations are sought by gradient ascent
through the smoothing, for each quantity with its own aim, and drawn at random; at each of them all quantities are
measured with fresh noise and compared with their bounds. All samples are held at once: for few, small images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from robattr import metrics
from robattr._rows import parts_of
from robattr.attributions import Attribution, frozen, gradient
from robattr.smoothing import Gaussian, HeatmapCertificate, map_bounds
from robattr.smoothing.heatmaps import _directions, _shown, _unit
from robattr.smoothing.sampling import _draws, _moved

__all__ = ["AIMS", "QUANTITIES", "Broken", "Points", "attack_maps"]

QUANTITIES = ("cosine", "mass", "center", "top")

AIMS = (*QUANTITIES, "random")
"""What a perturbation was sought for: one of the quantities, or nothing, a random direction."""

_ERRORS = 5.0  # standard errors of a mean of fresh samples: beyond once in three million times


@dataclass(frozen=True, eq=False)
class Points:
    """One quantity of each image [N] at the perturbations of one aim and length.

    Attributes:
        quantity: of :data:`QUANTITIES`.
        aim: of :data:`AIMS`.
        epsilon: l2 length of the perturbations, in units of a [0, 1] image.
        said: bool; whether anything is certified.
        room: distance to the bound, in the unit of the quantity; negative beyond it.
        error: what measuring leaves open: 5 standard errors for expectations, nothing for what is certified of
            estimates.
        used: share of what is certified to be possible that was reached, measured; about 0 where less was reached than
            measuring leaves open.
        caught: the share from which on this point counts as beyond its bound: 1 and what measuring leaves open. A bound
            that is too tight by less is not found out here, whatever the attack.
    """

    quantity: str
    aim: str
    epsilon: float
    said: NDArray[np.bool_]
    room: NDArray[np.float64]
    error: NDArray[np.float64]
    used: NDArray[np.float64]
    caught: NDArray[np.float64]

    @property
    def violated(self) -> NDArray[np.bool_]:
        """Of the images of which something is certified: whether they are beyond their bound."""
        return np.asarray((self.room < -self.error)[self.said])


@dataclass(frozen=True)
class Broken:
    """What attacks reached of what was certified.

    Attributes:
        points: by quantity, how many were measured, of those of which something is certified.
        silent: by quantity, how many more there were, of which nothing is certified.
        violations: by quantity, how many were beyond their bound by more than measuring them leaves open: 5 standard
            errors for expectations, nothing for what is certified of estimates.
        margins: by quantity, the least distance to the bound, in the unit of the quantity, before standard errors;
            negative where a measured value was beyond it.
        used: by quantity, the median share of what is certified to be possible that an attack reached.
        caught: by quantity, the median share from which on a point counts as a violation.
    """

    points: dict[str, int]
    silent: dict[str, int]
    violations: dict[str, int]
    margins: dict[str, float]
    used: dict[str, float]
    caught: dict[str, float]

    @classmethod
    def count(cls, attacked: Iterable[Points]) -> Broken:
        """Count what :func:`attack_maps` reached."""
        points, silent, violations = (dict.fromkeys(QUANTITIES, 0) for _ in range(3))
        margins = dict.fromkeys(QUANTITIES, float("inf"))
        shares, least = ({name: [np.empty(0)] for name in QUANTITIES} for _ in range(2))
        for one in attacked:
            name = one.quantity
            points[name] += int(one.said.sum())
            silent[name] += int((~one.said).sum())
            violations[name] += int(one.violated.sum())
            margins[name] = min(margins[name], float(one.room[one.said].min(initial=np.inf)))
            shares[name].append(one.used[one.said])
            least[name].append(one.caught[one.said])
        used, caught = (
            {
                name: float(np.median(np.concatenate(each))) if points[name] else float("nan")
                for name, each in of.items()
            }
            for of in (shares, least)
        )
        return cls(points, silent, violations, margins, used, caught)


def attack_maps(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    found: HeatmapCertificate,
    *,
    attribution: Attribution = gradient,
    iterations: int = 15,
    restarts: int = 2,
    random: int = 5,
    attack_samples: int = 32,
    weaken: float = 1.0,
    seed: int = 0,
    max_batch: int = 1024,
    progress: bool = False,
) -> Iterator[Points]:
    """Attack what :func:`robattr.smoothing.certify_map` has certified, with ``cosine``, for one k: point by point.

    Args:
        model: that was certified.
        x: images [N, C, H, W] that were certified. Perturbed ones are not clipped: certificates are about every delta.
        labels: [N], explained.
        found: the certificate, with the cosine; of several k the first counts.
        attribution: that was certified; it has to be differentiable.
        iterations: steps of each ascent.
        restarts: of each ascent, from random directions.
        random: further perturbations, of random directions.
        attack_samples: fixed draws of the noise that an ascent differentiates.
        weaken: bounds are taken for this share of epsilon, which is wrong below 1: what this has to find.
        seed: of directions and noise; independent of those of the certificate.
        max_batch: most images in a pass.
        progress: show a bar.

    Of each image a mean direction is measured at both ends from the same fresh noise, which the attack has not seen:
    what both share is no difference between them.

    Raises:
        ValueError: weaken is not in (0, 1], or the certificate has no cosine; or so little is left of the mean of some
            image's samples that it has no direction, while its certificate has one.
    """
    if not 0 < weaken <= 1:
        raise ValueError(f"weaken is {weaken}; accepted is a share in (0, 1], 1 for the certificate itself")
    if found.cosine is None:
        raise ValueError("found has no cosine; accepted is what certify_map returns with cosine=True")
    model = frozen(model)
    height, width = x.shape[2:]
    statistics = {name: v.numpy() for name, v in found.statistics.items()}
    bounds = map_bounds(
        statistics, noise=found.noise, epsilon=[weaken * e for e in found.epsilon], k=found.k, samples=found.samples,
        alpha=found.alpha, size=(int(height), int(width)),
    )  # fmt: skip
    generator = torch.Generator(x.device).manual_seed(seed)
    top = found.top[:, 0].flatten(1).to(x.device)
    judge = _Judge(model, labels, top, found.noise, attribution, found.samples, seed + 1, max_batch)
    before = judge(x)
    direction, center = before.directions.mean(1, dtype=torch.float64), before.centers.mean(1)
    bar = tqdm(
        total=len(found.epsilon) * (len(QUANTITIES) * restarts + random),
        desc="break",
        disable=None if progress else True,
    )
    with bar:
        for j, epsilon in enumerate(found.epsilon):
            here = {name: bound[..., j] for name, bound in bounds.items()}
            for aim in (*QUANTITIES * restarts, *["random"] * random):
                delta = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                delta = _onto(delta, epsilon)
                if aim != "random":
                    delta = torch.cat(
                        [
                            _ascent(
                                model, x[rows], labels[rows], delta[rows], epsilon, aim, top[rows],
                                direction[rows], center[rows], found.noise, attribution, iterations,
                                attack_samples, seed + 2, max_batch,
                            )
                            for rows in parts_of(len(x), max(1, max_batch // attack_samples))
                        ]
                    )  # fmt: skip
                compared = _compare(judge(x + delta), before, top, found, here)
                for quantity, numbers in compared.items():
                    yield Points(quantity, aim, epsilon, *numbers)
                bar.update()


def _onto(delta: Tensor, epsilon: float) -> Tensor:
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-30)
    scaled: Tensor = delta * (epsilon / length).view(-1, *[1] * (delta.ndim - 1))
    return scaled


def _ascent(
    model: nn.Module, x: Tensor, labels: Tensor, delta: Tensor, epsilon: float, aim: str, top: Tensor,
    direction: Tensor, center: Tensor, noise: Gaussian, attribution: Attribution, iterations: int, samples: int,
    seed: int, max_batch: int,
) -> Tensor:  # fmt: skip
    """Steps of a fifth of epsilon along the gradient, back onto the sphere each time; the best point seen counts."""
    z = torch.cat(list(_draws(noise, samples, x, seed, max_batch)))
    target = labels.repeat_interleave(len(z))
    best, highest = delta, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    for step in range(iterations + 1):
        delta = delta.detach().requires_grad_()
        signed = attribution(model, _moved(x + delta, z), target, create_graph=True)
        maps = _shown(signed).view(len(x), len(z), -1)
        if aim == "mass":
            value = -(maps.mean(1) * top).sum(1)
        elif aim == "center":
            moved = metrics.center_of_mass(maps.mean(1).view(len(x), *x.shape[2:])) - center.to(maps)
            value = moved.square().sum(1)
        elif aim == "top":
            unit = _unit(maps.flatten(0, 1)).view_as(maps).mean(1)
            inside, outside = unit.masked_fill(~top, torch.inf), unit.masked_fill(top, -torch.inf)
            # The half of the top that is nearest to leaving, against as many that are nearest to entering.
            count = max(1, min(int(top[0].sum()), int((~top[0]).sum())) // 2)
            value = outside.topk(count, dim=1).values.sum(1) - inside.topk(count, dim=1, largest=False).values.sum(1)
        else:
            flat = signed.flatten(1).view(len(x), len(z), -1)
            mean = (flat / torch.linalg.vector_norm(flat, dim=2, keepdim=True).clamp_min(1e-30)).mean(1)
            value = -torch.cosine_similarity(mean, direction.to(mean), dim=1)
        better = value.detach() > highest
        best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), delta.detach(), best)
        highest = torch.maximum(highest, value.detach())
        if step < iterations:
            (up,) = torch.autograd.grad(value.sum(), delta)
            delta = _onto(delta.detach() + _onto(up, 0.2 * epsilon), epsilon)
    return best


@dataclass(frozen=True, eq=False)
class _Measured:
    """Of each image [N, ...]: samples and means with fresh noise."""

    directions: Tensor  # [N, samples, D]
    centers: Tensor  # [N, samples, 2]
    mass: Tensor
    mass_error: Tensor
    unit: Tensor


class _Judge:
    """Samples with fresh noise, as many as the certificate's estimates have; the same noise for an image each time."""

    def __init__(
        self, model: nn.Module, labels: Tensor, top: Tensor, noise: Gaussian, attribution: Attribution, samples: int,
        seed: int, max_batch: int,
    ) -> None:  # fmt: skip
        self._model, self._labels, self._top, self._noise, self._attribution = model, labels, top, noise, attribution
        self._samples, self._seed, self._max_batch = samples, seed, max_batch

    def __call__(self, x: Tensor) -> _Measured:
        rows = [self._one(x, i) for i in range(len(x))]
        return _Measured(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def _one(self, images: Tensor, i: int) -> tuple[Tensor, ...]:
        x, label, signed = images[i : i + 1], self._labels[i : i + 1], []
        for z in _draws(self._noise, self._samples, x, self._seed + 1000 * i, self._max_batch):
            signed.append(self._attribution(self._model, _moved(x, z), label.expand(len(z))).detach())
        maps = torch.cat(signed)
        directions = _directions(maps.flatten(1))
        shown = _shown(maps).double()
        n = len(shown)
        centers = metrics.center_of_mass(shown.view(n, *x.shape[2:]))
        masses = shown[:, self._top[i]].sum(1)
        return (
            directions, centers, masses.mean(), masses.std() / n**0.5, _unit(shown).mean(0),
        )  # fmt: skip


def _cosine(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The cosine between two means of directions [samples, D] from the same noise, and its standard error.

    Products of a sample with itself are left out of all three products of means, which so have no bias; the error is
    that of the ratio, of pairs of samples, to first order (Hoeffding 1948, section 7).
    """
    a, b = before.double(), after.double()
    n, c, d = len(a), a.mean(0), b.mean(0)

    def product(one: Tensor, other: Tensor, means: Tensor) -> Tensor:
        return (n * means - (one * other).sum(1).mean()) / (n - 1)

    cross, first, second = product(a, b, c @ d), product(a, a, c @ c), product(b, b, d @ d)
    if not bool((first > 0) & (second > 0)):
        return float("nan"), float("nan")
    cosine = cross / (first * second).sqrt()
    pull = (a @ d + b @ c) / (first * second).sqrt() - cosine * (a @ c / first + b @ d / second)
    return float(cosine), float(pull.std() / n**0.5)


def _compare(
    after: _Measured, before: _Measured, top: Tensor, found: HeatmapCertificate, bounds: dict[str, NDArray[np.float64]]
) -> dict[str, tuple[NDArray[Any], ...]]:
    """By quantity, an entry an image: whether something is said, room, what measuring leaves open, shares."""
    compared: dict[str, tuple[NDArray[Any], ...]] = {}
    pairs = [_cosine(a, b) for a, b in zip(before.directions, after.directions, strict=True)]
    cosine, error = np.array(pairs).T * np.array([[1.0], [_ERRORS]])
    bound = bounds["cosine"]
    said = bound > -1
    if not np.isfinite(cosine[said]).all():
        i = int((said & ~np.isfinite(cosine)).nonzero()[0][0])
        raise ValueError(
            f"the mean of {found.samples} fresh samples of image {i} is too short to have a direction, which is "
            "certified; take more samples"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        share, caught = (
            np.arccos(np.clip(c, -1, 1)) / np.arccos(np.clip(bound, -1, 1)) for c in (cosine, bound - error)
        )
    compared["cosine"] = (said, cosine - bound, error, share, caught)
    mass, error = after.mass.cpu().numpy(), _ERRORS * after.mass_error.cpu().numpy()
    lower, known = bounds["mass_lower"][:, 0], found.mass[:, 0].numpy()
    compared["mass"] = (lower > 0, mass - lower, error, (known - mass) / (known - lower), 1 + error / (known - lower))
    apart = after.centers - before.centers
    moved = torch.linalg.vector_norm(apart.mean(1), dim=1).cpu().numpy()
    error = _ERRORS * (apart.var(1).sum(1) / apart.shape[1]).sqrt().cpu().numpy()
    most = bounds["center_shift"]
    compared["center"] = (np.isfinite(most), most - moved, error, moved / most, 1 + error / most)
    k = found.k[0]
    seen = torch.zeros_like(top).scatter_(1, after.unit.topk(k, dim=1).indices, True)
    stay = ((seen & top).sum(1) / k).cpu().numpy()
    least = bounds["intersection_estimates"][:, 0]
    may = np.maximum(1 - least, 1 / k)
    compared["top"] = (least > 0, stay - least, np.full(len(least), 1e-9), (1 - stay) / may, (1 - least + 1 / k) / may)
    return compared
