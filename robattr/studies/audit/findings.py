"""What an audit has found, in words that are defined here, and where the network stands among those of the book."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robattr.studies import records
from robattr.studies.audit.results import Audited
from robattr.studies.intervals import Interval, interval, two_way_interval
from robattr.studies.records import Measurement

__all__ = [
    "ENOUGH",
    "HALF",
    "LEVEL",
    "WORDS",
    "Finding",
    "Peer",
    "Recorded",
    "Standing",
    "difference",
    "findings",
    "measured",
    "peers",
    "standing",
]

LEVEL = 0.95
"""Of confidence of every interval."""
HALF = 0.5
"""What decides: half of the top pixels, half of a perfect rank correlation."""
ENOUGH = 5
"""Images without which nothing is decided."""

Word = Literal[
    "breaks", "holds", "worse than noise", "no worse than noise", "about the network", "not about the network",
    "finds pixels that count", "finds no pixels that count", "open",
]  # fmt: skip

WORDS: dict[str, str] = {
    "breaks": "the worst attack leaves fewer than half of the top pixels; the whole interval is below one half",
    "holds": "it leaves more than half; the whole interval is above one half. Stronger attacks than these may exist",
    "worse than noise": "the worst attack leaves fewer top pixels than random noise of the same size, image by image",
    "no worse than noise": "it leaves more of them than the noise does",
    "about the network": "when all weights have changed places, the ranks of the map's pixels correlate at less than "
    "one half with what they were; the whole interval is below",
    "not about the network": "they correlate at more than one half: a network that has learned nothing has nearly the "
    "same map",
    "finds pixels that count": "the network is surer of its class where only the map's top pixels are shown than where "
    "as many pixels are chosen at random, image by image",
    "finds no pixels that count": "it is less sure",
    "open": "the interval has the deciding value inside, or there are too few images; or a map has withstood what was "
    "found for other maps, and no attack of its own was run on every image",
}
"""Every word of a verdict, and what it means."""


@dataclass(frozen=True)
class Finding:
    """One verdict on one method.

    Attributes:
        method: of attribution.
        question: ``attack``, ``noise``, ``network`` or ``pixels``.
        word: of :data:`WORDS`.
        quantity: whose values decide.
        minus: the quantity whose values are subtracted, image by image; None where nothing is.
        interval: of the values or of their differences.
    """

    method: str
    question: Literal["attack", "noise", "network", "pixels"]
    word: Word
    quantity: str
    minus: str | None
    interval: Interval


def measured(line: Measurement) -> Interval:
    """The mean of a line with its interval: exact for shares of images, bootstrapped for all else."""
    values = np.asarray(line.values, dtype=np.float64)
    if line.unit in ("share of images", "share of files") and len(values) > 1:
        return two_way_interval(values[None], shares=True, level=LEVEL)
    return interval(values, level=LEVEL)


def difference(line: Measurement, minus: Measurement) -> Interval:
    """The mean of differences of the first images that both have, image by image, with its interval."""
    return interval(_difference(line, minus), level=LEVEL)


def _difference(line: Measurement, minus: Measurement) -> NDArray[np.float64]:
    a, b = (np.asarray(each.values, dtype=np.float64) for each in (line, minus))
    n = min(len(a), len(b))
    return a[:n] - b[:n]


def findings(audited: Audited) -> list[Finding]:
    """Verdicts of every method that could be measured, in the order of the methods and questions."""
    return [each for method in audited.description["config"]["methods"] for each in _of(audited, method)]


def _of(audited: Audited, method: str) -> Iterator[Finding]:
    place = f"{audited.description['config']['epsilon']:g}"
    worst, noise = (f"{method}/{kind}/{place}/topk_intersection" for kind in ("worst", "noise"))
    attacked = audited.get(worst)
    if attacked is not None:
        found = measured(attacked)
        word = _word(found, HALF, "breaks", "holds")
        own = audited.get(f"{method}/top-k/{place}/topk_intersection")
        if word == "holds" and (own is None or own.n < found.n):
            word = "open"
        yield Finding(method, "attack", word, worst, None, found)
        if (beside := audited.get(noise)) is not None:
            less = difference(beside, attacked)
            yield Finding(
                method, "noise", _word(less, 0.0, "no worse than noise", "worse than noise"), noise, worst, less
            )
    stages = audited.description["stages"].get(method)
    if stages:
        last = f"{method}/randomized/{len(stages)}/rank_correlation"
        found = measured(audited[last])
        word = _word(found, HALF, "about the network", "not about the network")
        yield Finding(method, "network", word, last, None, found)
        kept, chance = f"{method}/insertion/map", f"{method}/insertion/shuffled"
        more = difference(audited[kept], audited[chance])
        word = _word(more, 0.0, "finds no pixels that count", "finds pixels that count")
        yield Finding(method, "pixels", word, kept, chance, more)


def _word(found: Interval, deciding: float, below: Word, above: Word) -> Word:
    if found.n < ENOUGH:
        return "open"
    return below if found.high < deciding else above if found.low > deciding else "open"


# --------------------------------------------------------------------------------------------------------------------
# Among the networks of the book


@dataclass(frozen=True)
class Peer:
    """Networks of the book under one attack on one method: the mean over those that differ in their seed alone.

    Attributes:
        grid: of their records.
        network: what they are, and how they were trained.
        dataset: the images, by their name.
        networks: how many.
        iterations: steps of the attack.
        value: mean share of the top pixels that is left.
    """

    grid: str
    network: str
    dataset: str
    networks: int
    iterations: int
    value: float


@dataclass(frozen=True)
class Standing:
    """One attack on one method of the audit, and the networks of the book that had the same.

    Attributes:
        quantity: of the audit.
        iterations: steps of the audit's attack.
        peers: those that can be compared, the ones with the least left first.
    """

    quantity: str
    iterations: int
    peers: tuple[Peer, ...]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A record of attacks: its grid, what was run, and the file of its numbers."""

    grid: str
    content: dict[str, Any]
    lines: Path


def peers(folder: Path | str) -> list[Recorded]:
    """The records of attacks on maps below a folder, such as ``results/reference``."""
    found = []
    for path in sorted(Path(folder).glob("*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("experiment") == "fragility":
            found.append(Recorded(path.parent.name, content, path.with_suffix(".jsonl")))
    return found


def standing(audited: Audited, recorded: Iterable[Recorded]) -> list[Standing]:
    """What the same single attacks did to networks of the book, where that can be compared.

    The same method, attack, epsilon and share of top pixels; data, network and number of steps are named, not matched.
    Random signs and targeted attacks are left out: the audit draws more signs, and aims elsewhere.
    """
    config, plan = audited.description["config"], audited.description["plan"]
    if plan is None:
        return []
    _, height, width = audited.description["shape"]
    share = audited.description["k"] / (height * width)
    groups: dict[str, dict[tuple[str, str, str, int], list[float]]] = {}
    places = [
        f"{method}/{attack}/{config['epsilon']:g}/topk_intersection"
        for method in config["methods"]
        for attack in ("top-k", "mass-center")
    ]
    places = [place for place in places if audited.get(place) is not None]
    for record in recorded:
        theirs = record.content["config"]
        if theirs.get("attribution_baseline", "black") != "black":
            continue
        # Pictures of the book have three channels.
        if abs(theirs["k"] / (record.content["dimension"] / 3) - share) > 1e-3 * share:
            continue
        asked = {f"{method}/{epsilon:g}" for method in theirs["attributions"] for epsilon in theirs["epsilons"]}
        if not any(f"{place.split('/')[0]}/{config['epsilon']:g}" in asked for place in places):
            continue
        for line in records.read(record.lines):
            if line.quantity in places:
                trained = f"{line.model}, {line.objective}" if line.objective else line.model
                key = (record.grid, trained, line.dataset, int(theirs["iterations"]))
                groups.setdefault(line.quantity, {}).setdefault(key, []).append(line.value)
    found = []
    for place in places:
        rows = [
            Peer(grid, network, dataset, len(values), iterations, float(np.mean(values)))
            for (grid, network, dataset, iterations), values in groups.get(place, {}).items()
        ]
        if rows:
            iterations = plan["methods"][place.partition("/")[0]]["iterations"]
            found.append(Standing(place, iterations, tuple(sorted(rows, key=lambda peer: peer.value))))
    return found
