"""Networks trained by every objective, and how still their explanations hold: protocol of Joo et al. 2023.

A training is a validated configuration with a key; its folder ``runs/training-<key>`` holds configuration, history,
weights and provenance, and one that is there is loaded. An evaluation measures a trained network on images that neither
its training nor its selection saw. A grid is a YAML file of both; each of its runs becomes one JSON record.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robattr import attacks, data, metrics, models, regularizers, training
from robattr._files import file_digest, free, locked, store
from robattr.attributions import METHODS, heatmap
from robattr.data import ImageSet
from robattr.models import Classifier
from robattr.regularizers import Objective
from robattr.studies import records
from robattr.studies.records import Measurement
from robattr.studies.runs import code_digest, environment, files_digest, public_name
from robattr.training import Compute, Epoch, Schedule

__all__ = [
    "OBJECTIVES",
    "Evaluation",
    "Grid",
    "Measured",
    "Record",
    "Spread",
    "TrainedModel",
    "Training",
    "alignment_at",
    "evaluate",
    "load_grid",
    "load_model",
    "load_record",
    "load_records",
    "measurements",
    "run_record",
    "run_training",
    "run_trainings",
    "save_record",
    "spread",
    "step_cost",
    "step_seconds",
]

ObjectiveName = Literal[
    "cross-entropy", "hessian", "l2", "cosine", "l2+cosine", "attribution-adversary", "adversarial-training"
]

# Weights of Joo et al. 2023, in their unit; ours for the two baselines that the paper does not have.
_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "lenet": {"hessian": 1e-3, "l2": 0.01, "cosine": 1.0},
    "resnet18": {"hessian": 1e-4, "l2": 0.01, "cosine": 0.1},
}
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "cross-entropy": (),
    "hessian": ("hessian",),
    "l2": ("l2", "epsilon"),
    "cosine": ("cosine", "epsilon"),
    "l2+cosine": ("l2", "cosine", "epsilon"),
    "attribution-adversary": ("cosine", "epsilon", "steps"),
    "adversarial-training": ("epsilon", "steps"),
}
OBJECTIVES = tuple(_OPTIONS)
"""Names of the objectives, in the order of tables."""


class Training(BaseModel):
    """What to train, on what, and how.

    ``options`` are the objective's weights and radius; what is not given is the published value for the model. Epsilon
    is in 1/255.

    Raises:
        pydantic.ValidationError: a value is not what the field accepts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = "cifar10"
    images: int | None = Field(None, ge=1, description="training images, drawn with the seed; None for all the others")
    validation: int = Field(5000, ge=1, description="images of the training split held out to select the weights")
    size: int | None = Field(None, ge=1, description="side of the images in pixels; None for the data set's own")
    model: str = "lenet"
    activation: Literal["softplus", "relu"] = "softplus"
    beta: float = Field(3.0, gt=0)
    objective: ObjectiveName = "cross-entropy"
    options: dict[str, float] = Field(default_factory=dict)
    schedule: Schedule = Schedule()
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    measure_every: int = Field(1, ge=1, description="epochs between measurements of the alignment")
    select: Literal["validation", "last"] = Field(
        "validation", description="the weights of the epoch with the best validation accuracy, or of the last one"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("objective", "cross-entropy")
        accepted = _OPTIONS.get(name, ())
        given = dict(values.get("options") or {})
        if unknown := set(given) - set(accepted):
            raise ValueError(
                f"options has {', '.join(sorted(unknown))}; {name} takes {', '.join(accepted) or 'no options'}"
            )
        published = {"epsilon": 4.0, "steps": 2.0} | dict(_WEIGHTS.get(values.get("model", "lenet"), _WEIGHTS["lenet"]))
        return values | {"options": {option: float(given.get(option, published[option])) for option in accepted}}

    @model_validator(mode="after")
    def _fits(self) -> Training:
        if self.schedule.augment and data.image_shape(self.dataset, self.size)[1] == 1:
            raise ValueError(f"schedule.augment is true; {self.dataset} is a table, without crops and flips")
        return self

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of the configuration, the code that computes its result and the reader's files."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        text += code_digest(*_CODE) + files_digest(self.dataset, None)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def architecture(self) -> str:
        """Model and activation in words: ``lenet, softplus(3)``."""
        if self.model == "linear":
            return self.model
        return f"{self.model}, {f'softplus({self.beta:g})' if self.activation == 'softplus' else self.activation}"

    def sets(self, root: Path | str | None = None) -> tuple[ImageSet, ImageSet]:
        """Training and validation images: disjoint draws from the training split."""
        limit = None if self.images is None else self.images + self.validation
        loaded = data.load(self.dataset, "train", root=root, limit=limit, seed=self.seed, size=self.size)
        if limit is None:
            loaded = loaded.subset(len(loaded), self.seed)
        n = len(loaded) - self.validation
        if n < 1:
            raise ValueError(f"validation is {self.validation}; {self.dataset} has {len(loaded)} training images")
        return loaded.select(torch.arange(n)), loaded.select(torch.arange(n, len(loaded)))

    def build(self, num_classes: int | None = None, *, weights: Path | str = "random") -> Classifier:
        """The network for these images; with its initial weights, which depend on the seed, or with those of a file."""
        sized = models.takes_input_size(self.model)
        return models.build(
            self.model,
            activation=self.activation,
            beta=self.beta,
            weights=weights,
            num_classes=num_classes,
            input_size=data.image_shape(self.dataset, self.size) if sized else None,
            seed=self.seed,
        )

    def objective_for(self, model: Classifier) -> Objective:
        """The objective around a model."""
        o = dict(self.options)
        epsilon = o.pop("epsilon", 4.0) / 255
        steps = int(o.pop("steps", 1))
        if self.objective == "cross-entropy":
            return regularizers.CrossEntropy(model)
        if self.objective == "hessian":
            return regularizers.HessianPenalty(model, weight=o["hessian"])
        if self.objective == "attribution-adversary":
            return regularizers.AttributionAdversary(model, weight=o["cosine"], epsilon=epsilon, steps=steps)
        if self.objective == "adversarial-training":
            return regularizers.AdversarialTraining(model, epsilon=epsilon, steps=steps)
        return regularizers.GradientAlignment(model, l2=o.get("l2", 0.0), cosine=o.get("cosine", 0.0), epsilon=epsilon)


_CODE = ("data", "models", "_second_order", "regularizers", "training")


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A finished training.

    Attributes:
        config: what was asked for.
        history: one entry an epoch.
        best: the epoch, counted from 1, whose weights are the result: selected on the validation set, or the last.
        model: the network with those weights, in evaluation mode, parameters constant, on the CPU.
        last: state of the model after the last epoch.
        provenance: data with checksum, code, versions, hardware, date and wall time.
    """

    config: Training
    history: tuple[Epoch, ...]
    best: int
    model: Classifier
    last: dict[str, Tensor]
    provenance: dict[str, Any]


def run_training(
    config: Training,
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    compute: Compute | None = None,
    progress: bool = True,
) -> TrainedModel:
    """The trained network of a configuration: loaded where it exists, trained and kept where it does not.

    A run that was stopped goes on where it was; of two processes that ask at once one trains and the other loads. A
    folder whose files are damaged is made again. With several devices the first process keeps the result, and the
    others return it without provenance.

    Args:
        config: what to train.
        root: folder of the runs.
        data_root: see :func:`robattr.data.load`.
        compute: where to train; its precision is the configuration's.
        progress: show a bar with the time left.

    Raises:
        DataError, ModelError, ValueError: data or model that do not fit, before the first step.
        TrainingError: a loss that is not finite.
    """
    folder = Path(root) / f"training-{config.key}"
    first = _is_first()
    # The first of several processes launches the others while it holds the lock: they must not wait for it.
    with locked(folder) if first else nullcontext():
        found = _load(folder, config)
        if found is not None:
            return found
        images, validation = config.sets(data_root)
        model = config.build(len(images.class_names))
        compute = Compute(**(asdict(compute or Compute()) | {"precision": config.precision}))
        partial_folder = folder.with_name(f".{folder.name}.partial")
        result = training.train(
            config.objective_for(model),
            images,
            validation,
            config.schedule,
            seed=config.seed,
            compute=compute,
            folder=partial_folder,
            measure_every=config.measure_every,
            progress=progress,
        )
        if not first:
            best, weights = _selected(config, result.best, result.weights, result.last)
            model.load_state_dict(weights)
            model = model.cpu().eval().requires_grad_(False)
            return TrainedModel(config, result.history, best, model, result.last, {})
        _keep(folder, config, result, images, validation, compute)
        shutil.rmtree(partial_folder, ignore_errors=True)
        loaded = _load(folder, config)
    if loaded is None:
        raise OSError(f"{folder} cannot be read back after it was written; look at the disk")
    return loaded


def run_trainings(
    configs: Sequence[Training],
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    compute: Compute | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
    sets: dict[str, tuple[ImageSet, ImageSet]] | None = None,
) -> dict[str, Exception]:
    """Trainings of one precision on one device at once, each kept where :func:`run_training` finds it.

    Those that are there, and those that another process works on, are left out. See
    :func:`robattr.training.train_together`, also for ``stop`` and ``say``. Images that were loaded are kept in
    ``sets``, for the next call.

    Returns:
        What went wrong, by the key of the training; empty where all that was begun is there.

    Raises:
        ValueError: the precisions differ.
        DataError, ModelError: data or model that do not fit, before the first step.
    """
    if len({config.precision for config in configs}) > 1:
        raise ValueError("precision differs; trainings together share one")
    sets = {} if sets is None else sets
    with ExitStack() as held:
        taken: list[tuple[Training, Path]] = []
        for config in configs:
            folder = Path(root) / f"training-{config.key}"
            if held.enter_context(free(folder)) and _load(folder, config) is None:
                taken.append((config, folder))
        if not taken:
            return {}
        compute = Compute(**(asdict(compute or Compute()) | {"precision": taken[0][0].precision}))
        jobs = []
        for config, _ in taken:
            drawn = json.dumps([config.dataset, config.images, config.validation, config.size, config.seed])
            if drawn not in sets:
                sets[drawn] = config.sets(data_root)
            images, validation = sets[drawn]
            objective = config.objective_for(config.build(len(images.class_names)))
            jobs.append(training.Job(objective, images, validation, config.schedule, config.seed, config.measure_every))

        def keep(number: int, result: training.TrainingResult) -> None:
            config, folder = taken[number]
            say(f"{config.objective}, seed {config.seed}: trained in {result.seconds:.1f} s")
            _keep(folder, config, result, jobs[number].images, jobs[number].validation, compute)

        found = training.train_together(jobs, compute=compute, done=keep, stop=stop, say=say)
        return {config.key: each for (config, _), each in zip(taken, found, strict=True) if isinstance(each, Exception)}


def _keep(
    folder: Path,
    config: Training,
    result: training.TrainingResult,
    images: ImageSet,
    validation: ImageSet,
    compute: Compute,
) -> None:
    """Write a result, and what it depends on, to its folder."""
    provenance = {
        "dataset": {"name": public_name(config.dataset), "split": "train", **images.provenance},
        "validation": dict(validation.provenance),
        "code": code_digest(*_CODE),
        "device": _device(compute),
        "compute": asdict(compute),
        "tf32": _device(compute) != "cpu" and torch.backends.cudnn.allow_tf32,
        "threads": torch.get_num_threads(),
        "seconds": result.seconds,
        **environment(),
    }

    def write(temporary: Path) -> None:
        save_file(result.weights, temporary / "weights.safetensors")
        save_file(result.last, temporary / "last.safetensors")
        (temporary / "history.jsonl").write_text(training.history_text(result.history), encoding="utf-8")
        content = {
            "config": config.model_dump(mode="json"),
            "best": result.best,
            "classes": len(images.class_names),
            "sha256": {file.name: file_digest(file) for file in sorted(temporary.iterdir())},
            "provenance": provenance,
        }
        (temporary / "training.json").write_text(json.dumps(content, indent=1), encoding="utf-8")

    store(folder, write)


def _load(folder: Path, config: Training) -> TrainedModel | None:
    """The stored training; None where there is none, or where what there is is damaged."""
    try:
        content = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        if Training.model_validate(content["config"]) != config:
            return None
        if any(file_digest(folder / name) != digest for name, digest in content["sha256"].items()):
            return None
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        history = tuple(Epoch(**json.loads(line)) for line in lines)
        weights, last = load_file(folder / "weights.safetensors"), load_file(folder / "last.safetensors")
        best, weights = _selected(config, content["best"], weights, last)
        model = config.build(content["classes"])
        model.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        return None
    return TrainedModel(config, history, best, model.requires_grad_(False), last, content["provenance"])


def _selected(
    config: Training, best: int, weights: dict[str, Tensor], last: dict[str, Tensor]
) -> tuple[int, dict[str, Tensor]]:
    """The epoch that the configuration selects, and its weights."""
    return (best, weights) if config.select == "validation" else (config.schedule.epochs, last)


def _device(compute: Compute) -> str:
    if compute.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "cpu"


def _is_first() -> bool:
    """Whether this is the only process, or the first of those that train together, by what their launcher has set."""
    # SLURM sets its variable for interactive shells as well: it counts where nothing else says anything.
    ranks = [os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ]
    return (not ranks or int(ranks[0]) == 0) and int(os.environ.get("NODE_RANK", 0)) == 0


# --------------------------------------------------------------------------------------------------------------------
# Evaluation


class Evaluation(BaseModel):
    """What is measured on a trained network, and on how many test images. Epsilons are in 1/255.

    Every number of images is a prefix of one draw, so measures share images where they can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = "cifar10"
    images: int = Field(1000, ge=1, description="random perturbation similarity of the gradient, curvature, insertion")
    epsilons: tuple[float, ...] = (4.0, 8.0, 16.0)
    draws: int = Field(10, ge=1)
    methods: tuple[str, ...] = (
        "input_x_gradient",
        "integrated_gradients",
        "smoothgrad",
        "lrp",
        "deep_taylor",
        "guided_backpropagation",
    )
    method_images: int = Field(100, ge=1, description="random perturbation similarity of the other methods")
    method_epsilon: float = Field(8.0, gt=0)
    method_draws: int = Field(3, ge=1)
    manipulated: int = Field(200, ge=1, description="images of adversarial attribution manipulation, Adv-Insertion")
    manipulation_epsilon: float = Field(4.0, gt=0)
    manipulation_iterations: int = Field(100, ge=1)
    frame: int = Field(5, ge=1, description="width of the target frame, in pixels")
    fractions: int = Field(20, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Evaluation:
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"methods has {', '.join(sorted(unknown))}; accepted are {', '.join(METHODS)}")
        if max(self.method_images, self.manipulated) > self.images:
            raise ValueError(f"images is {self.images}; the other numbers of images are at most that")
        return self


@dataclass(frozen=True, eq=False)
class Record:
    """One run of a grid: a training and what was measured on it.

    Attributes:
        training: its configuration.
        evaluation: the measurement's.
        history: one entry an epoch.
        best: the epoch, counted from 1, whose weights were measured.
        accuracy: on the whole test split.
        test_images: their number.
        values: one array a measure, an entry an image; names are ``measure/.../...``. ``cost/step`` has an entry a
            round: the time of a training step, as a multiple of that of cross-entropy in the same round.
        weights: SHA-256 of the weights that were measured, and the name of their file where it was kept.
        provenance: of the training and of the evaluation.
    """

    training: Training
    evaluation: Evaluation
    history: tuple[Epoch, ...]
    best: int
    accuracy: float
    test_images: int
    values: dict[str, NDArray[np.float64]]
    weights: dict[str, str]
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on a network.

    Attributes:
        accuracy: on the whole test split.
        test_images: their number.
        values: one array a measure, an entry an image.
        dataset: provenance of the images, with their checksum.
    """

    accuracy: float
    test_images: int
    values: dict[str, NDArray[np.float64]]
    dataset: dict[str, Any]


def evaluate(
    model: Classifier,
    config: Evaluation,
    *,
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    max_batch: int | None = None,
) -> Measured:
    """Accuracy on the whole test split, and every measure, an entry an image.

    The explained class is the model's own prediction for the clean image; the measure ``correct`` says where it is
    right. Insertion and deletion are of the label's probability.

    ``max_batch`` is the largest number of images in one pass, by default 250, and 1,000 on a GPU.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wide = device.type == "cuda"
    max_batch = max_batch or (1000 if wide else 250)
    model = model.to(device).to(memory_format=torch.channels_last)
    test = models.load_images(model, config.dataset, root=data_root)
    # Draws of the split's classes are balanced only on average: the permutation is the data set's own.
    drawn = test.subset(config.images, config.seed)
    x, y = drawn.images.to(device), drawn.labels.to(device)
    with torch.no_grad():
        right = sum(
            int((model(test.images[i : i + 500].to(device)).argmax(1).cpu() == test.labels[i : i + 500]).sum())
            for i in range(0, len(test), 500)
        )
        prediction = torch.cat([model(part).argmax(1) for part in torch.split(x, max_batch)])
    values: dict[str, Tensor] = {"correct": (prediction == y).double()}

    def similarity(method: str, n: int, epsilon: float, draws: int) -> None:
        found = metrics.random_perturbation_similarity(
            model,
            x[:n],
            prediction[:n],
            attribution=METHODS[method],
            epsilon=epsilon / 255,
            draws=draws,
            seed=config.seed,
            # A path of points takes the memory of as many images.
            max_batch=min(max_batch, 250) if method in ("integrated_gradients", "smoothgrad") else max_batch,
        )
        for name in ("cosine", "pearson", "ssim"):
            values[f"rps/{method}/{epsilon:g}/{name}"] = getattr(found, name)

    for epsilon in config.epsilons:
        similarity("gradient", len(x), epsilon, config.draws)
    for method in config.methods:
        similarity(method, config.method_images, config.method_epsilon, config.method_draws)

    generator = torch.Generator().manual_seed(config.seed)
    noise = regularizers.uniform(x.shape, generator, torch.device("cpu")).to(x)
    for epsilon in config.epsilons:
        found = metrics.curvature(model, x, prediction, noise * (epsilon / 255), max_batch=max_batch)
        for name in ("hessian_product", "gradient_norm", "ratio", "l2_distance", "cosine_distance", "cosine_bound"):
            values[f"curvature/{epsilon:g}/{name}"] = getattr(found, name)
        # Rounding: each side comes from sums of some thousand products in float32 gradients.
        beyond = found.cosine_distance > found.cosine_bound * (1 + 1e-4)
        values[f"curvature/{epsilon:g}/violated"] = beyond.double()

    n = config.manipulated
    attribution = METHODS["gradient"]
    clean = torch.cat(
        [
            heatmap(attribution(model, a, b), "max")
            for a, b in zip(torch.split(x, max_batch), torch.split(prediction, max_batch), strict=True)
        ]
    )
    attacked = attacks.manipulate(
        model,
        x[:n],
        target_map=attacks.frame(x.shape[2], x.shape[3], config.frame),
        epsilon=config.manipulation_epsilon / 255,
        iterations=config.manipulation_iterations,
        labels=prediction[:n],
        batch_size=max_batch if wide else 64,
    )
    values["aam/kept"] = attacked.kept.double()
    for side in ("original", "target"):
        for name in ("cosine", "pearson", "ssim"):
            values[f"aam/{side}/{name}"] = getattr(getattr(attacked, side), name)
    moved = heatmap(attribution(model, attacked.images, prediction[:n]), "max")
    curve = partial(metrics.insertion, model, fractions=config.fractions)
    values["insertion"] = curve(x, y, clean).area
    values["deletion"] = metrics.deletion(model, x, y, clean, fractions=config.fractions).area
    values["adversarial_insertion"] = curve(x[:n], y[:n], moved).area
    return Measured(
        accuracy=right / len(test),
        test_images=len(test),
        values={name: v.double().cpu().numpy() for name, v in values.items()},
        dataset={"name": public_name(config.dataset), "split": "test", **drawn.provenance},
    )


# --------------------------------------------------------------------------------------------------------------------
# Grids and their records


class Grid(BaseModel):
    """A YAML file: one training that varies in objective and seed, and one evaluation.

    Attributes:
        description: what the grid is and at which scale, in a sentence.
        training: what all runs share; objective, options and seed are the grid's.
        objectives: names, each with its options (or none).
        seeds: how often each is trained.
        evaluation: what is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    training: dict[str, Any]
    objectives: dict[ObjectiveName, dict[str, float] | None]
    seeds: tuple[int, ...]
    evaluation: Evaluation = Evaluation()

    def runs(self) -> Iterator[tuple[str, Training]]:
        """Name and configuration of every run; a name is ``<objective>-<seed>``."""
        for seed in self.seeds:
            for objective in self.objectives:
                yield f"{objective}-{seed}", self.run(objective, seed)

    def configuration(self, run: str) -> list[dict[str, Any]]:
        """All that a run's record depends on, as JSON."""
        return [m.model_dump(mode="json") for m in (dict(self.runs())[run], self.evaluation)]

    def run(self, objective: str, seed: int) -> Training:
        """The configuration of one run."""
        options = dict(self.objectives).get(objective) or {}  # type: ignore[call-overload]
        return Training.model_validate(self.training | {"objective": objective, "options": options, "seed": seed})


def load_grid(path: Path | str) -> Grid:
    """Read and check a grid.

    Raises:
        ValueError: it is not one; one line names the file and the field.
    """
    try:
        grid = Grid.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        for _ in grid.runs():
            pass
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path}: not a grid ({' '.join(str(error).split())})") from None
    return grid


def save_record(record: Record, path: Path | str) -> None:
    """Write a record: what was run as JSON to ``path``, and the numbers beside it as JSON lines.

    The lines are :class:`robattr.studies.records.Measurement`, rounded to five significant digits. The JSON comes
    last: where
    it is, the record is whole.
    """
    path = Path(path)
    records.write(path.with_suffix(".jsonl"), measurements(record, f"{path.parent.name}/{path.stem}"))
    content = {
        "experiment": "alignment",
        "training": record.training.model_dump(mode="json"),
        "evaluation": record.evaluation.model_dump(mode="json"),
        "history": [asdict(epoch) for epoch in record.history],
        "best": record.best,
        "weights": record.weights,
        "provenance": record.provenance,
    }
    records.write_description(path, content)


_UNITS = {
    "accuracy": "share of images",
    "correct": "share of images",
    "kept": "share of images",
    "violated": "share of points",
    "insertion": "probability",
    "deletion": "probability",
    "adversarial_insertion": "probability",
    "hessian_product": "logits per pixel value",
    "gradient_norm": "logits per pixel value",
    "l2_distance": "logits per pixel value",
    "step": "times that of cross-entropy",
}


def measurements(record: Record, run: str) -> list[Measurement]:
    """The numbers of a record in the format of all records.

    Args:
        record: of a training.
        run: its name, ``<grid>/<objective>-<seed>``.
    """
    c, e, measured = record.training, record.evaluation, record.provenance["evaluation"]
    dataset = measured["dataset"]
    context = {
        "run": run,
        "experiment": "alignment",
        "seed": c.seed,
        "model": c.architecture,
        "objective": c.objective,
        "weights_sha256": record.weights.get("sha256"),
        "profile": run.partition("/")[0],
        **records.context(measured),
    }
    drawn = {"dataset": f"{dataset['name']} {dataset['split']}", "dataset_sha256": dataset["sha256"]}
    whole = {"dataset": f"{dataset['name']} {dataset['split']}, all"}
    found = [
        Measurement(
            quantity="accuracy",
            value=record.accuracy,
            unit=_UNITS["accuracy"],
            n=record.test_images,
            **context,
            **whole,
        )
    ]
    for name, values in record.values.items():
        kind, _, rest = name.partition("/")
        epsilon = None
        if kind in ("rps", "curvature"):
            epsilon = float(rest.split("/")[-2])
        elif kind in ("aam", "adversarial_insertion"):
            epsilon = e.manipulation_epsilon
        perturbed = {} if epsilon is None else {"epsilon": epsilon / 255, "norm": "linf"}
        unit = _UNITS.get(name.rpartition("/")[2], "1")
        found.append(records.of_values(context | drawn | perturbed, name, values, unit=unit))
    return found


def load_record(path: Path | str) -> Record:
    """Read what :func:`save_record` wrote.

    Raises:
        ValueError: the files hold something else; one line names them.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["experiment"] != "alignment":
            raise ValueError(f"experiment is {content['experiment']!r}")
        numbers = {m.quantity: m for m in records.read(path.with_suffix(".jsonl"))}
        accuracy = numbers.pop("accuracy")
        return Record(
            training=Training.model_validate(content["training"]),
            evaluation=Evaluation.model_validate(content["evaluation"]),
            history=tuple(Epoch(**epoch) for epoch in content["history"]),
            best=content["best"],
            accuracy=accuracy.value,
            test_images=accuracy.n,
            values={name: np.asarray(m.values, dtype=np.float64) for name, m in numbers.items()},
            weights=content["weights"],
            provenance=content["provenance"],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a record of a training ({' '.join(str(error).split())})") from None


def load_records(folder: Path | str) -> list[Record]:
    """Every record of a folder, in the order of :data:`OBJECTIVES` and seeds.

    Raises:
        ValueError: there is none, or a file holds something else.
    """
    found = [load_record(path) for path in sorted(Path(folder).glob("*.json"))]
    if not found:
        raise ValueError(f"{folder} has no records; `make reference GRID={Path(folder).name}` makes them")
    return sorted(found, key=lambda r: (OBJECTIVES.index(r.training.objective), r.training.seed))


def load_model(record: Record, folder: Path | str) -> Classifier:
    """The network that a record measured, in evaluation mode, its parameters constants.

    Args:
        record: with the name and checksum of a weights file.
        folder: of the record.

    Raises:
        ModelError: the weights were not kept, or the file is not the one that was measured.
    """
    c = record.training
    if "file" not in record.weights:
        raise models.ModelError(
            f"{c.objective}, seed {c.seed}: its weights were not kept; train it again with `make reference`"
        )
    path = Path(folder) / record.weights["file"]
    if not path.is_file() or file_digest(path) != record.weights["sha256"]:
        raise models.ModelError(f"{path} is missing or not the file that was measured; restore it, or train it again")
    return c.build(weights=path).requires_grad_(False)


@dataclass(frozen=True)
class Spread:
    """A measure over the seeds of one objective.

    Attributes:
        mean: of the runs' means over images.
        each: the mean over images of every run, by seed.
        images: in every run.
    """

    mean: float
    each: dict[int, float]
    images: int

    @property
    def low(self) -> float:
        """The smallest run."""
        return min(self.each.values())

    @property
    def high(self) -> float:
        """The largest run."""
        return max(self.each.values())


def spread(runs: Sequence[Record], measure: str) -> dict[str, Spread]:
    """A measure by objective: ``accuracy``, the name of a value, or ``history/<field>`` of the selected epoch.

    Raises:
        ValueError: a record has no such measure; those that it has are named.
    """
    found: dict[str, Spread] = {}
    for objective in dict.fromkeys(record.training.objective for record in runs):
        each, images = {}, 0
        for record in (r for r in runs if r.training.objective == objective):
            if measure == "accuracy":
                value, images = record.accuracy, record.test_images
            elif measure.startswith("history/"):
                value = float(getattr(record.history[record.best - 1], measure.removeprefix("history/")))
            elif measure in record.values:
                value, images = float(record.values[measure].mean()), len(record.values[measure])
            else:
                raise ValueError(f"no measure {measure!r} (there are accuracy, {', '.join(record.values)})")
            each[record.training.seed] = value
        found[objective] = Spread(sum(each.values()) / len(each), each, images)
    return found


def alignment_at(record: Record, cross_entropy: float) -> float | None:
    """The alignment of a run when its training cross-entropy last fell through a value.

    Networks loosen while they learn, so two objectives are compared at the same training loss. Interpolated linearly
    between the epochs at which the alignment was measured; None where the loss never got there.
    """
    measured = [(e.cross_entropy, e.alignment) for e in record.history if e.alignment is not None]
    for (before, a), (after, b) in reversed(list(itertools.pairwise(measured))):
        if before >= cross_entropy >= after and before > after:
            return a + (b - a) * (before - cross_entropy) / (before - after)
    return None


def step_seconds(
    configs: Sequence[Training], *, batch_size: int = 128, repeats: int = 5, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Seconds of one training step (forward, backward, clipping, optimizer) of each objective, float32.

    The median of ``repeats`` rounds; the objectives take turns in every round, so that what slows the machine down
    slows all of them down. Random images of the model's own size.
    """
    times = _step_times(configs, batch_size, repeats, device)
    return {name: float(np.median(values)) for name, values in times.items()}


def step_cost(
    config: Training, *, batch_size: int = 128, repeats: int = 5, device: torch.device | str = "cpu"
) -> NDArray[np.float64] | None:
    """The time of a training step as a multiple of that of cross-entropy, [repeats]; None for cross-entropy itself."""
    if config.objective == "cross-entropy":
        return None
    plain = config.model_copy(update={"objective": "cross-entropy", "options": {}})
    times = _step_times([plain, config], batch_size, repeats, device)
    ratios: NDArray[np.float64] = np.array(times[config.objective]) / np.array(times["cross-entropy"])
    return ratios


def _step_times(
    configs: Sequence[Training], batch_size: int, repeats: int, device: torch.device | str
) -> dict[str, list[float]]:
    device = torch.device(device)
    steps: dict[str, Callable[[], None]] = {}
    for config in configs:
        model = config.build().to(device)
        objective = config.objective_for(model).to(device).train().to(memory_format=torch.channels_last)
        steps[config.objective] = training.step_of(objective, config.schedule, batch_size)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first one also warms up
                times[name].append(time.perf_counter() - started)
    return times


def run_record(
    grid: Grid,
    objective: str,
    seed: int,
    path: Path | str,
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    compute: Compute | None = None,
    keep_weights: bool = True,
    timed: bool = True,
    progress: bool = True,
) -> Record | None:
    """Train (or load) one run of a grid, measure it, and write its record to ``path``.

    With several devices the first process measures and writes; the others return None. Where other work goes on beside
    this one, a step is better not ``timed``.

    The weights that are measured are the ones that are kept: rounded to float16, in ``weights/<name>.safetensors``
    beside the record, so that everybody can measure them again.
    """
    path = Path(path)
    trained = run_training(
        grid.run(objective, seed), root=root, data_root=data_root, compute=compute, progress=progress
    )
    if not _is_first():
        return None
    rounded = {name: v.half() if v.is_floating_point() else v for name, v in trained.model.state_dict().items()}
    trained.model.load_state_dict(rounded)
    started = time.monotonic()
    # "gpu" and "auto" are Fabric's words.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if compute is not None and compute.accelerator not in ("auto", "gpu"):
        device = compute.accelerator
    measured = evaluate(trained.model, grid.evaluation, data_root=data_root, device=device)
    if timed and (cost := step_cost(trained.config, device=device)) is not None:
        measured.values["cost/step"] = cost
    kept = path.parent / "weights" / f"{path.stem}.safetensors"
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}")
    save_file({name: v.cpu().contiguous() for name, v in rounded.items()}, temporary)
    weights = {"sha256": file_digest(temporary)}
    if keep_weights:
        temporary.replace(kept)
        weights["file"] = f"weights/{kept.name}"
    else:
        temporary.unlink()
    record = Record(
        training=trained.config,
        evaluation=grid.evaluation,
        history=trained.history,
        best=trained.best,
        accuracy=measured.accuracy,
        test_images=measured.test_images,
        values=measured.values,
        weights=weights,
        provenance={
            "training": trained.provenance,
            "evaluation": {
                "dataset": measured.dataset,
                "device": device,
                "code": code_digest(*_MEASURED),
                "threads": torch.get_num_threads(),
                "tf32": device != "cpu" and torch.backends.cudnn.allow_tf32,
                "seconds": round(time.monotonic() - started, 3),
                **environment(),
            },
        },
    )
    save_record(record, path)
    return record


_MEASURED = ("data", "models", "_second_order", "attributions", "metrics", "attacks", "studies/alignment")
