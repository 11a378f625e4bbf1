"""Photographs and their maps, side by side. They carry no axes: a pixel position is not a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from robattr.pages.figures.style import MAP, closed


@dataclass(frozen=True)
class Panel:
    """One picture: an image [C, H, W] in [0, 1] or a map [H, W], with the line above it.

    Attributes:
        picture: what is drawn.
        title: short; may have line breaks.
        region: (top, left, bottom, right) in pixels to outline, or None.
        discs: (row, column, radius) in pixels to outline; the first is solid, further ones are dashed.
        area: bool [H, W], pixels whose outline is drawn, or None.
        marks: bool [H, W], pixels that each get a point, or None.
    """

    picture: Tensor
    title: str = ""
    region: tuple[float, float, float, float] | None = None
    discs: Sequence[tuple[float, float, float]] = ()
    area: Tensor | None = None
    marks: Tensor | None = None


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
    return closed(figure, title)


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


def _draw(ax: Axes, panel: Panel) -> None:
    picture = panel.picture.detach().cpu()
    if picture.ndim == 3:
        ax.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    else:
        ax.imshow(picture.numpy(), cmap=MAP, vmin=0, vmax=ceiling(picture))
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(panel.title, fontsize=9)
    if panel.region is not None:
        top, left, bottom, right = panel.region
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="#56B4E9", lw=1.8)
        ax.add_patch(frame)
    for i, (row, column, radius) in enumerate(panel.discs):
        # White around the color: on a map it has to be seen on black and on yellow.
        for color, width in (("white", 3.0), ("#0072B2", 1.6)):
            ls = "-" if i == 0 else (0, (4, 2))
            ax.add_patch(Circle((column, row), radius, fill=False, edgecolor=color, lw=width, ls=ls))
    if panel.area is not None:
        # Four times as fine, so that the outline runs along the edges of pixels.
        fine = panel.area.cpu().numpy().repeat(4, 0).repeat(4, 1).astype(float)
        height, width = panel.area.shape
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        ax.contour(fine, levels=[0.5], extent=extent, origin="upper", colors="#56B4E9", linewidths=0.9)
    if panel.marks is not None:
        rows, columns = np.nonzero(panel.marks.cpu().numpy())
        ax.plot(columns, rows, "o", color="#009E73", mec="white", mew=0.6, ms=4, ls="none")


def ceiling(heat: Tensor) -> float:
    top = float(np.quantile(heat.numpy(), 0.995))
    return top if top > 0 else max(float(heat.max()), 1e-30)
