"""A claim checked from what is committed: thresholds, records, weights, kept images; and a part of it run again.

What stood when a claim was last signed is in ``results/signed.json``: the digest of each file of the records, and of
each claim what it asks for and its verdict. ``make ledger`` signs. A check computes all of that again and names what
differs; it does not take the file's word for an effect: that of kept images is computed with the weights.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from robattr import data, influence, metrics, models, smoothing
from robattr._files import file_digest, write_text
from robattr.attributions import METHODS
from robattr.models import Classifier
from robattr.studies import certification, claims, conventions, fragility, importance, kept
from robattr.studies.claims import Claim, Verdict
from robattr.studies.grids import Record, load_record
from robattr.studies.kept import Finding
from robattr.studies.records import RecordError, conflicts, read

__all__ = ["SIGNED", "Drift", "Finding", "check", "drift", "rerun", "sign", "signed_now"]

SIGNED = "results/signed.json"
CLAIMS, REFERENCE = "results/claims.yaml", "results/reference"
LEVEL = 0.999
_ONE_PASS = 1e-3
"""Largest drift of a measure that comes from one pass: values have five digits and float32 gradients about four."""


def signed_now(root: Path | str) -> dict[str, Any]:
    """What is to be signed: of each claim what it asks for, its verdict and states; of each file its digest.

    Args:
        root: the project's folder.
    """
    root = Path(root)
    verdicts, _ = claims.read_ledger(root / CLAIMS, root / REFERENCE)
    files = [path for path in sorted((root / REFERENCE).rglob("*.json*")) if path.is_file()]
    return {
        "claims": {v.claim.id: _of_verdict(v) for v in verdicts},
        "files": {path.relative_to(root / REFERENCE).as_posix(): file_digest(path) for path in files},
    }


def sign(root: Path | str) -> None:
    """Write what :func:`signed_now` finds, a line a claim and a file."""
    found = signed_now(root)
    parts = [
        f' "{part}": {{\n' + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in found[part].items()) + "\n }"
        for part in found
    ]
    write_text(Path(root) / SIGNED, "{\n" + ",\n".join(parts) + "\n}\n")


def _of_verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "asked": _asked(verdict.claim),
        "verdict": str(verdict.name),
        "states": [str(outcome.state) for outcome in verdict.outcomes],
    }


def _asked(claim: Claim) -> str:
    """A digest of all that decides a verdict, but for its words: comparisons, thresholds, evidence, records, kind."""
    content = claim.model_dump(mode="json", include={"kind", "grid", "evidence", "untried"})
    content["comparisons"] = [claims.comparison_digest(each) for each in claim.comparisons]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check(
    root: Path | str,
    name: str,
    *,
    data_root: Path | str | None = None,
    verified: dict[Path, list[Finding]] | None = None,
) -> list[Finding]:
    """Check one claim from what is committed, in seconds.

    Args:
        root: the project's folder.
        name: of the claim.
        data_root: see :func:`robattr.data.load`.
        verified: what was found of kept images before, by file, which several claims share; it grows.

    Returns:
        What was found of its thresholds, verdict, records, weights and kept images.

    Raises:
        ValueError: there is no such claim, or nothing was signed.
    """
    root = Path(root)
    reference = root / REFERENCE
    try:
        signed = json.loads((root / SIGNED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{SIGNED} cannot be read ({error}); make ledger writes it") from None
    asked = {claim.id: claim for claim in claims.load_claims(root / CLAIMS)}
    if name not in asked:
        near = get_close_matches(name, asked, 1)
        known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(asked)}"
        raise ValueError(f"there is no claim {name!r}; {known}")
    claim, noted = asked[name], signed["claims"].get(name)
    if noted is None:
        return [Finding("what the claim asks for", "differs", "it was never signed: make ledger")]
    found = [_same("what the claim asks for", _asked(claim), noted["asked"])]
    if claim.untried:
        return [*found, Finding("verdict", "skipped", f"not tried: {claim.untried}")]
    folder = reference / claim.grid
    if not folder.is_dir():
        return [*found, Finding("verdict", "skipped", f"{claim.grid} has no records yet")]
    found += _files(folder, signed["files"])
    try:
        here = read(folder)
        (verdict,) = claims.judge([claim], here)
    except (RecordError, ValueError) as error:
        return [*found, Finding("verdict", "differs", " ".join(str(error).split()))]
    found += [Finding("records", "differs", str(conflict)) for conflict in conflicts(here)]
    now = _of_verdict(verdict)
    said = f"{verdict.name}: {', '.join(claims.effect_text(o) for o in verdict.outcomes)}"
    if (now["verdict"], now["states"]) == (noted["verdict"], noted["states"]):
        found.append(Finding("verdict", "ok", said))
    else:
        found.append(Finding("verdict", "differs", f"it was {noted['verdict']} and is {said}"))
    records = list(_records(folder, verdict))
    found += _weights(records)
    for each in _kept(reference, {record.weights["sha256"] for record, _ in records}):
        there = verified if verified is not None else {}
        if each not in there:
            there[each] = _verified(each, data_root)
        found += there[each]
    return found


def _verified(path: Path, data_root: Path | str | None) -> list[Finding]:
    try:
        return kept.verify(kept.load_kept(path), data_root=data_root)
    except ValueError as error:
        return [Finding(f"images of {path.parents[1].name}/{path.stem}", "differs", str(error))]


def _same(what: str, now: str, noted: str) -> Finding:
    return Finding(what, "ok") if now == noted else Finding(what, "differs", "it is not what was signed: make ledger")


def _files(folder: Path, noted: dict[str, str]) -> list[Finding]:
    """Whether the files of a grid are those that were signed; those that differ by name."""
    here = {f"{folder.name}/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*.json*"))}
    there = {name for name in noted if name.startswith(f"{folder.name}/")}
    changed = {name for name, path in here.items() if noted.get(name) != file_digest(path)}
    other = sorted(changed | (there - here.keys()))
    if other:
        return [Finding(f"record {name}", "differs", "it is not the file that was signed") for name in other]
    return [Finding("records", "ok", f"{len(here)} files of {folder.name}")]


def _records(folder: Path, verdict: Verdict) -> Iterator[tuple[Record, Path]]:
    """Those that a verdict is computed from."""
    for run in dict.fromkeys(run for outcome in verdict.outcomes for run in outcome.runs):
        path = folder / f"{run.partition('/')[2]}.json"
        yield load_record(path), path


def _weights(records: Sequence[tuple[Record, Path]]) -> list[Finding]:
    """Whether weights that were kept are those that were measured."""
    kept_, without, other = 0, 0, []
    for record, path in records:
        if record.weights.get("file") is None:
            without += 1
        elif kept.weights_place(record, path.parent) is not None:
            kept_ += 1
        else:
            name = f"{path.parent.name}/{record.name}"
            other.append(Finding(f"weights of {name}", "differs", "no file has those that were measured"))
    found = [*other, Finding("weights", "ok", f"{kept_} files")] if kept_ or other else []
    if without:
        found.append(Finding("weights", "skipped", f"those of {without} runs were not kept, or are those of a package"))
    return found


def _kept(reference: Path, weights: set[str]) -> list[Path]:
    """Files of images that were kept of networks with some weights."""
    found = []
    for path in sorted(reference.glob(f"*/{kept.FOLDER}/*.json")):
        record = path.parents[1] / path.name
        if record.is_file() and json.loads(record.read_text("utf-8"))["provenance"]["network"]["weights"]["sha256"] in (
            weights
        ):
            found.append(path)
    return found


# --------------------------------------------------------------------------------------------------------------------
# A part run again


@dataclass(frozen=True)
class Drift:
    """How far values that were measured again are from those of a record.

    Attributes:
        quantity: of the record.
        n: number of images.
        mean: of the differences.
        largest: of their absolute values.
        tolerance: of the mean for an attack, of the largest for what comes from one pass; see :func:`drift`.
        within: whether it is.
    """

    quantity: str
    n: int
    mean: float
    largest: float
    tolerance: float
    within: bool

    def __str__(self) -> str:
        return (
            f"{self.quantity}: {self.n} images, mean {self.mean:+.2g}, largest {self.largest:.2g}, "
            f"allowed {self.tolerance:.2g}"
        )


def drift(quantity: str, again: NDArray[np.float64], recorded: NDArray[np.float64], *, climbs: bool) -> Drift:
    """Compare values that were measured again with those of a record.

    What comes from one pass differs by rounding: each value by at most 1e-3 of the largest. An attack by steps goes by
    the signs of gradients, so on another processor it takes another path, and single images can end far apart. Such
    paths are equally good: the mean of the differences is 0 but for chance, and is allowed the half width of its
    interval at 99.9% (Student's t) and a hundredth of the range of the values.

    Args:
        quantity: its name.
        again: [n].
        recorded: [n], of the same images.
        climbs: whether it comes from an attack by steps.
    """
    apart = again - recorded
    n, mean, largest = len(apart), float(apart.mean()), float(np.abs(apart).max())
    scale = max(1.0, float(np.abs(recorded).max()))
    tolerance = _ONE_PASS * scale
    if climbs and n > 1:
        tolerance = 0.01 * scale + float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * apart.std(ddof=1) / n**0.5)
    elif climbs:
        tolerance = scale
    return Drift(quantity, n, mean, largest, tolerance, (abs(mean) if climbs else largest) <= tolerance)


Again = Callable[[list[int]], dict[str, NDArray[np.float64]]]
"""Measures images, by their place in a record, again: values by quantity."""


def rerun(
    root: Path | str,
    name: str | None = None,
    *,
    minutes: float = 1.0,
    images: int = 8,
    seed: int | None = None,
    parts: int | None = None,
    data_root: Path | str | None = None,
) -> list[Finding]:
    """Run random parts of studies again whose weights are here, and compare with the records.

    A part is a network, one measure or attack of its record, and some of its images. A part that was begun is finished,
    so it may take seconds more.

    Args:
        root: the project's folder.
        name: of a claim, whose networks are taken; None for all.
        minutes: for how long.
        images: in a part.
        seed: of what is drawn; None for another one each time.
        parts: how many at most.
        data_root: see :func:`robattr.data.load`.

    Returns:
        What was found, a part each; empty only where there was no time. What cannot be run again is skipped by name.
    """
    root, end = Path(root), time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    reference = root / REFERENCE
    asked = [c for c in claims.load_claims(root / CLAIMS) if c.grid and (name is None or c.id == name)]
    if not asked:
        raise ValueError(f"there is no claim {name!r} with records; robattr ledger lists them")
    grids = sorted({claim.grid for claim in asked} & {path.name for path in reference.iterdir() if path.is_dir()})
    waiting = [path for grid in grids for path in sorted((reference / grid).glob("*.json"))]
    rng.shuffle(waiting)
    found: list[Finding] = []
    skipped: dict[str, str] = {}
    done, cycle = 0, list(waiting)
    while cycle and time.monotonic() < end and (parts is None or done < parts):
        path = cycle.pop(0)
        grid = path.parent.name
        if grid in skipped:
            continue
        try:
            record = load_record(path)
            if record.kind.name not in _KINDS:
                skipped[grid] = f"the kind {record.kind.name} cannot be run again image by image"
                continue
            model = kept.network_of(record, path.parent)
            again, quantities, n = _KINDS[record.kind.name](record, model, rng, data_root)
        except (data.DataError, models.ModelError, _NotAgain) as error:
            skipped[grid] = str(error)
            continue
        chosen = sorted(rng.sample(range(n), min(images, n)))
        values = again(chosen)
        for quantity in quantities:
            climbs = _climbs(quantity)
            one = drift(quantity, values[quantity], record.values[quantity][chosen], climbs=climbs)
            found.append(Finding(f"{grid}/{record.name}", "ok" if one.within else "differs", str(one)))
        done += 1
        cycle.append(path)
    return [*found, *(Finding(grid, "skipped", why) for grid, why in sorted(skipped.items()))]


def _climbs(quantity: str) -> bool:
    return quantity.startswith("aam/") or (quantity.count("/") == 3 and quantity.split("/")[1] in _BY_STEPS)


_BY_STEPS = ("top-k", "mass-center", "targeted")
Part = tuple[Again, list[str], int]


def _of_fragility(record: Record, model: Classifier, rng: random.Random, data_root: Path | str | None) -> Part:
    """One attack on one map at one epsilon."""
    config: fragility.Fragility = record.config
    method = rng.choice([m for m in config.attributions if m in ("gradient", "deep_taylor")] or config.attributions)
    attack, epsilon = rng.choice(config.attacks), rng.choice(config.epsilons)
    there = fragility.attacked(record, method, attack, epsilon)
    x = kept.drawn_images(record, model, data_root)[torch.as_tensor(there.index)]
    place = f"{method}/{attack}/{epsilon:g}"

    def again(chosen: list[int]) -> dict[str, NDArray[np.float64]]:
        values, _ = fragility.attack_images(model, config, x[chosen], method, attack, epsilon)
        return {f"{place}/{name}": np.array(v) for name, v in values.items()}

    named = [f"{place}/{name}" for name in ("success", "topk_intersection", "rank_correlation", "cosine")]
    return again, named, len(x)


def _of_alignment(record: Record, model: Classifier, rng: random.Random, data_root: Path | str | None) -> Part:
    """Maps under noise, at one epsilon. Noise depends on the image, so any images can be taken."""
    config = record.config
    epsilon = rng.choice(config.epsilons)
    x = kept.drawn_images(record, model, data_root)

    def again(chosen: list[int]) -> dict[str, NDArray[np.float64]]:
        found = metrics.random_perturbation_similarity(
            model, x[chosen], _predicted(model, x[chosen]), attribution=METHODS["gradient"], epsilon=epsilon / 255,
            draws=config.draws, seed=config.seed,
        )  # fmt: skip
        return {f"rps/gradient/{epsilon:g}/{q}": getattr(found, q).double().numpy() for q in ("cosine", "pearson")}

    return again, [f"rps/gradient/{epsilon:g}/{q}" for q in ("cosine", "pearson")], len(x)


class _NotAgain(ValueError):
    """A record whose numbers cannot be measured again here, or not in minutes; the message says why."""


_LARGEST = 64 * 64  # pixels of images whose certificates take seconds


def _of_certification(record: Record, model: Classifier, rng: random.Random, data_root: Path | str | None) -> Part:
    """Lengths of smoothed maps at one radius, or the direction of smoothed heatmaps; each image has the same noise."""
    config: certification.Certification = record.config
    _, height, width = model.input_size
    if record.provenance["device"] != "cpu":
        raise _NotAgain("its noise came from a GPU's generator, which draws other numbers")
    if height * width > _LARGEST:
        raise _NotAgain("a certificate of an image of that size takes minutes; make reference measures them again")
    x = kept.drawn_images(record, model, data_root)
    maps = config.heatmaps
    if config.laws and (maps is None or rng.random() < 0.5):
        law, radius = rng.choice(config.laws), rng.choice(config.radii)
        named = [f"{name}/{law}/{radius:g}" for name in ("norm", "norm_lower")]

        def again(chosen: list[int]) -> dict[str, NDArray[np.float64]]:
            found = smoothing.certify(
                model, x[chosen], _predicted(model, x[chosen]), epsilon=config.epsilons, samples=config.samples,
                choose=config.choose, noise=certification.noise_of(law, radius, record.dimension), spectral=False,
                alpha=config.alpha, seed=config.seed,
            )  # fmt: skip
            return dict(zip(named, (found.norm.numpy(), found.norm_lower.numpy()), strict=True))

        return again, named, len(x)
    if maps is None:
        raise _NotAgain("it has neither lengths nor heatmaps")
    method, sigma = rng.choice(maps.methods), rng.choice(maps.sigmas)
    statistics = ("direction_norm", "direction_norm_lower", "direction_spread_upper")

    def of_maps(chosen: list[int]) -> dict[str, NDArray[np.float64]]:
        found = certification.certified_maps(
            model, maps, method, sigma, config.seed, x[chosen], _predicted(model, x[chosen]), max_batch=128
        )
        return {f"of_map/{name}/{method}/{sigma:g}": found.statistics[name].double().numpy() for name in statistics}

    return of_maps, [f"of_map/{name}/{method}/{sigma:g}" for name in statistics], len(x)


def _of_conventions(record: Record, model: Classifier, rng: random.Random, data_root: Path | str | None) -> Part:
    """Maps under noise by the rules of one convention or of LRP; the others are attacks over many steps."""
    config: conventions.Conventions = record.config
    x = kept.drawn_images(record, model, data_root)
    rule = rng.choice([None, *conventions.RULES])
    attribution = METHODS["gradient"] if rule is None else conventions.RULES[rule]
    quantity = f"{'ours' if rule is None else f'lrp/{rule}'}/rps/{config.epsilon:g}/cosine"

    def again(chosen: list[int]) -> dict[str, NDArray[np.float64]]:
        found = metrics.random_perturbation_similarity(
            model, x[chosen], _predicted(model, x[chosen]), attribution=attribution, epsilon=config.epsilon / 255,
            draws=config.draws, seed=config.seed,
        )  # fmt: skip
        return {quantity: found.cosine.double().numpy()}

    return again, [quantity], len(x)


def _of_importance(record: Record, model: Classifier, rng: random.Random, data_root: Path | str | None) -> Part:
    """The attack of one step on influences, at one epsilon; all training points pass once before."""
    config: importance.Importance = record.config
    training = record.network.training
    if training is None:
        raise _NotAgain("its training points are not known")
    layer, _, _ = importance.layer_of(model, config, training, data_root=data_root)
    x = kept.drawn_images(record, model, data_root)
    epsilon = rng.choice(config.epsilons)
    place = f"one-step/{epsilon:g}"

    def again(chosen: list[int]) -> dict[str, NDArray[np.float64]]:
        found = influence.influence_attack(layer, x[chosen], epsilon=epsilon / 255, top=config.top, seed=config.seed)
        return {f"{place}/{name}": v for name, v in importance.compared(found, config).items()}

    return again, [f"{place}/{name}" for name in ("success", "rank_correlation")], len(x)


def _predicted(model: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(x).argmax(1)
    return found


_KINDS: dict[str, Callable[[Record, Classifier, random.Random, Path | str | None], Part]] = {
    "fragility": _of_fragility,
    "alignment": _of_alignment,
    "certification": _of_certification,
    "conventions": _of_conventions,
    "importance": _of_importance,
}
