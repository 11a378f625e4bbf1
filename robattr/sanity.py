"""Is a map about the network at all? What it keeps when the network's weights, or its own pixels, change places.

A map that looks convincing may be a drawing of the image's edges. :func:`cascade` is the test of Adebayo et al. 2018
(*Sanity checks for saliency maps*): randomize a network from its last layer to its first, and see what of the map is
left. :func:`shuffled` gives what every measure says of two maps that share nothing but their values: the level of
chance, without which no number can be read.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robattr import metrics
from robattr.attributions import Attribution, Target, check_target, differentiates, frozen, gradient, heatmap, heatmaps
from robattr.data import check_images

__all__ = ["Cascade", "cascade", "layers", "randomized", "shuffled"]


@dataclass(frozen=True, eq=False)
class Cascade:
    """How alike maps of a network and of ever more randomized copies are; stages first, then a row an image.

    Attributes:
        stages: names of the layers that each stage randomizes in addition, the last layers first. After the last stage
            no layer is as it was.
        rank_correlation: [S, N]; Spearman's, of the heatmaps.
        topk_intersection: [S, N]; share of the k largest pixels that both have.
        ssim: [S, N]; structural similarity of the heatmaps, each divided by its maximum.
        maps: [N, H, W]; heatmaps of the network without any layer as it was, with sum 1.
    """

    stages: tuple[tuple[str, ...], ...]
    rank_correlation: Tensor
    topk_intersection: Tensor
    ssim: Tensor
    maps: Tensor


def layers(model: nn.Module, x: Tensor) -> list[str]:
    """Modules that own parameters, by name, in the order in which the model calls them for the images x.

    One that is never called itself, as a part of an attention layer, is where the module is that holds it.

    Raises:
        ValueError: the model has no parameters.
    """
    model = frozen(model)
    place: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():

        def see(module: nn.Module, args: object, name: str = name) -> None:
            place.setdefault(name, len(place))

        handles.append(module.register_forward_pre_hook(see))
    try:
        with torch.no_grad():
            model(x[:1])
    finally:
        for handle in handles:
            handle.remove()

    def first(name: str) -> int:
        while name not in place and name:
            name = name.rpartition(".")[0]
        return place.get(name, 0)

    found = [name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None]
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameters; there is nothing to randomize")
    return sorted(found, key=first)


@differentiates
def randomized(model: nn.Module, names: Iterable[str], *, seed: int = 0) -> nn.Module:
    """A copy in which the values of the named modules' own parameters have changed places at random.

    Each tensor keeps its values, so its scale, and loses what it has learned. The order depends on the seed and on the
    parameter's name, not on what else is randomized; a tensor of equal values stays as it is.

    Args:
        model: in evaluation mode; it is left alone.
        names: of modules, as :func:`layers` gives them.
        seed: of the places.
    """
    model = frozen(model)
    for name in names:
        for short, parameter in model.get_submodule(name).named_parameters(recurse=False):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name}.{short}".encode(), seed))
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            with torch.no_grad():
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


@differentiates
def cascade(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    k: int,
    attribution: Attribution = gradient,
    stages: int = 8,
    seed: int = 0,
    max_batch: int = 64,
) -> Cascade:
    """Randomize a network from its last layer to its first, and compare its maps with those that it had.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1], at least 7 x 7 pixels.
        target: class explained of each image, int64 [N], or one int for all; the same at every stage.
        k: number of top pixels.
        attribution: a method of :mod:`robattr.attributions`; bind options with ``functools.partial``.
        stages: into how many groups of about equal size the layers are put; >= 1. A network of fewer has fewer.
        seed: see :func:`randomized`.
        max_batch: largest number of images in one pass.

    Raises:
        ValueError: an argument is not what is accepted, or a randomized network has no finite logits.
    """
    check_images(x)
    metrics.check_maps_size(x)
    labels = check_target(x, target)
    if stages < 1:
        raise ValueError(f"stages is {stages}; accepted is at least 1")
    names = layers(model, x)[::-1]
    count = min(stages, len(names))
    cuts = [round(i * len(names) / count) for i in range(count + 1)]
    groups = tuple(tuple(names[a:b]) for a, b in itertools.pairwise(cuts))

    maps = partial(heatmaps, x=x, labels=labels, attribution=attribution, max_batch=max_batch)
    before = maps(frozen(model))
    after = before
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    network: nn.Module = model
    for group in groups:
        network = randomized(network, group, seed=seed)
        after = maps(network)
        rows.append(
            (
                metrics.spearman(before, after),
                metrics.topk_intersection(before, after, k),
                metrics.similarity(*(heatmap(m[:, None], "max") for m in (before, after))).ssim,
            )
        )
    ranks, shares, ssim = (torch.stack(column) for column in zip(*rows, strict=True))
    return Cascade(groups, ranks, shares, ssim, after)


def shuffled(heatmaps: Tensor, *, seed: int = 0) -> Tensor:
    """Each map with its pixels in other places: the same values, and nothing of where they were.

    Args:
        heatmaps: [N, H, W].
        seed: of the places; every map has its own, which depends on the seed and on the map alone.
    """
    if heatmaps.ndim != 3:
        raise ValueError(f"heatmaps have shape {tuple(heatmaps.shape)}; accepted are maps [N, H, W]")
    moved = []
    for each, generator in zip(heatmaps, metrics.generators_of(heatmaps, seed), strict=True):
        order = torch.randperm(each.numel(), generator=generator).to(each.device)
        moved.append(each.flatten()[order].view_as(each))
    return torch.stack(moved)
