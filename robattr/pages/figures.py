"""Figures of the book. Each function takes results and returns a matplotlib figure; words come from the caller.

Colors are those of Okabe and Ito, which readers with any common color vision tell apart; lines differ in their marker
as well. Images carry no axes, because a pixel position is not a measurement; curves have units on both axes.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image
from scipy import special
from torch import Tensor

from robattr import smoothing
from robattr.studies import certification
from robattr.studies.alignment import Record, Spread
from robattr.studies.experiments import FragilityResult, Interval, interval
from robattr.studies.networks import Record as NetworkRecord

__all__ = [
    "CERTIFICATES",
    "COLORS",
    "METHODS",
    "Panel",
    "Published",
    "agreement",
    "bound_scatter",
    "bound_text",
    "certificate_curves",
    "certificate_explorer",
    "certificate_tables",
    "certificate_text",
    "certified_and_attacked",
    "cross_table",
    "curves_of",
    "distributions",
    "feature_bars",
    "fragility_curves",
    "fragility_table",
    "histories",
    "interval_curves",
    "interval_text",
    "map_grid",
    "network_scatter",
    "objective_dots",
    "objective_table",
    "pictures",
    "population",
    "rank_table",
    "rescaling",
    "sample_bounds",
    "slider",
    "spread_text",
    "two_balls",
]

COLORS = {
    "top-k": "#D55E00",
    "mass-center": "#0072B2",
    "random-sign": "#555555",
    "targeted": "#009E73",
    "one-step": "#D55E00",
    "iterated": "#0072B2",
    "cross-entropy": "#555555",
    "hessian": "#E69F00",
    "l2": "#56B4E9",
    "cosine": "#CC79A7",
    "l2+cosine": "#0072B2",
    "attribution-adversary": "#009E73",
    "adversarial-training": "#D55E00",
    "ball": "#009E73",
    "tight": "#0072B2",
    "gaussian": "#D55E00",
    "dimension-free": "#555555",
    "Hoeffding": "#E69F00",
    "betting": "#0072B2",
}
_MARKERS = {
    "top-k": "o",
    "mass-center": "s",
    "random-sign": "^",
    "targeted": "D",
    "one-step": "o",
    "iterated": "s",
    "cross-entropy": "o",
    "hessian": "s",
    "l2": "v",
    "cosine": "^",
    "l2+cosine": "D",
    "attribution-adversary": "P",
    "adversarial-training": "X",
    "dimension-free": "o",
    "Hoeffding": "s",
    "betting": "D",
}
# Certificates are drawn as curves of a formula, without markers; they differ in their dashes as well.
_DASHES = {"ball": (0, (1, 1.5)), "tight": "-", "gaussian": (0, (5, 1.5))}
CERTIFICATES = {
    "ball": "uniform noise, ball",
    "tight": "uniform noise, tight",
    "gaussian": "Gaussian noise of the same variance, tight",
}
METHODS = {
    "gradient": "gradient",
    "input_x_gradient": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "smoothgrad": "SmoothGrad",
    "deeplift": "DeepLIFT",
    "lrp": "LRP",
    "deep_taylor": "deep Taylor",
    "guided_backpropagation": "guided backpropagation",
}
"""Attribution methods, as they are written in figures and tables."""
_MAP = "inferno"  # perceptually uniform, and readable without color

Numbers = NDArray[np.float64]
Curve = Mapping[float, float]
"""Epsilon in 1/255 -> value."""
AttackCurves = Mapping[str, Mapping[str, Mapping[float, Interval]]]
"""A quantity of :data:`QUANTITIES` -> attack -> epsilon in 1/255 -> mean."""


@dataclass(frozen=True)
class Panel:
    """One picture: an image [C, H, W] in [0, 1] or a map [H, W], with the line above it.

    Attributes:
        picture: what is drawn.
        title: short; may have line breaks.
        region: (top, left, bottom, right) in pixels to outline, or None.
    """

    picture: Tensor
    title: str = ""
    region: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Published:
    """Values of another source to draw beside ours: (attack, quantity) -> curve, and how the legend names them."""

    label: str
    curves: Mapping[tuple[str, str], Curve]

    @classmethod
    def read(cls, path: Path | str, attribution: str, label: str) -> Published:
        """The curves of one attribution method from a file of ``results/literature``.

        Raises:
            ValueError: the file has no such method; those that it has are named.
        """
        found = json.loads(Path(path).read_text(encoding="utf-8"))["curves"]
        if attribution not in found:
            raise ValueError(f"{path} has no values for {attribution!r}; it has {', '.join(found)}")
        curves = {
            (attack, quantity): {float(epsilon): value for epsilon, value in curve.items()}
            for attack, quantities in found[attribution].items()
            for quantity, curve in quantities.items()
        }
        return cls(label, curves)


def pictures(rows: Sequence[Sequence[Panel]], *, title: str = "", size: float = 2.1) -> Figure:
    """Panels in rows. Maps are shown up to their 99.5th percentile: a few pixels would leave the rest black.

    Args:
        rows: the panels; every row has as many.
        title: the finding, and how many images there are behind it.
        size: width of a panel in inches.
    """
    columns = len(rows[0])
    if any(len(row) != columns for row in rows):
        raise ValueError(f"rows have {sorted({len(row) for row in rows})} panels; every row takes as many")
    lines = max(panel.title.count("\n") + 1 for row in rows for panel in row)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(size * columns, (size + 0.19 * lines) * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for i, row in enumerate(rows):
        for ax, panel in zip(axes[i], row, strict=True):
            _draw(ax, panel)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def _draw(ax: Axes, panel: Panel) -> None:
    picture = panel.picture.detach().cpu()
    if picture.ndim == 3:
        ax.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    else:
        ax.imshow(picture.numpy(), cmap=_MAP, vmin=0, vmax=_ceiling(picture))
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(panel.title, fontsize=9)
    if panel.region is not None:
        top, left, bottom, right = panel.region
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="#56B4E9", lw=1.8)
        ax.add_patch(frame)


def _ceiling(heat: Tensor) -> float:
    top = float(np.quantile(heat.numpy(), 0.995))
    return top if top > 0 else max(float(heat.max()), 1e-30)


def map_grid(
    images: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str], *, title: str = "", columns: int = 4
) -> Figure:
    """For each image [N, C, H, W] the photograph, then its map [N, H, W] by each method, wrapped after ``columns``."""
    rows = []
    for i, name_of_image in enumerate(titles):
        panels = [Panel(images[i], name_of_image), *(Panel(heat[i], name) for name, heat in maps.items())]
        panels += [Panel(torch.ones_like(images[i][:1]))] * (-len(panels) % columns)
        rows += [panels[j : j + columns] for j in range(0, len(panels), columns)]
    return pictures(rows, title=title)


def agreement(names: Sequence[str], values: Mapping[tuple[str, str], Interval], *, title: str, label: str) -> Figure:
    """A symmetric table of means in [0, 1] with half the length of their intervals, as a heat map.

    Args:
        names: of the rows and columns.
        values: for each unordered pair (i, j) with i before j in ``names``.
        title: the finding.
        label: of the color bar, with its unit.
    """
    n = len(names)
    table = np.full((n, n), np.nan)
    side = 0.95 * n
    figure, ax = plt.subplots(figsize=(side + 1.6, side * 0.8 + 0.9), layout="constrained")
    for i in range(n):
        for j in range(i):
            found = values[names[j], names[i]]
            table[i, j] = found.mean
            half = (found.high - found.low) / 2
            color = "white" if found.mean < 0.6 else "black"
            ax.text(j, i, f"{found.mean:.2f}\n± {half:.2f}", ha="center", va="center", fontsize=8, color=color)
    shown = ax.imshow(table[1:, :-1], cmap="viridis", vmin=0, vmax=1, extent=(-0.5, n - 1.5, n - 0.5, 0.5))
    ax.set_xticks(range(n - 1), names[:-1], rotation=30, ha="right", fontsize=9)
    ax.set_yticks(range(1, n), names[1:], fontsize=9)
    ax.spines[:].set_visible(False)
    figure.colorbar(shown, ax=ax, label=label, shrink=0.85)
    ax.set_title(title, fontsize=11)
    return _closed(figure)


def interval_curves(
    panels: Mapping[str, Mapping[str, Mapping[float, Interval]]], *, title: str, label: str = "epsilon in 1/255"
) -> Figure:
    """Means with their intervals over epsilon: a panel a quantity, a line an attack.

    Args:
        panels: quantity with its unit -> attack -> epsilon -> mean and interval.
        title: the finding, with the number of images.
        label: of the horizontal axis, which is logarithmic with base 2.
    """
    n = len(panels)
    figure, axes = plt.subplots(1, n, figsize=(3.3 * n, 3.6), squeeze=False, layout="constrained")
    for ax, (quantity, lines) in zip(axes[0], panels.items(), strict=True):
        for i, (name, points) in enumerate(lines.items()):
            x = sorted(points)
            found = [points[e] for e in x]
            below, above = ([abs(end - f.mean) for end, f in zip(ends, found, strict=True)] for ends in (
                [f.low for f in found], [f.high for f in found],
            ))  # fmt: skip
            ax.errorbar(
                np.array(x) * 2 ** (0.03 * (i - (len(lines) - 1) / 2)), [f.mean for f in found], yerr=[below, above],
                color=COLORS[name], marker=_MARKERS[name], ms=5, lw=1.6, capsize=3, label=name,
            )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{e:g}" for e in x])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(label)
        ax.set_ylabel(quantity)
        ax.set_ylim(
            *((-0.02, 1.02) if all(0 <= f.high <= 1 for p in lines.values() for f in p.values()) else (None, None))
        )
        _tidy(ax)
    axes[0][0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def cross_table(
    values: Mapping[str, Mapping[str, Interval]], higher: Mapping[str, bool], names: Sequence[str], *, title: str
) -> Figure:
    """A heat map of measures by training objectives with every number and half the length of its interval.

    Colors are the place within a measure: the best of it dark blue, the worst white, so measures with different units
    can stand below each other. Measures are the rows, because their names are long.

    Args:
        values: measure with its unit -> objective -> mean and interval; a cell without a value stays empty.
        higher: measure -> whether more is better.
        names: of the objectives, in order.
        title: the finding.
    """
    measures = list(values)
    place = np.full((len(measures), len(names)), np.nan)
    for i, measure in enumerate(measures):
        there = {j: values[measure][name].mean for j, name in enumerate(names) if name in values[measure]}
        low, high = min(there.values(), default=0.0), max(there.values(), default=1.0)
        for j, value in there.items():
            share = (value - low) / (high - low) if high > low else 0.5
            place[i, j] = share if higher[measure] else 1 - share
    figure, ax = plt.subplots(figsize=(1.0 * len(names) + 2.6, 0.52 * len(measures) + 1.8), layout="constrained")
    shown = ax.imshow(place, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for i, measure in enumerate(measures):
        for j, name in enumerate(names):
            if (found := values[measure].get(name)) is not None:
                half = f"\n± {(found.high - found.low) / 2:.2g}" if found.n > 1 else ""
                color = "white" if place[i, j] > 0.6 else "black"
                ax.text(j, i, f"{found.mean:.3g}{half}", ha="center", va="center", fontsize=8, color=color)
    labels = [f"{measure} {'↑' if higher[measure] else '↓'}" for measure in measures]
    ax.set_yticks(range(len(measures)), labels, fontsize=8)
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(names)), [name.replace("-", "-\n") for name in names], fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=ax, shrink=0.6, ticks=[0, 1])
    bar.ax.set_ylim(0, 1)
    bar.ax.set_yticklabels(["worst", "best"], fontsize=8)
    bar.set_label("place within the measure", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def rank_table(names: Sequence[str], values: Mapping[tuple[str, str], tuple[float, int]], *, title: str) -> Figure:
    """Rank correlations of every two measures as a heat map; empty where too few objectives have both.

    Args:
        names: of the measures.
        values: for unordered pairs, the correlation and the number of objectives.
        title: the finding.
    """
    n = len(names)
    table = np.full((n, n), np.nan)
    figure, ax = plt.subplots(figsize=(0.62 * n + 2.6, 0.5 * n + 2.0), layout="constrained")
    for (one, two), (rho, _) in values.items():
        j, i = sorted((names.index(one), names.index(two)))
        table[i, j] = rho
        ax.text(j, i, f"{rho:.2f}", ha="center", va="center", fontsize=8, color="white" if abs(rho) > 0.65 else "black")
    shown = ax.imshow(table[1:, :-1], cmap="RdBu", vmin=-1, vmax=1, extent=(-0.5, n - 1.5, n - 0.5, 0.5), aspect="auto")
    ax.set_xticks(range(n - 1), names[:-1], rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(1, n), names[1:], fontsize=8)
    ax.spines[:].set_visible(False)
    figure.colorbar(shown, ax=ax, label="Spearman's rank correlation", shrink=0.85)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


QUANTITIES = {
    "topk_intersection": "top-{k} intersection (fraction)",
    "rank_correlation": "rank correlation (Spearman)",
    "center_shift": "center shift (pixels)",
}


def curves_of(results: Sequence[FragilityResult]) -> AttackCurves:
    """Experiments that differ in attack and epsilon, as :func:`fragility_curves` takes them, with 95 % intervals."""
    attacks = dict.fromkeys(result.config.attack for result in results)
    return {
        quantity: {
            attack: {r.config.epsilon: interval(r.values(quantity)) for r in results if r.config.attack == attack}
            for attack in attacks
        }
        for quantity in QUANTITIES
    }


def fragility_curves(
    rows: Mapping[str, AttackCurves],
    *,
    k: int,
    published: Mapping[str, Published] | None = None,
    title: str = "",
) -> Figure:
    """Similarity of clean and attacked maps against epsilon: a row a method, a panel a quantity, a line an attack.

    Lines of the same attack are moved apart a little on the horizontal axis so that their bars can be seen. Panels of
    one quantity share their axis.

    Args:
        rows: by attribution method, which names its row where there are several.
        k: number of top pixels.
        published: values of another source, by method, drawn hollow and dashed.
        title: the finding.
    """
    published = published or {}
    figure, axes = plt.subplots(
        len(rows), len(QUANTITIES), figsize=(9.2, 4.1 if len(rows) == 1 else 1.1 + 2.2 * len(rows)), squeeze=False,
        sharex=True, sharey="col", layout="constrained",
    )  # fmt: skip
    attacks = list(next(iter(next(iter(rows.values())).values())))
    epsilons: set[float] = set()
    lowest = dict.fromkeys(QUANTITIES, 0.0)
    for of_method, (method, curves) in zip(axes, rows.items(), strict=True):
        for ax, (quantity, label) in zip(of_method, QUANTITIES.items(), strict=True):
            for j, attack in enumerate(attacks):
                points = curves[quantity][attack]
                x = np.array(sorted(points))
                found = [points[e] for e in x]
                mean = np.array([f.mean for f in found])
                bars = [mean - [f.low for f in found], np.array([f.high for f in found]) - mean]
                shifted = x * (1 + 0.035 * (j - (len(attacks) - 1) / 2))
                style: dict[str, Any] = {"color": COLORS[attack], "marker": _MARKERS[attack], "ms": 5, "lw": 1.6}
                ax.errorbar(shifted, mean, yerr=np.maximum(bars, 0), capsize=2.5, label=attack, **style)
                epsilons |= set(points)
                lowest[quantity] = min([lowest[quantity], *(f.low for f in found)])
                if method in published and (other := published[method].curves.get((attack, quantity))):
                    style |= {"lw": 1.0, "ls": "--", "markerfacecolor": "none", "alpha": 0.75}
                    ax.plot(list(other), list(other.values()), label=f"{attack}, {published[method].label}", **style)
                    epsilons |= set(other)
            _tidy(ax)
            ax.set_ylabel(label.format(k=k) if len(rows) == 1 else "")
        if len(rows) > 1:
            of_method[0].set_ylabel(METHODS.get(method, method), fontsize=11)
    if len(rows) > 1:
        for ax, label in zip(axes[0], QUANTITIES.values(), strict=True):
            ax.set_title(label.format(k=k), fontsize=10)
    for ax, quantity in zip(axes[-1], QUANTITIES, strict=True):
        ax.set_ylim(bottom=1.1 * lowest[quantity], top=None if quantity == "center_shift" else 1.02)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(epsilons), [f"{tick:g}" for tick in sorted(epsilons)])
        ax.minorticks_off()
        ax.set_xlabel("epsilon (1/255)")
    _legend_of_attacks(figure, axes[0][0], attacks)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def fragility_table(results: Sequence[FragilityResult]) -> str:
    """Markdown: what became of the images, then a line for each experiment with means and 95 % bootstrap intervals."""
    head = ["attack", "ε (1/255)", "prediction changed"]
    lines = [[*head, *(label.format(k=results[0].config.k) for label in QUANTITIES.values())]]
    lines.append(["---"] * len(lines[0]))
    for r in results:
        cells = [r.config.attack, f"{r.config.epsilon:g}", f"{r.failed} of {len(r.rows)}"]
        lines.append([*cells, *(interval_text(interval(r.values(q))) for q in QUANTITIES)])
    first = results[0]
    people = population(first.config.dataset, first.started, first.wrong)
    return people + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def population(dataset: str, started: int, wrong: int) -> str:
    """One sentence: how many images of a data set there were, and how many were left out and why."""
    return (
        f"Started from {started} images of `{dataset.partition(':')[0]}`; {wrong} left out because the prediction was "
        f"wrong; {started - wrong} remain."
    )


def interval_text(found: Interval) -> str:
    """Mean and interval as text, with two decimals below ten and one from there on."""
    digits = 1 if found.high >= 10 else 2
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def rescaling(factors: Sequence[float], l2: Sequence[float], cosine: Sequence[float], *, title: str) -> Figure:
    """The two criteria of one network against the factor that its last layer is multiplied by, both axes logarithmic.

    Args:
        factors: c, > 0.
        l2: mean ``||g - g'||^2``, in squared logit per unit of pixel intensity.
        cosine: mean ``(1 - cos(g, g')) / 2``.
        title: the finding.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    ax.plot(factors, l2, color=COLORS["l2"], marker=_MARKERS["l2"], label="l2 criterion (squared logit / intensity)")
    ax.plot(factors, cosine, color=COLORS["cosine"], marker=_MARKERS["cosine"], label="cosine criterion (no unit)")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("factor c of the last layer")
    ax.set_ylabel("criterion, mean over points")
    _tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    ax.set_title(title, fontsize=11)
    return _closed(figure)


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
        _tidy(ax)
    axes[0][0].set_ylabel(vertical)
    axes[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


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
                x, y, s=42, color=COLORS[name], marker=_MARKERS[name], label=name, edgecolors="white", linewidths=0.5
            )
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(horizontal)
        ax.set_ylabel(vertical)
        _tidy(ax)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def feature_bars(
    names: Sequence[str], columns: Mapping[str, Mapping[str, Sequence[float]]], *, shown: int = 10, title: str
) -> Figure:
    """Explanations of one row of a table, before and after an attack: a panel a network, a pair of bars a feature.

    Args:
        names: of the features.
        columns: network -> which explanation (before, then after) -> a number a feature.
        shown: how many features, the largest before the attack, those of the first network in every panel.
        title: the finding.
    """
    first = np.asarray(next(iter(next(iter(columns.values())).values())))
    rows = np.argsort(-first, kind="stable")[:shown]
    figure, axes = plt.subplots(
        1, len(columns), figsize=(2.2 + 2.9 * len(columns), 0.3 * len(rows) + 1.5), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, (network, explanations) in zip(axes[0], columns.items(), strict=True):
        for j, (when, values) in enumerate(explanations.items()):
            ax.barh(
                np.arange(len(rows)) + 0.38 * (j - 0.5), np.asarray(values)[rows], height=0.36,
                color=(COLORS["dimension-free"], COLORS["gaussian"])[j % 2], hatch=("", "///")[j % 2],
                edgecolor="white", label=when,
            )  # fmt: skip
        ax.set_yticks(range(len(rows)), [names[i] for i in rows], fontsize=9)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_title(network, fontsize=10)
        ax.set_xlabel("share of the map")
        _tidy(ax, "x")
    axes[0][-1].legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


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
        low, high = ax.get_xlim()
        # Within a factor of five there may be no 1, 2 or 5.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6) if high > 5 * low else MaxNLocator(3))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="x", labelsize=8)
        ax.set_yticks(range(1, len(names) + 1), names if i == 0 else [""] * len(names), fontsize=9)
        ax.set_xlabel(label, fontsize=9)
        _tidy(ax, "x")
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


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
                [found.mean], [row], s=60, color=COLORS[name], marker=_MARKERS[name], edgecolors="black", linewidths=0.6
            )
        ax.set_yticks(range(len(names)), names if i == 0 else [""] * len(names), fontsize=9)
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(label, fontsize=9)
        _tidy(ax, "x")
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def histories(records: Sequence[Record], *, title: str) -> Figure:
    """Training loss and alignment against epochs, and one against the other; a line a run, colored by objective.

    The alignment is the mean cosine of the gradients at a validation image and at one with uniform noise of 8/255.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.9), layout="constrained")
    named: set[str] = set()
    for record in records:
        name = record.training.objective
        style: dict[str, Any] = {"color": COLORS[name], "lw": 1.3, "alpha": 0.9}
        label = None if name in named else name
        named.add(name)
        epochs = [epoch.epoch for epoch in record.history]
        axes[0].plot(epochs, [epoch.cross_entropy for epoch in record.history], label=label, **style)
        measured = [(epoch.epoch, epoch.alignment) for epoch in record.history if epoch.alignment is not None]
        style |= {"marker": _MARKERS[name], "markersize": 3.5}
        axes[1].plot(*zip(*measured, strict=True), **style)
        losses = {epoch.epoch: epoch.cross_entropy for epoch in record.history}
        axes[2].plot([losses[epoch] for epoch, _ in measured], [value for _, value in measured], **style)
    axes[0].set_ylabel("training cross-entropy (nats)")
    axes[1].set_ylabel("mean cosine of gradients")
    for ax, axis in zip(axes, ("epoch", "epoch", "training cross-entropy (nats), falling"), strict=True):
        ax.set_xlabel(axis)
        _tidy(ax)
    axes[2].invert_xaxis()  # as in training, the loss falls to the right
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


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


def two_balls(mean_norm: float, epsilon: float, *, title: str) -> Figure:
    """Two discs of radius 1 and the vectors of the worst field between them: why an overlap bounds an angle.

    Left: what the discs share and what each has alone. Right: the means of the worst field, in the plane; the dotted
    circles are where v, given h, and where h', given v, may lie, the dashed arc is the longest v.

    Args:
        mean_norm: H, as a share of the bound M.
        epsilon: how far the discs are apart, in radii; something has to be certified there.
        title: the finding.
    """
    field = smoothing.worst_field(mean_norm, 2, 1.0, epsilon)
    p = float(smoothing.overlap(2, 1.0, epsilon))
    middle, here, there = ((at, 0.0) for at in (epsilon / 2, epsilon / 2 - 1, epsilon / 2 + 1))  # one in each region
    c, a, b = field(torch.tensor([middle, here, there], dtype=torch.float64)).numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.9), layout="compressed")
    _discs(left, epsilon, f"both\n{1 - p:.2f} of a disc\nmean c")
    left.annotate("x alone\nmean a", here, (-1.35, 1.0), ha="center", fontsize=9, arrowprops=_LEADER)
    left.annotate("x + δ alone\nmean b", there, (epsilon + 1.35, 1.0), ha="center", fontsize=9, arrowprops=_LEADER)

    v = (1 - p) * c
    h, moved = v + p * a, v + p * b
    first, second = COLORS["hessian"], COLORS["gaussian"]
    right.add_patch(Circle(tuple(h), p, fill=False, edgecolor=first, ls=":", lw=1.3))
    right.add_patch(Circle(tuple(v), p, fill=False, edgecolor=second, ls=":", lw=1.3))
    longest, angle = 2 * (1 - p), float(np.degrees(np.arccos(field.cosine)))
    right.add_patch(Arc((0, 0), longest, longest, theta1=-15, theta2=75, color=COLORS["tight"], ls="--", lw=1.2))
    zero = np.zeros(2)
    _arrow(right, zero, h, "h", "black", (8, -3))
    _arrow(right, v, h, "p a", first, (7, 3), middle=True)
    _arrow(right, v, moved, "p b", second, (-6, -10), middle=True)
    _arrow(right, zero, v, "v = (1 - p) c", COLORS["tight"], (12, 12))
    _arrow(right, zero, moved, "h' = v + p b", "black", (-8, 6))
    right.add_patch(Arc((0, 0), 0.36, 0.36, theta1=0, theta2=angle, color="black", lw=1))
    at = np.radians(0.72 * angle)
    right.text(0.21 * np.cos(at), 0.21 * np.sin(at), f"{angle:.0f}°", va="center", fontsize=9)
    right.set_xlim(-0.1, 1.35)
    right.set_ylim(-p - 0.05, v[1] + p + 0.1)
    for ax, along, across in (
        (left, "along δ (radii)", "across δ (radii)"),
        (right, "component along h (units of M)", "component across h (units of M)"),
    ):
        ax.set_xlabel(along)
        ax.set_ylabel(across)
        ax.set_aspect("equal")
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


_LEADER = {"arrowstyle": "-", "lw": 0.8}


def _discs(ax: Axes, epsilon: float, shared: str) -> None:
    """Two discs of radius 1 around x and x + delta, with what they share in a color of its own."""
    for at, color in ((0.0, COLORS["hessian"]), (epsilon, COLORS["gaussian"])):
        ax.add_patch(Circle((at, 0), 1, facecolor=color, edgecolor="none", alpha=0.55))
    both = Circle((0, 0), 1, facecolor="#D6E6F2", edgecolor="none")
    ax.add_patch(both)
    both.set_clip_path(Circle((epsilon, 0), 1, transform=ax.transData))
    for at, name in ((0.0, "x"), (epsilon, "x + δ")):
        ax.add_patch(Circle((at, 0), 1, fill=False, edgecolor="black", lw=1))
        ax.plot(at, 0, "o", color="black", markersize=4)
        ax.text(at, -0.15, name, ha="center", va="center")
    _arrow(ax, np.zeros(2), np.array([epsilon, 0.0]), "", "black", (0, 0))
    ax.text(epsilon / 2, 0.48, shared, ha="center", va="center", fontsize=9)
    ax.set_xlim(-1.75, epsilon + 1.75)
    ax.set_ylim(-1.1, 1.4)


def _arrow(
    ax: Axes, start: Numbers, end: Numbers, name: str, color: str, offset: tuple[int, int], *, middle: bool = False
) -> None:
    """An arrow with its name at the end, or beside its middle."""
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13}
    ax.annotate("", tuple(end), tuple(start), arrowprops=style)
    at = (start + end) / 2 if middle else end
    side: Literal["left", "right"] = "right" if offset[0] < 0 else "left"
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    ax.annotate(name, tuple(at), offset, textcoords="offset points", fontsize=9, ha=side, bbox=ground)


def certificate_curves(dimension: int, mean_norms: Sequence[float], *, title: str, points: int = 60) -> Figure:
    """Certified cosine against epsilon / r, a panel a mean length, a line a certificate; and p, the share not shared.

    Args:
        dimension: number of values of an image.
        mean_norms: H / M, a panel each.
        title: the finding.
        points: of each curve.
    """
    law = smoothing.Gaussian.matching(1.0, dimension)
    lengths = np.asarray(mean_norms, dtype=np.float64)
    # Where the certificates end: p = H / 2, and 2 Phi(epsilon / sigma) - 1 = H.
    uniform = 2 * np.sqrt(special.betaincinv(0.5, (dimension + 1) / 2, lengths / 2))
    ends = {"ball": uniform, "tight": uniform, "gaussian": law.sigma * special.ndtri((1 + lengths) / 2)}
    epsilon = np.linspace(0, 1.05 * ends["gaussian"].max(), points)
    p = smoothing.overlap(dimension, 1.0, epsilon)
    h = lengths[:, None]
    found = {
        "ball": smoothing.certified_cosine(h, p, method="ball"),
        "tight": smoothing.certified_cosine(h, p),
        "gaussian": law.certified_cosine(h, dimension, epsilon),
    }
    n = len(lengths)
    figure, axes = plt.subplots(
        1, n, figsize=(3.1 * n, 3.9), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for i, ax in enumerate(axes[0]):
        for name, values in found.items():
            fine = values[i] > -1
            x, y = np.append(epsilon[fine], ends[name][i]), np.append(values[i][fine], 0)
            ax.plot(x, y, color=COLORS[name], ls=_DASHES[name], lw=2, label=CERTIFICATES[name])
        ax.plot(epsilon, p, color="#888888", lw=1, label="p, share of a ball outside of the other")
        ax.set_title(f"H = {lengths[i]:g} M", fontsize=10)
        ax.set_xlabel("epsilon / r")
        ax.set_ylim(0, 1.02)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        _tidy(ax)
    axes[0][0].set_ylabel("certified cosine; p (no unit)")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def certified_and_attacked(records: Mapping[str, NetworkRecord], *, title: str) -> Figure:
    """What is certified and what attacks reach, over epsilon: a panel a law of the noise, a color a network.

    Args:
        records: training objective -> record of a certification with attacks, all at the same radius and epsilons.
        title: the finding.
    """
    config = next(iter(records.values())).config
    radius, tried = config.attack_radius, np.array(config.epsilons)
    grid = np.geomspace(tried.min() / 2, tried.max(), 60)
    n = len(config.laws)
    figure, axes = plt.subplots(1, n, figsize=(4.4 * n, 4.2), sharey=True, squeeze=False, layout="constrained")
    for ax, law in zip(axes[0], config.laws, strict=True):
        for name, record in records.items():
            color = COLORS[name]
            bound = np.median(certification.certified(record, law, radius, grid), axis=0)
            bound[bound <= -1] = np.nan
            ax.plot(grid, bound, color=color, lw=1.8, label=f"{name}: certified")
            lowest = np.array(
                [
                    np.min(
                        [record.values[f"attacked/{law}/{radius:g}/{e:g}/{a}"] for a in certification.ADVERSARIES],
                        axis=0,
                    )
                    for e in tried
                ]
            )
            low, middle, high = np.percentile(lowest, [25, 50, 75], axis=1)
            ax.fill_between(tried, low, high, color=color, alpha=0.15, lw=0)
            ax.plot(tried, middle, color=color, lw=1.2, ls="--", marker=_MARKERS[name], ms=5, label=f"{name}: attacked")
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(f"epsilon (l2), {'Gaussian' if law == 'gaussian' else law} noise")
        ax.set_ylim(-0.02, 1.02)
        _tidy(ax)
    axes[0][0].set_ylabel("cosine of the smoothed gradients")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(records), fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=11)
    return _closed(figure)


def sample_bounds(samples: Sequence[int], gaps: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """How far lower confidence bounds on a length lie below its estimate, against the number of samples.

    Args:
        samples: how many, > 0.
        gaps: bound -> estimate less bound, > 0, at each number of samples.
        title: the finding, with the image, the noise and the probability of failure.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    for name, values in gaps.items():
        ax.plot(samples, values, color=COLORS[name], marker=_MARKERS[name], label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("samples")
    ax.set_ylabel("estimate less lower bound (units of M)")
    _tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    ax.set_title(title, fontsize=11)
    return _closed(figure)


def _legend_of_attacks(figure: Figure, ax: Axes, attacks: Sequence[str]) -> None:
    """A column an attack below the panels, ours above the values of another source, ``<attack>, <source>``."""
    handles, names = ax.get_legend_handles_labels()
    # A legend fills its columns from the top.
    order = sorted(range(len(names)), key=lambda i: (attacks.index(names[i].split(",")[0]), "," in names[i]))
    figure.legend(
        [handles[i] for i in order], [names[i] for i in order], loc="outside lower center", ncols=len(attacks),
        fontsize=9, frameon=False,
    )  # fmt: skip


def _tidy(ax: Axes, axis: Literal["x", "y", "both"] = "both") -> None:
    ax.grid(alpha=0.25, axis=axis)
    ax.spines[["top", "right"]].set_visible(False)


def slider(frames: Sequence[tuple[str, Tensor, Tensor]], *, title: str, label: str) -> str:
    """HTML of an interactive figure: a slider moves through pairs of a photograph and its map.

    The page's own copy of plotly.js draws it, so it works without a network.

    Args:
        frames: (position of the slider, image [C, H, W], map [H, W]).
        title: the finding.
        label: what a reader who cannot see the figure is told.
    """
    ceiling = max(_ceiling(heat.detach().cpu()) for _, _, heat in frames)
    sources = []
    for _, image, heat in frames:
        photograph = (image.detach().cpu().permute(1, 2, 0).squeeze(-1) * 255).round().to(torch.uint8).numpy()
        colors = plt.get_cmap(_MAP)(np.clip(heat.detach().cpu().numpy() / ceiling, 0, 1), bytes=True)[..., :3]
        sources.append((_encoded(photograph, "PNG"), _encoded(colors, "JPEG")))

    def placed(pair: tuple[str, str]) -> list[dict[str, Any]]:
        common = {"xref": "paper", "yref": "paper", "y": 1, "sizex": 0.49, "sizey": 1, "layer": "below"}
        return [{**common, "source": source, "x": x} for source, x in zip(pair, (0.0, 0.51), strict=True)]

    steps = [
        {"label": name, "method": "relayout", "args": [{"images": placed(pair)}]}
        for (name, _, _), pair in zip(frames, sources, strict=True)
    ]
    layout = {
        "title": {"text": title, "font": {"size": 14}},
        "images": placed(sources[0]),
        "xaxis": {"visible": False, "fixedrange": True, "range": [0, 1]},
        "yaxis": {"visible": False, "fixedrange": True, "range": [0, 1]},
        "margin": {"l": 10, "r": 10, "t": 50, "b": 10},
        "height": 430,
        "sliders": [{"active": 0, "steps": steps, "pad": {"t": 10}, "currentvalue": {"prefix": "epsilon in 1/255: "}}],
    }
    # Plotly draws axes, and with them the images, only when there is a trace.
    trace = {"type": "scatter", "x": [None], "y": [None], "showlegend": False, "hoverinfo": "skip"}
    figure = _embedded({"data": [trace], "layout": layout})
    return f'<div class="plotly-figure" role="img" aria-label="{_escaped(label)}">{figure}</div>'


# The tables of the explorer: their grids, and where they end. At a shift of 3.3 nothing is certified up to H = 0.999.
_SHIFT_STEP, _SHIFTS = 0.01, 331
_ROW_STEP, _ROWS, _COLUMNS = 0.15, 23, 41
_LONGEST = 0.999


def certificate_tables(dimensions: Sequence[int]) -> dict[str, Any]:
    """What a page needs to compute certificates without Python, as ``book/_static/certificate-explorer.js`` does.

    With z = epsilon / sigma for the Gaussian of the ball's variance, z = epsilon sqrt(d + 2) / r:

    - ``displaced``: for each dimension p / z on a grid of z. Uniform certificates are formulas in H and p.
    - ``odds``: ``log(O(z) / z^2)`` with ``O = H0^2 / (1 - H0^2)`` and ``H0 = 2 Phi(z) - 1``, where the Gaussian
      certificate ends. Hence ``t = O(z) (1 - H^2) / H^2`` is 0 at H = 1 and 1 where nothing is certified any more.
    - ``gaussian``: ``cos^2 / (1 - t)`` on a grid of z and sqrt(t). It varies little and does not vanish, so linear
      interpolation neither invents a certificate beyond t = 1 nor blurs its steep end.
    """
    shift = np.maximum(_SHIFT_STEP * np.arange(_SHIFTS), 1e-6)
    displaced = {str(d): np.round(smoothing.overlap(d, np.sqrt(d + 2), shift) / shift, 7).tolist() for d in dimensions}
    rows = np.maximum(_ROW_STEP * np.arange(_ROWS), 0.05)
    t = np.linspace(0, 1, _COLUMNS) ** 2
    # At the very end rounding decides whether there is a certificate: just before it.
    inner = np.clip(t, 1e-9, 1 - 2e-3)
    table = []
    for z in rows:
        lengths = 1 / np.sqrt(1 + inner / _odds(z))
        cosine = smoothing.certified_cosine_gaussian(lengths, z)
        table.append(np.round(np.maximum(cosine, 0) ** 2 / (1 - inner), 4).tolist())
    return {
        "step": _SHIFT_STEP,
        "displaced": displaced,
        "odds": np.round(np.log(_odds(shift) / shift**2), 7).tolist(),
        "rowStep": _ROW_STEP,
        "gaussian": table,
    }


def _odds(z: Any) -> Any:
    least = special.erf(z / np.sqrt(2))
    return least**2 / ((1 + least) * special.erfc(z / np.sqrt(2)))


def bound_text(value: float, digits: int = 3) -> str:
    """What is certified, rounded down, as a lower bound has to be; "none" for -1."""
    return "none" if value <= -1 else f"{np.floor(value * 10**digits) / 10**digits:.{digits}f}"


def certificate_text(mean_norm: float, dimension: int, radius: float, epsilon: float) -> str:
    """The certificates of one setting in words, as the explorer reads them out."""
    p = float(smoothing.overlap(dimension, radius, epsilon))
    law = smoothing.Gaussian.matching(radius, dimension)
    found = {
        "ball": smoothing.certified_cosine(mean_norm, p, method="ball"),
        "tight": smoothing.certified_cosine(mean_norm, p),
        "gaussian": law.certified_cosine(mean_norm, dimension, epsilon),
    }
    values = "; ".join(f"{CERTIFICATES[name]}: {bound_text(float(value), 2)}" for name, value in found.items())
    return f"Of each ball p = {p:.2f} lies outside of the other. Certified cosine: {values}."


def certificate_explorer(
    *,
    title: str,
    label: str,
    mean_norm: float = 0.97,
    dimension: int = 3072,
    radius: float = 1.0,
    epsilon: float = 0.01,
    dimensions: Sequence[int] = (2, 64, 784, 3072, 150_528),
) -> str:
    """HTML of an interactive figure: certified cosine against epsilon, with sliders for epsilon, r, d and H.

    The page's own copy of plotly.js draws it from tables inside, so it works without a network. The values at the
    chosen epsilon are text that screen readers announce.

    Args:
        title: the finding.
        label: what a reader who cannot see the curves is told.
        mean_norm: H / M to begin with, 0.05 to 0.999.
        dimension: one of the dimensions, to begin with.
        radius: of the ball to begin with, 0.1 to 10, in units of a [0, 1] image.
        epsilon: to begin with, 0.0001 to 3, in the same units.
        dimensions: that can be chosen.
    """
    if dimension not in dimensions:
        raise ValueError(f"dimension is {dimension}; accepted are {', '.join(map(str, dimensions))}")
    place = list(dimensions).index(dimension)
    sliders = [
        # name, label, lowest, highest, step, value, how the script reads it
        ("mean_norm", "mean resultant length H", 0.05, _LONGEST, 0.001, mean_norm, "linear"),
        ("epsilon", "ε, l2 length of the change", -4, 0.5, 0.02, np.log10(epsilon), "log"),
        ("radius", "r, radius of the ball", -1, 1, 0.05, np.log10(radius), "log"),
        ("dimension", "d, values of an image", 0, len(dimensions) - 1, 1, place, "choice"),
    ]
    controls = "".join(
        f'<label class="explorer-control"><span>{text} = <output>{shown}</output></span>'
        f'<input type="range" data-name="{name}" data-scale="{scale}" min="{low:g}" max="{high:g}" step="{step:g}" '
        f'value="{value:g}"></label>'
        for (name, text, low, high, step, value, scale), shown in zip(
            sliders, (f"{mean_norm:.3f}", f"{epsilon:.2g}", f"{radius:.2g}", f"{dimension:,}"), strict=True
        )
    )
    ticks = [10.0**k for k in range(-4, 1)]
    layout = {
        "title": {"text": title, "font": {"size": 14}},
        "xaxis": {
            "title": {"text": "ε (l2, in units of a [0, 1] image)"}, "type": "log", "range": [-4, 0.5],
            "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks], "fixedrange": True,
        },
        "yaxis": {"title": {"text": "certified cosine"}, "range": [0, 1.02], "fixedrange": True},
        "margin": {"l": 55, "r": 10, "t": 60, "b": 50},
        "legend": {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
        "height": 430,
        "dragmode": False,
    }  # fmt: skip
    dashes = {"ball": "dot", "tight": "solid", "gaussian": "dash"}
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": [None], "y": [None],
            "line": {"color": COLORS[kind], "dash": dashes[kind], "width": 2.5},
            "hovertemplate": "ε = %{x:.3g}: %{y:.2f}",
        }
        for kind, name in CERTIFICATES.items()
    ]  # fmt: skip
    tables = {**certificate_tables(dimensions), "dimensions": list(dimensions), "names": CERTIFICATES}
    return (
        f'<div class="certificate-explorer"><div class="explorer-controls">{controls}</div>'
        f'<p class="explorer-values" role="status" aria-live="polite">'
        f"{certificate_text(mean_norm, dimension, radius, epsilon)}</p>"
        f'<div class="plotly-figure" role="img" aria-label="{_escaped(label)}">'
        f"{_embedded({'data': data, 'layout': layout})}</div>"
        f"{_embedded(tables, compact=True)}</div>"
    )


def _embedded(content: Any, *, compact: bool = False) -> str:
    """JSON inside of HTML, as a script that is not run."""
    body = json.dumps(content, separators=(",", ":") if compact else None).replace("</", "<\\/")
    return f'<script type="application/json">{body}</script>'


def _encoded(pixels: np.ndarray[Any, Any], kind: Literal["PNG", "JPEG"]) -> str:
    """A data URL; lossless for photographs, whose perturbation a JPEG would smooth away."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _closed(figure: Figure) -> Figure:
    """Out of pyplot's hands, so that a notebook shows a figure once and a loop holds none in memory."""
    plt.close(figure)
    return figure
