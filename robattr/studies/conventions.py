"""What a measure says by our conventions and by those of a published protocol, on the same images and networks.

Where this package measures otherwise than Joo et al. 2023 did, a number here is not a number there. What differs: the
class that is explained, the weight of the logits in a manipulation and the iterate that is kept, what a removed pixel
becomes, and the rules of layer-wise relevance propagation. Here each is taken both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robattr import attacks, metrics, models
from robattr.attributions import Attribution, gradient, heatmaps, lrp
from robattr.models import Classifier
from robattr.studies.grids import Kind, Measured, check_sizes
from robattr.studies.runs import public_name
from robattr.studies.trainings import Training

__all__ = ["CONVENTIONS", "KIND", "RULES", "Convention", "Conventions", "measure"]


@dataclass(frozen=True)
class Convention:
    """How a measure is taken.

    Attributes:
        explained: the model's own prediction for the clean image, or the image's label.
        gamma: weight of the map against the logits in a manipulation, from the number of classes.
        iterate: which one of a manipulation is kept.
        fill: what a removed pixel becomes: the image's own mean color, or that of the data set.
    """

    explained: Literal["prediction", "label"]
    gamma: Callable[[int], float]
    iterate: Literal["best", "last"]
    fill: Literal["image", "data set"]


CONVENTIONS = {
    "ours": Convention("prediction", lambda classes: 0.5, "best", "image"),
    # Their term of the logits is a mean over classes where ours is a sum: .5 and .5 / K have the ratio of K and 1.
    "published": Convention("label", lambda classes: classes / (classes + 1), "last", "data set"),
}

RULES: dict[str, Attribution] = {
    "epsilon": lrp,
    "epsilon-plus": partial(lrp, rule="epsilon-plus"),
    "alpha2-beta1": partial(lrp, rule="alpha2-beta1"),
}
"""Layer-wise relevance propagation by the plain rule of this package, and by two composites of the public code."""


class Conventions(BaseModel):
    """What is measured by each convention, and on how many test images. Epsilons are in 1/255."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = "cifar10"
    images: int = Field(200, ge=1)
    epsilon: float = Field(8.0, gt=0, le=255, description="of the random perturbation similarity")
    draws: int = Field(10, ge=1)
    manipulation_epsilon: float = Field(4.0, gt=0, le=255)
    manipulation_iterations: int = Field(100, ge=1)
    frame: int = Field(5, ge=1, description="width of the target frame, in pixels")
    fractions: int = Field(20, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)


def measure(
    model: Classifier,
    config: Conventions,
    *,
    training: Training | None = None,
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    progress: bool = False,
) -> Measured:
    """Every measure by each of :data:`CONVENTIONS`, an entry an image.

    Names are ``<convention>/rps/<epsilon>/cosine``, ``<convention>/aam/original/cosine`` and ``.../target/cosine``,
    ``<convention>/insertion`` and ``<convention>/adversarial_insertion``; ``correct``; and ``lrp/<rule>/rps/<epsilon>/
    cosine`` for each of :data:`RULES`, of the prediction.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        config: what is measured.
        training: not used.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        folder: nothing is kept: this takes minutes.
        progress: nothing is shown.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device)
    drawn = models.load_images(model, config.dataset, root=data_root, limit=config.images, seed=config.seed)
    x, y = drawn.images.to(device), drawn.labels.to(device)
    with torch.no_grad():
        prediction = torch.cat([model(part).argmax(1) for part in torch.split(x, 250)])
    values: dict[str, Tensor] = {"correct": (prediction == y).double()}
    frame = attacks.frame(x.shape[2], x.shape[3], config.frame)
    place = f"rps/{config.epsilon:g}/cosine"
    similarity = partial(
        metrics.random_perturbation_similarity,
        model,
        x,
        epsilon=config.epsilon / 255,
        draws=config.draws,
        seed=config.seed,
        max_batch=250,
    )
    for name, by in CONVENTIONS.items():
        explained = y if by.explained == "label" else prediction
        fill = model.normalize.mean if by.fill == "data set" else None
        values[f"{name}/{place}"] = similarity(explained).cosine
        found = attacks.manipulate(
            model,
            x,
            target_map=frame,
            epsilon=config.manipulation_epsilon / 255,
            gamma=by.gamma(model.num_classes),
            iterations=config.manipulation_iterations,
            iterate=by.iterate,
            labels=explained,
        )
        values[f"{name}/aam/original/cosine"] = found.original.cosine
        values[f"{name}/aam/target/cosine"] = found.target.cosine
        for measure_, images in (("insertion", x), ("adversarial_insertion", found.images)):
            maps = heatmaps(model, images, explained, gradient, "max", max_batch=250)
            curve = metrics.insertion(model, x, y, maps, fractions=config.fractions, fill=fill, max_batch=250)
            values[f"{name}/{measure_}"] = curve.area
    for name, attribution in RULES.items():
        values[f"lrp/{name}/{place}"] = similarity(prediction, attribution=attribution).cosine
    return Measured(
        dimension=x[0].numel(),
        values={name: v.double().cpu().numpy() for name, v in values.items()},
        dataset={"name": public_name(config.dataset), "split": "test", **drawn.provenance},
    )


def _describe(quantity: str, config: Conventions) -> dict[str, Any]:
    if quantity == "correct":
        return {"unit": "share of images"}
    if quantity.endswith("/insertion"):
        return {"unit": "probability"}
    epsilon = config.epsilon if "/rps/" in quantity else config.manipulation_epsilon
    unit = "probability" if quantity.endswith("insertion") else "1"
    return {"unit": unit, "epsilon": epsilon / 255, "norm": "linf"}


def _check(config: Conventions, shape: tuple[int, int, int]) -> None:
    check_sizes(shape, frame=config.frame, fractions=config.fractions)


KIND = Kind("conventions", Conventions, measure, _describe, _check)
"""What :mod:`robattr.studies.grids` needs to know."""
