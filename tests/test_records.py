"""Measured numbers: what a line must say, what is refused and where, and that the published schema is this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import REPOSITORY
from pydantic import ValidationError

from robattr.studies import records
from robattr.studies.records import Measurement, RecordError

CONTEXT: dict[str, Any] = {
    "run": "grid/one-0",
    "experiment": "alignment",
    "seed": 0,
    "dataset": "digits test",
    "dataset_sha256": "0" * 64,
    "model": "digits-cnn, softplus(3)",
    "objective": "one",
    "profile": "grid",
    "seconds": 1.5,
    "device": "cpu",
    "hardware": "a processor, 1 thread",
    "versions": {"torch": "2.6.0"},
    "commit": "0123456789",
    "date": "2026-01-01T00:00:00+00:00",
}
COSINES = records.of_values(CONTEXT, "rps/8", np.array([0.912345678, 0.8, 0.7]), unit="1", epsilon=8 / 255, norm="linf")


@pytest.mark.parametrize(
    ("unit", "near"),
    [("share of image", "share of images"), ("pixles", "pixels"), ("logits per pixel", "logits per pixel value")],
)
def test_a_unit_that_nobody_knows_is_refused_and_the_nearest_named(unit: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=f"{unit!r} is no unit; the nearest is '{near}"):
        records.of_values(CONTEXT, "q", np.array([1.0]), unit=unit)
    # In a file as well, which somebody else may have written.
    path = tmp_path / "a.jsonl"
    records.write(path, [records.of_values(CONTEXT, "q", np.array([1.0]), unit="pixels")])
    path.write_text(path.read_text().replace('"unit": "pixels"', f'"unit": "{unit}"'))
    with pytest.raises(records.RecordError, match=r"line 1: unit: .*is no unit"):
        records.read(path)


def test_a_measurement_is_the_mean_of_its_rounded_values() -> None:
    assert COSINES.values == (0.91235, 0.8, 0.7)
    assert COSINES.value == 0.804117
    assert COSINES.n == 3


def test_what_was_written_is_read(tmp_path: Path) -> None:
    accuracy = Measurement(quantity="accuracy", value=0.5, unit="share of images", n=100, **CONTEXT)
    records.write(tmp_path / "b" / "one.jsonl", [COSINES, accuracy])
    other = accuracy.model_copy(update={"run": "grid/two-0"})
    records.write(tmp_path / "a.jsonl", [other])
    assert records.read(tmp_path / "b" / "one.jsonl") == [COSINES, accuracy]
    assert records.read(tmp_path) == [other, COSINES, accuracy]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.jsonl", "one.jsonl"]
    # What does not apply is left out of a line, not null.
    assert "epsilon" not in json.loads((tmp_path / "a.jsonl").read_text())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": None}, "value: "),
        ({"value": 0.9}, "value is 0.9 and the mean of the values is 0.804117"),
        ({"n": 4}, "n is 4 and there are 3 values"),
        ({"norm": None}, "they go together"),
        ({"epsilon": -1.0}, "epsilon: "),
        ({"surprise": 1}, "surprise: "),
        ({"dataset_sha256": "abc"}, "dataset_sha256: "),
        ({"commit": None}, "commit: "),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_number(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    good = COSINES.model_dump(mode="json", exclude_none=True)
    bad = {k: v for k, v in (good | change).items() if v is not None}
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (good, good, bad)))
    with pytest.raises(RecordError, match=r"r\.jsonl, line 3: ") as caught:
        records.read(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("not json\n")
    with pytest.raises(RecordError, match=r"r\.jsonl, line 1"):
        records.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no measurements in"):
        records.read(tmp_path / "empty")
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe")
    for name in ("r.jsonl", "absent.jsonl"):
        with pytest.raises(RecordError, match="cannot be read"):
            records.read(tmp_path / name)


def test_numbers_are_finite() -> None:
    with pytest.raises(ValidationError):
        records.of_values(CONTEXT, "q", np.array([1.0, np.nan]), unit="1")


def test_a_copy_of_a_run_does_not_count_as_another_one(tmp_path: Path) -> None:
    records.write(tmp_path / "one-0.jsonl", [COSINES])
    records.write(tmp_path / "two-0.jsonl", [COSINES])
    with pytest.raises(RecordError, match=r"two-0\.jsonl, line 1: the run grid/one-0 stands in .*one-0\.jsonl too"):
        records.read(tmp_path)


def test_conflicts_are_two_values_of_one_quantity_of_one_run() -> None:
    other = records.of_values(CONTEXT | {"run": "grid/two-0"}, "rps/8", np.array([0.5, 0.6]), unit="1")
    assert records.conflicts([COSINES, COSINES, other]) == []
    again = records.of_values(CONTEXT, "rps/8", np.array([0.5, 0.6, 0.7]), unit="1")
    (found,) = records.conflicts([COSINES, other, again])
    assert (found.run, found.quantity, found.values) == ("grid/one-0", "rps/8", (0.804117, 0.6))
    assert str(found).startswith("grid/one-0: rps/8 is 0.804117 and 0.6;")


def test_the_published_schema_is_that_of_the_code() -> None:
    path = REPOSITORY / "results" / "measurement.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == records.schema(), (
        "make it again: robattr ledger --schema > results/measurement.schema.json"
    )


def test_the_schema_itself_refuses_what_the_code_refuses() -> None:
    validator = jsonschema.Draft202012Validator(records.schema())
    line = json.loads(COSINES.model_dump_json(exclude_none=True))
    assert list(validator.iter_errors(line)) == []
    for change in ({"surprise": 1}, {"epsilon": -1}, {"n": 0}, {"norm": "l7"}, {"dataset_sha256": "abc"}):
        assert list(validator.iter_errors(line | change)), change
    assert list(validator.iter_errors({k: v for k, v in line.items() if k != "unit"}))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "results" / "reference").rglob("*.jsonl")), ids=lambda p: p.stem)
def test_the_committed_records_fit_the_schema(path: Path) -> None:
    validator = jsonschema.Draft202012Validator(records.schema())
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        errors = [error.message for error in validator.iter_errors(json.loads(line))]
        assert not errors, f"line {number}: {errors[0]}"
    found = records.read(path)
    assert {m.run for m in found} == {f"{path.parent.name}/{path.stem}"}
    assert records.conflicts(found) == []
