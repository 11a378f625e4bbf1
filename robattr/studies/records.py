"""Measured numbers in one format: JSON lines, one object a number, checked against a published JSON Schema.

A line says what was measured, on how many images, and all that the number depends on, so that it can be read alone: by
pandas, by ``jq``, or by :mod:`robattr.studies.claims`. The schema is ``results/measurement.schema.json``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from robattr._files import write_text
from robattr.studies import receipts

__all__ = [
    "UNITS",
    "Conflict",
    "Measurement",
    "RecordError",
    "conflicts",
    "context",
    "description_text",
    "of_values",
    "read",
    "schema",
    "text",
    "write",
    "write_description",
]

_DIGITS = 5

UNITS = (
    "1",
    "MiB",
    "bytes",
    "l2 length in a [0, 1] image",
    "logits per pixel value",
    "milliseconds",
    "pixel",
    "pixels",
    "probability",
    "seconds",
    "share of files",
    "share of images",
    "share of pixels",
    "share of points",
    "share of the map",
    "square pixel",
    "steps",
    "times that of cross-entropy",
)
"""Units of values; a measure in another one puts it here first. 1 is that of a number without a unit."""


class RecordError(ValueError):
    """A file holds a line that is no measurement; the message names the file and the line."""


class Measurement(BaseModel):
    """One measured number.

    Raises:
        pydantic.ValidationError: a field is missing, unknown or out of range; the value is not the mean of the values;
            an epsilon has no norm; the unit is none of :data:`UNITS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run: str = Field(description="the run that measured it: folder and name of its record", min_length=1)
    experiment: str = Field(description="the kind of the run: alignment, certification, fragility, ...", min_length=1)
    quantity: str = Field(description="what was measured; parts are separated by slashes", min_length=1)
    value: float = Field(description="the number; the mean of values where there are some")
    unit: str = Field(
        description="of the value; 1 for a number without a unit", json_schema_extra={"enum": list(UNITS)}
    )
    n: int = Field(ge=1, description="how many images, or repetitions, the value is a mean of")
    values: tuple[float, ...] | None = Field(
        None, description="one an image, in an order that all runs of a grid share"
    )
    seed: int | None = Field(None, description="of the training; null for published weights")
    epsilon: float | None = Field(None, gt=0, description="length of the perturbation, in units of a [0, 1] image")
    norm: Literal["linf", "l2"] | None = Field(None, description="of epsilon")
    dataset: str = Field(description="its true name, and the split")
    dataset_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="of the images that were measured")
    model: str = Field(description="architecture and activation")
    objective: str | None = Field(None, description="of the training; null for published weights")
    weights_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="of the weights that were measured")
    profile: str = Field(description="the profile of the book, or the grid, at whose scale it was measured")
    seconds: float = Field(ge=0, description="wall time of the whole measurement of the run")
    device: str = Field(description="cpu or the name of the GPU")
    hardware: str = Field(description="processor and threads")
    versions: dict[str, str]
    commit: str
    date: str

    @field_validator("unit")
    @classmethod
    def _known(cls, unit: str) -> str:
        if unit not in UNITS:
            (near,) = difflib.get_close_matches(unit, UNITS, n=1, cutoff=0)
            raise ValueError(f"{unit!r} is no unit; the nearest is {near!r}, and robattr.studies.records.UNITS has all")
        return unit

    @model_validator(mode="after")
    def _fits(self) -> Measurement:
        if (self.epsilon is None) != (self.norm is None):
            raise ValueError(f"epsilon is {self.epsilon} and norm is {self.norm}; they go together")
        if self.values is not None:
            if len(self.values) != self.n:
                raise ValueError(f"n is {self.n} and there are {len(self.values)} values")
            mean = float(np.mean(self.values))
            # The value keeps one digit more than the values, whose own rounding averages out or is common to both.
            if abs(mean - self.value) > 10.0 ** -(_DIGITS - 1) * max(abs(mean), 1e-300):
                raise ValueError(f"value is {self.value} and the mean of the values is {mean:.6g}")
        return self


def of_values(
    context: dict[str, Any],
    quantity: str,
    values: NDArray[np.float64],
    *,
    unit: str,
    digits: int = _DIGITS,
    **fields: Any,
) -> Measurement:
    """A measurement of one value an image.

    Args:
        context: the fields that all measurements of a run share.
        quantity: its name.
        values: [n].
        unit: of the values.
        digits: significant digits that are kept, five or more; the mean has one more.
        fields: further ones.
    """
    kept = tuple(float(f"{v:.{digits}g}") for v in values)
    value = float(f"{np.mean(kept):.{digits + 1}g}")
    return Measurement(quantity=quantity, value=value, n=len(kept), values=kept, unit=unit, **context, **fields)


def context(provenance: dict[str, Any]) -> dict[str, Any]:
    """The fields of a measurement that say when, where and with what it was made.

    Args:
        provenance: with the entries of the environment, ``seconds`` and, where they are known, ``device`` and
            ``threads``.
    """
    threads = provenance["threads"]
    return {
        "seconds": provenance["seconds"],
        "device": provenance["gpu"] if provenance.get("device", "cpu") != "cpu" else "cpu",
        "hardware": f"{provenance['cpu']}, {threads} thread{'s' if threads > 1 else ''}",
        "versions": {"python": provenance["python"], **provenance["versions"]},
        "commit": provenance["commit"],
        "date": provenance["date"],
    }


def write_description(path: Path | str, content: dict[str, Any]) -> None:
    """Write :func:`description_text` to a temporary name that is renamed."""
    write_text(Path(path), description_text(content))


def description_text(content: dict[str, Any]) -> str:
    """What was run as JSON, an item of a list a line: so it can be read, and compared with another."""
    lines = []
    for name, value in content.items():
        if isinstance(value, list) and value:
            said = "[\n" + ",\n".join(f"  {json.dumps(v)}" for v in value) + "\n ]"
        else:
            said = json.dumps(value)
        lines.append(f" {json.dumps(name)}: {said}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    found = Measurement.model_json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "A measured number of robattr"
    found["description"] = "One line of a .jsonl file below results/."
    return found


def write(path: Path | str, measurements: Iterable[Measurement]) -> None:
    """Write :func:`text` to a temporary name that is renamed."""
    write_text(Path(path), text(measurements))


def text(measurements: Iterable[Measurement]) -> str:
    """Measurements as JSON, one a line. Fields that are null are left out."""
    return "".join(f"{json.dumps(each.model_dump(mode='json', exclude_none=True))}\n" for each in measurements)


def read(*paths: Path | str) -> list[Measurement]:
    """Measurements of files, and of all ``.jsonl`` files below folders, in the order of their names.

    In a notebook those of one grid are noted for its receipts, see :mod:`robattr.studies.receipts`.

    Raises:
        RecordError: a line is no measurement, or there are none; one line names file, line number and field. Or a run
            stands in two files: a copy would count as one network more.
    """
    found: list[Measurement] = []
    stands_in: dict[str, Path] = {}
    for path in map(Path, paths):
        for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise RecordError(f"{file}: cannot be read ({error})") from None
            for number, line in enumerate(lines, 1):
                try:
                    measurement = Measurement.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors(include_url=False, include_input=False)[0]
                    field = ".".join(map(str, first["loc"])) or "line"
                    raise RecordError(
                        f"{file}, line {number}: {field}: {first['msg'].removeprefix('Value error, ')}"
                    ) from None
                if (first_file := stands_in.setdefault(measurement.run, file)) != file:
                    raise RecordError(
                        f"{file}, line {number}: the run {measurement.run} stands in {first_file} too; keep one of them"
                    )
                found.append(measurement)
    if not found:
        raise RecordError(f"no measurements in {', '.join(map(str, paths)) or 'nothing'}; accepted are .jsonl files")
    if len({m.run.partition("/")[0] for m in found}) == 1:  # of all grids nobody uses all: who does says so
        receipts.note(found)
    return found


@dataclass(frozen=True)
class Conflict:
    """Two values of one quantity of one run."""

    run: str
    quantity: str
    values: tuple[float, ...]

    def __str__(self) -> str:
        said = " and ".join(f"{v:g}" for v in self.values)
        return f"{self.run}: {self.quantity} is {said}; keep the record of the last measurement only"


def conflicts(measurements: Sequence[Measurement]) -> list[Conflict]:
    """Runs that say two things about one quantity. The same number twice is none."""
    seen: dict[tuple[str, str], list[Measurement]] = {}
    for each in measurements:
        seen.setdefault((each.run, each.quantity), []).append(each)
    return [
        Conflict(run, quantity, tuple(e.value for e in several))
        for (run, quantity), several in seen.items()
        if len({(e.value, e.values) for e in several}) > 1
    ]
