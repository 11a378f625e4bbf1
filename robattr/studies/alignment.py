"""How still the explanations of a trained network hold: protocol of Joo et al. 2023.

Measured on images that neither the training nor the selection of the weights saw: similarity of heatmaps under random
noise, under adversarial manipulation, insertion before and after, and the curvature that stands behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from robattr import attacks, metrics, models, regularizers
from robattr.attributions import METHODS, heatmap, heatmaps
from robattr.models import Classifier
from robattr.studies.grids import Kind, Measured, Record, Total, check_sizes
from robattr.studies.runs import public_name
from robattr.studies.trainings import Training, step_cost

__all__ = ["KIND", "Alignment", "Spread", "alignment_at", "measure", "spread"]


class Alignment(BaseModel):
    """What is measured on a trained network, and on how many test images. Epsilons are in 1/255.

    Every number of images is a prefix of one draw, so measures share images where they can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _fits(self) -> Alignment:
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"methods has {', '.join(sorted(unknown))}; accepted are {', '.join(METHODS)}")
        if not all(0 < epsilon <= 255 for epsilon in self.epsilons):
            raise ValueError(f"epsilons are {list(self.epsilons)}; accepted are numbers > 0 and <= 255, in 1/255")
        if max(self.method_images, self.manipulated) > self.images:
            raise ValueError(f"images is {self.images}; the other numbers of images are at most that")
        return self


def measure(
    model: Classifier,
    config: Alignment,
    *,
    training: Training | None = None,
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    max_batch: int | None = None,
    timed: bool = True,
    progress: bool = False,
) -> Measured:
    """Accuracy on the whole test split, and every measure, an entry an image.

    The explained class is the model's own prediction for the clean image; the measure ``correct`` says where it is
    right. Insertion and deletion are of the label's probability. Names are ``measure/.../...``; ``cost/step`` has an
    entry a round, see :func:`robattr.studies.trainings.step_cost`.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        config: what is measured.
        training: of the network; None for published weights, which have no cost.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        folder: nothing is kept: this takes minutes.
        max_batch: images in one pass; by default 250, and 1,000 on a GPU; of images above 64 pixels as many as make up
            for their size.
        timed: measure the cost; not where other work goes on beside it.
        progress: nothing is shown.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wide = device.type == "cuda"
    pixels = model.input_size[1]
    max_batch = max_batch or round((1000 if wide else 250) * min(1.0, (64 / pixels) ** 2))
    model = model.to(device).to(memory_format=torch.channels_last)
    test = models.load_images(model, config.dataset, root=data_root)
    # Draws of the split's classes are balanced only on average: the permutation is the data set's own.
    drawn = test.subset(config.images, config.seed)
    x, y = drawn.images.to(device), drawn.labels.to(device)
    rows = 500 if pixels <= 64 else max_batch
    with torch.no_grad():
        right = sum(
            int((model(test.images[i : i + rows].to(device)).argmax(1).cpu() == test.labels[i : i + rows]).sum())
            for i in range(0, len(test), rows)
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
    clean = heatmaps(model, x, prediction, attribution, "max", max_batch=max_batch)
    attacked = attacks.manipulate(
        model,
        x[:n],
        target_map=attacks.frame(x.shape[2], x.shape[3], config.frame),
        epsilon=config.manipulation_epsilon / 255,
        iterations=config.manipulation_iterations,
        labels=prediction[:n],
        batch_size=max_batch if wide else min(max_batch, 64),
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
    if timed and training is not None and (cost := step_cost(training, device=device)) is not None:
        values["cost/step"] = torch.from_numpy(cost)
    return Measured(
        dimension=x[0].numel(),
        values={name: v.double().cpu().numpy() for name, v in values.items()},
        totals={"accuracy": Total(right / len(test), len(test))},
        dataset={"name": public_name(config.dataset), "split": "test", **drawn.provenance},
    )


# --------------------------------------------------------------------------------------------------------------------
# Records

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


def _describe(quantity: str, config: Alignment) -> dict[str, Any]:
    kind, _, rest = quantity.partition("/")
    epsilon = None
    if kind in ("rps", "curvature"):
        epsilon = float(rest.split("/")[-2])
    elif kind in ("aam", "adversarial_insertion"):
        epsilon = config.manipulation_epsilon
    perturbed = {} if epsilon is None else {"epsilon": epsilon / 255, "norm": "linf"}
    return {"unit": _UNITS.get(quantity.rpartition("/")[2], "1"), **perturbed}


def _check(config: Alignment, shape: tuple[int, int, int]) -> None:
    check_sizes(shape, frame=config.frame, fractions=config.fractions)


KIND = Kind("alignment", Alignment, measure, _describe, _check, keeps_weights=True, whole_split=True)
"""What :mod:`robattr.studies.grids` needs to know."""


# --------------------------------------------------------------------------------------------------------------------
# Over seeds


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
    trained = [_training(record) for record in runs]
    for objective in dict.fromkeys(training.objective for training in trained):
        each, images = {}, 0
        for record, training in zip(runs, trained, strict=True):
            if training.objective != objective:
                continue
            if measure in record.totals:
                value, images = record.totals[measure].value, record.totals[measure].n
            elif measure.startswith("history/"):
                value = float(getattr(record.history[(record.best or 1) - 1], measure.removeprefix("history/")))
            elif measure in record.values:
                value, images = float(record.values[measure].mean()), len(record.values[measure])
            else:
                raise ValueError(f"no measure {measure!r} (there are {', '.join((*record.totals, *record.values))})")
            each[training.seed] = value
        found[objective] = Spread(sum(each.values()) / len(each), each, images)
    return found


def _training(record: Record) -> Training:
    if record.training is None:
        raise ValueError(f"{record.name} has published weights; a spread is over the seeds of trained networks")
    return record.training


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


@dataclass(frozen=True)
class SameLoss:
    """The alignment of two runs of one seed at the same training loss.

    Attributes:
        seed: of both.
        cross_entropy: the lowest training loss that both reached at a measured epoch.
        ours: alignment of the run of the objective.
        other: of that of its rival.
    """

    seed: int
    cross_entropy: float
    ours: float
    other: float


def at_the_same_loss(runs: Sequence[Record], of: str, against: str) -> list[SameLoss]:
    """Compare two objectives at the lowest training loss that both reached, a seed each; see :func:`alignment_at`.

    Args:
        runs: trained networks.
        of: an objective.
        against: its rival; seeds that not both have are left out.
    """
    there: dict[tuple[str, int], Record] = {}
    for run in runs:
        training = _training(run)
        there[training.objective, training.seed] = run
    found = []
    for seed in sorted({seed for objective, seed in there if objective == of and (against, seed) in there}):
        pair = there[of, seed], there[against, seed]
        loss = max(min(e.cross_entropy for e in run.history if e.alignment is not None) for run in pair)
        ours, other = (alignment_at(run, loss) for run in pair)
        if ours is not None and other is not None:
            found.append(SameLoss(seed, loss, ours, other))
    return found
