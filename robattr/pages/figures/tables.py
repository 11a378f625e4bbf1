"""Tables drawn as heat maps, every cell with its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robattr.pages.figures.style import closed
from robattr.studies.intervals import Interval


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
    return closed(figure, title)


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
                color = "white" if place[i, j] > 0.8 else "black"
                ax.text(j, i, f"{found.mean:.3g}{half}", ha="center", va="center", fontsize=8, color=color)
            else:  # white is the worst of a measure, so what was not run looks like nothing else
                cell = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", edgecolor="#BBBBBB", lw=0)
                ax.add_patch(cell)
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
    return closed(figure, title)


def rank_table(names: Sequence[str], values: Mapping[tuple[str, str], tuple[float, int]], *, title: str) -> Figure:
    """Rank correlations of every two measures as a heat map; empty where too few objectives have both.

    Where fewer objectives have both than elsewhere, their number stands in the cell.

    Args:
        names: of the measures.
        values: for unordered pairs, the correlation and the number of objectives.
        title: the finding.
    """
    n = len(names)
    table = np.full((n, n), np.nan)
    figure, ax = plt.subplots(figsize=(0.62 * n + 2.6, 0.5 * n + 2.0), layout="constrained")
    most = max((count for _, count in values.values()), default=0)
    for (one, two), (rho, count) in values.items():
        j, i = sorted((names.index(one), names.index(two)))
        table[i, j] = rho
        text = f"{rho:.2f}" if count == most else f"{rho:.2f}\nof {count}"
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if abs(rho) > 0.65 else "black")
    shown = ax.imshow(table[1:, :-1], cmap="RdBu", vmin=-1, vmax=1, extent=(-0.5, n - 1.5, n - 0.5, 0.5), aspect="auto")
    ax.set_xticks(range(n - 1), names[:-1], rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(1, n), names[1:], fontsize=8)
    ax.spines[:].set_visible(False)
    figure.colorbar(shown, ax=ax, label="Spearman's rank correlation", shrink=0.85)
    return closed(figure, title)
