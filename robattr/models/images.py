"""Images at the size that a network takes, with its classes as labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from robattr import data
from robattr.data import ImageSet
from robattr.models.classifier import Classifier
from robattr.models.code import names_code
from robattr.models.networks import takes_input_size


def load_images(
    model: Classifier,
    dataset: str,
    split: str = "test",
    *,
    root: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    lenient: bool = False,
) -> ImageSet:
    """Images at the size that a network was made for; see :func:`robattr.data.load`.

    Digits and CIFAR-10 keep their own size for EfficientNet-Lite and torchvision's networks, which are fully
    convolutional. Where the network's classes have names that a reader gave, those of the images are found among them,
    whatever their order and however few they are.

    Raises:
        ValueError: the network takes other channels than the images have, or images that are not square, or has not the
            class of an image.
        DataError: the data cannot be had.
    """
    own = data.image_shape(dataset)
    channels, height, width = model.input_size
    if own[0] != channels:
        raise ValueError(f"{dataset} has images with {own[0]} channels; {model.name} takes {channels}")
    sized = takes_input_size(model.name) or names_code(model.name) or model.name.startswith("timm:")
    keeps = model.input_size == own or (data.has_own_size(dataset) and not sized)
    if not keeps and height != width:
        raise ValueError(f"{model.name} takes {height} x {width} pixels; images of {dataset} are made square")
    size = None if keeps else height
    found = data.load(dataset, split, root=root, limit=limit, seed=seed, size=size, lenient=lenient)
    return labelled(found, model) if model.by_name else found


def labelled(found: ImageSet, model: Classifier) -> ImageSet:
    """Images whose labels are a network's classes, found by name.

    Raises:
        ValueError: the network has no class of such a name.
    """
    place = {each: i for i, each in enumerate(model.class_names)}
    names = found.class_names
    present: Sequence[int] = range(len(names))
    if (ids := data.wordnet_ids(found)) is not None:
        # Photographs of ImageNet stand for all of its classes, by whose names or ids theirs are found.
        present = sorted(set(found.labels.tolist()))
        names = names if all(names[i] in place for i in present) else ids
    for i in present:
        if names[i] not in place:
            close = difflib.get_close_matches(names[i], place, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            shown = ", ".join([*model.class_names[:5], *(["..."] if len(place) > 5 else [])])
            raise ValueError(f"{found.name} has the class {names[i]!r}, which {model.name} has not{hint} ({shown})")
    index = torch.tensor([place.get(each, -1) for each in names])
    return replace(
        found,
        labels=index[found.labels],
        class_names=model.class_names,
        provenance={key: value for key, value in found.provenance.items() if key != "sha256"},
    )
