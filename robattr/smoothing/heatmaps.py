"""Certificates of what attacks on explanations measure: mass, center and top pixels of a smoothed heatmap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from robattr import metrics
from robattr._rows import parts_of
from robattr.attributions import Attribution, Target, check_target, differentiates, frozen, gradient, heatmap
from robattr.smoothing.certificates import mean_lower_bound, mean_lower_bound_of_moments, sampling_error
from robattr.smoothing.certifying import Spread, check_alpha, check_pictures, check_precision, check_units, l2_lengths
from robattr.smoothing.eigenvalue import EXACT
from robattr.smoothing.functionals import (
    certified_displacement,
    certified_mean,
    certified_mean_of_values,
    intersection_of,
    tolerances,
)
from robattr.smoothing.noise import Gaussian
from robattr.smoothing.sampling import _draws, _lengths, _moved
from robattr.smoothing.spectral import shifted_spread, spread_upper_bound

__all__ = ["HeatmapCertificate", "certified_pixels", "certify_map", "map_bounds", "map_split"]

Values = NDArray[np.float64]

_DIRECTIONS = 32  # of half a circle


@dataclass(frozen=True, eq=False)
class HeatmapCertificate:
    """What is certified of each image's smoothed heatmap, with probability at least 1 - alpha for each image, together.

    The heatmap I of an attribution is its sum of absolute values over channels, divided so that its sum is 1; a map of
    zeros counts as uniform. The *smoothed heatmap* is the expectation of I(x + noise): a heatmap again, whose mass in a
    region and whose center are expectations too. The top pixels are those of the *smoothed unit map*, the expectation
    of I / ||I||, whose length is bounded by 1: without a bound near what is seen no number of samples says much. Which
    pixels are seen on top, ``top``, is said by samples of their own, those that choose.

    Bounds are for all perturbations up to an l2 length, epsilon; K numbers of pixels, E epsilons.

    Attributes:
        epsilon: [E], in units of a [0, 1] image.
        k: [K], numbers of pixels.
        heatmap: [N, H, W] float64; estimate of the smoothed heatmap.
        unit: [N, H, W] float64; estimate of the smoothed unit map.
        top: bool [N, K, H, W]; the k largest pixels of the unit map of the samples that choose.
        mass: [N, K]; estimate of the smoothed heatmap's mass in ``top``.
        mass_lower: [N, K, E]; what that mass is at x + delta at least. 0 says nothing.
        region_mass: [N]; estimate of the mass in the region that was given; None without one.
        region_lower: [N, E]; what it is at x + delta at least; 0 says nothing.
        region_upper: [N, E]; and at most; 1 says nothing.
        cosine: [N, E]; what :func:`certify` certifies of the signed map's direction, from the same samples; -1 says
            nothing. None where it was not asked for.
        center: [N, 2]; estimate of the center of mass, (row, column) in pixels.
        center_shift: [N, E]; how far the center of the smoothed heatmap moves at most, in pixels. Infinite where
            nothing is certified: not even that it stays within the map's diagonal.
        center_disc: [N, E]; radius around ``center`` of a disc that holds the center of the smoothed heatmap at
            x + delta.
        intersection: [N, K, E]; the share of ``top`` that is at least among the k largest pixels of the smoothed unit
            map at x + delta. 0 says nothing.
        intersection_estimates: [N, K, E]; the same for an estimate at x + delta, from as many samples, for a delta that
            was chosen without their noise: what a reader sees.
        samples: of each estimate.
        alpha: probability of failure.
        split: what of alpha each statement takes.
        noise: the law.
        labels: int64 [N]; the class explained.
        statistics: what all bounds follow from, by :func:`map_bounds`: a row an image.
    """

    epsilon: tuple[float, ...]
    k: tuple[int, ...]
    heatmap: Tensor
    unit: Tensor
    top: Tensor
    mass: Tensor
    mass_lower: Tensor
    center: Tensor
    center_shift: Tensor
    center_disc: Tensor
    intersection: Tensor
    intersection_estimates: Tensor
    samples: int
    alpha: float
    split: dict[str, float]
    noise: Gaussian
    labels: Tensor
    statistics: dict[str, Tensor]
    region_mass: Tensor | None = None
    region_lower: Tensor | None = None
    region_upper: Tensor | None = None
    cosine: Tensor | None = None


@differentiates
def certify_map(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    noise: Gaussian,
    epsilon: float | Sequence[float],
    k: int | Sequence[int] = 1000,
    region: Tensor | None = None,
    cosine: bool = False,
    samples: int = 10_000,
    choose: int = 1000,
    alpha: float = 0.001,
    attribution: Attribution = gradient,
    detail: int = 200,
    memory: float = 4e9,
    seed: int = 0,
    max_batch: int = 128,
    progress: bool = False,
) -> HeatmapCertificate:
    """Certify mass, center and top pixels of each image's smoothed heatmap from samples, or abstain.

    ``choose`` samples say which pixels are the top ones and where deviations are measured from; other, independent
    ``samples`` certify. The mass has the best of three bounds (:mod:`robattr.smoothing.functionals`): from a lower
    confidence bound on its mean, by betting; from that and an upper one on its standard deviation; from a band around
    its law. The center moves by no more than its largest standard deviation allows, over 32 directions that betting
    bounds, of which the nearest to the worst one counts, whichever that is.

    Of the top pixels m cannot leave, by :func:`certified_intersection`, if the smoothed unit map's mean over the m
    smallest of them exceeds that over the m largest others by more than its shift can undo. This gap is attained by two
    sets of pixels that nobody knows, but that are fixed; the estimate's smallest gap is no more than *their* gap in the
    estimate, a mean of independent numbers with a variance of at most 2 / m times the spread of the unit map. So it
    exceeds the true gap by no more than the inequality of Bernstein for one number allows, at each of the m.

    Each statement takes the same share of alpha, so that together they fail with probability at most alpha for an
    image.

    The l2 lengths are those of Gaussian certificates. One step of 1/255 in every value of a 224 pixel photograph is an
    l2 length of 1.5: of attacks that may change every value these certificates say little.

    Args:
        model: images to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1], float32 or float64.
        target: class explained of each image, int64 [N], or one int for all.
        noise: :class:`Gaussian`.
        epsilon: one or several l2 lengths, >= 0.
        k: one or several numbers of pixels, from 1 to H x W.
        region: bool [H, W], or one for each image [N, H, W], whose mass is certified too.
        cosine: certify the direction of the signed, normalized map too, from the same samples.
        samples: of the estimate, and for the certificate; >= 2.
        choose: further samples; >= 1.
        alpha: probability of failure for an image, between 0 and 1.
        attribution: a method of :mod:`robattr.attributions`.
        detail: how much of a law and of a map's order the statistics keep: so many groups of draws, each with the least
            of them, and so many numbers of pixels that may leave. Fewer certify a little less.
        memory: bytes that the samples of one image may take. More are computed again for each of some 20 passes.
        seed: of the noise.
        max_batch: largest number of images in one pass.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_units(model, x)
    labels = check_target(x, target)
    height, width = check_pictures(x)
    lengths = l2_lengths(epsilon)
    counts = tuple(int(v) for v in np.ravel(k))
    if not counts or any(not 1 <= v <= height * width for v in counts) or not np.array_equal(counts, np.ravel(k)):
        raise ValueError(f"k is {k}; accepted are whole numbers of pixels from 1 to {height * width}")
    if not isinstance(noise, Gaussian):
        raise ValueError(f"noise is {noise}; accepted is Gaussian noise, whose likelihood ratio has a variance")
    if samples < 2 or choose < 1:
        raise ValueError(f"samples is {samples} and choose {choose}; accepted are at least 2 and 1")
    check_alpha(alpha)
    if detail < 1:
        raise ValueError(f"detail is {detail}; accepted is a number >= 1, for example 200")
    shapes = ([height, width], [len(x), height, width])
    if region is not None and (region.dtype != torch.bool or list(region.shape) not in shapes):
        raise ValueError(
            f"region is {region.dtype} {list(region.shape)}; accepted is bool {shapes[0]}, or one for each image, "
            f"{shapes[1]}"
        )
    parts_of(len(x), max_batch)
    split = map_split(alpha, counts, region is not None, cosine)
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    model = frozen(model)
    found = []
    for i in tqdm(range(len(x)), desc="certify", disable=None if progress else True):
        maps = partial(_maps, model, x[i : i + 1], labels[i : i + 1], noise, attribution, max_batch)
        inside = None if region is None else (region[i] if region.ndim == 3 else region)
        found.append(_measured(maps, x, counts, inside, samples, choose, seeds, split, detail, memory))
    statistics = {
        name: torch.from_numpy(np.stack([row.statistics[name] for row in found])) for name in found[0].statistics
    }
    bounds = map_bounds(
        {name: value.numpy() for name, value in statistics.items()}, noise=noise, epsilon=lengths, k=counts,
        samples=samples, alpha=alpha, size=(height, width),
    )  # fmt: skip
    return HeatmapCertificate(
        epsilon=lengths,
        k=counts,
        heatmap=torch.stack([row.heatmap for row in found]),
        unit=torch.stack([row.unit for row in found]),
        top=torch.stack([row.top for row in found]),
        mass=statistics["mass"],
        center=statistics["center"],
        region_mass=statistics.get("region"),
        samples=samples,
        alpha=alpha,
        split=split,
        noise=noise,
        labels=labels.cpu(),
        statistics=statistics,
        **{name: torch.from_numpy(value) for name, value in bounds.items()},
    )


def map_split(alpha: float, k: Sequence[int], region: bool = False, cosine: bool = False) -> dict[str, float]:
    """What of alpha each statement takes."""
    names = [f"{kind}/{v}" for v in k for kind in ("mass_mean", "mass_deviation", "mass_law", "gap")]
    if region:
        names += ["region_mean", "region_most", "region_deviation", "region_law", "region_law_most"]
    if cosine:
        names += ["direction_norm", "direction_spread"]
    names += ["center_spread", "center_estimate", "norm", "spread", "estimate_moved"]
    return {name: alpha / len(names) for name in names}


@dataclass(frozen=True, eq=False)
class _Measured:
    heatmap: Tensor
    unit: Tensor
    top: Tensor
    statistics: dict[str, Values]


def _maps(
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    noise: Gaussian,
    attribution: Attribution,
    max_batch: int,
    use: Callable[[Tensor, Tensor], None],
    *,
    samples: int,
    seed: int,
) -> None:
    """Calls ``use`` with the heatmaps [k, H x W] of one image's samples, whose sums are 1, and the signed maps."""
    if all(p.ndim < 5 for p in model.parameters()):
        model = model.to(memory_format=torch.channels_last)  # the faster layout of convolutions
    x = x.detach()
    for z in _draws(noise, samples, x, seed, max_batch):
        signed = attribution(model, _moved(x, z), label.expand(len(z))).detach()
        check_precision("the attribution", signed)
        use(_shown(signed), signed.flatten(1))


def _shown(signed: Tensor) -> Tensor:
    """Heatmaps [N, H x W] whose sums are 1: uniform where an attribution is zero everywhere."""
    maps = heatmap(signed).flatten(1)
    return torch.where(maps.sum(1, keepdim=True) == 0, 1 / maps.shape[1], maps)


def _measured(
    maps: Callable[..., None],
    x: Tensor,
    k: Sequence[int],
    region: Tensor | None,
    samples: int,
    choose: int,
    seeds: Sequence[int],
    split: Mapping[str, float],
    detail: int,
    memory: float,
) -> _Measured:
    """One image's statistics: confidence bounds and what else :func:`map_bounds` takes."""
    height, width = x.shape[2:]
    pixels = height * width
    sums = torch.zeros(2, pixels, dtype=torch.float64, device=x.device)
    direction = torch.zeros(x[0].numel() if "direction_norm" in split else 0, dtype=torch.float64, device=x.device)

    def add(block: Tensor, signed: Tensor) -> None:
        sums[0] += block.sum(0, dtype=torch.float64)
        sums[1] += _unit(block).sum(0, dtype=torch.float64)
        if len(direction):
            direction.add_(_directions(signed).sum(0, dtype=torch.float64))

    maps(add, samples=choose, seed=seeds[0])
    chosen, pointed = sums / choose, direction / choose
    center = metrics.center_of_mass(chosen[:1].view(1, height, width))[0]
    order = chosen[1].sort(descending=True, stable=True).indices
    top = torch.zeros(len(k), pixels, dtype=torch.bool, device=x.device)
    for row, number in zip(top, k, strict=True):
        row[order[:number]] = True
    inside = top if region is None else torch.cat([top, region.flatten()[None].to(x.device)])
    regions = inside.double()
    expected = (regions @ chosen[0]).cpu().numpy()
    length, pointed_length = chosen[1].norm(), pointed.norm()
    rows = torch.arange(height, dtype=torch.float64, device=x.device).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64, device=x.device).repeat(height)
    linear = torch.cat([regions.T, torch.stack([rows, columns], 1)], 1)
    scalars: list[Tensor] = []
    along: list[Tensor] = []
    pointed_along: list[Tensor] = []
    sums.zero_()
    direction.zero_()

    def again_unit(each: Callable[[object, Tensor], None]) -> None:
        maps(lambda block, _: each(None, _unit(block)[None]), samples=samples, seed=seeds[1])

    def again_signed(each: Callable[[object, Tensor], None]) -> None:
        maps(lambda _, signed: each(None, _directions(signed)[None]), samples=samples, seed=seeds[1])

    # Signed maps have as many values more as there are channels.
    share = pixels / (pixels + len(direction))
    spread = Spread(chosen[1], samples, memory * share, again_unit, split["spread"] / 10)
    signed_spread = None
    if bool(pointed_length > 0):
        signed_spread = Spread(pointed, samples, memory * (1 - share), again_signed, split["direction_spread"] / 10)

    def measure(block: Tensor, signed: Tensor) -> None:
        add(block, signed)
        unit = _unit(block)
        # In float64: sums of many pixels.
        scalars.append((block.double() @ linear).cpu())
        along.append((unit.double() @ chosen[1] / length).cpu())
        spread.add(None, unit[None])
        if signed_spread is not None:
            directions = _directions(signed)
            pointed_along.append((directions.double() @ pointed / pointed_length).cpu())
            signed_spread.add(None, directions[None])

    maps(measure, samples=samples, seed=seeds[1])
    values = torch.cat(scalars).numpy()
    mean, unit_mean = sums / samples
    statistics: dict[str, Values] = {"mass": values[:, : len(k)].mean(0)}
    laws = [_law(values[:, j], expected[j], split, f"/{v}", "mass", detail) for j, v in enumerate(k)]
    statistics |= {name: np.stack([law[name] for law in laws]) for name in laws[0]}
    if region is not None:
        s = values[:, len(k)]
        statistics |= {"region": s.mean(), **_law(s, expected[-1], split, "", "region", detail)}
        statistics["region_most"] = 1 - mean_lower_bound(np.clip(1 - s, 0, 1), split["region_most"], low=0.0)
        statistics["region_law_most"] = 1 - _groups(1 - s, detail)
    centers = values[:, -2:]
    statistics["center"] = centers.mean(0)
    statistics["center_spread"] = _center_spread(centers, center.cpu().numpy(), (height, width), split["center_spread"])
    # Neither map has negative values, so <g, m> >= 0 and ||g - m||^2 <= 1 + ||m||^2.
    statistics |= _norm(torch.cat(along).numpy(), split["norm"], low=0.0, kind="")
    center_length = rounded(float(length), up=True)
    statistics["spread_center"] = np.asarray(center_length)
    statistics |= _spreads(spread.largest(), samples, split["spread"], 1 + center_length**2, pixels, "")
    if signed_spread is not None:
        statistics |= _norm(torch.cat(pointed_along).numpy(), split["direction_norm"], low=-1.0, kind="direction_")
        center_length = rounded(float(pointed_length), up=True)
        statistics["direction_spread_center"] = np.asarray(center_length)
        eigenvalue, risk, limit = signed_spread.largest(), split["direction_spread"], (1 + center_length) ** 2
        statistics |= _spreads(eigenvalue, samples, risk, limit, len(direction), "direction_")
    elif len(direction):  # gradients that are zero everywhere have no direction
        nothing = {"norm": 0, "norm_variance": 1, "norm_least": -1, "norm_lower": 0, "spread_center": 0}
        nothing |= {"spread": 1, "spread_upper": 1}
        statistics |= {f"direction_{name}": np.asarray(float(value)) for name, value in nothing.items()}
    for number, seen in zip(k, top.cpu().numpy(), strict=True):
        statistics[f"reach/{number}"] = tolerances(unit_mean.cpu().numpy(), number, detail, top=seen)[1]
    shape = (height, width)
    return _Measured(
        mean.view(shape).cpu(), unit_mean.view(shape).cpu(), top.view(-1, *shape).cpu(),
        {name: np.asarray(value, dtype=np.float64) for name, value in statistics.items()},
    )  # fmt: skip


def rounded(value: float, *, up: bool) -> float:
    """A number with the 7 digits of a record, rounded up or down."""
    kept = float(f"{value:.7g}")
    if kept < value if up else kept > value:
        step = 10.0 ** (np.floor(np.log10(abs(value))) - 6)
        kept = float(f"{kept + (step if up else -step):.7g}")
    return kept


def _norm(along: Values, risk: float, *, low: float, kind: str) -> dict[str, Values]:
    """Of the projections on a direction: their mean, variance and least, and the bound that follows from these.

    With the digits of a record, so that the bound can be computed again from it.
    """
    s = np.clip(along, low, 1)
    mean, variance, least = (rounded(float(v), up=u) for v, u in ((s.mean(), False), (s.var(), True), (s.min(), False)))
    lower = float(mean_lower_bound_of_moments(mean, variance, least, len(s), risk, low=low))
    found = {"norm": mean, "norm_variance": variance, "norm_least": least, "norm_lower": max(lower, 0.0)}
    return {f"{kind}{name}": np.asarray(value) for name, value in found.items()}


def _spreads(
    eigenvalue: float, samples: int, risk: float, limit: float, dimension: int, kind: str
) -> dict[str, Values]:
    """The largest eigenvalue of the samples and the bound that follows; a tenth of the risk is for random starts."""
    risk = risk if dimension <= EXACT else 0.9 * risk
    eigenvalue = rounded(eigenvalue, up=True)
    upper = spread_upper_bound(eigenvalue, samples, risk, limit=limit)
    return {f"{kind}spread": np.asarray(eigenvalue), f"{kind}spread_upper": upper}


def _directions(signed: Tensor) -> Tensor:
    factor, _ = _lengths(signed[None], True)
    return signed * factor[0][:, None]


def _unit(maps: Tensor) -> Tensor:
    # By the maximum first: squares of very small values would be 0.
    maps = maps / maps.amax(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    return maps / length


def _law(s: Values, center: float, split: Mapping[str, float], place: str, kind: str, detail: int) -> dict[str, Values]:
    """Of a number in [0, 1]: a lower bound on its mean, an upper one on its deviation, its draws in groups."""
    s = np.clip(s, 0, 1)
    center = min(max(float(center), 0.0), 1.0)
    square = _square_upper(s - center, max(center, 1 - center), split[f"{kind}_deviation{place}"])
    return {
        f"{kind}_mean": mean_lower_bound(s, split[f"{kind}_mean{place}"], low=0.0),
        f"{kind}_deviation": np.sqrt(square),
        f"{kind}_law": _groups(s, detail),
    }


def _square_upper(values: Values, limit: float | Values, alpha: float) -> Values:
    """An upper confidence bound on the mean square of values [..., n] that are at most ``limit`` [...] in size.

    Around a center that these draws did not choose: at least the variance.
    """
    share = np.minimum((values / np.asarray(limit)[..., None]) ** 2, 1.0)
    return np.asarray(-mean_lower_bound(-share, alpha, low=-1.0, high=0.0) * np.square(limit))


def _groups(s: Values, number: int) -> Values:
    """The least of each group of sorted draws: a law that lies below theirs."""
    parts = np.array_split(np.sort(s), min(number, len(s)))
    return np.array([part[0] for part in parts])


def _draws_of(groups: Values, n: int) -> Values:
    sizes = [len(part) for part in np.array_split(np.empty(n, dtype=bool), len(groups))]
    return np.repeat(groups, sizes)


def _center_spread(centers: Values, chosen: Values, size: tuple[int, int], alpha: float) -> Values:
    """What the largest eigenvalue of the center's covariance is at most, in square pixels.

    Of 32 directions one is within pi / 64 of the top eigenvector v, and along it the variance is at least ``Lambda
    cos(pi / 64)^2``. Which one it is does not depend on the samples, so its confidence bound needs no union: the
    largest of all is at least that.
    """
    angle = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    directions = np.stack([np.sin(angle), np.cos(angle)])
    corners = np.array([(r, c) for r in (0, size[0] - 1) for c in (0, size[1] - 1)], dtype=np.float64)
    limits = np.abs((corners - chosen) @ directions).max(0)
    limits = np.maximum(limits, 1e-12)  # a map of one row does not move along its columns
    upper = _square_upper(((centers - chosen) @ directions).T, limits, alpha)
    return np.asarray(upper.max() / np.cos(np.pi / 2 / _DIRECTIONS) ** 2)


def map_bounds(
    statistics: Mapping[str, Values | Tensor],
    *,
    noise: Gaussian,
    epsilon: Sequence[float],
    k: Sequence[int],
    samples: int,
    alpha: float,
    size: tuple[int, int],
) -> dict[str, Values]:
    """The bounds of :class:`HeatmapCertificate` at any epsilons, from its statistics; no network and no randomness.

    Args:
        statistics: of a certificate, a row an image; arrays or tensors.
        noise: as there.
        epsilon: l2 lengths, >= 0.
        k: as there.
        samples: as there.
        alpha: as there.
        size: (height, width) of the map.

    Returns:
        The bounds by their names there.
    """
    known: dict[str, Values] = {name: np.asarray(value) for name, value in statistics.items()}
    split = map_split(alpha, k, "region" in known, "direction_norm_lower" in known)
    shift = np.asarray(epsilon, dtype=np.float64) / noise.sigma

    def lower(mean: Values, deviation: Values, law: Values, risk: float) -> Values:
        """[N, E] of [N], [N] and [N, groups]."""
        by_law = [certified_mean_of_values(_draws_of(row, samples), shift, alpha=risk) for row in law]
        return np.maximum(certified_mean(mean[:, None], shift, deviation=deviation[:, None]), np.stack(by_law))

    mean, deviation, law = (known[f"mass_{name}"] for name in ("mean", "deviation", "law"))
    masses = [lower(mean[:, j], deviation[:, j], law[:, j], split[f"mass_law/{v}"]) for j, v in enumerate(k)]
    found = {"mass_lower": np.stack(masses, 1)}
    if "region" in known:
        s = {name: known[f"region_{name}"] for name in ("mean", "most", "deviation", "law", "law_most")}
        found["region_lower"] = lower(s["mean"], s["deviation"], s["law"], split["region_law"])
        # 1 - s is a number in [0, 1] too; of its groups each has the least, so of s each has the most.
        found["region_upper"] = 1 - lower(1 - s["most"], s["deviation"], 1 - s["law_most"], split["region_law_most"])
    if "direction_norm_lower" in known:
        h, lam = (known[f"direction_{name}"][:, None] for name in ("norm_lower", "spread_upper"))
        found["cosine"] = noise.certified_cosine(h, size[0] * size[1], epsilon, spread=lam)
    # Samples and their mean lie in the map, no farther apart than its diagonal.
    diagonal = max(float(np.hypot(size[0] - 1, size[1] - 1)), 1e-12)
    spread = known["center_spread"][:, None]
    moved = certified_displacement(spread, shift, bound=diagonal)
    error = _error_of_center(spread, diagonal, samples, split["center_estimate"])
    found["center_shift"] = np.where(moved < diagonal, moved, np.inf)
    found["center_disc"] = np.where(moved + error < diagonal, moved + error, np.inf)
    length, lam = known["norm_lower"][:, None], known["spread_upper"][:, None]
    # Two unit maps without negative values are at most sqrt(2) apart, and so are one and the mean.
    moved = certified_displacement(lam, shift, bound=np.sqrt(2))
    there = sampling_error(
        samples, split["estimate_moved"], mean_norm=np.maximum(length - moved, 0), spread=shifted_spread(lam, shift)
    )
    shares: dict[str, list[list[Values]]] = {"intersection": [], "intersection_estimates": []}
    for number in k:
        reach = known[f"reach/{number}"]
        leaving = tolerances(np.arange(number), number, reach.shape[-1])[0]
        # The number of (1_A - 1_B) / sqrt(2 m) is between -1 and 1, over sqrt(2).
        log = np.log(len(leaving) / split[f"gap/{number}"])
        here = moved + np.sqrt(2 * log * lam / samples) + np.sqrt(2) * log / (3 * samples)
        for name, distance in (("intersection", here), ("intersection_estimates", here + there)):
            shares[name].append([intersection_of(leaving, r, e, number) for r, e in zip(reach, distance, strict=True)])
    found |= {name: np.moveaxis(np.array(rows), 0, 1) for name, rows in shares.items()}
    return found


def _error_of_center(spread: Values, diagonal: float, samples: int, alpha: float) -> Values:
    """How far the mean of n centers is from its expectation, in pixels: Bousquet's inequality, as for maps."""
    log = np.log(1 / alpha)
    mean = np.sqrt(2 * spread / samples)  # the trace is at most twice the largest eigenvalue
    return np.asarray(
        mean + np.sqrt(2 * log * (spread + 2 * diagonal * mean) / samples) + diagonal * log / (3 * samples)
    )


def certified_pixels(found: HeatmapCertificate, epsilon: float | Sequence[float], *, alpha: float = 0.001) -> Tensor:
    """The single pixels of ``top`` that stay among the k largest of the smoothed unit map: bool [N, K, E, H, W].

    A pixel of the k on top that is no longer among the k largest has some pixel from outside of them at or above it. To
    turn the order of two pixels takes a shift of the unit map of more than their gap over ``sqrt(2)``. So a pixel stays
    that exceeds all outside by more than sqrt(2) times the shift. The largest of the outside pixels in truth is
    unknown, but fixed: each of the k gaps to *it* is estimated by independent numbers whose variance is at most twice
    the spread, and the inequality of Bernstein, at alpha / k each, says by how much too large. :func:`certify_map`
    certifies how many stay, and mostly more than can be named here: of those that might leave, not all can at once.

    Args:
        found: a certificate; nothing is sampled again.
        epsilon: one or several l2 lengths, >= 0.
        alpha: probability of failure for an image and each k, beside that of the certificate.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    lengths = np.array(l2_lengths(epsilon))
    check_alpha(alpha)
    lam = found.statistics["spread_upper"].numpy()[:, None]
    moved = certified_displacement(lam, lengths / found.noise.sigma, bound=np.sqrt(2))
    unit = found.unit.cpu()[:, None]
    outside = unit.masked_fill(found.top.cpu(), -torch.inf).amax((2, 3), keepdim=True)
    log = np.log(np.array(found.k) / alpha)[:, None]
    error = np.sqrt(2 * log * lam[:, None] / found.samples) + np.sqrt(2) * log / (3 * found.samples)
    room = torch.from_numpy(np.sqrt(2) * (moved[:, None] + error))[..., None, None]
    return found.top.cpu()[:, :, None] & ((unit - outside)[:, :, None] > room)
