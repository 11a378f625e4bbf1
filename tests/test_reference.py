"""Reference runs: every committed record of a grid of networks belongs to its grid, whatever its kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY

from robattr.studies import networks, reference

REFERENCE = REPOSITORY / "results" / "reference"
KINDS = {kind.name: kind for kind in reference.KINDS}
RECORDS = sorted(
    (path.relative_to(REFERENCE), experiment)
    for path in REFERENCE.glob("*/*.json")
    if (experiment := json.loads(path.read_text(encoding="utf-8"))["experiment"]) in KINDS
)


@pytest.mark.parametrize(("path", "kind"), RECORDS, ids=str)
def test_committed_records_belong_to_their_grid(path: Path, kind: str) -> None:
    record = networks.load_record(REFERENCE / path, KINDS[kind])
    grid = networks.load_grid(REFERENCE / f"{path.parent}.yaml", KINDS[kind])
    assert dict(grid.runs())[path.stem] == record.config
    assert grid.networks[path.stem] == record.network
    assert "with changes" not in record.provenance["commit"]
