"""Measures by our conventions and by the published ones, against calls by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from robattr import attacks, data, metrics, models
from robattr.attributions import gradient, heatmap, lrp
from robattr.models import Classifier
from robattr.studies import conventions, grids
from robattr.studies.conventions import Conventions

SMALL = Conventions(dataset="cifar10-samples", images=4, draws=2, manipulation_iterations=3, fractions=4, frame=5)


@pytest.fixture(scope="module")
def model() -> Classifier:
    """Its predictions are not the labels: the two conventions explain different classes."""
    return models.build("lenet", activation="softplus", beta=3.0, seed=1)


@pytest.fixture(scope="module")
def measured(model: Classifier) -> grids.Measured:
    return conventions.measure(model, SMALL, device="cpu")


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    drawn = data.load("cifar10-samples", limit=4, seed=0)
    return drawn.images, drawn.labels


def test_every_measure_is_taken_by_each_convention(measured: grids.Measured) -> None:
    each = ("rps/8/cosine", "aam/original/cosine", "aam/target/cosine", "insertion", "adversarial_insertion")
    names = {f"{convention}/{name}" for convention in ("ours", "published") for name in each}
    names |= {f"lrp/{rule}/rps/8/cosine" for rule in ("epsilon", "epsilon-plus", "alpha2-beta1")}
    assert measured.values.keys() == names | {"correct"}
    assert all(len(v) == 4 for v in measured.values.values())
    assert measured.dataset["name"] == "cifar10-samples"


def test_ours_are_the_defaults_of_the_package(
    model: Classifier, measured: grids.Measured, images: tuple[Tensor, Tensor]
) -> None:
    x, y = images
    prediction = model(x).argmax(1)
    assert not torch.equal(prediction, y)
    found = attacks.manipulate(model, x, target_map=attacks.frame(32, 32, 5), epsilon=4 / 255, iterations=3)
    np.testing.assert_allclose(measured.values["ours/aam/original/cosine"], found.original.cosine, rtol=1e-5)
    moved = heatmap(gradient(model, found.images, prediction), "max")
    area = metrics.insertion(model, x, y, moved, fractions=4).area
    np.testing.assert_allclose(measured.values["ours/adversarial_insertion"], area, rtol=1e-4)


def test_the_published_ones_explain_the_label_keep_the_last_iterate_and_fill_with_the_mean(
    model: Classifier, measured: grids.Measured, images: tuple[Tensor, Tensor]
) -> None:
    x, y = images
    found = attacks.manipulate(
        model, x, target_map=attacks.frame(32, 32, 5), epsilon=4 / 255, iterations=3, gamma=10 / 11, iterate="last",
        labels=y,
    )  # fmt: skip
    np.testing.assert_allclose(measured.values["published/aam/target/cosine"], found.target.cosine, rtol=1e-5)
    mean = torch.tensor(models.CIFAR10_MEAN)[:, None, None]
    area = metrics.insertion(model, x, y, heatmap(gradient(model, x, y), "max"), fractions=4, fill=mean).area
    np.testing.assert_allclose(measured.values["published/insertion"], area, rtol=1e-5)
    rps = metrics.random_perturbation_similarity(model, x, y, epsilon=8 / 255, draws=2)
    np.testing.assert_allclose(measured.values["published/rps/8/cosine"], rps.cosine, rtol=1e-5)


def test_composites_are_named_rules(model: Classifier, measured: grids.Measured, images: tuple[Tensor, Tensor]) -> None:
    x, _ = images
    rps = partial(metrics.random_perturbation_similarity, model, x, model(x).argmax(1), epsilon=8 / 255, draws=2)
    for rule in ("epsilon-plus", "alpha2-beta1"):
        by_hand = rps(attribution=partial(lrp, rule=rule)).cosine
        np.testing.assert_allclose(measured.values[f"lrp/{rule}/rps/8/cosine"], by_hand, rtol=1e-4)


def test_the_published_weight_is_that_of_a_mean_over_classes(model: Classifier, images: tuple[Tensor, Tensor]) -> None:
    """gamma |h - t|^2 + (1 - gamma) |l|^2 is a multiple of .5 |h - t|^2 + .5 |l|^2 / K at gamma = K / (K + 1)."""
    gamma = conventions.CONVENTIONS["published"].gamma(10)
    for map_, logits in ((0.3, 0.7), (2.0, 0.1)):
        theirs = 0.5 * map_ + 0.5 * logits / 10
        ours = gamma * map_ + (1 - gamma) * logits
        assert ours / theirs == pytest.approx(20 / 11)


def test_the_last_iterate_is_the_last(model: Classifier, images: tuple[Tensor, Tensor]) -> None:
    x, _ = images
    run = partial(attacks.manipulate, model, x, target_map=attacks.frame(32, 32, 5), epsilon=4 / 255, iterations=4)
    # A rate at which the loss rises after some steps, so that the best is not the last one.
    last, best = run(iterate="last", learning_rate=0.05), run(learning_rate=0.05)
    assert torch.equal(last.best, torch.full((4,), 4))
    assert (best.best < 4).any()
    torch.testing.assert_close(last.loss, best.loss)
    h = heatmap(gradient(model, last.images, last.labels), "max")
    logits = (model(last.images) - model(x)).square().sum(1)
    loss = 0.5 * (h - attacks.frame(32, 32, 5)).square().sum((1, 2)) + 0.5 * logits
    torch.testing.assert_close(loss.detach(), last.loss[-1], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="iterate is 'first'; accepted are 'best' and 'last'"):
        run(iterate="first")  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"images": 0}, {"epsilon": 0}, {"epsilon": 256}, {"frame": 0}, {"surprise": 1}])
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Conventions(**fields)


def test_a_record_and_back(tmp_path: Path, model: Classifier, measured: grids.Measured) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "description: two\nnetworks:\n  random: {model: lenet, weights: random}\n"
        "conventions: {dataset: cifar10-samples, images: 4, draws: 1, manipulation_iterations: 1, fractions: 2}\n"
    )
    grid = grids.load_grid(path)
    assert grid.kind.name == "conventions"
    units = {q: grid.kind.describe(q, SMALL)["unit"] for q in measured.values}
    assert units["ours/insertion"] == units["published/adversarial_insertion"] == "probability"
    assert units["lrp/epsilon/rps/8/cosine"] == units["published/aam/target/cosine"] == "1"
    assert grid.kind.describe("ours/aam/original/cosine", SMALL)["epsilon"] == 4 / 255
    assert "epsilon" not in grid.kind.describe("ours/insertion", SMALL)
