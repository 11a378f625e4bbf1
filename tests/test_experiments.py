"""Experiments: validated, run once, stored whole, and summarized with intervals that cover."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from robattr import data, metrics, models
from robattr.attributions import gradient, heatmap
from robattr.studies import experiments
from robattr.studies.experiments import Fragility, interval, load_records, run_fragility, save_records


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A digits network, trained for a moment: most of the images have to be classified correctly."""
    train = data.load("digits", "train")
    model = models.build("digits-cnn").train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(150):
        i = torch.randint(len(train), (128,), generator=order)
        loss = torch.nn.functional.cross_entropy(model(train.images[i]), train.labels[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


@pytest.fixture
def config(weights: str) -> Fragility:
    return Fragility(
        dataset="digits", images=12, model="digits-cnn", weights=weights, k=10, epsilon=24, step=6, iterations=8
    )


def test_rows_are_what_the_definitions_say(config: Fragility, tmp_path: Path) -> None:
    (result,) = run_fragility([config], root=tmp_path, progress=False)
    images = data.load("digits", limit=12)
    assert config.weights is not None
    model = models.build("digits-cnn", weights=config.weights)
    with torch.no_grad():
        correct = model(images.images).argmax(1) == images.labels
    assert result.started == 12
    assert result.wrong == int((~correct).sum())
    assert len(result.rows) == int(correct.sum()) >= 8
    assert [row.image for row in result.rows] == correct.nonzero().flatten().tolist()
    clean, labels = images.images[correct], images.labels[correct]
    before, after = (heatmap(gradient(model, x, labels)) for x in (clean, result.images))
    np.testing.assert_allclose(result.values("topk_intersection"), metrics.topk_intersection(before, after, 10))
    np.testing.assert_allclose(result.values("rank_correlation"), metrics.spearman(before, after), rtol=1e-5)
    np.testing.assert_allclose(result.values("center_shift"), metrics.center_shift(before, after), rtol=1e-4)
    with torch.no_grad():
        attacked = model(result.images).softmax(1).gather(1, labels[:, None]).squeeze(1)
    np.testing.assert_allclose(result.values("attacked_probability"), attacked, rtol=1e-5)
    assert ((result.images.double() - clean.double()).abs() <= 24 / 255).all()
    for row in result.rows:
        assert row.success == (row.iterate > 0)
        assert row.prediction == row.label
    assert result.provenance["dataset"]["sha256"] == images.provenance["sha256"]
    assert result.provenance["seconds"] > 0


def test_a_second_run_loads(config: Fragility, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = run_fragility([config], root=tmp_path, progress=False)

    def forbidden(*args: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(experiments, "_compute", forbidden)
    (second,) = run_fragility([config], root=tmp_path, progress=False)
    assert second.rows == first.rows
    assert second.provenance == first.provenance
    assert torch.equal(second.images, first.images)
    with pytest.raises(AssertionError, match="computed again"):
        run_fragility([config.model_copy(update={"epsilon": 12.0})], root=tmp_path, progress=False)


def test_damage_is_found_and_made_good(config: Fragility, tmp_path: Path) -> None:
    (first,) = run_fragility([config], root=tmp_path, progress=False)
    folder = tmp_path / f"fragility-{config.key}"
    record, images = folder / "record.json", folder / "images.safetensors"
    for path, damage in (
        (record, record.read_bytes()[:-40]),
        (record, b"[]"),
        (images, images.read_bytes()[:-40]),
        (images, b""),
    ):
        path.write_bytes(damage)
        (again,) = run_fragility([config], root=tmp_path, progress=False)
        assert again.rows == first.rows
        assert torch.equal(again.images, first.images)
        assert load_records(record)[0].rows == first.rows
    images.unlink()
    (again,) = run_fragility([config], root=tmp_path, progress=False)
    assert torch.equal(again.images, first.images)


def test_an_interrupted_run_leaves_nothing_half_written(
    config: Fragility, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "save_records", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_fragility([config], root=tmp_path, progress=False)
    assert not [p for p in tmp_path.rglob("*") if p.suffix != ".lock"]


def test_the_key_follows_what_decides_the_result(config: Fragility, tmp_path: Path) -> None:
    keys = {
        config.model_copy(update=change).key
        for change in ({}, {"epsilon": 4.0}, {"seed": 1}, {"attack": "mass-center"}, {"images": None})
    }
    assert len(keys) == 5
    assert config.key == Fragility.model_validate(config.model_dump()).key
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), "red").save(tmp_path / name / "1.png")
    own = Fragility(dataset=f"folder:{tmp_path}")
    before = own.key
    assert own.key == before
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "b" / "2.png")
    assert own.key != before


def test_the_key_follows_the_code(config: Fragility, monkeypatch: pytest.MonkeyPatch) -> None:
    before = config.key
    monkeypatch.setattr(experiments, "code_digest", lambda *modules: "changed")
    assert config.key != before


def test_targeted_moves_mass_into_the_region(config: Fragility, tmp_path: Path) -> None:
    targeted = config.model_copy(update={"attack": "targeted", "region": (0.0, 0.0, 0.5, 0.5)})
    (result,) = run_fragility([targeted], root=tmp_path, progress=False)
    assert result.values("mass_after").mean() > result.values("mass_before").mean() + 0.05
    mask = targeted.mask(8, 8)
    assert mask.sum() == 16
    assert mask[:4, :4].all()


def test_records_survive_the_disk_and_name_no_path(config: Fragility, tmp_path: Path) -> None:
    results = run_fragility(
        [config, config.model_copy(update={"attack": "random-sign"})], root=tmp_path, progress=False
    )
    path = tmp_path / "records.json"
    save_records(results, path)
    loaded = load_records(path)
    assert [r.rows for r in loaded] == [r.rows for r in results]
    assert loaded[1].config.attack == "random-sign"
    assert loaded[0].config.weights == "digits.safetensors"
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('[{"config": {}}]', "experiment 1: not a record"),
        (json.dumps([{"config": {"k": -1}, "rows": {}, "started": 1, "wrong": 0, "provenance": {}}]), "experiment 1"),
    ],
)
def test_foreign_files_are_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_records(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -8}, "epsilon"),
        ({"epsilon": 0}, "epsilon"),
        ({"k": 0}, "k"),
        ({"attribution": "grad"}, "accepted are gradient"),
        ({"attack": "fgsm"}, "top-k"),
        ({"attack": "targeted"}, "region goes with the targeted attack"),
        ({"region": (0, 0, 1, 1)}, "region goes with the targeted attack"),
        ({"attack": "targeted", "region": (0.5, 0, 0.2, 1)}, "top < bottom"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_bad_configurations_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Fragility(**change)  # type: ignore[arg-type]


def test_what_cannot_be_run_is_refused_before_the_first_attack(config: Fragility, tmp_path: Path) -> None:
    cases = [
        (config.model_copy(update={"attribution_steps": 5}), "gradient has no steps"),
        (config.model_copy(update={"dataset": "cifar10-samples", "images": None, "model": "efficientnet-lite0",
                                   "weights": None}), "1000"),
        (config.model_copy(update={"k": 65}), "64 pixels"),
    ]  # fmt: skip
    for bad, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            run_fragility([bad], root=tmp_path, progress=False)
        assert "\n" not in str(error.value)
    assert not [p for p in tmp_path.rglob("*") if p.suffix != ".lock"]


# --- intervals -----------------------------------------------------------------------------------------------------


def test_intervals_cover_at_their_level() -> None:
    """Coverage of the 95 % interval of the mean for 18 skewed values: 500 draws, within 92 to 98 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(500):
        found = interval(rng.beta(2, 3, 18), seed=draw)
        covered += found.low <= 0.4 <= found.high
    assert 0.92 <= covered / 500 <= 0.98


def test_interval_of_equal_values_and_refusals() -> None:
    assert dataclasses.astuple(interval([0.25, 0.25])) == (0.25, 0.25, 0.25, 2)
    assert interval([1.0]).n == 1
    one, two = interval([0.0, 1.0, 3.0], seed=1), interval([0.0, 1.0, 3.0], seed=1)
    assert one == two
    assert math.isclose(one.mean, 4 / 3)
    for values in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="at least one finite number"):
            interval(values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([1.0, 2.0], level=95)
