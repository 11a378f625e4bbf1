"""What a model makes of a data set: the images whose explanations can be studied are those that it classifies right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robattr import data, models
from robattr.data import ImageSet
from robattr.models import Classifier

__all__ = ["FIELDS", "Subject", "check_classes", "load_subject", "names_of", "resolve", "specification", "subject_of"]

FIELDS = ("name", "weights", "num_classes", "class_names", "input_size", "mean", "std")
"""Of a network in a mapping; all but the name may be left out."""


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


def specification(
    model: str | Mapping[str, Any],
    dataset: str | None = None,
    *,
    split: str = "test",
    data_root: Path | str | None = None,
    lenient: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """What a network is, as arguments of :func:`robattr.models.build`. No code is run, no weights are read.

    Args:
        model: a name, or a mapping of ``name`` and any of ``weights``, ``num_classes``, ``class_names``,
            ``input_size``, ``mean`` and ``std``.
        dataset: what is left out and the images say is taken from them: the size where they have one of their own, the
            number of classes of a network with random weights.
        split: of the data set.
        data_root: see :func:`robattr.data.load`, also for ``lenient``.
        options: the same as in a mapping, by name; None for what is not given.

    Raises:
        ValueError: the name is unknown, a file is not there, an argument is unknown or given twice.
        DataError: there are no such data.
    """
    fields: dict[str, Any] = {"name": model}
    if not isinstance(model, str):
        fields = dict(model) if isinstance(model, Mapping) else {}
    if unknown := [str(key) for key in fields if key not in FIELDS]:
        raise ValueError(f"model has {', '.join(unknown)}; accepted are {', '.join(FIELDS)}")
    if not isinstance(fields.get("name"), str):
        raise ValueError(f"model is {model!r}; accepted is a name, or a mapping with a name")
    for key, value in options.items():
        if value is not None:
            if fields.get(key) is not None:
                raise ValueError(f"{key} is {value!r}, and {fields[key]!r} in model; give it once")
            fields[key] = value
    fields = {key: value for key, value in fields.items() if value is not None}
    models.check_name(fields["name"])
    for key in ("weights", "class_names"):
        path = fields.get(key)
        if isinstance(path, (str, Path)) and str(path) != "random" and not Path(path).expanduser().is_file():
            raise ValueError(f"{key} is {path}; there is no such file")
    if dataset is not None:
        own = models.names_code(fields["name"]) or models.takes_input_size(fields["name"])
        if own and data.has_own_size(dataset):
            fields.setdefault("input_size", list(data.image_shape(dataset)))
        weights = fields.get("weights")
        if (weights == "random" or (own and weights is None)) and "class_names" not in fields:
            first = data.load(dataset, split, root=data_root, limit=1, lenient=lenient)
            fields.setdefault("num_classes", len(first.class_names))
    return fields


def resolve(
    model: str | Mapping[str, Any],
    dataset: str,
    *,
    split: str = "test",
    images: int | None = None,
    seed: int = 0,
    data_root: Path | str | None = None,
    activation: models.Activation = "relu",
    beta: float = 10.0,
    labelled: bool = True,
    lenient: bool = False,
    **options: Any,
) -> tuple[Classifier, ImageSet]:
    """A network and pictures for it, from what a reader says of both; all is checked before the pictures are read.

    Of a network with names of its classes from a file, or one from a file of code that has them, the classes of the
    pictures are found by name, whatever their order and however many of them are there. Of others the classes of the
    pictures must be as many, in the same order.

    Args:
        model: ``path/to/module.py:function``, which **runs that file**, or another name that
            :func:`robattr.models.build` takes; or a mapping, see :func:`specification`.
        dataset: see :func:`robattr.data.load`, also for ``split``, ``seed`` and ``data_root``; ``folder:PATH`` for
            pictures of one's own.
        images: number of images drawn; None for all.
        activation: see :func:`robattr.models.build`, also for ``beta``.
        labelled: whether the pictures' classes must be as many as the network's, where they are not found by name.
        lenient: see :func:`robattr.data.load`.
        options: ``weights``, ``class_names``, ``num_classes``, ``input_size``, ``mean`` and ``std``, see
            :func:`robattr.models.build`; None for what is not given. Where nothing says the number of classes, it is
            that of the pictures; where nothing says the size, that of a data set with a size of its own.

    Returns:
        The classifier, in evaluation mode, its parameters constants, on the CPU; and the images at its size, with
        labels that are the network's classes.

    Raises:
        ValueError: classes, channels, size or an argument that do not fit; one line says which.
        DataError, ModelError: data or weights cannot be had; the reader's code fails.
    """
    fields = specification(model, dataset, split=split, data_root=data_root, lenient=lenient, **options)
    built = models.build(**fields, activation=activation, beta=beta).requires_grad_(False)
    # One picture says what the classes are, and that the network takes what it will get.
    load = partial(models.load_images, built, dataset, split, root=data_root, seed=seed, lenient=lenient)
    first = load(limit=1)
    if labelled:
        check_classes(built, first)
    models.check_pass(built, first.images)
    return built, load(limit=images)


def check_classes(model: Classifier, found: ImageSet) -> None:
    """Refuse images whose classes are not those of a network, as far as numbers say.

    Raises:
        ValueError: they are fewer or more.
    """
    if len(found.class_names) != model.num_classes:
        if foreign := data.foreign_wordnet_ids(found.class_names):
            raise ValueError(
                f"{found.name} has the folder {foreign[0]!r}, which is no WordNet id of ImageNet's 1,000 classes; "
                f"{model.name} has {model.num_classes} classes: rename the folder, or take it away"
            )
        known = [f"{name} is {wnid}" for name, wnid in data.wordnet_ids_of(found.class_names).items()]
        raise ValueError(
            f"{found.name} has {len(found.class_names)} classes and {model.name} has {model.num_classes}; choose a "
            "model that was trained on these classes, give the names of its classes (class_names), or name the folders "
            "of ImageNet's classes by their WordNet ids" + (f" ({', '.join(known[:10])})" if known else "")
        )


def names_of(model: Classifier, dataset: str, found: ImageSet) -> tuple[str, ...]:
    """What a network's classes are called: by its own names, else by those of the data set, else by number.

    The folders of a reader name what is seen in their pictures, not what another network can say of them.

    Args:
        model: the classifier.
        dataset: as :func:`robattr.data.load` takes it.
        found: its images.
    """
    if model.class_names:
        return model.class_names
    if dataset.startswith("folder:") or len(found.class_names) != model.num_classes:
        return tuple(f"class {number}" for number in range(model.num_classes))
    return found.class_names


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
    check_classes(model, loaded)
    return _subject(model, loaded, batch_size)


def _subject(model: Classifier, loaded: ImageSet, batch_size: int) -> Subject:
    device = next(model.buffers()).device
    with torch.no_grad():
        parts = [model(part.to(device)).softmax(1).cpu() for part in torch.split(loaded.images, batch_size)]
    probability, prediction = torch.cat(parts).max(1)
    return Subject(loaded, model, prediction, probability, prediction == loaded.labels)


def load_subject(
    dataset: str,
    model: str | Mapping[str, Any],
    *,
    split: str = "test",
    images: int | None = None,
    seed: int = 0,
    weights: str | None = None,
    data_root: Path | str | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> Subject:
    """As :func:`subject_of`, of a model by its name, or of a reader's own, see :func:`resolve`.

    Args:
        model: see :func:`resolve`, also for ``weights``.
        device: where the model goes.

    Raises:
        ValueError: see :func:`resolve`.
        DataError, ModelError: data or weights cannot be had.
    """
    network, loaded = resolve(
        model, dataset, split=split, images=images, seed=seed, weights=weights, data_root=data_root
    )
    return _subject(network.to(device), loaded, batch_size)
