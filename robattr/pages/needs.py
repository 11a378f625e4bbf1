"""What the parameters of a chapter need of one another, and of data, networks and records, before a kernel starts.

A chapter's header says it under ``robattr: needs:``, a line each::

    - images <= dataset.images      # as many as there are
    - k <= model.pixels             # of a map of the chapter's network
    - dataset fits grid             # images of the channels and classes that the networks of a grid take, at their size
    - objectives in grid.objectives

Left stands a parameter, a list of values for each of them; right a parameter, or what follows from one: ``images`` of a
``format: dataset``, ``pixels`` of a ``format: model``, ``objectives`` and ``seeds`` of a ``format: grid``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robattr.pages.chapters import Chapter, ChapterError, Need
from robattr.pages.schemas import shown
from robattr.pages.values import check_network, located

if TYPE_CHECKING:
    from robattr.data import ImageSet
    from robattr.models import Classifier
    from robattr.studies.trainings import Training

__all__ = ["check_needs", "without_excess"]


def check_needs(chapter: Chapter, values: Mapping[str, Any], root: Path) -> list[str]:
    """Ask data, network and records whether a chapter can run with some values, and say what of a folder is read.

    The network is made and sees one picture where a value is about it. **This runs a file of code that is the model**,
    as the chapter will.

    Args:
        chapter: whose parameters they are.
        values: those that are not its defaults, checked by themselves, with paths as they are from here.
        root: the project's folder, from which the defaults' paths are.

    Returns:
        Lines for the reader.

    Raises:
        ValueError, ModelError: the first need that is not met; the line names the parameter, its value and what there
            is.
    """
    if not values:
        return []
    chosen = located(chapter, {name: each.default for name, each in chapter.parameters.items()}, root, Path.cwd())
    asked = _Asked(chapter, chosen | dict(values), values)
    for name in chapter.parameters:
        asked.check_there(name)
    # Those about the network last: it takes seconds to make.
    for need in sorted(chapter.needs, key=lambda each: each.right.endswith(".pixels")):
        asked.check(need)
    asked.network(always=False)
    return list(asked.said())


def without_excess(chapter: Chapter, values: Mapping[str, Any], asked: Collection[str]) -> dict[str, Any]:
    """The values less those that nobody asked for and that are more images than there are: the defaults stand there.

    Args:
        chapter: whose parameters they are.
        values: with paths as they are from here.
        asked: names of those that the reader gave.
    """
    found = dict(values)
    for need in chapter.needs:
        dataset, _, field = need.right.partition(".")
        value = values.get(need.left)
        if field != "images" or need.left in asked or dataset not in asked or not isinstance(value, int):
            continue
        if value > _contents(values[dataset]).images:
            del found[need.left]
    return found


@dataclass
class _Asked:
    """A chapter and its values, and what follows from them."""

    chapter: Chapter
    values: Mapping[str, Any]
    given: Mapping[str, Any]
    made: tuple[Classifier, ImageSet] | None = None

    def form(self, name: str) -> str:
        return str(self.chapter.parameters[name].schema.get("format", ""))

    def place(self, name: str) -> Path:
        """Where the records of a parameter lie, or its file."""
        within = self.chapter.parameters[name].schema.get("within")
        return Path(self.values[within]) / self.values[name] if within else Path(self.values[name])

    def check_there(self, name: str) -> None:
        form = self.form(name)
        if form == "file" and not self.place(name).is_file():
            self.refuse(name, f"there is no file {self.place(name)}")
        if form in ("records", "grid"):
            folder = self.place(name)
            if self.chapter.parameters[name].schema.get("optional") and not folder.exists():
                return  # the chapter says what it shows without them
            pattern = "*.jsonl" if form == "grid" else "**/*.jsonl"
            if not folder.is_dir() or next(folder.glob(pattern), None) is None:
                made = f"; `make reference GRID={folder.name}` makes them" if form == "grid" else ""
                self.refuse(name, f"there are no records in {folder}{made}")

    def check(self, need: Need) -> None:
        if need.left not in self.given and need.right.partition(".")[0] not in self.given:
            return
        value = self.values[need.left]
        if value is None:
            counts = [self.values[each.left] for each in self.chapter.needs if each.right == need.right]
            if need.right.endswith(".images") and not any(counts):
                self.check_drawn(need.left, self.values[need.right.partition(".")[0]])
            return
        if need.sign == "fits":
            self.check_fits(need.left, need.right)
            return
        there, words = self.right(need.right)
        for each in value if isinstance(value, list) else [value]:
            if there is not None and not (each <= there if need.sign == "<=" else each in there):
                self.refuse(need.left, words)
        if need.right.endswith(".images"):
            self.check_drawn(need.left, self.values[need.right.partition(".")[0]])

    def check_drawn(self, name: str, dataset: str) -> None:
        """All pictures of a folder that the chapter will draw."""
        from robattr import data

        if dataset.startswith("folder:"):
            data.check_pictures(dataset, limit=self.values[name], seed=self.values.get("seed", 0))

    def right(self, name: str) -> tuple[Any, str]:
        """What there is, and how a message says it."""
        parameter, _, field = name.partition(".")
        value = self.values[parameter]
        if not field:
            return value, f"it is at most {parameter}, {shown(value)}"
        if field == "images":
            count = _contents(value).images
            return count, f"{value} has {count:,} images"
        if field == "pixels":
            made = self.network(always=True)
            if made is None:
                return None, ""
            network, images = made
            pixels = images.images.shape[2] * images.images.shape[3]
            return pixels, f"a map of {network.name} has {pixels:,} pixels"
        found = [getattr(training, field.removesuffix("s")) for training in self.trainings(parameter)]
        listed = list(dict.fromkeys(found))
        return listed, f"{self.place(parameter).name} has {', '.join(map(str, listed))}"

    def check_fits(self, name: str, grid: str) -> None:
        from robattr import data

        training = self.trainings(grid)[0]
        wanted = data.image_shape(training.dataset, training.size), data.contents(training.dataset, "train").class_names
        dataset = self.values[name]
        # The chapter asks for a reader's pictures at the size of its networks.
        side = wanted[0][-1] if dataset.startswith("folder:") else None
        found = data.image_shape(dataset, side), _contents(dataset).class_names
        if found != wanted:
            sizes = [f"{' x '.join(map(str, shape))} and {len(names)} classes" for shape, names in (found, wanted)]
            classes = f" ({', '.join(wanted[1][:3])}, ...)" if found[1] != wanted[1] else ""
            self.refuse(
                name,
                f"it has images of {sizes[0]}; the networks of {self.place(grid).name} take {sizes[1]}{classes}",
            )

    def trainings(self, name: str) -> list[Training]:
        """Of the networks of a grid, from the descriptions of its records."""
        from robattr.studies.trainings import Training

        found = []
        for path in sorted(self.place(name).glob("*.json")):
            try:
                source = json.loads(path.read_text(encoding="utf-8"))["provenance"]["network"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise ChapterError(f"{path}: not a record ({type(error).__name__})") from None
            if "training" in source:
                found.append(Training.model_validate(source["training"]))
        if not found:
            self.refuse(name, f"{self.place(name)} has no record of a training")
        return found

    def network(self, *, always: bool) -> tuple[Classifier, ImageSet] | None:
        """The network and one picture for it, made once; without ``always`` only where a value is about either."""
        if self.made is None:
            self.made = check_network(self.chapter, self.values, self.given, always=always)
        return self.made

    def said(self) -> Iterator[str]:
        for name in self.chapter.parameters:
            value = self.values[name]
            if self.form(name) == "dataset" and str(value).startswith("folder:"):
                yield f"{value}: {_contents(value).said}"

    def refuse(self, name: str, why: str) -> None:
        raise ChapterError(f"{self.chapter.name}: parameter {name!r} cannot be {shown(self.values[name])}: {why}")


def _contents(dataset: str) -> Any:
    from robattr import data

    return data.contents(dataset)
