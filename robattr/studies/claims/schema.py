"""Claims as data: a sentence of a paper with the comparisons that would bear it out, read from a YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robattr import _yaml
from robattr.studies.records import Measurement

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
    and ``rank_with``, less that of ``baseline`` and ``rank_with``; its mean over seeds. With ``within_runs`` the order
    is that of the images of a run, and the mean is over runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quantity: str = Field(description="by name; with never, * stands for anything")
    of: str = Field(description="runs by name, with * for anything, as l2+cosine-*")
    against: str | None = Field(None, description="runs by name; the partner of a run has its seed")
    baseline: str | None = Field(None, description="another quantity that is subtracted")
    rank_with: str | None = Field(None, description="a quantity whose order the others are compared with")
    within_runs: bool = Field(False, description="ranks are of the images of each run, not of runs")
    complement: bool = Field(False, description="1 - value in place of value: what a similarity lacks to 1")
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
        if self.direction == "never" and (
            self.against or self.baseline or self.by or self.ratio or self.rank_with or self.complement
        ):
            raise ValueError(
                "'never' counts one quantity; leave out against, baseline, by, ratio, rank_with and complement"
            )
        if self.within_runs and not self.rank_with:
            raise ValueError("'within_runs' is about ranks; give rank_with")
        if self.complement and self.rank_with:
            raise ValueError("ranks of 1 - value are those of the value turned round; leave out complement")
        if self.rank_with and (self.against or self.ratio):
            raise ValueError("ranks are of the runs 'of'; leave out against and ratio")
        if self.ratio and (self.by < 1 or not (self.against or self.baseline)):
            raise ValueError("a ratio takes a factor of at least 1 as by, and runs or a quantity to divide by")
        return self


class Evidence(BaseModel):
    """What there has to be before anything is said."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    runs: int = Field(1, ge=1, description="trained networks, or pairs of them, in each comparison")
    images: int = Field(1, ge=1, description="values of each run, or points of a count")


Kind = Literal["experiment", "theorem", "implementation"]


class Claim(BaseModel):
    """A sentence of a paper, and what would bear it out.

    A theorem holds whatever is measured, so its records check the code and not the sentence; an implementation is the
    same of a statement about code. Neither is counted among experiments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    paper: str = Field(description="key of the bibliography; 'ours' for a claim of this book")
    kind: Kind = "experiment"
    sentence: str
    population: str = Field(description="data, model and seeds that it is tested on")
    grid: str = Field("", pattern=r"^[\w.+/-]*$", description="folder of the records, below results/reference")
    smaller: tuple[str, ...] = Field(
        (), description="grids of smaller scales, the largest first: the same comparisons there, which decide nothing"
    )
    chapter: str = Field(pattern=r"^\w+$")
    anchor: str = Field(pattern=r"^[\w.-]+$", description="label of the executed cell in that chapter")
    evidence: Evidence = Evidence()
    comparisons: tuple[Comparison, ...] = ()
    known: str = Field("", description="what was known of the numbers when the thresholds were set; empty for nothing")
    untried: str = Field("", description="why there is no comparison, and what one would take")
    note: str = Field("", description="what a reader has to know beside the verdict")

    @model_validator(mode="after")
    def _fits(self) -> Claim:
        if bool(self.comparisons) is bool(self.untried):
            raise ValueError("a claim takes either comparisons, or 'untried' with the reason why there are none")
        if self.comparisons and not self.grid:
            raise ValueError("comparisons are of the records of a grid; give its name as 'grid'")
        if len({self.grid, *self.smaller}) <= len(self.smaller):
            raise ValueError(f"smaller is {', '.join(self.smaller)}; each grid stands once, and is not {self.grid!r}")
        return self

    @property
    def command(self) -> str:
        """What measures it; empty where nothing does."""
        return f"make reference GRID={self.grid}" if self.grid else ""


def check_claims(
    claims: Iterable[Claim],
    measurements: Iterable[Measurement],
    grids: Iterable[str],
    asked_for: Callable[[str], Iterable[str]] = lambda _: (),
) -> None:
    """Refuse claims about what does not exist: "0 of 3 runs" would hide a name that is spelled wrong.

    Args:
        claims: of the ledger.
        measurements: of all grids; a quantity has to be among those of its grid, where that has any.
        grids: names of grids that may have no records yet.
        asked_for: names of the runs of a grid, recorded or not; asked where a claim names one without records.

    Raises:
        ValueError: naming claim, name and the nearest one that there is.
    """
    quantities: dict[str, set[str]] = {}
    runs: dict[str, set[str]] = {}
    for m in measurements:
        grid, _, run = m.run.partition("/")
        quantities.setdefault(grid, set()).add(m.quantity)
        runs.setdefault(grid, set()).add(run)
    known = sorted({*grids, *runs})
    for claim in claims:
        for grid in (claim.grid, *claim.smaller) if claim.comparisons else ():
            if grid not in known:
                raise ValueError(f"claim {claim.id}: there is no grid {grid!r}{_nearest(grid, known)}")
        for c in claim.comparisons:
            there = runs.get(claim.grid, set())
            named = [name for name in (c.of, c.against) if name is not None and there]
            absent = [name for name in named if not any(fnmatchcase(each, name) for each in there)]
            for name in absent:
                if not any(fnmatchcase(each, name) for each in asked_for(claim.grid)):
                    raise ValueError(
                        f"claim {claim.id}: {claim.grid} has no run {name!r}{_nearest(name, sorted(there))}"
                    )
            if absent:
                continue  # a grid that is half made: what is missing may come with these runs
            there = quantities.get(claim.grid, set())
            for quantity in (c.quantity, c.baseline, c.rank_with):
                if quantity is not None and there and not any(fnmatchcase(each, quantity) for each in there):
                    close = _nearest(quantity, sorted(there))
                    raise ValueError(f"claim {claim.id}: {claim.grid} has no quantity {quantity!r}{close}")


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f"; the nearest is {close[0]!r}" if close else ""


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
