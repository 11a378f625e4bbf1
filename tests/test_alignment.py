"""Trainings with a key, run once and stored whole; grids, their records, and what is measured on a network."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import PATIENCE_S, REPOSITORY
from filelock import FileLock
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from robattr import _runs, attacks, cli, data, metrics, models, regularizers, training
from robattr.attributions import gradient, heatmap
from robattr.studies import alignment, records
from robattr.studies.alignment import (
    OBJECTIVES,
    Evaluation,
    Record,
    TrainedModel,
    Training,
    evaluate,
    load_grid,
    load_record,
    load_records,
    run_record,
    run_training,
    save_record,
    spread,
    step_seconds,
)
from robattr.training import Compute, Epoch, Schedule, TrainingResult

CPU = Compute(accelerator="cpu")
SCHEDULE = {"epochs": 3, "batch_size": 32, "milestones": [], "learning_rate": 0.01, "augment": False}


def small(**changes: Any) -> Training:
    """Six steps on digits."""
    values = {"dataset": "digits", "images": 64, "validation": 50, "model": "digits-mlp", "schedule": SCHEDULE}
    return Training.model_validate(values | changes)


def run(config: Training, root: Path) -> TrainedModel:
    return run_training(config, root=root, compute=CPU, progress=False)


class Counter:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter(training.train)
    monkeypatch.setattr(training, "train", counter)
    return counter


def assert_same(one: TrainedModel, other: TrainedModel) -> None:
    assert one.config == other.config
    assert one.best == other.best
    assert [dataclasses.replace(e, seconds=0) for e in one.history] == [
        dataclasses.replace(e, seconds=0) for e in other.history
    ]
    for a, b in ((one.model.state_dict(), other.model.state_dict()), (one.last, other.last)):
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[name]) for name, value in a.items())


# --- configurations -------------------------------------------------------------------------------------------------


def test_defaults_are_the_published_protocol() -> None:
    config = Training()
    assert (config.dataset, config.model, config.activation, config.beta) == ("cifar10", "lenet", "softplus", 3.0)
    assert config.schedule == Schedule()
    assert (config.objective, config.options, config.images, config.precision) == ("cross-entropy", {}, None, "32-true")
    softplus = [module for module in config.build().modules() if isinstance(module, nn.Softplus)]
    assert [module.beta for module in softplus] == [3.0] * 5


PUBLISHED = {
    "cross-entropy": ({}, {}),
    "hessian": ({"hessian": 1e-3}, {"hessian": 1e-4}),
    "l2": ({"l2": 0.01, "epsilon": 4.0}, {"l2": 0.01, "epsilon": 4.0}),
    "cosine": ({"cosine": 1.0, "epsilon": 4.0}, {"cosine": 0.1, "epsilon": 4.0}),
    "l2+cosine": ({"l2": 0.01, "cosine": 1.0, "epsilon": 4.0}, {"l2": 0.01, "cosine": 0.1, "epsilon": 4.0}),
}


def test_options_that_are_not_given_are_the_published_ones() -> None:
    assert set(PUBLISHED) < set(OBJECTIVES)
    for objective, (lenet, resnet) in PUBLISHED.items():
        assert Training(objective=objective).options == lenet
        assert Training(objective=objective, model="resnet18").options == resnet
    config = Training(objective="l2+cosine", options={"cosine": 3, "epsilon": 2})
    assert config.options == {"l2": 0.01, "cosine": 3.0, "epsilon": 2.0}
    # Whoever writes a default out asks for the same.
    assert Training(objective="l2", options={"l2": 0.01}).key == Training(objective="l2").key


def test_objectives_are_what_their_names_say() -> None:
    model = models.build("digits-mlp", activation="softplus")
    made = {name: small(objective=name).objective_for(model) for name in OBJECTIVES}
    assert all(objective.model is model for objective in made.values())
    kinds = {
        "cross-entropy": regularizers.CrossEntropy,
        "hessian": regularizers.HessianPenalty,
        "attribution-adversary": regularizers.AttributionAdversary,
        "adversarial-training": regularizers.AdversarialTraining,
    }
    for name, objective in made.items():
        assert type(objective) is kinds.get(name, regularizers.GradientAlignment)
    weights = {name: (made[name].l2, made[name].cosine) for name in ("l2", "cosine", "l2+cosine")}
    assert weights == {"l2": (0.01, 0.0), "cosine": (0.0, 1.0), "l2+cosine": (0.01, 1.0)}
    for name in ("l2", "attribution-adversary", "adversarial-training"):
        assert made[name].epsilon == pytest.approx(4 / 255)
    given = small(objective="attribution-adversary", options={"cosine": 0.5, "epsilon": 8, "steps": 5})
    adversary = given.objective_for(model)
    assert (adversary.weight, adversary.epsilon, adversary.steps) == (0.5, pytest.approx(8 / 255), 5)
    assert small(objective="hessian", options={"hessian": 0.2}).objective_for(model).weight == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "cross-entropy", "options": {"l2": 1}}, "options has l2; cross-entropy takes no options"),
        ({"objective": "l2", "options": {"cosine": 1}}, "options has cosine; l2 takes l2, epsilon"),
        ({"objective": "l1"}, "'l2'"),
        ({"validation": 0}, "greater than or equal to 1"),
        ({"beta": -1}, "greater than 0"),
        ({"surprise": 1}, "not permitted"),
        ({"schedule": {"epochs": 0}}, "greater than or equal to 1"),
        ({"precision": "16"}, "bf16-mixed"),
        ({"dataset": "breast-cancer", "schedule": {"augment": True}}, "breast-cancer is a table, without crops"),
        ({"size": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_trainings_are_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as error:
        small(**change)
    (only,) = error.value.errors()
    assert message in only["msg"]
    assert "\n" not in only["msg"]


def test_training_and_validation_images_are_disjoint_draws() -> None:
    digits = data.load("digits", "train")
    images, validation = small().sets()
    assert (len(images), len(validation)) == (64, 50)
    rest, held = small(images=None, seed=1).sets()
    assert len(rest) + len(held) == len(digits)
    assert len(held) == 50
    everything = torch.cat([rest.images, held.images]).flatten(1)
    assert torch.equal(everything.unique(dim=0), digits.images.flatten(1).unique(dim=0))
    for a, b in ((images, validation), (rest, held)):
        same = (a.images.flatten(1)[:, None] == b.images.flatten(1)).all(2)
        assert not same.any()
    assert torch.equal(small().sets()[0].images, images.images)
    assert not torch.equal(small(seed=1).sets()[0].images, images.images)
    with pytest.raises(ValueError, match=r"validation is 1297; digits has 1297 training images") as error:
        small(images=None, validation=1297).sets()
    assert "\n" not in str(error.value)


def test_initial_weights_follow_the_seed() -> None:
    one, same, other = (small(seed=seed).build(10).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["network.fc1.weight"], other["network.fc1.weight"])


def test_networks_are_made_for_the_size_of_the_images() -> None:
    larger = small(dataset="digits", model="digits-cnn", size=16)
    assert larger.build(10).input_size == larger.sets()[0].images.shape[1:] == (1, 16, 16)
    assert small(dataset="digits", model="digits-cnn").build(10).input_size == (1, 8, 8)
    assert small(model="lenet", dataset="cifar10").build(10).input_size == (3, 32, 32)


def test_a_table_is_learned(tmp_path: Path) -> None:
    for model in ("linear", "mlp"):
        schedule = {"epochs": 30, "milestones": (), "batch_size": 32, "learning_rate": 0.01, "augment": False}
        config = Training(dataset="breast-cancer", validation=79, model=model, schedule=Schedule(**schedule))
        net = alignment.run_training(config, root=tmp_path, progress=False).model
        test = data.load("breast-cancer")
        right = (net(test.images).argmax(1) == test.labels).double().mean()
        # Always the more frequent class is right in 119 of 190.
        assert right > 0.9
        again = alignment.run_training(config, root=tmp_path, progress=False).model
        assert torch.equal(again(test.images), net(test.images))


# --- keys -----------------------------------------------------------------------------------------------------------


def test_the_key_follows_what_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "code_digest", functools.cache(alignment.code_digest))
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"seed": 1},
        {"images": 65},
        {"validation": 51},
        {"objective": "l2"},
        {"objective": "l2", "options": {"l2": 0.5}},
        {"objective": "l2", "options": {"epsilon": 8}},
        {"schedule": SCHEDULE | {"epochs": 4}},
        {"precision": "bf16-mixed"},
        {"model": "digits-cnn"},
        {"activation": "relu"},
        {"beta": 5},
    )
    keys = {small(**change).key for change in changes}
    assert len(keys) == len(changes)
    assert small().key == Training.model_validate(small().model_dump()).key


def test_the_key_follows_the_code_and_no_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small().key
    for name in alignment._CODE:
        shutil.copy(REPOSITORY / "robattr" / f"{name}.py", tmp_path)
    monkeypatch.setattr(_runs, "__file__", str(tmp_path / "_runs.py"))
    assert small().key == before
    path = tmp_path / "regularizers.py"
    text = path.read_text()
    path.write_text('"""Another text."""\n' + text.split('"""', 2)[2].replace("\n\n\ndef ", "\n\n# A comment.\ndef "))
    assert small().key == before
    path.write_text(text.replace("alpha=self.epsilon", "alpha=2 * self.epsilon"))
    assert path.read_text() != text
    assert small().key != before
    assert {"data", "models", "_second_order", "regularizers", "training"} <= set(alignment._CODE)


def test_code_digest_reads_statements_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runs, "__file__", str(tmp_path / "_runs.py"))

    def digest(text: str) -> str:
        (tmp_path / "a.py").write_text(text)
        return _runs.code_digest("a")

    plain = digest("class A:\n    x = 1\n\n\ndef f(a):\n    return a + 1\n")
    assert len(plain) == 12
    assert (
        digest('"""Text."""\nclass A:\n    x = 1\n    """What x is."""\ndef f( a ): return a+1  # one more\n') == plain
    )
    assert digest("class A:\n    x = 2\n\n\ndef f(a):\n    return a + 1\n") != plain
    assert digest('class A:\n    x = 1\n\n\ndef f(a):\n    print("text")\n    return a + 1\n') != plain


def test_locks_stores_and_digests(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "a").write_text("1")
        raise KeyboardInterrupt

    def whole(folder: Path) -> None:
        (folder / "b").write_text("2")

    with _runs.locked(tmp_path / "run"):
        _runs.store(tmp_path / "run", whole)
        with pytest.raises(KeyboardInterrupt):
            _runs.store(tmp_path / "run", half)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["b"]
    assert _runs.file_digest(tmp_path / "run" / "b") == hashlib.sha256(b"2").hexdigest()


# --- trainings ------------------------------------------------------------------------------------------------------


def test_a_training_is_kept_whole_and_loaded_the_second_time(tmp_path: Path, trainings: Counter) -> None:
    config = small(objective="l2+cosine")
    first = run(config, tmp_path)
    assert trainings.calls == 1
    folder = tmp_path / f"training-{config.key}"
    files = ["history.jsonl", "last.safetensors", "training.json", "weights.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == files
    # No checkpoint is left behind.
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]
    second = run(config, tmp_path)
    assert trainings.calls == 1
    assert_same(second, first)
    assert second.history == first.history
    assert second.provenance == first.provenance
    run(config.model_copy(update={"seed": 1}), tmp_path)
    assert trainings.calls == 2


def test_the_last_weights_are_the_result_where_they_are_asked_for(tmp_path: Path) -> None:
    config = small(objective="cross-entropy", seed=2, select="last")
    for found in (run(config, tmp_path), run(config, tmp_path)):  # trained, then loaded
        assert found.best == config.schedule.epochs
        assert all(torch.equal(found.last[name], value) for name, value in found.model.state_dict().items())
    stored = load_file(next(tmp_path.glob("training-*")) / "weights.safetensors")
    selected = run(config.model_copy(update={"select": "validation"}), tmp_path / "other")
    assert all(torch.equal(stored[name], value) for name, value in selected.model.state_dict().items())
    assert selected.best == 1 + max(range(len(selected.history)), key=lambda i: selected.history[i].validation_accuracy)


def test_a_trained_model_is_the_best_one_of_the_training(tmp_path: Path) -> None:
    config = small(objective="cosine", seed=2)
    found = run(config, tmp_path)
    images, validation = config.sets()
    plain = training.train(
        config.objective_for(config.build(10)),
        images,
        validation,
        config.schedule,
        seed=2,
        compute=CPU,
        progress=False,
    )
    assert found.best == plain.best
    assert [e.total for e in found.history] == [e.total for e in plain.history]
    for ours, theirs in ((found.model.state_dict(), plain.weights), (found.last, plain.last)):
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    provenance = found.provenance
    assert provenance["dataset"]["sha256"] == images.provenance["sha256"]
    assert provenance["validation"]["sha256"] == validation.provenance["sha256"]
    assert provenance["dataset"]["name"] == "digits"
    assert provenance["code"] == _runs.code_digest(*alignment._CODE)
    assert provenance["device"] == "cpu"
    assert provenance["seconds"] > 0


@pytest.mark.parametrize("name", ["training.json", "history.jsonl", "weights.safetensors", "last.safetensors"])
def test_damage_is_found_and_made_good(
    name: str, tmp_path: Path, trainings: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither hardware nor code change meanwhile: five trainings in a second.
    monkeypatch.setattr(alignment, "environment", dict)
    monkeypatch.setattr(alignment, "code_digest", functools.cache(alignment.code_digest))
    config = small()
    first = run(config, tmp_path)
    path = tmp_path / f"training-{config.key}" / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-20] ^= 1
    damages: list[bytes | None] = [content[:-20], b"", None]
    if name != "training.json":  # its texts and times have no checksum
        damages.append(bytes(flipped))
    for damage in damages:
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        calls = trainings.calls
        assert_same(run(config, tmp_path), first)
        assert trainings.calls == calls + 1
    assert_same(run(config, tmp_path), first)
    assert trainings.calls == 1 + len(damages)


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, steps = small(), Counter(regularizers.CrossEntropy.forward)
    whole = run(config, tmp_path / "whole")

    def interrupted(*args: Any) -> Any:
        if steps.calls == 4:
            raise KeyboardInterrupt
        return steps(*args)

    monkeypatch.setattr(regularizers.CrossEntropy, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / f"training-{config.key}").exists()
    monkeypatch.setattr(regularizers.CrossEntropy, "forward", lambda *args: steps(*args))
    found = run(config, tmp_path / "parts")
    # Four steps, the last two of them lost with the process, and the four that were left.
    assert steps.calls == 4 + 4
    assert_same(found, whole)


def test_any_number_of_classes_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: Counter
) -> None:
    """Of a network whose last vector in the file is not the bias of its logits."""

    def untrained(objective: Any, *args: Any, **options: Any) -> TrainingResult:
        state = {name: value.clone().contiguous() for name, value in objective.model.state_dict().items()}
        return TrainingResult((epoch(1),), 1, state, state, 0.1)

    trainings.function = untrained
    config = small(model="shufflenet_v2_x0_5")
    first = run(config, tmp_path)
    assert first.model.num_classes == 10
    assert_same(run(config, tmp_path), first)
    assert trainings.calls == 1


def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path: Path, trainings: Counter) -> None:
    for change, message in (
        ({"dataset": "no-such"}, "no-such"),
        ({"model": "no-such"}, "model 'no-such' is unknown"),
        ({"images": 5000}, "5050"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            run(small(**change), tmp_path)
        assert "\n" not in str(error.value)
    assert trainings.calls == 0
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


WAITING = """
import sys, time
from test_alignment import alignment, regularizers, run, small
from pathlib import Path
forward = regularizers.CrossEntropy.forward
def waiting(*given):
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    return forward(*given)
regularizers.CrossEntropy.forward = waiting
run(small(), Path(sys.argv[1]))
print("trained")
"""


def test_of_two_processes_one_trains(tmp_path: Path, trainings: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process is in its first step until this one has come to its lock, however busy the machine is."""
    config, here = small(), tmp_path / "here"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    other = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path), str(here)], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    acquire = FileLock.acquire

    def announced(lock: FileLock, *args: Any, **options: Any) -> Any:
        here.touch()
        return acquire(lock, *args, **options)

    with other:
        begun = tmp_path / f".training-{config.key}.partial"
        while not begun.exists() and other.poll() is None:
            time.sleep(0.01)
        assert other.poll() is None
        try:
            with monkeypatch.context() as patch:
                patch.setattr(FileLock, "acquire", announced)
                found = run(config, tmp_path)
        finally:
            here.touch()
        assert other.communicate() == ("trained\n", "")
    assert trainings.calls == 0
    assert_same(found, run(config, tmp_path / "alone"))
    assert trainings.calls == 1


# --- grids ----------------------------------------------------------------------------------------------------------


GRID: dict[str, Any] = {
    "description": "Digits, for a moment.",
    "training": {"dataset": "digits", "images": 64, "validation": 50, "model": "digits-mlp", "schedule": SCHEDULE},
    "objectives": {"cross-entropy": None, "l2+cosine": {"cosine": 0.5}},
    "seeds": [0, 3],
    "evaluation": {
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
    runs = dict(grid.runs())
    assert list(runs) == ["cross-entropy-0", "l2+cosine-0", "cross-entropy-3", "l2+cosine-3"]
    assert runs["l2+cosine-3"] == small(objective="l2+cosine", options={"cosine": 0.5}, seed=3)
    assert runs["cross-entropy-0"] == small()
    assert grid.run("l2+cosine", 3) == runs["l2+cosine-3"]
    assert grid.evaluation.methods == ("smoothgrad", "lrp")


def test_the_grids_of_the_repository_can_be_read() -> None:
    everything = sorted((REPOSITORY / "results" / "reference").glob("*.yaml"))
    paths = [path for path in everything if "objectives" in yaml.safe_load(path.read_text(encoding="utf-8"))]
    assert paths
    for path in paths:
        assert len(list(load_grid(path).runs())) >= 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": {"l1": None}}, "objectives"),
        ({"objectives": {"l2": {"cosine": 1}}}, "options has cosine; l2 takes l2, epsilon"),
        ({"training": {"epochs": 3}}, "epochs"),
        ({"training": {"schedule": {"milestones": [5, 3]}}}, "accepted are increasing epochs"),
        ({"seeds": ["one"]}, "seeds"),
        ({"seeds": [-1]}, "seed"),
        ({"evaluation": {"methods": ["guess"]}}, "methods has guess"),
        ({"evaluation": {"images": 50}}, "images is 50; the other numbers of images are at most that"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_impossible_grids_are_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(GRID | change))
    with pytest.raises(ValueError, match=r"bad\.yaml: not a grid") as error:
        load_grid(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "just text"])
def test_files_that_are_no_grids_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml: not a grid") as error:
        load_grid(path)
    assert "\n" not in str(error.value)


# --- records --------------------------------------------------------------------------------------------------------


def epoch(n: int, **changes: Any) -> Epoch:
    values: dict[str, Any] = {
        "epoch": n, "learning_rate": 0.01, "total": 2.5 / n, "cross_entropy": 2.25 / n, "penalties": {"l2": 0.125},
        "accuracy": 0.5, "validation_loss": 1.5, "validation_accuracy": 0.25, "alignment": None, "seconds": 0.5,
    }  # fmt: skip
    return Epoch(**(values | changes))


EVALUATED = {
    "code": "abc", "seconds": 2.5, "device": "cpu", "cpu": "a processor", "threads": 2, "gpu": "none",
    "python": "3.11.0", "versions": {"torch": "2.6.0"}, "commit": "0123456789", "date": "2026-01-01T00:00:00+00:00",
    "dataset": {"name": "digits", "split": "test", "sha256": "1" * 64},
}  # fmt: skip


def record(objective: str = "l2", seed: int = 0, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "training": small(objective=objective, seed=seed),
        "evaluation": Evaluation.model_validate(GRID["evaluation"]),
        "history": (epoch(1), epoch(2, alignment=0.75)),
        "best": 2,
        "accuracy": 0.625,
        "test_images": 500,
        "values": {
            "correct": np.array([1.0, 0.0, 1.0]),
            "rps/gradient/8/cosine": np.array([1 / 3, 1e-9 / 7, -2e5 / 3]),
        },
        "weights": {"file": "weights/a.safetensors", "sha256": "0" * 64},
        "provenance": {"training": {"seconds": 1.5}, "evaluation": EVALUATED},
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": "fragility"}, "experiment is 'fragility'"),
        ({"training": {"objective": "l1"}}, "objective"),
        ({"history": [{"epoch": 1}]}, "missing"),
        ({"best": ...}, "best"),
    ],
)
def test_foreign_records_are_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save_record(record(), path)
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match=r"record\.json: not a record of a training") as error:
        load_record(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_record_with_a_damaged_number_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save_record(record(), path)
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    path.with_suffix(".jsonl").write_text("\n".join([lines[0], lines[1].replace("1.0", '"yes"', 1), *lines[2:]]))
    with pytest.raises(
        ValueError, match=r"record\.json: not a record of a training .*record\.jsonl, line 2: values"
    ) as error:
        load_record(path)
    assert "\n" not in str(error.value)
    path.with_suffix(".jsonl").unlink()
    with pytest.raises(ValueError, match=r"record\.jsonl: cannot be read"):
        load_record(path)


@pytest.mark.parametrize("text", ["{", "[]", '"text"'])
def test_files_that_are_no_records_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json: not a record of a training") as error:
        load_record(path)
    assert "\n" not in str(error.value)


def test_the_spread_over_seeds() -> None:
    records = [
        record("l2", seed, accuracy=accuracy, values={"insertion": np.array(values)})
        for seed, accuracy, values in ((0, 0.5, [0.0, 1.0]), (1, 0.75, [1.0, 1.0]), (5, 0.625, [0.5, 0.25]))
    ]
    records.append(record("cosine", 0, accuracy=0.25, values={"insertion": np.array([0.0, 0.0])}))
    found = spread(records, "insertion")
    assert list(found) == ["l2", "cosine"]
    assert found["l2"].each == {0: 0.5, 1: 1.0, 5: 0.375}
    assert (found["l2"].mean, found["l2"].low, found["l2"].high) == (0.625, 0.375, 1.0)
    assert found["l2"].images == 2
    accuracy = spread(records, "accuracy")["l2"]
    assert (accuracy.mean, accuracy.low, accuracy.high, accuracy.images) == (0.625, 0.5, 0.75, 500)
    # Of the selected epoch, which is the second.
    assert spread(records, "history/alignment")["cosine"].mean == 0.75
    with pytest.raises(ValueError, match=r"no measure 'none' \(there are accuracy, insertion\)"):
        spread(records, "none")


def test_the_alignment_at_a_training_loss_is_interpolated() -> None:
    def epoch(number: int, loss: float, aligned: float | None) -> Epoch:
        return Epoch(number, 0.1, loss, loss, {}, 0.5, 1.0, 0.5, aligned, 1.0)

    losses = [(2.0, 0.9), (1.5, None), (1.0, 0.8), (1.2, 0.7), (0.2, 0.6)]
    history = tuple(epoch(i, *each) for i, each in enumerate(losses, 1))
    record = Record(Training(), Evaluation(), history, 1, 0.5, 10, {}, None, {})
    assert alignment.alignment_at(record, 1.6) == pytest.approx(0.86)
    assert alignment.alignment_at(record, 1.1) == pytest.approx(0.69)  # the last time, not the first
    assert alignment.alignment_at(record, 0.2) == pytest.approx(0.6)
    assert alignment.alignment_at(record, 0.1) is None
    assert alignment.alignment_at(record, 2.1) is None


def test_seconds_of_a_step() -> None:
    configs = [small(objective=name) for name in OBJECTIVES]
    found = step_seconds(configs, batch_size=8, repeats=2)
    assert list(found) == list(OBJECTIVES)
    assert all(0 < seconds < 10 for seconds in found.values())


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    longer = SCHEDULE | {"epochs": 8, "learning_rate": 0.02}
    return run(small(schedule=longer), tmp_path_factory.mktemp("runs"))


def test_measures_are_what_the_definitions_say(trained: TrainedModel) -> None:
    model = trained.model
    config = Evaluation.model_validate(GRID["evaluation"])
    measured = evaluate(model, config, device="cpu")
    accuracy, n, values = measured.accuracy, measured.test_images, measured.values
    test = data.load("digits", "test")
    with torch.no_grad():
        right = model(test.images).argmax(1) == test.labels
    assert n == len(test) == 500
    assert accuracy == pytest.approx(right.double().mean().item())
    assert accuracy > 0.3
    drawn = data.load("digits", "test", limit=12, seed=config.seed)
    x, y = drawn.images, drawn.labels
    with torch.no_grad():
        prediction = model(x).argmax(1)
    np.testing.assert_array_equal(values["correct"], (prediction == y).double())
    measures = ("cosine", "pearson", "ssim")
    expected = {
        "correct": 12, "insertion": 12, "deletion": 12, "adversarial_insertion": 4, "aam/kept": 4,
        **{f"rps/gradient/8/{name}": 12 for name in measures},
        **{f"rps/{method}/8/{name}": 3 for method in ("smoothgrad", "lrp") for name in measures},
        **{f"aam/{side}/{name}": 4 for side in ("original", "target") for name in measures},
        **{f"curvature/8/{field.name}": 12 for field in dataclasses.fields(metrics.Curvature)},
        "curvature/8/violated": 12,
    }  # fmt: skip
    assert {name: len(v) for name, v in values.items()} == expected
    for name, found in values.items():
        assert found.dtype == np.float64
        assert np.isfinite(found).all(), name
    # The explained class is the prediction, the measured one the label.
    rps = metrics.random_perturbation_similarity(model, x, prediction, epsilon=8 / 255, draws=2, seed=config.seed)
    for name in measures:
        np.testing.assert_allclose(values[f"rps/gradient/8/{name}"], getattr(rps, name), rtol=1e-4, atol=1e-5)
    maps = heatmap(gradient(model, x, prediction), "max")
    for name, curve in (("insertion", metrics.insertion), ("deletion", metrics.deletion)):
        np.testing.assert_allclose(values[name], curve(model, x, y, maps, fractions=4).area, rtol=1e-4, atol=1e-6)
    attacked = attacks.manipulate(
        model, x[:4], target_map=attacks.frame(8, 8, 1), epsilon=4 / 255, iterations=2, labels=prediction[:4]
    )
    np.testing.assert_allclose(values["aam/target/cosine"], attacked.target.cosine, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values["aam/kept"], attacked.kept.double())
    moved = heatmap(gradient(model, attacked.images, prediction[:4]), "max")
    area = metrics.insertion(model, x[:4], y[:4], moved, fractions=4).area
    np.testing.assert_allclose(values["adversarial_insertion"], area, rtol=1e-4, atol=1e-5)
    # No point is beyond its bound, up to the rounding of gradients in float32.
    assert (values["curvature/8/cosine_distance"] <= values["curvature/8/cosine_bound"] + 1e-6).all()
    assert not values["curvature/8/violated"].any()
    assert (measured.dataset["name"], measured.dataset["sha256"]) == ("digits", drawn.provenance["sha256"])


def test_a_bound_that_does_not_hold_is_seen(trained: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metrics.curvature

    def wrong(*args: Any, **options: Any) -> metrics.Curvature:
        found = real(*args, **options)
        return dataclasses.replace(found, cosine_bound=found.cosine_distance * torch.tensor([0.9] * 3 + [1.1] * 9))

    monkeypatch.setattr(metrics, "curvature", wrong)
    values = evaluate(trained.model, Evaluation.model_validate(GRID["evaluation"]), device="cpu").values
    assert values["curvature/8/violated"].tolist() == [1] * 3 + [0] * 9


def test_a_smaller_evaluation_is_the_beginning_of_a_larger_one(trained: TrainedModel) -> None:
    config = GRID["evaluation"]
    more, less = (
        evaluate(trained.model, Evaluation.model_validate(config | change), device="cpu", max_batch=batch).values
        for change, batch in (({}, 250), ({"images": 6, "method_images": 2, "manipulated": 2}, 4))
    )
    assert more.keys() == less.keys()
    for name, values in less.items():
        # Batches of another size, in float32; the attack's steps repeat the rounding.
        np.testing.assert_allclose(values, more[name][: len(values)], rtol=1e-2, atol=1e-3, err_msg=name)


def test_a_run_becomes_its_record(grid_file: Path, tmp_path: Path, trainings: Counter) -> None:
    grid, path = load_grid(grid_file), tmp_path / "tiny" / "l2+cosine-3.json"
    made = run_record(grid, "l2+cosine", 3, path, root=tmp_path / "runs", compute=CPU, progress=False)
    found = load_record(path)
    assert found.training == grid.run("l2+cosine", 3)
    assert found.evaluation == grid.evaluation
    assert len(found.history) == 3
    assert (found.best, found.accuracy, found.test_images) == (made.best, made.accuracy, 500)
    assert found.weights == {
        "file": "weights/l2+cosine-3.safetensors",
        "sha256": _runs.file_digest(path.parent / "weights" / "l2+cosine-3.safetensors"),
    }
    assert found.provenance["evaluation"]["code"] == _runs.code_digest(*alignment._MEASURED)
    assert found.provenance["training"]["dataset"]["name"] == "digits"
    # The weights that are kept are the ones that were measured.
    weights = load_file(path.parent / found.weights["file"])
    assert {v.dtype for v in weights.values()} == {torch.float16}
    model = found.training.build(10)
    model.load_state_dict(weights)
    measured = evaluate(model.requires_grad_(False), grid.evaluation, device="cpu")
    assert measured.accuracy == found.accuracy
    assert found.values["cost/step"].shape == (5,)
    assert (found.values["cost/step"] > 0).all()
    for name, value in measured.values.items():
        np.testing.assert_allclose(made.values[name], value, rtol=1e-6, err_msg=name)
    # Only the record is made again when it is gone.
    path.unlink()
    again = run_record(
        grid, "l2+cosine", 3, path, root=tmp_path / "runs", compute=CPU, keep_weights=False, progress=False
    )
    assert trainings.calls == 1
    assert again.weights == {"sha256": made.weights["sha256"]}
    assert all(np.array_equal(again.values[name], made.values[name]) for name in made.values if name != "cost/step")


# --- the command line -----------------------------------------------------------------------------------------------


def call(*words: str) -> Any:
    return CliRunner().invoke(cli.main, ["reference", *words])


def test_the_runs_of_a_grid_are_listed(grid_file: Path) -> None:
    (grid_file.parent / "tiny").mkdir()
    (grid_file.parent / "tiny" / "l2+cosine-0.json").write_text("{}")
    result = call(str(grid_file))
    assert result.exit_code == 0, result.output
    assert "Digits, for a moment." in result.stdout
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert rows == [
        ["cross-entropy-0", "no", ""],
        ["l2+cosine-0", "yes", "l2 0.01, cosine 0.5, epsilon 4"],
        ["cross-entropy-3", "no", ""],
        ["l2+cosine-3", "no", "l2 0.01, cosine 0.5, epsilon 4"],
    ]


def test_a_run_is_made_by_its_name(grid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(alignment, "run_record", lambda *args, **options: calls.append((args, options)) or "a record")
    result = call(str(grid_file), "l2+cosine-3", "--root", "here", "--accelerator", "cpu")
    assert result.exit_code == 0, result.output
    path = grid_file.with_suffix("") / "l2+cosine-3.json"
    assert result.stdout == f"{path}\n"
    ((args, options),) = calls
    assert args == (load_grid(grid_file), "l2+cosine", 3, path)
    assert options == {"root": Path("here"), "compute": CPU}
    assert call(str(grid_file), "cross-entropy-0", "-o", "out.json").stdout == "out.json\n"
    assert calls[1][0][3] == Path("out.json")


def test_wrong_requests_are_one_line_and_status_2(grid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = grid_file.with_name("bad.yaml")
    bad.write_text("a: 1\n")

    def fail(*args: Any, **options: Any) -> None:
        raise training.TrainingError("the loss is not finite")

    monkeypatch.setattr(alignment, "run_record", fail)
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
    assert found.provenance["training"]["compute"]["devices"] == 2
    alone = run(load_grid(grid_file).run("l2+cosine", 0), tmp_path / "one")
    assert [epoch.accuracy for epoch in found.history] == [epoch.accuracy for epoch in alone.history]
    for two, one in zip(found.history, alone.history, strict=True):
        assert two.total == pytest.approx(one.total, rel=1e-4)  # float32 sums in another order, six steps
    # It is a run like every other: the second time nothing is trained.
    assert sorted(path.name for path in (tmp_path / "two").glob("training-*")) == [f"training-{alone.config.key}"]


# --- the committed records ------------------------------------------------------------------------------------------

REFERENCE = REPOSITORY / "results" / "reference"
RECORDS = sorted(
    path.relative_to(REFERENCE)
    for path in REFERENCE.glob("*/*.json")
    if json.loads(path.read_text(encoding="utf-8"))["experiment"] == "alignment"
)


@pytest.mark.parametrize("path", RECORDS, ids=str)
def test_committed_records_belong_to_their_grid_and_weights(path: Path) -> None:
    record = load_record(REFERENCE / path)
    grid = load_grid(REFERENCE / f"{path.parent}.yaml")
    assert dict(grid.runs())[path.stem] == record.training
    assert grid.evaluation == record.evaluation
    if "file" in record.weights:
        alignment.load_model(record, REFERENCE / path.parent)  # the file whose checksum is recorded
    assert "with changes" not in record.provenance["training"]["commit"]
    # The bound of an identity: no rounding to five digits reaches this far.
    for epsilon in record.evaluation.epsilons:
        values = {q: record.values[f"curvature/{epsilon:g}/{q}"] for q in ("cosine_distance", "cosine_bound")}
        assert (values["cosine_distance"] <= values["cosine_bound"] * (1 + 1e-4)).all()
        assert not record.values[f"curvature/{epsilon:g}/violated"].any()


@pytest.mark.data
def test_a_committed_record_can_be_measured_again(data_root: Path) -> None:
    path = next(REFERENCE / p for p in RECORDS if "file" in load_record(REFERENCE / p).weights)
    record = load_record(path)
    model = alignment.load_model(record, path.parent)
    e = record.evaluation
    smaller = e.model_copy(
        update={
            "images": 64, "epsilons": (e.epsilons[0],), "methods": (), "method_images": 1, "manipulated": 1,
            "manipulation_iterations": 1,
        }
    )  # fmt: skip
    measured = evaluate(model, smaller, data_root=data_root)
    accuracy, n, values = measured.accuracy, measured.test_images, measured.values
    # A float32 logit can tip over on another machine: at most a few images of ten thousand.
    assert (n, accuracy) == (record.test_images, pytest.approx(record.accuracy, abs=5e-4))
    for name in (f"rps/gradient/{e.epsilons[0]:g}/cosine", f"curvature/{e.epsilons[0]:g}/gradient_norm", "insertion"):
        np.testing.assert_allclose(values[name], record.values[name][:64], rtol=2e-3, atol=2e-4, err_msg=name)
