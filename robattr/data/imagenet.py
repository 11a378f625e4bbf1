"""ImageNet-100 and its stand-in of 64 pixels: which classes they have, and where their files lie."""

from pathlib import Path

from robattr.data.sets import DataError

# The 100 of ImageNet's 1,000 classes in the experiments of Joo et al. 2023, in order.
_IDS = """
    n01440764 n01443537 n01484850 n01491361 n01494475 n01496331 n01498041 n01514668 n01514859 n01531178 n01537544
    n01560419 n01582220 n01592084 n01601694 n01608432 n01614925 n01622779 n01630670 n01632458 n01632777 n01644900
    n01664065 n01665541 n01667114 n01667778 n01675722 n01677366 n01685808 n01687978 n01693334 n01695060 n01698640
    n01728572 n01729322 n01729977 n01734418 n01735189 n01739381 n01740131 n01742172 n01749939 n01751748 n01753488
    n01755581 n01756291 n01770081 n01770393 n01773157 n01773549 n01773797 n01774384 n01774750 n01775062 n01776313
    n01795545 n01796340 n01798484 n01806143 n01818515 n01819313 n01820546 n01824575 n01828970 n01829413 n01833805
    n01843383 n01847000 n01855672 n01860187 n01877812 n01883070 n01910747 n01914609 n01924916 n01930112 n01943899
    n01944390 n01950731 n01955084 n01968897 n01978287 n01978455 n01984695 n01985128 n01986214 n02002556 n02006656
    n02007558 n02011460 n02012849 n02013706 n02018207 n02018795 n02027492 n02028035 n02037110 n02051845 n02058221
    n02077923
"""
IMAGENET100_CLASSES = tuple(_IDS.split())
SPLITS = {"train": "train", "test": "val"}
"""Folder of each split: ImageNet's own test set has no labels, its validation set is the test set here."""
TINY_CLASSES = 100


def class_folders(name: str, folder: Path, split: str) -> list[Path]:
    """The folder of each class, in order.

    Raises:
        DataError: there is none, or one is missing; one line says where to put the data set. Or the other split, where
            it is there, has folders of other classes.
    """
    part = folder / SPLITS[split]
    if name == "imagenet-100":
        missing = next((wnid for wnid in IMAGENET100_CLASSES if not (part / wnid).is_dir()), None)
        if missing is not None:
            raise DataError(
                f"imagenet-100 has no {part / missing}; put ImageNet, or a link to it, at {folder} as "
                "train/<WordNet id>/*.JPEG and val/<WordNet id>/*.JPEG, or set ROBATTR_DATA"
            )
        return [part / wnid for wnid in IMAGENET100_CLASSES]
    found = _folders(part)
    if len(found) != TINY_CLASSES:
        raise DataError(
            f"tiny-imagenet-100 has {len(found)} of its {TINY_CLASSES} classes in {part}; put those of Tiny-ImageNet "
            f"at {folder} as train/<WordNet id>/*.JPEG and val/<WordNet id>/*.JPEG, or set ROBATTR_DATA"
        )
    # A class's number is its place among the folders: with others in the other split it would be another class there.
    other = next(folder / each for each in SPLITS.values() if each != part.name)
    here, there = ({each.name for each in folders} for folders in (found, _folders(other)))
    if there and here != there:
        differing = {part.name: sorted(here - there), other.name: sorted(there - here)}
        said = "; ".join(
            f"only {where} has {', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}"
            for where, names in differing.items()
            if names
        )
        raise DataError(f"{name} has other classes in {part} than in {other}: {said}; give both the same folders")
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []
