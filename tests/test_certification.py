"""Certifications: configurations, what is measured, records, and a check that finds a wrong certificate."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robattr import _files, attributions, models, smoothing
from robattr.attributions import METHODS, integrated_gradients
from robattr.studies import certification, grids
from robattr.studies.breaking import AIMS
from robattr.studies.certification import KIND, Certification
from robattr.studies.grids import Network, Record
from robattr.training import Compute

ROOT = Path(__file__).resolve().parents[1]
SMALL = Certification(
    dataset="digits",
    images=3,
    radii=(0.5, 1.0),
    samples=400,
    choose=50,
    attacked=2,
    epsilons=(0.02, 0.1),
    attack_samples=8,
    iterations=3,
    restarts=1,
    check_samples=64,
    fractions=4,
)
NETWORK = Network(model="digits-cnn")


@pytest.fixture(scope="module")
def record() -> Record:
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    found = certification.measure(model, SMALL, device="cpu")
    provenance = {
        "network": {"model": "digits-cnn", "weights": {"sha256": "0" * 64}},
        "dataset": found.dataset,
        **{"seconds": 1.0, "device": "cpu", "cpu": "a processor", "threads": 1, "gpu": "none", "python": "3.11.0"},
        **{"versions": {}, "commit": "0123456789", "date": "2026-01-01"},
    }
    return Record(KIND, "small", NETWORK, SMALL, found.dimension, found.values, provenance)


def test_every_image_radius_and_law_is_measured(record: Record) -> None:
    assert record.dimension == 64
    for law in certification.LAWS:
        for radius in ("0.5", "1"):
            for measure in ("norm", "norm_lower", "drift", "insertion"):
                assert record.values[f"{measure}/{law}/{radius}"].shape == (3,)
            # The bound is on the expectation, whose estimate is a bit longer on average.
            assert (record.values[f"norm_lower/{law}/{radius}"] < record.values[f"norm/{law}/{radius}"]).all()
    for epsilon in ("0.02", "0.1"):
        assert record.values[f"plain/{epsilon}"].shape == (2,)
        for law in certification.LAWS:
            for adversary in certification.ADVERSARIES:
                assert record.values[f"attacked/{law}/1/{epsilon}/{adversary}"].shape == (2,)


def test_the_certificate_is_that_of_the_recorded_length(record: Record) -> None:
    lower = record.values["norm_lower/uniform/1"]
    by_hand = smoothing.certified_cosine(lower, smoothing.overlap(64, 1.0, 0.1))
    np.testing.assert_array_equal(certification.certified(record, "uniform", 1.0, 0.1), by_hand)
    sigma = 1 / np.sqrt(66)
    by_hand = smoothing.certified_cosine_gaussian(lower := record.values["norm_lower/gaussian/1"], 0.1 / sigma)
    np.testing.assert_allclose(certification.certified(record, "gaussian", 1.0, 0.1), by_hand, rtol=1e-12)
    several = certification.certified(record, "gaussian", 1.0, [0.05, 0.1])
    assert several.shape == (3, 2)
    np.testing.assert_allclose(several[:, 1], by_hand, rtol=1e-12)
    assert (certification.certified(record, "uniform", 1.0, 0.1, method="ball") <= 1).all()
    assert (lower >= 0).all()


def test_attacks_on_a_trained_kind_of_network_break_nothing(record: Record) -> None:
    found = certification.check([record])
    assert found.points == 2 * 2 * 2 * 3  # laws, epsilons, images, adversaries
    assert 0 < found.covered <= found.points
    assert found.violations == 0
    assert found.margin > 0
    assert certification.check([record, record]).points == 2 * found.points


def test_gaps_are_those_of_the_count(record: Record) -> None:
    """The closest gap is the margin of the count; an image counts once at each epsilon, not once an adversary."""
    each = {law: certification.gaps([record], law) for law in certification.LAWS}
    found = certification.check([record])
    assert min(gap.min() for gap in each.values()) == found.margin
    assert len(certification.ADVERSARIES) * sum(map(len, each.values())) == found.covered
    assert len(certification.gaps([], "gaussian")) == 0
    # By hand: one image is certified and one is not.
    values = {"norm_lower/uniform/1": np.array([0.99, 0.0])}
    values |= {
        f"attacked/uniform/1/0.02/{a}": np.array([0.9 + i, -1.0]) for i, a in enumerate(certification.ADVERSARIES)
    }
    config = SMALL.model_copy(update={"laws": ("uniform",), "epsilons": (0.02,), "attack_radius": 1.0})
    by_hand = Record(KIND, "n", NETWORK, config, 64, values, {})
    bound = smoothing.certified_cosine(0.99, smoothing.overlap(64, 1.0, 0.02))
    np.testing.assert_allclose(certification.gaps([by_hand], "uniform"), [0.9 - bound], rtol=1e-12)


@pytest.mark.parametrize("law", ["uniform", "gaussian"])
def test_a_weakened_certificate_is_caught(law: str) -> None:
    """The adversaries that attain the certificates stand where an attack's result stands."""
    d, radius, epsilon = 3, 1.0, 0.25
    noise = certification.noise_of(law, radius, d)
    field = (
        smoothing.worst_field(0.9, d, radius, epsilon)
        if law == "uniform"
        else smoothing.worst_field_gaussian(2.0, d, noise.scale, epsilon)
    )
    # The bound on E f(L) by chords gives away up to 2e-5: the adversary is that far above it, and never below.
    values = {
        f"norm_lower/{law}/1": np.array([field.mean_norm]),
        f"attacked/{law}/1/{epsilon}/adaptive": np.array([field.cosine + 1e-9]),
    }
    worst = Record(KIND, "worst", NETWORK, SMALL, d, values, {})
    sound, weak = certification.check([worst]), certification.check([worst], weaken=0.5)
    assert (sound.points, sound.covered, sound.violations) == (1, 1, 0)
    assert sound.margin < 1e-4
    assert weak.violations == 1
    said = float(noise.certified_cosine(field.mean_norm, d, epsilon / 2))
    assert weak.margin == pytest.approx(field.cosine - said, abs=1e-8)
    assert smoothing.overlap(d, radius, epsilon / 2) == pytest.approx(
        smoothing.overlap(d, radius, epsilon) / 2, rel=0.01
    )


def test_where_nothing_is_certified_nothing_is_violated() -> None:
    values = {"norm_lower/uniform/1": np.array([0.0, 0.1]), "attacked/uniform/1/0.5/random": np.array([-1.0, 0.3])}
    found = certification.check([Record(KIND, "n", NETWORK, SMALL, 64, values, {})])
    assert (found.points, found.covered, found.violations, found.margin) == (2, 0, 0, np.inf)


HEATMAPS = certification.Heatmaps(
    methods=("gradient", "input_x_gradient"), sigmas=(0.1,), epsilons=(0.01, 0.02), k=(3, 40), samples=600, choose=100
)


@pytest.fixture(scope="module")
def heatmaps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A record of heatmaps that was written and read again, and the folder of its single images."""
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    folder = tmp_path_factory.mktemp("heatmaps")
    config = SMALL.model_copy(update={"laws": (), "attacked": 0, "images": 2, "heatmaps": HEATMAPS})
    found = certification.measure(model, config, device="cpu", folder=folder)
    provenance = {
        "network": {"model": "digits-cnn", "weights": {"sha256": "0" * 64}},
        "dataset": found.dataset,
        **{"seconds": 1.0, "device": "cpu", "cpu": "a processor", "threads": 1, "gpu": "none", "python": "3.11.0"},
        **{"versions": {}, "commit": "0123456789", "date": "2026-01-01"},
    }
    grids.save_record(
        Record(KIND, "maps", NETWORK, config, found.dimension, found.values, provenance), folder / "maps.json"
    )
    return grids.load_record(folder / "maps.json"), folder


def test_heatmaps_are_certified_from_what_is_recorded(heatmaps: tuple[Record, Path]) -> None:
    record, _ = heatmaps
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    drawn = models.load_images(model, "digits", limit=2, seed=0)
    for method in HEATMAPS.methods:
        said = certification.certified_of_map(record, method, 0.1, [0.01, 0.02], size=(8, 8))
        for name, bound in said.items():
            for j, epsilon in enumerate(("0.01", "0.02")):
                recorded = record.values[f"certified/{name}/{method}/0.1/{epsilon}"]
                np.testing.assert_allclose(recorded, bound[:, j], rtol=1e-6, atol=1e-12)
        found = smoothing.certify_map(
            model, drawn.images, model(drawn.images).argmax(1), noise=smoothing.Gaussian(0.1), epsilon=[0.01, 0.02],
            k=(3, 40), samples=600, choose=100, cosine=True, detail=20, attribution=METHODS[method],
        )  # fmt: skip
        # Rounding to 7 digits certifies less, by no more than that: certificates have derivatives of order 1 to 100.
        assert found.cosine is not None
        for bound, recorded in (
            (found.cosine, said["cosine"]),
            (found.mass_lower[:, 0], said["mass-3"]),
            (found.mass_lower[:, 1], said["mass-40"]),
            (-found.center_shift, -said["center"]),
            (-found.center_disc, -said["disc"]),
            (found.intersection[:, 1], said["top-40"]),
        ):
            difference = bound.numpy() - recorded
            assert (difference >= 0).all()
            assert (difference <= 1e-4).all()
        # All statements say something.
        assert (said["cosine"] > 0.5).all()
        assert (said["mass-40"] > 0.3).all()
        assert (said["center"] < 3).all()
        # Any 40 of 64 pixels share 16; in the steps of 2 that are kept, 15.
        assert (said["top-40"] >= 15 / 40).all()
        assert (said["top-40"] > 16 / 40).any()
        epsilon = record.values[f"certified_epsilon/0.9/{method}/0.1"]
        statistics = [record.values[f"of_map/direction_{n}/{method}/0.1"] for n in ("norm_lower", "spread_upper")]
        back = smoothing.certified_cosine_spectral(*statistics, epsilon / 0.1, bound=1.0)
        np.testing.assert_allclose(back, 0.9, atol=1e-5)
    with pytest.raises(ValueError, match=r"sigma 0\.2; the record has heatmaps of gradient, input_x_gradient at"):
        certification.certified_of_map(record, "gradient", 0.2, 0.01, size=(8, 8))


def test_stopped_heatmaps_go_on(heatmaps: tuple[Record, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    record, folder = heatmaps
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    (folder / "heatmaps-gradient-0.1" / "1.json").write_text('{"mass": 0.1', encoding="utf-8")  # a process was killed
    real, images = smoothing.certify_map, []

    def certify_map(*args: Any, **options: Any) -> Any:
        images.append(args[1])
        return real(*args, **options)

    monkeypatch.setattr(smoothing, "certify_map", certify_map)
    again = certification.measure(model, record.config, device="cpu", folder=folder).values
    assert len(images) == 1
    assert again.keys() == record.values.keys()
    for name, values in record.values.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-6, atol=1e-12)


def test_heatmaps_that_cannot_be_are_refused() -> None:
    for fields, message in (
        ({"methods": ("gradients",)}, "methods has gradients; accepted are gradient, "),
        ({"sigmas": (0.0,)}, "sigmas and epsilons are lengths > 0"),
        ({"k": (0,)}, "k are numbers of pixels >= 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            certification.Heatmaps.model_validate(fields)


def test_a_stopped_measurement_goes_on(tmp_path: Path, record: Record) -> None:
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    config = SMALL.model_copy(update={"attacked": 0})
    first = certification.measure(model, config, device="cpu", folder=tmp_path).values
    assert sorted(f.name for f in tmp_path.iterdir() if f.suffix != ".lock") == [
        f"{law}-{radius}.jsonl" for law in ("gaussian", "uniform") for radius in ("0.5", "1")
    ]
    row = (tmp_path / "uniform-1.jsonl").read_text().splitlines()
    (tmp_path / "uniform-1.jsonl").write_text("\n".join(row[:2]) + "\n")
    second = certification.measure(model, config, device="cpu", folder=tmp_path).values
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(first["norm/uniform/1"], record.values["norm/uniform/1"])


def test_of_two_processes_one_certifies_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    config = SMALL.model_copy(update={"attacked": 0})
    real, alone = smoothing.certify, []

    def certify(*args: Any, **options: Any) -> Any:
        with _files.free(options["path"]) as free:
            alone.append(not free)
        return real(*args, **options)

    monkeypatch.setattr(smoothing, "certify", certify)
    certification.measure(model, config, device="cpu", folder=tmp_path)
    assert alone == [True] * 4


def test_a_record_is_read_as_it_was_written(tmp_path: Path, record: Record) -> None:
    path = tmp_path / "small.json"
    grids.save_record(record, path)
    found = grids.load_record(path)
    assert (found.name, found.network, found.config, found.dimension) == ("small", NETWORK, SMALL, 64)
    assert found.provenance == record.provenance
    for name, column in record.values.items():
        np.testing.assert_allclose(found.values[name], column, rtol=1e-6)
    assert [r.name for r in grids.load_records(tmp_path)] == ["small"]
    content = json.loads(path.read_text())
    for damage in ({"experiment": "alignment"}, {"network": None}, {"config": {"images": 0}}):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(ValueError, match=r"small\.json: not a record") as error:
            grids.load_record(path)
        assert "\n" not in str(error.value)
    path.write_text(json.dumps(content))
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    path.with_suffix(".jsonl").write_text("\n".join([lines[0], "{}", *lines[1:]]))
    with pytest.raises(ValueError, match=r"small\.jsonl, line 2"):
        grids.load_record(path)
    with pytest.raises(ValueError, match="has no records"):
        grids.load_records(tmp_path / "nowhere")


def test_numbers_say_all_that_they_depend_on(record: Record) -> None:
    found = {m.quantity: m for m in grids.measurements(record, "grid/small")}
    assert found.keys() == record.values.keys()
    reached = found["attacked/gaussian/1/0.1/adaptive"]
    assert (reached.epsilon, reached.norm, reached.n, reached.unit) == (0.1, "l2", 2, "1")
    assert (found["plain/0.02"].epsilon, found["norm/uniform/1"].epsilon) == (0.02, None)
    assert (reached.model, reached.objective, reached.seed) == ("digits-cnn", None, None)
    assert (reached.dataset, reached.weights_sha256) == ("digits test", "0" * 64)
    assert reached.dataset_sha256 == record.provenance["dataset"]["sha256"]
    assert found["certified_epsilon/0.9/uniform/1"].unit == "l2 length in a [0, 1] image"


def test_the_inverse_forms_and_violations_are_recorded(record: Record) -> None:
    for law in certification.LAWS:
        for target in certification.TARGETS:
            epsilon = record.values[f"certified_epsilon/{target}/{law}/1"]
            assert (epsilon > 0).all()
            np.testing.assert_allclose(
                np.diag(certification.certified(record, law, 1.0, epsilon)), target, rtol=0, atol=1e-6
            )
            assert record.values[f"round_trip/{target}/{law}/1"].max() < 1e-6
        for epsilon in SMALL.epsilons:
            bound = certification.certified(record, law, 1.0, epsilon)[:2]
            for adversary in certification.ADVERSARIES:
                name = f"{law}/1/{epsilon:g}/{adversary}"
                assert (
                    f"violated/{name}" not in record.values
                    or len(record.values[f"violated/{name}"]) == (bound > -1).sum()
                )
    total = sum(v.sum() for name, v in record.values.items() if name.startswith("violated/"))
    assert total == certification.check([record]).violations == 0


def test_a_violation_is_recorded() -> None:
    values = {
        "norm_lower/uniform/1": np.array([0.99, 0.99, 0.1]),
        "attacked/uniform/1/0.02/random": np.array([0.5, 1.0, 0]),
    }
    found = certification.violated(values, 64)
    assert {name: v.tolist() for name, v in found.items()} == {"violated/uniform/1/0.02/random": [1.0, 0.0]}
    # Where nothing is certified there is nothing to violate.
    assert certification.violated(values | {"norm_lower/uniform/1": np.full(3, 0.01)}, 64) == {}
    assert certification.inverses(np.array([0.0]), 64, "uniform/1").keys() == {
        f"certified_epsilon/{target}/uniform/1" for target in (0.8, 0.9)
    }


def test_what_follows_from_other_numbers() -> None:
    """The quoted formula at recorded lengths, and the third form of the certificate."""
    d, lengths = 64, {"0.5": np.array([0.99, 0.9]), "1": np.array([0.97, 0.6])}
    values: dict[str, np.ndarray] = {"attacked/uniform/1/0.02/random": np.array([0.5, 1.0])}
    for radius, h in lengths.items():
        values |= {f"norm/uniform/{radius}": h, f"norm_lower/uniform/{radius}": h}
        values |= certification.inverses(h, d, f"uniform/{radius}")
    found = certification.derived(values, d)
    p = smoothing.overlap(d, 1.0, 0.02)
    assert found["below_quoted/uniform/1/0.02/random"].tolist() == [1, 0]
    broken = smoothing.quoted_cosine(lengths["1"], p) > smoothing.certified_cosine(lengths["1"], p)
    assert found["quoted_broken/uniform/1/0.02"].tolist() == broken.astype(float).tolist() == [0, 1]
    radii = found["smallest_radius/0.9/uniform"]
    epsilon = 0.9 * np.maximum(*(values[f"certified_epsilon/0.9/uniform/{r}"] for r in ("0.5", "1")))
    for i, radius in enumerate(radii):
        h = np.interp(radius, [0.5, 1], [lengths["0.5"][i], lengths["1"][i]])
        assert smoothing.Ball(radius).certified_cosine(h, d, epsilon[i]) >= 0.9
        less = radius - 1e-6
        assert radius == 0.5 or smoothing.Ball(less).certified_cosine(h, d, epsilon[i]) < 0.9
    assert 0.5 < radii[0] < 1
    assert found["round_trip_radius/0.9/uniform"].max() < 1e-9
    # Of an image of which nothing is certified there is no radius.
    nothing = {name: v * (np.arange(2) == 0) if "/uniform/" in name else v for name, v in values.items()}
    assert "smallest_radius/0.9/uniform" not in certification.smallest_radii(nothing, d)
    assert len(certification.smallest_radii(nothing, d)["round_trip_radius/0.9/uniform"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacked": 4}, "attacked is 4; it is at most images, 3"),
        ({"attack_radius": 3.0}, "attack_radius is 3"),
        ({"radii": (1.0, -1.0)}, "l2 lengths > 0"),
        ({"laws": ("cauchy",)}, "uniform"),
        ({"alpha": 1.0}, "alpha"),
        ({"pictures": 1}, "pictures"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Certification.model_validate(SMALL.model_dump() | change)


def test_a_network_is_exactly_one_thing() -> None:
    with pytest.raises(ValidationError, match="one of record, training and model"):
        Network()
    with pytest.raises(ValidationError, match="one of record, training and model"):
        Network(model="lenet", record="a.json")
    with pytest.raises(ValueError, match="law is 'cauchy'"):
        certification.noise_of("cauchy", 1.0, 3)
    with pytest.raises(ValueError, match=r"weaken is 0\.0"):
        certification.check([], weaken=0.0)


def test_a_grid_runs_a_training_and_writes_its_record(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        """
description: a test
networks:
  trained:
    training: {dataset: digits, images: 64, validation: 32, model: digits-cnn, schedule: {epochs: 1, milestones: []}}
  other: {model: digits-cnn}
certification: {dataset: digits, images: 2, radii: [0.5], samples: 20, choose: 5, attacked: 0, check_samples: 4}
but:
  other: {samples: 30}
"""
    )
    grid = grids.load_grid(path)
    assert {name: config.samples for name, config in grid.runs()} == {"trained": 20, "other": 30}
    output = tmp_path / "out" / "trained.json"
    made = grids.run_record(
        grid, "trained", output, root=tmp_path / "runs", compute=Compute(accelerator="cpu"), progress=False
    )
    found = grids.load_record(output)
    assert found.network == grid.networks["trained"]
    assert found.values.keys() == made.values.keys()
    assert found.provenance["network"]["training"]["images"] == 64
    assert grid.configuration("other")[1]["samples"] == 30


def test_a_grid_takes_trainings_of_another_and_changes_them(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        """
description: trainings
training: {dataset: digits, images: 64, validation: 32, model: digits-cnn, schedule: {epochs: 1, milestones: []}}
objectives: {cross-entropy: , l2: }
seeds: [0, 1]
alignment: {dataset: digits, frame: 2}
"""
    )
    path = tmp_path / "grid.yaml"
    text = """
description: a test
trainings: {of: base, objectives: [l2], changed: {16px: {size: 16}, soft: {beta: 1}}}
certification: {dataset: digits, images: 2, attacked: 0, samples: 20, choose: 5, check_samples: 4}
but:
  16px-*: {samples: 30}
  "*-1": {choose: 6}
"""
    path.write_text(text)
    grid = grids.load_grid(path)
    configs = dict(grid.runs())
    assert list(configs) == ["16px-l2-0", "16px-l2-1", "soft-l2-0", "soft-l2-1"]
    assert [(c.samples, c.choose) for c in configs.values()] == [(30, 5), (30, 6), (20, 5), (20, 6)]
    trainings = [each.training for each in grid.networks.values()]
    assert [(t.size, t.beta, t.seed, t.objective) for t in trainings if t] == [
        (16, 3.0, 0, "l2"), (16, 3.0, 1, "l2"), (None, 1.0, 0, "l2"), (None, 1.0, 1, "l2"),
    ]  # fmt: skip
    path.write_text(text.replace("{of: base, objectives: [l2], changed: {16px: {size: 16}, soft: {beta: 1}}}", "base"))
    with pytest.raises(ValueError, match=r"but has 16px-\*, which is no network"):
        grids.load_grid(path)
    path.write_text(text.replace("[l2]", "[l3]"))
    with pytest.raises(ValueError, match="objectives has l3; base has cross-entropy, l2"):
        grids.load_grid(path)


def test_a_file_that_is_no_grid_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    for text in (
        "networks: {a: {}}\ndescription: x",
        "networks: {a: {model: lenet}}\ndescription: x\nbut: {b: {}}",
        "{",
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a grid") as error:
            grids.load_grid(path)
        assert "\n" not in str(error.value)


def test_every_grid_of_the_repository_is_one() -> None:
    paths = sorted((ROOT / "results" / "reference").glob("*.yaml"))
    assert paths
    for path in paths:
        grid = grids.load_grid(path)
        assert all(grid.configuration(name) for name, _ in grid.runs())


def test_a_measurement_on_a_bigger_image_uses_its_own_dimension(record: Record) -> None:
    wide = replace(record, dimension=3072)
    assert (
        certification.certified(wide, "uniform", 1.0, 0.1) <= certification.certified(record, "uniform", 1.0, 0.1)
    ).all()


REFERENCE = ROOT / "results" / "reference"
RECORDS = sorted(
    path.relative_to(REFERENCE)
    for path in REFERENCE.glob("*/*.json")
    if json.loads(path.read_text(encoding="utf-8"))["experiment"] == "certification"
)


@pytest.mark.parametrize("path", RECORDS, ids=str)
def test_committed_records_belong_to_their_grid_and_break_nothing(path: Path) -> None:
    record = grids.load_record(REFERENCE / path)
    grid = grids.load_grid(REFERENCE / f"{path.parent}.yaml")
    assert dict(grid.runs())[path.stem] == record.config
    assert grid.networks[path.stem] == record.network
    assert "with changes" not in record.provenance["commit"]
    found = certification.check([record])
    assert found.violations == 0
    # Numbers that follow from others are those.
    counted = certification.violated(record.values, record.dimension) | certification.quoted(
        record.values, record.dimension
    )
    kinds = ("violated/", "below_quoted/", "quoted_broken/")
    assert counted.keys() == {name for name in record.values if name.startswith(kinds)}
    for name, values in counted.items():
        np.testing.assert_array_equal(record.values[name], values)
    for name, values in record.values.items():
        if name.startswith(("round_trip/", "round_trip_radius/")):
            assert values.max() < 1e-6


def test_maps_can_be_squared() -> None:
    """SmoothGrad-Squared: the squares of the gradient, their derivative, and their certificate."""
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    x = models.load_images(model, "digits", limit=2, seed=0).images
    config = certification.Heatmaps(power=2)
    a, b = config.method("gradient")(model, x, 3), certification.Heatmaps().method("gradient")(model, x, 3)
    assert torch.equal(a, b * b)
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(config.method("gradient")(model, z, 3, create_graph=True).sum(), z)
    g = attributions.gradient(model, z, 3, create_graph=True)
    (wanted,) = torch.autograd.grad((g * g).sum(), z)
    torch.testing.assert_close(slope, wanted)
    maps = certification.Heatmaps(epsilons=(0.05,), k=(20,), samples=20, choose=10, power=2)
    found = certification.certified_maps(model, maps, "gradient", 0.1, 0, x, model(x).argmax(1), 8)
    theirs = smoothing.certify_map(
        model, x, model(x).argmax(1), noise=smoothing.Gaussian(0.1), epsilon=[0.05], k=20, samples=20, choose=10,
        attribution=lambda *given, **options: attributions.gradient(*given, **options).pow(2), seed=0, cosine=True,
    )  # fmt: skip
    torch.testing.assert_close(found.heatmap, theirs.heatmap)
    with pytest.raises(ValueError, match="power"):
        certification.Heatmaps(power=3)


def test_votes_and_attacks_are_recorded() -> None:
    """What `certify_votes` and `attack_maps` say, number by number, and nothing where nothing is certified."""
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    maps = certification.Heatmaps(
        methods=("integrated_gradients",), epsilons=(0.01, 0.2), k=(20,), samples=60, choose=20, votes=True, attacked=1,
        attack_iterations=1, attribution_steps=2,
    )  # fmt: skip
    config = SMALL.model_copy(update={"laws": (), "attacked": 0, "images": 2, "heatmaps": maps})
    values = certification.measure(model, config, device="cpu").values
    x = models.load_images(model, "digits", limit=2, seed=0).images
    attribution = partial(integrated_gradients, steps=2)
    votes = smoothing.certify_votes(
        model, x, model(x).argmax(1), noise=smoothing.Gaussian(0.1), epsilon=[0.01, 0.2], k=20, samples=60,
        attribution=attribution,
    )  # fmt: skip
    for j, epsilon in enumerate(("0.01", "0.2")):
        place = f"20/integrated_gradients/0.1/{epsilon}"
        np.testing.assert_allclose(values[f"votes/overlap/{place}"], votes.overlap[:, j], atol=1e-6)
        np.testing.assert_array_equal(values[f"votes/stay/{place}"], votes.stays[:, j].flatten(1).sum(1))
        np.testing.assert_array_equal(values[f"votes/stay_out/{place}"], votes.stays_out[:, j].flatten(1).sum(1))
    assert (values["votes/stay_out/20/integrated_gradients/0.1/0.01"] > 0).all()
    # From the counts beside them the votes follow, pixel by pixel in their order.
    for i, (shares, top) in enumerate(zip(votes.votes, votes.top, strict=True)):
        for name, pixels in (("top_with", top), ("others_with", ~top)):
            counted = values[f"votes/{name}/20/integrated_gradients/0.1/image-{i}"].astype(int)
            expanded = np.repeat(np.arange(61), counted) / 60
            np.testing.assert_allclose(expanded, shares[pixels].sort().values, atol=1e-12)
    # Mass and center of one image at one length, for all five aims.
    found = {name: v for name, v in values.items() if name.startswith("map_violated/center/")}
    assert len([name for name in found if "/0.01/" in name]) == len(AIMS)
    assert all(v.tolist() == [0.0] for v in found.values())
    assert all(values[name.replace("violated", "used")].shape == v.shape for name, v in found.items())
    one = Record(KIND, "one", NETWORK, config, 64, values, {})
    broken = next(name for name in values if name.startswith("map_violated/mass/"))
    other = replace(one, values={broken: np.array([1.0]), broken.replace("violated", "used"): np.array([3.0])})
    counted = certification.attacked_maps([one, other])
    assert counted["center"].points == sum(len(v) for v in found.values())
    assert counted["center"].violations == 0
    assert (counted["mass"].violations, counted["mass"].most) == (1, 3.0)
    assert certification.attacked_maps([]) == {}


def test_heatmaps_that_cannot_be_attacked() -> None:
    large = certification.Certification(images=2, laws=(), attacked=0, heatmaps=certification.Heatmaps(attacked=1))
    with pytest.raises(
        ValueError, match=r"attacked of heatmaps is 1 and images have 224 x 224 pixels; accepted are up"
    ):
        KIND.check(large, (3, 224, 224))
    with pytest.raises(ValueError, match="attacked of heatmaps is 3; it is at most images, 2"):
        certification.Certification(images=2, attacked=0, heatmaps=certification.Heatmaps(attacked=3))
