"""The ledger as a picture: each comparison's effect against what was asked of it."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robattr.pages.figures.style import closed
from robattr.studies.claims import Comparison, Multiverse, Outcome, State, Verdict
from robattr.studies.claims.tables import PAPERS
from robattr.studies.intervals import Interval

_LOOK = {
    State.HOLDS: ("#0072B2", "o", "past it: holds"),
    State.FAILS: ("#D55E00", "X", "short of it: fails"),
    State.OPEN: ("#555555", "D", "on both sides: undecided"),
}
_UNIT = 0.1  # of comparisons that ask for a sign only: a difference of .1, or a factor of 1.1
_LINE, _WIDTH, _ENDS = 0.17, 46, (-9.0, 40.0)
_SMALLER = 0.08  # of a line, for an effect at a smaller scale


def margin(comparison: Comparison, effect: Interval) -> Interval:
    """How far an effect is past the least that was asked for, in units of that; above 0 it holds.

    Where only a sign is asked for, the unit is a difference of 0.1 or a factor of 1.1. A ratio is measured by its
    logarithm. Where an effect has to lie within bounds, what counts is its distance to the nearer one.

    Raises:
        ValueError: the comparison counts what must never happen, which has no unit.
    """
    if comparison.direction == "never":
        raise ValueError("what must never happen has no margin; leave counts out")
    values = (effect.mean, effect.low, effect.high)
    least = comparison.by
    if comparison.ratio:
        values, least = tuple(map(math.log, values)), math.log(least)  # type: ignore[assignment]
    unit = least or (math.log1p(_UNIT) if comparison.ratio else _UNIT)
    mean, low, high = values
    if comparison.direction == "within":
        far, near = max(abs(low), abs(high)), 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        mean, low, high = (least - abs(v) for v in (mean, far, near))
    else:
        if comparison.direction == "less":
            mean, low, high = -mean, -high, -low
        mean, low, high = mean - least, low - least, high - least
    return Interval(mean / unit, low / unit, high / unit, effect.n)


def forest(verdicts: Sequence[Verdict], *, title: str) -> Figure:
    """A line a comparison of an experiment, under its claim: the margin with its interval, colored by what it says.

    Beneath it, thin and gray, what grids of smaller scales say of the same, the largest first. Comparisons without
    records and counts are left out, and claims without any other.

    Args:
        verdicts: of the ledger, in its order.
        title: the finding.
    """
    rows: list[tuple[str, Outcome | None]] = []
    for verdict in verdicts:
        shown = [o for o in verdict.outcomes if o.effect is not None and o.comparison.direction != "never"]
        if verdict.claim.kind == "experiment" and shown:
            rows.append((verdict.claim.sentence, None))
            rows += [(o.comparison.label or o.comparison.quantity, o) for o in shown]
    wrapped = [textwrap.wrap(text, _WIDTH if o else 2 * _WIDTH) for text, o in rows]
    heights = [
        max(_LINE * len(lines), _LINE + 2 * _SMALLER * len(o.smaller)) + 0.05 if o else _LINE * len(lines) + 0.16
        for lines, (_, o) in zip(wrapped, rows, strict=True)
    ]
    total = sum(heights)
    figure = plt.figure(figsize=(7.2, total + 1.75))
    bottom, top = 0.85 / (total + 1.75), 1 - 0.9 / (total + 1.75)
    ax = figure.add_axes((0.44, bottom, 0.54, top - bottom))
    y, seen = 0.0, set[str]()
    for lines, height, (_, outcome) in zip(wrapped, heights, rows, strict=True):
        middle = y + height / 2
        y += height
        text = "\n".join(lines)
        if outcome is None or outcome.effect is None:
            heading: dict[str, Any] = {"fontsize": 8.5, "va": "center", "weight": "bold", "zorder": 4}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.text(-0.81, middle + 0.03, text, transform=ax.get_yaxis_transform(), bbox=box, **heading)
            continue
        ax.text(-0.03, middle, text, transform=ax.get_yaxis_transform(), fontsize=8, va="center", ha="right")
        color, marker, label = _LOOK[outcome.state]
        _draw(
            ax, margin(outcome.comparison, outcome.effect), middle, color=color, marker=marker, markersize=6,
            markerfacecolor="white" if outcome.state is State.OPEN else color,
            label=None if outcome.state in seen else label,
        )  # fmt: skip
        seen.add(outcome.state)
        for i, (_, effect) in enumerate(outcome.smaller, 1):
            _draw(
                ax, margin(outcome.comparison, effect), middle + i * _SMALLER, color="#8C8C8C", marker="o",
                markersize=3.5 - 0.5 * i, lw=0.9, label=None if "smaller" in seen else "at smaller scales",
            )  # fmt: skip
            seen.add("smaller")
    ax.set_xscale("symlog", linthresh=2, linscale=1.2)
    ax.set_xlim(_ENDS[0] * 1.15, _ENDS[1] * 1.15)
    ax.set_ylim(y, 0)
    ax.axvline(0, color="black", lw=1)
    ax.set_xticks([-5, -1, 0, 1, 2, 5, 20], ["-5", "-1", "0", "1", "2", "5", "20"], fontsize=8)
    ax.tick_params(axis="x", top=True, labeltop=True)  # what is read first is far from the foot
    ax.set_yticks([])
    ax.grid(alpha=0.25, axis="x")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel("effect past the least that was asked for, in units of that", fontsize=8.5)
    figure.legend(loc="lower center", ncols=4, fontsize=8.5, frameon=False, columnspacing=1.2, handletextpad=0.4)
    return closed(figure, title)


def _draw(ax: Axes, at: Interval, y: float, *, color: str, lw: float = 1.6, **mark: Any) -> None:
    """A mark with its interval; an arrow where that goes on outside of the axis."""
    low, mean, high = (min(max(v, _ENDS[0]), _ENDS[1]) for v in (at.low, at.mean, at.high))
    ax.plot([low, high], [y, y], color=color, lw=lw, solid_capstyle="butt")
    for end, cut, arrow in ((at.low, low, "<"), (at.high, high, ">")):
        if end != cut:
            ax.plot(1.1 * cut, y, arrow, color=color, markersize=5)  # beside a mark that is cut as well
    ax.plot(mean, y, color=color, ls="none", **mark)


def small_forest(verdicts: Sequence[Verdict]) -> str:
    """The forest as a small SVG without words for its lines: by paper, a mark and an interval a comparison.

    Positions are whole pixels, and texts have 13 px where the picture is 720 px wide. Colors and marks are those of
    :func:`forest`.

    Args:
        verdicts: of the ledger, in its order.
    """
    left, right, step = 190, 700, 9
    span = _bent(_ENDS[1]) - _bent(_ENDS[0])

    def place(value: float) -> int:
        cut = min(max(value, _ENDS[0]), _ENDS[1])
        return round(left + (right - left) * (_bent(cut) - _bent(_ENDS[0])) / span)

    parts: list[str] = []
    y, counts = 34, dict.fromkeys(_LOOK, 0)
    for paper in dict.fromkeys(v.claim.paper for v in verdicts):
        shown = [
            o
            for v in verdicts
            if v.claim.paper == paper and v.claim.kind == "experiment"
            for o in v.outcomes
            if o.effect is not None and o.comparison.direction != "never"
        ]
        if not shown:
            continue
        parts.append(f'<text x="8" y="{y + 10}">{html.escape(PAPERS.get(paper, paper))}</text>')
        for outcome in shown:
            assert outcome.effect is not None
            at, color = margin(outcome.comparison, outcome.effect), _LOOK[outcome.state][0]
            counts[outcome.state] += 1
            x, y = place(at.mean), y + step
            parts.append(f'<path d="M{place(at.low)} {y}H{place(at.high)}" stroke="{color}" stroke-width="2"/>')
            if at.low < _ENDS[0]:  # an arrow where an interval goes on outside, beside a mark that is cut as well
                parts.append(f'<path d="M{left - 5} {y - 4}v8l-7 -4z" fill="{color}"/>')
            if at.high > _ENDS[1]:
                parts.append(f'<path d="M{right + 5} {y - 4}v8l7 -4z" fill="{color}"/>')
            parts.append(_mark(outcome.state, x, y, color))
        y += 16
    zero, height = place(0), y + 46
    words = {State.HOLDS: "hold", State.FAILS: "fail", State.OPEN: "undecided"}
    legend, x = [], left
    for state, word in words.items():
        said = f'<text x="{x + 10}" y="{y + 35}">{counts[state]} {word}</text>'
        legend.append(_mark(state, x, y + 30, _LOOK[state][0]) + said)
        x += 120
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" width="720" height="{height}" role="img" '
        'font-family="sans-serif" font-size="13">\n'
        f"<title>{', '.join(f'{counts[s]} {w}' for s, w in words.items())}</title>\n"
        f'<rect width="720" height="{height}" fill="#fff"/>\n'
        f'<text x="{zero}" y="18" text-anchor="middle">what was asked for</text>\n'
        f'<text x="{zero - 80}" y="18" text-anchor="end">short of it: fails</text>\n'
        f'<text x="{zero + 80}" y="18">past it: holds</text>\n'
        f'<path d="M{zero} 24V{y}" stroke="#000"/>\n' + "\n".join([*parts, *legend]) + "\n</svg>\n"
    )


def _bent(value: float) -> float:
    """Linear to 2, logarithmic beyond, without a jump or a kink."""
    return value if abs(value) <= 2 else math.copysign(2 + 2 * math.log(abs(value) / 2), value)


def _mark(state: State, x: int, y: int, color: str) -> str:
    if state is State.HOLDS:
        return f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/>'
    if state is State.FAILS:
        return f'<path d="M{x - 4} {y - 4}l8 8m0 -8l-8 8" stroke="{color}" stroke-width="3"/>'
    return f'<path d="M{x} {y - 5}l5 5l-5 5l-5 -5z" fill="#fff" stroke="{color}" stroke-width="1.5"/>'


def protocol_bars(found: Sequence[Multiverse], *, title: str) -> Figure:
    """A bar a claim: the shares of protocols that say the same as the one asked for, decide less, or say the opposite.

    Args:
        found: of :func:`robattr.studies.claims.multiverse`.
        title: the finding.
    """
    wrapped = ["\n".join(textwrap.wrap(each.claim.sentence, _WIDTH)) for each in found]
    heights = [0.05 + _LINE * (text.count("\n") + 1) + 0.08 for text in wrapped]
    total = sum(heights)
    figure = plt.figure(figsize=(7.2, total + 1.5))
    ax = figure.add_axes((0.44, 0.85 / (total + 1.5), 0.53, total / (total + 1.5)))
    looks = {"same": ("#0072B2", ""), "less": ("#C8C8C8", ""), "opposite": ("#D55E00", "////")}
    words = {"same": "the same verdict", "less": "another, not the opposite", "opposite": "the opposite"}
    y = 0.0
    for i, (each, text, height) in enumerate(zip(found, wrapped, heights, strict=True)):
        left = 0.0
        for name, share in each.shares.items():
            color, hatch = looks[name]
            ax.barh(
                y + height / 2, share, 0.16, left, color=color, hatch=hatch, edgecolor="white", lw=0.5,
                label=words[name] if i == 0 else None,
            )  # fmt: skip
            left += share
        ax.text(-0.03, y + height / 2, text, transform=ax.get_yaxis_transform(), fontsize=8, va="center", ha="right")
        y += height
    ax.set_xlim(0, 1)
    ax.set_ylim(y, 0)
    ax.set_yticks([])
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"], fontsize=8)
    ax.set_xlabel("share of protocols, %", fontsize=8.5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="lower center", ncols=3, fontsize=8.5, frameon=False)
    return closed(figure, title)
