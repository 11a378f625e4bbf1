"""The importance of training samples under attack: what is measured, against calls by hand, and its records."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robattr import data, influence
from robattr.studies import checking, grids, importance, trainings
from robattr.studies.grids import Network
from robattr.studies.importance import ATTACKS, Importance
from robattr.studies.trainings import Training

TRAINING = Training.model_validate(
    {
        "dataset": "digits", "images": 200, "validation": 50, "model": "digits-mlp", "select": "last", "seed": 2,
        "schedule": {"epochs": 10, "milestones": [], "batch_size": 20, "learning_rate": 0.01, "augment": False},
    }
)  # fmt: skip
SMALL = Importance(dataset="digits", images=6, points=120, damping=0.1, epsilons=(4.0, 32.0), iterations=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> trainings.TrainedModel:
    return trainings.run_training(TRAINING, root=tmp_path_factory.mktemp("runs"), progress=False)


@pytest.fixture(scope="module")
def measured(trained: trainings.TrainedModel) -> grids.Measured:
    return importance.measure(trained.model, SMALL, training=TRAINING, device="cpu")


def test_every_attack_is_measured_on_every_image(measured: grids.Measured, trained: trainings.TrainedModel) -> None:
    names = {
        f"{attack}/{epsilon}/{quantity}"
        for attack in ATTACKS
        for epsilon in ("4", "32")
        for quantity in ("success", "rank_correlation", "turnover-3", "turnover-10")
    }
    assert measured.values.keys() == names | {"correct"}
    assert all(len(v) == 6 for v in measured.values.values())
    # One of them by hand: the training points are the first ones of the training.
    known, _ = TRAINING.sets()
    layer = influence.LastLayer(
        trained.model, known.images[:120], known.labels[:120], damping=0.1,
        weight_decay=TRAINING.schedule.weight_decay, solver="exact",
    )  # fmt: skip
    x = data.load("digits", "test", limit=6, seed=0).images
    found = influence.influence_attack(layer, x, epsilon=32 / 255)
    ranks = influence.rank_correlation(found.before, found.after)
    np.testing.assert_allclose(measured.values["one-step/32/rank_correlation"], ranks, rtol=1e-6)
    np.testing.assert_allclose(
        measured.values["one-step/32/turnover-3"], influence.turnover(found.before, found.after, 3)
    )


def test_an_attack_does_more_than_chance(measured: grids.Measured) -> None:
    v = measured.values
    assert v["one-step/32/rank_correlation"].mean() < v["random-sign/32/rank_correlation"].mean() - 0.05
    assert v["one-step/32/rank_correlation"].mean() < v["one-step/4/rank_correlation"].mean()


def test_what_cannot_be_measured_is_refused(trained: trainings.TrainedModel) -> None:
    with pytest.raises(ValueError, match="a network with known ones"):
        importance.measure(trained.model, SMALL, device="cpu")
    more = SMALL.model_copy(update={"points": 201})
    with pytest.raises(ValueError, match="points is 201; the network was trained on 200"):
        importance.measure(trained.model, more, training=TRAINING, device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"epsilons": (0.0,)}, "numbers > 0"), ({"points": 9}, "top and turnovers are at most that"), ({"k": 3}, "k")],
)
def test_a_wrong_configuration_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Importance.model_validate(SMALL.model_dump() | change)


def test_a_grid_becomes_records(tmp_path: Path, trained: trainings.TrainedModel) -> None:
    path = tmp_path / "grid.yaml"
    settings = json.dumps(SMALL.model_dump(mode="json"))
    path.write_text(
        f"description: x\nnetworks: {{a: {{training: {TRAINING.model_dump_json()}}}}}\nimportance: {settings}"
    )
    grid = grids.load_grid(path)
    assert grids.run_record(grid, "a", tmp_path / "grid" / "a.json", root=tmp_path / "runs")
    (found,) = grids.load_records(tmp_path / "grid")
    assert found.config == SMALL
    lines = {m.quantity: m for m in grids.measurements(found, "grid/a")}
    turnover = lines["one-step/4/turnover-3"]
    assert (turnover.unit, turnover.epsilon, turnover.norm, turnover.n) == ("share of points", 4 / 255, "linf", 6)
    assert lines["correct"].epsilon is None
    assert torch.equal(
        torch.tensor(found.values["correct"], dtype=torch.bool),
        trained.model(data.load("digits", "test", limit=6, seed=0).images).argmax(1)
        == data.load("digits", "test", limit=6, seed=0).labels,
    )


def test_a_record_is_measured_again(tmp_path: Path, trained: trainings.TrainedModel) -> None:
    """Other images than those of the first call, in another order; a record without its training cannot."""
    network = Network(training=TRAINING)
    record = grids.run(importance.KIND, network, SMALL, root=tmp_path / "runs", device="cpu")
    epsilons = set()
    for seed in range(4):
        again, quantities, n = checking._of_importance(record, trained.model, random.Random(seed), None)
        assert n == 6
        values = again([4, 1])
        for quantity in quantities:
            epsilons.add(quantity.split("/")[1])
            assert checking.drift(quantity, values[quantity], record.values[quantity][[4, 1]], climbs=False).within
    assert epsilons == {"4", "32"}
    unknown = replace(record, network=Network(model="digits-mlp"))
    with pytest.raises(ValueError, match="training points are not known"):
        checking._of_importance(unknown, trained.model, random.Random(0), None)
