"""Receipts: which runs a number comes from, what makes them again, what they cost, on which machine, by which code.

While a notebook runs, what reads records notes here which runs it used, and in which line of which cell. The book
draws a receipt from that beneath what a cell shows, see :mod:`robattr.pages.receipts`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Protocol

__all__ = ["OWN", "Receipt", "Source", "note", "noted", "receipts"]

OWN = "runs"
"""The folder of the runs that a notebook makes itself, in place of a grid's."""


class Source(Protocol):
    """What a receipt is made of; every :class:`robattr.studies.records.Measurement` is one."""

    @property
    def run(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def hardware(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def commit(self) -> str: ...
    @property
    def date(self) -> str: ...


@dataclass(frozen=True)
class Receipt:
    """Where numbers of one grid come from.

    Attributes:
        grid: folder of the records, below results/reference; :data:`OWN` of what a notebook measured itself.
        runs: names of the records in it, in order.
        seconds: wall time of measuring them, all together; what training took is not in it.
        machines: processor, threads and device.
        commits: of the code that measured them.
        dates: of the first and the last one, ISO 8601.
    """

    grid: str
    runs: tuple[str, ...]
    seconds: float
    machines: tuple[str, ...]
    commits: tuple[str, ...]
    dates: tuple[str, str]

    @property
    def command(self) -> str:
        """What makes the records again; empty of what the notebook makes itself."""
        return "" if self.grid == OWN else f"make reference GRID={self.grid} INTO=again"

    @property
    def records(self) -> str:
        """Where they are, from the project's folder."""
        name = self.runs[0] if len(self.runs) == 1 else "*"
        if self.grid == OWN:
            return f"{OWN}/{name}/record.jsonl"
        return f"results/reference/{self.grid}/{name}.jsonl"

    @property
    def minutes(self) -> str:
        """The cost of measuring, in words."""
        return f"{self.seconds / 60:,.0f} min" if self.seconds >= 60 else f"{self.seconds / 60:.2g} min"


def receipts(sources: Iterable[Source]) -> tuple[Receipt, ...]:
    """The receipts of measurements, one a grid, in the order in which the grids come."""
    grids: dict[str, dict[str, Source]] = {}
    for each in sources:
        grid, _, run = each.run.partition("/")
        grids.setdefault(grid, {}).setdefault(run, each)
    return tuple(
        Receipt(
            grid,
            tuple(sorted(runs)),
            sum(each.seconds for each in runs.values()),
            tuple(sorted({f"{each.hardware}, {each.device}" for each in runs.values()})),
            tuple(sorted({each.commit for each in runs.values()})),
            (min(each.date for each in runs.values()), max(each.date for each in runs.values())),
        )
        for grid, runs in grids.items()
    )


@dataclass(frozen=True)
class _Run:
    run: str
    seconds: float
    hardware: str
    device: str
    commit: str
    date: str


_RUNS: dict[str, _Run] = {}
_CELLS: dict[int, dict[int, set[str]]] = {}


def note(sources: Iterable[Source]) -> None:
    """Note that a number comes from measurements; nothing outside of a notebook."""
    place = _place()
    if place is None:
        return
    cell, line = place
    found = _CELLS.setdefault(cell, {}).setdefault(line, set())
    for m in sources:
        if m.run not in found:
            found.add(m.run)
            _RUNS[m.run] = _Run(m.run, m.seconds, m.hardware, m.device, m.commit, m.date)


def noted() -> dict[str, Any]:
    """What was noted, as JSON.

    Returns:
        ``runs``: what is known of each run, by name; ``cells``: by the cell's execution count, the names of the runs by
        the line of the cell.
    """
    cells = {str(n): {str(line): sorted(runs) for line, runs in lines.items()} for n, lines in _CELLS.items()}
    return {"runs": {name: asdict(run) for name, run in sorted(_RUNS.items())}, "cells": cells}


def sources_of(noted: Mapping[str, Any]) -> dict[str, Source]:
    """The runs of :func:`noted`, by name."""
    return {name: _Run(**fields) for name, fields in noted.get("runs", {}).items()}


def _place() -> tuple[int, int] | None:
    """Execution count of the notebook's cell that runs, and its line; None where none does."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None:
        return None
    frame: FrameType | None = sys._getframe()
    line = None
    while frame is not None:
        # The outermost frame of the reader's own names is the cell: functions of former cells are further in.
        if frame.f_globals is shell.user_global_ns:
            line = frame.f_lineno
        frame = frame.f_back
    return None if line is None else (int(shell.execution_count), line)
