"""Verdicts from records: the effect of each comparison with its interval, and what they make of a claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from robattr.studies.claims.history import HISTORY, History, Registration, read_history, registration_key
from robattr.studies.claims.schema import Claim, Comparison, Evidence, check_claims, load_claims
from robattr.studies.intervals import Interval, two_way_interval
from robattr.studies.receipts import Receipt, note, receipts
from robattr.studies.records import Measurement, read

Array = NDArray[np.float64]


class Intervals(Protocol):
    """A mean with an interval from a table [runs, images], as :func:`robattr.studies.intervals.two_way_interval`."""

    def __call__(self, table: Array, *, shares: bool = False, level: float = 0.95) -> Interval: ...


class State(StrEnum):
    """What the records say about one comparison."""

    HOLDS = "holds"
    FAILS = "fails"
    OPEN = "open"
    MISSING = "missing"

    def said(self, count: int = 1) -> str:
        """The verb after one comparison, or after ``count``: 1 holds, 2 hold; 1 is undecided, 2 are undecided."""
        one, more = {
            State.HOLDS: ("holds", "hold"),
            State.FAILS: ("fails", "fail"),
            State.OPEN: ("is undecided", "are undecided"),
            State.MISSING: ("has too little data", "have too little data"),
        }[self]
        return one if count == 1 else more


class VerdictName(StrEnum):
    """What they say about a claim; the last two are about theorems and implementations."""

    REPRODUCED = "reproduced"
    PARTLY = "partly reproduced"
    NOT = "not reproduced"
    UNDECIDED = "undecided"
    TOO_LITTLE = "too little data"
    UNTRIED = "not tried"
    CHECKED = "checked"
    VIOLATED = "violated"


@dataclass(frozen=True)
class Outcome:
    """A comparison and what the records say.

    Attributes:
        comparison: what was asked.
        state: holds where the whole interval is past the minimal effect, fails where the whole interval falls short of
            it, open in between, missing where there are no records, or too few.
        effect: with its 95% interval; None where it is missing. Of a count: the share, with the exact interval.
        runs: that it is computed from, partners included.
        reason: why it is missing.
        corrected: the state by an interval that is wide enough for all comparisons of the ledger together.
        registered: since when the comparison stands, where that is known.
        measured: date of the first of its records, ISO 8601; empty where there is none.
        smaller: the effect in the grids of smaller scales that have it, the largest first.
    """

    comparison: Comparison
    state: State
    effect: Interval | None
    runs: tuple[str, ...] = ()
    reason: str = ""
    corrected: State | None = None
    registered: Registration | None = None
    measured: str = ""
    smaller: tuple[tuple[str, Interval], ...] = ()

    @property
    def fixed_before(self) -> bool | None:
        """Whether what was asked for stood before the first record; None where one of the two is not known."""
        if self.registered is None or not self.measured:
            return None
        return _time(self.registered.date) < _time(self.measured)


@dataclass(frozen=True)
class Verdict:
    """A claim, the verdict, and where it comes from.

    Attributes:
        claim: the claim.
        name: the verdict.
        outcomes: of its comparisons, in order.
        networks: number of different runs that were used.
        commits: of the code that measured them.
        hardware: that they were measured on.
        lowered: the evidence that the claim once asked for, where that was more; empty otherwise.
        receipts: of the runs, one a grid.
    """

    claim: Claim
    name: VerdictName
    outcomes: tuple[Outcome, ...]
    networks: int
    commits: tuple[str, ...]
    hardware: tuple[str, ...]
    lowered: str = ""
    receipts: tuple[Receipt, ...] = ()


def judge(
    claims: Iterable[Claim],
    measurements: Sequence[Measurement],
    *,
    past: History | None = None,
    level: float = 0.95,
) -> list[Verdict]:
    """The verdict on each claim.

    Every comparison has an interval of its own, at ``level``. Of many, some miss by chance. So each also has the state
    by an interval at ``1 - (1 - level) / m``, with m the number of comparisons of experiments: with these, all of them
    cover together at ``level`` (Bonferroni). Verdicts are of the former; where the latter differs is said.

    Args:
        claims: of the ledger.
        measurements: of all grids.
        past: since when each comparison stands, and where evidence was lowered.
        level: of confidence of each interval.

    Raises:
        ValueError: the runs of a comparison do not fit together (other images, other numbers of them).
    """
    claims = list(claims)
    number = sum(len(claim.comparisons) for claim in claims if claim.kind == "experiment")
    together = 1 - (1 - level) / max(number, 1)
    verdicts = []
    for claim in claims:
        here = [m for m in measurements if m.run.startswith(f"{claim.grid}/")]
        outcomes = []
        for comparison in claim.comparisons:
            outcome = outcome_of(comparison, claim.evidence, here, level=level)
            if claim.kind == "experiment" and outcome.effect is not None:
                outcome = replace(outcome, corrected=outcome_of(comparison, claim.evidence, here, level=together).state)
            dates = [m.date for m in here if m.run in outcome.runs]
            since = past.comparisons.get(registration_key(claim, comparison)) if past else None
            first = min(dates, key=_time, default="")
            at = _at_scales(claim, comparison, measurements, level) if outcome.effect is not None else ()
            outcomes.append(replace(outcome, registered=since, measured=first, smaller=at))
        used = {run for outcome in outcomes for run in outcome.runs}
        from_ = [m for m in here if m.run in used]
        note(from_)
        verdicts.append(
            Verdict(
                claim,
                verdict_of(claim, [outcome.state for outcome in outcomes]),
                tuple(outcomes),
                len(used),
                tuple(sorted({m.commit for m in from_})),
                tuple(sorted({f"{m.hardware}, {m.device}" for m in from_})),
                past.lowered.get(claim.id, "") if past else "",
                receipts(from_),
            )
        )
    return verdicts


def _at_scales(
    claim: Claim, comparison: Comparison, measurements: Sequence[Measurement], level: float
) -> tuple[tuple[str, Interval], ...]:
    """Whatever the smaller grids have of a comparison; they need not reach the evidence that decides."""
    found = []
    for grid in claim.smaller:
        here = [m for m in measurements if m.run.startswith(f"{grid}/")]
        effect = outcome_of(comparison, Evidence(), here, level=level).effect
        if effect is not None:
            found.append((grid, effect))
    return tuple(found)


def read_ledger(claims: Path | str, reference: Path | str) -> tuple[list[Verdict], list[Measurement]]:
    """The verdict on each claim of a file, by the records of a folder; and the records.

    When comparisons were fixed stands in a file beside that of the claims, where there is one.

    Args:
        claims: the YAML file.
        reference: with the records of all grids.

    Raises:
        ValueError: see :func:`load_claims`, :func:`check_claims` and :func:`judge`.
        RecordError: a line of the records is none.
    """
    measured, asked = read(reference), load_claims(claims)
    check_claims(asked, measured, (path.stem for path in Path(reference).glob("*.yaml")), partial(_runs_of, reference))
    past = read_history(Path(claims).with_name(Path(HISTORY).name))
    return judge(asked, measured, past=past), measured


def _runs_of(reference: Path | str, grid: str) -> list[str]:
    from robattr.studies.grids import load_grid  # networks and measurements come with it

    path = Path(reference) / f"{grid}.yaml"
    return list(load_grid(path).networks) if path.is_file() else []


def _time(date: str) -> datetime:
    found = datetime.fromisoformat(date)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def verdict_of(claim: Claim, states: Sequence[State]) -> VerdictName:
    """What the states of its comparisons make of a claim."""
    if not states:
        return VerdictName.UNTRIED
    holds, fails = states.count(State.HOLDS), states.count(State.FAILS)
    if claim.kind != "experiment" and (fails or holds == len(states)):
        return VerdictName.VIOLATED if fails else VerdictName.CHECKED
    if holds == len(states):
        return VerdictName.REPRODUCED
    if fails > holds:
        return VerdictName.NOT
    if holds:
        return VerdictName.PARTLY
    return VerdictName.UNDECIDED if State.OPEN in states else VerdictName.TOO_LITTLE


def outcome_of(
    comparison: Comparison,
    evidence: Evidence,
    measurements: Sequence[Measurement],
    *,
    level: float = 0.95,
    intervals: Intervals = two_way_interval,
) -> Outcome:
    """What the records of one grid say about a comparison.

    Args:
        comparison: what is asked.
        evidence: how much there has to be.
        measurements: of the grid.
        level: of confidence.
        intervals: how a table [runs, images] of effects becomes a mean with an interval.
    """
    first = matching(measurements, comparison.quantity, comparison.of)
    if comparison.direction == "never":
        runs = tuple(dict.fromkeys(m.run for m in first))
        return _short(comparison, evidence, runs, len(runs), sum(m.n for m in first)) or _counted(
            comparison, first, runs, level
        )
    if comparison.rank_with:
        return _ranked(comparison, evidence, measurements, first, level, intervals)
    second: list[Measurement] | None = None
    if comparison.against or comparison.baseline:
        others = matching(measurements, comparison.baseline or comparison.quantity, comparison.against or comparison.of)
        key = "seed" if comparison.against else "run"
        partners = {getattr(m, key): m for m in others}
        if len(partners) < len(others):
            raise ValueError(
                f"{comparison.against}: several runs have one seed; name runs so that each has one partner"
            )
        first = [m for m in first if getattr(m, key) in partners]
        second = [partners[getattr(m, key)] for m in first]
    runs = tuple(dict.fromkeys(m.run for m in [*first, *(second or [])]))
    points = min((m.n for m in [*first, *(second or [])]), default=0)
    if (short := _short(comparison, evidence, runs, len(first), points)) is not None:
        return short
    table = effects_of(comparison, first, second)
    if table.size == 1:  # a mean over images whose values are not kept, of one run
        return Outcome(comparison, State.MISSING, None, runs, "1 number, and an interval takes several")
    if not np.isfinite(table).all():
        return Outcome(comparison, State.MISSING, None, runs, "numbers that are not above 0 have no ratio")
    effect = intervals(table, shares=are_shares(first, second, table), level=level)
    if comparison.ratio:
        mean, low, high = np.exp([effect.mean, effect.low, effect.high]).tolist()
        effect = Interval(mean, low, high, effect.n)
    return Outcome(comparison, state_of(comparison, effect), effect, runs)


def _short(
    comparison: Comparison, evidence: Evidence, runs: tuple[str, ...], number: int, points: int
) -> Outcome | None:
    """The outcome where there is too little evidence."""
    for found, wanted, what in ((number, evidence.runs, "runs"), (points, evidence.images, "images")):
        if found < wanted:
            return Outcome(comparison, State.MISSING, None, runs, f"{found:,} of {wanted:,} {what}")
    return None


def _ranked(
    comparison: Comparison,
    evidence: Evidence,
    measurements: Sequence[Measurement],
    first: Sequence[Measurement],
    level: float,
    intervals: Intervals,
) -> Outcome:
    columns = [first, matching(measurements, str(comparison.rank_with), comparison.of)]
    if comparison.baseline:
        columns.append(matching(measurements, comparison.baseline, comparison.of))
    by_run = [{m.run: m for m in column} for column in columns]
    runs = tuple(run for run in by_run[0] if all(run in column for column in by_run))
    points = min((column[run].n for column in by_run for run in runs), default=0)
    if comparison.within_runs:
        return _ranked_within(comparison, evidence, by_run, runs, points, level, intervals)
    by_seed: dict[int | None, list[str]] = {}
    for run in runs:
        by_seed.setdefault(by_run[0][run].seed, []).append(run)
    # Three is the smallest number of things whose order can agree in part.
    seeds = [each for each in by_seed.values() if len(each) > 2]
    if (short := _short(comparison, evidence, runs, len(seeds), points)) is not None:
        return short
    effects = []
    for each in seeds:
        ranked, reference, *other = ([column[run].value for run in each] for column in by_run)
        rho = float(stats.spearmanr(ranked, reference).statistic)
        effects.append(rho - (float(stats.spearmanr(other[0], reference).statistic) if other else 0.0))
    effect = intervals(np.array(effects)[:, None], level=level)
    return Outcome(comparison, state_of(comparison, effect), effect, runs)


def _ranked_within(
    comparison: Comparison,
    evidence: Evidence,
    by_run: Sequence[dict[str, Measurement]],
    runs: tuple[str, ...],
    points: int,
    level: float,
    intervals: Intervals,
) -> Outcome:
    """Ranks over the images of each run; networks of one seed count as one, since they share images and their order."""
    if (short := _short(comparison, evidence, runs, len({by_run[0][run].seed for run in runs}), points)) is not None:
        return short
    by_seed: dict[int | None, list[float]] = {}
    for run in runs:
        values = [column[run].values for column in by_run]
        if any(v is None or len(v) < 3 for v in values):
            return Outcome(comparison, State.MISSING, None, runs, f"{run} has no values of single images to rank")
        ranked, reference, *other = values
        rho = float(stats.spearmanr(ranked, reference).statistic)
        rho -= float(stats.spearmanr(other[0], reference).statistic) if other else 0.0
        by_seed.setdefault(by_run[0][run].seed, []).append(rho)
    effect = intervals(np.array([np.mean(each) for each in by_seed.values()])[:, None], level=level)
    return Outcome(comparison, state_of(comparison, effect), effect, runs)


def matching(measurements: Sequence[Measurement], quantity: str, runs: str) -> list[Measurement]:
    return [m for m in measurements if fnmatchcase(m.quantity, quantity) and fnmatchcase(m.run.partition("/")[2], runs)]


def _counted(comparison: Comparison, found: Sequence[Measurement], runs: tuple[str, ...], level: float) -> Outcome:
    happened, points = sum(round(m.value * m.n) for m in found), sum(m.n for m in found)
    exact = stats.binomtest(happened, points).proportion_ci(level, method="exact")
    effect = Interval(happened / points, float(exact.low), float(exact.high), points)
    return Outcome(comparison, State.FAILS if happened else State.HOLDS, effect, runs)


def effects_of(comparison: Comparison, first: Sequence[Measurement], second: Sequence[Measurement] | None) -> Array:
    """Effects [runs, images]; one column, of means, where runs have one number or different numbers of images.

    An image whose number is 0 has no quotient: the column is then of quotients of means.
    """
    rows, of_means = [], []
    for i, one in enumerate(first):
        two = second[i] if second is not None else None
        other = two is not None and len({one.dataset_sha256, two.dataset_sha256} - {None}) > 1
        if two is not None and other and not comparison.across_sizes:
            raise ValueError(f"{one.run} and {two.run} were measured on different images: they cannot be paired")
        paired = one.values is not None and (two is None or two.values is not None)
        a = np.array(one.values if paired else [one.value])
        b = np.array((two.values if paired else [two.value]) if two is not None else 0.0)
        if comparison.complement:
            a, b = 1 - a, 1 - b if two is not None else b
        if two is not None and len(a) != len(b):
            raise ValueError(f"{one.run} has {len(a)} values and {two.run} {len(b)}: they cannot be paired")
        with np.errstate(divide="ignore", invalid="ignore"):
            rows.append(np.log(a) - np.log(b) if comparison.ratio else a - b)
            of_means.append(
                np.log(a.mean(keepdims=True)) - np.log(b.mean(keepdims=True)) if comparison.ratio else rows[-1]
            )
    if comparison.ratio and not all(np.isfinite(row).all() for row in rows):
        rows = of_means
    if len({len(row) for row in rows}) > 1:
        rows = [row.mean(keepdims=True) for row in rows]
    return np.stack(rows)


def state_of(comparison: Comparison, effect: Interval) -> State:
    """What an effect with its interval says about a comparison."""
    low, high, by = effect.low, effect.high, comparison.by
    if comparison.direction == "within":
        ends = (1 / by, by) if comparison.ratio else (-by, by)
        if ends[0] < low and high < ends[1]:
            return State.HOLDS
        return State.FAILS if high < ends[0] or low > ends[1] else State.OPEN
    if comparison.direction == "less":
        low, high = (1 / high, 1 / low) if comparison.ratio else (-high, -low)
    if low > by:
        return State.HOLDS
    return State.FAILS if high <= by else State.OPEN


def used(verdict: Verdict, measurements: Iterable[Measurement]) -> list[Measurement]:
    """The measurements that a verdict is computed from."""
    wanted = [(c.quantity, c.baseline, c.rank_with, o.runs) for o in verdict.outcomes for c in (o.comparison,)]
    return [
        m
        for m in measurements
        if any(
            m.run in runs and any(q is not None and fnmatchcase(m.quantity, q) for q in quantities)
            for *quantities, runs in wanted
        )
    ]


def are_shares(first: Sequence[Measurement], second: Sequence[Measurement] | None, table: Array) -> bool:
    """Whether a table says of each image if something happened; not what was averaged, nor a difference."""
    return second is None and all(m.unit == "share of images" for m in first) and bool(np.isin(table, (0, 1)).all())
