"""How fragile the importance of training samples is: protocol of Ghorbani et al. 2019, influence functions.

The features before a network's last layer are frozen. Test images are perturbed so that the training points that
explain their prediction best lose their influence; what is left of the explanation is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from robattr import influence, models
from robattr.data import ImageStream
from robattr.models import Classifier
from robattr.studies.grids import Kind, Measured
from robattr.studies.runs import public_name
from robattr.studies.trainings import Training

__all__ = ["ATTACKS", "KIND", "Importance", "measure"]

ATTACKS = ("one-step", "iterated", "random-sign")
"""One step of epsilon, as in the paper; several smaller ones for the same objective; random signs, one draw."""


class Importance(BaseModel):
    """What is explained by training samples, and attacked. Epsilons are in 1/255."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = "cifar10"
    images: int = Field(100, ge=1, description="test images")
    points: int | None = Field(
        None, ge=1, description="training points, of those of the training; None for all of them"
    )
    damping: float = Field(0.01, ge=0)
    solver: influence.Solver = Field("exact", description="exact for a last layer of at most 4,096 parameters, or cg")
    top: int = Field(3, ge=1, description="most helpful training points, which the attack is about")
    turnovers: tuple[int, ...] = Field((3, 10), description="how many most helpful points are compared")
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    iterations: int = Field(10, ge=1, description="of the iterated attack")
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _fits(self) -> Importance:
        if min(self.epsilons, default=1) <= 0:
            raise ValueError(f"epsilons are {list(self.epsilons)}; accepted are numbers > 0, in 1/255")
        if self.points is not None and max((self.top, *self.turnovers)) > self.points:
            raise ValueError(f"points is {self.points}; top and turnovers are at most that")
        return self


def layer_of(
    model: Classifier, config: Importance, training: Training, *, data_root: Path | str | None = None
) -> tuple[influence.LastLayer, Tensor, Tensor]:
    """The last layer of a trained network with its training points, and their images and labels."""
    known, _ = training.sets(data_root)
    if isinstance(known, ImageStream):
        raise ValueError(f"dataset is {training.dataset}; importance takes training images that are kept in memory")
    n = len(known) if config.points is None else config.points
    if n > len(known):
        raise ValueError(f"points is {n}; the network was trained on {len(known)}")
    device = next(model.parameters()).device
    images, labels = known.images[:n].to(device), known.labels[:n].to(device)
    layer = influence.LastLayer(
        model,
        images,
        labels,
        damping=config.damping,
        weight_decay=training.schedule.weight_decay,
        solver=config.solver,
    )
    return layer, images, labels


def measure(
    model: Classifier,
    config: Importance,
    *,
    training: Training | None = None,
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    progress: bool = False,
) -> Measured:
    """Attack the importance of training samples of one network.

    The values are, an entry a test image: ``correct``, and for each of :data:`ATTACKS`
    ``<attack>/<epsilon>/<quantity>`` with ``success`` (the prediction was kept), ``rank_correlation`` of the influences
    of all training points before and after, and ``turnover-<k>``, the share of the k most helpful points that is no
    longer among them. A failed attack returns the clean image.

    Args:
        model: images in [0, 1] to logits, in evaluation mode, with a linear layer at its end.
        config: what is measured.
        training: of the network; its images are the training points.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        folder: nothing is kept: this takes a minute.
        progress: nothing is shown.

    Raises:
        ValueError: training is None, or has fewer points than are asked for.
        SolverError: the Hessian is singular or indefinite.
    """
    if training is None:
        raise ValueError("training is None; the importance of training samples needs a network with known ones")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    layer, _, _ = layer_of(model.to(device), config, training, data_root=data_root)
    drawn = models.load_images(model, config.dataset, root=data_root, limit=config.images, seed=config.seed)
    x = drawn.images.to(device)
    with torch.no_grad():
        values = {"correct": (model(x).argmax(1).cpu() == drawn.labels).double().numpy()}
    for epsilon in config.epsilons:
        common: dict[str, Any] = {"epsilon": epsilon / 255, "top": config.top, "seed": config.seed}
        found = {
            "one-step": influence.influence_attack(layer, x, **common),
            "iterated": influence.influence_attack(layer, x, iterations=config.iterations, **common),
            "random-sign": influence.influence_random_sign(layer, x, **common),
        }
        for name, each in found.items():
            values |= {f"{name}/{epsilon:g}/{quantity}": v for quantity, v in compared(each, config).items()}
    return Measured(
        dimension=x[0].numel(),
        values=values,
        dataset={"name": public_name(config.dataset), "split": "test", **drawn.provenance},
    )


def compared(found: influence.InfluenceAttackResult, config: Importance) -> dict[str, NDArray[np.float64]]:
    """What an attack changed, an entry an image, by the quantity's last name; see :func:`measure`."""
    values = {
        "success": found.success,
        "rank_correlation": influence.rank_correlation(found.before, found.after),
        **{f"turnover-{k}": influence.turnover(found.before, found.after, k) for k in config.turnovers},
    }
    return {name: v.double().cpu().numpy() for name, v in values.items()}


def _describe(quantity: str, config: Importance) -> dict[str, Any]:
    _, *rest = quantity.split("/")
    if not rest:
        return {"unit": "share of images"}
    unit = "share of images" if rest[1] == "success" else "share of points" if "turnover" in rest[1] else "1"
    return {"unit": unit, "epsilon": float(rest[0]) / 255, "norm": "linf"}


def _check(config: Importance, shape: tuple[int, int, int]) -> None:
    """Gradients of a last layer are of images of any size."""


KIND = Kind("importance", Importance, measure, _describe, _check)
"""What :mod:`robattr.studies.grids` needs to know."""
