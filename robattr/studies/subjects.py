"""What a model makes of a data set: the images whose explanations can be studied are those that it classifies right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robattr import models
from robattr.data import ImageSet
from robattr.models import Classifier

__all__ = ["Subject", "load_subject", "subject_of"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what it makes of a data set.

    Attributes:
        images: the images that were drawn, on the CPU.
        model: the classifier, in evaluation mode, its parameters constants.
        prediction: int64 [N]; predicted class of each image.
        probability: [N]; probability of the predicted class.
        correct: bool [N]; whether the prediction is the label.
    """

    images: ImageSet
    model: Classifier
    prediction: Tensor
    probability: Tensor
    correct: Tensor

    @property
    def kept(self) -> Tensor:
        """The correctly classified images, on the model's device.

        Raises:
            ValueError: there is none.
        """
        if not self.correct.any():
            raise ValueError(
                f"none of the {len(self.images)} images of {self.images.name} is classified correctly: "
                "there is no prediction whose explanation could be studied"
            )
        return self.images.images[self.correct].to(next(self.model.buffers()).device)

    @property
    def wrong(self) -> int:
        """How many images are left out because their prediction is wrong."""
        return int((~self.correct).sum())


def subject_of(
    model: Classifier,
    dataset: str,
    *,
    split: str = "test",
    images: int | None = None,
    seed: int = 0,
    data_root: Path | str | None = None,
    batch_size: int = 64,
) -> Subject:
    """Load a data set at the size that a model wants, and find out what it classifies correctly.

    Args:
        model: in evaluation mode, on the device where it computes.
        dataset: see :func:`robattr.data.load`, also for ``split``, ``seed`` and ``data_root``.
        images: number of images drawn; None for all.
        batch_size: images in one pass.

    Raises:
        ValueError: the classes of the data set are not those of the model.
        DataError: the data cannot be had.
    """
    loaded = models.load_images(model, dataset, split, root=data_root, limit=images, seed=seed)
    if len(loaded.class_names) != model.num_classes:
        raise ValueError(
            f"{dataset} has {len(loaded.class_names)} classes and the model has {model.num_classes}; choose a model "
            "that was trained on these classes, or name the folders of ImageNet's classes by their WordNet ids"
        )
    device = next(model.buffers()).device
    with torch.no_grad():
        parts = [model(part.to(device)).softmax(1).cpu() for part in torch.split(loaded.images, batch_size)]
    probability, prediction = torch.cat(parts).max(1)
    return Subject(loaded, model, prediction, probability, prediction == loaded.labels)


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
    """As :func:`subject_of`, of a model by its name.

    Args:
        model: see :func:`robattr.models.build`, also for ``weights``.
        device: where the model goes.

    Raises:
        ValueError: see :func:`subject_of`.
        DataError, ModelError: data or weights cannot be had.
    """
    network = models.build(model, weights=weights).to(device).requires_grad_(False)
    return subject_of(
        network, dataset, split=split, images=images, seed=seed, data_root=data_root, batch_size=batch_size
    )
