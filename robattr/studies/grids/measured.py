"""A network, from wherever it comes, and the record of what was measured on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from robattr import models
from robattr._files import beside, file_digest
from robattr.models import Classifier
from robattr.studies import records, trainings
from robattr.studies.grids.kinds import Kind, Total, Values, kind_named
from robattr.studies.records import Measurement
from robattr.studies.runs import files_digest, state_digest
from robattr.studies.subjects import FIELDS, specification
from robattr.studies.trainings import Training
from robattr.training import Compute, Epoch

__all__ = [
    "Loaded", "Network", "Record", "load_record", "load_records", "measurements", "said", "save_record",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network and where it is from.

    Attributes:
        model: in evaluation mode, its parameters constants.
        source: provenance, with the checksum of the weights.
        history: of its training; empty where that is not at hand.
        best: the epoch, counted from 1, whose weights these are; None likewise.
    """

    model: Classifier
    source: dict[str, Any]
    history: tuple[Epoch, ...] = ()
    best: int | None = None


class Network(BaseModel):
    """Which network: a reference record with its weights, a training, or a model with published weights or a reader's.

    ``path/to/module.py:function`` as a model **runs that file** when the network is loaded. Whoever makes a network
    from what stands in a file checks it first, see :func:`robattr.models.check_allowed`; a training is checked always.

    Raises:
        pydantic.ValidationError: not exactly one of the three is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    record: str | None = Field(None, description="a record of a training, with its weights beside it")
    training: Training | None = Field(None, description="a training, which is run where it is not there")
    model: str | None = Field(None, description="a model with published weights, or a reader's own")
    weights: str | None = Field(None, description="a file for the model, in place of the published ones")
    num_classes: int | None = Field(None, description="of the model, where neither weights nor names say it")
    class_names: str | tuple[str, ...] | None = Field(None, description="of the model, in its order, or a file of them")
    input_size: int | tuple[int, int, int] | None = Field(None, description="side or (channels, height, width)")
    mean: tuple[float, ...] | None = Field(None, description="of each channel, where it is not the published one")
    std: tuple[float, ...] | None = Field(None, description="of each channel, likewise")

    @model_validator(mode="after")
    def _one(self) -> Network:
        if sum(v is not None for v in (self.record, self.training, self.model)) != 1:
            raise ValueError("a network is one of record, training and model")
        if self.weights is not None and self.model is None:
            raise ValueError("weights go with a model; a record and a training have their own")
        if self.model is None and (given := [name for name in _OF_MODEL if getattr(self, name) is not None]):
            raise ValueError(f"{given[0]} goes with a model; a record and a training have their own")
        return self

    @classmethod
    def of(
        cls,
        model: str | Mapping[str, Any],
        dataset: str | None = None,
        *,
        split: str = "test",
        data_root: Path | str | None = None,
        **options: Any,
    ) -> Network:
        """A model by its name, or a reader's own.

        Args:
            model: see :func:`robattr.studies.subjects.specification`, also for the others.
            dataset: whose images say what is left out.
            split: of the data set.
            data_root: see :func:`robattr.data.load`.
            options: of the model.

        Raises:
            ValueError: an argument that does not fit.
        """
        fields = specification(model, dataset, split=split, data_root=data_root, **options)
        return cls.model_validate({"model": fields.pop("name"), **fields})

    @property
    def code(self) -> str | None:
        """The model's name, where it is that of a function in a file of Python code; of a training, too."""
        name = self.model if self.training is None else self.training.model
        return name if models.names_code(name) else None

    def files_digest(self, dataset: str, *, data_root: Path | str | None = None) -> str:
        """A digest of what names only point to: the reader's pictures, weights, names of classes, files of code."""
        found = [files_digest(dataset, self.weights or self.record, data_root=data_root)]
        if isinstance(self.class_names, str):
            found.append(files_digest("", self.class_names))
        if self.code is not None:
            found += sorted(models.code_digests(self.code).values())
        return " ".join(found)

    @property
    def public(self) -> Network:
        """Files by their own names: the paths to them are nobody else's business."""
        own = {
            name: Path(path).name
            for name in ("record", "weights", "class_names")
            if isinstance(path := getattr(self, name), str)
        }
        if self.model is not None:
            own["model"] = models.public_name(self.model)
        training = {} if self.training is None else {"training": self.training.public}
        return self.model_copy(update={**own, **training})

    def load(
        self,
        root: Path | str = "runs",
        *,
        data_root: Path | str | None = None,
        compute: Compute | None = None,
        recorded: Path | None = None,
        progress: bool = False,
    ) -> Loaded:
        """The network in evaluation mode, and where it is from.

        Args:
            root: folder of the runs.
            data_root: see :func:`robattr.data.load`.
            compute: where to train.
            recorded: a record of the training; where it is there with its weights, those are the network's.
            progress: show a bar while training.

        Raises:
            ValueError: a record or a training names a file of Python code, see :func:`robattr.models.allowed`.
            ModelError: weights are missing, or not those that were measured.
        """
        if self.record is not None:
            return _of_record(load_record(self.record), Path(self.record))
        if self.training is not None:
            if recorded is not None and (found := record_of_weights(recorded, self.training)) is not None:
                return _of_record(found, recorded)
            trained = trainings.run_training(
                self.training, root=root, data_root=data_root, compute=compute, progress=progress
            )
            source = {"training": self.training.model_dump(mode="json"), **trained.provenance}
            source["weights"] = {"sha256": state_digest(trained.model)}
            return Loaded(trained.model, source, trained.history, trained.best)
        assert self.model is not None
        files = {"code": models.code_digests(self.model)} if models.names_code(self.model) else {}
        fields = {name: value for name in _OF_MODEL if (value := getattr(self, name)) is not None}
        model = models.build(self.model, **fields).requires_grad_(False)
        return Loaded(
            model, {"model": models.public_name(self.model), **files, "weights": {"sha256": state_digest(model)}}
        )


_OF_MODEL = tuple(name for name in FIELDS if name != "name")


def _of_record(found: Record, path: Path) -> Loaded:
    training = found.training
    if training is None:
        raise ValueError(f"{path} is no record of a training; its network is named by its model")
    source = {"record": path.name, "weights": found.weights, "training": training.model_dump(mode="json")}
    return Loaded(found.load_model(path.parent), source, found.history, found.best)


@dataclass(frozen=True, eq=False)
class Record:
    """What was measured on one network.

    Attributes:
        kind: of the measurement.
        name: of the run in its grid.
        network: what was measured.
        config: of the measurement.
        dimension: number of values of an image.
        values: one array a quantity, an entry an image (of costs, an entry a round).
        totals: quantities that are means over images whose values are not kept.
        provenance: network, data, code, versions, hardware, wall time.
        history: of the training, where the record is the one that keeps its weights.
        best: the epoch, counted from 1, whose weights were measured, likewise.
        tensors: of a run in ``runs/``: attacked images and the like.
    """

    kind: Kind
    name: str
    network: Network
    config: Any
    dimension: int
    values: Values
    provenance: dict[str, Any]
    totals: dict[str, Total] = field(default_factory=dict)
    history: tuple[Epoch, ...] = ()
    best: int | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def training(self) -> Training | None:
        """Of the network; None for published weights."""
        found = self.provenance["network"].get("training")
        return None if found is None else Training.model_validate(found)

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights that were measured, and the name of their file where it was kept."""
        found: dict[str, str] = self.provenance["network"]["weights"]
        return found

    @property
    def machine(self) -> str:
        """The processor or the GPU that it was measured on."""
        return str(self.provenance["cpu" if self.provenance.get("device", "cpu") == "cpu" else "gpu"])

    def load_model(self, folder: Path | str) -> Classifier:
        """The network that was measured, in evaluation mode, its parameters constants.

        Args:
            folder: of the record.

        Raises:
            ValueError: the record names a file of Python code, see :func:`robattr.models.allowed`.
            ModelError: the weights were not kept, or the file is not the one that was measured.
        """
        if self.training is None or "file" not in self.weights:
            raise models.ModelError(f"{self.name}: its weights were not kept; train it again with `make reference`")
        models.check_allowed(self.training.model, f"the record {self.name}")
        path = Path(folder) / self.weights["file"]
        if not path.is_file() or file_digest(path) != self.weights["sha256"]:
            raise models.ModelError(
                f"{path} is missing or not the file that was measured; restore it, or train it again"
            )
        return self.training.build(weights=path).requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------------
# Records as files


def save_record(record: Record, path: Path | str, run: str | None = None) -> None:
    """Write a record: what was run as JSON to ``path``, and the numbers beside it as JSON lines.

    The lines are :class:`robattr.studies.records.Measurement`. The JSON comes last: where it is, the record is whole.

    Args:
        record: of a network.
        path: of the JSON.
        run: its name among all; by default the folder's and the file's.
    """
    path = Path(path)
    trained: dict[str, Any] = {}
    if record.best is not None:
        trained = {"history": [asdict(epoch) for epoch in record.history], "best": record.best}
    content = {
        "experiment": record.kind.name,
        "name": record.name,
        "network": record.network.model_dump(mode="json", exclude_none=True),
        "config": record.config.model_dump(mode="json"),
        "dimension": record.dimension,
        **trained,
        "provenance": record.provenance,
    }
    # Both are written before either takes its place: on a full disk the old record stays.
    with beside(path) as description:
        description.write_text(records.description_text(content), encoding="utf-8")
        lines = path.with_suffix(".jsonl")
        with beside(lines) as numbers:
            text = records.text(measurements(record, run or f"{path.parent.name}/{path.stem}"))
            numbers.write_text(text, encoding="utf-8")
            # Not beside the numbers of another measurement, not even where this process is killed in between.
            path.unlink(missing_ok=True)


def measurements(record: Record, run: str) -> list[Measurement]:
    """The numbers of a record in the format of all records.

    Args:
        record: of a network.
        run: its name, ``<grid>/<name>``.
    """
    source, dataset, training = record.provenance["network"], record.provenance["dataset"], record.training
    split = f"{dataset['name']} {dataset['split']}"
    context = {
        "run": run,
        "experiment": record.kind.name,
        "seed": None if training is None else training.seed,
        "model": source["model"] if training is None else training.architecture,
        "objective": None if training is None else training.objective,
        "weights_sha256": source["weights"].get("sha256"),
        "profile": run.partition("/")[0],
        **records.context(record.provenance),
    }
    drawn = context | {"dataset": split, "dataset_sha256": dataset["sha256"]}
    described = {name: record.kind.describe(name, record.config) for name in (*record.totals, *record.values)}
    return [
        Measurement(quantity=name, value=each.value, n=each.n, dataset=f"{split}, all", **context, **described[name])
        for name, each in record.totals.items()
    ] + [
        records.of_values(drawn, name, values, digits=record.kind.digits, **described[name])
        for name, values in record.values.items()
    ]


def load_record(path: Path | str) -> Record:
    """Read what :func:`save_record` wrote.

    Raises:
        ValueError: the files hold something else; one line names them.
    """
    path = Path(path)
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = kind_named(content["experiment"])
        lines = records.read(path.with_suffix(".jsonl"))
        return Record(
            kind=kind,
            name=content["name"],
            network=Network.model_validate(content["network"]),
            config=kind.config.model_validate(content["config"]),
            dimension=int(content["dimension"]),
            values={m.quantity: np.asarray(m.values, dtype=np.float64) for m in lines if m.values is not None},
            totals={m.quantity: Total(m.value, m.n) for m in lines if m.values is None},
            provenance=content["provenance"],
            history=tuple(Epoch(**epoch) for epoch in content.get("history", ())),
            best=content.get("best"),
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a record ({said(error)})") from None


def load_records(folder: Path | str, *, missing_ok: bool = False) -> list[Record]:
    """Every record of a folder: trained networks by objective, in the order of tables, and seed; then by name.

    Args:
        folder: of the records.
        missing_ok: a folder without records, or that is not there, has an empty list.

    Raises:
        ValueError: there is none, or a file holds something else.
    """
    found = [load_record(path) for path in sorted(Path(folder).glob("*.json"))]
    if not found and not missing_ok:
        raise ValueError(f"{folder} has no records; `make reference GRID={Path(folder).name}` makes them")

    def place(record: Record) -> tuple[int, int]:
        training = record.training
        return (-1, 0) if training is None else (trainings.OBJECTIVES.index(training.objective), training.seed)

    return sorted(found, key=place)


def record_of_weights(path: Path, training: Training) -> Record | None:
    """The record at a path where it keeps weights of a training; None where it does not, or is not there.

    Raises:
        ValueError: the file holds something else.
    """
    found = load_record(path) if path.is_file() else None
    return found if found is not None and found.training == training and "file" in found.weights else None


def said(error: Exception) -> str:
    """An error in one line; of several fields that are wrong, the first."""
    if isinstance(error, ValidationError):
        first, *rest = error.errors(include_url=False)
        message, place = first["msg"].removeprefix("Value error, "), ".".join(map(str, first["loc"]))
        given = first["input"]
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
        elif first["type"] != "value_error" and isinstance(given, (int, float, str)):  # others name what they refuse
            place = f"{place} is {given!r}"
        return (f"{place}: {message}" if place else message) + (f", and {len(rest)} more" if rest else "")
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return " ".join(str(error).split())
