"""From a name, a split and a size to a set of images in memory."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from robattr.data.cifar10 import (
    CIFAR10_BATCH,
    CIFAR10_CLASSES,
    CIFAR10_FOLDER,
    CIFAR10_RECORD,
    CIFAR10_SHA256,
    _fetch_cifar10,
    _read_cifar10,
)
from robattr.data.pictures import (
    MAX_PIXELS,
    _begun,
    _classes_of,
    _folder_named,
    _imagenet,
    _load_folder,
    _prepared,
    _stacked,
)
from robattr.data.sets import DataError, ImageSet, _Draw
from robattr.data.sources import _NAMED, _check_split, _named, data_root, fetch, is_streamed
from robattr.data.streams import _stream, side_of

_DEFAULT_SIZE = 224
_TESTED = {"digits": 500, "breast-cancer": 190}
_TUMORS = ("malignant", "benign")


def load(
    name: str,
    split: str = "test",
    *,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
    lenient: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> ImageSet:
    """Load a data set into memory. Of ``imagenet-100`` and ``tiny-imagenet-100`` that is what testing takes, at most
    4 GiB, prepared as for testing; training takes `stream`.

    Photographs (``imagenet-samples``, ``folder:``) are made RGB, resized so that the shorter side is
    ``round(size / 0.875)`` (bicubic, antialiased) and cropped to ``size`` x ``size`` about the center. The others have
    a size of their own: 32 for CIFAR-10, 8 for digits.

    ``digits`` is split once and for all into 1,297 training and 500 test images, each class in proportion
    (scikit-learn's ``train_test_split``, random state 0).

    ``cifar10`` is the official binary version. It is read from ``cifar-10-batches-bin`` under the data root; where
    files that the split needs are not there, all missing ones are made as `fetch` makes them.

    ``folder:PATH`` reads ``PATH/<split>/<class>/*`` where there are split folders (``train``, ``val``, ``test``, ...),
    else ``PATH/<class>/*``, all of which is split ``test``. Folders within a class are searched too, and links are
    followed; what is hidden (a name that begins with a dot, as ``.ipynb_checkpoints``) and suffixes that are not of
    images are left out, and counted in ``found`` of the provenance. Pictures are turned upright where EXIF says how the
    camera was held. Classes are the sorted names of the folders, with labels 0, 1, ...
    One exception: where *every* folder is named by the WordNet id of an ImageNet-1k class (``n01440764``), labels are
    ImageNet-1k indices and ``class_names`` its 1,000 names, however few folders there are, so that ImageNet classifiers
    can be used as they are.

    Args:
        name: One of `available`, or ``folder:PATH``.
        split: ``test`` or ``train``; for a folder the name of a split folder.
        root: Data root, see `data_root`; what is not part of a package or a ``folder:`` lies there.
        limit: How many images to take, at random: the first ``limit`` of a permutation seeded by ``seed``, in its
            order. A smaller draw is the beginning of a larger one. ``None`` takes all, in the data set's order.
        seed: Seed of that draw.
        size: Side of the images in pixels. Photographs are prepared at it, 224 if not given; ``digits`` and CIFAR-10
            have 8 and 32, and come as means of blocks where it is smaller, bilinearly enlarged where it is larger. A
            table has none.
        lenient: Take what there is: all images where ``limit`` is above their number, and of a folder's pictures those
            that can be read; ``unreadable`` of the provenance names the others, with a semicolon between.
        max_pixels: A picture of a folder with a larger area is not decoded. Above 178,956,970 there is Pillow's own
            limit besides, ``PIL.Image.MAX_IMAGE_PIXELS``.

    Returns:
        The images, labels, class names and provenance.

    Raises:
        DataError: an unknown name or split, a limit or size out of range, a missing, damaged or unreadable file, no
            network where one is needed.
    """
    draw = _Draw(name, limit, seed, lenient)
    if name.startswith("folder:"):
        if max_pixels < 1:
            raise DataError(f"max_pixels must be at least 1; got {max_pixels}")
        return _load_folder(draw, split, _checked_size(size), max_pixels)
    if is_streamed(name):
        return _stream(draw, split, root, size).read(os.cpu_count() or 1)
    _check_split(name, split, _named(name).splits)
    if name == "imagenet-samples":
        return _load_samples(draw, "imagenet", _imagenet()[1], _checked_size(size))
    if name == "breast-cancer":
        if size is not None:
            raise DataError(f"breast-cancer is a table, without a size; got {size} px (leave it out)")
        return _load_breast_cancer(draw, split)
    if size is not None:
        _checked_size(size)
    if name == "cifar10-samples":
        return _at_size(_load_samples(draw, "cifar10", CIFAR10_CLASSES, None), size)
    if name == "digits":
        return _at_size(_load_digits(draw, split), size)
    return _at_size(_load_cifar10(draw, split, data_root(root)), size)


def drawn_files(name: str, split: str = "test", *, limit: int | None = None, seed: int = 0) -> list[Path]:
    """The pictures that `load` would take from a folder, in its order; none is opened.

    Args:
        name: ``folder:PATH``.
        split: See `load`, also for ``limit`` and ``seed``.

    Raises:
        DataError: another kind of data set, a missing folder or one with fewer pictures.
    """
    if not name.startswith("folder:"):
        raise DataError(f"{name} has no files of its own; accepted is folder:PATH")
    files = _folder_named(name, split).files
    return [files[i][0] for i in _Draw(name, limit, seed).indices(len(files)).tolist()]


def check_pictures(
    name: str,
    split: str = "test",
    *,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> None:
    """Decode the pictures that `load` would take from a folder, a JPEG at an eighth of its size.

    Args:
        name: ``folder:PATH``, or a set that stays in its files, see `stream`.
        split: See `load`, also for ``root``, ``limit`` and ``seed``.

    Raises:
        DataError: see `drawn_files`; or the first picture that `load` would refuse.
    """
    if is_streamed(name):
        drawn = _stream(_Draw(name, limit, seed), split, root, None)
        paths = [drawn.folder / os.fsdecode(each) for each in drawn.names]
    else:
        paths = drawn_files(name, split, limit=limit, seed=seed)
    for path in paths:
        with _begun(path, MAX_PIXELS) as image:
            image.draft(None, (1, 1))
            image.load()


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in a split of a data set, before an image of it is read.

    Attributes:
        images: How many there are.
        class_names: One name per class.
        said: Of a folder, what is read and what is left out, in words; "" of others.
    """

    images: int
    class_names: tuple[str, ...]
    said: str = ""


def contents(name: str, split: str = "test", *, root: str | os.PathLike[str] | None = None) -> Contents:
    """What `load` would find; no image is decoded, nothing is downloaded.

    Args:
        name: See `load`, also for ``split`` and ``root``.

    Raises:
        DataError: an unknown name or split, a missing folder or one without pictures.
    """
    if name.startswith("folder:"):
        folder = _folder_named(name, split)
        return Contents(len(folder.files), _classes_of(folder)[0], folder.said)
    if is_streamed(name):
        streamed = _stream(_Draw(name, None, 0), split, root, None)
        return Contents(len(streamed), streamed.class_names)
    _check_split(name, split, _named(name).splits)
    if name == "imagenet-samples":
        return Contents(len(_sample_files(name, "imagenet")), _imagenet()[1])
    if name == "cifar10-samples":
        return Contents(len(_sample_files(name, "cifar10")), CIFAR10_CLASSES)
    if name == "digits":
        return Contents(_TESTED["digits"] if split == "test" else 1797 - _TESTED["digits"], tuple("0123456789"))
    if name == "breast-cancer":
        tested = _TESTED["breast-cancer"]
        return Contents(tested if split == "test" else 569 - tested, _TUMORS)
    return Contents(CIFAR10_BATCH * (1 if split == "test" else 5), CIFAR10_CLASSES)


def has_own_size(name: str) -> bool:
    """Whether a data set comes in a size of its own; photographs are prepared at the size that is asked for."""
    return name in ("digits", "cifar10", "cifar10-samples", "breast-cancer", "tiny-imagenet-100")


def image_shape(name: str, size: int | None = None) -> tuple[int, int, int]:
    """Channels, height and width of what `load` gives for a name and a size; nothing is read."""
    if name == "breast-cancer":
        return (1, 1, 30)
    if name == "digits":
        return (1, size or 8, size or 8)
    if name in ("cifar10", "cifar10-samples"):
        return (3, size or 32, size or 32)
    side = side_of(name) if size is None and is_streamed(name) else _checked_size(size)
    return (3, side, side)


def _checked_size(size: int | None) -> int:
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel; got {size}")
    return size or _DEFAULT_SIZE


def _load_samples(draw: _Draw, prefix: str, class_names: tuple[str, ...], size: int | None) -> ImageSet:
    """foolbox's ``<prefix>_<number>_<label>.<suffix>``; ``size`` is None for images that are taken as they are."""
    found = _sample_files(draw.name, prefix)
    chosen = [found[i] for i in draw.indices(len(found)).tolist()]
    prepared = "divided by 255" if size is None else _prepared(size)
    return ImageSet(
        images=_stacked([path for path, _ in chosen], size),
        labels=torch.tensor([int(match[1]) for _, match in chosen]),
        class_names=class_names,
        name=draw.name,
        split="test",
        provenance=_NAMED[draw.name].provenance(prepared) | draw.note(len(found)),
    )


def _sample_files(name: str, prefix: str) -> list[tuple[Path, re.Match[str]]]:
    pattern = re.compile(rf"{prefix}_\d+_(\d+)\.(?:jpg|png)")
    return [(path, match) for path in sorted(fetch(name).iterdir()) if (match := pattern.fullmatch(path.name))]


def _load_digits(draw: _Draw, split: str) -> ImageSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(labels)), test_size=_TESTED["digits"], stratify=labels, random_state=0)
    part = parts[("train", "test").index(split)]
    rows = part[draw.indices(len(part)).numpy()]
    return ImageSet(
        images=torch.from_numpy(pixels[rows]).float().reshape(-1, 1, 8, 8) / 16,
        labels=torch.from_numpy(labels[rows]).long(),
        class_names=tuple("0123456789"),
        name=draw.name,
        split=split,
        provenance=_NAMED[draw.name].provenance("divided by 16") | draw.note(len(part)),
    )


def _load_breast_cancer(draw: _Draw, split: str) -> ImageSet:
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import MinMaxScaler

    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(
        np.arange(len(labels)), test_size=_TESTED["breast-cancer"], stratify=labels, random_state=0
    )
    # Scaled by the training rows alone; a test row beyond their range is put at its end.
    scaler = MinMaxScaler(clip=True).fit(features[parts[0]])
    part = parts[("train", "test").index(split)]
    rows = part[draw.indices(len(part)).numpy()]
    return ImageSet(
        images=torch.from_numpy(scaler.transform(features[rows])).float().reshape(-1, 1, 1, 30),
        labels=torch.from_numpy(labels[rows]).long(),
        class_names=_TUMORS,
        name=draw.name,
        split=split,
        provenance=_NAMED[draw.name].provenance("each feature scaled to [0, 1] by its range in the training rows")
        | draw.note(len(part)),
    )


def _at_size(found: ImageSet, size: int | None) -> ImageSet:
    """Square images with another side."""
    side = found.images.shape[-1]
    if size in (None, side):
        return found
    if size < side:
        images, how = F.interpolate(found.images, size, mode="area"), "means of blocks"
    else:
        images, how = F.interpolate(found.images, size, mode="bilinear"), "bilinear"
    provenance = {name: value for name, value in found.provenance.items() if name != "sha256"}
    return dataclasses.replace(
        found,
        # Rounding may leave a mean of ones a little above one.
        images=images.clamp_(0, 1),
        provenance=provenance | {"prepared": f"{provenance['prepared']}, to {size} px ({how})"},
    )


def _load_cifar10(draw: _Draw, split: str, root: Path) -> ImageSet:
    folder = root / CIFAR10_FOLDER
    files = CIFAR10_SHA256[split]
    if not all((folder / file).exists() for file in files):
        _fetch_cifar10(root)
    chosen = draw.indices(len(files) * CIFAR10_BATCH)
    images = torch.empty(len(chosen), 3, 32, 32)
    labels = torch.empty(len(chosen), dtype=torch.int64)
    for number, file in enumerate(files):
        records = np.frombuffer(_read_cifar10(folder, split, file), np.uint8).reshape(-1, CIFAR10_RECORD)
        places = (chosen // CIFAR10_BATCH == number).nonzero().squeeze(1)
        picked = torch.from_numpy(records[(chosen[places] % CIFAR10_BATCH).numpy()])
        labels[places] = picked[:, 0].long()
        images[places] = picked[:, 1:].reshape(-1, 3, 32, 32) / 255
    return ImageSet(
        images=images,
        labels=labels,
        class_names=CIFAR10_CLASSES,
        name=draw.name,
        split=split,
        provenance=_NAMED[draw.name].provenance("divided by 255") | draw.note(len(files) * CIFAR10_BATCH),
    )
