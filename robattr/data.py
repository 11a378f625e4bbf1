"""Labelled images with their provenance: what every experiment reads.

Images are float32 ``[N, C, H, W]`` in [0, 1], not normalized (models normalize inside). `load` knows:

=================== ========================================================== ============
name                what                                                       splits
=================== ========================================================== ============
imagenet-samples    20 ImageNet photographs that ship inside foolbox           test
cifar10-samples     20 CIFAR-10 test images that ship inside foolbox           test
digits              1,797 handwritten 8 x 8 digits that ship with scikit-learn train, test
cifar10             CIFAR-10, 60,000 images of 32 x 32, fetched on first use   train, test
folder:PATH         your pictures, PATH/<class>/* or PATH/<split>/<class>/*    as found
=================== ========================================================== ============

What is fetched lies under `data_root`. A file is written beside its place and renamed when whole; it is read only
after its published SHA-256 has been checked.
"""

import dataclasses
import difflib
import hashlib
import http.client
import importlib.resources
import importlib.util
import os
import re
import socket
import tarfile
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = [
    "DataError",
    "DatasetInfo",
    "ImageSet",
    "available",
    "check_images",
    "check_labels",
    "data_root",
    "fetch",
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

    ``cifar10`` is the official binary version. It is read from ``cifar-10-batches-bin`` under the data root; where that
    folder is not there it is made from torchvision's copy there, which is downloaded if need be.

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
        size: Side of the images in pixels, for photographs only; 224 if not given.

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
    side = 8 if name == "digits" else 32
    if size not in (None, side):
        raise DataError(f"size of {name} is {side} px and cannot be chosen; got {size} (leave it out)")
    if name == "cifar10-samples":
        return _load_samples(draw, "cifar10", CIFAR10_CLASSES, None)
    if name == "digits":
        return _load_digits(draw, split)
    return _load_cifar10(draw, split, data_root(root))


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

    Args:
        name: One of `available`.
        root: Data root, see `data_root`.
        split: Check the files of this split only; all if not given.

    Returns:
        The folder of the data set.

    Raises:
        DataError: an unknown name or split, a ``folder:`` (nothing to fetch it from), no network, a damaged file.
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
    if not folder.is_dir():
        _fetch_cifar10(root)
    files = CIFAR10_SHA256[split]
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
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {_FETCH_CIFAR10}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_one_line(error)})") from error
    if found != size:
        raise DataError(
            f"{path} has {found:,} bytes where the official file has {size:,}; delete it and {_FETCH_CIFAR10}"
        )
    if hashlib.sha256(content).hexdigest() != CIFAR10_SHA256[split][file]:
        raise DataError(f"{path} is not the official file (its SHA-256 differs); delete it and {_FETCH_CIFAR10}")
    return content


def _fetch_cifar10(root: Path) -> None:
    """Make the files of ``cifar-10-batches-bin`` that are missing. What is there is left alone."""
    folder = root / CIFAR10_FOLDER
    missing = [file for files in CIFAR10_SHA256.values() for file in files if not (folder / file).exists()]
    if not missing:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that renaming is atomic; the context removes it after an error or Ctrl-C too.
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as temporary:
            staged = Path(temporary) / CIFAR10_FOLDER
            staged.mkdir()
            for split, files in CIFAR10_SHA256.items():
                records = _torchvision_cifar10(root, Path(temporary), split)
                for number, file in enumerate(files):
                    (staged / file).write_bytes(
                        records[number * CIFAR10_BATCH : (number + 1) * CIFAR10_BATCH].tobytes()
                    )
                    _read_cifar10(staged, split, file)
            if folder.exists():
                for file in missing:
                    (staged / file).replace(folder / file)
            else:
                staged.rename(folder)
    except OSError as error:
        raise DataError(f"cifar10 cannot be written under {root} ({_one_line(error)}); set ROBATTR_DATA") from error


def _torchvision_cifar10(root: Path, temporary: Path, split: str) -> NDArray[np.uint8]:
    """Records as in the official binary files, from torchvision's copy: the one under ``root``, else downloaded.

    That copy is made of pickles; torchvision compares each with a pinned MD5 before it opens it.
    """
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
        raise DataError(
            f"cifar10 could not be downloaded ({_one_line(error)}); put {CIFAR10_FOLDER} under {root}, or set "
            "ROBATTR_DATA to the folder that holds it"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    labels = np.asarray(source.targets, dtype=np.uint8)[:, None]
    pixels: NDArray[np.uint8] = np.asarray(source.data, dtype=np.uint8).transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return np.concatenate([labels, pixels], axis=1)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
