"""Figures of attacked explanations: similarity against epsilon, beside what other sources published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from robattr._text import markdown
from robattr.pages.figures.style import COLORS, MARKERS, METHODS, closed, tidy
from robattr.studies.fragility import Attacked
from robattr.studies.intervals import Interval, interval
from robattr.studies.runs import public_name

QUANTITIES = {
    "topk_intersection": "top-{k} intersection (fraction)",
    "rank_correlation": "rank correlation (Spearman)",
    "center_shift": "center shift (pixels)",
}
Curve = Mapping[float, float]
"""Epsilon in 1/255 -> value."""
AttackCurves = Mapping[str, Mapping[str, Mapping[float, Interval]]]
"""A quantity of :data:`QUANTITIES` -> attack -> epsilon in 1/255 -> mean."""


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


def curves_of(results: Sequence[Attacked]) -> AttackCurves:
    """Experiments that differ in attack and epsilon, as :func:`fragility_curves` takes them, with 95% intervals."""
    attacks = dict.fromkeys(result.attack for result in results)
    return {
        quantity: {
            attack: {r.epsilon: interval(r.values[quantity]) for r in results if r.attack == attack}
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
                style: dict[str, Any] = {"color": COLORS[attack], "marker": MARKERS[attack], "ms": 5, "lw": 1.6}
                ax.errorbar(shifted, mean, yerr=np.maximum(bars, 0), capsize=2.5, label=attack, **style)
                epsilons |= set(points)
                lowest[quantity] = min([lowest[quantity], *(f.low for f in found)])
                if method in published and (other := published[method].curves.get((attack, quantity))):
                    style |= {"lw": 1.0, "ls": "--", "markerfacecolor": "none", "alpha": 0.75}
                    ax.plot(list(other), list(other.values()), label=f"{attack}, {published[method].label}", **style)
                    epsilons |= set(other)
            tidy(ax)
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
    return closed(figure, title)


def _legend_of_attacks(figure: Figure, ax: Axes, attacks: Sequence[str]) -> None:
    """A column an attack below the panels, ours above the values of another source, ``<attack>, <source>``."""
    handles, names = ax.get_legend_handles_labels()
    # A legend fills its columns from the top.
    order = sorted(range(len(names)), key=lambda i: (attacks.index(names[i].split(",")[0]), "," in names[i]))
    figure.legend(
        [handles[i] for i in order], [names[i] for i in order], loc="outside lower center", ncols=len(attacks),
        fontsize=9, frameon=False,
    )  # fmt: skip


def fragility_table(results: Sequence[Attacked]) -> str:
    """Markdown: what became of the images, then a line for each experiment with means and 95% bootstrap intervals."""
    head = ["attack", "ε (1/255)", "prediction changed"]
    lines = [[*head, *(label.format(k=results[0].k) for label in QUANTITIES.values())]]
    lines.append(["---"] * len(lines[0]))
    for r in results:
        cells = [r.attack, f"{r.epsilon:g}", f"{r.failed} of {len(r)}"]
        lines.append([*cells, *(interval_text(interval(r.values[q])) for q in QUANTITIES)])
    first = results[0]
    people = population(first.dataset, first.started, first.wrong)
    return people + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def population(dataset: str, started: int, wrong: int) -> str:
    """One sentence: how many images of a data set there were, and how many were left out and why."""
    kind, _, folder = public_name(dataset).partition(":")
    whose = f"the folder {markdown(folder)}" if folder else f"`{kind}`"
    left = started - wrong
    return (
        f"Started from {started} image{'s' * (started != 1)} of {whose}; {wrong} left out because the prediction was "
        f"wrong; {left} remain{'s' * (left == 1)}."
    )


def interval_text(found: Interval, digits: int | None = None) -> str:
    """Mean and interval as text; without a number of decimals, with two below ten and one from there on."""
    if digits is None:
        digits = 1 if found.high >= 10 else 2
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


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
                color=COLORS[name], marker=MARKERS[name], ms=5, lw=1.6, capsize=3, label=name,
            )  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [f"{e:g}" for e in x])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(label)
        ax.set_ylabel(quantity)
        every = [f for points in lines.values() for f in points.values()]
        if all(0 <= f.high <= 1.02 for f in every):
            ax.set_ylim(min(0.0, *(f.low for f in every)) - 0.02, 1.02)
        tidy(ax)
    axes[0][0].legend(frameon=False, fontsize=9)
    return closed(figure, title)


def feature_bars(
    names: Sequence[str], columns: Mapping[str, Mapping[str, Sequence[float]]], *, shown: int = 10, title: str
) -> Figure:
    """Explanations of one row of a table, before and after an attack: a panel a network, a pair of bars a feature.

    Args:
        names: of the features.
        columns: network -> which explanation (before, then after) -> a number a feature.
        shown: how many features, the largest in any explanation of the first network, the same ones in every panel.
        title: the finding.
    """
    largest = np.max(list(next(iter(columns.values())).values()), axis=0)
    rows = np.argsort(-largest, kind="stable")[:shown]
    figure, axes = plt.subplots(
        1, len(columns), figsize=(2.2 + 2.9 * len(columns), 0.3 * len(rows) + 1.5), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
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
        tidy(ax, "x")
    axes[0][-1].legend(frameon=False, fontsize=9, loc="lower right")
    return closed(figure, title)
