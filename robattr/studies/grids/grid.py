"""A grid: networks that share one measurement, in a YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robattr import _yaml, data
from robattr.studies import trainings
from robattr.studies.grids.kinds import KINDS, Kind, kind_named
from robattr.studies.grids.measured import Network, said
from robattr.studies.trainings import Training

__all__ = ["Grid", "Trainings", "load_grid"]

_Model = TypeVar("_Model", bound=BaseModel)


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
            yield name, _read(self.kind.config, fields)

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
                    # Options that are published for its model are, after the change, those of the other model.
                    published = Training(model=training.model, objective=training.objective).options
                    own = {option: value for option, value in training.options.items() if value != published[option]}
                    fields = _merged(training.model_dump() | {"options": own}, change)
                    yield f"{prefix}-{name}".lstrip("-"), _read(Training, fields)


def _merged(fields: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with some of them changed, field by field where a field has fields of its own, as a schedule has."""
    inner = {
        name: _merged(fields[name], value)
        for name, value in change.items()
        if isinstance(value, Mapping) and isinstance(fields.get(name), Mapping)
    }
    return {**fields, **change, **inner}


class _Crossed(BaseModel):
    """One training that varies in objective and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: dict[str, Any]
    objectives: dict[trainings.ObjectiveName, dict[str, float] | None]
    seeds: tuple[int, ...]

    @model_validator(mode="after")
    def _once(self) -> _Crossed:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}; accepted is each of them once")
        return self

    def networks(self) -> dict[str, Network]:
        found = {}
        for seed in self.seeds:
            for objective, options in self.objectives.items():
                fields = self.training | {"objective": objective, "options": options or {}, "seed": seed}
                found[f"{objective}-{seed}"] = Network(training=_read(Training, fields))
        return found


def load_grid(path: Path | str) -> Grid:
    """Read and check a grid, of whatever kind.

    Raises:
        ValueError: it is not one; one line names the file and the field.
    """
    return _loaded(Path(path), ())


def _loaded(path: Path, within: tuple[Path, ...]) -> Grid:
    """A grid, whose trainings the grids ``within`` want."""
    try:
        if path.resolve() in within:
            raise ValueError("its trainings are those of a grid that has them from here")
        grid = _grid(_yaml.read(path), path, (*within, path.resolve()))
        _check(grid)
    except (ValidationError, ValueError) as error:
        raise ValueError(f"{path}: not a grid ({said(error)})") from None
    return grid


def _grid(content: Any, path: Path, within: tuple[Path, ...]) -> Grid:
    if not isinstance(content, dict):
        raise ValueError("it is no mapping")
    named = [name for name in KINDS if name in content]
    if not named and "objectives" in content:
        named = ["alignment"]  # what trainings are for
    if len(named) != 1:
        raise ValueError(f"it has the keys of {len(named)} kinds; one of {', '.join(KINDS)} is wanted")
    accepted = ("description", "networks", "but", "trainings", *_Crossed.model_fields, named[0])
    if unknown := [str(key) for key in content if key not in accepted]:
        raise ValueError(f"it has {', '.join(unknown)}; accepted are {', '.join(accepted)}")
    fields: dict[str, Any] = {"kind": kind_named(named[0]), "measurement": _mapping(content, named[0])}
    networks: list[dict[str, Any]] = []
    if crossed := {key: content[key] for key in _Crossed.model_fields if key in content}:
        networks.append(_read(_Crossed, crossed).networks())
    if (chosen := content.get("trainings")) is not None:
        chosen = _read(Trainings, {"of": chosen} if isinstance(chosen, str) else chosen)
        trained = dict(chosen.runs(_loaded(path.with_name(f"{chosen.of}.yaml"), within)))
        networks.append({name: Network(training=each) for name, each in trained.items()})
        if not chosen.changed:
            fields["recorded"] = {name: path.parent / chosen.of / f"{name}.json" for name in trained}
    networks.append(_mapping(content, "networks"))
    joined: dict[str, Any] = {}
    for some in networks:
        if twice := some.keys() & joined.keys():
            raise ValueError(f"networks has {', '.join(sorted(twice))} twice; give one of them another name")
        joined |= some
    return _read(
        Grid, {key: content[key] for key in ("description", "but") if key in content} | fields | {"networks": joined}
    )


def _read(model: type[_Model], content: Any) -> _Model:
    """What a file says, as a model; true and false are no numbers, though Python counts them as 1 and 0."""
    found = model.model_validate(content)
    for place, value in _counted(content, found, ""):
        raise ValueError(f"{place} is {str(value).lower()}; accepted is a number")
    return found


def _counted(content: Any, found: Any, place: str) -> Iterator[tuple[str, bool]]:
    """Where a file says true or false and a number was read."""
    if isinstance(content, bool):
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            yield place, content
    elif isinstance(content, dict):
        for key, each in content.items():
            there = getattr(found, key, None) if isinstance(found, BaseModel) else found[key]
            yield from _counted(each, there, f"{place}.{key}".lstrip("."))
    elif isinstance(content, list):
        for number, (each, there) in enumerate(zip(content, found, strict=True)):
            yield from _counted(each, there, f"{place}[{number}]")


def _mapping(content: dict[str, Any], key: str) -> dict[str, Any]:
    """A mapping of a file; an empty one where it is left out or left empty."""
    found = content.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{key} is {found!r}; a mapping is wanted")
    return found or {}


def _check(grid: Grid) -> None:
    """What would be found out only when trainings are over, or not at all."""
    if not grid.networks:
        raise ValueError("it has no networks")
    known = [each.name for each in data.available()]
    seen: list[tuple[Network, Any, str]] = []
    for name, config in grid.runs():
        network = grid.networks[name]
        if not re.fullmatch(r"\w[\w.+-]*", name):  # it becomes the name of a file
            raise ValueError(f"networks has {name!r}; accepted are letters, digits and any of _ . + - in a name")
        for dataset in {config.dataset, *(() if network.training is None else (network.training.dataset,))}:
            if dataset not in known and not dataset.startswith("folder:"):
                raise ValueError(f"dataset is {dataset}; accepted are {', '.join(known)} and folder:PATH")
        if network.training is not None:
            trained = network.training
            try:
                grid.kind.check(config, data.image_shape(trained.dataset, trained.size))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        for other, its_config, its_name in seen:
            if (other, its_config) == (network, config):
                raise ValueError(f"{its_name} and {name} are one network and one measurement; keep one of them")
        seen.append((network, config, name))
