"""Trained networks: a configuration, its key, and the folder in which the result is kept.

A training is loaded where it exists and made where it does not. Its key covers the configuration, what the code that
trains does (wherever it stands) and the contents of a reader's pictures. The folder ``training-<key>`` holds
configuration, history, weights and provenance, with a digest of each; what does not match is made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robattr import data, models, regularizers, training
from robattr._files import free, intact, locked, store, write_tensors
from robattr.data import ImageSet, ImageStream
from robattr.models import Classifier
from robattr.regularizers import Objective
from robattr.studies.runs import code_digest, environment, files_digest, public_name
from robattr.training import Compute, Epoch, Schedule

__all__ = [
    "OBJECTIVES",
    "TrainedModel",
    "Training",
    "is_first",
    "projected_hours",
    "recorded_step",
    "run_training",
    "run_trainings",
    "step_bytes",
    "step_cost",
    "step_seconds",
]

ObjectiveName = Literal[
    "cross-entropy", "hessian", "l2", "cosine", "l2+cosine", "attribution-adversary", "adversarial-training"
]

# Weights of Joo et al. 2023, in their unit; ours for the two baselines that the paper does not have.
_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "lenet": {"hessian": 1e-3, "l2": 0.01, "cosine": 1.0},
    "resnet18-cifar": {"hessian": 1e-4, "l2": 0.01, "cosine": 0.1},
    "torchvision:resnet18": {"hessian": 1e-3, "l2": 1.0, "cosine": 0.01},  # on ImageNet-100
}
# As grids and records of earlier versions say it, or as it is written as well.
_RENAMED = {"resnet18": "resnet18-cifar", "torchvision/resnet18": "torchvision:resnet18"}
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


def _fits_option(name: str, value: float) -> bool:
    if not math.isfinite(value):
        return False
    if name == "steps":
        return value >= 1 and value == int(value)
    return value > 0 if name == "epsilon" else value >= 0


def _accepted(option: str) -> str:
    return {"steps": "whole numbers, at least 1", "epsilon": "numbers > 0, in 1/255"}.get(option, "numbers >= 0")


def _named_now(model: Any) -> Any:
    return _RENAMED.get(model, model) if isinstance(model, str) else model


class Training(BaseModel):
    """What to train, on what, and how.

    ``model`` may be a reader's own, ``path/to/module.py:function``: that file is **run** when the network is built, if
    it is named besides, see :func:`robattr.models.allowed`. Its function gets ``num_classes`` where it has a parameter
    of that name, and normalizes within the network.

    ``options`` are the objective's weights and radius; what is not given is the published value for the model. Epsilon
    is in 1/255.

    Raises:
        pydantic.ValidationError: a value is not what the field accepts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    seed: int = Field(0, ge=0, lt=2**32)

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
        for option, value in given.items():
            if isinstance(value, (int, float)) and not _fits_option(option, value):
                raise ValueError(f"options has {option} = {value}; accepted are {_accepted(option)}")
        published = {"epsilon": 4.0, "steps": 2.0} | dict(
            _WEIGHTS.get(_named_now(values.get("model", "lenet")), _WEIGHTS["lenet"])
        )
        return values | {"options": {option: float(given.get(option, published[option])) for option in accepted}}

    @model_validator(mode="after")
    def _fits(self) -> Training:
        if self.schedule.augment and data.image_shape(self.dataset, self.size)[1] == 1:
            raise ValueError(f"schedule.augment is true; {self.dataset} is a table, without crops and flips")
        return self

    @property
    def key(self) -> str:
        """As :meth:`key_under` the default data root."""
        return self.key_under(None)

    def key_under(self, data_root: Path | str | None) -> str:
        """Twelve hexadecimal digits of the configuration, the code that computes its result and the reader's files.

        Of those, what is trained on and selected by: a test picture is removed or replaced without training again.
        """
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        text += self.code + files_digest(self.dataset, split="train", data_root=data_root)
        text += "".join(models.code_digests(self.model).values())
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def code(self) -> str:
        """A digest of what the code does that draws the images, builds the network and trains with this objective."""
        return code_digest(training.train, Training.sets, Training.build, _OBJECTIVES[self.objective])

    @property
    def public(self) -> Training:
        """With a ``folder:`` and a file of code by their own names: the paths are nobody else's business."""
        return self.model_copy(update={"dataset": public_name(self.dataset), "model": models.public_name(self.model)})

    @property
    def architecture(self) -> str:
        """Model and activation in words: ``lenet, softplus(3)``."""
        if self.model == "linear":
            return self.model
        activation = f"softplus({self.beta:g})" if self.activation == "softplus" else self.activation
        return f"{models.public_name(self.model)}, {activation}"

    def sets(self, root: Path | str | None = None) -> tuple[ImageSet | ImageStream, ImageSet | ImageStream]:
        """Training and validation images: disjoint draws from the training split; a large set stays in its files."""
        limit = None if self.images is None else self.images + self.validation
        streamed = data.is_streamed(self.dataset)
        load: Callable[..., ImageSet | ImageStream] = data.stream if streamed else data.load
        loaded = load(self.dataset, "train", root=root, limit=limit, seed=self.seed, size=self.size)
        if limit is None:
            loaded = loaded.subset(len(loaded), self.seed)
        n = len(loaded) - self.validation
        if n < 1:
            raise ValueError(f"validation is {self.validation}; {self.dataset} has {len(loaded)} training images")
        return loaded.select(torch.arange(n)), loaded.select(torch.arange(n, len(loaded)))

    def build(self, num_classes: int | None = None, *, weights: Path | str = "random") -> Classifier:
        """The network for these images; with its initial weights, which depend on the seed, or with those of a file."""
        models.check_allowed(self.model, "a training")
        name = _named_now(self.model)
        return models.build(
            name,
            activation=self.activation,
            beta=self.beta,
            weights=weights,
            num_classes=num_classes,
            input_size=None if name.startswith("efficientnet-lite") else data.image_shape(self.dataset, self.size),
            seed=self.seed,
        )

    def objective_for(self, model: Classifier) -> Objective:
        """The objective around a model."""
        return _OBJECTIVES[self.objective](model, self.options)


# One function an objective: what another one does is none of a training's business, nor of its key's.


def _cross_entropy(model: Classifier, options: Mapping[str, float]) -> Objective:
    return regularizers.CrossEntropy(model)


def _hessian(model: Classifier, options: Mapping[str, float]) -> Objective:
    return regularizers.HessianPenalty(model, weight=options["hessian"])


def _alignment(model: Classifier, options: Mapping[str, float]) -> Objective:
    return regularizers.GradientAlignment(
        model, l2=options.get("l2", 0.0), cosine=options.get("cosine", 0.0), epsilon=options["epsilon"] / 255
    )


def _attribution_adversary(model: Classifier, options: Mapping[str, float]) -> Objective:
    return regularizers.AttributionAdversary(
        model, weight=options["cosine"], epsilon=options["epsilon"] / 255, steps=int(options["steps"])
    )


def _adversarial_training(model: Classifier, options: Mapping[str, float]) -> Objective:
    return regularizers.AdversarialTraining(model, epsilon=options["epsilon"] / 255, steps=int(options["steps"]))


_OBJECTIVES: Mapping[str, Callable[[Classifier, Mapping[str, float]], Objective]] = {
    "cross-entropy": _cross_entropy,
    "hessian": _hessian,
    "l2": _alignment,
    "cosine": _alignment,
    "l2+cosine": _alignment,
    "attribution-adversary": _attribution_adversary,
    "adversarial-training": _adversarial_training,
}


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
    folder = Path(root) / f"training-{config.key_under(data_root)}"
    first = is_first()
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
    sets: dict[str, tuple[ImageSet | ImageStream, ImageSet | ImageStream]] | None = None,
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
            folder = Path(root) / f"training-{config.key_under(data_root)}"
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
        return {
            config.key_under(data_root): each
            for (config, _), each in zip(taken, found, strict=True)
            if isinstance(each, Exception)
        }


def _keep(
    folder: Path,
    config: Training,
    result: training.TrainingResult,
    images: ImageSet | ImageStream,
    validation: ImageSet | ImageStream,
    compute: Compute,
) -> None:
    """Write a result, and what it depends on, to its folder."""
    provenance = {
        "dataset": {"name": public_name(config.dataset), "split": "train", **images.provenance},
        "validation": dict(validation.provenance),
        **_unreadable(images, validation),
        "code": config.code,
        **({"network": digests} if (digests := models.code_digests(config.model)) else {}),
        "device": _device(compute),
        "compute": asdict(compute),
        "tf32": _device(compute) != "cpu" and torch.backends.cudnn.allow_tf32,
        "threads": torch.get_num_threads(),
        "seconds": result.seconds,
        **environment(),
    }

    def write(temporary: Path) -> None:
        write_tensors(temporary / "weights.safetensors", result.weights)
        write_tensors(temporary / "last.safetensors", result.last)
        (temporary / "history.jsonl").write_text(training.history_text(result.history), encoding="utf-8")
        content = {
            "config": config.model_dump(mode="json"),
            "best": result.best,
            "classes": len(images.class_names),
            "provenance": provenance,
        }
        (temporary / "training.json").write_text(json.dumps(content, indent=1), encoding="utf-8")

    store(folder, write)


def _unreadable(*sets: ImageSet | ImageStream) -> dict[str, Any]:
    """How many images could not be read, and which: where training went on without them."""
    named = sorted({name for each in sets if isinstance(each, ImageStream) for name in each.unreadable})
    return {"unreadable": {"images": len(named), "names": named}} if named else {}


def _load(folder: Path, config: Training) -> TrainedModel | None:
    """The stored training; None where there is none, or where what there is is damaged."""
    if not intact(folder):
        return None
    try:
        content = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        if Training.model_validate(content["config"]) != config:
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


def is_first() -> bool:
    """Whether this is the only process, or the first of those that train together, by what their launcher has set."""
    # SLURM sets its variable for interactive shells as well: it counts where nothing else says anything.
    ranks = [os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ]
    return (not ranks or int(ranks[0]) == 0) and int(os.environ.get("NODE_RANK", 0)) == 0


# --------------------------------------------------------------------------------------------------------------------
# What a step costs


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


def step_bytes(configs: Sequence[Training], *, batch_size: int) -> dict[str, int]:
    """Bytes that one training step of each objective holds for its derivatives, where it holds the most.

    Whatever autograd keeps between a layer and its derivative, on the CPU; memory that several layers keep counts once,
    and that of weights, which is there anyway, does not. It grows with the batch in proportion. What a device needs
    besides, for results in between and for its convolutions, comes on top.
    """
    found: dict[str, int] = {}
    for config in configs:
        objective = config.objective_for(config.build()).train().to(memory_format=torch.channels_last)
        step = training.step_of(objective, config.schedule, batch_size)
        ledger = _Ledger({p.untyped_storage().data_ptr() for p in (*objective.parameters(), *objective.buffers())})
        with torch.autograd.graph.saved_tensors_hooks(ledger.keep, _Kept.tensor_of):
            step()
        found[config.objective] = ledger.most
    return found


class _Ledger:
    """How many bytes are kept, each once."""

    def __init__(self, there: set[int]) -> None:
        self.there = there  # anyway
        self.times: dict[int, int] = {}
        self.now = self.most = 0

    def keep(self, tensor: Tensor) -> _Kept:
        return _Kept(self, tensor)


class _Kept:
    """A tensor that is kept for a derivative, until that is over."""

    def __init__(self, ledger: _Ledger, tensor: Tensor) -> None:
        # Without its graph: a graph that keeps itself would never end.
        self.ledger, self.tensor = ledger, tensor.detach()
        storage = tensor.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        if self.place not in ledger.there:
            ledger.times[self.place] = ledger.times.get(self.place, 0) + 1
            if ledger.times[self.place] == 1:
                ledger.now += self.size
                ledger.most = max(ledger.most, ledger.now)

    def tensor_of(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        if self.place not in self.ledger.there:
            self.ledger.times[self.place] -= 1
            if self.ledger.times[self.place] == 0:
                self.ledger.now -= self.size


def recorded_step(config: Training, history: Sequence[Epoch]) -> float:
    """Seconds of a training step by the history of a training: of its median epoch, with its validation, a share.

    Wall time: whatever shared the machine with the training is in it.

    Raises:
        ValueError: the training took all images, and does not say how many these are.
    """
    if config.images is None:
        raise ValueError("images is None; a step is known of trainings that say how many images they took")
    return float(np.median([epoch.seconds for epoch in history])) / (config.images // config.schedule.batch_size)


def projected_hours(config: Training, images: int, step: float) -> float:
    """Hours that all epochs of a training take.

    Args:
        config: with its schedule.
        images: how many it trains on.
        step: seconds of one of its steps.
    """
    return config.schedule.epochs * (images // config.schedule.batch_size) * step / 3600
