"""The worst over an ensemble of attacks, image by image: one attack finds what that attack can find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robattr import metrics
from robattr._rows import joined, parts_of
from robattr.attacks.climbing import RandomSigns, check_attack, check_iterations
from robattr.attacks.heatmaps import iterative_attack, random_sign
from robattr.attacks.manipulation import frame, manipulate
from robattr.attacks.objectives import MassCenter, Targeted, TopK
from robattr.attributions import Attribution, Target, check_target, differentiates, frozen, gradient, heatmap, heatmaps
from robattr.models import is_smooth

Search = Callable[[Tensor], Tensor]
"""An attack with its options bound: images [N, C, H, W] to changed images of the same shape."""


@dataclass(frozen=True, eq=False)
class Harm:
    """How far maps of changed images are from those of the clean ones, in four measures, each [N].

    Attributes:
        topk_intersection: share of the k largest pixels that both maps have.
        rank_correlation: Spearman's, over the pixels.
        cosine: of the heatmaps.
        center_shift: distance of the centers of mass, in pixels; the only one that is worse when it is larger.
    """

    topk_intersection: Tensor
    rank_correlation: Tensor
    cosine: Tensor
    center_shift: Tensor


def harm_of(before: Tensor, after: Tensor, k: int) -> Harm:
    """How far maps are from others, heatmaps [N, H, W] each; ``k`` is the number of top pixels."""
    return Harm(
        topk_intersection=metrics.topk_intersection(before, after, k),
        rank_correlation=metrics.spearman(before, after),
        cosine=metrics.cosine(before, after),
        center_shift=metrics.center_shift(before, after),
    )


MEASURES = tuple(field.name for field in fields(Harm))
"""Names of the measures of :class:`Harm`."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What was found for each image, looked at again: a row an image.

    Attributes:
        images: [N, C, H, W]; the changed image where it counts, the clean one where it does not.
        inside: bool [N]; whether the change stays in the ball and in [0, 1].
        kept: bool [N]; whether the class predicted for the clean image still is.
        changed: bool [N]; whether anything was: an attack that has failed returns the clean image.
        harm: to the maps; none, like that of an unchanged image, where the change does not count.
    """

    images: Tensor
    inside: Tensor
    kept: Tensor
    changed: Tensor
    harm: Harm

    @property
    def success(self) -> Tensor:
        """bool [N]; whether the change counts: there is one, it stays in the ball and keeps the prediction."""
        return self.inside & self.kept & self.changed


@dataclass(frozen=True, eq=False)
class Worst:
    """The worst that an ensemble found, image by image and measure by measure.

    Attributes:
        names: of the attacks.
        each: what every attack found, in the order of the names.
        success: bool [N]; whether any attack kept the prediction in the ball.
        harm: the worst of every measure.
        attack: int64 [4, N]; whose it is, an index of ``names``: a row a measure of :data:`MEASURES`. Of equals the
            first; of equal shares of top pixels the one with the lower rank correlation.
        images: [4, N, C, H, W]; the images that show it, likewise.
    """

    names: tuple[str, ...]
    each: tuple[Judged, ...]
    success: Tensor
    harm: Harm
    attack: Tensor
    images: Tensor


@differentiates
def judge(
    model: nn.Module,
    images: Tensor,
    found: Tensor,
    *,
    epsilon: float,
    k: int,
    attribution: Attribution = gradient,
    labels: Target | None = None,
    levels: int | None = None,
    reference: Tensor | None = None,
    batch_size: int = 16,
) -> Judged:
    """Look at changed images again, whoever found them: are they in the ball, what is predicted, what do maps show?

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        images: the clean images [N, C, H, W] in [0, 1].
        found: the changed images, of the same shape.
        epsilon: largest change of a value in units of a [0, 1] image.
        k: number of top pixels.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        labels: class to explain of each image; by default the model's prediction.
        levels: round the changed images to whole multiples of 1/levels that are in the ball, before they are looked at:
            255 gives what an image file of 8 bits a channel keeps. None takes them as they are. What is further than a
            step from the ball is not in it.
        reference: heatmaps [N, H, W] of the clean images where they are known; they are made where not.
        batch_size: images in one pass.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
    """
    check_attack(images, epsilon, batch_size)
    if found.shape != images.shape or not bool(found.isfinite().all()):
        raise ValueError(f"found has shape {tuple(found.shape)}; accepted are finite images {tuple(images.shape)}")
    TopK(k).check(len(images), *images.shape[2:])
    if reference is not None and reference.shape != (len(images), *images.shape[2:]):
        raise ValueError(f"reference has shape {tuple(reference.shape)}; accepted is a heatmap an image, [N, H, W]")
    if levels is not None and levels < 1:
        raise ValueError(f"levels is {levels}; accepted is a number of steps >= 1, such as 255, or None")
    classes = None if labels is None else check_target(images, labels)
    model = frozen(model)
    parts = []
    for rows in parts_of(len(images), batch_size):
        clean, changed = images[rows].detach(), found[rows].detach().to(images)
        if levels is None:
            inside = _inside(clean.double(), changed.double(), epsilon)
        else:
            changed, inside = _rounded(clean, changed, epsilon, levels)
        with torch.no_grad():
            prediction = model(clean).argmax(1)
            kept = model(changed).argmax(1) == prediction
        y = prediction if classes is None else classes[rows]
        differs = (changed != clean).flatten(1).any(1)
        counts = (inside & kept)[:, None, None, None]
        changed = torch.where(counts, changed, clean)
        before = heatmap(attribution(model, clean, y)).detach() if reference is None else reference[rows].to(clean)
        after = heatmap(attribution(model, changed, y)).detach()
        # Another batch may round an unchanged map in another way: where nothing counts, nothing is measured.
        after = torch.where(counts[:, 0], after, before)
        parts.append(
            Judged(
                images=changed,
                inside=inside,
                kept=kept,
                changed=differs,
                harm=harm_of(before, after, k),
            )
        )
    return joined(parts)


def _inside(clean: Tensor, changed: Tensor, epsilon: float) -> Tensor:
    """bool [N]; float64 images that are within epsilon of the clean ones and in [0, 1], to the last bit."""
    fine = ((changed - clean).abs() <= epsilon) & (changed >= 0) & (changed <= 1)
    return fine.flatten(1).all(1)


def _rounded(clean: Tensor, changed: Tensor, epsilon: float, levels: int) -> tuple[Tensor, Tensor]:
    """Images on a grid of whole multiples of 1/levels, and whether those are in the ball, in exact arithmetic.

    A number of float32 next to j/levels stands for j/levels: what a file of whole numbers says.
    """
    exact = clean.double() * levels
    whole = exact.round()
    near = levels * torch.finfo(clean.dtype).eps
    exact = torch.where((exact - whole).abs() <= near, whole, exact)
    reach = epsilon * levels
    reach = round(reach) if abs(reach - round(reach)) <= 1e-9 * levels else reach
    low, high = (exact - reach).ceil().clamp(min=0), (exact + reach).floor().clamp(max=levels)
    wanted = (changed.double() * levels).round()
    # A grid that is coarser than the ball may have no point in it.
    there = (low <= high).flatten(1).all(1)
    steps = torch.minimum(torch.maximum(wanted, low), high)
    moved_outside = ((wanted - steps).abs() > 1).flatten(1).any(1)
    grid = steps.to(clean.dtype) / torch.tensor(levels, dtype=clean.dtype, device=clean.device)
    return grid, there & ~moved_outside


def worst_of(judged: Mapping[str, Judged]) -> Worst:
    """The worst, image by image and measure by measure, of what several attacks found for the same images.

    It is at least as bad as each of them, in every measure and for every image.

    Raises:
        ValueError: there are no attacks.
    """
    if not judged:
        raise ValueError("judged is empty; the worst of attacks takes at least one")
    each = tuple(judged.values())
    rank = torch.stack([j.harm.rank_correlation for j in each])
    chosen = []
    for name in MEASURES:
        values = torch.stack([getattr(j.harm, name) for j in each])
        if name == "center_shift":
            values = -values
        ties = values == values.amin(0)
        # Of equals the one that is worse by ranks, then the first.
        order = torch.where(ties, rank if name == "topk_intersection" else 0, torch.inf)
        chosen.append(order.argmin(0))
    attack = torch.stack(chosen)
    rows = torch.arange(attack.shape[1], device=attack.device)
    harm = Harm(
        **{name: torch.stack([getattr(j.harm, name) for j in each])[attack[m], rows] for m, name in enumerate(MEASURES)}
    )
    images = torch.stack([torch.stack([each[int(a)].images[i] for i, a in enumerate(row)]) for row in attack.tolist()])
    return Worst(
        names=tuple(judged),
        each=each,
        success=torch.stack([j.success for j in each]).any(0),
        harm=harm,
        attack=attack,
        images=images,
    )


def searches(
    model: nn.Module,
    *,
    epsilon: float,
    k: int,
    attribution: Attribution = gradient,
    step: float = 1 / 255,
    iterations: int = 20,
    restarts: int = 1,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, Search]:
    """The attacks of this package that work in an l-infinity ball, by name, the ones that find most first.

    - ``top-k``, ``mass-center``: :func:`iterative_attack` from the clean image; ``top-k-2``, ... from random starts;
    - ``targeted``: the same toward the corner, a sixteenth of the map, where each clean map has least;
    - ``manipulation``: :func:`manipulate` toward a frame of 5/32 of the shorter side; not for maps below 7 pixels;
    - ``random-sign``: :func:`random_sign`, the best of ``draws``.

    Images on a grid of 1/255 stay on it where epsilon and step are whole multiples of it, but for ``manipulation``.

    Args:
        restarts: walks of ``top-k`` and of ``mass-center``, the first one from the clean image; >= 1.
        draws: of the random signs, >= 1.

    Other arguments are those of :func:`iterative_attack`, which also says what is refused.
    """
    check_iterations(iterations)
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}; accepted is at least 1, the walk from the clean image")
    in_ball: dict[str, Any] = {"epsilon": epsilon, "attribution": attribution, "batch_size": batch_size}
    walk = partial(iterative_attack, model, step=step, iterations=iterations, **in_ball)

    def from_start(objective: TopK | MassCenter, number: int, images: Tensor) -> Tensor:
        if number == 0:
            return walk(images=images, objective=objective, seed=seed).images
        half = max(1, round(epsilon * 255 / 2)) / 255
        starts = half * RandomSigns(images, seed + number).draw_all()
        return walk(images=images, objective=objective, seed=seed + number, starts=starts).images

    def to_corner(images: Tensor) -> Tensor:
        masks = emptiest_corner(_maps(model, images, attribution, batch_size))
        return walk(images=images, objective=Targeted(masks), seed=seed).images

    def to_frame(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        border = max(1, round(min(height, width) * 5 / 32))
        return manipulate(
            model, images, target_map=frame(height, width, border), learning_rate=step, iterations=iterations,
            beta=None if is_smooth(model, images[:1]) else (3.0, 30.0), **in_ball,
        ).images  # fmt: skip

    def at_random(images: Tensor) -> Tensor:
        return random_sign(model, images, objective=TopK(k), draws=draws, seed=seed, **in_ball).images

    found: dict[str, Search] = {"top-k": partial(from_start, TopK(k), 0)}
    found["mass-center"] = partial(from_start, MassCenter(), 0)
    found |= {"targeted": to_corner, "manipulation": to_frame, "random-sign": at_random}
    for number in range(1, restarts):
        found[f"top-k-{number + 1}"] = partial(from_start, TopK(k), number)
        found[f"mass-center-{number + 1}"] = partial(from_start, MassCenter(), number)
    return found


def emptiest_corner(maps: Tensor) -> Tensor:
    """bool [N, H, W]: of the four corners, a quarter of each side long, the one with the least of each map."""
    n, height, width = maps.shape
    h, w = max(1, height // 4), max(1, width // 4)
    corners = torch.zeros(4, height, width, dtype=torch.bool, device=maps.device)
    top, bottom, left, right = slice(h), slice(-h, None), slice(w), slice(-w, None)
    for i, (rows, columns) in enumerate([(top, left), (top, right), (bottom, left), (bottom, right)]):
        corners[i, rows, columns] = True
    mass = torch.einsum("nhw,chw->nc", maps, corners.to(maps))
    return corners[mass.argmin(1)].view(n, height, width)


def _maps(model: nn.Module, images: Tensor, attribution: Attribution, batch_size: int) -> Tensor:
    model = frozen(model)
    with torch.no_grad():
        labels = torch.cat([model(images[rows]).argmax(1) for rows in parts_of(len(images), batch_size)])
    return heatmaps(model, images, labels, attribution, max_batch=batch_size)


@differentiates
def ensemble(
    model: nn.Module,
    images: Tensor,
    *,
    epsilon: float,
    k: int,
    attribution: Attribution = gradient,
    step: float = 1 / 255,
    iterations: int = 20,
    restarts: int = 2,
    draws: int = 10,
    transfers: Mapping[str, Tensor] | None = None,
    levels: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Worst:
    """The worst of all attacks of :func:`searches`, and of images found elsewhere, for each image and measure.

    No single attack of the package in an l-infinity ball is worse for any image in any measure, with the same options:
    each is one of those of which the worst is taken.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        images: [N, C, H, W] in [0, 1]; explained is the predicted class.
        epsilon: largest change of a value in units of a [0, 1] image, for example ``8 / 255``.
        k: number of top pixels.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        transfers: changed images by a name of their own: what an attack found on another network or another method.
        levels: as for :func:`judge`; with 255, the worst of the images that a file of 8 bits can hold.

    Other arguments are those of :func:`searches`.

    Raises:
        ValueError: an argument is not what is accepted, or a transfer has the name of an attack.
    """
    check_attack(images, epsilon, batch_size)
    bound = searches(
        model, epsilon=epsilon, k=k, attribution=attribution, step=step, iterations=iterations, restarts=restarts,
        draws=draws, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    if min(images.shape[2:]) < 7:
        del bound["manipulation"]
    if taken := set(bound) & set(transfers or {}):
        raise ValueError(f"transfers has {', '.join(sorted(taken))}, the name of an attack; choose another name")
    look = partial(
        judge, model, images, epsilon=epsilon, k=k, attribution=attribution, levels=levels, batch_size=batch_size
    )
    found = {name: look(found=search(images)) for name, search in bound.items()}
    found |= {name: look(found=changed) for name, changed in (transfers or {}).items()}
    return worst_of(found)
