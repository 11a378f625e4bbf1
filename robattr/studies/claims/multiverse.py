"""Every verdict under many reasonable protocols: which choices carry it, and which would turn it.

A protocol is one option of each choice that a careful author might have made otherwise: how much is asked for, how an
interval is formed, whether images on which an attack failed count, by which measure and at which epsilon, which seeds
and which images; where the records have them, by how many top pixels and by which reduction of the channels. Everything
is computed from stored values of single images. How a heatmap is scaled changes none of its measures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Literal

import numpy as np
from scipy import stats

from robattr.studies.claims.judging import (
    Array,
    Intervals,
    Outcome,
    State,
    VerdictName,
    matching,
    outcome_of,
    state_of,
    verdict_of,
)
from robattr.studies.claims.schema import Claim, Comparison, Evidence
from robattr.studies.intervals import Interval, two_way_interval
from robattr.studies.receipts import note
from robattr.studies.records import Measurement

FAMILIES = (("topk_intersection", "rank_correlation", "cosine"), ("cosine", "pearson", "ssim"))
"""Measures of how alike two maps are, that stand for each other: all are 1 for equal maps."""

VARIANTS = {
    "top pixels": {"k / 4": "_quarter", "4 k": "_fourfold"},
    "channels": {"largest": "_largest", "signed sum": "_signed"},
}
"""Choices by what the names of quantities end in, in this order; see :func:`robattr.studies.fragility.measure`."""

DEPENDS = 0.1
"""A verdict depends on the protocol where more than this share of protocols says the opposite of it."""

THRESHOLDS = {"as asked": 1.0, "half": 0.5, "double": 2.0}


def _students(table: Array, *, shares: bool = False, level: float = 0.95) -> Interval:
    """Other images, these very networks."""
    return _by_t(table.mean(0), table.size, level)


def _seeds_alone(table: Array, *, shares: bool = False, level: float = 0.95) -> Interval:
    """Other seeds, these very images."""
    return _by_t(table.mean(1), table.size, level)


def _by_t(values: Array, size: int, level: float) -> Interval:
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, mean, mean, size)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, size)


INTERVALS: dict[str, Intervals] = {
    "over seeds and images": two_way_interval,
    "over images alone": _students,
    "over seeds alone": _seeds_alone,
}
OF_ONE_RUN: dict[str, Intervals] = {"bootstrap over images": two_way_interval, "Student's t over images": _students}

Agreement = Literal["same", "less", "opposite"]


@dataclass(frozen=True)
class Multiverse:
    """The verdicts on one claim under all protocols.

    Attributes:
        claim: the claim.
        choices: the options of each choice, the first of which is what the claim asks for.
        verdicts: of each protocol, an option a choice in their order.
    """

    claim: Claim
    choices: Mapping[str, tuple[str, ...]]
    verdicts: Mapping[tuple[str, ...], VerdictName]

    @property
    def asked(self) -> VerdictName:
        """Under the protocol that the claim asks for."""
        return self.verdicts[tuple(options[0] for options in self.choices.values())]

    def agreement(self, protocol: tuple[str, ...]) -> Agreement:
        """Whether a protocol gives the same verdict, decides less (or more), or says the opposite."""
        found = self.verdicts[protocol]
        if found is self.asked:
            return "same"
        return "opposite" if {_side(found), _side(self.asked)} == {-1, 1} else "less"

    @cached_property
    def shares(self) -> dict[Agreement, float]:
        """The share of protocols of each agreement."""
        return self._shares(self.verdicts)

    @property
    def depends(self) -> bool:
        """Whether more than :data:`DEPENDS` of the protocols say the opposite."""
        return self.shares["opposite"] > DEPENDS

    def under(self, choice: str, option: str) -> dict[Agreement, float]:
        """The shares among protocols with one option of one choice."""
        place = list(self.choices).index(choice)
        return self._shares([p for p in self.verdicts if p[place] == option])

    @property
    def turns(self) -> tuple[str, str] | None:
        """The choice and option with the largest share of protocols that say the opposite, where any does.

        Of several, the one that leaves the fewest with the same verdict.
        """
        options = [(c, o) for c, each in self.choices.items() for o in each[1:]]
        if not self.shares["opposite"] or not options:
            return None
        return max(options, key=lambda co: (self.under(*co)["opposite"], -self.under(*co)["same"]))

    def _shares(self, protocols: Iterable[tuple[str, ...]]) -> dict[Agreement, float]:
        found = [self.agreement(p) for p in protocols]
        return {name: found.count(name) / len(found) for name in ("same", "less", "opposite")}


def _side(name: VerdictName) -> int:
    if name in (VerdictName.REPRODUCED, VerdictName.PARTLY, VerdictName.CHECKED):
        return 1
    return -1 if name in (VerdictName.NOT, VerdictName.VIOLATED) else 0


def multiverse(claims: Iterable[Claim], measurements: Sequence[Measurement]) -> list[Multiverse]:
    """All protocols of each claim that is an experiment and has records.

    Args:
        claims: of the ledger.
        measurements: of all grids.
    """
    found = []
    for claim in claims:
        here = [m for m in measurements if m.run.startswith(f"{claim.grid}/")]
        if claim.kind == "experiment" and claim.comparisons and here:
            note(here)
            found.append(_of(claim, here))
    return found


def _of(claim: Claim, here: Sequence[Measurement]) -> Multiverse:
    quantities = {m.quantity for m in here}
    choices: dict[str, tuple[str, ...]] = {}
    if any(c.by > (1 if c.ratio else 0) for c in claim.comparisons):
        choices["threshold"] = tuple(THRESHOLDS)
    seeds = sorted({m.seed for m in here if m.seed is not None})
    choices["interval"] = tuple(INTERVALS if len(seeds) > 1 else OF_ONE_RUN)
    norms = {m.norm for m in here if m.norm and any(m.quantity in (c.quantity, c.baseline) for c in claim.comparisons)}
    epsilons = {_with_unit(e, norms): e for e in _epsilons(claim, quantities)}
    for name, options in (("measure", _measures(claim, quantities)), ("epsilon", tuple(epsilons))):
        if options:
            choices[name] = ("as asked", *options)
    for name, ends in VARIANTS.items():
        if options := tuple(option for option, end in ends.items() if _there(claim, quantities, end)):
            choices[name] = ("as asked", *options)
    if any(_successes(c, quantities) for c in claim.comparisons):
        choices["failed attacks"] = ("count as unchanged", "left out")
    if len(seeds) > 2:
        choices["seeds"] = ("all", *(f"without {seed}" for seed in seeds))
    named = [q for c in claim.comparisons for q in (c.quantity, c.baseline, c.rank_with) if q]
    compared = [m for m in here if any(fnmatchcase(m.quantity, name) for name in named)]
    if any(m.values is not None and m.n >= 20 for m in compared):
        choices["images"] = ("all", "first half", "second half")
    verdicts: dict[tuple[str, ...], VerdictName] = {}
    seen: dict[tuple[str | None, ...], Outcome] = {}  # a rank correlation has no top pixels, whatever their number
    rest = {name: options for name, options in choices.items() if name != "threshold"}
    for protocol in itertools.product(*rest.values()):
        option = dict(zip(rest, protocol, strict=True))
        outcomes = []
        for comparison in (_chosen(each, quantities, option, epsilons) for each in claim.comparisons):
            data = (option.get(name) for name in ("interval", "seeds", "failed attacks", "images"))
            key = comparison.model_dump_json(), *data
            if key not in seen:
                seen[key] = _outcome(comparison, claim.evidence, here, quantities, option)
            outcomes.append(seen[key])
        for threshold in choices.get("threshold", ("",)):
            states = [_state(o, THRESHOLDS[threshold or "as asked"]) for o in outcomes]
            full = (threshold, *protocol) if threshold else protocol
            verdicts[full] = verdict_of(claim, states)
    return Multiverse(claim, choices, verdicts)


def _chosen(
    comparison: Comparison, quantities: set[str], option: Mapping[str, str], epsilons: Mapping[str, str]
) -> Comparison:
    """The comparison of the quantities that a protocol chooses; epsilons by the names of their options."""
    if (measure := option.get("measure", "as asked")) != "as asked":
        comparison = _renamed(comparison, lambda q: _in_measure(q, measure))
    if (epsilon := option.get("epsilon", "as asked")) != "as asked":
        comparison = _renamed(comparison, lambda q: _at_epsilon(q, epsilons[epsilon]))
    for name, ends in VARIANTS.items():
        if (chosen := option.get(name, "as asked")) != "as asked":
            comparison = _renamed(comparison, partial(_varied, end=ends[chosen], quantities=quantities))
    return comparison


def _outcome(
    comparison: Comparison,
    evidence: Evidence,
    here: Sequence[Measurement],
    quantities: set[str],
    option: Mapping[str, str],
) -> Outcome:
    named = {comparison.quantity, comparison.baseline, comparison.rank_with, *_successes(comparison, quantities)}
    kept = [m for m in here if m.quantity in named] if "*" not in comparison.quantity else list(here)
    runs, images = evidence.runs, evidence.images
    if (seeds := option.get("seeds", "all")) != "all":
        kept = [m for m in kept if m.seed is None or f"without {m.seed}" != seeds]
        runs = max(runs - 1, 1)
    if option.get("failed attacks") == "left out":
        kept, images = _without_failures(comparison, kept, quantities), 3
    if (half := option.get("images", "all")) != "all":
        kept = [_half(m, half == "first half") for m in kept]
        images = max(images // 2, 1)
    how = (INTERVALS | OF_ONE_RUN)[option["interval"]]
    return outcome_of(comparison, Evidence(runs=runs, images=images), kept, intervals=how)


def _state(outcome: Outcome, factor: float) -> State:
    c = outcome.comparison
    if outcome.effect is None or c.direction == "never":
        return outcome.state
    by = math.exp(math.log(c.by) * factor) if c.ratio else c.by * factor
    if not (c.baseline or c.against) and c.direction == "greater" and 0.5 <= c.by < 1:
        # A level that can be 1 at most, as a share: what may be missing to 1 is halved or doubled.
        by = 1 - (1 - c.by) / factor
    return state_of(c.model_copy(update={"by": by}), outcome.effect)


def _renamed(comparison: Comparison, rename: Callable[[str], str]) -> Comparison:
    changes = {"quantity": rename(comparison.quantity)}
    if comparison.baseline:
        changes["baseline"] = rename(comparison.baseline)
    return comparison.model_copy(update=changes)


def _named(claim: Claim) -> list[str]:
    return [q for c in claim.comparisons if not c.rank_with for q in (c.quantity, c.baseline) if q and "*" not in q]


def _measures(claim: Claim, quantities: set[str]) -> tuple[str, ...]:
    """Measures that all maps of the claim were compared by, other than the one that it asks for alone."""
    asked = _named(claim)
    last = {q.rpartition("/")[2] for q in asked}
    options = dict.fromkeys(name for family in FAMILIES if last & set(family) for name in family)
    return tuple(
        name
        for name in options
        if all(_in_measure(q, name) in quantities for q in asked) and any(_in_measure(q, name) != q for q in asked)
    )


def _in_measure(quantity: str, measure: str) -> str:
    head, slash, last = quantity.rpartition("/")
    same = any(last in family and measure in family for family in FAMILIES)
    return f"{head}{slash}{measure}" if same else quantity


def _there(claim: Claim, quantities: set[str], end: str) -> bool:
    """Whether some map of the claim was compared in such a way, and each that can be was."""
    asked = [q for q in _named(claim) if q.rpartition("/")[2] in _VARIED.get(end, FAMILIES[0])]
    return bool(asked) and all(f"{q}{end}" in quantities for q in asked)


_VARIED = {"_quarter": ("topk_intersection",), "_fourfold": ("topk_intersection",)}


def _varied(quantity: str, end: str, quantities: set[str]) -> str:
    """The quantity in another way; itself where it has none, as a rank correlation has no number of top pixels."""
    return f"{quantity}{end}" if f"{quantity}{end}" in quantities else quantity


def _epsilons(claim: Claim, quantities: set[str]) -> tuple[str, ...]:
    asked = [q for c in claim.comparisons for q in (c.quantity, c.baseline, c.rank_with) if q and "*" not in q]
    asked = [q for q in asked if _epsilon_of(q)]
    parts = {part for q in quantities for part in q.split("/") if _is_number(part)}
    return tuple(
        e
        for e in sorted(parts, key=float)
        if asked and all(_at_epsilon(q, e) in quantities for q in asked) and any(_at_epsilon(q, e) != q for q in asked)
    )


def _with_unit(epsilon: str, norms: set[Literal["linf", "l2"]]) -> str:
    """Names have epsilons in 1/255 for the largest change of a pixel, and l2 lengths as they are."""
    return {frozenset({"linf"}): f"{epsilon}/255", frozenset({"l2"}): f"l2 {epsilon}"}.get(frozenset(norms), epsilon)


def _epsilon_of(quantity: str) -> str | None:
    """The one number in a name, if it has only one: others name radii and cosines too."""
    numbers = [part for part in quantity.split("/") if _is_number(part)]
    return numbers[0] if len(numbers) == 1 else None


def _at_epsilon(quantity: str, epsilon: str) -> str:
    own = _epsilon_of(quantity)
    return quantity if own is None else "/".join(epsilon if part == own else part for part in quantity.split("/"))


def _is_number(part: str) -> bool:
    return part.replace(".", "", 1).isdigit()


def _successes(comparison: Comparison, quantities: set[str]) -> list[str]:
    """Whether each attack that a comparison is about kept the prediction, where that was recorded."""
    if comparison.direction == "never" or comparison.rank_with:
        return []
    names = (comparison.quantity, comparison.baseline)
    found = [f"{q.rpartition('/')[0]}/success" for q in names if q and not q.endswith("/success")]
    return [name for name in found if name in quantities]


def _without_failures(comparison: Comparison, here: Sequence[Measurement], quantities: set[str]) -> list[Measurement]:
    """The runs of a comparison with those images only on which every attack in it kept the prediction.

    Runs that have partners lose the same images, so that values stay paired.
    """
    names = _successes(comparison, quantities)
    patterns = [p for p in (comparison.of, comparison.against) if p]
    wanted = {q for q in (comparison.quantity, comparison.baseline) if q}
    masks: dict[int, Array] = {}
    for m in (m for name in names for p in patterns for m in matching(here, name, p)):
        if m.values is not None:
            masks[m.n] = masks.get(m.n, np.ones(m.n)) * (np.array(m.values) > 0)
    kept = []
    for m in here:
        mask = masks.get(m.n)
        if m.quantity not in wanted or m.values is None or mask is None:
            kept.append(m)
        elif mask.sum() >= 3:
            kept.append(_with_values(m, tuple(v for v, keep in zip(m.values, mask, strict=True) if keep)))
    return kept


def _half(m: Measurement, first: bool) -> Measurement:
    if m.values is None or m.n < 20:
        return m
    return _with_values(m, m.values[: m.n // 2] if first else m.values[m.n // 2 :])


def _with_values(m: Measurement, values: tuple[float, ...]) -> Measurement:
    # Not checked again, as a measurement that is read is: thousands are made, from checked ones.
    return m.model_copy(update={"values": values, "n": len(values), "value": float(np.mean(values))})
