"""Grids: networks that share one measurement, and the record that each of them becomes.

A grid is a YAML file: networks (trainings of its own, those of another grid, published weights), and under the name of
a :class:`Kind` what is measured on all of them (of trainings of its own, the defaults of ``alignment`` where it is left
out). Each kind is a module of :mod:`robattr.studies` with a ``KIND``; all
that differs between two studies is there, and all that they share is here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robattr import _yaml, models
from robattr._files import file_digest, intact, locked, store
from robattr.models import Classifier
from robattr.studies import records, trainings
from robattr.studies.records import Measurement
from robattr.studies.runs import code_digest, environment, files_digest, public_name, state_digest
from robattr.studies.trainings import Training
from robattr.training import Compute, Epoch

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
    "kind_named",
    "load_grid",
    "load_record",
    "load_records",
    "measurements",
    "run",
    "run_record",
    "save_record",
]

KINDS = ("alignment", "certification", "fragility", "importance")
"""Modules of :mod:`robattr.studies` that hold a ``KIND``."""

Values = dict[str, NDArray[np.float64]]


# --------------------------------------------------------------------------------------------------------------------
# Networks


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
    """Which network: a reference record with its weights, a training, or a model with published weights.

    Raises:
        pydantic.ValidationError: not exactly one of the three is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: str | None = Field(None, description="a record of a training, with its weights beside it")
    training: Training | None = Field(None, description="a training, which is run where it is not there")
    model: str | None = Field(None, description="a model with published weights")
    weights: str | None = Field(None, description="a .safetensors file for the model, in place of the published ones")

    @model_validator(mode="after")
    def _one(self) -> Network:
        if sum(v is not None for v in (self.record, self.training, self.model)) != 1:
            raise ValueError("a network is one of record, training and model")
        if self.weights is not None and self.model is None:
            raise ValueError("weights go with a model; a record and a training have their own")
        return self

    @property
    def public(self) -> Network:
        """Files by their own names: the paths to them are nobody else's business."""
        return self if self.weights is None else self.model_copy(update={"weights": Path(self.weights).name})

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
            ModelError: weights are missing, or not those that were measured.
        """
        if self.record is not None:
            return _of_record(load_record(self.record), Path(self.record))
        if self.training is not None:
            if recorded is not None and recorded.is_file():
                found = load_record(recorded)
                if found.training == self.training and "file" in found.weights:
                    return _of_record(found, recorded)
            trained = trainings.run_training(
                self.training, root=root, data_root=data_root, compute=compute, progress=progress
            )
            source = {"training": self.training.model_dump(mode="json"), **trained.provenance}
            source["weights"] = {"sha256": state_digest(trained.model)}
            return Loaded(trained.model, source, trained.history, trained.best)
        assert self.model is not None
        model = models.build(self.model, weights=self.weights).requires_grad_(False)
        return Loaded(model, {"model": self.model, "weights": {"sha256": state_digest(model)}})


def _of_record(found: Record, path: Path) -> Loaded:
    training = found.training
    if training is None:
        raise ValueError(f"{path} is no record of a training; its network is named by its model")
    source = {"record": path.name, "weights": found.weights, "training": training.model_dump(mode="json")}
    return Loaded(found.load_model(path.parent), source, found.history, found.best)


# --------------------------------------------------------------------------------------------------------------------
# What is measured


@dataclass(frozen=True)
class Total:
    """A mean over more images than are kept one by one.

    Attributes:
        value: the mean.
        n: number of images.
    """

    value: float
    n: int


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on a network.

    Attributes:
        dimension: number of values of an image.
        values: those of a :class:`Record`.
        dataset: provenance of the images, with their checksum.
        totals: those of a :class:`Record`.
        tensors: images and the like by name; a run in ``runs/`` keeps them, a record does not.
    """

    dimension: int
    values: Values
    dataset: dict[str, Any]
    totals: dict[str, Total] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of measurement.

    Attributes:
        name: of the experiment, of its module and of the key of a grid that configures it.
        config: of the measurement; with a field ``dataset``.
        measure: ``measure(model, config, training=, data_root=, device=, folder=, progress=)``; the training is that of
            the network, None for published weights; in the folder it may keep what a stopped run goes on from.
        describe: ``describe(quantity, config)``: the fields ``unit`` and, where there is one, ``epsilon`` and ``norm``.
        digits: significant digits that a record keeps.
        keeps_weights: the weights of a training are rounded to float16, measured like that, and kept beside the record:
            so everybody can measure them again.
    """

    name: str
    config: type[BaseModel]
    measure: Callable[..., Measured]
    describe: Callable[[str, Any], dict[str, Any]]
    digits: int = 5
    keeps_weights: bool = False

    @property
    def code(self) -> str:
        """A digest of what the code does that measures."""
        return code_digest(self.measure)


def kind_named(name: str) -> Kind:
    """A kind by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in KINDS:
        raise ValueError(f"no kind {name!r} of study (there are {', '.join(KINDS)})")
    # By name, because every kind imports this module.
    kind: Kind = importlib.import_module(f"robattr.studies.{name}").KIND
    return kind


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

    def load_model(self, folder: Path | str) -> Classifier:
        """The network that was measured, in evaluation mode, its parameters constants.

        Args:
            folder: of the record.

        Raises:
            ModelError: the weights were not kept, or the file is not the one that was measured.
        """
        if self.training is None or "file" not in self.weights:
            raise models.ModelError(f"{self.name}: its weights were not kept; train it again with `make reference`")
        path = Path(folder) / self.weights["file"]
        if not path.is_file() or file_digest(path) != self.weights["sha256"]:
            raise models.ModelError(
                f"{path} is missing or not the file that was measured; restore it, or train it again"
            )
        return self.training.build(weights=path).requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------------
# Grids


class Grid(BaseModel):
    """Networks, and what is measured on all of them.

    Attributes:
        kind: of the measurement; in the file, the name of the key that configures it.
        description: what the grid is and at which scale, in a sentence.
        networks: by the name of their run. In the file, ``training``, ``objectives`` and ``seeds`` make one of each
            objective and seed, ``<objective>-<seed>``; ``trainings`` adds those of another grid, see
            :class:`Trainings`.
        measurement: fields of its configuration.
        but: fields that differ, by the name of the run; * in a name stands for anything.
        recorded: records of the networks by the name of their run, whose weights are taken where they were kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    kind: Kind
    description: str
    networks: dict[str, Network]
    measurement: dict[str, Any]
    but: dict[str, dict[str, Any]] = Field(default_factory=dict)
    recorded: dict[str, Path] = Field(default_factory=dict)

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

    def runs(self, grid: Grid) -> Iterator[tuple[str, Training]]:
        """Name and configuration of every training."""
        trained = {name: network.training for name, network in grid.networks.items() if network.training is not None}
        there = dict.fromkeys(training.objective for training in trained.values())
        if unknown := set(self.objectives or ()) - there.keys():
            raise ValueError(f"objectives has {', '.join(sorted(unknown))}; {self.of} has {', '.join(there)}")
        for prefix, change in self.changed.items() or [("", {})]:
            for name, training in trained.items():
                if self.objectives is None or training.objective in self.objectives:
                    fields = training.model_dump() | change
                    yield f"{prefix}-{name}".lstrip("-"), Training.model_validate(fields)


class _Crossed(BaseModel):
    """One training that varies in objective and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: dict[str, Any]
    objectives: dict[trainings.ObjectiveName, dict[str, float] | None]
    seeds: tuple[int, ...]

    def networks(self) -> dict[str, Network]:
        found = {}
        for seed in self.seeds:
            for objective, options in self.objectives.items():
                fields = self.training | {"objective": objective, "options": options or {}, "seed": seed}
                found[f"{objective}-{seed}"] = Network(training=Training.model_validate(fields))
        return found


def load_grid(path: Path | str) -> Grid:
    """Read and check a grid, of whatever kind.

    Raises:
        ValueError: it is not one; one line names the file and the field.
    """
    path = Path(path)
    try:
        content = _yaml.read(path)
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        named = [name for name in KINDS if name in content]
        if not named and "objectives" in content:
            named = ["alignment"]  # what trainings are for
        if len(named) != 1:
            raise ValueError(f"it has the keys of {len(named)} kinds; one of {', '.join(KINDS)} is wanted")
        fields: dict[str, Any] = {"kind": kind_named(named[0]), "measurement": content.pop(named[0], None) or {}}
        networks: dict[str, Any] = {}
        crossed = {key: content.pop(key) for key in _Crossed.model_fields if key in content}
        if crossed:
            networks |= _Crossed.model_validate(crossed).networks()
        if (chosen := content.pop("trainings", None)) is not None:
            chosen = Trainings.model_validate({"of": chosen} if isinstance(chosen, str) else chosen)
            trained = dict(chosen.runs(load_grid(path.with_name(f"{chosen.of}.yaml"))))
            networks |= {name: Network(training=each) for name, each in trained.items()}
            if not chosen.changed:
                fields["recorded"] = {name: path.parent / chosen.of / f"{name}.json" for name in trained}
        grid = Grid.model_validate(content | fields | {"networks": networks | (content.get("networks") or {})})
        if not grid.networks:
            raise ValueError("it has no networks")
        for _ in grid.runs():
            pass
    except (ValidationError, ValueError) as error:
        raise ValueError(f"{path}: not a grid ({_said(error)})") from None
    return grid


# --------------------------------------------------------------------------------------------------------------------
# Runs


def run_record(
    grid: Grid,
    name: str,
    path: Path | str,
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    compute: Compute | None = None,
    progress: bool = True,
) -> Record | None:
    """Load (or train) one network of a grid, measure it, and write its record to ``path``.

    What is measured image by image is kept in ``<root>/<kind>-<name>-<key>`` as it comes; the key is that of the
    network and the measurement. With several devices the first process measures and writes; the others return None.

    Raises:
        ValueError: there is no such run.
    """
    path = Path(path)
    if name not in grid.networks:
        raise ValueError(f"no run {name!r} (there are {', '.join(grid.networks)})")
    loaded = grid.networks[name].load(
        root, data_root=data_root, compute=compute, recorded=grid.recorded.get(name), progress=progress
    )
    if not trainings.is_first():
        return None
    if grid.kind.keeps_weights and loaded.history:
        loaded = _rounded(loaded, path)
    config, device = dict(grid.runs())[name], _device(compute)
    text = json.dumps([config.model_dump(mode="json"), loaded.source["weights"]["sha256"]], sort_keys=True)
    text += grid.kind.code + files_digest(config.dataset)
    parts = Path(root) / f"{grid.kind.name}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    record = _measured(grid.kind, name, grid.networks[name], loaded, config, parts, data_root, device, progress)
    save_record(record, path)
    return record


def run(
    kind: Kind,
    network: Network,
    config: Any,
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **options: Any,
) -> Record:
    """A grid of one network that is kept in ``runs/``: loaded where it exists, measured and kept where it does not.

    A run is made again where its configuration, what the code does, or the contents of the reader's files changed, or
    where its own files were altered. Of two processes that ask at once one measures and the other loads.

    Args:
        kind: of the measurement.
        network: what is measured.
        config: the kind's.
        root: folder of the results, one folder ``<kind>-<key>`` a run.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        progress: show a bar with the time left.
        options: of the kind's ``measure`` that change no result, as ``max_batch``.
    """
    of_network = network.training.key if network.training is not None else network.model_dump_json()
    text = json.dumps([config.model_dump(mode="json"), of_network, kind.code, code_digest(models.build)])
    text += files_digest(config.dataset, network.weights or network.record)
    folder = Path(root) / f"{kind.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with locked(folder):
        found = _kept(folder)
        if found is None:
            loaded = network.load(root, data_root=data_root, progress=progress)
            parts = folder.with_name(f".{folder.name}.parts")
            found = _measured(kind, folder.name, network, loaded, config, parts, data_root, chosen, progress, options)
            # Paths to a reader's files are nobody else's business.
            public = config.model_copy(update={"dataset": public_name(config.dataset)})
            found = replace(found, config=public, network=network.public)
            _keep(found, folder)
            shutil.rmtree(parts, ignore_errors=True)
    return found


def _measured(
    kind: Kind,
    name: str,
    network: Network,
    loaded: Loaded,
    config: Any,
    parts: Path,
    data_root: Path | str | None,
    device: torch.device,
    progress: bool,
    options: Mapping[str, Any] | None = None,
) -> Record:
    started = time.monotonic()
    training = loaded.source.get("training")
    measured = kind.measure(
        loaded.model.to(device),
        config,
        training=None if training is None else Training.model_validate(training),
        data_root=data_root,
        device=device,
        folder=parts,
        progress=progress,
        **(options or {}),
    )
    keeps = kind.keeps_weights
    return Record(
        kind=kind,
        name=name,
        network=network,
        config=config,
        dimension=measured.dimension,
        values=measured.values,
        totals=measured.totals,
        provenance={
            "network": loaded.source,
            "dataset": measured.dataset,
            "device": str(device),
            "code": kind.code,
            "threads": torch.get_num_threads(),
            "seconds": round(time.monotonic() - started, 3),
            **environment(),
        },
        history=loaded.history if keeps else (),
        best=loaded.best if keeps else None,
        tensors=measured.tensors,
    )


def _rounded(loaded: Loaded, path: Path) -> Loaded:
    """The network with its weights rounded to float16, which are kept beside the record."""
    state = {name: v.half() if v.is_floating_point() else v for name, v in loaded.model.state_dict().items()}
    loaded.model.load_state_dict(state)
    kept = path.parent / "weights" / f"{path.stem}.safetensors"
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}")
    save_file({name: v.cpu().contiguous() for name, v in state.items()}, temporary)
    temporary.replace(kept)
    weights = {"sha256": file_digest(kept), "file": f"weights/{kept.name}"}
    return Loaded(loaded.model, loaded.source | {"weights": weights}, loaded.history, loaded.best)


def _device(compute: Compute | None) -> torch.device:
    # "gpu" and "auto" are Fabric's words.
    if compute is None or compute.accelerator in ("auto", "gpu"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(compute.accelerator)


def _keep(record: Record, folder: Path) -> None:
    def write(temporary: Path) -> None:
        save_record(record, temporary / "record.json")
        save_file({name: v.cpu().contiguous() for name, v in record.tensors.items()}, temporary / "tensors.safetensors")

    store(folder, write)


def _kept(folder: Path) -> Record | None:
    """The stored run; None where there is none, or where it has to be made again."""
    if not intact(folder):
        return None
    try:
        found = load_record(folder / "record.json")
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError):
        return None
    found.tensors.update(tensors)
    return found


# --------------------------------------------------------------------------------------------------------------------
# Records as files


def save_record(record: Record, path: Path | str) -> None:
    """Write a record: what was run as JSON to ``path``, and the numbers beside it as JSON lines.

    The lines are :class:`robattr.studies.records.Measurement`. The JSON comes last: where it is, the record is whole.
    """
    path = Path(path)
    records.write(path.with_suffix(".jsonl"), measurements(record, f"{path.parent.name}/{path.stem}"))
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
    records.write_description(path, content)


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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a record ({_said(error)})") from None


def load_records(folder: Path | str) -> list[Record]:
    """Every record of a folder: trained networks by objective, in the order of tables, and seed; then by name.

    Raises:
        ValueError: there is none, or a file holds something else.
    """
    found = [load_record(path) for path in sorted(Path(folder).glob("*.json"))]
    if not found:
        raise ValueError(f"{folder} has no records; `make reference GRID={Path(folder).name}` makes them")

    def place(record: Record) -> tuple[int, int]:
        training = record.training
        return (-1, 0) if training is None else (trainings.OBJECTIVES.index(training.objective), training.seed)

    return sorted(found, key=place)


def _said(error: Exception) -> str:
    """An error in one line; of several fields that are wrong, the first."""
    if isinstance(error, ValidationError):
        first, *rest = error.errors(include_url=False, include_input=False)
        place = ".".join(map(str, first["loc"])) or "it"
        return f"{place}: {first['msg'].removeprefix('Value error, ')}" + (f", and {len(rest)} more" if rest else "")
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return " ".join(str(error).split())
