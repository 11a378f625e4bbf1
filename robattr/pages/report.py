"""The page of an audit: one file that stands alone, findings first, every number from its records.

A number stands in a ``span`` that names where it is from: ``data-q`` a quantity of ``audit.jsonl`` and ``data-s`` what
of it (``mean``, ``low``, ``high``, ``n``, ``sum``; ``data-minus`` a quantity that is subtracted), or ``data-c`` a
setting of ``audit.json``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robattr._files import write_text
from robattr.pages.figures.maps import ceiling
from robattr.pages.figures.style import MAP, METHODS
from robattr.studies import audit as study
from robattr.studies.audit import Audited, Finding, Standing
from robattr.studies.intervals import Interval

__all__ = ["render", "write"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --page: #fff; --box: #f6f8fa;
  --bad: #b42318; --good: #116329; --worst: #b54708; --noise: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --line: #3d444d; --page: #0d1117;
  --box: #161b22; --bad: #ff8a80; --good: #6fdd8b; --worst: #ffa657; --noise: #79c0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 46rem; }
.findings { background: var(--box); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem; }
.findings ul { margin: .2rem 0; padding-left: 1.2rem; } .findings li { margin: .3rem 0; }
.word { font-weight: 700; }
.bad { color: var(--bad); } .good { color: var(--good); }
.soft, caption, figcaption { color: var(--soft); font-size: .9rem; }
caption { text-align: left; padding: .3rem 0; position: sticky; left: 0; max-width: calc(100vw - 2rem); }
.wide, figure { overflow-x: auto; } .wide code { overflow-wrap: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; }
.pictures { display: grid; grid-template-columns: repeat(5, 1fr); gap: .4rem; }
.pictures div { font-size: .85rem; color: var(--soft); }
.pictures img { width: 100%; display: block; image-rendering: auto; }
.pictures img.small { image-rendering: pixelated; }
@media (max-width: 40rem) { .pictures { grid-template-columns: repeat(2, 1fr); } }
svg { width: 100%; height: auto; min-width: 34rem; max-width: 46rem; display: block; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .noise { fill: var(--noise); } svg .worst { fill: var(--worst); }
svg .chance { fill: none; stroke: var(--soft); stroke-width: 2; } svg .range { stroke-width: 3; }
svg .range.noise { stroke: var(--noise); } svg .range.worst { stroke: var(--worst); }
svg path.curve { fill: none; stroke: var(--worst); stroke-width: 2; }
code { font-size: .92em; overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0 0 .3rem 1rem; max-width: 44rem; }
"""

_MEASURES = {
    "topk_intersection": ("top pixels that are left", lambda v: f"{100 * v:.0f}%"),
    "rank_correlation": ("rank correlation", lambda v: f"{v:.2f}"),
    "cosine": ("cosine", lambda v: f"{v:.3f}"),
    "center_shift": ("shift of the center, px", lambda v: f"{v:.1f}"),
}
_BAD = ("breaks", "not about the network", "finds no pixels that count", "worse than noise")
_GOOD = ("holds", "about the network", "finds pixels that count", "no worse than noise")


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _two(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def _whole(value: float) -> str:
    return f"{value:.0f}"


class _Numbers:
    """Writes numbers with where they are from."""

    def __init__(self, audited: Audited) -> None:
        self.audited = audited
        self._known: dict[tuple[str, str | None], Interval] = {}

    def interval(self, quantity: str, minus: str | None = None) -> Interval:
        if (quantity, minus) not in self._known:
            line = self.audited[quantity]
            found = study.measured(line) if minus is None else study.difference(line, self.audited[minus])
            self._known[quantity, minus] = found
        return self._known[quantity, minus]

    def one(self, quantity: str, stat: str, say: Callable[[float], str] = _two, minus: str | None = None) -> str:
        """One number of a quantity, or of the differences from another one."""
        if stat == "sum":
            value = float(np.sum(self.audited[quantity].values or ()))
        else:
            value = float(getattr(self.interval(quantity, minus), stat))
        other = "" if minus is None else f' data-minus="{escape(minus)}"'
        return f'<span class="n" data-q="{escape(quantity)}" data-s="{stat}"{other}>{escape(say(value))}</span>'

    def mean(self, quantity: str, say: Callable[[float], str] = _two, minus: str | None = None) -> str:
        """A mean with its interval; of a single image there is none."""
        if self.interval(quantity, minus).n == 1:
            return self.one(quantity, "mean", say, minus)
        low, high = (self.one(quantity, stat, say, minus) for stat in ("low", "high"))
        return f"{self.one(quantity, 'mean', say, minus)} [{low}, {high}]"

    def setting(self, *path: str, say: Callable[[Any], str] = str) -> str:
        """A setting of the description."""
        value: Any = self.audited.description
        for name in path:
            value = value[name]
        return f'<span class="c" data-c="{escape("/".join(path))}">{escape(say(value))}</span>'


def write(audited: Audited, standing: Sequence[Standing] | str = (), path: Path | str | None = None) -> Path:
    """Write the page of an audit; ``index.html`` in its folder by default. Arguments as for :func:`render`."""
    path = Path(path) if path is not None else audited.folder / "index.html"
    write_text(path, render(audited, standing))
    return path


def render(audited: Audited, standing: Sequence[Standing] | str = ()) -> str:
    """The page as HTML, with everything inside: no script, nothing that is fetched.

    Args:
        audited: what was found.
        standing: the networks of the book that can be compared; or a line that says why there are none.
    """
    numbers = _Numbers(audited)
    sections = [
        _findings(numbers),
        _left_out(numbers),
        _measures(numbers),
        _attacks(numbers),
        _pictures(numbers),
        _sanity(numbers),
        _certificates(numbers),
        _standing(numbers, standing),
        _words(),
        _how(numbers),
    ]
    title = f"Audit of {audited.description['name']}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>Audit of <code>{escape(audited.description['name'])}</code></h1>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _named(method: str) -> str:
    return escape(METHODS.get(method, method.replace("_", " ")))


def _word(finding: Finding) -> str:
    kind = "bad" if finding.word in _BAD else "good" if finding.word in _GOOD else ""
    return f'<span class="word {kind}">{escape(finding.word)}</span>'


def _constant(value: str) -> str:
    return f'<span class="k">{value}</span>'


def _findings(numbers: _Numbers) -> str:
    audited = numbers.audited
    found = study.findings(audited)
    notes = []
    if audited.description.get("explained") == "all":
        notes.append(
            "No image is classified as it is labelled: what is explained are the network's predictions, as they are."
        )
    if audited.description["stopped"] is not None:
        why = {"time": "The time was over", "interrupted": "It was interrupted"}[audited.description["stopped"]]
        measured = "all was measured that was planned" if found else "anything was measured"
        notes.append(f"{why} before {measured}; the same command goes on.")
    for question, lead in (("attack", "Under attack"), ("network", "With the weights in other places")):
        said = [
            f"{_named(each.method)} {'is ' if question == 'network' or each.word == 'open' else ''}{_word(each)}"
            for each in found
            if each.question == question
        ]
        if said:
            notes.append(f"{lead}: {'; '.join(said)}.")
    blocks = []
    for method in audited.description["config"]["methods"]:
        items = [f"<li>{_sentence(numbers, each)}</li>" for each in found if each.method == method]
        if (why := audited.description["refused"].get(method)) is not None:
            items.append(f"<li>There is no map: <code>{escape(why)}</code></li>")
        if items:
            blocks.append(f"<h3>{_named(method)}</h3>\n<ul>\n" + "\n".join(items) + "\n</ul>")
    return (
        f'<p class="soft">Intervals are of {_constant(_percent(study.LEVEL))} confidence, over images. '
        'What the <span class="word">words</span> mean is defined <a href="#words">below</a>.</p>\n'
        '<div class="findings">\n'
        + "".join(f"<p>{note}</p>\n" for note in [*notes, _floor_sentence(numbers)])
        + "\n".join(blocks)
        + "\n</div>"
    )


def _images(numbers: _Numbers, quantity: str, minus: str | None = None) -> str:
    many = numbers.interval(quantity, minus).n != 1
    return f"({numbers.one(quantity, 'n', _whole, minus)} image{'s' if many else ''})"


def _sentence(numbers: _Numbers, finding: Finding) -> str:
    quantity = finding.quantity
    n = _images(numbers, quantity, finding.minus)
    if finding.question == "attack":
        epsilon = _size(numbers, "epsilon")
        said = (
            f"It {_word(finding)}: the worst change of at most {epsilon} that keeps the prediction leaves "
            f"{numbers.mean(quantity, _percent)} of its {numbers.setting('k', say=lambda v: f'{v:,}')} top pixels. {n}"
            if finding.word != "open"
            else f"Under attack it is {_word(finding)}: the worst change of at most {epsilon} that was found leaves "
            f"{numbers.mean(quantity, _percent)} of its {numbers.setting('k', say=lambda v: f'{v:,}')} top pixels. {n}"
        )
        smaller = _smaller(numbers, finding.method, "worst")
        if smaller is not None:
            said += (
                f" Changes of at most {_size(numbers, 'smaller')} leave {numbers.mean(smaller, _percent)}. "
                f"{_images(numbers, smaller)}"
            )
        return said
    if finding.question == "noise":
        return (
            f"Attacks are {_word(finding)}: random noise of the same size leaves {numbers.mean(quantity, _percent)}; "
            f"the difference is {numbers.mean(quantity, _points, finding.minus)} points. {n}"
        )
    if finding.question == "network":
        return (
            f"It is {_word(finding)}: with every weight in another place the ranks of its pixels correlate at "
            f"{numbers.mean(quantity)} with what they were. {n}"
        )
    assert finding.minus is not None
    lead = "It" if finding.word != "open" else "Whether it finds pixels that count is"
    return (
        f"{lead} {_word(finding)}: its top pixels alone give the class a probability of "
        f"{numbers.one(quantity, 'mean')}, as many at random {numbers.one(finding.minus, 'mean')}; the difference is "
        f"{numbers.mean(quantity, _two, finding.minus)}. {n}"
    )


def _size(numbers: _Numbers, which: str) -> str:
    """Epsilon or the smaller one, as a fraction."""
    return f"{numbers.setting('config', which, say=lambda v: f'{v:g}')}/{_constant('255')}"


def _places(audited: Audited) -> list[tuple[str, str]]:
    """How both epsilons are called in the description, and in the names of quantities; the smaller if there is one."""
    config = audited.description["config"]
    return [(which, f"{config[which]:g}") for which in ("epsilon", "smaller") if config.get(which) is not None]


def _smaller(numbers: _Numbers, method: str, kind: str) -> str | None:
    """The share of top pixels within the smaller epsilon, where it was measured."""
    for which, place in _places(numbers.audited):
        quantity = f"{method}/{kind}/{place}/topk_intersection"
        if which == "smaller" and numbers.audited.get(quantity) is not None:
            return quantity
    return None


def _points(value: float) -> str:
    return f"{100 * value:.0f}".replace("-0", "0") if abs(value) < 0.005 else f"{100 * value:.0f}"


def _certified(numbers: _Numbers) -> list[str]:
    return [line.quantity for line in numbers.audited.lines if line.quantity.startswith("certificate/")]


def _floor_sentence(numbers: _Numbers) -> str:
    places = [name for name in _certified(numbers) if "/cosine/" in name]
    if not places:
        return "Nothing was certified: the time did not suffice for one image."
    # The largest change of which something can be said of every image.
    fine = [name for name in places if min(numbers.audited[name].values or (-1.0,)) > -1]
    if not fine:
        return "Nothing is proven of the smoothed gradient, not even for the smallest change that was asked."
    best = fine[-1]
    sigma = best.split("/")[1]
    return (
        "Proven, whatever the attack: averaged over noise of standard deviation "
        f'<span class="c" data-c="quantity:{escape(best)}:1">{sigma}</span>, the gradient keeps a cosine of at least '
        f"{numbers.mean(best)} with itself under every change of an l2 length up to "
        f'<span class="c" data-c="quantity:{escape(best)}:3">{best.split("/")[3]}</span>. The attacks above go much '
        f"further, and are on maps without smoothing. {_images(numbers, best)}"
    )


def _left_out(numbers: _Numbers) -> str:
    audited = numbers.audited
    if audited.get("correct") is None:
        return "<h2>What was left out</h2><p>The time did not suffice for predictions.</p>"
    unreadable = audited.description["unreadable"]
    rows = [
        f"<li>Images drawn from <code>{escape(audited.description['provenance']['dataset']['name'])}</code>: "
        f"{numbers.one('correct', 'n', _whole)}; classified as they are labelled: "
        f"{numbers.one('correct', 'sum', _whole)}.</li>",
        f"<li>Left out because they are not: {numbers.one('left_out/misclassified', 'sum', _whole)}"
        + ("" if audited.description.get("explained") == "all" else "; a map of a wrong prediction explains a mistake")
        + ".</li>",
        f"<li>Files that could not be read: {numbers.one('left_out/unreadable', 'sum', _whole)}"
        + (f", <code>{escape(', '.join(unreadable))}</code>" if unreadable else "")
        + ".</li>",
    ]
    if audited.description["plan"] is not None:
        rows.append(
            f"<li>Images that the minutes sufficed for: {numbers.setting('plan', 'images')}; with sanity checks: "
            f"{numbers.setting('plan', 'sanity_images')}.</li>"
        )
    for name, why in audited.description["attack_refused"].items():
        rows.append(f"<li><code>{escape(name)}</code> was refused: <code>{escape(why)}</code></li>")
    for name, cost in (audited.description["plan"] or {"methods": {}})["methods"].items():
        if not cost["attacks"]:
            rows.append(
                f"<li>{_named(name)}: an attack of its own takes more than its share of the time, or was refused; "
                "it was attacked by what was found for the others.</li>"
            )
    return "<h2>What was left out</h2>\n<ul>\n" + "\n".join(rows) + "\n</ul>"


def _measures(numbers: _Numbers) -> str:
    """Worst, noise and chance, in every measure."""
    audited = numbers.audited
    place = f"{audited.description['config']['epsilon']:g}"
    rows = []
    shown = []
    for method in audited.description["config"]["methods"]:
        for which, at in _places(audited):
            for kind, label in ((f"worst/{at}", "worst attack"), (f"noise/{at}", "random noise")):
                rows += _row(numbers, method, kind, f"{label}, {_size(numbers, which)}")
        rows += _row(numbers, method, "shuffled", "pixels shuffled")
        if audited.get(f"{method}/noise/{place}/topk_intersection") is not None:
            shown.append(method)
    if not rows:
        return ""
    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name, _ in _MEASURES.values())
    return (
        "<h2>How far maps move</h2>\n"
        "<p>Of each image and each measure the worst over all attacks that keep the prediction; random noise of the "
        "same size, the mean of several draws; and what the measures say of a map whose pixels have been shuffled, "
        "which is chance. Within the smaller size there are two attacks: where everything breaks at the larger one, it "
        "still tells maps apart.</p>\n"
        + _dots(numbers, shown, place)
        + '<div class="wide"><table><caption>Means with intervals. The last column is worse when it is larger; the '
        "others are worse when they are smaller.</caption>"
        f'<thead><tr><th scope="col">map</th><th scope="col">change</th>{head}<th scope="col" class="number">images'
        f"</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(numbers: _Numbers, method: str, kind: str, label: str) -> list[str]:
    if numbers.audited.get(f"{method}/{kind}/topk_intersection") is None:
        return []
    cells = "".join(
        f'<td class="number">{numbers.mean(f"{method}/{kind}/{measure}", say)}</td>'
        for measure, (_, say) in _MEASURES.items()
    )
    n = numbers.one(f"{method}/{kind}/topk_intersection", "n", _whole)
    return [f'<tr><th scope="row">{_named(method)}</th><td>{label}</td>{cells}<td class="number">{n}</td></tr>']


def _dots(numbers: _Numbers, methods: Sequence[str], place: str) -> str:
    """Shares of top pixels on one axis: a row a method."""
    if not methods:
        return ""
    left, right, step = 190, 700, 34
    height = step * len(methods) + 44

    def at(value: float) -> float:
        return left + (right - left) * value

    parts = [f'<line class="axis" x1="{at(v):.1f}" y1="8" x2="{at(v):.1f}" y2="{height - 32}"/>' for v in (0, 0.5, 1)]
    parts += [
        f'<text x="{at(v):.1f}" y="{height - 14}" text-anchor="middle">{_constant_svg(_percent(v))}</text>'
        for v in (0, 0.5, 1)
    ]
    for i, method in enumerate(methods):
        y = 22 + step * i
        parts.append(f'<text x="{left - 12}" y="{y + 5}" text-anchor="end">{_named(method)}</text>')
        chance = numbers.audited.get(f"{method}/shuffled/topk_intersection")
        if chance is not None:
            parts.append(f'<circle class="chance" cx="{at(chance.value):.1f}" cy="{y}" r="5"/>')
        for kind in ("noise", "worst"):
            name = f"{method}/{kind}/{place}/topk_intersection"
            if numbers.audited.get(name) is None:
                continue
            found = numbers.interval(name)
            parts.append(
                f'<line class="range {kind}" x1="{at(found.low):.1f}" y1="{y}" x2="{at(found.high):.1f}" y2="{y}"/>'
                f'<circle class="{kind}" cx="{at(found.mean):.1f}" cy="{y}" r="6"/>'
            )
    return (
        f'<figure><svg viewBox="0 0 720 {height}" role="img" aria-label="Share of the top pixels that is left, a row a '
        'method: after the worst attack, after random noise, and by chance. The table has the numbers.">'
        f"{''.join(parts)}</svg><figcaption>Share of the top pixels that is left: filled orange after the worst "
        "attack, filled blue after random noise, at the larger size, each with its interval; the open circle is chance."
        "</figcaption>"
        "</figure>\n"
    )


def _constant_svg(text: str) -> str:
    return f'<tspan class="k">{text}</tspan>'


def _attacks(numbers: _Numbers) -> str:
    """Every attack by itself."""
    audited = numbers.audited
    names = {place: which for which, place in _places(audited)}
    rows = []
    for line in audited.lines:
        parts = line.quantity.split("/")
        if len(parts) != 4 or parts[2] not in names or parts[3] != "success":
            continue
        method, attack, place = parts[:3]
        share = f"{method}/{attack}/{place}/topk_intersection"
        shift = f"{method}/{attack}/{place}/center_shift"
        rows.append(
            f'<tr><th scope="row">{_named(method)}</th><td>{_attack_name(attack)}</td>'
            f'<td class="number">{_size(numbers, names[place])}</td>'
            f'<td class="number">{numbers.one(line.quantity, "sum", _whole)} of '
            f"{numbers.one(line.quantity, 'n', _whole)}</td>"
            f'<td class="number">{numbers.mean(share, _percent)}</td>'
            f'<td class="number">{numbers.mean(shift, _MEASURES["center_shift"][1])}</td></tr>'
        )
    if not rows:
        return ""
    return (
        "<h2>Attack by attack</h2>\n<p>Where an attack keeps the prediction of no changed image it has changed "
        "nothing, and counts like that. A number after a name counts the starts. Transfers are images that were "
        "found for another map.</p>\n"
        '<div class="wide"><table><caption>After rounding to whole numbers of eight bits, as in the image files.'
        '</caption><thead><tr><th scope="col">map</th><th scope="col">attack</th>'
        '<th scope="col" class="number">at most</th><th scope="col" class="number">kept the prediction</th>'
        '<th scope="col" class="number">top pixels that are left'
        '</th><th scope="col" class="number">shift of the center, px</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _attack_name(attack: str) -> str:
    if attack.startswith("transfer-"):
        return f"transfer from {_named(attack.removeprefix('transfer-'))}"
    return f"<code>{escape(attack)}</code>"


def _pictures(numbers: _Numbers) -> str:
    audited = numbers.audited
    if not audited.cases:
        return ""
    figures = []
    epsilon = audited.description["config"]["epsilon"] / 255
    for case in audited.cases:
        name = audited.description["class_names"].get(str(case.index), "")
        top = ceiling(case.before)
        change = ((case.attacked - case.image) / (2 * epsilon) + 0.5).clamp(0, 1)
        shown = [
            (case.image, "image", f"the image, classified as {name}"),
            (_colored(case.before, top), "its map", f"map by {METHODS.get(case.method, case.method)} of the image"),
            (case.attacked, "changed", f"the changed image, still classified as {name}; the change is hardly seen"),
            (
                _colored(case.after, ceiling(case.after)),
                "its map",
                f"map by {METHODS.get(case.method, case.method)} of the changed image, other pixels are bright",
            ),
            (change, "the change", "the change, gray where there is none, at full contrast"),
        ]
        cells = "".join(f"<div>{_img(picture, alt)}{label}</div>" for picture, label, alt in shown)
        files = [path for path in audited.description["files"].get(case.method, []) if f"/{case.index:03d}-" in path]
        figures.append(
            f'<figure><div class="pictures">{cells}</div><figcaption>{_named(case.method)} of image '
            f"<code>{case.index}</code>, <code>{escape(name)}</code>; found by {_attack_name(case.attack)}. Files: "
            f"<code>{escape(', '.join(files))}</code></figcaption></figure>"
        )
    return "<h2>The worst cases</h2>\n" + "\n".join(figures)


def _colored(heat: Tensor, top: float) -> Tensor:
    colors = plt.get_cmap(MAP)(np.clip(heat.numpy() / top, 0, 1))[..., :3]
    return torch.from_numpy(np.ascontiguousarray(colors)).permute(2, 0, 1)


def _img(picture: Tensor, alt: str) -> str:
    levels = (picture.permute(1, 2, 0).squeeze(-1) * 255).round().to(torch.uint8).numpy()
    small = min(levels.shape[:2]) < 100
    stream = io.BytesIO()
    if small:
        Image.fromarray(levels).save(stream, format="PNG")
    else:
        Image.fromarray(levels).save(stream, format="JPEG", quality=85)
    kind = "png" if small else "jpeg"
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img class="{"small" if small else ""}" alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'


def _sanity(numbers: _Numbers) -> str:
    audited = numbers.audited
    rows, curves = [], []
    for method, stages in audited.description["stages"].items():
        last = f"{method}/randomized/{len(stages)}"
        cells = "".join(
            f'<td class="number">{numbers.mean(f"{last}/{measure}", say)}</td>'
            for measure, say in (("rank_correlation", _two), ("topk_intersection", _percent), ("ssim", _two))
        )
        scores = "".join(
            f'<td class="number">{numbers.mean(f"{method}/insertion/{kind}")}</td>'
            for kind in ("map", "randomized", "shuffled")
        )
        n = numbers.one(f"{last}/ssim", "n", _whole)
        rows.append(f'<tr><th scope="row">{_named(method)}</th>{cells}{scores}<td class="number">{n}</td></tr>')
        curves.append(_curve(numbers, method, stages))
    if not rows:
        return ""
    return (
        "<h2>Are the maps about the network?</h2>\n"
        "<p>Weights change places within their layer, from the last layer to the first; what is left of a map then is "
        "about the image, and not about what the network has learned. Insertion is the class's mean probability while "
        "only the top pixels of a map are shown, of which more and more: a map of shuffled pixels says what the score "
        "is worth.</p>\n"
        + "".join(curves)
        + '<div class="wide"><table><caption>After every layer: how alike map and former map are. Then insertion, by '
        "three maps.</caption><thead><tr>"
        + "".join(
            f'<th scope="col"{" class=number" if i else ""}>{name}</th>'
            for i, name in enumerate(
                (
                    "map",
                    "rank correlation",
                    "top pixels in common",
                    "SSIM",
                    "insertion, map",
                    "insertion, weights elsewhere",
                    "insertion, pixels shuffled",
                    "images",
                )
            )
        )
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _curve(numbers: _Numbers, method: str, stages: Sequence[Sequence[str]]) -> str:
    """Rank correlation against the stage."""
    values = [1.0] + [
        numbers.audited[f"{method}/randomized/{i + 1}/rank_correlation"].value for i in range(len(stages))
    ]
    left, right, top, bottom = 190, 700, 10, 90

    def place(i: int, value: float) -> str:
        x = left + (right - left) * i / max(1, len(values) - 1)
        return f"{x:.1f} {bottom - (bottom - top) * max(value, 0):.1f}"

    path = "M" + " L".join(place(i, value) for i, value in enumerate(values))
    said = ", ".join(_two(value) for value in values)
    return (
        '<div class="wide"><svg viewBox="0 0 720 104" role="img" '
        f'aria-label="Rank correlation of maps by {_named(method)} with the former ones, from no layer randomized '
        f'to all: {said}">'
        f'<text x="178" y="54" text-anchor="end">{_named(method)}</text>'
        f'<line class="axis" x1="{left}" y1="{top}" x2="{right}" y2="{top}"/>'
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
        f'<text x="{left - 4}" y="{top + 6}" text-anchor="end">{_constant_svg("1")}</text>'
        f'<text x="{left - 4}" y="{bottom + 4}" text-anchor="end">{_constant_svg("0")}</text>'
        f'<path class="curve" d="{path}"/></svg></div>'
    )


def _certificates(numbers: _Numbers) -> str:
    places = [name for name in _certified(numbers) if "/cosine/" in name]
    if not places:
        return ""
    rows = []
    for name in places:
        values = numbers.audited[name].values or ()
        said = numbers.mean(name) if min(values) > -1 else "nothing, for some images"
        rows.append(
            f'<tr><th scope="row" class="number"><span class="c" data-c="quantity:{escape(name)}:3">'
            f'{name.split("/")[3]}</span></th><td class="number">{said}</td>'
            f'<td class="number">{numbers.one(name, "n", _whole)}</td></tr>'
        )
    return (
        "<h2>What is proven</h2>\n<p>A floor for the cosine of the gradient, averaged over Gaussian noise, with itself "
        "at every point within an l2 distance. It holds for each image with probability "
        f"{_constant(f'{100 * (1 - study.ALPHA):g}%')}, whatever the attack, and says nothing of maps without "
        "smoothing. "
        f"{numbers.setting('plan', 'samples', say=lambda v: f'{v:,}')} samples an image.</p>\n"
        '<div class="wide"><table><thead><tr><th scope="col" class="number">l2 length</th>'
        '<th scope="col" class="number">certified cosine</th><th scope="col" class="number">images</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _standing(numbers: _Numbers, standing: Sequence[Standing] | str) -> str:
    if isinstance(standing, str):
        return f"<h2>Among the networks of the book</h2>\n<p>Not compared: <code>{escape(standing)}</code></p>"
    if not standing:
        return (
            "<h2>Among the networks of the book</h2>\n<p>Not comparable: no network of the book was measured with "
            "these methods at this epsilon and share of top pixels.</p>"
        )
    blocks = []
    for each in standing:
        method, attack, *_ = each.quantity.split("/")
        mine = (numbers.audited[each.quantity].value, "")
        rows = [(peer.value, _peer_row(peer)) for peer in each.peers]
        own = (
            '<tr><th scope="row">this network</th><td>these images</td>'
            f'<td class="number">{numbers.setting("plan", "methods", method, "iterations")}</td>'
            f'<td class="number">{numbers.one(each.quantity, "mean", _percent)}</td></tr>'
        )
        rows.append((mine[0], own))
        body = "".join(row for _, row in sorted(rows, key=lambda row: row[0]))
        blocks.append(
            f"<h3>{_named(method)}, <code>{escape(attack)}</code></h3>\n"
            '<div class="wide"><table><thead><tr><th scope="col">network</th><th scope="col">images</th>'
            '<th scope="col" class="number">steps</th><th scope="col" class="number">top pixels that are left</th></tr>'
            f"</thead><tbody>{body}</tbody></table></div>"
        )
    return (
        "<h2>Among the networks of the book</h2>\n<p>The same attack on the same map, at the same epsilon and share of "
        "top pixels. Images differ, and where the steps do the attacks are not equally strong: read the order with "
        "care.</p>\n" + "\n".join(blocks)
    )


def _peer_row(peer: study.Peer) -> str:
    network = f"{peer.network}" + (f", mean of {peer.networks}" if peer.networks > 1 else "")
    return (
        f'<tr><th scope="row"><code>{escape(network)}</code></th><td><code>{escape(peer.dataset)}</code></td>'
        f'<td class="number"><span class="r">{peer.iterations}</span></td>'
        f'<td class="number"><span class="r">{_percent(peer.value)}</span></td></tr>'
    )


def _words() -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}.</dd>" for word, meaning in study.WORDS.items())
    return (
        f'<h2 id="words">What the words mean</h2>\n<p>With fewer than {_constant(str(study.ENOUGH))} images nothing is '
        f"decided.</p>\n<dl>{items}</dl>"
    )


def _how(numbers: _Numbers) -> str:
    provenance = numbers.audited.description["provenance"]
    plan = numbers.audited.description["plan"]
    said = {
        "weights": (numbers.audited.lines[0].weights_sha256 or "") if numbers.audited.lines else "",
        "images": provenance["dataset"]["sha256"],
        "made of": provenance["dataset"].get("prepared", ""),
        "machine": f"{provenance['cpu']}, {provenance['threads']} thread{'s' * (provenance['threads'] != 1)}",
        "software": ", ".join(f"{k} {v}" for k, v in provenance["versions"].items()),
        "commit": provenance["commit"],
        "date": provenance["date"],
    } | provenance["source"]
    items = "".join(f"<dt>{escape(k)}</dt><dd><code>{escape(str(v))}</code></dd>" for k, v in said.items() if v)
    steps = []
    if plan is not None:
        for name, each in plan["methods"].items():
            if each["attacks"]:
                iterations, step = (numbers.setting("plan", "methods", name, key) for key in ("iterations", "step"))
                steps.append(f"{_named(name)} {iterations} of {step}/{_constant('255')}")
    return (
        "<h2>How it was measured</h2>\n"
        "<p>Nothing was tuned: what a first image costs has decided the number of images, steps, draws and samples "
        f"within {numbers.setting('config', 'minutes', say=lambda v: f'{v:g}')} minutes"
        + (f". Steps of each attack: {'; '.join(steps)}" if steps else "")
        + ". All attacks stay within the ball and within black and white; their images are rounded to whole numbers of "
        "eight bits, inside of the ball, and measured after that. The files of the pictures hold these very numbers; "
        "<code>audit.jsonl</code> has every number of this page, a line each with a value an image, and "
        "<code>audit.json</code> what was run.</p>\n"
        f"<dl>{items}</dl>"
    )
