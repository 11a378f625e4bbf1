"""Experiments: a validated configuration, a key made from it, and a folder in which its result is kept.

An experiment that was run is loaded, not run again. The key covers the configuration, the source of the modules that
compute the result, and the files that a reader brought, so a changed algorithm or picture is a new experiment.
A result is written to a temporary folder that is renamed when it is whole: what can be seen is complete.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from robattr import attacks, metrics, models
from robattr._files import locked, store, write_text
from robattr.attributions import METHODS, Attribution, heatmap, integrated_gradients, smoothgrad
from robattr.data import ImageSet
from robattr.studies.runs import code_digest, environment, files_digest, public_name

__all__ = [
    "Fragility",
    "FragilityResult",
    "Interval",
    "Row",
    "Subject",
    "interval",
    "load_records",
    "load_subject",
    "run_fragility",
    "save_records",
]

AttackName = Literal["top-k", "mass-center", "targeted", "random-sign"]


class Fragility(BaseModel):
    """One attack on one attribution method at one epsilon: protocol of Ghorbani et al. 2019.

    Raises:
        pydantic.ValidationError: a value is not what the field accepts; :func:`run_fragility` is never reached.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = "imagenet-samples"
    split: str = "test"
    images: int | None = Field(None, ge=1, description="number of images drawn from the data set; None for all")
    model: str = "efficientnet-lite0"
    weights: str | None = None
    attribution: str = "gradient"
    attribution_steps: int | None = Field(None, ge=1, description="integrated gradients, SmoothGrad: points")
    attack: AttackName = "top-k"
    epsilon: float = Field(8.0, gt=0, le=255, description="largest change of a value, in 1/255")
    k: int = Field(1000, ge=1, description="number of top pixels")
    step: float = Field(0.5, gt=0, le=255, description="alpha, in 1/255")
    iterations: int = Field(300, ge=1)
    beta: float | tuple[float, float] | Literal["auto"] | None = Field(
        "auto", description="sharpness of the smooth copy that directs the attack, as in attacks.iterative_attack"
    )
    region: tuple[float, float, float, float] | None = Field(
        None, description="top, left, bottom, right of the target as fractions of the image; of the targeted attack"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Fragility:
        if self.attribution not in METHODS:
            raise ValueError(f"attribution is {self.attribution!r}; accepted are {', '.join(METHODS)}")
        if (self.attack == "targeted") != (self.region is not None):
            raise ValueError("region goes with the targeted attack, and with it only: four fractions 0 to 1")
        if self.region is not None:
            check_region(self.region)
        return self

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of the configuration, the code that computes its result and the reader's files."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        text += code_digest(*_CODE) + files_digest(self.dataset, self.weights)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def method(self) -> Attribution:
        """The attribution method with its options bound."""
        return bound_method(self.attribution, self.attribution_steps)

    def mask(self, height: int, width: int) -> Tensor:
        """The target region as bool [height, width]; at least one pixel."""
        if self.region is None:
            raise ValueError("region is None; only the targeted attack has one")
        return region_mask(self.region, height, width)


Region = tuple[float, float, float, float]
"""Top, left, bottom and right of a target, as fractions of the image."""


def check_region(region: Region) -> None:
    """Refuse what is no region.

    Raises:
        ValueError: it is not top < bottom and left < right, all from 0 to 1.
    """
    top, left, bottom, right = region
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(f"region is {region}; accepted is top < bottom and left < right, all from 0 to 1")


def region_mask(region: Region, height: int, width: int) -> Tensor:
    """A region as bool [height, width]; at least one pixel."""
    top, left, bottom, right = region
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows = slice(int(top * height), max(int(top * height) + 1, round(bottom * height)))
    columns = slice(int(left * width), max(int(left * width) + 1, round(right * width)))
    mask[rows, columns] = True
    return mask


def bound_method(name: str, steps: int | None) -> Attribution:
    """An attribution method with its number of points bound.

    Args:
        name: of :data:`robattr.attributions.METHODS`.
        steps: points of integrated gradients and SmoothGrad; None for the method's default.

    Raises:
        ValueError: steps are given to a method that has none.
    """
    if steps is None:
        return METHODS[name]
    if name == "integrated_gradients":
        return partial(integrated_gradients, steps=steps)
    if name == "smoothgrad":
        return partial(smoothgrad, samples=steps)
    raise ValueError(f"attribution_steps is {steps}; {name} has no steps: leave it out")


def attack_objective(attack: AttackName, k: int, mask: Tensor | None) -> attacks.Objective:
    """The objective of an attack by its name; that of top-k for random signs, which choose by nothing else."""
    if attack == "mass-center":
        return attacks.MassCenter()
    if attack == "targeted":
        assert mask is not None
        return attacks.Targeted(mask)
    return attacks.TopK(k)


@dataclass(frozen=True)
class Row:
    """One image under one attack. Similarities compare the map of the clean image with that of the returned one.

    A failed attack returned the clean image, so its similarities are those of an unchanged map.
    """

    image: int
    label: int
    prediction: int
    probability: float
    attacked_probability: float
    success: bool
    iterate: int
    topk_intersection: float
    rank_correlation: float
    cosine: float
    center_shift: float
    mass_before: float | None
    mass_after: float | None


@dataclass(frozen=True, eq=False)
class FragilityResult:
    """The rows of one experiment, and the images it came to.

    Attributes:
        config: what was asked for.
        rows: one for each image that was classified correctly, in order.
        started: number of images at the start.
        wrong: how many of them were left out because their prediction was wrong.
        images: the attacked images [len(rows), C, H, W].
        provenance: data set with its checksum, code, versions, hardware, date and wall time.
    """

    config: Fragility
    rows: tuple[Row, ...]
    started: int
    wrong: int
    images: Tensor
    provenance: dict[str, Any]

    @property
    def failed(self) -> int:
        """How many attacks never kept the prediction; they count as unchanged maps."""
        return sum(not row.success for row in self.rows)

    def values(self, quantity: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One value an image of a numeric field of :class:`Row`."""
        return np.array([getattr(row, quantity) for row in self.rows], dtype=np.float64)


def run_fragility(
    configs: Iterable[Fragility],
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> list[FragilityResult]:
    """The results of experiments, in their order: loaded where they exist, computed and kept where they do not.

    Data, model and the maps of the clean images are shared by experiments that agree on them. Each experiment is stored
    as soon as it is done, so a stopped run goes on where it was; two processes that ask at once compute it once.

    Args:
        configs: what to run.
        root: folder of the results, one folder ``fragility-<key>`` an experiment.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        batch_size: images attacked at once; bounds the memory and changes no result.
        progress: show a bar with the time left.

    Raises:
        ValueError, DataError, ModelError: data, model or an option that does not fit, before the first attack.
    """
    configs = list(configs)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for config in configs:
        config.method()
    subject = _Subjects(data_root, device)
    results = []
    for config in tqdm(configs, desc="experiments", disable=None if progress else True):
        folder = Path(root) / f"fragility-{config.key}"
        with locked(folder):
            result = _load(folder, config)
            if result is None:
                result = _compute(config, subject, batch_size)
                _store(folder, result)
        results.append(result)
    return results


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what it makes of a data set: the images whose explanations can be studied are the correct ones.

    Attributes:
        images: the images that were drawn, on the CPU.
        model: the classifier, in evaluation mode, its parameters constants.
        prediction: int64 [N]; predicted class of each image.
        probability: [N]; probability of the predicted class.
        correct: bool [N]; whether the prediction is the label.
        kept: the correctly classified images, on the model's device.
    """

    images: ImageSet
    model: models.Classifier
    prediction: Tensor
    probability: Tensor
    correct: Tensor
    kept: Tensor

    @property
    def wrong(self) -> int:
        """How many images are left out because their prediction is wrong."""
        return int((~self.correct).sum())


def load_subject(
    dataset: str,
    model: str,
    *,
    split: str = "test",
    images: int | None = None,
    seed: int = 0,
    weights: str | None = None,
    data_root: Path | str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> Subject:
    """Load a data set at the size that a model wants, and the model; find out what it classifies correctly.

    Args:
        dataset: see :func:`robattr.data.load`, also for ``split``, ``seed`` and ``data_root``.
        model: see :func:`robattr.models.build`, also for ``weights``.
        images: number of images drawn; None for all.
        device: where the model and the kept images go.
        batch_size: images in one pass.

    Raises:
        ValueError: the classes of the data set are not those of the model, or none of its images is classified
            correctly.
        DataError, ModelError: data or weights cannot be had.
    """
    network = models.build(model, weights=weights).to(device).requires_grad_(False)
    loaded = models.load_images(network, dataset, split, root=data_root, limit=images, seed=seed)
    if len(loaded.class_names) != network.num_classes:
        raise ValueError(
            f"{dataset} has {len(loaded.class_names)} classes and {model} has {network.num_classes}; choose a model "
            "that was trained on these classes, or name the folders of ImageNet's classes by their WordNet ids"
        )
    parts = (loaded.images[i : i + batch_size].to(device) for i in range(0, len(loaded), batch_size))
    probability, prediction = torch.cat([network(x).softmax(1).cpu() for x in parts]).max(1)
    correct = prediction == loaded.labels
    if not correct.any():
        raise ValueError(
            f"{model} classifies none of the {len(loaded)} images of {dataset} correctly: "
            "there is no prediction whose explanation could be studied"
        )
    return Subject(loaded, network, prediction, probability, correct, loaded.images[correct].to(device))


class _Subjects:
    """The last subject that was asked for: experiments of a grid share it."""

    def __init__(self, data_root: Path | str | None, device: torch.device) -> None:
        self.data_root, self.device = data_root, device
        self._last: tuple[dict[str, Any], Subject] | None = None

    def get(self, config: Fragility) -> Subject:
        wanted = config.model_dump(include={"dataset", "split", "images", "seed", "model", "weights"})
        if self._last is None or self._last[0] != wanted:
            self._last = wanted, load_subject(**wanted, data_root=self.data_root, device=self.device)
        return self._last[1]


def _compute(config: Fragility, subjects: _Subjects, batch_size: int) -> FragilityResult:
    started = time.monotonic()
    subject, method = subjects.get(config), config.method()
    clean, model = subject.kept, subject.model
    result = _attack(config, model, clean, method, batch_size)
    rows: list[Row] = []
    indices = subject.correct.nonzero().flatten().tolist()
    known = subject.images.labels[subject.correct].tolist()
    mask = None if config.region is None else config.mask(*clean.shape[2:]).to(clean)
    for part in (slice(i, i + batch_size) for i in range(0, len(clean), batch_size)):
        labels = result.prediction[part]
        before, after = (heatmap(method(model, x[part], labels)) for x in (clean, result.images))
        columns: dict[str, list[Any]] = {
            "image": indices[part],
            "label": known[part],
            "prediction": labels.tolist(),
            "probability": _probability(model, clean[part], labels).tolist(),
            "attacked_probability": _probability(model, result.images[part], labels).tolist(),
            "success": result.success[part].tolist(),
            "iterate": result.best[part].tolist(),
            "topk_intersection": metrics.topk_intersection(before, after, config.k).tolist(),
            "rank_correlation": metrics.spearman(before, after).tolist(),
            "cosine": metrics.cosine(before, after).tolist(),
            "center_shift": metrics.center_shift(before, after).tolist(),
            "mass_before": [None] * len(labels) if mask is None else (before * mask).sum((1, 2)).tolist(),
            "mass_after": [None] * len(labels) if mask is None else (after * mask).sum((1, 2)).tolist(),
        }
        rows += [Row(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    return FragilityResult(
        config=config,
        rows=tuple(rows),
        started=len(subject.images),
        wrong=subject.wrong,
        images=result.images.cpu(),
        provenance={
            "dataset": {"name": _public(config).dataset, "split": config.split, **subject.images.provenance},
            "code": code_digest(*_CODE),
            "device": _device_name(subjects.device),
            "seconds": round(time.monotonic() - started, 3),
            **environment(),
        },
    )


def _attack(
    config: Fragility, model: nn.Module, images: Tensor, method: Attribution, batch_size: int
) -> attacks.AttackResult:
    mask = None if config.region is None else config.mask(*images.shape[2:])
    common: dict[str, Any] = {
        "objective": attack_objective(config.attack, config.k, mask),
        "epsilon": config.epsilon / 255,
        "attribution": method,
        "seed": config.seed,
        "batch_size": batch_size,
    }
    if config.attack == "random-sign":
        return attacks.random_sign(model, images, **common)
    return attacks.iterative_attack(
        model, images, step=config.step / 255, iterations=config.iterations, beta=config.beta, **common
    )


def _probability(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        p: Tensor = model(x).softmax(1).gather(1, labels[:, None]).squeeze(1)
    return p


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _public(config: Fragility) -> Fragility:
    """Files by their own names in place of the paths to them, which are nobody else's business."""
    return config.model_copy(
        update={
            "dataset": public_name(config.dataset),
            "weights": None if config.weights is None else Path(config.weights).name,
        }
    )


# --------------------------------------------------------------------------------------------------------------------
# Keeping results

_CODE = ("data", "models", "_second_order", "attributions", "metrics", "attacks", "studies/experiments")


def _store(folder: Path, result: FragilityResult) -> None:
    def write(temporary: Path) -> None:
        save_file({"images": result.images.contiguous()}, temporary / "images.safetensors")
        save_records([result], temporary / "record.json")

    store(folder, write)


def _load(folder: Path, config: Fragility) -> FragilityResult | None:
    """The stored result; None where there is none, or where what there is is damaged and has to be made again."""
    try:
        (result,) = load_records(folder / "record.json")
        images = load_file(folder / "images.safetensors")["images"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        return None
    if result.config != _public(config) or len(images) != len(result.rows):
        return None
    return FragilityResult(config, result.rows, result.started, result.wrong, images, result.provenance)


def save_records(results: Sequence[FragilityResult], path: Path | str) -> None:
    """Write results without their images as JSON, one object an experiment, to a temporary name that is renamed."""
    path = Path(path)
    lines = []
    for result in results:
        config = _public(result.config).model_dump(mode="json")
        rows = {name: [getattr(row, name) for row in result.rows] for name in Row.__dataclass_fields__}
        record = {
            "experiment": "fragility",
            "config": config,
            "started": result.started,
            "wrong": result.wrong,
            "rows": rows,
            "provenance": result.provenance,
        }
        lines.append(json.dumps(record))
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def load_records(path: Path | str) -> list[FragilityResult]:
    """Results written by :func:`save_records`; their images are empty.

    Raises:
        ValueError: the file holds something else; one line names the file and the experiment.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); it is written by save_records") from None
    results = []
    for number, record in enumerate(records, 1):
        try:
            columns = record["rows"]
            if set(columns) != set(Row.__dataclass_fields__):
                raise ValueError(f"rows have the columns {sorted(columns)}")
            rows = tuple(
                Row(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
            )
            config = Fragility.model_validate(record["config"])
            results.append(
                FragilityResult(config, rows, record["started"], record["wrong"], torch.empty(0), record["provenance"])
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}, experiment {number}: not a record of this kind ({reason})") from None
    return results


# --------------------------------------------------------------------------------------------------------------------
# Numbers about numbers


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval, over n values."""

    mean: float
    low: float
    high: float
    n: int


def interval(
    values: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean and its bias-corrected and accelerated bootstrap interval (Efron 1987, through SciPy).

    Equal values, or a single one, have an interval of no length.

    Args:
        values: one value an image.
        level: of confidence, between 0 and 1.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap

    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"values have shape {x.shape}; an interval takes at least one finite number")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a confidence level lies between 0 and 1")
    mean = float(x.mean())
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, len(x))
    resample: Callable[..., Any] = bootstrap
    found = resample((x,), np.mean, confidence_level=level, n_resamples=9999, rng=np.random.default_rng(seed))
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), len(x))
