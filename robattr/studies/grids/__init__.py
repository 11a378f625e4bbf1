"""Grids: networks that share one measurement, and the record that each of them becomes.

A grid is a YAML file: networks (trainings of its own, those of another grid, published weights), and under the name of
a :class:`Kind` what is measured on all of them (of trainings of its own, the defaults of ``alignment`` where it is left
out). Each kind is a module of :mod:`robattr.studies` with a ``KIND``; all
that differs between two studies is there, and all that they share is here.
"""

from robattr.studies.grids.grid import Grid, Trainings, load_grid
from robattr.studies.grids.kinds import KINDS, Kind, Measured, Total, check_sizes, kind_named
from robattr.studies.grids.making import run, run_record
from robattr.studies.grids.measured import (
    Loaded,
    Network,
    Record,
    load_record,
    load_records,
    measurements,
    save_record,
)

__all__ = [
    "KINDS",
    "Grid",
    "Kind",
    "Loaded",
    "Measured",
    "Network",
    "Record",
    "Total",
    "Trainings",
    "check_sizes",
    "kind_named",
    "load_grid",
    "load_record",
    "load_records",
    "measurements",
    "run",
    "run_record",
    "save_record",
]
