"""What is measured on a trained network by the protocol of Joo et al. 2023, and its spread over seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_grids import GRID, RECORDS, REFERENCE, record
from test_trainings import SCHEDULE, run, small

from robattr import attacks, data, metrics
from robattr.attributions import gradient, heatmap
from robattr.studies import alignment
from robattr.studies.alignment import Alignment, measure, spread
from robattr.studies.grids import Record, Total, load_record
from robattr.studies.trainings import TrainedModel
from robattr.training import Epoch


def test_the_spread_over_seeds() -> None:
    records = [
        record("l2", seed, totals={"accuracy": Total(accuracy, 500)}, values={"insertion": np.array(values)})
        for seed, accuracy, values in ((0, 0.5, [0.0, 1.0]), (1, 0.75, [1.0, 1.0]), (5, 0.625, [0.5, 0.25]))
    ]
    records.append(
        record("cosine", 0, totals={"accuracy": Total(0.25, 500)}, values={"insertion": np.array([0.0, 0.0])})
    )
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
    found = record(history=history)
    assert alignment.alignment_at(found, 1.6) == pytest.approx(0.86)
    assert alignment.alignment_at(found, 1.1) == pytest.approx(0.69)  # the last time, not the first
    assert alignment.alignment_at(found, 0.2) == pytest.approx(0.6)
    assert alignment.alignment_at(found, 0.1) is None
    assert alignment.alignment_at(found, 2.1) is None


def test_objectives_are_compared_at_the_lowest_loss_that_both_reached() -> None:
    def of(objective: str, seed: int, *losses: tuple[float, float | None]) -> Record:
        history = [
            Epoch(i, 0.1, loss, loss, {}, 0.5, 1.0, 0.5, aligned, 1.0) for i, (loss, aligned) in enumerate(losses, 1)
        ]
        return record(objective, seed, history=tuple(history))

    runs = [
        of("l2", 0, (2.0, 0.95), (1.0, 0.85)),
        of("l2", 1, (2.0, 0.9), (1.0, 0.8)),
        of("cosine", 1, (3.0, 1.0), (1.5, 0.7), (0.5, None)),  # the last loss is of no measured epoch
        of("cosine", 2, (2.0, 0.9), (1.0, 0.8)),
    ]
    (found,) = alignment.at_the_same_loss(runs, "l2", "cosine")
    assert (found.seed, found.cross_entropy) == (1, 1.5)
    assert (found.ours, found.other) == pytest.approx((0.85, 0.7))
    assert alignment.at_the_same_loss(runs, "l2", "hessian") == []


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    longer = SCHEDULE | {"epochs": 8, "learning_rate": 0.02}
    return run(small(schedule=longer), tmp_path_factory.mktemp("runs"))


def test_measures_are_what_the_definitions_say(trained: TrainedModel) -> None:
    model = trained.model
    config = Alignment.model_validate(GRID["alignment"])
    measured = measure(model, config, device="cpu")
    accuracy, n, values = measured.totals["accuracy"].value, measured.totals["accuracy"].n, measured.values
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
    values = measure(trained.model, Alignment.model_validate(GRID["alignment"]), device="cpu").values
    assert values["curvature/8/violated"].tolist() == [1] * 3 + [0] * 9


def test_a_smaller_evaluation_is_the_beginning_of_a_larger_one(trained: TrainedModel) -> None:
    config = GRID["alignment"]
    more, less = (
        measure(trained.model, Alignment.model_validate(config | change), device="cpu", max_batch=batch).values
        for change, batch in (({}, 250), ({"images": 6, "method_images": 2, "manipulated": 2}, 4))
    )
    assert more.keys() == less.keys()
    for name, values in less.items():
        # Batches of another size, in float32; the attack's steps repeat the rounding.
        np.testing.assert_allclose(values, more[name][: len(values)], rtol=1e-2, atol=1e-3, err_msg=name)


ALIGNED = [path for path in RECORDS if load_record(REFERENCE / path).kind is alignment.KIND]


@pytest.mark.parametrize("path", ALIGNED, ids=str)
def test_no_committed_point_is_beyond_its_bound(path: Path) -> None:
    record = load_record(REFERENCE / path)
    # The bound of an identity: no rounding to five digits reaches this far.
    for epsilon in record.config.epsilons:
        values = {q: record.values[f"curvature/{epsilon:g}/{q}"] for q in ("cosine_distance", "cosine_bound")}
        assert (values["cosine_distance"] <= values["cosine_bound"] * (1 + 1e-4)).all()
        assert not record.values[f"curvature/{epsilon:g}/violated"].any()


@pytest.mark.data
def test_a_committed_record_can_be_measured_again(data_root: Path) -> None:
    path = next(REFERENCE / p for p in ALIGNED if "file" in load_record(REFERENCE / p).weights)
    record = load_record(path)
    model = record.load_model(path.parent)
    e = record.config
    smaller = e.model_copy(
        update={
            "images": 64, "epsilons": (e.epsilons[0],), "methods": (), "method_images": 1, "manipulated": 1,
            "manipulation_iterations": 1,
        }
    )  # fmt: skip
    measured = measure(model, smaller, data_root=data_root)
    accuracy, n, values = measured.totals["accuracy"].value, measured.totals["accuracy"].n, measured.values
    # A float32 logit can tip over on another machine: at most a few images of ten thousand.
    assert (n, accuracy) == (record.totals["accuracy"].n, pytest.approx(record.totals["accuracy"].value, abs=5e-4))
    for name in (f"rps/gradient/{e.epsilons[0]:g}/cosine", f"curvature/{e.epsilons[0]:g}/gradient_norm", "insertion"):
        np.testing.assert_allclose(values[name], record.values[name][:64], rtol=2e-3, atol=2e-4, err_msg=name)
