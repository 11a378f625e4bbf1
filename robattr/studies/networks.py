"""Networks from anywhere, measured in one way: grids of networks, and their records.

A grid is a YAML file of networks that share one measurement; each becomes one record. What is measured is a
:class:`Kind`: :mod:`robattr.studies.certification` and :mod:`robattr.studies.fragility` are two.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robattr import models
from robattr.models import Classifier
from robattr.studies import alignment, records
from robattr.studies.alignment import Training
from robattr.studies.records import Measurement
from robattr.studies.runs import code_digest, environment, state_digest

__all__ = [
    "Grid",
    "Kind",
    "Measured",
    "Network",
    "Record",
    "Trainings",
    "load_grid",
    "load_record",
    "load_records",
    "measurements",
    "run_record",
    "save_record",
]

Values = dict[str, NDArray[np.float64]]


class Network(BaseModel):
    """Which network: a reference record with its weights, a training, or a model with published weights.

    Raises:
        pydantic.ValidationError: not exactly one of the three is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: str | None = Field(None, description="a record of a training, with its weights beside it")
    training: Training | None = Field(None, description="a training, which is run where it is not there")
    model: str | None = Field(None, description="a model with published weights")

    @model_validator(mode="after")
    def _one(self) -> Network:
        if sum(v is not None for v in (self.record, self.training, self.model)) != 1:
            raise ValueError("a network is one of record, training and model")
        return self

    def load(self, root: Path | str, data_root: Path | str | None) -> tuple[Classifier, dict[str, Any]]:
        """The network in evaluation mode, and where it is from."""
        if self.record is not None:
            path = Path(self.record)
            found = alignment.load_record(path)
            source = {"record": path.name, "weights": found.weights, "training": found.training.model_dump(mode="json")}
            return alignment.load_model(found, path.parent), source
        if self.training is not None:
            trained = alignment.run_training(self.training, root=root, data_root=data_root, progress=False)
            source = {"training": self.training.model_dump(mode="json"), **trained.provenance}
            return trained.model, source | {"weights": {"sha256": state_digest(trained.model)}}
        assert self.model is not None
        model = models.build(self.model).requires_grad_(False)
        return model, {"model": self.model, "weights": {"sha256": state_digest(model)}}


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on a network.

    Attributes:
        dimension: number of values of an image.
        values: those of a :class:`Record`.
        dataset: provenance of the images, with their checksum.
    """

    dimension: int
    values: Values
    dataset: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of measurement.

    Attributes:
        name: of the experiment, and of the key of a grid that configures it.
        config: of the measurement.
        measure: ``measure(model, config, training=, data_root=, device=, folder=, progress=)``; the training is that of
            the network, None for published weights; in the folder it may keep what a stopped run goes on from.
        describe: ``describe(quantity, config)``: the fields ``unit`` and, where there is one, ``epsilon`` and ``norm``.
        digits: significant digits that a record keeps.
        code: modules that compute the values.
    """

    name: str
    config: type[BaseModel]
    measure: Callable[..., Measured]
    describe: Callable[[str, Any], dict[str, Any]]
    digits: int
    code: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Record:
    """What was measured on one network of a grid.

    Attributes:
        kind: of the measurement.
        name: of the run in its grid.
        network: what was measured.
        config: of the measurement.
        dimension: number of values of an image.
        values: one array a quantity, an entry an image.
        provenance: network, data, code, versions, hardware, wall time.
    """

    kind: Kind
    name: str
    network: Network
    config: Any
    dimension: int
    values: Values
    provenance: dict[str, Any]

    @property
    def training(self) -> Training | None:
        """Of the network; None for published weights."""
        found = self.provenance["network"].get("training")
        return None if found is None else Training.model_validate(found)


class Trainings(BaseModel):
    """Trainings of another grid, all of them or some, as they are or changed.

    Attributes:
        of: name of the grid, a file in the same folder.
        objectives: which of its objectives; None for all.
        changed: fields of the training that differ, by a name that the runs begin with; ``{8px: {size: 8}}`` makes
            ``8px-<objective>-<seed>``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    objectives: tuple[str, ...] | None = None
    changed: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def runs(self, grid: alignment.Grid) -> Iterator[tuple[str, Training]]:
        """Name and configuration of every training."""
        if unknown := set(self.objectives or ()) - set(grid.objectives):
            raise ValueError(f"objectives has {', '.join(sorted(unknown))}; {self.of} has {', '.join(grid.objectives)}")
        for prefix, change in self.changed.items() or [("", {})]:
            for name, training in grid.runs():
                if self.objectives is None or training.objective in self.objectives:
                    fields = training.model_dump() | change
                    yield f"{prefix}-{name}".lstrip("-"), Training.model_validate(fields)


class Grid(BaseModel):
    """A YAML file: networks, and what is measured on all of them.

    Attributes:
        kind: of the measurement; in the file, the name of the key that configures it.
        description: what the grid is and at which scale, in a sentence.
        networks: by the name of their run; in the file, ``trainings`` adds those of a grid of trainings, see
            :class:`Trainings`.
        measurement: fields of its configuration.
        but: fields that differ, by the name of the run; * in a name stands for anything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    kind: Kind
    description: str
    networks: dict[str, Network]
    measurement: dict[str, Any]
    but: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def runs(self) -> Iterator[tuple[str, Any]]:
        """Name and measurement of every run."""
        if unknown := [
            pattern for pattern in self.but if not any(fnmatchcase(name, pattern) for name in self.networks)
        ]:
            raise ValueError(f"but has {', '.join(sorted(unknown))}, which is no network of the grid")
        for name in self.networks:
            fields = dict(self.measurement)
            for pattern, change in self.but.items():
                if fnmatchcase(name, pattern):
                    fields |= change
            yield name, self.kind.config.model_validate(fields)

    def configuration(self, run: str) -> list[dict[str, Any]]:
        """All that a run's record depends on, as JSON."""
        return [m.model_dump(mode="json") for m in (self.networks[run], dict(self.runs())[run])]


def load_grid(path: Path | str, kind: Kind) -> Grid:
    """Read and check a grid of a kind.

    Raises:
        ValueError: it is not one; one line names the file and the field.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or kind.name not in content:
            raise ValueError(f"it has no key {kind.name!r}")
        measurement = content.pop(kind.name)
        if (trainings := content.pop("trainings", None)) is not None:
            chosen = Trainings.model_validate({"of": trainings} if isinstance(trainings, str) else trainings)
            of = alignment.load_grid(Path(path).with_name(f"{chosen.of}.yaml"))
            trained = {name: {"training": each} for name, each in chosen.runs(of)}
            content["networks"] = trained | content.get("networks", {})
        grid = Grid.model_validate(content | {"kind": kind, "measurement": measurement or {}})
        for _ in grid.runs():
            pass
    except (yaml.YAMLError, ValidationError, ValueError) as error:
        raise ValueError(f"{path}: not a grid of the kind {kind.name} ({' '.join(str(error).split())})") from None
    return grid


def run_record(
    grid: Grid,
    name: str,
    path: Path | str,
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Record:
    """Load (or train) one network of a grid, measure it, and write its record to ``path``.

    What is measured image by image is kept in ``<root>/<kind>-<name>-<key>`` as it comes; the key is that of the
    network and the measurement.
    """
    config, network, kind = dict(grid.runs())[name], grid.networks[name], grid.kind
    model, source = network.load(root, data_root)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    text = json.dumps([config.model_dump(mode="json"), source["weights"]["sha256"]], sort_keys=True)
    code = code_digest(*kind.code)
    key = hashlib.sha256((text + code).encode()).hexdigest()[:12]
    started = time.monotonic()
    training = source.get("training")
    measured = kind.measure(
        model.to(device),
        config,
        training=None if training is None else Training.model_validate(training),
        data_root=data_root,
        device=device,
        folder=Path(root) / f"{kind.name}-{name}-{key}",
        progress=progress,
    )
    record = Record(
        kind=kind,
        name=name,
        network=network,
        config=config,
        dimension=measured.dimension,
        values=measured.values,
        provenance={
            "network": source,
            "dataset": measured.dataset,
            "device": str(device),
            "code": code,
            "threads": torch.get_num_threads(),
            "tf32": device.type != "cpu" and torch.backends.cudnn.allow_tf32,
            "seconds": round(time.monotonic() - started, 3),
            **environment(),
        },
    )
    save_record(record, path)
    return record


def save_record(record: Record, path: Path | str) -> None:
    """Write a record: what was run as JSON to ``path``, and the numbers beside it as JSON lines.

    The lines are :class:`robattr.studies.records.Measurement`. The JSON comes last: where it is, the record is whole.
    """
    path = Path(path)
    records.write(path.with_suffix(".jsonl"), measurements(record, f"{path.parent.name}/{path.stem}"))
    content = {
        "experiment": record.kind.name,
        "name": record.name,
        "network": record.network.model_dump(mode="json", exclude_none=True),
        "config": record.config.model_dump(mode="json"),
        "dimension": record.dimension,
        "provenance": record.provenance,
    }
    records.write_description(path, content)


def measurements(record: Record, run: str) -> list[Measurement]:
    """The numbers of a record in the format of all records.

    Args:
        record: of a network.
        run: its name, ``<grid>/<name>``.
    """
    source, dataset, training = record.provenance["network"], record.provenance["dataset"], record.training
    context = {
        "run": run,
        "experiment": record.kind.name,
        "seed": None if training is None else training.seed,
        "model": source["model"] if training is None else training.architecture,
        "objective": None if training is None else training.objective,
        "weights_sha256": source["weights"].get("sha256"),
        "profile": run.partition("/")[0],
        "dataset": f"{dataset['name']} {dataset['split']}",
        "dataset_sha256": dataset["sha256"],
        **records.context(record.provenance),
    }
    return [
        records.of_values(context, name, values, digits=record.kind.digits, **record.kind.describe(name, record.config))
        for name, values in record.values.items()
    ]


def load_record(path: Path | str, kind: Kind) -> Record:
    """Read what :func:`save_record` wrote.

    Raises:
        ValueError: the files hold something else; one line names them.
    """
    path = Path(path)
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["experiment"] != kind.name:
            raise ValueError(f"experiment is {content['experiment']!r}")
        return Record(
            kind=kind,
            name=content["name"],
            network=Network.model_validate(content["network"]),
            config=kind.config.model_validate(content["config"]),
            dimension=int(content["dimension"]),
            values={
                m.quantity: np.asarray(m.values, dtype=np.float64) for m in records.read(path.with_suffix(".jsonl"))
            },
            provenance=content["provenance"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a record of the kind {kind.name} ({' '.join(str(error).split())})") from None


def load_records(folder: Path | str, kind: Kind) -> list[Record]:
    """Every record of a folder, by name.

    Raises:
        ValueError: there is none, or a file holds something else.
    """
    found = [load_record(path, kind) for path in sorted(Path(folder).glob("*.json"))]
    if not found:
        raise ValueError(f"{folder} has no records; `make reference GRID={Path(folder).name}` makes them")
    return found
