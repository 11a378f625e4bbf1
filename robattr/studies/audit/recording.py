"""From the parts of an audit to its record: lines, words, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robattr import attacks
from robattr.attacks import MEASURES, Judged
from robattr.attributions import heatmap
from robattr.data import ImageSet
from robattr.studies import records
from robattr.studies.audit.pieces import (
    FLOOR_EPSILONS,
    LEVELS,
    SIGMA,
    SMALLER_SIZE,
    Bench,
    State,
    attacks_on,
    joined,
    rows_of,
)
from robattr.studies.audit.planning import SMALLER, top_pixels
from robattr.studies.audit.results import Audited, Case, save
from robattr.studies.records import Measurement
from robattr.studies.runs import environment, public_name

__all__ = ["record"]

_CASES = 4  # pictures of the first method; the others show their worst one


def record(run: State, stopped: str | None, seconds: float, weights: str, source: dict[str, Any]) -> Audited:
    bench, drawn, config = run.bench, run.drawn, run.config
    provenance = environment() | {"seconds": round(seconds, 3), "threads": torch.get_num_threads()}
    provenance["device"] = run.device.type
    context: dict[str, Any] = {
        "run": f"audit/{run.model.name}",
        "experiment": "audit",
        "dataset": f"{public_name(drawn.name)} {drawn.split}",
        "dataset_sha256": drawn.provenance["sha256"],
        "model": run.model.name,
        "weights_sha256": weights,
        "profile": "audit",
        **records.context(provenance),
    }
    lines: list[Measurement] = []

    def add(quantity: str, values: Sequence[float], unit: str = "1", **fields: Any) -> None:
        if len(values):
            lines.append(records.of_values(context, quantity, np.asarray(values), unit=unit, digits=7, **fields))

    words: dict[str, Any] = {"stopped": stopped, "refused": {}, "attack_refused": {}, "stages": {}, "files": {}}
    cases: list[Case] = []
    if len(run.prediction):
        correct = (run.prediction == drawn.labels).double().tolist()
        add("correct", correct, "share of images")
        add("left_out/misclassified", [float(not c and any(correct)) for c in correct], "share of images")
        words["explained"] = "correct" if any(correct) else "all"
    unreadable = [name for name in drawn.provenance.get("unreadable", "").split("; ") if name]
    words["unreadable"] = unreadable
    add("left_out/unreadable", [0.0] * len(drawn) + [1.0] * len(unreadable), "share of files")
    words["refused"] = {name: cost.refused for name, cost in run.costs.items() if cost.refused}
    words["attack_refused"] = {name: cost.attack_refused for name, cost in run.costs.items() if cost.attack_refused}
    if bench is not None:
        for name, cost in run.costs.items():
            if cost.refused is None:
                _add_method(run, bench, name, add, words, cases)
        _add_floors(bench, add)
    description = {
        "experiment": "audit",
        "name": run.model.name,
        "config": config.model_dump(mode="json"),
        "classes": run.model.num_classes,
        "class_names": _names(run, bench),
        "shape": list(drawn.images.shape[1:]),
        "dimension": drawn.images[0].numel(),
        "k": top_pixels(*drawn.images.shape[2:]),
        "drawn": len(drawn),
        "plan": None if bench is None else bench.plan.model_dump(mode="json"),
        **words,
        "cases": [{"method": c.method, "attack": c.attack, "index": c.index} for c in cases],
        "provenance": provenance | {"dataset": _dataset(drawn), "source": source},
    }
    save(run.folder, lines, description, cases)
    return Audited(run.folder, tuple(lines), description, tuple(cases))


def _dataset(drawn: ImageSet) -> dict[str, Any]:
    return {"name": public_name(drawn.name), "split": drawn.split, **drawn.provenance}


def _names(run: State, bench: Bench | None) -> dict[str, str]:
    """Names of the classes that are explained, by the index of the image."""
    if bench is None:
        return {}
    return {str(i): run.drawn.class_names[int(run.prediction[i])] for i in run.chosen[: len(bench.x)]}


_UNITS = {
    "success": "share of images",
    "topk_intersection": "share of pixels",
    "center_shift": "pixels",
}


def _add_method(
    run: State, bench: Bench, name: str, add: Callable[..., None], words: dict[str, Any], cases: list[Case]
) -> None:
    noise = [bench.parts.get(f"noise/{name}/{i}") for i in range(len(bench.rows(name)))]
    there = [part for part in noise if part is not None and "refused" not in part[0]]
    others = [other for other in bench.plan.methods if other != name]
    own = [(f"attack/{name}/{attack}", attack) for attack in attacks_on(bench, name)]
    own += [(f"transfer/{name}/{other}", f"transfer-{other}") for other in others]
    sizes = [("", bench.config.epsilon, own)]
    if bench.config.smaller is not None:
        first = [(f"smaller/{name}/{attack}", attack) for attack in SMALLER]
        sizes.insert(0, (SMALLER_SIZE, bench.config.smaller, first))
    within: dict[str, Judged] = {}  # what was found in the smaller ball lies in the other one too
    for size, epsilon, searches in sizes:
        ball = {"epsilon": epsilon / LEVELS, "norm": "linf"}
        place = f"{epsilon:g}"
        for measure in MEASURES:
            values = [v for part in there for v in part[0][size + measure]]
            add(f"{name}/noise/{place}/{measure}", values, _UNITS.get(measure, "1"), **ball)
        found: dict[str, Judged] = {}
        for kind, label in searches:
            refused = bench.parts.get(f"{kind}/0")
            if refused is not None and "refused" in refused[0]:
                words["attack_refused"][f"{name}, {label}"] = refused[0]["refused"]
            if (judged := joined(bench, kind, name)) is not None:
                found[label] = judged
                for quantity in ("success", *MEASURES):
                    value = judged.success if quantity == "success" else getattr(judged.harm, quantity)
                    unit = _UNITS.get(quantity, "1")
                    add(f"{name}/{label}/{place}/{quantity}", value.double().tolist(), unit, **ball)
        worst = _worst(found | within)
        if not worst:
            continue
        add(f"{name}/worst/{place}/success", [float(w.success) for w in worst], "share of images", **ball)
        for measure in MEASURES:
            values = [float(getattr(w.harm, measure)) for w in worst]
            add(f"{name}/worst/{place}/{measure}", values, _UNITS.get(measure, "1"), **ball)
        if size == "":
            _keep_pictures(run, bench, name, worst, words, cases)
        else:
            within = {f"{label}-smaller": judged for label, judged in found.items()}
    part = bench.parts.get(f"sanity/{name}")
    if part is not None and "refused" not in part[0]:
        words["stages"][name] = part[0]["stages"]
        for quantity, values in part[0].items():
            if quantity != "stages":
                unit = "probability" if quantity.startswith("insertion") else _UNITS.get(quantity.split("/")[-1], "1")
                add(f"{name}/{quantity}", values, unit)
    elif part is not None:
        words["attack_refused"][f"{name}, sanity"] = part[0]["refused"]


def _worst(found: Mapping[str, Judged]) -> list[attacks.Worst]:
    """Of every image over the attacks that have reached it; the images are the first ones that all share."""
    n = max((len(judged.success) for judged in found.values()), default=0)
    return [
        attacks.worst_of({a: rows_of(j, i, i + 1) for a, j in found.items() if len(j.success) > i}) for i in range(n)
    ]


def _keep_pictures(
    run: State, bench: Bench, name: str, worst: Sequence[attacks.Worst], words: dict[str, Any], cases: list[Case]
) -> None:
    """The changed pictures as files, and the worst of them as cases."""
    files = []
    for i, w in enumerate(worst):
        index = run.chosen[i]
        for m in range(len(MEASURES)):
            attack = w.names[int(w.attack[m, 0])]
            path = f"images/{name}/{index:03d}-{attack}.png"
            if bool(w.success) and path not in files:
                _save_png(run.folder / path, w.images[m, 0])
                files.append(path)
    words["files"][name] = files
    order = sorted(
        (i for i, w in enumerate(worst) if bool(w.success)),
        key=lambda i: (float(worst[i].harm.topk_intersection), float(worst[i].harm.rank_correlation)),
    )
    for i in order[: _CASES if not cases else 1]:
        w = worst[i]
        attacked = w.images[0]
        method = bench.method(name)
        before, after = (
            heatmap(method(bench.model, z, bench.labels[i : i + 1])).detach()[0].cpu()
            for z in (bench.x[i : i + 1], attacked)
        )
        attack = w.names[int(w.attack[0, 0])]
        cases.append(Case(name, attack, run.chosen[i], bench.x[i].cpu(), attacked[0].cpu(), before, after))


def _add_floors(bench: Bench, add: Callable[..., None]) -> None:
    found = []
    for i in range(bench.plan.certified_images):
        part = bench.parts.get(f"floor/{i}")
        if part is None or "refused" in part[0]:
            break
        found.append(part[0])
    place = f"certificate/{SIGMA:g}"
    add(f"{place}/norm_lower", [part["norm_lower"][0] for part in found])
    for e, epsilon in enumerate(FLOOR_EPSILONS):
        values = [part["expectation"][e] for part in found]
        add(f"{place}/cosine/{epsilon:g}", values, epsilon=epsilon, norm="l2")


def _save_png(path: Path, image: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (image.cpu() * LEVELS).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
    temporary = path.with_name(f".{path.name}")
    Image.fromarray(levels).save(temporary, format="PNG")
    temporary.replace(path)
