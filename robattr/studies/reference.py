"""Reference runs of every kind: from a grid's file and the name of a run to its record."""

from __future__ import annotations

from pathlib import Path

import yaml

from robattr.studies import alignment, certification, fragility, importance, networks
from robattr.training import Compute

__all__ = ["KINDS", "load_grid", "run"]

KINDS = (certification.KIND, fragility.KIND, importance.KIND)
"""Kinds of grids of networks."""


def load_grid(path: Path | str) -> alignment.Grid | networks.Grid:
    """The grid of a YAML file: of networks where it has the key of one of :data:`KINDS`, of trainings otherwise.

    Raises:
        ValueError: it is neither; one line names the file and the field.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a grid ({' '.join(str(error).split())})") from None
    for kind in KINDS:
        if isinstance(content, dict) and kind.name in content:
            return networks.load_grid(path, kind)
    return alignment.load_grid(path)


def run(
    grid: alignment.Grid | networks.Grid,
    name: str,
    path: Path | str,
    *,
    root: Path | str = "runs",
    compute: Compute | None = None,
) -> bool:
    """Make the run of a grid and write its record to ``path``; False in the processes that leave that to the first.

    Raises:
        ValueError: there is no such run.
    """
    runs = dict(grid.runs())
    if name not in runs:
        raise ValueError(f"no run {name!r} (there are {', '.join(runs)})")
    compute = compute or Compute()
    if isinstance(grid, alignment.Grid):
        config = dict(grid.runs())[name]
        return alignment.run_record(grid, config.objective, config.seed, path, root=root, compute=compute) is not None
    # "gpu" and "auto" are Fabric's words.
    device = None if compute.accelerator in ("auto", "gpu") else compute.accelerator
    networks.run_record(grid, name, path, root=root, device=device)
    return True
