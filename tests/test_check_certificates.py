"""The check of certified numbers that needs no torch: it confirms what is recorded, and no more than that."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from robattr import models, smoothing
from robattr.studies import certification, grids
from robattr.studies.certification import KIND, Certification, Heatmaps
from robattr.studies.grids import Network, Record

pytest.importorskip("flint")
from flint import arb, ctx

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "results" / "check_certificates.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_certificates", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ctx.prec = module.BITS
    return module


check = load()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of heatmaps and of lengths, of two digits."""
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    folder = tmp_path_factory.mktemp("maps")
    config = Certification(
        dataset="digits", images=2, radii=(1.0, 2.0), samples=400, choose=50, attacked=0, check_samples=64, fractions=4,
        heatmaps=Heatmaps(
            methods=("gradient",), sigmas=(0.1, 0.3), epsilons=(0.01, 0.1, 0.3), k=(3, 40), samples=2000, choose=300,
            votes=True,
        ),
    )  # fmt: skip
    found = certification.measure(model, config, device="cpu")
    provenance = {
        "network": {"model": "digits-cnn", "weights": {"sha256": "0" * 64}},
        "dataset": found.dataset,
        **{"seconds": 1.0, "device": "cpu", "cpu": "a processor", "threads": 1, "gpu": "none", "python": "3.11.0"},
        **{"versions": {}, "commit": "0123456789", "date": "2026-01-01"},
    }
    network = Network(model="digits-cnn")
    grids.save_record(
        Record(KIND, "maps", network, config, found.dimension, found.values, provenance), folder / "a.json"
    )
    return folder / "a.jsonl"


def refuted(path: Path) -> list[str]:
    tally = check.Tally()
    check.check_record(path, tally)
    return list(tally.refuted)


def changed(path: Path, quantity: str, change: float, to: Path) -> Path:
    """The record with one number of the first image changed by so many units of its sixth digit."""

    def by_units(numbers: dict[str, list[float]]) -> None:
        numbers[quantity][0] += change * 10.0 ** (np.floor(np.log10(abs(numbers[quantity][0]))) - 5)

    return tampered(path, by_units, to)


def test_a_record_is_confirmed(written: Path) -> None:
    tally = check.Tally()
    check.check_record(written, tally)
    assert tally.refuted == []
    assert set(tally.confirmed) == {
        "cosine", "epsilon of a cosine, by the spread", "epsilon of a cosine, gaussian noise, by the length",
        "epsilon of a cosine, uniform noise, by the length", "lower bound on a length", "mass of the top pixels",
        "shift of the center", "single pixels, by votes", "smallest radius for a cosine, by the length",
        "the top pixels of votes", "top pixels that stay",
        "top pixels that stay, by votes", "upper bound on a spread",
    }  # fmt: skip
    assert tally.confirmed["cosine"] >= 8


@pytest.mark.parametrize(
    ("quantity", "change"),
    [
        ("certified/cosine/gradient/0.1/0.01", 1),
        ("certified/cosine/gradient/0.1/0.1", 1),
        ("certified/cosine/gradient/0.3/0.3", 1),
        ("certified/mass-40/gradient/0.1/0.1", 1),
        ("certified/mass-40/gradient/0.3/0.3", 1),
        ("certified/center/gradient/0.1/0.1", -1),
        ("certified/disc/gradient/0.3/0.1", -1),
        ("certified_epsilon/0.9/gradient/0.1", 1),
        ("smallest_radius/0.9/uniform", -1),
        ("smallest_radius/0.9/gaussian", -1),
        ("of_map/direction_norm_lower/gradient/0.1", 1),
        ("of_map/direction_spread_upper/gradient/0.1", -1),
        ("of_map/norm_lower/gradient/0.3", 1),
        ("of_map/spread_upper/gradient/0.3", -1),
        # What bounds follow from; an eigenvalue counts less than what few samples add to it.
        ("of_map/direction_norm/gradient/0.1", -1),
        ("of_map/direction_spread/gradient/0.1", 30),
    ],
)
def test_one_unit_in_the_sixth_digit_is_caught(written: Path, tmp_path: Path, quantity: str, change: int) -> None:
    found = refuted(changed(written, quantity, change, tmp_path / "b"))
    assert found
    assert all("image 0" in line for line in found)
    # The other way, less is certified than could be: nothing to object to in this number.
    if quantity.startswith(("certified", "smallest")):
        assert refuted(changed(written, quantity, -change, tmp_path / "c")) == []


def tampered(path: Path, change: Callable[[dict[str, list[float]]], object], to: Path) -> Path:
    """The record after a change to its numbers, by name."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    numbers = {row["quantity"]: row["values"] for row in rows if "values" in row}
    change(numbers)
    kept = [json.dumps(row | {"values": numbers.pop(row["quantity"], None)}) for row in rows]
    kept += [json.dumps({"quantity": name, "values": values}) for name, values in numbers.items()]
    to.with_suffix(".jsonl").write_text("\n".join(kept), encoding="utf-8")
    to.with_suffix(".json").write_bytes(path.with_suffix(".json").read_bytes())
    return to.with_suffix(".jsonl")


@pytest.mark.parametrize("more", [1, 2])
def test_one_more_pixel_is_caught(written: Path, tmp_path: Path, more: int) -> None:
    """Of 40 numbers of pixels every second one is looked at; one between them does not follow either."""

    def change(numbers: dict[str, list[float]]) -> None:
        share = numbers["certified/top-40/gradient/0.1/0.01"]
        assert 0 < share[0] < 1
        share[0] += more / 40

    assert len(refuted(tampered(written, change, tmp_path / "b"))) == 1


VOTES, WITH = "votes/{}/40/gradient/0.1/0.1", "votes/{}_with/40/gradient/0.1/image-0"


def _set(name: str, value: float) -> Callable[[dict[str, list[float]]], object]:
    return lambda numbers: numbers[name].__setitem__(0, value)


def _all_voted(numbers: dict[str, list[float]]) -> None:
    numbers[WITH.format("top")][:] = [0] * 2000 + [40]


def _one_other(numbers: dict[str, list[float]]) -> None:
    others = numbers[WITH.format("others")]
    others[:] = [1] + [0] * (len(others) - 1)


def _negative(numbers: dict[str, list[float]]) -> None:
    others = numbers[WITH.format("others")]
    others[0], others[1] = others[0] + others[1] + 1, -1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((_set(VOTES.format("overlap"), v), "overlap: ") for v in (1.5, -0.5)),
        *((_set(VOTES.format("stay"), v), "stay: ") for v in (-3, 1000, 0.5)),
        *((_set(VOTES.format("stay_out"), v), "stay_out: ") for v in (-3, 65)),
        (_set(VOTES.format("stay"), float("nan")), "has no values, or one that is no number"),
        (_set(WITH.format("others"), 1000), "not of 40 top pixels and 24 others"),
        (_one_other, "not of 40 top pixels and 24 others"),
        (_negative, "no whole numbers"),
        (_all_voted, "2000 samples with 40 votes each have not given these"),
        (lambda numbers: numbers.pop(WITH.format("others")), "has no values"),
        (lambda numbers: numbers.update({"votes/stay/40/gradient/0.1/0.2": [60, 60]}), "nothing like it follows"),
        (lambda numbers: numbers["certified/cosine/gradient/0.1/0.01"].append(1.0), "3 values, 2 follow"),
        *((_set("certified/cosine/gradient/0.1/0.01", v), "cosine: ") for v in (1.5, -0.5)),
        *((_set("certified/mass-40/gradient/0.1/0.01", v), "mass-40: ") for v in (1.5, -0.5)),
        *((_set("certified/top-40/gradient/0.1/0.01", v), "top-40: ") for v in (1.5, -0.5)),
        *((_set("smallest_radius/0.9/uniform", v), "smallest radius") for v in (0.9, -5.0, 1e9)),
        (_set("certified_epsilon/0.9/gradient/0.1", -1e-3), "epsilon of a cosine"),
        (_set("certified_epsilon/0.9/uniform/1", -1e-3), "epsilon of a cosine"),
    ],
)
def test_what_cannot_be_is_refuted_in_a_line(
    written: Path, tmp_path: Path, change: Callable[[dict[str, list[float]]], object], said: str
) -> None:
    found = refuted(tampered(written, change, tmp_path / "b"))
    assert any(said in line for line in found)
    assert not any("\n" in line for line in found)


def test_a_quantity_that_is_there_twice_is_refuted(written: Path, tmp_path: Path) -> None:
    lines = written.read_text(encoding="utf-8").splitlines()
    twice = next(line for line in lines if json.loads(line)["quantity"].startswith("certified/cosine"))
    (tmp_path / "b.jsonl").write_text("\n".join([*lines, twice]), encoding="utf-8")
    (tmp_path / "b.json").write_bytes(written.with_suffix(".json").read_bytes())
    (line,) = refuted(tmp_path / "b.jsonl")
    assert "is there twice" in line


def test_long_shifts_and_shares_near_one_are_computed() -> None:
    """Floating point has no exp(2500), and none of the numbers between 1 - 2^-53 and 1."""
    assert min(float(d) for d in check.distances(arb("0.01"), arb(50), arb(2).sqrt())) <= 2 * np.sqrt(2) + 1e-9
    near = 1 - arb(2) ** -60
    assert check.below(check.quantile(near, up=False)) <= near
    assert 8 < float(check.quantile(near, up=False)) < 9
    assert float(check.quantile(1 - near, up=True)) < -8


@pytest.mark.parametrize("quantity", ["overlap", "stay", "stay_out"])
def test_one_more_pixel_by_votes_is_caught(written: Path, tmp_path: Path, quantity: str) -> None:
    """What is recorded is the most that is certified, so one pixel more is too much."""

    def change(numbers: dict[str, list[float]]) -> None:
        one, most = (1 / 40, 1) if quantity == "overlap" else (1, 63)
        assert 0 < numbers[VOTES.format(quantity)][0] < most
        numbers[VOTES.format(quantity)][0] += one

    (line,) = refuted(tampered(written, change, tmp_path / "b"))
    assert line.startswith(f"b, gradient/0.1, image 0, epsilon 0.1, votes, {quantity}: ")


def test_shares_of_votes_are_those_of_the_package() -> None:
    """Two programs, one number, from one sample to many and from nearly no risk to nearly all."""
    for samples, alpha in itertools.product((1, 5, 500, 20_000), (1e-12, 1e-8, 1e-3, 0.4, 0.9)):
        for count in {0, 1, samples // 3, samples - 1, samples}:
            lower, upper = smoothing.vote_bounds(np.array([count]), samples, alpha)
            assert float(check.share_of_votes(count, samples, alpha, up=False)) == pytest.approx(lower[0], rel=1e-9)
            fewer = 1 - check.share_of_votes(count, samples, alpha, up=True)
            assert float(fewer) == pytest.approx(1 - upper[0], rel=1e-9, abs=1e-15)


def test_it_runs_without_torch(written: Path, tmp_path: Path) -> None:
    """As a reader calls it; every module of the package, and torch and numpy, would be refused."""
    block = "\n".join(
        ["import sys", "for name in ('torch', 'numpy', 'scipy', 'robattr'): sys.modules[name] = None", "import runpy"]
    )
    code = f"{block}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    wrong = changed(written, "certified/cosine/gradient/0.1/0.1", 1, tmp_path / "wrong")
    for path, status, line in (
        (written, 0, r"\d+ numbers of 1 records, 0 not confirmed, \d+ that say nothing; \d+ a second"),
        (wrong, 1, r"\d+ numbers of 1 records, 1 not confirmed"),
    ):
        run = subprocess.run(
            [sys.executable, "-c", code, str(SCRIPT), str(path)], capture_output=True, text=True, check=False
        )
        assert run.returncode == status, run.stderr
        assert re.search(line, run.stdout)
    assert "image 0, epsilon 0.1: cosine: not confirmed" in run.stderr


def test_committed_records() -> None:
    """Some images of every record; `python results/check_certificates.py` takes all."""
    tally = check.Tally()
    files = check.certifications([ROOT / "results" / "reference"])
    for file in files:
        check.check_record(file, tally, every=40)
    assert len(files) >= 18
    assert tally.refuted == []
    assert sum(tally.confirmed.values()) >= 12 * len(files) / 2


# What is measured and certifies nothing: attacks, comparisons, lengths as they were seen, and counts that tests repeat.
MEASURED = {
    "attacked", "below_quoted", "drift", "insertion", "map_caught", "map_used", "map_violated", "norm", "plain",
    "quoted_broken", "round_trip", "round_trip_radius", "violated",
}  # fmt: skip


def test_every_kind_of_certified_number_is_looked_at(tmp_path: Path) -> None:
    """One tenth of what was needed, ten times what was certified: refuted, in records as they are kept."""
    kinds: dict[str, tuple[Path, str]] = {}
    for file in check.certifications([ROOT / "results" / "reference"]):
        for name, values in check.read(file)[1].items():
            if values[0] > 0 and not name.startswith(("certified/center", "certified/disc")):  # there less says more
                kinds.setdefault(name.partition("/")[0], (file, name))
    follow = {"of_map", "norm_lower"}  # what certified numbers follow from
    factors = {"certified": 10, "certified_epsilon": 10, "votes": 10, "smallest_radius": 0.1}
    assert set(kinds) - MEASURED - follow == set(factors)
    for kind, factor in factors.items():
        file, name = kinds[kind]
        tally = check.Tally()

        def change(numbers: dict[str, list[float]], name: str = name, factor: float = factor) -> None:
            numbers[name] = [factor * value for value in numbers[name]]

        check.check_record(tampered(file, change, tmp_path / kind), tally, every=1000)
        assert tally.refuted != [], kind


def test_an_epsilon_by_the_length_is_caught(tmp_path: Path) -> None:
    """Those of records are below the truth by what bins of an integral give away, up to 1e-6 in the cosine."""
    source = ROOT / "results" / "reference" / "certificates" / "cifar10-cosine.jsonl"
    for law, units in (("uniform", 3), ("gaussian", 100)):
        quantity = f"certified_epsilon/0.9/{law}/1"
        found = refuted(changed(source, quantity, units, tmp_path / law))
        assert len(found) == 1
        assert f"{law}/1, image 0, cosine 0.9" in found[0]


@pytest.mark.parametrize(("h", "lam", "a"), [(0.8, 0.02, 0.3), (0.5, 0.001, 2.0), (0.95, 0.05, 1.0), (0.2, 0.003, 0.8)])
def test_certificates_are_those_of_the_package(h: float, lam: float, a: float) -> None:
    """Two programs, one number: the package's within what each of the two optima may miss."""
    sine = min(float(s) for s in check.sines(arb(h), arb(lam), arb(a)) if s < 1)
    spectral = float(smoothing.certified_cosine_spectral(h, lam, a, bound=1.0))
    assert np.sqrt(1 - sine**2) == pytest.approx(spectral, abs=1e-9)
    best = float(smoothing.certified_cosine_gaussian(h, a))
    if best > 0:
        assert check.gaussian_allows(arb(best), arb(h), arb(a))
        assert not check.gaussian_allows(arb(best + 1e-5), arb(h), arb(a))
    p = 0.1 * h
    tight = float(smoothing.certified_cosine(h, p))
    assert check.uniform_allows(arb(tight - 1e-12), arb(h), arb(p))
    assert not check.uniform_allows(arb(tight + 1e-12), arb(h), arb(p))
    moved = min(float(d) for d in check.distances(arb(lam), arb(a), arb(2).sqrt()))
    assert moved == pytest.approx(float(smoothing.certified_displacement(lam, a, bound=np.sqrt(2))), rel=1e-9)


def test_cut_offs_in_balls() -> None:
    """The moments of a likelihood ratio that is cut off, by an integral of their definition."""
    a, low, high = 0.7, -0.4, 1.9
    t = np.linspace(-12, 14, 400_001)
    mass = np.exp(-t * t / 2) / np.sqrt(2 * np.pi) * (t[1] - t[0])
    ratio = np.exp(a * t - a * a / 2)
    kept = np.clip(ratio, *np.exp(a * np.array([low, high]) - a * a / 2))
    mean = (kept * mass).sum()
    known = mean, np.sqrt((kept**2 * mass).sum() - mean**2), ((kept - ratio).clip(0) * mass).sum()
    known = (*known, ((ratio - kept).clip(0) * mass).sum())
    # The trapezoidal rule at corners: a quarter of the step's square times the jump of the slope.
    for balls, rough, value in zip(check.cut(arb(a), low, high), check.cut_roughly(a, low, high), known, strict=True):
        assert float(balls) == pytest.approx(value, abs=1e-8)
        assert rough == pytest.approx(float(balls), abs=1e-13)
