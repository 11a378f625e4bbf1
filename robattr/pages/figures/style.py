"""The look that figures share: a color and a marker for each name, and how methods are written.

Colors are those of Okabe and Ito, which readers with any common color vision tell apart; lines differ in their marker
as well.
"""

from __future__ import annotations

from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

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
    "spectral": "#CC79A7",
    "dimension-free": "#555555",
    "Hoeffding": "#E69F00",
    "betting": "#0072B2",
}
MARKERS = {
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
METHODS = {
    "gradient": "gradient",
    "input_x_gradient": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "smoothgrad": "SmoothGrad",
    "deeplift": "DeepLIFT",
    "lrp": "LRP",
    "deep_taylor": "deep Taylor",
    "guided_backpropagation": "guided backpropagation",
    "attn_lrp": "AttnLRP",
    "grad_cam": "Grad-CAM",
    "guided_grad_cam": "guided Grad-CAM",
    "layer_activation_x_gradient": "layer: activation × gradient",
    "layer_integrated_gradients": "layer: integrated gradients",
    "attention_rollout": "attention rollout",
    "gradient_rollout": "rollout by gradient",
}
"""Attribution methods, as they are written in figures and tables."""
MEASURES = {
    "topk_intersection": "top-k intersection",
    "rank_correlation": "rank correlation",
    "pearson": "Pearson correlation",
    "ssim": "SSIM",
}
"""Measures of how alike two maps are, as choices of a protocol are written."""
MAP = "inferno"  # perceptually uniform, and readable without color
Numbers = NDArray[np.float64]


def tidy(ax: Axes, axis: Literal["x", "y", "both"] = "both") -> None:
    ax.grid(alpha=0.25, axis=axis)
    ax.spines[["top", "right"]].set_visible(False)


COLUMN = 656
"""Pixels that a figure is wide at least, in a window of 1,280: as wide as the text, and in the dark less its margin."""

LEAST = 9
"""Pixels of the smallest text of a figure as a page shows it."""


VIEW = 320
"""Pixels of a figure that a phone, 390 wide, shows at first: a figure is as large there, and scrolls sideways."""


def closed(figure: Figure, title: str = "") -> Figure:
    """With its title, and out of pyplot's hands: a notebook shows a figure once, and a loop holds none in memory.

    The title begins at the left edge and has lines of at most :data:`VIEW` pixels; for more than two the figure grows.
    Text that a page would show below :data:`LEAST` pixels is made larger: a figure wider than the column is shown
    smaller. Dollars are dollars, as in names of classes: matplotlib takes text between two of them for a formula.

    Args:
        figure: whose axes are drawn.
        title: the finding, and on a line of its own what it was measured on.
    """
    pixels = min(COLUMN / (72 * figure.get_figwidth()), 100 / 72)  # of a point, as a page shows it
    least = LEAST / pixels
    head = figure.suptitle(title, x=0, ha="left", fontsize=11)
    if figure.get_layout_engine() is None:  # which else moves it
        head.set_y(1 - 0.12 / figure.get_figheight())
    ticks = {id(text) for axis in figure.findobj(Axis) for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if float(text.get_fontsize()) < least:
            text.set_fontsize(least)
        if id(text) not in ticks:  # of these matplotlib writes some, as powers of 10
            text.set_parse_math(False)
    _wrap(head, min(VIEW / pixels / 72, figure.get_figwidth()) * figure.dpi)
    if figure.get_layout_engine() is not None:  # which would take the room of further lines from the axes
        further = max(head.get_text().count("\n") - 1, 0)
        figure.set_figheight(figure.get_figheight() + further * 1.2 * float(head.get_fontsize()) / 72)
    for ax in figure.axes:
        # Labels of ticks that matplotlib chooses come only when it draws.
        for axis in (ax.xaxis, ax.yaxis):
            if float(axis.get_tick_params().get("labelsize", 10)) < least:
                axis.set_tick_params(labelsize=least)
    plt.close(figure)
    return figure


def _wrap(text: Text, width: float) -> None:
    """Break lines so that none is wider than so many pixels of its figure, but for a single word."""
    lines: list[str] = []
    for part in text.get_text().split("\n"):
        lines.append("")
        for word in part.split():
            text.set_text(f"{lines[-1]} {word}".strip())
            if lines[-1] and text.get_window_extent().width > width:
                lines.append(word)
            else:
                lines[-1] = text.get_text()
    text.set_text("\n".join(lines))
