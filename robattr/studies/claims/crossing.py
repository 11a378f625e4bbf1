"""Means, effects and orders over the runs of a grid, without a verdict: what chapters and the cross-table show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from robattr.studies.claims.judging import are_shares, effects_of, matching, outcome_of
from robattr.studies.claims.schema import Comparison, Evidence
from robattr.studies.intervals import Interval, two_way_interval
from robattr.studies.receipts import note
from robattr.studies.records import Measurement


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
    found = matching([m for m in measurements if m.run.startswith(f"{grid}/")], quantity, runs)
    if not found:
        raise ValueError(
            f"no records of {quantity} of the runs {runs} in {grid}; `make reference GRID={grid}` makes them"
        )
    note(found)
    table = effects_of(Comparison(quantity=quantity, of=runs, direction="greater"), found, None)
    return two_way_interval(table, shares=are_shares(found, None, table))


def effect(measurements: Sequence[Measurement], quantity: str, *, of: str, against: str) -> Interval | None:
    """How much a quantity of some runs is above that of others, as a claim compares them; None without an interval.

    Args:
        measurements: of one grid.
        quantity: by name.
        of: runs by name, with * for anything.
        against: runs by name; the partner of a run has its seed.
    """
    comparison = Comparison(quantity=quantity, of=of, against=against, direction="greater")
    outcome = outcome_of(comparison, Evidence(), measurements)
    note(m for m in measurements if m.run in outcome.runs)
    return outcome.effect


def effects(
    measured: Mapping[str, Sequence[Measurement]],
    quantities: Mapping[str, str],
    *,
    of: str,
    rivals: Sequence[str],
) -> dict[str, dict[str, dict[str, Interval | None]]]:
    """The effects of an objective against rivals, in several grids: what a figure of effects by scale takes.

    Args:
        measured: measurements of each grid, by its name.
        quantities: by their labels.
        of: an objective.
        rivals: other objectives.

    Returns:
        Label -> rival -> grid -> effect, see :func:`effect`; None without a pair, or an interval.
    """
    return {
        label: {
            rival: {
                name: effect(found, quantity, of=f"{of}-*", against=f"{rival}-*") for name, found in measured.items()
            }
            for rival in rivals
        }
        for label, quantity in quantities.items()
    }


def measured_in(measurements: Iterable[Measurement], column: Column) -> list[Measurement]:
    """The measurements of networks that were trained here that a column is about; baselines are not among them."""
    here = [m for m in measurements if m.run.startswith(f"{column.grid}/") and m.objective is not None]
    found = matching(here, column.quantity, column.runs)
    note(found)
    return found


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
            table = effects_of(comparison, first, second)
            value = float(table.mean())
            # A single number has no interval, and says so by its n.
            if table.size > 1:
                cells[objective] = two_way_interval(table, shares=are_shares(first, second, table))
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
