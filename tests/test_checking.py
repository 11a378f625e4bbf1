"""Claims checked from what is committed: what is in order passes, and whatever is tampered with is named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file, save_file

from robattr import data, models
from robattr._files import file_digest
from robattr.studies import certification, checking, claims, conventions, fragility, grids, kept
from robattr.studies.checking import Finding, check, drift, rerun, sign
from robattr.studies.fragility import Fragility
from robattr.studies.grids import Network

GRID, RUN = "cifar10-lenet-full-attacks", "cross-entropy-0"
CLAIM = f"""
- id: small
  paper: ours
  sentence: Doubled logits double the gradient.
  population: one network
  grid: {GRID}
  chapter: 02_fragile
  anchor: here
  evidence: {{runs: 1, images: 100}}
  comparisons:
    - label: l2
      quantity: rescaled/l2_distance
      baseline: plain/l2_distance
      of: "*"
      ratio: true
      direction: greater
      by: 1.5
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one claim on one network, of those that are committed, signed."""
    root = tmp_path_factory.mktemp("whole")
    source, reference = REPOSITORY / checking.REFERENCE, root / checking.REFERENCE
    (reference / GRID / kept.FOLDER).mkdir(parents=True)
    (reference / "cifar10-lenet" / "weights").mkdir(parents=True)
    for suffix in ("json", "jsonl"):
        shutil.copy(source / GRID / f"{RUN}.{suffix}", reference / GRID)
    shutil.copy(source / "cifar10-lenet" / "weights" / f"{RUN}.safetensors", reference / "cifar10-lenet" / "weights")
    shutil.copy(source / GRID / kept.FOLDER / f"{RUN}.json", reference / GRID / kept.FOLDER)
    shutil.copytree(source / GRID / kept.FOLDER / RUN, reference / GRID / kept.FOLDER / RUN)
    (root / checking.CLAIMS).write_text(CLAIM, encoding="utf-8")
    sign(root)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "root")
    return tmp_path / "root"


def wrong(found: list[Finding]) -> list[str]:
    return [f"{each.what}: {each.said}" for each in found if each.state == "differs"]


def checked(root: Path) -> list[Finding]:
    """Without any data set: kept images have their clean pictures beside them."""
    return check(root, "small", data_root=root / "nothing")


def test_what_is_committed_is_in_order_without_any_data(root: Path) -> None:
    found = checked(root)
    assert wrong(found) == []
    ok = [each.what for each in found if each.state == "ok"]
    assert ok[:4] == ["what the claim asks for", "records", "verdict", "weights"]
    assert [what.rpartition(", ")[2] for what in ok[4:]] == [
        f"gradient/{attack}/8" for attack in ("top-k", "mass-center", "random-sign")
    ]
    (skipped,) = [each for each in found if each.state == "skipped"]
    assert "clean pictures" in skipped.what
    assert "cifar10" in skipped.said


# --------------------------------------------------------------------------------------------------------------------
# Tampering: of each, by whom it is caught


def _lines(root: Path) -> Path:
    return root / checking.REFERENCE / GRID / f"{RUN}.jsonl"


def _notes(root: Path) -> Path:
    return root / checking.REFERENCE / GRID / kept.FOLDER / f"{RUN}.json"


def _png(root: Path, name: str = "gradient-top-k-8") -> Path:
    return root / checking.REFERENCE / GRID / kept.FOLDER / RUN / f"{name}.png"


def a_value(root: Path) -> None:
    """One that is in the mean and in the values, so that the line is whole."""
    lines = [json.loads(line) for line in _lines(root).read_text().splitlines()]
    line = next(line for line in lines if line["quantity"] == "rescaled/l2_distance")
    line["values"] = [v * 0.5 for v in line["values"]]
    line["value"] *= 0.5
    _lines(root).write_text("".join(json.dumps(line) + "\n" for line in lines))


def a_threshold(root: Path) -> None:
    path = root / checking.CLAIMS
    path.write_text(path.read_text().replace("by: 1.5", "by: 1.2"))


def the_evidence(root: Path) -> None:
    path = root / checking.CLAIMS
    path.write_text(path.read_text().replace("images: 100", "images: 10"))


def a_pixel(root: Path) -> None:
    _painted(root, lambda sheet: np.where(sheet == 144, 140, sheet).astype(np.uint8))


def the_clean_pictures(root: Path) -> None:
    path = _png(root, "clean")
    Image.fromarray(255 - np.array(Image.open(path))).save(path)


def the_weights(root: Path) -> None:
    path = root / checking.REFERENCE / "cifar10-lenet" / "weights" / f"{RUN}.safetensors"
    state = load_file(path)
    save_file({name: v + 0.01 if v.is_floating_point() else v for name, v in state.items()}, path)


def a_file_is_gone(root: Path) -> None:
    _png(root).unlink()


def a_record_more(root: Path) -> None:
    for suffix in ("json", "jsonl"):
        there = _lines(root).with_suffix(f".{suffix}")
        other = there.with_name(f"other-1.{suffix}")
        other.write_text(there.read_text().replace(f"{GRID}/{RUN}", f"{GRID}/other-1"))


def the_verdict(root: Path) -> None:
    path = root / checking.SIGNED
    path.write_text(path.read_text().replace('"verdict": "reproduced"', '"verdict": "not reproduced"'))


def _painted(root: Path, change: Callable[[Any], Any]) -> None:
    path = _png(root)
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (a_value, f"record {GRID}/{RUN}.jsonl: it is not the file that was signed"),
        (a_value, "verdict: it was reproduced and is not reproduced"),
        (a_threshold, "what the claim asks for: it is not what was signed"),
        (the_evidence, "what the claim asks for: it is not what was signed"),
        (a_pixel, "gradient/top-k/8: gradient-top-k-8.png is missing or not the file that was kept"),
        (the_clean_pictures, "clean.png is missing or not the file that was kept"),
        (the_weights, f"weights of {GRID}/{RUN}: no file has those that were measured"),
        (the_weights, f"images of {GRID}/{RUN}: {GRID}/{RUN}: no grid here has kept its weights"),
        (a_file_is_gone, "gradient-top-k-8.png is missing"),
        (a_record_more, f"record {GRID}/other-1.jsonl: it is not the file that was signed"),
        (the_verdict, "verdict: it was not reproduced and is reproduced"),
    ],
)
def test_whatever_is_tampered_with_is_named(root: Path, tamper: Callable[[Path], None], said: str) -> None:
    tamper(root)
    assert any(said in line for line in wrong(checked(root))), wrong(checked(root))


def whole_again(root: Path) -> None:
    """Who tampers may sign too: then only what is computed tells."""
    notes = json.loads(_notes(root).read_text())
    for entry in (notes["clean"], *notes["attacks"].values()):
        path = _notes(root).with_suffix("") / entry["file"]
        entry["sha256"] = file_digest(path)
    _notes(root).write_text(json.dumps(notes))
    sign(root)


def test_a_signed_change_of_the_images_does_not_have_the_effect(root: Path) -> None:
    a_pixel(root)
    whole_again(root)
    (line,) = wrong(checked(root))
    assert "gradient/top-k/8: topk_intersection of picture" in line


def test_a_signed_change_beyond_epsilon_is_found(root: Path) -> None:
    _painted(root, lambda sheet: np.where(sheet == 144, 145, sheet).astype(np.uint8))
    whole_again(root)
    (line,) = wrong(checked(root))
    assert "gradient/top-k/8: a value changes by 8.5/255, more than 8/255" in line


def test_a_signed_effect_that_the_images_do_not_have_is_found(root: Path) -> None:
    notes = json.loads(_notes(root).read_text())
    values = notes["attacks"]["gradient/top-k/8"]["values"]["topk_intersection"]
    notes["attacks"]["gradient/top-k/8"]["values"]["topk_intersection"] = [0.0 for _ in values]
    assert max(values) > 0.05
    _notes(root).write_text(json.dumps(notes))
    whole_again(root)
    (line,) = wrong(checked(root))
    assert "and was kept as 0" in line


def test_a_prediction_that_is_lost_is_found(root: Path) -> None:
    """Other pictures under the changes: few predictions are those of before."""
    path = _png(root, "clean")
    Image.fromarray(np.full_like(np.array(Image.open(path)), 128)).save(path)
    whole_again(root)
    assert wrong(checked(root))


def test_signed_other_weights_are_not_those_of_the_record(root: Path) -> None:
    the_weights(root)
    whole_again(root)
    assert any("no file has those that were measured" in line for line in wrong(checked(root)))


def test_a_claim_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="there is no claim 'larger'; there are small"):
        check(root, "larger")
    with pytest.raises(ValueError, match="there is no claim 'smal'; did you mean 'small'"):
        check(root, "smal")
    (root / checking.SIGNED).unlink()
    with pytest.raises(ValueError, match="make ledger writes it"):
        check(root, "small")


def test_what_is_committed_is_what_was_signed() -> None:
    noted = json.loads((REPOSITORY / checking.SIGNED).read_text(encoding="utf-8"))
    assert noted == checking.signed_now(REPOSITORY), "make ledger"


def test_every_kept_image_is_small_and_of_a_record() -> None:
    files = sorted((REPOSITORY / checking.REFERENCE).glob(f"*/{kept.FOLDER}/*.json"))
    assert files
    total = 0
    for path in files:
        found = kept.load_kept(path)
        assert len(found.index) == len(set(found.index)) > 3
        total += sum(each.stat().st_size for each in found.folder.iterdir())
    assert total < 30e6


# --------------------------------------------------------------------------------------------------------------------
# Kept and run again


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a record of the bundled network on sample photographs, which a package brings."""
    root = tmp_path_factory.mktemp("photographs")
    config = Fragility(
        dataset="imagenet-samples", images=3, attacks=("top-k", "random-sign"), epsilons=(2.0,), k=1000, step=1,
        iterations=2, beta=(3.0, 30.0),
    )  # fmt: skip
    record = grids.run(fragility.KIND, Network(model="efficientnet-lite0"), config, root=root / "runs", device="cpu")
    folder = root / checking.REFERENCE / "photos"
    grids.save_record(record, folder / "net.json")
    text = CLAIM.replace(GRID, "photos").replace("images: 100", "images: 3")
    text = text.replace("rescaled/l2_distance", "gradient/top-k/2/success").replace("1.5", "0.5")
    lines = [line for line in text.splitlines() if "ratio:" not in line and "baseline:" not in line]
    text = "\n".join(lines)
    (root / checking.CLAIMS).write_text(text, encoding="utf-8")
    kept.keep(folder / "net.json", images=2, seed=1)
    sign(root)
    return root


def test_what_is_kept_is_what_the_attack_found(photographs: Path) -> None:
    path = photographs / checking.REFERENCE / "photos" / kept.FOLDER / "net.json"
    found = kept.load_kept(path)
    assert found.clean is None
    assert len(found.index) == 2
    assert all(each.state == "ok" for each in kept.verify(found))
    # The record's own numbers of these pictures, up to the rounding of a batch of another size.
    for place in ("gradient/top-k/2", "gradient/random-sign/2"):
        noted = np.array(found.attacks[place]["values"]["success"])
        np.testing.assert_array_equal(noted, found.record.values[f"{place}/success"][list(found.index)])


def test_what_is_kept_stays_where_keeping_again_fails(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photographs, tmp_path / "root")
    folder = tmp_path / "root" / checking.REFERENCE / "photos"
    steps = iter([kept._steps])

    def fails(*args: Any) -> Any:
        return next(steps)(*args)

    monkeypatch.setattr(kept, "_steps", fails)  # at the second attack
    with pytest.raises(StopIteration):
        kept.keep(folder / "net.json", images=1, seed=2)
    assert all(each.state == "ok" for each in kept.verify(kept.load_kept(folder / kept.FOLDER / "net.json")))


def test_parts_are_run_again_and_agree(photographs: Path) -> None:
    found = rerun(photographs, "small", minutes=5, images=2, seed=0, parts=2)
    assert len(found) == 8
    assert [each for each in found if each.state != "ok"] == []
    with pytest.raises(ValueError, match="there is no claim 'larger' with records"):
        rerun(photographs, "larger")


def test_a_record_that_was_made_up_does_not_agree(photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "root")
    path = tmp_path / "root" / checking.REFERENCE / "photos" / "net.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["quantity"].endswith("random-sign/2/cosine"):
            line["values"] = [v - 0.05 for v in line["values"]]
            line["value"] -= 0.05
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rerun(tmp_path / "root", "small", minutes=5, images=3, seed=0, parts=8)
    assert {each.said.partition(":")[0] for each in found if each.state == "differs"} == {
        "gradient/random-sign/2/cosine"
    }


def test_what_cannot_be_run_again_is_named(root: Path) -> None:
    (found,) = rerun(root, "small", minutes=1, seed=0, data_root=root / "nothing")
    assert (found.state, found.what) == ("skipped", GRID)
    assert "cifar10" in found.said


def test_kept_images_need_steps_of_whole_numbers() -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    assert kept._steps(x, x + 3 / 255, 1.0).tolist() == [[[[3, 3], [3, 3]]]]
    with pytest.raises(ValueError, match="no whole numbers of 1/255"):
        kept._steps(x, x + 0.5 / 255, 1.0)
    with pytest.raises(ValueError, match="not of eight bits"):
        kept._levels(x)


def test_another_kind_or_attack_is_refused(photographs: Path) -> None:
    path = photographs / checking.REFERENCE / "photos" / "net.json"
    with pytest.raises(ValueError, match=r"attacks is targeted; .* has top-k, random-sign"):
        kept.keep(path, attacks=("targeted",))
    other = REPOSITORY / checking.REFERENCE / "cifar10-lenet" / "hessian-0.json"
    with pytest.raises(ValueError, match="is a record of alignment; images are kept of the kind fragility"):
        kept.keep(other)


def test_the_drift_that_is_allowed() -> None:
    """One pass: the largest counts. An attack: the mean counts, and its own spread says how far that is known."""
    recorded = np.linspace(0, 1, 10)
    assert drift("q", recorded + 9e-4, recorded, climbs=False).within
    off = recorded.copy()
    off[3] += 2e-3
    assert not drift("q", off, recorded, climbs=False).within
    off[3] += 0.3
    assert drift("q", off, recorded, climbs=True).within, "one image may end elsewhere"
    assert not drift("q", recorded + 0.02, recorded, climbs=True).within, "all of them may not"
    rng = np.random.default_rng(0)
    assert not drift("q", recorded + 0.2 + rng.normal(0, 0.05, 10), recorded, climbs=True).within
    # Units other than shares: what counts is the range of the values.
    assert drift("q", 1e3 * recorded + 0.5, 1e3 * recorded, climbs=False).within


def test_what_is_near_begins_with_what_is_recorded(root: Path) -> None:
    """Reach 0 is the intersection of the record's own kind, up to pixels that rounding could put on either side."""
    found = kept.load_kept(_notes(root))
    same, near = (kept.nearby(found, reach, data_root=root / "nothing") for reach in (0, 2))
    for attack in ("top-k", "mass-center", "random-sign"):
        noted = np.array(found.attacks[f"gradient/{attack}/8"]["values"]["topk_intersection"])
        # Whole pixels of 100: one or two may change sides.
        np.testing.assert_allclose(same[attack][0], noted, atol=0.0201)
        assert (near[attack][0] >= same[attack][0]).all()
        assert near[attack][0].mean() > same[attack][0].mean() + 0.1
        assert (near[attack][1] <= near[attack][0]).all(), "chance is taken off"


@pytest.mark.data
def test_clean_pictures_are_those_of_the_data_set() -> None:
    path = REPOSITORY / checking.REFERENCE / GRID / kept.FOLDER / f"{RUN}.json"
    try:
        found = kept.verify(kept.load_kept(path), at_most=2)
    except data.DataError as error:
        pytest.skip(str(error))
    if found[0].state == "skipped":
        assert found[0].said == "cifar10 is not here"
        pytest.skip(found[0].said)
    assert found[0].state == "ok", found[0]
    assert claims.load_claims(REPOSITORY / checking.CLAIMS)


@pytest.fixture
def certified(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)  # a record names the file of weights, not its folder
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a record of certificates, of lengths and of heatmaps, of a network for digits."""
    root = tmp_path_factory.mktemp("certified")
    weights = root / "net.safetensors"
    save_file(models.build("digits-cnn", seed=1).state_dict(), weights)
    network = Network(model="digits-cnn", weights=str(weights))
    config = certification.Certification(
        dataset="digits", images=3, radii=(0.5,), samples=200, choose=50, attacked=0,
        heatmaps=certification.Heatmaps(sigmas=(0.1,), epsilons=(0.02,), k=(5,), samples=300, choose=50),
    )  # fmt: skip
    record = grids.run(certification.KIND, network, config, root=root / "runs", device="cpu")
    grids.save_record(record, root / checking.REFERENCE / "certified" / "net.json")
    text = CLAIM.replace(GRID, "certified").replace("images: 100", "images: 3")
    text = text.replace("rescaled/l2_distance", "norm/gaussian/0.5").replace("1.5", "0.5")
    lines = [line for line in text.splitlines() if "ratio:" not in line and "baseline:" not in line]
    (root / checking.CLAIMS).write_text("\n".join(lines), encoding="utf-8")
    sign(root)
    return root


def test_certificates_are_computed_again_and_agree(certified: Path) -> None:
    found = rerun(certified, "small", minutes=5, images=2, seed=0, parts=6)
    assert [each for each in found if each.state != "ok"] == []
    quantities = {each.said.partition(":")[0] for each in found}
    assert any(name.startswith("of_map/direction_spread_upper") for name in quantities)
    assert any(name.startswith("norm_lower/") for name in quantities)


@pytest.mark.parametrize("quantity", ["norm_lower/gaussian/0.5", "of_map/direction_norm_lower/gradient/0.1"])
def test_a_certificate_that_was_made_up_does_not_agree(certified: Path, tmp_path: Path, quantity: str) -> None:
    shutil.copytree(certified / checking.REFERENCE, tmp_path / checking.REFERENCE)
    shutil.copy(certified / checking.CLAIMS, tmp_path / checking.CLAIMS)
    path = tmp_path / checking.REFERENCE / "certified" / "net.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["quantity"] == quantity:
            line["values"] = [v + 0.01 for v in line["values"]]
            line["value"] += 0.01
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rerun(tmp_path, "small", minutes=5, images=3, seed=0, parts=24)
    assert {each.said.partition(":")[0] for each in found if each.state == "differs"} == {quantity}


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"device": "cuda"}, "a GPU's generator"), ({"size": 224}, "takes minutes"), ({"laws": ()}, "neither lengths")],
)
def test_certificates_that_cannot_be_computed_again_say_why(
    certified: Path, changed: dict[str, Any], said: str
) -> None:
    path = certified / checking.REFERENCE / "certified" / "net.json"
    record = grids.load_record(path)
    model = kept.network_of(record, path.parent)
    if "device" in changed:
        record = replace(record, provenance=record.provenance | changed)
    if "laws" in changed:
        record = replace(record, config=record.config.model_copy(update={"laws": (), "heatmaps": None}))
    if "size" in changed:
        model.input_size = (3, 224, 224)
    with pytest.raises(ValueError, match=said):
        checking._of_certification(record, model, random.Random(0), None)


def test_measures_by_convention_are_taken_again(certified: Path) -> None:
    """By the plain rule and by each of LRP's, whichever is drawn."""
    path = certified / checking.REFERENCE / "certified" / "net.json"
    network = grids.load_record(path).network
    config = conventions.Conventions(
        dataset="digits", images=3, draws=2, manipulation_iterations=1, frame=1, fractions=4
    )  # fmt: skip
    record = grids.run(conventions.KIND, network, config, root=certified / "runs", device="cpu")
    model = kept.network_of(record, path.parent)
    drawn = set()
    for seed in range(12):
        again, (quantity,), n = checking._of_conventions(record, model, random.Random(seed), None)
        drawn.add(quantity)
        values = again([0, 2])[quantity]
        assert n == 3
        assert drift(quantity, values, record.values[quantity][[0, 2]], climbs=False).within
    assert len(drawn) == 1 + len(conventions.RULES)
