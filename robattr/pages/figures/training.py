"""Figures of trained networks: measures by training objective, and the theory behind the objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from robattr.pages.figures.style import COLORS, MARKERS, closed, tidy
from robattr.studies.alignment import Spread
from robattr.studies.grids import Record
from robattr.studies.intervals import Interval


def rescaling(factors: Sequence[float], l2: Sequence[float], cosine: Sequence[float], *, title: str) -> Figure:
    """The two criteria of one network against the factor that its last layer is multiplied by, both axes logarithmic.

    Args:
        factors: c, > 0.
        l2: mean ``||g - g'||^2``, in squared logit per unit of pixel intensity.
        cosine: mean ``(1 - cos(g, g')) / 2``.
        title: the finding.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    ax.plot(factors, l2, color=COLORS["l2"], marker=MARKERS["l2"], label="l2 criterion ((logit / intensity)²)")
    ax.plot(factors, cosine, color=COLORS["cosine"], marker=MARKERS["cosine"], label="cosine criterion (no unit)")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("factor c of the last layer")
    ax.set_ylabel("criterion, mean over points")
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return closed(figure, title)


def bound_scatter(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    horizontal: str = "bound on (1 - cos) / 2",
    vertical: str = "measured (1 - cos) / 2",
    equal: str = "bound = distance",
) -> Figure:
    """Measured numbers against what was said of them, a point a perturbed image, a panel a name.

    Args:
        points: objective, or another name -> (what was said, what was measured), both > 0.
        title: the finding.
        horizontal: what was said.
        vertical: what was measured.
        equal: name of the diagonal, on which both are equal.
    """
    figure, axes = plt.subplots(
        1, len(points), figsize=(3.1 * len(points), 3.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    every = np.concatenate([np.concatenate([np.asarray(v) for v in pair]) for pair in points.values()])
    every = every[every > 0]
    ends = [every.min() / 1.5, every.max() * 1.5]
    for ax, (name, (said, measured)) in zip(axes[0], points.items(), strict=True):
        ax.plot(ends, ends, color="black", lw=1, label=equal)
        size = 7 if len(said) > 100 else 18
        ax.scatter(
            said, measured, s=size, color=COLORS.get(name, COLORS["tight"]), alpha=0.45, linewidths=0, rasterized=True
        )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(name, fontsize=10)
        ax.set_xlabel(horizontal)
        tidy(ax)
    axes[0][0].set_ylabel(vertical)
    axes[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    return closed(figure, title)


def network_scatter(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, horizontal: str, title: str
) -> Figure:
    """Numbers of a network against another one, a point a network, a color and marker a training objective.

    Args:
        panels: name of the vertical axis, with its unit -> objective -> pairs, one a network; the horizontal number is
            > 0 and its axis logarithmic.
        horizontal: its name.
        title: the finding, with the number of networks.
    """
    n = len(panels)
    figure, axes = plt.subplots(1, n, figsize=(3.7 * n, 4.4), squeeze=False, layout="constrained")
    for ax, (vertical, points) in zip(axes[0], panels.items(), strict=True):
        for name, pairs in points.items():
            x, y = np.array(pairs).T
            ax.scatter(
                x, y, s=42, color=COLORS[name], marker=MARKERS[name], label=name, edgecolors="white", linewidths=0.5
            )
        ax.set_xscale("log")
        _label_log(ax)
        ax.set_xlabel(horizontal)
        ax.set_ylabel(vertical)
        tidy(ax)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return closed(figure, title)


def distributions(values: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> Figure:
    """Distributions over points on a logarithmic axis: a panel a quantity, a box an objective.

    Boxes reach from the lower to the upper quartile with the median as a line, whiskers from the 5th to the 95th
    percentile.

    Args:
        values: quantity with its unit -> objective -> values > 0.
        title: the finding, with the number of points.
    """
    figure, axes = plt.subplots(1, len(values), figsize=(2.5 * len(values), 3.4), squeeze=False, layout="constrained")
    for i, (ax, (label, by)) in enumerate(zip(axes[0], values.items(), strict=True)):
        names = list(by)[::-1]
        boxes = ax.boxplot(
            [np.asarray(by[name]) for name in names], orientation="horizontal", whis=(5, 95), showfliers=False,
            patch_artist=True, widths=0.6, medianprops={"color": "black", "lw": 1.4},
        )  # fmt: skip
        for box, name in zip(boxes["boxes"], names, strict=True):
            box.set_facecolor(COLORS[name])
            box.set_alpha(0.75)
        ax.set_xscale("log")
        _label_log(ax)
        ax.tick_params(axis="x", labelsize=8)
        ax.set_yticks(range(1, len(names) + 1), names if i == 0 else [""] * len(names), fontsize=9)
        ax.set_xlabel(label, fontsize=9)
        tidy(ax, "x")
    return closed(figure, title)


def _label_log(ax: Axes) -> None:
    """Ticks of a logarithmic horizontal axis: a few with numbers, all others without, which shows that it is one."""
    low, high = ax.get_xlim()
    # Within a factor of five there may be no 1, 2 or 5; over many of them there is no room for all.
    subs = (1, 2, 5) if high < 20 * low else (1, 3)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8) if high > 5 * low else MaxNLocator(4))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_locator(LogLocator(subs=range(1, 10), numticks=100))
    ax.xaxis.set_minor_formatter(NullFormatter())


def objective_dots(values: Mapping[str, Mapping[str, Spread]], *, title: str) -> Figure:
    """Measures of trained networks: a panel a measure, a row an objective, a small mark a seed, a large one their mean.

    Args:
        values: measure with its unit -> objective -> spread over seeds.
        title: the finding, with the numbers of seeds and images.
    """
    figure, axes = plt.subplots(1, len(values), figsize=(2.7 * len(values), 3.3), squeeze=False, layout="constrained")
    for i, (ax, (label, by)) in enumerate(zip(axes[0], values.items(), strict=True)):
        names = list(by)[::-1]
        for row, name in enumerate(names):
            found = by[name]
            ax.plot([found.low, found.high], [row, row], color=COLORS[name], lw=1.5)
            ax.scatter(list(found.each.values()), [row] * len(found.each), s=14, color=COLORS[name], alpha=0.8)
            ax.scatter(
                [found.mean], [row], s=60, color=COLORS[name], marker=MARKERS[name], edgecolors="black", linewidths=0.6
            )
        ax.set_yticks(range(len(names)), names if i == 0 else [""] * len(names), fontsize=9)
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(label, fontsize=9)
        tidy(ax, "x")
    return closed(figure, title)


def effects_by_scale(
    effects: Mapping[str, Mapping[str, Mapping[str, Interval | None]]], scales: Mapping[str, str], *, title: str
) -> Figure:
    """Differences with their intervals against the scale of the runs: a panel a measure, a mark a rival.

    Args:
        effects: measure -> rival -> name of the scale -> difference; None where there is none.
        scales: how each scale is written, from the smallest to the largest.
        title: the finding.
    """
    rows = 1 if len(scales) <= 3 else 2  # names of many scales have no room in four panels beside each other
    columns = -(-len(effects) // rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=((2.55 if rows == 1 else 3.7) * columns, 3.0 * rows + 0.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax in axes.flat[len(effects) :]:
        ax.set_visible(False)
    for ax, (label, by_rival) in zip(axes.flat, effects.items(), strict=False):
        for j, (rival, found) in enumerate(by_rival.items()):
            places = [(i, found[name]) for i, name in enumerate(scales)]
            points = [(i + 0.16 * (j - (len(by_rival) - 1) / 2), each) for i, each in places if each is not None]
            x, mean = [at for at, _ in points], np.array([each.mean for _, each in points])
            bars = [mean - [each.low for _, each in points], np.array([each.high for _, each in points]) - mean]
            style = {"color": COLORS[rival], "marker": MARKERS[rival], "ms": 6, "ls": "none", "capsize": 3}
            ax.errorbar(x, mean, yerr=np.maximum(bars, 0), label=f"against {rival}", **style)
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(range(len(scales)), list(scales.values()), fontsize=9)
        ax.set_xlim(-0.5, len(scales) - 0.5)
        ax.set_title(label, fontsize=10)
        tidy(ax, "y")
    for row in axes:
        row[0].set_ylabel("l2+cosine less the rival")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False
    )
    return closed(figure, title)


def histories(records: Sequence[Record], *, title: str) -> Figure:
    """Training loss and alignment against epochs, and one against the other; a line a run, colored by objective.

    The alignment is the mean cosine of the gradients at a validation image and at one with uniform noise of 8/255.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.9), layout="constrained")
    named: set[str] = set()
    for record in records:
        name = "" if record.training is None else record.training.objective
        style: dict[str, Any] = {"color": COLORS[name], "lw": 1.3, "alpha": 0.9}
        label = None if name in named else name
        named.add(name)
        epochs = [epoch.epoch for epoch in record.history]
        axes[0].plot(epochs, [epoch.cross_entropy for epoch in record.history], **style)
        measured = [(epoch.epoch, epoch.alignment) for epoch in record.history if epoch.alignment is not None]
        style |= {"marker": MARKERS[name], "markersize": 3.5}
        axes[1].plot(*zip(*measured, strict=True), label=label, **style)
        losses = {epoch.epoch: epoch.cross_entropy for epoch in record.history}
        axes[2].plot([losses[epoch] for epoch, _ in measured], [value for _, value in measured], **style)
    axes[0].set_ylabel("training cross-entropy (nats)")
    axes[1].set_ylabel("mean cosine of gradients")
    for ax, axis in zip(axes, ("epoch", "epoch", "training cross-entropy (nats), falling"), strict=True):
        ax.set_xlabel(axis)
        tidy(ax)
    axes[2].invert_xaxis()  # as in training, the loss falls to the right
    for ax in axes[:2]:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return closed(figure, title)


def objective_table(columns: Mapping[str, Mapping[str, Spread]]) -> str:
    """Markdown: a line an objective, a column a measure; mean over seeds with the smallest and the largest run."""
    names = list(next(iter(columns.values())))
    lines = [["objective", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(spread_text(by[name]) if name in by else "" for by in columns.values())] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread_text(found: Spread, digits: int = 3) -> str:
    """Mean and range over seeds as text."""
    if len(found.each) == 1:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"
