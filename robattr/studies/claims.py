"""Claims as data, and verdicts that are computed from records only.

A claim is a sentence of a paper with the comparisons that would bear it out: which quantity, of which runs, against
which, in which direction and by how much at least. A verdict is *reproduced* where every comparison holds, *not
reproduced* where none does and at least one fails, *partly reproduced* where some hold, and *not tested at this scale*
where the records are too few, or too noisy, to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import stats

from robattr import _yaml
from robattr.studies.intervals import Interval, two_way_interval
from robattr.studies.records import Measurement

__all__ = [
    "Claim",
    "Column",
    "Comparison",
    "Evidence",
    "Outcome",
    "State",
    "Verdict",
    "VerdictName",
    "as_json",
    "cross_table",
    "details",
    "effect",
    "effect_text",
    "judge",
    "load_claims",
    "mean_of",
    "measured_in",
    "rank_agreement",
    "summary",
    "table",
    "used",
]

Array = NDArray[np.float64]
Direction = Literal["greater", "less", "within", "never"]


class Comparison(BaseModel):
    """One thing that has to be so for a claim to hold.

    The effect is the mean over runs and images of ``quantity`` of the runs ``of``, less that of ``baseline`` (or the
    same quantity) of the runs ``against``, or less ``baseline`` of the same runs, or less nothing. Runs are paired by
    seed, values by image.

    - ``greater``: the effect is more than ``by``; ``less``: it is below ``-by``.
    - ``within``: it lies between ``-by`` and ``by``.
    - ``never``: ``quantity`` is the share of its n points at which something happened that must not; one is enough to
      fail.

    With ``rank_with`` the effect is about order: Spearman's rank correlation, over the runs of a seed, of ``quantity``
    and ``rank_with``, less that of ``baseline`` and ``rank_with``; its mean over seeds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: str = Field(description="by name; with never, * stands for anything")
    of: str = Field(description="runs by name, with * for anything, as l2+cosine-*")
    against: str | None = Field(None, description="runs by name; the partner of a run has its seed")
    baseline: str | None = Field(None, description="another quantity that is subtracted")
    rank_with: str | None = Field(None, description="a quantity whose order the others are compared with")
    direction: Direction
    by: float = Field(0.0, ge=0, description="the minimal effect; a factor, above 1, for ratios")
    ratio: bool = Field(False, description="quotients in place of differences; geometric means")
    across_sizes: bool = Field(
        False, description="the runs see the same images in other sizes, and are paired though their checksums differ"
    )
    label: str = Field("", description="what it says, in a few words")

    @model_validator(mode="after")
    def _fits(self) -> Comparison:
        if self.direction == "within" and self.by <= (1 if self.ratio else 0):
            raise ValueError(f"by is {self.by}; 'within' takes a width above {1 if self.ratio else 0}")
        if self.direction == "never" and (self.against or self.baseline or self.by or self.ratio or self.rank_with):
            raise ValueError("'never' counts one quantity; leave out against, baseline, by, ratio and rank_with")
        if self.rank_with and (self.against or self.ratio):
            raise ValueError("ranks are of the runs 'of'; leave out against and ratio")
        if self.ratio and (self.by < 1 or not (self.against or self.baseline)):
            raise ValueError("a ratio takes a factor of at least 1 as by, and runs or a quantity to divide by")
        return self


class Evidence(BaseModel):
    """What there has to be before anything is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: int = Field(1, ge=1, description="trained networks, or pairs of them, in each comparison")
    images: int = Field(1, ge=1, description="values of each run, or points of a count")


class Claim(BaseModel):
    """A sentence of a paper, and what would bear it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    paper: str = Field(description="key of the bibliography; 'ours' for a claim of this book")
    sentence: str
    population: str = Field(description="data, model and seeds that it is tested on")
    grid: str = Field(description="folder of the records, below results/reference")
    chapter: str
    anchor: str = Field(description="label of the executed cell in that chapter")
    evidence: Evidence = Evidence()
    comparisons: tuple[Comparison, ...] = Field(min_length=1)

    @property
    def command(self) -> str:
        """What measures it again."""
        return f"make reference GRID={self.grid}"


class State(StrEnum):
    """What the records say about one comparison."""

    HOLDS = "holds"
    FAILS = "fails"
    OPEN = "open"
    MISSING = "missing"


class VerdictName(StrEnum):
    """What they say about a claim."""

    REPRODUCED = "reproduced"
    PARTLY = "partly reproduced"
    NOT = "not reproduced"
    UNTESTED = "not tested at this scale"


@dataclass(frozen=True)
class Outcome:
    """A comparison and what the records say.

    Attributes:
        comparison: what was asked.
        state: holds where the whole interval is past the minimal effect, fails where the whole interval falls short of
            it, open in between, missing where there are no records, or too few.
        effect: with its 95 % interval; None where it is missing. Of a count: the share, with the exact interval.
        runs: that it is computed from, partners included.
        reason: why it is missing.
    """

    comparison: Comparison
    state: State
    effect: Interval | None
    runs: tuple[str, ...] = ()
    reason: str = ""


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
    """

    claim: Claim
    name: VerdictName
    outcomes: tuple[Outcome, ...]
    networks: int
    commits: tuple[str, ...]
    hardware: tuple[str, ...]


def load_claims(path: Path | str) -> list[Claim]:
    """Read a YAML list of claims.

    Raises:
        ValueError: it is not one, or an id occurs twice; one line names the file and the claim.
    """
    content = _yaml.read(path)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: accepted is a list of claims")
    claims: list[Claim] = []
    for number, each in enumerate(content, 1):
        try:
            claims.append(Claim.model_validate(each))
        except ValidationError as error:
            name = each.get("id", number) if isinstance(each, dict) else number
            raise ValueError(f"{path}, claim {name}: {' '.join(str(error).split())}") from None
    names = [claim.id for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: {', '.join(twice)} is there twice; ids are unique")
    return claims


def judge(claims: Iterable[Claim], measurements: Sequence[Measurement]) -> list[Verdict]:
    """The verdict on each claim.

    Raises:
        ValueError: the runs of a comparison do not fit together (other images, other numbers of them).
    """
    verdicts = []
    for claim in claims:
        here = [m for m in measurements if m.run.startswith(f"{claim.grid}/")]
        outcomes = tuple(_outcome(comparison, claim.evidence, here) for comparison in claim.comparisons)
        used = {run for outcome in outcomes for run in outcome.runs}
        from_ = [m for m in here if m.run in used]
        verdicts.append(
            Verdict(
                claim,
                _verdict([outcome.state for outcome in outcomes]),
                outcomes,
                len(used),
                tuple(sorted({m.commit for m in from_})),
                tuple(sorted({f"{m.hardware}, {m.device}" for m in from_})),
            )
        )
    return verdicts


def _verdict(states: Sequence[State]) -> VerdictName:
    if all(state is State.HOLDS for state in states):
        return VerdictName.REPRODUCED
    if State.HOLDS in states:
        return VerdictName.PARTLY
    if State.FAILS in states:
        return VerdictName.NOT
    return VerdictName.UNTESTED


def _outcome(comparison: Comparison, evidence: Evidence, measurements: Sequence[Measurement]) -> Outcome:
    first = _matching(measurements, comparison.quantity, comparison.of)
    if comparison.direction == "never":
        runs = tuple(dict.fromkeys(m.run for m in first))
        return _short(comparison, evidence, runs, len(runs), sum(m.n for m in first)) or _counted(
            comparison, first, runs
        )
    if comparison.rank_with:
        return _ranked(comparison, evidence, measurements, first)
    second: list[Measurement] | None = None
    if comparison.against or comparison.baseline:
        others = _matching(
            measurements, comparison.baseline or comparison.quantity, comparison.against or comparison.of
        )
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
    table = _table(comparison, first, second)
    if not np.isfinite(table).all():
        return Outcome(comparison, State.MISSING, None, runs, "numbers that are not above 0 have no ratio")
    effect = two_way_interval(table, shares=_are_shares(first, second, table))
    if comparison.ratio:
        mean, low, high = np.exp([effect.mean, effect.low, effect.high]).tolist()
        effect = Interval(mean, low, high, effect.n)
    return Outcome(comparison, _state(comparison, effect), effect, runs)


def _short(
    comparison: Comparison, evidence: Evidence, runs: tuple[str, ...], number: int, points: int
) -> Outcome | None:
    """The outcome where there is too little evidence."""
    for found, wanted, what in ((number, evidence.runs, "runs"), (points, evidence.images, "images")):
        if found < wanted:
            return Outcome(comparison, State.MISSING, None, runs, f"{found:,} of {wanted:,} {what}")
    return None


def _ranked(
    comparison: Comparison, evidence: Evidence, measurements: Sequence[Measurement], first: Sequence[Measurement]
) -> Outcome:
    columns = [first, _matching(measurements, str(comparison.rank_with), comparison.of)]
    if comparison.baseline:
        columns.append(_matching(measurements, comparison.baseline, comparison.of))
    by_run = [{m.run: m for m in column} for column in columns]
    runs = tuple(run for run in by_run[0] if all(run in column for column in by_run))
    points = min((column[run].n for column in by_run for run in runs), default=0)
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
    effect = two_way_interval(np.array(effects)[:, None])
    return Outcome(comparison, _state(comparison, effect), effect, runs)


def _matching(measurements: Sequence[Measurement], quantity: str, runs: str) -> list[Measurement]:
    return [m for m in measurements if fnmatchcase(m.quantity, quantity) and fnmatchcase(m.run.partition("/")[2], runs)]


def _counted(comparison: Comparison, found: Sequence[Measurement], runs: tuple[str, ...]) -> Outcome:
    happened, points = sum(round(m.value * m.n) for m in found), sum(m.n for m in found)
    exact = stats.binomtest(happened, points).proportion_ci(method="exact")
    effect = Interval(happened / points, float(exact.low), float(exact.high), points)
    return Outcome(comparison, State.FAILS if happened else State.HOLDS, effect, runs)


def _table(comparison: Comparison, first: Sequence[Measurement], second: Sequence[Measurement] | None) -> Array:
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


def _state(comparison: Comparison, effect: Interval) -> State:
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


PAPERS = {
    "ghorbani2019interpretation": "Ghorbani, Abid & Zou 2019",
    "joo2023towards": "Joo et al. 2023",
    "wang2024certified": "Wang & Kong 2024",
    "ours": "this book",
}
"""Keys of the bibliography, as they are written in tables."""


def effect_text(outcome: Outcome) -> str:
    """The effect of a comparison with its interval, and what was asked of it; or why there is none."""
    c, effect = outcome.comparison, outcome.effect
    if effect is None:
        return f"no records: {outcome.reason}" if outcome.reason.startswith("0 ") else f"too few: {outcome.reason}"
    if c.direction == "never":
        happened = round(effect.mean * effect.n)
        return f"{happened:,} of {effect.n:,} points; the rate is below {effect.high:.1g}"
    times = " times" if c.ratio else ""
    sign = "" if c.ratio else "+"
    wanted = {
        "greater": f"more than {c.by:g}",
        "less": f"less than {1 / c.by if c.ratio else -c.by or 0:g}",
        "within": f"from {1 / c.by:.3g} to {c.by:g}" if c.ratio else f"from {-c.by:g} to {c.by:g}",
    }[c.direction]
    mean, low, high = (f"{v:{sign}.3g}" for v in (effect.mean, effect.low, effect.high))
    return f"{mean} [{low}, {high}]{times}; asked for: {wanted}"


def summary(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table, a claim a row: the one of the README."""
    lines = ["| Claim | Paper | Verdict | Runs |", "| --- | --- | --- | --- |"]
    for v in verdicts:
        lines.append(
            f"| {v.claim.sentence} | {PAPERS.get(v.claim.paper, v.claim.paper)} | **{v.name}** | {v.networks} |"
        )
    return "\n".join(lines) + "\n"


def table(verdicts: Sequence[Verdict]) -> str:
    """The table of the book: every verdict is a reference to the cell that it rests on."""
    lines = ["| Claim | Verdict, and where | Paper |", "| --- | --- | --- |"]
    for v in verdicts:
        where = f"{{ref}}`{v.name} <{v.claim.anchor}>`"
        lines.append(f"| {v.claim.sentence} | {where} | {PAPERS.get(v.claim.paper, v.claim.paper)} |")
    return "\n".join(lines) + "\n"


def details(verdict: Verdict) -> str:
    """What one verdict comes from, as Markdown: its comparisons, runs, code, machine, records and command."""
    claim = verdict.claim
    lines = [f"**{claim.sentence}** {str(verdict.name).capitalize()}.", "", "| Comparison | Effect, 95 % interval | |"]
    lines.append("| --- | --- | --- |")
    lines += [f"| {o.comparison.label} | {effect_text(o)} | {o.state} |" for o in verdict.outcomes]
    lines += [
        "",
        f"{claim.population}; asked for at least {claim.evidence.runs} runs and {claim.evidence.images:,} images.",
    ]
    if verdict.networks:
        commits = ", ".join(f"`{commit}`" for commit in verdict.commits)
        lines[-1] += (
            f" {verdict.networks} run{'s' if verdict.networks > 1 else ''}, code of {commits}, on "
            f"{'; '.join(verdict.hardware)}. [Records](../records/{claim.id}.jsonl)."
        )
    lines[-1] += f" Measure it again: `{claim.command}`."
    return "\n".join(lines) + "\n"


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


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts with everything that they come from, as JSON."""
    found = []
    for v in verdicts:
        outcomes = [
            {
                "comparison": o.comparison.model_dump(mode="json", exclude_none=True),
                "state": str(o.state),
                "effect": None if o.effect is None else vars(o.effect),
                "runs": list(o.runs),
                "reason": o.reason,
            }
            for o in v.outcomes
        ]
        found.append(
            {
                "id": v.claim.id,
                "paper": v.claim.paper,
                "sentence": v.claim.sentence,
                "population": v.claim.population,
                "verdict": str(v.name),
                "outcomes": outcomes,
                "networks": v.networks,
                "commits": list(v.commits),
                "hardware": list(v.hardware),
                "chapter": v.claim.chapter,
                "anchor": v.claim.anchor,
                "command": v.claim.command,
            }
        )
    return found


@dataclass(frozen=True)
class Column:
    """A column of a cross-table: one quantity of the runs of one grid.

    Attributes:
        label: with the unit.
        grid: folder of the records, below results/reference.
        quantity: its name.
        higher: whether more of it is better.
        baseline: a quantity of the same runs that is subtracted.
        runs: by name, with * for anything.
    """

    label: str
    grid: str
    quantity: str
    higher: bool
    baseline: str | None = None
    runs: str = "*"


def mean_of(measurements: Sequence[Measurement], quantity: str, *, grid: str, runs: str = "*") -> Interval:
    """The mean of a quantity over runs and images, with its interval.

    Args:
        measurements: of all grids.
        quantity: its name.
        grid: folder of the records.
        runs: by name, with * for anything.

    Raises:
        ValueError: there are no records of it.
    """
    found = _matching([m for m in measurements if m.run.startswith(f"{grid}/")], quantity, runs)
    if not found:
        raise ValueError(
            f"no records of {quantity} of the runs {runs} in {grid}; `make reference GRID={grid}` makes them"
        )
    table = _table(Comparison(quantity=quantity, of=runs, direction="greater"), found, None)
    return two_way_interval(table, shares=_are_shares(found, None, table))


def effect(measurements: Sequence[Measurement], quantity: str, *, of: str, against: str) -> Interval | None:
    """How much a quantity of some runs is above that of others, as a claim compares them; None without a pair.

    Args:
        measurements: of one grid.
        quantity: by name.
        of: runs by name, with * for anything.
        against: runs by name; the partner of a run has its seed.
    """
    comparison = Comparison(quantity=quantity, of=of, against=against, direction="greater")
    return _outcome(comparison, Evidence(), measurements).effect


def measured_in(measurements: Iterable[Measurement], column: Column) -> list[Measurement]:
    """The measurements of networks that were trained here that a column is about; baselines are not among them."""
    here = [m for m in measurements if m.run.startswith(f"{column.grid}/") and m.objective is not None]
    return _matching(here, column.quantity, column.runs)


def cross_table(
    measurements: Sequence[Measurement], columns: Sequence[Column], objectives: Sequence[str]
) -> dict[str, dict[str, Interval]]:
    """Means over seeds and images, by column and training objective; cells without records are left out."""
    found: dict[str, dict[str, Interval]] = {}
    for column in columns:
        all_first = measured_in(measurements, column)
        partners: dict[str, Measurement] = {}
        if column.baseline is not None:
            partners = {m.run: m for m in measured_in(measurements, replace(column, quantity=column.baseline))}
        cells = {}
        for objective in objectives:
            first = [m for m in all_first if m.objective == objective]
            second = None
            if column.baseline is not None:
                first = [m for m in first if m.run in partners]
                second = [partners[m.run] for m in first]
            if not first:
                continue
            if len({(m.model, m.dataset) for m in first}) > 1:
                raise ValueError(
                    f"{column.label}: runs are of several models or data sets; name those of one with runs="
                )
            comparison = Comparison(quantity=column.quantity, of=column.runs, direction="greater")
            table = _table(comparison, first, second)
            value = float(table.mean())
            # A single number has no interval, and says so by its n.
            if table.size > 1:
                cells[objective] = two_way_interval(table, shares=_are_shares(first, second, table))
            else:
                cells[objective] = Interval(value, value, value, 1)
        found[column.label] = cells
    return found


def rank_agreement(
    table: Mapping[str, Mapping[str, Interval]], columns: Sequence[Column]
) -> dict[tuple[str, str], tuple[float, int]]:
    """Spearman's rank correlation of every two columns over the objectives that both have, and their number.

    A column in which less is better is turned round, so 1 means that two columns agree on who is robust. Pairs with
    fewer than three objectives in common are left out.
    """
    found = {}
    for i, one in enumerate(columns):
        for two in columns[i + 1 :]:
            common = [name for name in table[one.label] if name in table[two.label]]
            if len(common) < 3:
                continue
            a, b = ([table[c.label][name].mean * (1 if c.higher else -1) for name in common] for c in (one, two))
            if np.ptp(a) and np.ptp(b):
                found[one.label, two.label] = float(stats.spearmanr(a, b).statistic), len(common)
    return found


def _are_shares(first: Sequence[Measurement], second: Sequence[Measurement] | None, table: Array) -> bool:
    """Whether a table says of each image if something happened; not what was averaged, nor a difference."""
    return second is None and all(m.unit == "share of images" for m in first) and bool(np.isin(table, (0, 1)).all())
