"""Grids of networks, the record that each becomes, and runs that are kept: of every kind of study."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import PATIENCE_S, REPOSITORY, Counter, room
from PIL import Image
from safetensors.torch import load_file
from test_trainings import CPU, SCHEDULE, epoch, run, small

from robattr import _files, cli, models, training
from robattr.studies import alignment, fragility, grids, records, runs, trainings
from robattr.studies.alignment import Alignment
from robattr.studies.fragility import Fragility
from robattr.studies.grids import (
    Network,
    Record,
    Total,
    load_grid,
    load_record,
    load_records,
    making,
    run_record,
    save_record,
)

# --- grids ----------------------------------------------------------------------------------------------------------


GRID: dict[str, Any] = {
    "description": "Digits, for a moment.",
    "training": {"dataset": "digits", "images": 64, "validation": 50, "model": "digits-mlp", "schedule": SCHEDULE},
    "objectives": {"cross-entropy": None, "l2+cosine": {"cosine": 0.5}},
    "seeds": [0, 3],
    "alignment": {
        "dataset": "digits", "images": 12, "epsilons": [8], "draws": 2, "methods": ["smoothgrad", "lrp"],
        "method_images": 3, "method_draws": 1, "manipulated": 4, "manipulation_iterations": 2, "frame": 1,
        "fractions": 4,
    },
}  # fmt: skip


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(GRID, sort_keys=False))
    return path


def test_a_grid_is_its_runs(grid_file: Path) -> None:
    grid = load_grid(grid_file)
    assert list(grid.networks) == ["cross-entropy-0", "l2+cosine-0", "cross-entropy-3", "l2+cosine-3"]
    assert grid.networks["l2+cosine-3"].training == small(objective="l2+cosine", options={"cosine": 0.5}, seed=3)
    assert grid.networks["cross-entropy-0"].training == small()
    assert grid.kind is alignment.KIND
    assert {config.methods for _, config in grid.runs()} == {("smoothgrad", "lrp")}


def test_the_grids_of_the_repository_can_be_read() -> None:
    paths = sorted((REPOSITORY / "results" / "reference").glob("*.yaml"))
    assert {load_grid(path).kind.name for path in paths} == set(grids.KINDS)
    for path in paths:
        grid = load_grid(path)
        assert [name for name, _ in grid.runs()] == list(grid.networks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": {"l1": None}}, "objectives"),
        ({"objectives": {"l2": {"cosine": 1}}}, "options has cosine; l2 takes l2, epsilon"),
        ({"training": {"epochs": 3}}, "epochs"),
        ({"training": {"schedule": {"milestones": [5, 3]}}}, "accepted are increasing epochs"),
        ({"seeds": ["one"]}, "seeds"),
        ({"seeds": [-1]}, "seed"),
        ({"alignment": {"methods": ["guess"]}}, "methods has guess"),
        ({"alignment": {"images": 50}}, "images is 50; the other numbers of images are at most that"),
        ({"surprise": 1}, "surprise"),
        ({"kind": "fragility"}, "it has kind; accepted are description"),
        ({"measurement": {"images": 3}}, "it has measurement"),
        ({"recorded": {"l2-0": "l2-0.json"}}, "it has recorded"),
        ({"alignment": []}, "alignment is []; a mapping is wanted"),
        ({"alignment": 0}, "alignment is 0; a mapping is wanted"),
        ({"alignment": {"epsilons": [8, -8]}}, "epsilons are [8.0, -8.0]; accepted are numbers > 0"),
        ({"alignment": {"dataset": "digitz"}}, "dataset is digitz; accepted are"),
        ({"training": {"dataset": "digitz"}}, "dataset is digitz; accepted are"),
        ({"networks": [{"model": "lenet"}]}, "a mapping is wanted"),
        ({"networks": "lenet"}, "networks is 'lenet'; a mapping is wanted"),
        ({"networks": {"l2+cosine-3": {"model": "resnet18"}}}, "networks has l2+cosine-3 twice"),
        ({"networks": {"../a": {"model": "resnet18"}}}, "networks has '../a'; accepted are letters"),
        ({"networks": {"": {"model": "resnet18"}}}, "networks has ''; accepted are letters"),
        ({"networks": {"a": {"model": "resnet18"}, "b": {"model": "resnet18"}}}, "a and b are one network"),
        ({"seeds": [0, 0]}, "seeds are [0, 0]; accepted is each of them once"),
        ({"seeds": [True]}, "seeds[0] is true; accepted is a number"),
        ({"seeds": [1, False]}, "seeds[1] is false; accepted is a number"),
        ({"objectives": {"l2": {"l2": True}}}, "objectives.l2.l2 is true; accepted is a number"),
        ({"training": {"images": True}}, "images is true; accepted is a number"),
        ({"training": {"schedule": {"epochs": True}}}, "schedule.epochs is true; accepted is a number"),
        ({"alignment": {"draws": True}}, "draws is true; accepted is a number"),
        ({"alignment": {"epsilons": [8, True]}}, "epsilons[1] is true; accepted is a number"),
        ({"but": {"l2+cosine-*": {"draws": True}}}, "draws is true; accepted is a number"),
        ({"networks": {"a": {"model": "resnet18", "num_classes": True}}}, "networks.a.num_classes is true"),
        ({"objectives": {"l2": {"epsilon": -1}}}, "options has epsilon = -1.0; accepted are numbers > 0"),
        ({"trainings": "bad"}, "its trainings are those of a grid that has them from here"),
    ],
)
def test_impossible_grids_are_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(GRID | change))
    with pytest.raises(ValueError, match=r"bad\.yaml: not a grid") as error:
        load_grid(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "just text", "a: " + "[" * 3000 + "]" * 3000])
def test_files_that_are_no_grids_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml: not a grid") as error:
        load_grid(path)
    assert "\n" not in str(error.value)


def test_trainings_that_lead_back_or_to_one_training_are_refused_in_one_line(grid_file: Path, tmp_path: Path) -> None:
    def write(name: str, **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"description": "a", "fragility": {"dataset": "digits", "k": 5}} | changes))
        return path

    first = write("first.yaml", trainings="second")
    write("second.yaml", trainings="first")
    seven = write("seven.yaml", trainings={"of": "tiny", "changed": {"seven": {"seed": 7}}})
    one_step = write("one.yaml", trainings="tiny", importance={"points": 2, "turnovers": [], "top": 3})
    one_step.write_text(one_step.read_text().replace("fragility:\n  dataset: digits\n  k: 5\n", ""))
    for path, message in (
        (first, "its trainings are those of a grid that has them from here"),
        (seven, "seven-cross-entropy-0 and seven-cross-entropy-3 are one network and one measurement"),
        (one_step, "points is 2; top and turnovers are at most that"),
    ):
        with pytest.raises(ValueError, match=r"\.yaml: not a grid") as error:
            load_grid(path)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


EVALUATED = {
    "code": "abc", "seconds": 2.5, "device": "cpu", "cpu": "a processor", "threads": 2, "gpu": "none",
    "python": "3.11.0", "versions": {"torch": "2.6.0"}, "commit": "0123456789", "date": "2026-01-01T00:00:00+00:00",
    "dataset": {"name": "digits", "split": "test", "sha256": "1" * 64},
}  # fmt: skip


def record(objective: str = "l2", seed: int = 0, **changes: Any) -> Record:
    training = small(objective=objective, seed=seed)
    source = {
        "training": training.model_dump(mode="json"), "seconds": 1.5,
        "weights": {"file": "weights/a.safetensors", "sha256": "0" * 64},
    }  # fmt: skip
    values: dict[str, Any] = {
        "kind": alignment.KIND,
        "name": f"{objective}-{seed}",
        "network": Network(training=training),
        "config": Alignment.model_validate(GRID["alignment"]),
        "dimension": 64,
        "history": (epoch(1), epoch(2, alignment=0.75)),
        "best": 2,
        "totals": {"accuracy": Total(0.625, 500)},
        "values": {
            "correct": np.array([1.0, 0.0, 1.0]),
            "rps/gradient/8/cosine": np.array([1 / 3, 1e-9 / 7, -2e5 / 3]),
        },
        "provenance": {"network": source, **EVALUATED},
    }
    return Record(**(values | changes))


def test_records_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "results" / "l2-0.json"
    save_record(record(), path)
    found, written = load_record(path), record()
    for field in dataclasses.fields(Record):
        if field.name != "values":
            assert getattr(found, field.name) == getattr(written, field.name)
    assert found.values.keys() == written.values.keys()
    for name, values in written.values.items():
        # Half a unit of the fifth digit.
        np.testing.assert_allclose(found.values[name], values, rtol=5e-5)
        assert found.values[name].dtype == np.float64
    assert found.values["rps/gradient/8/cosine"].tolist() == [0.33333, 1.4286e-10, -66667.0]
    # Again the same text, with a measure or an epoch a line, and nothing else in the folder.
    save_record(found, tmp_path / "again" / "results" / "l2-0.json")
    for name in ("l2-0.json", "l2-0.jsonl"):
        assert (tmp_path / "again" / "results" / name).read_text() == (path.parent / name).read_text()
    assert sum('"epoch":' in line for line in path.read_text().splitlines()) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["l2-0.json", "l2-0.jsonl"]


def test_a_record_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results" / "l2-0.json"
    save_record(record(), path)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    before = load_record(path).totals
    with monkeypatch.context() as patch:
        patch.setattr(records, "text", killed)
        with pytest.raises(KeyboardInterrupt):
            save_record(record(totals={"accuracy": Total(0.5, 500)}), path)
    assert load_record(path).totals == before
    with monkeypatch.context() as patch:
        replace = Path.replace
        # Numbers are in their place, the description is not.
        patch.setattr(Path, "replace", lambda *args: replace(*args) if args[1].suffix == ".jsonl" else killed())
        with pytest.raises(KeyboardInterrupt):
            save_record(record(totals={"accuracy": Total(0.5, 500)}), path)
    assert not path.exists()  # not the numbers of one measurement with the description of another
    assert sorted(each.name for each in path.parent.iterdir()) == ["l2-0.jsonl"]
    save_record(record(totals={"accuracy": Total(0.5, 500)}), path)
    assert load_record(path).totals == {"accuracy": Total(0.5, 500)}


def test_on_a_full_disk_the_old_record_stays(tmp_path: Path) -> None:
    path = tmp_path / "results" / "l2-0.json"
    save_record(record(), path)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    # Room for the description, but not for the numbers; or for neither.
    sizes = [len(before["l2-0.json"]) + 200, 100]
    large = record(values={f"rps/gradient/8/{n}": np.arange(100.0) for n in ("cosine", "pearson", "ssim")})
    for size in sizes:
        with room(size), pytest.raises(OSError, match=r"l2-0\.jsonl? cannot be written: File too large") as error:
            save_record(large, path)
        assert "\n" not in str(error.value)
        assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    save_record(large, path)
    assert load_record(path).values.keys() == large.values.keys()


def test_numbers_say_all_that_they_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "grid" / "l2-3.json"
    save_record(record(seed=3), path)
    accuracy, correct, steadiness = records.read(path.with_suffix(".jsonl"))
    assert (accuracy.quantity, accuracy.value, accuracy.n, accuracy.unit) == ("accuracy", 0.625, 500, "share of images")
    assert (accuracy.dataset, accuracy.dataset_sha256) == ("digits test, all", None)
    assert (correct.values, correct.value, correct.epsilon) == ((1.0, 0.0, 1.0), 0.666667, None)
    assert (steadiness.epsilon, steadiness.norm, steadiness.n) == (8 / 255, "linf", 3)
    for each in (accuracy, correct, steadiness):
        assert (each.run, each.seed, each.objective, each.profile) == ("grid/l2-3", 3, "l2", "grid")
        assert each.model == "digits-mlp, softplus(3)"
        assert each.weights_sha256 == "0" * 64
        assert (each.seconds, each.device, each.hardware) == (2.5, "cpu", "a processor, 2 threads")
        assert (each.commit, each.versions) == ("0123456789", {"python": "3.11.0", "torch": "2.6.0"})
    assert correct.dataset_sha256 == "1" * 64


def test_records_are_in_the_order_of_objectives_and_seeds(tmp_path: Path) -> None:
    for objective, seed in (("l2+cosine", 0), ("cross-entropy", 1), ("cross-entropy", 0), ("hessian", 10)):
        save_record(record(objective, seed), tmp_path / f"{objective}-{seed}.json")
    found = [(r.training.objective, r.training.seed) for r in load_records(tmp_path)]
    assert found == [("cross-entropy", 0), ("cross-entropy", 1), ("hessian", 10), ("l2+cosine", 0)]
    with pytest.raises(ValueError, match="has no records") as error:
        load_records(tmp_path / "none")
    assert "\n" not in str(error.value)
    assert load_records(tmp_path / "none", missing_ok=True) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": "fragile"}, "no kind 'fragile' of study (there are alignment, "),
        ({"experiment": "fragility"}, "draws: there is no such field"),
        ({"network": {"training": {"objective": "l1"}}}, "training.objective is 'l1': "),
        ({"history": [{"epoch": 1}]}, "missing"),
        ({"dimension": ...}, "dimension"),
    ],
)
def test_foreign_records_are_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save_record(record(), path)
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match=r"record\.json: not a record") as error:
        load_record(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_record_with_a_damaged_number_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save_record(record(), path)
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    path.with_suffix(".jsonl").write_text("\n".join([lines[0], lines[1].replace("1.0", '"yes"', 1), *lines[2:]]))
    with pytest.raises(ValueError, match=r"record\.json: not a record .*record\.jsonl, line 2: values") as error:
        load_record(path)
    assert "\n" not in str(error.value)
    path.with_suffix(".jsonl").unlink()
    with pytest.raises(ValueError, match=r"record\.jsonl: cannot be read"):
        load_record(path)


@pytest.mark.parametrize("text", ["{", "[]", '"text"'])
def test_files_that_are_no_records_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json: not a record") as error:
        load_record(path)
    assert "\n" not in str(error.value)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_becomes_its_record(grid_file: Path, tmp_path: Path, counted: Counter) -> None:
    grid, path = load_grid(grid_file), tmp_path / "tiny" / "l2+cosine-3.json"
    options: dict[str, Any] = {"root": tmp_path / "runs", "compute": CPU, "progress": False}
    made = run_record(grid, "l2+cosine-3", path, **options)
    found = load_record(path)
    assert found.network == grid.networks["l2+cosine-3"]
    assert found.training == grid.networks["l2+cosine-3"].training
    assert found.config == dict(grid.runs())["l2+cosine-3"]
    assert len(found.history) == 3
    assert (found.best, found.totals, found.totals["accuracy"].n) == (made.best, made.totals, 500)
    assert found.weights == {
        "file": "weights/l2+cosine-3.safetensors",
        "sha256": _files.file_digest(path.parent / "weights" / "l2+cosine-3.safetensors"),
    }
    assert found.provenance["code"] == alignment.KIND.code
    assert found.provenance["network"]["dataset"]["name"] == "digits"
    # The weights that are kept are the ones that were measured.
    weights = load_file(path.parent / found.weights["file"])
    assert {v.dtype for v in weights.values()} == {torch.float16}
    measured = alignment.measure(found.load_model(path.parent), found.config, device="cpu")
    assert measured.totals == found.totals
    assert found.values["cost/step"].shape == (5,)
    assert (found.values["cost/step"] > 0).all()
    for name, value in measured.values.items():
        np.testing.assert_allclose(made.values[name], value, rtol=1e-6, err_msg=name)
    # Only the record is made again when it is gone.
    path.unlink()
    again = run_record(grid, "l2+cosine-3", path, **options)
    assert counted.calls == 1
    assert again.weights == made.weights
    assert all(np.array_equal(again.values[name], made.values[name]) for name in made.values if name != "cost/step")


def test_weights_stay_with_their_record_until_there_is_another(
    grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny" / "l2+cosine-3.json"
    options: dict[str, Any] = {"root": tmp_path / "runs", "compute": CPU, "progress": False}
    run_record(load_grid(grid_file), "l2+cosine-3", path, **options)
    other = tmp_path / "other.yaml"
    other.write_text(grid_file.read_text().replace("cosine: 0.5", "cosine: 0.25"))

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_record(load_grid(other), "l2+cosine-3", path, **options)
    load_record(path).load_model(path.parent)


def test_what_is_measured_has_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = SimpleNamespace(
        cudnn=SimpleNamespace(allow_tf32=True), cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True))
    )
    monkeypatch.setattr(torch, "backends", flags)
    with runs.tf32(False):
        assert (flags.cudnn.allow_tf32, flags.cuda.matmul.allow_tf32) == (False, False)
    assert (flags.cudnn.allow_tf32, flags.cuda.matmul.allow_tf32) == (True, True)


def test_a_change_of_trainings_keeps_what_it_does_not_name(grid_file: Path, tmp_path: Path) -> None:
    measurement = {"dataset": "digits", "images": 4, "k": 5, "attacks": ["random-sign"]}
    path = tmp_path / "changed.yaml"
    changed = {"short": {"schedule": {"epochs": 1, "milestones": []}}, "other": {"model": "torchvision:resnet18"}}
    path.write_text(yaml.safe_dump(
        {"description": "x", "trainings": {"of": "tiny", "changed": changed}, "fragility": measurement}
    ))  # fmt: skip
    found = {name: network.training for name, network in load_grid(path).networks.items()}
    short, other = found["short-l2+cosine-3"], found["other-l2+cosine-3"]
    before = load_grid(grid_file).networks["l2+cosine-3"].training
    assert short is not None
    assert other is not None
    assert before is not None
    assert short.schedule == before.schedule.model_copy(update={"epochs": 1, "milestones": ()})
    # What the grid gives stays; what it leaves out is the published value of the model.
    assert (other.options["cosine"], other.options["l2"]) == (0.5, 1.0)


def test_another_grid_measures_the_weights_that_were_recorded(
    grid_file: Path, tmp_path: Path, counted: Counter
) -> None:
    measurement = {"dataset": "digits", "images": 4, "k": 5, "attacks": ["random-sign"]}
    other = tmp_path / "attacks.yaml"
    other.write_text(yaml.safe_dump({"description": "x", "trainings": "tiny", "fragility": measurement}))
    options: dict[str, Any] = {"root": tmp_path / "runs", "compute": CPU, "progress": False}
    first = run_record(load_grid(grid_file), "l2+cosine-3", tmp_path / "tiny" / "l2+cosine-3.json", **options)
    found = run_record(load_grid(other), "l2+cosine-3", tmp_path / "attacks" / "l2+cosine-3.json", **options)
    assert counted.calls == 1
    assert found.weights == first.weights
    assert found.provenance["network"]["record"] == "l2+cosine-3.json"
    assert found.network == Network(training=first.training)
    assert (found.history, found.best) == ((), None)
    # Weights that are not those of the record are refused; without a record the network is trained.
    (tmp_path / "tiny" / "weights" / "l2+cosine-3.safetensors").write_bytes(b"")
    with pytest.raises(models.ModelError, match="is missing or not the file that was measured"):
        run_record(load_grid(other), "l2+cosine-3", tmp_path / "attacks" / "l2+cosine-3.json", **options)
    (tmp_path / "tiny" / "l2+cosine-3.json").unlink()
    run_record(load_grid(other), "l2+cosine-3", tmp_path / "attacks" / "l2+cosine-3.json", **options)
    assert counted.calls == 1  # the run is still there
    changed = yaml.safe_dump({
        "description": "x", "trainings": {"of": "tiny", "changed": {"b": {"beta": 2}}}, "fragility": measurement,
    })  # fmt: skip
    other.write_text(changed)
    assert not load_grid(other).recorded


def attack(**changes: Any) -> Fragility:
    values: dict[str, Any] = {
        "dataset": "digits", "images": 6, "attacks": ("top-k", "random-sign"), "k": 5,
        "iterations": 2, "keep_images": True, "beta": "auto",
    }  # fmt: skip
    return Fragility.model_validate(values | changes)


def test_the_time_of_a_run_is_that_of_all_processes_that_worked_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped twice, a hundred seconds after it began by the last file that it wrote, and finished at once."""
    network, options = Network(model="digits-cnn"), {"root": tmp_path, "device": "cpu", "progress": False}
    config = attack(epsilons=(2, 4, 8))
    real, calls = fragility.attack_images, []

    def stopping(*args: Any) -> Any:
        calls.append(args)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fragility, "attack_images", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            grids.run(fragility.KIND, network, config, **options)
        (parts,) = tmp_path.glob(".*.parts")
        begun = _files.kept_values(parts / ".begun.json")
        assert begun is not None
        for path in parts.glob("*.json"):
            os.utime(path, (begun["at"] + 100, begun["at"] + 100))
    started = time.monotonic()
    found = grids.run(fragility.KIND, network, config, **options)
    assert 200 <= found.provenance["seconds"] <= 200.01 + time.monotonic() - started


def test_a_run_of_ones_own_is_kept_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, options = Network(model="digits-cnn"), {"root": tmp_path, "device": "cpu", "progress": False}
    measure = Counter(fragility.KIND.measure)
    kind = dataclasses.replace(fragility.KIND, measure=measure)
    monkeypatch.setattr(grids.Kind, "code", property(lambda self: "code"))
    first = grids.run(kind, network, attack(), **options)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert folder.name.startswith("fragility-")
    again = grids.run(kind, network, attack(), **options)
    assert measure.calls == 1
    assert again.provenance == first.provenance
    assert {m.run for m in records.read(folder / "record.jsonl")} == {f"runs/{folder.name}"}
    for name, values in first.values.items():
        np.testing.assert_allclose(again.values[name], values, rtol=5e-5)  # five digits are kept
    assert all(torch.equal(again.tensors[name], images) for name, images in first.tensors.items())
    # Every file of it counts.
    for calls, name in enumerate(("record.json", "record.jsonl", "tensors.safetensors"), 2):
        content = bytearray((folder / name).read_bytes())
        content[-20] ^= 1
        (folder / name).write_bytes(content)
        grids.run(kind, network, attack(), **options)
        assert measure.calls == calls
    # And everything that decides the result is in its key.
    for calls, (other, config) in enumerate(
        ((network, attack(k=6)), (network, attack(dataset="digits", split="train")), (small_network(), attack())), 5
    ):
        grids.run(kind, other, config, **options)
        assert measure.calls == calls


def small_network() -> Network:
    return Network(training=small())


def test_a_run_does_not_say_where_files_are(tmp_path: Path, pictures: str) -> None:
    config = attack(dataset=pictures, images=1, attacks=("random-sign",), k=10)
    network, root = Network(model="efficientnet-lite0"), tmp_path / "runs"
    found = grids.run(fragility.KIND, network, config, root=root, device="cpu", progress=False)
    (text,) = [path.read_text() for path in (tmp_path / "runs").rglob("record.json")]
    assert str(tmp_path) not in text
    assert found.config.dataset == "folder:pictures"


def test_a_run_of_a_training_does_not_say_where_its_pictures_are(tmp_path: Path, pictures: str) -> None:
    for label in ("n01440764", "n01443537"):
        (tmp_path / "pictures" / "train").mkdir(exist_ok=True)
        (tmp_path / "pictures" / label).rename(tmp_path / "pictures" / "train" / label)
    (tmp_path / "pictures" / "test").symlink_to(tmp_path / "pictures" / "train")
    own = {"dataset": pictures, "size": 8, "images": 1, "validation": 1, "model": "linear"}
    network = Network(training=small(**own))
    config = attack(dataset=pictures, images=1, attacks=("random-sign",), k=10)
    root = tmp_path / "runs"
    for _ in ("made", "loaded"):
        found = grids.run(fragility.KIND, network, config, root=root, device="cpu", progress=False)
        assert found.training is not None
        assert found.training.dataset == "folder:pictures"
        (text,) = [path.read_text() for path in root.rglob("record.json")]
        assert str(tmp_path) not in text


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    for i, name in enumerate(("n01440764", "n01443537")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30), (20 + 100 * i, 60, 90)).save(tmp_path / "pictures" / name / "a.png")
    return f"folder:{tmp_path / 'pictures'}"


# --- the command line -----------------------------------------------------------------------------------------------


def call(*words: str) -> Any:
    return CliRunner().invoke(cli.main, ["reference", *words])


def test_the_runs_of_a_grid_are_listed(grid_file: Path) -> None:
    save_record(record("l2+cosine"), grid_file.parent / "tiny" / "l2+cosine-0.json")
    (grid_file.parent / "tiny" / "cross-entropy-3.json").write_text("{}")
    result = call(str(grid_file))
    assert result.exit_code == 0, result.output
    assert "Digits, for a moment." in result.stdout
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert rows == [
        ["cross-entropy-0", "no", ""],
        ["l2+cosine-0", "yes", "l2 0.01, cosine 0.5, epsilon 4"],
        ["cross-entropy-3", "damaged", ""],
        ["l2+cosine-3", "no", "l2 0.01, cosine 0.5, epsilon 4"],
    ]


def test_a_run_is_made_by_its_name(grid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(grids, "run_record", lambda *args, **options: calls.append((args, options)) or "a record")
    result = call(str(grid_file), "l2+cosine-3", "--root", "here", "--accelerator", "cpu")
    assert result.exit_code == 0, result.output
    path = grid_file.with_suffix("") / "l2+cosine-3.json"
    assert result.stdout == f"{path}\n"
    ((args, options),) = calls
    assert args == (load_grid(grid_file), "l2+cosine-3", path)
    assert options == {"root": Path("here"), "compute": CPU}
    assert call(str(grid_file), "cross-entropy-0", "-o", "out.json").stdout == "out.json\n"
    assert calls[1][0][2] == Path("out.json")


def test_wrong_requests_are_one_line_and_status_2(grid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = grid_file.with_name("bad.yaml")
    bad.write_text("a: 1\n")

    def fail(*args: Any, **options: Any) -> None:
        raise training.TrainingError("the loss is not finite")

    monkeypatch.setattr(trainings, "run_training", fail)
    for words, said in (
        ((str(grid_file), "l2-0"), "no run 'l2-0' (there are cross-entropy-0"),
        ((str(grid_file.with_name("none.yaml")),), "none.yaml"),
        ((str(bad),), "bad.yaml: not a grid"),
        ((str(grid_file), "cross-entropy-0"), "the loss is not finite"),
    ):
        result = call(*words)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.startswith("robattr: ")
        assert result.stderr.count("\n") == 1
        assert said in result.stderr


def test_several_devices_make_one_record(grid_file: Path, tmp_path: Path) -> None:
    """The first process holds the folder's lock while it starts the second, which must not wait for it."""
    command = [sys.executable, "-m", "robattr.cli", "reference", str(grid_file), "l2+cosine-0"]
    command += ["--root", str(tmp_path / "two"), "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = grid_file.with_suffix("") / "l2+cosine-0.json"
    assert done.stdout.splitlines() == [str(path)]  # once, by the first process
    found = load_record(path)
    assert found.provenance["network"]["compute"]["devices"] == 2
    alone = run(load_grid(grid_file).networks["l2+cosine-0"].training, tmp_path / "one")
    assert [epoch.accuracy for epoch in found.history] == [epoch.accuracy for epoch in alone.history]
    for two, one in zip(found.history, alone.history, strict=True):
        assert two.total == pytest.approx(one.total, rel=1e-4)  # float32 sums in another order, six steps
    # It is a run like every other: the second time nothing is trained.
    assert sorted(path.name for path in (tmp_path / "two").glob("training-*")) == [f"training-{alone.config.key}"]


# --- the committed records ------------------------------------------------------------------------------------------

REFERENCE = REPOSITORY / "results" / "reference"
RECORDS = sorted(path.relative_to(REFERENCE) for path in REFERENCE.glob("*/*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=str)
def test_committed_records_belong_to_their_grid_and_weights(path: Path) -> None:
    record, grid = load_record(REFERENCE / path), load_grid(REFERENCE / f"{path.parent}.yaml")
    assert record.kind == grid.kind
    assert record.name == path.stem
    assert dict(grid.runs())[path.stem] == record.config
    assert grid.networks[path.stem] == record.network
    if "file" in record.weights and record.kind.keeps_weights:
        record.load_model(REFERENCE / path.parent)  # the file whose checksum is recorded
    for provenance in (record.provenance, record.provenance["network"]):
        assert "with changes" not in provenance.get("commit", "")
    # The file has the numbers that the record has, to the last digit and with all that they depend on.
    again = grids.measurements(record, f"{path.parent.name}/{path.stem}")
    assert again == records.read((REFERENCE / path).with_suffix(".jsonl"))


def test_committed_numbers_are_those_before_the_files_were_moved() -> None:
    """Places and descriptions of the first edition's records changed, and lines were added; no number changed."""
    added = ("below_quoted", "quoted_broken", "smallest_radius", "round_trip_radius")
    before = json.loads((Path(__file__).parent / "committed_numbers.json").read_text(encoding="utf-8"))
    assert len(before) == 114
    for name, digest in before.items():
        text = (REFERENCE / name).read_text(encoding="utf-8")
        if name.endswith(".jsonl"):
            lines = text.splitlines(keepends=True)
            text = "".join(line for line in lines if json.loads(line)["quantity"].partition("/")[0] not in added)
        assert hashlib.sha256(text.encode()).hexdigest() == digest, name


def test_every_kind_of_study_is_known_by_its_name() -> None:
    folder = Path(str(alignment.__file__)).parent
    with_kind = sorted(file.stem for file in folder.glob("*.py") if "\nKIND = " in file.read_text(encoding="utf-8"))
    assert with_kind == sorted(grids.KINDS)
    for name in grids.KINDS:
        kind = grids.kind_named(name)
        assert kind.name == name
        assert "dataset" in kind.config.model_fields
    with pytest.raises(ValueError, match=r"no kind 'fragile' of study \(there are alignment, "):
        grids.kind_named("fragile")
