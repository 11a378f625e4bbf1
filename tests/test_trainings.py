"""Trainings: a configuration with a key, run once and stored whole."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Counter
from filelock import FileLock
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from robattr import data, models, regularizers, training
from robattr.studies import trainings
from robattr.studies.trainings import OBJECTIVES, TrainedModel, Training, run_training, step_seconds
from robattr.training import Compute, Epoch, Schedule, TrainingResult

CPU = Compute(accelerator="cpu")
SCHEDULE = {"epochs": 3, "batch_size": 32, "milestones": [], "learning_rate": 0.01, "augment": False}


def small(**changes: Any) -> Training:
    """Six steps on digits."""
    values = {"dataset": "digits", "images": 64, "validation": 50, "model": "digits-mlp", "schedule": SCHEDULE}
    return Training.model_validate(values | changes)


def run(config: Training, root: Path) -> TrainedModel:
    return run_training(config, root=root, compute=CPU, progress=False)


def assert_same(one: TrainedModel, other: TrainedModel) -> None:
    assert one.config == other.config
    assert one.best == other.best
    assert [dataclasses.replace(e, seconds=0) for e in one.history] == [
        dataclasses.replace(e, seconds=0) for e in other.history
    ]
    for a, b in ((one.model.state_dict(), other.model.state_dict()), (one.last, other.last)):
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[name]) for name, value in a.items())


def epoch(n: int, **changes: Any) -> Epoch:
    values: dict[str, Any] = {
        "epoch": n, "learning_rate": 0.01, "total": 2.5 / n, "cross_entropy": 2.25 / n, "penalties": {"l2": 0.125},
        "accuracy": 0.5, "validation_loss": 1.5, "validation_accuracy": 0.25, "alignment": None, "seconds": 0.5,
    }  # fmt: skip
    return Epoch(**(values | changes))


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
        ({"objective": "l2", "options": {"l2": float("nan")}}, "options has l2 = nan; accepted are numbers >= 0"),
        ({"objective": "l2", "options": {"l2": -1}}, "options has l2 = -1; accepted are numbers >= 0"),
        ({"objective": "l2", "options": {"epsilon": 0}}, "options has epsilon = 0; accepted are numbers > 0"),
        (
            {"objective": "adversarial-training", "options": {"steps": 2.5}},
            "options has steps = 2.5; accepted are whole numbers, at least 1",
        ),
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
        net = trainings.run_training(config, root=tmp_path, progress=False).model
        test = data.load("breast-cancer")
        right = (net(test.images).argmax(1) == test.labels).double().mean()
        # Always the more frequent class is right in 119 of 190.
        assert right > 0.9
        again = trainings.run_training(config, root=tmp_path, progress=False).model
        assert torch.equal(again(test.images), net(test.images))


# --- keys -----------------------------------------------------------------------------------------------------------


def test_the_key_follows_what_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "code_digest", functools.cache(trainings.code_digest))
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


# --- trainings ------------------------------------------------------------------------------------------------------


def test_a_training_is_kept_whole_and_loaded_the_second_time(tmp_path: Path, counted: Counter) -> None:
    config = small(objective="l2+cosine")
    first = run(config, tmp_path)
    assert counted.calls == 1
    folder = tmp_path / f"training-{config.key}"
    files = ["digests.json", "history.jsonl", "last.safetensors", "training.json", "weights.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == files
    # No checkpoint is left behind.
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]
    second = run(config, tmp_path)
    assert counted.calls == 1
    assert_same(second, first)
    assert second.history == first.history
    assert second.provenance == first.provenance
    run(config.model_copy(update={"seed": 1}), tmp_path)
    assert counted.calls == 2


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
    assert provenance["code"] == config.code
    assert provenance["device"] == "cpu"
    assert provenance["seconds"] > 0


@pytest.mark.parametrize(
    "name", ["training.json", "history.jsonl", "weights.safetensors", "last.safetensors", "digests.json"]
)
def test_damage_is_found_and_made_good(
    name: str, tmp_path: Path, counted: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither hardware nor code change meanwhile: five trainings in a second.
    monkeypatch.setattr(trainings, "environment", dict)
    monkeypatch.setattr(trainings, "code_digest", functools.cache(trainings.code_digest))
    config = small()
    first = run(config, tmp_path)
    path = tmp_path / f"training-{config.key}" / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-20] ^= 1
    damages: list[bytes | None] = [content[:-20], b"", None, bytes(flipped)]
    for damage in damages:
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        calls = counted.calls
        assert_same(run(config, tmp_path), first)
        assert counted.calls == calls + 1
    assert_same(run(config, tmp_path), first)
    assert counted.calls == 1 + len(damages)


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


def test_any_number_of_classes_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Counter) -> None:
    """Of a network whose last vector in the file is not the bias of its logits."""

    def untrained(objective: Any, *args: Any, **options: Any) -> TrainingResult:
        state = {name: value.clone().contiguous() for name, value in objective.model.state_dict().items()}
        return TrainingResult((epoch(1),), 1, state, state, 0.1)

    counted.function = untrained
    config = small(model="shufflenet_v2_x0_5")
    first = run(config, tmp_path)
    assert first.model.num_classes == 10
    assert_same(run(config, tmp_path), first)
    assert counted.calls == 1


def test_what_cannot_be_trained_is_refused_before_the_first_step(tmp_path: Path, counted: Counter) -> None:
    for change, message in (
        ({"dataset": "no-such"}, "no-such"),
        ({"model": "no-such"}, "model 'no-such' is unknown"),
        ({"images": 5000}, "5050"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            run(small(**change), tmp_path)
        assert "\n" not in str(error.value)
    assert counted.calls == 0
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


WAITING = """
import sys, time
from test_trainings import regularizers, run, small
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


def test_of_two_processes_one_trains(tmp_path: Path, counted: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert counted.calls == 0
    assert_same(found, run(config, tmp_path / "alone"))
    assert counted.calls == 1


def test_seconds_of_a_step() -> None:
    configs = [small(objective=name) for name in OBJECTIVES]
    found = step_seconds(configs, batch_size=8, repeats=2)
    assert list(found) == list(OBJECTIVES)
    assert all(0 < seconds < 10 for seconds in found.values())


def test_bytes_that_a_derivative_keeps_by_hand() -> None:
    """Of 10 float32 numbers: exp keeps its result, the product keeps that twice, sin keeps the product."""
    weight, ledger = torch.rand(10, requires_grad=True), trainings._Ledger(set())
    with torch.autograd.graph.saved_tensors_hooks(ledger.keep, trainings._Kept.tensor_of):
        x = weight.exp()
        assert ledger.now == 40
        x = x * x
        assert ledger.now == 40
        x = x.sin()
        assert ledger.now == 80
        del x
        assert (ledger.now, ledger.most) == (0, 80)
        there = trainings._Ledger({weight.untyped_storage().data_ptr()})
    with torch.autograd.graph.saved_tensors_hooks(there.keep, trainings._Kept.tensor_of):
        y = weight * weight
    assert y.requires_grad
    assert there.most == 0  # a weight is there anyway


def test_bytes_do_not_change_a_step() -> None:
    model = small(objective="l2+cosine").build()
    found = []
    for counted in (False, True):
        objective = regularizers.GradientAlignment(model, l2=1.0, cosine=1.0, epsilon=0.1)
        x = torch.rand(3, *model.input_size, generator=torch.Generator().manual_seed(0))
        noise = objective.draw(x.shape, torch.Generator().manual_seed(1), x.device)
        ledger = trainings._Ledger(set())
        hooks = torch.autograd.graph.saved_tensors_hooks(ledger.keep, trainings._Kept.tensor_of)
        with hooks if counted else nullcontext():
            objective(x, torch.tensor([0, 1, 2]), noise).total.backward()
        assert (ledger.most > 0) is counted
        assert ledger.now == 0
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert found[0]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bytes_grow_with_the_batch_and_the_objective() -> None:
    names = ("cross-entropy", "l2+cosine", "hessian")
    one, two, four = (trainings.step_bytes([small(objective=o) for o in names], batch_size=n) for n in (1, 2, 4))
    for name in names:
        assert four[name] - two[name] == 2 * (two[name] - one[name]) > 0, name
    assert four["cross-entropy"] < four["l2+cosine"]
    assert four["cross-entropy"] < four["hessian"]


def test_a_recorded_step_and_what_a_training_would_take() -> None:
    config = small(images=70)  # two steps of 32; the rest of an epoch is left out
    history = [epoch(n, seconds=seconds) for n, seconds in enumerate((9.0, 1.0, 2.0), 1)]
    assert trainings.recorded_step(config, history) == 1.0
    assert trainings.projected_hours(config, 100, 4.0) == 3 * 3 * 4 / 3600
    with pytest.raises(ValueError, match="images is None"):
        trainings.recorded_step(small(images=None), history)
