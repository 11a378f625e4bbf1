"""Do the certified numbers of records follow from what is recorded beside them? In interval arithmetic, without torch.

    pip install python-flint
    python results/check_certificates.py [FOLDER or FILE.jsonl ...] [--every N]

Without arguments all records of certifications below ``results/reference`` are read; ``--every 10`` takes every tenth
image. What is certified follows from a few numbers for each image: how many samples there were, their mean projection
on a direction, its variance and its least, the largest eigenvalue, the probability of failure. This script derives the
certified numbers from these again, with formulas of its own: nothing of the package is imported. Every step is done in
balls of 80 bits that hold the true value (FLINT), so that rounding decides nothing. Where a certificate has an optimum,
any point gives a valid bound; it is searched in floating point, and what it gives is computed in balls.

Confirmed is what is proved to be certified, or less. What is not confirmed is named, and the exit status is 1.

Three things are taken from the records as they are: bounds that need all draws in their order (of lengths in records
without ``heatmaps``, of a mass and its deviation, of a center's spread), the distances at which pixels of the mean map
leave its top (``reach``), and the eigenvalue itself. Lengths at a ``smallest_radius`` are interpolated, there as here.
Numbers of records without ``heatmaps`` were rounded to the nearest of 7 digits, so they stand for all that are rounded
to them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist

from flint import acb, arb, ctx

BITS = 80
HALF_DIGIT = 5e-7  # relative: half a unit of the seventh digit, where that is smallest
Numbers = dict[str, list[float]]


# --- the normal law -------------------------------------------------------------------------------------------------


def below(t: arb) -> arb:
    """The standard normal probability of less than t."""
    return (-t / arb(2).sqrt()).erfc() / 2


def quantile(p: arb, *, up: bool) -> arb:
    """A t with ``below(t) >= p`` if up, else ``<= p``, as near as floating point comes."""
    middle = float(p.mid())
    if up and middle >= 1:
        return arb("inf")
    if not up and middle <= 0:
        return arb("-inf")
    # Where floating point cannot tell p from 0 or 1 the search below goes on from there.
    t = NormalDist().inv_cdf(min(max(middle, 1e-300), 1 - 2**-53))
    step = 1e-15
    while not (below(arb(t)) >= p if up else below(arb(t)) <= p):
        t += (step if up else -step) * max(1, abs(t))
        step *= 2
        if abs(t) > 50:
            return arb("inf") if up else arb("-inf")
    return arb(t)


# --- confidence bounds ----------------------------------------------------------------------------------------------


def mean_is_at_least(
    bound: float, mean: float, variance: float, least: float, samples: int, alpha: arb, *, low: float
) -> bool:
    """Whether betting rejects every smaller mean of draws in [low, 1] with these moments, at one of 16 stakes."""
    if bound <= low:
        return True
    width = arb(1) - low
    m, x, first = ((arb(v) - low) / width for v in (bound, mean, least))
    v = arb(variance) / width**2
    lost = HALF_DIGIT * 2 * abs(arb(mean)) / width  # by which the mean may have been rounded down
    for j in range(16):
        c = arb("0.98") / 2**j
        r = c * (1 - (first - lost) / m)
        if not (m < x and r < 1):
            return False
        if r <= 0:
            r = arb(2) ** -40
        w = (-((-r).log1p()) - r) / r**2
        u = c / m
        gain = samples * (u * (x - m) - w * u**2 * (v + (x - m) ** 2))
        if gain >= ((j + 1) * (j + 2) / alpha).log():
            return True
    return False


def mean_of_largest_is_at_most(bound: float, estimate: float, samples: int, alpha: arb, limit: arb) -> bool:
    """Whether Chernoff's inequality excludes a larger eigenvalue: for numbers in [0, limit] with this mean."""
    q, p = arb(estimate) / limit, arb(bound) / limit
    if p >= 1:  # no number is larger
        return True
    if not (p > q and q >= 0):
        return False
    divergence = (1 - q) * ((1 - q) / (1 - p)).log()
    if q > 0:
        divergence += q * (q / p).log()
    return bool(samples * divergence >= (1 / alpha).log())


def error_of_mean(samples: int, alpha: arb, length: arb, spread: arb) -> arb:
    """How far a mean of unit vectors is from its expectation: the better of McDiarmid's and Bousquet's inequality."""
    log, trace = (1 / alpha).log(), 1 - length**2
    mean = (trace / samples).sqrt()
    first = (2 * log / samples).sqrt()
    share = spread.min(trace)
    second = (2 * log * (share + 4 * mean) / samples).sqrt() + 2 * log / (3 * samples)
    return mean + first.min(second)


@functools.cache
def share_of_votes(count: int, samples: int, alpha: float, *, up: bool) -> arb:
    """A share of which so many votes, or more (fewer if up), have a probability of alpha at most (Clopper and Pearson).

    By secants in floating point, from where a normal law would have it; the probability at what it gives is computed in
    balls.
    """
    if count == (samples if up else 0):
        return arb(int(up))
    a, b = (samples - count, count + 1) if up else (count, samples - count + 1)  # of 1 - p if up, else of p

    def excess(odds: float) -> float:
        """Of the logarithm of the probability, at a p with these logarithmic odds, over that of alpha."""
        p = arb(1) / (1 + (-arb(odds)).exp())
        return float((p.beta_lower(arb(a), arb(b), True) / arb(alpha)).log().mid())

    def rare(p: float) -> bool:
        return bool(arb(p).beta_lower(arb(a), arb(b), True) <= arb(alpha))

    t = NormalDist().inv_cdf(alpha)
    middle = (a + t * t / 2) / (samples + t * t)
    wilson = middle + t * math.sqrt(a * (1 - a / samples) + t * t / 4) / (samples + t * t)
    wilson = min(max(wilson, 1e-9), 1 - 1e-9)
    points = [math.log(wilson / (1 - wilson)) - step for step in (0.1, 0.0)]
    values = [excess(odds) for odds in points]
    for _ in range(100):
        if values[1] == values[0] or abs(points[1] - points[0]) < 1e-13:
            break
        step = values[1] * (points[1] - points[0]) / (values[1] - values[0])
        points = [points[1], points[1] - max(-1.0, min(step, 1.0))]
        values = [values[1], excess(points[1])]
    p, step = 1 / (1 + math.exp(-points[1])), 1e-15
    while not rare(p):
        p, step = p * (1 - step), min(2 * step, 0.5)
    return 1 - arb(p) if up else arb(p)


# --- the likelihood ratio, cut off ----------------------------------------------------------------------------------


def cut(a: arb, low: float, high: float) -> tuple[arb, arb, arb, arb]:
    """Of L, cut off where its t is low and high: mean, deviation, and how much was added below and taken above."""
    s, t = arb(low), arb(high)
    bottom, top = (a * s - a * a / 2).exp(), (a * t - a * a / 2).exp()
    p, q = below(s), below(-t)
    mean = bottom * p + below(t - a) - below(s - a) + top * q
    square = bottom**2 * p + (a * a).exp() * (below(t - 2 * a) - below(s - 2 * a)) + top**2 * q
    return mean, (square - mean**2).max(arb(0)).sqrt(), bottom * p - below(s - a), below(a - t) - top * q


def cut_roughly(a: float, low: float, high: float) -> tuple[float, float, float, float]:
    """The same in floating point."""

    def phi(t: float) -> float:
        return math.erfc(-t / math.sqrt(2)) / 2

    bottom, top = math.exp(a * low - a * a / 2), math.exp(a * high - a * a / 2)
    p, q = phi(low), phi(-high)
    under, over = bottom * p - phi(low - a), phi(a - high) - top * q
    mean = 1 + under - over
    variance = (bottom - 1) ** 2 * p + (top - 1) ** 2 * q - (mean - 1) ** 2
    for weight, k in ((1.0, 0), (-2.0, 1), (math.exp(a * a), 2)):
        variance += weight * (phi(high - k * a) - phi(low - k * a))
    return mean, math.sqrt(max(variance, 0.0)), under, over


def best_cut(a: float, cost: Callable[[float, float, float, float], float]) -> tuple[float, float]:
    """The cut-off of least cost: the best of a grid, then the method of Nelder and Mead."""

    def at(point: tuple[float, float]) -> float:
        low, high = max(point[0], -12.0), min(point[1], 2 * a + 12.0)
        try:
            return cost(*cut_roughly(a, low, high)) if low <= high else math.inf
        except OverflowError:
            return math.inf

    grid = [a / 2 + (a + 6) * v for v in (-1.0, -0.7, -0.5, -0.3, -0.15, 0.0, 0.15, 0.3, 0.5, 0.7, 1.0)]
    start = min(itertools.combinations(grid, 2), key=at)
    corners = sorted([start, (start[0] + 0.3, start[1]), (start[0], start[1] + 0.3)], key=at)
    for _ in range(120):
        if max(abs(c - d) for one in corners[1:] for c, d in zip(one, corners[0], strict=True)) < 1e-9:
            break
        center = [(corners[0][i] + corners[1][i]) / 2 for i in (0, 1)]

        def along(step: float, center: list[float] = center, worst: tuple[float, float] = corners[2]) -> tuple:
            return tuple(c + step * (c - w) for c, w in zip(center, worst, strict=True))

        new = along(1.0)
        if at(new) < at(corners[0]):
            new = min(new, along(2.0), key=at)
        elif at(new) >= at(corners[1]):
            new = min(along(0.5), along(-0.5), key=at)
            if at(new) >= at(corners[2]):
                corners = [
                    corners[0],
                    *(tuple((v + b) / 2 for v, b in zip(c, corners[0], strict=True)) for c in corners[1:]),
                ]
                corners.sort(key=at)
                continue
        corners = sorted([*corners[:2], new], key=at)
    low, high = corners[0]
    return max(low, -12.0), min(high, 2 * a + 12.0)


# --- certificates ---------------------------------------------------------------------------------------------------


def sines(length: arb, spread: arb, shift: arb) -> Iterator[arb]:
    """Sines of the largest angle by the spectral certificate: as it is, and with the likelihood ratio cut off."""
    lam = spread.min(1 - length**2)
    yield ((shift * shift).expm1() * lam).sqrt() / length
    root = math.sqrt(max(float(lam.mid()), 0.0))

    def cost(mean: float, deviation: float, under: float, over: float) -> float:
        return (root * deviation + under + over) / mean if mean > 1e-12 else math.inf

    mean, deviation, under, over = cut(shift, *best_cut(float(shift.mid()), cost))
    yield (lam.sqrt() * deviation + under + over) / mean / length


def distances(spread: arb, shift: arb, bound: arb) -> Iterator[arb]:
    """How far the mean of a vector moves at most, none of whose samples is farther than the bound from it."""
    if shift == 0 or spread == 0:
        yield arb(0)
        return
    yield 2 * bound
    yield ((shift * shift).expm1() * spread).sqrt()
    root, far = math.sqrt(float(spread.mid())), float(bound.mid())
    where = best_cut(float(shift.mid()), lambda _, deviation, under, over: root * deviation + far * (under + over))
    _, deviation, under, over = cut(shift, *where)
    yield spread.sqrt() * deviation + bound * (under + over)


def least_means(mean: float, deviation: float, law: list[float], samples: int, alpha: arb, shift: arb) -> Iterator[arb]:
    """What the mean of a number in [0, 1] is at least: by its mean, its deviation, and the law of its draws."""
    m, sd = arb(mean), arb(deviation)
    yield below(quantile(m, up=False) - shift)
    yield m - (shift * shift).expm1().sqrt() * sd
    where = best_cut(float(shift.mid()), lambda e, d, under, _: d * deviation + under - e * mean)
    expected, spread, under, _ = cut(shift, *where)
    yield expected * m - spread * sd - under
    # The largest likelihood ratios go to the smallest draws; a share of the largest draws counts as 0.
    lost = ((1 / alpha).log() / (2 * samples)).sqrt()
    sizes = [samples // len(law) + (j < samples % len(law)) for j in range(len(law))]
    total, before, done = arb(0), 0.0, 0
    for size, value in zip(sizes, sorted(law), strict=True):
        at = lost + arb(done) / samples
        if at < 1:
            total += (arb(value) - before) * below(-quantile(at, up=True) - shift)
        before, done = value, done + size
    yield total


def gaussian_allows(cosine: arb, length: arb, shift: arb) -> bool:
    """Whether the dual certificate of unit vectors with a mean of this length gives the cosine.

    ``E|L q - lambda| <= -<lambda, h>`` for some lambda = alpha q - beta q', q at 90 degrees plus the angle from h.
    """
    if not cosine <= 1:
        return False
    total = 2 * below(shift / 2) - 1
    if total * 2 < length and (1 - (2 * total / length) ** 2).sqrt() >= cosine:  # the ball
        return True
    sine = (1 - cosine**2).max(arb(0)).sqrt()
    a, h, c, s = (float(v.mid()) for v in (shift, length, cosine, sine))
    if not (0 < a <= 7 and h > 0):
        return False
    n = 600
    reach = 9.0
    points = [-reach + (2 * reach + 2 * a) * i / n for i in range(n + 1)]
    step = (2 * reach + 2 * a) / n
    masses = [step * math.exp(-t * t / 2) / math.sqrt(2 * math.pi) for t in points]
    ratios = [math.exp(a * t - a * a / 2) for t in points]
    alpha, beta = 1 + a * a / 2, max(a, 1e-3) * h / max(1 - h, 1e-3) ** 0.5
    for _ in range(60):  # Newton's method for a concave function of two numbers, with steps that stay above 0
        value = gx = gy = xx = xy = yy = 0.0
        for mass, ratio in zip(masses, ratios, strict=True):
            d = ratio - alpha
            r = math.hypot(d, beta)
            w = mass / r
            value += mass * r
            gx += w * d
            gy -= w * beta
            w /= r * r
            xx -= w * beta * beta
            xy -= w * d * beta
            yy -= w * d * d
        gx, gy = gx + h * s, gy + h * c
        determinant = xx * yy - xy * xy
        if not determinant > 0:
            break
        dx, dy = (-(yy * gx - xy * gy) / determinant, -(xx * gy - xy * gx) / determinant)
        size = 1.0
        while beta + size * dy < 0.2 * beta or beta + size * dy > 5 * beta or abs(size * dx) > 2 + alpha:
            size /= 2
        alpha, beta = alpha + size * dx, beta + size * dy
        if abs(dx) + abs(dy) < 1e-9 * (abs(alpha) + beta):
            break
    x, y = arb(alpha), arb(beta)

    def distance(t: acb, analytic: bool) -> acb:
        return (((shift * t - shift * shift / 2).exp() - x) ** 2 + y * y).sqrt(analytic=analytic) * (-t * t / 2).exp()

    low, high = arb(-12), 12 + 2 * shift
    middle = acb.integral(distance, low, high, rel_tol=arb(2) ** -45).real / (2 * arb.pi()).sqrt()
    tails = (1 + abs(x) + y) * (below(low) + below(-high)) + below(shift - high)
    return bool(middle + tails <= length * (x * sine + y * cosine))


def uniform_allows(cosine: arb, length: arb, p: arb) -> bool:
    """Whether the tight certificate of uniform noise gives the cosine, at a total variation distance of p."""
    if not 2 * p < length:
        return False
    s = (length**2 - 3 * p**2).sqrt().min(1 - p)
    turn = ((length**2 + s**2 - p**2) / (2 * length * s)).min(arb(1)).acos()
    return bool((turn + (p / s).min(arb(1)).asin()).cos() >= cosine)


# --- records --------------------------------------------------------------------------------------------------------


class Tally:
    """What was confirmed, of which kind, and what was not."""

    def __init__(self) -> None:
        self.confirmed: Counter[str] = Counter()
        self.silent = 0
        self.refuted: list[str] = []

    def add(self, kind: str, place: str, fine: bool) -> None:
        if fine:
            self.confirmed[kind] += 1
        else:
            self.refuse(place, f"{kind}: not confirmed")

    def refuse(self, place: str, why: str) -> None:
        self.refuted.append(f"{place}: {why}")


def read(path: Path) -> tuple[dict, Numbers]:
    """A record's description and its numbers of single images.

    Raises:
        ValueError: a quantity is there twice, or has no values, or one that is no number.
    """
    head = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    numbers: Numbers = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        name, values = row["quantity"], row.get("values")
        if name.partition("/")[0] not in (*CERTIFIED, "of_map", "norm_lower"):
            continue
        if name in numbers:
            raise ValueError(f"{name} is there twice")
        if not values or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise ValueError(f"{name} has no values, or one that is no number")
        numbers[name] = values
    return head, numbers


CERTIFIED = ("certified", "certified_epsilon", "smallest_radius", "votes")


def check_record(path: Path, tally: Tally, every: int = 1) -> None:
    """Check every certified number of a record, of every n-th image."""
    try:
        head, numbers = read(path)
        _check_numbers(path, head["config"], head["dimension"], numbers, every, tally)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        tally.refuse(path.stem, f"it cannot be checked: {type(error).__name__}: {error}")


def _expected(config: dict, numbers: Numbers) -> dict[str, int]:
    """Certified numbers that a record with this configuration may have, and how many values of each."""
    images, maps = config["images"], config.get("heatmaps")
    found = {
        f"certified_epsilon/{target}/{law}/{radius:g}": images
        for target in ("0.8", "0.9") for law in config.get("laws", ()) for radius in config.get("radii", ())
    }  # fmt: skip
    found |= {f"smallest_radius/0.9/{law}": min(images, 8) for law in config.get("laws", ())}
    if not maps:
        return found
    for method, sigma in itertools.product(maps["methods"], maps["sigmas"]):
        place = f"{method}/{sigma:g}"
        found |= {f"certified_epsilon/{target}/{place}": images for target in ("0.8", "0.9")}
        kinds = [
            "cosine",
            "center",
            "disc",
            *(f"{kind}-{k}" for kind in ("mass", "top", "top-seen") for k in maps["k"]),
        ]
        found |= {f"certified/{kind}/{place}/{e:g}": images for kind in kinds for e in maps["epsilons"]}
        if maps.get("votes"):
            for k in maps["k"]:
                said = itertools.product(("overlap", "stay", "stay_out"), maps["epsilons"])
                found |= {f"votes/{kind}/{k}/{place}/{e:g}": images for kind, e in said}
                counted = itertools.product(("top", "others"), range(images))
                found |= {f"votes/{which}_with/{k}/{place}/image-{i}": maps["samples"] + 1 for which, i in counted}
    return found


def _check_numbers(path: Path, config: dict, dimension: int, numbers: Numbers, every: int, tally: Tally) -> None:
    expected = _expected(config, numbers)
    for name, values in numbers.items():
        kind, *parts = name.split("/")
        if kind in CERTIFIED and len(values) != expected.get(name, 0):
            wanted = f"{len(values)} values, {expected[name]} follow" if name in expected else "nothing like it follows"
            tally.refuse(path.stem, f"{name}: {wanted} from the configuration")
            continue
        if kind == "certified_epsilon" and parts[1] in ("uniform", "gaussian"):
            _check_lengths(path, numbers, dimension, parts, values, every, tally)
        if kind == "smallest_radius":
            _check_radii(path, numbers, dimension, *parts, values, every, tally)
    maps = config.get("heatmaps")
    if not maps:
        return
    for method, sigma in itertools.product(maps["methods"], maps["sigmas"]):
        place = f"{method}/{sigma:g}"
        columns: dict[str, dict[int, list[float]]] = {}
        for name, values in numbers.items():
            if name.startswith("of_map/") and name.endswith(f"/{place}"):
                key = name[len("of_map/") : -len(place) - 1]
                stem, _, number = key.rpartition("/")
                plain = key.startswith("reach/") and key.count("/") == 1
                columns.setdefault(key if plain or not number.isdigit() else stem, {})[
                    int(number) if number.isdigit() and not plain else 0
                ] = values
        for i in range(0, config["images"], every):
            image = {name: [column[j][i] for j in sorted(column)] for name, column in columns.items()}
            where = f"{path.stem}, {place}, image {i}"
            _check_image(where, image, numbers, i, maps, place, sigma, dimension, tally)
            for k in maps["k"] if maps.get("votes") else ():
                _check_votes(where, numbers, i, maps, k, place, sigma, _side(dimension) ** 2, tally)


def _check_lengths(
    path: Path, numbers: Numbers, dimension: int, parts: list[str], values: list[float], every: int, tally: Tally
) -> None:
    """The largest epsilons of a cosine, from lengths alone; both were rounded to the nearest."""
    target, law, radius = parts
    lower = numbers[f"norm_lower/{law}/{radius}"]
    for i in range(0, len(values), every):
        if values[i] == 0:
            tally.silent += 1
            continue
        length = (arb(lower[i]) * (1 + arb(HALF_DIGIT))).min(arb(1))
        epsilon = arb(values[i]) * (1 - arb(HALF_DIGIT))
        fine = epsilon > 0 and _length_allows(arb(target), length, law, epsilon / arb(radius), dimension)
        name = f"{path.parent.name}/{path.stem}, {law}/{radius}, image {i}, cosine {target}"
        tally.add(f"epsilon of a cosine, {law} noise, by the length", name, fine)


def _check_radii(
    path: Path, numbers: Numbers, dimension: int, target: str, law: str, values: list[float], every: int, tally: Tally
) -> None:
    """The smallest radii that certify nine tenths of the largest epsilon, by lengths interpolated between two radii."""
    places = [name.split("/") for name in numbers if name.startswith(f"norm_lower/{law}/")]
    measured = sorted((float(radius), radius) for _, _, radius in places)
    for i in range(0, len(values), every):
        epsilon = 0.9 * max(numbers[f"certified_epsilon/{target}/{law}/{radius}"][i] for _, radius in measured)
        heights = [(radius, numbers[f"norm_lower/{law}/{name}"][i]) for radius, name in measured]
        # Of the radii that are rounded to it the largest, and the largest length: both certify more.
        least, most = (values[i] * (1 + sign * HALF_DIGIT) for sign in (-1, 1))
        length = max(_between(heights, least), _between(heights, most))
        fine = heights[0][0] <= most and least <= heights[-1][0]  # nothing is known of smaller and larger ones
        if fine:
            ratio = arb(epsilon) * (1 - arb(HALF_DIGIT)) / arb(most)
            length = min(length * (1 + HALF_DIGIT), 1.0)
            fine = _length_allows(arb(target), arb(length), law, ratio, dimension)
        name = f"{path.parent.name}/{path.stem}, {law}, image {i}, cosine {target}"
        tally.add("smallest radius for a cosine, by the length", name, fine)


def _between(points: list[tuple[float, float]], x: float) -> float:
    """Linear between points, and as the nearest beyond them."""
    if x <= points[0][0]:
        return points[0][1]
    for (a, low), (b, high) in itertools.pairwise(points):
        if x <= b:
            return low + (high - low) * (x - a) / (b - a)
    return points[-1][1]


def _length_allows(cosine: arb, length: arb, law: str, ratio: arb, dimension: int) -> bool:
    """Whether the length of the mean gives a cosine for an epsilon of this ratio to the radius of the noise."""
    if law == "uniform":
        p = (ratio * ratio / 4).beta_lower(arb(1) / 2, arb(dimension + 1) / 2, True)
        return uniform_allows(cosine, length, p)
    return gaussian_allows(cosine, length, ratio * arb(dimension + 2).sqrt())


def _side(dimension: int) -> int:
    """Of a square image with three channels, or one."""
    return next(math.isqrt(dimension // c) for c in (3, 1) if c * math.isqrt(dimension // c) ** 2 == dimension)


def _check_image(
    name: str,
    image: Numbers,
    numbers: Numbers,
    i: int,
    maps: dict,
    place: str,
    sigma: float,
    dimension: int,
    tally: Tally,
) -> None:
    samples, counts = maps["samples"], maps["k"]
    side = _side(dimension)
    # Four statements for each number of pixels, two about the direction, five others, share alpha.
    alpha = arb(maps["alpha"]) / (4 * len(counts) + 7)
    one = {key: values[0] for key, values in image.items()}
    for kind, low, values in (("direction_", -1.0, dimension), ("", 0.0, side * side)):
        if f"{kind}norm" not in one:
            continue
        lower, mean, variance, least, center = (
            one[f"{kind}{key}"] for key in ("norm_lower", "norm", "norm_variance", "norm_least", "spread_center")
        )
        fine = lower == 0 or mean_is_at_least(lower, mean, variance, least, samples, alpha, low=low)
        tally.add("lower bound on a length", f"{name}, {kind}norm_lower", fine)
        risk = alpha if values <= 1024 else alpha * 9 / 10  # a tenth is for the random starts of the eigenvalue
        limit = (1 + arb(center)) ** 2 if low else 1 + arb(center) ** 2
        fine = mean_of_largest_is_at_most(one[f"{kind}spread_upper"], one[f"{kind}spread"], samples, risk, limit)
        tally.add("upper bound on a spread", f"{name}, {kind}spread_upper", fine)
    length, spread = arb(one["direction_norm_lower"]), arb(one["direction_spread_upper"])
    for target in ("0.8", "0.9"):
        epsilon = numbers[f"certified_epsilon/{target}/{place}"][i]
        if epsilon == 0:
            tally.silent += 1
            continue
        angles = sines(length, spread, arb(epsilon) / arb(sigma)) if epsilon > 0 else ()
        fine = any((1 - s * s) >= arb(target) ** 2 for s in angles if s < 1)
        tally.add("epsilon of a cosine, by the spread", f"{name}, cosine {target}", fine)
    diagonal = arb(2).sqrt() * (side - 1)
    for epsilon in maps["epsilons"]:
        shift = arb(epsilon) / arb(sigma)
        said = {
            key.split("/")[1]: values[i]
            for key, values in numbers.items()
            if key.startswith("certified/") and key.endswith(f"/{place}/{epsilon:g}")
        }
        where = f"{name}, epsilon {epsilon:g}"
        cosine = said["cosine"]
        if cosine in (-1, 0):
            tally.silent += 1
        else:
            claimed, fine = arb(cosine), 0 < cosine <= 1
            if fine:
                by_spread = any(1 - s * s >= claimed**2 for s in sines(length, spread, shift) if s < 1)
                fine = by_spread or gaussian_allows(claimed, length, shift)
            tally.add("cosine", where, fine)
        moved = list(distances(arb(one["center_spread"]), shift, diagonal))
        log, width = (1 / alpha).log(), (2 * arb(one["center_spread"]) / samples).sqrt()
        error = (
            width
            + (2 * log * (arb(one["center_spread"]) + 2 * diagonal * width) / samples).sqrt()
            + diagonal * log / (3 * samples)
        )
        for kind, more in (("center", arb(0)), ("disc", error)):
            if arb(said[kind]) >= diagonal * (1 - arb(10) ** -6):
                tally.silent += 1
            else:
                tally.add("shift of the center", f"{where}, {kind}", any(said[kind] >= m + more for m in moved))
        for j, k in enumerate(counts):
            _check_pixels(where, image, said, j, k, len(counts), samples, alpha, shift, tally)


def _check_pixels(
    where: str, image: Numbers, said: dict[str, float], j: int, k: int, several: int, samples: int, alpha: arb,
    shift: arb, tally: Tally,
) -> None:  # fmt: skip
    groups = len(image["mass_law"]) // several
    law = image["mass_law"][j * groups : (j + 1) * groups]
    mass = said[f"mass-{k}"]
    if mass == 0:
        tally.silent += 1
    else:
        bounds = least_means(image["mass_mean"][j], image["mass_deviation"][j], law, samples, alpha, shift)
        fine = 0 < mass <= 1 and any(bound >= mass for bound in bounds)
        tally.add("mass of the top pixels", f"{where}, mass-{k}", fine)
    reach = image[f"reach/{k}"]
    spread = arb(image["spread_upper"][0])
    log = (len(reach) / alpha).log()
    here = (2 * log * spread / samples).sqrt() + arb(2).sqrt() * log / (3 * samples)
    for kind in ("top", "top-seen"):
        share = said[f"{kind}-{k}"]
        if share == 0:
            tally.silent += 1
            continue
        # share = (k - m + 1) / k, where m pixels cannot leave: up to the distance of the most that is not above m.
        m = k + 1 - round(share * k)
        counted = [math.ceil(k * (r + 1) / len(reach) - 1e-9) for r in range(len(reach))]
        index = max((r for r, count in enumerate(counted) if count <= m), default=None)
        fine = False
        if index is None or not 0 < share <= 1:
            tally.add("top pixels that stay", f"{where}, {kind}-{k}", fine)
            continue
        for moved in distances(spread, shift, arb(2).sqrt()):
            total = moved + here
            if kind == "top-seen":
                there = 4 * below(quantile(spread / 4, up=True) + shift)
                left = (arb(image["norm_lower"][0]) - moved).max(arb(0))
                total += error_of_mean(samples, alpha, left, there)
            fine = fine or bool(reach[index] > total)
        claimed = (k + 1 - m) / k
        tally.add("top pixels that stay", f"{where}, {kind}-{k}", fine and share <= claimed * (1 + 1e-7))


def _check_votes(
    name: str, numbers: Numbers, i: int, maps: dict, k: int, place: str, sigma: float, pixels: int, tally: Tally
) -> None:
    """Of votes for single pixels, what follows from how many pixels have how many of them."""
    samples, kept = maps["samples"], [f"votes/{which}_with/{k}/{place}/image-{i}" for which in ("top", "others")]
    if any(quantity not in numbers for quantity in kept):
        tally.refuse(f"{name}, votes", f"the counts from which they follow are not recorded ({kept[0]})")
        return
    counted = [numbers[quantity] for quantity in kept]
    if any(number < 0 or number != int(number) for each in counted for number in each):
        tally.refuse(f"{name}, votes", f"the counts are no whole numbers >= 0 ({kept[0]})")
        return
    if [sum(each) for each in counted] != [k, pixels - k]:
        tally.refuse(f"{name}, votes", f"the counts are not of {k} top pixels and {pixels - k} others ({kept[0]})")
        return
    if sum(votes * number for each in counted for votes, number in enumerate(each)) != k * samples:
        tally.refuse(f"{name}, votes", f"{samples} samples with {k} votes each have not given these ({kept[0]})")
        return
    top, others = ([votes for votes, number in enumerate(each) for _ in range(int(number))] for each in counted)
    everyone = sorted(top + others)
    tally.add("the top pixels of votes", name, top[0] >= others[-1])
    alpha = math.nextafter(maps["alpha"] / (2 * pixels), 0)
    for epsilon in maps["epsilons"]:
        overlap, stay, stay_out = (
            numbers[f"votes/{said}/{k}/{place}/{epsilon:g}"][i] for said in ("overlap", "stay", "stay_out")
        )
        shift, where = arb(epsilon) / arb(sigma), f"{name}, epsilon {epsilon:g}, votes"

        def least(votes: int, shift: arb = shift) -> arb:
            return quantile(share_of_votes(votes, samples, alpha, up=False), up=False) - shift

        def most(votes: int, shift: arb = shift) -> arb:
            return quantile(share_of_votes(votes, samples, alpha, up=True), up=True) + shift

        leaving = k - round(overlap * k)
        if overlap != 0:
            fine = 0 < overlap <= 1 and leaving < k and overlap <= (1 - leaving / k) * (1 + 1e-7)
            if fine and leaving < len(others):
                # Were one more to leave, these two would have changed their order.
                fine = bool(least(top[leaving]) > most(others[-1 - leaving]))
            tally.add("top pixels that stay, by votes", f"{where}, overlap", fine)
        for kind, said in (("stay", stay), ("stay_out", stay_out)):
            number = int(said)
            if said != 0:
                fine = 0 < said <= pixels and number == said
                if fine:
                    fine = bool(least(everyone[-number]) > 0 if kind == "stay" else most(everyone[number - 1]) < 0)
                tally.add("single pixels, by votes", f"{where}, {kind}", fine)
        tally.silent += (overlap == 0) + (stay == 0) + (stay_out == 0)


def certifications(paths: list[Path]) -> list[Path]:
    """The .jsonl files of certifications among files and folders."""
    files = itertools.chain.from_iterable(sorted(p.rglob("*.jsonl")) if p.is_dir() else [p] for p in paths)
    found = []
    for file in files:
        head = file.with_suffix(".json")
        if head.exists() and json.loads(head.read_text(encoding="utf-8")).get("experiment") == "certification":
            found.append(file)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path(__file__).parent / "reference"])
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    options = parser.parse_args(arguments)
    if options.every < 1:
        parser.error(f"--every is {options.every}; accepted is a number >= 1")
    files = certifications(options.paths)
    if not files:
        parser.error("there are no records of certifications; name a .jsonl file of one, or a folder with some")
    ctx.prec = BITS
    tally, started = Tally(), time.process_time()
    for file in files:
        check_record(file, tally, options.every)
    seconds = time.process_time() - started
    for kind, count in sorted(tally.confirmed.items()):
        print(f"{count:6d} confirmed: {kind}")
    for line in tally.refuted[:20]:
        print(line, file=sys.stderr)
    checked = sum(tally.confirmed.values()) + len(tally.refuted)
    print(
        f"{checked} numbers of {len(files)} records, {len(tally.refuted)} not confirmed, "
        f"{tally.silent} that say nothing; {checked / max(seconds, 1e-9):.0f} a second of processor time"
    )
    return 1 if tally.refuted else 0


if __name__ == "__main__":
    sys.exit(main())
