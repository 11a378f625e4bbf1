"""What is measured in an audit, piece by piece: values are lists with an entry an image, in the order of the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robattr import attacks, metrics, sanity, smoothing
from robattr._rows import joined as side_by_side, parts_of
from robattr.attacks import MEASURES, Harm, Judged
from robattr.attributions import METHODS, Attribution, heatmap, integrated_gradients, smoothgrad
from robattr.data import ImageSet
from robattr.models import Classifier
from robattr.studies.audit.parts import Part, Parts
from robattr.studies.audit.planning import MAIN, Cost, OutOfTime, Plan
from robattr.studies.audit.results import Audit

SIGMA = 0.15
"""Standard deviation of the noise that is certified, in units of a [0, 1] image: SmoothGrad's own."""
FLOOR_EPSILONS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
"""l2 lengths at which floors are given, in units of a [0, 1] image."""
ALPHA = 0.001
"""Probability that a floor of an image is wrong."""
LEVELS = 255
POINTS = 16  # of methods that take many for one image
PATHS = ("integrated_gradients", "smoothgrad")
MEMORY = 2 * 2**30
SMALLER_SIZE = "smaller/"  # before the name of a measure
_FRACTIONS = 10  # of the insertion score


@dataclass
class State:
    """How far one call of an audit has come."""

    model: Classifier
    drawn: ImageSet
    config: Audit
    folder: Path
    parts: Parts
    device: torch.device
    costs: dict[str, Cost] = field(default_factory=dict)
    prediction: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    chosen: list[int] = field(default_factory=list)
    bench: Bench | None = None


@dataclass(frozen=True, eq=False)
class Bench:
    """What all parts share."""

    model: nn.Module
    config: Audit
    x: Tensor
    labels: Tensor
    k: int
    plan: Plan
    parts: Parts

    @property
    def epsilon(self) -> float:
        return self.config.epsilon / LEVELS

    @property
    def smaller(self) -> float | None:
        return None if self.config.smaller is None else self.config.smaller / LEVELS

    def method(self, name: str) -> Attribution:
        return bound(name, self.plan.passes)

    def rows(self, name: str) -> list[slice]:
        return list(parts_of(len(self.x), self.plan.methods[name].batch))


def bound(name: str, passes: int) -> Attribution:
    """A method with its number of points, and no more images in a pass than memory allows."""
    if name == "integrated_gradients":
        return partial(integrated_gradients, steps=POINTS, max_batch=passes)
    if name == "smoothgrad":
        return partial(smoothgrad, samples=POINTS, max_batch=passes)
    return METHODS[name]


def clean_maps(method: Attribution, model: nn.Module, x: Tensor, y: Tensor, name: str) -> Tensor:
    """Heatmaps of the images as they are, [N, H, W].

    Raises:
        ValueError: one is the same at every pixel: it has no top pixels, and every attack would leave it as it is.
    """
    found = heatmap(method(model, x, y)).detach()
    flat = found.flatten(1)
    constant = (flat.amax(1) == flat.amin(1)).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"the map of {name} is the same at every pixel, {float(flat[constant[0], 0]):g}, for {len(constant)} of "
            f"{len(x)} images: it has no top pixels, so no attack on it means anything"
        )
    return found


def under_noise(bench: Bench, name: str, rows: slice) -> tuple[dict[str, Any], dict[str, Tensor]]:
    x, y, method = bench.x[rows], bench.labels[rows], bench.method(name)
    before = clean_maps(method, bench.model, x, y, name)
    sizes = {"": bench.epsilon} | ({} if bench.smaller is None else {SMALLER_SIZE: bench.smaller})
    totals = {size + m: torch.zeros(len(x), dtype=torch.float64) for size in sizes for m in MEASURES}
    generators = metrics.generators_of(x, bench.config.seed)
    for _ in range(bench.plan.draws):
        noise = torch.stack([torch.rand(x.shape[1:], generator=g, dtype=x.dtype) for g in generators])
        for size, epsilon in sizes.items():  # the same noise, shorter
            noisy = (x + epsilon * (2 * noise - 1).to(x.device)).clamp_(0, 1)
            harm = attacks.harm_of(before, heatmap(method(bench.model, noisy, y)).detach(), bench.k)
            for measure in MEASURES:
                totals[size + measure] += getattr(harm, measure).double().cpu()
    return {key: (total / bench.plan.draws).tolist() for key, total in totals.items()}, {"before": before}


def _judged(bench: Bench, name: str, rows: slice, number: int, found: Tensor, epsilon: float | None = None) -> Judged:
    kept = bench.parts.get(f"noise/{name}/{number}")
    if kept is None or "refused" in kept[0]:
        reference = clean_maps(bench.method(name), bench.model, bench.x[rows], bench.labels[rows], name)
    else:
        reference = kept[1]["before"]
    return attacks.judge(
        bench.model,
        bench.x[rows],
        found,
        epsilon=bench.epsilon if epsilon is None else epsilon,
        k=bench.k,
        attribution=bench.method(name),
        levels=LEVELS,
        reference=reference,
        batch_size=len(bench.x[rows]),
    )


def _to_part(judged: Judged) -> tuple[dict[str, Any], dict[str, Tensor]]:
    values = {"success": judged.success.double().tolist()}
    values |= {measure: getattr(judged.harm, measure).double().tolist() for measure in MEASURES}
    # Whole levels: 8 bits hold them as they are.
    return values, {"images": (judged.images * LEVELS).round().to(torch.uint8)}


def _from_part(part: Part, device: torch.device) -> Judged:
    values, tensors = part
    success = torch.tensor(values["success"], dtype=torch.bool)
    return Judged(
        images=_of_levels(tensors["images"]).to(device),
        inside=success,
        kept=success,
        changed=success,
        harm=Harm(**{measure: torch.tensor(values[measure], dtype=torch.float64) for measure in MEASURES}),
    )


def _of_levels(levels: Tensor) -> Tensor:
    return levels.float().div_(LEVELS)


def attacked(
    bench: Bench, name: str, attack: str, rows: slice, number: int, smaller: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    planned = bench.plan.methods[name]
    x = bench.x[rows]
    epsilon = bench.smaller if smaller else bench.epsilon
    assert epsilon is not None
    search = attacks.searches(
        bench.model,
        epsilon=epsilon,
        k=bench.k,
        attribution=bench.method(name),
        step=(planned.smaller_step if smaller else planned.step) / LEVELS,
        iterations=planned.iterations,
        restarts=max(planned.restarts, int(attack.rpartition("-")[2]) if attack[-1].isdigit() else 1),
        draws=planned.signs,
        seed=bench.config.seed,
        batch_size=len(x),
    )[attack]
    return _to_part(_judged(bench, name, rows, number, search(x), epsilon))


def transferred(
    bench: Bench, name: str, other: str, rows: slice, number: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The worst, for this method, of the images that were found for another one."""
    start, stop = rows.start, min(rows.stop, len(bench.x))
    theirs = _worst_rows(bench, other, start, stop)
    if bench.plan.methods[name].attacks:
        # Those with the fewest top pixels left and the furthest center.
        candidates = {f"{other}-{m}": theirs.images[MEASURES.index(m)] for m in ("topk_intersection", "center_shift")}
    else:
        candidates = {f"{other}-{a}": each.images for a, each in zip(theirs.names, theirs.each, strict=True)}
    judged = {key: _judged(bench, name, rows, number, images) for key, images in candidates.items()}
    worst = attacks.worst_of(judged)
    # One row stands for all measures: that with the fewest top pixels left.
    chosen = worst.attack[0].tolist()
    of = [list(judged.values())[a] for a in chosen]
    first = Judged(
        images=torch.stack([each.images[i] for i, each in enumerate(of)]),
        inside=torch.stack([each.inside[i] for i, each in enumerate(of)]),
        kept=torch.stack([each.kept[i] for i, each in enumerate(of)]),
        changed=torch.stack([each.changed[i] for i, each in enumerate(of)]),
        harm=Harm(**{m: torch.stack([getattr(e.harm, m)[i] for i, e in enumerate(of)]) for m in MEASURES}),
    )
    return _to_part(first)


def _worst_rows(bench: Bench, name: str, start: int, stop: int) -> attacks.Worst:
    """The worst of the own attacks of a method for images start to stop; clean ones where nothing was measured."""
    found: dict[str, Judged] = {}
    for attack in attacks_on(bench, name):
        whole = joined(bench, f"attack/{name}/{attack}", name)
        if whole is not None and len(whole.success) >= stop:
            found[attack] = rows_of(whole, start, stop)
    if not found:
        raise OutOfTime
    return attacks.worst_of(found)


def attacks_on(bench: Bench, name: str) -> list[str]:
    """Own attacks of a method that have been begun."""
    kinds = ("top-k", "mass-center")
    more = [f"{kind}-{number}" for number in range(2, 10) for kind in kinds]
    names = [*MAIN, *more]
    return [each for each in dict.fromkeys(names) if bench.parts.get(f"attack/{name}/{each}/0") is not None]


def joined(bench: Bench, prefix: str, name: str) -> Judged | None:
    """The parts of one attack as one, as far as they are there without a gap."""
    found = []
    for i in range(len(bench.rows(name))):
        part = bench.parts.get(f"{prefix}/{i}")
        if part is None or "refused" in part[0]:
            break
        found.append(_from_part(part, bench.x.device))
    return side_by_side(found) if found else None


def rows_of(judged: Judged, start: int, stop: int) -> Judged:
    harm = Harm(**{m: getattr(judged.harm, m)[start:stop] for m in MEASURES})
    rows = slice(start, stop)
    return Judged(judged.images[rows], judged.inside[rows], judged.kept[rows], judged.changed[rows], harm)


def sane(bench: Bench, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    n = bench.plan.sanity_images
    x, y, method = bench.x[:n], bench.labels[:n], bench.method(name)
    batch = bench.plan.methods[name].batch
    found = sanity.cascade(
        bench.model, x, y, k=bench.k, attribution=method, stages=bench.plan.stages, seed=bench.config.seed,
        max_batch=batch,
    )  # fmt: skip
    before = torch.cat([clean_maps(method, bench.model, x[r], y[r], name) for r in parts_of(n, batch)])
    moved = sanity.shuffled(before, seed=bench.config.seed)
    values: dict[str, Any] = {"stages": [list(stage) for stage in found.stages]}
    for stage in range(len(found.stages)):
        for measure in ("rank_correlation", "topk_intersection", "ssim"):
            values[f"randomized/{stage + 1}/{measure}"] = getattr(found, measure)[stage].double().tolist()
    chance = attacks.harm_of(before, moved, bench.k)
    values |= {f"shuffled/{measure}": getattr(chance, measure).double().tolist() for measure in MEASURES}
    score = partial(metrics.insertion, bench.model, x, y, fractions=_FRACTIONS, max_batch=batch)
    for kind, maps in (("map", before), ("randomized", found.maps), ("shuffled", moved)):
        values[f"insertion/{kind}"] = score(maps).area.double().tolist()
    return values, {}


def floor(
    model: nn.Module, x: Tensor, labels: Tensor, *, samples: int, choose: int, seed: int, max_batch: int
) -> smoothing.Certificate:
    """What is certified of the gradient's direction, averaged over Gaussian noise: the best that the package has.

    The certificate is about the smoothed gradient and about l2 balls; :data:`ALPHA` is the probability of failure for
    each image.
    """
    return smoothing.certify(
        model,
        x,
        labels,
        noise=smoothing.Gaussian(SIGMA),
        epsilon=FLOOR_EPSILONS,
        samples=samples,
        choose=choose,
        alpha=ALPHA,
        seed=seed,
        max_batch=max_batch,
        memory=MEMORY / 2,
    )


def floored(bench: Bench, i: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    plan = bench.plan
    found = floor(
        bench.model, bench.x[i : i + 1], bench.labels[i : i + 1], samples=plan.samples, choose=plan.choose,
        seed=bench.config.seed, max_batch=min(plan.passes, 32),
    )  # fmt: skip
    return {
        "norm_lower": found.norm_lower.tolist(),
        "expectation": found.expectation[0].tolist(),
    }, {}
