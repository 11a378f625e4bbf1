"""Images that stay in their files until they are asked for: a data set that memory could not hold."""

import dataclasses
import hashlib
import logging
import math
import os
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robattr.data.imagenet import SPLITS, class_folders
from robattr.data.pictures import _IMAGE_SUFFIXES, _central, _imagenet, _opened, _resized
from robattr.data.sets import DataError, ImageSet, _Draw, check_labels
from robattr.data.sources import _check_split, _named, data_root, is_streamed

Corrupt = Literal["stop", "skip"]
"""What an image that cannot be read does: it stops the run; or it is named, counted and left out."""

_MOST_BYTES = 4 * 2**30  # that a stream puts into memory at once
_SIDES = {"imagenet-100": 224, "tiny-imagenet-100": 64}
_TRIES, _AREA, _RATIO = 10, (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop, as in torchvision's RandomResizedCrop
_NUMBERS = 4 * _TRIES + 1  # uniform ones that an image's crop and flip take


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Labeled images in files, decoded by threads when they are asked for; see `stream`.

    In memory are a name, a size and a label of each image and the few batches that are being read. A batch depends on
    its images, and its crops on seed, epoch and image: neither on the number of threads nor on what was read before.

    Attributes:
        folder: Where the names are relative to.
        names: Of the files, ``[N]``, as bytes.
        sizes: Of the files in bytes, int64 ``[N]``.
        labels: int64 ``[N]``, indices into ``class_names``.
        class_names: One name per class.
        name: The name that `stream` was given.
        split: The split that `stream` was given.
        size: Side of the images in pixels.
        provenance: As of an `ImageSet`; but ``sha256`` is of names and sizes of the files, ``sha256_of`` says so, and
            ``augmented`` says how images are made for training.
        unreadable: Why a file could not be read, by its name; shared with the sets that are selected from this one.
    """

    folder: Path
    names: NDArray[Any]
    sizes: NDArray[np.int64]
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str
    size: int
    provenance: Mapping[str, str]
    unreadable: dict[str, str] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        check_labels(self.labels, len(self.names), len(self.class_names))
        digest = {"sha256": _listing_digest(self.names, self.sizes)}
        digest["sha256_of"] = "names and sizes of the files; their contents are not read for it"
        object.__setattr__(self, "provenance", dict(self.provenance) | digest)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (3, self.size, self.size)

    def select(self, indices: Tensor | Sequence[int]) -> "ImageStream":
        """The images at ``indices`` (0 to N-1), in that order, as a stream of their own."""
        index = torch.as_tensor(indices)
        return self._select(index, f"{index.numel()} of {len(self)} by index")

    def subset(self, limit: int, seed: int = 0) -> "ImageStream":
        """``limit`` images drawn at random: what ``stream(..., limit=limit, seed=seed)`` draws."""
        draw = _Draw(self.name, limit, seed)
        return self._select(draw.indices(len(self)), draw.note(len(self))["selection"])

    def read(self, workers: int = 1) -> ImageSet:
        """All of it in memory, as for testing.

        Raises:
            DataError: it would take more than 4 GiB, or an image cannot be read.
        """
        needed = 4 * len(self) * math.prod(self.shape)
        if needed > _MOST_BYTES:
            raise DataError(
                f"{self.name} ({self.split}) is {needed / 2**30:.1f} GiB in memory for {len(self):,} images; at most "
                f"{_MOST_BYTES >> 30} GiB are loaded: give a limit, or take data.stream"
            )
        images = torch.empty(len(self), *self.shape)
        for number, (part, _) in enumerate(self.batches(torch.split(torch.arange(len(self)), 64), workers=workers)):
            images[64 * number : 64 * number + len(part)] = part
        provenance = {key: self.provenance[key] for key in self.provenance if key not in _OF_STREAMS}
        return ImageSet(images, self.labels, self.class_names, self.name, self.split, provenance)

    def batches(
        self,
        rows: Iterable[Tensor],
        *,
        crops: tuple[int, int] | None = None,
        workers: int = 1,
        corrupt: Corrupt = "stop",
        full: bool = False,
        device: torch.device | str = "cpu",
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Batches of images, float32 ``[n, 3, H, W]`` in [0, 1] with channels last in memory, and labels ``[n]``.

        Who does not take them all calls ``close()``: the threads end after the batches that they are at.

        Args:
            rows: Indices of the images of each batch, int64 ``[n]``.
            crops: Seed and epoch of the random crops and flips; None prepares the images as for testing.
            workers: Threads that decode; as many batches are read ahead.
            corrupt: ``skip`` leaves out what cannot be read, with a warning, and enters it into ``unreadable``.
            full: The place of what is left out is taken by the next image of the set that can be read, in a circle;
                its label comes with it.
            device: Where the batches go.

        Raises:
            DataError: an image cannot be read and ``corrupt`` is ``stop``, or none can.
        """

        def placed(batch: "Future[tuple[Tensor, Tensor]]") -> tuple[Tensor, Tensor]:
            pixels, labels = batch.result()
            return pixels.to(device).float().div_(255), labels.to(device)

        ahead: deque[Future[tuple[Tensor, Tensor]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                for each in rows:
                    ahead.append(pool.submit(self._batch, each, crops, corrupt, full))
                    if len(ahead) > workers:
                        yield placed(ahead.popleft())
                while ahead:
                    yield placed(ahead.popleft())
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def _batch(
        self, rows: Tensor, crops: tuple[int, int] | None, corrupt: Corrupt, full: bool
    ) -> tuple[Tensor, Tensor]:
        """Pixels, uint8, and labels."""
        found: list[NDArray[np.uint8]] = []
        taken: list[int] = []
        for row in rows.tolist():
            for index in ((row + further) % len(self) for further in range(len(self) if full else 1)):
                try:
                    pixels = self._image(index, crops)
                except DataError as error:
                    if corrupt == "stop":
                        if crops is None:
                            raise
                        raise DataError(f"{error}; with --skip-corrupt a training goes on without it") from error
                    self._enter(os.fsdecode(self.names[index]), str(error))
                    continue
                found.append(pixels)
                taken.append(index)
                break
            else:
                if full:
                    raise DataError(f"none of the {len(self)} images of {self.name} can be read; look at {self.folder}")
        stacked = np.stack(found) if found else np.empty((0, self.size, self.size, 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2), self.labels[taken]

    def _image(self, index: int, crops: tuple[int, int] | None) -> NDArray[np.uint8]:
        """Pixels ``[H, W, 3]``."""
        # What EXIF says is left alone: published networks have seen ImageNet as it lies in its files.
        rgb = _opened(self.folder / os.fsdecode(self.names[index]), upright=False)
        if crops is None:
            return _for_testing(self.name, rgb, self.size)
        return _for_training(self.name, rgb, self.size, _numbers(*crops, index))

    def _enter(self, name: str, why: str) -> None:
        with self._lock:
            if name not in self.unreadable:
                self.unreadable[name] = why
                logging.getLogger("robattr").warning(
                    "%s; it is left out (%d so far in %s)", why, len(self.unreadable), self.name
                )

    def _select(self, index: Tensor, how: str) -> "ImageStream":
        integers = index.ndim == 1 and index.numel() > 0 and index.dtype in (torch.int32, torch.int64)
        if not integers or not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise DataError(f"indices must be a non-empty list of integers from 0 to {len(self) - 1}")
        selection = "; ".join(filter(None, [self.provenance.get("selection"), how]))
        return dataclasses.replace(
            self,
            names=self.names[index.numpy()],
            sizes=self.sizes[index.numpy()],
            labels=self.labels[index],
            provenance=dict(self.provenance) | {"selection": selection},
        )


_OF_STREAMS = ("sha256", "sha256_of", "augmented")  # what the provenance of an `ImageSet` has of its own, or has not


def stream(
    name: str,
    split: str = "train",
    *,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
) -> ImageStream:
    """A data set that stays in its files: ``imagenet-100`` or ``tiny-imagenet-100``.

    ``imagenet-100`` is read from ``imagenet/train/<WordNet id>`` and ``imagenet/val/<WordNet id>`` under the data root,
    where ImageNet may have all its classes: 100 of them are taken. For training, a random part of 8 to 100 % of the
    area, with sides of 3:4 to 4:3, is resized to 224 px and mirrored with probability 1/2; for testing, the shorter
    side is resized to 256 px and the center is taken. Bilinear with antialiasing, as torchvision's transforms are.

    ``tiny-imagenet-100`` is read from ``tiny-imagenet-100/train/<WordNet id>`` and ``.../val/<WordNet id>``. Its images
    have 64 px, and are taken as they are for testing: there is nothing to resize and no border to cut off. For training
    they are shifted by up to 8 px in both directions over black, and mirrored with probability 1/2; a part of 8 % of
    them would have 18 px.

    Split ``test`` is ImageNet's validation set.

    Args:
        name: See above.
        split: ``train`` or ``test``.
        root: Data root, see `data_root`.
        limit: How many images to take, at random; see `load`.
        seed: Seed of that draw.
        size: Side of the images in pixels; 224 and 64 if not given. Other sides are prepared in proportion.

    Raises:
        DataError: another name or split, a limit or size out of range, a folder that is not there or has no images.
    """
    return _stream(_Draw(name, limit, seed), split, root, size)


def _stream(draw: _Draw, split: str, root: str | os.PathLike[str] | None, size: int | None) -> ImageStream:
    name = draw.name
    entry = _named(name)
    _check_split(name, split, entry.splits)
    if not is_streamed(name):
        raise DataError(f"{name} is loaded into memory; take data.load")
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel; got {size}")
    side = size or side_of(name)
    folder = data_root(root) / entry.folder
    names, sizes, labels = _listed(name, folder, split)
    whole = ImageStream(
        folder=folder,
        names=names,
        sizes=sizes,
        labels=torch.from_numpy(labels),
        class_names=_class_names([path.name for path in class_folders(name, folder, split)]),
        name=name,
        split=split,
        size=side,
        provenance=entry.provenance(_prepared_for_testing(name, side)) | {"augmented": _augmented(name, side)},
    )
    return whole if draw.limit is None else whole._select(draw.indices(len(whole)), draw.note(len(whole))["selection"])


def side_of(name: str) -> int:
    """Side in pixels of the images of a streamed set, where none is asked for."""
    return _SIDES[name]


def listing_digest(name: str, root: str | os.PathLike[str] | None = None, split: str | None = None) -> str:
    """SHA-256 of names and sizes of all files of a streamed set, or of one split, hexadecimal; "" where it is not under
    the data root.

    Contents are not read: there may be 100 GB of them. A file whose content changes and whose size does not is not
    noticed.
    """
    folder = data_root(root) / _named(name).folder
    digest = hashlib.sha256()
    try:
        for part in SPLITS if split is None else (split,):
            names, sizes, _ = _listed(name, folder, part)
            digest.update(_listing_digest(names, sizes).encode())
    except DataError:
        return ""
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# Files


def _listed(name: str, folder: Path, split: str) -> tuple[NDArray[np.bytes_], NDArray[np.int64], NDArray[np.int64]]:
    """Names, sizes and labels of the images of a split, class by class."""
    parts = [_listed_class(path, path.stat().st_mtime_ns) for path in class_folders(name, folder, split)]
    labels = np.repeat(np.arange(len(parts)), [len(sizes) for _, sizes in parts])
    return np.concatenate([names for names, _ in parts]), np.concatenate([sizes for _, sizes in parts]), labels


@cache
def _listed_class(path: Path, _changed: int) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """Names, with those of split and class, and sizes of the images of a class; listed once in a process."""
    with os.scandir(path) as entries:
        found = sorted(
            (os.fsencode(f"{path.parent.name}/{path.name}/{entry.name}"), _size_of(entry))
            for entry in entries
            if Path(entry.name).suffix.lower() in _IMAGE_SUFFIXES and not entry.name.startswith(".")
        )
    if not found:
        raise DataError(f"{path} has no images ({', '.join(sorted(_IMAGE_SUFFIXES))}); add those of the class")
    return np.array([name for name, _ in found]), np.array([size for _, size in found], np.int64)


def _size_of(entry: os.DirEntry[str]) -> int:
    """Size of a file in bytes; -1 of what has none, as a link to nothing: who reads it, names it."""
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _listing_digest(names: NDArray[np.bytes_], sizes: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for name, size in zip(names.tolist(), sizes.tolist(), strict=True):
        digest.update(b"%s %d\n" % (name, size))
    return digest.hexdigest()


def _class_names(wnids: list[str]) -> tuple[str, ...]:
    """Names of ImageNet's classes by their WordNet ids; a folder of another kind keeps its own."""
    known = dict(zip(*_imagenet(), strict=True))
    return tuple(known.get(wnid, wnid) for wnid in wnids)


# --------------------------------------------------------------------------------------------------------------------
# Pixels


def _numbers(seed: int, epoch: int, index: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that belong to an image in an epoch."""
    digest = hashlib.sha256(f"{seed}/stream/{epoch}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    numbers: NDArray[np.float64] = torch.rand(_NUMBERS, dtype=torch.float64, generator=generator).numpy()
    return numbers


def _for_testing(name: str, rgb: Image.Image, size: int) -> NDArray[np.uint8]:
    if name == "imagenet-100":
        return np.array(_central(rgb, size, Image.Resampling.BILINEAR))
    return np.array(_whole(rgb, size))


def _prepared_for_testing(name: str, size: int) -> str:
    if name == "imagenet-100":
        how = f"shorter side to {_resized(size)} px (bilinear), center crop of {size} px"
    else:
        how = "as it is" if size == side_of(name) else f"to {size} px (bilinear)"
    return f"RGB, {how}, divided by 255"


def _for_training(name: str, rgb: Image.Image, size: int, numbers: NDArray[np.float64]) -> NDArray[np.uint8]:
    if name == "imagenet-100":
        box = _random_box(rgb.width, rgb.height, numbers)
        pixels = np.array(rgb.crop(box).resize((size, size), Image.Resampling.BILINEAR))
    else:
        padding = size // 8
        down, right = (int(number * (2 * padding + 1)) for number in numbers[:2])
        padded = np.pad(np.array(_whole(rgb, size)), [(padding, padding), (padding, padding), (0, 0)])
        pixels = padded[down : down + size, right : right + size]
    return pixels[:, ::-1] if numbers[-1] < 0.5 else pixels


def _augmented(name: str, size: int) -> str:
    if name == "imagenet-100":
        return f"random part of 8 to 100 % of the area, sides of 3:4 to 4:3, to {size} px (bilinear); random mirror"
    return f"random shift by up to {size // 8} px over black; random mirror"


def _whole(rgb: Image.Image, size: int) -> Image.Image:
    return rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.BILINEAR)


def _random_box(width: int, height: int, numbers: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part whose area and ratio of sides are random.

    The first of ten that fits; where none does, the largest one at the center with a ratio that is accepted.
    """
    for area, ratio, left, top in numbers[: 4 * _TRIES].reshape(_TRIES, 4).tolist():
        pixels = width * height * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        slope = math.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
        w, h = round(math.sqrt(pixels * slope)), round(math.sqrt(pixels / slope))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    w, h = width, height
    if width < _RATIO[0] * height:
        h = round(width / _RATIO[0])
    elif width > _RATIO[1] * height:
        w = round(height * _RATIO[1])
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h
