"""Photographs from files, and folders of them as data sets."""

import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from robattr.data.sets import DataError, ImageSet, _Draw, _one_line
from robattr.data.sources import _check_split

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
# Of those suffixes. What Pillow reads besides, a video's frames among it, is no picture however its file is called.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})

MAX_PIXELS = 80_000_000
"""Of a picture, as long as nobody says otherwise: decoded, they are 240 MB. A file of some kB can hold far more."""


@cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet ids and short names of the 1,000 ImageNet classes. Two names occur twice; those get their ids."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    wnids = tuple(info.index_to_label_name(i) for i in range(1000))
    short = [info.label_name_to_description(wnid).split(",")[0] for wnid in wnids]
    names = [f"{name} ({wnid})" if short.count(name) > 1 else name for name, wnid in zip(short, wnids, strict=True)]
    return wnids, tuple(names)


_WORDNET = re.compile(r"n\d{8}")


def foreign_wordnet_ids(class_names: Sequence[str]) -> tuple[str, ...]:
    """Of names that all look like WordNet ids, those that are none of ImageNet's 1,000 classes."""
    if not all(_WORDNET.fullmatch(name) for name in class_names):
        return ()
    known = set(_imagenet()[0])
    return tuple(name for name in class_names if name not in known)


def wordnet_ids_of(class_names: Sequence[str]) -> dict[str, str]:
    """The WordNet id of each name that is that of one of ImageNet's classes, in whatever case."""
    ids = {name.lower(): wnid for wnid, name in zip(*_imagenet(), strict=True)}
    return {name: ids[spelled] for name in class_names if (spelled := name.lower().replace("_", " ")) in ids}


def wordnet_ids(found: ImageSet) -> tuple[str, ...] | None:
    """The WordNet ids of a set's classes, where these are the 1,000 of ImageNet; None otherwise."""
    ids, names = _imagenet()
    return ids if found.class_names == names else None


def _prepared(size: int) -> str:
    return f"RGB, shorter side to {_resized(size)} px (bicubic), center crop of {size} px, divided by 255"


def _resized(size: int) -> int:
    return round(size / 0.875)


def _stacked(paths: Sequence[Path], size: int | None, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The images at ``paths`` as one tensor ``[N, 3, H, W]``; in their own size if ``size`` is None."""
    return torch.stack([torch.from_numpy(_read_image(path, size, max_pixels)) for path in paths]).float().div_(255)


def _read_image(path: Path, size: int | None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Pixels ``[3, H, W]`` of an image file."""
    rgb = _opened(path, max_pixels)
    if size is not None:
        rgb = _central(rgb, size, Image.Resampling.BICUBIC)
    return np.array(rgb).transpose(2, 0, 1)


def _opened(path: Path, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """An image file, decoded, as RGB; ``upright`` as its camera was held, which EXIF says."""
    with _begun(path, max_pixels, quiet=upright) as image:
        return _rgb(_turned(image) if upright else image)


@contextmanager
def _begun(path: Path, max_pixels: int, quiet: bool = True) -> Iterator[Image.Image]:
    """An image file of which the first bytes are read; what is wrong with it, here or within, names the file."""
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")  # reading a pipe waits for who writes
        # Pillow warns of damaged notes and of areas that are refused below. Threads share the filters of warnings: who
        # reads in several lets it speak.
        with warnings.catch_warnings() if quiet else nullcontext():
            if quiet:
                warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(f"{image.width} x {image.height} pixels, where max_pixels is {max_pixels:,}")
                if image.mode not in _MODES:
                    raise ValueError(f"mode {image.mode}, where 8 bits a channel are needed")
                yield image
    except MemoryError:
        raise  # it says nothing of the file
    except Exception as error:  # of damaged bytes decoders raise whatever the first wrong one leads to
        raise DataError(f"{path} cannot be read as an image ({_one_line(error)}); replace or remove it") from error


def _turned(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # of a damaged note beside sound pixels Pillow raises whatever its first wrong byte leads to
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _central(rgb: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    """The center of an image whose shorter side is made a little longer than ``size``."""
    # The longer side is cut to whole pixels, as torchvision's Resize does.
    resized, shorter = _resized(size), min(rgb.size)
    width, height = resized * rgb.width // shorter, resized * rgb.height // shorter
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height > MAX_PIXELS:
        # Of a line of some bytes the whole would be GBs. Ordinary pictures are not read like that, since a box rounds
        # some values otherwise than the whole does.
        across, down = rgb.width / width, rgb.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return rgb.resize((size, size), how, box=box)
    return rgb.resize((width, height), how).crop((left, top, left + size, top + size))


_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow wants a palette with transparency to go through RGBA.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder of pictures, listed."""

    path: Path
    classes: tuple[Path, ...]
    files: tuple[tuple[Path, int], ...]
    hidden: int
    others: int

    @property
    def said(self) -> str:
        """What is read and what is not, in words."""
        counts = [0] * len(self.classes)
        for _, label in self.files:
            counts[label] += 1
        shown = [f"{each.name} {count}" for each, count in zip(self.classes, counts, strict=True)]
        most = 10
        listed = ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if shown[most:] else "")
        left = ([f"{self.hidden} hidden"] if self.hidden else []) + (
            [f"{self.others} without a suffix of images"] if self.others else []
        )
        number, classes = len(self.files), len(self.classes)
        return f"{number} picture{'s' * (number != 1)} of {classes} class{'es' * (classes != 1)} ({listed})" + (
            f"; left out: {', '.join(left)}" if left else ""
        )


def _folder_named(name: str, split: str) -> _Folder:
    path = Path(name.removeprefix("folder:")).expanduser()
    classes, hidden = _class_folders(path, split)
    files: list[tuple[Path, int]] = []
    others = 0
    for label, folder in enumerate(classes):
        found, more_hidden, more_others = _image_files(folder)
        files += [(file, label) for file in found]
        hidden, others = hidden + more_hidden, others + more_others
    return _Folder(path, tuple(classes), tuple(files), hidden, others)


def _classes_of(folder: _Folder) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes, and the label of each of the folders."""
    names = tuple(each.name for each in folder.classes)
    if all(_WORDNET.fullmatch(name) for name in names):
        wnids, imagenet_names = _imagenet()
        position = {wnid: i for i, wnid in enumerate(wnids)}
        if position.keys() >= set(names):
            return imagenet_names, [position[name] for name in names]
    return names, list(range(len(names)))


def _load_folder(draw: _Draw, split: str, size: int, max_pixels: int) -> ImageSet:
    folder = _folder_named(draw.name, split)
    files = folder.files
    unreadable: list[str] = []
    if draw.lenient:
        chosen, pixels = _readable(files, draw, size, max_pixels, unreadable, folder.path)
    else:
        # All of them are asked, and none is opened: one that cannot be read is said before any work.
        if (strange := next((file for file, _ in files if not file.is_file()), None)) is not None:
            raise DataError(f"{strange} is no regular file; replace or remove it")
        chosen = [files[i] for i in draw.indices(len(files)).tolist()]
        pixels = _stacked([file for file, _ in chosen], size, max_pixels)
    class_names, index = _classes_of(folder)
    prepared = f"upright as EXIF says, {_prepared(size)}"
    return ImageSet(
        images=pixels,
        labels=torch.tensor([index[label] for _, label in chosen]),
        class_names=class_names,
        name=draw.name,
        split=split,
        provenance={
            "source": f"folder {folder.path.name}",
            "licence": "that of the pictures",
            "prepared": prepared,
            "found": folder.said,
        }
        | draw.note(len(files))
        | ({"unreadable": "; ".join(unreadable)} if unreadable else {}),
    )


def _readable(
    files: Sequence[tuple[Path, int]], draw: _Draw, size: int, max_pixels: int, unreadable: list[str], path: Path
) -> tuple[list[tuple[Path, int]], Tensor]:
    """The first files of a draw that can be read, and their pixels; those that cannot are named in ``unreadable``."""
    order = dataclasses.replace(draw, limit=None if draw.limit is None else len(files)).indices(len(files)).tolist()
    chosen: list[tuple[Path, int]] = []
    pixels: list[Tensor] = []
    for i in order:
        if draw.limit is not None and len(chosen) == draw.limit:
            break
        try:
            pixels.append(torch.from_numpy(_read_image(files[i][0], size, max_pixels)))
        except DataError:
            unreadable.append(f"{files[i][0].parent.name}/{files[i][0].name}")
        else:
            chosen.append(files[i])
    if not chosen:
        raise DataError(f"{path} has no picture that can be read; {unreadable[0]} is one of {len(unreadable)}")
    return chosen, torch.stack(pixels).float().div_(255)


def _class_folders(path: Path, split: str) -> tuple[list[Path], int]:
    """The folders of the classes of a split, sorted, and how many hidden ones stand beside them."""
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
    return folders, sum(p.is_dir() and p.name.startswith(".") for p in path.iterdir())


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(folder: Path) -> tuple[list[Path], int, int]:
    """Images in a folder and in those within, sorted; how many hidden entries and how many other files are left out.

    Links are followed; a folder inside of itself is not read again.
    """
    files: list[Path] = []
    hidden = others = 0
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(folder, ())]
    while waiting:
        place, above = waiting.pop()
        real = place.resolve()
        if real in above:
            continue
        for path in place.iterdir():
            if path.name.startswith("."):
                hidden += 1
            elif path.is_dir():
                waiting.append((path, (*above, real)))
            elif path.suffix.lower() in _IMAGE_SUFFIXES:
                files.append(path)
            else:
                others += 1
    if not files:
        raise DataError(f"{folder} has no images ({', '.join(sorted(_IMAGE_SUFFIXES))}); add some or remove the folder")
    return sorted(files), hidden, others
