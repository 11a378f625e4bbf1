"""Photographs from files, and folders of them as data sets."""

import dataclasses
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robattr.data.sets import DataError, ImageSet, _Draw, _one_line
from robattr.data.sources import _check_split

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_SPLIT_FOLDERS = frozenset({"train", "val", "valid", "validation", "test"})


@cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """WordNet ids and short names of the 1,000 ImageNet classes. Two names occur twice; those get their ids."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    wnids = tuple(info.index_to_label_name(i) for i in range(1000))
    short = [info.label_name_to_description(wnid).split(",")[0] for wnid in wnids]
    names = [f"{name} ({wnid})" if short.count(name) > 1 else name for name, wnid in zip(short, wnids, strict=True)]
    return wnids, tuple(names)


def wordnet_ids(found: ImageSet) -> tuple[str, ...] | None:
    """The WordNet ids of a set's classes, where these are the 1,000 of ImageNet; None otherwise."""
    ids, names = _imagenet()
    return ids if found.class_names == names else None


def _prepared(size: int) -> str:
    return f"RGB, shorter side to {_resized(size)} px (bicubic), center crop of {size} px, divided by 255"


def _resized(size: int) -> int:
    return round(size / 0.875)


def _stacked(paths: Sequence[Path], size: int | None) -> Tensor:
    """The images at ``paths`` as one tensor ``[N, 3, H, W]``; in their own size if ``size`` is None."""
    return torch.stack([torch.from_numpy(_read_image(path, size)) for path in paths]).float().div_(255)


def _read_image(path: Path, size: int | None) -> NDArray[np.uint8]:
    """Pixels ``[3, H, W]`` of an image file."""
    rgb = _opened(path)
    if size is not None:
        rgb = _central(rgb, size, Image.Resampling.BICUBIC)
    return np.array(rgb).transpose(2, 0, 1)


def _opened(path: Path) -> Image.Image:
    """An image file, decoded, as RGB."""
    try:
        with Image.open(path) as image:
            return _rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({_one_line(error)}); replace or remove it") from error


def _central(rgb: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    """The center of an image whose shorter side is made a little longer than ``size``."""
    # The longer side is cut to whole pixels, as torchvision's Resize does.
    resized, shorter = _resized(size), min(rgb.size)
    rgb = rgb.resize((resized * rgb.width // shorter, resized * rgb.height // shorter), how)
    left, top = round((rgb.width - size) / 2), round((rgb.height - size) / 2)
    return rgb.crop((left, top, left + size, top + size))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}:
        raise ValueError(f"mode {image.mode}, where 8 bits a channel are needed")
    # Pillow wants a palette with transparency to go through RGBA.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _load_folder(draw: _Draw, split: str, size: int) -> ImageSet:
    path = Path(draw.name.removeprefix("folder:")).expanduser()
    folders = _class_folders(path, split)
    files = [(file, label) for label, folder in enumerate(folders) for file in _image_files(folder)]
    unreadable: list[str] = []
    if draw.lenient:
        chosen, pixels = _readable(files, draw, size, unreadable, path)
    else:
        chosen = [files[i] for i in draw.indices(len(files)).tolist()]
        pixels = _stacked([file for file, _ in chosen], size)
    class_names = tuple(folder.name for folder in folders)
    index = list(range(len(folders)))
    if all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        wnids, imagenet_names = _imagenet()
        position = {wnid: i for i, wnid in enumerate(wnids)}
        if position.keys() >= set(class_names):
            index, class_names = [position[name] for name in class_names], imagenet_names
    return ImageSet(
        images=pixels,
        labels=torch.tensor([index[label] for _, label in chosen]),
        class_names=class_names,
        name=draw.name,
        split=split,
        provenance={"source": f"folder {path.name}", "licence": "that of the pictures", "prepared": _prepared(size)}
        | draw.note(len(files))
        | ({"unreadable": "; ".join(unreadable)} if unreadable else {}),
    )


def _readable(
    files: Sequence[tuple[Path, int]], draw: _Draw, size: int, unreadable: list[str], path: Path
) -> tuple[list[tuple[Path, int]], Tensor]:
    """The first files of a draw that can be read, and their pixels; those that cannot are named in ``unreadable``."""
    order = dataclasses.replace(draw, limit=None if draw.limit is None else len(files)).indices(len(files)).tolist()
    chosen: list[tuple[Path, int]] = []
    pixels: list[Tensor] = []
    for i in order:
        if draw.limit is not None and len(chosen) == draw.limit:
            break
        try:
            pixels.append(torch.from_numpy(_read_image(files[i][0], size)))
        except DataError:
            unreadable.append(f"{files[i][0].parent.name}/{files[i][0].name}")
        else:
            chosen.append(files[i])
    if not chosen:
        raise DataError(f"{path} has no picture that can be read; {unreadable[0]} is one of {len(unreadable)}")
    return chosen, torch.stack(pixels).float().div_(255)


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
