"""Figures that a reader moves: HTML with all it needs inside, moved by the scripts in ``book/_static``."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from scipy import special
from torch import Tensor

from robattr import smoothing
from robattr.pages.figures.certificates import CERTIFICATES, certificate_text
from robattr.pages.figures.maps import ceiling
from robattr.pages.figures.style import COLORS, MAP, MEASURES
from robattr.studies.claims import Multiverse, VerdictName


def slider(frames: Sequence[tuple[str, Tensor, Tensor]], *, title: str, label: str) -> str:
    """HTML of an interactive figure: a slider moves through pairs of a photograph and its map.

    ``book/_static/frame-slider.js`` moves it; without a script the first pair is shown.

    Args:
        frames: (epsilon in 1/255, image [C, H, W], map [H, W]).
        title: the finding.
        label: what a reader who cannot see the figure is told.
    """
    top = max(ceiling(heat.detach().cpu()) for _, _, heat in frames)
    pairs = []
    for i, (name, image, heat) in enumerate(frames):
        photograph = (image.detach().cpu().permute(1, 2, 0).squeeze(-1) * 255).round().to(torch.uint8).numpy()
        colors = plt.get_cmap(MAP)(np.clip(heat.detach().cpu().numpy() / top, 0, 1), bytes=True)[..., :3]
        at = f"at epsilon = {escape(name)}/255"
        pairs.append(
            f'<div class="frame" data-name="{escape(name)}"{" hidden" if i else ""}>'
            f'<img alt="The photograph {at}." src="{_encoded(photograph, "WEBP")}">'
            f'<img alt="Its map {at}." src="{_encoded(colors, "JPEG")}"></div>'
        )
    first = escape(frames[0][0])
    return (
        f'<div class="frame-slider" role="group" aria-label="{escape(label)}">'
        f'<p class="widget-title">{escape(title)}</p>{"".join(pairs)}'
        f'<label>epsilon in 1/255: <output>{first}</output><input type="range" min="0" max="{len(frames) - 1}" '
        f'step="1" value="0" aria-valuetext="{first}"></label></div>'
    )


# The tables of the explorer: their grids, and where they end. At a shift of 3.3 nothing is certified up to H = 0.999.
_SHIFT_STEP, _SHIFTS = 0.01, 331
_ROW_STEP, _ROWS, _COLUMNS = 0.15, 23, 41
_LONGEST = 0.999
_LEAST = -4  # log10 of the least spread: at a shift of 3.04 it certifies nothing any more


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


def certificate_explorer(
    *,
    title: str,
    label: str,
    mean_norm: float = 0.97,
    dimension: int = 3072,
    radius: float = 1.0,
    epsilon: float = 0.01,
    spread: float = 0.01,
    dimensions: Sequence[int] = (2, 64, 784, 3072, 150_528),
) -> str:
    """HTML of an interactive figure: certified cosine against epsilon, with sliders for epsilon, r, d, H and Lambda.

    ``book/_static/certificate-explorer.js`` draws it from tables inside, so it works without a network. The values at
    the chosen epsilon are text that screen readers announce.

    Args:
        title: the finding.
        label: what a reader who cannot see the curves is told.
        mean_norm: H / M to begin with, 0.05 to 0.999.
        dimension: one of the dimensions, to begin with.
        radius: of the ball to begin with, 0.1 to 10, in units of a [0, 1] image.
        epsilon: to begin with, 0.0001 to 3, in the same units.
        spread: Lambda / M^2 to begin with, 0.0001 to 1; at most 1 - H^2 counts.
        dimensions: that can be chosen.
    """
    if dimension not in dimensions:
        raise ValueError(f"dimension is {dimension}; accepted are {', '.join(map(str, dimensions))}")
    place = list(dimensions).index(dimension)
    sliders = [
        # name, label, lowest, highest, step, value, how the script reads it
        ("mean_norm", "mean resultant length H", 0.05, _LONGEST, 0.001, mean_norm, "linear"),
        ("epsilon", "ε₂, l2 length of the change", -4, 0.5, 0.02, np.log10(epsilon), "log"),
        ("radius", "r, radius of the ball", -1, 1, 0.05, np.log10(radius), "log"),
        ("dimension", "d, values of an image", 0, len(dimensions) - 1, 1, place, "choice"),
        ("spread", "Λ, largest variance along a direction", _LEAST, 0, 0.05, np.log10(spread), "log"),
    ]
    begin = (f"{mean_norm:.3f}", f"{epsilon:.2g}", f"{radius:.2g}", f"{dimension:,}", f"{spread:.2g}")
    controls = "".join(
        f'<label class="explorer-control"><span>{text} = <output>{shown}</output></span>'
        f'<input type="range" data-name="{name}" data-scale="{scale}" min="{low:g}" max="{high:g}" step="{step:g}" '
        f'value="{value:g}"></label>'
        for (name, text, low, high, step, value, scale), shown in zip(sliders, begin, strict=True)
    )
    tables = {
        **certificate_tables(dimensions), "dimensions": list(dimensions), "names": CERTIFICATES,
        "x": _EPSILONS, "y": _COSINES,
    }  # fmt: skip
    return (
        f'<div class="certificate-explorer" role="group" aria-label="{escape(label)}">'
        f'<p class="widget-title">{escape(title)}</p><div class="explorer-controls">{controls}</div>'
        f'<p class="explorer-values" role="status" aria-live="polite">'
        f"{certificate_text(mean_norm, dimension, radius, epsilon, spread)}</p>"
        f"{_certificate_axes()}{_embedded(tables, compact=True)}</div>"
    )


# The axes of the explorer: where in the drawing they begin and end, and the values there.
_EPSILONS = {"from": 30, "to": 392, "first": -4, "last": 0.5}  # of log10 epsilon
_COSINES = {"from": 222, "to": 18, "first": 0, "last": 1}
_DASHES = {"ball": "1 3", "tight": "none", "gaussian": "5 3", "spectral": "8 3 2 3"}


def _certificate_axes() -> str:
    """An empty drawing, with the names of its lines: the script moves what has a ``data-kind``."""

    def placed(axis: Mapping[str, float], value: float) -> str:
        share = (value - axis["first"]) / (axis["last"] - axis["first"])
        return f"{axis['from'] + share * (axis['to'] - axis['from']):.1f}"

    left, right, bottom, top = _EPSILONS["from"], _EPSILONS["to"], _COSINES["from"], _COSINES["to"]
    parts = [f'<text x="{left}" y="{top - 8}">certified cosine</text>']
    for value in np.linspace(0, 1, 6):
        y = placed(_COSINES, value)
        parts += [
            f'<path class="grid" d="M{left} {y}H{right}"/>',
            f'<text x="{left - 4}" y="{y}" dy=".35em" text-anchor="end">{value:.1f}</text>',
        ]
    for power in range(-4, 1):
        x = placed(_EPSILONS, power)
        parts += [
            f'<path class="grid" d="M{x} {bottom}V{top}"/>',
            f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{10.0**power:g}</text>',
        ]
    middle = (left + right) / 2
    parts.append(
        f'<text x="{middle:g}" y="{bottom + 32}" text-anchor="middle">ε₂ (l2, in units of a [0, 1] image)</text>'
    )
    parts.append(f'<path class="chosen" d="M{left} {bottom}V{top}"/>')
    lines = {kind: f'stroke="{COLORS[kind]}" stroke-dasharray="{_DASHES[kind]}"' for kind in CERTIFICATES}
    parts += [f'<path class="curve" data-kind="{kind}" {line}/>' for kind, line in lines.items()]
    parts += [
        f'<circle data-kind="{kind}" r="3.5" fill="{COLORS[kind]}" visibility="hidden"/>' for kind in CERTIFICATES
    ]
    legend = "".join(
        '<li><svg viewBox="0 0 30 6" aria-hidden="true">'
        f'<path class="curve" d="M0 3H30" {lines[kind]}/></svg>{name}</li>'
        for kind, name in CERTIFICATES.items()
    )
    drawing = f'<svg class="explorer-drawing" viewBox="0 0 400 256" aria-hidden="true">{"".join(parts)}</svg>'
    return f'{drawing}<ul class="explorer-legend">{legend}</ul>'


_AGREEMENTS = {"same": "the same", "less": "neither the same nor the opposite", "opposite": "the opposite"}


def protocol_explorer(found: Sequence[Multiverse]) -> str:
    """HTML with a list of claims and one for each choice of a protocol; a sentence says the verdict under it.

    It works from the disk, from a table inside: for each claim its choices, and for each protocol, in the order in
    which the last choice changes fastest, a letter for the verdict and one for how it agrees with the one asked for.

    Args:
        found: of :func:`robattr.studies.claims.multiverse`.
    """
    names = {chr(97 + i): str(name) for i, name in enumerate(VerdictName)}
    letters = {name: letter for letter, name in names.items()}
    claims = []
    for each in found:
        protocols = list(itertools.product(*each.choices.values()))
        claims.append(
            {
                "choices": [
                    [name, [MEASURES.get(option, option) for option in options]]
                    for name, options in each.choices.items()
                ],
                "verdicts": "".join(letters[str(each.verdicts[p])] for p in protocols),
                "agreements": "".join(each.agreement(p)[0] for p in protocols),
            }
        )
    table = {"claims": claims, "names": names, "words": {name[0]: text for name, text in _AGREEMENTS.items()}}
    options = "".join(f"<option>{escape(each.claim.sentence)}</option>" for each in found)
    return (
        '<div class="protocol-explorer"><label class="explorer-control">claim'
        f'<select data-name="claim">{options}</select></label><div class="explorer-choices"></div>'
        '<p class="explorer-values" role="status" aria-live="polite"></p>'
        f"{_embedded(table, compact=True)}</div>"
    )


def _embedded(content: Any, *, compact: bool = False) -> str:
    """JSON inside of HTML, as a script that is not run."""
    body = json.dumps(content, separators=(",", ":") if compact else None).replace("<", "\\u003c")
    return f'<script type="application/json">{body}</script>'


def _encoded(pixels: np.ndarray[Any, Any], kind: Literal["PNG", "JPEG", "WEBP"]) -> str:
    """A data URL; PNG and WebP are lossless, for photographs, whose perturbation a JPEG would smooth away."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
