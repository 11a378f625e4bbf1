"""Figures of certificates: what they promise, and how near attacks and sampling come to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, Ellipse
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy import special
from torch import Tensor

from robattr import smoothing
from robattr.pages.figures.style import COLORS, MARKERS, Numbers, closed, tidy
from robattr.studies import certification
from robattr.studies.grids import Record

CERTIFICATES = {
    "ball": "uniform noise, ball",
    "tight": "uniform noise, tight",
    "gaussian": "Gaussian noise of the same variance, tight",
    "spectral": "the same Gaussian noise, spectral",
}
# Certificates are drawn as curves of a formula, without markers; they differ in their dashes as well.
_DASHES = {"ball": (0, (1, 1.5)), "tight": "-", "gaussian": (0, (5, 1.5))}


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
    ends = -15, 75  # of its arc, in degrees
    right.add_patch(
        Arc((0, 0), longest, longest, theta1=ends[0], theta2=ends[1], color=COLORS["tight"], ls="--", lw=1.2)
    )
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
    right.set_ylim(-p - 0.05, max(v[1] + p, longest / 2 * np.sin(np.radians(ends[1]))) + 0.1)
    for ax, along, across in (
        (left, "along δ (radii)", "across δ (radii)"),
        (right, "component along h (units of M)", "component across h (units of M)"),
    ):
        ax.set_xlabel(along)
        ax.set_ylabel(across)
        ax.set_aspect("equal")
        ax.spines[["top", "right"]].set_visible(False)
    return closed(figure, title)


def ellipsoid(maps: Tensor, *, title: str, upper: float | None = None) -> Figure:
    """Why one direction matters: normalized maps in the plane in which they vary most, and their variances.

    Left: the maps around their mean, the ellipse of one standard deviation, and the circle that the length of the mean
    allows in any one direction. Right: the variance along each principal direction, largest first.

    Args:
        maps: [n, d]; at most 1 long, n >= 3.
        title: the finding.
        upper: what the largest variance is at most, with confidence; drawn where it is given.
    """
    samples = maps.detach().double().cpu().numpy()
    mean = samples.mean(0)
    # The vectors of the samples' products: there are fewer samples than values.
    variances, vectors = np.linalg.eigh((samples - mean) @ (samples - mean).T / len(samples))
    values = np.clip(variances[::-1], 0, None)
    points = vectors[:, :-3:-1] * np.sqrt(len(samples) * values[:2])
    trace = 1 - float(mean @ mean)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.1), layout="constrained")
    left.plot(points[:, 0], points[:, 1], ".", color="#888888", ms=3, alpha=0.4, rasterized=True)
    for width, height, kind, ls in (
        (trace, trace, "gaussian", (0, (5, 1.5))),
        (values[0], values[1], "spectral", "-"),
    ):
        size = 2 * np.sqrt(width), 2 * np.sqrt(height)
        left.add_patch(Ellipse((0, 0), *size, fill=False, edgecolor=COLORS[kind], ls=ls, lw=2, zorder=3))
    radius = np.sqrt(trace)
    left.annotate("what H allows", (0, radius), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    reach = 1.2 * max(radius, float(np.abs(points).max()))
    left.set_xlim(-reach, reach)
    left.set_ylim(-reach, reach)
    left.locator_params(nbins=4)
    left.set_aspect("equal")
    left.set_xlabel("along the direction of the largest variance")
    left.set_ylabel("along the second")
    left.set_title("gradients around their mean", fontsize=10)

    drawn = values[values > 1e-4 * values[0]]
    right.plot(np.arange(1, len(drawn) + 1), drawn, color=COLORS["spectral"], lw=2, label="along principal directions")
    right.axhline(trace, color=COLORS["gaussian"], ls=(0, (5, 1.5)), lw=2, label="1 - H²: all of it along one")
    if upper is not None:
        right.axhline(upper, color=COLORS["spectral"], ls=":", lw=1.5, label="bound on the largest, with confidence")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("principal direction")
    right.set_ylabel("variance (squared length)")
    right.set_title("variances", fontsize=10)
    tidy(right)
    left.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=9, loc="lower left")
    return closed(figure, title)


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
        ax.set_xlabel("epsilon (l2) / r")
        ax.set_ylim(0, 1.02)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        tidy(ax)
    axes[0][0].set_ylabel("certified cosine; p (no unit)")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return closed(figure, title)


def quoted_region(
    recorded: Mapping[str, tuple[Numbers, Numbers]] | None = None, *, title: str, points: int = 201
) -> Figure:
    """Where the quoted formula T for uniform noise is a bound, and where a field goes below it: H / M against p.

    Below the line H = 2 p M nothing can be certified, and T still says something.

    Args:
        recorded: name -> (p, H) of recorded images, drawn as points.
        title: the finding.
        points: of each axis.
    """
    h, p = np.linspace(1e-3, 1, points)[:, None], np.linspace(0, 0.5, points)[None]
    tight, said = smoothing.certified_cosine(h, p), smoothing.quoted_cosine(h, p)
    # 0: T is not above what is certified, and attained; 1: it is above; 2: nothing is certified.
    state = np.where(tight <= -1, 2.0, np.where(said > tight, 1.0, 0.0))
    figure, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    kinds = (
        ("T is a true bound", "#D6E6F2", ""),
        ("a field goes below T", "#F6D5C3", "//"),
        ("nothing can be certified", "#E4E4E4", ".."),
    )
    for level, (name, color, hatch) in enumerate(kinds):
        # Edges are not drawn: a line between two kinds would be one more thing to explain.
        ax.contourf(
            p[0], h[:, 0], state, levels=[level - 0.5, level + 0.5], colors=[color], hatches=[hatch], antialiased=True
        )
        ax.fill_between([], [], facecolor=color, hatch=hatch, edgecolor="black", label=name, lw=0)
    for (name, (x, y)), marker in zip((recorded or {}).items(), "osD^vP", strict=False):
        ax.plot(x, y, marker, ms=4, mfc="none", color="black", lw=0, label=name)
    ax.set_xlim(0, 0.5)
    ax.set_ylim(0, 1)
    ax.set_xlabel("p, share of a ball outside of the other (no unit)")
    ax.set_ylabel("H, length of the smoothed map (units of M)")
    ax.legend(loc="lower right", fontsize=9, framealpha=1)
    return closed(figure, title)


def certified_and_attacked(records: Mapping[str, Record], *, title: str) -> Figure:
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
            lowest = np.array([certification.lowest(record, law, e) for e in tried])
            low, middle, high = np.percentile(lowest, [25, 50, 75], axis=1)
            ax.fill_between(tried, low, high, color=color, alpha=0.15, lw=0)
            ax.plot(tried, middle, color=color, lw=1.2, ls="--", marker=MARKERS[name], ms=5, label=f"{name}: attacked")
        ax.set_xscale("log")
        ax.set_xticks(tried, [f"{e:g}" for e in tried])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(f"epsilon (l2), {'Gaussian' if law == 'gaussian' else law} noise")
        ax.set_ylim(-0.02, 1.02)
        tidy(ax)
    axes[0][0].set_ylabel("cosine of the smoothed gradients")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(records), fontsize=9, frameon=False)
    return closed(figure, title)


def heatmap_curves(
    record: Record, method: str, sigma: float, *, size: tuple[int, int], title: str, points: int = 40
) -> Figure:
    """What is certified of smoothed heatmaps over epsilon: cosine, shift of the center, share of the top pixels.

    Medians over a record's images, with quartiles.

    Args:
        record: of a certification with heatmaps.
        method: of attribution.
        sigma: of the noise.
        size: (height, width) of the maps.
        title: the finding.
        points: of each curve.
    """
    config = record.config.heatmaps
    epsilon = np.linspace(0, max(config.epsilons), points)
    said = certification.certified_of_map(record, method, sigma, epsilon.tolist(), size=size)
    diagonal = float(np.hypot(size[0] - 1, size[1] - 1))
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.7), layout="constrained")
    panels: list[tuple[str, dict[str, str]]] = [
        ("certified cosine", {"direction": "cosine"}),
        ("center moves at most (px)", {"center": "center"}),
        ("share of the top pixels that stay", {f"top {k:,}": f"top-{k}" for k in config.k}),
    ]
    colors = (COLORS["tight"], COLORS["gaussian"], COLORS["ball"], COLORS["spectral"])
    for ax, (label, lines) in zip(axes, panels, strict=True):
        for i, (name, quantity) in enumerate(lines.items()):
            low, middle, high = np.percentile(said[quantity], [25, 50, 75], axis=0)
            if quantity in ("cosine", "center"):
                bad = middle < 0 if quantity == "cosine" else middle >= diagonal
                low, middle, high = (np.where(bad, np.nan, v) for v in (low, middle, high))
            color = colors[i % len(colors)]
            ax.fill_between(epsilon, np.maximum(low, 0), high, color=color, alpha=0.2, lw=0)
            ax.plot(epsilon, middle, color=color, lw=2, ls=("-", (0, (5, 1.5)), (0, (1, 1.5)), "-.")[i % 4], label=name)
        ax.set_xlabel("epsilon (l2, in units of a [0, 1] image)")
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0, top=None if "center" in lines else 1.02)
        tidy(ax)
        if len(lines) > 1:
            ax.legend(frameon=False, fontsize=9)
    return closed(figure, title)


def center_discs(centers: Numbers, radii: Numbers, *, size: tuple[int, int], title: str) -> Figure:
    """The frame of an image, and for each image the disc in which the center of its map stays, to scale.

    Args:
        centers: [N, 2]; (row, column) in pixels.
        radii: [N]; in pixels. One that is as large as the frame is left out, and counted in a note.
        size: (height, width) of the frame.
        title: the finding.
    """
    figure, ax = plt.subplots(figsize=(5.2, 5.2), layout="constrained")
    height, width = size
    said = radii < min(size)
    for (row, column), radius in zip(centers[said], radii[said], strict=True):
        disc = Circle((column, row), radius, facecolor=COLORS["tight"], edgecolor="black", alpha=0.35, lw=0.7)
        ax.add_patch(disc)
    ax.plot((width - 1) / 2, (height - 1) / 2, "+", color="black", ms=12)
    ax.set_xlim(-0.5, width - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.set_aspect("equal")
    ax.set_xlabel("column (px)")
    ax.set_ylabel("row (px)")
    if not said.all():
        note = f"{int((~said).sum())} without a disc"
        ax.text(0.02, 0.02, note, transform=ax.transAxes, fontsize=9)
    return closed(figure, title)


def kept_shares(epsilon: Sequence[float], shares: Mapping[str, Numbers], *, title: str) -> Figure:
    """What several certificates promise of the top pixels, over the length of the change.

    Args:
        epsilon: [E] l2 lengths.
        shares: certificate -> [N, E], share of the top pixels of each image; the mean is drawn, thinly each image too.
        title: the finding, with the pictures, the noise and the probability of failure.
    """
    figure, ax = plt.subplots(figsize=(6.8, 4.0), layout="constrained")
    styles = zip(
        (COLORS["tight"], COLORS["gaussian"], COLORS["ball"]), ("-", (0, (5, 1.5)), (0, (1, 1.5))), strict=True
    )
    for (name, values), (color, dashes) in zip(shares.items(), styles, strict=True):
        for row in values:
            ax.plot(epsilon, row, color=color, lw=0.7, alpha=0.5)
        mark = "o" if len(epsilon) <= 10 else ""  # few lengths are points that a line joins
        ax.plot(epsilon, np.mean(values, axis=0), color=color, ls=dashes, lw=2, marker=mark, label=name)
    ax.set_xlabel("epsilon (l2, in units of a [0, 1] image)")
    ax.set_ylabel("share of the top pixels")
    ax.set_ylim(0, min(1.02, 1.1 * max(float(np.max(values)) for values in shares.values()) + 0.01))
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return closed(figure, title)


def sample_bounds(samples: Sequence[int], gaps: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """How far lower confidence bounds on a length lie below its estimate, against the number of samples.

    Args:
        samples: how many, > 0.
        gaps: bound -> estimate less bound, > 0, at each number of samples.
        title: the finding, with the image, the noise and the probability of failure.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    for name, values in gaps.items():
        ax.plot(samples, values, color=COLORS[name], marker=MARKERS[name], label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("samples")
    ax.set_ylabel("estimate less lower bound (units of M)")
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return closed(figure, title)


def bound_text(value: float, digits: int = 3) -> str:
    """What is certified, rounded down, as a lower bound has to be; "none" for -1."""
    return "none" if value <= -1 else f"{np.floor(value * 10**digits) / 10**digits:.{digits}f}"


def certificate_text(mean_norm: float, dimension: int, radius: float, epsilon: float, spread: float) -> str:
    """The certificates of one setting in words, as the explorer reads them out; a spread of at most 1 - H^2 counts."""
    p = float(smoothing.overlap(dimension, radius, epsilon))
    law = smoothing.Gaussian.matching(radius, dimension)
    found = {
        "ball": smoothing.certified_cosine(mean_norm, p, method="ball"),
        "tight": smoothing.certified_cosine(mean_norm, p),
        "gaussian": law.certified_cosine(mean_norm, dimension, epsilon),
        "spectral": smoothing.certified_cosine_spectral(
            mean_norm, min(spread, (1 - mean_norm) * (1 + mean_norm)), epsilon / law.sigma
        ),
    }
    values = "; ".join(f"{CERTIFICATES[name]}: {bound_text(float(value), 2)}" for name, value in found.items())
    return f"Of each ball p = {p:.2f} lies outside of the other. Certified cosine: {values}."
